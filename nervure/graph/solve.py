"""Sizes solved: whether a size in the code follows every cut is a question about numbers, and seldom needs a trial.

A size is an expression of attributes and of sizes read off tensors. Both its sides, the expression and the number of
survivors of the axis that it must fit, are worked out for a few random cuts at once: sums, products and quotients that
agree on all of them agree for good.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nervure.graph.labels import Array, SizeConstraint, TensorLabels
from nervure.graph.propagate import LabelPropagation
from nervure.graph.sizes import Attribute, Expression

TRIES = 8


@dataclass(slots=True)
class Solver:
    """``alive`` says of labels which survive in each of the random cuts: [n] to booleans [tries, n]."""

    flow: LabelPropagation
    alive: Callable[[Array], np.ndarray]
    _attributes: dict[Attribute, tuple[Array, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for wish, vectors in self.flow.store.sizes:
            self._attributes.setdefault(wish.attribute, vectors)

    def holds(self, claim: SizeConstraint) -> bool:
        """Whether the size in the code follows every cut."""
        try:
            with np.errstate(divide="ignore"):
                wish = claim.wish if isinstance(claim.wish, int) else claim.wish.evaluate(self._leaf)
        except _UnknownError:
            return False
        return bool(np.all(wish == self._survivors(claim.size, claim.vectors)))

    def are_alike(self, one: Expression, other: Expression) -> bool:
        """Whether two sizes stay equal after every cut."""
        try:
            return bool(np.all(one.evaluate(self._leaf) == other.evaluate(self._leaf)))
        except _UnknownError:
            return False

    def labels_of(self, claim: SizeConstraint) -> list[Array]:
        """All labels that a claim speaks of."""
        found = list(claim.vectors)
        for leaf in () if isinstance(claim.wish, int) else claim.wish.leaves():
            found += self.labels_of_leaf(leaf)
        return found

    def labels_of_leaf(self, leaf: Expression) -> list[Array]:
        """The labels along the axis that a size was read off, or that an attribute is the size of."""
        if leaf.attribute is not None:
            return list(self._attributes.get(leaf.attribute, ()))
        number, axis = leaf.dimension or (-1, 0)
        space = self.flow.spaces.get(number, TensorLabels())
        return [z.labels for z in space.along(axis)]

    def _leaf(self, leaf: Expression) -> Any:
        if leaf.attribute is not None:
            vectors = self._attributes.get(leaf.attribute)
            return leaf.value if vectors is None else self._survivors(leaf.value, vectors)
        number, axis = leaf.dimension or (-1, 0)
        space = self.flow.spaces.get(number, TensorLabels())
        wish = dict(space.wishes).get(axis) if space.free or axis in space.spread else None
        if isinstance(wish, Expression):
            return wish.evaluate(self._leaf)
        layers = space.along(axis)
        if any(len(z.support) > 1 for z in layers):
            raise _UnknownError
        return self._survivors(leaf.value, [z.labels.reshape(-1) for z in layers])

    def _survivors(self, size: int, vectors: Sequence[Array]) -> Any:
        if not vectors:
            return size
        kept = self.alive(vectors[0])
        for labels in vectors[1:]:
            kept = kept & self.alive(labels)
        return kept.sum(axis=1)


class _UnknownError(Exception):
    """A size that cannot be worked out."""


def any_cut(flow: LabelPropagation) -> Callable[[Array], np.ndarray]:
    """Random cuts in which every label leaves by itself, as far as labels are united by now."""
    drawn = np.random.default_rng(0).integers(1 << 62, size=(TRIES, 1), dtype=np.uint64)
    odd = drawn * np.uint64(2) + np.uint64(1)

    def alive(labels: Array) -> np.ndarray:
        roots = flow.store.unions.find(labels)
        mixed = (roots.astype(np.uint64) + np.uint64(1)) * odd
        mixed ^= mixed >> np.uint64(29)
        kept: np.ndarray = (roots < 0) | ((mixed * odd) >> np.uint64(61) > 2)
        return kept

    return alive


def follows(flow: LabelPropagation, wish: Expression, vectors: Sequence[Array]) -> bool:
    """Whether a size follows any cut of an axis with these layers by itself, as far as labels are united by now."""
    return Solver(flow, any_cut(flow)).holds(SizeConstraint(wish, len(vectors[0]), tuple(vectors), ""))
