"""Methods that mask single weights."""
