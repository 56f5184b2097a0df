"""Batches of any form: the same numbers in another form give the same answer and the same labels."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure.errors import DataError, ForwardError
from nervure.tasks import Layout, map_tensors, move_batch, take_samples

X, Y = torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 1, 0])


class Sum(nn.Module):
    """Takes a tensor by the name ``x``, and another if it is given."""

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return x.sum(1) if other is None else x.sum(1) + 10 * other.sum(1)


@dataclass(frozen=True, slots=True)
class Frozen:
    x: Tensor
    label: Tensor


@dataclass
class Loose:
    picture: Tensor
    targets: Tensor


Pair = namedtuple("Pair", ["data", "truth"])
Named = namedtuple("Named", ["label", "x"])

FORMS = {
    "a tuple": (X, Y),
    "a list": [X, Y],
    "a tuple in a tuple": ((X,), Y),
    "a dict": {"x": X, "labels": Y},
    "a dict of another name": {"image": X, "label": Y},
    "a dict of dicts": {"inputs": {"x": X}, "labels": Y},
    "a dict in a pair": ({"x": X}, Y),
    "a mapping like those of tokenizers": UserDict(x=X, labels=Y),
    "an ordered mapping": OrderedDict(y=Y, x=X),
    "a mapping that cannot be changed": MappingProxyType({"x": X, "target": Y}),
    "a frozen dataclass": Frozen(X, Y),
    "a dataclass of other names": Loose(X, Y),
    "a named tuple by its places": Pair(X, Y),
    "a named tuple by its names": Named(Y, X),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_a_batch_makes_no_difference(form: str) -> None:
    batch, layout = FORMS[form], Layout()
    assert torch.equal(layout.feed(Sum(), batch), X.sum(1))
    assert torch.equal(layout.labels_in(batch), Y)
    assert layout.count(batch) == 4


@pytest.mark.parametrize("batch", [X, (X,), {"x": X}, {"image": X}])
def test_a_batch_without_labels_has_none(batch: Any) -> None:
    layout = Layout()
    assert torch.equal(layout.feed(Sum(), batch), X.sum(1))
    assert layout.labels_in(batch) is None
    with pytest.raises(DataError, match="there are no labels in a"):
        layout.require_labels(batch)


def test_several_inputs_go_in_by_name_or_in_order() -> None:
    both = X.sum(1) + 10 * 2 * X.sum(1)
    assert torch.equal(Layout().feed(Sum(), {"other": 2 * X, "x": X, "y": Y}), both)
    assert torch.equal(Layout().feed(Sum(), ((X, 2 * X), Y)), both)
    assert torch.equal(Layout(inputs=(0, 1), labels=2).feed(Sum(), (X, 2 * X, Y)), both)
    assert torch.equal(Layout(labels=1).feed(Sum(), (X, Y, 2 * X)), both)
    assert torch.equal(Layout(inputs=("a", "b")).feed(Sum(), {"b": 2 * X, "a": X, "index": Y}), both)
    assert torch.equal(Layout(inputs=("other", "x")).feed(Sum(), {"x": X, "other": 2 * X, "index": Y}), both)


def test_places_go_down_and_may_be_functions() -> None:
    batch = {"x": X, "meta": {"age": Y, "name": ["a"] * 4}}
    assert torch.equal(Layout(labels="meta.age").labels_in(batch), Y)
    assert torch.equal(Layout(labels=lambda batch: batch["meta"]["age"]).labels_in(batch), Y)
    assert torch.equal(Layout(labels="1.age").labels_in((X, batch["meta"])), Y)
    assert torch.equal(Layout(inputs="x").feed(Sum(), batch), X.sum(1))
    assert torch.equal(Layout(labels="truth").labels_in(SimpleNamespace(truth=Y)), Y)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, X, Y), r"a tuple of 3: say which parts .* inputs=\(0, 1\), labels=2"),
        ({"a": X, "b": X, "y": Y}, r"the model takes x, other, and the batch has a, b. .* inputs=\('a', 'b'\)"),
    ],
)
def test_what_is_not_certain_is_asked(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Layout().feed(Sum(), batch)


def test_a_loss_of_ones_own_is_told_to_say_how_the_model_is_called() -> None:
    with pytest.raises(DataError, match=r"inputs='a' of the makers .*lambda model, batch: model\(batch\['a'\]\)"):
        Layout().feed(nn.Flatten(), {"a": X, "b": Y, "c": Y})


def test_samples_are_counted_where_nobody_said_which_parts_are_inputs() -> None:
    assert Layout().count((X, Y, Y, X)) == len(X)
    with pytest.raises(DataError, match="there is no 7"):
        Layout(inputs=7).count((X, Y, Y, X))


def test_a_place_that_is_not_there_is_told() -> None:
    with pytest.raises(DataError, match=r"there is no 'z' in a dict of x \[4, 3\], y \[4\]"):
        Layout(labels="z").labels_in({"x": X, "y": Y})
    with pytest.raises(DataError, match="there is no 7 in a tuple of 2"):
        Layout(labels="y", inputs=7).inputs_in((X, Y))


def test_a_batch_without_samples_is_told() -> None:
    with pytest.raises(DataError, match="there is no sample"):
        Layout().count(X[:0])
    with pytest.raises(DataError, match="there are no tensors"):
        Layout().count({"names": ["a"]})


def test_what_the_model_raises_is_told_with_the_shapes() -> None:
    with pytest.raises(ForwardError, match=r"\(4, 3\) float32"):
        Layout().feed(nn.Linear(5, 1), (X, Y))


def test_a_model_that_writes_into_its_inputs_leaves_the_batch() -> None:
    before = -X.clone()
    batch = {"input": before.clone(), "labels": Y}
    Layout().feed(nn.ReLU(inplace=True), batch)
    assert torch.equal(batch["input"], before)


@pytest.mark.parametrize("form", FORMS)
def test_mapping_keeps_the_form_and_leaves_the_original(form: str) -> None:
    batch = FORMS[form]
    made = map_tensors(lambda x: x + 1, batch)
    assert isinstance(made, dict if isinstance(batch, MappingProxyType) else type(batch))
    assert torch.equal(Layout().labels_in(made), Y + 1)
    assert torch.equal(Layout().labels_in(batch), torch.tensor([0, 1, 1, 0]))


@pytest.mark.parametrize("form", FORMS)
def test_some_samples_are_taken_of_any_form(form: str) -> None:
    layout = Layout()
    first = take_samples(FORMS[form], slice(0, 3), 4)
    assert torch.equal(layout.feed(Sum(), first), X[:3].sum(1)) and torch.equal(layout.labels_in(first), Y[:3])
    some = take_samples(FORMS[form], torch.tensor([3, 1]), 4)
    assert torch.equal(layout.feed(Sum(), some), X[[3, 1]].sum(1)) and torch.equal(layout.labels_in(some), Y[[3, 1]])


def test_what_has_no_row_for_each_sample_stays() -> None:
    batch = {"x": X, "scale": torch.tensor(2.0), "matrix": torch.eye(3)}
    taken = take_samples(batch, slice(0, 2), 4)
    assert (taken["x"].shape, taken["scale"].shape, taken["matrix"].shape) == ((2, 3), (), (3, 3))


def test_what_moves_itself_is_moved() -> None:
    class Own:
        place = "cpu"

        def to(self, device: torch.device) -> "Own":
            moved = Own()
            moved.place = device.type
            return moved

    moved = move_batch({"x": X, "graph": Own(), "name": "a"}, torch.device("meta"))
    assert (moved["x"].device.type, moved["graph"].place, moved["name"]) == ("meta", "meta", "a")
