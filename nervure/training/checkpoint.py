"""A training run on disk: one safetensors file, its plain data as JSON in the header. No pickle.

The file is always whole: it is written beside its place and then moved there in one go.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from nervure.check import require_format
from nervure.errors import ArgumentError, FileError
from nervure.files import replacing
from nervure.training.masks import Held

FORMAT = 1
KEY = "nervure.training"


def save_run(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    held: Held,
    notes: Mapping[str, Any],
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights, buffers, the optimizer's state, masks, ``notes`` (plain data) and ``extra`` tensors to ``path``.

    Raises:
        FileError: if the file cannot be written.
        ArgumentError: if the model's state holds something other than tensors.
    """
    moments, plain = optimizer_state(optimizer)
    tensors = _named("model", _model_state(model)) | _named("mask", dict(held.masks)) | _named("optimizer", moments)
    tensors |= _named("extra", extra or {})
    header = {KEY: json.dumps({"format": FORMAT, "optimizer": plain, **notes})}
    # Copies: the format refuses tied weights, and they cost nothing beside the file.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(copies, temporary, metadata=header)


def load_run(
    path: Path, model: nn.Module, optimizer: Optimizer, held: Held, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Put what :func:`save_run` wrote back in place, and return its notes and its extra tensors.

    Args:
        path: the file.
        model: the model the run trains, loaded in place.
        optimizer: its optimizer, loaded in place.
        held: the masks, replaced by those of the file.
        settings: what this run is asked to do; it must be what the file's run was asked to do. Under ``"masks"`` a
            digest of the masks it begins with.

    Raises:
        FileError: if the file is no checkpoint, is damaged, or belongs to another model or other settings.
    """
    tensors, notes = _read(path)
    # Files of before masks were noted are taken at their word.
    _require_same(path, {"masks": settings.get("masks"), **notes.get("settings", {})}, settings)
    state = model.state_dict()
    saved = under("model", tensors)
    if {n: t.shape for n, t in saved.items()} != {n: t.shape for n, t in state.items()}:
        raise FileError(f"the checkpoint {path} is of another model. Delete it to begin anew, or give another path.")
    model.load_state_dict(saved)
    load_optimizer(optimizer, under("optimizer", tensors), notes["optimizer"])
    held.update(under("mask", tensors))
    return notes, under("extra", tensors)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FileError(
            f"{path} cannot be read as a training checkpoint ({error}). Delete it to begin anew."
        ) from error
    require_format(notes, FORMAT, str(path), FileError)
    return tensors, notes


def _require_same(path: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if saved.get("masks") != asked.get("masks"):
        raise FileError(
            f"the checkpoint {path} belongs to a run that began with other masks: other weights are zero there. Give "
            "the masks of that run, delete the file to begin anew, or give another path."
        )
    differences = [
        f"{k}={saved.get(k)!r} there, {asked.get(k)!r} here" for k in {**asked, **saved} if saved.get(k) != asked.get(k)
    ]
    if differences:
        raise FileError(
            f"the checkpoint {path} belongs to a run with other settings: {'; '.join(differences)}. "
            "Ask for the same, delete it to begin anew, or give another path."
        )


def _model_state(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ArgumentError(f"state {name!r} is a {type(value).__name__}; a checkpoint holds tensors only.")
    return state


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain numbers of an optimizer's state, by ``index.name``."""
    flat = {f"{i}.{key}": v for i, state in optimizer.state_dict()["state"].items() for key, v in state.items()}
    tensors = {name: value for name, value in flat.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in flat.items() if name not in tensors}


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Put what :func:`optimizer_state` gave back in place."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **plain}.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix.``, by the rest of their names."""
    return {n.removeprefix(f"{prefix}."): t for n, t in tensors.items() if n.startswith(f"{prefix}.")}
