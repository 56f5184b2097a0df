"""The same method with another amount."""

from dataclasses import dataclass
from typing import ClassVar, final

import pytest

from nervure.errors import ArgumentError
from nervure.methods import (
    METHODS,
    SNACS,
    Depth,
    Energy,
    Magnitude,
    MagnitudeMasks,
    View,
    amount_of,
    method_keeping,
    with_amount,
)
from nervure.plan import Plan


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_an_amount_and_nothing_else_changes_with_it(name: str) -> None:
    method = METHODS[name]()
    other = with_amount(method, 0.3)
    assert getattr(other, amount_of(method)) == 0.3
    assert with_amount(other, getattr(method, amount_of(method))) == method


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Energy(drop=2), "drop=2"),
        (Depth(tolerance=0.01), "tolerance=0.01"),
        (Depth(budget="latency", latency="3 ms"), "latency='3 ms'"),
        (Magnitude(budget="memory", target=0.5), "target=0.5"),
    ],
)
def test_what_says_how_much_leaves_in_another_way_is_refused(method: Energy, said: str) -> None:
    with pytest.raises(ArgumentError, match=f"says how much leaves by {said} already"):
        with_amount(method, 0.3)


def test_a_pattern_takes_no_other_amount() -> None:
    with pytest.raises(ArgumentError, match="2:4"):
        with_amount(MagnitudeMasks(density=0.5, granularity="2:4"), 0.3)


@final
@dataclass(frozen=True)
class Own:
    """Calls its amount by another name."""

    amount: ClassVar[str] = "share"
    wants: ClassVar[frozenset[str]] = frozenset()
    share: float = 0.5

    def plan(self, view: View) -> Plan:
        return Plan()


@final
class Amountless:
    """Has none."""

    wants: ClassVar[frozenset[str]] = frozenset()

    def plan(self, view: View) -> Plan:
        return Plan()


def test_a_method_of_ones_own_says_what_its_amount_is_called() -> None:
    assert with_amount(Own(), 0.2) == Own(share=0.2)
    with pytest.raises(ArgumentError, match="does not say how much stays"):
        with_amount(Amountless(), 0.2)


@dataclass(frozen=True)
class Limited:
    """It has limits of its own."""

    has_limits: ClassVar[bool] = True
    wants: ClassVar[frozenset[str]] = frozenset()
    keep: float | None = 0.5

    def plan(self, view: View) -> Plan:
        return Plan()


def test_a_method_of_the_users_own_may_go_by_limits() -> None:
    assert method_keeping(f"{__name__}:Limited", {}, keep=None, budget="macs") == Limited(keep=None)
    with pytest.raises(ArgumentError, match=r"Magnitude finds no limits.*take Compensated, SNACS\."):
        method_keeping("Magnitude", {}, keep=None, budget="macs")
    assert with_amount(SNACS(keep=None), 0.25) == SNACS(keep=0.25, slack=SNACS(keep=None).slack)
