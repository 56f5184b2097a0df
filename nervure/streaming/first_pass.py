"""The first of two passes, where layers are compared with one another: what each layer of the dense model tells.

Where whole layers leave it is what a layer does to its samples; where masks of all layers compete it is how loud what
enters each weight is.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from nervure.core.files import is_there, remove, require_folder
from nervure.core.progress import track
from nervure.errors import DataError
from nervure.graph.models import evaluating
from nervure.graph.modes import disable_compile
from nervure.graph.types import Product
from nervure.methods.masks.activation_norm import input_norms
from nervure.stats.block_outputs import shift_of
from nervure.stats.loaders import Batch, batches
from nervure.streaming.hollow_model import HollowModel, Interned
from nervure.streaming.layers_ahead import LayersAhead
from nervure.streaming.sharded_weights import ShardedWeights, write_shard
from nervure.streaming.stored_streams import (
    DENSE,
    STREAM,
    STREAM_TASK,
    LayerAlone,
    Streams,
    begin_streams,
    write_stream,
)
from nervure.streaming.streamed_run import StreamedRun

LOOKED_AT = "looked-at"
Look: TypeAlias = Callable[[LayerAlone, Sequence[Batch], Callable[[int, Tensor], None]], Mapping[str, Tensor]]
"""What a layer tells on some batches; each stream that it gives is handed on by the number of its batch."""


@final
class FirstPass:
    """Runs the dense model layer by layer, and writes down what each layer tells; what was stopped goes on.

    Args:
        model: the dense model.
        run: the folder of the run.
        look: what is asked of a layer.
    """

    def __init__(self, model: HollowModel, run: StreamedRun, look: Look) -> None:
        self._model, self._run, self._look = model, run, look

    @property
    def found(self) -> Mapping[str, Tensor]:
        """What is known by now, of all layers that are done."""
        found = dict[str, Tensor]()
        for number in range(self._done):
            listed = ShardedWeights.of_file(self._record(number))
            found |= {name: listed.read(name) for name in listed.files}
        return found

    @property
    def _done(self) -> int:
        count = len(self._model.layers)
        return next((number for number in range(count) if not is_there(self._record(number))), count)

    def go(self, tokens: Sequence[Any], *, progress: bool) -> None:
        """Do all layers that are not done.

        Args:
            tokens: the batches that are looked at.
            progress: whether progress is shown.

        Raises:
            DataError: what a layer gives is not finite.
        """
        count, first = len(self._model.layers), self._done
        if first == count:
            return
        require_folder(self._record(0).parent)
        streams = self._begin(tokens, is_new=not first)
        with LayersAhead(self._model) as layers:
            for number in track(range(first, count), "looking at layers", count - first, enabled=progress):
                layer = LayerAlone(self._model.layers[number], layers.layer(number))
                hand_on = partial(_hand_on, streams, number + 1)
                with evaluating(layer), disable_compile(), torch.no_grad():
                    told = self._look(layer, streams.batches(number), hand_on)
                write_shard(self._record(number), told)
                remove(streams.path(number, DENSE, 0).parent)
        remove(streams.folder)

    def _begin(self, tokens: Sequence[Any], *, is_new: bool) -> Streams:
        """How layers are called, and, where none is done, what enters the first."""
        whole, interned = sum(len(raw["input_ids"]) for raw in tokens), Interned()
        each = [*batches(tokens, whole, labelled=False)]
        sizes = [batch.size for batch in each]
        found = Streams(self._run.streams / "looked_at", (DENSE,), [], sizes, self._model.device)
        with self._model.filled():
            begin_streams(self._model, found, each, interned, is_new=is_new)
        return found

    def _record(self, number: int) -> Path:
        return self._run.folder / LOOKED_AT / f"{number:04}.safetensors"


def see_shift(layer: LayerAlone, each: Sequence[Batch], hand_on: Callable[[int, Tensor], None]) -> Mapping[str, Tensor]:
    """What a layer does to samples, [samples, 2], as in ``Stats.shifts``; a :data:`Look`."""
    made = list[Tensor]()
    for place, batch in enumerate(each):
        entered, left = batch.raw.load(DENSE)[STREAM], _given(layer, batch)
        made.append(shift_of(entered.float(), (left - entered).float(), left.ndim - 1).cpu())
        hand_on(place, left)
    return {layer.place: torch.cat(made)}


def see_norms(
    products: Sequence[Product],
    samples: int,
    seed: int,
    layer: LayerAlone,
    each: Sequence[Batch],
    hand_on: Callable[[int, Tensor], None],
) -> Mapping[str, Tensor]:
    """How loud what enters each weight of a layer is, as :func:`input_norms` says it; with its options a :data:`Look`.

    Args:
        products: the weights of all layers.
        samples: how many samples at most.
        seed: of torch's random numbers while the data are drawn.
        layer: the layer.
        each: the batches.
        hand_on: what is done with what it gives.
    """
    for place, batch in enumerate(each):
        hand_on(place, _given(layer, batch))
    own = [product for product in products if product.tensor.startswith(f"{layer.place}.")]
    return input_norms(layer, own, [batch.raw for batch in each], samples, seed, STREAM_TASK) if own else {}


def _given(layer: LayerAlone, batch: Batch) -> Tensor:
    left: Tensor = batch.feed(layer)
    if not bool(torch.isfinite(left).all()):
        raise DataError(f"what {layer.place!r} gives is NaN or infinite. The model or the data are broken.")
    return left


def _hand_on(streams: Streams, number: int, place: int, stream: Tensor) -> None:
    write_stream(streams.path(number, DENSE, place), stream)
