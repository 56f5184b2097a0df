"""Training: a short loop, objectives, schedules, masks that hold while it runs, and rewiring by methods."""

from nervure.core.renamed import old_names
from nervure.training.dynamic.hook import RewiringHook
from nervure.training.dynamic.protocol import (
    Event,
    InitialTopology,
    RollbackPolicy,
    SparseTrainer,
    TopologyUpdate,
    Turnover,
    UpdateContext,
    mean_density,
)
from nervure.training.loop import History, train
from nervure.training.masks import Held, Masks, hold, masks_of, same_everywhere
from nervure.training.norms import recalibrate
from nervure.training.objectives import Objective, cross_entropy, label_smoothing, with_distillation
from nervure.training.schedules import Schedule, constant, cosine, onecycle
from nervure.training.step import Callback, Hook, Setting, Stateful, TrainingPoint, TrainingStep

__all__ = [
    "Callback",
    "Event",
    "Held",
    "History",
    "Hook",
    "InitialTopology",
    "Masks",
    "Objective",
    "RewiringHook",
    "RollbackPolicy",
    "Schedule",
    "Setting",
    "SparseTrainer",
    "Stateful",
    "TopologyUpdate",
    "TrainingPoint",
    "TrainingStep",
    "Turnover",
    "UpdateContext",
    "constant",
    "cosine",
    "cross_entropy",
    "hold",
    "label_smoothing",
    "masks_of",
    "mean_density",
    "onecycle",
    "recalibrate",
    "same_everywhere",
    "train",
    "with_distillation",
]

__getattr__ = old_names(__name__)
