"""What the wide zoo taught: small networks in which a rule was missing, wrong or shy, each cut and verified."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import Drop, Graph, Plan, apply, trace, verify
from tests.networks import noise, seeded
from tests.oracle import call, halved, plan_of


class ComplexPairs(nn.Module):
    """Pairs of channels turned as complex numbers: pairs go whole."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(self.up(x).unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * torch.polar(torch.ones(4, 1), torch.arange(4.0)[:, None]))
        return self.down(turned.flatten(-2))


class RecurrentConv(nn.Module):
    """A state that starts as zeros of a width that the module keeps, put beside the input of the gates."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 6
        self.gates, self.out = nn.Conv2d(2 + 6, 4 * 6, 3, padding=1), nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), self.hidden, x.size(3), x.size(4))
        c = torch.zeros_like(h)
        for t in range(x.size(1)):
            i, f, o, g = torch.split(self.gates(torch.cat([x[:, t], h], 1)), self.hidden, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.out(h)


class NormedWeights(nn.Module):
    """Weights standardised by a batch norm in training mode: its statistic runs over what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = (nn.Conv2d(i, o, 3) for i, o in ((3, 6), (6, 8), (8, 5)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b, self.fc):
            flat = layer.weight.reshape(1, layer.out_channels, -1)
            weight = F.batch_norm(flat, None, None, training=True).reshape_as(layer.weight)
            x = F.conv2d(F.silu(x), weight, layer.bias)
        return x.mean((2, 3))


class SizeOfAnother(nn.Module):
    """A map is reshaped with the width of another one: both are cut alike."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.reduce, self.fc = nn.Linear(5, 8), nn.Conv2d(8, 8, 2, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, _, c = x.shape
        small = self.reduce(x.transpose(1, 2).reshape(n, c, 4, 4)).reshape(n, c, -1)
        return self.fc(x + small.mean(2)[:, None])


class ProductSlices(nn.Module):
    """Queries, keys and values sliced at products and sums of numbers that the module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.shared, self.width = 4, 2, 3
        self.embed, self.qkv, self.out = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        qkv, n, at = self.qkv(self.embed(x)), len(x), self.heads * self.width
        q, k, v = (
            part.view(n, -1, count, self.width).transpose(1, 2)
            for part, count in (
                (qkv[..., :at], self.heads),
                (qkv[..., at : at + self.shared * self.width], self.shared),
                (qkv[..., at + self.shared * self.width :], self.shared),
            )
        )
        k, v = (t.repeat_interleave(self.heads // self.shared, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.out(y.transpose(1, 2).flatten(2))


class TwiceTheHeads(nn.Module):
    """Two stacks of heads beside each other, viewed as a product of the module's numbers times two."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 3
        self.a, self.b, self.out = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (layer(x).view(*x.shape[:2], self.heads, self.width) for layer in (self.a, self.b))
        both = torch.cat([a, b.softmax(-1)], 2)
        return self.out(both.view(*both.shape[:2], self.heads * self.width * 2))


class SortedExperts(nn.Module):
    """Rows sorted by expert, each multiplied with its expert's matrix in one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 16), nn.Linear(16, 3)
        self.up, self.down = (nn.Parameter(torch.randn(2, *shape)) for shape in ((16, 48), (24, 16)))

    def forward(self, x: Tensor) -> Tensor:
        order = torch.sort(x[:, 0] > 0).indices
        x = self.embed(x)
        ends = torch.tensor([3, 8], dtype=torch.int32)
        gate, up = F.grouped_mm(x[order], self.up, offs=ends).chunk(2, -1)
        y = F.grouped_mm(F.silu(gate) * up, self.down, offs=ends)
        return self.head(x + torch.zeros_like(x).index_add(0, order, y))


class Placed(nn.Module):
    """Rows put, added and scattered to places: by a mask, by indices, by an index per element."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.more, self.out = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 3)
        self.blank = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        h, more = self.up(x), self.more(x)
        h[x[..., 0] > 0] = self.blank
        h[[0, 1], [2, 3]] = more[:, 0]
        h = h.index_add(1, torch.tensor([1, 3, 1]), more[:, :3])
        at = torch.tensor([0, 2, 0])[None, :, None].expand(2, 3, h.shape[2])
        h = h.scatter_add(1, at, more[:, 3:6])
        return self.out(h.gather(1, torch.tensor([0, 5])[None, :, None].expand(2, 2, h.shape[2])))


class BiasOfParts(nn.Module):
    """Attention whose bias is put together from two parameters and a constant (as in BEiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 3, 4
        self.embed, self.qkv, self.out = nn.Linear(5, 8), nn.Linear(8, 36, bias=False), nn.Linear(12, 3)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(12))
        self.register_buffer("k_bias", torch.zeros(12), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        qkv = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, self.k_bias, self.v_bias]))
        q, k, v = qkv.reshape(*x.shape[:2], 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.out(y.transpose(1, 2).flatten(2))


class ByPlace(nn.Module):
    """A convolution over tokens with a kernel of one: the channels, which lie where space was, go through."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.tokens, self.down = nn.Linear(5, 6), nn.Conv1d(4, 4, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.tokens(self.up(x)))


class Interleaved(nn.Module):
    """A gate whose two halves are interleaved: pairs go whole."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.down(x[..., ::2].sigmoid() * x[..., 1::2])


class Bags(nn.Module):
    """Rows of a table, summed by bag."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(9, 6, mode="sum"), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.bag(x.argsort(-1)))


class PartZeroed(nn.Module):
    """Attention that sets the keys' part of a copy of its bias to zero (as in the second Swin)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.embed, self.qkv, self.out = 3, nn.Linear(5, 12), nn.Linear(12, 36), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, bias = self.embed(x), self.qkv.bias.clone()
        length = bias.numel() // 3
        bias[length : 2 * length].zero_()
        n, t, c = x.shape
        q, k, v = (
            F.linear(x, self.qkv.weight, bias).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        )
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.out(y.transpose(1, 2).reshape(n, t, c))


class ChannelsLast(nn.Module):
    """The mean over places of a map whose channels are innermost in memory: made with raw strides."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.pool, self.down = nn.Linear(5, 6), nn.AdaptiveAvgPool2d(1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.pool(self.up(x).permute(0, 3, 1, 2)).flatten(1))


class Prepares(nn.Module):
    """Weights that are scaled in place on the first run: the groups are the same at every drawing all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.ready, self.embed, self.mix, self.out = False, nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.ready = True
            self.mix.weight.div_(2)
        x = self.embed(x)
        return self.out(x + self.mix(x))


class LearntTurn(nn.Module):
    """A matrix per sample, an identity added to it, applied by bmm: rows and columns are the units it turns."""

    def __init__(self) -> None:
        super().__init__()
        self.k = 6
        self.first, self.matrix, self.out = nn.Conv1d(3, 6, 1), nn.Linear(6, 36), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        turn = (self.matrix(x.amax(2)) + torch.eye(self.k).flatten()).view(-1, self.k, self.k)
        return self.out(torch.bmm(x.transpose(1, 2), turn).amax(1))


class FourierMix(nn.Module):
    """A Fourier transform over places, complex weights per channel, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 3)
        self.weight = nn.Parameter(torch.randn(6, 6, 5, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        low = torch.fft.rfft(self.up(x), dim=1)
        y = torch.fft.irfft(torch.einsum("nti,iot->nto", low, self.weight), n=x.shape[1], dim=1)
        return self.down(F.relu(y))


class SharedKey(nn.Module):
    """One key for all heads, widened to as many as there are queries, put beside keys of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.own, self.shared = 3, 4, 2
        self.q, self.kv, self.key, self.out = nn.Linear(5, 18), nn.Linear(5, 24), nn.Linear(5, 2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(*x.shape[:2], -1, self.own + self.shared).transpose(1, 2)
        own, v = self.kv(x).view(*x.shape[:2], -1, 2 * self.own).transpose(1, 2).split([self.own, self.own], -1)
        shared = self.key(x)[:, None]
        k = own.new_empty(*own.shape[:-1], self.own + self.shared)
        k[..., : self.own] = own
        k[..., self.own :] = shared.expand(*own.shape[:-1], -1)
        y = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Compared(nn.Module):
    """The code checks its sizes: what it found equal stays so, and the number it checks against follows."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.stem, self.mix, self.out = 6, nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.mix(x)
        if x.shape[-1] != self.channels or y.shape != x.shape:
            raise ValueError("another width")
        return self.out(torch.cat([x[:, :1], y[:, :1]], 1))


class WholeWords(nn.Module):
    """Windows over words as wide as their embedding: the kernel sums over the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(5, 6), nn.Linear(16, 3)
        self.windows = nn.ModuleList(nn.Conv2d(1, 8, (k, 6)) for k in (2, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).unsqueeze(1)
        return self.out(torch.cat([c(x).squeeze(3).amax(2) for c in self.windows], 1))


class Packed(nn.Module):
    """Sequences of several lengths, packed and unpacked."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.out = nn.Linear(5, 6), nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(x), lengths, batch_first=True)
        states, last = self.rnn(packed)
        padded, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
        return self.out(padded.mean(1) + last[0])


class OneForAllHeads(nn.Module):
    """What all heads share is repeated as often as there are heads, and multiplied where heads are one axis of many."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.q, self.shared, self.gate, self.out = (
            3,
            *(nn.Linear(5, n) for n in (12, 4, 3)),
            nn.Linear(12, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(*x.shape[:2], self.heads, -1)
        n, t, heads, _ = q.shape
        shared = self.shared(x)[:, :, None].repeat_interleave(heads // 1, dim=2, output_size=heads)
        scores = torch.einsum("nihd,njhd->nijh", shared, shared) * self.gate(x)[:, :, None]
        return self.out(torch.einsum("nijh,njhd->nihd", scores, q).reshape(n, t, -1))


class WidthOfTheStream(nn.Module):
    """The width of a head is the stream's over the number of heads, and nothing else tells that they go together."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.embed, self.qkv, self.mix = 3, nn.Linear(5, 12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.out, self.slopes = nn.Linear(12, 3), nn.Parameter(torch.randn(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, t, c = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-1, -2) / 2 + self.slopes).softmax(-1) @ v
        return self.out(x + self.mix(y.transpose(1, 2).flatten(2)))


class Codebook(nn.Module):
    """The nearest of a table's rows, found by distances: code and rows are as wide as each other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(5, 6), nn.Linear(6, 3)
        self.register_buffer("rows", torch.randn(7, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        far = torch.cdist(x, self.rows)
        return self.out(x + F.embedding(far.argmin(1), self.rows)) + far.mean(1, keepdim=True)


class MaskOfInfinities(nn.Module):
    """A causal mask made of minus infinity, which the model keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.full((4, 4), float("-inf")).triu_(1)
        self.embed, self.attention, self.out = nn.Linear(5, 6), nn.MultiheadAttention(6, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.out(x + self.attention(x, x, x, need_weights=False, attn_mask=self.mask)[0])


# The network, an example, and the groups that must be found to be prunable.
FINDS: dict[type[nn.Module], tuple[Any, set[str]]] = {
    ComplexPairs: (noise(2, 4, 5), {"up.blocks"}),
    RecurrentConv: (noise(2, 3, 2, 4, 4), {"gates.widths"}),
    NormedWeights: (noise(2, 3, 12, 12), {"a", "b"}),
    SizeOfAnother: (noise(2, 16, 5), {"stem"}),
    ProductSlices: (noise(2, 6, 5), {"embed", "qkv"}),
    TwiceTheHeads: (noise(2, 6, 5), {"a.blocks", "a.widths"}),
    SortedExperts: (noise(8, 5), {"embed", "up.widths"}),
    Placed: (noise(2, 6, 5), {"up"}),
    BiasOfParts: (noise(2, 6, 5), {"embed", "qkv"}),
    ByPlace: (noise(2, 4, 5), {"up"}),
    Interleaved: (noise(2, 5), {"up.blocks"}),
    Bags: (noise(2, 5), {"bag"}),
    PartZeroed: (noise(2, 6, 5), {"embed"}),
    ChannelsLast: (noise(2, 4, 4, 5), {"up"}),
    Prepares: (noise(2, 5), {"embed"}),
    LearntTurn: (noise(2, 3, 9), {"first"}),
    FourierMix: (noise(2, 8, 5), {"up", "weight"}),
    SharedKey: (noise(2, 6, 5), {"q", "q.widths"}),
    Compared: (noise(2, 2, 5), {"stem"}),
    WholeWords: (noise(2, 7, 5), {"embed", "windows.0", "windows.1"}),
    Packed: ((noise(3, 4, 5), torch.tensor([4, 3, 1])), {"embed", "rnn.widths"}),
    OneForAllHeads: (noise(2, 4, 5), {"q", "shared"}),
    WidthOfTheStream: (noise(2, 4, 5), {"embed"}),
    Codebook: (noise(4, 5), {"embed"}),
    MaskOfInfinities: (noise(4, 2, 5), {"embed", "attention"}),
}


@pytest.mark.parametrize("kind", FINDS, ids=lambda kind: kind.__name__)
def test_what_was_missed_is_offered_and_cut_right(kind: type[nn.Module]) -> None:
    example, prunable = FINDS[kind]
    model = seeded(kind)
    graph: Graph = trace(model, example)
    assert {g.name for g in graph.prunable} == prunable, graph.describe()
    for only in [None, *(g.name for g in graph.prunable)]:
        plan = plan_of(graph, halved(graph, only=only))
        smaller = apply(model, graph, plan)
        assert verify(model, SimpleNamespace(model=smaller, graph=graph, plan=plan), example)
        assert call(smaller, example).isfinite().all()


class HeadsBeside(nn.Module):
    """Heads in a list, each a module, put beside each other along the last axis."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(6, 4) for _ in "qkv")

        def forward(self, x: Tensor) -> Tensor:
            return (self.q(x) @ self.k(x).transpose(1, 2) / 2).softmax(-1) @ self.v(x)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(5, 6), nn.Linear(8, 3)
        self.heads = nn.ModuleList(self.Head() for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.out(torch.cat([head(x) for head in self.heads], -1))


class HeldTwice(nn.Module):
    """A branch in one sequence, whose parts the module also holds by themselves."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(6, 6, 3, padding=2), nn.Conv1d(6, 6, 3)
            self.net = nn.Sequential(self.a, nn.ReLU(), self.b)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.net(x))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.out = nn.Conv1d(5, 6, 1), self.Branch(), nn.Conv1d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.branch(self.stem(x)))


class WiderInside(nn.Module):
    """A branch that only takes shapes which its own modules make: all of them put out zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.v, self.o = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(6, 12), nn.Linear(12, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, v = self.q(x).unflatten(-1, (2, -1)), self.v(x).unflatten(-1, (2, -1))
        return self.out(x + self.o((v * q.sum(-1, keepdim=True)).flatten(2)))


class ReadsTypes(nn.Module):
    """The type of a norm's weight is read beside it, and a result of the branch is made that nobody hears."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.mix, self.out = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x.to(self.norm.weight.dtype)).cumsum(1)
        y[:, -1] + 1
        return self.out(x + self.mix(y))


# The network, an example, and the blocks that must be found to be droppable.
DROPPABLE: dict[type[nn.Module], tuple[Any, set[str]]] = {
    HeadsBeside: (noise(2, 7, 5), {"heads.1"}),
    HeldTwice: (noise(2, 5, 9), {"branch.net"}),
    ReadsTypes: (noise(2, 4, 5), {"mix"}),
    WiderInside: (noise(2, 4, 5), {"v"}),
}


@pytest.mark.parametrize("kind", DROPPABLE, ids=lambda kind: kind.__name__)
def test_what_can_leave_is_offered_and_leaves_with_its_weights(kind: type[nn.Module]) -> None:
    example, blocks = DROPPABLE[kind]
    model = seeded(kind)
    graph = trace(model, example)
    assert {b.name for b in graph.blocks if not b.pinned} == blocks, graph.describe()
    for name in blocks:
        plan = Plan((Drop(name), *plan_of(graph, halved(graph)).cuts))
        smaller = apply(model, graph, plan)
        assert verify(model, SimpleNamespace(model=smaller, graph=graph, plan=plan), example)
        block = graph.block(name)
        gone = tuple(f"{m}." for m in (*block.modules, *block.aliases))
        assert not any(n.startswith(gone) for n, _ in smaller.named_parameters(remove_duplicate=False))
        assert Graph.from_json(graph.to_json()) == graph


def test_auxiliary_heads_with_norms_over_a_single_value_are_found() -> None:
    class Auxiliary(nn.Module):
        """A head in training mode only, with a batch norm over one place: one sample is too few to train it."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 2)
            self.aux = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.Flatten())

        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            return (self.fc(x.mean((2, 3))), self.aux(x)) if self.training else self.fc(x.mean((2, 3)))

    model, example = seeded(Auxiliary), noise(1, 3, 8, 8)
    graph = trace(model, example)
    smaller = apply(model, graph, plan_of(graph, halved(graph))).train()
    assert "aux.1.weight" in {slot.tensor for slot in graph["stem"].readers}
    assert [t.shape for t in smaller(noise(2, 3, 8, 8))] == [(2, 2), (2, 4)]


def test_tracing_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch; from nervure import trace; "
        "trace(torch.nn.Linear(3, 4), torch.randn(2, 3)); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
