"""The tensors of a model as those of a file: out of it, each once, and back into it, each into its place."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nervure.core.collectives import whole
from nervure.core.container import DamageError, Kind, reading
from nervure.core.version import __version__
from nervure.errors import ArgumentError, FileError
from nervure.export.packing import POSITIONS, Packing, unpack
from nervure.plan import Keep

SHOWN = 5

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a header says of the tensors beside it.

    Attributes:
        versions: of what wrote it.
        aliases: other names of tensors that a model holds under several.
        packed: how masked tensors are packed.
        transient: tensors that are non-persistent buffers of the model.
        meta: what the user gave.
    """

    versions: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    packed: dict[str, Packing] = field(default_factory=dict)
    transient: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """The versions of nervure and torch, by name."""
    return {"nervure": __version__, "torch": str(torch.__version__)}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model, parameters as such; raises FileError where it holds something that is no tensor."""
    state = model.state_dict(keep_vars=True)
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise FileError(
            f"the state of {type(model).__name__} holds {strange[0]!r}, a {type(state[strange[0]]).__name__}: "
            "only tensors are saved. Let get_extra_state() return a tensor."
        )
    return dict(state)


def transient_of(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Non-persistent buffers: not in the state, yet a constructor that draws them at random would change the model."""
    return {name: buffer for name, buffer in model.named_buffers(remove_duplicate=False) if name not in state}


def without_repeats(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors ready to write, each once, and the other names of those that a model holds under several."""
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        owner = first.setdefault(id(tensor), name)
        if owner != name:
            aliases[name] = owner
        elif tensor.is_meta:
            raise ArgumentError(f"{name} has a shape only (it is on the meta device): give the model weights first.")
        else:
            tensors[name] = whole(tensor.detach()).cpu()
    return tensors, aliases


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by its name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def require_same_shapes(
    path: str | os.PathLike[str],
    expected: Shapes,
    found: Shapes,
    *,
    ignore_extra: bool = False,
) -> None:
    """Raise FileError with the first differences, in the words of somebody comparing two lists."""
    differences = [
        f"{name}: the file expects {shape}, the model has {found.get(name, 'no such tensor')}"
        for name, shape in expected.items()
        if found.get(name) != shape
    ]
    if not ignore_extra:
        differences += [
            f"{name}: the model has {found[name]}, the file nothing" for name in found if name not in expected
        ]
    if differences:
        raise FileError(f"{str(path)!r} was made from another model. {_first(differences)}")


def _first(differences: Iterable[str]) -> str:
    listed = list(differences)
    more = f"; and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return "; ".join(listed[:SHOWN]) + more + "."


def fill(
    path: str | os.PathLike[str], model: nn.Module, stored: Mapping[str, Tensor], header: Stored, kind: Kind
) -> dict[str, Keep]:
    """Put what a file holds into ``model``, strictly; return the masks of what was packed.

    Dtypes follow the file, devices and sharing the model. Where anything does not fit, the model is left as it was.
    """
    transient = set(header.transient)
    places = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    with reading(path, kind):
        saved = _saved_shapes(stored, header)
        require_same_shapes(path, {n: s for n, s in saved.items() if n not in transient}, shapes_of(places))
        buffers = dict(model.named_buffers(remove_duplicate=False))
        places |= {name: buffers[name] for name in transient & buffers.keys() & saved.keys()}
        tensors, keeps = unpack(stored, header.packed)
        # Tensors of several names are copied: where the model given does not share them, they stay apart.
        tensors |= {name: tensors[of].clone() for name, of in header.aliases.items()}
        _require_same_numbers(path, tensors, places)
    for name, place in places.items():
        # .data, not load_state_dict: parameter objects stay, so tied ones stay tied and take the file's dtype.
        place.data = tensors[name].to(place.device)
    return keeps


def give_memory(model: nn.Module) -> nn.Module:
    """Give each parameter and buffer of a model without weights memory, in place: what is shared stays shared."""
    new: dict[int, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    held[key] = new.setdefault(id(tensor), _empty_like(tensor))  # type: ignore[assignment]
    return model


def _empty_like(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="cpu")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _saved_shapes(stored: Mapping[str, Tensor], header: Stored) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors when they are unpacked, by all their names."""
    shapes = shapes_of({name: tensor for name, tensor in stored.items() if not name.startswith(POSITIONS)})
    shapes |= {name: packing.shape for name, packing in header.packed.items()}
    missing = [name for name in header.aliases.values() if name not in shapes]
    if missing or not header.packed.keys() <= stored.keys():
        raise DamageError(f"it lacks tensors that its header names: {sorted({*missing, *header.packed} - {*stored})}.")
    return shapes | {name: shapes[of] for name, of in header.aliases.items()}


def _require_same_numbers(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], places: Mapping[str, Tensor]
) -> None:
    """Raise where a tensor would become another sort of number: precisions may differ, integers stay what they are."""
    differences = [
        f"{name}: the file has {tensors[name].dtype}, the model {place.dtype}"
        for name, place in places.items()
        if tensors[name].dtype != place.dtype and not (tensors[name].is_floating_point() and place.is_floating_point())
    ]
    if differences:
        raise FileError(f"{str(path)!r} was made from another model. {_first(differences)}")
