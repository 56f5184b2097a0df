"""Whether two settings can be told apart: their paired differences, against what chance alone would leave."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nervure.dependence.student import student_p
from nervure.report.outcome import Mean, Outcome, QualityScale, scale_of
from nervure.report.run_report import DENSE, DENSE_PLUS

LEVEL = 0.05
"""Two settings are told apart where chance alone leaves so large a difference in one case of twenty at most."""


class PairedTest(NamedTuple):
    """A paired difference: its mean, and how often chance alone leaves one as large (NaN: fewer than two pairs)."""

    mean: Mean
    p: float

    @staticmethod
    def of(differences: Iterable[float], least: float = 0.0) -> "PairedTest":
        """Student's t test of paired differences, two-sided.

        Args:
            differences: one for each pair, such as a network and a seed; NaN ones are left out.
            least: the smallest spread to believe: a share counted on N samples is known to 1 / N.
        """
        mean = Mean.of(differences)
        if mean.n < 2:
            return PairedTest(mean, math.nan)
        error = max(mean.deviation, least) / math.sqrt(mean.n)
        size = abs(mean.value) / error if error else math.copysign(math.inf, abs(mean.value)) if mean.value else 0.0
        return PairedTest(mean, student_p(size, mean.n - 1))

    @property
    def differs(self) -> bool:
        """Whether the two are told apart; never from one pair."""
        return self.p < LEVEL


def paired_values(first: Sequence[Outcome], second: Sequence[Outcome], metric: str = "quality") -> list[float]:
    """``first`` minus ``second``, for each network and seed that both have."""
    scale = scale_of((*first, *second), metric)
    other = {(o.network, o.seed): scale.of(o) for o in second}
    pairs = [(o, other[o.network, o.seed]) for o in first if (o.network, o.seed) in other]
    return [scale.of(o) - value for o, value in pairs]


def compare_settings(first: Sequence[Outcome], second: Sequence[Outcome], metric: str) -> PairedTest:
    """Whether two settings can be told apart by what their trials gave, network by network and seed by seed."""
    is_share = scale_of((*first, *second), metric).is_accuracy
    counted = [o.samples for o in (*first, *second) if o.samples and is_share]
    return PairedTest.of(paired_values(first, second, metric), 1 / min(counted) if counted else 0.0)


class Leader(NamedTuple):
    """The best method of one budget, by its mean, with the others and their tests against it."""

    keep: float
    method: str
    tests: dict[str, PairedTest]

    @property
    def level(self) -> tuple[str, ...]:
        """The methods that cannot be told apart from the best."""
        return tuple(name for name, test in self.tests.items() if not test.differs)

    @property
    def pairs(self) -> int:
        """How many pairs the least known difference has."""
        return min((test.mean.n for test in self.tests.values()), default=0)


def leaders(outcomes: Sequence[Outcome], metric: str = "quality") -> list[Leader]:
    """For each budget with two methods or more, the best by its mean, and who cannot be told apart from it.

    Means are over the networks and seeds that a method has at this budget; differences are over those that both have.
    """
    found, scale = [], scale_of(outcomes, metric)
    for keep in sorted({o.keep for o in outcomes}, reverse=True):
        methods: dict[str, list[Outcome]] = {}
        for outcome in outcomes:
            if outcome.keep == keep and outcome.method not in (DENSE, DENSE_PLUS):
                methods.setdefault(outcome.method, []).append(outcome)
        if len(methods) > 1:
            means = {name: scale.rank(Mean.of(map(scale.of, these)).value) for name, these in methods.items()}
            best = max(methods, key=lambda name: (not math.isnan(means[name]), means[name]))
            rest = {name: these for name, these in methods.items() if name != best}
            tests = {name: compare_settings(methods[best], these, metric) for name, these in rest.items()}
            found.append(Leader(keep, best, tests))
    return found


def tell_leader(leader: Leader) -> str:
    """One budget in a clause, such as ``"at 0.5 Taylor, not told apart from Random"``."""
    said = f"at {leader.keep:g} {leader.method}"
    if leader.pairs < 2:
        return f"{said} (one pair: nothing can be told)"
    return f"{said}, not told apart from {some(leader.level)}" if leader.level else f"{said}, told apart from the rest"


def some(names: Sequence[str], most: int = 3) -> str:
    """Names in a sentence, the first few of many.

    >>> some(["A", "B"]), some(list("ABCDE"))
    ('A and B', 'A, B, C and 2 others')
    """
    shown, more = list(names[:most]), len(names) - most
    if more > 0:
        shown.append(f"{more} other{'s' if more > 1 else ''}")
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def verdict_cells(test: PairedTest, scale: QualityScale) -> tuple[str, str, str]:
    """Cells for a table: the difference, the number of pairs, and whether it is told apart."""
    mean = test.mean
    difference = scale.difference(mean)
    if mean.n < 2:
        return difference, str(mean.n), "nothing can be told"
    chance = "p < 0.001" if test.p < 0.001 else f"p = {test.p:.3f}"
    return difference, str(mean.n), f"{'yes' if test.differs else 'no'} ({chance})"
