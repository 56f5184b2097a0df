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
from nervure.training.passes import Passes, passes_of
from nervure.training.schedules import Schedule, constant, cosine, onecycle
from nervure.training.sharpness import SAM
from nervure.training.step import Callback, Hook, Setting, Stateful, TrainingPoint, TrainingStep
from nervure.training.view_objectives import augmented, consistent, jensen_shannon
from nervure.training.views import Views, picture_views, shift_views

__all__ = [
    "SAM",
    "Callback",
    "Event",
    "Held",
    "History",
    "Hook",
    "InitialTopology",
    "Masks",
    "Objective",
    "Passes",
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
    "Views",
    "augmented",
    "consistent",
    "constant",
    "cosine",
    "cross_entropy",
    "hold",
    "jensen_shannon",
    "label_smoothing",
    "masks_of",
    "mean_density",
    "onecycle",
    "passes_of",
    "picture_views",
    "recalibrate",
    "same_everywhere",
    "shift_views",
    "train",
    "with_distillation",
]

__getattr__ = old_names(__name__)
