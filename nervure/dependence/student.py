"""Student's t: how often chance is so far from 0, and how far it is so often."""

import math


def student_p(t: float, freedom: int) -> float:
    """How often Student's t is as far from 0 as ``t``, on either side.

    For whole degrees of freedom the integral is a finite sum: M. Abramowitz and I. Stegun, Handbook of Mathematical
    Functions, 26.7.3 and 26.7.4.

    >>> round(student_p(4.3027, 2), 4), round(student_p(2.2281, 10), 4)
    (0.05, 0.05)
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, freedom, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    within = 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0)) if odd else sine * total
    return min(1.0, max(0.0, 1.0 - within))


def student_t(p: float, freedom: int) -> float:
    """How far from 0 Student's t is, on either side, as often as ``p``, in (0, 1]: the inverse of :func:`student_p`.

    >>> round(student_t(0.05, 2), 3), round(student_t(0.05, 19), 3)
    (4.303, 2.093)
    """
    low, high = 0.0, 1.0
    while student_p(high, freedom) > p:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, freedom) > p else (low, middle)
    return (low + high) / 2
