"""The tensors of a decoder as a GGUF file has them: by its names, in its order of rotary pairs."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from nervure.errors import EngineError
from nervure.export.gguf.layer_sizes import SAME, DecoderShape, LayerSizes, part_of, setting
from nervure.export.gguf.settings_of import EMPTY_FFN

MakeTensor: TypeAlias = Callable[[], Tensor]


def tensors_of(shape: DecoderShape) -> Iterator[tuple[str, MakeTensor]]:
    """Name in the file, and what makes the tensor: float32, on the CPU; one is made at a time."""
    head, norm = shape.module.get_parameter("lm_head.weight"), shape.module.get_parameter("model.norm.weight")
    yield "token_embd.weight", partial(_as_float, shape.embedding)
    yield "output_norm.weight", partial(_norm, norm, shape.family.norm_offset)
    if head is not shape.embedding:
        yield "output.weight", partial(_as_float, head)
    factors = _rotary_factors(shape)
    if factors is not None:
        yield "rope_freqs.weight", partial(_as_float, factors)
    for place, number in enumerate(shape.layers):
        yield from _of_layer(shape, number, f"blk.{place}")


def require_complete(shape: DecoderShape) -> None:
    """Raise EngineError where the model has parameters that the file does not get."""
    used = {id(shape.embedding), id(shape.module.get_parameter("lm_head.weight"))}
    used.add(id(shape.module.get_parameter("model.norm.weight")))
    for number, sizes in shape.layers.items():
        for path in _paths(shape, sizes).values():
            used |= {id(tensor) for tensor in shape.layer(number).get_submodule(path).parameters()}
    rest = [name for name, tensor in shape.module.named_parameters() if id(tensor) not in used]
    if rest:
        more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
        raise EngineError(
            f"{rest[0]!r}{more}: the architecture {shape.family.name!r} of GGUF has no place for it. Write 'onnx' or "
            "'torch' instead."
        )


def _of_layer(shape: DecoderShape, number: int, prefix: str) -> Iterator[tuple[str, MakeTensor]]:
    sizes, layer = shape.layers[number], shape.layer(number)
    heads = {"attn_q": sizes.heads, "attn_k": sizes.kv_heads} if shape.family.interleaved else {}
    for name, path in _paths(shape, sizes).items():
        part = part_of(layer, path)
        if not isinstance(part, nn.Linear):
            yield f"{prefix}.{name}.weight", partial(_norm, part.weight, shape.family.norm_offset)
            continue
        for kind, tensor in part.named_parameters():
            change = partial(_interleave, heads=heads[name]) if name in heads else _as_float
            yield f"{prefix}.{name}.{kind}", partial(change, tensor)
    if not sizes.ffn:
        width = shape.embedding.shape[1]
        yield f"{prefix}.ffn_norm.weight", partial(torch.ones, width)
        yield f"{prefix}.ffn_gate.weight", partial(torch.zeros, EMPTY_FFN, width)
        yield f"{prefix}.ffn_up.weight", partial(torch.zeros, EMPTY_FFN, width)
        yield f"{prefix}.ffn_down.weight", partial(torch.zeros, width, EMPTY_FFN)


def _paths(shape: DecoderShape, sizes: LayerSizes) -> dict[str, str]:
    """Name in the file -> path in a layer, of what the layer has."""
    return {**(shape.family.attention if sizes.heads else {}), **(shape.family.ffn if sizes.ffn else {})}


def _as_float(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)


def _norm(weight: Tensor, offset: float) -> Tensor:
    return _as_float(weight) + offset


def _interleave(tensor: Tensor, heads: int) -> Tensor:
    """Rotary pairs next to each other: transformers keeps the first numbers of all pairs, then the second ones."""
    rows = _as_float(tensor)
    found: Tensor = rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)
    return found


def _rotary_factors(shape: DecoderShape) -> Tensor | None:
    """By what the rotary frequencies are divided, one factor for each pair; None where by nothing."""
    said, width = setting(shape.module, "rope_parameters") or {}, shape.head_width
    found = getattr(shape.module.get_submodule("model.rotary_emb"), "inv_freq", None)
    if shape.family.period or found is None:
        return None
    base = float(said.get("rope_theta") or setting(shape.module, "rope_theta"))
    plain = 1.0 / (base ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    if found.numel() != plain.numel():
        raise EngineError(
            f"there are {found.numel()} rotary frequencies for heads {width} wide, not {plain.numel()}. Cut whole "
            "heads, and leave their width as it is."
        )
    factors = plain / _as_float(found)
    if bool(((factors - 1).abs() < SAME).all()):
        return None
    if said.get("rope_type", "default") == "default":
        raise EngineError(
            f"its rotary frequencies are not those of heads {width} wide: heads became narrower. Cut whole heads, and "
            "leave their width as it is."
        )
    return factors
