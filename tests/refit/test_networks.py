"""Refit on networks of all kinds: nothing is worse, and what cannot be fitted says why."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import Magnitude, prune
from nervure.core.inputs import Inputs
from nervure.errors import NervureWarning
from nervure.refit import Refit, refit
from tests.networks import NETWORKS

SOME = [
    "residual", "dense_block", "inverted_residual", "grouped_chain", "conv3d", "grouped_transpose", "unet",
    "weight_norm",
    "squeeze_excitation", "shared_twice", "tied_transposed", "tied_embedding", "raw_parameters", "dict_input",
    "in_place", "einsum", "mlp_mixer", "lstm", "gru_stacked_bidirectional", "vit", "vit_kernel", "gqa_repeat",
    "torch_attention", "encoder_layer", "windows", "two_towers",
]  # fmt: skip
REASONS = frozenset((
    "", "what multiplies is computed from it", "it is used in several ways at once",
    "the dense network reads at other positions", "it is a table that inputs are looked up in as well",
))  # fmt: skip


def varied(example: Any) -> Any:
    """Sixteen samples that differ."""
    generator = torch.Generator().manual_seed(0)

    def vary(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.ndim:
            return x
        return x + torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x.roll(1, -1)

    return Inputs.of(example).resize(16).map(vary).plain()


@pytest.mark.parametrize("name", SOME)
def test_no_layer_is_worse_than_before(name: str) -> None:
    model, example = NETWORKS[name].factory(), NETWORKS[name].example()
    pruned = prune(model, example, Magnitude(keep=0.6), progress=False, verify=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NervureWarning)  # Sixteen samples are few.
        found = refit(pruned, [(varied(example), None)], reference=model, progress=False)
    assert any(layer.freedom != "none" or layer.reason for layer in found.layers)
    for layer in found.layers:
        assert layer.reason in REASONS
        assert layer.after <= layer.before * (1 + 1e-6) + 1e-12
        assert layer.held_after <= layer.held_before * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize(("samples", "freedom"), [(60, "scale"), (4000, "ridge")])
def test_what_is_written_is_the_answer_that_was_chosen(samples: int, freedom: str) -> None:
    """With few samples each input has a factor, with many each weight its own; the errors told are those there are."""
    torch.manual_seed(0)
    model = nn.Linear(800, 300, bias=False).eval()
    x = (torch.randn(samples, 20) @ torch.randn(20, 800)).relu()
    mask = model.weight.abs() > model.weight.abs().median()
    masked = nn.Linear(800, 300, bias=False).eval()
    with torch.no_grad():
        masked.weight.copy_(model.weight * mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NervureWarning)
        found = refit(masked, [x], reference=model, masks={"weight": mask}, how=Refit(samples=samples), progress=False)
    (fit,) = found.layers
    assert fit.freedom == freedom
    with torch.no_grad():
        before, after = (float((one(x) - model(x)).square().sum()) for one in (masked, found.result))
    assert after < 0.97 * before
    told = [3 * fit.before + fit.held_before, 3 * fit.after + fit.held_after]
    assert after / before == pytest.approx(told[1] / told[0], rel=0.1)
    factors = found.result.weight / masked.weight
    of_inputs = factors.nan_to_num(0).sum(0) / mask.sum(0).clamp(min=1)
    is_by_input = torch.allclose(factors[mask], of_inputs.expand_as(mask)[mask], rtol=1e-3)
    assert is_by_input == (freedom == "scale")
