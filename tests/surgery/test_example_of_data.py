"""Where no example is given, the first batch of the data is one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import Magnitude, Taylor, prune, tasks
from nervure.core.inputs import Inputs
from nervure.errors import ArgumentError, DataError


class Two(nn.Module):
    """Takes two inputs, by name or in order, and no labels."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 8), nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head((self.left(left) + self.right(right)).relu())  # type: ignore[no-any-return]


def parts() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, generator=generator), torch.randn(4, 5, generator=generator), torch.tensor([0, 1, 1, 0])


LEFT, RIGHT, LABELS = parts()
BATCHES: dict[str, tuple[Any, tasks.Task | None]] = {
    "pair": (((LEFT, RIGHT), LABELS), None),
    "names": ({"right": RIGHT, "left": LEFT, "labels": LABELS}, None),
    "inputs": ((Inputs((LEFT,), {"right": RIGHT}), LABELS), None),
    "places": ((LABELS, LEFT, RIGHT), tasks.classification(inputs=(1, 2), labels=0)),
    "other names": (
        {"a": LEFT, "b": RIGHT, "kind": LABELS},
        tasks.classification(inputs=("a", "b"), labels="kind"),
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_the_inputs_of_the_first_batch_are_the_example(name: str) -> None:
    batch, task = BATCHES[name]
    torch.manual_seed(0)
    model = Two().eval()
    found = prune(model, method=Taylor(keep=0.5), data=[batch], task=task)
    given = prune(model, (LEFT, RIGHT), Taylor(keep=0.5), data=[batch], task=task)
    assert found.plan.edits == given.plan.edits
    assert found.cost_before == given.cost_before
    assert found.verification is not None


def test_what_can_be_drawn_once_keeps_its_first_batch() -> None:
    model = Two().eval()
    whole = [((LEFT + number, RIGHT), LABELS) for number in range(3)]
    found = prune(model, method=Taylor(keep=0.5), data=iter(whole))
    assert found.plan.edits == prune(model, (LEFT, RIGHT), Taylor(keep=0.5), data=whole).plan.edits


def test_a_pruned_model_is_pruned_further_without_an_example() -> None:
    data = [((LEFT, RIGHT), LABELS)]
    once = prune(Two().eval(), method=Magnitude(keep=0.5), data=data)
    assert len(prune(once, method=Magnitude(keep=0.5), data=data).earlier) == 1


def test_without_an_example_and_without_data_it_is_said_what_to_give() -> None:
    with pytest.raises(ArgumentError, match=r"no example\. Give .* or data="):
        prune(Two(), keep=0.5)
    with pytest.raises(DataError, match="no batch"):
        prune(Two(), keep=0.5, data=[])
