"""What is known of an operator: the columns of the table in :mod:`nervure.graph.ops.table`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, final

from nervure.graph.labels import TensorLabels
from nervure.graph.tape import Entry

if TYPE_CHECKING:
    from nervure.graph.ops.user import Contraction, Moves
    from nervure.graph.propagate import LabelPropagation

Rule: TypeAlias = Callable[["LabelPropagation", Entry], Sequence[TensorLabels]]
"""What an operator does to labels: those of its results."""
NeuronRule: TypeAlias = Literal[
    "as shaped", "sum", "move", "move along", "split", "pick", "stack", "reorder", "expand", "reshape", "pad", "pair",
    "unpair", "put", "reduce", "mix along", "normalise", "linear", "product", "product and sum", "vector product",
    "experts", "convolution", "attention", "look up", "nothing", "copy", "gate", "sample", "hub",
]  # fmt: skip
"""Names of the rules in :mod:`nervure.analysis.neuron_ops`."""
Family: TypeAlias = Literal[
    "", "activation", "add", "bilinear", "concatenation", "convolution", "copy", "experts", "layer norm", "batch norm",
    "look-up", "pool", "quotient", "view",
]  # fmt: skip
Moved: TypeAlias = Literal["", "first", "all"]
Zero: TypeAlias = Literal["", "first", "any", "all"]
Reading: TypeAlias = Literal["", "sum", "reduction", "places", "statistic", "trailing", "blocks"]
Operands: TypeAlias = Sequence[tuple[int, int, str]]
"""For each operand that may be a parameter its place, that of the other one, and what its axes are for."""


@final
@dataclass(frozen=True, slots=True)
class Operator:
    """A row of the table: an operator, or several of which the same is true.

    Attributes:
        names: as PyTorch registers them, without ``aten::``. What works in place goes by the same row.
        labels: what it does to the labels of units; where it multiplies it notes its cost, axis by axis.
        neurons: what it does to the nodes of a neuron graph: the name of a rule, or what a user said.
        family: what it is to those that look for operators of a kind (blocks look for additions, say).
        moves: whether the entries of its results are those of its ``"first"`` argument and no others, or of ``"all"``
            its tensors (and what fills up); empty where it computes.
        zero: where its first result is zero (or, for a quotient, no number): where its ``"first"`` argument is, where
            ``"any"`` or where ``"all"`` of its tensors are; empty where that is not so, or depends on its numbers.
        reads: how it reads along an axis of units, of which only survivors may count: as a ``"sum"`` (a contraction), a
            ``"reduction"`` (the axis goes), for ``"places"`` (the same, and the last result says where along the axis),
            as a ``"statistic"`` (every element keeps its place), one over ``"trailing"`` axes whose sizes and weights
            it is given, or one over equal ``"blocks"`` of the axis.
        macs: whether it multiplies and sums, and so costs.
        operands: for operators that multiply with parameters, what the axes of these are for.
        sized: the calls it comes from (of the user's code, by name) whose sizes the labels' rule looks at.
        lengths: those of them that give the sizes of the result, axis by axis.
    """

    names: str
    labels: Rule
    neurons: "NeuronRule | Contraction | Moves" = "as shaped"
    family: Family = ""
    moves: Moved = ""
    zero: Zero = ""
    reads: Reading = ""
    macs: bool = False
    operands: Operands = ()
    sized: str = ""
    lengths: str = ""
