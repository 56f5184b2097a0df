"""Energy statistics: how far apart distributions are, and how much one variable tells of another, by distances alone.

Distance covariance and correlation: Székely, Rizzo, Bakirov, "Measuring and testing dependence by correlation of
distances" (2007). Unbiased and partial forms: Székely, Rizzo, "Partial distance correlation with methods for
dissimilarities" (2014). Energy distance, coefficient and the decomposition by classes: Székely, Rizzo, "Energy
statistics" (2013), and Rizzo, Székely, "DISCO analysis" (2010). Everything is exact, in time quadratic in the samples
and memory bounded by one tile of distances.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from nervure.core.check import checked
from nervure.dependence.distances import (
    TILE,
    Block,
    discrete,
    euclidean,
    labels_of,
    moments,
    samples_of,
    upper,
)
from nervure.errors import DataError

FEWEST = 4
ROUNDING = 1e-13


@checked
def distance_covariance(
    x: Tensor, y: Tensor, *, unbiased: bool = True, exponent: float = 1.0, classes: bool = False, tile: int = TILE
) -> Tensor:
    """Distance covariance of two variables seen on the same samples; 0 in the limit where they are independent.

    Args:
        x: [samples, ...]; axes after the first are flattened.
        y: [samples, ...].
        unbiased: the U-statistic of the *squared* covariance, which may be negative and of which no root is taken; or
            else the V-statistic's root, which is far from 0 for independent samples of many dimensions.
        exponent: of the Euclidean distance, in (0, 2].
        classes: ``y`` holds class numbers [samples], any two of which are one apart.
        tile: samples along a side of a tile of distances; it changes memory and time, not the result.

    Returns:
        A float64 scalar on the device of ``x``.

    Raises:
        DataError: fewer than 4 samples, different numbers of them, or values that are not finite.
        ArgumentError: ``exponent`` or ``tile`` is out of range.
    """
    covariance = _covariances((x, y), unbiased, exponent, classes, tile)[0, 1]
    return covariance if unbiased else covariance.clamp_min(0.0).sqrt()


@checked
def distance_correlation(
    x: Tensor, y: Tensor, *, unbiased: bool = True, exponent: float = 1.0, classes: bool = False, tile: int = TILE
) -> Tensor:
    """Distance correlation; arguments as for :func:`distance_covariance`.

    >>> x = torch.arange(8.0)[:, None]
    >>> round(float(distance_correlation(x, 3 * x + 1)), 4)
    1.0

    Returns:
        A float64 scalar. Unbiased: the bias-corrected *squared* correlation, at most 1, about 0 (and perhaps below it)
        for independent samples. Otherwise the plain correlation in [0, 1]. 0 where one side is constant.

    Raises:
        DataError: fewer than 4 samples, different numbers of them, or values that are not finite.
        ArgumentError: ``exponent`` or ``tile`` is out of range.
    """
    squared = _correlations(_covariances((x, y), unbiased, exponent, classes, tile))[0, 1]
    return squared if unbiased else squared.clamp_min(0.0).sqrt()


@checked
def partial_distance_correlation(
    x: Tensor, y: Tensor, z: Tensor, *, exponent: float = 1.0, classes: bool = False, tile: int = TILE
) -> Tensor:
    """What ``x`` tells of ``y`` beyond ``z``: the bias-corrected partial distance correlation, in [-1, 1].

    ``classes`` speaks of ``y``; the rest is as for :func:`distance_covariance`, errors too. 0 where nothing is left of
    ``x`` or of ``y`` once ``z`` is known.

    Returns:
        A float64 scalar.
    """
    r = _correlations(_covariances((x, y, z), True, exponent, classes, tile))
    left = (1 - r[0, 2].square()) * (1 - r[1, 2].square())
    return torch.where(left > 1e-15, (r[0, 1] - r[0, 2] * r[1, 2]) / left.clamp_min(1e-15).sqrt(), 0.0)


@checked
def energy_distance(x: Tensor, y: Tensor, *, unbiased: bool = True, exponent: float = 1.0, tile: int = TILE) -> Tensor:
    """Energy distance 2 E|X-Y| - E|X-X'| - E|Y-Y'| between two samples, without a root.

    Args:
        x: [samples, ...].
        y: [other samples, ...] of the same dimensions.
        unbiased: the U-statistic, 0 on average where both come from one distribution (so it may be negative); or else
            the V-statistic, never negative, which grows with the dimensions and falls with the samples.
        exponent: of the Euclidean distance, in (0, 2].
        tile: as for :func:`distance_covariance`.

    Returns:
        A float64 scalar in the unit of the distances.

    Raises:
        DataError: an empty side (or, unbiased, a side of one sample), other dimensions, or values that are not finite.
        ArgumentError: ``exponent`` or ``tile`` is out of range.
    """
    return _between(x, y, exponent, tile, unbiased).energy(unbiased)[0, 1]


@checked
def energy_coefficient(
    x: Tensor, y: Tensor, *, unbiased: bool = False, exponent: float = 1.0, tile: int = TILE
) -> Tensor:
    """Energy distance over 2 E|X-Y|: free of scale, in [0, 1]; 0 where both are the same point.

    Arguments and errors as for :func:`energy_distance`.

    Returns:
        A float64 scalar.
    """
    return _between(x, y, exponent, tile, unbiased).coefficient(unbiased)[0, 1]


@checked
def energy_r2(x: Tensor, labels: Tensor, *, unbiased: bool = True, exponent: float = 1.0, tile: int = TILE) -> Tensor:
    """The share of the spread of ``x`` that lies between classes: 1 - (mean distance within classes) / (mean distance).

    Free of scale, so layers of any width compare. With V-statistics it equals the sum over pairs of classes of
    p_j p_k E_jk over the mean distance, E_jk being energy distances.

    Args:
        x: [samples, ...].
        labels: class numbers [samples].
        unbiased: means over pairs of different samples: about 0 (perhaps below) where classes do not matter. Classes of
            one sample have no such pair and are left out.
        exponent: of the Euclidean distance, in (0, 2].
        tile: as for :func:`distance_covariance`.

    Returns:
        A float64 scalar, at most 1; 0 where all samples are the same or of one class.

    Raises:
        DataError: labels that do not fit, or values that are not finite.
        ArgumentError: ``exponent`` or ``tile`` is out of range.
    """
    return class_distances(x, labels, exponent=exponent, tile=tile).r2(unbiased)


@final
@dataclass(frozen=True, slots=True, eq=False)
class ClassDistances:
    """Sums of distances between all samples of any two classes: one pass, and all energy statistics follow.

    Attributes:
        sums: float64 [classes, classes], over ordered pairs.
        counts: samples of each class, float64 [classes].
        classes: the label of each row, ascending. Shape [classes].
    """

    sums: Tensor
    counts: Tensor
    classes: Tensor

    def between(self) -> Tensor:
        """Mean distance between samples of two classes; on the diagonal a sample also meets itself."""
        return self.sums / (self.counts[:, None] * self.counts[None])

    def within(self, unbiased: bool) -> Tensor:
        """Mean distance within each class; unbiased: a sample does not meet itself (NaN for a class of one)."""
        own = self.counts * (self.counts - 1) if unbiased else self.counts.square()
        return self.sums.diagonal() / own

    def energy(self, unbiased: bool) -> Tensor:
        """Energy distances between classes. Shape [classes, classes], 0 on the diagonal."""
        within = self.within(unbiased)
        return (2 * self.between() - within[:, None] - within[None]).fill_diagonal_(0.0)

    def coefficient(self, unbiased: bool) -> Tensor:
        """Energy coefficients between classes. Shape [classes, classes]; 0 where two classes are one point."""
        mean = self.between()
        apart = torch.where(mean > 0, self.energy(unbiased) / torch.where(mean > 0, 2 * mean, 1.0), 0.0)
        return apart.fill_diagonal_(0.0)

    def r2(self, unbiased: bool) -> Tensor:
        """Energy R^2, see :func:`energy_r2`."""
        if unbiased and bool((self.counts < 2).any()):
            return self._without_singles().r2(unbiased)
        total = self.counts.sum()
        pairs = total * (total - 1) if unbiased else total.square()
        spread = self.sums.sum() / pairs
        if len(self.counts) < 2 or not bool(spread > 0):
            return spread.new_zeros(())
        return 1 - (self.counts / total * self.within(unbiased)).sum() / spread

    def _without_singles(self) -> "ClassDistances":
        more = self.counts > 1
        return ClassDistances(self.sums[more][:, more], self.counts[more], self.classes[more])


@checked
def class_distances(x: Tensor, labels: Tensor, *, exponent: float = 1.0, tile: int = TILE) -> ClassDistances:
    """Sum the distances between the samples [samples, ...] of any two classes; arguments as for :func:`energy_r2`.

    Raises:
        DataError: labels that do not fit, or values that are not finite.
        ArgumentError: ``exponent`` or ``tile`` is out of range.
    """
    flat = samples_of(x, "x")
    classes, members = labels_of(labels, len(flat)).to(flat.device).unique(return_inverse=True)
    one_hot = torch.nn.functional.one_hot(members, len(classes)).double()
    block, sums = euclidean(flat, exponent=exponent), one_hot.new_zeros(len(classes), len(classes))
    for rows, columns in upper(len(flat), tile):
        part = one_hot[rows].T @ (block(rows, columns) @ one_hot[columns])
        sums += part if rows == columns else part + part.T
    return ClassDistances(sums, one_hot.sum(0), classes)


def _between(x: Tensor, y: Tensor, exponent: float, tile: int, unbiased: bool) -> ClassDistances:
    first, second = samples_of(x, "x"), samples_of(y, "y")
    if first.shape[1] != second.shape[1]:
        raise DataError(f"x has {first.shape[1]} dimensions, y {second.shape[1]}; they must be the same.")
    if unbiased and min(len(first), len(second)) < 2:
        raise DataError(f"x has {len(first)} samples, y {len(second)}: an unbiased distance takes 2 of each at least.")
    labels = torch.arange(2).repeat_interleave(torch.tensor([len(first), len(second)]))
    return class_distances(torch.cat([first, second.to(first.device)]), labels, exponent=exponent, tile=tile)


def _covariances(variables: tuple[Tensor, ...], unbiased: bool, exponent: float, classes: bool, tile: int) -> Tensor:
    """Squared distance covariances of every two variables; ``classes`` speaks of the second."""
    first = samples_of(variables[0], "x")
    samples, device = len(first), first.device
    if samples < FEWEST:
        raise DataError(f"{samples} samples: distance covariance takes {FEWEST} at least.")
    sides: list[Block] = [euclidean(first, exponent=exponent)]
    for name, given in zip(("y", "z"), variables[1:], strict=False):
        if classes and name == "y":
            sides.append(discrete(labels_of(given, samples).to(device)))
        else:
            sides.append(euclidean(samples_of(given, name, samples).to(device), exponent=exponent))
    products, rows = moments(sides, samples, tile, device)
    totals, crossed, n = rows.sum(1), rows @ rows.T, float(samples)
    both = totals[:, None] * totals[None]
    if unbiased:
        found = (products - 2 / (n - 2) * crossed + both / ((n - 1) * (n - 2))) / (n * (n - 3))
    else:
        found = products / n**2 - 2 / n**3 * crossed + both / n**4
    # What is left of a constant side is rounding, on the scale of its distances: none of it is dependence.
    constant = found.diagonal() <= ROUNDING * products.diagonal() / n**2
    return found.masked_fill(constant[:, None] | constant[None], 0.0)


def _correlations(covariances: Tensor) -> Tensor:
    """Divide by the variances; 0 where one of them vanishes."""
    deviations = covariances.diagonal().clamp_min(0.0).sqrt()
    scale = deviations[:, None] * deviations[None]
    return torch.where(scale > 0, covariances / torch.where(scale > 0, scale, 1.0), 0.0)
