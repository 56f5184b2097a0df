"""Whether two models say the same: on the example, on other numbers, and on batches of other sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self, final

import torch
from torch import Tensor, nn

from nervure.core.inputs import Inputs
from nervure.errors import ForwardError, VerificationError
from nervure.sparse.watch import noisy, outputs_of
from nervure.surgery.difference import compare_rounded
from nervure.surgery.redraw import rounded_copy

OTHER_BATCHES = (1, 3)


@final
@dataclass(frozen=True, slots=True)
class Checks:
    """Inputs, each with what the original says to it.

    Attributes:
        given: the inputs, those of the example first.
        expected: for each of them all tensors that the original returns.
        model: the original.
    """

    given: tuple[Inputs, ...]
    expected: tuple[list[Tensor], ...]
    model: nn.Module

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs) -> Self:
        """Run the original; other numbers and batch sizes are left out where it does not take them.

        Raises:
            ForwardError: it does not run on the example.
        """
        try:
            found = [(inputs, outputs_of(model, inputs))]
        except Exception as error:
            raise ForwardError(f"the model does not run on the example: {type(error).__name__}: {error}.") from error
        others: list[Callable[[], Inputs]] = [
            partial(noisy, inputs),
            *(partial(inputs.resize, n) for n in OTHER_BATCHES),
        ]
        for other in others:
            try:
                given = other()
                found.append((given, outputs_of(model, given)))
            # A model may be made for one batch size, or for certain numbers: then there is nothing to compare with.
            except Exception:
                continue
        return cls(tuple(given for given, _ in found), tuple(expected for _, expected in found), model)

    def error(self, model: nn.Module) -> float:
        """The largest relative difference; raises VerificationError where it is more than rounding."""
        return max(
            agreement(
                expected, outputs_of(model, given), "the whole differs", self.model, partial(outputs_of, inputs=given)
            )
            for given, expected in zip(self.given, self.expected, strict=True)
        )


def agreement(
    expected: list[Tensor],
    found: list[Tensor],
    where: str,
    model: nn.Module,
    run: Callable[[nn.Module], list[Tensor]],
) -> float:
    """The largest difference of an output, relative to its size.

    Args:
        expected: what ``model`` says.
        found: what another says that should compute the same.
        where: the beginning of a message.
        model: the original, which is run with rounded weights where the two differ.
        run: gives the outputs of a copy of it.

    Raises:
        VerificationError: it is larger than rounding, or shapes differ; the message begins with ``where``.
    """
    nothing = [torch.zeros_like(t) for t in expected]
    precisions = [torch.finfo(t.dtype).eps if t.is_floating_point() else 0.0 for t in expected]
    try:
        outcome = compare_rounded(nothing, expected, found, precisions, lambda draw: run(rounded_copy(model, draw)))
    except VerificationError as error:
        raise VerificationError(f"{where}: {error}") from error
    if not outcome.is_right:
        raise VerificationError(f"{where}: relative error {outcome.error:.2e}, allowed {outcome.tolerance:.0e}.")
    return outcome.error
