"""``nn.MultiheadAttention`` with fewer heads, or narrower ones, than its embedding would make.

The original derives the width of a head from the width of its input, so it cannot lose a head. This subclass keeps the
parameters and their names and reads the widths from them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def keep_padding(model: nn.Module) -> None:
    """Let no encoder pack its inputs (as nested tensors), in place: only PyTorch's own fused layers can read those."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


class ResizedAttention(nn.MultiheadAttention):
    """Multi-head attention whose head width is its own; made by :meth:`adopt` from a module that was cut."""

    head_width: int
    scale: float

    @staticmethod
    def adopt(module: nn.Module) -> None:
        """Turn a cut ``nn.MultiheadAttention`` into this class, in place."""
        assert isinstance(module, nn.MultiheadAttention)
        inner = module.out_proj.weight.shape[1]
        if not isinstance(module, ResizedAttention):
            before = module.head_dim
            module.__class__ = ResizedAttention
            module.scale = before**-0.5
            module.head_width = before
        assert isinstance(module, ResizedAttention)
        weight = module.in_proj_weight if module.in_proj_weight is not None else module.q_proj_weight
        module.embed_dim = weight.shape[1]
        module.kdim = module.embed_dim if module.in_proj_weight is not None else module.k_proj_weight.shape[1]
        module.vdim = module.embed_dim if module.in_proj_weight is not None else module.v_proj_weight.shape[1]
        # Heads leave whole unless widths inside them were asked for, which leaves the number of heads.
        if inner % module.head_width == 0 and inner // module.head_width <= module.num_heads:
            module.num_heads = inner // module.head_width
        else:
            module.head_width = inner // module.num_heads
        module.head_dim = module.head_width
        # Fused encoder kernels assume the original relation of widths: this sends them to ``forward``.
        module._qkv_same_embed_dim = False
        module.out_proj.out_features, module.out_proj.in_features = module.out_proj.weight.shape

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As in ``nn.MultiheadAttention``."""
        single = query.dim() == 2
        if single:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = (self._heads(t) for t in self._project(query, key, value))
        masks = self._masks(key_padding_mask, attn_mask, q, k.shape[-2])
        mask = sum(masks[1:], masks[0]) if masks else None
        dropout, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            weights = (q * self.scale) @ k.transpose(-2, -1)
            weights = F.dropout((weights if mask is None else weights + mask).softmax(-1), dropout)
            out = weights @ v
        else:
            # As the original does: no matrix of scores is kept.
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if single:
            out, weights = out.squeeze(0), None if weights is None else weights.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        return out, weights.mean(-3) if weights is not None and average_attn_weights else weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights: Any = (
            self.in_proj_weight.chunk(3)
            if self.in_proj_weight is not None
            else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        )
        biases: Any = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None, None, None)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], dim=1)
        if self.add_zero_attn:
            k, v = (torch.cat([t, t.new_zeros(t.shape[0], 1, t.shape[2])], dim=1) for t in (k, v))
        return q, k, v

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_width))
        return heads.transpose(1, 2)

    def _masks(self, padding: Tensor | None, mask: Tensor | None, like: Tensor, keys: int) -> list[Tensor]:
        masks = []
        if mask is not None:
            mask = F.pad(_additive(mask, like), (0, keys - mask.shape[-1]))
            masks.append(mask.unflatten(0, (-1, mask.shape[0] // like.shape[0])) if mask.dim() == 3 else mask)
        if padding is not None:
            short = keys - padding.shape[-1]
            masks.append(F.pad(_additive(padding, like), (0, short))[..., None, None, :])
        return masks


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
