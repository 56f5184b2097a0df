"""Whatever is asked of a model leaves it, its example, random states and flags as they were."""

import random
import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nervure import (
    Cut,
    Keep,
    Magnitude,
    MagnitudeMasks,
    Plan,
    apply,
    compile_sparse,
    connectivity,
    count,
    latency,
    measure,
    prune,
    trace,
    verify,
)
from nervure.evaluation.memory import peak_memory
from nervure.graph.preserve import restore_after
from nervure.zoo import build

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Writes(nn.Module):
    """A forward that writes wherever one can."""

    seen: ClassVar[dict[Any, Any]] = {}
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("memory", torch.zeros(12))
        self.config = SimpleNamespace(last=None, log=[], nested={"sizes": [1, {"deep": None}]})
        self.shape, self.widths, self.grid, self.array = None, [7], torch.zeros(3), np.zeros(3)
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        Writes.calls += 1
        self.seen[x.shape] = x.sum()
        y = self.first(x).relu()
        self.shape = y.shape
        self.widths.append(y.shape[-1])
        self.config.last = y.size(0)
        self.config.log.append(y)
        self.config.nested["sizes"][1]["deep"] = y.shape
        self.count += 1
        self.memory = self.memory + 1
        self.grid[0] = 5
        self.array[0] += 1
        self.last.weight.data.mul_(0.5)
        self.first.bias.data = self.first.bias.data + 1
        self.made = y
        random.random()
        np.random.rand()
        torch.randn(2)
        torch.rand(2, generator=self.generator)
        torch.backends.mha.set_fastpath_enabled(False)
        x.mul_(2)
        return self.last(y)


def everything(model: Writes, x: Tensor) -> dict[str, Any]:
    """All that can be told of a model, its example and the process, as plain values."""
    tensors = [*model.parameters(), *model.buffers(), model.grid, x]
    return {
        "values": [t.tolist() for t in tensors],
        "objects": [(id(t), t.data_ptr(), t._version) for t in tensors],
        "attributes": {key: repr(value) for key, value in vars(model).items()},
        "config": repr(model.config),
        "class": (Writes.calls, list(Writes.seen)),
        "generator": model.generator.get_state().tolist(),
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),  # type: ignore[index]
        "flags": (torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled(), torch.get_default_dtype()),
    }


def ways(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Everything that runs a model of the user's."""
    graph = trace(model, x)
    pruned = prune(model, x, Magnitude(keep=0.5), progress=False)
    data = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))]
    return {
        "trace": lambda: trace(model, x),
        "count": lambda: count(model, x),
        "measure": lambda: measure(model, graph, data, want={"activations", "gradients"}, progress=False),
        "prune": lambda: prune(model, x, Magnitude(keep=0.5), progress=False),
        "verify": lambda: verify(model, pruned, x),
        "apply": lambda: apply(model, graph, pruned.plan),
        "connectivity": lambda: connectivity(model, x),
        "latency": lambda: latency({"a": model}, x, rounds=3, seconds=0.0, warmup=1),
        "memory": lambda: peak_memory(model, x),
    }


WAYS = ("trace", "count", "measure", "prune", "verify", "apply", "connectivity", "latency", "memory")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("training", [False, True])
def test_what_forward_writes_is_put_back(way: str, training: bool) -> None:
    model, x = Writes().train(training), torch.randn(2, 6)
    ask = ways(model, x)[way]
    before = everything(model, x)
    ask()
    after = everything(model, x)
    assert {key for key in before if before[key] != after[key]} == set()


def test_what_a_compiled_sparse_model_was_made_from_is_left_alone() -> None:
    model, x = Writes().eval(), torch.randn(2, 6)
    masked = prune(model, x, MagnitudeMasks(density=0.3), progress=False).model.eval()
    assert isinstance(masked, Writes)
    before = everything(masked, x)
    compile_sparse(masked, x, verbose=False)
    assert everything(masked, x) == before


def test_batches_that_a_model_writes_into_stay() -> None:
    model, x = Writes(), torch.randn(2, 6)
    data = [(torch.ones(4, 6), torch.tensor([0, 1, 2, 0]))]
    measure(model, trace(model, x), data, progress=False)
    assert bool((data[0][0] == 1).all())


def test_a_model_comes_back_also_where_its_forward_fails() -> None:
    class Fails(Writes):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("no")

    model, x = Fails(), torch.randn(2, 6)
    before = everything(model, x)
    with pytest.raises(Exception, match="no"):
        trace(model, x)
    assert everything(model, x) == before


def test_spectral_norms_and_batch_norms_keep_their_vectors_in_training_mode() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.BatchNorm1d(8), nn.Linear(8, 2))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with restore_after(model):
        model(torch.randn(4, 6))
        assert any(not torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


class Remembers(nn.Module):
    """A head that makes its grid anew for a shape it has not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out, self.shape = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1), None

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(self.stem(x).relu())
        if self.shape != y.shape:
            self.shape, self.grid = y.shape, torch.arange(y.shape[-1]).float()
        return y + self.grid


def test_a_model_that_remembers_a_shape_is_traced_and_pruned_again_and_again() -> None:
    model = Remembers().eval()
    graphs = [trace(model, IMAGE) for _ in range(2)]
    assert graphs[0] == graphs[1] and model.shape is None
    for _ in range(2):
        assert prune(model, IMAGE, Magnitude(keep=0.5), progress=False).model(IMAGE).shape == (2, 4, 16, 16)


def test_several_threads_trace_one_model_or_several_while_another_runs_it() -> None:
    model, done, found = build("resnet8").eval(), threading.Event(), []
    model(IMAGE)
    expected = trace(model, IMAGE)

    def run() -> None:
        while not done.is_set():
            model(IMAGE)

    others = [threading.Thread(target=lambda: found.append(trace(model, IMAGE))) for _ in range(3)]
    others += [threading.Thread(target=lambda: found.append(trace(build("resnet8").eval(), IMAGE))) for _ in range(2)]
    busy = threading.Thread(target=run)
    for thread in (busy, *others):
        thread.start()
    for thread in others:
        thread.join()
    done.set()
    busy.join()
    assert [graph == expected for graph in found] == 5 * [True]
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_output_that_is_a_buffer_is_verified_as_it_was_returned() -> None:
    class State(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
            self.register_buffer("state", torch.zeros(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            self.state.copy_(self.last(self.first(x).relu()))
            return self.state

    model = State().eval()
    pruned = prune(model, torch.randn(3, 4), Magnitude(keep=0.5), progress=False)
    assert pruned.verification is not None and pruned.verification < 1e-4
    assert not bool(model.state.any())
    with torch.no_grad():
        pruned.model.last.bias += 1
    with pytest.raises(Exception, match="differs"):
        verify(model, pruned, torch.randn(3, 4))


def test_a_plan_fits_before_and_after_the_first_run() -> None:
    model = Remembers().eval()
    graph = trace(model, IMAGE)
    plan = Plan((Cut("stem", Keep.of(torch.arange(16) < 8)),), graph.fingerprint)
    model(IMAGE)
    assert trace(model, IMAGE).fingerprint == graph.fingerprint
    assert apply(model, graph, plan)(IMAGE).shape == (2, 4, 16, 16)


def test_versions_are_set_back_where_torch_takes_one_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    set_versions: Any = torch._C._autograd._unsafe_set_version_counter

    def set_one(tensor: Tensor, version: int) -> None:
        if isinstance(tensor, tuple):
            raise TypeError("as torch 2.6 does")
        set_versions((tensor,), (version,))

    monkeypatch.setattr(torch._C._autograd, "_unsafe_set_version_counter", set_one)
    given = torch.zeros(3)
    before = given._version
    with restore_after(nn.Identity(), given):
        given.add_(1)
        assert given._version > before
    assert given._version == before
    assert not given.any()
