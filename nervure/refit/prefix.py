"""Layers that need not run again: what the last of them gave is kept, and the next one begins with it.

Refit goes up a network level by level. In a list of layers, or several on end (the stages of a network), each of which
reads what the one before it gives, those below the level give the same again and again. Without this the cost of a
refit grows with the square of the depth.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from nervure.core.tensors import tensors_in
from nervure.graph.models import device_of
from nervure.refit.activations import Enough, Watch, Watcher, watchable
from nervure.refit.survey import LayerReading
from nervure.stats.loaders import Batch

TRIED = 4
"""How many lists are tried, the longest first."""


@final
class Prefix:
    """A model, and the first layers of a list in it, as many as are done.

    Attributes:
        model: the model.
        names: the layers of the list, in running order; none where the model has no such list.
        depth: how many of them do not run.
        last: the order of the last use of a parameter in them, see ``Reading.order``.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.model = model
        self.names, self.depth, self.last = tuple(names), 0, -1
        self._layers = [model.get_submodule(name) for name in names]
        self._kept: dict[int, Tensor] = {}

    def index(self, tensor: str) -> int | None:
        """The number of the layer that a tensor is in; None: it is in none."""
        return next((n for n, name in enumerate(self.names) if tensor.startswith(f"{name}.")), None)

    def note(self, readings: Iterable[LayerReading]) -> None:
        """Know which of all uses of parameters are before the list, and which behind it."""
        self.last = max((r.order for r in readings if self.index(r.key[0]) is not None), default=-1)

    def before(self, reading: LayerReading) -> int:
        """How many layers a use of a parameter leaves to be skipped: those before it."""
        inside = self.index(reading.key[0])
        if inside is not None:
            return inside
        return len(self.names) if reading.order > self.last else 0

    @contextmanager
    def stopped(self, depth: int) -> Iterator[None]:
        """While this lasts nothing runs behind the first ``depth`` layers, if the list has so many."""
        if not 0 < depth <= len(self.names):
            yield
            return
        handle = self._layers[depth - 1].register_forward_hook(_stop)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def skipped(self, part: int) -> Iterator[None]:
        """While this lasts the layers that are done give what they gave for this part of the data."""
        with ExitStack() as stack:
            for layer in self._layers[: max(self.depth - 1, 0)]:
                stack.enter_context(run_instead(layer, lambda x, *args, **kwargs: x))
            if self.depth:
                kept = self._kept[part]
                stack.enter_context(run_instead(self._layers[self.depth - 1], lambda *args, **kwargs: kept.clone()))
            yield

    def advance(self, depth: int, parts: Iterable[Batch]) -> None:
        """Keep what layer number ``depth`` - 1 gives for each part; those up to it are done."""
        if depth <= self.depth:
            return
        found: dict[int, Tensor] = {}
        with watchable(self.model) as watch:
            for number, batch in enumerate(parts):
                with self.skipped(number):
                    found[number] = output_of(self._layers[depth - 1], watch, batch)
        self._kept, self.depth = found, depth


def _stop(module: nn.Module, args: Any, output: Any) -> None:
    raise Enough


@contextmanager
def run_instead(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While this lasts a layer runs something else."""
    own = vars(layer).get("forward")
    vars(layer)["forward"] = forward
    try:
        yield
    finally:
        del vars(layer)["forward"]
        if own is not None:
            vars(layer)["forward"] = own


def output_of(layer: nn.Module, watch: Watch, batch: Batch) -> Tensor:
    """What a layer gives where its model runs on a batch; nothing runs behind it."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        found.append(output.detach().clone())
        raise Enough

    handle = layer.register_forward_hook(keep)
    try:
        watch(batch, look_away)
    finally:
        handle.remove()
    return found[0]


def look_away(watcher: Watcher, entry: Any, uses: Any, args: Any, out: Any) -> None:
    """Nothing is to be seen."""


def prefix_of(model: nn.Module, batch: Batch) -> Prefix:
    """The longest list of layers in a model that run one after the other, on what the one before gave.

    It is tried: with its first layers skipped, the model has to give the same again. Where it does not, shorter ones
    are.
    """
    batch = batch.to(device_of(model))
    with watchable(model):
        lists = sorted(_chains(model, batch), key=len, reverse=True)
    return next((Prefix(model, names) for names in lists[:TRIED] if _works(model, names, batch)), Prefix(model, ()))


def _works(model: nn.Module, names: Sequence[str], batch: Batch) -> bool:
    """Whether the model gives the same with the first layers skipped, however many of them."""
    found = Prefix(model, names)
    try:
        with watchable(model):
            whole = tensors_in(batch.feed(model))
            return all(_are_equal(whole, _skipping(found, depth, batch)) for depth in _depths(names))
    except Exception:
        # What looks at a layer that was skipped finds something of another shape, and may say so in any way.
        return False


def _depths(names: Sequence[str]) -> list[int]:
    """How many layers are skipped to try it: half, all of the lists before another, all but the last.

    Skips from an encoder to a decoder are only seen where the one is skipped and the other is not.
    """
    owners = [name.rpartition(".")[0] for name in names]
    ends = {n for n, (one, other) in enumerate(itertools.pairwise(owners), 1) if one != other}
    return sorted({*ends, len(names) // 2, len(names) - 1})


def _skipping(found: Prefix, depth: int, batch: Batch) -> list[Tensor]:
    """What the model gives with so many layers skipped."""
    found.advance(depth, [batch])
    with found.skipped(0):
        return tensors_in(batch.feed(found.model))


def _are_equal(whole: Sequence[Tensor], short: Sequence[Tensor]) -> bool:
    return len(whole) == len(short) and all(torch.equal(a, b) for a, b in zip(whole, short, strict=True))


def _chains(model: nn.Module, batch: Batch) -> Iterator[tuple[str, ...]]:
    """Lists of two layers or more that each run once, in order, from tensor to tensor, and share no parameters."""
    lists = {
        name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 1
    }
    calls: list[tuple[nn.Module, Any, Any]] = []
    with ExitStack() as stack:
        for layer in {id(layer): layer for listed in lists.values() for layer in listed}.values():
            handle = layer.register_forward_hook(
                lambda *call: calls.append((call[0], call[1], call[3])), with_kwargs=True
            )
            stack.callback(handle.remove)
        batch.feed(model)
    whole: list[tuple[str, ...]] = []
    ends: list[tuple[Any, Any]] = []
    for name, listed in lists.items():
        mine = [call for call in calls if any(call[0] is layer for layer in listed)]
        if [layer for layer, _, _ in mine] == list(listed) and _is_chain(mine) and not _share(model, listed):
            whole.append(tuple(f"{name}.{key}" if name else key for key, _ in listed.named_children()))
            ends.append((mine[0][1][0] if mine[0][1] else None, mine[-1][2]))
    yield from _join(whole, ends)


def _join(lists: Sequence[tuple[str, ...]], ends: Sequence[tuple[Any, Any]]) -> Iterator[tuple[str, ...]]:
    """Each list, and behind it those that take up what the one before them gave: the stages of a network."""
    for first, names in enumerate(lists):
        joined, last = list(names), first
        while (after := _next(ends, last)) is not None:
            joined, last = [*joined, *lists[after]], after
        yield from {names, tuple(joined)}


def _next(ends: Sequence[tuple[Any, Any]], last: int) -> int | None:
    """The list behind this one that takes what it gave."""
    return next((n for n, (taken, _) in enumerate(ends) if n > last and taken is ends[last][1]), None)


def _is_chain(calls: Sequence[tuple[nn.Module, Any, Any]]) -> bool:
    """Whether each layer gives a tensor, and takes first what the one before it gave."""
    follows = all(args and args[0] is given for (_, _, given), (_, args, _) in itertools.pairwise(calls))
    return follows and all(isinstance(given, Tensor) for _, _, given in calls)


def _share(model: nn.Module, listed: Iterable[nn.Module]) -> bool:
    """Whether layers share a parameter with each other or with anything else."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return any(owners[id(p)] > 1 for layer in listed for p in layer.parameters())
