"""How many layers there are: what modules and configs say of it follows once layers leave the list that holds them.

Such numbers, and lists with an entry for each layer, are known by their names and by the length of the list.
"""

import re
from collections.abc import Collection, Container, Mapping, Set
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
        inside = f"{module}." if module else ""
        below = {name: size for name, size in sizes.items() if name.startswith(inside)}
        public = {key: value for key, value in holder.items() if not key.startswith("_")}
        said = {key: value for key, value in public.items() if type(value) in (int, list, tuple)}
        for key, value in said.items():
            holder[key] = _shorten_entry(key, value, said, below, gone)


def _shorten_entry(
    key: str, value: Any, said: Mapping[str, Any], sizes: Mapping[str, int], gone: Mapping[str, Collection[int]]
) -> Any:
    """What an entry becomes; itself where it counts no layers, or where no single answer is true.

    Of a list of 6 that loses its layers 1 and 4: ``num_layers = 6`` becomes 4, ``layer_types``, with an entry for each,
    loses the same two; of two lists, ``depths = [2, 6]`` becomes [2, 4].
    """
    is_count = COUNTS.fullmatch(key)
    if type(value) is int:
        meant = _meant_lists(key, value, said, sizes) if is_count else []
        lost = {len(gone[name]) for name in meant}
        return value - lost.pop() if len(lost) == 1 else value
    stages = [{name: size for name, size in sizes.items() if f".{i}." in name} for i in range(len(value))]
    if is_count and all(type(v) is int for v in value) and any(stages):
        # One number for each of several lists, as those of stages.
        shortened = [_shorten_entry(key, v, said, own, gone) for v, own in zip(value, stages, strict=True)]
        return type(value)(shortened)
    left = {frozenset(gone[name]) for name in _meant_lists(key, len(value), said, sizes)}
    if len(left) != 1 or not PER_LAYER.fullmatch(key):
        return value
    (leaving,) = left
    return type(value)(v for i, v in enumerate(value) if i not in leaving)


def _meant_lists(key: str, size: int, said: Mapping[str, Any], sizes: Mapping[str, int]) -> list[str]:
    """The lists of layers, of those of that size, that an entry may stand for.

    ``decoder_layers`` stands for ``decoder.layers``; beside it ``num_layers`` stands for ``encoder.layers``.
    """
    alike = {name: _sides_in(name) for name in sizes if sizes[name] == size}
    own = _sides_in(key.split("_"))
    # What another number names by its side is not meant by one that names none.
    rivals = [other for other in said if other != key and COUNTS.fullmatch(other) and said[other] == size]
    others = set().union(*(_sides_in(other.split("_")) for other in rivals))
    named = [name for name, sides in alike.items() if sides & own]
    unclaimed = [name for name, sides in alike.items() if not sides & others]
    return named or unclaimed or list(alike)


def _sides_in(words: Container[str]) -> set[str]:
    return {side for side in SIDES if side in words}
