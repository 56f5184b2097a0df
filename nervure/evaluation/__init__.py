"""How good, how calibrated, how fast and how big a model is."""

from nervure.evaluation.latency import Latency, Timing, latency
from nervure.evaluation.metrics import (
    Metrics,
    accuracy,
    brier_score,
    calibration_error,
    class_accuracies,
    evaluate,
    top_accuracy,
    wilson_interval,
)
from nervure.evaluation.size import file_size

__all__ = [
    "Latency",
    "Metrics",
    "Timing",
    "accuracy",
    "brier_score",
    "calibration_error",
    "class_accuracies",
    "evaluate",
    "file_size",
    "latency",
    "top_accuracy",
    "wilson_interval",
]
