"""Sizes that a model declares and does not read: what ``config.hidden_size`` says should stay true after a cut.

Integers that arrive in a call are followed exactly (see ``sizes``). Those that only the constructor reads cannot be:
they are known by their names, the words that transformer code uses for them, and only where the graph bears the name
out: every group of that size (or of heads, or of widths in heads) in the module's part of the model must shrink alike.
Where a cut makes layers differ, no single number is true, and the integer stays as it is.
"""

from collections.abc import Iterator, Sequence, Set

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
