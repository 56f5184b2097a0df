"""A shift as a value, and how parts of a batch are exchanged for shifted ones."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from nervure.core.check import Checked, nearest, require_choice, show_value
from nervure.core.schema import Seed
from nervure.errors import ArgumentError, DataError
from nervure.evaluation.corruptions import SEVERITIES
from nervure.tasks.batch_forms import describe_batch, map_tensors


@final
@dataclass(frozen=True, slots=True)
class Shift(Checked):
    """One way in which data differ from those of training: from a batch to the same batch, shifted.

    Attributes:
        name: what it is called in results.
        change: from a batch, a severity from 1 to 5 and a seed to another batch of the same form. What was given stays
            as it was; a sample comes out the same in a batch of any size.
    """

    name: str
    change: Callable[[Any, int, int], Any]

    def __call__(self, batch: Any, severity: int, *, seed: Seed = 0) -> Any:
        """The batch, shifted.

        Raises:
            ArgumentError: the severity is none of 1 to 5.
            DataError: the batch has no part that can be shifted, or labels that cannot follow.
        """
        return self.change(batch, require_choice(severity, SEVERITIES, "severity"), seed)


class _Own(str):
    """A text that is no other: equal texts of a program are often one object."""

    __slots__ = ()


def separate(batch: Any) -> Any:
    """The same batch, each of whose tensors and texts is an object of its own, so that it can be exchanged alone."""
    return map_tensors(Tensor.detach, batch, lambda leaf: _Own(leaf) if isinstance(leaf, str) else leaf)


def exchange(batch: Any, pairs: Iterable[tuple[Any, Any]]) -> Any:
    """A separated batch with parts exchanged for others: pairs of old and new.

    Raises:
        DataError: an old part is not in the batch, but made from it.
    """
    new: Mapping[int, Any] = {id(old): other for old, other in pairs}
    met: set[int] = set()

    def put(leaf: Any) -> Any:
        met.add(id(leaf))
        return new[id(leaf)] if id(leaf) in new else str(leaf) if isinstance(leaf, _Own) else leaf

    result = map_tensors(put, batch, put)
    if not met >= new.keys():
        raise DataError(
            f"what inputs= or labels= gives is made from {describe_batch(batch)}, and no part of it, so it cannot be "
            "put back. Name the part itself."
        )
    return result


def expand_shifts(names: str | Iterable[str], groups: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The shifts that a choice means: "all", groups, names, or a mix; raises ArgumentError for any other."""
    every = tuple(dict.fromkeys(name for group in groups.values() for name in group))
    known = {"all": every, **groups, **{name: (name,) for name in every}}
    asked = [names] if isinstance(names, str) else list(names)
    for name in asked:
        if name not in known:
            raise ArgumentError(f"shift {show_value(name)} is unknown.{nearest(name, known, listed=True)}")
    found = tuple(dict.fromkeys(one for name in asked for one in known[name]))
    if not found:
        raise ArgumentError(f"no shift is named; give 'all', or some of {', '.join(every)}.")
    return found
