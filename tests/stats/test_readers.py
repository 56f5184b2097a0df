"""What readers are given, and what the loss would lose with it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import Cut, Keep, Plan, apply, trace
from nervure.errors import DataError
from nervure.stats import Stats, measure
from tests.networks import NETWORKS


class Twice(nn.Module):
    """Two readers of one batch-normed layer, and a shortcut around one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu()
        return self.head((x + self.b(x)).mean((2, 3)))


def twice() -> tuple[Twice, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = Twice().eval()
    model.norm.running_mean.normal_()
    model.norm.bias.data.normal_()
    x = torch.randn(10, 2, 5, 5)
    return model, [(x[:4], torch.tensor([0, 1, 2, 0])), (x[4:], torch.tensor([0, 1, 2, 0, 1, 1]))]


def loss_of(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([F.cross_entropy(model(x), y, reduction="none") for x, y in data])


def test_effects_are_what_the_loss_falls_by_when_everything_that_reads_a_unit_hears_a_little_less() -> None:
    model, data = twice()
    graph = trace(model, data[0][0])
    stats = measure(model, graph, data, want={"effects"})
    before, share = loss_of(model.double(), [(x.double(), y) for x, y in data]), 1e-4
    for unit in range(4):
        less, _ = twice()
        less.double().b.weight.data[:, unit] *= 1 - share
        less.head.weight.data[:, unit] *= 1 - share
        fall = (before - loss_of(less, [(x.double(), y) for x, y in data])) / share
        assert torch.allclose(stats.effects["a"][:, unit].double(), fall, rtol=1e-2, atol=1e-4)


def test_readings_are_moments_of_what_the_readers_are_given() -> None:
    model, data = twice()
    stats = measure(model, trace(model, data[0][0]), data, want={"readings"})
    with torch.no_grad():
        x = torch.cat([x for x, _ in data])
        inner = model.norm(model.a(x)).relu()
        last = (inner + model.b(inner)).mean((2, 3))
    heard = [torch.cat([inner.movedim(1, 0).flatten(1), last.T], 1)][0]
    expected = torch.stack([heard.abs().mean(1), heard.square().mean(1), (heard == 0).float().mean(1)], 1)
    assert torch.allclose(stats.readings["a"], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "grouped_conv", "depthwise", "concat", "flatten_linear", "vit"])
def test_every_group_of_the_shared_models_is_heard_at_its_readers(name: str) -> None:
    network = NETWORKS[name]
    model, example = network.factory().eval(), network.example()
    x = example[0] if isinstance(example, tuple) else example
    graph, labels = trace(model, example), torch.zeros(len(x), dtype=torch.long)
    stats = measure(model, graph, [(x, labels)], want={"effects", "readings"})
    for group in graph.prunable:
        assert stats.effects[group.name].shape == (len(x), group.size)
        assert stats.readings[group.name].shape == (group.size, 3)


def test_a_unit_that_is_silent_to_its_readers_has_no_effect_and_its_cut_changes_nothing() -> None:
    model, data = twice()
    model.norm.weight.data[1] = 0
    model.norm.bias.data[1] = -1
    model.b.weight.data[1], model.b.bias.data[1] = 0, 0
    graph = trace(model, data[0][0])
    stats = measure(model, graph, data, want={"effects", "readings", "activations"})
    assert not stats.effects["a"][:, 1].any()
    assert stats.readings["a"][1].tolist() == [0, 0, 1]
    assert stats.activations["a"][:, 1].any()
    cut = apply(model, graph, Plan((Cut("a", Keep.of([True, False, True, True])),)))
    assert torch.allclose(loss_of(cut.eval(), data), loss_of(model, data), atol=1e-6)


def test_groups_that_nothing_reads_are_named_with_the_reason() -> None:
    model, data = twice()
    stats = measure(model, trace(model, data[0][0]), data, want={"readings"})
    assert stats.skipped["head"] == "no tensor reads its units"
    assert "head" not in stats.readings


def test_effects_need_labels_and_leave_no_hook_behind() -> None:
    model, data = twice()
    graph = trace(model, data[0][0])
    with pytest.raises(DataError, match="labels"):
        measure(model, graph, [x for x, _ in data], want={"effects"})
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_both_slopes_can_be_measured_at_once_and_survive_saving(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, data = twice()
    graph = trace(model, data[0][0])
    both = measure(model, graph, data, want={"effects", "gradients", "readings"})
    assert both.effects["a"].equal(measure(model, graph, data, want={"effects"}).effects["a"])
    assert both.gradients["a"].allclose(measure(model, graph, data, want={"gradients"}).gradients["a"])
    again = Stats.load(both.save(tmp_path / "stats.safetensors"))
    assert again.effects["a"].equal(both.effects["a"])
    assert again.readings["a"].equal(both.readings["a"])


def test_evidence_can_be_narrowed_to_what_is_wanted() -> None:
    model, data = twice()
    stats = measure(model, trace(model, data[0][0]), data, want={"effects", "activations", "labels"})
    narrow = stats.only({"effects", "outputs"})
    assert (narrow.want, narrow.labels, narrow.activations, narrow.moments) == ({"effects"}, None, {}, {})
    assert narrow.effects["a"].equal(stats.effects["a"])
    assert stats.only({"activations"}).moments.keys() == stats.moments.keys()
    assert stats.labels is not None
