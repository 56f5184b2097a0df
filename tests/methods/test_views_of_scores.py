"""Scores that hold for another view of the data: what stands in for a unit on one, and not on the other, is no help."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import SNACS, Compensated, prune, trace
from nervure.errors import ArgumentError, DataError
from nervure.methods import View, method_from
from nervure.methods.channels.compensation import CompensationSurvey
from nervure.methods.channels.data_views import DataViews
from nervure.recipe import Recipe
from nervure.recipe.making import method_of
from nervure.training import picture_views


class Twins(nn.Module):
    """Units 0 and 1 say the same as long as both halves of the input do; unit 2 is faint."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.one.weight.copy_(torch.eye(3))
            self.two.weight.copy_(torch.tensor([[1.0, 1.0, 0.5]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))  # type: ignore[no-any-return]


def told(alike: bool, seed: int = 0) -> Tensor:
    x = torch.randn(256, 3, generator=torch.Generator().manual_seed(seed))
    return torch.stack([x[:, 0], x[:, 0] if alike else x[:, 1], x[:, 2]], 1)


def apart(batch: Any, seed: int) -> Any:
    """The halves of the input no longer say the same."""
    return told(alike=False, seed=seed)


NO_VIEWS = "no function"


def view() -> View:
    model, data = Twins().eval(), [told(alike=True)]
    return View(trace(model, data[0][:2]), dict(model.state_dict()), None, 0, model, data[0][:2], data)


def stays(method: Any) -> list[int]:
    (cut,) = method.plan(view()).cuts
    return cut.keep.tensor().nonzero().flatten().tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("given", [apart, f"{__name__}:apart", [told(alike=False)]])
def test_what_stands_in_on_one_view_alone_does_not_count(given: Any) -> None:
    assert 2 in stays(Compensated(keep=0.67))
    assert stays(Compensated(keep=0.67, views=given)) == [0, 1]
    assert stays(SNACS(keep=0.67, budget="channels", views=given)) == [0, 1]


def test_a_view_that_changes_nothing_changes_nothing() -> None:
    same = Compensated(keep=0.67, views=lambda batch, seed: batch)
    assert same.plan(view()).edits == Compensated(keep=0.67).plan(view()).edits


def test_views_are_asked_once_and_kept_where_they_are_known_again(tmp_path: Path) -> None:
    asked: list[int] = []

    def counted(batch: Any, seed: int) -> Any:
        asked.append(seed)
        return batch

    model, data = Twins().eval(), [told(alike=True)]
    prune(model, data[0][:2], Compensated(keep=0.67, views=counted), data=data, seed=7, refit=False, progress=False)
    assert asked == [7]
    for _ in range(2):
        # A function has no name that the next process would know it by.
        CompensationSurvey(views=DataViews(counted)).of(view(), tmp_path)
    assert asked == [7, 0, 0] and not list(tmp_path.rglob("*.safetensors"))
    for given in (f"{__name__}:apart", picture_views(), [told(alike=False)], [told(alike=False, seed=1)]):
        known = DataViews(given)
        assert repr(CompensationSurvey(views=known)) == repr(CompensationSurvey(views=DataViews(given)))
        assert " at 0x" not in repr(known)
    assert repr(DataViews([told(False)])) != repr(DataViews([told(False, seed=1)]))
    CompensationSurvey(views=DataViews(f"{__name__}:apart")).of(view(), tmp_path)
    assert list(tmp_path.rglob("*.safetensors"))


def test_methods_with_the_same_views_are_the_same() -> None:
    batches = [told(alike=False)]
    assert Compensated(views=batches) == Compensated(views=batches) != Compensated(views=[told(alike=False)])
    assert Compensated(views="a:b") == Compensated(views="a:b") != Compensated(views="a:c")
    assert len({Compensated(views=apart), Compensated(views=apart), Compensated()}) == 2


def test_a_recipe_names_views() -> None:
    recipe = {
        "model": {"name": "resnet8"},
        "data": {"name": "digits"},
        "prune": {"method": "SNACS", "options": {"views": f"{__name__}:apart"}},
    }
    method = method_of(Recipe.from_dict(recipe))
    assert isinstance(method, SNACS) and method.ranking == "compensated"
    assert method.views == f"{__name__}:apart"


def test_limits_of_the_network_may_go_with_views(tmp_path: Path) -> None:
    model, data = Twins().eval(), [(told(alike=True), torch.arange(256) % 2)]
    for given in (f"{__name__}:apart", lambda batch, seed: batch):
        method = SNACS(keep=0.67, budget="channels", protect=True, views=given, cache=str(tmp_path))
        assert prune(model, data[0][0][:2], method, data=data, refit=False, progress=False).plan.cuts


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("pictures", "views='pictures' is not written 'package.module:name'"),
        (iter([torch.zeros(2, 3)]), "gives its batches once. Give a list of batches"),
        (lambda batch: batch, "views is"),
        (3, "views is"),
        (nn.Linear, "is a class. Give a function"),
    ],
)
def test_what_is_no_view_is_told(given: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        Compensated(views=given)


def test_views_that_are_not_there_are_told() -> None:
    with pytest.raises(ArgumentError, match="views 'no_such_module:x'"):
        Compensated(views="no_such_module:x").plan(view())
    with pytest.raises(ArgumentError, match="NO_VIEWS"):
        Compensated(views=f"{__name__}:NO_VIEWS").plan(view())
    with pytest.raises(DataError, match="empty"):
        Compensated(views=[]).plan(view())
    with pytest.raises(ArgumentError, match="views= is of ranking='compensated'.*connectivity: leave it out"):
        SNACS(granularity="kernels", views=apart)
    assert method_from("Compensated", views="a:b") == Compensated(views="a:b")
