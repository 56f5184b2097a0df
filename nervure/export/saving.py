"""Save and load pruned models as one sealed file: tensors, and a header with the graph and the plan.

Nothing is pickled. Loading rebuilds the user's model (a module or its factory), checks that it is the one the plan was
made for, replays the plan and puts the saved tensors in. Whatever takes memory is compared with that model first.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from nervure.core import container
from nervure.core.annotations import FilePath
from nervure.core.check import checked
from nervure.core.container import DamageError, Kind, read_container, reading, write_container
from nervure.core.files import require_writable
from nervure.core.schema import convert
from nervure.core.version import __version__
from nervure.errors import ArgumentError, FileError, NervureError, NervureWarning
from nervure.export.packing import POSITIONS, Packing, pack, unpack, unpacked_mask
from nervure.export.stock import stock_differences
from nervure.graph import Cost
from nervure.graph.copies import copy_model
from nervure.graph.models import unwrap
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph
from nervure.plan import Keep, Plan
from nervure.prune import Pruned, Step
from nervure.surgery import apply
from nervure.surgery.apply import is_plain_attribute
from nervure.training.masks import require_masks

PRUNED = Kind("nervure", "a pruned model saved by nervure", version=4, unsealed=3)
STATE = Kind("nervure-state", "the state of a dense model saved by nervure", version=4, unsealed=3)
SHOWN = 5

Source: TypeAlias = nn.Module | Callable[[], nn.Module]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
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


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _State(_Stored):
    """The header of a state."""


@final
@dataclass(frozen=True, slots=True)
class _Costs:
    before: Cost
    after: Cost


@final
@dataclass(frozen=True, slots=True)
class _SavedStep:
    graph: dict[str, Any]
    plan: dict[str, Any]
    method: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelHeader(_Stored):
    """The header of a pruned model: the fields of a ``Pruned``.

    The plan lacks the masks whose places the packed tensors tell; ``masks`` holds those of tensors that are not packed.
    """

    plan: dict[str, Any]
    graph: dict[str, Any]
    costs: _Costs
    method: str
    masks: dict[str, dict[str, Any]]
    training: bool
    verification: float | None
    unverified: str = ""
    earlier: tuple[_SavedStep, ...] = ()
    fingerprint: str = ""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


@checked
def save(path: FilePath, pruned: Pruned, *, meta: Mapping[str, Any] | None = None) -> Path:
    """Write ``pruned`` to one ``.safetensors`` file, atomically, and return its path.

    Masked tensors are packed: what stays, and where, see :mod:`nervure.export.packing`. Where the model is of a library
    whose ``from_pretrained`` would build another one from its config, a :class:`NervureWarning` says what differs.

    Args:
        path: where to; its folder must exist.
        pruned: a result of ``nervure.prune`` (its model may have been trained since).
        meta: plain data to keep in the header, e.g. the name and options of the zoo model.

    Raises:
        FileError: the place cannot be written, or the model's state holds something that is not a tensor.
    """
    target = require_writable(path)
    state = _state(pruned.model)
    transient = _transient(pruned.model, state)
    whole, aliases = _without_repeats(state | transient)
    tensors, packings = pack(whole, pruned.masks)
    stored = _Stored(
        versions=versions(),
        aliases=aliases,
        packed=packings,
        transient=tuple(sorted(transient)),
        meta=dict(meta or {}),
    )
    write_container(target, tensors, _header(pruned, stored, _shapes(state)), PRUNED)
    differences = stock_differences(pruned.model)
    if differences:
        warnings.warn(
            f"{str(path)!r} is read by nervure.load only, not by from_pretrained: {differences}.",
            NervureWarning,
            stacklevel=3,
        )
    return target


def _header(pruned: Pruned, stored: _Stored, shapes: Shapes) -> _ModelHeader:
    keeps = {name: Keep.of(mask).to_json() for name, mask in pruned.masks.items()}
    return _ModelHeader(
        **{f.name: getattr(stored, f.name) for f in fields(stored)},
        plan=_without_packed(pruned.plan.to_json(), {name: keeps[name] for name in stored.packed}),
        graph=pruned.graph.to_json(),
        costs=_Costs(pruned.cost_before, pruned.cost_after),
        method=pruned.method,
        masks={name: keep for name, keep in keeps.items() if name not in stored.packed},
        training=pruned.model.training,
        verification=pruned.verification,
        unverified=pruned.unverified,
        earlier=tuple(_SavedStep(s.graph.to_json(), s.plan.to_json(), s.method) for s in pruned.earlier),
        fingerprint=pruned.graph.fingerprint,
        shapes=dict(shapes),
    )


@checked
def load(path: FilePath, model: Source) -> Pruned:
    """Read what :func:`save` wrote.

    Args:
        path: the file.
        model: the model before pruning (it is copied, never changed), or a function that builds it.

    Returns:
        A ``Pruned`` with the pruned model, its plan, graph, costs and masks, on the device of ``model``.

    Raises:
        FileError: the file is missing, truncated, corrupted, foreign or from a newer version, or ``model`` is not
            the model it was made from (the first differences are listed).
    """
    header, stored = read_container(path, _ModelHeader, PRUNED)
    with reading(path, PRUNED):
        graph = Graph.from_json(header.graph)
        earlier = tuple(Step(Graph.from_json(s.graph), Plan.from_json(s.plan), s.method) for s in header.earlier)
    smaller = copy_model(unwrap(model)) if isinstance(model, nn.Module) else _built(model, path)
    for step in earlier:
        smaller = _replay(path, smaller, step.graph, step.plan)
    with reading(path, PRUNED):
        plan = Plan.from_json(_with_packed(header, stored, _shapes(named_tensors(smaller))))
    smaller = _replay(path, smaller, graph, plan)
    keeps = _fill(path, smaller, stored, header, PRUNED)
    with reading(path, PRUNED):
        masks = _masks(header, smaller) | {name: keep.tensor() for name, keep in keeps.items()}
    return Pruned(
        smaller.train(header.training),
        plan,
        graph,
        header.costs.before,
        header.costs.after,
        header.method,
        masks,
        header.verification,
        earlier,
        header.unverified,
    )


def _replay(path: str | os.PathLike[str], model: nn.Module, graph: Graph, plan: Plan) -> nn.Module:
    _require_same_model(path, graph, model)
    try:
        return apply(model, graph, plan)
    except NervureError as error:
        raise FileError(f"the plan in {str(path)!r} does not fit this model: {error}") from error


def _masks(header: _ModelHeader, model: nn.Module) -> dict[str, Tensor]:
    """The masks of tensors that are not packed."""
    keeps, shapes = {n: Keep.from_json(keep) for n, keep in header.masks.items()}, _shapes(named_tensors(model))
    for name, keep in keeps.items():
        if shapes.get(name) != keep.shape:
            raise DamageError(f"the mask of {name!r} has shape {keep.shape}, the tensor {shapes.get(name)}.")
    return {name: keep.tensor() for name, keep in keeps.items()}


@checked
def save_state(
    path: FilePath,
    model: nn.Module,
    *,
    meta: Mapping[str, Any] | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the state of an ordinary ``model`` to one checksummed safetensors file, atomically.

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
    state = _state(model)
    require_masks(masks or {}, state)
    whole, aliases = _without_repeats(state)
    tensors, packings = pack(whole, masks or {})
    write_container(
        target, tensors, _State(versions=versions(), aliases=aliases, packed=packings, meta=dict(meta or {})), STATE
    )
    return target


@checked
def load_state(path: FilePath, model: nn.Module) -> nn.Module:
    """Put the state written by :func:`save_state` into ``model``, in place, and return it.

    A plain safetensors file with the model's tensor names is read as well.

    Raises:
        FileError: the file is missing, damaged or foreign, or its names and shapes are not those of ``model``.
    """
    header, stored = read_container(path, _State, STATE, plain=_State())
    _fill(path, model, stored, header, STATE)
    return model


@checked
def read_header(path: FilePath) -> dict[str, Any]:
    """The header of a file written by :func:`save` or :func:`save_state`, without reading its tensors: plain data.

    Raises:
        FileError: the file is missing, truncated, foreign or from a newer version, or its header is damaged.
    """
    return container.read_header(path, dict[str, Any], PRUNED, STATE)


def _without_packed(plan: dict[str, Any], keeps: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with the masks that the tensors hold already left out."""
    edits = [
        edit | {"keep": None} if edit["edit"] == "mask" and edit["keep"] == keeps.get(edit["tensor"]) else edit
        for edit in plan["edits"]
    ]
    return plan | {"edits": edits}


def _with_packed(header: _ModelHeader, stored: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Any]:
    """The plan with the masks that packed tensors tell, where ``shapes`` are those of the model it is for."""
    edits = convert(header.plan.get("edits"), list[dict[str, Any]], "its plan", DamageError)
    for edit in edits:
        if edit.get("keep", ...) is None:
            name = str(edit.get("tensor"))
            packing = header.packed.get(name)
            if packing is None or packing.shape != shapes.get(name):
                raise DamageError(f"the mask of {name!r} is not in the file.")
            edit["keep"] = Keep.of(unpacked_mask(stored, name, packing)).to_json()
    return header.plan | {"edits": edits}


def versions() -> dict[str, str]:
    """The versions of nervure and torch, by name."""
    return {"nervure": __version__, "torch": str(torch.__version__)}


def _state(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict(keep_vars=True)
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise FileError(
            f"the state of {type(model).__name__} holds {strange[0]!r}, a {type(state[strange[0]]).__name__}: "
            "only tensors are saved. Let get_extra_state() return a tensor."
        )
    return dict(state)


def _transient(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Non-persistent buffers: not in the state, yet a constructor that draws them at random would change the model."""
    return {name: buffer for name, buffer in model.named_buffers(remove_duplicate=False) if name not in state}


def _without_repeats(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
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
            tensors[name] = tensor.detach().cpu()
    return tensors, aliases


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _built(factory: Callable[[], nn.Module], path: str | os.PathLike[str]) -> nn.Module:
    model = factory()
    if not isinstance(model, nn.Module):
        raise FileError(f"loading {str(path)!r} needs a model; {factory!r} returned a {type(model).__name__}.")
    return model


def _require_same_model(path: str | os.PathLike[str], graph: Graph, model: nn.Module) -> None:
    expected = {
        name: tuple(graph.axes[a].size for a in axes)
        for name, axes in graph.tensors.items()
        if not is_plain_attribute(model, graph, name)
    }
    _require_same_shapes(path, expected, _shapes(named_tensors(model)), ignore_extra=True)


def _require_same_shapes(
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


def _fill(
    path: str | os.PathLike[str], model: nn.Module, stored: Mapping[str, Tensor], header: _Stored, kind: Kind
) -> dict[str, Keep]:
    """Put what a file holds into ``model``, strictly; return the masks of what was packed.

    Dtypes follow the file, devices and sharing the model. Where anything does not fit, the model is left as it was.
    """
    transient = set(header.transient)
    places = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    with reading(path, kind):
        saved = _saved_shapes(stored, header)
        _require_same_shapes(path, {n: s for n, s in saved.items() if n not in transient}, _shapes(places))
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


def _saved_shapes(stored: Mapping[str, Tensor], header: _Stored) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors when they are unpacked, by all their names."""
    shapes = _shapes({name: tensor for name, tensor in stored.items() if not name.startswith(POSITIONS)})
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
