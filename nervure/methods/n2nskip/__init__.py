"""N2NSkip: sparse skip connections at the same budget."""

from nervure.methods.n2nskip.n2nskip import N2NSkip

__all__ = ["N2NSkip"]
