"""How many layers there are: what modules and configs say of it follows once layers leave the list that holds them.

Such numbers, and lists with an entry for each layer, are known by their names and by the length of the list.
"""

import re
from collections.abc import Collection, Mapping, Set
from typing import Any

from torch import nn

from nervure.graph.sizes import holders

COUNTS = re.compile(r"(.*_)?(n_?|num_)(.*_)?(layer|block)s?|(.*_)?(layers|blocks|depths?)")
"""Names that say how many layers a list holds, or, in a list of numbers, how many each of several does."""
PER_LAYER = re.compile(r"(.*_)?(layer|block)s?(_.*)?")
"""Names of lists with an entry for each layer."""
SIDES = ("encoder", "decoder", "text", "vision", "audio")
"""Words in a name that say which of several lists of layers are meant."""


def shorten(model: nn.Module, leaving: Mapping[str, Collection[int]], lists: Set[str]) -> None:
    """Let the numbers of layers that modules and configs declare follow elements that are about to leave their lists.

    Args:
        model: changed in place; its lists still are as long as ever.
        leaving: for each list that is to lose elements their numbers.
        lists: the names of all lists of layers. Where those that a name may stand for will differ, it stays.
    """
    gone = {name: frozenset(leaving.get(name, ())) for name in lists}
    sizes = {name: sum(1 for _ in model.get_submodule(name).children()) for name in lists}
    for module, _, holder in holders(model) if leaving else ():
        below = {n: size for n, size in sizes.items() if n.startswith(f"{module}." if module else "")}
        said = {k: v for k, v in holder.items() if k[:1] != "_" and type(v) in (int, list, tuple)}
        for key, value in said.items():
            holder[key] = _shorten_entry(key, value, said, below, gone)


def _shorten_entry(
    key: str, value: Any, said: Mapping[str, Any], sizes: Mapping[str, int], gone: Mapping[str, Collection[int]]
) -> Any:
    """What an entry becomes; itself where it counts no layers, or where no single answer is true."""
    if type(value) is int:
        lost = {len(gone[name]) for name in _meant_lists(key, value, said, sizes)} if COUNTS.fullmatch(key) else set()
        return value - lost.pop() if len(lost) == 1 else value
    inner = [{n: size for n, size in sizes.items() if f".{i}." in n} for i in range(len(value))]
    if COUNTS.fullmatch(key) and all(type(v) is int for v in value) and any(inner):
        # One number for each of several lists, as those of stages.
        return type(value)(_shorten_entry(key, v, said, own, gone) for v, own in zip(value, inner, strict=True))
    left = {frozenset(gone[name]) for name in _meant_lists(key, len(value), said, sizes)}
    if len(left) != 1 or not PER_LAYER.fullmatch(key):
        return value
    (one,) = left
    return type(value)(v for i, v in enumerate(value) if i not in one)


def _meant_lists(key: str, size: int, said: Mapping[str, Any], sizes: Mapping[str, int]) -> list[str]:
    """The lists of layers, of those of that size, that an entry may stand for."""
    alike = {name: {side for side in SIDES if side in name} for name in sizes if sizes[name] == size}
    sides = {other: {side for side in SIDES if side in other.split("_")} for other in said if COUNTS.fullmatch(other)}
    own = {side for side in SIDES if side in key.split("_")}
    # What another number names by its side is not meant by one that names none.
    others = set().union(*(found for other, found in sides.items() if other != key and said[other] == size))
    named = [name for name, found in alike.items() if found & own]
    return named or [name for name, found in alike.items() if not found & others] or list(alike)
