"""What every method gets and gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, final, runtime_checkable

from torch import Tensor

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
    """

    graph: Graph
    weights: Mapping[str, Tensor]
    stats: Stats | None = None
    seed: int = 0


@runtime_checkable
class Method(Protocol):
    """A way to prune: a frozen dataclass of hyper-parameters.

    Attributes:
        wants: the evidence that ``plan`` needs in ``view.stats``, as in ``measure(want=...)``.
    """

    wants: ClassVar[frozenset[str]]

    def plan(self, view: View) -> Plan:
        """Decide what to edit."""
        ...
