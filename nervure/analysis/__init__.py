"""Units as nodes of a graph: what joins every unit of a network to every other, and what can flow between them."""
