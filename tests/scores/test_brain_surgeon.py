"""The optimal brain surgeon for units, by its formula."""

import pytest
import torch
from torch import nn

from nervure.methods import OBS
from nervure.prune import prune
from nervure.scores.brain_surgeon import obs
from nervure.scores.elimination import ReaderProblem


def problem(seed: int, columns: list[list[int]], inputs: int = 6) -> ReaderProblem:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, inputs, generator=generator, dtype=torch.float64)
    x[:, 1] = x[:, 0] + 0.1 * x[:, 1]
    weight = torch.randn(3, inputs, generator=generator, dtype=torch.float64)
    return ReaderProblem(weight, x.T @ x / 40, torch.tensor(columns))


def test_a_unit_costs_what_least_squares_loses_without_its_input() -> None:
    reader = problem(0, [[0], [1], [2], [3], [4], [5]])
    found = obs([reader], 6)
    for unit in range(6):
        left = [i for i in range(6) if i != unit]
        moments, weight = reader.moments, reader.weight
        best = torch.linalg.solve(moments[left][:, left], moments[left] @ weight.T).T
        gap = weight.clone()
        gap[:, left] -= best
        assert float(found[unit]) == pytest.approx(float(((gap @ moments) * gap).sum()), rel=1e-9)


def test_inputs_of_a_unit_and_its_readers_are_summed_and_no_input_costs_nothing() -> None:
    one, other = problem(1, [[0, 1], [2, -1], [3, 4]]), problem(2, [[5, -1], [0, 2], [-1, -1]])
    singles = [obs([problem(seed, [[i] for i in range(6)])], 6) for seed in (1, 2)]
    expected = [
        singles[0][[0, 1]].sum() + singles[1][5],
        singles[0][2] + singles[1][[0, 2]].sum(),
        singles[0][[3, 4]].sum(),
    ]
    assert torch.allclose(obs([one, other], 3), torch.stack(expected))


def test_units_that_others_say_too_leave_first_and_the_scale_of_a_unit_does_not_matter() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    net[0].weight.data[3], net[0].bias.data[3] = net[0].weight[1], net[0].bias[1]
    data = [torch.randn(100, 5) for _ in range(3)]

    def kept(keep: float) -> list[int]:
        plan = prune(net, data[0][:2], OBS(keep=keep), data=data, progress=False).plan
        return plan.cuts[0].keep.tensor().nonzero().flatten().tolist()

    first = kept(7 / 8)
    assert len({1, 3} & set(first)) == 1
    half = kept(0.5)
    net[0].weight.data[2] *= 50
    net[0].bias.data[2] *= 50
    net[2].weight.data[:, 2] /= 50
    assert kept(0.5) == half
