"""Operators that pick, place or mask along axes beside the units: which units go through, each verified and by hand."""

import copy
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import Graph, apply, trace, verify
from tests.networks import noise, seeded
from tests.oracle import call, difference, double, halved, plan_of, zero_readers


def cut_and_checked(model: nn.Module, graph: Graph, example: Any) -> nn.Module:
    """Half of every group that is free cut at once, verified."""
    plan = plan_of(graph, halved(graph))
    smaller = apply(model, graph, plan)
    assert verify(model, SimpleNamespace(model=smaller, graph=graph, plan=plan), example)
    return smaller


def free(graph: Graph) -> set[str]:
    return {group.name for group in graph.prunable}


# -- masks over the tokens of attention ----------------------------------------------------------------------------


class Attended(nn.Module):
    """Self-attention over tokens of which some are padding; the mask is made by a function."""

    def __init__(self, masks: Callable[[Tensor, int], dict[str, Any]], heads: int = 4) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(9, 16), nn.MultiheadAttention(16, heads, batch_first=True)
        self.out, self.masks = nn.Linear(16, 3), masks

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.out(self.attention(x, x, x, **self.masks(tokens == 0, self.attention.num_heads))[0])


TOKENS = torch.tensor([[1, 2, 3, 4, 5], [3, 4, 5, 0, 0]])
CAUSAL = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
MASKS: dict[str, Callable[[Tensor, int], dict[str, Any]]] = {
    "padding": lambda pad, h: {"key_padding_mask": pad},
    "padding, no weights": lambda pad, h: {"key_padding_mask": pad, "need_weights": False},
    "padding and order": lambda pad, h: {"key_padding_mask": pad, "attn_mask": CAUSAL},
    "order": lambda pad, h: {"attn_mask": CAUSAL},
    "expanded to the heads": lambda pad, h: {"attn_mask": pad[:, None, None].expand(-1, h, 5, -1).reshape(-1, 5, 5)},
    "repeated for the heads": lambda pad, h: {"attn_mask": pad[:, None].expand(-1, 5, -1).repeat_interleave(h, 0)},
    "tiled for the heads": lambda pad, h: {"attn_mask": pad[:, None, None].repeat(1, h, 5, 1).flatten(0, 1)},
}


@pytest.mark.parametrize("name", MASKS)
def test_heads_go_where_one_mask_is_for_all_of_them(name: str) -> None:
    model = seeded(lambda: Attended(MASKS[name]))
    graph = trace(model, TOKENS)
    assert {"attention", "embed", "attention.out_proj"} == free(graph), graph.describe()
    cut_and_checked(model, graph, TOKENS)


def test_a_mask_for_a_number_of_heads_that_the_code_says_pins_them() -> None:
    model = seeded(lambda: Attended(lambda pad, h: {"attn_mask": pad[:, None, None].repeat(1, 4, 5, 1).flatten(0, 1)}))
    assert trace(model, TOKENS)["attention"].pinned


def test_heads_of_an_encoder_with_padding_go() -> None:
    def build() -> nn.Module:
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    model, x = seeded(build), {"src": noise(2, 5, 16), "src_key_padding_mask": TOKENS == 0}
    graph = trace(model, x)
    assert {"layers.0.self_attn", "layers.1.self_attn"} <= free(graph)
    cut_and_checked(model, graph, x)


class Pool(nn.Module):
    """Attention pooling that calls the function itself, with projections of its own: tokens ask by their mean."""

    def __init__(self, separate: bool) -> None:
        super().__init__()
        self.stem, self.heads, self.separate = nn.Conv2d(3, 16, 3, padding=1), 4, separate
        self.q, self.k, self.v, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x])
        own = {"q_proj_weight": self.q.weight, "k_proj_weight": self.k.weight, "v_proj_weight": self.v.weight}
        packed = torch.cat([self.q.weight, self.k.weight, self.v.weight])
        bias = torch.cat([self.q.bias, self.k.bias, self.v.bias])
        given: Any = (x.shape[-1], self.heads, None if self.separate else packed, bias, None, None, False, 0.0)
        weights: Any = {"use_separate_proj_weight": True, **own} if self.separate else {}
        attend = F.multi_head_attention_forward
        y, _ = attend(x[:1], x, x, *given, self.out.weight, self.out.bias, need_weights=False, **weights)
        return self.head(y[0])


@pytest.mark.parametrize("separate", [True, False])
def test_attention_called_as_a_function_is_cut_with_the_width_it_reads(separate: bool) -> None:
    model, x = seeded(lambda: Pool(separate)), noise(2, 3, 4, 4)
    graph = trace(model, x)
    assert {"stem", "out"} <= free(graph), graph.describe()
    smaller = cut_and_checked(model, graph, x)
    assert (smaller.heads, smaller.q.weight.shape) == (2, (8, 8))


# -- rows shown by masks -------------------------------------------------------------------------------------------


class Beside(nn.Module):
    """Features put into the rows of an embedding that a token shows, as images are into text."""

    def __init__(self, place: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.image, self.up, self.down = (
            nn.Embedding(9, 8),
            nn.Linear(5, 8),
            nn.Linear(8, 6),
            nn.Linear(6, 3),
        )
        self.place = place

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        x = self.place(self.embed(tokens), tokens == 3, self.image(image))
        return self.down(self.up(x).relu())


def checked_as_checkpoints_do(x: Tensor, shown: Tensor, image: Tensor) -> Tensor:
    mask = shown.unsqueeze(-1).expand_as(x)
    if x[mask].numel() != image.numel():
        raise ValueError("features and tokens do not match")
    return x.masked_scatter(mask, image)


PLACED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "a mask expanded": checked_as_checkpoints_do,
    "a mask of one column": lambda x, shown, image: x.masked_scatter(shown[..., None], image),
    "features of a batch": lambda x, shown, image: x.masked_scatter(shown[..., None], image[None]),
    "a mask turned round": lambda x, shown, image: x.masked_scatter(~(~shown)[..., None].expand_as(x), image),
    "rows given": lambda x, shown, image: torch.where(shown[..., None], x.index_put((shown,), image), x),
    "a number": lambda x, shown, image: x.masked_fill(shown[..., None], 0.0) + image.mean(0),
    "a number by a full mask": lambda x, shown, image: zeroed(x, ~shown[..., None].repeat(1, 1, x.shape[2])) + image[0],
    "rows picked by a full mask": lambda x, shown, image: x[shown[..., None].expand_as(x)].view(2, -1) + image,
    "rows selected by a full mask": lambda x, shown, image: (
        x.masked_select(shown[..., None].expand_as(x)).view(2, -1) + image
    ),
    "columns beside a mask": lambda x, shown, image: x.transpose(1, 2)[:, :, shown[0]].transpose(1, 2) + image[0],
}


def zeroed(x: Tensor, mask: Tensor) -> Tensor:
    x = x.clone()
    x[~mask] = 0
    return x


@pytest.mark.parametrize("name", PLACED)
def test_units_go_through_rows_that_a_mask_shows(name: str) -> None:
    model = double(seeded(lambda: Beside(PLACED[name])))
    example = (torch.tensor([[1, 3, 3, 4]]), noise(2, 5).double())
    graph = trace(model, example)
    assert free(graph) == {"embed", "up"}, graph.describe()
    plan = plan_of(graph, halved(graph))
    smaller = apply(model, graph, plan)
    assert difference(call(zero_readers(model, graph, halved(graph)), example), call(smaller, example)) < 1e-9
    assert verify(model, SimpleNamespace(model=smaller, graph=graph, plan=plan), example)


UNEVEN: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "values above a number": lambda x, shown, image: x.masked_scatter(x > 0, image.repeat(2, 1)),
    "every other unit": lambda x, shown, image: x.masked_scatter((torch.arange(8) % 2 == 0).expand_as(x), image),
    "rows of another width": lambda x, shown, image: x.masked_scatter(shown[..., None], image.view(4, 4)),
    "picked among the units": lambda x, shown, image: x + x[(x > -9).expand_as(x)].view(1, 4, 8),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_a_mask_that_tells_units_apart_pins_them(name: str) -> None:
    graph = trace(seeded(lambda: Beside(UNEVEN[name])), (torch.tensor([[1, 3, 3, 4]]), noise(2, 5)))
    assert graph["embed"].pinned


# -- graphs of nodes -----------------------------------------------------------------------------------------------


class Convolved(nn.Module):
    """Messages along the edges of a graph between two layers."""

    def __init__(self, passed: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave, self.passed = nn.Linear(6, 8), nn.Linear(8, 3), passed

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.leave(self.passed(self.enter(x), edges).relu())


def adjacency(x: Tensor, edges: Tensor) -> Tensor:
    size = (x.shape[0], x.shape[0])
    return torch.sparse_coo_tensor(edges, torch.ones_like(edges[0], dtype=x.dtype), size, check_invariants=True)


def scattered(x: Tensor, edges: Tensor) -> Tensor:
    rows = x.index_select(0, edges[0])
    return x.new_zeros(x.size(0), x.size(1)).scatter_add_(0, edges[1].view(-1, 1).expand_as(rows), rows)


def in_order(x: Tensor, edges: Tensor) -> Tensor:
    order, lengths = edges[1].argsort(), torch.bincount(edges[1], minlength=x.shape[0])
    return torch.segment_reduce(x[edges[0][order]], "sum", lengths=lengths)


MESSAGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a sparse product": lambda x, edges: torch.sparse.mm(adjacency(x, edges), x),
    "by an operator": lambda x, edges: adjacency(x, edges).t() @ x,
    "a sparse product and a sum": lambda x, edges: torch.sparse.addmm(x, adjacency(x, edges), x),
    "rows scattered": scattered,
    "rows added": lambda x, edges: torch.zeros_like(x).index_add_(0, edges[1], x[edges[0]]),
    "the largest of rows": lambda x, edges: x.scatter_reduce(
        0, edges[1][:, None].expand(-1, x.size(1)), x[edges[0]], "amax"
    ),
    "stretches": in_order,
}


@pytest.mark.parametrize("name", MESSAGES)
def test_units_go_through_messages_between_nodes(name: str) -> None:
    model, example = (
        double(seeded(lambda: Convolved(MESSAGES[name]))),
        (noise(7, 6).double(), torch.arange(20).view(2, 10) % 7),
    )
    graph = trace(model, example)
    assert "enter" in free(graph), graph.describe()
    keeps = halved(graph)
    smaller = apply(model, graph, plan_of(graph, keeps))
    assert difference(call(zero_readers(model, graph, keeps), example), call(smaller, example)) < 1e-9


def test_a_sparse_matrix_costs_what_it_stores_and_its_nodes_are_no_units() -> None:
    class Fixed(Convolved):
        def __init__(self) -> None:
            super().__init__(lambda x, edges: torch.sparse.mm(self.nodes, x))
            self.register_buffer("nodes", torch.eye(7).to_sparse())

    graph = trace(seeded(Fixed), (noise(7, 6), torch.zeros(2, 1, dtype=torch.long)))
    assert {g.name for g in graph.groups if g.size == 7} == set()
    assert [w.fixed for w in graph.work if "sparse" in w.op] == [7]


def test_an_adjacency_may_be_an_input() -> None:
    model, example = (
        seeded(lambda: Convolved(lambda x, a: torch.sparse.mm(a, x))),
        (noise(7, 6), torch.eye(7).to_sparse()),
    )
    graph = trace(model, example)
    cut_and_checked(model, graph, example)


def test_both_sides_of_a_bilinear_layer_and_its_result_go() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.pair = nn.Linear(5, 8), nn.Linear(5, 6), nn.Bilinear(8, 6, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pair(self.left(x).relu(), self.right(x)).relu())

    model, x = double(seeded(Pairs)), noise(4, 5).double()
    graph = trace(model, x)
    assert free(graph) == {"left", "right", "pair"}
    keeps = halved(graph)
    smaller = cut_and_checked(model, graph, x)
    assert difference(call(zero_readers(model, graph, keeps), x), call(smaller, x)) < 1e-9


# -- windows into memory -------------------------------------------------------------------------------------------


class Windows(nn.Module):
    """Overlapping chunks of the tokens of all heads, seen by strides; the middle of each chunk is read."""

    def __init__(self, contiguous: bool) -> None:
        super().__init__()
        self.up, self.down, self.heads, self.contiguous = nn.Linear(5, 12), nn.Linear(12, 3), 3, contiguous

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        y = self.up(x).view(n, t, self.heads, -1).transpose(1, 2)
        y = y.contiguous() if self.contiguous else y
        size, stride = list(y.size()), list(y.stride())
        size[2:3], stride[2:3] = [t // 2 - 1, 4], [2 * stride[2], stride[2]]
        chunks = y.as_strided(size, stride, y.storage_offset())
        return self.down(chunks.sum(3).transpose(1, 2).reshape(n, size[2], -1))


@pytest.mark.parametrize("contiguous", [True, False])
def test_units_go_through_overlapping_windows(contiguous: bool) -> None:
    model, x = seeded(lambda: Windows(contiguous)), noise(2, 8, 5)
    graph = trace(model, x)
    assert "up.widths" in free(graph), graph.describe()
    cut_and_checked(model, graph, x)


def test_windows_over_units_pin_them() -> None:
    class Overlapping(Windows):
        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).as_strided((2, 8, 5, 4), (96, 12, 2, 1)).sum(3).repeat(1, 1, 3)[..., :12])

    assert trace(seeded(lambda: Overlapping(True)), noise(2, 8, 5))["up"].pinned


# -- fake quantisers -----------------------------------------------------------------------------------------------


class Quantised(nn.Module):
    """Two layers with rounded weights and activations: a scale for each row, or for the whole tensor."""

    def __init__(self, weight: Callable[[], nn.Module], activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8), nn.Linear(8, 3)
        self.of_weight, self.of_values = weight(), activation()

    def forward(self, x: Tensor) -> Tensor:
        rounded = F.linear(x, self.of_weight(self.enter.weight), self.enter.bias)
        return self.leave(self.of_values(rounded.relu()))


def quantisers() -> dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch.ao.quantization as tq
        from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize as Learnable

    rows = {"dtype": torch.qint8, "quant_min": -128, "quant_max": 127, "qscheme": torch.per_channel_symmetric}
    by_row, whole = tq.MovingAveragePerChannelMinMaxObserver, tq.MovingAverageMinMaxObserver
    learnt = {"scale": 0.05, "zero_point": 0.0}
    return {
        "fused": (
            lambda: tq.FusedMovingAvgObsFakeQuantize(by_row, ch_axis=0, **rows),
            lambda: tq.FusedMovingAvgObsFakeQuantize(whole),
        ),
        "apart": (lambda: tq.FakeQuantize(by_row, ch_axis=0, **rows), lambda: tq.FakeQuantize(whole)),
        "learnable": (
            lambda: Learnable(by_row, channel_len=8, ch_axis=0, **learnt, **rows),
            lambda: Learnable(whole, 0, 255, **learnt),
        ),
    }


@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize("kind", ["fused", "apart", "learnable"])
def test_scales_of_fake_quantisers_go_with_their_rows(kind: str, observed: bool) -> None:
    model = seeded(lambda: Quantised(*quantisers()[kind]))
    model.train()(noise(16, 6))
    model.eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("observer_enabled", "static_enabled")):
            buffer.fill_(observed)
    graph = trace(model, noise(4, 6))
    assert free(graph) == {"enter"}, graph.describe()
    assert any("range" in n or "aminmax" in n for n in graph["enter"].notes) == observed
    smaller = cut_and_checked(copy.deepcopy(model), graph, noise(4, 6))
    assert smaller.of_weight.scale.shape == (4,)
