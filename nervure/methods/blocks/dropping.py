"""What methods share that score removable blocks and drop the lowest: which blocks, how many, and which of them."""

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, final

import torch

from nervure.budget import BUDGETS
from nervure.budget.clusters import line_clusters
from nervure.budget.knapsack import frontier
from nervure.core.check import Checked
from nervure.core.markup import listing
from nervure.core.schema import Count, Density, Part, Rounds, Seed, Size
from nervure.engines import EngineName
from nervure.errors import ArgumentError, BudgetError, ScoreError
from nervure.graph.types import Block, Graph
from nervure.methods.base import Folder, Inquiry, View
from nervure.methods.blocks.evaluator import BlockEvaluator, BlockRecord, plan_of
from nervure.methods.channels.timed import Target, goal_of, require_target
from nervure.methods.evidence_folder import answer_folder
from nervure.plan import Drop, Plan
from nervure.surgery.price import memory_left, price

BlockBudget: TypeAlias = Literal["params", "macs", "blocks", "latency", "memory"]
Policy: TypeAlias = Literal["knapsack", "rank", "ckmeans"]
Granularity: TypeAlias = Literal["fine", "whole"]

RESAMPLES = 200


@final
@dataclass(frozen=True, slots=True)
class BlockScore:
    """Score of one block: higher stays.

    Attributes:
        block: its name.
        mean: the score, averaged over the rounds.
        error: standard error of the mean, from the spread between rounds; NaN where there is only one round.
        rounds: the score of each round.
    """

    block: str
    mean: float
    error: float
    rounds: tuple[float, ...]

    @staticmethod
    def of(block: str, rounds: Iterable[float]) -> "BlockScore":
        """Put together what the rounds gave."""
        values = tuple(float(r) for r in rounds)
        spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return BlockScore(block, statistics.fmean(values), spread, values)


@dataclass(frozen=True, slots=True)
class Dropping(Checked, ABC):
    """Drop the blocks with the lowest scores.

    How many leave is said by ``tolerance`` where it is given, else by ``drop`` where that is given, else by ``keep``.

    Attributes:
        keep: the fraction of the budget that stays, in (0, 1].
        budget: ``"params"``, ``"macs"``, ``"blocks"`` (their number), ``"latency"`` (measured on the example) or
            ``"memory"`` (at most; activations count as if the blocks were there).
        drop: exactly so many blocks leave.
        tolerance: as much leaves as costs at most this share of accuracy, in [0, 1), before any training: judged
            on every tenth batch of the data, batch norms recalibrated on the others, by bisection. Where labels are no
            class numbers, the share of the outputs' variance is meant.
        policy: ``"knapsack"`` (of all selections that meet the budget, the one with the lowest sum of scores),
            ``"rank"`` (the lowest scores leave, whatever they save) or ``"ckmeans"`` (blocks are clustered by score
            into as many as stay, and each cluster keeps one). Where blocks are counted, a knapsack is a rank.
        back: of equal scores, and of a cluster, the block nearest to the output stays, not the one nearest to the
            input.
        granularity: where blocks lie inside others, ``"fine"`` drops inner ones (attention or MLP alone), ``"whole"``
            outer ones (transformer blocks).
        stages: measure again after each of so many steps towards the goal. Scores of answers are compared with those of
            the whole model at every stage.
        recalibrate: batches on which batch norms are recalibrated before a smaller model is measured or judged.
        seed: added to the seed of the view where lots are drawn.
        output: which of several outputs is meant, by its key or place; empty: ``"logits"``, or the first.
        engine: what latencies are timed on, see :func:`nervure.engines.runner`.
        latency: the latency to meet: a share of the whole network's in (0, 1], or a time like ``"3 ms"``; None: the
            share ``keep``.
        memory: the memory to meet: a share of the whole network's in (0, 1], or bytes, also like ``"200 MB"``; None:
            the share ``keep``.
    """

    keep: Density = 0.5
    budget: BlockBudget = "params"
    drop: Count | None = None
    tolerance: Part | None = None
    policy: Policy = "knapsack"
    back: bool = False
    granularity: Granularity = "fine"
    stages: Rounds = 1
    recalibrate: Size = 20
    seed: Seed = 0
    output: str = ""
    engine: EngineName = field(default="eager", kw_only=True)
    latency: Target | None = field(default=None, kw_only=True)
    memory: Target | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        for name, target in (("latency", self.latency), ("memory", self.memory)):
            require_target(target, self.budget if self.budget == name else "", name)
            if target is not None and (self.drop is not None or self.tolerance is not None):
                raise ArgumentError(f"{name}={target!r}, and drop= or tolerance= too: say it in one way.")
        self.check()

    @property
    @abstractmethod
    def wants(self) -> frozenset[str]:
        """The evidence that scores are made from."""

    def check(self) -> None:
        """Complain about hyper-parameters of one's own that do not go together."""

    @abstractmethod
    def block_scores(self, view: View, blocks: Sequence[Block], gone: tuple[str, ...] = ()) -> dict[str, BlockScore]:
        """The score of each of ``blocks`` where those in ``gone`` have left.

        ``view.stats`` holds what ``wants`` says, of the model without those in ``gone``; all else is the whole model's.
        """

    def scores(self, view: View) -> dict[str, BlockScore]:
        """The score of every block that could be dropped.

        Raises:
            BudgetError: there is no such block; the message says why for each.
            DataError: evidence is missing and there are no data to gather it from.
            ScoreError: the evidence tells nothing.
        """
        return self._scores_without(view, self.judge(view), droppable(view.graph, self.granularity), ())

    @property
    def asks(self) -> tuple[Inquiry[Any], ...]:
        """What becomes of the model without some of its blocks."""
        return () if self._is_whole else (self._trials,)

    @property
    def _trials(self) -> "BlockTrials":
        """What is asked, whatever share is to stay."""
        return BlockTrials(replace(self, keep=1.0), self)

    def plan(self, view: View) -> Plan:
        """Drop blocks; raises BudgetError, DataError or ScoreError where that cannot be done."""
        asked = self._options()
        if self._is_whole:
            return Plan((), view.graph.fingerprint, asked, {"keep": 1.0, "blocks": 0})
        blocks, judge = droppable(view.graph, self.granularity), self.judge(view)
        savings = self._savings(view, judge, blocks)
        removed: tuple[str, ...] = ()
        scores: dict[str, BlockScore] = {}
        for stage in range(1, self.stages + 1):
            left = [b for b in blocks if b.name not in removed]
            fresh = self._scores_without(view, judge, left, removed)
            scores |= fresh
            offered = self.removals([fresh[b.name].mean for b in left], left, savings)
            sets = [removed + more for more in offered]
            removed = self._first_enough(view, judge, sets, savings, len(blocks), stage / self.stages)
        plan = Plan(tuple(Drop(b.name) for b in blocks if b.name in removed), view.graph.fingerprint, asked)
        return replace(plan, reached=self._quality_reached(view, judge, plan, blocks, scores))

    def removals(
        self, scores: Sequence[float], blocks: Sequence[Block], savings: Mapping[str, float] | None = None
    ) -> list[tuple[str, ...]]:
        """Which blocks may leave, from none to all; ``savings``: what each saves, for a knapsack (else one each)."""
        names = [b.name for b in blocks]
        places = list(range(len(names)))
        if self.policy == "knapsack" and savings:
            order = places[::-1] if self.back else places
            found = frontier([scores[i] for i in order], [savings[names[i]] for i in order])
            return [tuple(names[i] for i in sorted(order[place] for place in s)) for s in found]
        if self.policy != "ckmeans":
            order = sorted(places, key=lambda i: (scores[i], i if self.back else -i))
            return [tuple(names[i] for i in sorted(order[:k])) for k in range(len(names) + 1)]
        stays = max if self.back else min
        kept = [{stays(c) for c in line_clusters(scores, m)} for m in range(len(names), 0, -1)]
        return [tuple(names[i] for i in places if i not in k) for k in kept] + [tuple(names)]

    def describe(self, view: View) -> str:
        """A table of blocks: score, standard error, and how often each leaves when the rounds are drawn anew.

        A share between 0 and 100 % says that another draw of the data could have decided otherwise. As many blocks
        leave as in the plan, or as much is saved, and the scores are those before any stage.
        """
        if view.answer_to(self._trials) is None:
            view = view.with_answer(self._trials, BlockRecord())
        scores, plan = self.scores(view), self.plan(view)
        blocks, dropped = droppable(view.graph, self.granularity), {d.block for d in plan.drops}
        savings = self._savings(view, self.judge(view), blocks)
        often = self._resample(scores, blocks, savings, dropped, view.seed + self.seed)
        width = max(len(b.name) for b in blocks)
        lines = [f"{'block':<{width}}  {'score':>10}  {'error':>9}  leaves"]
        for b in blocks:
            s = scores[b.name]
            mark = "x" if b.name in dropped else " "
            lines.append(f"{b.name:<{width}}  {s.mean:>10.4g}  {s.error:>9.2g}  {mark} {often[b.name]:>4.0%}")
        lines += [f"{b.name:<{width}}  cannot be dropped: {b.pinned}" for b in view.graph.blocks if b.pinned]
        return listing(lines)

    def _resample(
        self,
        scores: Mapping[str, BlockScore],
        blocks: Sequence[Block],
        savings: Mapping[str, float],
        dropped: Iterable[str],
        seed: int,
    ) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        rounds = torch.tensor([scores[b.name].rounds for b in blocks], dtype=torch.float64)
        counts = dict.fromkeys((b.name for b in blocks), 0)
        each = savings or dict.fromkeys(counts, 1)
        wanted = sum(each[name] for name in dropped) * (1 - 1e-9)
        for _ in range(RESAMPLES):
            drawn = torch.randint(rounds.shape[1], (rounds.shape[1],), generator=generator)
            sets = self.removals(rounds[:, drawn].mean(1).tolist(), blocks, savings)
            for name in next(s for s in sets if sum(each[n] for n in s) >= wanted):
                counts[name] += 1
        return {name: count / RESAMPLES for name, count in counts.items()}

    def judge(self, view: View) -> BlockEvaluator:
        """What asks the model, where an answer was not gathered."""
        return BlockEvaluator(view, self.recalibrate, self.output, self.engine, view.answer_to(self._trials))

    def _scores_without(
        self, view: View, judge: BlockEvaluator, blocks: Sequence[Block], gone: tuple[str, ...]
    ) -> dict[str, BlockScore]:
        """The score of each of ``blocks`` where those in ``gone`` have left."""

        def make() -> dict[str, list[float]]:
            found = self.block_scores(self._view_without(view, judge, gone), blocks, gone)
            _require_finite(found)
            return {name: list(score.rounds) for name, score in found.items()}

        return {name: BlockScore.of(name, rounds) for name, rounds in judge.record.get("scores", gone, make).items()}

    @property
    def _is_whole(self) -> bool:
        """Whether nothing is to leave."""
        return self.drop == 0 or (self.drop is None and self.tolerance is None and self._share == 1)

    def _savings(self, view: View, judge: BlockEvaluator, blocks: Sequence[Block]) -> dict[str, float]:
        """What dropping each block alone saves of the budget; nothing where no knapsack asks, or blocks are counted."""
        if self.policy != "knapsack" or self.drop is not None or self.budget == "blocks":
            return {}
        if self.budget == "latency":
            return judge.savings_of(blocks)
        return {b.name: 1 - _kept_share(view.graph, [b.name], self.budget) for b in blocks}

    def _options(self) -> dict[str, Any]:
        if self.tolerance is not None:
            return {"tolerance": self.tolerance}
        if self.drop is not None:
            return {"drop": self.drop}
        if self.budget == "latency":
            return {"budget": "latency", "engine": self.engine, "target": self._share}
        if self.budget == "memory":
            return {"budget": "memory", "target": self._share}
        return {"budget": self.budget, "keep": self.keep}

    @property
    def _share(self) -> float | str:
        """How much is asked to stay: a share, a time or a size."""
        return next((target for target in (self.latency, self.memory) if target is not None), self.keep)

    def _keep_of(self, view: View, judge: BlockEvaluator) -> float:
        """The share of the budget that is asked to stay."""
        if self.budget == "memory":
            return BUDGETS["memory"].share_of(self._share, memory_left(view.graph, Plan()))
        return goal_of(self.keep, self.latency, judge.seconds()) if isinstance(self._share, str) else self._share

    def _quality_reached(
        self, view: View, judge: BlockEvaluator, plan: Plan, blocks: Sequence[Block], scores: Mapping[str, BlockScore]
    ) -> dict[str, Any]:
        kept = _kept_shares(view.graph, plan) | {"blocks": 1 - len(plan) / len(blocks)}
        if self.budget == "latency" and plan:
            kept["latency"] = judge.latency(tuple(drop.block for drop in plan.drops))
        if self.budget == "memory":
            kept["memory"] = _kept_share(view.graph, [drop.block for drop in plan.drops], "memory")
        means = {name: float(f"{s.mean:.6g}") for name, s in scores.items()}
        return {"keep": kept.get(self.budget, kept["macs"]), "blocks": len(plan), "scores": means}

    def _view_without(self, view: View, judge: BlockEvaluator, gone: tuple[str, ...]) -> View:
        """The view with evidence of the model without the blocks that have left."""
        if not gone:
            return view.listen(self.wants)
        return replace(view, stats=judge.measured_without(gone, self.wants)) if self.wants else view

    def _first_enough(
        self,
        view: View,
        judge: BlockEvaluator,
        sets: Sequence[tuple[str, ...]],
        savings: Mapping[str, float],
        total: int,
        share: float,
    ) -> tuple[str, ...]:
        """The smallest removal that meets the goal, or a ``share`` of the way to it; the largest that is tolerated."""
        if self.tolerance is not None:
            allowed = judge.quality(()) - self.tolerance * share
            index = _bisect(len(sets), lambda k: judge.quality(sets[k]) < allowed - 1e-9)
            return sets[max(index - 1, 0)]
        wanted = self.drop if self.drop is not None else total - round(self.keep * total)
        if self.drop is not None or self.budget == "blocks":
            if wanted > total:
                raise BudgetError(f"drop={wanted}: the model has only {total} blocks that can be dropped.")
            return next(s for s in sets if len(s) >= round(wanted * share))
        goal = 1 - (1 - self._keep_of(view, judge)) * share
        if self.budget == "latency":
            index = _bisect(len(sets), lambda k: judge.latency(sets[k]) <= goal)
        else:
            # What blocks save alone adds up to at least what they save together, so the others cannot be enough.
            sets = [s for s in sets if not savings or sum(savings[n] for n in s) >= 1 - goal - 1e-9] or sets[-1:]
            kept = (_kept_share(view.graph, s, self.budget) for s in sets)
            index = next((k for k, cost in enumerate(kept) if cost <= goal), len(sets))
        if index == len(sets):
            least = (
                judge.latency(sets[-1]) if self.budget == "latency" else _kept_share(view.graph, sets[-1], self.budget)
            )
            asked = f"keep={self.keep}" if self._share is self.keep else f"{self.budget}={self._share!r}"
            raise BudgetError(
                f"{asked} of {self.budget} cannot be met: without all {total} blocks {least:.3f} is left. "
                f"Raise {asked.partition('=')[0]}, or cut channels too.",
                keep=min(1.0, math.ceil(least * 1000) / 1000),
            )
        return sets[index]


@final
@dataclass(frozen=True, slots=True)
class BlockTrials:
    """What a method that drops blocks asks of the model without some of them; the next question follows from the last.

    Methods that differ in their share alone have one record: what is answered names the blocks that are left out. Times
    are of this machine, and not kept in a folder.

    Attributes:
        question: the method, of which everything stays.
        method: the method; not told apart by it.
    """

    question: Dropping
    method: Dropping = field(compare=False, repr=False)

    def of(self, view: View, folder: Folder = None) -> BlockRecord:
        """The answers, all that a plan goes by; raises as :meth:`Dropping.plan`."""
        place = None if self.method.budget == "latency" else answer_folder(folder, view, self)
        record = BlockRecord(place and place / "blocks.safetensors")
        self.method.plan(view.with_answer(self, record))
        return record


def droppable(graph: Graph, granularity: Granularity) -> tuple[Block, ...]:
    """The blocks that can be dropped, none inside another, in running order.

    Raises:
        BudgetError: there is none; the message says why for each block there is.
    """
    free = [b for b in graph.blocks if not b.pinned]
    if granularity == "fine":
        found = tuple(b for b in free if not any(_is_inside(o, b) for o in free))
    else:
        found = tuple(b for b in free if not any(_is_inside(b, o) for o in free))
    if not found:
        reasons = "; ".join(f"{b.name}: {b.pinned}" for b in graph.blocks) or "no residual or dense block was found"
        raise BudgetError(f"the model has no block that can be dropped ({reasons}).")
    return found


def _is_inside(inner: Block, outer: Block) -> bool:
    """Whether every module of ``inner`` lies in one of ``outer``, and not the other way round."""
    return inner.name != outer.name and _covers(outer, inner) and not _covers(inner, outer)


def _covers(outer: Block, inner: Block) -> bool:
    roofs = tuple(f"{m}." for m in outer.modules)
    return all(f"{m}.".startswith(roofs) for m in inner.modules)


def _kept_share(graph: Graph, names: Iterable[str], budget: str) -> float:
    plan = plan_of(graph, names)
    if budget == "memory":
        return memory_left(graph, plan) / memory_left(graph, Plan())
    return _kept_shares(graph, plan)[budget]


def _kept_shares(graph: Graph, plan: Plan) -> dict[str, float]:
    """What a plan leaves of everything that it is known for without an engine."""
    left, whole = price(graph, plan), price(graph, Plan())
    return {"params": left.params / max(whole.params, 1), "macs": left.macs / max(whole.macs, 1)}


def _bisect(count: int, holds: Callable[[int], bool]) -> int:
    """The first of 0 .. ``count`` - 1 for which ``holds``, given that it goes on to hold; ``count`` if for none."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _require_finite(scores: Mapping[str, BlockScore]) -> None:
    for name, score in scores.items():
        if not math.isfinite(score.mean):
            raise ScoreError(f"the score of block {name!r} is {score.mean}. The evidence is broken.")
