"""A model run with somebody looking at each operator: what it was given, what it gave, which parameters it used."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeAlias, final

from torch import Tensor, nn

from nervure.graph.models import device_of, evaluating
from nervure.graph.modes import disable_compile, leave_modes
from nervure.graph.preserve import remember, restore_after
from nervure.graph.products import Operand, Provenance
from nervure.graph.storages import NoStorageLog
from nervure.graph.tape import Entry, Recorder, Ref, Tape, WriteBack, named_tensors, plain_kernels
from nervure.stats.loaders import Batch

See: TypeAlias = Callable[["Watcher", Entry | WriteBack, Sequence[Operand], tuple[Any, ...], Any], None]
"""Who watches, an operator, the parameters that it multiplies with, what it was given and what it gave."""


class Enough(BaseException):
    """All that was to be seen has been seen: the run stops. No error, so no ``except Exception`` keeps it."""


@final
class Watcher(Recorder):
    """Shows ``see`` each operator as it happens; ``tensors`` are those of the model, by name."""

    def __init__(self, tensors: Mapping[str, Tensor], see: See, playback: "SkippedStart | None" = None) -> None:
        super().__init__(Tape(storages=NoStorageLog()))
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        parameters = frozenset(name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter))
        self.provenance = Provenance(self.tape, parameters)
        self._see, self._read, self._playback = see, 0, playback

    def value(self, tensor: Tensor) -> Ref:
        """Its number. Tensors of the model have names; each gets its number where it is first met."""
        number = self.memory.number(tensor)
        if number is not None:
            return Ref(number)
        ref, name = self.new(tensor), self._names.get(id(tensor))
        if name is not None:
            self.tape.named[ref.id] = name
            self.provenance.begin(ref.id, name)
        return ref

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator and write it down; one that is done gives what it gave, and nobody sees it."""
        if self._playback is not None and self._playback.plays():
            found = self._playback.operator(func, args, kwargs)
            if found is not RUN:
                return found
        return super().compute(func, args, kwargs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        # A composite operator has been seen already, part by part.
        new, self._read = self.tape.entries[self._read :], len(self.tape.entries)
        for entry in new:
            self._see(self, entry, self.provenance.step(entry), args, out)
        return out


RUN = object()
"""What an operator gave that does not depend on the data: it is run again, so that who watches knows what it is."""


class SkippedStart(Protocol):
    """The beginning of a run that is skipped, see :mod:`nervure.refit.replay`."""

    def plays(self) -> bool:
        """Whether the next operator is skipped."""

    def operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What it gave, or ``RUN``."""


@final
class Watch:
    """Runs a model on a batch, until who watches has seen enough; perhaps with its beginning skipped."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._tensors, self._device = model, named_tensors(model), device_of(model)
        self._put_back = remember(model)

    def __call__(self, batch: Batch, see: See, playback: SkippedStart | None = None) -> None:
        """One run."""
        # Moved before anybody looks: that is no operator of the model, and not every run would have it.
        moved = batch.to(self._device)
        with suppress(Enough), Watcher(self._tensors, see, playback):
            moved.feed(self._model)

    def put_back(self) -> None:
        """Attributes and containers of the model become what they were before the first run.

        What a run makes where there is none yet (grids for a size of pictures, say) the next one makes again then: the
        same operators run for a batch, whatever ran before.
        """
        self._put_back()


@contextmanager
def running(model: nn.Module) -> Iterator[None]:
    """While this lasts a model, or parts of it, run as in evaluation; what runs write is put back afterwards."""
    with leave_modes(), restore_after(model), disable_compile(), evaluating(model), plain_kernels(model):
        yield


@contextmanager
def watchable(model: nn.Module) -> Iterator[Watch]:
    """While this lasts the model can be run, in evaluation mode; what runs write is put back afterwards."""
    with running(model):
        yield Watch(model)
