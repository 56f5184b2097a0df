"""The laws of masks on every kind of model: exact counts, zeros that stay, paths that stay, nothing else touched."""

from typing import Any

import pytest
import torch

from nervure import ERK, SNIP, MagnitudeMasks, SynFlow, hold, prune
from nervure.budget.weights import sheets
from nervure.methods import Method
from nervure.tracing import trace
from tests.networks import NETWORKS
from tests.oracle import call, tensors

MODELS = (
    "chain", "concat", "conv1d", "conv3d", "conv_transpose", "depthwise", "embedding_linear", "encoder_layer",
    "flatten_linear", "gqa_repeat", "grouped_conv", "gru", "inverted_residual", "lstm_bidirectional", "mlp",
    "mlp_mixer", "projection", "residual", "res_next", "shared_twice", "squeeze_excitation", "tied_embedding",
    "torch_attention", "two_towers", "unet", "unused_layer", "vit",
)  # fmt: skip
METHODS: tuple[Method, ...] = (ERK(density=0.4), MagnitudeMasks(density=0.5, granularity="kernel"))


def varied(example: Any, seed: int) -> Any:
    """Another input of the same kind."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(example, tuple):
        return tuple(varied(part, seed + place) for place, part in enumerate(example))
    if isinstance(example, dict):
        return {key: varied(part, seed) for key, part in example.items()}
    if not example.is_floating_point():
        return (
            example[torch.randperm(len(example), generator=generator)].flip(-1) if seed % 2 else (example + seed) % 11
        )
    return torch.randn(example.shape, generator=generator, dtype=example.dtype)


@pytest.mark.sampled(times=1)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_masks_keep_exactly_what_was_asked_and_outputs_still_hear(method: Any, model: str) -> None:
    dense, example = NETWORKS[model].factory(), NETWORKS[model].example()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    found = prune(dense, example, method, progress=False, verify=False)
    again = prune(dense, example, method, progress=False, verify=False)
    assert again.plan == found.plan
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())
    prunable = {s.tensor: dense.get_parameter(s.tensor).numel() for s in sheets(dense, trace(dense, example))}
    stay = {name: int(found.masks[name].sum()) if name in found.masks else n for name, n in prunable.items()}
    asked, largest = round(method.density * sum(prunable.values())), 0
    if method.granularity == "kernel":
        largest = max(dense.get_parameter(name).shape[2:].numel() for name in prunable)
    assert asked - largest <= sum(stay.values()) <= asked
    assert found.model.state_dict().keys() == before.keys()
    answers = [list(tensors(call(found.model, varied(example, seed)))) for seed in range(4)]
    for several in zip(*answers, strict=True):
        units = torch.stack([one.detach().double() for one in several]).movedim(-1 if several[0].ndim != 4 else 2, 0)
        assert bool((units.flatten(1).std(1) > 0).all()), "an output no longer hears the input"


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("model", ["encoder_layer", "grouped_conv", "lstm", "tied_embedding", "weight_norm"])
def test_any_parameter_of_any_model_can_be_held(model: str, optimizer: type[torch.optim.Optimizer]) -> None:
    net, example = NETWORKS[model].factory().train(), NETWORKS[model].example()
    generator = torch.Generator().manual_seed(1)
    masks = {name: torch.rand(p.shape, generator=generator) < 0.5 for name, p in net.named_parameters()}
    steps = optimizer(net.parameters(), lr=0.01, weight_decay=0.1)  # type: ignore[call-arg]
    hold(net, steps, masks)
    for _ in range(3):
        steps.zero_grad()
        torch.stack([out.square().mean() for out in tensors(net(example))]).sum().backward()
        steps.step()
    for name, mask in masks.items():
        parameter = net.get_parameter(name)
        state = [v for v in steps.state[parameter].values() if v.shape == parameter.shape and v.ndim]
        assert all(int(torch.count_nonzero(v[~mask])) == 0 for v in (parameter.detach(), *state)), name


@pytest.mark.parametrize(
    "method", [SynFlow(density=0.5, steps=3, granularity="2:4"), ERK(density=0.25, granularity="1:4")], ids=repr
)
@pytest.mark.parametrize("model", ["mlp", "residual", "vit"])
def test_n_of_m_leaves_every_unit_a_path_to_the_input(method: Any, model: str) -> None:
    n, m = map(int, method.granularity.split(":"))
    masks = prune(NETWORKS[model].factory(), NETWORKS[model].example(), method, progress=False, verify=False).masks
    assert masks
    for name, mask in masks.items():
        groups = mask.movedim(1, -1).unflatten(-1, (-1, m)).sum(-1)
        assert bool((groups == n).all()), name
        # Whatever is below, a row that keeps n of every m hears some unit of it, up from the input.
        assert bool(mask.flatten(1).any(1).all())


def test_iterative_snip_meets_n_of_m_and_density_on_a_residual_network() -> None:
    net, example = NETWORKS["residual"].factory(), NETWORKS["residual"].example()
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, 3, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator))]
    for method in (SNIP(density=0.5, steps=3, granularity="2:4"), SNIP(density=0.1, steps=4)):
        found = prune(net, example, method, data=data, progress=False, verify=False)
        kept = sum(int(mask.sum()) for mask in found.masks.values())
        whole = sum(mask.numel() for mask in found.masks.values())
        assert kept == round(method.density * whole)
