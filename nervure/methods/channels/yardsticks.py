"""Methods that score every unit and cut the lowest: one implementation, a criterion for each.

``Ranking`` takes any criterion; the others are named by their paper and differ from it as said at each.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeAlias, final

from nervure.budget import BudgetName, Scope
from nervure.core.check import Checked
from nervure.core.schema import Density, Seed, Share, Size
from nervure.engines import EngineName
from nervure.methods.base import Inquiry, View, stats_of
from nervure.methods.channels.timed import Target, check_options, cut_lowest, timed_inquiries
from nervure.plan import Plan
from nervure.scores import Loudness, Normalise, Scores, Without, score
from nervure.scores.criteria import find_criterion, name_of_criterion, require_criterion_options, signals_of

OF_ALL = frozenset({"keep", "scope", "budget", "minimum", "multiple", "engine", "target", "streams"})
"""Hyper-parameters of every ranking; its others are options of its criterion."""
Plain: TypeAlias = bool | int | float | str | None
CriterionOptions: TypeAlias = tuple[tuple[str, Plain], ...]


@dataclass(frozen=True, slots=True)
class UnitRanking(Checked, ABC):
    """Keep the units with the highest scores."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        check_options(self)

    @property
    @abstractmethod
    def criterion(self) -> Any:
        """What scores the units, by its name in :data:`nervure.scores.CRITERIA`."""

    @property
    @abstractmethod
    def wants(self) -> frozenset[str]:
        """The evidence that ``plan`` needs."""

    @property
    def asks(self) -> tuple[Inquiry[Any], ...]:
        """Times, where a latency is to be met."""
        return timed_inquiries(self)

    def scores(self, view: View) -> Scores:
        """One number per unit, higher stays."""
        stats = stats_of(self, view) if self.wants else None
        return score(self.criterion, view.graph, view.weights, stats, seed=self.lot(view), **self.settings())

    def settings(self) -> Mapping[str, Any]:
        """The options of the criterion."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in OF_ALL}

    def lot(self, view: View) -> int:
        """Where the criterion starts if it draws lots."""
        return view.seed

    def plan(self, view: View) -> Plan:
        """Cut the units of lowest score; raises ScoreError or BudgetError where that cannot be done."""
        return cut_lowest(self, view, self.scores(view))


@dataclass(frozen=True, slots=True)
class GlobalRanking(UnitRanking, ABC):
    """A ranking over all layers, unless ``scope`` says otherwise.

    Attributes:
        keep: the fraction of the budget that stays, in (0, 1].
        scope: ``"global"`` (layers compete), ``"layer"`` (each layer keeps the same fraction), ``"uniform"`` (the same
            number in all layers, which a config can say), ``"kind"`` (streams, hidden channels, heads and widths keep
            the same fraction each, and compete among themselves) or ``"isomorphic"`` (so do groups that are built
            alike).
        budget: ``"channels"``, ``"params"``, ``"macs"``, ``"latency"`` (timed on the engine, on the example),
            ``"memory"`` (of a forward pass on the example), or a :class:`nervure.budget.Budget` of your own.
        minimum: units that every group keeps.
        multiple: group sizes are rounded up to a multiple of this. None: 16 for an engine; else what fast kernels take,
            8 in wide groups (see :func:`nervure.budget.allocate`), but 1 where channels are counted or limits
            decide.
        engine: what the plan is made for, see :func:`nervure.engines.runner`; with ``"latency"`` eager where none is
            named.
        target: the latency or memory to meet: a share of the dense network's in (0, 1], or an amount like ``"3 ms"`` or
            ``"200 MB"`` (above 1: bytes); None: the share ``keep``.
        streams: the share of every residual stream that stays at least, in [0, 1]: units that several layers write.
    """

    keep: Density = 0.5
    scope: Scope = "global"
    budget: BudgetName = "channels"
    minimum: Size = 1
    multiple: Size | None = None
    engine: EngineName | None = field(default=None, kw_only=True)
    target: Target | None = field(default=None, kw_only=True)
    streams: Share = field(default=0.0, kw_only=True)


@final
@dataclass(frozen=True, slots=True)
class Ranking(GlobalRanking):
    """Keep the units that a criterion of your choice scores highest.

    The other hyper-parameters are those of every ranking: ``keep``, ``scope``, ``budget``, ``minimum``, ``multiple``.

    >>> Ranking(criterion="fpgm", keep=0.4, options={"normalise": "none"}).options
    (('normalise', 'none'),)

    Attributes:
        criterion: a name in :data:`nervure.scores.CRITERIA`, a function of your own, or its
            ``"package.module:function"``. It says by the names of its parameters what it needs (``graph``,
            ``weights``, ``stats``, ``seed``); what else it takes are its options.
        options: options of the criterion; written as pairs in the order of their names.
    """

    criterion: str | Callable[..., Any] = field(default="magnitude", kw_only=True)
    options: CriterionOptions | Mapping[str, Any] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        # By name: super() knows the class as it was before it got its slots.
        UnitRanking.__post_init__(self)
        object.__setattr__(self, "criterion", name_of_criterion(self.criterion))
        object.__setattr__(self, "options", tuple(sorted(dict(self.options).items())))
        Checked.__post_init__(self)
        require_criterion_options(find_criterion(str(self.criterion)), self.settings())
        signals_of(find_criterion(str(self.criterion)))

    @property
    def wants(self) -> frozenset[str]:
        """The evidence that the criterion says it needs."""
        return signals_of(find_criterion(str(self.criterion)))

    def settings(self) -> Mapping[str, Any]:
        """The options of the criterion."""
        return dict(self.options)


@final
@dataclass(frozen=True, slots=True)
class Magnitude(UnitRanking):
    """Keep the units with the largest weights.

    Li et al., "Pruning Filters for Efficient ConvNets", 2017. Differs from the paper: one ranking goes over all layers
    by default (norms relative to the mean of their group), units coupled by a shortcut are scored and cut together, and
    the budget can be parameters or multiply-accumulates.

    Attributes:
        keep: the fraction of the budget that stays, in (0, 1].
        norm: 1 or 2.
        scope: ``"global"`` (layers compete), ``"layer"`` (each layer keeps the same fraction), ``"uniform"`` (the same
            number in all layers, which a config can say), ``"kind"`` (each kind of group keeps the same fraction) or
            ``"isomorphic"`` (all groups that are built alike do).
        budget: ``"channels"``, ``"params"``, ``"macs"``, ``"latency"`` (timed on the engine, on the example),
            ``"memory"`` (of a forward pass on the example), or a :class:`nervure.budget.Budget` of your own.
        minimum: units that every group keeps.
        multiple: group sizes are rounded up to a multiple of this. None: 16 for an engine; else what fast kernels take,
            8 in wide groups (see :func:`nervure.budget.allocate`), but 1 where channels are counted or limits
            decide.
        engine: what the plan is made for, see :func:`nervure.engines.runner`; with ``"latency"`` eager where none is
            named.
        target: the latency or memory to meet: a share of the dense network's in (0, 1], or an amount like ``"3 ms"`` or
            ``"200 MB"`` (above 1: bytes); None: the share ``keep``.
        streams: the share of every residual stream that stays at least, in [0, 1]: units that several layers write.
    """

    criterion: ClassVar[str] = "magnitude"
    wants: ClassVar[frozenset[str]] = frozenset()

    keep: Density = 0.5
    norm: Literal[1, 2] = 1
    scope: Scope = "global"
    budget: BudgetName = "channels"
    minimum: Size = 1
    multiple: Size | None = None
    engine: EngineName | None = None
    target: Target | None = None
    streams: Share = field(default=0.0, kw_only=True)


@final
@dataclass(frozen=True, slots=True)
class Random(UnitRanking):
    """Keep units by lot.

    The control of Mittal et al., "Recovering from Random Pruning", 2018: a method that does not beat it after equal
    recovery has learnt nothing about the network.

    The other hyper-parameters are those of every ranking, but that ``scope`` is ``"layer"``.

    Attributes:
        seed: added to the seed of the view, so that either one draws another lot.
    """

    criterion: ClassVar[str] = "random"
    wants: ClassVar[frozenset[str]] = frozenset()

    keep: Density = 0.5
    seed: Seed = 0
    scope: Scope = "layer"
    budget: BudgetName = "channels"
    minimum: Size = 1
    multiple: Size | None = None
    engine: EngineName | None = None
    target: Target | None = None
    streams: Share = field(default=0.0, kw_only=True)

    def settings(self) -> Mapping[str, Any]:
        """None: its seed is added to that of the view."""
        return {}

    def lot(self, view: View) -> int:
        """Where the lot starts."""
        return self.seed + view.seed


@final
@dataclass(frozen=True, slots=True)
class FPGM(GlobalRanking):
    """Keep the units farthest from the geometric median of their group: the others can stand in for the rest.

    He et al., "Filter Pruning via Geometric Median", 2019. Differs from the paper: one ranking over all layers by
    default, and one cut instead of one after each epoch.

    The other hyper-parameters are those of every ranking: ``keep``, ``scope``, ``budget``, ``minimum``, ``multiple``.

    Attributes:
        normalise: ``"none"`` compares raw scores over all layers; ``"mean"`` divides by the mean of the group.
    """

    criterion: ClassVar[str] = "fpgm"
    wants: ClassVar[frozenset[str]] = frozenset()

    normalise: Normalise = "mean"


@final
@dataclass(frozen=True, slots=True)
class Slimming(GlobalRanking):
    """Keep the units with the largest scale in their norms: those that their batch norm has closed leave.

    Liu et al., "Network Slimming", 2017. Differs from the paper: no L1 penalty is added to training; several norms of
    coupled channels are averaged; see :func:`nervure.scores.slimming`.

    The other hyper-parameters are those of every ranking: ``keep``, ``scope``, ``budget``, ``minimum``, ``multiple``.

    Attributes:
        without: what groups without a norm get: ``"magnitude"``, at the level of the others, or ``"error"``.
        normalise: ``"none"`` compares raw scores over all layers; ``"mean"`` divides by the mean of the group.
    """

    criterion: ClassVar[str] = "slimming"
    wants: ClassVar[frozenset[str]] = frozenset()

    without: Without = "magnitude"
    normalise: Normalise = "none"


@final
@dataclass(frozen=True, slots=True)
class Taylor(GlobalRanking):
    """Keep the units that the loss listens to: whose removal changes it most, to first order.

    Molchanov et al., 2017 and 2019. Differs from the papers: the effect is measured where a unit is read, so that
    coupled units have one effect; see :func:`nervure.scores.taylor`.

    The other hyper-parameters are those of every ranking: ``keep``, ``scope``, ``budget``, ``minimum``, ``multiple``.

    Attributes:
        normalise: ``"none"`` compares raw scores over all layers; ``"mean"`` divides by the mean of the group.
    """

    criterion: ClassVar[str] = "taylor"
    wants: ClassVar[frozenset[str]] = frozenset({"effects"})

    normalise: Normalise = "mean"


@final
@dataclass(frozen=True, slots=True)
class Fisher(GlobalRanking):
    """Keep the units that the loss listens to, weighted by the square: whose removal raises it, to second order.

    Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018; Liu et al., "Group Fisher
    Pruning", 2021. Differs from the papers: one cut instead of one unit at a time between steps of training.

    The other hyper-parameters are those of every ranking: ``keep``, ``scope``, ``budget``, ``minimum``, ``multiple``.

    Attributes:
        normalise: ``"none"`` compares raw scores over all layers; ``"mean"`` divides by the mean of the group.
    """

    criterion: ClassVar[str] = "fisher"
    wants: ClassVar[frozenset[str]] = frozenset({"effects"})

    normalise: Normalise = "mean"


@final
@dataclass(frozen=True, slots=True)
class Activation(GlobalRanking):
    """Keep the units that are loud where they are read; the silent ones leave.

    Hu et al., "Network Trimming", 2016, with ``of="alive"``. Differs from the paper: one ranking over all layers, and
    mean absolute values by default.

    The other hyper-parameters are those of every ranking: ``keep``, ``scope``, ``budget``, ``minimum``, ``multiple``.

    Attributes:
        of: ``"absolute"``, ``"square"`` or ``"alive"`` (the share of values that are not zero).
        normalise: ``"none"`` compares raw scores over all layers; ``"mean"`` divides by the mean of the group.
    """

    criterion: ClassVar[str] = "activation"
    wants: ClassVar[frozenset[str]] = frozenset({"readings"})

    of: Loudness = "absolute"
    normalise: Normalise = "mean"
