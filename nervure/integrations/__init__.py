"""Masks that hold in the loops of other libraries, and trackers; each needs its library (an extra)."""
