"""Whatever chose what leaves, what stays can be fitted: plain and refitted arms are there for every method."""

from typing import Any

import pytest
import torch
from torch import nn

from nervure import prune
from nervure.methods import METHODS, Compensated, Method, Rerouted, RigL
from nervure.refit import Refit
from tests import contracts
from tests.refit.test_expert_ends import network
from tests.surgery.test_experts import Grouped

OTHERS: tuple[Method, ...] = (Compensated(keep=0.5, samples=60), RigL(density=0.5), Rerouted(keep=0.5))
LISTED = (*contracts.METHODS, *contracts.MASKING, *contracts.DROPPING, *OTHERS)
CHOSEN = {type(m).__name__: m for m in reversed(LISTED)}
"""One method of each class."""
NETWORKS = {"Energy": "projection", "Depth": "projection"}
"""Where residual blocks are to be dropped, a network that has several."""


def network_for(method: Method) -> tuple[nn.Module, Any]:
    """A network that has what the method cuts, and its example."""
    if isinstance(method, Rerouted):
        return network(Grouped), torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    case = contracts.case(NETWORKS.get(type(method).__name__, "residual"))
    return case.model, case.example


def test_no_method_is_left_out() -> None:
    assert set(CHOSEN) == set(METHODS)


@pytest.mark.sampled(share=0.2, times=1)
@pytest.mark.filterwarnings("ignore::nervure.errors.NervureWarning")
@pytest.mark.parametrize("method", CHOSEN.values(), ids=lambda method: type(method).__name__)
def test_a_refit_follows_any_method_and_leaves_masks_and_plan_as_they_were(method: Method) -> None:
    model, example = network_for(method)
    data = contracts.data_for(model, example)
    plain = prune(model, example, method, data=data, progress=False)
    fitted = prune(model, example, method, data=data, refit=Refit(samples=48), progress=False)
    assert fitted.plan.edits == plain.plan.edits
    assert fitted.plan.reached["refit"]["layers"] > 0
    assert fitted.plan.reached["refit"]["held_after"] <= fitted.plan.reached["refit"]["held_before"] + 1e-6
    tensors = dict(fitted.model.named_parameters())
    assert all(not tensors[name][~mask].any() for name, mask in fitted.masks.items())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
