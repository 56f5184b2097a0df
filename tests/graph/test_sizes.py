"""Integers that say where they come from, through all that Python does with them; what loses that is never believed."""

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nervure import Cut, Graph, Keep, Plan, apply, trace
from nervure.graph.sizes import Attribute, Expression, Size, noting_numbers, plain

WIDTH = 8


class Scaled(nn.Module):
    """Reads its width, once as a size and once in ``number``, which makes a scale of it."""

    def __init__(self, number: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.width, self.number = WIDTH, number
        self.up, self.down = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        units = self.up(x).relu().view(x.shape[0], self.width)
        return self.down(units * self.number(self.width, units))


def _listed(table: str) -> list[str]:
    return [text.strip() for line in table.splitlines() for text in line.split(";") if text.strip()]


def _rate(text: str) -> Callable[[Any, Tensor], Any]:
    names = {"np": np, "math": math, "operator": operator, "torch": torch, "reduce": reduce}
    made: Callable[[Any, Tensor], Any] = eval(f"lambda w, x: {text}", names)
    return made


NUMBERS = """
float(w)**-.5; int(w)**-.5; 1/round(w); 1/(w >> 1); 1/(w << 1); 1.0/(-w); 1/divmod(w, 2)[0]; 1/divmod(99, w)[0]
1/abs(w); 1/torch.tensor(w); 1/int(str(w)); 1/len(range(w)); 1/np.sqrt(w); 1/w.bit_length(); 1/operator.index(w)
1/int(f"{w:d}"); 0.5*w; 1.0/w; 2.0-w; 2.0**-w; w**-1; w**2; math.sqrt(w); math.log(w); 1/math.gcd(w, 16)
math.isqrt(w*w); math.comb(w, 2); 1/len([0]*w); 1/len("a"*w); 1/sum([w, 1]); 1/max(w, 4); min(w, 99)/9
{8: 0.1}.get(w, 0.2); [.1]*7 + [.2][0:w-7] and .1*w; (w & 4) + 1; (w | 1)*.1; (w ^ 3)*.1; ~w*.1
0.1 if w == 8 else 0.2; 0.1 if w > 7 else 0.2; 0.1 if w % 8 else 0.2; w.real*.1; 1/complex(w).real
np.float32(2)*float(w); float(np.array(w))*.1; float(np.arange(w).sum()); float(np.float64(2)*w); torch.full((1,), w)
torch.full((1,), fill_value=w*.1); torch.arange(w).sum(); torch.ones(1)*w; torch.ones(1).new_full((1,), w)
1/x.numel(); x.size(0)/x.nelement(); 1/len(x.t()); 1/x.shape.numel(); 1/x.stride(0); 1/x.shape[1]; 1.0/x.size(-1)
.1*len(x[0]); 1/torch.broadcast_shapes((1, w), (2, 1))[1]; int(0.25*w)*.1; w.to_bytes(2, "big")[1]*.1
reduce(operator.mul, [w], 1)*.1; float(torch.from_numpy(np.full(2, 0.1*w))[0])
"""


@pytest.mark.parametrize("text", _listed(NUMBERS))
def test_a_width_that_is_used_as_a_number_is_not_offered(text: str) -> None:
    torch.manual_seed(0)
    assert trace(Scaled(_rate(text)).eval(), torch.randn(2, 4))["up"].is_pinned


HARMLESS = """
1 + 0*len(range(w)); 1 if w else 2; 1 if w > 0 else 2; 1 if w == x.size(1) else 2; 1 if w == w else 2
1 if hash(w) else 2; 1 if str(w) else 2; sum(1 for _ in range(w))*0 + 1
"""


@pytest.mark.parametrize("text", _listed(HARMLESS))
def test_a_number_that_nothing_depends_on_costs_no_freedom(text: str) -> None:
    torch.manual_seed(0)
    model, x = Scaled(_rate(text)).eval(), torch.randn(2, 4)
    assert _error(model, trace(model, x), x) < 1e-6


class Viewed(nn.Module):
    """A size in a view, as ``size`` makes it of the width that the module keeps."""

    def __init__(self, size: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.width, self.size = WIDTH, size
        self.up, self.down = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        units = self.up(x).relu()
        return self.down(units.reshape(x.shape[0], self.size(self.width, units)))


SIZES = """
+w; -(-w); abs(w); round(w); math.floor(w); math.ceil(w); math.trunc(w); w << 1 >> 1; (w << 2) // 4; max(w, 1)
min(w, 99); sum([w]); math.prod([w]); reduce(operator.mul, [w], 1); divmod(w, 1)[0]; divmod(2*w + 1, 2)[0]; 2*w - w
x.shape[1]; x.numel() // x.size(0); x.nelement() // len(x); x.shape.numel() // x.size(0)
"""


@pytest.mark.parametrize("text", _listed(SIZES))
def test_a_size_that_stays_a_size_follows_the_cut(text: str) -> None:
    torch.manual_seed(0)
    model, x = Viewed(_rate(text)).eval(), torch.randn(2, 4)
    assert _error(model, trace(model, x), x) < 1e-6


def _error(model: Any, graph: Graph, x: Tensor) -> float:
    """How far the cut model is from the one whose odd units are silenced."""
    assert not graph["up"].pinned
    keep = torch.arange(WIDTH) % 2 == 0
    smaller = apply(model, graph, Plan((Cut("up", Keep.of(keep)),), graph.fingerprint))
    right = model.down(model.up(x).relu() * keep)
    return float((smaller(x) - right).abs().max().detach() / right.abs().max().detach())


def test_what_is_lost_is_found_without_weights_too() -> None:
    with torch.device("meta"):
        model, x = Scaled(_rate("0.5*w")).eval(), torch.randn(2, 4)
    assert any("1 groups could not be tried without weights: up" in note for note in trace(model, x).notes)


def test_sizes_are_plain_numbers_after_their_tracing() -> None:
    with noting_numbers():
        size = Size.of(Expression(6, attribute=Attribute("", "width")))
        assert isinstance(size + 1, Size)
    assert type(size + 1) is int
    assert type(-size) is int
    with noting_numbers() as later:
        assert size * 2 == 12
        assert float(size) == 6
        assert str(size) == "6"
    assert not later.numbers
    assert not later.attributes


def test_sizes_lie_to_what_does_not_ask_and_to_nothing_else() -> None:
    leaf = Expression(6, attribute=Attribute("", "width"))
    with noting_numbers(lies=frozenset([leaf])):
        size = Size.of(leaf)
        assert len(range(size)) != 6
        assert (size + 1, size // 2, str(size), int(size), hash(size)) == (7, 3, "6", 6, hash(6))
        assert plain([size, (size,), {"a": size}, slice(None, size)]) == [6, (6,), {"a": 6}, slice(None, 6)]
        assert len(range(size // 2)) != 3


class Remembering(Viewed):
    """Remembers what it saw, outside of its attributes too."""

    def __init__(self) -> None:
        super().__init__(lambda w, x: x.shape[1])
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.seen.append(self.up(x).shape[1])
        return out


def test_what_a_model_remembers_of_its_sizes_is_true() -> None:
    model = Remembering().eval()
    assert not trace(model, torch.randn(2, 4))["up"].pinned
    assert {len(range(n)) for n in model.seen} <= {WIDTH}
