"""Keys and values that a model returns for its own next call are no output of the user's."""

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import Magnitude, prune, trace
from nervure.core.tensors import is_cache, outputs_in, tensors_in


class Cache:
    """Keys and values of all layers, as decoders keep them."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer in self.held:
            key, value = (torch.cat(pair, 2) for pair in zip(self.held[layer], (key, value), strict=True))
        self.held[layer] = key, value
        return key, value


class Attention(nn.Module):
    def __init__(self, number: int, heads: int = 4, width: int = 3) -> None:
        super().__init__()
        self.number, self.width = number, width
        self.q, self.k, self.v = (nn.Linear(10, heads * width) for _ in range(3))
        self.out = nn.Linear(heads * width, 10)

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.width)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = cache.update(k, v, self.number)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    """A stream with attention that keeps its keys and values."""

    def __init__(self, form: str = "object", layers: int = 3) -> None:
        super().__init__()
        self.form = form
        self.embed, self.head = nn.Linear(5, 10), nn.Linear(10, 4)
        self.layers = nn.ModuleList(Attention(i) for i in range(layers))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Any:
        x, cache = self.embed(x), Cache() if cache is None else cache
        for layer in self.layers:
            x = x + layer(x, cache)
        kept = cache if self.form == "object" else tuple(cache.held[i] for i in range(len(self.layers)))
        return OrderedDict(logits=self.head(x), past=kept)


@pytest.mark.parametrize("form", ["object", "tuples"])
def test_heads_go_although_the_cache_has_them_too(form: str) -> None:
    torch.manual_seed(0)
    model, x = Decoder(form).eval(), torch.randn(2, 6, 5)
    heads = [g for g in trace(model, x).groups if g.kind == "heads"]
    assert len(heads) == 3 and not any(g.pinned for g in heads)
    assert prune(model, x, Magnitude(keep=0.5, scope="layer"), progress=False).verification


def test_after_the_cut_a_cache_goes_on_where_it_ended() -> None:
    torch.manual_seed(0)
    model, x = Decoder(layers=1).eval(), torch.randn(2, 6, 5)
    smaller = prune(model, x, Magnitude(keep=0.5, scope="layer"), progress=False).model.eval()
    first = smaller(x[:, :5])
    assert first["past"].held[0][0].shape[1] == 2
    torch.testing.assert_close(smaller(x[:, 5:], first["past"])["logits"], smaller(x)["logits"][:, 5:])


def test_layers_can_be_dropped_although_their_keys_and_values_are_returned() -> None:
    graph = trace(Decoder().eval(), torch.randn(2, 6, 5))
    assert [b.pinned for b in graph.blocks] == ["", "", ""]


def test_attention_that_returns_what_it_made_keeps_its_heads() -> None:
    class Maps(Decoder):
        def forward(self, x: Tensor, cache: Cache | None = None) -> Any:
            layer: Any = self.layers[0]
            x = self.embed(x)
            q, k, v = (m(x).unflatten(-1, (-1, layer.width)).transpose(1, 2) for m in (layer.q, layer.k, layer.v))
            weights = (q @ k.transpose(2, 3)).softmax(-1)
            made = weights @ v
            return layer.out(made.transpose(1, 2).flatten(2)), weights

    heads = [g for g in trace(Maps().eval(), torch.randn(2, 6, 5)).groups if g.kind == "heads"]
    assert [g.pinned for g in heads] == ["model output"]


def test_a_cache_is_written_into_and_a_result_is_not() -> None:
    class Resettable:
        def reset(self) -> None:
            """Start over."""

    class Lengthy(list[Tensor]):
        def get_seq_length(self) -> int:
            return 1

    class Update:
        def update(self, other: Any) -> None:
            """As records of data have it."""

    assert all(is_cache(v) for v in (Cache(), Resettable(), Lengthy()))
    results = (torch.ones(1), {}, [], (), set(), OrderedDict(), SimpleNamespace(x=1), nn.Linear(1, 1), Update(), 3, "a")
    assert not any(is_cache(v) for v in results)


def test_what_lies_beside_a_cache_is_found() -> None:
    cache, a, b = Cache(), torch.ones(1), torch.ones(2)
    cache.update(a, a, 0)
    value = SimpleNamespace(first=a, past=cache, rest=[b, {"again": cache}])
    assert [t.numel() for t in outputs_in(value)] == [1, 2]
    assert len(tensors_in(value)) == 4
