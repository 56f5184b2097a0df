"""Random small networks, and how many of their units can be cut according to a count of its own.

A network is a program: each step makes a value from earlier ones. While a program grows, :class:`Coupling` follows
which channel is tied to which, in the plainest way (one union-find over single channels), so that the number of units
that a tracer should find is known without a tracer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks import noise

KEEPS_ZERO: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh, "gelu": F.gelu, "silu": F.silu}
MOVES_ZERO: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "softplus": F.softplus}
ACTIVATIONS = KEEPS_ZERO | MOVES_ZERO


def _gate(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return first * torch.sigmoid(second)


def _shuffle(x: Tensor) -> Tensor:
    n, c = x.shape[:2]
    return x.view(n, 2, c // 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    **ACTIVATIONS,
    "add": lambda x, y: x + y,
    "multiply": lambda x, y: x * y,
    "scale": lambda x, y: x * y[:, :, None, None],
    "concat": lambda *values: torch.cat(values, 1),
    "gate": _gate,
    "shuffle": _shuffle,
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "upsample": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "average": lambda x: x.mean((2, 3)),
    "flatten": lambda x: x.flatten(1),
}


class Step(NamedTuple):
    """One step: the module or function ``name``, on the values at these places."""

    name: str
    inputs: tuple[int, ...]


class Program(nn.Module):
    """Runs ``steps`` one after another and returns the values at ``outputs``."""

    def __init__(self, layers: dict[str, nn.Module], steps: Sequence[Step], outputs: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.steps, self.outputs = tuple(steps), tuple(outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for name, inputs in self.steps:
            run = self.layers[name] if name in self.layers else FUNCTIONS[name]
            values.append(run(*(values[i] for i in inputs)))
        return tuple(values[i] for i in self.outputs)

    def __repr__(self) -> str:
        lines = [f"v{i + 1} = {self._shown(s.name)}{s.inputs}" for i, s in enumerate(self.steps)]
        return "\n".join([*lines, f"return {self.outputs}"])

    def _shown(self, name: str) -> str:
        return f"{name}:{self.layers[name]}" if name in self.layers else name


class Coupling:
    """Which channels are tied: a union-find over whole numbers."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.fixed: set[int] = set()

    def new(self, count: int) -> list[int]:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return list(range(start, start + count))

    def root(self, unit: int) -> int:
        while self.parent[unit] != unit:
            unit = self.parent[unit]
        return unit

    def tie(self, one: Sequence[int], other: Sequence[int]) -> list[int]:
        for a, b in zip(one, other, strict=True):
            self.parent[self.root(a)] = self.root(b)
        return list(one)

    def repeats(self, units: Sequence[int]) -> bool:
        """Whether two of these channels are tied already, or one is fixed."""
        roots = [self.root(unit) for unit in units]
        return len(set(roots)) < len(roots) or bool({self.root(unit) for unit in self.fixed} & set(roots))

    def free(self) -> int:
        """How many sets of tied channels can leave."""
        fixed = {self.root(unit) for unit in self.fixed}
        return len({self.root(unit) for unit in range(len(self.parent))} - fixed)


class Value(NamedTuple):
    """A value of the program: its channels' units, and its height and width (0 for a vector)."""

    units: list[int]
    size: int


@dataclass(frozen=True, repr=False)
class Generated:
    """A random network.

    Attributes:
        model: in double precision and evaluation mode.
        example: fits it.
        units: how many units can be cut; None where block structures restrict which.
        has_plain_norms: no norm takes statistics over the channels.
        keeps_zero: a channel that is zero stays so up to its readers.
    """

    model: Program
    example: Tensor
    units: int | None
    has_plain_norms: bool
    keeps_zero: bool

    def __repr__(self) -> str:
        return f"Generated(example {tuple(self.example.shape)})\n{self.model}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Let a failing example be shown as its program, without its numbers."""
        printer.text(repr(self))


class Builder:
    """A program while it grows."""

    def __init__(self, channels: int, size: int) -> None:
        self.coupling = Coupling()
        inputs = self.coupling.new(channels)
        self.coupling.fixed.update(inputs)
        self.values = [Value(inputs, size)]
        self.steps: list[Step] = []
        self.layers: dict[str, nn.Module] = {}
        self.ends: dict[str, tuple[list[int], list[int]]] = {}
        self.is_rectangular = self.has_plain_norms = self.keeps_zero = True
        self.is_split = False

    def width(self, place: int) -> int:
        return len(self.values[place].units)

    def size(self, place: int) -> int:
        return self.values[place].size

    def add(self, name: str, inputs: Sequence[int], units: list[int], size: int) -> int:
        """Append a step; returns the place of its value."""
        # Split channels beside others are pinned where one layer reads them all: right, but fewer than counted here.
        self.is_rectangular &= not (name == "concat" and self.is_split)
        self.steps.append(Step(name, tuple(inputs)))
        self.values.append(Value(units, size))
        return len(self.values) - 1

    def layer(self, module: nn.Module, place: int, units: list[int], size: int) -> int:
        """Append a step that runs a new module."""
        name = f"{type(module).__name__.lower()}{len(self.layers)}"
        self.layers[name] = module
        return self.add(name, [place], units, size)

    def unread(self) -> list[int]:
        """The places of values that no step uses."""
        used = {place for step in self.steps for place in step.inputs}
        return [place for place in range(len(self.values)) if place not in used]

    def dense(self, place: int, width: int, kernel: int = 1, stride: int = 1) -> int:
        """A convolution or linear layer: every input channel reaches every one of ``width`` new channels."""
        size, units = self.size(place), self.coupling.new(width)
        if size:
            module: nn.Module = nn.Conv2d(self.width(place), width, kernel, stride, kernel // 2)
            after = self.layer(module, place, units, (size - 1) // stride + 1)
        else:
            after = self.layer(nn.Linear(self.width(place), width), place, units, 0)
        self.ends[self.steps[-1].name] = (self.values[place].units, units)
        return after


# Each operation below appends to the builder and returns True, or returns False where it does not fit the value.
Operation = Callable[[Builder, int, st.DrawFn], bool]


def dense(b: Builder, place: int, draw: st.DrawFn) -> bool:
    stride = draw(st.sampled_from([1, 1, 1, 2])) if b.size(place) > 3 else 1
    b.dense(place, draw(st.integers(4, 9)), draw(st.sampled_from([1, 3])), stride)
    return True


def shared(b: Builder, place: int, draw: st.DrawFn) -> bool:
    """Run an earlier layer once more."""
    kinds = nn.Conv2d if b.size(place) else nn.Linear
    names = [n for n, (ins, _) in b.ends.items() if isinstance(b.layers[n], kinds) and len(ins) == b.width(place)]
    if not names:
        return False
    name = draw(st.sampled_from(names))
    inputs, outputs = b.ends[name]
    b.coupling.tie(b.values[place].units, inputs)
    stride = b.layers[name].stride[0] if b.size(place) else 1  # type: ignore[index, union-attr]
    b.add(name, [place], outputs, (b.size(place) - 1) // stride + 1 if b.size(place) else 0)
    return True


def residual(b: Builder, place: int, draw: st.DrawFn) -> bool:
    inner = b.dense(place, draw(st.integers(4, 7)), 3)
    inner = b.add("relu", [inner], b.values[inner].units, b.size(inner))
    outer = b.dense(inner, b.width(place), 3)
    b.add("add", [place, outer], b.coupling.tie(b.values[place].units, b.values[outer].units), b.size(place))
    return True


def projected(b: Builder, place: int, draw: st.DrawFn) -> bool:
    width = draw(st.integers(4, 8))
    left, right = b.dense(place, width, 3), b.dense(place, width, 1)
    b.add("add", [left, right], b.coupling.tie(b.values[left].units, b.values[right].units), b.size(left))
    return True


def pairwise(b: Builder, place: int, draw: st.DrawFn) -> bool:
    """Add or multiply two values that fit."""
    others = [
        p for p in range(len(b.values)) if p != place and (b.width(p), b.size(p)) == (b.width(place), b.size(place))
    ]
    if not others:
        return False
    other = draw(st.sampled_from(others))
    name = draw(st.sampled_from(["add", "multiply"]))
    b.add(name, [place, other], b.coupling.tie(b.values[place].units, b.values[other].units), b.size(place))
    return True


def concat(b: Builder, place: int, draw: st.DrawFn) -> bool:
    others = [p for p in range(len(b.values)) if b.size(p) == b.size(place) and b.width(p) <= 8]
    if not others or b.width(place) > 12:
        return False
    places = [place, *draw(st.lists(st.sampled_from(others), min_size=1, max_size=2))]
    b.add("concat", places, [unit for p in places for unit in b.values[p].units], b.size(place))
    return True


def activation(b: Builder, place: int, draw: st.DrawFn) -> bool:
    name = draw(st.sampled_from([*KEEPS_ZERO, *KEEPS_ZERO, *MOVES_ZERO]))
    b.keeps_zero &= name in KEEPS_ZERO
    b.add(name, [place], b.values[place].units, b.size(place))
    return True


def prelu(b: Builder, place: int, draw: st.DrawFn) -> bool:
    b.layer(nn.PReLU(b.width(place)), place, b.values[place].units, b.size(place))
    return True


def batch_norm(b: Builder, place: int, draw: st.DrawFn) -> bool:
    kind = nn.BatchNorm2d if b.size(place) else nn.BatchNorm1d
    b.layer(kind(b.width(place)), place, b.values[place].units, b.size(place))
    return True


def group_norm(b: Builder, place: int, draw: st.DrawFn) -> bool:
    if b.width(place) % 2 or not b.size(place):
        return False
    b.is_rectangular = b.has_plain_norms = b.keeps_zero = False
    b.layer(nn.GroupNorm(2, b.width(place)), place, b.values[place].units, b.size(place))
    return True


def layer_norm(b: Builder, place: int, draw: st.DrawFn) -> bool:
    if b.size(place):
        return False
    b.has_plain_norms = b.keeps_zero = False
    b.layer(nn.LayerNorm(b.width(place)), place, b.values[place].units, 0)
    return True


def depthwise(b: Builder, place: int, draw: st.DrawFn) -> bool:
    width, times = b.width(place), draw(st.sampled_from([1, 1, 2]))
    if not b.size(place) or width * times > 16:
        return False
    b.is_split |= times > 1
    units = [unit for unit in b.values[place].units for _ in range(times)]
    b.layer(nn.Conv2d(width, width * times, 3, 1, 1, groups=width), place, units, b.size(place))
    return True


def grouped(b: Builder, place: int, draw: st.DrawFn) -> bool:
    width = b.width(place)
    if width % 2 or not b.size(place):
        return False
    b.is_rectangular = False
    units = b.coupling.new(2 * draw(st.integers(2, 4)))
    b.layer(nn.Conv2d(width, len(units), 3, 1, 1, groups=2), place, units, b.size(place))
    return True


def shuffle(b: Builder, place: int, draw: st.DrawFn) -> bool:
    if b.width(place) % 2:
        return False
    b.is_rectangular = False
    half = b.width(place) // 2
    units = [b.values[place].units[i * half + j] for j in range(half) for i in range(2)]
    b.add("shuffle", [place], units, b.size(place))
    return True


def gate(b: Builder, place: int, draw: st.DrawFn) -> bool:
    half = b.width(place) // 2
    units = b.values[place].units
    # Halves that overlap, or hold channels of the input, tie all to one unit that cannot leave: nothing to count.
    if b.width(place) % 2 or half < 2 or b.coupling.repeats(units):
        return False
    b.is_split = True
    b.add("gate", [place], b.coupling.tie(units[:half], units[half:]), b.size(place))
    return True


def excitation(b: Builder, place: int, draw: st.DrawFn) -> bool:
    if not b.size(place):
        return False
    x = b.add("average", [place], b.values[place].units, 0)
    x = b.dense(x, draw(st.integers(2, 4)))
    x = b.add("relu", [x], b.values[x].units, 0)
    x = b.dense(x, b.width(place))
    x = b.add("sigmoid", [x], b.values[x].units, 0)
    b.add("scale", [place, x], b.coupling.tie(b.values[place].units, b.values[x].units), b.size(place))
    return True


def resize(b: Builder, place: int, draw: st.DrawFn) -> bool:
    if b.size(place) not in (3, 6):
        return False
    larger = b.size(place) == 3
    name = "upsample" if larger else draw(st.sampled_from(["max_pool", "avg_pool"]))
    b.add(name, [place], b.values[place].units, 6 if larger else 3)
    return True


def transposed(b: Builder, place: int, draw: st.DrawFn) -> bool:
    if b.size(place) != 3:
        return False
    units = b.coupling.new(draw(st.integers(4, 7)))
    b.layer(nn.ConvTranspose2d(b.width(place), len(units), 2, 2), place, units, 6)
    return True


def to_vector(b: Builder, place: int, draw: st.DrawFn) -> bool:
    size = b.size(place)
    if not size:
        return False
    if draw(st.booleans()) and b.width(place) * size * size <= 400:
        units = [unit for unit in b.values[place].units for _ in range(size * size)]
        # A flattened map only enters a linear layer: as an operand of later steps it would be wider than the rest.
        flat = b.add("flatten", [place], units, 0)
        b.dense(flat, draw(st.integers(4, 7)))
    else:
        b.add("average", [place], b.values[place].units, 0)
    return True


OPERATIONS: tuple[Operation, ...] = (
    dense, dense, dense, shared, residual, residual, projected, pairwise, pairwise, concat, concat, activation,
    activation, prelu, batch_norm, batch_norm, group_norm, layer_norm, depthwise, grouped, gate, excitation,
    resize, transposed, to_vector,
)  # fmt: skip


@st.composite
def networks(draw: st.DrawFn, more: tuple[Operation, ...] = ()) -> Generated:
    """Strategy: a network of 2 to 9 of OPERATIONS and ``more``, all of whose values reach an output."""
    size = draw(st.sampled_from([6, 6, 6, 0]))
    b = Builder(3 if size else 5, size)
    b.dense(0, draw(st.integers(4, 8)), 3)
    for _ in range(draw(st.integers(2, 9))):
        # The newest value mostly: networks are deeper than they are wide.
        back = draw(st.sampled_from([0, 0, 0, 1, 2]))
        place = max(1, len(b.values) - 1 - back)
        if b.width(place) <= 16:
            draw(st.sampled_from((*more, *OPERATIONS)))(b, place, draw)
    outputs = _heads(b, draw)
    model = _initialised(Program(b.layers, b.steps, outputs), draw(st.integers(0, 2**20)))
    example = (noise(2, 3, size, size) if size else noise(3, 5)).double()
    units = b.coupling.free() if b.is_rectangular else None
    return Generated(model, example, units, b.has_plain_norms, b.keeps_zero)


def _heads(b: Builder, draw: st.DrawFn) -> list[int]:
    """Let every value that nothing reads end in a linear head; sometimes two share one."""
    ends = [place for place in b.unread() if place]
    vectors = [b.add("average", [p], b.values[p].units, 0) if b.size(p) else p for p in ends]
    if len(vectors) > 1 and draw(st.booleans()):
        units = [unit for p in vectors for unit in b.values[p].units]
        vectors = [b.add("concat", vectors, units, 0)]
    outputs = [b.dense(place, 3) for place in vectors]
    for place in outputs:
        b.coupling.fixed.update(b.values[place].units)
    return outputs


def _initialised(model: Program, seed: int) -> Program:
    """Random values everywhere, of a size that keeps activations near 1."""
    model = model.double().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point():
            random = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            if name.endswith("running_var"):
                random = 0.5 + random.abs()
            elif value.ndim > 1:
                random = random * (1.5 / value[0].numel()) ** 0.5
            elif name.endswith("weight"):
                random = 1 + 0.3 * random
            else:
                random = 0.3 * random
            value.data.copy_(random)
    return model
