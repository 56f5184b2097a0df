"""What the loops of other libraries need of pruned models; each module needs its library (an extra)."""
