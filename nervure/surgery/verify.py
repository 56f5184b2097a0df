"""The law that makes a cut trustworthy: the cut model computes what the original computes without the removed units.

Numbers can hide a wrong cut, so both are compared twice: on the example as it is, and with weights and inputs drawn at
random in double precision. Differences are measured against how far the cut itself moved each output. Then the smaller
model runs as its user will run it.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from nervure.core.check import checked
from nervure.core.inputs import Inputs
from nervure.errors import VerificationError
from nervure.graph.models import evaluating, unwrap
from nervure.graph.modes import leave_modes, whole_convolutions
from nervure.graph.trace import draw
from nervure.graph.types import Graph
from nervure.plan import Plan
from nervure.surgery.checker import Checker, Verification
from nervure.surgery.usage import broken_use

__all__ = ["HasPlan", "Verification", "verify", "verify_with"]


class HasPlan(Protocol):
    """What :func:`verify` needs of a pruning result."""

    @property
    def model(self) -> nn.Module:
        """The edited model."""

    @property
    def graph(self) -> Graph:
        """The graph of the original."""

    @property
    def plan(self) -> Plan:
        """What was done."""


@checked
def verify(model: nn.Module, pruned: HasPlan, example: Any) -> Verification:
    """Check that ``pruned.model`` computes what ``model`` computes without what ``pruned.plan`` removed.

    Both run in evaluation mode on ``example``, and on random numbers in double precision. Then the pruned model runs
    in training mode, with gradients, with fused kernels and on another batch. Call it on the freshly cut model:
    training moves the weights apart.

    Args:
        model: the original model.
        pruned: anything with ``model``, ``graph`` and ``plan``, such as what :func:`nervure.prune` returns.
        example: inputs for both, see :func:`nervure.trace`.

    Returns:
        The verification: the error, relative to how far the cut moved the outputs, and the tolerance it passed. Its
        error is None where no check could be made that would have told a wrong cut apart; ``reason`` says why.

    Raises:
        VerificationError: an output has another shape, is not finite where the reference is, or differs by more than
            floating-point accuracy; the original cannot be run without the removed units; on this example the model
            has other groups than those that were cut; or the pruned model breaks in ordinary use.
    """
    model = unwrap(model)
    given = Inputs.several(example, model)
    with leave_modes(), whole_convolutions(), evaluating(model):
        drawing = draw(model, given, **pruned.graph.settings)
    _require_same_groups(drawing.graph, pruned, given)
    return verify_with(Checker(model, drawing, given), pruned)


def _require_same_groups(drawn: Graph, pruned: HasPlan, given: Sequence[Inputs]) -> None:
    """Another form of example may take another way through the model, with other groups: nothing can be compared."""
    if drawn.fingerprint == pruned.graph.fingerprint:
        return
    for name in (cut.group for cut in pruned.plan.cuts):
        found = drawn[name].size if name in drawn else None
        if found != pruned.graph[name].size:
            has = "there is no such group" if found is None else f"it has {found} units"
            raise VerificationError(
                f"on this example ({', '.join(map(str, given))}) the model has other groups than those that were cut: "
                f"{name!r} had {pruned.graph[name].size} units, here {has} (fingerprint {pruned.graph.fingerprint}, "
                f"here {drawn.fingerprint}). Verify on an example like the one that was traced, of its shape and dtype."
            )


@leave_modes()
@whole_convolutions()
def verify_with(checker: Checker, pruned: HasPlan) -> Verification:
    """As :func:`verify`, where the model was drawn already."""
    found = checker.check_made(pruned.graph, pruned.plan, pruned.model)
    checker.forget()
    broken = broken_use(checker, pruned.model)
    if broken:
        raise VerificationError(f"it breaks where the original runs, {broken}")
    return found
