"""Save and load pruned models as one safetensors file: tensors, and a JSON header with the graph and the plan.

Nothing is pickled. Loading rebuilds the user's model (a module or its factory), checks that it is the one the plan was
made for, replays the plan and puts the saved tensors in.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nervure.annotations import FilePath
from nervure.check import checked
from nervure.errors import FileError, NervureError, NervureWarning
from nervure.export.stock import stock_differences
from nervure.files import replacing, require_file, require_writable
from nervure.graph import Cost
from nervure.graph.copies import copied
from nervure.graph.example import unwrapped
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph
from nervure.packed import packed, unpacked
from nervure.plan import Keep, Plan
from nervure.prune import Pruned, Step
from nervure.surgery import apply
from nervure.surgery.apply import is_plain_attribute
from nervure.training.masks import require_masks

FORMAT = 3
"""The format of files with packed tensors."""
STEPS = 2
"""The format of files with earlier steps and no packed tensors, which older versions read as well."""
PLAIN = 1
"""The format of files with neither, which the oldest versions read as well."""
KIND = "nervure"
SHOWN = 5

Source: TypeAlias = nn.Module | Callable[[], nn.Module]


@checked
def save(path: FilePath, pruned: Pruned, *, meta: Mapping[str, Any] | None = None) -> Path:
    """Write ``pruned`` to one ``.safetensors`` file, atomically, and return its path.

    Masked tensors are packed: what stays, and where, see :mod:`nervure.packed`. Where the model is of a library whose
    ``from_pretrained`` would build another one from its config, a :class:`NervureWarning` says what differs.

    Args:
        path: where to; its folder must exist.
        pruned: a result of ``nervure.prune`` (its model may have been trained since).
        meta: plain data to keep in the header, e.g. the name and options of the zoo model.

    Raises:
        FileError: the place cannot be written, or the model's state holds something that is not a tensor.
    """
    target = require_writable(path)
    state = _state(pruned.model)
    whole, aliases = _without_repeats(state | _transient(pruned.model, state))
    tensors, layouts = packed(whole, pruned.masks)
    header = {
        "kind": KIND,
        "format": FORMAT if layouts else STEPS if pruned.earlier else PLAIN,
        "versions": versions(),
        "method": pruned.method,
        "fingerprint": pruned.graph.fingerprint,
        "plan": _without_packed(pruned.plan.to_json(), {n: Keep.of(pruned.masks[n]).to_json() for n in layouts}),
        "graph": pruned.graph.to_json(),
        "earlier": [{"graph": s.graph.to_json(), "plan": s.plan.to_json(), "method": s.method} for s in pruned.earlier],
        "costs": {"before": pruned.cost_before.to_json(), "after": pruned.cost_after.to_json()},
        "verification": pruned.verification,
        "masks": {name: Keep.of(mask).to_json() for name, mask in pruned.masks.items() if name not in layouts},
        "packed": layouts,
        "shapes": {name: list(tensor.shape) for name, tensor in state.items()},
        "aliases": aliases,
        "transient": sorted(set(_transient(pruned.model, state))),
        "training": pruned.model.training,
        "sha256": _digest(tensors),
        "meta": dict(meta or {}),
    }
    write_tensors(target, tensors, header)
    differences = stock_differences(pruned.model)
    if differences:
        warnings.warn(
            f"{str(path)!r} is read by nervure.load only, not by from_pretrained: {differences}.",
            NervureWarning,
            stacklevel=3,
        )
    return target


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
    header, tensors = read_tensors(path)
    graph, plan, rest = _parsed(path, header)
    dense = copied(unwrapped(model)) if isinstance(model, nn.Module) else _built(model, path)
    steps: tuple[Step, ...] = rest["earlier"]
    _require_same_model(path, steps[0].graph if steps else graph, dense)
    smaller = dense
    try:
        for step in (*steps, Step(graph, plan)):
            smaller = apply(smaller, step.graph, step.plan)
    except NervureError as error:
        raise FileError(f"the plan in {str(path)!r} does not fit this model: {error}") from error
    _fill(path, smaller, tensors | {name: tensors[of] for name, of in header["aliases"].items()}, header)
    return Pruned(model=smaller.train(header["training"]), plan=plan, graph=graph, **rest)


def _parsed(path: str | os.PathLike[str], header: Mapping[str, Any]) -> tuple[Graph, Plan, dict[str, Any]]:
    """The values in a header: the graph, the plan, and the other fields of a ``Pruned``; FileError where one is bad."""
    try:
        rest = {
            "cost_before": Cost.from_json(header["costs"]["before"]),
            "cost_after": Cost.from_json(header["costs"]["after"]),
            "method": header["method"],
            "masks": {name: Keep.from_json(keep).tensor() for name, keep in header["masks"].items()},
            "verification": header["verification"],
            "earlier": tuple(
                Step(Graph.from_json(s["graph"]), Plan.from_json(s["plan"]), s["method"])
                for s in header.get("earlier", ())
            ),
        }
        return Graph.from_json(header["graph"]), Plan.from_json(header["plan"]), rest
    except (NervureError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{str(path)!r} is corrupted: its nervure header cannot be read ({error}).") from error


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
            (see :mod:`nervure.packed`). The file is loaded like any other.

    Raises:
        FileError: the place cannot be written, or the state holds something that is not a tensor.
        ArgumentError: a mask names no tensor of the state, or has another shape or dtype than bool.
    """
    target = require_writable(path)
    state = _state(model)
    require_masks(masks or {}, state)
    whole, aliases = _without_repeats(state)
    tensors, layouts = packed(whole, masks or {})
    header = {
        "kind": f"{KIND}-state",
        "format": FORMAT if layouts else PLAIN,
        "versions": versions(),
        "aliases": aliases,
        "packed": layouts,
    }
    write_tensors(target, tensors, header | {"sha256": _digest(tensors), "meta": dict(meta or {})})
    return target


@checked
def load_state(path: FilePath, model: nn.Module) -> nn.Module:
    """Put the state written by :func:`save_state` into ``model``, in place, and return it.

    A plain safetensors file with the model's tensor names is read as well.

    Raises:
        FileError: the file is missing, damaged or foreign, or its names and shapes are not those of ``model``.
    """
    header, tensors = read_tensors(path, kind=f"{KIND}-state", plain=True)
    aliases: Mapping[str, str] = header.get("aliases", {})
    _fill(path, model, tensors | {name: tensors[of] for name, of in aliases.items()}, header)
    return model


@checked
def read_header(path: FilePath) -> dict[str, Any]:
    """The JSON header of a file written by :func:`save` or :func:`save_state`, without reading its tensors.

    Raises:
        FileError: the file is missing, truncated, foreign or from a newer version.
    """
    return _nervure_header(path, _raw_header(path))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write ``tensors`` and the JSON ``header`` to one safetensors file; raises :class:`FileError`."""
    try:
        text = json.dumps(header, sort_keys=True)
    except TypeError as error:
        raise FileError(f"{str(path)!r} was not written: its header is not plain data ({error}).") from error
    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), str(temporary), metadata={KIND: text})
        except SafetensorError as error:
            raise FileError(f"cannot write {str(path)!r}: {error}. What was there is untouched.") from error


def read_tensors(
    path: str | os.PathLike[str], *, kind: str = KIND, plain: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file, checked against their checksum.

    Args:
        path: the file.
        kind: the ``kind`` its header must have.
        plain: whether a safetensors file without our header is welcome (its header is then empty).

    Raises:
        FileError: the file is missing, truncated, corrupted, foreign, newer or of another kind.
    """
    raw = _raw_header(path)
    if plain and KIND not in raw.get("__metadata__", {}):
        return {}, _load_file(path)
    header = _nervure_header(path, raw)
    if header["kind"] != kind:
        raise FileError(f"{str(path)!r} holds {_KINDS.get(header['kind'], 'something else')}, not {_KINDS[kind]}.")
    tensors = _load_file(path)
    if _digest(tensors) != header["sha256"]:
        raise FileError(f"{str(path)!r} is corrupted: its tensors do not match their checksum. Copy it again.")
    try:
        whole, keeps = unpacked(tensors, header.get("packed", {}))
    except FileError as error:
        raise FileError(f"{str(path)!r} is corrupted: {error}") from error
    return _with_unpacked(header, {name: keep.to_json() for name, keep in keeps.items()}), whole


def _without_packed(plan: dict[str, Any], keeps: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with the masks that the tensors hold already left out."""
    edits = [
        edit | {"keep": None} if edit["edit"] == "mask" and edit["keep"] == keeps.get(edit["tensor"]) else edit
        for edit in plan["edits"]
    ]
    return plan | {"edits": edits}


def _with_unpacked(header: dict[str, Any], keeps: Mapping[str, Any]) -> dict[str, Any]:
    """The header with the masks of packed tensors where they would be without packing."""
    if not keeps or "plan" not in header:
        return header
    edits = [
        edit | {"keep": keeps[edit["tensor"]]} if edit.get("keep", ...) is None else edit
        for edit in header["plan"]["edits"]
    ]
    return header | {"plan": header["plan"] | {"edits": edits}, "masks": header["masks"] | keeps}


_KINDS = {KIND: "a pruned model", f"{KIND}-state": "the state of a dense model"}


def _raw_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Parse the safetensors header here, so that a cut-off file can be told from a foreign one."""
    source = require_file(path, "a file saved by nervure")
    prefix = 8
    try:
        present = source.stat().st_size
        with source.open("rb") as file:
            length = int.from_bytes(file.read(prefix), "little")
            text = file.read(length) if prefix + length <= present else b""
    except OSError as error:
        raise FileError(f"cannot read {str(source)!r}: {error.strerror}.") from error
    if present < prefix:
        raise FileError(f"{str(source)!r} is truncated: it has {present} bytes.")
    if not text.startswith(b"{"):
        raise FileError(f"{str(source)!r} is truncated, or not a safetensors file: it has no header.")
    try:
        header: dict[str, Any] = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"{str(source)!r} is corrupted: its header cannot be read ({error}).") from error
    needed = prefix + length + max(ends, default=0)
    if present < needed:
        raise FileError(f"{str(source)!r} is truncated: it has {present} of {needed} bytes. Copy it again.")
    return header


def _nervure_header(path: str | os.PathLike[str], raw: Mapping[str, Any]) -> dict[str, Any]:
    if KIND not in raw.get("__metadata__", {}):
        raise FileError(f"{str(path)!r} is a safetensors file, but nervure did not write it: it holds no plan.")
    try:
        header: dict[str, Any] = json.loads(raw["__metadata__"][KIND])
        newest, kind = int(header["format"]), header["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"{str(path)!r} is corrupted: its nervure header cannot be read.") from error
    if newest > FORMAT:
        written_by = header.get("versions", {}).get("nervure", "a newer version")
        raise FileError(
            f"{str(path)!r} has format {newest} (written by nervure {written_by}); "
            f"this version reads up to {FORMAT}. Upgrade nervure."
        )
    if not isinstance(kind, str) or kind not in _KINDS:
        raise FileError(f"{str(path)!r} holds {kind!r}, which this version of nervure does not know.")
    return header


def _load_file(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    try:
        return dict(load_file(str(path)))
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{str(path)!r} is corrupted: {error}.") from error


def versions() -> dict[str, str]:
    """The versions of nervure and torch, by name."""
    import nervure

    return {"nervure": str(getattr(nervure, "__version__", "0")), "torch": str(torch.__version__)}


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
        else:
            # clone: two different parameters may be views of one storage, which the format refuses.
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, aliases


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
    found = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    _require_same_shapes(path, expected, found, ignore_extra=True)


def _require_same_shapes(
    path: str | os.PathLike[str],
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
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
    path: str | os.PathLike[str], model: nn.Module, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Put ``tensors`` into ``model``, strictly; dtypes follow the file, devices and sharing the model."""
    transient = set(header.get("transient", ()))
    places = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    saved = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name not in transient}
    _require_same_shapes(path, saved, {name: tuple(place.shape) for name, place in places.items()})
    buffers = dict(model.named_buffers(remove_duplicate=False))
    places |= {name: buffers[name] for name in transient if name in buffers}
    for name, place in places.items():
        # .data, not load_state_dict: parameter objects stay, so tied ones stay tied and take the file's dtype.
        # Copied out of the file's memory: kernels round by how numbers lie in theirs.
        place.data = tensors[name].to(place.device).clone()
