"""What tensors held is known again after a run, without a copy of those that nothing writes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import Activation, Magnitude, MagnitudeMasks, Taylor, Wanda, prune, refit
from nervure.graph import snapshots as memory
from nervure.graph.preserve import restore_after

LARGE = memory.SMALL // 4 + 1


@torch.library.custom_op("nervure_tests::fill_silently", mutates_args=())
def fill_silently(x: Tensor) -> Tensor:
    x.numpy()[...] = 7
    return x.clone()


WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda p: p.mul_(2),
    "an entry": lambda p: p.__setitem__(3, 5.0),
    "through data": lambda p: p.data.add_(1),
    "a view": lambda p: p[10:20].view(5, 2).zero_(),
    "as a result": lambda p: torch.mul(p, 2, out=p),
    "several at once": lambda p: torch._foreach_mul_([p], 2.0),
    "what was detached, in NumPy": lambda p: p.detach().numpy().fill(3),
    "an operator that does not say so": lambda p: fill_silently(p.data),
    "another tensor": lambda p: setattr(p, "data", torch.zeros(4)),
}


@pytest.mark.parametrize("way", WRITES)
@pytest.mark.parametrize("size", [8 * 5, LARGE])
def test_what_writes_a_parameter_is_undone(way: str, size: int) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.arange(float(size)))
    before = (id(model.weight), model.weight.data_ptr(), model.weight._version)
    with restore_after(model), torch.no_grad():
        WRITES[way](model.weight)
        assert not torch.equal(model.weight, torch.arange(float(size)))
    assert (id(model.weight), model.weight.data_ptr(), model.weight._version) == before
    assert torch.equal(model.weight, torch.arange(float(size)))


def test_small_buffers_are_known_also_where_nobody_says_that_they_are_written() -> None:
    model = nn.Module()
    model.register_buffer("mean", torch.zeros(6))
    with restore_after(model):
        model.mean.data.numpy()[...] = 4
    assert not bool(model.mean.any())


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each copy that is made of what a tensor held."""
    found: list[int] = []
    monkeypatch.setattr(
        memory, "_copy", lambda storage: found.append(storage.nbytes()) or memory._bytes(storage).clone()
    )
    return found


def test_a_run_copies_no_parameter_that_it_does_not_write(copied: list[int]) -> None:
    model = nn.Sequential(nn.Linear(300, 1000), nn.Linear(1000, 2))
    with restore_after(model):
        model(torch.ones(2, 300))
        assert not copied
        model[1].weight.data.zero_()
    assert copied == [8000]


def test_a_run_inside_of_another_copies_no_parameter(copied: list[int]) -> None:
    model = nn.Sequential(nn.Linear(300, 1000), nn.Linear(1000, 2))
    with restore_after(model), restore_after(model):
        model(torch.ones(2, 300))
    assert not copied


@pytest.mark.parametrize(
    "method",
    [Magnitude(keep=0.5), Activation(keep=0.5), Taylor(keep=0.5), MagnitudeMasks(density=0.5), Wanda(density=0.5)],
    ids=lambda method: type(method).__name__,
)
def test_pruning_and_a_refit_copy_no_matrix(method: Any, copied: list[int]) -> None:
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 30)).eval()
    data, least = [(torch.randn(8, 30), torch.arange(8))], 4 * 15 * 30
    pruned = prune(model, torch.ones(2, 30), method, data=data, refit=False, progress=False)
    refit(pruned, data, reference=model, progress=False)
    assert max(copied) < least
