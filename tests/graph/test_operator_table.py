"""What the table says of operators is so: it is held against what they compute in the shared networks."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import nervure
from nervure import rules
from nervure.analysis.build import draw_circuit
from nervure.analysis.neuron_ops import RULES
from nervure.graph.ops.facets import NeuronRule, Operator
from nervure.graph.ops.table import _ROWS, KNOWN, find_operator
from nervure.graph.tape import Entry, record
from nervure.graph.trace import flow_over
from nervure.surgery.link import ACTIVATIONS
from tests.graph import operators as strange
from tests.networks import NETWORKS, noise, seeded

OFTEN = 3
"""So many calls of each operator of a network are tried."""
WITHOUT_A_RULE: dict[str, str] = {}
"""Operators of the shared networks that have no row, and why not."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_in(inner)


def change(value: Any, how: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return how(value) if value.is_floating_point() else value
    return type(value)(change(v, how) for v in value) if isinstance(value, list | tuple) else value


class Trying(TorchDispatchMode):
    """Runs each operator once more on zeros, or looks where its results come from, as its row says."""

    def __init__(self) -> None:
        super().__init__()
        self.tried: Counter[str] = Counter()
        self.wrong: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        row = KNOWN.get(name) or KNOWN.get(name.removesuffix("_"))
        self.tried[name] += 1
        if row is None or func._schema.is_mutable or self.tried[name] > OFTEN:
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if not self.keeps_zero(row, func, args, kwargs):
            self.wrong.add(f"{name} is not zero where {row.zero} of its arguments is")
        if not self.only_moves(row, args, out):
            self.wrong.add(f"{name} does not only move {row.moves}")
        return out

    def keeps_zero(self, row: Operator, func: Any, args: Any, kwargs: Any) -> bool:
        tensors = [k for k, arg in enumerate(args) if isinstance(arg, Tensor) and arg.is_floating_point()]
        adds_a_number = any(isinstance(arg, int | float) for arg in args)
        if (row.zero == "all" and adds_a_number) or pads_with_a_number(row, args):
            return True
        tried = {"": [], "first": [[0]], "any": [[k] for k in tensors], "all": [list(range(len(args)))]}[row.zero]
        for places in tried:
            given = [change(a, torch.zeros_like) if k in places else a for k, a in enumerate(args)]
            first = next(tensors_in(func(*given, **kwargs)))
            first = first.nan_to_num() if row.family == "quotient" else first
            if bool(first.any()):
                return False
        return True

    def only_moves(self, row: Operator, args: Any, out: Any) -> bool:
        if not row.moves or pads_with_a_number(row, args):
            return True
        sources = list(tensors_in(args[:1] if row.moves == "first" else args))
        known = torch.cat([t.reshape(-1).double() for t in sources])
        known = known if row.moves == "first" else torch.cat([known, known.new_zeros(1)])
        return all(bool(torch.isin(t.double(), known).all()) for t in tensors_in(out))


def pads_with_a_number(row: Operator, args: Any) -> bool:
    return row is KNOWN["constant_pad_nd"] and any(args[2:])


@pytest.mark.sampled(times=1)
@pytest.mark.parametrize("name", NETWORKS)
def test_rows_are_true_of_the_operators_of_the_shared_networks(name: str) -> None:
    model, example = NETWORKS[name].factory(), NETWORKS[name].example()
    args, kwargs = ((), example) if isinstance(example, dict) else (example, {})
    with torch.no_grad(), Trying() as trying:
        model(*(args if isinstance(args, tuple) else (args,)), **kwargs)
    assert not trying.wrong


def test_a_wrong_row_would_be_found() -> None:
    trying, x = Trying(), torch.ones(3)
    assert not trying.keeps_zero(Operator("exp", KNOWN["exp"].labels, zero="first"), torch.exp, (x,), {})
    assert not trying.keeps_zero(Operator("add", KNOWN["add"].labels, zero="any"), torch.add, (x, x), {})
    assert not trying.only_moves(Operator("exp", KNOWN["exp"].labels, moves="first"), (x,), x.exp())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_operator_of_the_shared_networks_has_a_row_and_does_what_it_says(name: str) -> None:
    tape, _ = record(NETWORKS[name].factory(), NETWORKS[name].example())
    flow = flow_over(tape)
    costs = {(work.module, work.op) for work in flow.works}
    reads = {read.entry: read.kind.partition(":")[0] for read in flow.reads}
    for index, entry in enumerate(tape.entries):
        if not isinstance(entry, Entry):
            continue
        row = find_operator(tape, entry)
        assert row.names or entry.name in WITHOUT_A_RULE, f"{entry.name} has no row in nervure/graph/ops/table.py"
        if row.macs and entry.name not in ("mul", "mul_") and index in tape.entries_of(0):
            assert (entry.module, entry.name) in costs, f"{entry.name} notes no cost"
        may_read = {row.reads, "reduction"} if row.reads == "places" else {row.reads}
        assert reads.get(index, row.reads) in may_read, f"{entry.name} reads as a {reads[index]}"


def test_an_operator_stands_in_one_row() -> None:
    names = Counter(name for row in _ROWS for name in row.names.split())
    assert [name for name, count in names.items() if count > 1] == []


def test_what_a_row_says_of_neurons_is_known_there() -> None:
    assert set(RULES) == set(get_args(NeuronRule))


def test_a_link_can_go_through_every_activation() -> None:
    assert {name for name, row in KNOWN.items() if row.family == "activation"} == set(ACTIVATIONS)


# -- what a user says ----------------------------------------------------------------------------------------------


class Projected(nn.Module):
    def __init__(self, project: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.weight, self.out = nn.Linear(6, 8), nn.Parameter(torch.randn(7, 8)), nn.Linear(7, 3)
        self.project = project

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.project(torch.sigmoid(self.fc(x)), self.weight)))


@pytest.mark.parametrize("how", [rules.contraction("ni,oi->no"), rules.like("linear")])
def test_neurons_are_joined_as_a_rule_says(how: rules.How) -> None:
    plain = draw_circuit(seeded(lambda: Projected(F.linear)), noise(4, 6))
    unknown = draw_circuit(seeded(lambda: Projected(strange.project)), noise(4, 6))
    with nervure.rule("strange::project", how):
        ruled = draw_circuit(seeded(lambda: Projected(strange.project)), noise(4, 6))
    assert edges(ruled) == edges(plain)
    assert edges(unknown) != edges(plain)
    assert unknown.notes and not ruled.notes


def test_neurons_move_as_a_rule_says() -> None:
    def build(backwards: Callable[[Tensor], Tensor]) -> nn.Module:
        return seeded(lambda: nn.Sequential(nn.Linear(4, 6), Applied(backwards), nn.Linear(6, 2)))

    plain = draw_circuit(build(lambda x: x.flip(1)), noise(3, 4))
    with nervure.rule("strange::backwards", rules.moves(lambda x: x.flip(1))):
        assert edges(draw_circuit(build(strange.backwards), noise(3, 4))) == edges(plain)
    assert edges(draw_circuit(build(strange.backwards), noise(3, 4))) != edges(plain)


class Applied(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@torch.library.custom_op("table::gate", mutates_args=())
def gated(x: Tensor, gate: Tensor) -> Tensor:
    return x * torch.sigmoid(gate)


@gated.register_fake
def _(x: Tensor, gate: Tensor) -> Tensor:
    return torch.empty_like(x)


class Branched(nn.Module):
    """A residual block whose branch ends in an operation of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.out = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branch = self.inner(x)
        return self.out(x + gated(branch, branch))


@pytest.mark.parametrize(
    ("how", "count"), [(rules.pointwise(), 0), (rules.pointwise(keeps_zero=True), 1), (rules.like("mul"), 1)]
)
def test_a_branch_that_ends_in_a_users_operation_can_be_dropped_if_zero_stays_zero(how: rules.How, count: int) -> None:
    model, example = seeded(Branched), noise(3, 4)
    with nervure.rule("table::gate", how):
        blocks = [block for block in nervure.trace(model, example).blocks if not block.pinned]
        assert len(blocks) == count
        for block in blocks:
            pruned = nervure.prune(model, example, nervure.Plan((nervure.Drop(block.name),)), progress=False)
            assert torch.allclose(pruned.model(example), model.out(model.stem(example)), atol=1e-5)


class Multiplied(nn.Module):
    """A residual block whose branch ends in a product with a weight: of its own module, or of the block."""

    def __init__(self, *, is_tied: bool) -> None:
        super().__init__()
        self.stem, self.inner, self.out = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.weight = None if is_tied else nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(x + self.inner(x) @ (self.inner.weight.t() if self.weight is None else self.weight))


def test_a_branch_that_ends_in_a_product_can_be_dropped_if_its_weight_does_not_go_with_it() -> None:
    model, example = seeded(lambda: Multiplied(is_tied=False)), noise(3, 4)
    (block,) = nervure.trace(model, example).blocks
    pruned = nervure.prune(model, example, nervure.Plan((nervure.Drop(block.name),)), progress=False)
    assert torch.allclose(pruned.model(example), model.out(model.stem(example)), atol=1e-5)
    (tied,) = nervure.trace(seeded(lambda: Multiplied(is_tied=True)), example).blocks
    assert "uses a weight of theirs" in tied.pinned


def edges(circuit: Any) -> list[tuple[int, int, float]]:
    found = []
    for bundle in circuit.bundles:
        for sources, targets, values in bundle.edges():
            found += list(zip(sources.tolist(), targets.tolist(), map(float, values), strict=True))
    return [(a, b, round(value, 5)) for a, b, value in sorted(found)]
