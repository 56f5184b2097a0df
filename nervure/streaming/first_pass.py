"""The first of two passes, where whole layers leave: what each layer of the dense model does to its samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from nervure.core.files import is_there, read_json, remove, require_folder, write_json
from nervure.core.progress import track
from nervure.errors import DataError
from nervure.graph.models import evaluating
from nervure.graph.modes import disable_compile
from nervure.stats.block_outputs import shift_of
from nervure.stats.loaders import batches
from nervure.streaming.hollow_model import HollowModel, Interned
from nervure.streaming.layers_ahead import LayersAhead
from nervure.streaming.stored_streams import DENSE, STREAM, LayerAlone, Streams, begin_streams, write_stream
from nervure.streaming.streamed_run import StreamedRun

SHIFTS = "shifts"


@final
class FirstPass:
    """Runs the dense model layer by layer, and writes down what each layer does; what was stopped goes on.

    Args:
        model: the dense model.
        run: the folder of the run.
    """

    def __init__(self, model: HollowModel, run: StreamedRun) -> None:
        self._model, self._run = model, run

    @property
    def shifts(self) -> Mapping[str, Tensor]:
        """What is known by now: for each layer [samples, 2], as in ``Stats.shifts``."""
        found = dict[str, Tensor]()
        for number, name in enumerate(self._model.layers):
            if not is_there(self._record(number)):
                break
            found[name] = torch.tensor(read_json(self._record(number), "what a layer does")[SHIFTS])
        return found

    def go(self, tokens: Sequence[Any], *, progress: bool) -> None:
        """Do all layers that are not done.

        Args:
            tokens: the batches that are looked at.
            progress: whether progress is shown.

        Raises:
            DataError: what a layer gives is not finite.
        """
        count, first = len(self._model.layers), len(self.shifts)
        if first == count:
            return
        require_folder(self._record(0).parent)
        streams = self._begin(tokens, is_new=not first)
        with LayersAhead(self._model) as layers:
            for number in track(range(first, count), "looking at layers", count - first, enabled=progress):
                layer = LayerAlone(self._model.layers[number], layers.layer(number))
                write_json(self._record(number), {SHIFTS: self._look(streams, number, layer).tolist()})
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

    def _look(self, streams: Streams, number: int, layer: LayerAlone) -> Tensor:
        made = list[Tensor]()
        with evaluating(layer), disable_compile(), torch.no_grad():
            for place, batch in enumerate(streams.batches(number)):
                entered, left = batch.raw.load(DENSE)[STREAM], batch.feed(layer)
                if not bool(torch.isfinite(left).all()):
                    raise DataError(f"what {layer.place!r} gives is NaN or infinite. The model or the data are broken.")
                made.append(shift_of(entered.float(), (left - entered).float(), left.ndim - 1).cpu())
                write_stream(streams.path(number + 1, DENSE, place), left)
        return torch.cat(made)

    def _record(self, number: int) -> Path:
        return self._run.folder / SHIFTS / f"{number:04}.json"
