"""Layers of a hollow model, one after another: where they run on a device of their own, the next is read meanwhile."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self, final

from torch import nn

from nervure.streaming.hollow_model import HollowModel


@final
class LayersAhead:
    """Gives the layers of a model; in memory of a device may be two, on the CPU is one.

    Args:
        model: whose layers they are.
    """

    def __init__(self, model: HollowModel) -> None:
        self._model = model
        self._reader = None if model.device.type == "cpu" else ThreadPoolExecutor(1, "layers ahead")
        self._coming: dict[int, Future[nn.Module]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._coming.clear()
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)

    def layer(self, number: int) -> nn.Module:
        """A layer with its weights, in memory of its own; the one behind it is asked for."""
        coming = self._coming.pop(number, None)
        made = self._model.layer(number) if coming is None else coming.result()
        self._coming.clear()
        if self._reader is not None and number + 1 < len(self._model.layers):
            self._coming[number + 1] = self._reader.submit(self._model.layer, number + 1)
        return made
