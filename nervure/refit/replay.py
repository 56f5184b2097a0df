"""Modules that need not run again: what they gave is kept, and given again.

Refit goes up a network level by level. All that runs before the level gives the same again and again; without this the
cost of a refit grows with the square of the depth. Modules are left out, not operators: what a module's own code does
between its children runs anew, so any network can be gone through this way, whatever its form.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_map

from nervure.core.tensors import outputs_in, tensors_in
from nervure.graph.models import device_of
from nervure.graph.ops.table import family
from nervure.graph.products import Operand
from nervure.graph.tape import Entry, Ref, WriteBack
from nervure.refit.activations import Enough, Watcher, watchable
from nervure.refit.streams import RUNNING_MEAN, Follower, Key
from nervure.stats.loaders import Batch

CONTAINERS = (tuple, list, dict)
"""What a module may give its tensors in, for what it gives to be kept."""

FEW = 2
"""Samples by which it is found out what runs when."""


@final
@dataclass(slots=True)
class _ModuleRun:
    """How a module ran: how often; of its last run the first operator and the one behind its last, and what it gave."""

    name: str
    times: int = 0
    start: int = 0
    stop: int = 0
    outs: tuple[int, ...] = ()
    memory: tuple[int, ...] = ()
    gives_tensors: bool = False


@final
class Replay:
    """A model of which all that is done does not run again.

    Attributes:
        model: the model.
    """

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        """Run the model once, to see in which order its modules run.

        Args:
            model: the model.
            batch: what it can run on.
        """
        self.model = model
        self._few = _PartRuns(model, _few_of(model, batch.to(device_of(model))))
        self._parts: dict[int, _PartRuns] = {}

    @contextmanager
    def skipped(self, part: int) -> Iterator[None]:
        """While this lasts the modules that are done give what they gave for this part of the data."""
        with self._parts[part].skipped() if part in self._parts else nullcontext():
            yield

    @contextmanager
    def stopped(self, wanted: Iterable[Key | str], part: int | None = None) -> Iterator[None]:
        """While this lasts the model runs no further than these on this part of the data, as far as modules tell."""
        score = (self._few if part is None else self._parts.get(part, self._few)).score
        last = max((score.at.get(key, score.end) for key in wanted), default=score.end)
        behind = next((run for run in score.runs if run.start > last), None)
        handle = behind and self.model.get_submodule(behind.name).register_forward_pre_hook(_stop)
        try:
            yield
        finally:
            if handle:
                handle.remove()

    def advance(self, pending: Iterable[Key | str], parts: Sequence[Batch]) -> None:
        """Leave out what runs before all of these; what it gives is kept for each part.

        It is tried on a few samples first. A model that gives something else then (its modules write what others read,
        say) goes on as before.

        Args:
            pending: uses of parameters, running means of batch norms, and modules by name, that may still change or
                be looked at.
            parts: the batches, in their order.
        """
        pending = list(pending)
        if self._few.score.draws or not self._few.try_advance(pending):
            return
        for number in range(len(self._parts), len(parts)):
            self._parts[number] = _PartRuns(self.model, parts[number].to(device_of(self.model)))
        with watchable(self.model):
            for part in self._parts.values():
                part.advance(pending)


@final
class _PartRuns:
    """A model on one part of the data: how it runs, for that may differ, and what need not run again.

    Attributes:
        score: how it ran.
    """

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.score = _Score(model)
        self.score.listen(batch)
        self._model, self._batch, self._first = model, batch, 0
        self._done: dict[str, Any] = {}
        """What the modules that do not run gave."""

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """While this lasts the modules that are done give what they gave."""
        with ExitStack() as stack:
            for name, given in self._done.items():
                stack.enter_context(replaced_forward(self._model.get_submodule(name), partial(_give, given)))
            yield

    def advance(self, pending: Iterable[Key | str], *, is_whole: bool = False) -> list[Tensor] | None:
        """Leave out what runs before all of these; what does not run on this part does not count.

        Returns:
            What the model gives, where it ran to the end (``is_whole``); None where it did not run.
        """
        at = self.score.at
        first = self.score.before_shared(min((at[key] for key in pending if key in at), default=self.score.end))
        if first < self._first:
            # What nobody read then may be read now.
            self._done = {}
        self._first = first
        done = _outermost(run for run in self.score.runs if run.stop <= first)
        new = [run.name for run in done if run.name not in self._done]
        if not new:
            return None
        with self.skipped():
            given, answer = _given(self._model, new, self._batch, is_whole=is_whole)
        found = self._done | given
        self._done = {
            run.name: found[run.name] if self._is_read(run, done) else _without_contents(found[run.name])
            for run in done
        }
        return answer

    def try_advance(self, pending: Iterable[Key | str]) -> bool:
        """The same where the model gives the same then; whether it does."""
        before = self._done, self._first
        try:
            with watchable(self._model):
                whole = self.advance(pending, is_whole=True)
            is_same = whole is None or self._gives(whole)
        except Exception:
            # Whatever the model says where a part of it did not run.
            is_same = False
        if not is_same:
            self._done, self._first = before
        return is_same

    def _gives(self, whole: Sequence[Tensor]) -> bool:
        """Whether the model gives the same without what is done."""
        with watchable(self._model), self.skipped():
            short = outputs_in(self._batch.feed(self._model))
            return len(whole) == len(short) and all(map(torch.equal, whole, short))

    def _is_read(self, run: _ModuleRun, done: Sequence[_ModuleRun]) -> bool:
        """Whether anything that runs anew reads what a module gave."""
        readers = {place for out in run.outs for place in self.score.readers.get(out, ())}
        return any(not any(other.start <= place < other.stop for other in done) for place in readers)


@final
class _Score:
    """Listens to one run: at which operator each use of a parameter is, which modules run when, and who reads what.

    Attributes:
        at: the number of the operator of each use of a parameter, of each running mean, and of the first operator of
            each module.
        end: the number of operators.
        runs: modules that can be left out: they run once, do nothing but give tensors, and are alone in using their
            parameters; in running order.
        readers: for each value the operators that are given it; one behind the last where the model returns it.
        draws: whether the model draws random numbers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.at: dict[Key | str, int] = {}
        self.end = 0
        self.runs: list[_ModuleRun] = []
        self.readers: dict[int, list[int]] = {}
        self.draws = False
        self._model = model
        self._follower: Follower | None = None
        self._watcher: Watcher | None = None
        self._place = 0
        self._places: dict[str, list[int]] = {}
        self._vectors: dict[str, list[int]] = {}
        """Where biases and the tensors of norms are used: they change with the weights before them."""
        self._memory = _WrittenMemory()

    def listen(self, batch: Batch) -> None:
        """Run the model."""
        with watchable(self._model) as watch, ExitStack() as stack:
            for name, module in self._model.named_modules():
                run = _ModuleRun(name)
                self.runs.append(run)
                stack.callback(module.register_forward_pre_hook(partial(self._begin, run)).remove)
                stack.callback(module.register_forward_hook(partial(self._end, run)).remove)
            state = torch.get_rng_state()
            watch(batch, self.see)
            self.draws = not torch.equal(state, torch.get_rng_state())
        whole, *parts = self.runs
        self.end = self._place
        self.at |= {run.name: run.start for run in parts if run.times}
        for out in whole.outs:
            self.readers.setdefault(out, []).append(self._place)
        self.runs = sorted((run for run in parts if self._is_apart(run)), key=lambda run: (run.start, -run.stop))
        self._watcher = self._follower = None

    def before_shared(self, first: int) -> int:
        """The same operator, or the first use of a vector that is used before it and behind it."""
        lower = min((places[0] for places in self._vectors.values() if places[0] < first <= places[-1]), default=first)
        return first if lower == first else self.before_shared(lower)

    def _begin(self, run: _ModuleRun, module: nn.Module, args: Any) -> None:
        run.times, run.start = run.times + 1, self._place

    def _end(self, run: _ModuleRun, module: nn.Module, args: Any, output: Any) -> None:
        run.stop, tensors = self._place, tensors_in(output)
        if self._watcher is not None:
            run.outs = tuple(self._watcher.value(tensor).id for tensor in tensors)
            run.memory = tuple(self._memory.number(tensor, OUTSIDE) for tensor in tensors)
            # What is a parameter in another form has to be seen to come from it.
            is_parameter = any(self._watcher.provenance.trails.get(out) for out in run.outs)
            run.gives_tensors = bool(tensors) and _is_kept(output) and not is_parameter

    def _is_apart(self, run: _ModuleRun) -> bool:
        """Whether a module can be left out."""
        uses = ([run.start <= place < run.stop for place in places] for places in self._places.values())
        is_one = run.times == 1 and run.gives_tensors and run.start < run.stop
        return is_one and self._memory.is_apart(run) and all(all(inside) or not any(inside) for inside in uses)

    def see(
        self, watcher: Watcher, entry: Entry | WriteBack, uses: Sequence[Operand], args: tuple[Any, ...], out: Any
    ) -> None:
        """One operator."""
        self._watcher, place = watcher, self._place
        self._place += 1
        if isinstance(entry, WriteBack):
            self.readers.setdefault(entry.base.id, []).append(place)
            return
        self._memory.see(place, entry, args, out)
        is_norm = family(entry.name) == "batch norm"
        names = {ref.id: watcher.tape.named.get(ref.id, "") for ref in entry.given}
        for number, name in names.items():
            self.readers.setdefault(number, []).append(place)
            if (
                name
                and len(watcher.tape.shape(Ref(number))) == 1
                and (is_norm or name in watcher.provenance.parameters)
            ):
                self._vectors.setdefault(name, []).append(place)
        self._follower = self._follower or Follower(watcher.tape.shape)
        for key, _ in self._follower.products(entry, uses):
            self.at[key] = place
            self._places.setdefault(key[0], []).append(place)
        if is_norm:
            name = watcher.tape.named.get(getattr(entry.args[RUNNING_MEAN], "id", -1), "")
            self.at.setdefault(name, place)


OUTSIDE = -1
"""When memory was taken that was there before the model ran."""


@final
class _WrittenMemory:
    """When memory was taken, and when it was written to again."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}
        """Weak references keep the addresses from being taken again."""
        self._writes: dict[int, list[int]] = {}

    def number(self, tensor: Tensor, born: int) -> int:
        """The number of the memory of a tensor; where it was never seen, it was taken at this operator."""
        storage = tensor.untyped_storage()
        self._known.setdefault(storage._cdata, (StorageWeakRef(storage), born))
        return int(storage._cdata)

    def see(self, place: int, entry: Entry, args: tuple[Any, ...], out: Any) -> None:
        """One operator."""
        for value, told in zip(args, entry.op._schema.arguments, strict=False):
            is_written = told.alias_info is not None and told.alias_info.is_write
            for tensor in tensors_in(value):
                number = self.number(tensor, OUTSIDE)
                if is_written:
                    self._writes.setdefault(number, []).append(place)
        for tensor in tensors_in(out):
            self.number(tensor, place)

    def is_apart(self, run: _ModuleRun) -> bool:
        """Whether a module writes to nothing outside, and nobody to what lies both in what it gives and elsewhere."""
        for number, places in self._writes.items():
            is_outer, count = self._known[number][1] < run.start, run.memory.count(number)
            is_shared = count > 1 or (count == 1 and is_outer)
            if (is_outer and any(run.start <= place < run.stop for place in places)) or (
                is_shared and any(place >= run.start for place in places)
            ):
                return False
        return True


def _few_of(model: nn.Module, batch: Batch) -> Batch:
    """A few samples of a batch, where the model runs on so few: what runs in which order, they tell as well."""
    few = batch.head(FEW)
    try:
        with watchable(model):
            few.feed(model)
    except Exception:
        # Whatever the model has against it.
        return batch
    return few


def _outermost(runs: Iterable[_ModuleRun]) -> list[_ModuleRun]:
    """Those that are inside of no other; they come in running order, the outer first."""
    found: list[_ModuleRun] = []
    for run in runs:
        if not found or run.stop > found[-1].stop:
            found.append(run)
    return found


def _is_kept(output: Any) -> bool:
    """Whether an output is tensors in plain containers."""
    if type(output) in CONTAINERS:
        return all(map(_is_kept, output.values() if isinstance(output, dict) else output))
    return output is None or type(output) is Tensor


def _map_tensors(function: Callable[[Tensor], Tensor], output: Any) -> Any:
    """The same with each tensor replaced."""
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, output)


def _give(output: Any, *args: Any, **kwargs: Any) -> Any:
    """What was kept; whoever gets it may write into it."""
    return _map_tensors(torch.clone, output)


def _without_contents(output: Any) -> Any:
    """The same shapes; of what nobody reads. Should it be read after all, that does not pass unnoticed."""
    return _map_tensors(lambda t: t.new_full((), math.nan if t.is_floating_point() else 0).expand(t.shape), output)


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While this lasts a module runs something else."""
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        # Whoever puts back what runs wrote may have been faster.
        vars(module).pop("forward", None)
        if own is not None:
            vars(module)["forward"] = own


def _stop(module: nn.Module, args: Any) -> None:
    raise Enough


def _given(
    model: nn.Module, names: Sequence[str], batch: Batch, *, is_whole: bool
) -> tuple[dict[str, Any], list[Tensor]]:
    """What modules give in one run, which ends with the last of them; with ``is_whole`` the model's answer as well.

    Hooks, which run again, have no part in what modules give.
    """
    found: dict[str, Any] = {}

    def keep(name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        found[name] = _map_tensors(lambda tensor: tensor.detach().clone(), output)
        if len(found) == len(names) and not is_whole:
            raise Enough
        return output

    answer: list[Tensor] = []
    with ExitStack() as stack:
        for name in names:
            module = model.get_submodule(name)
            stack.enter_context(replaced_forward(module, partial(keep, name, module.forward)))
        with suppress(Enough):
            answer = [tensor.detach().clone() for tensor in outputs_in(batch.feed(model))]
    return found, answer
