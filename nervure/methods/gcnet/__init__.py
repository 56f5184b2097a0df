"""GC-Net: a companion network of connectivity guides pruning."""

from nervure.methods.gcnet.gcnet import GCNet

__all__ = ["GCNet"]
