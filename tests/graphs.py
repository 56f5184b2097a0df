"""Graphs drawn by hand, so that what reads a graph is tested without tracing."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from nervure.graph.types import Axis, Graph, Group, OpCost, Part, Role, TensorAxis, Units

KERNEL, AREA = 9, 16


class Sketch:
    """Collects convolutions (3x3, on a 4x4 picture, with bias) and what they read and write, then becomes a Graph."""

    def __init__(self) -> None:
        self.axes: list[Axis] = [Axis(3)]
        self.groups: dict[str, tuple[int, str]] = {}
        self.slots: dict[str, list[TensorAxis]] = {}
        self.tensors: dict[str, tuple[int, ...]] = {}
        self.work: list[OpCost] = []

    def group(self, name: str, size: int, pinned: str = "") -> int:
        """A new group and an axis that is just its units; returns the axis."""
        self.groups[name] = (size, pinned)
        self.slots[name] = []
        return self.axis(size, (name, Units(range(size))))

    def axis(self, size: int, *parts: Part) -> int:
        """A new axis; returns its index."""
        self.axes.append(Axis(size, parts))
        return len(self.axes) - 1

    def joined(self, *names: str) -> int:
        """The axis of a concatenation of whole groups."""
        sizes = [self.groups[name][0] for name in names]
        total, parts, start = sum(sizes), [], 0
        for name, size in zip(names, sizes, strict=True):
            units = [-1] * start + list(range(size)) + [-1] * (total - start - size)
            parts.append((name, Units(units)))
            start += size
        return self.axis(total, *parts)

    def conv(self, name: str, reads: int, writes: int) -> None:
        """A convolution from axis to axis."""
        three = self.axis(3)
        self.tensors[f"{name}.weight"] = (writes, reads, three, three)
        self.tensors[f"{name}.bias"] = (writes,)
        self._slot(f"{name}.weight", 0, "writer", writes)
        self._slot(f"{name}.bias", 0, "rider", writes)
        self._slot(f"{name}.weight", 1, "reader", reads)
        self.work.append(OpCost(name, "conv2d", AREA * KERNEL, (writes, reads)))

    def _slot(self, tensor: str, axis: int, role: Role, index: int) -> None:
        for group, units in self.axes[index].parts:
            self.slots[group].append(TensorAxis(tensor, axis, role, units))

    def graph(self) -> Graph:
        """The finished picture."""
        groups = [
            Group(name, size, "channels", tuple(self.slots[name]), pinned)
            for name, (size, pinned) in self.groups.items()
        ]
        return Graph(
            groups=tuple(groups),
            axes=tuple(self.axes),
            tensors=self.tensors,
            parameters=tuple(self.tensors),
            work=tuple(self.work),
        )


def chain(*sizes: int) -> Graph:
    """Convolutions one after the other, named "0", "1", ...; the last writes the output and is pinned."""
    sketch = Sketch()
    reads = 0
    for index, size in enumerate(sizes):
        pinned = "it is the output" if index == len(sizes) - 1 else ""
        writes = sketch.group(str(index), size, pinned)
        sketch.conv(str(index), reads, writes)
        reads = writes
    return sketch.graph()


def chain_model(*sizes: int, seed: int = 0) -> nn.Sequential:
    """The model of :func:`chain` with global pooling at its end."""
    torch.manual_seed(seed)
    widths = (3, *sizes)
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def residual(width: int, inner: Sequence[int]) -> Graph:
    """A stem, blocks of two convolutions beside a shortcut, and a head; second convolutions write the stem's units."""
    sketch = Sketch()
    trunk = sketch.group("stem", width)
    sketch.conv("stem", 0, trunk)
    for index, size in enumerate(inner):
        hidden = sketch.group(f"block{index}.a", size)
        sketch.conv(f"block{index}.a", trunk, hidden)
        sketch.conv(f"block{index}.b", hidden, trunk)
    sketch.conv("head", trunk, sketch.group("head", 10, "it is the output"))
    return sketch.graph()


def dense(stem: int, growth: Sequence[int]) -> Graph:
    """Each layer reads the concatenation of all layers before it."""
    sketch = Sketch()
    sketch.conv("stem", 0, sketch.group("stem", stem))
    names = ["stem"]
    for index, size in enumerate(growth):
        reads = sketch.joined(*names)
        names.append(f"layer{index}")
        sketch.conv(names[-1], reads, sketch.group(names[-1], size))
    sketch.conv("head", sketch.joined(*names), sketch.group("head", 10, "it is the output"))
    return sketch.graph()


def heads(number: int, width: int) -> Graph:
    """Positions that live only while their head and their place inside the heads live, and a unit of uneven width."""
    sketch = Sketch()
    sketch.groups |= {"heads": (number, ""), "widths": (width, "")}
    sketch.slots |= {"heads": [], "widths": []}
    grid = [(h, w) for h in range(number) for w in range(width)]
    both = sketch.axis(len(grid), ("heads", Units([h for h, _ in grid])), ("widths", Units([w for _, w in grid])))
    sketch.conv("in", 0, both)
    uneven = sketch.axis(6, ("uneven", Units([0, 0, 0, 1, 1, 2])))
    sketch.groups["uneven"], sketch.slots["uneven"] = (3, ""), []
    sketch.conv("mid", both, uneven)
    sketch.conv("out", uneven, sketch.group("out", 4, "it is the output"))
    return sketch.graph()


def weights_of(graph: Graph, seed: int = 0) -> dict[str, Tensor]:
    """Normal weights of the shapes that the graph says."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn([graph.axes[axis].size for axis in axes], generator=generator)
        for name, axes in graph.tensors.items()
    }
