"""Connectivity under shift: none where nothing changes, known where noise is known, and beside the accuracy."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from nervure.errors import ArgumentError, DataError
from nervure.evaluation import ConnectivityShift, connectivity_shift, evaluate_shift
from nervure.evaluation.shift import shift_batches
from nervure.methods import companion
from nervure.scores import parent_dependence as connectivity

Data = list[tuple[Tensor, Tensor]]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))


def pictures(samples: int = 80) -> Data:
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(samples) % 3
    x = torch.rand(samples, 1, 10, 10, generator=generator) * (0.4 + 0.2 * y)[:, None, None, None]
    return list(zip(x.split(20), y.split(20), strict=True))


def test_the_distance_is_that_of_the_connectivity_of_clean_and_shifted_data() -> None:
    model, data = net(), pictures()
    found = connectivity_shift({"net": model}, data, shift=["gaussian_noise"], severities=[5], progress=False)
    moved = list(shift_batches(data, "gaussian_noise", 5))
    x, other, y = (torch.cat([b[i] for b in part]) for part, i in ((data, 0), (moved, 0), (data, 1)))

    def before_and_after(inputs: Tensor) -> Tensor:
        parents = model[:4](inputs).mean((2, 3))
        return connectivity.correlation(parents, model[6](parents), y)

    clean, noisy = (before_and_after(inputs).detach() for inputs in (x, other))
    expected = float((noisy - clean).norm() / clean.norm())
    assert found.rows["net"]["gaussian_noise", 5]["6.weight"] == pytest.approx(expected, rel=1e-3)
    assert set(found.by_layer("net")) == {"2.weight", "6.weight"}


def test_pictures_that_a_shift_leaves_alone_leave_connectivity_alone() -> None:
    # Contrast is taken about the mean of a picture: one that is flat stays as it is; noise it does not survive.
    flat = [(x.mean((1, 2, 3), keepdim=True).expand_as(x).contiguous(), y) for x, y in pictures()]
    found = connectivity_shift({"net": net()}, flat, shift=["contrast", "impulse_noise"], progress=False)
    contrast, noise = found.by_shift("net").values()
    assert contrast < 1e-4
    assert noise > 0.01


def test_a_silent_network_has_no_distance() -> None:
    grey = [(torch.full_like(x, 0.5), y) for x, y in pictures()]
    found = connectivity_shift({"net": net()}, grey, shift=["invert"], progress=False)
    assert math.isnan(found.by_layer("net")["2.weight"])
    assert "nan" in found.table()


def test_connections_that_are_gone_do_not_move() -> None:
    model, pruned, data = net(), net(), pictures()
    with torch.no_grad():
        pruned[2].weight[:, 1:] = 0
    found = connectivity_shift({"dense": model, "pruned": pruned}, data, shift=["gaussian_noise"], progress=False)
    moved = list(shift_batches(data, "gaussian_noise", 3))
    clean, noisy = (companion(pruned, data[0][0], batches)["2.weight"].weight[:, :1] for batches in (data, moved))
    expected = float((noisy - clean).norm() / clean.norm())
    assert found.rows["pruned"]["gaussian_noise", 3]["2.weight"] == pytest.approx(expected, rel=1e-4)
    lines = found.table().splitlines()
    assert lines[0] == "| layer | dense | pruned |"
    assert [line.split(" |")[0] for line in lines[2:]] == ["| 2", "| 6", "| mean"]
    assert ConnectivityShift.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_distance_and_lost_accuracy_are_related_by_rank() -> None:
    answers, y = torch.eye(4).repeat(10, 1), torch.arange(40) % 4
    wrong = {("fog", 1): 4, ("fog", 5): 20, ("snow", 1): 8}
    shift = {key: [(answers, torch.where(torch.arange(40) < n, (y + 1) % 4, y))] for key, n in wrong.items()}
    scored = evaluate_shift({"net": nn.Identity()}, [(answers, y)], shift=shift, progress=False)
    along, against = (
        ConnectivityShift({"net": {key: {"2.weight": 0.1 + sign * n} for key, n in wrong.items()}}) for sign in (1, -1)
    )
    assert along.relation(scored) == pytest.approx(1.0)
    assert against.relation(scored) == pytest.approx(-1.0)
    with pytest.raises(ArgumentError, match="evaluate the same"):
        ConnectivityShift({"net": {("frost", 1): {"2.weight": 0.5}}}).relation(scored)


def test_only_the_first_samples_are_looked_at() -> None:
    data = pictures()
    options = {"shift": ["contrast"], "severities": [2], "progress": False}
    cut = connectivity_shift({"net": net()}, data, samples=50, **options)  # type: ignore[arg-type]
    head = [*data[:2], (data[2][0][:10], data[2][1][:10])]
    assert cut == connectivity_shift({"net": net()}, head, **options)  # type: ignore[arg-type]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ArgumentError, match="at least one model"):
        connectivity_shift({}, pictures())
    with pytest.raises(ArgumentError, match="mist"):
        connectivity_shift({"net": net()}, pictures(), shift=["mist"])
    with pytest.raises(ArgumentError, match="estimator='pearson'"):
        connectivity_shift({"net": net()}, pictures(), estimator="pearson")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="normalised"):
        connectivity_shift({"net": net()}, [(3 * x, y) for x, y in pictures()], shift=["contrast"])
