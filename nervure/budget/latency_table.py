"""What a network cut in any way will take on one engine of one machine: predicted from what was timed there once.

Time is a sum over the network's operations. Operations of one *family* (the same kind on the same picture, with the
same kernel) cost alike: each so much for being called, for the width of what it reads and writes, for its products, for
its products with every width rounded up to the engine's step, since engines compute whole registers, and for those of
an operation whose output is no multiple of the engine's block, since fast kernels want whole blocks. How much of each
is fitted, none below 0, to whole networks that were cut at random and timed against the dense one. So among sizes that
are multiples of the block, a network that keeps more is never predicted to be faster. See docs/decisions for how well
that predicts, and what was tried.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple, final

import msgspec
import numpy as np

from nervure.core.check import checked
from nervure.core.documents import open_document
from nervure.core.renamed import old_method
from nervure.core.schema import Count, NotNegative, Size, convert
from nervure.errors import PlanError
from nervure.graph.types import Graph
from nervure.plan import Plan

STEPS = (1, 4, 8, 16, 32)
"""Steps that are tried: what predicts best what was not fitted is taken."""
BLOCKS = (1, 8, 16)
"""Blocks that are tried, likewise; 1: no width is better than others."""
FOLDS = 5
DENSE_WEIGHT = 3.0
"""How many samples the dense network, which all others are compared with, counts for."""
RIDGE = 1e-2
TINY = 1e-9


class Rates(NamedTuple):
    """What one operation of a family costs, as shares of the dense network's time.

    Attributes:
        stairs: for each product, every width rounded up to the step.
        work: for each product of widths as they are.
        first: for each unit along its first axis.
        second: for each unit along its second axis.
        call: for being there at all.
        ragged: for each product, where the width of the output is no multiple of the block.
    """

    stairs: NotNegative = 0.0
    work: NotNegative = 0.0
    first: NotNegative = 0.0
    second: NotNegative = 0.0
    call: NotNegative = 0.0
    ragged: NotNegative = 0.0


@final
@dataclass(frozen=True, slots=True)
class Sample:
    """A network that was timed: units that groups keep (others keep all), blocks that are gone, share of the time."""

    sizes: Mapping[str, Count]
    drops: tuple[str, ...]
    ratio: NotNegative

    @staticmethod
    def of(plan: Plan, ratio: float) -> "Sample":
        """The sample that timing ``plan`` gave."""
        return Sample(sizes_of(plan), tuple(drop.block for drop in plan.drops), ratio)


@final
@dataclass(frozen=True, eq=False)
class LatencyTally:
    """How much of each kind of work a graph does, family by family.

    Attributes:
        families: their names, in the order of the graph.
        family: of each operation, a place in ``families``. Shape [operations].
        axes: of each operation, places in ``graph.axes``; one more stands for a width of 1. Shape [operations, rank].
        layers: of each operation, the name of its module.
        sizes: widths of the whole network, and the 1 above. Shape [axes + 1].
        step: of the engine.
        block: of its fast kernels.
    """

    families: tuple[str, ...]
    family: np.ndarray
    axes: np.ndarray
    layers: tuple[str, ...]
    sizes: np.ndarray
    step: int
    block: int = 1

    @staticmethod
    def of(graph: Graph, step: int, block: int = 1) -> "LatencyTally":
        """Read ``graph``."""
        names = [f"{w.op} {w.fixed} {len(w.axes)}" for w in graph.work]
        families = tuple(dict.fromkeys(names))
        rank, one = max((len(w.axes) for w in graph.work), default=0), len(graph.axes)
        axes = [[*w.axes, *[one] * (max(rank, 2) - len(w.axes))] for w in graph.work]
        return LatencyTally(
            families,
            np.array([families.index(name) for name in names], dtype=np.int64),
            np.array(axes, dtype=np.int64).reshape(len(names), max(rank, 2)),
            tuple(w.layer for w in graph.work),
            np.array([axis.size for axis in graph.axes] + [1], dtype=np.int64),
            step,
            block,
        )

    def present(self, graph: Graph, drops: Iterable[str]) -> np.ndarray:
        """Which operations are left without these blocks. Boolean [operations]."""
        gone = tuple(f"{module}." for name in drops for module in graph.block(name).modules)
        return np.array([not f"{layer}.".startswith(gone) for layer in self.layers], dtype=bool)

    def __call__(self, alive: np.ndarray, present: np.ndarray | None = None) -> np.ndarray:
        """Amounts that :class:`Rates` are for, and a 1 for what never changes.

        Args:
            alive: survivors along each axis and a 1. Shape [..., axes + 1].
            present: which operations there are. Boolean [operations]; None: all.

        Returns:
            Shape [..., families * 6 + 1].
        """
        return self._sum_rows(alive, present, ragged=alive[..., self.axes[:, 0]] % self.block != 0)

    @cached_property
    def most(self) -> np.ndarray:
        """What the dense network could come to at most, were all its widths ragged. Shape [families * 6 + 1]."""
        return self._sum_rows(self.sizes, None, ragged=np.ones(len(self.axes), dtype=bool))

    def _sum_rows(self, alive: np.ndarray, present: np.ndarray | None, ragged: np.ndarray) -> np.ndarray:
        widths = alive[..., self.axes].astype(np.float64)
        # Widths that never reached a step (three colours, ten classes) do not begin to cost one.
        sizes = self.sizes[self.axes]
        stairs = np.where(sizes >= self.step, np.ceil(widths / self.step) * self.step, widths)
        work, ones = widths.prod(-1), np.ones(widths.shape[:-1])
        slower = work * (ragged & (sizes[:, 0] >= self.block))
        each = np.stack([stairs.prod(-1), work, widths[..., 0], widths[..., 1], ones, slower], -1)
        # An operation without anything to do is not called.
        each *= (work > 0)[..., None]
        if present is not None:
            each *= present[:, None]
        summed = np.zeros((*alive.shape[:-1], len(self.families), len(Rates._fields)))
        for place in range(len(self.families)):
            summed[..., place, :] = each[..., self.family == place, :].sum(-2)
        flat = summed.reshape(*alive.shape[:-1], -1)
        return np.concatenate([flat, np.ones((*alive.shape[:-1], 1))], -1)


@final
@dataclass(frozen=True)
class LatencyTable:
    """Times of one network on one engine of one machine, and what they say of any plan for it.

    Attributes:
        key: what was timed: ``engine``, ``threads``, ``batch``, ``network``, ``machine`` and versions, as text.
        dense: seconds of a forward pass of the dense network.
        step: widths cost as much as the next multiple of it.
        block: widths that are multiples of it have faster kernels; 1: none has.
        rates: by family of operations.
        rest: share of the dense network's time that no plan changes.
        samples: the networks that were timed to fit the rates.
        checks: plans that were timed later; nothing is fitted to them.
        error: median relative error when samples are predicted by the others.
        worst: the largest of these errors.
    """

    key: Mapping[str, str]
    dense: NotNegative
    step: Size
    rates: Mapping[str, Rates]
    rest: NotNegative = 0.0
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    checks: tuple[Sample, ...] = field(default=(), repr=False)
    error: NotNegative = 0.0
    worst: NotNegative = 0.0
    block: Size = 1

    @property
    def engine(self) -> str:
        """The engine that was timed."""
        return self.key.get("engine", "")

    @checked
    def predict(self, graph: Graph, plan: Plan) -> float:
        """Seconds that one forward pass will take when ``plan`` is carried out on the network of ``graph``.

        Masks change nothing, links are not counted.

        Raises:
            PlanError: the table is of another network, or the plan does not fit ``graph``.
        """
        clock, sample = self.clock(graph), Sample.of(plan, 0.0)
        keeps = {cut.group: cut.keep.tensor().numpy() for cut in plan.cuts}
        return self.dense * clock.ratio(_alive(graph, sample, keeps), clock.tally.present(graph, sample.drops))

    @checked
    def clock(self, graph: Graph) -> "Clock":
        """This table as a function of the survivors of ``graph``; raises PlanError where it is of another network."""
        tally = LatencyTally.of(graph, self.step, self.block)
        unknown = [name for name in tally.families if name not in self.rates]
        if unknown:
            raise PlanError(
                f"this table of latencies is of another network, or another size of input: it has no times for "
                f"{unknown[0]!r}. Measure one with nervure.latency_table(model, example, engine={self.engine!r})."
            )
        clock = Clock(tally, np.array([*(r for name in tally.families for r in self.rates[name]), self.rest]))
        if not 0 < clock.whole < np.inf:
            raise PlanError(f"this table of latencies says that the dense network takes {clock.whole} of its own time.")
        return clock

    @checked
    def measured_share(self, plan: Plan) -> float | None:
        """The share of the dense network's time that ``plan`` took when it was timed; None where it was not."""
        sizes, drops = sizes_of(plan), tuple(drop.block for drop in plan.drops)
        return next((s.ratio for s in self.checks if (s.sizes, s.drops) == (sizes, drops)), None)

    checked = old_method("checked", "measured_share")

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back to an equal table."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "LatencyTable":
        """Read what :meth:`to_json` wrote; raises :class:`FileError` on anything else."""
        what = "this table of latencies"
        return convert(open_document(data, what), LatencyTable, what)


@final
@dataclass(frozen=True, eq=False)
class Clock:
    """A table bound to a graph: what survives in, share of the dense network's time out.

    Attributes:
        tally: counts what a network does.
        rates: what each of these counts costs. Shape [families * 6 + 1].
    """

    tally: LatencyTally
    rates: np.ndarray

    @cached_property
    def whole(self) -> float:
        """What the dense network comes to."""
        return float(self.tally(self.tally.sizes) @ self.rates)

    def ratio(self, alive: np.ndarray, present: np.ndarray | None = None) -> float:
        """The share of the dense network's time; ``alive`` [axes + 1], ``present`` [operations]."""
        return float(self.tally(alive, present) @ self.rates / self.whole)


def fit_table(graph: Graph, key: Mapping[str, str], dense: float, samples: Sequence[Sample]) -> LatencyTable:
    """The table that explains ``samples`` best; its step and block are those whose fits predict best what is unseen.

    Args:
        graph: of the network that was timed.
        key: what was timed.
        dense: seconds of the dense network.
        samples: networks that were timed against it.
    """
    alive = np.stack([_alive(graph, s, _first(graph, s.sizes)) for s in samples])
    ratios = np.array([s.ratio for s in samples])
    found = []
    for step, block in product(STEPS, BLOCKS):
        tally = LatencyTally.of(graph, step, block)
        rows = [tally(a, tally.present(graph, s.drops)) for a, s in zip(alive, samples, strict=True)]
        design = np.stack(rows)
        errors = _unseen_errors(design, ratios, tally)
        found.append((float(np.median(errors)), float(errors.max()), step, block, design))
    error, worst, step, block, design = min(found, key=lambda f: (f[0], f[2], f[3]))
    tally = LatencyTally.of(graph, step, block)
    rates = _fit(design, ratios, tally)
    width = len(Rates._fields)
    by_family = {name: Rates(*map(float, rates[i * width : (i + 1) * width])) for i, name in enumerate(tally.families)}
    return LatencyTable(key, dense, step, by_family, float(rates[-1]), tuple(samples), (), error, worst, block)


def sizes_of(plan: Plan) -> dict[str, int]:
    """How many units the groups that ``plan`` cuts keep."""
    return {cut.group: cut.keep.count for cut in plan.cuts}


def nonnegative(design: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The x of least squared error of ``design @ x`` with no entry below 0.

    Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23.

    Args:
        design: shape [equations, unknowns].
        target: shape [equations].
    """
    x = np.zeros(design.shape[1])
    free = np.zeros(len(x), dtype=bool)
    for _ in range(3 * len(x)):
        slope = np.where(free, -np.inf, design.T @ (target - design @ x))
        best = int(slope.argmax())
        if slope[best] <= TINY:
            break
        free[best] = True
        x, free = _solve_free(design, target, x, free)
    return x


def _solve_free(
    design: np.ndarray, target: np.ndarray, x: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Solve for the free unknowns; those that would go below 0 stop there and are free no more."""
    while free.any():
        solved = np.zeros_like(x)
        solved[free] = np.linalg.lstsq(design[:, free], target, rcond=None)[0]
        below = free & (solved <= 0)
        if not below.any():
            return solved, free
        share = (x[below] / np.maximum(x[below] - solved[below], TINY)).min()
        x = np.maximum(x + share * (solved - x), 0)
        free = free & ~(below & (x <= TINY))
        x = np.where(free, x, 0)
    return np.zeros_like(x), free


def _fit(design: np.ndarray, ratios: np.ndarray, tally: LatencyTally) -> np.ndarray:
    """Rates of least relative error. Shape [families * 6 + 1]."""
    # In shares of what the dense network does, all unknowns are of one size and one ridge suits them.
    scale = np.maximum(tally.most, TINY)
    rows = design / scale / ratios[:, None]
    dense = DENSE_WEIGHT * (tally(tally.sizes) / scale)[None]
    ridge = np.sqrt(RIDGE) * np.eye(len(scale))
    target = np.concatenate([np.ones(len(rows)), [DENSE_WEIGHT], np.zeros(len(scale))])
    return np.asarray(nonnegative(np.concatenate([rows, dense, ridge]), target) / scale)


def _unseen_errors(design: np.ndarray, ratios: np.ndarray, tally: LatencyTally) -> np.ndarray:
    """Relative errors of samples predicted from the other folds. Shape [samples]."""
    fold = np.arange(len(ratios)) % min(FOLDS, len(ratios))
    errors = np.zeros(len(ratios))
    for one in range(int(fold.max()) + 1):
        left = fold == one
        # A single sample has no others: the dense network alone is fitted.
        rates = _fit(design[~left], ratios[~left], tally)
        errors[left] = np.abs(design[left] @ rates - ratios[left]) / ratios[left]
    return errors


def _first(graph: Graph, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Groups that keep their first units; which ones they are makes no difference to time."""
    return {name: np.arange(graph[name].size) < size for name, size in sizes.items()}


def _alive(graph: Graph, sample: Sample, keeps: Mapping[str, np.ndarray]) -> np.ndarray:
    """Survivors along each axis, and a 1. Shape [axes + 1]."""
    left = {graph.block(name).group for name in sample.drops} - {""}
    gone = {name: np.zeros(graph[name].size, dtype=bool) for name in left}
    return np.append(graph.survivors({**keeps, **gone}), 1)
