"""Pure maths of dependence: tensors in, tensors out, no models."""

from nervure.dependence.alignment import cka, hsic
from nervure.dependence.conditional import conditional_connectivity
from nervure.dependence.correlation import correlation
from nervure.dependence.energy_distance import (
    ClassDistances,
    class_distances,
    distance_correlation,
    distance_covariance,
    energy_coefficient,
    energy_distance,
    energy_r2,
    partial_distance_correlation,
)
from nervure.dependence.information import mutual_information
from nervure.dependence.interval import Interval

__all__ = [
    "ClassDistances",
    "Interval",
    "cka",
    "class_distances",
    "conditional_connectivity",
    "correlation",
    "distance_correlation",
    "distance_covariance",
    "energy_coefficient",
    "energy_distance",
    "energy_r2",
    "hsic",
    "mutual_information",
    "partial_distance_correlation",
]
