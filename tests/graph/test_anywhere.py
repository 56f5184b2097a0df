"""The same graph, count and plan, whatever mode the caller is in and whatever the model is wrapped in."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nervure import Magnitude, Pruned, apply, count, measure, prune, trace, verify
from nervure.errors import TraceError
from nervure.graph.copies import copy_model
from nervure.graph.modes import whole_convolutions

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
DATA = [(X, torch.tensor([0, 1]))]


class Model(nn.Module):
    """Attention, a recurrence and composite operators."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(8, 16), nn.Linear(16, 3)
        self.body = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.memory = nn.GRU(16, 12, batch_first=True)
        self.mix = nn.Conv1d(12, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.memory(self.body(self.embed(x)))[0].narrow(1, 0, 4)
        return self.out(self.mix(x.transpose(1, 2)).mean(2))


class PassesOn(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "a function mode": PassesOn,
    "a dispatch mode": Dispatches,
    "a default device": default_device,
    "a device context": lambda: torch.device("meta"),
    "deterministic algorithms": deterministic,
}


def answers(model: nn.Module) -> tuple[Pruned, list[Any]]:
    graph = trace(model, X)
    pruned = prune(model, X, Magnitude(keep=0.5, budget="macs"), progress=False)
    stats = measure(model, graph, DATA, progress=False)
    assert verify(model, pruned, X)
    heard = {name: values.tolist() for name, values in stats.activations.items()}
    return pruned, [graph.to_json(), count(model, X), pruned.plan.to_json(), pruned.cost_after, heard]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture(scope="module")
def expected(model: nn.Module) -> list[Any]:
    """What is answered in no mode."""
    return answers(model)[1]


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_of_the_caller_makes_no_difference(model: nn.Module, expected: list[Any], mode: str) -> None:
    with MODES[mode]():
        pruned, found = answers(model)
        again = apply(model, pruned.graph, pruned.plan)
    assert found == expected
    for made in (pruned.model, again):
        assert all(not p.is_inference() and p.requires_grad and p.device.type == "cpu" for p in made.parameters())


def test_weights_made_in_inference_mode_are_traced_and_come_back_as_ordinary_ones() -> None:
    with torch.inference_mode():
        made = Model().eval()
    ordinary = Model().eval()
    assert trace(made, X).groups == trace(ordinary, X).groups
    assert count(made, X).macs == count(ordinary, X).macs > 0
    pruned = prune(made, X, Magnitude(keep=0.5), progress=False)
    pruned.model.train()(X).sum().backward()


class NeedsDefault(nn.Module):
    """A forward that makes tensors where the default device is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu() + torch.arange(x.shape[1])[:, None])


def test_a_model_that_lives_on_the_default_device_runs_there() -> None:
    expected = trace(NeedsDefault().eval(), X)
    with torch.device("meta"):
        found = trace(NeedsDefault().eval(), torch.empty(2, 5, 8))
    assert [(g.name, g.size) for g in found.groups] == [(g.name, g.size) for g in expected.groups]


# -- operators made of others ----------------------------------------------------------------------------------------


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.last(torch.cond(h.amax() > -1, lambda h: self.inner(h), lambda h: h * 2, (h,)))


class Mapped(nn.Module):
    """vmap over samples; the size that it reads there is that of an axis of the whole."""

    def __init__(self, scale: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.scale = nn.Linear(4, 8), nn.Linear(8, 3), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.vmap(lambda v: v.relu() * (v.size(0) / 8 if self.scale else 2))(self.first(x)))


class Flexible(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.q, self.k, self.v = 4, *(nn.Linear(8, 16) for _ in range(3))
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score + 0.1 * (i - j))
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("made", "example", "expected"),
    [
        (Conditional, torch.randn(2, 4), {"first", "inner"}),
        (Mapped, torch.randn(2, 4), {"first"}),
        (Flexible, X, {"q"}),
    ],
)
def test_control_flow_and_higher_order_operators_are_taken_apart(
    made: Callable[[], nn.Module], example: Tensor, expected: set[str]
) -> None:
    model = made().eval()
    assert {g.name for g in trace(model, example).prunable} == expected
    assert prune(model, example, Magnitude(keep=0.5), progress=False).verification is not None


def test_a_size_read_inside_vmap_is_known_as_a_number() -> None:
    (group,) = [g for g in trace(Mapped(scale=True).eval(), torch.randn(2, 4)).groups if g.name == "first"]
    assert "used as a number" in group.pinned


def test_a_higher_order_operator_that_cannot_be_taken_apart_is_named() -> None:
    class Opaque(torch._ops.HigherOrderOperator):
        def __init__(self) -> None:
            super().__init__("opaque_for_a_test")

        def __call__(self, x: Tensor) -> Any:
            return super().__call__(x)

    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.opaque = nn.Linear(4, 8), [opaque]

        def forward(self, x: Tensor) -> Any:
            return self.opaque[0](self.first(x))

    opaque = Opaque()
    opaque.fallthrough(torch._C.DispatchKey.AutogradCPU)
    with pytest.raises(TraceError, match="opaque_for_a_test.*ordinary"):
        trace(Calls(), torch.randn(2, 4))


def test_an_index_that_is_overwritten_later_counts_as_it_was() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
            self.register_buffer("index", torch.arange(8).flip(0))

        def forward(self, x: Tensor) -> Tensor:
            i = self.index.clone()
            y = self.first(x).relu()[:, i]
            i.zero_()
            return self.last(y)

    graph = trace(Overwrites().eval(), torch.randn(2, 4))
    assert {s.tensor for s in graph["first"].slots} >= {"first.weight", "last.weight"}


# -- wrappers, subclasses, quantised models --------------------------------------------------------------------------


class Volume(Tensor):
    """Data that carry something along, as those of imaging libraries do."""


def pair() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


PICTURE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_a_subclass_of_tensor_is_traced_as_the_plain_tensor() -> None:
    volume = PICTURE.as_subclass(Volume)
    assert trace(pair(), volume).to_json() == trace(pair(), PICTURE).to_json()
    pruned = prune(pair(), volume, Magnitude(keep=0.5), progress=False)
    assert verify(pair(), pruned, volume)
    stats = measure(pair(), pruned.graph, [(volume, torch.zeros(2, dtype=torch.long))], progress=False)
    assert all(type(values) is Tensor for values in stats.activations.values())


class FabricLike(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._original_module = self._forward_module = module

    def forward(self, x: Tensor) -> Any:
        return self._forward_module(x)


FabricLike.__name__ = "_FabricModule"


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        FabricLike,
        compiled_in_place,
        lambda m: torch.compile(m, backend="eager"),
        lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
    ],
)
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrap(pair())
    graph = trace(wrapped, PICTURE)
    assert graph.to_json() == trace(pair(), PICTURE).to_json()
    pruned = prune(wrapped, PICTURE, Magnitude(keep=0.5), progress=False)
    assert type(pruned.model) is nn.Sequential and verify(wrapped, pruned, PICTURE)
    assert count(wrapped, PICTURE) == pruned.cost_before
    assert apply(wrapped, graph, pruned.plan)(PICTURE).shape == (2, 4, 4, 4)


def test_a_compiled_part_is_traced_as_it_was_written_and_not_compiled_anew() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.compile(pair(), backend=backend)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).relu()

    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    model = Part().eval()
    with torch.no_grad():
        model(PICTURE)
    before = len(compiled)
    assert before and "body._orig_mod.0" in trace(model, PICTURE)
    measure(model, trace(model, PICTURE), [(PICTURE, torch.zeros(2, dtype=torch.long))], progress=False)
    with torch.no_grad():
        model(PICTURE)
    assert len(compiled) == before


@pytest.mark.filterwarnings("ignore")
def test_quantised_models_are_told_to_be_pruned_first() -> None:
    small = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with pytest.raises(TraceError, match="quantised.*Prune .* first"):
        prune(quantization.quantize_dynamic(small, {nn.Linear}), torch.randn(2, 8), Magnitude(keep=0.5))

    class Computes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.quantize_per_tensor(self.first(x), 0.1, 0, torch.quint8).dequantize())

    with pytest.raises(TraceError, match="quantised.*Prune .* first"):
        trace(Computes().eval(), torch.randn(2, 8))


def test_convolutions_on_a_gpu_are_not_rounded_while_a_model_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for before in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
        with whole_convolutions():
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.allow_tf32 is before


def test_a_copy_has_hooks_of_its_own_and_what_was_one_stays_one():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.notes = model[0].shared = {}
    model[1].register_forward_hook(lambda *_: None)
    twin = copy_model(model)
    assert twin.notes is twin[0].shared
    assert twin.notes is not model.notes
    assert len(twin[1]._forward_hooks) == 1
    twin[0].register_forward_hook(lambda *_: None)
    assert not model[0]._forward_hooks
    assert not twin[1]._forward_pre_hooks
