"""A layer at the moment of rewiring, as rules of growth and of dropping see it, and the chance they draw from."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias, final

import torch
from torch import Tensor

Noise: TypeAlias = Callable[[torch.Size], Tensor]
"""From a shape to independent draws in (0, 1), float64."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """The connections of one weight tensor, those that are there and those that could be.

    Attributes:
        name: the tensor.
        weight: [outputs, inputs, kernel positions], zero where nothing is.
        mask: which connections are there; boolean of the same shape.
        age: events since each grew, whole numbers of the same shape; a great number where it was there from the start.
        gradient: of the loss, whole also where nothing is; the same shape. None: not gathered.
        activation: mean absolute value of each input, [1 or outputs, inputs]. None: not gathered.
        incoming: how strongly the unit behind each input is written by the layers before, [inputs].
        open: places where a weight lies on a path from an input to an output, or would, [outputs, inputs, 1]. None:
            not gathered.
        price: weights that one connection stands for: 1, or those of a kernel where kernels are whole.
        is_divided: whether the weight is divided by norms, which rows or columns of zeros do not have.
    """

    name: str
    weight: Tensor
    mask: Tensor
    age: Tensor
    gradient: Tensor | None = None
    activation: Tensor | None = None
    incoming: Tensor | None = None
    open: Tensor | None = None
    price: int = 1
    is_divided: bool = False

    def in_kernels(self) -> "Site":
        """The same with whole kernels as connections: norms of weights and gradients, [outputs, inputs, 1]."""
        return replace(
            self,
            weight=_norm(self.weight),
            mask=self.mask.any(2, keepdim=True),
            age=self.age.amin(2, keepdim=True),
            gradient=None if self.gradient is None else _norm(self.gradient),
            price=self.price * self.weight.shape[2],
        )

    def under(self, mask: Tensor) -> "Site":
        """The same with only those connections that a mask keeps."""
        return replace(self, mask=mask, weight=self.weight.masked_fill(~mask, 0))

    def with_open(self, places: Tensor | None) -> "Site":
        """The same, told where a connection would lie on a path."""
        return replace(self, open=places)

    def strength(self, *, heard: bool = False) -> Tensor:
        """``|w|`` over the standard deviation of the weights that are there, [outputs, inputs], kernels summed.

        Args:
            heard: multiply by the mean absolute activation of the input, where it was gathered.
        """
        there = self.weight[self.mask].double()
        spread = float(there.square().mean().sqrt()) if there.numel() else 0.0
        found = self.weight.abs().double().sum(2) / (spread or 1.0)
        return found * self.activation if heard and self.activation is not None else found

    def count(self) -> int:
        """Weights that are there."""
        return int(self.mask.sum()) * self.price


def noise(seed: int, step: int, name: str) -> Noise:
    """Draws that depend on the seed, the step and the name alone: the same in every process and after every stop."""
    digest = hashlib.sha256(f"{seed}/{step}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)

    def draw(shape: torch.Size) -> Tensor:
        # In double precision, and never 0: the logarithm of a draw is taken.
        return torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(math.ulp(0.0))

    return draw


def draw_scores(logarithms: Tensor, draw: Noise) -> Tensor:
    """Scores whose ``k`` highest are a draw of ``k`` without replacement.

    Adding Gumbel noise to logarithms of weights makes ranking a draw in proportion to the weights (Kool, van Hoof and
    Welling, "Stochastic Beams and Where to Find Them", 2019).

    Args:
        logarithms: logarithms of weights, of any shape; minus infinity: never, unless nothing else is left.
        draw: the chance.
    """
    return logarithms - (-draw(logarithms.shape).log()).log()


def _norm(values: Tensor) -> Tensor:
    return values.square().sum(2, keepdim=True).sqrt()
