"""Units of some outputs stay, those of others may go: by the name that an output is returned under."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor, nn

from nervure import Graph, Magnitude, prune, trace, verify
from nervure.errors import ArgumentError
from tests.networks import noise, seeded


@dataclass
class Answer:
    logits: Tensor
    features: Tensor


FORMS: dict[str, Any] = {
    "logits": lambda y, h: {"logits": y, "features": h},
    "0": lambda y, h: (y, h),
    "attribute": lambda y, h: Answer(y, h),
}


class Told(nn.Module):
    """Returns its features beside its logits."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.trunk, self.head, self.form = nn.Linear(5, 12), nn.Linear(12, 3), form

    def forward(self, x: Tensor) -> Any:
        features = self.trunk(x).relu()
        return self.form(self.head(features), features)


@pytest.mark.parametrize("name", FORMS)
def test_units_that_are_returned_under_another_name_may_go(name: str) -> None:
    model, x = seeded(lambda: Told(FORMS[name])), noise(4, 5)
    chosen = "logits" if name == "attribute" else name
    assert trace(model, x)["trunk"].pinned == "model output"
    pruned = prune(model, x, Magnitude(keep=0.5), outputs=[chosen])
    assert [cut.group for cut in pruned.plan.cuts] == ["trunk"]
    assert pruned.graph["head"].pinned == "model output"
    assert verify(model, pruned, x)
    again = Graph.from_json(json.loads(json.dumps(pruned.graph.to_json())))
    assert again.settings["outputs"] == [chosen]


def test_a_name_that_nothing_is_returned_under_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"nothing under 'boxes'. It returns logits, features"):
        trace(seeded(lambda: Told(FORMS["logits"])), noise(4, 5), outputs=["boxes"])
