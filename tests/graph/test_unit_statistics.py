"""What operators over an axis of units may do when units leave: each against an answer worked out by hand.

Every row puts an operation between two layers. The answer of a right cut is written with the units that stay as a mask
over the *original* numbers: what leaves is left out of sums and statistics, and no place is counted anew.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import Cut, Plan, apply, trace, verify
from tests.networks import noise, seeded
from tests.oracle import call, difference, double

INF = float("inf")
KEEP = torch.tensor([False, True, False, True, True, False, False, True])
ROWS, UNITS = torch.arange(6), torch.arange(8)


class Between(nn.Module):
    """An operation on eight units between two layers; a table of eight rows is at hand."""

    def __init__(self, operation: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.before, self.after, self.table = nn.Linear(4, 8), nn.Linear(8, 3), nn.Embedding(8, 8)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        found = self.operation(self.before(x), self.table)
        return self.after(found) if found.is_floating_point() else found


def filled(value: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The values of the units that left, replaced."""
    return lambda y, keep: y.masked_fill(~keep, value)


def only(y: Tensor, keep: Tensor) -> Tensor:
    """The values of the units that stay, without places for others."""
    return y[:, keep]


class Row(NamedTuple):
    """An operation of the values, and of those over which it takes a statistic; what to give for these after a cut."""

    operation: Callable[[Tensor, Tensor], Tensor]
    rest: Callable[[Tensor, Tensor], Tensor]


STATISTICS = {
    "sum": Row(lambda y, s: y - s.sum(1, keepdim=True), filled(0.0)),
    "mean": Row(lambda y, s: y - s.mean(1, keepdim=True), only),
    "amax": Row(lambda y, s: y - s.amax(1, keepdim=True), only),
    "max values": Row(lambda y, s: y - s.max(1, keepdim=True).values, filled(-INF)),
    "min values": Row(lambda y, s: y - s.min(1, keepdim=True).values, filled(INF)),
    "median values": Row(lambda y, s: y - s.median(1, keepdim=True).values, only),
    "aminmax": Row(lambda y, s: y - s.aminmax(dim=1, keepdim=True).max, filled(-INF)),
    "variance": Row(lambda y, s: y / (1 + s.var(1, keepdim=True)), only),
    "standard deviation and mean": Row(lambda y, s: y / (1 + torch.std_mean(s, 1, keepdim=True)[0]), only),
    "norm": Row(lambda y, s: y / (1 + s.norm(dim=1, keepdim=True)), filled(0.0)),
    "product": Row(lambda y, s: y * (1 + s.prod(1, keepdim=True)), filled(1.0)),
    "any": Row(lambda y, s: y * (s > 1).any(1, keepdim=True), filled(0.0)),
    "all": Row(lambda y, s: y * (s > -1).all(1, keepdim=True), filled(0.0)),
    "count of non-zeros": Row(lambda y, s: y * s.relu().count_nonzero(1)[:, None], filled(0.0)),
    "log of summed exponentials": Row(lambda y, s: y - s.logsumexp(1, keepdim=True), filled(-INF)),
    "softmax": Row(lambda y, s: s.softmax(1), filled(-INF)),
    "normalised gate": Row(lambda y, s: y * s.sigmoid() / s.sigmoid().sum(1, keepdim=True), filled(-INF)),
    "cosine": Row(lambda y, s: y * F.cosine_similarity(s, s + 1, dim=1)[:, None], only),
    "running sum": Row(lambda y, s: s.cumsum(1), filled(0.0)),
    "running product": Row(lambda y, s: s.cumprod(1), filled(1.0)),
    "running log of summed exponentials": Row(lambda y, s: s.logcumsumexp(1), filled(-INF)),
    "running sum backwards": Row(lambda y, s: s.flip(1).cumsum(1).flip(1), filled(0.0)),
}
INDICES = {
    "gathered at the maximum": Row(lambda y, s: y * (2 * y).gather(1, s.max(1, keepdim=True).indices), filled(-INF)),
    "gathered at argmax": Row(lambda y, s: y * y.sin().gather(1, s.argmax(1)[:, None]), filled(-INF)),
    "gathered at argmin": Row(lambda y, s: y * y.sin().gather(1, s.argmin(1, keepdim=True)), filled(INF)),
    "indexed at the minimum": Row(lambda y, s: y * y.sin()[ROWS, s.min(1).indices][:, None], filled(INF)),
    "one hot, as long as the units": Row(lambda y, s: y * F.one_hot(s.argmax(1), y.shape[1]), filled(-INF)),
    "scattered into zeros": Row(
        lambda y, s: y + torch.zeros(6, y.shape[1]).scatter(1, s.argmax(1, keepdim=True), 1.0), filled(-INF)
    ),
    "scattered like": Row(lambda y, s: y.scatter(1, s.argmax(1, keepdim=True), 0.5), filled(-INF)),
}


STAY = {
    "looked up in a table": lambda y, table: y + table(y.max(1).indices),
    "looked up at argmin": lambda y, table: y + table(y.argmin(1)),
    "looked up at the median": lambda y, table: y + table(y.median(1).indices),
    "looked up after a way": lambda y, table: y + table(y.max(1).indices[None].expand(2, 6).clone().view(-1)[:6]),
    "returned": lambda y, table: y.argmax(1),
    "compared": lambda y, table: y * (y.argmax(1) == 3)[:, None],
    "counted with": lambda y, table: y * y.argmax(1, keepdim=True),
    "a share of a number": lambda y, table: y * (y.max(1, keepdim=True).indices / 8),
    "told in Python": lambda y, table: y * int(y[0].argmax()),
    "told to numpy": lambda y, table: y * float(y.argmax(1).numpy().sum()),
    "written": lambda y, table: y * torch.zeros(6, dtype=torch.long).copy_(y.argmax(1))[:, None],
    "written into a part": lambda y, table: y * written(y.argmax(1))[:, None],
    "beside others": lambda y, table: y * torch.cat([y.argmax(1), y.argmin(1)]).view(2, 6).sum(0)[:, None],
    "picked from a fixed axis": lambda y, table: y * torch.linspace(0, 1, 8)[y.argmax(1)][:, None],
    "picked from a longer axis": lambda y, table: y * torch.cat([y, y], 1)[ROWS, y.argmax(1)][:, None],
    "one hot of fixed classes": lambda y, table: y * F.one_hot(y.argmax(1), 8),
    "the maximum of all": lambda y, table: y + table(y.argmax() % 8),
    "ranks": lambda y, table: y.argsort(1).argsort(1) * y,
    "sorted": lambda y, table: y.sort(1).values,
    "the largest": lambda y, table: F.pad(y.topk(4, 1).values, (0, 4)),
    "places of the largest": lambda y, table: y + table(y.topk(2, 1).indices).sum(1),
    "the second smallest": lambda y, table: y - y.kthvalue(2, 1, keepdim=True).values,
    "the most frequent": lambda y, table: y - y.round().mode(1, keepdim=True).values,
    "a quantile": lambda y, table: y - y.quantile(0.3, 1, keepdim=True),
    "searched in units": lambda y, table: y + table(torch.searchsorted(y, y[:, :1].clone())[:, 0] % 8),
    "searched in sorted units": lambda y, table: y * torch.searchsorted(y.cummax(1).values, torch.zeros(6, 1)),
    "in buckets of units": lambda y, table: y * torch.bucketize(torch.zeros(6, 1), y[0].cummax(0).values),
    "places that are not zero": lambda y, table: y * (y > 0).nonzero()[:, 1].sum(),
    "different values": lambda y, table: y * torch.unique(y.round(), return_inverse=True)[1],
    "a histogram": lambda y, table: y * torch.histc(y, 4).max(),
    "drawn": lambda y, table: y + table(torch.multinomial(y.softmax(1), 1)[:, 0]),
    "rotated": lambda y, table: y.roll(1, 1),
    "neighbours": lambda y, table: F.local_response_norm(y[:, :, None], 3)[:, :, 0],
    "numbered": lambda y, table: y * torch.ones_like(y).cumsum(1),
    "numbered by a range": lambda y, table: y * torch.arange(y.shape[1]),
    "numbered by zeros": lambda y, table: y * (torch.zeros(y.shape[1]) + 1).cumsum(0),
    "a mask of two axes": lambda y, table: y[(UNITS % 2 == 0).expand(6, 8)].view(3, 8),
    "a narrowing to all": lambda y, table: y.narrow(1, 0, 8),
    "a split into one": lambda y, table: y.split([8], 1)[0],
}


def written(values: Tensor) -> Tensor:
    target = torch.zeros(6, dtype=torch.long)
    target[1:4] = values[1:4]
    return target


@pytest.mark.parametrize("name", [*STATISTICS, *INDICES])
def test_a_statistic_over_units_is_taken_over_those_that_stay(name: str) -> None:
    row = {**STATISTICS, **INDICES}[name]
    model, x = double(seeded(lambda: Between(lambda y, _: row.operation(y, y)))), noise(6, 4).double()
    graph = trace(model, x)
    assert not graph["before"].pinned, graph["before"].pinned
    assert graph["before"].notes
    plan = Plan((Cut("before", KEEP),), graph.fingerprint)
    smaller = apply(model, graph, plan)
    with torch.no_grad():
        y = model.before(x)
        expected = model.after(row.operation(y, row.rest(y, KEEP)).masked_fill(~KEEP, 0.0))
    assert difference(expected, call(smaller, x)) < 1e-9
    assert verify(model, SimpleNamespace(model=smaller, graph=graph, plan=plan), x)


@pytest.mark.parametrize("name", STAY)
def test_units_stay_where_their_places_are_used_as_numbers(name: str) -> None:
    graph = trace(seeded(lambda: Between(STAY[name])), noise(6, 4))
    assert graph["before"].pinned
