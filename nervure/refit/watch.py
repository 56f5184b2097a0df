"""A model run with somebody looking at each operator: what it was given, what it gave, which parameters it used."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias, final

import torch
from torch import nn

from nervure.graph.example import evaluating
from nervure.graph.modes import isolated, uncompiled
from nervure.graph.preserve import preserved
from nervure.graph.products import Provenance, Use
from nervure.graph.tape import Entry, Recorder, Tape, WriteBack, named_tensors, plain_kernels
from nervure.stats.batches import Batch

See: TypeAlias = Callable[["Watcher", Entry | WriteBack, Sequence[Use], tuple[Any, ...], Any], None]
"""Who watches, an operator, the parameters that it multiplies with, what it was given and what it gave."""


class Enough(BaseException):
    """All that was to be seen has been seen: the run stops. No error, so no ``except Exception`` keeps it."""


@final
class Watcher(Recorder):
    """Shows ``see`` each operator as it happens."""

    def __init__(self, model: nn.Module, see: See) -> None:
        super().__init__(Tape())
        for name, tensor in named_tensors(model).items():
            self.tape.named[self.new(tensor).id] = name
        self.provenance = Provenance(self.tape, frozenset(name for name, _ in model.named_parameters()))
        self._see, self._read = see, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        # A composite operator has been seen already, part by part.
        new, self._read = self.tape.entries[self._read :], len(self.tape.entries)
        for entry in new:
            self._see(self, entry, self.provenance.step(entry), args, out)
        return out


@contextmanager
def watchable(*models: nn.Module) -> Iterator[None]:
    """While this lasts the models can be watched; what their runs write is put back afterwards."""
    with isolated(), preserved(nn.ModuleList(models)), uncompiled(), torch.no_grad():
        yield


def watch(model: nn.Module, batch: Batch, see: See) -> None:
    """Run ``model`` in evaluation mode, until ``see`` raises :class:`Enough`; inside of :func:`watchable`."""
    with suppress(Enough), evaluating(model), plain_kernels(model), Watcher(model, see):
        batch.feed(model)
