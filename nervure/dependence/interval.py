"""Values with their uncertainty, from halves of the samples."""

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from nervure.errors import ArgumentError

HALVES = 20


class Interval(NamedTuple):
    """An estimate and the interval that holds the truth with the asked confidence, as far as sampling goes.

    Attributes:
        value: the estimate from all samples.
        low: lower end, at least 0.
        high: upper end.
    """

    value: Tensor
    low: Tensor
    high: Tensor


def interval(
    estimate: Callable[[Tensor], Tensor], samples: int, level: float, seed: int, device: torch.device
) -> Interval:
    """The estimate from all samples, and its spread over halves drawn without replacement.

    Half of the samples vary about the whole as the whole varies about the truth: (1/m - 1/N) = 1/N for m = N/2.

    Args:
        estimate: from the row numbers of the samples to the values.
        samples: how many there are.
        level: confidence in (0, 1).
        seed: of the draws.
        device: where row numbers are wanted.
    """
    if not 0 < level < 1:
        raise ArgumentError(f"interval={level!r} is a confidence, between 0 and 1 such as 0.95.")
    generator = torch.Generator().manual_seed(seed)
    value = estimate(torch.arange(samples, device=device))
    draws = (torch.randperm(samples, generator=generator)[: samples // 2].sort().values for _ in range(HALVES))
    halves = torch.stack([estimate(rows.to(device)) for rows in draws])
    reach = NormalDist().inv_cdf(0.5 + level / 2) * halves.std(0)
    return Interval(value, (value - reach).clamp(min=0), value + reach)
