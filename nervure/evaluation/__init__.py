"""How good, how calibrated, how robust, how fast and how big a model is."""

from nervure.evaluation.corruptions import CORRUPTIONS, HELD_OUT, SEVERITIES, SHIFTS, corrupt
from nervure.evaluation.features import FEATURE_SHIFTS, TOKEN_SHIFTS, corrupt_features, corrupt_tokens
from nervure.evaluation.latency import Latency, Timing, latency
from nervure.evaluation.metrics import (
    Metrics,
    accuracy,
    brier_score,
    calibration_error,
    class_accuracies,
    top_accuracy,
    wilson_interval,
)
from nervure.evaluation.quality import evaluate
from nervure.evaluation.shift import Shifted, evaluate_shift
from nervure.evaluation.size import file_size

__all__ = [
    "CORRUPTIONS",
    "FEATURE_SHIFTS",
    "HELD_OUT",
    "SEVERITIES",
    "SHIFTS",
    "TOKEN_SHIFTS",
    "Latency",
    "Metrics",
    "Shifted",
    "Timing",
    "accuracy",
    "brier_score",
    "calibration_error",
    "class_accuracies",
    "corrupt",
    "corrupt_features",
    "corrupt_tokens",
    "evaluate",
    "evaluate_shift",
    "file_size",
    "latency",
    "top_accuracy",
    "wilson_interval",
]
