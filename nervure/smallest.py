"""``smallest``: as small as possible and no worse than is tolerated, by bisection over the amounts of a method."""

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, final

from torch import nn

from nervure.core.annotations import Batches, FilePath
from nervure.core.check import checked
from nervure.core.collectives import several
from nervure.core.files import read_document, write_json
from nervure.core.markup import listing
from nervure.core.progress import progress as moving_bar
from nervure.core.schema import Between, NotNegative, Seed, Size
from nervure.errors import ArgumentError, BudgetError, DataError, FileError
from nervure.evaluation.held_out import HeldOut, HeldOutMetric, PartScores, default_metrics, draw_samples, hold_out
from nervure.evaluation.tolerance import AmountSearch, Attempt, Tolerance
from nervure.graph.modes import leave_modes
from nervure.graph.preserve import restore_after
from nervure.graph.trace import Choices
from nervure.methods.amounts import with_amount
from nervure.methods.base import CountsOnRefit, Method, View, require_method
from nervure.methods.channels.yardsticks import Magnitude
from nervure.methods.dynamic.dynamic_sparse import DynamicSparse
from nervure.methods.evidence_folder import BATCHES, evidence_folder
from nervure.plan import Plan
from nervure.prune import (
    Pruned,
    Traced,
    draw_example,
    join_steps,
    refit_pruned,
    repeatable,
    trace_to_prune,
)
from nervure.refit import Refit
from nervure.report.amount_search import quality, search_table, verdict
from nervure.report.table_forms import table_text
from nervure.stats import Stats, batches_digest
from nervure.tasks.guessing import TaskLike, as_task, find_task
from nervure.tasks.task import Task

FIRST = 0.5
"""Evidence is gathered for this amount before any is tried."""
SAMPLES = 4096
"""How many are taken, unless something else is asked."""
LEAST = 1e-3
"""Nothing smaller is asked for."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Smallest:
    """The smallest network found within a tolerance, and the way to it.

    Attributes:
        pruned: the network; verified, and refitted where that was asked for.
        method: the method, with the amount that was found.
        search: what was tolerated, and each amount that was tried.
    """

    pruned: Pruned
    method: Method
    search: AmountSearch

    @property
    def path(self) -> tuple[Attempt, ...]:
        """Each amount that was tried, with what was lost and its interval, first things first."""
        return self.search.path

    @property
    def found(self) -> Attempt:
        """The attempt that ``pruned`` is."""
        found = self.search.found
        assert found is not None
        return found

    @property
    def keep(self) -> float:
        """The fraction that stays."""
        return self.found.keep

    @property
    def is_sure(self) -> bool:
        """Whether the whole interval of what is lost is within the tolerance."""
        return self.search.is_sure

    def __str__(self) -> str:
        return listing([*table_text(search_table(self.search)).split("\n"), "", verdict(self.search)])


@checked
@leave_modes()
def smallest(  # noqa: PLR0913 - one choice per argument, all by keyword
    model: nn.Module | Pruned,
    example: Any = None,
    method: Method | None = None,
    *,
    data: Batches,
    tolerance: NotNegative = 0.01,
    task: TaskLike | None = None,
    judge: TaskLike | None = None,
    metric: str | None = None,
    validation: Batches | None = None,
    held_out: Between = 0.25,
    samples: Size = SAMPLES,
    refit: bool | Refit | None = None,
    strict: bool = False,
    confidence: Between = 0.95,
    precision: Between = 0.02,
    verify: bool = True,
    folder: FilePath | None = None,
    ignore: Choices = (),
    only: Choices | None = None,
    seed: Seed = 0,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> Smallest:
    """Find the smallest network that a method makes of a model and that is no worse than is tolerated.

    Amounts are tried by bisection, without any training. Evidence is measured once, on a part of the data; each network
    is then cut, verified, refitted where that is asked for, and judged on samples that were held out.

    What is lost is the metric of the dense network less that of the pruned one, in the direction in which it is good:
    of shares (accuracy, mean IoU, flips, rates of errors) the difference, so that 0.01 is one point; of others
    (perplexity, loss, RMSE) that as a part of the dense network's, so that 0.01 is one percent. A network is within the
    tolerance where it lost no more on the samples held out, with ``strict`` where the upper end of the interval is no
    more. The interval is Student's, two-sided: samples are dealt into 20 parts, both networks are measured on the
    same ones, and the spread of the differences over parts says how sure the whole is; see
    :class:`nervure.evaluation.tolerance.Tolerance`.

    What is found is within the tolerance, and the largest smaller amount that was tried, by ``precision``, is not.
    Where quality does not fall steadily, something smaller still may be within it. Of several networks near the bound
    the lucky one is taken, which the interval of one network does not know: where it matters, ask for ``strict``, or
    judge what was found once more on other data.

    Args:
        model: the model to prune; it is not changed. A result of an earlier ``prune`` is pruned further, and compared
            with what it is now.
        example: see :func:`nervure.trace`; None: the inputs of the first batch of ``data``.
        method: what decides. Its amount (``keep`` or ``density``, see :func:`nervure.methods.amount_of`) is what is
            looked for, whatever it says. None: least magnitude, of multiply-accumulates.
        data: batches of any form.
        tolerance: how much may be lost, from 0 on.
        task: what the model is for, see :func:`nervure.prune`.
        judge: by what networks are judged, where that is another task: ``nervure.tasks.agreement(model)`` needs no
            labels. None: ``task``, or what the first batch says.
        metric: which of its metrics, or ``"loss"``. None: the first (of agreement between classes, the share of
            answers that differ).
        validation: batches to judge on. None: a part of ``data`` is held out. What a network was trained on it knows by
            heart, and a cut seems to cost more there: give others where there are some.
        held_out: the share of the samples of ``data`` that is held out, drawn by lot, in (0, 1).
        samples: how many are taken at most, of ``data`` and of ``validation`` each; they are kept in memory.
        refit: as of :func:`nervure.prune`, for each network; None: where a method counts on it, as SNACS does.
        strict: whether the whole interval has to be within the tolerance.
        confidence: of the interval, in (0, 1).
        precision: the part of what stays by which the two nearest amounts may differ, in (0, 1).
        verify: as of :func:`nervure.prune`, for each network.
        folder: where evidence and scores are kept, so that a search that was stopped goes on there; None: in memory
            only.
        ignore: modules or name patterns that must not change.
        only: modules or name patterns that may lose units.
        seed: for drawing samples and measuring.
        progress: show progress of what takes longer than two seconds.
        say: is given a line for each amount that was tried.
        **options: further options of :func:`nervure.trace`.

    Raises:
        BudgetError: nothing smaller than the dense network is within the tolerance, or there is nothing to prune.
        ArgumentError: the method has no amount, says it in another way, or changes its masks in training; the metric is
            unknown, or relative to a dense network at 0; the tolerance of a share is not below 1; or several processes
            work together.
        DataError: there are no labels and no ``judge`` that does without, or too few samples.
        VerificationError: as of :func:`nervure.prune`.
    """
    if several():
        raise ArgumentError(
            "smallest looks for an amount in one process. Call it in one, within "
            "nervure.distributed.reduce_over(None), and give prune in all of them the amount that it found."
        )
    method = require_amount(Magnitude(budget="macs") if method is None else method, data)
    if refit is None:
        refit = isinstance(method, CountsOnRefit) and method.refits
    dense, told = model.model if isinstance(model, Pruned) else model, as_task(task)
    drawn = draw_samples(data, samples, told, seed=seed)
    if example is None:
        example, _ = draw_example(model, [drawn[0].raw], told, seed)
    if validation is None:
        used, held = hold_out(drawn, held_out, seed=seed)
    else:
        used, held = drawn, HeldOut.of(draw_samples(validation, samples, told, seed=seed))
    chosen = {"ignore": repeatable(ignore), "only": None if only is None else repeatable(only), **options}
    batches = [batch.raw for batch in used]
    finder = AmountFinder(
        trace_to_prune(dense, example, data=batches, task=told, chosen=chosen, seed=seed),
        method,
        held,
        as_task(judge) or told or _find_judge(dense, held),
        metric,
        refit=Refit(seed=seed) if refit is True else refit or None,
        verify=verify,
        earlier=model if isinstance(model, Pruned) else None,
        bounds=Bounds(tolerance, strict, confidence, precision),
    )
    return finder.run(folder, progress=progress, say=say or _say_nothing)


def require_amount(method: Method, data: Batches | None) -> Method:
    """The method, with an amount to begin with; raises ArgumentError where none can be looked for, or DataError."""
    require_method(method, data)
    if isinstance(method, DynamicSparse):
        raise ArgumentError(
            f"{type(method).__name__} changes its masks while a network trains, and nothing is trained here. "
            "Try several densities with nervure.sweep."
        )
    return with_amount(method, FIRST)


def _find_judge(model: nn.Module, held: HeldOut) -> Task:
    try:
        return find_task(model, held.batches[0])
    except (ArgumentError, DataError) as error:
        raise type(error)(
            f"{error} Without labels, networks are judged by how far their answers are from those of the dense one: "
            "judge=nervure.tasks.agreement(model)."
        ) from error


@final
@dataclass(frozen=True, slots=True)
class Bounds:
    """What a search goes by; the arguments of :func:`smallest`."""

    tolerance: float = 0.01
    strict: bool = False
    confidence: float = 0.95
    precision: float = 0.02


@final
@dataclass(frozen=True, slots=True, eq=False)
class AmountFinder:
    """A search that is ready to run; the fields are arguments of :func:`smallest`, and what follows from them.

    Attributes:
        traced: the model; its view has the data that evidence is gathered on.
        method: what decides.
        held: the samples to judge on.
        judge: by what.
        metric: which of its metrics; None: the first.
        refit: how what stays is fitted; None: not at all.
        verify: whether each network is verified.
        earlier: what the model is of, where it was pruned before.
        bounds: when it ends.
    """

    traced: Traced
    method: Method
    held: HeldOut
    judge: Task
    metric: str | None = None
    refit: Refit | None = None
    verify: bool = True
    earlier: Pruned | None = None
    bounds: Bounds = field(default_factory=Bounds)

    def run(self, folder: FilePath | None, *, progress: bool, say: Callable[[str], None]) -> Smallest:
        """Look for the smallest; raises as :func:`smallest`."""
        record = Record(self._place(folder))
        metric, dense, told = self._judge_dense(record)
        walk = _Walk(self._gather(record, folder, progress), metric, dense, told, record, folder)
        with moving_bar("looking for the smallest", enabled=progress) as advance:

            def attempt(keep: float) -> Attempt:
                found = walk.attempt(keep)
                say(_line(told, found))
                advance()
                return found

            search = AmountSearch(told, bisect(attempt, self.bounds.precision))
        if walk.best is None:
            raise BudgetError(_advise(self.method, search))
        return Smallest(walk.finish(), with_amount(self.method, walk.best.keep), search)

    def _judge_dense(self, record: "Record") -> tuple[HeldOutMetric, PartScores, Tolerance]:
        """By what networks are judged, what it says of the dense one, and what is tolerated then."""
        names = default_metrics(self.judge) if self.metric is None else (self.metric,)
        for name in names:
            metric = HeldOutMetric.of(self.judge, name)
            scores = record.scores(["dense", name], partial(metric.score, self.traced.model, self.held))
            if not scores.is_finite:
                raise DataError(f"the {name} of the dense network is {scores.value} on the samples held out.")
            if scores.value or not metric.is_relative:
                return metric, scores, self._tolerance(metric, scores.value)
        told = (
            f"{' and '.join(names)} of the dense network is 0, and nothing is a part of that"
            if names
            else "it has none"
        )
        raise ArgumentError(
            f"metric={self.metric!r} of the task {self.judge.name!r}: {told}. Give another, or a judge=."
        )

    def _tolerance(self, metric: HeldOutMetric, dense: float) -> Tolerance:
        value, how = self.bounds.tolerance, self.bounds
        if not metric.is_relative and value >= 1:
            raise ArgumentError(
                f"tolerance={value:g} is all that a share such as {metric.name} can lose. Give less than 1, "
                "such as 0.01 for one point."
            )
        direction = (metric.higher_is_better, metric.is_relative)
        told = Tolerance(value, metric.name, *direction, dense, self.held.samples, how.confidence, how.strict)
        least = told.least_reach(len(self.held.sizes))
        if how.strict and least > value:
            enough = math.ceil(told.samples * least / max(value, LEAST))
            raise DataError(
                f"strict=True: {told.samples} samples tell a share to {told.tell(least)} at best, and "
                f"{told.tell(value)} are tolerated. Hold out {enough:,} or more, or tolerate more."
            )
        return told

    def _gather(self, record: "Record", folder: FilePath | None, progress: bool) -> "AmountFinder":
        """The same with evidence in its view."""
        traced = self.traced
        with restore_after(traced.model, traced.given):
            view = record.listen(traced.view, self.method.wants, progress)
        traced = replace(traced, view=view)
        return replace(self, traced=replace(traced, view=traced.gather(self.method, folder=folder, progress=progress)))

    def _place(self, folder: FilePath | None) -> Path | None:
        """Where scores are kept; None where they would not be known again."""
        view, earlier = self.traced.view, self.earlier
        question = [
            "smallest",
            repr(with_amount(self.method, 1.0)),
            repr(self.judge),
            repr(self.refit),
            sorted(view.ignored),
            "" if earlier is None else _digest(earlier.plan),
            "" if view.stats is None else view.stats.digest,
        ]
        if folder is None or " at 0x" in repr(question):
            return None
        data = batches_digest(view.data or (), count=BATCHES, seed=view.seed)
        return evidence_folder(folder, view, question, data + self.held.digest)


@final
class _Walk:
    """Tries amounts, and keeps the smallest network that is within the tolerance."""

    def __init__(
        self,
        finder: AmountFinder,
        metric: HeldOutMetric,
        dense: PartScores,
        tolerance: Tolerance,
        record: "Record",
        folder: FilePath | None,
    ) -> None:
        self._finder, self._metric, self._dense, self._tolerance = finder, metric, dense, tolerance
        self._record, self._folder = record, folder
        self.best: _Network | None = None

    def attempt(self, keep: float) -> Attempt:
        """Try one amount."""
        finder, method = self._finder, with_amount(self._finder.method, keep)
        try:
            view = finder.traced.gather(method, folder=self._folder)
            network = _Network(keep, finder.traced.prune(method, view, verify=finder.verify))
        except BudgetError as error:
            return Attempt(keep, reason=str(error))
        cost = network.pruned.cost_after
        tried = Attempt(keep, params=cost.params, nonzero=cost.nonzero, macs=cost.macs)
        try:
            scores = self._record.scores(
                [self._metric.name, _digest(network.pruned.plan)], lambda: self._score(network)
            )
        except DataError as error:
            # What cannot be fitted or answers no numbers any more is too small.
            return replace(tried, reason=str(error))
        if not scores.is_finite:
            return replace(tried, reason=f"its {self._metric.name} is {scores.value}")
        lost = self._tolerance.lost(self._dense, scores, finder.held.sizes)
        tried = replace(tried, quality=scores.value, lost=lost, is_inside=self._tolerance.admits(lost))
        if not network.pruned.plan.edits:
            return replace(tried, reason="nothing has left yet")
        if tried.is_inside:
            self.best = network
        return tried

    def finish(self) -> Pruned:
        """The smallest network within the tolerance."""
        assert self.best is not None
        self._fit(self.best)
        earlier = self._finder.earlier
        return self.best.pruned if earlier is None else join_steps(earlier, self.best.pruned)

    def _score(self, network: "_Network") -> PartScores:
        self._fit(network)
        return self._metric.score(network.pruned.model, self._finder.held)

    def _fit(self, network: "_Network") -> None:
        """Refit, where that is asked for and was not done yet: scores may be known from before."""
        how, traced = self._finder.refit, self._finder.traced
        if how is not None and traced.view.data is not None and network.pruned.plan.edits and not network.is_fitted:
            view = traced.view
            assert view.data is not None
            network.pruned = refit_pruned(traced.model, network.pruned, view.data, view.task, how, progress=False)
            network.is_fitted = True


@final
@dataclass(slots=True)
class _Network:
    """A network, and whether what stays of it was fitted yet."""

    keep: float
    pruned: Pruned
    is_fitted: bool = False


def bisect(attempt: Callable[[float], Attempt], precision: float) -> tuple[Attempt, ...]:
    """Try amounts in (0, 1), half-way between the smallest inside and the largest outside below it.

    Args:
        attempt: tries one.
        precision: it ends where the two differ by this part of the larger one, or nothing is left.

    Returns:
        All that was tried, in order.
    """
    path, low, high = list[Attempt](), 0.0, 1.0
    while high - low > precision * high and high > LEAST:
        keep = (low + high) / 2
        path.append(attempt(keep))
        low, high = (low, keep) if path[-1].is_inside else (keep, high)
    return tuple(path)


class _Known(TypedDict):
    """What is written down of one network."""

    value: float
    parts: list[float]


@final
class Record:
    """What was measured, in a folder where there is one."""

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._known = folder, dict[str, _Known]()
        if folder is not None:
            with suppress(FileError):  # it is not there yet, or damaged
                self._known = read_document(folder / "scores.json", dict[str, _Known], "what was tried")

    def scores(self, key: list[str], make: Callable[[], PartScores]) -> PartScores:
        """What is known by this key; made, and written down, where nothing is."""
        name = " ".join(key)
        if name in self._known:
            return PartScores(self._known[name]["value"], tuple(self._known[name]["parts"]))
        made = make()
        if made.is_finite:
            self._known[name] = {"value": made.value, "parts": list(made.parts)}
            if self._folder is not None:
                write_json(self._folder / "scores.json", self._known)
        return made

    def listen(self, view: View, wants: frozenset[str], progress: bool) -> View:
        """The view with these signals, measured where they are not known."""
        file = None if self._folder is None else self._folder / "stats.safetensors"
        if file is None or not wants or (view.stats is not None and wants <= view.stats.want):
            return view.listen(wants, progress=progress)
        with suppress(FileError):
            found = Stats.load(file)
            if wants <= found.want:
                return replace(view, stats=found)
        view = view.listen(wants, progress=progress)
        assert view.stats is not None
        view.stats.save(file)
        return view


def _digest(plan: Plan) -> str:
    return hashlib.sha256(json.dumps(plan.to_json()["edits"]).encode()).hexdigest()[:24]


def _line(told: Tolerance, one: Attempt) -> str:
    """An attempt, for people who wait."""
    if one.reason or one.lost is None:
        return f"  keep {one.keep:.4g}: {one.reason}"
    where = "within" if one.is_inside else "beyond"
    return (
        f"  keep {one.keep:.4g}: {quality(told, one.quality)}, lost {told.tell(one.lost.value)}, {where} the tolerance"
    )


def _advise(method: Method, search: AmountSearch) -> str:
    """That nothing was found, and what may help."""
    nearest = max((one for one in search.path if one.lost is not None), key=lambda one: one.keep, default=None)
    if nearest is None or nearest.lost is None:
        reached = f"Nothing that {method!r} was asked for could be judged: {search.path[-1].reason}"
    else:
        told, lost = search.tolerance, nearest.lost
        interval = f"{100 * lost.low:.2f} to {100 * lost.high:.2f}"
        reached = (
            f"The largest tried, {with_amount(method, nearest.keep)!r}, loses {told.tell(lost.value)} ({interval})"
        )
    return (
        f"{verdict(search)} {reached}. Only the dense network is left: raise the tolerance, give refit=True, more "
        "samples, or another method."
    )


def _say_nothing(line: str) -> None:
    """Stand in where nobody listens."""
