"""Reference networks and data sets; needs no torchvision and fetches nothing."""

from nervure.zoo.corrupted import CorruptedBatches, load_corrupted
from nervure.zoo.data import DATASETS, Dataset, Split, load
from nervure.zoo.models import MODELS, build

__all__ = ["DATASETS", "MODELS", "CorruptedBatches", "Dataset", "Split", "build", "load", "load_corrupted"]
