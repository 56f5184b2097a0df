"""A pruned model in a folder of ``save_pretrained``: config and weights as their library writes them, the plan beside.

The weights stay the library's: other programs read them, and training that goes on writes them again. The plan file
holds what the library has no place for: graph, plans, costs, masks, and buffers that are not in the state.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor

from nervure.core.container import Kind, read_container, read_shapes, write_container
from nervure.core.files import require_writable
from nervure.errors import FileError
from nervure.export.blueprint import Blueprint, find_blueprint
from nervure.export.header import ModelHeader, Source, header_of, rebuild
from nervure.export.state import (
    Stored,
    require_same_shapes,
    shapes_of,
    state_of,
    transient_of,
    versions,
    without_repeats,
)
from nervure.prune import Pruned

PLAN_FILE = "nervure.safetensors"
CONFIG_FILE = "config.json"
FOLDER = Kind("nervure-folder", "the plan of a pruned model, which nervure.save(folder, pruned) writes", version=4)
WEIGHTS = Kind("weights", "weights that save_pretrained wrote", version=4)


@final
@dataclass(frozen=True, slots=True)
class FolderHeader:
    """The header of a plan file.

    Attributes:
        pruned: what a file of a pruned model says.
        blueprint: what builds the model without being given one; None: the model before pruning must be given.
    """

    pruned: ModelHeader
    blueprint: Blueprint | None = None


def save_folder(folder: Path, pruned: Pruned, meta: Mapping[str, Any]) -> Path:
    """Write the plan file into a folder that holds the weights of ``pruned.model`` already; returns the folder.

    Raises:
        FileError: the folder holds no weights, or those of another model, or cannot be written.
    """
    target = require_writable(folder / PLAN_FILE)
    state = state_of(pruned.model)
    transient = transient_of(pruned.model, state)
    tensors, _ = without_repeats(transient)
    aliases = _aliases(folder, state) | without_repeats(transient)[1]
    stored = Stored(versions=versions(), aliases=aliases, transient=tuple(sorted(transient)), meta=dict(meta))
    header = FolderHeader(header_of(pruned, stored, shapes_of(state)), find_blueprint(pruned))
    write_container(target, tensors, header, FOLDER)
    return folder


def load_folder(folder: Path, source: Source | None) -> Pruned:
    """Read a folder into which :func:`save_folder` wrote; see :func:`nervure.load`."""
    if not (folder / PLAN_FILE).exists():
        raise FileError(
            f"{str(folder)!r}: a folder is there, and it holds no {PLAN_FILE}, which nervure.save(folder, pruned) "
            "writes."
        )
    header, stored = read_container(folder / PLAN_FILE, FolderHeader, FOLDER)
    if source is None and header.blueprint is None:
        raise FileError(
            f"{str(folder)!r} does not say how its model is built: its config alone does not tell. Give the model "
            "before pruning, or what builds it: nervure.load(folder, model)."
        )
    for path in _weight_files(folder):
        stored |= read_container(path, _Weights, WEIGHTS, plain=_Weights())[1]
    if source is not None:
        return rebuild(folder, header.pruned, stored, source, FOLDER)
    assert header.blueprint is not None
    return rebuild(folder, header.pruned, stored, header.blueprint.build, FOLDER, edited=header.blueprint.edited)


@final
@dataclass(frozen=True, slots=True)
class _Weights:
    """The header of weights: there is none."""


def _aliases(folder: Path, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Under which name the weights hold a tensor that they do not hold under its own: one of several names."""
    found: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(folder):
        found |= read_shapes(path, WEIGHTS)
    held = {id(state[name]): name for name in found if name in state}
    missing = [name for name, tensor in state.items() if id(tensor) not in held]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileError(
            f"the weights in {str(folder)!r} lack {missing[0]!r}{more}. "
            "Where they are of this model, its library wrote them under other names: call "
            f"pruned.model.save_pretrained({str(folder)!r}, save_original_format=False), or name a file: "
            "nervure.save('model.safetensors', pruned)."
        )
    require_same_shapes(folder, found, shapes_of(state), ignore_extra=True)
    return {name: held[id(tensor)] for name, tensor in state.items() if name not in found}


def _weight_files(folder: Path) -> Iterator[Path]:
    """The files of weights, each tensor in one of them."""
    files = sorted(path for path in folder.glob("*.safetensors") if path.name != PLAN_FILE)
    if not files or not (folder / CONFIG_FILE).is_file():
        raise FileError(
            f"{str(folder)!r}: a folder is there, and it holds no "
            f"{'weights (*.safetensors)' if not files else CONFIG_FILE}. Call "
            f"pruned.model.save_pretrained({os.fspath(folder)!r}) first, and nervure.save then; or name a file: "
            "nervure.save('model.safetensors', pruned)."
        )
    yield from files
