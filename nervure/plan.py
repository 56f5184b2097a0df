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
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial, reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, final

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from nervure.core.annotations import Accepted, acceptor, take_items
from nervure.core.check import show_value, take_fields, take_value
from nervure.core.documents import open_document
from nervure.core.markup import fold_numbered, listing
from nervure.core.schema import Count, Finite, NotNegative, Seed, convert, written_schema
from nervure.errors import PlanError

if TYPE_CHECKING:
    from nervure.graph.types import Block, Graph

AXES = 64
"""A tensor has no more."""
Stride = Annotated[int, Meta(ge=1, lt=1 << 31)]


class MalformedPlan(PlanError, ValueError):
    """A part of a plan is not what it should be; a schema adds where it is."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class Keep:
    """A boolean mask as a value: packed bits and a shape; compared, hashed and saved by content. True survives."""

    shape: Annotated[tuple[Count, ...], Meta(max_length=AXES)]
    bits: bytes

    def __post_init__(self) -> None:
        if len(self.bits) != (self.size + 7) // 8:
            raise MalformedPlan(f"a keep mask of shape {self.shape} came with {len(self.bits)} bytes of bits")
        if self.bits and self.bits[-1] & ((1 << -self.size % 8) - 1):
            raise MalformedPlan(f"a keep mask of shape {self.shape} came with bits beyond its end")

    @staticmethod
    def of(mask: "Keep | Tensor | Iterable[bool]") -> "Keep":
        """Pack a boolean tensor, or any iterable of booleans (a vector)."""
        if isinstance(mask, Keep):
            return mask
        given = torch.from_numpy(mask) if isinstance(mask, np.ndarray) and mask.dtype == bool else mask
        if not isinstance(given, Tensor):
            given = torch.tensor(take_value(_BOOLEANS, given, "mask", "Keep.of", PlanError), dtype=torch.bool)
        if given.is_meta or given.layout != torch.strided:
            raise PlanError(f"a keep mask must be a dense tensor with numbers, got {show_value(given)}.")
        if given.dtype != torch.bool:
            raise PlanError(f"a keep mask must be boolean, got dtype {given.dtype}. Compare first, e.g. scores > 0.")
        array = given.detach().cpu().numpy()
        return Keep(tuple(array.shape), np.packbits(array.reshape(-1)).tobytes())

    def tensor(self) -> Tensor:
        """Unpack into a boolean tensor of ``shape``."""
        bits = np.unpackbits(np.frombuffer(self.bits, dtype=np.uint8), count=self.size)
        return torch.from_numpy(bits.astype(bool)).reshape(self.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

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
        return convert(data, Keep, "this keep mask", PlanError)

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
        take_fields(self, PlanError)


@final
@dataclass(frozen=True, slots=True)
class Mask:
    """Entries of parameter ``tensor`` are held at zero where ``keep`` (of the parameter's shape) is False.

    Attributes:
        tensor: name of the parameter.
        keep: True survives.
        gain: what survives is multiplied by this, e.g. to make up for the inputs that left.
        shuffled: a seed: the parameter's entries change places at random before it is masked, which draws a parameter
            that is still at its initialisation anew from the same distribution. None: they stay.
    """

    tensor: str
    keep: Keep
    gain: Finite = 1.0
    shuffled: Seed | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", Keep.of(self.keep))
        take_fields(self, PlanError)


@final
@dataclass(frozen=True, slots=True)
class Drop:
    """Block ``block`` becomes its shortcut (the identity where there is none)."""

    block: str

    def __post_init__(self) -> None:
        take_fields(self, PlanError)


@final
@dataclass(frozen=True, slots=True)
class Route:
    """The way of a skip connection: where it begins and ends, and what it does to the signal.

    Attributes:
        reads: the module whose (first) input enters; empty: the output of the first layer that writes the source.
        joins: the module to whose output it is added; empty: the first layer that writes the target.
        stride: step of a convolution along each spatial axis; empty: 1. Sizes that differ still are averaged.
        norm: whether it has a batch norm of its own, without trained numbers.
        activation: its own non-linearity, a key of ``nervure.surgery.link.ACTIVATIONS``; empty: none.
        std: standard deviation of its weights at the start; 0: it starts silent.
        seed: fixes the weights at the start.
        gate: start of a trained number that its output is multiplied by; None: there is none.
        identity: whether its connections are one each, for good: they are neither trained nor counted as weights.
    """

    reads: str = ""
    joins: str = ""
    stride: tuple[Stride, ...] = ()
    norm: bool = False
    activation: str = ""
    std: NotNegative = 0.0
    seed: Seed = 0
    gate: Finite | None = None
    identity: bool = False

    def __post_init__(self) -> None:
        take_fields(self, PlanError)


@final
@dataclass(frozen=True, slots=True)
class Link:
    """A sparse skip connection from group ``source`` to group ``target``.

    Attributes:
        source: the group whose units enter; may be empty where ``route.reads`` says it.
        target: the group whose units it adds to; may be empty where ``route.joins`` says it.
        keep: the connections that are made, ``[target size, source size, *kernel]``.
        route: where exactly it goes, and through what.
    """

    source: str
    target: str
    keep: Keep
    route: Route = Route()

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", Keep.of(self.keep))
        take_fields(self, PlanError)


Edit: TypeAlias = Cut | Mask | Drop | Link
EDITS: Mapping[str, type[Cut] | type[Mask] | type[Drop] | type[Link]] = {
    "cut": Cut,
    "mask": Mask,
    "drop": Drop,
    "link": Link,
}
_BOOLEANS = acceptor(Iterable[bool])
_LISTED = Accepted("a list of edits", take_items)


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
        if isinstance(self.edits, Iterator):
            object.__setattr__(self, "edits", tuple(take_value(_LISTED, self.edits, "edits", "Plan", PlanError)))
        for edit in self.edits if isinstance(self.edits, Sequence) and not isinstance(self.edits, str | bytes) else ():
            if not isinstance(edit, Cut | Mask | Drop | Link):
                raise PlanError(f"{show_value(edit)} is not an edit; a plan holds Cut, Mask, Drop and Link.")
        take_fields(self, PlanError)

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
        lines: list[tuple[str, ...]] = []
        rows = [_row_of(graph, cut, graph.macs() - graph.macs({cut.group: keeps[cut.group]})) for cut in self.cuts]
        for name, change, saved, *notes in fold_numbered(rows):
            lines += [(name, change, saved), *(("", "", f"note: {note}") for note in notes)]
        lines += [(m.tensor, f"{m.keep.size:>5} -> {m.keep.count:<5}", "connections masked") for m in self.masks]
        lines += [(d.block, "", _format_drop(graph.block(d.block))) for d in self.drops]
        lines += [
            (f"{e.route.reads or e.source} => {e.route.joins or e.target}", f"+{e.keep.count}", "skip connections")
            for e in self.links
        ]
        width = max(len(name) for name, _, _ in lines)
        text = [f"{name:<{width}}  {change:<16} {note}".rstrip() for name, change, note in lines]
        total, left = graph.macs(), graph.macs(keeps)
        if self.cuts:
            params, fewer = graph.params(), graph.params(keeps)
            text.append(
                f"cuts in all: parameters {params:,} -> {fewer:,} ({fewer / max(params, 1):.1%}), "
                f"MACs {total:,} -> {left:,} ({left / max(total, 1):.1%})"
            )
        said = (" ".join(words) for words in fold_numbered(_said_of_configs(graph, keeps)))
        return listing([*text, *said, *_said_of_drops(graph, self.drops)])

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back to an equal plan."""
        return {
            "fingerprint": self.fingerprint,
            "asked": dict(self.asked),
            "reached": dict(self.reached),
            "edits": [_edit_to_json(edit) for edit in self.edits],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any] | str) -> "Plan":
        """Read what :meth:`to_json` wrote (or its text); raises :class:`PlanError` on anything else."""
        what = "this plan"
        plain = open_document(data, what, PlanError)
        if "edits" not in plain:
            raise PlanError(f"{what} cannot be read: it has no 'edits'.")
        found = convert(plain, _PLAN, what, PlanError)
        return Plan(tuple(map(_edit_from, found.edits)), found.fingerprint, found.asked, found.reached)


def _row_of(graph: "Graph", cut: Cut, saved: int) -> tuple[str, ...]:
    """A group, its sizes, what its cut alone saves, and what there is to note."""
    group = graph[cut.group]
    sizes = f"{group.size:>5} -> {cut.keep.count:<5}"
    return cut.group, sizes, f"-{_format_number(saved)}MACs alone", *group.kinds_of_notes


def _said_of_configs(graph: "Graph", keeps: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """What becomes of the sizes that configs declare, where a cut touches them."""
    for said in graph.declared:
        name, now = ".".join(filter(None, (said.module, said.attribute))), said.after(graph, keeps)
        if now is None:
            shares = f"{len(said.groups)} groups keep different shares"
            yield name, f"stays {said.size}, which is no longer true: {shares}"
        elif now != said.size:
            yield name, f"becomes {now} (it was {said.size})"


def _format_drop(block: "Block") -> str:
    what = f"block dropped ({', '.join(block.modules)})"
    if not block.element:
        return what
    return f"{what}; it is taken out of {block.element.rpartition('.')[0]}, and those behind it move up"


def _said_of_drops(graph: "Graph", drops: Sequence[Drop]) -> Iterator[str]:
    """What no config can say: which layers lack a part, or have an identity in their place."""
    inside = [drop.block for drop in drops if not graph.block(drop.block).element]
    if inside and any("." in said.attribute for said in graph.declared):
        yield (
            f"no config says that {', '.join(inside)} {'is' if len(inside) == 1 else 'are'} dropped: a model built "
            "from it (from_pretrained) has random weights there. Use nervure.save and nervure.load"
        )


def _format_number(number: float) -> str:
    for unit in ("", "k", "M"):
        if abs(number) < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.4g} G"


def _edit_to_json(edit: Edit) -> dict[str, Any]:
    kind = next(name for name, cls in EDITS.items() if isinstance(edit, cls))
    # What is as ever is left out, so that older versions read it too.
    values = {f.name: getattr(edit, f.name) for f in fields(edit) if getattr(edit, f.name) != f.default}
    return {"edit": kind} | {k: _PARTS[k](v) if k in _PARTS else v for k, v in values.items()}


def _route_to_json(route: Route) -> dict[str, Any]:
    values = asdict(route) | {"stride": list(route.stride)}
    return values if route.identity else {name: value for name, value in values.items() if name != "identity"}


# Plans are written by hand too, so a key that is not known is refused.
_by_hand: Any = partial(written_schema, forbid_unknown_fields=True)
_ROUTE = _by_hand(Route)
_EDITS = {name: _by_hand(kind, {"route": _ROUTE}, tag_field="edit", tag=name) for name, kind in EDITS.items()}
_EDIT: Any = reduce(or_, _EDITS.values())
_PLAN = _by_hand(Plan, {"edits": tuple[_EDIT, ...]})


def _edit_from(found: msgspec.Struct) -> Edit:
    values = msgspec.structs.asdict(found)
    if isinstance(values.get("route"), _ROUTE):
        values["route"] = Route(**msgspec.structs.asdict(values["route"]))
    return EDITS[str(found.__struct_config__.tag)](**values)


_PARTS: Mapping[str, Callable[[Any], Any]] = {
    "keep": Keep.to_json,
    "route": _route_to_json,
}
"""Fields that are values of their own: how they become plain data."""
