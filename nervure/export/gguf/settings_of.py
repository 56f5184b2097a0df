"""What a GGUF file says of a decoder beside its tensors."""

from typing import Any, TypeAlias

from nervure.errors import EngineError
from nervure.export.gguf.families import DECI
from nervure.export.gguf.layer_sizes import DecoderShape, setting

EMPTY_FFN = 32
"""Width of the feed-forward network of zeros in a layer that lost its own: llama.cpp goes wrong where there is none."""
SCALINGS = ("default", "linear", "llama3")
"""Kinds of rotary frequencies that do not change with the length of the text."""

Setting: TypeAlias = int | float | str | list[int]


def settings_of(shape: DecoderShape) -> dict[str, Setting]:
    """Keys, without the architecture before them, and their values; EngineError where GGUF has none for it."""
    vocabulary, size = shape.embedding.shape
    windows = _windows(shape)
    found: dict[str, Setting] = {
        "vocab_size": vocabulary,
        "context_length": _context(shape, windows),
        "embedding_length": size,
        "block_count": len(shape.layers),
        "attention.layer_norm_rms_epsilon": float(setting(shape.module, "rms_norm_eps")),
        "attention.key_length": shape.head_width,
        "attention.value_length": shape.head_width,
        "rope.dimension_count": shape.head_width,
        **_rotary(shape),
        **_widths(shape),
    }
    if shape.family.period:
        found["attention.sliding_window"] = max(windows.values()) or _context(shape, windows)
        found["attention.sliding_window_pattern"] = shape.family.period
    if shape.family.scales_embeddings:
        _require_scale(shape)
    return found


def _widths(shape: DecoderShape) -> dict[str, Setting]:
    """Heads and widths: a number, or one for each layer."""
    keys = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    rows = [sizes._replace(ffn=sizes.ffn or EMPTY_FFN) for sizes in shape.layers.values()]
    columns = zip(*rows, strict=True)
    return {key: list(values) if shape.family is DECI else values[0] for key, values in zip(keys, columns, strict=True)}


def _context(shape: DecoderShape, windows: dict[int, int]) -> int:
    """The longest text: within a window, attention to it and to everything is the same."""
    longest = int(setting(shape.module, "max_position_embeddings"))
    return longest if shape.family.period else min([longest, *filter(None, windows.values())])


def _windows(shape: DecoderShape) -> dict[int, int]:
    """How many tokens each layer attends to; 0: all."""
    # A layer without attention attends to no window.
    attentions = {number: shape.layer(number).get_submodule("self_attn") for number in shape.layers}
    windows = {number: int(getattr(part, "sliding_window", None) or 0) for number, part in attentions.items()}
    if setting(shape.module, "layer_types") is None:
        return dict.fromkeys(windows, int(setting(shape.module, "sliding_window") or 0))
    for place, (number, window) in enumerate(windows.items()):
        period = shape.family.period
        if period and bool(window) == ((place + 1) % period == 0):
            raise EngineError(
                f"layer {number} attends to {window or 'all'} tokens; in "
                f"{shape.family.name!r} of GGUF every {period}th layer attends to all, the others to a window. Drop "
                f"whole runs of {period} layers, or none."
            )
    return windows


def _rotary(shape: DecoderShape) -> dict[str, Setting]:
    said = setting(shape.module, "rope_parameters")
    if not said:
        return {"rope.freq_base": float(setting(shape.module, "rope_theta"))}
    for kind in (said,) if "rope_type" in said else said.values():
        if kind["rope_type"] not in SCALINGS:
            raise EngineError(
                f"its rotary frequencies are scaled by {kind['rope_type']!r}; what can be written is "
                f"{', '.join(map(repr, SCALINGS))}. Write 'onnx' or 'torch' instead."
            )
    if not shape.family.period:
        return {"rope.freq_base": float(said["rope_theta"])}
    everything, window = said["full_attention"], said["sliding_attention"]
    found: dict[str, Setting] = {"rope.freq_base": float(everything["rope_theta"])}
    found["rope.freq_base_swa"] = float(window["rope_theta"])
    if everything["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(everything["factor"])}
    return found


def _require_scale(shape: DecoderShape) -> None:
    embedding: Any = shape.module.get_submodule("model.embed_tokens")
    scale, size = float(embedding.embed_scale), shape.embedding.shape[1]
    # Half precision rounds the scale.
    if abs(scale / size**0.5 - 1) > 1e-2:
        raise EngineError(
            f"embeddings {size} wide are multiplied by {scale:.4g}, in {shape.family.name!r} of GGUF by "
            f"{size**0.5:.4g}, the root of their width. Leave that width: ignore=['model.embed_tokens']."
        )
