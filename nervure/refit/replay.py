"""What is done of a network need not run again: the tensors that are still needed are kept, and the rest is skipped.

Refit goes up a network level by level, and all below a level gives the same again and again. Without this the cost of
a refit grows with the square of the depth.

A run is a sequence of operators and of calls of modules. Up to a point in it, the *frontier*, nothing is computed:
calls that are over do not run at all, and operators between them give what they gave, where anybody still holds that at
the frontier, or else something of the same shape that nobody will look at.
"""

from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from itertools import islice
from typing import Any, TypeAlias, final
from weakref import ref as weak

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from nervure.core.tensors import outputs_in
from nervure.errors import TraceError
from nervure.graph.composites import SimpleOperators
from nervure.graph.models import device_of
from nervure.graph.tape import ESCAPES, name_of, named_tensors, results_of, written_tensors
from nervure.refit.activations import RUN, Enough, See, Watch, watchable
from nervure.stats.loaders import Batch

TRIED = 4
"""At how many frontiers it is tried whether a model gives the same."""
PLAIN = (Tensor, str, int, float, type(None))
"""What modules may give to be skipped."""

Make: TypeAlias = Callable[["Playback", Any], Any]
"""How a value is had again, from what the operator is given now."""


class Playback:
    """One run of a model of which the beginning is skipped."""

    def __init__(self, script: "Script") -> None:
        self._script, self._at = script, 0
        self._storages: dict[int, torch.UntypedStorage] = {}

    @property
    def names(self) -> Sequence[str]:
        """The modules that are skipped."""
        return list(self._script.calls)

    def plays(self) -> bool:
        """Whether the next operator is to be skipped."""
        return self._at < len(self._script.operators)

    def operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the next operator gave; ``RUN`` where it is to be run."""
        name, made = self._script.operators[self._at]
        if name != name_of(func):
            raise TraceError(
                f"the model does not run the same operators each time: {name_of(func)} where it was {name}. A refit "
                "runs it often, on the same data; forward has to compute the same each time."
            )
        self._at += 1
        return RUN if made is RUN else self._make(made, (args, kwargs))

    def call(self, name: str) -> Any:
        """What the call of a module gave."""
        return self._make(self._script.calls[name], ())

    def _make(self, made: Any, given: Any) -> Any:
        # Nobody sees how it is made: it is there, as a constant is.
        with torch._C._DisableTorchDispatch():
            if isinstance(made, _Leaf):
                return made.make(self, given)
            return tree_map(lambda leaf: leaf.make(self, given) if isinstance(leaf, _Leaf) else leaf, made)

    def storage(self, number: int) -> torch.UntypedStorage:
        """Memory that was kept: a copy, for what runs may write into it."""
        if number not in self._storages:
            self._storages[number] = self._script.storages[number].clone()
        return self._storages[number]


@final
@dataclass(frozen=True, slots=True)
class Script:
    """What is skipped of one run: operators in their order, calls by the name of their module, and kept memory."""

    operators: Sequence[tuple[str, Any]] = ()
    calls: Mapping[str, Any] = field(default_factory=dict)
    storages: Mapping[int, torch.UntypedStorage] = field(default_factory=dict)


@final
@dataclass(slots=True, eq=False)
class _Leaf:
    """A tensor in what an operator or a call gave."""

    make: Make


class _Player(SimpleOperators):
    """Runs a model with its beginning skipped."""

    def __init__(self, playback: Playback) -> None:
        super().__init__()
        self.playback = playback

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operator, or what it gave."""
        found = self.playback.operator(func, args, kwargs) if self.playback.plays() else RUN
        return func(*args, **kwargs) if found is RUN else found


@final
class _Data:
    """Which tensors depend on what the model is given, in one run.

    Attributes:
        is_spoilt: whether such were written where they outlast the run: then nothing can be skipped.
    """

    def __init__(self, own: Set[int]) -> None:
        self.is_spoilt = False
        self._own = own
        self._seen: dict[int, tuple[weak[Tensor], int, bool]] = {}

    def is_live(self, tensor: Tensor) -> bool:
        """Whether it does. What comes from outside may be all: what is given, too."""
        known = self._seen.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[2]
        return tensor.layout != torch.strided or tensor.untyped_storage()._cdata not in self._own

    def note(self, func: Any, args: Any, kwargs: Any, out: Any, number: int) -> tuple[bool, list[int]]:
        """An operator, by its number: whether it depends on the data, and those before it that do so after all.

        A tensor that was made without the data does when they are written into it.
        """
        is_live = any(map(self.is_live, _leaves((args, kwargs))))
        after_all: list[int] = []
        for written in written_tensors(func, args, kwargs) if is_live else ():
            after_all += self._write(written)
        for tensor in results_of(out):
            self._seen[id(tensor)] = (weak(tensor), number, is_live)
        return is_live, after_all

    def _write(self, written: Tensor) -> Iterator[int]:
        place, is_known = written.untyped_storage()._cdata, False
        for key, (one, number, is_live) in list(self._seen.items()):
            tensor = one()
            if tensor is not None and tensor.untyped_storage()._cdata == place:
                is_known = True
                self._seen[key] = (one, number, True)
                if not is_live:
                    yield number
        self.is_spoilt = self.is_spoilt or not is_known or place in self._own


@final
class _Writer(_Player):
    """Writes a script while a model runs, up to where a tensor of the model is used or a module is called."""

    def __init__(self, playback: Playback, own: Set[int], stops: Set[int]) -> None:
        super().__init__(playback)
        self.inside = 0
        self.script = Script()
        self.data = _Data(own)
        self._own, self._stops = own, stops
        self._operators: list[tuple[str, Any]] = []
        self._constant: set[int] = set()
        self._calls: dict[str, Any] = {}

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operator."""
        given = list(_leaves((args, kwargs)))
        if not self._stops.isdisjoint(map(id, given)):
            self.stop()
        out = super().compute(func, args, kwargs)
        is_noted = self.inside == 0
        is_live, after_all = self.data.note(func, args, kwargs, out, len(self._operators) if is_noted else -1)
        self._constant -= set(after_all)
        if is_noted:
            self._constant |= set() if is_live else {len(self._operators)}
            places = {id(leaf): place for place, leaf in enumerate(given)}
            noted = _note(out, places) if isinstance(out, Tensor) else tree_map(lambda leaf: _note(leaf, places), out)
            self._operators.append((name_of(func), noted))
        return out

    def leave(self, name: str, out: Any) -> None:
        """A module whose calls are over gave something."""
        self._calls[name] = tree_map(lambda leaf: _note(leaf, {}), out)

    def stop(self) -> None:
        """All that is still held now is kept. Nothing runs behind this."""
        kept: dict[int, torch.UntypedStorage] = {}
        with torch._C._DisableTorchDispatch():
            moving = [made for number, (_, made) in enumerate(self._operators) if number not in self._constant]
            for leaf in tree_leaves((moving, self._calls)):
                if isinstance(leaf, _Leaf) and isinstance(leaf.make, _Note):
                    leaf.make = self._settle(leaf.make, kept)
        operators = [(name, RUN if n in self._constant else made) for n, (name, made) in enumerate(self._operators)]
        self.script = Script(operators, self._calls, kept)
        raise Enough

    def _settle(self, note: "_Note", kept: dict[int, torch.UntypedStorage]) -> Make:
        held = note.tensor()
        if held is None:
            return _hollow(*note.form)
        storage = held.untyped_storage()
        if storage._cdata in self._own:
            return lambda playback, given: held.detach()
        if storage._cdata not in kept:
            kept[storage._cdata] = storage.clone()
        return _view(storage._cdata, int(held.storage_offset()), *note.form)


Form: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]
"""Sizes, strides, data type and device."""


@final
@dataclass(frozen=True, slots=True)
class _Note:
    """A tensor that was seen, and its form."""

    tensor: weak[Tensor]
    form: Form

    def __call__(self, playback: Playback, given: Any) -> Any:
        raise AssertionError("it is not known yet what is needed")


def _leaves(given: Any) -> Iterator[Tensor]:
    """The tensors that an operator is given."""
    for value in given:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _leaves(value)
        elif isinstance(value, dict):
            yield from _leaves(value.values())


def _note(leaf: Any, places: Mapping[int, int]) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if (place := places.get(id(leaf))) is not None:
        return _Leaf(lambda playback, given: next(islice(_leaves(given), place, None)))
    return _Leaf(_Note(weak(leaf), (tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device)))


def _hollow(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Make:
    """Of this form, with anything in it: memory that nobody touches costs nothing."""
    return lambda playback, given: torch.empty_strided(shape, stride, dtype=dtype, device=device)


def _view(
    number: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Make:
    def make(playback: Playback, given: Sequence[Any]) -> Tensor:
        empty = torch.empty(0, dtype=dtype, device=device)
        return empty.set_(playback.storage(number), offset, shape, stride)

    return make


# -- when calls begin and end ------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class CallSpan:
    """The only call of a module in a run, from one moment to another; moments are counted."""

    name: str
    start: int
    end: int


@final
class _RunClock(SimpleOperators):
    """Counts moments in a run: a module is called, a call is over, a tensor of the model is used."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        tensors = named_tensors(model)
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._own = _memory_of(tensors.values())
        self.now = 0
        self.uses: dict[str, list[int]] = {}
        self.starts: dict[str, int] = {}
        self.calls: list[CallSpan] = []
        self.runs: Counter[str] = Counter()
        self.odd: set[str] = set()
        """Modules that give something else than tensors of the data, or whose hooks others may listen to."""
        self.data = _Data(self._own)

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operator."""
        for leaf in _leaves((args, kwargs)):
            if (name := self._names.get(id(leaf))) is not None:
                self.now += 1
                self.uses.setdefault(name, []).append(self.now)
        out = func(*args, **kwargs)
        self.data.note(func, args, kwargs, out, -1)
        return out

    @property
    def first(self) -> dict[str, int]:
        """When each tensor of the model is first used."""
        return {name: uses[0] for name, uses in self.uses.items()}

    def around(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward that is looked at."""

        def looked_at(*args: Any, **kwargs: Any) -> Any:
            self.now += 1
            start = self.now
            self.starts.setdefault(name, start)
            self.runs[name] += 1
            out = forward(*args, **kwargs)
            self.now += 1
            self.calls.append(CallSpan(name, start, self.now))
            if not all(self._is_plain(leaf) for leaf in tree_leaves(out)):
                self.odd.add(name)
            return out

        return looked_at

    def _is_plain(self, leaf: Any) -> bool:
        if not isinstance(leaf, Tensor):
            return isinstance(leaf, PLAIN)
        is_plain = leaf.layout == torch.strided and leaf.untyped_storage()._cdata not in self._own
        return is_plain and self.data.is_live(leaf)

    def skippable(self) -> tuple[CallSpan, ...]:
        """Calls of modules that run once, and that share no tensor of the model with anything outside."""
        found = [
            call for call in self.calls if call.name and self.runs[call.name] == 1 and call.name not in self.odd
            and not any(_straddles(call, uses) for uses in self.uses.values())
        ]  # fmt: skip
        return tuple(sorted(found, key=lambda call: call.start))


def _memory_of(tensors: Iterable[Tensor]) -> frozenset[int]:
    return frozenset(tensor.untyped_storage()._cdata for tensor in tensors if tensor.layout == torch.strided)


def _straddles(call: CallSpan, uses: Sequence[int]) -> bool:
    """Whether a tensor that is used at these moments is used inside of a call and outside."""
    inside = bisect(uses, call.end) - bisect(uses, call.start)
    return 0 < inside < len(uses)


# -- the model ---------------------------------------------------------------------------------------------------------


@final
class Replay:
    """A model, and how far it is done.

    Attributes:
        model: the model.
    """

    def __init__(self, model: nn.Module, clock: _RunClock | None = None, calls: Sequence[CallSpan] = ()) -> None:
        self.model = model
        self._clock, self._calls, self._at = clock, tuple(calls), 0
        self._modules = {call.name: model.get_submodule(call.name) for call in calls}
        self._tensors, self._device = named_tensors(model), device_of(model)
        self._own = _memory_of(self._tensors.values())
        self._scripts: list[Script] = []

    def moment(self, tensor: str) -> int:
        """When a tensor of the model is first used; 0 where it is not known."""
        if self._clock is None:
            return 0
        uses = self._clock.uses.get(tensor)
        if uses is None and tensor in self._tensors:
            same = (name for name, other in self._tensors.items() if other is self._tensors[tensor])
            uses = next((self._clock.uses[name] for name in same if name in self._clock.uses), None)
        return uses[0] if uses else 0

    def start(self, module: str) -> int:
        """When a module is first called; 0 where it is not known."""
        return 0 if self._clock is None else self._clock.starts.get(module, 0)

    def runs(self, module: str) -> int:
        """How often a module runs; 0 where it is not known."""
        return 0 if self._clock is None else self._clock.runs[module]

    @property
    def moments(self) -> list[int]:
        """When the tensors of the model are first used."""
        return [] if self._clock is None else sorted(self._clock.first.values())

    def kept(self, number: int) -> int:
        """How many pieces of memory are kept for a part of the data."""
        return len(self._script(number).storages)

    def advance(self, watch: Watch, moment: int, batches: Sequence[Batch]) -> None:
        """Skip from now on all that is before a moment: a tensor is used, or a module is called.

        Args:
            watch: of :func:`nervure.refit.activations.watchable`, while that lasts.
            moment: the moment.
            batches: the model is run on each.
        """
        if moment <= self._at or self._clock is None:
            return
        done, last = list[str](), 0
        for call in self._calls:
            if call.end < moment and call.start > last:
                done.append(call.name)
                last = call.end
        stops = {id(self._tensors[name]) for name, first in self._clock.first.items() if first == moment}
        called = [name for name, start in self._clock.starts.items() if start == moment]
        scripts = []
        for number, batch in enumerate(batches):
            scripts.append(self._write(number, batch.to(self._device), done, stops, called))
            watch.put_back()
        if None in scripts:
            self._clock, scripts = None, []
        self._scripts = [script for script in scripts if script is not None]
        self._at = moment

    def run(self, number: int, batch: Batch) -> Any:
        """What the model gives for a part of the data."""
        playback, moved = Playback(self._script(number)), batch.to(self._device)
        with self.skipping(playback), _Player(playback):
            return moved.feed(self.model)

    def watch(self, watch: Watch, number: int, batch: Batch, see: See) -> None:
        """Run the model on a part of the data while somebody looks on, as far as it takes."""
        playback = Playback(self._script(number))
        with self.skipping(playback):
            watch(batch, see, playback)
        watch.put_back()

    def _script(self, number: int) -> Script:
        return self._scripts[number] if self._scripts else Script()

    @contextmanager
    def skipping(self, playback: Playback) -> Iterator[None]:
        """While this lasts modules whose calls are over give what they gave."""
        with ExitStack() as stack:
            for name in playback.names:
                module = self._modules[name]
                stack.enter_context(run_instead(module, _giving(playback, name, module.forward)))
            yield

    def _write(
        self, number: int, batch: Batch, done: Sequence[str], stops: Set[int], called: Sequence[str]
    ) -> Script | None:
        """What is skipped of a part; None where nothing can be."""
        playback = Playback(self._script(number))
        writer = _Writer(playback, self._own, stops)
        with ExitStack() as stack:
            stack.enter_context(self.skipping(playback))
            for name in done:
                module = self._modules[name]
                stack.enter_context(run_instead(module, _written(writer, name, module.forward)))
            for name in called:
                module = self.model.get_submodule(name)
                stack.enter_context(run_instead(module, _stopping(writer)))
            with suppress(Enough), writer:
                batch.feed(self.model)
        return None if writer.data.is_spoilt else writer.script


def _giving(playback: Playback, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    """What a module gave the first time; the second time, of which nothing is known, it runs."""
    runs = [0]

    def give(*args: Any, **kwargs: Any) -> Any:
        runs[0] += 1
        return playback.call(name) if runs[0] == 1 else forward(*args, **kwargs)

    return give


def _written(writer: _Writer, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    runs = [0]

    def run(*args: Any, **kwargs: Any) -> Any:
        runs[0] += 1
        if runs[0] > 1:
            return forward(*args, **kwargs)
        writer.inside += 1
        out = forward(*args, **kwargs)
        writer.inside -= 1
        writer.leave(name, out)
        return out

    return run


def _stopping(writer: _Writer) -> Callable[..., Any]:
    return lambda *args, **kwargs: writer.stop()


@contextmanager
def run_instead(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While this lasts a layer runs something else, which looks as if it took what its forward takes."""
    own = vars(layer).get("forward")
    vars(layer)["forward"] = wraps(layer.forward)(forward)
    try:
        yield
    finally:
        del vars(layer)["forward"]
        if own is not None:
            vars(layer)["forward"] = own


def replay_of(model: nn.Module, batch: Batch) -> Replay:
    """A model whose beginning can be skipped.

    It is tried: with its beginning skipped, the model has to give the same again. Where it does not, only operators are
    skipped, for modules may have written something somewhere; where that is not the same either, nothing is.
    """
    batch = batch.to(device_of(model))
    try:
        with watchable(model):
            clock = _clocked(model, batch)
    except Exception:
        # Tensors that have no memory to look at, as those of vmap.
        return Replay(model)
    if clock is not None:
        for calls in (clock.skippable(), ()):
            if _works(Replay(model, clock, calls), batch):
                return Replay(model, clock, calls)
    return Replay(model)


def _clocked(model: nn.Module, batch: Batch) -> _RunClock | None:
    """The moments of a run; None where something leaves it that no operator shows."""
    clock, escapes = _RunClock(model), _Escapes()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):
                stack.enter_context(run_instead(module, clock.around(name, module.forward)))
            if module._forward_hooks or module._forward_pre_hooks:
                # Who listens to a module wants it to run, and all that it is in.
                clock.odd |= {name[:end] for end in range(len(name) + 1) if name[end : end + 1] in ("", ".")}
        stack.enter_context(escapes)
        stack.enter_context(clock)
        batch.feed(model)
    return None if escapes.found or clock.data.is_spoilt else clock


@final
class _Escapes(TorchFunctionMode):
    """Notes calls that give the numbers in a tensor to something else than PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found = self.found or getattr(func, "__name__", "") in ESCAPES
        return func(*args, **(kwargs or {}))


def _works(replay: Replay, batch: Batch) -> bool:
    """Whether a model gives the same with its beginning skipped, at several frontiers.

    Between two runs all that they wrote is put back, and other data went through: so what was left somewhere by a run
    that was whole is not taken for what this one gives.
    """
    moments = replay.moments
    try:
        others = batch.rows(torch.arange(batch.size).flip(0))
        with watchable(replay.model):
            whole = outputs_in(replay.run(0, batch))
        for part in range(1, TRIED + 1):
            with watchable(replay.model) as watch:
                replay.advance(watch, moments[part * len(moments) // TRIED - 1] if moments else 0, [batch])
            with watchable(replay.model):
                others.feed(replay.model)
            with watchable(replay.model):
                if not are_equal(whole, outputs_in(replay.run(0, batch))):
                    return False
    except Exception:
        # What looks at something that was skipped finds something else, and may say so in any way.
        return False
    return True


def are_equal(whole: Sequence[Tensor], short: Sequence[Tensor]) -> bool:
    """Whether two runs gave the same, bit for bit."""
    return len(whole) == len(short) and all(torch.equal(a, b) for a, b in zip(whole, short, strict=True))
