"""Places for skip connections: from what one layer is given to what another makes, before its non-linearity.

In a chain of layers a skip jumps as many as is asked for; across a residual block there is one, from what enters it to
the sum behind it. Places are read off the tape, never off a list of layers.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import final

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from nervure.graph.blocks import DefUse, residual
from nervure.graph.ops.table import find_operator
from nervure.graph.tape import Entry, ModuleCall, Ref
from nervure.graph.trace import TraceResult

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.Identity, nn.modules.instancenorm._InstanceNorm)
PASSED = ("add", "pool", "batch norm", "view")
"""Families of operators that may stand between a sum and its non-linearity."""
FAR = 6
MAPS = len(("batch", "channels", "positions"))


@final
@dataclass(frozen=True, slots=True)
class SkipSite:
    """Where a skip connection fits.

    Attributes:
        reads: the module that is given the source.
        joins: the module that puts out the target, or what is added to make it.
        layer: the last layer with weights before the target.
        inputs: channels of the source.
        outputs: channels of the target.
        kernel: sides of the layer's kernel, odd; empty for a linear layer.
        stride: steps that bring the source to the size of the target; empty for a linear layer.
        span: how many layers it jumps.
        activation: the non-linearity that the target goes through (the commonest in the network where there is none).
        normed: whether the target is the output of a batch norm.
    """

    reads: str
    joins: str
    layer: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    span: int
    activation: str
    normed: bool


def places(model: nn.Module, drawing: TraceResult, *, span: int = 3, reach: int | None = None) -> tuple[SkipSite, ...]:
    """The places for skip connections, in running order of their ends.

    Args:
        model: the model.
        drawing: its drawing.
        span: how many convolutions in a row a skip jumps, 2 or more.
        reach: how many linear layers in a row it jumps at most, from 2 on; None: any number.
    """
    return tuple(_SkipSiteFinder(model, drawing).found(span, reach))


@dataclass(slots=True)
class _Layer:
    """A layer with weights that runs once: the values it is given and makes, and who puts out the latter last."""

    call: ModuleCall
    module: nn.Module
    given: int
    made: int
    joins: str
    normed: bool


@dataclass(slots=True)
class _SkipSiteFinder:
    model: nn.Module
    drawing: TraceResult
    wiring: DefUse = field(init=False)
    layers: list[_Layer] = field(init=False)
    usual: str = field(init=False)

    def __post_init__(self) -> None:
        self.wiring = DefUse.of(self.drawing.flow.tape)
        self.layers = list(self._layers())
        entries = [e for e in self.wiring.tape.entries if isinstance(e, Entry)]
        used = Counter(e.name.removesuffix("_") for e in entries if self._family(e) == "activation")
        self.usual = max(used, key=used.__getitem__, default="relu")

    def found(self, span: int, reach: int | None) -> Iterator[SkipSite]:
        """All places."""
        across, inside = self._across_blocks()
        chains = self._along_chains(inside, span, reach)
        order = {call.name: call.stop for call in self.wiring.calls}
        yield from sorted((*chains, *across), key=lambda p: (order[p.joins], order[p.reads]))

    def _family(self, entry: Entry) -> str:
        return find_operator(self.wiring.tape, entry).family

    # -- layers --------------------------------------------------------------------------------------------------

    def _layers(self) -> Iterator[_Layer]:
        for call in sorted(self.wiring.calls, key=lambda c: c.start):
            module = self.model.get_submodule(call.name)
            weighty = isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd)
            if weighty and self._is_plain(call) and call.inputs[0] in self.wiring.above:
                made, joins, normed = self._skip_norms(call)
                yield _Layer(call, module, call.inputs[0], made, joins, normed)

    def _is_plain(self, call: ModuleCall) -> bool:
        """Whether a module runs once, on a tensor, and gives a tensor."""
        return call.plain and isinstance(call.form, int) and self.wiring.times[call.name] == 1

    def _skip_norms(self, call: ModuleCall) -> tuple[int, str, bool]:
        """The value behind the norms that follow a layer, who puts it out, and whether a batch norm is among them."""
        value, joins, normed = call.outputs[0], call.name, False
        while True:
            users = set(self.wiring.used.get(value, []))
            following = [
                c
                for c in self.wiring.calls
                if c.inputs[:1] == [value]
                and self._is_plain(c)
                and users <= set(range(c.start, c.stop))
                and isinstance(self.model.get_submodule(c.name), NORMS)
            ]
            if not users or not following:
                return value, joins, normed
            value, joins = following[0].outputs[0], following[0].name
            normed = normed or isinstance(self.model.get_submodule(joins), _BatchNorm)

    # -- residual blocks -----------------------------------------------------------------------------------------

    def _across_blocks(self) -> tuple[list[SkipSite], set[int]]:
        """A place for each residual block, and the values inside of blocks."""
        found, inside = [], set[int]()
        for entry in self.wiring.tape.entries:
            if not isinstance(entry, Entry) or not entry.outs or entry.outs[0].id not in self.wiring.above:
                continue
            if self._family(entry) != "add":
                continue
            branch, _ = residual(self.wiring, entry)
            if branch is None:
                continue
            weighty = [z for z in self.layers if z.call.outputs[0] in branch.values]
            if not weighty:
                continue
            total = entry.outs[0].id
            between = self.wiring.above[total] & ~self.wiring.above[branch.entry] & ~(1 << total)
            inside |= {z.call.outputs[0] for z in self.layers if between >> z.call.outputs[0] & 1}
            end = self._module_of(branch.exit, branch.values)
            start = None if end is None else self._reader_of(branch.entry, end.start)
            if end is not None and start is not None:
                last = weighty[-1]
                normed = isinstance(self.model.get_submodule(end.name), _BatchNorm) or last.normed
                layer = _Layer(last.call, last.module, branch.entry, branch.exit, end.name, normed)
                found += self._place(start.name, branch.entry, layer, len(weighty), total)
        return found, inside

    def _module_of(self, value: int, values: Iterable[int]) -> ModuleCall | None:
        """The innermost module that puts out ``value``, or what it is made of without a change of shape."""
        while True:
            calls = [c for c in self.wiring.calls if c.outputs[:1] == [value] and self._is_plain(c)]
            if calls:
                return min(calls, key=lambda c: (c.stop - c.start, -c.name.count(".")))
            sources = self.wiring.active(self.wiring.made[value])
            if len(sources) != 1 or sources[0] not in values:
                return None
            shape_of = self.wiring.tape.shape
            if shape_of(Ref(sources[0])) != shape_of(Ref(value)):
                return None
            value = sources[0]

    def _reader_of(self, value: int, before: int) -> ModuleCall | None:
        """The innermost module that is given ``value`` first, and has had it before that entry."""
        calls = [c for c in self.wiring.calls if c.inputs[:1] == [value] and c.stop <= before]

        def order(call: ModuleCall) -> tuple[int, int, int]:
            return call.start, call.stop - call.start, -call.name.count(".")

        return min(filter(self._is_plain, calls), key=order, default=None)

    # -- chains --------------------------------------------------------------------------------------------------

    def _along_chains(self, inside: set[int], span: int, reach: int | None) -> Iterator[SkipSite]:
        starts = set[int]()
        for first in self.layers:
            # Layers side by side are given the same: one of them begins for all.
            if first.call.outputs[0] in inside or first.given in starts:
                continue
            starts.add(first.given)
            for layer, jumped in self._distances(first.given, inside):
                wanted = jumped == span if isinstance(layer.module, _ConvNd) else 2 <= jumped <= (reach or jumped)
                if wanted:
                    yield from self._place(first.call.name, first.given, layer, jumped, layer.made)

    def _distances(self, start: int, inside: set[int]) -> Iterator[tuple[_Layer, int]]:
        """Layers below a value, and how many there are on the longest way to each; none behind a residual block."""
        seen: list[tuple[_Layer, int | None]] = []
        for layer in self.layers:
            above = self.wiring.above[layer.given]
            if not above >> start & 1:
                continue
            before = [far for other, far in seen if above >> other.call.outputs[0] & 1]
            is_near = layer.call.outputs[0] not in inside and None not in before
            far = 1 + max((f or 0 for f in before), default=0) if is_near else None
            seen.append((layer, far))
            if far is not None:
                yield layer, far

    # -- one place -----------------------------------------------------------------------------------------------

    def _place(self, reads: str, start: int, layer: _Layer, jumped: int, total: int) -> list[SkipSite]:
        """The place between two values; none where they are not of one kind, as before and behind a flattening."""
        source, target = (self.wiring.tape.shape(Ref(n)) for n in (start, layer.made))
        # Where a layer's own output is not the target (a block that ends in another layout), axis 1 are its channels.
        own = self.wiring.tape.shape(Ref(layer.call.outputs[0]))
        last = isinstance(layer.module, nn.Linear) and len(target) == len(own) and target[-1] == own[-1]
        if len(source) != len(target) or (last and source[:-1] != target[:-1]):
            return []
        if not last and (len(target) < MAPS or source[0] != target[0]):
            return []
        sizes = () if last else zip(source[2:], target[2:], strict=True)
        stride = tuple(_step(before, after) for before, after in sizes)
        channels = -1 if last else 1
        return [
            SkipSite(
                reads=reads,
                joins=layer.joins,
                layer=layer.call.name,
                inputs=source[channels],
                outputs=target[channels],
                kernel=_odd(layer.module, len(stride)),
                stride=stride,
                span=jumped,
                activation=self._activation(total),
                normed=layer.normed,
            )
        ]

    def _activation(self, value: int) -> str:
        """The non-linearity that a value meets next."""
        for _ in range(FAR):
            entries = [self.wiring.tape.entries[i] for i in self.wiring.used.get(value, [])]
            named = [e for e in entries if isinstance(e, Entry)]
            for entry in named:
                if self._family(entry) == "activation":
                    return entry.name.removesuffix("_")
            onward = [e.outs[0].id for e in named if self._family(e) in PASSED]
            if not onward:
                break
            value = onward[0]
        return self.usual


def _odd(module: nn.Module, axes: int) -> tuple[int, ...]:
    """The sides of a layer's kernel, one less where they are even; ones for a layer without a kernel."""
    sides: Sequence[int] = module.kernel_size if isinstance(module, _ConvNd) else ()
    return tuple(side - 1 + side % 2 for side in sides) if len(sides) == axes else (1,) * axes


def _step(source: int, target: int) -> int:
    """The step of a padded convolution that makes ``target`` positions of ``source``, or one that makes no fewer."""
    exact = [step for step in range(1, source + 1) if -(-source // step) == target]
    return exact[0] if exact else max(1, source // max(1, target))
