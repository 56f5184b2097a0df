"""What flows between layers, kept on a disk: one file for each batch, read when a layer runs on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from nervure.core.files import file_errors, replacing
from nervure.core.inputs import Inputs
from nervure.errors import FileError
from nervure.stats.loaders import Batch
from nervure.streaming.hollow_model import Call, HollowModel, Interned
from nervure.tasks.batch_forms import map_tensors, take_samples
from nervure.tasks.task import Task

STREAM = "stream"
DENSE, SMALL = "dense", "small"


@final
class LayerAlone(nn.Module):
    """One layer as a model of its own, whose tensors have the names that they have in the whole model.

    Attributes:
        place: the name of the layer.
        side: which of the two networks it is of.
    """

    def __init__(self, place: str, layer: nn.Module, side: str = DENSE) -> None:
        super().__init__()
        self.place, self.side = place, side
        *above, last = place.split(".")
        holder: nn.Module = self
        for part in above:
            inner = nn.Module()
            holder.add_module(part, inner)
            holder = inner
        holder.add_module(last, layer)

    @property
    def layer(self) -> nn.Module:
        """The layer."""
        return self.get_submodule(self.place)

    def forward(self, stream: Tensor, **call: Any) -> Any:
        """What the layer gives."""
        return self.layer(stream, **call)


@final
class StoredBatch:
    """A batch of streams: what enters a layer in the dense network and in the smaller one, and how it is called.

    Attributes:
        files: where the streams are, by side.
        call: what else the layer is given.
        size: how many samples.
        device: where the layer is.
        rows: which of them; None: all.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        call: Call,
        size: int,
        device: torch.device,
        rows: slice | Tensor | None = None,
    ) -> None:
        self.files, self.call, self.size, self.device, self.rows = files, call, size, device, rows

    def load(self, side: str) -> dict[str, Any]:
        """What the layer of that side is called with."""
        # Whoever watches operators is to see those of the layer alone.
        with _disable_current_modes(), torch.no_grad():
            given = {STREAM: read_stream(self.files.get(side, self.files[DENSE])), **self.call}
            given = map_tensors(lambda tensor: tensor.to(self.device, copy=True), given)
            return given if self.rows is None else dict(take_samples(given, self.rows, self.size))

    def take(self, rows: slice | Tensor) -> "StoredBatch":
        """Some of its samples."""
        return StoredBatch(self.files, self.call, self.size, self.device, rows)

    def count(self) -> int:
        """How many samples it has."""
        return len(torch.arange(self.size)[self.rows]) if self.rows is not None else self.size


def _feed(model: nn.Module, raw: StoredBatch) -> Any:
    return Inputs((), raw.load(getattr(model, "side", DENSE))).run(model)


STREAM_TASK = Task(
    name="the stream between layers",
    forward=_feed,
    inputs=lambda raw: raw.load(DENSE),
    labels=lambda raw: None,
    samples=lambda raw: raw.count(),
    take=lambda raw, which, size: raw.take(which),
)
"""How a layer alone runs on what is stored."""


@final
@dataclass(frozen=True)
class Streams:
    """The streams of one kind, before each layer.

    Attributes:
        folder: where they are; a folder in it for each layer.
        sides: which networks they are of.
        calls: for each batch with what each layer is called.
        sizes: the samples of each batch.
        device: where layers run on them.
    """

    folder: Path
    sides: tuple[str, ...]
    calls: list[list[Call]]
    sizes: Sequence[int]
    device: torch.device

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def _name(self) -> str:
        return self.folder.name

    def path(self, layer: int, side: str, number: int) -> Path:
        """Where a stream is."""
        return self.folder / f"{layer:04}" / f"{self._name}-{side}-{number:05}.safetensors"

    def batches(self, layer: int) -> list[Batch]:
        """What enters a layer, batch by batch."""
        return [
            Batch(self._stored(layer, number, call[layer]), size, STREAM_TASK)
            for number, (call, size) in enumerate(zip(self.calls, self.sizes, strict=True))
        ]

    def _stored(self, layer: int, number: int, call: Call) -> StoredBatch:
        files = {side: self.path(layer, side, number) for side in self.sides}
        return StoredBatch(files, call, self.sizes[number], self.device)


def begin_streams(
    model: HollowModel, streams: Streams, each: Sequence[Batch], interned: Interned, *, is_new: bool
) -> None:
    """Note how layers are called on batches; where streams are new, write what enters the first layer, too."""
    for number, batch in enumerate(each):
        stream, calls = model.calls(batch)
        streams.calls.append([interned.call(call) for call in calls])
        for side in streams.sides if is_new else ():
            write_stream(streams.path(0, side, number), stream)


def write_stream(path: Path, stream: Tensor) -> None:
    """Write a stream; the file is whole, or not there."""
    with file_errors(path, "make the folder of"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        save_file({STREAM: stream.detach().cpu().contiguous()}, draft)


def read_stream(path: Path, device: torch.device | str = "cpu") -> Tensor:
    """A stream, in memory of its own; raises FileError where none is there."""
    try:
        return load_file(path)[STREAM].to(device)
    except (OSError, SafetensorError, KeyError) as error:
        raise FileError(f"{str(path)!r} is no stream between layers: {error}. Begin anew with fresh=True.") from error
