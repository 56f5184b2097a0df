"""Metrics of torchmetrics, named: each is made once the model has answered, and so is known to have so many classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from nervure.core.extras import missing_extra, require_extra
from nervure.tasks.task import Measure, Read


@final
@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A metric of torchmetrics that is yet to be made.

    Attributes:
        place: module and class below ``torchmetrics``.
        higher_is_better: in which direction it is good.
        sized: the setting that says how many classes there are, where it has one: axis 1 of the scores.
        least: with fewer classes it does not apply.
        extra: the extra that brings what it needs.
        settings: all others.
        relative: as of a :class:`Measure`.
    """

    place: str
    higher_is_better: bool = True
    sized: str = ""
    least: int = 0
    extra: str = "metrics"
    settings: Mapping[str, Any] = field(default_factory=dict)
    relative: bool | None = None

    def __call__(self, scores: Any) -> Any:
        """A new metric for such scores; None where it does not apply; raises MissingExtraError."""
        if self.sized and scores.shape[1] < self.least:
            return None
        module, _, name = self.place.rpartition(".")
        what = f"the metric {name}"
        library = require_extra(f"torchmetrics.{module}", what, self.extra)
        sizes = {self.sized: scores.shape[1]} if self.sized else {}
        try:
            return getattr(library, name)(**sizes, **self.settings)
        except (AttributeError, ImportError) as error:
            # torchmetrics leaves out what needs a library that is not there, or says so when it is made.
            raise missing_extra(f"{what} needs more than torchmetrics", self.extra) from error

    def measure(self, read: Read, *, key: str = "", **settings: Any) -> Measure:
        """The metric with more settings, and how it is fed."""
        spec = replace(self, settings={**self.settings, **settings})
        return Measure(spec, read, self.higher_is_better, key, self.relative)


ACCURACY = MetricSpec("classification.MulticlassAccuracy", sized="num_classes", settings={"average": "micro"})
TOP5 = replace(ACCURACY, least=6, settings={"average": "micro", "top_k": 5})
F1 = MetricSpec("classification.MulticlassF1Score", sized="num_classes", settings={"average": "macro"})
CALIBRATION = MetricSpec(
    "classification.MulticlassCalibrationError", False, sized="num_classes", settings={"n_bins": 15}, relative=False
)
IOU = MetricSpec("classification.MulticlassJaccardIndex", sized="num_classes", settings={"average": "macro"})
FLIPS = MetricSpec(
    "classification.MulticlassHammingDistance",
    False,
    sized="num_classes",
    settings={"average": "micro"},
    relative=False,
)
PERPLEXITY = MetricSpec("text.Perplexity", False)

# Of a curve 200 points: for an exact one all scores would have to be kept.
CURVE = {"thresholds": 200}
LABEL_F1 = MetricSpec("classification.MultilabelF1Score", sized="num_labels", settings={"average": "macro"})
LABEL_PRECISION = MetricSpec("classification.MultilabelAveragePrecision", sized="num_labels", settings=CURVE)
ALL_LABELS = MetricSpec("classification.MultilabelExactMatch", sized="num_labels")
YES_F1 = MetricSpec("classification.BinaryF1Score")
YES_PRECISION = MetricSpec("classification.BinaryAveragePrecision", settings=CURVE)
YES = MetricSpec("classification.BinaryAccuracy")

RMSE = MetricSpec("regression.MeanSquaredError", False, settings={"squared": False})
MAE = MetricSpec("regression.MeanAbsoluteError", False)
R2 = MetricSpec("regression.R2Score")
COSINE = MetricSpec("regression.CosineSimilarity", settings={"reduction": "mean"})
DIVERGENCE = MetricSpec("regression.KLDivergence", False, settings={"log_prob": True})

CHARACTERS = MetricSpec("text.CharErrorRate", False, relative=False)
WORDS = MetricSpec("text.WordErrorRate", False, relative=False)
BOXES = MetricSpec("detection.MeanAveragePrecision", extra="detection")
