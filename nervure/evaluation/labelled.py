"""Batches as they come: pairs of inputs and labels, checked before they can spoil a result.

*Data* is anything that gives ``(inputs, labels)`` pairs each time it is iterated: a list of batches, a ``DataLoader``,
``split.batches(...)``. *Inputs* are a tensor, a tuple of positional arguments, a dict of keyword arguments, or
:class:`nervure.Inputs`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nervure.core.annotations import Batches
from nervure.core.inputs import Inputs
from nervure.core.late import send
from nervure.core.progress import ending
from nervure.core.tensors import require_numbers
from nervure.errors import ArgumentError, DataError

Batch: TypeAlias = tuple[Any, Tensor]
Data: TypeAlias = Batches
UNLABELLED = 255
"""What many label maps of pictures hold where there is no label."""
OTHERWISE = "or say what the model is for, where it is no classifier: task= (nervure.tasks)"


def pairs(data: Data, what: str = "data") -> Iterator[Batch]:
    """Yield ``(inputs, labels)`` for each batch.

    Raises:
        DataError: if ``data`` gives no batch or does not end, or a batch is no pair, has no tensor of labels, or holds
            no sample (see :func:`nervure.core.progress.ending`).
    """
    number = -1
    for number, batch in enumerate(ending(data, what)):
        if not (isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor)):
            raise DataError(
                f"batch {number} of {what} is {_shape_of(batch)}; give pairs (inputs, labels tensor), {OTHERWISE}."
            )
        if batch[1].numel() == 0:
            raise DataError(f"batch {number} of {what} holds no sample. Leave empty batches out.")
        yield batch[0], batch[1]
    if number < 0:
        raise DataError(
            f"{what} gave no batch. Check that it is not empty (drop_last with few samples?) "
            "and can be iterated again (a generator gives its batches once)."
        )


def call(model: nn.Module, inputs: Any) -> Tensor:
    """Run ``model`` on one batch of inputs and return its logits (see :func:`logits_of`)."""
    return logits_of(Inputs.of_batch(inputs).run(model))


def logits_of(output: Any) -> Tensor:
    """Find the logits in what a model returned: the tensor itself, the entry ``"logits"``, or the first of several.

    Raises:
        ArgumentError: if there is no tensor in one of these places.
    """
    if isinstance(output, Mapping) and "logits" in output:
        return logits_of(output["logits"])
    if isinstance(output, tuple | list) and output:
        return logits_of(output[0])
    if not isinstance(output, Tensor):
        raise ArgumentError(
            f"the model returned {_shape_of(output)}; logits are looked for as a tensor, the entry 'logits' of a "
            "mapping, or the first of a tuple. Wrap the model, or pass an objective that reads its output."
        )
    return output


def require_labels(labels: Tensor, logits: Tensor, *, read: bool = True) -> Tensor:
    """Return ``labels`` as int64 if they are classes of ``logits`` [samples, classes, ...].

    With ``read`` False only their form is checked: a GPU has to be waited for where its numbers are looked at.

    Raises:
        DataError: if labels are not whole numbers, their shape is not that of the logits without the class axis, or
            one lies outside 0 .. classes - 1.
    """
    if labels.is_meta or logits.is_meta:
        raise DataError("labels or outputs are on the meta device, which has shapes without numbers.")
    expected = (*logits.shape[:1], *logits.shape[2:])
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"labels have dtype {labels.dtype}; give the numbers of the classes, as int64, {OTHERWISE}.")
    if logits.ndim < 2 or tuple(labels.shape) != expected:
        raise DataError(
            f"labels of shape {tuple(labels.shape)} do not fit outputs of shape {tuple(logits.shape)}; "
            f"outputs [samples, classes] go with labels [samples]; {OTHERWISE}."
        )
    if read:
        require_classes(labels, logits.shape[1])
    return labels.long()


def require_classes(labels: Tensor, classes: int) -> None:
    """Raise :class:`DataError` naming the label if one is outside 0 .. ``classes`` - 1."""
    if labels.numel() == 0:
        raise DataError("there are no labels: give one sample at least.")
    for label in reversed(torch.stack(torch.aminmax(labels)).tolist()):
        if not 0 <= label < classes:
            raise DataError(
                f"label {label} is out of range: the model has {classes} outputs, for the labels 0 .. {classes - 1}. "
                + _advise(label)
            )


def _advise(label: int) -> str:
    if label < 0 or label == UNLABELLED:
        return (
            f"Where it marks what does not count, say so: task=tasks.classification(ignore={label}), or another task "
            "of nervure.tasks that takes ignore=."
        )
    return "Number the classes from 0, or give the model more outputs."


def require_finite_outputs(logits: Tensor, where: str) -> None:
    """Raise :class:`DataError` if an output is NaN or infinite; ``where`` says which batch."""
    if logits.is_meta:
        raise DataError(f"outputs in {where} have shapes without numbers: the model is on the meta device.")
    bad = int((~torch.isfinite(logits)).sum())
    if bad:
        raise DataError(
            f"{bad} of {logits.numel()} outputs of the model are NaN or infinite in {where}. "
            "Check the inputs and the weights for NaN."
        )


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor inside nested tuples, lists and dicts to ``device``; the rest stays as it is."""
    if isinstance(value, Tensor):
        return send(require_numbers(value, device), device)
    if isinstance(value, Inputs):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(entry, device) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return tuple(to_device(entry, device) for entry in value)
    return value


def _shape_of(value: Any) -> str:
    """Say in a few words what was given, for an error."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
