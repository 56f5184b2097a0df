"""Edits as values: what is done to a network, apart from doing it.

A :class:`Plan` is an immutable tuple of four kinds of edit, at three scales:

=====================  ===========  ==========================================================
edit                   scale        meaning
=====================  ===========  ==========================================================
``Cut(group, keep)``   units        channels, heads, neurons leave; every coupled tensor shrinks
``Mask(tensor, keep)`` connections  entries are held at zero, the shape stays
``Drop(block)``        layers       a block becomes its shortcut (the identity where there is none)
``Link(source, ...)``  connections  a new sparse skip connection between two groups
=====================  ===========  ==========================================================
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from nervure.check import require_format
from nervure.errors import PlanError

if TYPE_CHECKING:
    from nervure.graph.types import Graph

FORMAT = 1


@final
@dataclass(frozen=True, slots=True, repr=False)
class Keep:
    """A boolean mask as a value: packed bits and a shape; compared, hashed and saved by content. True survives."""

    shape: tuple[int, ...]
    bits: bytes

    @staticmethod
    def of(mask: "Keep | Tensor | Iterable[bool]") -> "Keep":
        """Pack a boolean tensor, or any iterable of booleans (a vector)."""
        if isinstance(mask, Keep):
            return mask
        tensor = mask if isinstance(mask, Tensor) else torch.tensor(list(mask), dtype=torch.bool)
        if tensor.dtype != torch.bool:
            raise PlanError(f"a keep mask must be boolean, got dtype {tensor.dtype}. Compare first, e.g. scores > 0.")
        array = tensor.detach().cpu().numpy()
        return Keep(tuple(array.shape), np.packbits(array.reshape(-1)).tobytes())

    def tensor(self) -> Tensor:
        """Unpack into a boolean tensor of ``shape``."""
        bits = np.unpackbits(np.frombuffer(self.bits, dtype=np.uint8), count=self.size)
        return torch.from_numpy(bits.astype(bool)).reshape(self.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def count(self) -> int:
        """Number of entries that survive."""
        return int(self.tensor().sum())

    def to_json(self) -> dict[str, Any]:
        """Plain data: shape and base64 of the packed bits."""
        return {"shape": list(self.shape), "bits": base64.b64encode(self.bits).decode()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Keep":
        """Read what :meth:`to_json` wrote; raises :class:`PlanError` where bits and shape disagree."""
        keep = Keep(tuple(int(n) for n in data["shape"]), base64.b64decode(data["bits"]))
        if len(keep.bits) != (keep.size + 7) // 8:
            raise PlanError(f"a keep mask of shape {keep.shape} came with {len(keep.bits)} bytes of bits.")
        return keep

    def __repr__(self) -> str:
        return f"Keep({self.count} of {'x'.join(map(str, self.shape))})"


@final
@dataclass(frozen=True, slots=True)
class Cut:
    """Units of ``group`` leave physically. ``keep`` has one boolean per unit."""

    group: str
    keep: Keep

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", Keep.of(self.keep))


@final
@dataclass(frozen=True, slots=True)
class Mask:
    """Entries of parameter ``tensor`` are held at zero where ``keep`` (of the parameter's shape) is False."""

    tensor: str
    keep: Keep

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", Keep.of(self.keep))


@final
@dataclass(frozen=True, slots=True)
class Drop:
    """Block ``block`` becomes its shortcut (the identity where there is none)."""

    block: str


@final
@dataclass(frozen=True, slots=True)
class Link:
    """A sparse skip connection from group ``source`` to group ``target``; ``keep`` is [target size, source size]."""

    source: str
    target: str
    keep: Keep

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", Keep.of(self.keep))


Edit: TypeAlias = Cut | Mask | Drop | Link
EDITS: Mapping[str, type[Cut] | type[Mask] | type[Drop] | type[Link]] = {
    "cut": Cut,
    "mask": Mask,
    "drop": Drop,
    "link": Link,
}


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """An immutable sequence of edits, for the model whose graph has ``fingerprint``.

    Attributes:
        edits: the edits, in the order in which a method made them.
        fingerprint: ``Graph.fingerprint`` of the model the plan was made for; empty: any model.
        asked: what was asked for, e.g. ``{"budget": "macs", "keep": 0.5}``.
        reached: what the plan reaches, in the same unit, e.g. ``{"keep": 0.4987}``.
    """

    edits: tuple[Edit, ...] = ()
    fingerprint: str = ""
    asked: Mapping[str, Any] = field(default_factory=dict, hash=False)
    reached: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))
        for edit in self.edits:
            if not isinstance(edit, Cut | Mask | Drop | Link):
                raise PlanError(f"{edit!r} is not an edit; a plan holds Cut, Mask, Drop and Link.")

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.edits)

    def __len__(self) -> int:
        return len(self.edits)

    def __bool__(self) -> bool:
        return bool(self.edits)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The cuts among the edits."""
        return tuple(e for e in self.edits if isinstance(e, Cut))

    @property
    def masks(self) -> tuple[Mask, ...]:
        """The masks among the edits."""
        return tuple(e for e in self.edits if isinstance(e, Mask))

    @property
    def drops(self) -> tuple[Drop, ...]:
        """The drops among the edits."""
        return tuple(e for e in self.edits if isinstance(e, Drop))

    @property
    def links(self) -> tuple[Link, ...]:
        """The links among the edits."""
        return tuple(e for e in self.edits if isinstance(e, Link))

    def describe(self, graph: "Graph") -> str:
        """A readable table: what each edit does, group by group, with the widths and the multiply-accumulates saved."""
        if not self.edits:
            return "nothing is edited"
        keeps = {cut.group: cut.keep.tensor() for cut in self.cuts}
        lines = []
        for cut in self.cuts:
            saved = graph.macs() - graph.macs({cut.group: keeps[cut.group]})
            lines.append(
                (cut.group, f"{graph[cut.group].size:>5} -> {cut.keep.count:<5}", f"-{_scaled(saved)}MACs alone")
            )
        lines += [(m.tensor, f"{m.keep.size:>5} -> {m.keep.count:<5}", "connections masked") for m in self.masks]
        lines += [(d.block, "", f"block dropped ({', '.join(graph.block(d.block).modules)})") for d in self.drops]
        lines += [(f"{e.source} => {e.target}", f"+{e.keep.count}", "skip connections") for e in self.links]
        width = max(len(name) for name, _, _ in lines)
        text = [f"{name:<{width}}  {change:<16} {note}".rstrip() for name, change, note in lines]
        total, left = graph.macs(), graph.macs(keeps)
        if self.cuts:
            params, fewer = graph.params(), graph.params(keeps)
            text.append(
                f"cuts in all: parameters {params:,} -> {fewer:,} ({fewer / max(params, 1):.1%}), "
                f"MACs {total:,} -> {left:,} ({left / max(total, 1):.1%})"
            )
        return "\n".join([*text, *_said_of_configs(graph, keeps)])

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back to an equal plan."""
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "asked": dict(self.asked),
            "reached": dict(self.reached),
            "edits": [_edit_to_json(edit) for edit in self.edits],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any] | str) -> "Plan":
        """Read what :meth:`to_json` wrote (or its text); raises :class:`PlanError` on anything else."""
        if isinstance(data, str):
            try:
                data = json.loads(data)
            except json.JSONDecodeError as error:
                raise PlanError(f"this is not a plan: {error}.") from error
        if not isinstance(data, Mapping) or "edits" not in data:
            raise PlanError("this is not a plan: it has no 'edits'.")
        require_format(data, FORMAT, "this plan", PlanError)
        return Plan(
            tuple(_edit_from_json(edit) for edit in data["edits"]),
            data.get("fingerprint", ""),
            data.get("asked", {}),
            data.get("reached", {}),
        )


def _said_of_configs(graph: "Graph", keeps: Mapping[str, Tensor]) -> Iterator[str]:
    """What becomes of the sizes that configs declare, where a cut touches them."""
    for said in graph.declared:
        name, now = ".".join(filter(None, (said.module, said.attribute))), said.after(graph, keeps)
        if now is None:
            yield f"{name} stays {said.size}, which is no longer true: {len(said.groups)} groups keep different shares"
        elif now != said.size:
            yield f"{name} becomes {now} (it was {said.size})"


def _scaled(number: float) -> str:
    for unit in ("", "k", "M"):
        if abs(number) < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.4g} G"


def _edit_to_json(edit: Edit) -> dict[str, Any]:
    kind = next(name for name, cls in EDITS.items() if isinstance(edit, cls))
    values = {name: getattr(edit, name) for name in edit.__slots__}
    return {"edit": kind} | {k: v.to_json() if isinstance(v, Keep) else v for k, v in values.items()}


def _edit_from_json(data: Mapping[str, Any]) -> Edit:
    fields: dict[str, Any] = {k: Keep.from_json(v) if k == "keep" else v for k, v in data.items() if k != "edit"}
    try:
        return EDITS[data["edit"]](**fields)
    except (KeyError, TypeError) as error:
        raise PlanError(f"{data.get('edit')!r} with {sorted(fields)} is not an edit.") from error
