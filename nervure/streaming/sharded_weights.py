"""Weights of a folder in safetensors files, tensor by tensor: read where they are, and written as new ones."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nervure.core.container import PREFIX
from nervure.core.files import file_errors, read_text, replacing, write_text
from nervure.core.lazy_tensors import LazyTensors
from nervure.errors import FileError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LARGE = 1 << 26
"""Bytes from which on a tensor outside of layers has a file of its own, so that few are in memory at once."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class ShardedWeights:
    """The tensors of a folder; none is in memory until it is asked for.

    Attributes:
        folder: where they are.
        files: the file of each tensor, by the tensor's name.
        shapes: of each.
    """

    folder: Path
    files: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of_file(path: Path) -> "ShardedWeights":
        """What one file holds."""
        shapes = _shapes_in(path)
        return ShardedWeights(path.parent, dict.fromkeys(shapes, path.name), shapes)

    @staticmethod
    def of(folder: Path) -> "ShardedWeights":
        """What the index of a folder lists, or what its one file holds; raises FileError where that is not there."""
        listed = _listed(folder)
        found, shapes = dict[str, str](), dict[str, tuple[int, ...]]()
        for file in sorted({*listed.values()} if listed else {SINGLE}):
            for name, shape in _shapes_in(folder / file).items():
                if not listed or listed.get(name) == file:
                    found[name], shapes[name] = file, shape
        if missing := sorted(listed.keys() - found.keys()):
            raise FileError(
                f"{str(folder)!r}: {INDEX} says that {missing[0]!r} is in {listed[missing[0]]!r}, which does not hold "
                f"it ({len(missing)} such tensors). The folder is incomplete: copy it again."
            )
        return ShardedWeights(folder, found, shapes)

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor in memory of its own; fractions as ``dtype``, if one is given."""
        with _opened(self.folder / self.files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return tensor.to(wanted, copy=True)

    def tensors(self, names: Iterable[str], dtype: torch.dtype | None = None) -> LazyTensors:
        """Some of them, each read when it is asked for."""
        return LazyTensors(names, lambda name: self.read(name, dtype))

    def describe(self) -> dict[str, Any]:
        """Plain data that are others where the files are: names, sizes and times of change."""
        stats = {file: (self.folder / file).stat() for file in sorted(set(self.files.values()))}
        return {file: [found.st_size, found.st_mtime_ns] for file, found in stats.items()}


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of tensors as transformers reads it; the file is whole, or not there."""
    written = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as draft:
        save_file(written, draft, metadata={"format": "pt"})


def write_index(folder: Path, files: Iterable[str]) -> ShardedWeights:
    """Write the index over shards that are there, and return what it lists."""
    listed, size = dict[str, str](), 0
    for file in sorted(files):
        listed |= dict.fromkeys(_shapes_in(folder / file), file)
        size += _bytes_of_tensors(folder / file)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(listed.items()))}
    write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")
    return ShardedWeights.of(folder)


def _listed(folder: Path) -> dict[str, str]:
    """The file of each tensor, as the index says; none where there is one file without an index."""
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return {}
        others = sorted(path.name for path in folder.glob("*.bin")) if folder.is_dir() else []
        found = f" It holds {others[0]!r}: write it as safetensors first (save_pretrained does)." if others else ""
        raise FileError(
            f"{str(folder)!r} holds neither {SINGLE} nor {INDEX}, so there are no weights to stream.{found}"
        )
    try:
        listed = json.loads(read_text(index))["weight_map"]
        if all(isinstance(file, str) and Path(file).name == file for file in listed.values()):
            return dict(listed)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{str(index)!r} is no index of weights: {type(error).__name__} {error}.") from error
    raise FileError(f"{str(index)!r} names files outside of its folder.")


def _shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping


def _bytes_of_tensors(path: Path) -> int:
    """All of a file behind its header, whose length it begins with: nothing is read to know it."""
    with file_errors(path, "read"), path.open("rb") as file:
        header = int.from_bytes(file.read(PREFIX), "little")
    return path.stat().st_size - PREFIX - header


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise FileError(f"{str(path)!r} cannot be read as safetensors: {error}.") from error
