"""Save and load pruned models as one sealed file: tensors, and a header with the graph and the plan.

Nothing is pickled. Loading rebuilds the user's model (a module or its factory), checks that it is the one the plan was
made for, replays the plan and puts the saved tensors in. Whatever takes memory is compared with that model first.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from nervure.core import container
from nervure.core.annotations import FilePath
from nervure.core.check import checked
from nervure.core.collectives import done_by_first, is_sharded
from nervure.core.container import Kind, read_container, write_container
from nervure.core.files import require_file, require_writable
from nervure.errors import FileError, NervureWarning
from nervure.export.folder import load_folder, save_folder
from nervure.export.header import ModelHeader, Source, header_of, rebuild
from nervure.export.packing import pack
from nervure.export.state import Stored, fill, shapes_of, state_of, transient_of, versions, without_repeats
from nervure.export.stock import stock_differences
from nervure.prune import Pruned
from nervure.training.masks import require_masks

PRUNED = Kind("nervure", "a pruned model saved by nervure", version=4, unsealed=3)
STATE = Kind("nervure-state", "the state of a dense model saved by nervure", version=4, unsealed=3)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _State(Stored):
    """The header of a state."""


@checked
def save(path: FilePath, pruned: Pruned, *, meta: Mapping[str, Any] | None = None) -> Path:
    """Write ``pruned`` to one ``.safetensors`` file, atomically, and return its path.

    Masked tensors are packed: what stays, and where, see :mod:`nervure.export.packing`. Where the model is of a library
    whose ``from_pretrained`` would build another one from its config, a :class:`NervureWarning` says what differs.

    A folder into which ``pruned.model.save_pretrained(folder)`` or a ``Trainer`` wrote before gets the plan as one file
    beside config and weights; see :func:`load`.

    Of a model that is sharded over processes (``fully_shard``) the whole tensors are written, by the first process; all
    processes call this.

    Args:
        path: where to; its folder must exist. Or the folder of a saved model.
        pruned: a result of ``nervure.prune`` (its model may have been trained since).
        meta: plain data to keep in the header, e.g. the name and options of the zoo model.

    Raises:
        FileError: the place cannot be written, or the model's state holds something that is not a tensor.
    """
    write = save_folder if Path(path).is_dir() else _save_file
    saved = write(Path(path), pruned, meta or {})
    differences = stock_differences(pruned.model)
    if differences:
        warnings.warn(
            f"{str(path)!r} is read by nervure.load only, not by from_pretrained: {differences}.",
            NervureWarning,
            stacklevel=3,
        )
    return saved


def _save_file(path: Path, pruned: Pruned, meta: Mapping[str, Any]) -> Path:
    target = require_writable(path)
    state = state_of(pruned.model)
    transient = transient_of(pruned.model, state)
    whole, aliases = without_repeats(state | transient)
    tensors, packings = pack(whole, pruned.masks)
    stored = Stored(
        versions=versions(),
        aliases=aliases,
        packed=packings,
        transient=tuple(sorted(transient)),
        meta=dict(meta),
    )
    header = header_of(pruned, stored, shapes_of(state))
    _write_once(state, partial(write_container, target, tensors, header, PRUNED))
    return target


def _write_once(state: Mapping[str, Tensor], write: Callable[[], object]) -> None:
    """Write what every process has; of a sharded model only the first one does, and the others wait for it."""
    if any(map(is_sharded, state.values())):
        done_by_first(write, lambda _: None, lambda _: None)
    else:
        write()


@checked
def load(path: FilePath, model: Source | None = None) -> Pruned:
    """Read what :func:`save` wrote.

    Args:
        path: the file, or the folder.
        model: the model before pruning (it is copied, never changed), or a function that builds it. Not needed for a
            folder with a model of transformers, where its config tells how it was built.

    Returns:
        A ``Pruned`` with the pruned model, its plan, graph, costs and masks, on the device of ``model``.

    Raises:
        FileError: the file is missing, truncated, corrupted, foreign or from a newer version, or ``model`` is not
            the model it was made from (the first differences are listed), or is needed and not given.
    """
    if Path(path).is_dir():
        return load_folder(Path(path), model)
    if model is None:
        require_file(path, PRUNED.what)
        raise FileError(f"{str(path)!r} needs the model before pruning, or what builds it: nervure.load(path, model).")
    header, stored = read_container(path, ModelHeader, PRUNED)
    return rebuild(path, header, stored, model, PRUNED)


@checked
def save_state(
    path: FilePath,
    model: nn.Module,
    *,
    meta: Mapping[str, Any] | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the state of an ordinary ``model`` to one checksummed safetensors file, atomically.

    Of a sharded model (``fully_shard``) the whole tensors are written, as of :func:`save`.

    Args:
        path: where to; its folder must exist.
        model: the model.
        meta: plain data to keep in the header.
        masks: of tensors held at zero where False, e.g. those of a ``Pruned``: these take the bytes of what stays
            (see :mod:`nervure.export.packing`). The file is loaded like any other.

    Raises:
        FileError: the place cannot be written, or the state holds something that is not a tensor.
        ArgumentError: a mask names no tensor of the state, or has another shape or dtype than bool.
    """
    target = require_writable(path)
    state = state_of(model)
    require_masks(masks or {}, state)
    whole, aliases = without_repeats(state)
    tensors, packings = pack(whole, masks or {})
    header = _State(versions=versions(), aliases=aliases, packed=packings, meta=dict(meta or {}))
    _write_once(state, partial(write_container, target, tensors, header, STATE))
    return target


@checked
def load_state(path: FilePath, model: nn.Module) -> nn.Module:
    """Put the state written by :func:`save_state` into ``model``, in place, and return it.

    A plain safetensors file with the model's tensor names is read as well.

    Raises:
        FileError: the file is missing, damaged or foreign, or its names and shapes are not those of ``model``.
    """
    header, stored = read_container(path, _State, STATE, plain=_State())
    fill(path, model, stored, header, STATE)
    return model


@checked
def read_header(path: FilePath) -> dict[str, Any]:
    """The header of a file written by :func:`save` or :func:`save_state`, without reading its tensors: plain data.

    Raises:
        FileError: the file is missing, truncated, foreign or from a newer version, or its header is damaged.
    """
    return container.read_header(path, dict[str, Any], PRUNED, STATE)
