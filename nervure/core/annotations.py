"""What an annotation accepts: the value that is made of what was given, and the words that say it.

Bounds stand in the annotation: ``Annotated[float, Meta(gt=0, le=1, description="the fraction that stays")]``. Where a
set of names or a test decides, that stands there too: :class:`Among`, :class:`Meets`.
"""

import inspect
import itertools
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, final

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor, nn

LONGEST, LONGEST_PATH = 255, 4095
"""Bytes of a file's name, and of a path."""
HUGE = 1 << 31
"""Bounds from here on are there for the machine: they are told as powers of two."""
MOST = 1 << 20
"""Items that are taken of what is listed; what has more may have no end."""


class Mismatch(Exception):
    """A value is not what an annotation says.

    Attributes:
        choices: the names that would be, where they are few.
        advice: what else is to be said of it, as a sentence; mostly nothing.
    """

    def __init__(self, choices: Iterable[str] = (), advice: str = "") -> None:
        super().__init__()
        self.choices, self.advice = tuple(choices), advice


@final
@dataclass(frozen=True, slots=True)
class Accepted:
    """What an annotation accepts.

    Attributes:
        words: with an article: ``"a number in (0, 1]"``.
        take: what a value becomes: a list a tuple, a NumPy number a plain one; raises :class:`Mismatch`.
    """

    words: str
    take: Callable[[Any], Any]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Among:
    """In an annotation: one of these names."""

    names: Collection[str]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Meets:
    """In an annotation: what passes a test, which may raise nothing, with the words for it."""

    test: Callable[[Any], bool]
    words: str


def acceptor(hint: Any) -> Accepted:
    """What ``hint`` accepts; what it cannot tell, such as a type variable without a bound, accepts everything."""
    if isinstance(hint, Hashable) and hint in PLAIN:
        return PLAIN[hint]
    if isinstance(hint, TypeVar):
        return acceptor(hint.__bound__ or Any)
    origin = typing.get_origin(hint)
    maker = next((make for kinds, make in MAKERS if origin in kinds), None)
    if maker is not None:
        return maker(hint)
    cls = origin or hint
    return _protocol(cls) if getattr(cls, "_is_protocol", False) else _instance(cls)


def _scalar(value: Any) -> Any:
    """A plain number in place of one of NumPy or torch, and a plain text in place of one with a class of its own."""
    if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0:
        try:
            return value.item()
        except RuntimeError as error:
            # A tensor without a value: on the meta device, or made up by a compiler.
            raise Mismatch from error
    return "".join(value) if isinstance(value, str) and type(value) is not str else value


def _truth(value: Any) -> bool:
    return typing.cast(bool, _require_type(_scalar(value), bool))


def _text(value: Any) -> str:
    return typing.cast(str, _require_type(_scalar(value), str))


def _whole(value: Any) -> int:
    value = _scalar(value)
    if isinstance(value, bool):
        raise Mismatch
    return int(_require_type(value, int))


def _number(value: Any) -> float:
    value = _scalar(value)
    if isinstance(value, bool):
        raise Mismatch
    try:
        number = float(_require_type(value, (int, float)))
    except OverflowError as error:
        raise Mismatch from error
    if not math.isfinite(number):
        raise Mismatch
    return number


def _require_type(value: Any, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(value, kind):
        raise Mismatch
    return value


def _literal(hint: Any) -> Accepted:
    choices = typing.get_args(hint)
    return Accepted(f"one of {', '.join(map(repr, choices))}", partial(_one_of, choices))


def _one_of(choices: Sequence[Any], value: Any) -> Any:
    value = _scalar(value)
    for choice in choices:
        # 1, 1.0 and True are equal, but not alike.
        if type(choice) is type(value) and choice == value:
            return choice
    raise Mismatch(choice for choice in choices if isinstance(choice, str))


def _union(hint: Any) -> Accepted:
    members = [acceptor(member) for member in typing.get_args(hint)]
    words = [member.words for member in members]
    return Accepted((", or " if "," in "".join(words) else " or ").join(words), partial(_first, members))


def _first(members: Sequence[Accepted], value: Any) -> Any:
    choices: list[str] = []
    advice = ""
    for member in members:
        try:
            return member.take(value)
        except Mismatch as found:
            choices += found.choices
            advice = advice or found.advice
    raise Mismatch(choices, advice)


def _annotated_taker(hint: Any) -> Accepted:
    found, *constraints = typing.get_args(hint)
    kind = acceptor(found)
    for constraint in constraints:
        match constraint:
            case Meta():
                kind = Accepted(_describe_bounds(kind.words, constraint), partial(_within, kind.take, constraint))
            case Among(names):
                kind = Accepted(f"one of {', '.join(map(repr, names))}", partial(_require_name, names, kind.take))
            case Meets(test, words):
                kind = Accepted(words, partial(_meeting, test, kind.take))
    return kind


def _within(take: Callable[[Any], Any], meta: Meta, value: Any) -> Any:
    value = take(value)
    size = len(value) if meta.min_length is not None or meta.max_length is not None else 0
    if (
        (meta.gt is not None and not value > meta.gt)
        or (meta.ge is not None and not value >= meta.ge)
        or (meta.lt is not None and not value < meta.lt)
        or (meta.le is not None and not value <= meta.le)
        or (meta.min_length is not None and size < meta.min_length)
        or (meta.max_length is not None and size > meta.max_length)
    ):
        raise Mismatch
    return value


def _describe_bounds(words: str, meta: Meta) -> str:
    """``words`` with the bounds: "a number in (0, 1]", "a whole number, 1 or more"."""
    low, high = (meta.ge if meta.gt is None else meta.gt), (meta.le if meta.lt is None else meta.lt)
    # The largest floats stand for "finite", which is said already.
    low, high = (None if bound is not None and abs(bound) == sys.float_info.max else bound for bound in (low, high))
    if low is not None and high is not None and high < HUGE:
        words += f" in {'[' if meta.gt is None else '('}{low}, {high}{']' if meta.lt is None else ')'}"
    elif low is not None:
        words += f", {low} or more" if meta.gt is None else f" above {low}"
        words += "" if high is None else f", below 2**{math.ceil(math.log2(high))}"
    if meta.min_length is not None:
        words += f", {meta.min_length} or more of them"
    if meta.max_length is not None:
        words += f", {meta.max_length} of them at most"
    return f"{words}, {meta.description}" if meta.description else words


def _require_name(names: Collection[str], take: Callable[[Any], Any], value: Any) -> Any:
    try:
        value = take(value)
    except Mismatch as found:
        raise Mismatch(names) from found
    if value not in names:
        raise Mismatch(names)
    return value


def _meeting(test: Callable[[Any], bool], take: Callable[[Any], Any], value: Any) -> Any:
    value = take(value)
    if not test(value):
        raise Mismatch
    return value


def _tuple(hint: Any) -> Accepted:
    members = typing.get_args(hint)
    if members[1:] == (...,):
        each = acceptor(members[0])
        return Accepted(f"a tuple, each item {each.words}", lambda value: tuple(map(each.take, _require_list(value))))
    kinds = [acceptor(member) for member in members]
    return Accepted(f"a tuple of {len(kinds)}: {', '.join(kind.words for kind in kinds)}", partial(_fixed, kinds))


def _fixed(kinds: Sequence[Accepted], value: Any) -> tuple[Any, ...]:
    if len(_require_list(value)) != len(kinds):
        raise Mismatch
    return tuple(kind.take(item) for kind, item in zip(kinds, value, strict=True))


def _require_list(value: Any) -> Any:
    return _require_type(value, (tuple, list))


def _collection(hint: Any) -> Accepted:
    """Sequences and sets: their items are looked at, and the collection itself is taken."""
    origin, (each,) = typing.get_origin(hint), map(acceptor, typing.get_args(hint))

    def take(value: Any) -> Any:
        items = [each.take(item) for item in take_items(_not_text(_require_type(value, origin)))]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else list(items) if isinstance(value, Sequence) else type(value)(items)

    return Accepted(f"a {origin.__name__.lower()}, each item {each.words}", take)


def _iterable(hint: Any) -> Accepted:
    """What can be iterated: a loader, where its items may be anything, is taken as it is; all else becomes a list."""
    each = acceptor(typing.get_args(hint)[0])

    def take(value: Any) -> Any:
        if isinstance(value, type | Tensor | np.ndarray | nn.Module | Mapping) or not _iterates(_not_text(value)):
            raise Mismatch
        return value if each is PLAIN[Any] else [each.take(item) for item in take_items(value)]

    return Accepted(f"an iterable, each item {each.words}" if each is not PLAIN[Any] else "an iterable", take)


def take_items(values: Iterable[Any]) -> list[Any]:
    """All items, where they are :data:`MOST` at most; raises :class:`Mismatch` where there are more."""
    items = list(itertools.islice(values, MOST + 1))
    if len(items) > MOST:
        raise Mismatch(advice=f" It has more than {MOST:,} items, and perhaps no end.")
    return items


def _iterates(value: Any) -> bool:
    return hasattr(value, "__iter__") or (hasattr(value, "__getitem__") and hasattr(value, "__len__"))


def _not_text(value: Any) -> Any:
    if isinstance(value, str | bytes | bytearray):
        raise Mismatch
    return value


def _mapping(hint: Any) -> Accepted:
    key, item = map(acceptor, typing.get_args(hint))

    def take(value: Any) -> Any:
        pairs = {key.take(name): item.take(entry) for name, entry in _require_type(value, Mapping).items()}
        return value if all(pairs.get(name) is entry for name, entry in value.items()) else pairs

    return Accepted(f"a mapping from {key.words} to {item.words}", take)


def _callable(hint: Any) -> Accepted:
    arguments = typing.get_args(hint)[0]
    count = len(arguments) if isinstance(arguments, list) else None
    words = "a function" if count is None else f"a function of {count} argument{'' if count == 1 else 's'}"
    return Accepted(words, partial(_meeting, partial(_takes, count), lambda value: value))


def _takes(count: int | None, value: Any) -> bool:
    """Whether ``value`` can be called, with so many arguments by their places where that can be known."""
    if not callable(value) or count is None:
        return callable(value)
    try:
        # A module takes what its forward takes; a class what makes an instance of it.
        called = value if inspect.isclass(value) else getattr(value, "forward", value)
        inspect.signature(called).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        # Functions written in C may keep their signature to themselves.
        return True
    return True


def _class(hint: Any) -> Accepted:
    return Accepted("a class", lambda value: _require_type(value, type))


def _instance(cls: type) -> Accepted:
    return Accepted(_article(cls), lambda value: _require_type(value, cls))


def _protocol(cls: type) -> Accepted:
    names = [name for base in cls.__mro__ if getattr(base, "_is_protocol", False) for name in _members(base)]

    def take(value: Any) -> Any:
        # A class is no instance, even where it has all that an instance needs.
        if inspect.isclass(value) or not all(hasattr(value, name) for name in names):
            raise Mismatch
        return value

    return Accepted(f"{_article(cls)} (with {', '.join(sorted(set(names)))})", take)


def _members(protocol: type) -> list[str]:
    """What a protocol asks for: its methods, properties and annotated attributes."""
    named = {*vars(protocol), *protocol.__annotations__}
    return [name for name in named if not name.startswith("_") or name in ("__call__", "__iter__", "__len__")]


def _article(cls: type) -> str:
    name = KNOWN.get(cls.__name__, cls.__name__)
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


KNOWN = {"Module": "torch.nn.Module", "Tensor": "torch.Tensor", "device": "torch.device", "PathLike": "path"}


def is_path(text: Any) -> bool:
    """Whether a system could have a file of that name."""
    name = os.fspath(text)
    if not isinstance(name, str) or "\0" in name or not name:
        return False
    parts = [len(part.encode("utf-8", "surrogatepass")) for part in name.split(os.sep)]
    return max(parts) <= LONGEST and sum(parts) + len(parts) <= LONGEST_PATH


def is_device(name: Any) -> bool:
    """Whether torch can put numbers there."""
    try:
        return not torch.empty(0, device=name).is_meta
    except (RuntimeError, AssertionError, NotImplementedError):
        return False


Batches: TypeAlias = Annotated[Iterable[Any], Meta(description="batches of (inputs, labels)")]
FilePath: TypeAlias = Annotated[str | os.PathLike[str], Meets(is_path, "a path")]
PathText: TypeAlias = Annotated[str, Meets(is_path, "a path, as a text")]
Device: TypeAlias = Annotated[torch.device | str, Meets(is_device, "a device that is there, such as 'cpu' or 'cuda:0'")]

PLAIN: Mapping[Any, Accepted] = {
    Any: Accepted("anything", lambda value: value),
    object: Accepted("anything", lambda value: value),
    bool: Accepted("True or False", _truth),
    int: Accepted("a whole number", _whole),
    float: Accepted("a finite number", _number),
    str: Accepted("a text", _text),
    None: Accepted("None", partial(_one_of, (None,))),
    types.NoneType: Accepted("None", partial(_one_of, (None,))),
}

MAKERS: Sequence[tuple[tuple[Any, ...], Callable[[Any], Accepted]]] = [
    ((typing.Union, types.UnionType), _union),
    ((Literal,), _literal),
    ((typing.Annotated,), _annotated_taker),
    ((tuple,), _tuple),
    ((Callable,), _callable),
    ((type,), _class),
    ((Iterable, Collection), _iterable),
    ((list, Sequence, set, frozenset, Set), _collection),
    ((dict, Mapping), _mapping),
]
