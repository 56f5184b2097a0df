"""Criteria: pure functions from evidence to one score per unit, higher = keep."""

from nervure.scores.common import Normalise, Scores, Weights, wants
from nervure.scores.completed import completed
from nervure.scores.criteria import CRITERIA, score
from nervure.scores.effects import Loudness, activation, fisher, taylor
from nervure.scores.fpgm import fpgm
from nervure.scores.magnitude import magnitude
from nervure.scores.random import random_scores
from nervure.scores.routing import frequency, reap
from nervure.scores.slimming import Without, slimming

__all__ = [
    "CRITERIA",
    "Loudness",
    "Normalise",
    "Scores",
    "Weights",
    "Without",
    "activation",
    "completed",
    "fisher",
    "fpgm",
    "frequency",
    "magnitude",
    "random_scores",
    "reap",
    "score",
    "slimming",
    "taylor",
    "wants",
]
