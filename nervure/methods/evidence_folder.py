"""Where what was found out about a network is kept: a folder for each model, data, seed and question."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nervure.core.container import Kind, read_container, write_container
from nervure.core.files import require_folder
from nervure.errors import FileError
from nervure.methods.base import Folder, View
from nervure.stats import batches_digest

ANSWER = Kind("nervure-answer", "what was found out about a network", version=1)
BATCHES = 200
"""By so many batches data are known again; no inquiry looks at more."""


def evidence_folder(root: str | os.PathLike[str], view: View, question: Sequence[Any], data: str) -> Path:
    """The folder of a question about the model of a view, below ``root``; made if it is not there.

    Args:
        root: any folder; other questions, models and data have others below it.
        view: the model, its graph and the seed.
        question: plain data, all that the answer depends on besides.
        data: a digest of the data.

    Raises:
        FileError: it cannot be made.
    """
    digest = hashlib.sha256(json.dumps([*question, view.seed, view.graph.fingerprint]).encode())
    for name, tensor in sorted(view.weights.items()):
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    digest.update(data.encode())
    digest.update(b"" if view.task is None else repr(view.task).encode())
    return require_folder(Path(root) / digest.hexdigest()[:24])


def answer_folder(root: Folder, view: View, inquiry: object) -> Path | None:
    """The folder of an inquiry, as its ``repr`` tells it; None where nothing is to be kept."""
    told = repr(inquiry)
    # An address names another object in the next process.
    if root is None or " at 0x" in told:
        return None
    example = b"".join(_bytes(x) for x in tree_leaves(view.example) if isinstance(x, Tensor))
    data = "" if view.data is None else batches_digest(view.data, count=BATCHES, seed=view.seed)
    question = [told, sorted(view.ignored), "" if view.stats is None else view.stats.digest]
    return evidence_folder(root, view, question, hashlib.sha256(example).hexdigest() + data)


def remember(
    path: Path | None,
    make: Callable[[], Mapping[str, Tensor]],
    kind: Kind = ANSWER,
    fits: Callable[[Mapping[str, Tensor]], bool] = lambda _: True,
) -> dict[str, Tensor]:
    """Tensors on the CPU by name, from this file; made and written where it is not there, damaged or does not fit."""
    if path is None:
        return dict(make())
    with suppress(FileError):  # it is not there yet, or damaged; or another process removes it just now
        found = dict(read_container(path, dict[str, Any], kind)[1])
        if fits(found):
            return found
    made = dict(make())
    write_container(path, made, {}, kind)
    return made


def _bytes(tensor: Tensor) -> bytes:
    """What a tensor holds; nothing of a number."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else b""
