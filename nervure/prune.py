"""``prune``: the five-line way from a model to a smaller, verified one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

from torch import Tensor, nn

from nervure.budget import Budget
from nervure.budget.kinds import read_budget
from nervure.budget.weights import left_dense
from nervure.core.annotations import Batches
from nervure.core.check import checked
from nervure.core.collectives import done_by_first, require_same_weights
from nervure.core.inputs import Inputs
from nervure.core.markup import printable
from nervure.core.renamed import old_method
from nervure.core.schema import Density, Seed
from nervure.errors import ArgumentError, DataError, NervureError, VerificationError
from nervure.graph.cost import Cost, cost_of
from nervure.graph.models import is_weightless, unwrap
from nervure.graph.modes import leave_modes
from nervure.graph.preserve import restore_after
from nervure.graph.tape import named_tensors
from nervure.graph.trace import Choices, left_alone
from nervure.graph.types import Graph
from nervure.methods.base import CountsOnRefit, Folder, Method, View, gather_evidence, require_method
from nervure.methods.channels.yardsticks import Magnitude
from nervure.plan import Cut, Drop, Keep, Mask, Plan
from nervure.refit import Refit
from nervure.refit import refit as refitted_to
from nervure.stats.loaders import draw_first
from nervure.surgery.apply import apply, edit_model, masks_after
from nervure.surgery.blame import Edit, families_of, name_of, wrong_edits
from nervure.surgery.checker import Checker
from nervure.surgery.verify import verify_with
from nervure.tasks.batch_forms import Layout
from nervure.tasks.guessing import TaskLike, as_task
from nervure.tasks.task import Task
from nervure.tracing import pin_edits, trace_and_check

PLANS = 3
"""How many times a method plans, each time without what was found wrong before."""


@final
@dataclass(frozen=True, slots=True)
class Step:
    """An earlier pruning of a model that was pruned again: the plan, the graph it is for, and the method's repr."""

    graph: Graph
    plan: Plan
    method: str = ""


@final
@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned model and how it came about.

    Attributes:
        model: the smaller model; a new module of the same class.
        plan: the edits that were made (last, where it was pruned several times), with what was asked and reached.
        graph: the graph of the model that ``plan`` is for.
        cost_before: cost of the original.
        cost_after: cost of ``model``.
        method: ``repr`` of the method.
        masks: for each masked parameter the connections that stay, in the shape it has in ``model``; on the CPU,
            wherever the model is.
        verification: largest difference to the original without the removed units, relative to how far the cut moved
            an output; None if not verified.
        earlier: what was done before ``plan``, first things first; each graph is that of the model then.
        unverified: why there is no verification, where one was asked for.
    """

    model: nn.Module
    plan: Plan
    graph: Graph
    cost_before: Cost
    cost_after: Cost
    method: str = ""
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    verification: float | None = None
    earlier: tuple[Step, ...] = ()
    unverified: str = ""

    def with_masks(self, masks: Mapping[str, Tensor]) -> "Pruned":
        """The same with the masks that training left, as :class:`nervure.training.History` has them.

        A plan that only masks says so too. Without masks nothing changes.
        """
        if not masks:
            return self
        sparse = {name: mask.cpu() for name, mask in masks.items()}
        if len(self.plan.masks) < len(self.plan.edits):
            return replace(self, masks=sparse)
        edits = tuple(Mask(name, Keep.of(mask)) for name, mask in sparse.items() if not bool(mask.all()))
        stay = sum(int(mask.sum()) for mask in sparse.values())
        left = sum(product.size for product in left_dense(self.graph))
        whole = sum(mask.numel() for mask in sparse.values()) + left
        reached = {**self.plan.reached, "density": (stay + left) / whole, "weights": stay}
        return replace(self, masks=sparse, plan=replace(self.plan, edits=edits, reached=reached))

    rewired = old_method("rewired", "with_masks")

    def __str__(self) -> str:
        before, after = self.cost_before, self.cost_after
        methods = ", then ".join([*(step.method for step in self.earlier), self.method])
        return printable(
            f"{methods}: parameters {before.params:,} -> {after.params:,} "
            f"({after.params / max(before.params, 1):.1%}), "
            f"MACs {before.macs:,} -> {after.macs:,} ({after.macs / max(before.macs, 1):.1%}), "
            + self._verification_text()
        )

    def _verification_text(self) -> str:
        if self.verification is not None:
            return f"verified (error {self.verification:.1e})"
        return f"not verified ({self.unverified})" if self.unverified else "not verified"


@checked
@leave_modes()
def prune(  # noqa: PLR0913 - one choice per argument, all by keyword
    model: nn.Module | Pruned,
    example: Any = None,
    method: Method | Plan | Sequence[Method | Plan] | None = None,
    *,
    keep: Density | None = None,
    budget: str | Budget | None = None,
    data: Batches | None = None,
    task: TaskLike | None = None,
    verify: bool = True,
    refit: bool | Refit | None = None,
    ignore: Choices = (),
    only: Choices | None = None,
    seed: Seed = 0,
    progress: bool = True,
    **options: Any,
) -> Pruned:
    """Trace ``model``, let ``method`` plan, apply the plan to a copy and verify it.

    Args:
        model: the model to prune; it is not changed. A result of an earlier ``prune`` (trained since, perhaps) is
            pruned further, and remembers both plans.
        example: see :func:`nervure.trace`. Costs are those of the first, where there are several. None: the inputs of
            the first batch of ``data``, as ``task`` reads them.
        method: what decides, e.g. ``Magnitude(keep=0.5, budget="macs")``; or a plan of your own; or several, one after
            the other: ``[Energy(drop=2), Magnitude(keep=0.7)]`` drops blocks, then cuts channels of what is left.
            None: the units of least magnitude leave, as many as ``keep`` and ``budget`` say.
        keep: the fraction of the budget that stays, where no method says so.
        budget: what is counted then: a name in ``nervure.budget.BUDGETS`` or a budget of your own; or what may be left
            of it, with its unit, like ``"200 MB"`` or ``"3 ms"``. None: multiply-accumulates.
        data: batches of any form, such as (inputs, labels) or dicts, for methods that measure.
        task: what the model is for (:mod:`nervure.tasks`), or an objective: a function of the model and a batch that
            gives the mean loss. None: methods that need a loss see from the first batch which it is.
        verify: check that the result computes what the original does without the removed units. Where it does not,
            the groups to blame are pinned and the method plans once more. Without weights there is nothing to check.
        refit: fit what stays to say what ``model`` says, on ``data``, once all is pruned and verified, see
            :func:`nervure.refit`; True, or the choices. None: where a method counts on it, as SNACS does.
        ignore: modules or name patterns that must not change.
        only: modules or name patterns that may lose units; what no other module makes with them, see ``trace``.
        seed: for measuring.
        progress: show progress of what takes longer than two seconds.
        **options: further options of :func:`nervure.trace` (``outputs``, ``inputs``, ``inside_heads``).

    Returns:
        The pruned model with its plan, graph and costs. Of a model in a wrapper (``torch.compile``,
        ``DistributedDataParallel``, ...) it is the module inside, to be wrapped anew.

    Raises:
        DataError: the method measures and no data was given, or the data cannot be used.
        BudgetError: no plan meets what was asked.
        ArgumentError: no method is given and neither ``keep`` nor an amount, or both a method and one of these; or
            there is neither an example nor data.
        VerificationError: no plan could be found whose result computes the right thing.
    """
    methods = [_least_magnitude(keep, budget)] if method is None else _list_methods(method, keep, budget)
    counting = [one for one in methods if isinstance(one, CountsOnRefit) and one.refits]
    if refit is None:
        refit = data is not None and bool(counting)
    if refit is not False and data is None:
        raise DataError(f"refit={refit!r} fits on data: give data=, batches of (inputs, labels) or of inputs.")
    if refit is not False and counting and isinstance(data, Iterator):
        raise DataError(
            f"{counting[0]!r} measures the data and refits on them, and a {type(data).__name__} gives its batches "
            "once. Give a list of batches or a loader, or refit=False."
        )
    if example is None:
        example, data = draw_example(model, data, as_task(task), seed)
    ignore, only = repeatable(ignore), None if only is None else repeatable(only)
    found: nn.Module | Pruned = model
    for one in methods:
        dense = found.model if isinstance(found, Pruned) else found
        once = _pruned_once(
            dense,
            example,
            one,
            data=data,
            task=as_task(task),
            verify=verify,
            chosen={"ignore": ignore, "only": only, **options},
            seed=seed,
            progress=progress,
        )
        found = join_steps(found, once) if isinstance(found, Pruned) else once
    assert isinstance(found, Pruned)
    if refit is False or data is None:
        return found
    return refit_pruned(model, found, data, as_task(task), Refit(seed=seed) if refit is True else refit, progress)


def draw_example(
    model: nn.Module | Pruned, data: Batches | None, task: Task | None, seed: int
) -> tuple[Inputs, Batches]:
    """What the model is called with on the first batch, and the data, which still have that batch."""
    if data is None:
        raise ArgumentError(
            "there is no example. Give what the model is called with, prune(model, example, ...), or data=, batches: "
            "the inputs of the first are taken then."
        )
    first, data = draw_first(data, task, seed)
    if first is None:
        raise DataError("data gave no batch, so there is no example. Give batches, or an example.")
    layout = Layout() if task is None else Layout(inputs=task.inputs)
    return layout.example_in(unwrap(model.model if isinstance(model, Pruned) else model), first), data


def _list_methods(
    method: Method | Plan | Sequence[Method | Plan], keep: float | None, budget: str | Budget | None
) -> list[Method | Plan]:
    if keep is not None or budget is not None:
        raise ArgumentError(f"method={method!r}, and keep= or budget= too: say it in the method.")
    methods: list[Method | Plan] = list(method) if isinstance(method, list | tuple) else [method]  # type: ignore[list-item]
    if not methods:
        raise ArgumentError("method=[] names no method. Give one, or a list of several.")
    return methods


def _least_magnitude(keep: float | None, budget: str | Budget | None) -> Magnitude:
    """The method that is taken where none is named."""
    kind, amount = ("macs", None) if budget is None else read_budget(budget)
    if (keep is None) == (amount is None):
        raise ArgumentError(
            f"keep={keep!r}, budget={budget!r} does not say how much stays. Give a method, like Magnitude(keep=0.5), "
            'or a share and what it is of, like keep=0.5, budget="macs", or an amount alone, like budget="200 MB".'
        )
    return Magnitude(budget=kind, target=amount) if keep is None else Magnitude(keep=keep, budget=kind)


def refit_pruned(
    dense: nn.Module | Pruned, found: Pruned, data: Batches, task: Task | None, how: Refit, progress: bool
) -> Pruned:
    """``found``, fitted to what it was made from."""
    if isinstance(dense, nn.Module):
        return refitted_to(found, data, reference=dense, task=task, how=how, progress=progress).result
    recent = replace(found, earlier=found.earlier[len(dense.earlier) + 1 :])
    result = refitted_to(recent, data, reference=dense.model, task=task, how=how, progress=progress).result
    return replace(result, earlier=found.earlier)


def repeatable(choices: Choices) -> Choices:
    """Choices that can be gone through more than once."""
    return choices if isinstance(choices, str | nn.Module) else tuple(choices)


def join_steps(earlier: Pruned, later: Pruned) -> Pruned:
    """``later``, which was made from the model of ``earlier``, as one with it."""
    # What was masked stays masked, in the shape that the later plan leaves of it.
    held = tuple(Mask(name, Keep.of(keep.cpu())) for name, keep in earlier.masks.items() if name in later.graph.tensors)
    masks = masks_after(later.graph, Plan((*held, *later.plan.edits), later.graph.fingerprint))
    there = named_tensors(later.model)
    return replace(
        later,
        cost_before=earlier.cost_before,
        masks={name: keep for name, keep in masks.items() if name in there},
        earlier=(*earlier.earlier, Step(earlier.graph, earlier.plan, earlier.method)),
    )


@final
@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A model that is ready to be planned on, as often as it takes.

    Attributes:
        model: the module, without wrappers.
        view: what methods see of it; no evidence was gathered yet.
        given: the examples, on its device.
        checker: proves what is made of it.
        cost: what it costs.
    """

    model: nn.Module
    view: View
    given: Sequence[Inputs]
    checker: Checker
    cost: Cost

    def gather(self, method: Method, *, folder: Folder = None, progress: bool = False) -> View:
        """The view with all that ``method`` wants; raises as :func:`gather_evidence`."""
        with restore_after(self.model, self.given):
            return gather_evidence(method, self.view, folder=folder, progress=progress)

    def prune(self, method: Method, view: View, *, verify: bool) -> Pruned:
        """What the method makes of the model, by what was gathered in ``view``; raises as :func:`prune`."""
        result = _make_plan(self.model, method, view, self.cost)
        if verify and not is_weightless(self.model):
            result = _verify_or_repair(self.checker, method, view, result)
        return replace(result, cost_after=self.checker.count(result.model))


def trace_to_prune(
    model: nn.Module,
    example: Any,
    *,
    data: Batches | None,
    task: Task | None,
    chosen: Mapping[str, Any],
    seed: int,
) -> Traced:
    """Trace a model, and check what is doubtful of it; ``chosen`` are the options of tracing."""
    model = unwrap(model)
    given = Inputs.several(example, model)
    drawing, checker = trace_and_check(model, given, **chosen)
    weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    ignored = left_alone(model, chosen["ignore"], chosen["only"])
    shown = [one.plain() for one in given]
    example = shown if len(shown) > 1 else shown[0]
    view = View(drawing.graph, weights, None, seed, model, example, data, ignored, task=task)
    return Traced(model, view, given, checker, cost_of(model, drawing.flow))


def _pruned_once(
    model: nn.Module,
    example: Any,
    method: Method | Plan,
    *,
    data: Batches | None,
    task: Task | None,
    verify: bool,
    chosen: Mapping[str, Any],
    seed: int,
    progress: bool,
) -> Pruned:
    """One method; ``chosen`` are the options of tracing."""
    if isinstance(method, Plan):
        method = PruneInputs(method)
    require_method(method, data)
    traced = trace_to_prune(model, example, data=data, task=task, chosen=chosen, seed=seed)
    return traced.prune(method, traced.gather(method, progress=progress), verify=verify)


def _verify_or_repair(checker: Checker, method: Method, view: View, result: Pruned, plans: int = PLANS) -> Pruned:
    """``result``, verified; where it computes something else, what is to blame is pinned and the method plans anew."""
    try:
        found = verify_with(checker, result)
        return replace(result, verification=found.error, unverified=found.reason)
    except VerificationError as error:
        wrong = _wrong_edits(checker, result)
        named = "; ".join(f"{name_of(edit)!r}: {why}" for edit, why in wrong.items())
        if isinstance(method, PruneInputs) or plans == 1:
            right = replace(result.plan, edits=tuple(e for e in result.plan.edits if e not in wrong), reached={})
            raise VerificationError(
                f"{error}. To blame: {named or 'masks or links'}. Nothing that fails this check should be used. The "
                f"other {len(right.edits)} of {len(result.plan.edits)} edits compute the right thing: they are the "
                "`right` of this error, a plan. Please report the model.",
                right=right,
            ) from error
        pinned = pin_edits(view.graph, {e: f"found wrong when verified: {w}" for e, w in wrong.items()})
        # Answers were about the graph as it was.
        view = replace(view, graph=pinned, answers=())
        if not view.graph.prunable and not any(not b.pinned for b in view.graph.blocks):
            raise VerificationError(f"no cut computes the right thing: {named}") from error
    assert isinstance(view.model, nn.Module)
    return _verify_or_repair(checker, method, view, _make_plan(view.model, method, view, result.cost_before), plans - 1)


def _wrong_edits(checker: Checker, result: Pruned) -> dict[Edit, str]:
    """The cuts and drops that have to go so that the rest of the plan passes, with the reasons."""
    others = tuple(e for e in result.plan.edits if not isinstance(e, Cut | Drop))

    def attempt(edits: Sequence[Edit]) -> str:
        plan = Plan((*edits, *others))
        try:
            verify_with(checker, replace(result, plan=plan, model=edit_model(checker.model, result.graph, plan)))
        except NervureError as error:
            return str(error).split("\n", maxsplit=1)[0][:200]
        return ""

    cuts = [e for e in result.plan.edits if isinstance(e, Cut | Drop)]
    return wrong_edits(attempt, families_of(result.graph, cuts))


@final
@dataclass(frozen=True, slots=True)
class PruneInputs:
    """The method that has its plan already."""

    wants: ClassVar[frozenset[str]] = frozenset()

    given: Plan

    def plan(self, view: View) -> Plan:
        """The plan that was given."""
        return self.given


def _make_plan(model: nn.Module, method: Method, view: View, before: Cost) -> Pruned:
    require_same_weights(model.parameters(), "prune")
    with restore_after(model, view.example):
        plan = done_by_first(lambda: method.plan(view), Plan.to_json, Plan.from_json)
    smaller = apply(model, view.graph, plan)
    return Pruned(smaller, plan, view.graph, before, before, repr(method), masks_after(view.graph, plan))
