"""Sums over positions from which a least-squares problem is solved, and any answer to it judged, without the data."""

import copy
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

TILE = 2048
"""Positions, or outputs, that are multiplied at once."""


@final
class InputSums:
    """Sums over what enters (x), and over its products with itself: what reads the same input needs them once.

    Sums are kept in double precision; products of a tile are in that of the model. What enters is counted from the mean
    of the first tile on, so that large means cost no digits. ``count`` is how many positions were added.
    """

    TERMS = ("count", "x", "xx")

    def __init__(self, stack: int, inputs: int, device: torch.device) -> None:
        self.count = 0
        self.x0 = torch.zeros(stack, inputs, dtype=torch.float64, device=device)
        self.x, self.xx = self.x0.clone(), self.x0.new_zeros(stack, inputs, inputs)

    def add(self, x: Tensor) -> None:
        """Add positions [stack, positions, inputs]."""
        for tile in map(_precise, x.split(TILE, 1)):
            if not self.count:
                self.x0 = tile.mean(1).double()
            self.count += tile.shape[1]
            near = tile - self.x0[:, None].to(tile)
            self.xx += (near.transpose(1, 2) @ near).double()
            self.x += near.sum(1, dtype=torch.float64)

    def settle(self) -> None:
        """Count from the mean of all, in place."""
        if self.count:
            mean = self.x / self.count
            self.xx.baddbmm_(mean[:, :, None], self.x[:, None], alpha=-1)
            self.x0, self.x = self.x0 + mean, torch.zeros_like(self.x)

    def about(self, x0: Tensor) -> dict[str, Tensor]:
        """The same sums, counted from ``x0``."""
        by, x = self.x0 - x0.to(self.x0), self.x
        moved = x[:, :, None] * by[:, None] + by[:, :, None] * x[:, None] + self.count * by[:, :, None] * by[:, None]
        return {"count": torch.tensor(self.count), "x": x + self.count * by, "xx": self.xx + moved}

    @staticmethod
    def of(x0: Tensor, terms: Mapping[str, Tensor]) -> "InputSums":
        """Sums from what :meth:`about` gave."""
        stack, width = x0.shape
        found = InputSums(stack, width, x0.device)
        found.count, found.x0, found.x, found.xx = int(terms["count"]), x0, terms["x"], terms["xx"]
        return found


def _precise(tile: Tensor) -> Tensor:
    return tile if tile.dtype == torch.float64 else tile.float()


@final
class Moments:
    """First and second moments of what enters a consumer (x), of what it says wrong (r), and of what it should say (y).

    Attributes:
        inputs: the sums over what enters, perhaps those of other consumers as well.
        count: how many positions were added.
    """

    TERMS = ("n", "r", "rr", "xr", "y", "yy")

    def __init__(
        self, stack: int, inputs: int, outputs: int, device: torch.device, shared: InputSums | None = None
    ) -> None:
        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(stack, *sizes, dtype=torch.float64, device=device)

        self.inputs = InputSums(stack, inputs, device) if shared is None else shared
        self.count = 0
        self._x0 = self.inputs.x0
        self._y0, self._r, self._rr = zeros(outputs), zeros(outputs), zeros(outputs)
        self._xr, self._y, self._yy = zeros(inputs, outputs), zeros(outputs), zeros(outputs)

    def add(self, x: Tensor, r: Tensor, y: Tensor, *, with_inputs: bool = True) -> None:
        """Add positions: x [stack, positions, inputs], r and y [stack, positions, outputs].

        Not ``with_inputs``: they are in the sums already, which another consumer shares.
        """
        if with_inputs:
            self.inputs.add(x)
        for tiles in zip(*(t.split(TILE, 1) for t in (x, r, y)), strict=True):
            self._add(*map(_precise, tiles))

    def part_company(self) -> None:
        """Go on with sums over inputs of its own."""
        self.inputs = copy.deepcopy(self.inputs)

    @property
    def y0(self) -> Tensor:
        """From where what it should say is counted, [stack, outputs]."""
        return self._y0

    def about(self, x0: Tensor, y0: Tensor) -> dict[str, Tensor]:
        """The sums that are its own, counted from ``x0`` and ``y0``."""
        by_x, by_y = self._x0 - x0.to(self._x0), self._y0 - y0.to(self._y0)
        return {
            "n": torch.tensor(self.count),
            "r": self._r,
            "rr": self._rr,
            "xr": self._xr + by_x[:, :, None] * self._r[:, None],
            "y": self._y + self.count * by_y,
            "yy": self._yy + 2 * by_y * self._y + self.count * by_y.square(),
        }

    @staticmethod
    def of(y0: Tensor, inputs: InputSums, terms: Mapping[str, Tensor]) -> "Moments":
        """Moments from what :meth:`about` gave."""
        stack, width = inputs.x.shape
        found = Moments(stack, width, y0.shape[1], y0.device, inputs)
        found.count, found._x0, found._y0 = int(terms["n"]), inputs.x0, y0
        found._r, found._rr, found._xr = terms["r"], terms["rr"], terms["xr"]
        found._y, found._yy = terms["y"], terms["yy"]
        return found

    def _add(self, x: Tensor, r: Tensor, y: Tensor) -> None:
        if not self.count:
            self._x0, self._y0 = self.inputs.x0, y.mean(1).double()
        x, y = x - self._x0[:, None].to(x), y - self._y0[:, None].to(y)
        self.count += x.shape[1]
        self._xr += (x.transpose(1, 2) @ r).double()
        self._r += r.sum(1, dtype=torch.float64)
        self._y += y.sum(1, dtype=torch.float64)
        self._rr += r.double().square().sum(1)
        self._yy += y.double().square().sum(1)

    @property
    def mean(self) -> Tensor:
        """Mean of x, [stack, inputs]."""
        return self.inputs.x0 + self.inputs.x / self.count

    @property
    def r(self) -> Tensor:
        """Mean of r, [stack, outputs]."""
        return self._r / self.count

    @property
    def y(self) -> Tensor:
        """Mean of y, [stack, outputs]."""
        return self._y0 + self._y / self.count

    @property
    def xx(self) -> Tensor:
        """Sum of products of x with itself, centred, [stack, inputs, inputs]; no copy."""
        self.inputs.settle()
        return self.inputs.xx

    @property
    def xr(self) -> Tensor:
        """Sum of products of x and r, centred, [stack, inputs, outputs]; no copy."""
        moved, self._x0 = self.mean - self._x0, self.mean
        self._xr.baddbmm_(moved[:, :, None], self._r[:, None], alpha=-1)
        return self._xr

    @property
    def rr(self) -> Tensor:
        """Sum of squares of r, centred, [stack, outputs]."""
        return (self._rr - self._r.square() / self.count).clamp(min=0)

    @property
    def yy(self) -> Tensor:
        """Sum of squares of y, centred, [stack, outputs]."""
        return (self._yy - self._y.square() / self.count).clamp(min=0)

    def error(self, change: Tensor, shift: Tensor) -> float:
        """Sum over positions and outputs of ``|r - change^T x - shift|^2``, as a share of the variance of y.

        Args:
            change: [stack, inputs, outputs].
            shift: [stack, outputs].
        """
        if not bool(change.any()):
            return self._error_of(self.rr, self.r - shift)
        left, xx, xr = self.rr, self.xx, self.xr
        for some in map(slice, range(0, change.shape[2], TILE), range(TILE, change.shape[2] + TILE, TILE)):
            part = change[:, :, some]
            left[:, some] += torch.baddbmm(xr[:, :, some], xx, part, beta=-2).mul_(part).sum(1)
        return self._error_of(left, self.r - (self.mean[:, None] @ change)[:, 0] - shift)

    def _error_of(self, left: Tensor, mean: Tensor) -> float:
        """From the centred squares and the means of what is left, both [stack, outputs]."""
        total = left.clamp(min=0).sum() + self.count * mean.square().sum()
        return float(total / self.yy.sum().clamp(min=torch.finfo(torch.float64).tiny))
