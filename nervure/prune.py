"""``prune``: the five-line way from a model to a smaller, verified one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

from torch import Tensor, nn

from nervure.errors import ArgumentError, BudgetError, DataError, VerificationError
from nervure.graph.cost import Cost, count
from nervure.graph.example import evaluating, placed_like
from nervure.graph.tape import named_tensors
from nervure.graph.trace import Choice, draw
from nervure.graph.types import Graph
from nervure.methods.base import Method, View
from nervure.plan import Plan
from nervure.stats import measure
from nervure.surgery.apply import apply, masks_after
from nervure.surgery.verify import verify as check
from nervure.tracing import trace, tried


@final
@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned model and how it came about.

    Attributes:
        model: the smaller model; a new module of the same class.
        plan: the edits that were made, with what was asked and reached.
        graph: the graph of the original model.
        cost_before: cost of the original.
        cost_after: cost of ``model``.
        method: ``repr`` of the method.
        masks: for each masked parameter the connections that stay, in the shape it has in ``model``.
        verification: largest relative difference to the original without the removed units; None if not verified.
    """

    model: nn.Module
    plan: Plan
    graph: Graph
    cost_before: Cost
    cost_after: Cost
    method: str = ""
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    verification: float | None = None

    def __str__(self) -> str:
        before, after = self.cost_before, self.cost_after
        return (
            f"{self.method}: parameters {before.params:,} -> {after.params:,} "
            f"({after.params / max(before.params, 1):.1%}), "
            f"MACs {before.macs:,} -> {after.macs:,} ({after.macs / max(before.macs, 1):.1%}), "
            + ("not verified" if self.verification is None else f"verified (error {self.verification:.1e})")
        )


def prune(
    model: nn.Module,
    example: Any,
    method: Method | Plan,
    *,
    data: Iterable[Any] | None = None,
    verify: bool = True,
    ignore: Iterable[Choice] = (),
    only: Iterable[Choice] | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Pruned:
    """Trace ``model``, let ``method`` plan, apply the plan to a copy and verify it.

    Args:
        model: the model to prune; it is not changed.
        example: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        method: what decides, e.g. ``Magnitude(keep=0.5, budget="macs")``; or a plan of your own.
        data: batches of (inputs, labels), for methods that measure.
        verify: check that the result computes what the original does without the removed units. Where it does not,
            the groups to blame are pinned and the method plans once more.
        ignore: modules or name patterns that must not change.
        only: modules or name patterns that may lose units.
        seed: for measuring.
        progress: show progress of what takes longer than two seconds.
        **options: further options of :func:`nervure.trace` (``outputs``, ``inputs``, ``inside_heads``).

    Returns:
        The pruned model with its plan, graph and costs.

    Raises:
        DataError: the method measures and no data was given, or the data cannot be used.
        BudgetError: no plan meets what was asked.
        VerificationError: no plan could be found whose result computes the right thing.
    """
    if isinstance(method, Plan):
        method = Given(method)
    _require_method(method)
    if method.wants and data is None:
        raise DataError(
            f"{method!r} measures {', '.join(sorted(method.wants))}: give data=, batches of (inputs, labels)."
        )
    example = placed_like(model, example)
    graph = trace(model, example, ignore=ignore, only=only, **options)
    weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    stats = (
        measure(model, graph, data, want=method.wants, seed=seed, progress=progress)
        if method.wants and data is not None
        else None
    )
    before = count(model, example)
    view = View(graph, weights, stats, seed, model, example, data)
    result = _planned(model, method, view, before)
    if verify:
        try:
            result = replace(result, verification=check(model, result, example).error)
        except VerificationError:
            if not result.plan.cuts:
                raise
            graph = _without_the_guilty(model, example, result)
            result = _planned(model, method, replace(view, graph=graph), before)
            result = replace(result, verification=check(model, result, example).error)
    return replace(result, cost_after=count(result.model, example))


@final
@dataclass(frozen=True, slots=True)
class Given:
    """The method that has its plan already."""

    wants: ClassVar[frozenset[str]] = frozenset()

    given: Plan

    def plan(self, view: View) -> Plan:
        """The plan that was given."""
        return self.given


def _require_method(method: Any) -> None:
    if isinstance(method, type) or not isinstance(method, Method):
        raise ArgumentError(
            f"method={method!r} is not a method. Give one like Magnitude(keep=0.5), called, not the class, or a Plan."
        )


def _planned(model: nn.Module, method: Method, view: View, before: Cost) -> Pruned:
    plan = method.plan(view)
    smaller = apply(model, view.graph, plan)
    return Pruned(smaller, plan, view.graph, before, before, repr(method), masks_after(view.graph, plan))


def _without_the_guilty(model: nn.Module, example: Any, result: Pruned) -> Graph:
    """Try every group that the plan cut, and pin those that do not survive it."""
    with evaluating(model):
        drawing = draw(model, example, **result.graph.settings)
        drawing.graph = result.graph
        names = {cut.group: "found wrong when verified" for cut in result.plan.cuts}
        graph = tried(model, drawing, names, example)
    if graph == result.graph:
        raise VerificationError("the plan as a whole does not compute the right thing, though each of its cuts does.")
    if not graph.prunable:
        raise BudgetError(
            "nothing that can be cut is left: " + "; ".join(f"{g.name}: {g.pinned}" for g in graph.groups[:5])
        )
    return graph
