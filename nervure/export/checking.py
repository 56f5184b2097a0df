"""Whether an exported file computes what the module computes, and which layer is the first that does not."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nervure.core.check import show_value
from nervure.core.inputs import Inputs
from nervure.core.tensors import cloned
from nervure.engines import Runner
from nervure.errors import ArgumentError, DataError, VerificationError
from nervure.evaluation.labelled import Batch, logits_of, require_labels
from nervure.graph.models import device_of, evaluating
from nervure.graph.preserve import restore_after

SMALLEST_SCALE = 1e-3
"""Below this outputs count as nothing: a difference is not taken relative to less."""


@final
@dataclass(frozen=True, slots=True)
class FileDifference:
    """How far a file and its module are apart on some inputs.

    Attributes:
        largest: largest difference of any output, relative to the largest magnitude of that output tensor; of whole
            numbers, the share that is not the same.
        batches: the batch sizes run.
        tolerance: the largest difference allowed; None: it is told, whatever it is.
        agreement: share of samples that get the same class, in [0, 1]; None where the outputs name no classes.
        accuracy: share of samples named right by the module and by the file; None without labels.
    """

    largest: float
    batches: tuple[int, ...]
    tolerance: float | None = None
    agreement: float | None = None
    accuracy: tuple[float, float] | None = None

    @property
    def ok(self) -> bool:
        """Whether the difference is within what is allowed."""
        return self.tolerance is None or self.largest <= self.tolerance


def difference(expected: Any, found: Any) -> float:
    """Largest difference of any tensor, relative to its largest magnitude, see :class:`FileDifference`.

    Raises:
        VerificationError: the number of tensors or a shape differs, or one is not finite where the other is.
    """
    pairs = list(zip(_tensors(expected), _tensors(found), strict=False))
    if len(_tensors(expected)) != len(_tensors(found)):
        raise VerificationError(f"it returns {len(_tensors(found))} tensors, the module {len(_tensors(expected))}.")
    return max((_apart(i, a.cpu(), b.cpu()) for i, (a, b) in enumerate(pairs)), default=0.0)


def _apart(number: int, a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        raise VerificationError(f"output {number} has shape {tuple(b.shape)}, the module's is {tuple(a.shape)}.")
    if a.numel() == 0:
        return 0.0
    if not a.is_floating_point():
        return float((a != b).double().mean())
    a, b = a.double(), b.double()
    if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
        raise VerificationError(f"output {number} is not finite where the module's is, or the other way round.")
    a, b = (torch.nan_to_num(x, posinf=0.0, neginf=0.0) for x in (a, b))
    return float((a - b).abs().max() / a.abs().max().clamp(min=SMALLEST_SCALE))


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def on_random(
    model: nn.Module, runner: Runner, example: Inputs, batches: Sequence[int], tolerance: float | None
) -> FileDifference:
    """Run both on random inputs like the example, at each batch size."""
    drawn = [random_like(example, batch, seed=batch) for batch in batches]
    largest = 0.0
    for inputs in drawn:
        expected = _run_reference(model, inputs)
        largest = max(largest, difference(expected, runner(inputs.plain())))
    return FileDifference(largest, tuple(batches), tolerance)


def on_data(
    model: nn.Module, runner: Runner, data: Iterable[Batch], tolerance: float | None, fixed: int | None
) -> FileDifference:
    """Run both on batches of real inputs with labels; a file for a ``fixed`` number of samples gets as many."""
    largest, sizes, counts = 0.0, [], []
    for inputs, labels in data:
        if not (isinstance(labels, Tensor) and labels.ndim):
            raise DataError(
                f"check= holds a batch whose labels are {show_value(labels)}; give one label for each sample."
            )
        given, known = Inputs.of_batch(inputs), labels
        if fixed:
            given, known = given.resize(fixed), labels[torch.arange(fixed) % len(labels)]
        expected, found = _run_reference(model, given), runner(given.plain())
        largest = max(largest, difference(expected, found))
        sizes.append(len(known))
        counts.append(_classes(expected, found, known))
    batches = tuple(dict.fromkeys(sizes))
    same, ours, theirs, samples = (sum(column) for column in zip(*counts, strict=True))
    if not samples:
        return FileDifference(largest, batches, tolerance)
    return FileDifference(largest, batches, tolerance, same / samples, (ours / samples, theirs / samples))


def _classes(expected: Any, found: Any, labels: Tensor) -> tuple[int, int, int, int]:
    """How often both name the same class, the module the right one, the file the right one; and out of how many."""
    try:
        ours, theirs = logits_of(expected).cpu(), logits_of(found).cpu()
        known = require_labels(labels.cpu(), ours)
    except (ArgumentError, DataError):
        # Not a classifier, or labels of another kind: there are only numbers to compare.
        return 0, 0, 0, 0
    a, b = ours.argmax(1), theirs.argmax(1)
    return int((a == b).sum()), int((a == known).sum()), int((b == known).sum()), known.numel()


def _run_reference(model: nn.Module, inputs: Inputs) -> Any:
    given = inputs.to(device_of(model))
    with restore_after(model, given), evaluating(model):
        # Copies: an output may be a buffer, which is put back.
        return cloned(given.run(model))


def random_like(example: Inputs, samples: int, *, seed: int) -> Inputs:
    """Random inputs with ``samples`` samples: numbers scattered as those of the example, whole ones within its range.

    What has no axis of samples stays as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = iter([t.shape for t in _tensors(example.resize(samples + 1))])
    # A tensor that changes with the number of samples has an axis of them.
    return example.resize(samples).map(lambda x: x if x.shape == next(shapes) else _draw(x, generator))


def _draw(like: Tensor, generator: torch.Generator) -> Tensor:
    if like.dtype == torch.bool:
        random = torch.rand(like.shape, generator=generator) < 0.5
    elif like.is_floating_point():
        spread = float(like.double().std()) if like.numel() > 1 else 0.0
        random = torch.randn(like.shape, generator=generator) * (spread or 1.0) + float(like.double().mean())
    else:
        random = torch.randint(int(like.min()), int(like.max()) + 1, like.shape, generator=generator)
    return random.to(dtype=like.dtype, device=like.device)


def first_different(
    model: nn.Module, inputs: Inputs, tolerance: float, exported: Callable[[], Runner]
) -> tuple[str, float] | None:
    """The first layer whose output differs, and by how much; None where none does by itself.

    Args:
        model: the module.
        inputs: on which they are run.
        tolerance: what counts as different.
        exported: exports the module as it is when called, and returns a runner of the file.
    """
    with telling(model) as names:
        runner = exported()
        expected = _run_reference(model, inputs)
        told = list(names)
        for name, a, b in zip(told, _tensors(expected), _tensors(runner(inputs.plain())), strict=True):
            apart = difference(a, b)
            if apart > tolerance:
                return name, apart
    return None


@contextmanager
def telling(model: nn.Module) -> Iterator[list[str]]:
    """Let ``model`` return the outputs of all its layers, in the order of their ends, instead of its own.

    Yields:
        The names of the layers in that order, as of its last run.
    """
    names: list[str] = []
    outputs: list[Tensor] = []
    heard: list[Tensor] = []

    def begin(module: nn.Module, args: Any) -> None:
        for told in (names, outputs, heard):
            told.clear()

    def hear(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for tensor in _tensors(output):
                # A container hands on what its last layer put out, which was told then.
                if any(module.children()) and any(tensor is other for other in heard):
                    continue
                heard.append(tensor)
                names.append(name)
                # A copy, for what comes next may change it in place.
                outputs.append(tensor.clone())

        return hook

    def end(module: nn.Module, args: Any, output: Any) -> list[Tensor]:
        return list(outputs)

    handles = [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
    handles += [layer.register_forward_hook(hear(name)) for name, layer in model.named_modules() if name]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()
