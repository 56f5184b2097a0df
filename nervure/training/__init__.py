"""Training: a short loop, objectives, schedules, masks that hold while it runs, and rewiring by methods."""

from nervure.training.loop import History, train
from nervure.training.masks import Held, Masks, hold, masks_of, same_everywhere
from nervure.training.norms import recalibrate
from nervure.training.objectives import Objective, cross_entropy, label_smoothing, with_distillation
from nervure.training.rewires import Change, Event, Ground, Judge, Moment, Rewires, Turnover, mean_density
from nervure.training.rewiring import Rewiring
from nervure.training.schedules import Schedule, constant, cosine, onecycle
from nervure.training.step import Hook, Remembers, Setting, Step

__all__ = [
    "Change",
    "Event",
    "Ground",
    "Held",
    "History",
    "Hook",
    "Judge",
    "Masks",
    "Moment",
    "Objective",
    "Remembers",
    "Rewires",
    "Rewiring",
    "Schedule",
    "Setting",
    "Step",
    "Turnover",
    "constant",
    "cosine",
    "cross_entropy",
    "with_distillation",
    "hold",
    "label_smoothing",
    "masks_of",
    "mean_density",
    "onecycle",
    "recalibrate",
    "same_everywhere",
    "train",
]
