"""An operator without a rule is asked what it does; what is not sure stays as it is."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nervure import Cut, Keep, Plan, prune, trace, verify
from nervure.graph.operator_probe import Passage, Spec, passages
from tests.graph import operators as strange
from tests.graph.operators import through
from tests.networks import Head, cbr, image, noise, seeded
from tests.oracle import call, difference, halved, zero_readers

IDENTITY = tuple(range(6))


class Gated(nn.Module):
    """Two convolutions meet in an unknown operator; one of them is read by nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.after, self.head = cbr(3, 6), cbr(3, 6), cbr(6, 5), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(strange.swish_gate(self.a(x), self.b(x))))


class Scaled(nn.Module):
    """A parameter rides along in an unknown operator."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.after, self.head = cbr(3, 6), cbr(6, 5), Head(5)
        self.scale = nn.Parameter(torch.rand(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(strange.swish_gate(self.a(x), self.scale)))


class Flattened(nn.Module):
    """Maps are flattened by an unknown operator, then read by a linear layer."""

    def __init__(self, flatten: Callable[[Tensor], Tensor], reads: int) -> None:
        super().__init__()
        self.a, self.fc = cbr(3, 6), nn.Linear(reads, 4)
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(self.a(x)))


class ChannelsLast(nn.Module):
    """Axes change places in an unknown operator."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc, self.out = cbr(3, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.fc(strange.channels_last(self.a(x)))))


PASSED: dict[str, Callable[[], nn.Module]] = {
    "pointwise, two activations": lambda: seeded(Gated),
    "pointwise with a parameter": lambda: seeded(Scaled),
    "reversed": lambda: through(strange.backwards),
    "axes permuted": lambda: seeded(ChannelsLast),
    "each twice": lambda: through(strange.twice, 12),
    "flattened": lambda: seeded(lambda: Flattened(strange.flat, 6 * 64)),
    "reduced over space": lambda: seeded(lambda: Flattened(strange.squeeze, 6)),
}


@pytest.mark.parametrize("name", PASSED)
def test_what_a_probe_passes_on_can_be_cut_and_computes_the_right_thing(name: str) -> None:
    model = PASSED[name]()
    graph = trace(model, image())
    first = next(g for g in graph.groups if g.name.startswith(("first", "a.0")))
    assert not first.is_pinned
    assert any("has no rule: probed; axis 1 of argument 0 passes to axis" in note for note in graph.notes)
    keeps = halved(graph)
    plan = Plan(tuple(Cut(g, Keep.of(k)) for g, k in keeps.items()), graph.fingerprint)
    pruned = prune(model, image(), plan, progress=False)
    assert first.name in keeps
    # An oracle without nervure's own rules: the original with the readers' weights of what left at zero.
    silenced = zero_readers(model, graph, keeps)
    assert difference(call(silenced, image()), call(pruned.model, image())) < 1e-4
    assert verify(model, pruned, image())


STAYS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "mixed over channels": (strange.channel_norm, "axis 1 of argument 0 is mixed"),
    "shuffled in blocks": (strange.shuffled, "axis 1 of argument 0 is mixed"),
    "sorted by the data": (strange.by_energy, "axis 1 of argument 0 is mixed"),
    "gated by the data": (strange.gated_by_sum, "axis 1 of argument 0 is mixed"),
    "random": (strange.noisy, "draws random numbers or remembers its calls"),
    "remembers its calls": (strange.counting, "draws random numbers or remembers its calls"),
    "a size of its own": (strange.six_only, "axis 1 of argument 0 is mixed"),
    "picked by index": (lambda x: strange.picked(x, torch.arange(6)), "may be indices"),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_not_sure_stays_and_says_why(name: str) -> None:
    operation, reason = STAYS[name]
    graph = trace(through(operation), image())
    first = next(g for g in graph.groups if g.name == "first.0")
    assert first.is_pinned
    assert any("has no rule" in note and reason in note for note in graph.notes)
    assert "second" in [g.name for g in graph.prunable]


def test_a_contraction_without_a_rule_keeps_what_it_reads_and_gives_what_it_writes() -> None:
    """The rows of the weight reach the output one by one; what is summed over is mixed."""

    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.weight, self.out = nn.Linear(6, 8), nn.Parameter(torch.randn(7, 8)), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(strange.project(self.fc(x), self.weight)))

    model, example = seeded(Projected), noise(4, 6)
    graph = trace(model, example)
    assert graph["fc"].is_pinned
    (free,) = graph.prunable
    assert [s.tensor for s in free.writers] == ["weight"]
    plan = Plan((Cut(free.name, Keep.of([True, False] * 3 + [True])),))
    assert prune(model, example, plan, progress=False).verification is not None


def test_a_probe_answers_for_every_position() -> None:
    op = torch.ops.strange.swish_gate.default
    spec = Spec((2, 6, 3), torch.float32)
    found = passages(op, (spec, Spec((6, 1), torch.float32)), {})
    assert Passage(1, 0, 0, 1, IDENTITY) in found
    assert {(p.argument, p.axis, p.to) for p in found} == {(0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 1)}
    op = torch.ops.strange.backwards.default
    assert Passage(0, 1, 0, 1, IDENTITY[::-1]) in passages(op, (spec,), {})


def test_a_probe_has_its_limits_and_says_so() -> None:
    found = passages(torch.ops.strange.huge.default, (Spec((64, 1024, 1024), torch.float32),), {})
    assert found == "it is too big to be probed"


def test_a_probe_leaves_the_state_of_randomness_alone() -> None:
    before = torch.random.get_rng_state()
    passages(torch.ops.strange.backwards.default, (Spec((2, 9), torch.float64),), {})
    assert torch.equal(torch.random.get_rng_state(), before)
