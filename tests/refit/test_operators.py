"""What refit knows of operators is what the one table knows."""

from nervure.graph.ops.table import KNOWN, family
from nervure.refit.operators import BIAS, MATRICES


def test_operators_that_are_read_have_operands_in_the_table() -> None:
    assert all(KNOWN[name].operands for name in MATRICES)
    assert all(KNOWN[name].operands or family(name) == "convolution" for name in BIAS)
