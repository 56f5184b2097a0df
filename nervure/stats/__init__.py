"""Evidence: one pass over data, and what was heard."""

from nervure.stats.connections import response
from nervure.stats.measure import SIGNALS, measure
from nervure.stats.types import Stats

__all__ = ["SIGNALS", "Stats", "measure", "response"]
