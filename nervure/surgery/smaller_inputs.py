"""Smaller pictures for the check in double precision, where a model computes the same on them.

What a convolution, a norm or a block computes with its units does not depend on how large the picture is, and at 96
pixels it takes a fifth of what it takes at 224. Whether a model is such is not assumed: the run on the smaller picture
has to call the same operators in the same modules, in the same order, and each axis with units must be as long.
"""

from itertools import zip_longest

import torch
from torch import Tensor

from nervure.core.inputs import Inputs
from nervure.core.tensors import tensors_in
from nervure.graph.tape import Ref, Tape
from nervure.graph.trace import TraceResult
from nervure.surgery.reference import places

SIDE, STEP = 96, 32
"""The shorter side of a smaller picture; both sides are multiples of the step, as strides mostly add up to it."""


def smaller_pictures(inputs: Inputs) -> Inputs | None:
    """The middle of every picture ``[batch, channels, height, width]``; None where none is much larger than that."""
    if not any(_is_large(x) for x in tensors_in(inputs)):
        return None
    return inputs.map(lambda x: _middle(x) if _is_large(x) else x)


def _is_large(x: Tensor) -> bool:
    is_plain = x.layout is torch.strided and x.is_floating_point()
    return is_plain and x.dim() == 4 and min(x.shape[-2:]) >= 2 * SIDE


def _middle(x: Tensor) -> Tensor:
    height, width = (max(SIDE, n * SIDE // min(x.shape[-2:]) // STEP * STEP) for n in x.shape[-2:])
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width].clone()


def goes_the_same_way(drawing: TraceResult, run: int, tape: Tape) -> bool:
    """Whether a run on another picture called the operators of the one that was drawn, on units as they were there."""
    was, now = list(places(drawing.flow.tape, run)), list(places(tape))
    if any(one is None or two is None or one[1] != two[1] for one, two in zip_longest(was, now)):
        return False
    entries = {index: entry for (index, _, _), (_, _, entry) in zip(was, now, strict=True)}
    for read in (read for read in drawing.flow.reads if read.entry in entries):
        ref = entries[read.entry].args[read.argument]
        if not isinstance(ref, Ref) or tape.shape(ref)[read.axis] != len(read.vectors[0]):
            return False
    return _returns_alike(drawing, run, tape)


def _returns_alike(drawing: TraceResult, run: int, tape: Tape) -> bool:
    """Whether the axes of outputs that have units are as long as they were."""
    outputs, others = drawing.flow.tape.runs[run].outputs, tape.runs[0].outputs
    if len(outputs) != len(others):
        return False
    for number, other in zip(outputs, others, strict=True):
        space, shape = drawing.flow.spaces.get(number), tape.values[other].shape
        if len(shape) != len(drawing.flow.tape.values[number].shape):
            return False
        for layer in space.layers if space is not None else ():
            if any(shape[a] != drawing.flow.tape.values[number].shape[a] for a in layer.support):
                return False
    return True
