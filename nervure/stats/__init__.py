"""Evidence: one pass over data, and what was heard."""

from nervure.stats.connections import response
from nervure.stats.evidence import Stats
from nervure.stats.loaders import SAMPLES, are_labelled, keep_position
from nervure.stats.measure import SIGNALS, data_digest, first_batches, measure

__all__ = [
    "SAMPLES",
    "SIGNALS",
    "Stats",
    "are_labelled",
    "data_digest",
    "first_batches",
    "keep_position",
    "measure",
    "response",
]
