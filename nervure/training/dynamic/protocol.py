"""What passes between the loop and a method that rewires: the ground it grows on, a moment, the change, the event."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

from torch import Tensor, nn

from nervure.analysis.live_paths import LivePaths
from nervure.core.check import checked
from nervure.core.schema import Size, convert
from nervure.graph.types import Graph, Product
from nervure.training.dynamic.sites import Site
from nervure.training.masks import Masks


@final
@dataclass(frozen=True, slots=True, eq=False)
class InitialTopology:
    """Where connections can be.

    Attributes:
        sheets: the weight tensors and what their axes are for, in running order.
        graph: what is coupled to what.
        start: the masks to begin with, of the shapes of the tensors.
        places: weights that the network could have: a density is a share of them. Places of links are not counted.
        weights: weights to begin with; tensors left out begin as they are.
    """

    sheets: tuple[Product, ...]
    graph: Graph
    start: Masks
    places: int
    weights: Mapping[str, Tensor] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True, eq=False)
class UpdateContext:
    """What a method sees at an event.

    Attributes:
        number: of the event, from 0; ``events``: how many there will be.
        step: steps of training done before.
        seed: where chance starts.
        sites: the layers, single weights as connections.
        start: weights that were there at the start, by tensor.
        places: weights that a density is a share of.
        firsts: the weights of the beginning, laid out as those of the sites; empty where nobody wants them.
        kernels: the sides of the kernels, by tensor.
        paths: tells which weights lie on a path from an input to an output; None where nobody wants it.
    """

    number: int
    events: int
    step: int
    seed: int
    sites: tuple[Site, ...]
    start: Mapping[str, int]
    places: int
    firsts: Mapping[str, Tensor]
    kernels: Mapping[str, tuple[int, ...]]
    paths: LivePaths | None = None

    @property
    def way(self) -> float:
        """The share of events before this one, in [0, 1)."""
        return self.number / self.events


@final
@dataclass(frozen=True, slots=True, eq=False)
class TopologyUpdate:
    """What a method decides.

    Attributes:
        kept: of what is there, what stays; boolean, laid out as the sites.
        masks: what is there afterwards: what was kept, and what grew (also where something was just dropped).
        values: weights to begin with, read where something grew; tensors left out begin at zero.
    """

    kept: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    values: Mapping[str, Tensor] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class RollbackPolicy:
    """Whether what was done was good: after each event the network trains on, and is judged before the next.

    Attributes:
        undo: an event after which both accuracy and macro AUC on validation data fell by more than ``tolerance`` is
            undone: weights, moments and masks are again what they were before it.
        tolerance: in [0, 1].
        patience: rewiring ends after so many judgements in a row without a better accuracy; 0: never.
    """

    undo: bool
    tolerance: float
    patience: int


class Turnover(NamedTuple):
    """Weights of one layer that went and came at an event, and how many are there."""

    dropped: int
    grown: int
    nonzero: int


@final
@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log.

    Attributes:
        kind: ``"start"``, ``"rewire"``, ``"undo"`` (the event before was undone), ``"judge"`` (nothing was changed) or
            ``"stop"`` (no more events: patience has run out).
        number: which event, from 0; -1 at the start.
        step: steps of training done before.
        epoch: epochs done before.
        dropped: weights that went; ``grown``: that came; ``nonzero``: that are there, of ``weights`` places.
        weights: places, those of links not counted.
        loss: of the batch; None at the start.
        accuracy: on validation data, where it was judged; ``auc``: macro AUC.
        layers: turnover by tensor.
    """

    kind: str
    number: int
    step: int
    epoch: int
    dropped: int
    grown: int
    nonzero: int
    weights: int
    loss: float | None = None
    accuracy: float | None = None
    auc: float | None = None
    layers: Mapping[str, Turnover] = field(default_factory=dict, hash=False)

    @property
    def density(self) -> float:
        """The weights that are there, links too, over the places of layers."""
        return self.nonzero / self.weights

    def to_json(self) -> dict[str, Any]:
        """Plain data, the density too."""
        return asdict(self) | {"density": self.density, "layers": {n: list(t) for n, t in self.layers.items()}}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Event":
        """Read what :meth:`to_json` wrote; raises :class:`FileError` on anything else."""
        return convert(data, Event, "this event of rewiring")


@runtime_checkable
class SparseTrainer(Protocol):
    """A method that changes masks while a network trains."""

    @property
    def hears(self) -> frozenset[str]:
        """What is gathered at its events: ``"gradients"``, ``"activations"``, ``"firsts"``, ``"paths"``."""
        ...

    @property
    def judge(self) -> RollbackPolicy | None:
        """How its events are judged; None: they are not."""
        ...

    def ground(self, model: nn.Module, example: Any, masks: Masks, seed: int) -> InitialTopology:
        """Where connections can be, and which are there first: those of ``masks``, or of its own choice."""
        ...

    def timetable(self, steps: int, per_epoch: int) -> tuple[int, ...]:
        """Before which steps of a training of so many it changes something, in order."""
        ...

    def rewire(self, moment: UpdateContext) -> TopologyUpdate:
        """Decide; a pure function."""
        ...


@checked
def mean_density(events: Iterable[Event], steps: Size) -> float:
    """Mean density over a training of ``steps`` steps, in [0, 1]: times the steps, what training cost.

    An event counts from its own step on.

    >>> mean_density([Event("start", -1, 0, 0, 0, 0, 10, 100), Event("rewire", 0, 5, 0, 0, 10, 20, 100)], 10)
    0.15
    """
    listed: Sequence[Event] = list(events)
    ends = [*(event.step for event in listed[1:]), steps]
    return sum(event.density * (end - event.step) for event, end in zip(listed, ends, strict=True)) / steps
