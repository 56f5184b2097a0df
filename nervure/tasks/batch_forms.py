"""Batches of any form: what of them goes into a model, where their labels are, how many samples they hold.

A batch is a tensor, a pair, a mapping (a ``BatchEncoding`` is one), a dataclass, a named tuple, nested in one another,
or an object of the user's that its model takes whole.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from nervure.core.check import Checked
from nervure.core.documents import is_shallow
from nervure.core.inputs import Inputs
from nervure.core.late import send
from nervure.core.progress import ending
from nervure.core.tensors import require_numbers, tensors_in
from nervure.errors import DataError

Place: TypeAlias = str | int | Callable[[Any], Any]
"""Where something is in a batch: a name (``"meta.age"`` and ``"1.age"`` go down a level), a number, or a function."""

LABELS = ("labels", "label", "targets", "target", "y")
"""What the labels of a batch with named parts are called; the first that is there."""


@final
@dataclass(frozen=True, slots=True)
class Layout(Checked):
    """Where a batch has inputs and labels.

    Attributes:
        inputs: the places of the inputs, where it is not all but the labels. Parts go in by their names where the
            model's forward takes these names, otherwise in the order in which they stand.
        labels: the place of the labels, where it is none of :data:`LABELS`, nor the second of a pair.
    """

    inputs: Place | tuple[Place, ...] | None = None
    labels: Place | None = None

    def feed(self, model: nn.Module, batch: Any) -> Any:
        """What ``model`` makes of the inputs, or of copies, for it may write into what it is given.

        Raises:
            DataError: the batch has no such parts, or the model takes none of such names.
            ForwardError: the model's own forward raised.
        """
        return map_tensors(torch.clone, self.example_in(model, batch)).run(model)

    def example_in(self, model: nn.Module, batch: Any) -> Inputs:
        """What ``model`` is called with on a batch; raises DataError as :meth:`feed`."""
        return Inputs(*self._arguments(model, self.inputs_in(batch)))

    def inputs_in(self, batch: Any) -> Any:
        """The inputs: a tensor, a tuple of them, a mapping, or an object that the model takes whole."""
        if isinstance(self.inputs, tuple):
            parts = [find_part(batch, place) for place in self.inputs]
            if all(isinstance(place, str) for place in self.inputs):
                return {str(p).rpartition(".")[2]: part for p, part in zip(self.inputs, parts, strict=True)}
            return tuple(parts)
        return self._split(batch)[0] if self.inputs is None else find_part(batch, self.inputs)

    def labels_in(self, batch: Any) -> Any:
        """The labels, as they are; None where there are none."""
        return self._split(batch)[1] if self.labels is None else find_part(batch, self.labels)

    def require_labels(self, batch: Any) -> Any:
        """The labels; raises DataError where there are none."""
        labels = self.labels_in(batch)
        if labels is None:
            raise DataError(
                f"there are no labels in {describe_batch(batch)}. Give (inputs, labels), a part called "
                f"{' or '.join(map(repr, LABELS[:2]))}, or say where they are: labels=."
            )
        return labels

    def count(self, batch: Any) -> int:
        """How many samples there are; raises DataError where that cannot be told, or there are none."""
        whole = tensors_in(self._inputs_or_all(batch)) or tensors_in(batch)
        size = next((len(tensor) for tensor in whole if tensor.ndim), None)
        if not size:
            raise DataError(f"there {'are no tensors' if size is None else 'is no sample'} in {describe_batch(batch)}.")
        return size

    def _inputs_or_all(self, batch: Any) -> Any:
        try:
            return self.inputs_in(batch)
        except DataError:
            # A loss of one's own takes a batch apart by itself: it has samples, whoever says which parts are inputs.
            if self != Layout():
                raise
            return batch

    def _split(self, batch: Any) -> tuple[Any, Any]:
        parts = parts_of(batch)
        name = next((name for name in (self.labels, *LABELS) if isinstance(name, str) and name in (parts or ())), None)
        if parts is not None and (name is not None or not isinstance(batch, tuple)):
            labels = None if name is None else parts[name]
            return {key: part for key, part in parts.items() if key != name}, labels
        if not isinstance(batch, tuple | list):
            return batch, None
        if isinstance(self.labels, int):
            at = self.labels % max(len(batch), 1)
            rest = tuple(part for number, part in enumerate(batch) if number != at)
            return (rest[0] if len(rest) == 1 else rest), batch[at]
        match tuple(batch):
            case (inputs,):
                return inputs, None
            case (inputs, labels):
                return inputs, labels
        raise DataError(
            f"{describe_batch(batch)}: say which parts are inputs and which are labels, "
            f"e.g. inputs={tuple(range(max(len(batch) - 1, 1)))}, labels={max(len(batch) - 1, 1)}; with a loss of your "
            "own, Task(objective=loss, forward=lambda model, batch: model(batch[0]))."
        )

    def _arguments(self, model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        if isinstance(inputs, Inputs):
            return inputs.args, inputs.kwargs
        parts = parts_of(inputs)
        if parts is None or (isinstance(inputs, tuple) and not _takes(model, parts)):
            return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}
        if _takes(model, parts):
            return (), {str(name): part for name, part in parts.items()}
        if len(parts) == 1:
            return self._arguments(model, next(iter(parts.values())))
        if self.inputs is not None or not isinstance(inputs, Mapping):
            return (tuple(parts.values()) if isinstance(inputs, Mapping) else (inputs,)), {}
        raise DataError(_say_how_parts_go_in(model, tuple(parts)))


def _say_how_parts_go_in(model: nn.Module, parts: tuple[Any, ...]) -> str:
    """What to do where a model takes none of the names of a batch; its first parts are proposed."""
    takes = tuple(signature(model.forward).parameters)
    names = parts[: len(takes) or 1]
    places = repr(names[0] if len(names) == 1 else names)
    call = ", ".join(f"batch[{name!r}]" for name in names)
    return (
        f"the model takes {', '.join(takes) or 'nothing'}, and the batch has {', '.join(map(str, parts))}. A task says "
        f"which parts go in: inputs={places} of the makers in nervure.tasks; with a loss of your own, "
        f"Task(objective=loss, forward=lambda model, batch: model({call}))."
    )


def parts_of(batch: Any) -> Mapping[Any, Any] | None:
    """The parts of a mapping, a dataclass or a named tuple by their names; None for anything else."""
    if isinstance(batch, Inputs):
        return None
    if isinstance(batch, Mapping):
        return batch
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    names = getattr(type(batch), "_fields", None)
    return dict(zip(names, batch, strict=True)) if isinstance(batch, tuple) and names else None


def find_part(batch: Any, place: Place) -> Any:
    """What is at a place of a batch; raises DataError where nothing is."""
    if not isinstance(place, str | int):
        return place(batch)
    try:
        parts = parts_of(batch)
        if isinstance(place, int):
            return (batch if parts is None else list(parts.values()))[place]
        if parts is not None and place in parts:
            return parts[place]
        name, dot, rest = place.partition(".")
        found = parts[name] if parts is not None else _find_in_object(batch, name)
        return find_part(found, rest) if dot else found
    except (LookupError, AttributeError, TypeError):
        raise DataError(f"there is no {place!r} in {describe_batch(batch)}.") from None


def _find_in_object(batch: Any, name: str) -> Any:
    return batch[int(name)] if name.isdigit() else getattr(batch, name)


def map_tensors(function: Callable[[Tensor], Any], batch: Any, other: Callable[[Any], Any] = lambda leaf: leaf) -> Any:
    """A batch of the same form, each tensor as ``function`` makes it, and all else that has no parts as ``other`` does.

    >>> map_tensors(lambda x: x * 2, {"x": torch.ones(2), "names": ["a", "b"]})
    {'x': tensor([2., 2.]), 'names': ['a', 'b']}
    """
    again = partial(map_tensors, function, other=other)
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Inputs):
        return Inputs(again(batch.args), again(batch.kwargs))
    if isinstance(batch, MutableMapping):
        mapping = copy.copy(batch)
        for name, part in batch.items():
            mapping[name] = again(part)
        return mapping
    if isinstance(batch, Mapping):
        return {name: again(part) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        parts = map(again, batch)
        return type(batch)(*parts) if isinstance(batch, tuple) and parts_of(batch) is not None else type(batch)(parts)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        made = copy.copy(batch)
        for name, part in (parts_of(batch) or {}).items():
            # Frozen or not: the copy is ours.
            object.__setattr__(made, name, again(part))
        return made
    return other(batch)


def leaves_in(batch: Any) -> list[Any]:
    """All that a batch holds, in order: tensors, and whatever else has no parts."""
    found = list[Any]()

    def note(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    map_tensors(note, batch, note)
    return found


def take_samples(batch: Any, which: slice | Tensor, size: int) -> Any:
    """Some of the ``size`` samples of a batch: of each tensor that has as many rows, and of each list of as many."""

    def has_rows(x: Any) -> bool:
        return isinstance(x, Tensor) and x.ndim > 0 and len(x) == size

    def take(x: Tensor) -> Tensor:
        return x[which if isinstance(which, slice) else which.to(x.device)] if has_rows(x) else x

    def take_items(part: Any) -> Any:
        # A list of inputs can be as long as a batch, but then each of them has that many rows.
        if type(part) is list and len(part) == size and not all(map(has_rows, part)):
            return [part[place] for place in torch.arange(size)[which]]
        return _map_parts(take_items, part) if type(part) in (dict, tuple) else part

    return map_tensors(take, _map_parts(take_items, batch))


def _map_parts(function: Callable[[Any], Any], batch: Any) -> Any:
    """A plain tuple, list or dict whose parts are as ``function`` makes them; anything else as it is."""
    if type(batch) is dict:
        return {name: function(part) for name, part in batch.items()}
    return type(batch)(map(function, batch)) if type(batch) in (tuple, list) else batch


def iterate_batches(data: Iterable[Any], what: str = "data") -> Iterator[Any]:
    """Each batch as it comes, of whatever form.

    Raises:
        DataError: ``data`` give no batch or do not end (see :func:`nervure.core.progress.ending`), or a batch holds
            itself.
    """
    number = -1
    for number, batch in enumerate(ending(data, what)):
        if not is_shallow(batch):
            raise DataError(f"batch {number} of {what} is nested too deeply, or holds itself.")
        yield batch
    if number < 0:
        raise DataError(
            f"{what} gave no batch. Check that it is not empty (drop_last with few samples?) "
            "and can be iterated again (a generator gives its batches once)."
        )


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Say which batch it is that data errors are about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{what}: {error}") from error


def move_batch(batch: Any, device: torch.device) -> Any:
    """The same batch on another device: its tensors, and what moves itself by a method ``to``."""

    def move(leaf: Any) -> Any:
        to = getattr(leaf, "to", None)
        return to(device) if callable(to) and not isinstance(leaf, type | nn.Module) else leaf

    return map_tensors(lambda x: send(require_numbers(x, device), device), batch, move)


def describe_batch(batch: Any) -> str:
    """The form of a batch, for messages: ``"a dict of input_ids [8, 64], labels [8, 64]"``."""
    if isinstance(batch, Tensor):
        return f"a tensor {list(batch.shape)}"
    parts = parts_of(batch)
    if parts is None:
        listed = isinstance(batch, Sequence) and not isinstance(batch, str)
        return f"a {type(batch).__name__}{f' of {len(batch)}' if listed else ''}"
    each = (f"{name} {list(p.shape)}" if isinstance(p, Tensor) else str(name) for name, p in parts.items())
    return f"a {type(batch).__name__} of {', '.join(each) or 'nothing'}"


def _takes(model: nn.Module, parts: Mapping[Any, Any]) -> bool:
    """Whether the model's forward can be called with parts of such names."""
    try:
        signature(model.forward).bind(**{str(name): part for name, part in parts.items()})
    except TypeError:
        return False
    except ValueError:
        # Functions written in C may keep their signature to themselves.
        return True
    return True
