"""Whatever stands in a field or an argument is what its annotation says, or is refused in one line that says so."""

import math
import random
import time
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nervure.methods
from nervure import Magnitude, prune
from nervure.errors import ArgumentError, CallError, NervureError
from nervure.methods import METHODS


class Hostile:
    """An object whose words are an error."""

    def __repr__(self) -> str:
        raise KeyError("no repr")


BAD: Mapping[str, Any] = {
    "None": None,
    "an object": Hostile(),
    "a text": "x",
    "no text": "",
    "a long text": "x" * 100_000,
    "NUL": "\0",
    "a time": "0 ms",
    "a pattern": "1000000000000:2000000000000",
    "bytes": b"x",
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "nan": math.nan,
    "inf": math.inf,
    "1e300": 1e300,
    "1e-300": 1e-300,
    "10**18": 10**18,
    "10**23": 10**23,
    "10**5000": 10**5000,
    "True": True,
    "a list": [],
    "a tuple": (1, 2),
    "a dict": {},
    "a set": {1},
    "a tensor": torch.ones(2),
    "a meta tensor": torch.ones((), device="meta"),
    "an array": np.ones(2),
    "a function": lambda *_: 0,
    "a class": nn.Linear,
    "a module": nn.ReLU(),
}
SECONDS = 10.0
IMAGE = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
DATA = [(IMAGE, torch.tensor([0, 1, 2, 0])), (IMAGE + 1, torch.tensor([2, 1, 0, 1]))]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


def network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(2, 3, 3, padding=1), Residual(), Residual(), nn.Conv2d(3, 4, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


FIELDS = [(name, f.name) for name, cls in METHODS.items() for f in fields(cls) if f.init]


def accepted(method: str) -> list[Any]:
    """Every method that a bad value in one of the fields makes, where it makes one."""
    found = []
    for field in (field for name, field in FIELDS if name == method):
        for told, value in BAD.items():
            try:
                found.append(METHODS[method](**{field: value}))
            except NervureError as error:
                assert str(error).strip() and len(str(error)) < 1000, (method, field, told)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_field_is_what_its_annotation_says_or_is_refused(method: str) -> None:
    for found in accepted(method):
        for field in fields(found):
            value, plain = getattr(found, field.name), (bool, int, float, str, tuple, type(None))
            assert isinstance(value, plain) or field.name in ("objective", "first"), (method, field.name, value)
        if not callable(getattr(found, "objective", None)):
            assert eval(repr(found), vars(nervure.methods)) == found
            assert hash(found) == hash(eval(repr(found), vars(nervure.methods)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_what_is_accepted_plans_or_says_why_not(method: str) -> None:
    taken = [found for found in accepted(method) if not callable(getattr(found, "objective", None))]
    for found in random.Random(0).sample(taken, min(len(taken), 2)):
        start = time.monotonic()
        try:
            prune(network(), IMAGE, found, data=DATA, verify=False, progress=False)
        except NervureError as error:
            assert str(error).strip()
        assert time.monotonic() - start < SECONDS, found


@pytest.mark.parametrize(
    ("method", "field"), [(name, f.name) for name, cls in METHODS.items() for f in fields(cls) if f.type is bool]
)
def test_nothing_but_true_and_false_is_a_truth_value(method: str, field: str) -> None:
    for value in (1, 0, "True", None, [], torch.ones(())):
        with pytest.raises(ArgumentError, match=f"{field} is True or False; got"):
            METHODS[method](**{field: value})
    given = getattr(METHODS[method](), field)
    assert getattr(METHODS[method](**{field: np.bool_(given)}), field) is given


def test_numbers_of_numpy_and_torch_become_plain_ones() -> None:
    found = Magnitude(keep=np.float32(0.5), minimum=torch.tensor(2), norm=np.int64(2))  # type: ignore[arg-type]
    assert found == Magnitude(keep=0.5, minimum=2, norm=2)
    assert [type(value) for value in (found.keep, found.minimum, found.norm)] == [float, int, int]
    assert repr(Magnitude(keep=1)) == repr(Magnitude(keep=1.0))


def test_the_error_repeats_what_was_given_and_says_what_to_give() -> None:
    with pytest.raises(ArgumentError) as caught:
        Magnitude(keep="half")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "Magnitude(keep='half'): keep is a finite number in (0, 1], the fraction that stays; got 'half'."
    )
    with pytest.raises(ArgumentError, match="Did you mean 'params'"):
        Magnitude(budget="parms")  # type: ignore[arg-type]


def test_a_field_that_is_none_is_told_with_the_nearest() -> None:
    with pytest.raises(CallError, match="Magnitude has no option 'kep'. Did you mean 'keep'"):
        Magnitude(kep=0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Magnitude(kep=0.5)  # type: ignore[call-arg]
