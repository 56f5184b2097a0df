"""What units say on data, and how much the loss listens to them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from nervure.core.container import write_container
from nervure.errors import ArgumentError, DataError, FileError, ForwardError
from nervure.graph.types import Graph, Group, TensorAxis, Units
from nervure.stats import Stats, measure
from nervure.stats.evidence import KIND
from tests.graphs import chain, chain_model

ALL = frozenset({"activations", "gradients", "labels"})


def pictures(samples: int = 12, size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(samples, 3, size, size, generator=generator), torch.arange(samples) % 5


def batches(samples: int = 12, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    x, y = pictures(samples)
    return list(zip(x.split(size), y.split(size), strict=True))


def writes(name: str, tensor: str, units: list[int], axis: int = 0) -> Group:
    size = max(units) + 1
    return Group(name, size, "channels", (TensorAxis(tensor, axis, "writer", Units(units)),))


class Inplace(nn.Module):
    """Each layer is followed by work in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).mul_(2).relu_()).add_(1).mean((2, 3))


class Wrapped:
    """A loader that hands on whatever it is asked, as wrappers do; a copy of it has nothing to ask."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


def test_a_loader_that_cannot_be_copied_is_read_as_it_is() -> None:
    model, graph = chain_model(4, 6, 5), chain(4, 6, 5)
    stats = measure(model, graph, Wrapped(batches()))
    assert torch.equal(stats.activations["0"], measure(model, graph, batches()).activations["0"])


def test_activations_are_means_over_positions_of_what_the_writer_gives() -> None:
    model, graph = chain_model(4, 6, 5), chain(4, 6, 5)
    stats = measure(model, graph, batches())
    x, _ = pictures()
    with torch.no_grad():
        first = model[0](x)
        second = model[1](first)
    assert torch.allclose(stats.activations["0"], first.mean((2, 3)), atol=1e-6)
    assert torch.allclose(stats.activations["1"], second.mean((2, 3)), atol=1e-6)
    assert torch.allclose(stats.moments["0"][:, 0], first.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(stats.moments["0"][:, 1], first.square().mean((0, 2, 3)), atol=1e-6)
    assert (stats.samples, stats.labels, stats.gradients, stats.skipped) == (12, None, {}, {})


def test_gradients_are_activation_times_gradient_of_each_samples_own_loss() -> None:
    model, graph = chain_model(4, 6, 5), chain(4, 6, 5)
    stats = measure(model, graph, batches(), want=ALL)
    x, y = pictures()
    for index in range(len(x)):
        hidden = model[0](x[index : index + 1]).detach().requires_grad_()
        F.cross_entropy(model[1:](hidden), y[index : index + 1]).backward()
        expected = (hidden * hidden.grad).sum((0, 2, 3))
        assert torch.allclose(stats.gradients["0"][index], expected, atol=1e-6)
    assert stats.labels is not None
    assert stats.labels.equal(y)


def test_gradients_say_how_the_loss_falls_when_a_unit_is_removed() -> None:
    model, graph = chain_model(4, 6, 5), chain(4, 6, 5)
    stats = measure(model, graph, batches(), want={"gradients"})
    x, y = pictures()
    with torch.no_grad():
        hidden = model[0](x)
        less = hidden.clone()
        less[:, 2] *= 0.99
        fall = F.cross_entropy(model[1:](hidden), y) - F.cross_entropy(model[1:](less), y)
    assert torch.allclose(stats.gradients["0"][:, 2].mean() * 0.01, fall, rtol=0.05)


def test_what_works_in_place_after_the_writer_is_not_heard() -> None:
    model = Inplace()
    graph = Graph(groups=(writes("a", "a.weight", [0, 1, 2, 3]), writes("b", "b.weight", [0, 1, 2, 3, 4])))
    x, y = pictures()
    a = model.a(x)
    a.retain_grad()
    b = model.b(a.relu() * 2)
    b.retain_grad()
    F.cross_entropy((b + 1).mean((2, 3)), y, reduction="sum").backward()
    for want in [{"activations"}, ALL]:
        stats = measure(model, graph, batches(), want=want)
        assert torch.allclose(stats.activations["a"], a.detach().mean((2, 3)), atol=1e-6)
        assert torch.allclose(stats.activations["b"], b.detach().mean((2, 3)), atol=1e-6)
    assert torch.allclose(stats.gradients["a"], (a * a.grad).detach().sum((2, 3)), atol=1e-6)
    assert torch.allclose(stats.gradients["b"], (b * b.grad).detach().sum((2, 3)), atol=1e-6)


def test_evidence_does_not_depend_on_the_size_of_batches() -> None:
    model, graph = chain_model(4, 6, 5), chain(4, 6, 5)
    one, other = (measure(model, graph, batches(size=size), want=ALL) for size in (3, 5))
    assert torch.allclose(one.activations["1"], other.activations["1"], atol=1e-6)
    assert torch.allclose(one.gradients["1"], other.gradients["1"], atol=1e-6)


def test_frozen_models_have_gradients_too() -> None:
    model, graph = chain_model(4, 6, 5), chain(4, 6, 5)
    free = measure(model, graph, batches(), want=ALL)
    frozen = measure(model.requires_grad_(False), graph, batches(), want=ALL)
    assert torch.allclose(free.gradients["0"], frozen.gradients["0"], atol=1e-7)


@pytest.mark.parametrize("want", [{"activations"}, ALL])
def test_the_model_and_the_data_are_left_as_they_were(want: frozenset[str]) -> None:
    model = nn.Sequential(*chain_model(4, 6, 5), nn.BatchNorm1d(5)).train()
    model[1].eval()
    data, before = batches(), {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    measure(model, chain(4, 6, 5), data, want=want)
    assert all(before[name].equal(t) for name, t in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert all(a.equal(b) for a, b in zip(data[0], batches()[0], strict=True))
    assert state.equal(torch.get_rng_state())
    assert torch.is_grad_enabled()


def test_hooks_leave_also_when_the_model_fails() -> None:
    model = chain_model(4, 6, 5).train()
    with pytest.raises(ForwardError):
        measure(model, chain(4, 6, 5), [(torch.zeros(2, 7, 4, 4), torch.zeros(2))])
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_exactly_so_many_samples_are_read() -> None:
    read = []

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches():
            read.append(1)
            yield batch

    stats = measure(chain_model(4, 5), chain(4, 5), stream(), samples=6, want=ALL)
    assert stats.samples == len(stats.activations["0"]) == len(stats.gradients["0"]) == 6
    assert stats.labels is not None
    assert len(stats.labels) == 6
    assert len(read) == 2


def test_a_shuffling_loader_gives_the_same_samples_for_the_same_seed() -> None:
    model, graph = chain_model(4, 5), chain(4, 5)
    loader = DataLoader(TensorDataset(*pictures()), batch_size=4, shuffle=True)
    one, same, other = (measure(model, graph, loader, seed=s, samples=4).activations["0"] for s in (1, 1, 2))
    assert one.equal(same)
    assert not one.equal(other)


def test_linear_layers_are_read_along_the_last_axis_also_with_many_positions() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 4))
    graph = Graph(groups=(writes("a", "0.weight", [0, 1, 2, 3]),))
    x = torch.randn(8, 4, 6)
    stats = measure(model, graph, [x.split(4)[0], x.split(4)[1]])
    assert torch.allclose(stats.activations["a"], model[0](x).detach().mean(1), atol=1e-6)


def test_units_that_hold_several_channels_are_averaged() -> None:
    model = nn.Linear(6, 5)
    graph = Graph(groups=(writes("a", "weight", [0, -1, 1, 0, 1]), writes("b", "weight", [-1, 0, -1, -1, -1])))
    x = torch.randn(8, 6)
    stats = measure(model, graph, [x])
    y = model(x).detach()
    assert torch.allclose(stats.activations["a"], torch.stack([y[:, [0, 3]].mean(1), y[:, [2, 4]].mean(1)], 1))
    assert torch.allclose(stats.activations["b"], y[:, 1:2])


def test_a_module_that_runs_twice_is_heard_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).relu())

    model, x, y = Twice(), torch.randn(8, 4), torch.arange(8) % 4
    graph = Graph(groups=(writes("a", "layer.weight", [0, 1, 2, 3]),))
    stats = measure(model, graph, [(x, y)], want=ALL)
    first = model.layer(x)
    second = model.layer(first.relu())
    slopes = torch.autograd.grad(F.cross_entropy(second, y, reduction="sum"), [first, second])
    assert torch.allclose(stats.activations["a"], ((first + second) / 2).detach(), atol=1e-6)
    assert torch.allclose(stats.gradients["a"], (first * slopes[0] + second * slopes[1]).detach(), atol=1e-6)


class Awkward(nn.Module):
    """Parts that cannot be heard, each for another reason."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.attention = nn.MultiheadAttention(4, 2)
        self.recurrent = nn.LSTM(4, 4, batch_first=True)
        self.idle = nn.Linear(4, 4)
        self.flat = nn.Linear(4, 4)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        out = self.flat(self.recurrent(x * self.scale)[0].reshape(-1, 4)).reshape(x.shape)
        return self.last(out.mean(1))


def test_groups_that_cannot_be_heard_are_skipped_with_the_reason() -> None:
    four = [0, 1, 2, 3]
    graph = Graph(
        groups=(
            writes("scale", "scale", four),
            writes("attention", "attention.in_proj_weight", [*four, *[-1] * 8]),
            writes("recurrent", "recurrent.weight_hh_l0", [*four, *[-1] * 12]),
            writes("idle", "idle.weight", four),
            writes("flat", "flat.weight", four),
            writes("gone", "gone.weight", four),
            Group("input", 4, "channels", ()),
            Group("some", 9, "channels", (TensorAxis("last.weight", 0, "writer", Units([0, 1, 2, 3, 4])),)),
            writes("last", "last.weight", [*four, 4]),
        )
    )
    stats = measure(Awkward(), graph, [(torch.randn(6, 3, 4), torch.arange(6) % 5)], want=ALL)
    assert set(stats.activations) == set(stats.gradients) == set(stats.moments) == {"last"}
    reasons = {
        "scale": "not the only kernel",
        "attention": "not the only kernel",
        "recurrent": "not the only kernel",
        "idle": "did not run",
        "flat": "18 rows for 6 samples",
        "gone": "belongs to no module",
        "input": "arrive from outside",
        "some": "only some of its units",
    }
    assert set(stats.skipped) == set(reasons)
    assert all(reason in stats.skipped[name] for name, reason in reasons.items())


def test_the_next_writer_is_heard_where_the_first_cannot_be() -> None:
    model = Awkward()
    slots = (TensorAxis("scale", 0, "writer", Units(range(4))), TensorAxis("idle.weight", 0, "writer", Units(range(4))))
    graph = Graph(groups=(Group("g", 4, "channels", slots),))
    assert "did not run" in measure(model, graph, [torch.randn(6, 3, 4)]).skipped["g"]


def test_a_unit_the_loss_does_not_see_has_no_gradient_and_says_so() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 5), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.used(x), self.unused(x)

    graph = Graph(groups=(writes("used", "used.weight", [0, 1, 2, 3, 4]), writes("unused", "unused.weight", [0, 1, 2])))
    stats = measure(Aside(), graph, [(torch.randn(6, 4), torch.arange(6) % 5)], want=ALL)
    assert set(stats.activations) == {"used", "unused"}
    assert set(stats.gradients) == {"used"}
    assert "does not depend" in stats.skipped["unused"]


def test_inputs_can_be_tuples_and_dicts() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 5)

        def forward(self, x: Tensor, y: Tensor, flag: bool = True) -> dict[str, Tensor]:
            return {"other": x, "logits": self.layer(x + y)}

    graph = Graph(groups=(writes("a", "layer.weight", [0, 1, 2, 3, 4]),))
    x, y, labels = torch.randn(6, 4), torch.randn(6, 4), torch.arange(6) % 5
    model = Two()
    one = measure(model, graph, [((x, y), labels)], want=ALL, samples=4)
    two = measure(model, graph, [({"x": x, "y": y, "flag": False}, labels)], want=ALL, samples=4)
    assert one.activations["a"].equal(two.activations["a"])
    assert one.gradients["a"].shape == (4, 5)


def test_inputs_can_be_nested() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 5)

        def forward(self, given: dict[str, list[Tensor]]) -> Tensor:
            return self.layer(given["parts"][0] + given["parts"][1])

    graph = Graph(groups=(writes("a", "layer.weight", [0, 1, 2, 3, 4]),))
    data = [(({"parts": [torch.randn(6, 4), torch.randn(6, 4)]},), torch.zeros(6))]
    assert measure(Nested(), graph, data, samples=4).activations["a"].shape == (4, 5)


@pytest.mark.parametrize(
    ("data", "want", "message"),
    [
        ([], {"activations"}, "empty"),
        ({0: 1}, {"activations"}, "iterable, batches"),
        (7, {"activations"}, "iterable, batches"),
        ([(torch.full((2, 3, 4, 4), float("nan")), torch.zeros(2))], {"activations"}, "batch 0: inputs are NaN"),
        ([torch.zeros(2, 3, 4, 4)], {"labels"}, "batch 0: there are no labels"),
        ([(torch.zeros(2, 3, 4, 4),)], {"gradients"}, "batch 0: there are no labels"),
        ([(torch.zeros(2, 3, 4, 4), torch.zeros(2))], {"labels"}, "class number"),
        ([(torch.zeros(2, 3, 4, 4), torch.zeros(3).long())], {"labels"}, "class number"),
        ([(torch.zeros(2, 3, 4, 4), torch.tensor([0, 5]))], {"gradients"}, "label 5 is out of range"),
        ([(torch.zeros(2, 3, 4, 4), torch.tensor([0, -1]))], {"gradients"}, "label -1 is out of range"),
        ([(1, 2, 3)], {"activations"}, "say which parts are inputs"),
        ([("a", "b")], {"activations"}, "no tensor"),
    ],
)
def test_wrong_data_are_refused(data: Any, want: set[str], message: str) -> None:
    with pytest.raises((ArgumentError, DataError), match=message):
        measure(chain_model(4, 5), chain(4, 5), data, want=want)


def test_a_model_that_gives_nan_is_refused() -> None:
    model = chain_model(4, 5)
    with torch.no_grad():
        model[0].weight[0] = float("nan")
    with pytest.raises(DataError, match="group '0' are NaN"):
        measure(model, chain(4, 5), batches())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"want": {"activation"}}, "'activation' cannot be measured. Did you mean 'activations'"),
        ({"want": "labels"}, "want is an iterable"),
        ({"samples": 0}, "samples=0"),
        ({"seed": 0.5}, "seed=0.5"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        measure(chain_model(4, 5), chain(4, 5), batches(), **wrong)


def test_stats_survive_a_file(tmp_path: Path) -> None:
    graph = chain(4, 6, 5)
    stats = measure(chain_model(4, 6, 5), graph, batches(), want=ALL, seed=7)
    again = Stats.load(stats.save(tmp_path / "stats.safetensors"))
    for kind in ("activations", "gradients", "moments"):
        ours, theirs = getattr(stats, kind), getattr(again, kind)
        assert set(ours) == set(theirs) == {"0", "1", "2"}
        assert all(ours[name].equal(theirs[name]) for name in ours)
    assert again.labels is not None
    assert again.labels.equal(pictures()[1])
    assert (again.samples, again.seed, again.want, again.skipped) == (12, 7, ALL, stats.skipped)
    assert again.fingerprint == graph.fingerprint
    assert again.digest == stats.digest
    assert [path.name for path in tmp_path.iterdir()] == ["stats.safetensors"]


def test_the_digest_names_where_the_evidence_comes_from() -> None:
    model, graph = chain_model(4, 5), chain(4, 5)
    same = {measure(model, graph, batches()).digest, measure(model, graph, batches(size=3)).digest}
    other = {measure(model, graph, batches(), **o).digest for o in ({"seed": 1}, {"samples": 5}, {"want": ALL})}
    assert len(same) == 1
    assert len(same | other) == 4


def test_damaged_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    path = Stats(activations={"a": torch.zeros(2, 3)}, samples=2).save(tmp_path / "stats")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FileError, match="truncated"):
        Stats.load(path)
    save_file({"a": torch.zeros(2)}, str(tmp_path / "foreign"))
    with pytest.raises(FileError, match="does not hold statistics"):
        Stats.load(tmp_path / "foreign")
    write_container(tmp_path / "newer", {"a": torch.zeros(2)}, {}, replace(KIND, version=99))
    with pytest.raises(FileError, match="format 99"):
        Stats.load(tmp_path / "newer")
    with pytest.raises(FileError, match="nothing is there"):
        Stats.load(tmp_path / "missing")


def test_tensors_that_share_memory_can_be_saved(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(4, 3)
    stats = Stats(activations={"a": table, "b": table.T[:2]}, gradients={"a": table}, samples=4)
    again = Stats.load(stats.save(tmp_path / "stats"))
    assert again.activations["b"].equal(table.T[:2])
    assert again.gradients["a"].equal(table)
