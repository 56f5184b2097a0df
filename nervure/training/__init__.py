"""Training: a short loop, objectives, schedules, and masks that hold while it runs."""

from nervure.training.loop import History, Hook, Step, train
from nervure.training.masks import Held, Masks, hold, masks_of, same_everywhere
from nervure.training.norms import recalibrate
from nervure.training.objectives import Objective, cross_entropy, distilled, label_smoothing
from nervure.training.schedules import Schedule, constant, cosine, onecycle

__all__ = [
    "Held",
    "History",
    "Hook",
    "Masks",
    "Objective",
    "Schedule",
    "Step",
    "constant",
    "cosine",
    "cross_entropy",
    "distilled",
    "hold",
    "label_smoothing",
    "masks_of",
    "onecycle",
    "recalibrate",
    "same_everywhere",
    "train",
]
