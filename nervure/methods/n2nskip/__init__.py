"""N2NSkip: sparse skip connections at the same budget."""
