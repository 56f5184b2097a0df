"""Sizes that a model declares and does not read: what ``config.hidden_size`` says should stay true after a cut.

Integers that arrive in a call are followed exactly (see ``sizes``). Those that only the constructor reads cannot be:
they are known by their names, the words that transformer code uses for them, and only where the graph bears the name
out: every group of that size (or of heads, or of widths in heads) in the module's part of the model must shrink alike.
Where a cut makes layers differ, no single number is true, and the integer stays as it is.

So do numbers of layers and lists with an entry for each, once layers leave the list that holds them.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from typing import Any

from torch import nn

from nervure.graph.sizes import Attribute, holders, numbers_of
from nervure.graph.types import Declared, Graph, Group

CHANNELS = frozenset(
    [
        "hidden_size",
        "hidden_sizes",
        "hidden_dim",
        "d_model",
        "d_ff",
        "dim",
        "ffn_dim",
        "n_embd",
        "n_embed",
        "n_inner",
        "embed_dim",
        "embedding_dim",
        "intermediate_size",
        "inner_dim",
        "mlp_dim",
        "model_dim",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
        "feed_forward_size",
        "width",
    ]
)
HEADS = frozenset(
    [
        "num_attention_heads",
        "num_key_value_heads",
        "num_heads",
        "n_head",
        "n_heads",
        "n_kv_heads",
        "num_kv_heads",
        "encoder_attention_heads",
        "decoder_attention_heads",
    ]
)
HEAD_WIDTHS = frozenset(["head_dim", "head_size", "attention_head_size", "d_kv", "head_width"])


def declared(model: nn.Module, graph: Graph, read: Set[Attribute]) -> tuple[Declared, ...]:
    """The integers of configs that name sizes of the graph.

    Args:
        model: the traced model.
        graph: its graph.
        read: attributes that the forward pass read; these mean what the code does with them, whatever their name.
    """
    followed = {Attribute(r.module, r.attribute) for r in graph.resizes} | read
    return tuple(
        Declared(module, path, value, tuple(g.name for g in groups))
        for module, path, name, value in _configured(model)
        if Attribute(module, path) not in followed and (groups := _meant(graph, module, name, value))
    )


def _configured(model: nn.Module) -> Iterator[tuple[str, str, str, int]]:
    """Module, path, name and value of every whole number in a config."""
    for module, prefix, holder in holders(model):
        if prefix:
            for key, value in holder.items():
                for path, number in numbers_of(prefix + key, value):
                    yield module, path, key, number


def _meant(graph: Graph, module: str, name: str, value: int) -> Sequence[Group]:
    """The groups whose size an integer of that name and value states, in the module's part of the model."""
    own = [g for g in graph.groups if any(s.tensor.startswith(f"{module}." if module else "") for s in g.slots)]
    if name in CHANNELS:
        return [g for g in own if g.kind == "channels" and g.size == value]
    wanted = "heads" if name in HEADS else "head widths" if name in HEAD_WIDTHS else None
    # A unit may stand for several heads (queries that share keys) or for several places in a head (rotary pairs).
    alike = [g for g in own if g.kind == wanted]
    return alike if alike and all(value % g.size == 0 for g in alike) else []


# -- how many layers there are ---------------------------------------------------------------------------------------

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
            holder[key] = _shortened(key, value, said, below, gone)


def _shortened(
    key: str, value: Any, said: Mapping[str, Any], sizes: Mapping[str, int], gone: Mapping[str, Collection[int]]
) -> Any:
    """What an entry becomes; itself where it counts no layers, or where no single answer is true."""
    if type(value) is int:
        lost = {len(gone[name]) for name in _meant_lists(key, value, said, sizes)} if COUNTS.fullmatch(key) else set()
        return value - lost.pop() if len(lost) == 1 else value
    inner = [{n: size for n, size in sizes.items() if f".{i}." in n} for i in range(len(value))]
    if COUNTS.fullmatch(key) and all(type(v) is int for v in value) and any(inner):
        # One number for each of several lists, as those of stages.
        return type(value)(_shortened(key, v, said, own, gone) for v, own in zip(value, inner, strict=True))
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
