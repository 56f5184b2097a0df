"""Tasks as values: how a model is called on a batch, what its loss is, and which metrics say how good it is."""

from nervure.tasks.agreement import agreement
from nervure.tasks.batch_forms import Layout, map_tensors, move_batch, take_samples
from nervure.tasks.boxes import detection
from nervure.tasks.categorical import classification, language_modelling, segmentation, token_classification
from nervure.tasks.guessing import TaskLike, as_task, find_task, guess
from nervure.tasks.multiple import multitask
from nervure.tasks.numeric import embedding, multilabel, regression
from nervure.tasks.running import evaluate_task
from nervure.tasks.sequences import model_loss, sequence
from nervure.tasks.task import Measure, Task, Total

__all__ = [
    "Layout",
    "Measure",
    "Task",
    "TaskLike",
    "Total",
    "agreement",
    "as_task",
    "classification",
    "detection",
    "embedding",
    "evaluate_task",
    "find_task",
    "guess",
    "language_modelling",
    "map_tensors",
    "model_loss",
    "move_batch",
    "multilabel",
    "multitask",
    "regression",
    "segmentation",
    "sequence",
    "take_samples",
    "token_classification",
]
