"""Where what a product gives is added to a stream that other layers have written to before.

A batch norm in between is an affine map, as long as the network is in evaluation mode.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from torch import Tensor

from nervure.graph.ops.table import family
from nervure.graph.products import Operand
from nervure.graph.tape import Entry, Ref

Key: TypeAlias = tuple[str, int]
"""A parameter, and the how-manieth of its uses."""
RUNNING_MEAN, RUNNING_VAR = 3, 4
"""Where batch norms take their statistics."""


@final
@dataclass(frozen=True, slots=True)
class Join:
    """What a product gives, added to a stream by an operator.

    Attributes:
        key: the product.
        entry: the operator that adds.
        other: the place of the stream in its arguments.
        is_normed: whether what is added went through a batch norm.
    """

    key: Key
    entry: Entry
    other: int
    is_normed: bool = False

    @property
    def before(self) -> Ref:
        """The stream as it was."""
        found: Ref = self.entry.args[self.other]
        return found

    def value_before(self, args: tuple[Any, ...], out: Tensor) -> Tensor:
        """The stream as it was, where it may have been written into since."""
        was: Tensor = args[self.other]
        return was if was is not out else out - args[1 - self.other]


@final
class Follower:
    """Follows what products give, through views, biases and one batch norm, to where it joins a stream."""

    def __init__(self, shape: Callable[[Ref], tuple[int, ...]]) -> None:
        self._shape = shape
        self._keys: dict[int, Key] = {}
        self._normed: set[int] = set()
        self._uses: Counter[str] = Counter()

    def product(self, entry: Entry, key: Key) -> None:
        """A product gives something."""
        self._keys[entry.outs[0].id] = key

    def products(self, entry: Entry, uses: Iterable[Operand]) -> Iterator[tuple[Key, Operand]]:
        """What an operator multiplies with what flows, with the how-manieth use it is of its parameter; all in turn."""
        for use in uses:
            if use.is_live:
                name = use.trail.parameter
                key = name, self._uses[name]
                self._uses[name] += 1
                self.product(entry, key)
                yield key, use

    def step(self, entry: Entry) -> Iterator[Join]:
        """Go on over an operator; the streams that are joined by it."""
        places = [p for p, v in enumerate(entry.args) if isinstance(v, Ref) and v.id in self._keys]
        if family(entry.name) == "view" and places == [0]:
            self._pass(entry)
        elif family(entry.name) == "batch norm" and places == [0] and isinstance(entry.args[RUNNING_MEAN], Ref):
            if entry.args[0].id not in self._normed:
                self._pass(entry)
                self._normed.add(entry.outs[0].id)
        elif family(entry.name) == "add" and not entry.kwargs and all(isinstance(v, Ref) for v in entry.args):
            mine, others = self._shape(entry.outs[0]), [self._shape(ref) for ref in entry.args]
            for place in places:
                if others == [mine, mine]:
                    given = entry.args[place].id
                    yield Join(self._keys[given], entry, 1 - place, given in self._normed)
                elif place == 0 and len(others[1]) == 1 and entry.args[0].id not in self._normed:
                    self._pass(entry)

    def _pass(self, entry: Entry) -> None:
        self._keys[entry.outs[0].id] = self._keys[entry.args[0].id]
        if entry.args[0].id in self._normed:
            self._normed.add(entry.outs[0].id)
