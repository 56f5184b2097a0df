"""Evidence: one pass over data, and what was heard."""

from nervure.stats.batches import SAMPLES, are_labelled, keep_position
from nervure.stats.connections import response
from nervure.stats.measure import SIGNALS, data_digest, first_batches, measure
from nervure.stats.types import Stats

__all__ = [
    "SAMPLES",
    "SIGNALS",
    "Stats",
    "are_labelled",
    "data_digest",
    "first_batches",
    "measure",
    "response",
    "keep_position",
]
