"""What becomes of each layer: as many units leave as in all others, it is masked by itself, or a plan says it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias, final

import torch
from torch import Tensor, nn

from nervure.budget.allocate import top
from nervure.budget.kinds import is_timed
from nervure.core.check import nearest
from nervure.errors import ArgumentError, PlanError
from nervure.export.unsaid import pin_unsaid
from nervure.graph.trace import matches
from nervure.graph.types import Block, Graph
from nervure.methods.base import Method, View
from nervure.methods.blocks.depth import Depth
from nervure.methods.channels.timed import cut_lowest
from nervure.methods.channels.yardsticks import UnitRanking
from nervure.methods.masks.activation_norm import InputNorms
from nervure.methods.masks.magnitude_masks import MagnitudeMasks
from nervure.methods.masks.wanda import Wanda
from nervure.plan import Cut, Drop, Edit, Keep, Mask, Plan
from nervure.prune import Pruned, PruneInputs, Traced
from nervure.stats.evidence import Stats

HEARD = frozenset({"activations", "readings"})
"""Evidence that a layer gives by itself."""
Part: TypeAlias = Literal["ffn", "heads"]
PARTS: tuple[Part, ...] = ("ffn", "heads")
"""What can leave layer by layer."""


class LayerPlans(Protocol):
    """What becomes of each layer."""

    @property
    def outline(self) -> Plan:
        """A plan for the whole model that leaves the same sizes; which units it names is not settled yet."""
        ...

    @property
    def reads(self) -> bool:
        """Whether data are needed to decide."""
        ...

    def edits(self, layer: str) -> bool:
        """Whether anything of a layer leaves, or all of it."""
        ...

    def prune(self, traced: Traced, layer: str) -> Pruned:
        """A layer as it is to be, verified; raises VerificationError where it computes something else."""
        ...


@final
@dataclass(frozen=True, eq=False)
class UniformCuts:
    """The units of each layer that a method scores lowest leave, so many of each group.

    Attributes:
        method: what scores them.
        outline: see :class:`LayerPlans`.
    """

    method: UnitRanking
    outline: Plan

    @property
    def reads(self) -> bool:
        """Whether data are needed to decide."""
        return bool(self.method.wants)

    def edits(self, layer: str) -> bool:
        """See :class:`LayerPlans`."""
        return any(_lies_in(cut.group, layer) for cut in self.outline.cuts)

    def prune(self, traced: Traced, layer: str) -> Pruned:
        """See :class:`LayerPlans`."""
        counts = {cut.group: cut.keep.count for cut in self.outline.cuts}
        free = {group.name for group in traced.view.graph.prunable}
        mine = [name for name in counts if _lies_in(name, layer)]
        if not free.issuperset(mine):
            name = min(set(mine) - free)
            reason = next((g.pinned for g in traced.view.graph.groups if g.name == name), "there is none of that name")
            raise PlanError(f"the units of {name!r} cannot leave: {reason}. Leave the part of the model out: parts=.")
        graph = _only(traced.view.graph, mine)
        traced = replace(traced, view=replace(traced.view, graph=graph))
        view = traced.gather(self.method)
        scores = self.method.scores(view)
        cuts = tuple(Cut(name, Keep.of(top(scores[name], counts[name]))) for name in mine)
        return traced.prune(PruneInputs(Plan(cuts, graph.fingerprint)), view, verify=True)


@final
@dataclass(frozen=True, eq=False)
class LayerMasks:
    """The weights of each layer are masked by themselves.

    Attributes:
        method: what chooses them.
    """

    method: MagnitudeMasks | Wanda

    @property
    def outline(self) -> Plan:
        """Nothing changes its size."""
        return Plan()

    @property
    def reads(self) -> bool:
        """Whether data are needed to decide."""
        return bool(norms_for(self.method))

    def edits(self, layer: str) -> bool:
        """See :class:`LayerPlans`."""
        return True

    def prune(self, traced: Traced, layer: str) -> Pruned:
        """See :class:`LayerPlans`."""
        names = [*traced.view.weights, *(name for name, _ in traced.model.named_modules())]
        dense = tuple(p for p in self.method.dense if any(matches(name, p) for name in names))
        method = replace(self.method, dense=dense)
        return traced.prune(method, traced.gather(method), verify=True)


@final
@dataclass(frozen=True, eq=False)
class GivenPlan:
    """A plan of the whole model, layer by layer.

    Attributes:
        outline: the plan.
    """

    outline: Plan

    @property
    def reads(self) -> bool:
        """What leaves is settled."""
        return False

    def edits(self, layer: str) -> bool:
        """See :class:`LayerPlans`."""
        return any(_lies_in(_name_of(edit), layer) for edit in self.outline)

    def prune(self, traced: Traced, layer: str) -> Pruned:
        """See :class:`LayerPlans`."""
        mine = tuple(edit for edit in self.outline if _lies_in(_name_of(edit), layer))
        plan = Plan(mine, traced.view.graph.fingerprint)
        return traced.prune(PruneInputs(plan), traced.view, verify=True)


def plans_for(
    asked: Method | Plan,
    whole: nn.Module,
    graph: Graph,
    layers: Sequence[str],
    parts: Iterable[str],
    seen: Mapping[str, Tensor] | None = None,
    compete: Callable[[Mapping[str, Tensor]], Plan] | None = None,
) -> LayerPlans:
    """What becomes of each layer of a model.

    Args:
        asked: a method, or a plan of the whole model.
        whole: the model, without weights.
        graph: its graph.
        layers: the names of its layers.
        parts: which parts of layers may lose units.
        seen: what a first pass saw; None: it is still to come, sizes are the same.
        compete: makes of that the masks of layers that compete.

    Raises:
        ArgumentError: the method needs what no layer tells by itself.
        PlanError: the plan edits what is in no layer.
        BudgetError: no plan meets what was asked.
    """
    if isinstance(asked, Plan):
        return GivenPlan(_require_in_layers(asked, graph, layers))
    if isinstance(asked, MagnitudeMasks | Wanda):
        method = _require_dense(asked, whole)
        if seen is None or compete is None:
            return LayerMasks(method)
        return GivenPlan(replace(compete(seen), fingerprint=""))
    require_by_layer(asked)
    if isinstance(asked, Depth):
        return GivenPlan(_drops(asked, graph, layers, seen))
    assert isinstance(asked, UnitRanking)
    return UniformCuts(asked, _outline(asked, pin_unsaid(whole, graph, [*parts]), layers))


def require_by_layer(asked: Method | Plan) -> None:
    """Raise ArgumentError where a method needs what no layer tells by itself."""
    if isinstance(asked, MagnitudeMasks | Wanda):
        return
    if isinstance(asked, UnitRanking) and asked.wants <= HEARD:
        _require_uniform(asked)
    elif isinstance(asked, Depth):
        _require_whole_layers(asked)
    elif not isinstance(asked, Plan):
        raise ArgumentError(
            f"{asked!r} needs more than one layer at a time: a loss, or all layers at once. Methods that score the "
            "units of a layer by itself (Magnitude, Activation, FPGM, Ranking), MagnitudeMasks, Wanda, Depth and a "
            "Plan can be streamed."
        )


def reads_data(asked: Method | Plan) -> bool:
    """Whether a method looks at data."""
    return bool(norms_for(asked)) or (isinstance(asked, UnitRanking | Depth) and bool(asked.wants))


def norms_for(asked: Method | Plan) -> tuple[InputNorms, ...]:
    """What a method asks about how loud inputs are."""
    asks = asked.asks if isinstance(asked, MagnitudeMasks | Wanda) else ()
    return tuple(one for one in asks if isinstance(one, InputNorms))


def competing(asked: Method | Plan) -> MagnitudeMasks | Wanda | None:
    """The method, where the masks of a layer depend on what all others hold."""
    if not isinstance(asked, MagnitudeMasks | Wanda) or asked.pattern.most is not None:
        return None
    return asked if asked.distribution != "uniform" and asked.density < 1 else None


def takes_two_passes(asked: Method | Plan) -> bool:
    """Whether layers are looked at before it is known what becomes of any."""
    return competing(asked) is not None or (isinstance(asked, Depth) and bool(asked.wants))


def layers_as_elements(graph: Graph, layers: Sequence[str]) -> Graph:
    """The graph in which whole layers can be taken out of their list: without weights that is not tried.

    What is written is loaded again, layer by layer, and called as before; where that gives something else, it is told.
    """
    return replace(
        graph,
        blocks=tuple(replace(b, element=b.name) if _is_layer(b, layers) else b for b in graph.blocks),
    )


def _is_layer(block: Block, layers: Sequence[str]) -> bool:
    return block.kind == "module" and block.modules == (block.name,) and block.name in layers


def _require_whole_layers(method: Depth) -> None:
    if method.score == "cka" or method.tolerance is not None or method.stages > 1 or is_timed(method.budget):
        raise ArgumentError(
            f"{method!r} runs the whole model again without some of its layers. Give score='influence', 'branch' or "
            "'random', one stage, and keep= (of params, macs or blocks) or drop=."
        )
    if method.granularity != "whole":
        raise ArgumentError(f"{method!r} drops halves of layers, which no config says. Give granularity='whole'.")


def _drops(method: Depth, graph: Graph, layers: Sequence[str], shifts: Mapping[str, Tensor] | None) -> Plan:
    """The layers that leave."""
    whole = replace(graph, blocks=tuple(block for block in graph.blocks if _is_layer(block, layers)))
    known = {name: torch.zeros(1, 2) for name in layers} if shifts is None else shifts
    plan = method.plan(View(whole, {}, Stats(shifts=known, want=frozenset({"blocks"}))))
    return _require_in_layers(plan, graph, layers)


def _require_uniform(method: Any) -> None:
    if method.scope != "uniform" and not (method.scope == "layer" and method.budget == "channels"):
        raise ArgumentError(
            f"{method!r}: with scope={method.scope!r} layers compete. Let as many units leave in all layers: "
            "scope='uniform'."
        )
    if is_timed(method.budget) or method.engine is not None:
        raise ArgumentError(f"{method!r}: times are those of a whole model. Give another budget.")


def _outline(method: Any, graph: Graph, layers: Sequence[str]) -> Plan:
    """The plan that the method's budget makes where all units score the same: sizes alone say it."""
    graph = _only(graph, [g.name for g in graph.prunable if any(_lies_in(g.name, layer) for layer in layers)])
    scores = {group.name: torch.zeros(group.size) for group in graph.prunable}
    return cut_lowest(method, View(graph, {}), scores)


def _require_dense(method: MagnitudeMasks | Wanda, whole: nn.Module) -> MagnitudeMasks | Wanda:
    """The method; raises ArgumentError where what it leaves dense is not in the model."""
    names = [*whole.state_dict(), *(name for name, _ in whole.named_modules())]
    for pattern in method.dense:
        if not any(matches(name, pattern) for name in names):
            raise ArgumentError(f"dense={pattern!r} fits nothing in this model.{nearest(pattern, names)}")
    return method


def _require_in_layers(plan: Plan, graph: Graph, layers: Sequence[str]) -> Plan:
    if not plan:
        raise PlanError("this plan has no edits: there is nothing to do.")
    whole = {block.name: block for block in graph.blocks if _is_layer(block, layers)}
    if len(plan.drops) >= len(layers):
        raise PlanError(f"this plan drops all {len(layers)} layers. Leave one at least.")
    for edit in plan:
        if not isinstance(edit, Cut | Mask | Drop):
            raise PlanError(
                f"{edit!r} is no cut, no mask and no whole layer that leaves. Load the model, and prune it in memory."
            )
        name = _name_of(edit)
        known = whole if isinstance(edit, Drop) else graph.tensors if isinstance(edit, Mask) else {
            group.name: group for group in graph.groups
        }  # fmt: skip
        if name not in known:
            what = "which is no whole layer" if isinstance(edit, Drop) else "and the model has none of that name"
            raise PlanError(f"this plan edits {name!r}, {what}.{nearest(name, [*known])}")
        if not any(_lies_in(name, layer) for layer in layers):
            raise PlanError(f"this plan edits {name!r}, which is in no layer. Leave it out: it stays when streamed.")
    double = [name for name, n in Counter(map(_name_of, plan)).items() if n > 1]
    if double:
        raise PlanError(f"this plan edits {double[0]!r} twice.")
    # Names and sizes say that it fits; a fingerprint is of the tokens it was traced with, too.
    return replace(plan, fingerprint="")


def _name_of(edit: Edit) -> str:
    match edit:
        case Cut():
            return edit.group
        case Mask():
            return edit.tensor
        case Drop():
            return edit.block
        case _:
            return ""


def _lies_in(name: str, layer: str) -> bool:
    return f"{name}.".startswith(f"{layer}.")


def _only(graph: Graph, names: Iterable[str]) -> Graph:
    """The graph in which nothing else can be cut."""
    free = {*names}
    told = "it is not among what is cut layer by layer"
    groups = tuple(g if g.pinned or g.name in free else replace(g, pinned=told) for g in graph.groups)
    return replace(graph, groups=groups)


def plan_of_layers(edits: Iterable[Edit], outline: Plan, graph: Graph) -> Plan:
    """The edits of all layers as one plan of the whole model."""
    return Plan(tuple(edits), graph.fingerprint, dict(outline.asked), dict(outline.reached))
