"""SNACS: slimming by adaptive connectivity scores.

Ganesh, Blanchard, Corso and Yasaei Sekeh, "Slimming Neural Networks Using Adaptive Connectivity Scores" (arXiv
2006.12463; IEEE Transactions on Neural Networks and Learning Systems, 2024). A connection is scored by how much its
child depends on its parent given all other parents, times its weight. Each layer has an upper limit, found
automatically; the units that the next layers lean on most are protected; then one threshold over all layers decides,
in a single shot.

Differs from the paper, each with its reason in ``docs/methods/snacs.md``: parents are what enters a layer, dependence
is measured on patches, budgets are met exactly, no output is ever disconnected, and whole units can leave
instead of kernels. ``paper=True`` takes the first two back, and the probe, the signed weights and the draw.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, final

import torch
from torch import Tensor

from nervure.budget import BUDGETS, Budget, allocate, find_budget
from nervure.budget.connection_masks import LayerBudget, allocate_connections, least
from nervure.budget.kinds import OwnBudget, is_known
from nervure.budget.latency_table import LatencyTable
from nervure.core.annotations import Among, PathText
from nervure.core.check import Checked, require_choice
from nervure.core.schema import Count, Density, Share, Size
from nervure.dependence.estimator_options import Estimator
from nervure.engines import EngineName
from nervure.errors import ArgumentError, BudgetError, NervureWarning
from nervure.graph.products import describe_products
from nervure.methods.base import Inquiry, View
from nervure.methods.channels.compensated import LIMITS, plan_by_curves
from nervure.methods.channels.compensation import CURVE_SLACK, CompensationSurvey, Currency, removable
from nervure.methods.channels.data_views import ViewsLike, take_views, views_of
from nervure.methods.channels.timed import Target, for_engine, is_left_to_limits, plan_within, timed_inquiries
from nervure.methods.snacs.limits import GRID, Limit
from nervure.methods.snacs.patches import PatchSurvey
from nervure.methods.snacs.survey import ConnectivityEvidence, EvidenceOf, RankedBy, SurveyOptions
from nervure.plan import Keep, Mask, Plan
from nervure.scores.bundles import Layer, layers
from nervure.scores.common import match_ranks
from nervure.scores.parent_dependence import lifelines

Granularity: TypeAlias = Literal["kernels", "filters"]
Sizes: TypeAlias = Literal["magnitude", "threshold"]
PRICES: Mapping[str, tuple[str, ...]] = {
    "kernels": ("weights", "connections", "params", "macs"),
    "filters": ("macs", *(name for name in BUDGETS if name != "macs")),
}
"""What can be counted where connections are masked, and where units are cut; the first is the default."""
Price: TypeAlias = Annotated[str, Among(tuple(dict.fromkeys(("connections", "weights", *BUDGETS))))] | OwnBudget
ROUNDS = 12
HAIR = 1e-9
"""0.3 x 10 is 2.9999 in binary."""
SLACK, PROBE_SLACK, MOST_SLACK = 0.15, 0.7, 0.5
PROTECTION = 0.5
"""How much of what stays may be there because it is protected."""
PAPER_PER_CLASS, PAPER_SAMPLES = 250, 2500


@final
@dataclass(frozen=True, slots=True)
class SNACS(Checked):
    """Keep the connections, or the filters, that children depend on.

    Attributes:
        keep: the fraction of the budget that stays, in (0, 1]. None: limits decide, and each group, or layer, is cut to
            its own; ``budget`` has no say then.
        budget: what is counted. For kernels ``"weights"`` (those of layers that can be pruned, the default),
            ``"connections"`` (pairs of parent and child), ``"params"`` or ``"macs"`` (of the whole network, without
            what is masked); for filters ``"macs"`` (the default), ``"params"``, ``"channels"``, ``"latency"`` (timed
            on the engine, on the example), ``"memory"`` (of a forward pass on the example), or a
            :class:`nervure.budget.Budget` of your own.
        granularity: ``"filters"`` (the default) cuts whole units, which needs no sparse kernels to be fast;
            ``"kernels"`` masks connections, as in the paper (the default with ``paper``, and where ``budget`` counts
            connections or weights).
        estimator: of the dependence, see :func:`nervure.dependence.conditional_connectivity`.
        limits: whether to find an upper limit for each layer; needs labels, or a task that has a loss. None: not where
            units are ranked compensated, whose curves are limits already.
        probe: whether limits are found by a probe on what each layer puts out, as in the paper. If not, the network is
            asked what pruning each group alone costs it, eight times for each. None: a probe for kernels, the network
            for filters.
        slack: how much of what the network knows a layer alone may cost before its limit is reached, in [0, 1]; 1: no
            limit. Where the budget takes more, all layers get as much slack as it takes. With ``probe`` it is the share
            of the range of the layer's own quality. Where the curves of compensation are the limits (``keep=None``) it
            is that of :class:`nervure.methods.Compensated`. None: 0.15, with ``probe`` 0.7, of curves 0.1.
        protect: whether to protect the most sensitive units. None: as ``limits``.
        propagated: whether sensitivity flows back from the outputs instead of from the next layer alone.
        samples: how many samples at most are measured.
        per_class: where above 0, at most so many of each class; needs labels.
        minimum: units that every group keeps (filters).
        multiple: group sizes are rounded up to a multiple of this (filters). None: 16 for an engine; else what fast
            kernels take, 8 in wide groups (see :func:`nervure.budget.allocate`), but 1 where channels are
            counted, limits decide or ``paper=True``.
        hears: whether a filter is scored by what it hears itself too, times what its readers need (filters).
        ranking: by what they are ranked within the limits: ``"compensated"`` (filters, their default), what readers
            lose once the other units have taken over, see :class:`nervure.methods.Compensated`; ``"connectivity"``
            (the default for kernels), how much a child depends on a parent given all others; ``"dependence"``, that
            of means, without the weight; or ``"magnitude"`` (filters only).
        paper: as published where that is not the best that is known: connections between what layers put out
            themselves, the hash estimator with its flaws, signed weights rescaled over the network, a support vector
            machine that is tested where it was fitted (scikit-learn), 250 samples of each class.
        cache: a folder where what was measured is kept, so that the next plan, for any budget, needs no measuring.
        engine: what the plan is made for, see :func:`nervure.engines.runner` (filters); with ``"latency"`` eager where
            none is named.
        target: the latency or memory to meet: a share of the dense network's in (0, 1], or an amount like ``"3 ms"`` or
            ``"200 MB"`` (above 1: bytes); None: the share ``keep``.
        of: what connectivity is measured on: ``"patches"``, what really enters a layer, position by position: the
            share of a child's variance that is lost without the parent and with all others taking over; or ``"means"``
            over positions, as in the paper: dependence, by the ``estimator``, times weight. None: patches, where
            ``paper`` and ``ranking`` do not ask for means.
        sizes: how much of each layer stays (kernels): as much as where the connections of largest weight of the whole
            network stay (``"magnitude"``), or what one threshold over all scores leaves (``"threshold"``, as in the
            paper and with ``paper``).
        views: another view of the data, for which the order has to hold as well, see
            :class:`nervure.methods.Compensated` (``ranking="compensated"``).
    """

    wants: ClassVar[frozenset[str]] = frozenset()
    has_limits: ClassVar[bool] = True

    keep: Density | None = 0.5
    budget: Price | None = None
    granularity: Granularity | None = None
    estimator: Estimator = "residual"
    limits: bool | None = None
    probe: bool | None = None
    slack: Share | None = None
    protect: bool | None = None
    propagated: bool = False
    samples: Size = 2048
    per_class: Count = 0
    minimum: Size = 1
    multiple: Size | None = None
    paper: bool = False
    hears: bool = False
    ranking: RankedBy | None = None
    cache: PathText | None = None
    engine: EngineName | None = None
    target: Target | None = None
    of: EvidenceOf | None = None
    sizes: Sizes | None = None
    views: ViewsLike | None = None

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        self._fill_choices()
        budget = self._require_budget()
        if self.granularity == "kernels" and self.engine is not None:
            raise ArgumentError(f"engine={self.engine!r} is for granularity='filters': masks make no engine faster.")
        engine, multiple = for_engine(budget, self.engine, self.target, self.multiple)
        if self.ranking == "magnitude" and self.granularity == "kernels":
            raise ArgumentError("ranking='magnitude' ranks filters: with granularity='kernels', take MagnitudeMasks.")
        if self.ranking == "compensated" and self.granularity == "kernels":
            raise ArgumentError("ranking='compensated' ranks filters: with granularity='kernels', leave it out.")
        if self.ranking != "connectivity" and self.paper:
            raise ArgumentError(f"paper=True ranks by connectivity: leave out ranking={self.ranking!r}.")
        if self.of == "patches" and (self.paper or self.ranking == "dependence"):
            raise ArgumentError("of='patches' is of ranking='connectivity', and not as published: leave it out.")
        if self.views is not None and self.ranking != "compensated":
            raise ArgumentError(f"views= is of ranking='compensated', and this ranks by {self.ranking}: leave it out.")
        take_views(self)
        if self.paper or self.probe is None:
            object.__setattr__(self, "probe", self.paper or self.granularity == "kernels")
        if self.paper:
            object.__setattr__(self, "estimator", "hash")
            object.__setattr__(self, "per_class", self.per_class or PAPER_PER_CLASS)
            object.__setattr__(self, "samples", max(self.samples, PAPER_SAMPLES))
        object.__setattr__(self, "budget", budget)
        self._fill_slack()
        object.__setattr__(self, "engine", engine)
        object.__setattr__(self, "multiple", multiple)

    def _fill_choices(self) -> None:
        """What was left open, as the other choices have it."""
        counts_kernels = isinstance(self.budget, str) and self.budget in ("weights", "connections")
        granularity = self.granularity or ("kernels" if self.paper or counts_kernels else "filters")
        ranking = self.ranking or ("compensated" if granularity == "filters" and not self.paper else "connectivity")
        is_old = ranking != "compensated"
        means = self.paper or ranking != "connectivity"
        found: Mapping[str, Any] = {
            "granularity": granularity,
            "ranking": ranking,
            "limits": is_old if self.limits is None else self.limits,
            "protect": is_old if self.protect is None else self.protect,
            "of": self.of or ("means" if means else "patches"),
            "sizes": self.sizes or ("threshold" if self.paper else "magnitude"),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def _fill_slack(self) -> None:
        """The slack that was left open, and ArgumentError where nothing says how much stays."""
        own = self._curves is not None and not self.limits
        usual = CURVE_SLACK if own and self._is_left_to_limits else PROBE_SLACK if self.probe else SLACK
        object.__setattr__(self, "slack", usual if self.slack is None else self.slack)
        if self._is_left_to_limits and not own and (self.slack == 1 or not self.limits):
            there = "slack=1" if self.limits else "limits=False"
            raise ArgumentError(
                f"SNACS(keep=None, {there}): nothing says how much stays. Say keep=, the fraction, or leave out "
                f"{there}, so that each layer is cut to its limit."
            )

    @property
    def _is_left_to_limits(self) -> bool:
        return is_left_to_limits(self)

    def plan(self, view: View) -> Plan:
        """Mask connections or cut units.

        Raises:
            DataError: there are no data to measure, or limits are wanted and labels are missing or of no use.
            BudgetError: the budget cannot be met even without limits.
        """
        return self.decide(view, ConnectivityEvidence({}) if self._is_whole else self.evidence(view))

    @property
    def asks(self) -> tuple[Inquiry[Any], ...]:
        """Curves or connectivity, limits and what is protected."""
        return () if self._is_whole else (*self._surveys(), *timed_inquiries(self))

    def _surveys(self) -> tuple[Inquiry[Any], ...]:
        curves = () if self._curves is None else (self._curves,)
        patches = (PatchSurvey(self.samples),) if self.of == "patches" else ()
        return (*curves, *patches, *(() if curves and not self._is_limited else (self._survey(),)))

    @property
    def refits(self) -> bool:
        """Whether the plan counts on a refit."""
        return self.ranking == "compensated"

    @property
    def _curves(self) -> CompensationSurvey | None:
        currency: Currency = "outputs" if self._is_left_to_limits else "answers"
        how = CompensationSurvey(self.samples, currency=currency, views=views_of(self.views))
        return how if self.ranking == "compensated" else None

    @property
    def _is_limited(self) -> bool:
        return bool(self.limits or self.protect)

    def decide(self, view: View, found: ConnectivityEvidence) -> Plan:
        """The plan that follows from what was found; nothing is measured. Raises BudgetError."""
        if self._is_whole:
            return Plan((), view.graph.fingerprint, self._options(), {"keep": 1.0})
        listed = layers(view.graph, view.weights, found.scores, fixed=view.ignored)
        return (self._masks if self.granularity == "kernels" else self._cuts)(view, found, listed)

    def evidence(self, view: View) -> ConnectivityEvidence:
        """What the plan rests on: connectivity, limits and what is protected; from the cache where it is there."""
        if self._curves is None:
            return view.ask(self._survey(), self.cache)
        curves = view.ask(self._curves, self.cache)
        slack = self.slack if self._is_left_to_limits else None
        limits = {name: _limit(costs, slack) for name, costs in curves.costs.items()}
        if not self._is_limited:
            return ConnectivityEvidence({}, limits, {}, curves.skipped, curves.samples)
        found = view.with_answer(self._curves, curves).ask(self._survey(), self.cache)
        return found if self.limits or slack is None else replace(found, limits=limits)

    def _survey(self) -> SurveyOptions:
        names = [o.name for o in fields(SurveyOptions) if o.name not in ("per_unit", "evidence", "curves")]
        options: Mapping[str, Any] = {name: getattr(self, name) for name in names}
        return SurveyOptions(self.granularity == "filters", evidence=self.of, curves=self._curves, **options)  # type: ignore[arg-type]

    @property
    def _is_whole(self) -> bool:
        """Whether everything is asked to stay."""
        return (self.keep if self.target is None else self.target) == 1

    def _require_budget(self) -> str | Budget:
        """What is counted; raises ArgumentError where that cannot be counted at this granularity."""
        choices = PRICES[str(self.granularity)]
        budget = self.budget or choices[0]
        if isinstance(budget, Budget) and budget is BUDGETS.get(budget.name):
            budget = budget.name
        if isinstance(budget, str) and (budget in BUDGETS or not is_known(budget)):
            return require_choice(budget, choices, "budget")
        if self.granularity == "kernels":
            raise ArgumentError(
                f"budget={budget!r} counts whole units: take granularity='filters', or one of {', '.join(choices)}."
            )
        return budget

    def _options(self) -> dict[str, object]:
        budget = self.budget
        named = find_budget(budget).name if budget is not None and is_known(budget) else budget
        said: dict[str, object] = {"budget": named, "keep": self.keep, "granularity": self.granularity}
        return said | {"keep": LIMITS, "slack": self.slack} if self._is_left_to_limits else said

    def _masks(self, view: View, found: ConnectivityEvidence, listed: tuple[Layer, ...]) -> Plan:
        prunable = [layer for layer in listed if layer.is_prunable]
        if not prunable:
            raise BudgetError(
                "no layer has connections that can be pruned: each is the first, has a single parent, or is ignored."
            )
        prices = {layer.tensor: _price(view, layer, self.budget) for layer in prunable}
        whole = sum(int(price.sum()) for price in prices.values())
        total = int(BUDGETS[str(self.budget)].predict(view.graph)) if self.budget in BUDGETS else whole
        ranked, lines = self._as_sized(prunable, found.scores), lifelines(view.graph, listed, found.scores)

        def stalls(raised: float, fixed: Mapping[str, Tensor]) -> dict[str, LayerBudget]:
            return {
                name: LayerBudget(ranked[name], price, fixed[name], self._most(found, name, raised, price.numel()))
                for name, price in prices.items()
            }

        within = least(stalls(0.0, lines)) if self.keep is None else round(self.keep * total) - (total - whole)
        fixed = _affordable(_must_stay(view, found, listed), lines, prices, within)
        budget = least(stalls(0.0, fixed)) if self.keep is None else within
        raised = _least_raise(lambda share: least(stalls(share, fixed)) <= budget)
        masks = allocate_connections(stalls(raised, fixed), budget, str(self.budget))
        edits = [
            Mask(layer.tensor, Keep.of(layer.mask(masks[layer.tensor]).contiguous()))
            for layer in prunable
            if not bool(masks[layer.tensor].all())
        ]
        spent = sum(int(prices[name][mask].sum()) for name, mask in masks.items())
        reached = {
            "keep": (total - whole + spent) / total,
            "connections": sum(int(mask.sum()) for mask in masks.values()),
            **_report_limits(found, raised),
            **_dense(view, {layer.tensor for layer in prunable}),
        }
        return Plan(tuple(edits), view.graph.fingerprint, self._options(), reached)

    def _most(self, found: ConnectivityEvidence, name: str, raised: float, size: int) -> int:
        """How many of a group, or of a layer's connections, may go; none without a limit where limits decide."""
        has_none = self._is_left_to_limits and name not in found.limits
        return 0 if has_none else int((found.upper(name, raised) + HAIR) * size)

    def _as_sized(self, prunable: list[Layer], scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Scores that one threshold over all layers leaves as much of each of as it should."""
        if self.sizes == "threshold":
            return scores
        return {layer.tensor: match_ranks(scores[layer.tensor], layer.strength()) for layer in prunable}

    def _cuts(self, view: View, found: ConnectivityEvidence, listed: tuple[Layer, ...]) -> Plan:
        def plan_of(scores: Mapping[str, Tensor]) -> Plan:
            ranked = {name: _first(values, found.protected.get(name)) for name, values in scores.items()}
            return plan_within(self, view, lambda keep, table: self._cut(view, found, ranked, keep, table))

        if self._curves is None:
            plan = plan_of(self._survey().unit_scores(view, listed, found.scores))
        else:
            curves, budget = view.ask(self._curves, self.cache), self.budget or PRICES["filters"][0]
            plan = plan_by_curves(view, curves, None if self._is_left_to_limits else budget, plan_of)
        return replace(plan, asked={**self._options(), **({"target": self.target} if self.target else {})})

    def _cut(
        self,
        view: View,
        found: ConnectivityEvidence,
        scores: Mapping[str, Tensor],
        keep: float | None,
        table: LatencyTable | None,
    ) -> Plan:
        """Keep such a share of the budget, within limits that are raised as little as it takes."""
        budget = self.budget or PRICES["filters"][0]
        counts_units = find_budget(budget).counts_units

        def cut(raised: float) -> Plan:
            floors = {}
            for group in view.graph.prunable:
                saved = int(found.protected[group.name].sum()) if group.name in found.protected else 0
                floors[group.name] = max(saved, group.size - self._most(found, group.name, raised, group.size))
            return allocate(
                view.graph,
                scores,
                keep=keep,
                budget=budget,
                minimum=self.minimum,
                multiple=1 if keep is None or self.paper else self.multiple,
                floors=floors,
                table=table,
            )

        if keep is None:
            return cut(0.0)

        def fits(raised: float) -> bool:
            try:
                plan = cut(raised)
            except BudgetError:
                return False
            units = sum(group.size for group in view.graph.prunable)
            asked = max(round(keep * units), len(view.graph.prunable))
            return not counts_units or plan.reached["channels"] <= asked

        raised = _least_raise(fits)
        plan = cut(raised)
        return replace(plan, reached={**plan.reached, **_report_limits(found, raised)})


def _limit(costs: Tensor, slack: float | None) -> Limit:
    """The curve of a group as people look at it: the share of all that its readers say, as its units leave.

    The limit is where they have lost ``slack``; None: there is none.
    """
    lost, size = costs.cumsum(0), len(costs)
    left = [1.0, *(1 - lost / lost[-1].clamp(min=torch.finfo(lost.dtype).tiny)).tolist()]
    steps = sorted({round(share * size) for share in GRID} | {size})
    upper = 1.0 if slack is None else removable(costs, slack) / size
    return Limit(tuple(step / size for step in steps), tuple(round(left[step], 6) for step in steps), upper)


def _least_raise(fits: Callable[[float], bool]) -> float:
    """The smallest share of the way to no limits at all at which the budget fits."""
    if fits(0.0) or not fits(1.0):
        return 0.0 if fits(0.0) else 1.0
    low, high = 0.0, 1.0
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _report_limits(found: ConnectivityEvidence, raised: float) -> dict[str, float]:
    """What the plan says about limits that were raised; warns where that goes beyond what they are for."""
    slacks = [limit.slack for limit in found.limits.values() if limit.slack is not None]
    if not raised or not found.limits:
        return {}
    if not slacks:
        reached, text = {"limits raised": round(raised, 4)}, f"all were raised by {raised:.0%} of the way to none"
    else:
        slack = slacks[0] + (1 - slacks[0]) * raised
        reached, text = {"slack": round(slack, 4)}, f"a single one costs up to {slack:.0%} of what the network knows"
        if slack <= MOST_SLACK:
            return reached
    warnings.warn(
        f"the budget cannot be met within the limits of the layers: {text}. Expect a loss; raise keep= to stay within "
        "them.",
        NervureWarning,
        stacklevel=4,
    )
    return reached


def _dense(view: View, masked: set[str]) -> dict[str, str]:
    """What else multiplies and stays as it is, with its share of all parameters."""
    left = [p for p in view.graph.products if p.tensor not in masked and p.tensor not in view.ignored]
    return {"dense": describe_products(left, view.graph.params())} if left else {}


def _first(scores: Tensor, protected: Tensor | None) -> Tensor:
    """Scores with the protected units above all others."""
    return scores if protected is None else scores + protected * (scores.max() - scores.min() + 1)


def _price(view: View, layer: Layer, budget: Price | None) -> Tensor:
    shape = (layer.children, layer.parents)
    if budget == "connections":
        return torch.ones(shape, dtype=torch.int64)
    owner = layer.tensor.rpartition(".")[0]
    entries = layer.entries().expand(shape)
    if budget != "macs":
        return entries
    macs = sum(
        w.fixed * math.prod(view.graph.axes[a].size for a in w.axes) for w in view.graph.work if w.layer == owner
    )
    return entries * (macs // layer.weight.numel())


def _affordable(
    fixed: dict[str, Tensor], lines: dict[str, Tensor], prices: Mapping[str, Tensor], budget: int
) -> dict[str, Tensor]:
    """``fixed`` where that leaves something to decide; else, with a warning, only the ``lines`` to the outputs."""
    taken = sum(int((price * fixed[name]).sum()) for name, price in prices.items())
    bare = sum(int((price * lines[name]).sum()) for name, price in prices.items())
    if taken == bare or taken <= PROTECTION * budget:
        return fixed
    warnings.warn(
        f"all that protected units hear would take {taken / max(budget, 1):.0%} of what stays: nothing is protected.",
        NervureWarning,
        stacklevel=4,
    )
    return lines


def _must_stay(view: View, found: ConnectivityEvidence, listed: tuple[Layer, ...]) -> dict[str, Tensor]:
    """Connections that must stay: those that keep outputs connected, and all that protected children hear."""
    fixed = lifelines(view.graph, listed, found.scores)
    for layer in listed:
        for group, units in layer.rows:
            if group in found.protected:
                index = torch.tensor(units.array)
                fixed[layer.tensor] |= (found.protected[group][index.clamp(min=0)] & (index >= 0))[:, None]
    return fixed
