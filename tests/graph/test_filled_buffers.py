"""Buffers made with a width that the module keeps, and filled by slices: the width follows the cut."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from nervure import Cut, Keep, Plan, apply, trace, verify
from tests.networks import seeded

WIDE, NARROW, MODES = 6, 4, 3


class Spectral(nn.Module):
    """The lowest frequencies of a signal, each mixed by a matrix of its own."""

    def __init__(self, axes: int, maker: str, are_pairs: bool = False) -> None:
        super().__init__()
        self.width, self.axes, self.maker, self.are_pairs = NARROW, axes, maker, are_pairs
        shape = (WIDE, NARROW, *[MODES] * axes)
        self.low = nn.Parameter(torch.randn(*shape, 2) if are_pairs else torch.randn(shape, dtype=torch.cfloat))
        self.high = nn.Parameter(torch.randn(*shape, 2) if are_pairs else torch.randn(shape, dtype=torch.cfloat))

    def mixed(self, x: Tensor, weight: Tensor) -> Tensor:
        weight = torch.view_as_complex(weight) if self.are_pairs else weight
        return torch.einsum("bix,iox->box" if self.axes == 1 else "bixy,ioxy->boxy", x, weight)

    def made(self, f: Tensor) -> Tensor:
        size = (f.size(0), self.width, *f.shape[2:])
        match self.maker:
            case "new_zeros":
                return f.new_zeros(size)
            case "empty":
                return torch.empty(size, dtype=torch.cfloat).zero_()
            case "full":
                return torch.full(size, 0.0, dtype=torch.cfloat)
            case _:
                return torch.zeros(*size, dtype=torch.cfloat)

    def forward(self, x: Tensor) -> Tensor:
        axes = list(range(2, 2 + self.axes))
        f = torch.fft.rfftn(x, dim=axes)
        out = self.made(f)
        if self.axes == 1:
            out[:, :, :MODES] = self.mixed(f[:, :, :MODES], self.low)
        else:
            out[:, :, :MODES, :MODES] = self.mixed(f[:, :, :MODES, :MODES], self.low)
            out[:, :, -MODES:, :MODES] = self.mixed(f[:, :, -MODES:, :MODES], self.high)
        return torch.fft.irfftn(out, s=x.shape[2:], dim=axes)


@pytest.mark.parametrize("maker", ["zeros", "new_zeros", "empty", "full"])
@pytest.mark.parametrize("are_pairs", [False, True], ids=["complex", "pairs"])
@pytest.mark.parametrize("axes", [1, 2])
def test_the_channels_of_a_fourier_operator_are_cut(axes: int, are_pairs: bool, maker: str) -> None:
    conv = nn.Conv1d if axes == 1 else nn.Conv2d
    model = seeded(
        lambda: nn.Sequential(conv(2, WIDE, 1), Spectral(axes, maker, are_pairs), nn.GELU(), conv(NARROW, 3, 1))
    ).eval()
    _all_are_cut_right(model, torch.randn(2, 2, *[10] * axes), {WIDE, NARROW})


class Halves(nn.Module):
    """Two layers write the two halves of a buffer; a third of the places stays empty."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.width, self.where = 3, where
        self.a, self.b, self.out = nn.Conv1d(2, 3, 1), nn.Conv1d(2, 3, 1), nn.Conv1d(6 if where == "units" else 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "units":
            made = x.new_zeros(x.shape[0], 2 * self.width, x.shape[2])
            made[:, : self.width], made[:, self.width :] = self.a(x), self.b(x)
        else:
            made = torch.zeros(x.shape[0], self.width, 3 * x.shape[2])
            made[..., : x.shape[2]], made[..., -x.shape[2] :] = self.a(x), self.b(x)
        y: Tensor = self.out(made.relu())
        return y


@pytest.mark.parametrize("where", ["units", "places"])
def test_units_written_side_by_side_or_to_other_places_are_cut(where: str) -> None:
    _all_are_cut_right(seeded(lambda: Halves(where)).eval(), torch.randn(2, 2, 4), {3})


class Circular(nn.Module):
    """Padding that makes a buffer of its own on its way: its sizes are not those that the padding was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.pads, self.a, self.b = [1, 1], nn.Conv1d(2, 6, 1), nn.Conv1d(6, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(nn.functional.pad(self.a(x), self.pads, mode="circular"))
        return y


def test_a_call_that_fills_a_buffer_of_its_own_leaves_its_arguments_alone() -> None:
    graph = trace(seeded(Circular).eval(), torch.randn(2, 2, 5))
    assert not graph["a"].pinned
    assert not graph.resizes


def _all_are_cut_right(model: nn.Module, x: Tensor, sizes: set[int]) -> None:
    graph = trace(model, x)
    assert {g.size for g in graph.prunable} >= sizes, graph.describe()
    cuts = tuple(Cut(g.name, Keep.of(torch.arange(g.size) % 2 == 0)) for g in graph.prunable)
    plan = Plan(cuts, graph.fingerprint)
    smaller = apply(model, graph, plan)
    assert verify(model, SimpleNamespace(model=smaller, graph=graph, plan=plan), x)
