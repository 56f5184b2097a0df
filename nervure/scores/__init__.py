"""Criteria: pure functions from evidence to one score per unit, higher = keep."""

from nervure.scores.lookup import CRITERIA, score
from nervure.scores.magnitude import Normalise, Scores, Weights, magnitude
from nervure.scores.random import random_scores

__all__ = ["CRITERIA", "Normalise", "Scores", "Weights", "magnitude", "random_scores", "score"]
