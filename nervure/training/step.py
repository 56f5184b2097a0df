"""What hooks see of a training: each step, and, for those that begin and remember, the whole setting."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, final, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nervure.core.annotations import Batches
from nervure.tasks.task import Task
from nervure.training.masks import Masks


@final
@dataclass(frozen=True, slots=True, eq=False)
class TrainingStep:
    """What a hook sees: gradients are there, the optimizer has not moved yet.

    Attributes:
        number: steps done before this one, over all epochs; 0 for the first.
        epoch: epochs done before this one.
        done: share of the training done before this step, in [0, 1).
        loss: the loss of this batch.
        batch: the batch as it came, on the model's device.
        model: the model in training mode; ``.grad`` is whole, also where masks hold zeros.
        optimizer: the optimizer about to step.
        masks: the masks as they are now, by parameter name; True stays.
        task: what the model is for: it says what of the batch are inputs.
    """

    number: int
    epoch: int
    done: float
    loss: float
    batch: Any
    model: nn.Module
    optimizer: Optimizer
    masks: Masks
    task: Task = field(default_factory=Task)


Hook: TypeAlias = Callable[[TrainingStep], Masks | None]


@final
@dataclass(frozen=True, slots=True)
class TrainingPoint:
    """What a callback is told after each step and after each epoch.

    Attributes:
        kind: ``"step"`` or ``"epoch"``.
        step: steps done, over all epochs.
        epoch: epochs done.
        values: of a step its ``loss`` and the ``learning_rate`` that it took; of an epoch its mean ``loss``, what
            ``validation`` gave, where there are such data, and the ``seconds`` of the training so far.
    """

    kind: Literal["step", "epoch"]
    step: int
    epoch: int
    values: Mapping[str, float] = field(hash=False)


Callback: TypeAlias = Callable[[TrainingPoint], None]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """The training that is about to begin.

    Attributes:
        model: the model, on its device.
        inputs: inputs of the first batch, on the device.
        masks: the masks that were asked for, by parameter name; True stays.
        seed: of the training.
        steps: optimizer steps of the whole training.
        per_epoch: steps of an epoch.
        validation: batches to judge by; None where none were given.
        place: the model's device.
        data: a digest of the first batch, to know the data again.
    """

    model: nn.Module
    inputs: Any
    masks: Masks
    seed: int
    steps: int
    per_epoch: int
    validation: Batches | None
    place: torch.device
    data: str


@runtime_checkable
class Stateful(Protocol):
    """A hook that begins with the training, decides its first masks, and goes on from a checkpoint."""

    @property
    def events(self) -> Sequence[Any]:
        """What it did so far; a checkpoint is saved whenever there is more."""
        ...

    def begin(self, setting: Setting) -> Masks:
        """All masks at the start: those of the setting, and its own."""
        ...

    def state(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """Tensors and plain data to go on from."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave, after :meth:`begin`; FileError where it is of another training."""
        ...

    def __call__(self, step: TrainingStep) -> Masks | None:
        """New masks, all of them, or None."""
        ...
