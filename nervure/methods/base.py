"""What every method gets and gives."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

from torch import Tensor, nn

from nervure.graph.types import Graph
from nervure.plan import Plan
from nervure.stats import Stats


@final
@dataclass(frozen=True, slots=True, eq=False)
class View:
    """All that a method sees of a model.

    Attributes:
        graph: its traced graph.
        weights: its tensors by name, detached, as in ``state_dict``. Not to be written to.
        stats: evidence gathered on data; None where the method wants none.
        seed: where the randomness of the run starts.
        model: the model itself, for methods that ask it more than ``stats`` can hold (slopes under a mask, what a
            candidate plan does). It must be left as it was: a method that changes anything works on a copy.
        example: the input it was traced with.
        data: batches of (inputs, labels), re-iterable; None where none were given.
        ignored: names of parameters that must not change, whatever groups they belong to.
    """

    graph: Graph
    weights: Mapping[str, Tensor]
    stats: Stats | None = None
    seed: int = 0
    model: nn.Module | None = None
    example: Any = None
    data: Iterable[Any] | None = None
    ignored: frozenset[str] = frozenset()


class Evidence(Protocol):
    """What a decision rests on, for people to look at."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a report."""
        ...


@runtime_checkable
class HasEvidence(Protocol):
    """A method that can show what its plan rests on."""

    def evidence(self, view: View) -> Any:
        """Gather an :class:`Evidence`."""
        ...

    def decide(self, view: View, found: Any) -> Plan:
        """The plan that follows from what was found."""
        ...


@runtime_checkable
class Cached(Protocol):
    """A method, a frozen dataclass, that keeps what it found out in a folder, if it is given one.

    Attributes:
        cache: the folder; None: nothing is kept.
    """

    @property
    def cache(self) -> str | None:
        """What was said above."""
        ...


@runtime_checkable
class Method(Protocol):
    """A way to prune: a frozen dataclass of hyper-parameters.

    Attributes:
        wants: the evidence that ``plan`` needs in ``view.stats``, as in ``measure(want=...)``.
    """

    @property
    def wants(self) -> frozenset[str]:
        """What was said above."""
        ...

    def plan(self, view: View) -> Plan:
        """Decide what to edit."""
        ...
