"""What enters each layer: from it follows what the layer says under any mask, without running it again."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nervure import trace
from nervure.errors import ArgumentError, DataError
from nervure.graph.tape import named_tensors
from nervure.stats import Stats, measure, response
from nervure.stats import footprint as memory
from tests.networks import NETWORKS, traced

WANT = frozenset({"connections"})

LAYERS = {
    "plain": (nn.Conv2d(3, 5, 3), (3, 9, 8)),
    "strided and padded": (nn.Conv2d(3, 5, (3, 2), stride=(2, 3), padding=(2, 1)), (3, 9, 8)),
    "dilated": (nn.Conv2d(3, 5, 3, dilation=2, padding=1), (3, 9, 8)),
    "the same size": (nn.Conv2d(3, 5, 5, padding="same", dilation=2), (3, 9, 8)),
    "circular": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), (3, 9, 8)),
    "reflected": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), (3, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 7, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, stride=2, bias=False), (4, 7, 7)),
    "one dimension": (nn.Conv1d(3, 4, 5, padding=2), (3, 11)),
    "three dimensions": (nn.Conv3d(2, 4, 3, stride=2, padding=1), (2, 5, 6, 5)),
    "linear": (nn.Linear(6, 4), (6,)),
    "tokens": (nn.Linear(6, 4, bias=False), (5, 6)),
}


def batches(shape: tuple[int, ...], samples: int = 10) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(samples, *shape)
    return [(x[:6], torch.arange(6) % 3), (x[6:], torch.arange(samples - 6) % 3)]


@pytest.mark.parametrize("name", LAYERS)
def test_the_mean_output_under_any_mask_follows(name: str) -> None:
    layer, shape = LAYERS[name]
    data, model = batches(shape), nn.Sequential(layer)
    stats = measure(model, trace(model, data[0][0]), data, want=WANT)
    keep = torch.rand(layer.weight.shape) > 0.5
    with torch.no_grad():
        said = response(layer.weight * keep, stats.connections["0.weight"], layer.bias)
        layer.weight.mul_(keep)
        output = model(torch.cat([x for x, _ in data]))
    channels = output.movedim(-1, 1) if isinstance(layer, nn.Linear) else output
    torch.testing.assert_close(said, channels.reshape(10, channels.shape[1], -1).mean(2), rtol=1e-4, atol=1e-5)
    assert stats.skipped == {}


class Twice(nn.Module):
    """One layer runs on maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


def test_a_layer_that_runs_twice_is_averaged_over_all_its_positions() -> None:
    model, data = Twice(), batches((3, 7, 7))
    stats = measure(model, trace(model, data[0][0]), data, want=WANT)
    x = torch.cat([x for x, _ in data])
    with torch.no_grad():
        first = model.conv(x)
        outputs = torch.cat([first.flatten(2), model.conv(first).flatten(2)], 2).mean(2)
        said = response(model.conv.weight, stats.connections["conv.weight"], model.conv.bias)
    torch.testing.assert_close(said, outputs, rtol=1e-4, atol=1e-5)


class Standardised(nn.Conv2d):
    """Works with other weights than it holds."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)


def test_a_module_that_works_with_other_weights_is_skipped_with_the_reason() -> None:
    model = nn.Sequential(Standardised(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    data = batches((3, 8, 8))
    stats = measure(model, trace(model, data[0][0]), data, want=WANT)
    assert set(stats.connections) == {"2.weight"}
    assert "not what its weight makes of its input" in stats.skipped["0.weight"]


class SelfAttention(nn.Module):
    """Queries, keys and values come from one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x)[0].mean(1))


def test_fused_attention_gives_the_input_of_its_projections_and_says_what_it_cannot_give() -> None:
    model, data = SelfAttention(), batches((5, 8))
    stats = measure(model, trace(model, data[0][0]), data, want=WANT)
    x = torch.cat([x for x, _ in data])
    torch.testing.assert_close(stats.connections["attention.in_proj_weight"], x.mean(1)[:, :, None])
    assert "attention kernel" in stats.skipped["attention.out_proj.weight"]
    assert "head.weight" in stats.connections


@pytest.mark.sampled
@pytest.mark.parametrize("name", NETWORKS)
def test_every_edge_of_every_network_is_heard_or_skipped_with_a_reason(name: str) -> None:
    model, example, graph = traced(name)
    stats = measure(model, graph, [(example, None)], want=WANT)
    tensors = named_tensors(model)
    assert {edge.tensor for edge in graph.edges} <= set(stats.connections) | set(stats.skipped)
    for tensor, heard in stats.connections.items():
        assert len(response(tensors[tensor].detach(), heard)) == stats.samples


def test_evidence_survives_a_file(tmp_path: Path) -> None:
    data, model = batches((3, 9, 8)), nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(1), nn.LazyLinear(3))
    model(data[0][0])
    stats = measure(model, trace(model, data[0][0]), data, want={"connections", "labels"})
    again = Stats.load(stats.save(tmp_path / "stats.safetensors"))
    assert set(again.connections) == {"0.weight", "2.weight"}
    assert all(torch.equal(again.connections[name], value) for name, value in stats.connections.items())
    assert (again.digest, again.skipped) == (stats.digest, stats.skipped)


def test_a_balanced_draw_takes_the_first_of_each_class_and_none_twice() -> None:
    x, y = torch.arange(40.0)[:, None], torch.tensor([0] * 20 + [1] * 15 + [2] * 5)
    model = nn.Sequential(nn.Linear(1, 2))
    data = [(x[i : i + 7], y[i : i + 7]) for i in range(0, 40, 7)]
    stats = measure(model, trace(model, x[:2]), data, want={"connections", "labels"}, per_class=6)
    assert stats.labels is not None
    assert torch.bincount(stats.labels).tolist() == [6, 6, 5]
    assert stats.connections["0.weight"].flatten().tolist() == [*range(6), *range(20, 26), *range(35, 40)]
    with pytest.raises(DataError, match="labels"):
        measure(model, trace(model, x[:2]), [x], want=WANT, per_class=6)
    with pytest.raises(ArgumentError, match="per_class"):
        measure(model, trace(model, x[:2]), data, want=WANT, per_class=-1)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    data, model = batches((3, 9, 8)), nn.Sequential(nn.Conv2d(3, 5, 3))
    with pytest.raises(DataError, match=r"samples=7"):
        measure(model, trace(model, data[0][0]), data, want=WANT, samples=10)


def test_what_is_not_finite_is_refused() -> None:
    data, model = batches((3, 9, 8)), nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3))
    graph = trace(model, data[0][0])
    model[0].weight.data[0] = float("nan")
    with pytest.raises(DataError, match=r"'2\.weight'"):
        measure(model, graph, data, want=WANT)
