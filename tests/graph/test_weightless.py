"""Models too big to be made are traced, planned for and cut by their shapes alone."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from nervure import Magnitude, Random, apply, count, prune, trace
from nervure.errors import ScoreError
from tests.networks import NETWORKS, seeded, tokens


class Layer(nn.Module):
    """Causal attention with shared keys and a gated MLP, each behind a norm."""

    def __init__(self, width: int, heads: int, shared: int, inner: int) -> None:
        super().__init__()
        self.heads, self.keys, self.head_dim = heads, heads // shared, width // heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, self.keys * self.head_dim, bias=False) for _ in range(2))
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (p(y).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(self.heads // self.keys, 1) for t in (k, v))
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.head_dim**-0.5)
        x = x + self.o(z.transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.gate(self.norm2(x))) * self.up(self.norm2(x)))


class Decoder(nn.Module):
    """A language model that looks at the contents of its masks while it runs, as many do."""

    def __init__(self, width: int = 16, layers: int = 2, vocabulary: int = 11) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, 4, 2, 3 * width) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, words: Tensor, mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(words) if mask is None else mask
        causal = torch.ones(words.shape[1], words.shape[1], dtype=torch.bool, device=words.device).tril()
        if not bool(mask.all()):
            causal = causal & mask.bool()[:, None, None, :]
        x = self.embed(words)
        for layer in self.layers:
            x = layer(x, causal)
        return self.head(self.norm(x))


def words() -> tuple[Tensor, Tensor]:
    """Two sentences and which of their words count."""
    return tokens(2, 5), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


@pytest.mark.parametrize("example", [words(), words()[:1]], ids=["padded", "full"])
def test_a_graph_without_weights_is_that_with_weights(example: tuple[Tensor, ...]) -> None:
    model = seeded(Decoder)
    with torch.device("meta"):
        bare = Decoder().eval()
    graph, known = trace(bare, example), trace(model, example)
    assert [(g.name, g.size, g.slots, g.pinned) for g in graph.groups] == [
        (g.name, g.size, g.slots, g.pinned) for g in known.groups
    ]
    assert graph.fingerprint == known.fingerprint
    assert (graph.macs(), graph.params()) == (known.macs(), known.params())


def test_a_plan_is_carried_out_without_weights_and_fits_those_that_come_later() -> None:
    model = seeded(Decoder)
    with torch.device("meta"):
        bare = Decoder().eval()
    pruned = prune(bare, words(), Random(keep=0.5), progress=False)
    assert pruned.plan
    assert pruned.verification is None
    assert all(t.is_meta for t in pruned.model.state_dict().values())
    assert pruned.cost_after.params == pruned.graph.params({c.group: c.keep.tensor() for c in pruned.plan.cuts})
    real = prune(model, words(), pruned.plan, progress=False)
    assert real.verification is not None
    pruned.model.load_state_dict(real.model.state_dict(), assign=True)
    assert torch.equal(pruned.model(*words()), real.model(*words()))


@pytest.mark.parametrize("inside", [False, True], ids=["outside the mode", "inside the mode"])
def test_fake_tensors_are_traced_and_cut_and_stay_fake(inside: bool) -> None:
    mode = FakeTensorMode()
    with mode:
        fake = Decoder().eval()
        if inside:
            example = torch.zeros(2, 5, dtype=torch.long)
            graph = trace(fake, example)
    if not inside:
        example = tokens(2, 5)
        graph = trace(fake, example)
    known = trace(seeded(Decoder), tokens(2, 5))
    assert [(g.name, g.slots, g.pinned) for g in graph.groups] == [(g.name, g.slots, g.pinned) for g in known.groups]
    assert count(fake, example).macs == known.macs()
    pruned = prune(seeded(Decoder), tokens(2, 5), Magnitude(keep=0.5), progress=False)
    with mode if inside else nullcontext():
        smaller = apply(fake, graph, pruned.plan)
    assert all(isinstance(p, FakeTensor) for p in smaller.parameters())
    real = {name: p.shape for name, p in pruned.model.named_parameters()}
    assert {name: p.shape for name, p in smaller.named_parameters()} == real


def test_weights_that_are_not_there_have_no_magnitude() -> None:
    with torch.device("meta"):
        bare = Decoder().eval()
    with pytest.raises(ScoreError, match="a shape only"):
        prune(bare, tokens(2, 5), Magnitude(keep=0.5), progress=False)


@pytest.mark.parametrize("name", ["residual", "vit", "windows", "lstm", "relative_bias", "flatten_linear"])
def test_the_shared_networks_are_traced_without_their_weights(name: str) -> None:
    network = NETWORKS[name]
    graph = trace(network.factory().to("meta"), network.example())
    known = trace(network.factory(), network.example())
    assert [(g.name, set(g.slots)) for g in graph.groups] == [(g.name, set(g.slots)) for g in known.groups]
    assert graph.macs() == known.macs()
