"""What ``connectivity`` says of networks whose graph can be drawn by hand."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from nervure import ERK, Connectivity, Magnitude, Random, connectivity, prune, zoo
from nervure.errors import ArgumentError, MissingExtraError
from nervure.evaluation import measures

EXAMPLE = torch.zeros(1, 4)


def mlp(*weights: list[list[float]]) -> nn.Sequential:
    layers = [nn.Linear(len(w[0]), len(w)) for w in weights]
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.copy_(torch.tensor(weight))
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]


def by_hand() -> nn.Sequential:
    """Hidden unit 1 hears nothing, 2 is heard by nobody; output 1 hears only unit 1; input 3 is not heard."""
    return mlp([[1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 3, 0]], [[1, 0, 0], [0, 5, 0]])


def test_dead_units_and_live_connections_of_a_network_by_hand() -> None:
    found = connectivity(by_hand(), EXAMPLE)
    assert found.dead == {"input": (2, 3), "0": (1, 2), "2": (1,)}
    assert found.dead_classes == (1,)
    assert (found.places, found.density, found.effective_density) == (18, 5 / 18, 3 / 18)
    assert found.components == 4  # {0, 1, h0, o0}, {2, h2}, {3}, {h1, o1}
    assert found.isolated == 1
    assert found.path_mass == pytest.approx(math.log10(3))
    first = found.layers[1]
    assert (first.name, first.units, first.unheard, first.unread) == ("0", 3, 1, 1)
    assert (first.places, first.connections, first.live) == (12, 3, 2)


def test_heat_of_a_network_by_hand_in_the_end() -> None:
    heat = connectivity(by_hand(), EXAMPLE).heat(math.inf)
    torch.testing.assert_close(heat, torch.tensor([0.5, 0.5, 0.5, 1, 0.5, 0, 0.5, 0.5, 0], dtype=torch.float64))


def test_directed_heat_splits_by_strength_and_is_lost_in_dead_ends() -> None:
    net = mlp([[3, 0], [1, 4]], [[2, 0], [6, 0]])
    heat = connectivity(net, torch.zeros(1, 2)).directed_heat
    expected = [1, 1, 0.75, 1.25, 0.75 * 0.25, 0.75 * 0.75]
    torch.testing.assert_close(heat, torch.tensor(expected, dtype=torch.float64))


def test_directed_distance_by_hand() -> None:
    dense, sparse = mlp([[1, 1], [1, 1]]), mlp([[1, 1], [0, 0]])
    found = connectivity(sparse, torch.zeros(1, 2), reference=dense)
    assert found.directed_distance == pytest.approx(0.5)  # heat is (2, 0) where it was (1, 1)


def test_the_width_of_outputs_by_hand() -> None:
    even, one = mlp([[1, 1], [1, 1], [1, 1], [1, 1]]), mlp([[1, 1], [0, 0], [0, 0], [0, 0]])
    assert connectivity(even, torch.zeros(1, 2)).output_width == pytest.approx(1.0)
    assert connectivity(one, torch.zeros(1, 2)).output_width == pytest.approx(0.25)
    assert connectivity(mlp([[0.0, 0.0]]), torch.zeros(1, 2)).output_width == 0


@pytest.mark.parametrize("t", [0.0, 0.5, 10.0, math.inf])
def test_a_network_is_at_no_distance_from_itself(t: float) -> None:
    net = zoo.build("resnet8")
    found = connectivity(net, torch.zeros(1, 3, 16, 16), reference=net)
    assert found.distance(t) == pytest.approx(0, abs=1e-9)
    assert found.directed_distance == pytest.approx(0, abs=1e-12)


def test_distances_are_of_the_heat_of_all_units() -> None:
    dense, sparse = connectivity(mlp([[1, 2], [3, 4]]), torch.zeros(1, 2)), mlp([[1, 0], [0, 4]])
    found = connectivity(sparse, torch.zeros(1, 2), reference=dense)
    for t in (0.3, 2.0):
        far = float((found.heat(t) - dense.heat(t)).norm())
        assert found.distance(t) == pytest.approx(far)
        assert found.distance(t, relative=True) == pytest.approx(far / float(dense.heat(t).norm()))


def small() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5, 4)), (
        torch.zeros(1, 3, 5, 5)
    )


def test_masks_count_as_zeros_in_weights() -> None:
    net, example = small()
    pruned = prune(net, example, ERK(density=0.1), verify=False)
    dirty = prune(net, example, ERK(density=0.1), verify=False)
    with torch.no_grad():
        for name in dirty.masks:  # as an optimizer would that nobody holds
            dirty.model.get_parameter(name).add_(~dirty.masks[name] * 0.3)
    clean, masked, plain = (connectivity(m, example, reference=net) for m in (pruned, dirty, pruned.model))
    assert clean.to_json() == masked.to_json() == plain.to_json()
    assert clean.density == pytest.approx(0.1, abs=2e-3)


def test_a_cut_network_has_the_units_that_are_left() -> None:
    net, example = small()
    pruned = prune(net, example, Magnitude(keep=0.5, budget="channels"))
    found = connectivity(pruned, example, reference=net)
    assert found.circuit.size < connectivity(net, example).circuit.size
    assert found.density == found.effective_density == 1
    with pytest.raises(ArgumentError, match="before it is cut"):
        found.distance(1.0)


def test_heat_keeps_its_units_when_a_network_is_masked() -> None:
    net, example = small()
    sparse = connectivity(prune(net, example, ERK(density=0.05), verify=False), example, reference=net)
    assert len(sparse.times) == 5
    assert sparse.times[-1] == math.inf
    near, far = sparse.distances((sparse.times[1], 0.0))
    assert near > 0
    assert far == 0


def test_sparser_random_networks_are_further_away_and_more_often_dead() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5))
    example = torch.zeros(1, 30)
    rows = []
    for density in (0.5, 0.1, 0.02):
        method = ERK(density=density, distribution="uniform", guard="none")
        rows.append(measures(prune(net, example, method, verify=False), example, net))
    assert [r["directed_distance"] for r in rows] == sorted(r["directed_distance"] for r in rows)
    assert [r["dead_units"] for r in rows] == sorted(r["dead_units"] for r in rows)
    assert all(r["effective_density"] <= r["density"] for r in rows)
    assert rows[2]["effective_density"] < rows[2]["density"]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def test_a_unit_that_runs_in_several_steps_is_dead_only_where_it_is_in_all() -> None:
    found = connectivity(Recurrent(), torch.zeros(2, 5, 3))
    assert found.dead == {}
    assert {row.name: row.units for row in found.layers}["rnn.weight_hh_l0"] == 12


def test_everything_is_told_in_text_and_json() -> None:
    net = by_hand()
    found = connectivity(net, EXAMPLE, reference=net)
    assert json.loads(json.dumps(found.to_json()))["dead"] == {"input": [2, 3], "0": [1, 2], "2": [1]}
    text = str(found)
    assert "effective density 16.67%" in text
    assert "1 dead outputs" in text
    assert isinstance(found, Connectivity)


def test_no_path_at_all_is_told_too() -> None:
    found = connectivity(mlp([[0.0, 0.0]], [[1.0]]), torch.zeros(1, 2))
    assert found.effective_density == 0
    assert found.path_mass == -math.inf
    assert "no path" in str(found)
    assert found.to_json()["path_mass"] is None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"strength": "l3"}, "strength='l3'"),
        ({"normalize": "no"}, "normalize='no'"),
    ],
)
def test_an_unknown_option_is_named(options: dict[str, str], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        connectivity(nn.Linear(4, 1), EXAMPLE, **options)  # type: ignore[arg-type]


def test_distances_need_a_reference() -> None:
    with pytest.raises(ArgumentError, match="reference="):
        connectivity(nn.Linear(4, 1), EXAMPLE).distance(1.0)


@pytest.mark.parametrize("t", [-1.0, math.nan, "1"])
def test_a_time_is_no_less_than_zero(t: float) -> None:
    with pytest.raises(ArgumentError, match="t="):
        connectivity(nn.Linear(4, 1), EXAMPLE).heat(t)


def test_something_else_than_a_network_is_refused() -> None:
    with pytest.raises(ArgumentError, match="model is a torch.nn.Module"):
        connectivity("resnet8", EXAMPLE)  # type: ignore[arg-type]


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scipy.sparse", None)
    with pytest.raises(MissingExtraError, match="connectivity"):
        connectivity(nn.Linear(4, 1), EXAMPLE)


def test_a_random_cut_is_not_a_mask() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    pruned = prune(net, EXAMPLE, Random(keep=0.5, budget="channels"))
    assert connectivity(pruned, EXAMPLE).dead == {}
