"""Attention of PyTorch that lost heads computes as before it did: without weights it keeps no matrix of scores."""

import pytest
import torch
from torch import Tensor, nn

from nervure import Cut, Plan, apply, trace
from nervure.evaluation import peak_memory
from nervure.surgery.attention import ResizedAttention

LONG = torch.randn(1, 300, 16, generator=torch.Generator().manual_seed(0))


class Attends(nn.Module):
    def __init__(self, weights: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights, self.attention = weights, nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor, padding: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        out, _ = self.attention(x, x, x, padding, need_weights=self.weights, attn_mask=mask)
        return out + x


def cut(weights: bool) -> nn.Module:
    model = Attends(weights).eval()
    graph = trace(model, LONG)
    heads = next(group for group in graph.prunable if group.kind == "heads")
    smaller = apply(model, graph, Plan((Cut(heads.name, [True, False, True, False]),)))
    assert isinstance(smaller.attention, ResizedAttention)
    return smaller


def test_without_weights_no_matrix_of_scores_is_kept() -> None:
    matrix = 4 * 2 * 300 * 300
    assert peak_memory(cut(weights=False), LONG).activations < matrix < peak_memory(cut(weights=True), LONG).activations


@pytest.mark.parametrize("given", ["nothing", "padding", "mask", "both"])
def test_both_ways_compute_the_same(given: str) -> None:
    padding = torch.arange(300)[None] > 250 if given in ("padding", "both") else None
    mask = torch.ones(300, 300, dtype=torch.bool).triu(1) if given in ("mask", "both") else None
    with torch.no_grad():
        first, second = (cut(weights)(LONG, padding, mask) for weights in (False, True))
    torch.testing.assert_close(first, second)
