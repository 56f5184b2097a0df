"""Sizes whose origin is lost: Python reads an integer without asking it, as ``range(n)`` and ``0.5 * n`` do.

What an ``int`` is asked its class can note; what reads the integer itself nothing can. So the model is run once more
with sizes that lie: they are a wrong number to all that does not ask. Where the run writes the same down, to the last
number in it, nothing depends on what the class did not see.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nervure.graph.sizes import Expression
from nervure.graph.tape import Entry, Tape, WriteBack, record


def loses(
    model: nn.Module, example: Any, tape: Tape, outputs: list[list[Tensor]], sizes: frozenset[Expression], **how: Any
) -> bool:
    """Whether a run depends on these sizes, if there are any, in a way that is not seen.

    Args:
        model: the traced model.
        example: what it was traced on.
        tape: the record of its run.
        outputs: the tensors that it returned then, on each example.
        sizes: attributes and axes, as expressions.
        **how: further options of ``record``.
    """
    if not sizes:
        return False
    try:
        again, found = record(model, example, lies=sizes, warm=tape.warm, **how)
    except Exception:  # whatever the wrong number led to: it was read
        return True
    was, now = ([t for answer in answers for t in answer] for answers in (outputs, found))
    if any(t.is_meta for t in was):
        # Without weights whole numbers are known all the same.
        was, now = ([v.const for v in one.values if v.const is not None] for one in (tape, again))
    return not (_agree(tape, again) and len(was) == len(now) and all(map(_equal, was, now)))


def _agree(one: Tape, other: Tape) -> bool:
    """Whether two runs called the same operators with the same arguments and shapes, in the same order."""
    lines, others = (list(map(_line, tape.entries)) for tape in (one, other))
    return lines == others and [v.shape for v in one.values] == [v.shape for v in other.values]


def _line(entry: Entry | WriteBack) -> str:
    if isinstance(entry, WriteBack):
        return repr((entry.base, entry.value, entry.views, entry.out))
    return repr((entry.name, entry.args, entry.kwargs, entry.outs, entry.module))


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.is_meta or other.is_meta:
        return one.shape == other.shape
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
