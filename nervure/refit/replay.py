"""Modules that need not run again: what they gave is kept, and given again.

Refit goes up a network level by level. All that runs before the level gives the same again and again; without this the
cost of a refit grows with the square of the depth. Modules are left out, not operators: what a module's own code does
between its children runs anew, so any network can be gone through this way, whatever its form.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nervure.core.tensors import tensors_in
from nervure.graph.models import device_of
from nervure.graph.ops.table import family
from nervure.graph.products import Operand
from nervure.graph.tape import Entry, WriteBack
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
        batch = _few_of(model, batch.to(device_of(model)))
        score = _Score(model)
        score.listen(batch)
        self._at, self._runs, self._readers, self._end = score.at, score.runs, score.readers, score.end
        self._done: dict[str, dict[int, Any]] = {}
        """What the modules that do not run gave, part by part."""
        self._found_out = self._works(batch)

    @contextmanager
    def skipped(self, part: int) -> Iterator[None]:
        """While this lasts the modules that are done give what they gave for this part of the data."""
        with ExitStack() as stack:
            for name, given in self._done.items():
                if part in given:
                    forward = partial(_give, given[part])
                    stack.enter_context(replaced_forward(self.model.get_submodule(name), forward))
            yield

    @contextmanager
    def stopped(self, wanted: Iterable[Key | str]) -> Iterator[None]:
        """While this lasts the model runs no further than these, as far as modules tell."""
        last = max((self._at.get(key, self._end) for key in wanted), default=self._end)
        behind = next((run for run in self._runs if run.start > last), None)
        handle = behind and self.model.get_submodule(behind.name).register_forward_pre_hook(_stop)
        try:
            yield
        finally:
            if handle:
                handle.remove()

    def advance(self, pending: Iterable[Key | str], parts: Sequence[Batch]) -> None:
        """Leave out what runs before all of these; what it gives is kept for each part.

        Args:
            pending: uses of parameters, running means of batch norms, and modules by name, that may still change or
                be looked at.
            parts: the batches, in their order.
        """
        if self._found_out:
            first = min((self._at.get(key, 0) for key in pending), default=0)
            self._advance(first, parts)

    def _advance(self, first: int, parts: Sequence[Batch]) -> None:
        done = _outermost(run for run in self._runs if run.stop <= first)
        names = [run.name for run in done]
        if not done or names == list(self._done):
            return
        wanted = {run.name for run in done if self._is_read(run, done)}
        found: dict[str, dict[int, Any]] = {name: self._done.get(name, {}) for name in names}
        new = [name for name in names if name not in self._done]
        with watchable(self.model):
            for number, batch in enumerate(parts):
                with self.skipped(number):
                    for name, given in _given(self.model, new, batch).items():
                        found[name][number] = given
        for name in names:
            if name not in wanted:
                found[name] = {number: _without_contents(given) for number, given in found[name].items()}
        self._done = found

    def _is_read(self, run: _ModuleRun, done: Sequence[_ModuleRun]) -> bool:
        """Whether anything that runs anew reads what a module gave."""
        readers = {place for out in run.outs for place in self._readers.get(out, ())}
        return any(not any(other.start <= place < other.stop for other in done) for place in readers)

    def _works(self, batch: Batch) -> bool:
        """Whether the model gives the same with all left out that can be, and with half of it."""
        if not self._runs:
            return False
        last = max(run.stop for run in self._runs)
        with watchable(self.model):
            whole = tensors_in(batch.feed(self.model))
        for first in (last // 2, last):
            self._advance(first, [batch])
            with watchable(self.model), self.skipped(0):
                short = tensors_in(batch.feed(self.model))
            same = len(whole) == len(short) and all(torch.equal(a, b) for a, b in zip(whole, short, strict=True))
            if not same:
                break
        self._done = {}
        return same


@final
class _Score:
    """Listens to one run: at which operator each use of a parameter is, which modules run when, and who reads what.

    Attributes:
        at: the number of the operator of each use of a parameter, of each running mean, and of the first operator of
            each module.
        end: the number of operators.
        runs: modules that run once, give tensors, and are alone in using their parameters; in running order.
        readers: for each value the operators that are given it; one behind the last where the model returns it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.at: dict[Key | str, int] = {}
        self.end = 0
        self.runs: list[_ModuleRun] = []
        self.readers: dict[int, list[int]] = {}
        self._model = model
        self._follower: Follower | None = None
        self._watcher: Watcher | None = None
        self._place = 0
        self._places: dict[str, list[int]] = {}

    def listen(self, batch: Batch) -> None:
        """Run the model."""
        with watchable(self._model) as watch, ExitStack() as stack:
            for name, module in self._model.named_modules():
                run = _ModuleRun(name)
                self.runs.append(run)
                stack.callback(module.register_forward_pre_hook(partial(self._begin, run)).remove)
                stack.callback(module.register_forward_hook(partial(self._end, run)).remove)
            watch(batch, self.see)
        whole, *parts = self.runs
        self.end = self._place
        self.at |= {run.name: run.start for run in parts if run.times}
        for out in whole.outs:
            self.readers.setdefault(out, []).append(self._place)
        self.runs = sorted((run for run in parts if self._is_apart(run)), key=lambda run: (run.start, -run.stop))

    def _begin(self, run: _ModuleRun, module: nn.Module, args: Any) -> None:
        run.times, run.start = run.times + 1, self._place

    def _end(self, run: _ModuleRun, module: nn.Module, args: Any, output: Any) -> None:
        run.stop, run.gives_tensors = self._place, _is_kept(output)
        if self._watcher is not None:
            run.outs = tuple(self._watcher.value(tensor).id for tensor in tensors_in(output))

    def _is_apart(self, run: _ModuleRun) -> bool:
        """Whether a module runs once, gives tensors, and is alone in using its parameters."""
        uses = ([run.start <= place < run.stop for place in places] for places in self._places.values())
        return run.times == 1 and run.gives_tensors and all(all(inside) or not any(inside) for inside in uses)

    def see(
        self, watcher: Watcher, entry: Entry | WriteBack, uses: Sequence[Operand], args: tuple[Any, ...], out: Any
    ) -> None:
        """One operator."""
        self._watcher, place = watcher, self._place
        self._place += 1
        if isinstance(entry, WriteBack):
            self.readers.setdefault(entry.base.id, []).append(place)
            return
        for ref in entry.given:
            self.readers.setdefault(ref.id, []).append(place)
        self._follower = self._follower or Follower(watcher.tape.shape)
        for key, _ in self._follower.products(entry, uses):
            self.at[key] = place
            self._places.setdefault(key[0], []).append(place)
        if family(entry.name) == "batch norm":
            name = watcher.tape.named.get(getattr(entry.args[RUNNING_MEAN], "id", -1), "")
            self.at.setdefault(name, place)


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
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own


def _stop(module: nn.Module, args: Any) -> None:
    raise Enough


def _given(model: nn.Module, names: Sequence[str], batch: Batch) -> dict[str, Any]:
    """What modules give in one run, which ends with the last of them."""
    found: dict[str, Any] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        found[name] = _map_tensors(lambda tensor: tensor.detach().clone(), output)
        if len(found) == len(names):
            raise Enough

    with ExitStack() as stack:
        for name in names:
            handle = model.get_submodule(name).register_forward_hook(partial(keep, name))
            stack.callback(handle.remove)
        with suppress(Enough):
            batch.to(device_of(model)).feed(model)
    return found
