"""Which decoders GGUF has a place for: the names of their tensors, and what llama.cpp takes as known of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

ATTENTION: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
HEAD_NORMS: Mapping[str, str] = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
FFN: Mapping[str, str] = {
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@final
@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """A kind of decoder.

    Attributes:
        name: its architecture in GGUF, where all layers are alike.
        varied: the architecture where they are not; empty: there is none.
        attention: tensor in GGUF -> path in a layer of transformers, of the attention and its norms.
        ffn: the same of the feed-forward network.
        square: whether all query heads together must be as wide as the embedding.
        interleaved: whether the two numbers of a rotary pair stand next to each other in the file.
        activation: of the feed-forward network, as transformers calls it.
        norm_offset: what is added to the weights of norms.
        scales_embeddings: whether embeddings are multiplied by the root of their width.
        period: of every so many layers the last attends to all tokens, the others to a window; 0: all to all.
    """

    name: str
    varied: str = ""
    attention: Mapping[str, str] = field(default_factory=lambda: ATTENTION)
    ffn: Mapping[str, str] = field(default_factory=lambda: FFN)
    square: bool = False
    interleaved: bool = False
    activation: str = "silu"
    norm_offset: float = 0.0
    scales_embeddings: bool = False
    period: int = 0


LLAMA = Family("llama", "deci", interleaved=True)
DECI = Family("deci", interleaved=True)
"""LLaMA whose layers differ, made for models that a search found; their rotary pairs are kept as LLaMA's are."""
GEMMA3 = Family(
    "gemma3",
    attention={**ATTENTION, **HEAD_NORMS, "post_attention_norm": "post_attention_layernorm"},
    ffn={**FFN, "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm"},
    activation="gelu_pytorch_tanh",
    norm_offset=1.0,
    scales_embeddings=True,
    period=6,
)
FAMILIES: Mapping[str, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Family("qwen2", "deci", square=True),
    "qwen3": Family("qwen3", attention={**ATTENTION, **HEAD_NORMS}),
    "gemma3_text": GEMMA3,
}
"""By ``model_type`` of a config of transformers."""
BY_ARCHITECTURE: Mapping[str, Family] = {family.name: family for family in (*FAMILIES.values(), DECI)}
