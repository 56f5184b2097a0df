"""What blocks add to their shortcut, and the model's answer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import Depth, Energy, prune, trace
from nervure.errors import ArgumentError, DataError
from nervure.stats import Stats, measure
from nervure.zoo import build


class Residual(nn.Module):
    """A stem, a block beside an identity, one beside a projection, and two answers."""

    def __init__(self, form: str = "dict") -> None:
        super().__init__()
        self.form = form
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.two = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6))
        self.project = nn.Conv2d(4, 6, 1, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x).relu()
        x = x + self.one(x)
        x = self.project(x) + self.two(x)
        embedding = x.mean((2, 3))
        if self.form == "dict":
            return {"embedding": embedding, "logits": self.head(embedding)}
        return embedding, self.head(embedding)


def data(samples: int = 12, size: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 3, 8, 8, generator=generator)
    return list(zip(x.split(size), (torch.arange(samples) % 5).split(size), strict=True))


def test_what_is_heard_is_what_the_branch_gives_before_it_is_added() -> None:
    model = Residual().eval()
    x = torch.cat([x for x, _ in data()])
    stats = measure(model, trace(model, x[:1]), data(), want={"blocks:flatten", "outputs"})
    with torch.no_grad():
        entered = model.stem(x).relu()
        added = model.one(entered)
        answer = model(x)["logits"]
    assert list(stats.blocks) == ["one", "two"]
    torch.testing.assert_close(stats.blocks["one"], added.flatten(1))
    assert stats.outputs is not None
    torch.testing.assert_close(stats.outputs, answer)
    cosine = F.cosine_similarity(entered, entered + added, dim=1).mean((1, 2))
    torch.testing.assert_close(stats.shifts["one"][:, 0], cosine)
    torch.testing.assert_close(stats.shifts["one"][:, 1], added.flatten(1).norm(dim=1) / entered.flatten(1).norm(dim=1))
    assert stats.shifts["two"][:, 0].isnan().all()
    assert stats.shifts["two"][:, 1].isfinite().all()


@pytest.mark.parametrize(("kind", "features"), [("pool4", 64), ("gap", 4), ("flatten", 256), ("random", 256)])
def test_maps_are_reduced_as_asked(kind: str, features: int) -> None:
    model = Residual().eval()
    graph = trace(model, torch.randn(1, 3, 8, 8))
    found = measure(model, graph, data(), want={f"blocks:{kind}"}).blocks["one"]
    assert found.shape == (12, features)
    flat = measure(model, graph, data(), want={"blocks:flatten"}).blocks["one"].reshape(12, 4, 8, 8)
    expected = {"pool4": F.avg_pool2d(flat, 2).flatten(1), "gap": flat.mean((2, 3))}.get(kind, flat.flatten(1))
    torch.testing.assert_close(found, expected)


def test_random_directions_keep_distances() -> None:
    from nervure.stats.block_outputs import project_maps

    x = torch.randn(30, 8, 20, 20, generator=torch.Generator().manual_seed(0))
    ratio = torch.pdist(project_maps(x)) / torch.pdist(x.flatten(1))
    assert 0.85 < float(ratio.min()) <= float(ratio.max()) < 1.15


def test_an_output_is_named_by_key_or_place() -> None:
    for form, name in (("dict", "embedding"), ("tuple", "0")):
        model = Residual(form).eval()
        graph = trace(model, torch.randn(1, 3, 8, 8))
        stats = measure(model, graph, data(), want={f"outputs:{name}"})
        assert stats.outputs is not None
        assert stats.outputs.shape == (12, 6)
        assert not stats.blocks
        with pytest.raises(ArgumentError, match=r"no tensor called 'logit'\. There are: "):
            measure(model, graph, data(), want={"outputs:logit"})


def test_tokens_and_dense_layers_are_heard_and_a_whole_block_is_what_it_adds() -> None:
    vit = build("vit_tiny", seed=0, dim=12, depth=1, heads=2, image_size=8, patch=2).eval()
    stats = measure(vit, trace(vit, torch.randn(1, 3, 8, 8)), data(), want={"blocks:flatten"})
    halves = stats.blocks["blocks.0.attn"] + stats.blocks["blocks.0.mlp"]
    torch.testing.assert_close(stats.blocks["blocks.0"], halves, atol=1e-5, rtol=1e-4)
    net = build("densenet40", seed=0, growth=2).eval()
    graph = trace(net, torch.randn(1, 3, 8, 8))
    stats = measure(net, graph, data(), want={"blocks:gap"})
    assert {b.shape for b in stats.blocks.values()} == {(12, 2)}
    assert all(((s[:, 0] > 0) & (s[:, 0] <= 1)).all() for s in stats.shifts.values())


def test_evidence_of_blocks_survives_a_file(tmp_path: Path) -> None:
    model = Residual().eval()
    stats = measure(model, trace(model, torch.randn(1, 3, 8, 8)), data(), want={"blocks", "outputs"})
    again = Stats.load(stats.save(tmp_path / "stats.safetensors"))
    assert again.outputs is not None
    assert stats.outputs is not None
    assert again.outputs.equal(stats.outputs)
    assert all(again.blocks[name].equal(value) for name, value in stats.blocks.items())
    assert again.shifts.keys() == stats.shifts.keys()


def test_what_cannot_be_heard_is_told() -> None:
    model = Residual().eval()
    graph = trace(model, torch.randn(1, 3, 8, 8))
    with pytest.raises(ArgumentError, match="'mean' is not one of 'pool4'"):
        measure(model, graph, data(), want={"blocks:mean"})
    with pytest.raises(ArgumentError, match="cannot be measured"):
        measure(model, graph, data(), want={"labels:x"})
    with pytest.raises(ArgumentError, match="names a signal twice"):
        measure(model, graph, data(), want={"blocks:gap", "blocks"})
    with torch.no_grad():
        model.one[1].weight.fill_(float("inf"))
    with pytest.raises(DataError, match="what block 'one' adds is NaN or infinite"):
        measure(model, graph, data(), want={"blocks"})


class PerToken(nn.Module):
    """A residual network that answers for each token of a line."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(6, 8), nn.Linear(8, 5)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for block in self.blocks:
            x = x + block(x)
        return self.end(x)


@pytest.mark.parametrize(
    "method", [Energy(score="skip", drop=1), Energy(score="dcor", target="outputs", drop=1), Depth(drop=1)]
)
def test_lines_of_other_lengths_in_each_batch_are_heard(method: Any) -> None:
    torch.manual_seed(0)
    model = PerToken().eval()
    lines = [torch.randn(8, length, 6) for length in (12, 20, 40)]
    pruned = prune(model, lines[0], method, data=lines, task=lambda model, x: model(x).square().mean(), progress=False)
    assert len(pruned.plan.drops) == 1


def test_the_answers_of_lines_of_other_lengths_are_averages_over_tokens() -> None:
    torch.manual_seed(0)
    model = PerToken().eval()
    lines = [torch.randn(8, length, 6) for length in (12, 40)]
    stats = measure(model, trace(model, lines[0]), lines, want={"outputs"})
    assert stats.outputs is not None
    torch.testing.assert_close(stats.outputs, torch.cat([model(x).mean(1) for x in lines]).detach())
