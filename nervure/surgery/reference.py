"""The original without the removed units: what a cut model must compute.

The original runs on full tensors under a mode that knows every label: where an operator sums over an axis of units, the
removed ones are set to zero there (their outgoing weights count nothing); where it takes a statistic over such an axis
(a norm, a softmax, a mean), the statistic is taken over the survivors.

Operators are recognised by the module they run in, their name, and how many of that name ran there before. A run that
takes the same way with other numbers of tokens (experts) or other copies in memory is recognised that way too.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from nervure.core.inputs import Inputs
from nervure.core.tensors import outputs_in
from nervure.errors import TraceError, VerificationError
from nervure.graph.composites import SimpleOperators
from nervure.graph.labels import shape_along
from nervure.graph.preserve import restore_after
from nervure.graph.propagate import Read
from nervure.graph.tape import Entry, Ref, Tape, name_of, plain_kernels, running_modules
from nervure.graph.trace import TraceResult
from nervure.graph.types import Graph
from nervure.plan import Keep, Mask, Plan
from nervure.surgery.apply import apply_sharing, keeps_of, lay_masks
from nervure.surgery.randomness import fixed_seed, is_random, seed
from nervure.surgery.spectral import spectral_norms

Keeps: TypeAlias = Mapping[str, np.ndarray]


class UnitPositions(NamedTuple):
    """Where an operator runs: the module, the operator's name, how many of that name ran there before."""

    module: str
    name: str
    before: int


class Answer(NamedTuple):
    """What a run returned, and what it drew at random, by number: for runs that must draw the same."""

    outputs: list[Tensor]
    noise: Mapping[int, Tensor]


def places(tape: Tape, run: int = 0) -> Iterator[tuple[int, UnitPositions, Entry]]:
    """Number, place and entry of every operator of a run on a tape."""
    counts: Counter[tuple[str, str]] = Counter()
    for index in tape.entries_of(run):
        entry = tape.entries[index]
        if isinstance(entry, Entry):
            yield index, UnitPositions(entry.module, entry.name, counts[entry.module, entry.name]), entry
            counts[entry.module, entry.name] += 1


def reference(
    model: nn.Module,
    drawing: TraceResult,
    run: int,
    graph: Graph,
    plan: Plan,
    inputs: Inputs,
    *,
    is_masked: bool = False,
) -> Answer:
    """Run ``model`` with the removed units left out of every sum and statistic, dropped blocks silent.

    Args:
        model: the original, or one with its structure and other numbers.
        drawing: the runs that ``graph`` was read from.
        run: the number of the run that ``inputs`` are like.
        graph: the graph that ``plan`` is for.
        plan: what is left out; its masks are laid on first.
        inputs: what takes the same way through the model as those of ``drawing``.
        is_masked: whether the masks of ``plan`` may be laid on the parameters of ``model`` itself.

    Raises:
        VerificationError: the original cannot be run without the removed units.
    """
    keeps = keeps_of(graph, plan)
    masks = Plan((*plan.masks, *_unreached_readers(drawing, run, graph, keeps)))
    replay = _Replay(drawing, run, keeps, frozenset(norm.module for norm in spectral_norms(model)))
    source = model
    if masks and is_masked:
        lay_masks(model, graph, masks)
    elif masks:
        source = apply_sharing(model, graph, masks)
    try:
        with _silent(source, graph, plan), fixed_seed(model):
            outputs = _replay(source, inputs, replay, warm=drawing.flow.tape.warm)
    except TraceError:
        raise
    except Exception as error:
        raise VerificationError(
            "the original cannot be run without the removed units, so there is nothing to compare with: its forward "
            f"raised {type(error).__name__}: {error}."
        ) from error
    return Answer(survivors(outputs, drawing, run, keeps), replay.noise)


def _unreached_readers(drawing: TraceResult, run: int, graph: Graph, keeps: Keeps) -> Iterator[Mask]:
    """Masks that silence removed units in weights that the run did not come to: without the units it may (experts)."""
    idle = drawing.idle(run)
    for group in (graph[name] for name in keeps):
        for slot in (slot for slot in group.slots if slot.role == "reader" and slot.tensor in idle):
            shape = idle[slot.tensor]
            alive = torch.from_numpy(slot.units.kept(keeps[group.name]))
            along = alive.reshape(shape_along(slot.axis, len(shape)))
            yield Mask(slot.tensor, Keep.of(along.expand(shape)))


def _replay(model: nn.Module, inputs: Inputs, replay: "_Replay", *, warm: bool) -> list[Tensor]:
    with restore_after(model, inputs), torch.no_grad(), plain_kernels(model):
        if warm:
            inputs.call(model)
        with running_modules(model, replay.modules), replay:
            found = outputs_in(inputs.call(model))
        # Copies: an output may be a buffer, which is put back.
        return [t.clone() for t in found]


def survivors(outputs: list[Tensor], drawing: TraceResult, run: int, keeps: Keeps) -> list[Tensor]:
    """Outputs without the positions of removed units, which the user may have let go."""
    numbers = drawing.flow.tape.runs[run].outputs
    return [_surviving(t, drawing, number, keeps) for t, number in zip(outputs, numbers, strict=True)]


def _surviving(output: Tensor, drawing: TraceResult, number: int, keeps: Keeps) -> Tensor:
    space = drawing.flow.spaces.get(number)
    for layer in space.layers if space is not None else ():
        for axis in layer.support:
            alive = drawing.survives(layer.labels.reshape(-1), keeps)
            if not alive.all() and len(alive) == output.shape[axis]:
                output = output.index_select(axis, torch.from_numpy(np.flatnonzero(alive)).to(output.device))
    return output


class _Limit(NamedTuple):
    """A read of units of which some leave: ``alive`` is a boolean per position, True stays."""

    read: Read
    alive: np.ndarray


class _Replay(SimpleOperators):
    """Runs in the place of each operator of the original: leaves out the removed units, draws noise by number."""

    def __init__(self, drawing: TraceResult, run: int, keeps: Keeps, divided: frozenset[str]) -> None:
        super().__init__()
        self.modules: list[str] = []
        self.noise: dict[int, Tensor] = {}
        self._drawing, self._keeps = drawing, keeps
        self._limits: dict[UnitPositions, list[_Limit]] = {}
        self._random: dict[UnitPositions, Ref] = {}
        self._ran: Counter[tuple[str, str]] = Counter()
        self._drawn = 0
        place_of = {}
        for index, place, entry in places(drawing.flow.tape, run):
            place_of[index] = place
            if is_random(entry.op, entry.args, entry.kwargs) and entry.outs:
                self._random[place] = entry.outs[0]
        for read in (read for read in drawing.flow.reads if read.entry in place_of):
            alive, place = self._alive(read), place_of[read.entry]
            # A spectral norm is that of the whole weight: the weights that survive stay as they are.
            is_divisor = place.module in divided and place.name in ("mv", "dot", "vdot")
            if not alive.all() and not is_divisor:
                self._limits.setdefault(place, []).append(_Limit(read, alive))

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run it on the survivors."""
        module, name = self.modules[-1] if self.modules else "", name_of(func)
        place = UnitPositions(module, name, self._ran[module, name])
        self._ran[module, name] += 1
        limits = self._limits.get(place, [])
        if is_random(func, args, kwargs):
            return self._draw(place, lambda: _restrict(func, args, kwargs, limits))
        return _restrict(func, args, kwargs, limits)

    def _alive(self, read: Read) -> np.ndarray:
        alive = np.ones(len(read.vectors[0]), dtype=bool)
        for labels in read.vectors:
            alive &= self._drawing.survives(labels, self._keeps)
        return alive

    def _draw(self, place: UnitPositions, run: Callable[[], Any]) -> Any:
        number = self._drawn
        self._drawn += 1
        seed(number)
        out = run()
        if isinstance(out, Tensor) and place in self._random:
            kept = _surviving(out, self._drawing, self._random[place].id, self._keeps)
            if kept is not out:
                self.noise[number] = kept
        return out


def _restrict(func: Any, args: Any, kwargs: Any, limits: list[_Limit]) -> Any:
    if not limits:
        return func(*args, **kwargs)
    args = list(args)
    for read, alive in limits:
        x = args[read.argument]
        if x.shape[read.axis % x.dim()] != len(alive):
            raise VerificationError(f"{func._schema.name} does not read the same sizes each time the model runs")
        if read.kind == "sum":
            mask = torch.from_numpy(alive).to(x.device).reshape(shape_along(read.axis % x.dim(), x.dim()))
            args[read.argument] = torch.where(mask, x, torch.zeros_like(x))
    statistics = [limit for limit in limits if limit.read.kind != "sum"]
    if not statistics:
        return func(*args, **kwargs)
    return _over_survivors(func, args, kwargs, statistics)


def _over_survivors(func: Any, args: list[Any], kwargs: Any, limits: list[_Limit]) -> Any:
    x = args[0]
    places = {r.axis % x.dim(): torch.from_numpy(np.flatnonzero(alive)).to(x.device) for r, alive in limits}
    kind = limits[0].read.kind
    narrow = list(args)
    narrow[0] = _narrow(x, places)
    if kind == "trailing":
        first = x.dim() - len(args[1])
        narrow[1] = list(narrow[0].shape[first:])
        inner = {axis - first: index for axis, index in places.items()}
        narrow[2:4] = [_narrow(t, inner) if isinstance(t, Tensor) else t for t in args[2:4]]
    elif func._schema.name == "aten::topk":
        narrow[1] = min(narrow[1], len(limits[0].alive[limits[0].alive]))
    elif kind.startswith("blocks"):
        blocks = int(kind.partition(":")[2])
        alive = limits[0].alive.reshape(blocks, -1).any(1)
        narrow[1:3] = [_narrow(t, {0: places[1]}) if isinstance(t, Tensor) else t for t in args[1:3]]
        narrow[4], narrow[6] = narrow[0].shape[1], int(alive.sum())
    result = func(*narrow, **kwargs)
    if all(r.kind in ("reduction", "places") for r, _ in limits):
        return _renumber(result, places) if any(r.kind == "places" for r, _ in limits) else result
    # In memory as the operator itself lays its result out: what follows copies, or does not, by that.
    whole = x if func._schema.is_mutable else func(*args, **kwargs)
    like = whole if isinstance(whole, Tensor) else whole[0]
    if isinstance(result, Tensor):
        return _widen(result, like, places)
    return type(result)([_widen(result[0], like, places), *result[1:]])


def _narrow(x: Tensor, places: Mapping[int, Tensor]) -> Tensor:
    for axis, index in places.items():
        x = x.index_select(axis, index)
    return x


def _renumber(result: Any, places: Mapping[int, Tensor]) -> Any:
    """Places among the survivors as places among all; they are the last result."""
    (index,) = places.values()
    if isinstance(result, Tensor):
        return index[result]
    return type(result)([*result[:-1], index[result[-1]]])


def _widen(result: Tensor, like: Tensor, places: Mapping[int, Tensor]) -> Tensor:
    """The survivors put back to their places, zeros elsewhere."""
    full = torch.zeros_like(like, dtype=result.dtype)
    where = torch.meshgrid(
        *[places.get(axis, torch.arange(n, device=like.device)) for axis, n in enumerate(like.shape)], indexing="ij"
    )
    full[where] = result
    return full


@contextmanager
def _silent(model: nn.Module, graph: Graph, plan: Plan) -> Iterator[None]:
    """Blocks that ``plan`` drops put out zeros (or, where they are whole modules, their input) while this lasts."""

    def zero(module: nn.Module, args: Any, output: Any) -> Any:
        # Off the record: the operators of the model must keep their places.
        with _disable_current_modes():
            if isinstance(output, Tensor):
                return torch.zeros_like(output)
            return type(output)([torch.zeros_like(output[0]), *output[1:]])

    def same(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        # As the output lies in memory: operators are chosen by that.
        with _disable_current_modes():
            first = output if isinstance(output, Tensor) else output[0]
            passed = torch.empty_like(first).copy_(args[0] if args else next(iter(kwargs.values())))
            return passed if first is output else type(output)([passed, *output[1:]])

    with ExitStack() as stack:
        for edit in plan.drops:
            block = graph.block(edit.block)
            if block.kind == "module":
                hook = model.get_submodule(block.modules[-1]).register_forward_hook(
                    same, with_kwargs=True, prepend=True
                )
                stack.callback(hook.remove)
            elif block.kind == "residual":
                stack.callback(model.get_submodule(block.modules[-1]).register_forward_hook(zero, prepend=True).remove)
        yield
