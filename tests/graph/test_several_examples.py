"""Several examples in one graph: every way through a model is seen, and cut models run on all of them."""

import pytest
import torch
from torch import Tensor, nn

from nervure import Magnitude, count, prune, trace, verify
from nervure.errors import ArgumentError, NervureWarning, VerificationError
from tests.networks import noise, seeded


class Tasks(nn.Module):
    """A trunk with two heads, of which a call runs one."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.ReLU())
        self.heads = nn.ModuleDict({"depth": nn.Linear(16, 3), "normals": nn.Linear(16, 5)})

    def forward(self, x: Tensor, task: str) -> Tensor:
        y: Tensor = self.heads[task](self.trunk(x))
        return y


DEPTH, NORMALS = {"x": noise(3, 6), "task": "depth"}, {"x": noise(4, 6), "task": "normals"}


def test_what_the_example_does_not_reach_is_named() -> None:
    with pytest.warns(NervureWarning, match=r"not reached by the example: heads.normals\. They lose what the others"):
        graph = trace(seeded(Tasks), DEPTH)
    assert any("heads.normals" in note for note in graph.notes)


def test_several_examples_are_one_graph() -> None:
    model = seeded(Tasks)
    graph = trace(model, [DEPTH, NORMALS])
    assert {slot.tensor for slot in graph["trunk.0"].readers} == {"heads.depth.weight", "heads.normals.weight"}
    assert not graph.notes
    pruned = prune(model, [DEPTH, NORMALS], Magnitude(keep=0.5))
    assert pruned.model(noise(2, 6), "normals").shape == (2, 5)
    assert pruned.verification is not None
    assert verify(model, pruned, [DEPTH, NORMALS])


def test_costs_are_those_of_the_first_example() -> None:
    model = seeded(Tasks)
    graph = trace(model, [DEPTH, NORMALS])
    assert graph.macs() == count(model, [DEPTH, NORMALS]).macs == count(model, DEPTH).macs == 3 * (6 * 16 + 16 * 3)


def test_a_cut_that_is_wrong_on_the_second_example_only_is_caught() -> None:
    model = seeded(Tasks)
    pruned = prune(model, [DEPTH, NORMALS], Magnitude(keep=0.5))
    with torch.no_grad():
        pruned.model.get_parameter("heads.normals.weight").add_(0.1)
    with pytest.raises(VerificationError, match="differs"):
        verify(model, pruned, [DEPTH, NORMALS])


def test_an_early_exit_and_the_whole_way_are_joined() -> None:
    class Exits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
            self.early, self.late = nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            y: Tensor = self.early(x) if len(x) == 1 else self.late(self.second(x).relu())
            return y

    model = seeded(Exits)
    pruned = prune(model, [noise(2, 6), noise(1, 6)], Magnitude(keep=0.5, scope="layer"))
    assert [cut.group for cut in pruned.plan.cuts] == ["first", "second"]
    assert pruned.model(noise(1, 6)).shape == (1, 2)
    assert pruned.model(noise(5, 6)).shape == (5, 2)


def test_inputs_of_several_examples_are_the_same_units() -> None:
    graph = trace(seeded(lambda: nn.Sequential(nn.Linear(6, 4))), [noise(2, 6), noise(3, 6)], inputs=True)
    assert [g.name for g in graph.groups if g.size == 6 and not g.is_pinned] == ["input0.inputs"]


def test_no_examples_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"example=\[\] is a list of no examples"):
        trace(seeded(Tasks), [])
