"""Whatever chose what leaves, what stays can be fitted: plain and refitted arms are there for every method."""

import pytest
import torch

from nervure import prune
from nervure.methods import METHODS, Compensated, Method, RigL
from nervure.refit import Refit
from tests import contracts

OTHERS: tuple[Method, ...] = (Compensated(keep=0.5, samples=60), RigL(density=0.5))
LISTED = (*contracts.METHODS, *contracts.MASKING, *contracts.DROPPING, *OTHERS)
CHOSEN = {type(m).__name__: m for m in reversed(LISTED)}
"""One method of each class."""
NETWORKS = {"Energy": "projection", "Depth": "projection"}
"""Where residual blocks are to be dropped, a network that has several."""


def test_no_method_is_left_out() -> None:
    assert set(CHOSEN) == set(METHODS)


@pytest.mark.sampled(share=0.2, times=1)
@pytest.mark.filterwarnings("ignore::nervure.errors.NervureWarning")
@pytest.mark.parametrize("method", CHOSEN.values(), ids=lambda method: type(method).__name__)
def test_a_refit_follows_any_method_and_leaves_masks_and_plan_as_they_were(method: Method) -> None:
    case = contracts.case(NETWORKS.get(type(method).__name__, "residual"))
    data = contracts.data_for(case.model, case.example)
    plain = prune(case.model, case.example, method, data=data, progress=False)
    fitted = prune(case.model, case.example, method, data=data, refit=Refit(samples=48), progress=False)
    assert fitted.plan.edits == plain.plan.edits
    assert fitted.plan.reached["refit"]["layers"] > 0
    assert fitted.plan.reached["refit"]["held_after"] <= fitted.plan.reached["refit"]["held_before"] + 1e-6
    tensors = dict(fitted.model.named_parameters())
    assert all(not tensors[name][~mask].any() for name, mask in fitted.masks.items())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
