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
    model: nn.Module, example: Any, tape: Tape, output: list[Tensor], sizes: frozenset[Expression], **how: Any
) -> bool:
    """Whether a run depends on these sizes, if there are any, in a way that is not seen.

    Args:
        model: the traced model.
        example: what it was traced on.
        tape: the record of its run.
        output: the tensors that it returned then.
        sizes: attributes and axes, as expressions.
        **how: further options of ``record``.
    """
    if not sizes:
        return False
    try:
        again, found = record(model, example, lies=sizes, warm=tape.warm, **how)
    except Exception:  # whatever the wrong number led to: it was read
        return True
    return not (_agree(tape, again) and all(map(_equal, output, found)))


def _agree(one: Tape, other: Tape) -> bool:
    return (
        len(one.entries) == len(other.entries)
        and len(one.values) == len(other.values)
        and all(_line(a) == _line(b) for a, b in zip(one.entries, other.entries, strict=True))
        and all(a.shape == b.shape and _equal(a.const, b.const) for a, b in zip(one.values, other.values, strict=True))
    )


def _line(entry: Entry | WriteBack) -> str:
    if isinstance(entry, WriteBack):
        return repr((entry.base, entry.value, entry.views, entry.out))
    return repr((entry.name, entry.args, entry.kwargs, entry.outs, entry.module))


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if one.shape != other.shape or one.is_meta or other.is_meta:
        return one.shape == other.shape
    return bool(torch.equal(one, other)) or bool(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))
