"""A user says what an operation does in a line; what was said wrongly is found out."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nervure import Cut, Keep, Plan, count, prune, rule, rules, trace, verify
from nervure.errors import ArgumentError, TraceError
from tests.graph import operators as strange
from tests.graph.operators import through
from tests.networks import image, noise, seeded
from tests.oracle import call, difference, halved, zero_readers


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = dict(rules.current_rules())
    yield
    assert rules.current_rules() == before


class Projected(nn.Module):
    """A library's own linear layer, with its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.weight, self.out = nn.Linear(6, 8), nn.Parameter(torch.randn(7, 8)), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(strange.project(torch.sigmoid(self.fc(x)), self.weight)))


def cut_everything(model: nn.Module, example: Tensor) -> float:
    """Error of cutting half of every group, by an oracle that knows nothing of rules, after verification."""
    graph = trace(model, example)
    keeps = halved(graph)
    plan = Plan(tuple(Cut(g, Keep.of(k)) for g, k in keeps.items()), graph.fingerprint)
    pruned = prune(model, example, plan, progress=False)
    assert verify(model, pruned, example)
    return difference(call(zero_readers(model, graph, keeps), example), call(pruned.model, example))


@pytest.mark.parametrize(
    "how", [rules.contraction("ni,oi->no"), rules.contraction("...i,oi->...o"), rules.like("linear")]
)
def test_a_contraction_of_ones_own_is_cut_on_both_sides(how: rules.How) -> None:
    model, example = seeded(Projected), noise(4, 6)
    with rule("strange::project", how):
        graph = trace(model, example)
        assert {g.name: g.is_pinned for g in graph.groups} == {
            "fc": False,
            "fc.inputs": True,
            "weight": False,
            "out": True,
        }
        assert ("fc", "weight", "weight") in [(e.source, e.target, e.tensor) for e in graph.edges]
        assert cut_everything(model, example) < 1e-5
        assert graph.macs() == count(model, example).macs == 4 * (6 * 8 + 8 * 7 + 7 * 3)


def test_random_results_may_be_pointwise_if_the_user_says_so() -> None:
    """No probe can be sure of them, and no trial either: what differs from run to run stays."""
    with rule("strange::noisy", rules.pointwise()):
        first = trace(through(strange.noisy), image())["first.0"]
    assert first.pinned.startswith("the rule given for 'strange::noisy'")


def test_pointwise_and_moves_cut_as_probing_does() -> None:
    with rule("strange::swish_gate", rules.pointwise()), rule("strange::backwards", rules.moves(lambda x: x.flip(1))):
        assert cut_everything(through(lambda x: strange.swish_gate(x, x)), image()) < 1e-4
        assert cut_everything(through(strange.backwards), image()) < 1e-4


def test_a_rule_may_depend_on_the_operation() -> None:
    seen: list[rules.Operation] = []

    @rule("strange::twice")
    def twice(operation: rules.Operation) -> rules.How:
        seen.append(operation)
        return rules.moves(lambda x: x.repeat_interleave(2, 1))

    try:
        assert cut_everything(through(strange.twice, 12), image()) < 1e-4
    finally:
        rules.forget("strange::twice")
    assert seen[0].name == "strange::twice"
    assert seen[0].shapes == ((2, 6, 8, 8),)
    assert seen[0].outputs == ((2, 12, 8, 8),)


WRONG = {
    "pointwise, but it mixes": ("channel_norm", rules.pointwise()),
    "moved, but by the data": ("by_energy", rules.moves(lambda x: x)),
    "pointwise, but of a fixed size": ("six_only", rules.pointwise()),
    "like a ReLU, but shuffled": ("shuffled", rules.like("aten::relu")),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_found_out_and_its_groups_stay(name: str) -> None:
    operation, how = WRONG[name]
    with rule(f"strange::{operation}", how):
        first = trace(through(getattr(strange, operation)), image())["first.0"]
        assert first.pinned.startswith(f"the rule given for 'strange::{operation}'")


def test_what_is_pinned_by_rule_says_the_users_reason() -> None:
    with rule("strange::swish_gate", rules.pinned("it is licensed for six channels")):
        graph = trace(through(lambda x: strange.swish_gate(x, x)), image())
    assert graph["first.0"].pinned.startswith("it is licensed for six channels")


UNFIT = {
    "too many arguments": ("project", rules.contraction("no->no"), "gives 1 tensors, there are 2"),
    "too few axes": ("project", rules.contraction("i,oi->o"), r"'i' for argument 0, whose shape is \(4, 8\)"),
    "sizes that differ": ("project", rules.contraction("ni,io->no"), "'i' is both 8 and 7"),
    "another result": ("project", rules.contraction("ni,oi->ni"), r"\(4, 8\), the operation's is \(4, 7\)"),
    "an equation of one result": ("project", rules.contraction("ni,oi->no,n"), "gives 2 results, there is 1"),
    "not pointwise": ("project", rules.pointwise(), r"shape \(4, 8\) does not broadcast to \(4, 7\)"),
    "moved to another shape": ("project", rules.moves(lambda x: x), r"result of shape \(4, 8\), .* \(4, 7\)"),
    "moved by arithmetic": ("project", rules.moves(lambda x: x[:, :7] * 1.5), "must only move"),
    "not a rule": ("project", lambda operation: "pointwise", "'pointwise' is not a rule"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_rule_that_does_not_fit_says_what_and_where(name: str) -> None:
    operation, how, message = UNFIT[name]
    with rule(f"strange::{operation}", how), pytest.raises(TraceError, match=f"strange::project.*{message}"):
        trace(seeded(Projected), noise(4, 6))


def test_a_rule_is_refused_at_once_where_it_cannot_be_meant() -> None:
    with pytest.raises(ArgumentError, match="'strange::projekt' is registered. Did you mean 'strange::project'"):
        rule("strange::projekt", rules.pointwise())
    with pytest.raises(ArgumentError, match="namespace::name"):
        rule("project", rules.pointwise())
    with pytest.raises(ArgumentError, match="'pointwise' is not a rule"):
        rule("strange::project", "pointwise")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="like 'lineer', which has no rule. Did you mean 'linear'"):
        rules.like("lineer")
    for equation, message in (("ni,oi", "->"), ("ni,o1->no", "letters"), ("ni,oi->nz", "'z'"), ("nni->n", "twice")):
        with pytest.raises(ArgumentError, match=message):
            rules.contraction(equation)
    with pytest.raises(ArgumentError, match="no rule was given"):
        rules.forget("strange::project")


def test_rules_are_given_by_name_or_by_operator_and_the_last_one_counts_until_it_is_taken_back() -> None:
    first = rule("strange::project", rules.pinned("one"))
    second = rule(torch.ops.strange.project, rules.pinned("two"))
    third = rule(torch.ops.strange.project.default, rules.pinned("three"))
    example = noise(4, 6)
    assert trace(seeded(Projected), example)["fc"].pinned.startswith("three")
    second.remove()
    assert trace(seeded(Projected), example)["fc"].pinned.startswith("three")
    third.remove()
    third.remove()
    assert trace(seeded(Projected), example)["fc"].pinned.startswith("one")
    first.remove()
    assert "mixed" in trace(seeded(Projected), example)["fc"].pinned


def test_a_function_with_its_own_gradient_is_traced_by_what_it_computes() -> None:
    """An ``autograd.Function`` is no operation of its own: nothing has to be said."""

    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

        @staticmethod
        def backward(ctx: object, *grads: Tensor) -> Tensor:
            return grads[0]

    assert cut_everything(through(Swish.apply), image()) < 1e-4


def test_numbers_that_leave_for_numpy_keep_their_units() -> None:
    """What comes back is a new tensor that nobody has seen: nothing is known of it, so nothing before it may go."""

    class Tanh(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return torch.from_numpy(np.tanh(x.numpy()))

    graph = trace(through(Tanh.apply), image())
    assert "numpy" in graph["first.0"].pinned
    assert graph["second"].size == 5
    assert not graph["second"].is_pinned
