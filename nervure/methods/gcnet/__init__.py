"""GC-Net: a companion network of connectivity guides pruning."""
