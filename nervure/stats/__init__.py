"""Evidence: one pass over data, and what was heard."""

from nervure.core.renamed import old_names
from nervure.stats.connections import response
from nervure.stats.evidence import Stats
from nervure.stats.loaders import SAMPLES, are_labelled, keep_position
from nervure.stats.measure import SIGNALS, batches_digest, data_digest, first_batches, measure

__all__ = [
    "SAMPLES",
    "SIGNALS",
    "Stats",
    "are_labelled",
    "batches_digest",
    "data_digest",
    "first_batches",
    "keep_position",
    "measure",
    "response",
]

__getattr__ = old_names(__name__)
