"""What the loops of other libraries need of pruned models, and trackers; each module needs its library (an extra)."""
