"""What is done does not run again, and nothing is different for it."""

import sys
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import Magnitude, prune
from nervure.core.tensors import tensors_in
from nervure.errors import TraceError
from nervure.refit import refit
from nervure.refit.activations import watchable
from nervure.refit.replay import Replay, replay_of
from nervure.stats.loaders import Batch
from tests.refit.test_layer_list import EncoderDecoder, Layer, Network, Stages
from tests.refit.test_networks import NETWORKS, SOME, varied


def batch(count: int = 8) -> Batch:
    return Batch(torch.randn(count, 4, generator=torch.Generator().manual_seed(1)), count)


def run(replay: Replay, given: Batch) -> list[Tensor]:
    with watchable(replay.model):
        return tensors_in(replay.run(0, given))


def advance(replay: Replay, moment: int, given: Batch) -> None:
    with watchable(replay.model) as watch:
        replay.advance(watch, moment, [given])


def require_same_everywhere(model: nn.Module, given: Batch) -> Replay:
    """At each moment a tensor is first used at, what the model gives is what it gives when all runs."""
    expected, replay = run(Replay(model), given), replay_of(model, given)
    assert replay.moments, "nothing can be skipped"
    for moment in replay.moments:
        advance(replay, moment, given)
        found = run(replay, given)
        assert len(found) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    return replay


@pytest.mark.parametrize("name", SOME)
def test_networks_give_the_same_from_anywhere_on(name: str) -> None:
    model, example = NETWORKS[name].factory().eval(), varied(NETWORKS[name].example())
    require_same_everywhere(model, Batch((example, None), 2))


def test_layers_that_are_done_do_not_run() -> None:
    model = Network().eval()
    replay = replay_of(model, batch())
    advance(replay, replay.start("layers.3"), batch())
    model.runs.clear()
    with torch.no_grad():
        replay.run(0, batch())
    assert model.runs == [3, 4]
    assert all("forward" not in vars(module) for module in model.modules())


def test_modules_take_what_they_took() -> None:
    """What looks at the signature of a forward, as loaders of tokens do, sees it while modules are looked at."""
    seen = list[object]()
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)).eval()
    model[1].register_forward_pre_hook(lambda module, _: seen.append(str(signature(module.forward))))
    given = Batch(torch.arange(8).view(2, 4), 2)
    replay = replay_of(model, given)
    advance(replay, replay.moment("1.weight"), given)
    run(replay, given)
    # A model that takes its input by position is given it so, whatever the batch calls it.
    named = Batch({"input_ids": torch.arange(8).view(2, 4)}, 2)
    assert torch.equal(run(replay_of(model, named), named)[0], run(replay, given)[0])
    assert len(seen) > 3 and len(set(seen)) == 1 and "input" in seen[0]


def test_an_encoder_whose_layers_are_read_again_does_not_run() -> None:
    model = EncoderDecoder().eval()
    replay = require_same_everywhere(model, batch())
    expected = run(replay, batch())[0]
    with torch.no_grad():
        model.down[0].weight.zero_()
    assert torch.equal(run(replay, batch())[0], expected)
    assert not torch.equal(run(Replay(model), batch())[0], expected)


class Functional(nn.Module):
    """Operators between layers, some of which write in place, and views."""

    def __init__(self, forward: Callable[["Functional", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.relu, self.same, self.scale = nn.ReLU(inplace=True), nn.Identity(), nn.Parameter(torch.rand(6))
        self._forward = forward
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def _views(m: Functional, x: Tensor) -> Tensor:
    first, second = m.a(x).chunk(2, 1)
    second.mul_(2)
    return m.c(m.b(torch.cat([second, first], 1)) * m.scale)


def _in_place(m: Functional, x: Tensor) -> Tensor:
    x = m.a(x)
    y = m.relu(x)
    y += 1
    return m.c(m.b(y) + x)


def _same(m: Functional, x: Tensor) -> Tensor:
    x = m.same(m.a(x))
    y = m.same(x)
    z = m.b(y)
    z += x
    return m.c(z)


def _state(m: Functional, x: Tensor) -> Tensor:
    m.seen = m.a(x)
    y = m.b(F.relu(m.seen))
    return m.c(y + m.seen)


def _branches(m: Functional, x: Tensor) -> Tensor:
    x = m.a(x)
    if bool((x.mean() > 100).item()):
        return x
    kept = x[x.sum(1) > 0]
    return m.c(m.b(kept) * int(kept.shape[0]))


def _weights(m: Functional, x: Tensor) -> Tensor:
    turned = m.b.weight.t()
    return m.c(F.relu(m.a(x)) @ turned) + m.scale


@pytest.mark.parametrize("forward", [_views, _in_place, _same, _state, _branches, _weights])
def test_what_is_written_seen_or_asked_is_as_it_was(forward: Callable[[Functional, Tensor], Tensor]) -> None:
    require_same_everywhere(Functional(forward).eval(), batch())


class Writes(nn.Module):
    """A layer that leaves what it gives where another finds it."""

    def __init__(self, notes: list[Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.__dict__["notes"] = notes

    def forward(self, x: Tensor) -> Tensor:
        self.notes[:] = [self.linear(x), *self.notes[:1]]
        return self.notes[0].relu()


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        notes: list[Tensor] = []
        self.first, self.second, self.last = Writes(notes), Writes(notes), nn.Linear(4, 2)
        self.__dict__["notes"] = notes

    def forward(self, x: Tensor) -> Tensor:
        self.notes.clear()
        found: Tensor = self.last(self.second(self.first(x)) + self.notes[1])
        return found


def test_modules_that_write_somewhere_run_and_their_operators_do_not() -> None:
    model = Reads().eval()
    replay = require_same_everywhere(model, batch())
    with torch.no_grad():
        model.first.linear.weight.zero_()
    assert torch.equal(run(replay, batch())[0], run(replay, batch())[0])
    assert not torch.equal(run(replay, batch())[0], run(Replay(model), batch())[0])


class Tied(nn.Module):
    """Layers between two uses of a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 6)
        self.runs: list[int] = []
        self.layers = nn.ModuleList(Layer(self.runs, number) for number in range(3))
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        for layer in self.layers:
            x = layer(x)
        found: Tensor = self.head(x)
        return found


def test_layers_between_two_uses_of_a_table_do_not_run() -> None:
    model, given = Tied().eval(), Batch(torch.arange(8).view(2, 4), 2)
    replay = require_same_everywhere(model, given)
    model.runs.clear()
    with torch.no_grad():
        replay.run(0, given)
    assert model.runs == [2]


def test_only_what_is_still_held_is_kept() -> None:
    layers = [nn.Linear(4, 4) for _ in range(12)]
    model = nn.ModuleList(layers)

    def forward(x: Tensor) -> Tensor:
        for layer in layers:
            x = F.relu(layer(x))
        return x

    model.forward = forward  # type: ignore[method-assign]
    replay = require_same_everywhere(model.eval(), batch())
    assert replay.kept(0) <= 2


class Recurrent(nn.Module):
    """Weights that are used twice: first on zeros, which do not depend on the data."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w, self.u, self.d = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        given = self.w(x)
        h = torch.zeros_like(given)
        for _ in range(2):
            h = (given + self.u(h)).tanh()
        found: Tensor = self.d(h)
        return found


class Mixed(nn.Module):
    """Four layers, and something else that a run does, by name."""

    def __init__(self, what: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.what, self.cache = what, [torch.zeros(1)]
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 4)
        self.middle = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))
        self.query = nn.Parameter(torch.randn(1, 3, 16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.shape: Any = None
        self.anchors = torch.zeros(1)
        self.register_buffer("memory", torch.zeros(1))
        taken: dict[str, Tensor] = {}
        # Functions are not copied with a model: a copy finds what its own hook took.
        self.taken = lambda: taken["out"]
        if what == "shared layer":
            self.middle[2] = self.middle[0]
        if what == "shared bias":
            self.middle[2].bias = self.middle[0].bias
        if what == "hook":
            self.middle[0].register_forward_hook(lambda module, given, out: taken.update(out=out))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        early = self.middle[1].bias.exp().mean()
        scale: Any = 1.0
        if self.what == "buffer":
            self.memory.copy_(h.mean().view(1))
        if self.what == "list":
            self.cache[0].copy_(h.mean().view(1))
        if self.what == "number":
            scale = 1 + h.mean().reshape(1).tolist()[0]
        if self.what == "mapped":
            h = torch.vmap(self.middle[0])(h)
        for layer in self.middle:
            if self.what in ("buffer", "list"):
                scale = 1 + (self.memory if self.what == "buffer" else self.cache[0])
            h = layer(h).relu() * scale + (self.taken() if self.what == "hook" and layer is not self.middle[0] else 0)
        if self.what == "early":
            h = h * early
        if self.what == "query":
            rows = h[:, None].expand(-1, 3, -1)
            h = self.attention(self.query.expand(len(x), -1, -1), rows, rows)[0].mean(1)
        if self.what == "anchors":
            # As detectors do: made anew where the shape is another than that of the run before.
            if self.shape != h.shape:
                self.shape, self.anchors = h.shape, torch.linspace(1, 2, h.shape[0])[:, None].expand(h.shape) * 2
            h = h * self.anchors
        if self.what == "recurrent":
            h = self.lstm(h[:, None])[0][:, 0]
        found: Tensor = self.last(h)
        return found.argmax(1, keepdim=True).to(found) + 0 * found.clamp(0, 0) if self.what == "number" else found


KINDS = (
    "shared layer", "shared bias", "buffer", "list", "number", "mapped", "hook", "early", "query", "anchors",
    "recurrent",
)  # fmt: skip


class Fickle(nn.Module):
    """Runs another operator from its ``patience``-th run on."""

    def __init__(self, runs: list[int], patience: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.__dict__["runs"], self.patience = runs, patience

    def forward(self, x: Tensor) -> Tensor:
        self.runs[0] += 1
        x = self.a(x)
        found: Tensor = self.b(x.relu() if self.runs[0] < self.patience else x.tanh())
        return found


def test_a_model_that_runs_something_else_is_told_of() -> None:
    runs = [0]
    model = Fickle(runs, 10**6).eval()
    replay = replay_of(model, batch())
    advance(replay, replay.moment("b.weight"), batch())
    model.patience = 0
    with pytest.raises(TraceError, match=r"tanh where it was relu.*compute the same each time"):
        run(replay, batch())


@pytest.mark.parametrize("size", [64, 1])
@pytest.mark.parametrize(
    "make", [Network, Stages, EncoderDecoder, Recurrent, *(partial(Mixed, kind) for kind in KINDS)]
)
def test_refits_are_those_of_running_all_again(
    make: Callable[[], nn.Module], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = make().eval(), batch(64).raw
    pruned = prune(model, data[:2], Magnitude(keep=0.5), progress=False, verify=False)
    batches = [*data.split(size), *(3 * data.flip(0)).split(size)][: 16 if size == 1 else None]
    short = refit(pruned, batches, reference=model, progress=False)
    # The function of that name hides the package from a path of attributes.
    monkeypatch.setattr(sys.modules["nervure.refit.fit"], "replay_of", lambda model, batch: Replay(model))
    whole = refit(pruned, batches, reference=model, progress=False)
    assert short.layers == whole.layers
    for one, other in zip(short.result.model.parameters(), whole.result.model.parameters(), strict=True):
        assert torch.equal(one, other)
