"""What networks answered under shift, kept on disk batch by batch: what was asked once is not computed again."""

import hashlib
import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from nervure.core.container import Kind, read_container, write_container
from nervure.core.files import require_folder
from nervure.core.tensors import digest_of
from nervure.errors import FileError
from nervure.evaluation.metrics import Observed
from nervure.graph.tape import named_tensors

Key: TypeAlias = tuple[str, int]
KIND = Kind("nervure-answers", "answers of a network", version=2)
CLASSES = "classes"
NUMBERS = {torch.int64, torch.float32, torch.float64}
"""What is noted of a sample is in one of these."""


@final
class Answers:
    """A folder with a file for each network and batch.

    A network is known by the text of its modules and by its tensors, a batch by its numbers: after a change of a
    network's code alone, take another folder.
    """

    def __init__(self, folder: str | os.PathLike[str], models: Mapping[str, nn.Module], settings: str) -> None:
        self._folder = require_folder(Path(folder))
        version = f"{KIND.version} {importlib.metadata.version('nervure')} {settings}"
        self._models = {name: f"{version} {_known_by(model)}" for name, model in models.items()}

    def page(self, inputs: Any, labels: Tensor) -> "Page":
        """What is known of one batch."""
        batch = digest_of((inputs, labels))
        names = {name: hashlib.sha256(f"{one} {batch}".encode()).hexdigest() for name, one in self._models.items()}
        return Page({name: self._folder / f"{digest[:32]}.safetensors" for name, digest in names.items()})


@final
class Page:
    """The answers of several networks to one batch, clean and shifted."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._known = {name: _read(file) for name, file in files.items()}
        self._changed: set[str] = set()

    def get(self, name: str, key: Key | None) -> tuple[Observed, int] | None:
        """What the network answered, and the number of classes; None where that is not known."""
        found = {field: self._known[name].get(f"{field} {_text(key)}") for field in Observed.__slots__}
        classes = self._known[name].get(CLASSES)
        if classes is None or any(value is None for value in found.values()):
            return None
        return Observed(**{field: value for field, value in found.items() if value is not None}), int(classes)

    def note(self, name: str, key: Key | None, observed: Observed, classes: int) -> None:
        """Note an answer; :meth:`save` writes it."""
        tensors = {f"{field} {_text(key)}": value.cpu().contiguous() for field, value in asdict(observed).items()}
        self._known[name] |= tensors | {CLASSES: torch.tensor(classes)}
        self._changed.add(name)

    def save(self) -> None:
        """Write what is new; raises FileError where that cannot be done."""
        for name in self._changed:
            write_container(self._files[name], self._known[name], {}, KIND)
        self._changed.clear()


def _read(file: Path) -> dict[str, Tensor]:
    if not file.exists():
        return {}
    try:
        _, tensors = read_container(file, dict[str, Any], KIND)
    except FileError:
        # What cannot be read is computed again, and written anew.
        return {}
    return tensors if _are_answers(tensors) else {}


def _are_answers(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there is one number of classes, and else one number per sample."""
    columns = {name: tensor for name, tensor in tensors.items() if name != CLASSES}
    classes = tensors.get(CLASSES, torch.zeros(0))
    return (
        (classes.dtype, classes.shape) == (torch.int64, ())
        and len({column.shape for column in columns.values()}) == 1
        and all(column.ndim == 1 and column.dtype in NUMBERS for column in columns.values())
    )


def _text(key: Key | None) -> str:
    return "clean" if key is None else f"{key[0]} {key[1]}"


def _known_by(model: nn.Module) -> str:
    tensors = named_tensors(model)
    return f"{type(model).__qualname__} {model} {list(tensors)} {digest_of(tensors)}"
