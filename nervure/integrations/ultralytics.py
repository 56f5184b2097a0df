"""What ``YOLO.train`` needs of a pruned model. Nothing of ultralytics is imported here: its classes are given."""

from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


def make_trainer(kind: type[T], model: nn.Module) -> type[T]:
    """A trainer that trains ``model`` as it is: ``yolo.train(trainer=make_trainer(DetectionTrainer, pruned.model))``.

    A trainer of ultralytics builds its model anew from a yaml, at the sizes from before, and takes over the weights
    that happen to fit, without a word. This one does not. It is of one process: where several GPUs train, ultralytics
    imports the trainer by its name, so that ``get_model`` has to be written in a module of your own.

    Args:
        kind: the class of trainers for the task, such as ``ultralytics.models.yolo.detect.DetectionTrainer``.
        model: the model; its classes are those of the data. Numbers that only an export reads are set right.

    Returns:
        A subclass of ``kind``.
    """
    _halve_by_what_is_there(model)

    def get_model(self: Any, *args: Any, **options: Any) -> nn.Module:
        """The model as it is."""
        return model

    return type(kind.__name__, (kind,), {"get_model": get_model})


def _halve_by_what_is_there(model: nn.Module) -> None:
    """Blocks that halve what comes are exported by ``forward_split``, which reads the size of a half off ``c``."""
    for block in model.modules():
        first: Any = getattr(getattr(block, "cv1", None), "conv", None)
        if isinstance(first, nn.Conv2d) and callable(getattr(block, "forward_split", None)):
            block.c = first.weight.shape[0] // 2  # type: ignore[assignment]
