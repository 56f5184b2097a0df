"""What a step costs, in passes through the model: studies that hold compute equal count these, not steps."""

from dataclasses import dataclass
from functools import partial
from typing import Any, final

from nervure.core.check import checked
from nervure.training.objectives import Objective, distillation_loss
from nervure.training.sharpness import SAM
from nervure.training.view_objectives import augmented_loss, consistent_loss


@final
@dataclass(frozen=True, slots=True)
class Passes:
    """Passes of a batch through the model in one step.

    Attributes:
        forward: with those of a teacher.
        backward: each about two forward.
    """

    forward: int = 1
    backward: int = 1

    @property
    def work(self) -> float:
        """Relative to a plain step, of one forward and one backward."""
        return (self.forward + 2 * self.backward) / 3

    def __add__(self, other: "Passes") -> "Passes":
        """Both, one after the other."""
        return Passes(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> "Passes":
        """So many times over."""
        return Passes(self.forward * times, self.backward * times)


@checked
def passes_of(objective: Objective, sharpness: SAM | None = None) -> Passes:
    """What a step with an objective of :mod:`nervure.training` costs; one of your own counts as one pass.

    Making views takes the processor besides, and is not counted.

    >>> from nervure.training import SAM, cross_entropy
    >>> passes_of(cross_entropy, SAM()).work
    2.0
    """
    return _passes_of(objective) * (1 if sharpness is None else 2)


def _passes_of(objective: Objective) -> Passes:
    if not isinstance(objective, partial) or "objective" not in objective.keywords:
        return Passes()
    told: dict[str, Any] = objective.keywords
    inner = _passes_of(told["objective"])
    if objective.func is distillation_loss:
        return inner + Passes(1, 0)
    if objective.func is augmented_loss:
        return inner * 2 if told["clean"] else inner
    if objective.func is consistent_loss:
        return inner + Passes() * int(told["count"])
    return inner
