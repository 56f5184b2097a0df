"""Pure maths of dependence: tensors in, tensors out, no models."""

from nervure.dependence.energy import (
    ClassDistances,
    class_distances,
    distance_correlation,
    distance_covariance,
    energy_coefficient,
    energy_distance,
    energy_r2,
    partial_distance_correlation,
)

__all__ = [
    "ClassDistances",
    "class_distances",
    "distance_correlation",
    "distance_covariance",
    "energy_coefficient",
    "energy_distance",
    "energy_r2",
    "partial_distance_correlation",
]
