"""Refit on networks of all kinds: nothing is worse, and what cannot be fitted says why."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from nervure import Magnitude, prune
from nervure.core.inputs import Inputs
from nervure.errors import NervureWarning
from nervure.refit import refit
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
