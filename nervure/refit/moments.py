"""Sums over positions from which a least-squares problem is solved, and any answer to it judged, without the data."""

import copy
from collections.abc import Iterator, Mapping
from typing import final

import torch
from torch import Tensor

TILE = 2048
"""Positions, or outputs, that are multiplied at once."""
FEW = 0.5
"""Positions per input up to which they are kept as they are."""
ROWS = 256
"""Positions of these that are multiplied at once, in double precision."""


@final
class InputSums:
    """Sums over what enters (x), and over its products with itself: what reads the same input needs them once.

    Sums are kept in double precision; products of a tile are in that of the model. What enters is counted from the mean
    of the first tile on, so that large means cost no digits. Few positions are kept as they are, which takes less
    memory: their products are added up where they are asked for.

    Attributes:
        count: how many positions were added.
        x0: from where on they are counted, [stack, inputs].
        x: their sum, [stack, inputs].
        tiles: the positions themselves, [stack, positions, inputs] each; none where products were added up.
    """

    TERMS = ("count", "x", "xx")

    def __init__(self, stack: int, inputs: int, device: torch.device) -> None:
        self.count = 0
        self.x0 = torch.zeros(stack, inputs, dtype=torch.float64, device=device)
        self.x = self.x0.clone()
        self.tiles: list[Tensor] = []
        self._xx: Tensor | None = None

    @property
    def xx(self) -> Tensor:
        """The sum of products, [stack, inputs, inputs]; no copy."""
        if self._xx is None:
            stack, width = self.x.shape
            self._xx = self.x.new_zeros(stack, width, width)
            for near in self.tiles:
                self._xx += (near.mT @ near).double()
            self.tiles = []
        return self._xx

    def add(self, x: Tensor) -> None:
        """Add positions [stack, positions, inputs]."""
        for tile in map(_precise, x.split(TILE, 1)):
            if not self.count:
                self.x0 = tile.mean(1).double()
            self.count += tile.shape[1]
            near = tile - self.x0[:, None].to(tile)
            self.x += near.sum(1, dtype=torch.float64)
            if self._xx is None and self.count <= FEW * x.shape[2]:
                self.tiles.append(near)
            else:
                xx = self.xx
                xx += (near.mT @ near).double()

    def copy(self) -> "InputSums":
        """The same sums, to be added to by themselves."""
        twin = copy.copy(self)
        twin.x, twin.tiles = self.x.clone(), [*self.tiles]
        twin._xx = None if self._xx is None else self._xx.clone()
        return twin

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
        found.count, found.x0, found.x, found._xx = int(terms["count"]), x0, terms["x"], terms["xx"]
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
        self._y, self._yy = zeros(outputs), zeros(outputs)
        self._tiles: list[tuple[Tensor, Tensor]] = []
        self._summed: Tensor | None = None

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
        self.inputs = self.inputs.copy()

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
        found._r, found._rr, found._summed = terms["r"], terms["rr"], terms["xr"]
        found._y, found._yy = terms["y"], terms["yy"]
        return found

    def _add(self, x: Tensor, r: Tensor, y: Tensor) -> None:
        if not self.count:
            self._x0, self._y0 = self.inputs.x0, y.mean(1).double()
        x, y = x - self._x0[:, None].to(x), y - self._y0[:, None].to(y)
        self.count += x.shape[1]
        self._r += r.sum(1, dtype=torch.float64)
        self._y += y.sum(1, dtype=torch.float64)
        self._rr += r.double().square().sum(1)
        self._yy += y.double().square().sum(1)
        if self._summed is None and self.count <= FEW * x.shape[2]:
            # The sums over inputs hold the same tile.
            held = self.inputs.tiles[len(self._tiles) :][:1] if self.inputs.x0 is self._x0 else []
            self._tiles.append((held[0] if held else x, r))
        else:
            xr = self._xr
            xr += (x.mT @ r).double()

    @property
    def _xr(self) -> Tensor:
        """Sum of products of x, counted from where it is, and r."""
        if self._summed is None:
            self._summed = self._r.new_zeros(*self._x0.shape, self._r.shape[1])
            for x, r in self._tiles:
                self._summed += (x.mT @ r).double()
            self._tiles = []
        return self._summed

    @property
    def is_few(self) -> bool:
        """Whether the positions themselves are there."""
        return bool(self._tiles)

    def positions(self, *, is_centred: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """The positions, in double precision and tile by tile: x [stack, positions, inputs], r [.., outputs].

        Args:
            is_centred: whether means are taken off both.
        """
        x0, r0 = (self._x0 - self.mean, self.r) if is_centred else (self._x0, torch.zeros_like(self._r))
        for x, r in ((x, r) for tiles in self._tiles for x, r in zip(*(t.split(ROWS, 1) for t in tiles), strict=True)):
            # Not in place: of a model in double precision, double() is what is kept, not a copy.
            yield x.double() + x0[:, None], r.double() - r0[:, None]

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
        xr, mean = self._xr, self.mean
        xr.baddbmm_((mean - self._x0)[:, :, None], self._r[:, None], alpha=-1)
        self._x0 = mean
        return xr

    @property
    def spread(self) -> Tensor:
        """Sum of squares of x, centred, [stack, inputs]."""
        if not self.is_few:
            return self.xx.diagonal(dim1=1, dim2=2)
        return torch.stack([x.square_().sum(1) for x, _ in self.positions(is_centred=True)]).sum(0)

    @property
    def rr(self) -> Tensor:
        """Sum of squares of r, centred, [stack, outputs]."""
        return (self._rr - self._r.square() / self.count).clamp(min=0)

    @property
    def yy(self) -> Tensor:
        """Sum of squares of y, centred, [stack, outputs]."""
        return (self._yy - self._y.square() / self.count).clamp(min=0)

    @property
    def is_finite(self) -> bool:
        """Whether all that was added is."""
        sums = [self.inputs.x, self._r, self.yy]
        sums += [self.spread] if self.is_few else [self.xx, self.xr]
        return all(bool(torch.isfinite(t).all()) for t in sums)

    def error(self, change: Tensor, shift: Tensor) -> float:
        """Sum over positions and outputs of ``|r - change^T x - shift|^2``, as a share of the variance of y.

        Args:
            change: [stack, inputs, outputs].
            shift: [stack, outputs].
        """
        if not bool(change.any()):
            return self._error_of(self.rr, self.r - shift)
        if self.is_few:
            left = torch.zeros_like(self._r)
            for x, r in self.positions(is_centred=False):
                left += r.sub_(shift[:, None]).baddbmm_(x, change, alpha=-1).square_().sum(1)
            return self._error_of(left, torch.zeros_like(left))
        left, xx, xr = self.rr, self.xx, self.xr
        for some in map(slice, range(0, change.shape[2], TILE), range(TILE, change.shape[2] + TILE, TILE)):
            part = change[:, :, some]
            left[:, some] += torch.baddbmm(xr[:, :, some], xx, part, beta=-2).mul_(part).sum(1)
        return self._error_of(left, self.r - (self.mean[:, None] @ change)[:, 0] - shift)

    def _error_of(self, left: Tensor, mean: Tensor) -> float:
        """From the centred squares and the means of what is left, both [stack, outputs]."""
        total = left.clamp(min=0).sum() + self.count * mean.square().sum()
        return float(total / self.yy.sum().clamp(min=torch.finfo(torch.float64).tiny))
