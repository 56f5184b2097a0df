"""What kind of decoder a module is, and how wide each of its layers is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

from torch import Tensor, nn

from nervure.errors import EngineError
from nervure.export.gguf.families import DECI, FAMILIES, Family
from nervure.surgery.drop import Pass, Settings, Silent

PARTS = frozenset({"model.embed_tokens", "model.layers", "model.norm", "lm_head"})
SAME = 1e-4
"""Two scales are one within this share."""


class LayerSizes(NamedTuple):
    """Query heads, key-value heads and width of the feed-forward network; 0 where the layer has none."""

    heads: int
    kv_heads: int
    ffn: int

    def __str__(self) -> str:
        heads = f"{self.heads} heads ({self.kv_heads} of keys and values)" if self.heads else "no attention"
        return f"{heads} and {f'a feed-forward network {self.ffn} wide' if self.ffn else 'no feed-forward network'}"


@final
@dataclass(frozen=True, slots=True, eq=False)
class DecoderShape:
    """A module that is a decoder, and its sizes.

    Attributes:
        module: of transformers.
        family: what kind it is, in the architecture that is written.
        layers: number in the module -> sizes, of the layers that compute something.
        head_width: of every head.
    """

    module: nn.Module
    family: Family
    layers: Mapping[int, LayerSizes]
    head_width: int

    def layer(self, number: int) -> nn.Module:
        """A layer by its number in the module."""
        return self.module.get_submodule(f"model.layers.{number}")

    @property
    def embedding(self) -> Tensor:
        """The table of embeddings [vocabulary, width]."""
        return self.module.get_parameter("model.embed_tokens.weight")


def find_shape(module: nn.Module) -> DecoderShape:
    """The sizes of a decoder; raises EngineError where it is none, or GGUF has no words for its sizes."""
    family, width = _family_of(module), _head_width(module)
    layers = {number: sizes for number, sizes in _all_sizes(module, family, width).items() if any(sizes)}
    if not layers:
        raise EngineError("all layers were dropped: nothing is left that a GGUF file could hold.")
    shape = DecoderShape(module, family, layers, width)
    return replace(shape, family=_suit_family(shape))


def setting(module: nn.Module, *names: str) -> Any:
    """The first of these numbers that the config of a model says; None where it says none."""
    found = (getattr(module.config, name, None) for name in names)
    return next((value for value in found if value is not None), None)


def part_of(layer: nn.Module, path: str) -> Any:
    """A linear layer or norm of a layer; None where it was dropped."""
    try:
        part = layer.get_submodule(path)
    except AttributeError:
        return None
    if isinstance(part, Pass | Silent | Settings):
        return None
    if isinstance(part, nn.Linear) or type(part).__name__.endswith("RMSNorm"):
        return part
    raise EngineError(
        f"{path} is a {type(part).__name__}, where a linear layer or a norm is expected. Merge adapters "
        "(merge_and_unload) and undo other wrappers before exporting."
    )


def _family_of(module: nn.Module) -> Family:
    kind = getattr(getattr(module, "config", None), "model_type", None)
    has_parts = {name for name, _ in module.named_modules()} >= PARTS
    if not isinstance(kind, str) or kind not in FAMILIES or not has_parts:
        told = f" of model_type {kind!r}" if isinstance(kind, str) else ""
        raise EngineError(
            f"{type(module).__name__}{told} is no decoder that can be written as GGUF. These can, as the causal "
            f"language models of transformers: {', '.join(FAMILIES)}. Other models go to 'onnx' or 'torch'."
        )
    family, activation = FAMILIES[kind], setting(module, "hidden_act", "hidden_activation")
    if activation != family.activation:
        raise EngineError(
            f"its activation is {activation!r}; what runs GGUF takes {family.activation!r} as known for "
            f"{family.name!r}. Write 'onnx' or 'torch' instead."
        )
    return family


def _head_width(module: nn.Module) -> int:
    """The width of a head, the same in all layers."""
    found: dict[int, str] = {}
    for name, part in module.named_modules():
        if not name.endswith(".self_attn") or isinstance(part, Pass | Silent):
            continue
        found.setdefault(int(part.head_dim), name)
        if abs(part.scaling * part.head_dim**0.5 - 1) > SAME:
            raise EngineError(
                f"{name} scales by {part.scaling:.4g}, where heads {part.head_dim} wide are scaled by "
                f"{part.head_dim**-0.5:.4g} in GGUF. Cut whole heads, and leave the width of heads as it is."
            )
    if len(found) > 1:
        (a, first), (b, second) = list(found.items())[:2]
        raise EngineError(
            f"heads of {first} are {a} wide and those of {second} {b}; GGUF has one width for all. Cut whole heads, "
            "and leave their width as it is."
        )
    return next(iter(found), int(setting(module, "head_dim") or 0)) or 1


def _all_sizes(module: nn.Module, family: Family, width: int) -> dict[int, LayerSizes]:
    sizes = {}
    for number, layer in enumerate(module.get_submodule("model.layers").children()):
        query, key = (part_of(layer, family.attention[name]) for name in ("attn_q", "attn_k"))
        gate = part_of(layer, family.ffn["ffn_gate"])
        heads, kv_heads = (0 if part is None else len(part.weight) // width for part in (query, key))
        if bool(heads) != bool(kv_heads) or (kv_heads and heads % kv_heads):
            raise EngineError(
                f"layer {number} has {heads} query heads for {kv_heads} of keys and values; GGUF wants as many for "
                "each. Cut heads in groups: those of keys and values with their queries."
            )
        sizes[number] = LayerSizes(heads, kv_heads, 0 if gate is None else len(gate.weight))
    return sizes


def _suit_family(shape: DecoderShape) -> Family:
    """The family itself where its layers are alike and whole, else the one for layers that differ."""
    family, first = shape.family, next(iter(shape.layers.values()))
    odd = next(((n, sizes) for n, sizes in shape.layers.items() if sizes != first or not all(sizes)), None)
    if odd is None:
        is_square = first.heads * shape.head_width == shape.embedding.shape[1]
        return DECI if family.square and not is_square else family
    if not family.varied:
        raise EngineError(
            f"layer {odd[0]} has {odd[1]}, the first has {first}; the architecture {family.name!r} of GGUF has one "
            "number for all layers. Cut them alike (scope='layer'), or drop whole layers."
        )
    return DECI
