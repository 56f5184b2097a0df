"""A network in double precision is pruned and refitted as the same one in single precision, whatever the default is."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import prune
from nervure.methods import Method
from nervure.refit import Refit
from tests import contracts
from tests.refit.test_after_every_method import CHOSEN, network_for

# torch groups no products of matrices in double precision.
METHODS = [method for name, method in CHOSEN.items() if name != "Rerouted"]


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return type(value)(map(widened, value)) if isinstance(value, list | tuple) else value


@pytest.mark.sampled(share=0.3, times=1)
@pytest.mark.filterwarnings("ignore::nervure.errors.NervureWarning")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_it_is_planned_and_fitted_alike(method: Method, request: pytest.FixtureRequest) -> None:
    model, example = network_for(method)
    data = contracts.data_for(model, example)
    how = Refit(samples=48)
    single = prune(model, example, method, data=data, refit=how, progress=False)
    request.getfixturevalue("double")
    wide: nn.Module = copy.deepcopy(model).double()
    found = prune(wide, widened(example), method, data=widened(list(data)), refit=how, progress=False)
    assert all(p.dtype == torch.float64 for p in found.model.parameters())
    assert found.plan.edits == single.plan.edits
    errors, expected = (one.plan.reached["refit"]["held_after"] for one in (found, single))
    assert errors == pytest.approx(expected, rel=0.05, abs=1e-6)
