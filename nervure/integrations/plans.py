"""Plans inside the checkpoints of other libraries: a sealed text, and what replays it on what their classes build."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from nervure.core.documents import open_document, seal_document
from nervure.core.schema import convert
from nervure.errors import ArgumentError, FileError, NervureError
from nervure.graph.types import Graph
from nervure.plan import Plan
from nervure.surgery.apply import apply

WHAT = "the plan in this checkpoint"


class GraphAndPlan(Protocol):
    """A graph and the plan that was made for it."""

    @property
    def graph(self) -> Graph:
        """The graph."""

    @property
    def plan(self) -> Plan:
        """The plan."""


@runtime_checkable
class Planned(GraphAndPlan, Protocol):
    """What ``nervure.prune`` returns: the last step, and those before it."""

    @property
    def earlier(self) -> tuple[GraphAndPlan, ...]:
        """First things first."""


def write_plans(pruned: Planned) -> str:
    """The steps that made ``pruned``, as a text with a checksum; raises ArgumentError for anything else."""
    if not isinstance(pruned, Planned):
        raise ArgumentError(f"pruned={pruned!r} has no plan: give what nervure.prune returned.")
    steps = [{"graph": s.graph.to_json(), "plan": s.plan.to_json()} for s in (*pruned.earlier, pruned)]
    return seal_document({"steps": steps}, WHAT, indent=-1).decode()


def replay_plans(model: nn.Module, text: Any) -> nn.Module:
    """A copy of ``model`` with all steps made that :func:`write_plans` wrote.

    Raises:
        FileError: the text is damaged, or was made for another model.
    """
    found = open_document(convert(text, str, WHAT, FileError), WHAT)
    for step in convert(found.get("steps"), list[dict[str, Any]], WHAT, FileError):
        try:
            model = apply(model, Graph.from_json(step.get("graph", {})), Plan.from_json(step.get("plan", {})))
        except NervureError as error:
            raise FileError(f"{WHAT} does not fit what {type(model).__name__} builds: {error}") from error
    return model


def has_shapes_of(model: nn.Module, state: Mapping[str, Any]) -> bool:
    """Whether the tensors of ``state`` are those of ``model``, by name and shape."""
    own, given = (
        {name: tuple(value.shape) for name, value in one.items() if isinstance(value, Tensor)}
        for one in (model.state_dict(), state)
    )
    return own == given
