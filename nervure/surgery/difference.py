"""How far two answers lie apart, measured against how far the cut itself moved the answer.

An answer may hold boxes in pixels beside scores, one logit of -1e9, or a second output in half precision. So each
output is judged on its own, in its own precision, as a whole and in each slice along each axis; and only what moves
counts towards its size. Where the cut moved nothing, a wrong cut would look right: then nothing was told.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from nervure.errors import VerificationError

ROUNDING = 16
"""Roundings of an output that two right answers may lie apart."""
TELLING = 64
"""Roundings of an output that a cut must move it, so that a wrong cut could be told from a right one."""
NOISE = 0.01
"""The share of what a cut moves that may be put down to amplified rounding: more of it would hide a wrong cut."""
FEW = 16
"""Whole numbers that a cut must move at least: a wrong cut may come to the same few by chance."""
ROUNDED = 8
"""Draws of rounded weights, at most, that show how much a model amplifies rounding: few tell little of one number."""
UNLIKELY = 1000
"""How many times the effect of one draw of roundings a difference must be, so that no other draw can explain it."""
AMPLIFIED = 30
"""How many times the effect of one rounding of every weight two right answers may lie apart."""


@final
@dataclass(frozen=True, slots=True)
class Difference:
    """Outcome of a comparison.

    Attributes:
        error: the largest difference of an output (or of a slice that does not agree), relative to how far it moved.
        tolerance: how large it may be.
        is_right: whether every slice of every output agrees.
        is_telling: whether the cut moved any slice far enough for a wrong cut to be seen.
        outputs: the number of outputs.
        may_be_rounding: whether no output differs by far more than rounding moves it, as far as that is known.
        agrees_as_whole: whether every output agrees where all its numbers are taken together.
    """

    error: float
    tolerance: float
    is_right: bool
    is_telling: bool
    outputs: int
    may_be_rounding: bool = True
    agrees_as_whole: bool = True


class ComparedRuns(NamedTuple):
    """One output, or its sizes slice by slice: the difference, the cut's effect, the answer, a rounding's effect.

    The last is the root of the mean square over draws.
    """

    gap: Tensor
    moved: Tensor
    size: Tensor
    rounding: Tensor


def compare_rounded(
    dense: Sequence[Tensor],
    expected: Sequence[Tensor],
    found: Sequence[Tensor],
    precisions: Sequence[float],
    again: Callable[[int], Sequence[Tensor]],
) -> Difference:
    """As :func:`compare`; where answers differ, rounding is drawn until it explains that, or cannot.

    Args:
        dense: what the original answers, with all its units.
        expected: what it answers without the removed ones.
        found: what the smaller model answers.
        precisions: for each output the coarsest relative rounding on the way to it.
        again: from the number of a draw to what is expected where every weight is rounded once more.
    """
    outcome, rounded = compare(dense, expected, found, precisions), list[Sequence[Tensor]]()
    while not outcome.is_right and outcome.may_be_rounding and len(rounded) < ROUNDED:
        rounded.append(again(len(rounded)))
        outcome = compare(dense, expected, found, precisions, rounded)
    return outcome


def compare(
    dense: Sequence[Tensor],
    expected: Sequence[Tensor],
    found: Sequence[Tensor],
    precisions: Sequence[float],
    rounded: Sequence[Sequence[Tensor]] = (),
) -> Difference:
    """Compare two answers, output by output.

    Args:
        dense: what the original answers, with all its units.
        expected: what it answers without the removed ones.
        found: what the smaller model answers.
        precisions: for each output the coarsest relative rounding on the way to it.
        rounded: what is expected where every weight is rounded once more, for each of several draws; shows how much a
            model amplifies rounding. One draw may move a slice of few numbers next to nothing, by chance.

    Raises:
        VerificationError: the answers have another number of outputs or other shapes, or one is not finite where the
            other is.
    """
    if len(expected) != len(found):
        raise VerificationError(f"the pruned model returns {len(found)} tensors, the original {len(expected)}.")
    errors, right, telling, rounding, loosest, whole = [0.0], True, False, True, 0.0, True
    for i, precision in enumerate(precisions):
        four = _four(i, dense[i], expected[i], found[i], [answer[i] for answer in rounded])
        loosest, is_coarse = max(loosest, precision**0.5), _moves_few_whole_numbers(four)
        for at, sizes in enumerate(_by_slice(four)):
            fine, tells = _judge(sizes, precision)
            tells = tells and not is_coarse
            right, telling = right and fine, telling or tells
            whole = whole and (fine or at > 0)
            if at == 0 and rounded:
                rounding = rounding and (fine or bool(sizes.gap <= UNLIKELY * sizes.rounding))
            if not fine or (at == 0 and tells):
                errors.append(_error(sizes))
    return Difference(max(errors), loosest, right, telling, len(found), rounding, whole)


def _error(sizes: ComparedRuns) -> float:
    """The largest difference of these slices by their yardstick (by their size where they did not move)."""
    yardstick = _yardstick(sizes)
    relative = sizes.gap / torch.where(yardstick > 0, yardstick, sizes.size)
    return float(relative.nan_to_num(0).max())


def _yardstick(sizes: ComparedRuns) -> Tensor:
    """How far slices moved; what is left of them, where that is less: a cut may take nearly all of an answer along."""
    return torch.minimum(sizes.moved, sizes.size)


def _four(number: int, dense: Tensor, expected: Tensor, found: Tensor, rounded: Sequence[Tensor]) -> ComparedRuns:
    """The four of one output, as float64, with zeros where nothing moves or nothing is finite."""
    if expected.shape != found.shape:
        shapes = f"{tuple(found.shape)}, the original's is {tuple(expected.shape)}"
        raise VerificationError(f"output {number} has shape {shapes}.")
    answers = [_as_numbers(t) for t in (dense, expected, found, *rounded)]
    if dense.shape != expected.shape:
        # A dropped block may change the length of an answer: then all of it has moved.
        answers[0] = torch.zeros_like(answers[1])
    a, b = answers[1:3]
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)):
        raise VerificationError(f"output {number} is not finite where the original's is.")
    # An original that is not finite there tells nothing; a sentinel that stays has no size.
    was, now, then, *others = (torch.where(finite, t, 0).nan_to_num(0, 0, 0) for t in answers)
    size = torch.where((was != now) | (now != then), now, 0)
    squares = sum(((other - now).square() for other in others), torch.zeros_like(now))
    return ComparedRuns(then - now, was - now, size, (squares / max(len(others), 1)).sqrt())


def _moves_few_whole_numbers(four: ComparedRuns) -> bool:
    """Whether an output is rounded (a class, a sign), and the cut moves too few of its numbers to tell anything."""
    now = four.size[four.moved != 0]
    was = now + four.moved[four.moved != 0]
    return now.numel() < FEW and all(bool((numbers == numbers.round()).all()) for numbers in (was, now))


def _as_numbers(tensor: Tensor) -> Tensor:
    whole = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    return torch.view_as_real(whole).double() if whole.is_complex() else whole.double()


def _by_slice(four: ComparedRuns) -> Iterator[ComparedRuns]:
    """Sizes of the whole output, then along each of its axes."""
    rank = four.gap.dim()
    yield ComparedRuns(*(torch.linalg.vector_norm(t) for t in four))
    for axis in range(rank) if rank > 1 else ():
        others = [a for a in range(rank) if a != axis]
        if four.gap.shape[axis] > 1:
            yield ComparedRuns(*(torch.linalg.vector_norm(t, dim=others) for t in four))


def _judge(sizes: ComparedRuns, precision: float) -> tuple[bool, bool]:
    """Whether all these slices agree, and whether any tells."""
    gap, moved, size, rounding = sizes
    allowed = precision**0.5 * _yardstick(sizes) + ROUNDING * precision * size + AMPLIFIED * rounding
    tells = (moved > TELLING * precision * size) & (AMPLIFIED * rounding < NOISE * moved)
    return bool((gap <= allowed).all()), bool(tells.any())
