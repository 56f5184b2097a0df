"""What cannot be refitted says why, and what data do not allow is not done."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from nervure import Cut, Keep, Magnitude, Mask, Plan, Pruned, load, prune, save
from nervure.errors import ArgumentError, DataError, NervureWarning, PlanError
from nervure.refit import Refit, Refitted, refit

Data = list[tuple[Tensor, Tensor]]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    ).eval()


def data_of(samples: int = 64, *, scale: float = 1.0) -> Data:
    generator = torch.Generator().manual_seed(1)
    x = scale * torch.randn(samples, 2, 6, 6, generator=generator)
    return [(part, torch.zeros(len(part))) for part in x.split(16)]


def pruned_of(model: nn.Module) -> Pruned:
    example = data_of()[0][0][:2].to(next(model.parameters()).dtype)
    return prune(model, example, Magnitude(keep=0.5), progress=False)


def refitted(model: nn.Module, data: Data | None = None, **options: object) -> Refitted[Pruned]:
    return refit(pruned_of(model), data or data_of(), reference=model, progress=False, **options)  # type: ignore[arg-type]


def test_errors_are_never_larger_on_the_samples_fitted_on() -> None:
    layers = refitted(network()).layers
    assert all(layer.after <= layer.before * (1 + 1e-6) for layer in layers)
    assert any(layer.after < 0.9 * layer.before for layer in layers)


def test_one_layer_that_is_another_by_now_makes_no_other_network() -> None:
    # As a weak ridge on few samples may leave it: its weights are many times those of all others together.
    model = network()
    found = pruned_of(model)
    weight = found.model[3].weight
    with torch.no_grad():
        weight.copy_(100 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)))
    fit = refit(found, data_of(), reference=model, progress=False).layers
    assert fit[-1].held_after < fit[-1].held_before
    with pytest.raises(ArgumentError, match="is not the network that this model was pruned from"):
        refit(found, data_of(), reference=network(1), progress=False)


def test_errors_are_never_larger_on_the_samples_left_out_either() -> None:
    assert all(layer.held_after <= layer.held_before * (1 + 1e-6) for layer in refitted(network()).layers)


def test_the_error_that_is_told_is_that_of_the_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).eval()
    x = torch.randn(64, 6)
    plan = Plan((Cut("0", Keep.of([True] * 6 + [False] * 3)),))
    found = refit(prune(model, x[:2], plan), [(x, x)], reference=model, progress=False)
    held = torch.arange(64) % 4 == 3
    for rows, told in ((held, found.layers[-1].held_after), (~held, found.layers[-1].after)):
        said, wanted = found.result.model(x[rows]), model(x[rows])
        error = (said - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
        assert told == pytest.approx(error.item(), rel=1e-3)


def test_labels_are_not_looked_at() -> None:
    data = data_of()
    first = refitted(network(), data)
    second = refitted(network(), [x for x, _ in data])  # type: ignore[arg-type]
    assert first.layers == second.layers


def test_a_plan_says_that_it_was_refitted_and_the_model_comes_back_from_its_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = network()
    found = refitted(model).result
    assert found.plan.reached["refit"]["samples"] == 48
    assert found.plan.edits == pruned_of(model).plan.edits
    back = load(save(tmp_path / "refitted.safetensors", found), model)
    assert back.plan == found.plan
    x = data_of()[0][0]
    assert torch.equal(back.model(x), found.model(x))


def test_a_masked_model_keeps_its_zeros() -> None:
    model = network()
    keep = torch.rand(model[3].weight.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    pruned = prune(model, data_of()[0][0][:2], Plan((Mask("3.weight", Keep.of(keep)),)))
    found = refit(pruned, data_of(), reference=model, progress=False)
    weight = found.result.model[3].weight
    assert bool((weight[~keep] == 0).all())
    assert not torch.equal(weight, pruned.model[3].weight)
    layer = next(layer for layer in found.layers if layer.tensor == "3.weight")
    assert layer.after < layer.before


def test_a_masked_module_keeps_its_zeros() -> None:
    model = network()
    keep = torch.rand(model[3].weight.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    masked = copy.deepcopy(model)
    with torch.no_grad():
        masked[3].weight *= keep
    found = refit(masked, data_of(), reference=model, masks={"3.weight": keep}, progress=False)
    assert bool((found.result[3].weight[~keep] == 0).all())
    assert not torch.equal(found.result[3].weight, masked[3].weight)


def test_what_was_pruned_twice_is_refitted_to_the_first_model() -> None:
    model = network()
    example = data_of()[0][0][:2]
    twice = prune(pruned_of(model), example, Magnitude(keep=0.5), progress=False)
    found = refit(twice, data_of(), reference=model, progress=False)
    assert all(layer.after < layer.before for layer in found.layers[1:])


class Tied(nn.Module):
    """A table of words that is the head as well, and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 8)
        self.inner, self.outer = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, words: Tensor) -> Tensor:
        x = self.table(words)
        for _ in range(2):
            x = x + self.outer(F.relu(self.inner(x)))
        return F.linear(x, self.table.weight)


def test_tied_layers_are_fitted_once_for_all_their_uses_and_tables_stay() -> None:
    model = Tied().eval()
    words = torch.randint(0, 11, (64, 5), generator=torch.Generator().manual_seed(0))
    plan = Plan((Cut("inner", Keep.of([True] * 8 + [False] * 4)),))
    found = refit(prune(model, words[:2], plan), [words], reference=model, progress=False)
    layers = {layer.tensor: layer for layer in found.layers}
    assert layers["outer.weight"].positions == 2 * 48 * 5
    assert layers["outer.weight"].after < layers["outer.weight"].before
    assert "table" in layers["table.weight"].reason
    assert torch.equal(found.result.model.table.weight, model.table.weight)


def test_frozen_layers_stay() -> None:
    model = network()
    model[3].requires_grad_(False)
    found = refitted(model)
    assert {layer.tensor for layer in found.layers if layer.reason == "it is frozen"} == {"3.weight"}


def test_a_model_without_anything_to_fit_says_so() -> None:
    model = network().requires_grad_(False)
    with pytest.raises(ArgumentError, match=r"nothing in this model can be refitted.*frozen.*requires_grad_\(True\)"):
        refitted(model)


def test_a_quantised_model_says_so() -> None:
    torch.manual_seed(0)
    with pytest.warns(Warning):  # PyTorch deprecates its own way to do this.
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ArgumentError, match="nothing in this model can be refitted"):
        refit(model, [torch.randn(16, 4)], reference=model, progress=False)


def test_another_network_is_no_reference() -> None:
    with pytest.raises(ArgumentError, match=r"correlate by .* Give the dense network"):
        refit(pruned_of(network()), data_of(), reference=network(seed=5), progress=False)


def test_a_network_of_another_shape_is_no_reference() -> None:
    with pytest.raises(PlanError, match="another model"):
        refit(pruned_of(network()), data_of(), reference=nn.Linear(3, 3), progress=False)


def test_constant_data_teach_nothing() -> None:
    with pytest.raises(DataError, match="all 32 samples are the same"):
        refitted(network(), [(torch.ones(16, 2, 6, 6), torch.zeros(16))] * 2)


def test_constant_data_by_name_teach_nothing_either() -> None:
    model = Tied().eval()
    words = {"words": torch.ones(16, 5, dtype=torch.int64)}
    with pytest.raises(DataError, match="all 16 samples are the same"):
        refit(model, [words], reference=model, progress=False)


def test_data_that_are_not_finite_are_refused() -> None:
    data = data_of()
    data[1][0][0, 0, 0, 0] = math.nan
    with pytest.raises(DataError, match="NaN"):
        refitted(network(), data)


def test_a_network_that_makes_nan_is_refused() -> None:
    model = network()
    pruned = pruned_of(model)
    with torch.no_grad():
        pruned.model[6].weight[0, 0] = math.inf
    with pytest.raises(DataError, match=r"'6\.weight' are NaN or infinite"):
        refit(pruned, data_of(), reference=model, progress=False)


class Explodes(nn.Module):
    """Gives infinity, where numbers are not very small."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 0


def test_activations_that_are_not_finite_are_refused() -> None:
    model = network()
    model.insert(4, Explodes())
    with pytest.raises(DataError, match="what enters or leaves '7.weight' is NaN or infinite"):
        refit(model, data_of(), reference=model, progress=False)


def test_too_few_samples_are_too_few() -> None:
    with pytest.raises(DataError, match="3 samples are too few"):
        refitted(network(), data_of(3))


def test_far_fewer_samples_than_inputs_leave_less_freedom() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 128), nn.ReLU(), nn.Linear(128, 4)).eval()
    with pytest.warns(NervureWarning, match=r"too few samples.*3\.weight \(3 positions, 64 inputs\)"):
        found = refitted(model, data_of(4))
    assert found.layers[-1].freedom in ("scale", "bias", "none")


def test_data_of_another_kind_are_told() -> None:
    model = network()
    with torch.no_grad():
        model[1].running_mean.fill_(0.0)
    with pytest.warns(NervureWarning, match="of another kind"):
        refitted(model, [(x + 20, y) for x, y in data_of()])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 0}, "samples=0"),
        ({"positions": -1}, "positions=-1"),
        ({"ridge": -1.0}, "ridge=-1.0"),
        ({"ridge": math.nan}, "ridge=nan"),
        ({"ridge": "automatic"}, "ridge='automatic'"),
        ({"masks": "ample"}, "masks='ample'"),
        ({"streams": "yes"}, "streams='yes'"),
        ({"seed": -1}, "seed=-1"),
        ({"sample": 3}, "has no option 'sample'"),
    ],
)
def test_choices_out_of_range_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        Refit(**options)  # type: ignore[arg-type]


def test_what_is_no_pruned_model_is_refused() -> None:
    with pytest.raises(ArgumentError, match="list is no pruned model"):
        refit([], data_of(), reference=network())


def test_half_precision_is_fitted_as_well_as_it_holds() -> None:
    model = network().to(torch.bfloat16)
    found = refitted(model, [(x.to(torch.bfloat16), y) for x, y in data_of()])
    assert found.result.model[3].weight.dtype == torch.bfloat16
    assert all(layer.after <= layer.before * (1 + 1e-6) for layer in found.layers)


def test_what_is_no_choice_is_refused() -> None:
    for how in (0, "auto", Refit):
        with pytest.raises(ArgumentError, match="how is a Refit or None"):
            refit(network(), data_of(), reference=network(), how=how)  # type: ignore[arg-type]


def test_a_loader_that_shuffles_gives_the_same_refit_and_chance_outside_goes_on() -> None:
    dense = network()
    pruned, loader = pruned_of(dense), DataLoader(data_of(64)[0][0], batch_size=8, shuffle=True)
    before = torch.get_rng_state()
    first, second = (
        refit(pruned, loader, reference=dense, how=Refit(samples=32), progress=False).result.model.state_dict()
        for _ in range(2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_steps_need_data_twice() -> None:
    dense = network()
    with pytest.raises(DataError, match="steps=3 draws the data twice, and a list_iterator gives"):
        refit(pruned_of(dense), iter(data_of()), reference=dense, how=Refit(steps=3), progress=False)
