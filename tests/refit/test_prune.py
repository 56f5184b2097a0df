"""``prune(..., refit=True)``: what stays takes over before the pruned model is handed out."""

import pytest
import torch

from nervure import Magnitude, Random, Refit, prune, refit
from nervure.errors import ArgumentError, DataError
from tests.refit.test_bad_input import data_of, network


def test_a_pruned_model_is_refitted_to_the_one_it_was_made_from() -> None:
    model, data = network(), data_of()
    example = data[0][0][:2]
    plain = prune(model, example, Magnitude(keep=0.5), progress=False)
    found = prune(model, example, Magnitude(keep=0.5), data=data, refit=True, progress=False)
    expected = refit(plain, data, reference=model, progress=False).result
    assert found.plan == expected.plan and "refit" in found.plan.reached
    assert found.verification == plain.verification and found.verification is not None
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, expected.model.state_dict()[name])


def test_choices_are_taken() -> None:
    model, data = network(), data_of()
    found = prune(model, data[0][0][:2], Random(keep=0.5), data=data, refit=Refit(samples=32), progress=False)
    assert found.plan.reached["refit"]["samples"] == 24


def test_what_was_pruned_before_is_refitted_to_what_it_was_then() -> None:
    model, data = network(), data_of()
    example = data[0][0][:2]
    first = prune(model, example, Magnitude(keep=0.75), progress=False)
    found = prune(first, example, [Magnitude(keep=0.8), Random(keep=0.8)], data=data, refit=True, progress=False)
    assert len(found.earlier) == 2
    plain = prune(first, example, [Magnitude(keep=0.8), Random(keep=0.8)], progress=False)
    x = data_of(96)[-1][0]

    def distance(other: torch.nn.Module) -> float:
        return float((other(x) - first.model(x)).detach().square().sum())

    assert distance(found.model) < 0.5 * distance(plain.model)


def test_data_are_needed() -> None:
    with pytest.raises(DataError, match="refit=True fits on data"):
        prune(network(), data_of()[0][0][:2], Magnitude(keep=0.5), refit=True)


def test_something_else_than_choices_is_refused() -> None:
    with pytest.raises(ArgumentError, match="refit is True or False or a Refit or None; got 0.5"):
        prune(network(), data_of()[0][0][:2], Magnitude(keep=0.5), data=data_of(), refit=0.5)  # type: ignore[arg-type]
