"""Blocks: parts of a network that can become their shortcut.

A residual branch is what lies between a value and an addition that also hears that value another way. It is read off
the tape: nothing inside is used outside, and its modules can step aside (shapes are tried on the ``meta`` device).
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import prod
from operator import or_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nervure.graph.labels import LabelArray, TensorLabels
from nervure.graph.ops.table import find_operator
from nervure.graph.propagate import LabelPropagation, argument
from nervure.graph.tape import Entry, ModuleCall, Ref, Tape, WriteBack, results_of
from nervure.graph.trace import TraceResult
from nervure.graph.types import NOT_CUT, Block, Graph, Group, ZeroStub


@dataclass(slots=True)
class DefUse:
    """Who makes and who uses each value of the first run on a tape."""

    tape: Tape
    made: dict[int, int] = field(default_factory=dict)
    used: dict[int, list[int]] = field(default_factory=dict)
    above: dict[int, int] = field(default_factory=dict)
    """For each value a bit set of the values of the run that it depends on, itself included."""
    busy: dict[int, list[int]] = field(default_factory=dict)
    calls: list[ModuleCall] = field(default_factory=list)
    busy_in: list[set[int]] = field(default_factory=list)
    """For each of the calls the entries in it that depend on the inputs."""
    times: dict[str, int] = field(default_factory=dict)
    idle: list[int] = field(default_factory=list)
    """Entries whose results nobody hears: they use nothing."""

    @staticmethod
    def of(tape: Tape) -> "DefUse":
        """Read it off a tape."""
        wiring = DefUse(tape)
        stop = tape.entries_of(0).stop
        wiring.above = {number: 1 << number for number in tape.inputs}
        heard = _heard(tape, stop)
        for index, entry in enumerate(tape.entries[:stop]):
            ins = [r.id for r in _inputs(entry)]
            is_idle = not any(out.id in heard for out in _outs(entry))
            wiring.idle += [index] if is_idle else []
            wiring.busy[index] = [] if is_idle else [n for n in ins if n in wiring.above]
            bits = 0
            for number in ins:
                wiring.used.setdefault(number, []).extend([] if is_idle else [index])
                bits |= wiring.above.get(number, 0)
            for out in entry.outs if isinstance(entry, Entry) else (entry.out,):
                wiring.made[out.id] = index
                if bits:
                    wiring.above[out.id] = bits | 1 << out.id
        wiring.calls = [c for c in tape.calls if c.stop <= stop and c.name]
        wiring.busy_in = [{i for i in range(c.start, c.stop) if wiring.active(i)} for c in wiring.calls]
        for call in wiring.calls:
            wiring.times[call.name] = wiring.times.get(call.name, 0) + 1
        return wiring

    def active(self, index: int) -> list[int]:
        """Values that entry ``index`` uses and that depend on the inputs."""
        return self.busy.get(index, [])


def _heard(tape: Tape, stop: int) -> set[int]:
    """Values that reach the outputs."""
    heard = set(tape.outputs)
    for entry in reversed(tape.entries[:stop]):
        if any(out.id in heard for out in _outs(entry)):
            heard.update(r.id for r in _inputs(entry))
    return heard


def _inputs(entry: Entry | WriteBack) -> list[Ref]:
    return [entry.base, entry.value] if isinstance(entry, WriteBack) else entry.given


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


@dataclass(frozen=True, slots=True)
class Branch:
    """Values from ``entry`` (exclusive) to ``exit`` (inclusive)."""

    entry: int
    exit: int
    values: frozenset[int]


def with_blocks(drawing: TraceResult) -> Graph:
    """The graph with every part that can be dropped, and those that cannot with the reason, in running order."""
    blocks = _blocks_of(drawing)
    return replace(drawing.graph, blocks=blocks, axes=tuple(drawing.builder.table))


def is_doubtful(drawing: TraceResult, block: Block) -> bool:
    """Whether a block must be dropped once to be believed: its modules are called in ways that may not bear it."""
    if block.kind != "module":
        return any(silence.extras >= 0 for silence in block.silences)
    calls = (call for call in drawing.flow.tape.calls if call.name in block.modules)
    return block.extras >= 0 or not all(call.plain for call in calls)


def _blocks_of(drawing: TraceResult) -> tuple[Block, ...]:
    wiring = DefUse.of(drawing.flow.tape)
    found: list[tuple[int, Block]] = []
    identity: dict[int, int] = {}
    for index, entry in enumerate(drawing.flow.tape.entries):
        if not isinstance(entry, Entry) or not entry.outs or entry.outs[0].id not in wiring.above:
            continue
        family = find_operator(wiring.tape, entry).family
        if family == "add":
            branch, shortcut_is_identity = residual(wiring, entry)
            if branch is not None:
                if shortcut_is_identity:
                    identity[entry.outs[0].id] = branch.entry
                block = _block(drawing, wiring, branch, "residual")
                found += [(index, block)] if block is not None else []
        elif family == "concatenation":
            found += [(index, b) for b in _dense(drawing, wiring, entry)]
    found = _with_elements(wiring, identity, found)
    return _name_blocks(drawing, wiring, [block for _, block in sorted(found, key=lambda item: item[0])])


def residual(wiring: DefUse, entry: Entry) -> tuple[Branch | None, bool]:
    """The branch that an addition ends (None where there is none), and whether what it is added to is its input."""
    refs = [r for r in entry.args[:2] if isinstance(r, Ref) and r.id in wiring.above]
    shape = wiring.tape.shape(entry.outs[0])
    if len(refs) != 2 or any(wiring.tape.shape(r) != shape for r in refs):
        return None, False
    common = wiring.above[refs[0].id] & wiring.above[refs[1].id]
    if not common:
        return None, False
    start = common.bit_length() - 1
    sides = [frozenset(_bits(wiring.above[r.id] & ~wiring.above[start])) for r in refs]
    branches = [
        Branch(start, r.id, side)
        for r, side in zip(refs, sides, strict=True)
        if side and _is_closed(wiring, start, r.id, side, wiring.made[entry.outs[0].id])
    ]
    branches.sort(key=lambda b: len(b.values), reverse=True)
    return (branches[0] if branches else None), not all(sides)


def _is_closed(wiring: DefUse, start: int, stop: int, values: frozenset[int], user: int) -> bool:
    """Whether everything inside is heard only inside, its end only by ``user``.

    What it hears is ``start`` or something that ``start`` was made of (the other end of a cross-attention, say).
    """
    for value in values:
        if value not in wiring.made:
            return False
        users = wiring.used.get(value, [])
        if value == stop:
            if set(users) != {user}:
                return False
        elif not all(any(o.id in values for o in _outs(wiring.tape.entries[u])) for u in users):
            return False
    return True


def _outs(entry: Entry | WriteBack) -> Sequence[Ref]:
    return entry.outs if isinstance(entry, Entry) else (entry.out,)


def _calls_inside(wiring: DefUse, values: frozenset[int]) -> list[ModuleCall]:
    """The largest module calls that compute nothing but these values, in running order."""
    entries = {wiring.made[v] for v in values}
    inside = [
        call
        for call, busy in zip(wiring.calls, wiring.busy_in, strict=True)
        if busy and call.outputs and call.outputs[0] in values and busy <= entries
    ]
    # A call is noted when it ends: of two that do the same, the later one is around the other.
    largest = [c for i, c in enumerate(inside) if not any(_is_around(d, c) for d in inside[i + 1 :])]
    return sorted(largest, key=lambda c: (c.start, c.stop))


def _is_around(outer: ModuleCall, inner: ModuleCall) -> bool:
    return outer.start <= inner.start and inner.stop <= outer.stop and outer.name != inner.name


def _block(drawing: TraceResult, wiring: DefUse, branch: Branch, kind: str) -> Block | None:
    calls = _calls_inside(wiring, branch.values)
    alone = [c for c in calls if wiring.times[c.name] == 1]
    if not any(_has_weights(wiring.tape, c) for c in calls):
        return None
    names = tuple(c.name for c in alone)
    if any(wiring.times[c.name] > 1 and _has_weights(wiring.tape, c) for c in calls) or not alone:
        return Block(calls[0].name, names, kind, pinned="it runs modules that are also used elsewhere")
    if any(_is_heard_outside(wiring, c, branch.values) for c in alone):
        return Block(alone[0].name, names, kind, pinned="it also computes something that is used elsewhere")
    aliases = _aliases(wiring, alone)
    for silenced in ([alone[0], alone[-1]], alone):
        try:
            return Block(
                alone[0].name, names, kind, "", _silences(drawing, wiring, branch, alone, silenced), "", aliases
            )
        except Exception as error:  # whatever operator does not take the shapes: the block stays, with its words
            reason = str(error).split("\n", maxsplit=1)[0][:120]
    return Block(alone[0].name, names, kind, pinned=f"its modules cannot step aside ({reason})")


def _aliases(wiring: DefUse, calls: Sequence[ModuleCall]) -> tuple[str, ...]:
    """Modules that run once, inside one of ``calls``, and have a name outside of it.

    What did nothing (a dropout) is not known to have run inside.
    """
    found = []
    for d in calls:
        # Calls are noted when they end: those inside of one stand before it.
        first, last = (bisect_right(wiring.calls, n, key=lambda c: c.stop) for n in (d.start, d.stop))
        for c in wiring.calls[first:last]:
            apart = not c.name.startswith(f"{d.name}.") and not d.name.startswith(f"{c.name}.")
            if apart and _is_around(d, c) and wiring.times[c.name] == 1 and c.start < c.stop:
                found.append(c.name)
    return tuple(found)


def _is_heard_outside(wiring: DefUse, call: ModuleCall, values: frozenset[int]) -> bool:
    """Whether a value that the call makes beside the branch's own (a table of positions, say) is used after it."""
    entries = wiring.tape.entries[call.start : call.stop]
    made = {out.id for entry in entries for out in _outs(entry)} - values
    return any(user >= call.stop for value in made for user in wiring.used.get(value, []))


def _has_weights(tape: Tape, call: ModuleCall) -> bool:
    entries = tape.entries[call.start : call.stop]
    return any(ref.id in tape.named for entry in entries for ref in _inputs(entry))


def _silences(
    drawing: TraceResult, wiring: DefUse, branch: Branch, calls: Sequence[ModuleCall], silenced: Sequence[ModuleCall]
) -> tuple[ZeroStub, ...]:
    """Run the branch with its modules aside on empty tensors: which zeros have to be made, and of what shape.

    Those that are not ``silenced`` let their input pass.
    """
    tape = wiring.tape
    start = torch.empty(tape.shape(Ref(branch.entry)), device="meta")
    seen: dict[int, Tensor] = {branch.entry: start}
    spaces: dict[int, TensorLabels] = {branch.entry: drawing.flow.spaces.get(branch.entry, TensorLabels())}
    last = calls[-1]
    silences = []
    inside = {i: c for c in calls for i in range(c.start, c.stop)}
    owned = tuple(f"{c.name}." for c in calls)
    after_last = False
    busy = {wiring.made[v] for v in branch.values}
    idle = wiring.idle[bisect_right(wiring.idle, min(busy)) : bisect_right(wiring.idle, max(busy))]
    for index in sorted({*busy, *idle}):
        call = inside.get(index)
        is_fed = any(ref.id in seen for ref in _inputs(tape.entries[index]))
        if index not in busy and (call is not None or not is_fed):
            continue
        if call is None:
            entry = tape.entries[index]
            if isinstance(entry, WriteBack):
                raise ValueError("it writes into a view")
            if after_last and find_operator(tape, entry).zero not in ("first", "any"):
                raise ValueError(f"{entry.name} after its last module")
            if any(name.startswith(owned) for name in _weights_of(wiring, entry)):
                raise ValueError(f"{entry.name} uses a weight of theirs")
            _run_empty(tape, entry, seen)
        elif call.outputs[0] not in seen:
            source = call.inputs[0]
            made = seen.get(source, torch.empty(tape.shape(Ref(source)), device="meta"))
            space = spaces.get(source, drawing.flow.spaces.get(source, TensorLabels()))
            if any(call is c for c in silenced):
                silence = _silence(drawing, call, made, space)
                silences.append(silence)
                made = torch.empty(silence.left, device="meta")
                space = drawing.flow.spaces.get(call.outputs[0], TensorLabels())
            elif not isinstance(call.form, int):
                raise ValueError(f"{call.name} returns more than a tensor")
            seen[call.outputs[0]], spaces[call.outputs[0]] = made, space
            after_last = after_last or call is last
    if tuple(seen[branch.exit].shape) != tape.shape(Ref(branch.exit)):
        raise ValueError("its output would have another shape")
    return tuple(silences)


def _weights_of(wiring: DefUse, entry: Entry) -> Iterator[str]:
    """The parameters and buffers that an operator is given, as they are or computed from, by name."""
    values = {ref.id for ref in entry.given}
    queue = [n for n in values if n not in wiring.above]
    while queue:
        number = queue.pop()
        if number in wiring.tape.named:
            yield wiring.tape.named[number]
        elif number in wiring.made:
            sources = {ref.id for ref in _inputs(wiring.tape.entries[wiring.made[number]])} - values
            values |= sources
            queue += sources


def _run_empty(tape: Tape, entry: Entry, seen: dict[int, Tensor]) -> None:
    def empty(value: Any) -> Any:
        if isinstance(value, Ref):
            if value.id in seen:
                return seen[value.id]
            known = tape.values[value.id]
            return torch.empty(known.shape, dtype=known.dtype, device="meta")
        return [empty(v) for v in value] if isinstance(value, tuple) else value

    args = [empty(a) for a in entry.args]
    kwargs = {k: empty(v) for k, v in entry.kwargs.items() if k != "device"}
    result = entry.op(*args, **kwargs)
    seen.update({ref.id: t for ref, t in zip(entry.outs, results_of(result), strict=True)})


def _silence(drawing: TraceResult, call: ModuleCall, given: Tensor, source: TensorLabels) -> ZeroStub:
    """``given`` and ``source`` are what the module is given once the others have stepped aside, and its labels."""
    flow, form, extras = drawing.flow, call.form, _extras(call)
    if extras is None:
        raise ValueError(f"{call.name} returns a {form if isinstance(form, str) else type(form).__name__}")
    left, entered = flow.tape.shape(Ref(call.outputs[0])), tuple(given.shape)
    target = flow.spaces.get(call.outputs[0], TensorLabels())
    as_long = [a for a, (n, m) in enumerate(zip(left, entered, strict=False)) if n == m]
    live = tuple(a for a in as_long if _labels(flow, source, a) == _labels(flow, target, a))
    own = tuple(a for a in range(len(left)) if a not in live and _labels(flow, target, a))
    axes = []
    for axis in own:
        layers = [z for z in target.layers if axis in z.support]
        if any(len(z.support) > 1 for z in layers):
            raise ValueError(f"the units of {call.name} lie across several axes")
        axes.append(drawing.builder.axis(left[axis], [z.labels for z in layers]))
    return ZeroStub(call.name, entered, left, live, own, tuple(axes), extras)


def _labels(flow: LabelPropagation, space: TensorLabels, axis: int) -> list[bytes]:
    layers = [z for z in space.layers if axis < z.labels.ndim and z.labels.shape[axis] > 1]
    return sorted(flow.store.unions.find(z.labels.reshape(-1)).tobytes() for z in layers)


# -- dense connections -------------------------------------------------------------------------------------------


def _dense(drawing: TraceResult, wiring: DefUse, entry: Entry) -> Iterable[Block]:
    """New channels that are put beside old ones: parts of a concatenation that are a whole group of their own."""
    parts = [r for r in entry.args[0] if r.id in wiring.above]
    for ref in parts[1:]:
        group = _whole_group(drawing, drawing.flow.spaces.get(ref.id, TensorLabels()).layers)
        others = reduce(or_, (wiring.above[other.id] for other in parts if other.id < ref.id), 0)
        # What was there before must be heard by the new channels: otherwise these are parallel branches, not growth.
        if group is None or not others & wiring.above[ref.id] or wiring.made.get(ref.id) is None:
            continue
        values = _exclusive(wiring, ref.id)
        starts = {n for v in values for n in wiring.active(wiring.made[v])} - values
        if not starts or not all(1 << s & others for s in starts):
            continue
        block = _block(drawing, wiring, Branch(max(starts), ref.id, frozenset(values)), "dense")
        if block is None or block.pinned or group.is_pinned or not _is_made_by(group, block):
            continue
        *silences, last = block.silences
        axis = argument(entry, 1, "dim", 0) % len(last.left)
        empty = tuple(0 if a == axis else n for a, n in enumerate(last.left))
        live = tuple(a for a in last.live if a != axis)
        silences.append(replace(last, left=empty, live=live, own=(axis,), axes=(NOT_CUT,)))
        yield replace(block, silences=tuple(silences), group=group.name)


def _is_made_by(group: Group, block: Block) -> bool:
    """Whether only modules of the block make the units, and every layer that reads them reads others too."""
    alone = all(any(slot.tensor.startswith(f"{name}.") for name in block.modules) for slot in group.writers)
    return alone and all(bool((slot.units.array < 0).any()) for slot in group.readers)


def _whole_group(drawing: TraceResult, layers: Sequence[LabelArray]) -> Group | None:
    """The group that these layers are all of, and that is all of them."""
    if len(layers) != 1 or len(layers[0].support) != 1:
        return None
    roots = drawing.flow.store.unions.find(layers[0].labels.reshape(-1))
    numbers = np.unique(drawing.group_of[roots[roots >= 0]])
    if len(numbers) != 1 or numbers[0] < 0:
        return None
    if drawing.names[int(numbers[0])] not in drawing.graph:
        return None
    group = drawing.graph[drawing.names[int(numbers[0])]]
    return group if group.size == len(np.unique(roots)) else None


def _exclusive(wiring: DefUse, stop: int) -> set[int]:
    """Values that serve nothing but ``stop``, going back from it."""
    values = {stop}
    queue = [stop]
    while queue:
        for number in wiring.active(wiring.made[queue.pop()]):
            users = wiring.used.get(number, [])
            outs = [o.id for u in users for o in _outs(wiring.tape.entries[u])]
            # Norms also put out statistics, which nobody hears while evaluating.
            heard = [o for o in outs if o in wiring.above and (o in values or wiring.used.get(o))]
            if number not in values and number in wiring.made and all(o in values for o in heard):
                values.add(number)
                queue.append(number)
    return values


# -- whole modules -----------------------------------------------------------------------------------------------


def _with_elements(
    wiring: DefUse, identity: dict[int, int], branches: Sequence[tuple[int, Block]]
) -> list[tuple[int, Block]]:
    """The branches, and the modules that are a chain of two or more of them, each with the element it may be of a list.

    A module that is a chain of branches, normed between them or not, is the identity without them.
    """
    found, chains = [], list(_chains(wiring, identity))
    free = {at for at, block in branches if not block.pinned}
    lone = {added[0]: call.name for call, added in chains if len(added) == 1}
    for call, added in chains:
        if len(added) > 1 or added[0] not in free:
            heard = _is_heard_outside(wiring, call, frozenset(call.outputs[:1]))
            pinned = "it also computes something that is used elsewhere" if heard else ""
            extras = -1 if isinstance(call.form, int) else len(call.form) - 1
            block = Block(call.name, (call.name,), "module", pinned, element=call.name, extras=extras)
            found.append((call.stop - 1, block))
    # A stage of such modules is one too, but nobody means to drop a whole stage.
    names = [block.name for _, block in found]
    found = [(at, b) for at, b in found if not any(name.startswith(f"{b.name}.") for name in names)]
    alone = [b.modules[0] if len(b.modules) == 1 else "" for _, b in branches]
    whole = [
        (at, replace(b, element=lone.get(at, one) if b.kind == "residual" else ""))
        for (at, b), one in zip(branches, alone, strict=True)
    ]
    return whole + found


def _chains(wiring: DefUse, identity: dict[int, int]) -> Iterator[tuple[ModuleCall, list[int]]]:
    """Calls of modules that add branches to what they are given and do nothing else, with these additions' entries."""
    normed = _find_normed(wiring)
    for call in wiring.calls:
        if _extras(call) is None or not call.inputs or wiring.times[call.name] > 1:
            continue
        value, added = call.outputs[0], []
        while value != call.inputs[0] and (value in identity or value in normed):
            added += [wiring.made[value]] if value in identity else []
            value = identity[value] if value in identity else normed[value]
        entered, left = (wiring.tape.shape(Ref(number)) for number in (value, call.outputs[0]))
        if added and value == call.inputs[0] and entered == left:
            yield call, added


def _extras(call: ModuleCall) -> int | None:
    """How many results a module returns in a tuple behind a tensor; -1: a bare tensor; None: something else."""
    form = call.form
    if isinstance(form, int):
        return -1
    if type(form) not in (tuple, list) or not form or not isinstance(form[0], int):
        return None
    return len(form) - 1


def _find_normed(wiring: DefUse) -> dict[int, int]:
    """For each output of a layer norm what it was made of: in a post-norm network it stands behind every branch.

    So do views, that lay out rows of tokens one after the other and back.
    """
    found = {}
    for index, entry in enumerate(wiring.tape.entries):
        if not isinstance(entry, Entry) or len(wiring.active(index)) != 1:
            continue
        if find_operator(wiring.tape, entry).family in ("layer norm", "view", "copy"):
            found[entry.outs[0].id] = wiring.active(index)[0]
    return found


def _name_blocks(drawing: TraceResult, wiring: DefUse, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Unique names: the parent where all modules share one that has no other block, else the heaviest module."""
    sizes: dict[str, int] = {}
    for number, tensor in drawing.flow.tape.named.items():
        parts = tensor.split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            module = ".".join(parts[:depth])
            sizes[module] = sizes.get(module, 0) + prod(drawing.flow.tape.values[number].shape)
    parents = [_common([n.rpartition(".")[0] for n in b.modules]) for b in blocks]
    taken = {b.name for b in blocks if b.kind == "module"}
    result: list[Block] = []
    for block, parent in zip(blocks, parents, strict=True):
        name = block.name
        if block.kind != "module":
            lone = len(block.modules) > 1 and parents.count(parent) == 1 and parent and parent not in taken
            name = (
                parent
                if lone
                else max(
                    block.modules or (block.name,),
                    key=lambda m: sizes.get(m, 0),
                )
            )
        if any(name == other.name for other in result):
            if any(block.modules == other.modules for other in result):
                continue
            name = f"{name}#{sum(other.name.partition('#')[0] == name for other in result) + 1}"
        result.append(replace(block, name=name))
    return tuple(result)


def _common(names: Sequence[str]) -> str:
    parts = [n.split(".") for n in names]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)
