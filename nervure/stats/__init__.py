"""Evidence: one pass over data, and what was heard."""

from nervure.stats.batches import are_labelled
from nervure.stats.connections import response
from nervure.stats.measure import SIGNALS, data_digest, measure
from nervure.stats.types import Stats

__all__ = ["SIGNALS", "Stats", "are_labelled", "data_digest", "measure", "response"]
