"""Methods that rewire while a network trains."""
