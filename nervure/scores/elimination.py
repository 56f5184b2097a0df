"""Which units their readers can do without, in which order, and at what price, if the units that stay take over.

A reader says ``y = W x``. Where the inputs R go and the weights of all others are refitted by least squares, it loses
``tr(W_R (Theta_RR)^-1 W_R^T)`` of its output, with Theta the inverse of the second moments of x (the optimal brain
surgeon, Hassibi and Stork, 1993, for all weights of an input at once). Then Theta and W are those of the others:

    Theta <- Theta - Theta_:R (Theta_RR)^-1 Theta_R:        W <- W - W_R (Theta_RR)^-1 Theta_R:

so units can leave one after the other, the cheapest first: backward elimination.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from torch import Tensor

CANDIDATES = 512
"""Inputs that are looked at between two updates of all."""
LEAST = 16
"""Units that are looked at, at least."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class ReaderProblem:
    """What reads units.

    Attributes:
        weight: [outputs, inputs], scaled so that the squares of what it loses are comparable.
        moments: second moments of what enters, with a ridge: [inputs, inputs], positive definite.
        columns: the inputs that each unit holds, -1: none. Shape [units, most inputs of a unit].
        view: of which view of the data, by number, the moments are.
    """

    weight: Tensor
    moments: Tensor
    columns: Tensor
    view: int = 0


class Elimination(NamedTuple):
    """The order in which units leave, and by how much each raises what readers have lost. Both [units]."""

    order: Tensor
    costs: Tensor


def eliminate(readers: Sequence[ReaderProblem], units: int, candidates: int = CANDIDATES) -> Elimination:
    """Remove unit after unit, always the one that its readers miss least once the others have taken over.

    Units that are dear now are not looked at again until those that are cheap have gone: a block ends where one of
    these has become dearer than the cheapest of the others was.

    Args:
        readers: all that read any of the units; what they lose is summed. Of several views of the data the one in which
            a unit costs most counts.
        units: how many there are.
        candidates: how many inputs are looked at in a block; the more, the closer to the greedy order.
    """
    states = [_RefittedReader.of(reader) for reader in readers]
    alive = torch.ones(units, dtype=torch.bool)
    order, costs = list[int](), list[float]()
    width = max((reader.columns.shape[1] for reader in readers), default=1)
    block = max(LEAST, candidates // width)
    while alive.any():
        (left,) = alive.nonzero(as_tuple=True)
        prices = _price(states, left)
        ranked = torch.argsort(prices, stable=True)
        chosen, others = left[ranked[:block]], prices[ranked[block:]]
        limit = float(others[0]) if len(others) else float("inf")
        gone, paid = _eliminate_block([state.part(chosen) for state in states], len(chosen), limit)
        removed = chosen[gone]
        for state in states:
            state.remove(removed)
        alive[removed] = False
        order += removed.tolist()
        costs += paid
    return Elimination(torch.tensor(order, dtype=torch.long), torch.tensor(costs, dtype=torch.float64))


def entry_prices(reader: ReaderProblem) -> Tensor:
    """What each output loses where one unit alone no longer reaches it, and the others take over. [outputs, units]."""
    return _RefittedReader.of(replace(reader, weight=reader.weight[:1])).prices_of(reader.weight.double())


def _eliminate_block(states: list["_RefittedReader"], units: int, limit: float) -> tuple[list[int], list[float]]:
    """Units of a block in the order in which they leave, as long as they cost no more than ``limit``."""
    here, gone, paid = torch.arange(units), list[int](), list[float]()
    most = units if limit == float("inf") else max(1, units // 2)
    alive = torch.ones(units, dtype=torch.bool)
    while len(gone) < most:
        prices = _price(states, here)
        prices[~alive] = float("inf")
        unit = int(prices.argmin())
        price = float(prices[unit])
        if gone and price > limit:
            break
        for state in states:
            state.take(unit)
        alive[unit] = False
        gone.append(unit)
        paid.append(price)
    return gone, paid


def _price(states: Iterable["_RefittedReader"], units: Tensor) -> Tensor:
    """What each of these units costs now, over all readers, in the view where it costs most. Shape [units]."""
    views: dict[int, Tensor] = {}
    for state in states:
        price = state.prices(units).cpu()
        views[state.view] = views[state.view] + price if state.view in views else price
    found = torch.stack(list(views.values())) if views else torch.zeros(1, len(units), dtype=torch.float64)
    return found.amax(0)


@final
class _RefittedReader:
    """A reader as it is by now: the inverse moments and the refitted weights of the inputs that are left.

    Behind the inputs stand as many that nothing enters as a unit has inputs: those of units that hold fewer.
    """

    def __init__(self, theta: Tensor, weight: Tensor, columns: Tensor, is_real: Tensor, view: int) -> None:
        self.view = view
        self._theta, self._weight, self._columns, self._is_real = theta, weight, columns, is_real

    @staticmethod
    def of(reader: ReaderProblem) -> "_RefittedReader":
        inputs, width = len(reader.moments), reader.columns.shape[1]
        weight = reader.weight.double()
        if len(weight) > inputs:
            weight = torch.linalg.qr(weight, mode="r").R
        theta = torch.eye(inputs + width, dtype=torch.float64, device=weight.device)
        theta[:inputs, :inputs] = torch.cholesky_inverse(torch.linalg.cholesky(reader.moments.double()))
        columns = reader.columns.to(weight.device)
        places = torch.arange(inputs + width, device=weight.device)
        whole = torch.cat([weight, weight.new_zeros(len(weight), width)], 1)
        return _RefittedReader(
            theta, whole, torch.where(columns < 0, places[inputs:], columns), places < inputs, reader.view
        )

    def prices(self, units: Tensor) -> Tensor:
        """What each of these units costs now. Shape [units]."""
        return self._entries(self._columns[units.to(self._columns.device)], self._weight).sum(1)

    def prices_of(self, weight: Tensor) -> Tensor:
        """What each output of these weights loses with each unit. Shape [outputs, units]."""
        width = len(self._theta) - weight.shape[1]
        return self._entries(self._columns, torch.cat([weight, weight.new_zeros(len(weight), width)], 1)).T

    def _entries(self, columns: Tensor, weight: Tensor) -> Tensor:
        """What each output loses with the units that hold these columns. Shape [units, outputs]."""
        if columns.shape[1] == 1:
            at = columns[:, 0]
            return weight[:, at].square().T / self._theta[at, at][:, None]
        blocks = self._theta[columns[:, :, None], columns[:, None]]
        half: Tensor = torch.linalg.solve_triangular(
            torch.linalg.cholesky(blocks), weight[:, columns].permute(1, 2, 0), upper=False
        )
        return half.square().sum(1)

    def part(self, units: Tensor) -> "_RefittedReader":
        """The same with these units alone."""
        columns = self._columns[units.to(self._columns.device)]
        used, inverse = torch.unique(columns, return_inverse=True)
        theta, weight = self._theta[used[:, None], used], self._weight[:, used]
        return _RefittedReader(theta, weight, inverse.reshape(columns.shape), self._is_real[used], self.view)

    def take(self, unit: int) -> None:
        """A unit leaves; its place stays, and costs nothing."""
        gone = self._held(self._columns[unit])
        self._update(gone)
        self._theta[gone] = 0
        self._theta[:, gone] = 0
        self._theta[gone, gone] = 1
        self._weight[:, gone] = 0

    def remove(self, units: Tensor) -> None:
        """Units leave with their places."""
        gone = self._held(self._columns[units.to(self._columns.device)])
        self._update(gone)
        stays = torch.ones(len(self._theta), dtype=torch.bool, device=gone.device)
        stays[gone] = False
        (kept,) = stays.nonzero(as_tuple=True)
        self._theta, self._weight = self._theta[kept[:, None], kept], self._weight[:, kept]
        self._columns = (torch.cumsum(stays, 0) - 1)[self._columns].clamp(min=0)
        self._is_real = self._is_real[kept]

    def _held(self, columns: Tensor) -> Tensor:
        """Those of these columns that something enters."""
        found = columns.reshape(-1)
        return found[self._is_real[found]]

    def _update(self, gone: Tensor) -> None:
        if not len(gone):
            return
        factor = torch.linalg.cholesky(self._theta[gone[:, None], gone])
        share = torch.cholesky_solve(self._theta[gone], factor)
        self._weight -= self._weight[:, gone] @ share
        self._theta -= self._theta[:, gone] @ share
