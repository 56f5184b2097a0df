"""How good, calibrated, robust, fast, big and well connected a model is, and how alike two sparse ones are."""

from nervure.analysis.connectivity import Connectivity, LayerPaths, connectivity, measures
from nervure.analysis.similarity import Common, Similarity, common, similarity
from nervure.analysis.unit_matching import align, reorder_units
from nervure.core.renamed import old_names
from nervure.evaluation.auc import Quality, accuracy_and_auc, macro_auc
from nervure.evaluation.corruptions import CORRUPTIONS, HELD_OUT, SEVERITIES, SHIFTS, corrupt
from nervure.evaluation.drift import ConnectivityShift, connectivity_shift
from nervure.evaluation.features import FEATURE_SHIFTS, TOKEN_SHIFTS, corrupt_features, corrupt_tokens
from nervure.evaluation.latency import Latency, Timing, latency
from nervure.evaluation.memory import Memory, peak_memory
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
from nervure.evaluation.robust import RobustChoice, live_weights, smallest_robust
from nervure.evaluation.shift import Shifted, evaluate_shift
from nervure.evaluation.shifts import (
    AUDIO_SHIFTS,
    TABLE_SHIFTS,
    TEXT_SHIFTS,
    Shift,
    audio_shifts,
    picture_shifts,
    table_shifts,
    text_shifts,
    token_shifts,
)
from nervure.evaluation.size import file_size
from nervure.evaluation.task_shift import TaskShift, evaluate_task_shift
from nervure.evaluation.timing import latency_table

__all__ = [
    "AUDIO_SHIFTS",
    "CORRUPTIONS",
    "FEATURE_SHIFTS",
    "HELD_OUT",
    "SEVERITIES",
    "SHIFTS",
    "TABLE_SHIFTS",
    "TEXT_SHIFTS",
    "TOKEN_SHIFTS",
    "Common",
    "Connectivity",
    "ConnectivityShift",
    "Latency",
    "LayerPaths",
    "Memory",
    "Metrics",
    "Quality",
    "RobustChoice",
    "Shift",
    "Shifted",
    "Similarity",
    "TaskShift",
    "Timing",
    "accuracy",
    "accuracy_and_auc",
    "align",
    "audio_shifts",
    "brier_score",
    "calibration_error",
    "class_accuracies",
    "common",
    "connectivity",
    "connectivity_shift",
    "corrupt",
    "corrupt_features",
    "corrupt_tokens",
    "evaluate",
    "evaluate_shift",
    "evaluate_task_shift",
    "file_size",
    "latency",
    "latency_table",
    "live_weights",
    "macro_auc",
    "measures",
    "peak_memory",
    "picture_shifts",
    "reorder_units",
    "similarity",
    "smallest_robust",
    "table_shifts",
    "text_shifts",
    "token_shifts",
    "top_accuracy",
    "wilson_interval",
]

__getattr__ = old_names(__name__)
