"""A training run on disk: one sealed file of tensors, its plain data in the header. No pickle.

The file is always whole: it is written beside its place and then moved there in one go. Nothing of it is put into a
model before all of it is known to fit.
"""

import copy
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, final

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.optim import Optimizer

from nervure.core.container import DamageError, Kind, read_container, read_header, reading, write_container
from nervure.core.schema import Count
from nervure.errors import ArgumentError, FileError
from nervure.training.masks import Held, require_masks

KIND = Kind("nervure-training", "a training checkpoint", version=2, remedy="Delete it to begin anew.")
State = Mapping[int, Mapping[str, Any]]
"""What an optimizer notes, by the number of the parameter and a name."""
DIGITS = 10
"""No optimizer has a parameter whose number is longer."""


@final
@dataclass(slots=True)
class Part:
    """An epoch under way: its number of batches done, and the sums so far."""

    batches: Count = 0
    loss: float = 0.0
    samples: Annotated[float, Meta(ge=0)] = 0.0


@final
@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, in plain data.

    Attributes:
        settings: what it was asked to do.
        epochs: whole epochs done; ``part``: of the one under way.
        steps: steps done; ``seconds``: spent on them.
        interrupted: whether it was stopped once and went on.
        hooks: what each hook that remembers notes.
        optimizer: plain numbers of the optimizer's state, by ``index.name``.
    """

    settings: dict[str, Any]
    epochs: Count
    steps: Count
    seconds: Annotated[float, Meta(ge=0)]
    interrupted: bool
    part: Part
    hooks: tuple[dict[str, Any], ...] = ()
    optimizer: dict[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True, eq=False)
class SavedRun:
    """What :func:`read_run` read, all of it known to fit the model and the optimizer it is for."""

    progress: Progress
    tensors: Mapping[str, Tensor]

    @property
    def extra(self) -> dict[str, Tensor]:
        """The tensors that were saved beside those of model, masks and optimizer."""
        return under("extra", self.tensors)

    def put_into(self, model: nn.Module, optimizer: Optimizer, held: Held) -> None:
        """Load weights, buffers, the optimizer's state and the masks in place."""
        model.load_state_dict(under("model", self.tensors))
        load_optimizer(optimizer, under("optimizer", self.tensors), self.progress.optimizer)
        held.update(under("mask", self.tensors))


def save_run(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    held: Held,
    progress: Progress,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights, buffers, the optimizer's state, masks, ``progress`` and ``extra`` tensors to ``path``.

    Raises:
        FileError: if the file cannot be written.
        ArgumentError: if the model's state holds something other than tensors.
    """
    moments, plain = optimizer_state(optimizer)
    tensors = (
        _add_prefix("model", _model_state(model))
        | _add_prefix("mask", dict(held.masks))
        | _add_prefix("optimizer", moments)
    )
    write_container(path, tensors | _add_prefix("extra", extra or {}), replace(progress, optimizer=plain), KIND)


def read_run(path: Path, model: nn.Module, optimizer: Optimizer, settings: Mapping[str, Any]) -> SavedRun:
    """Read what :func:`save_run` wrote, for this model and optimizer; neither is changed.

    Args:
        path: the file.
        model: the model the run trains.
        optimizer: its optimizer.
        settings: what this run is asked to do; it must be what the file's run was asked to do. Under ``"masks"`` a
            digest of the masks it begins with.

    Raises:
        FileError: if the file is no checkpoint, is damaged, or belongs to another model or other settings.
    """
    progress, tensors = read_container(path, Progress, KIND)
    _require_same(path, progress.settings, settings)
    if layout(under("model", tensors)) != layout(_model_state(model)):
        raise FileError(f"the checkpoint {path} is of another model. Delete it to begin anew, or give another path.")
    with reading(path, KIND):
        require_masks(under("mask", tensors), dict(model.named_parameters(remove_duplicate=False)))
        _require_state_of(optimizer, _state(under("optimizer", tensors), progress.optimizer))
    return SavedRun(progress, tensors)


def read_progress(path: str | os.PathLike[str]) -> Progress:
    """How far the run of a checkpoint is; raises :class:`FileError` where the file is missing, damaged or foreign."""
    return read_header(path, Progress, KIND)


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
    optimizer.load_state_dict({"state": _state(tensors, plain), "param_groups": optimizer.state_dict()["param_groups"]})


def _state(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> State:
    state: dict[int, dict[str, Any]] = defaultdict(dict)
    for name, value in {**tensors, **plain}.items():
        index, _, key = name.partition(".")
        if not (index.isascii() and index.isdigit() and len(index) < DIGITS):
            raise DamageError(f"{name!r} is no state of an optimizer.")
        state[int(index)][key] = value
    return state


def _require_state_of(optimizer: Optimizer, saved: State) -> None:
    """Raise where ``saved`` is not what this optimizer notes of these parameters."""
    expected = _expected_state(optimizer)
    for index, values in saved.items():
        if index >= len(expected) or (values and expected[index] and _kinds(values) != _kinds(expected[index])):
            raise DamageError(f"the optimizer's state of parameter {index} is not that of {type(optimizer).__name__}.")


def _expected_state(optimizer: Optimizer) -> list[Mapping[str, Any]]:
    """What it would note of each parameter in a step: names and kinds; empty where that cannot be found out."""
    # A copy has no hooks, and steps stand-ins that take no memory.
    shadow = copy.copy(optimizer)
    shadow.state = defaultdict(dict)
    shadow.param_groups = [g | {"params": [_stand_in(p) for p in g["params"]]} for g in optimizer.param_groups]
    try:
        shadow.step()
    except Exception:  # an optimizer may ask for anything in its step: then nothing is known of its state
        shadow.state.clear()
    return [shadow.state.get(p, {}) for group in shadow.param_groups for p in group["params"]]


def _stand_in(parameter: Tensor) -> nn.Parameter:
    found = nn.Parameter(torch.empty_like(parameter, device="meta"))
    found.grad = torch.empty_like(found)
    return found


def _kinds(values: Mapping[str, Any]) -> dict[str, Any]:
    """For each name its dtype and shape, or the type of a plain value."""
    return {n: (v.dtype, v.shape) if isinstance(v, Tensor) else type(v) for n, v in values.items()}


def layout(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The dtype and shape of each tensor."""
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix.``, by the rest of their names."""
    return {n.removeprefix(f"{prefix}."): t for n, t in tensors.items() if n.startswith(f"{prefix}.")}
