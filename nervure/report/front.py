"""The Pareto front of cost and quality, and its knee: pure functions of points."""

import math
from collections.abc import Sequence

Spot = tuple[float, float]


def front(points: Sequence[Spot]) -> tuple[int, ...]:
    """Which points no other beats: none costs as little, or less, and is better, or as good and costs less.

    Args:
        points: (cost, quality) each; lower costs and higher qualities are better. Those with a NaN are never on it.

    Returns:
        Places in ``points``, from the cheapest to the best; of equal points the first.

    >>> front([(1.0, 0.9), (0.5, 0.8), (0.6, 0.7), (0.2, 0.5), (0.9, 0.9)])
    (3, 1, 4)
    """
    known = [i for i, (cost, quality) in enumerate(points) if not (math.isnan(cost) or math.isnan(quality))]
    found: list[int] = []
    for i in sorted(known, key=lambda i: (points[i][0], -points[i][1])):
        if not found or points[i][1] > points[found[-1]][1]:
            found.append(i)
    return tuple(found)


def level_costs(costs: Sequence[float], factor: float) -> list[float]:
    """Costs of which those that differ by so little count as the same: what a budget is missed by is no saving.

    Args:
        costs: one for each point, not negative; NaN stays.
        factor: from the least of some costs to the greatest that count as the same, at least 1.

    >>> level_costs([0.30, 0.302, 1.0], 1.02)
    [0.3, 0.3, 1.0]
    """
    levels: dict[float, float] = {}
    level = -math.inf
    for cost in sorted(cost for cost in costs if not math.isnan(cost)):
        level = cost if cost > factor * level or level < 0 else level
        levels[cost] = level
    return [levels.get(cost, cost) for cost in costs]


def knee(points: Sequence[Spot]) -> int | None:
    """Where a front turns from steep to flat: the point farthest above the chord between its ends.

    Both axes are first stretched to [0, 1], as in V. Satopaa, J. Albrecht, D. Irwin and B. Raghavan, "Finding a
    'Kneedle' in a Haystack: Detecting Knee Points in System Behavior", ICDCS Workshops 2011, section III; the chord is
    then the diagonal. Their smoothing and their threshold are for long noisy curves; a front has a few points.

    Args:
        points: a front, (cost, quality) each, both rising.

    Returns:
        The place in ``points``; None where no point lies above the chord, as with fewer than three.

    >>> knee([(0.1, 0.5), (0.2, 0.8), (0.5, 0.85), (1.0, 0.9)])
    1
    """
    if len(points) < 3:
        return None
    (x0, y0), (x1, y1) = points[0], points[-1]
    gaps = [(y - y0) / (y1 - y0) - (x - x0) / (x1 - x0) for x, y in points]
    best = max(range(len(points)), key=gaps.__getitem__)
    return best if gaps[best] > 1e-9 else None
