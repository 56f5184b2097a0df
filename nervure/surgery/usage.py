"""Run a smaller model as its user will: both modes, with and without gradients, another batch, fused kernels on."""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from nervure.core.inputs import Inputs
from nervure.core.tensors import tensors_in
from nervure.errors import ArgumentError, NervureWarning
from nervure.graph.copies import copy_model
from nervure.graph.preserve import restore_after
from nervure.surgery.checker import Checker
from nervure.surgery.randomness import fixed_seed


class UsageMode(NamedTuple):
    """One way to run a model."""

    told: str
    training: bool
    gradients: bool
    inputs: Inputs


def broken_use(checker: Checker, smaller: nn.Module) -> str:
    """In which use ``smaller`` breaks though the original does not, with the error; empty if in none.

    Where the original takes a way that it took on no example, nothing is known of it, which is told by a
    :class:`NervureWarning`.
    """
    for use in (use for run in checker.runs for use in _failing_uses(smaller, run.inputs, run.small)):
        error = _error_of(smaller, use)
        if error and not _error_of(checker.model, use):
            others = _other_modules(checker, use)
            if not others:
                return f"{use.told}: {error}"
            warnings.warn(
                f"{use.told} the model takes another way than on the example, through {', '.join(others[:5])}, and "
                f"there the pruned model does not run ({error}). Give one example for each way: [one, other].",
                NervureWarning,
                stacklevel=2,
            )
    return ""


def _other_modules(checker: Checker, use: UsageMode) -> list[str]:
    """Modules that the original runs in this use but in no traced run; or that it misses, of the nearest of these."""
    reached: set[str] = set()
    model = copy_model(checker.model)
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda module, args, name=name: reached.add(name))
    _run(model, use)
    tape = checker.drawing.flow.tape
    ways = [{c.name for c in tape.calls if c.start in tape.entries_of(run.run)} for run in checker.runs]
    new = reached - {call.name for call in tape.calls}
    missed = min((way - reached for way in ways), key=len)
    return sorted(new if use.training else new | missed)


def _failing_uses(model: nn.Module, inputs: Inputs, small: Inputs | None) -> Iterator[UsageMode]:
    """The uses in which ``model`` may break: none where it runs on ``small`` inputs, which take the same way."""
    if small is None or any(_error_of(model, use) for use in _uses(model, small)):
        yield from _uses(model, inputs)


def _uses(model: nn.Module, inputs: Inputs) -> Iterator[UsageMode]:
    plain = UsageMode("in evaluation mode without gradients", False, False, inputs)
    larger, *others = *_batches(inputs), plain
    if _error_of(model, larger):
        # What runs on more samples, with fused kernels, does so on the example too.
        yield from (plain, larger)
    yield from (use for use in others if use is not plain)
    yield UsageMode("in evaluation mode with gradients", False, True, inputs)
    yield UsageMode("in training mode", True, True, inputs)


def _batches(inputs: Inputs) -> Iterator[UsageMode]:
    """One sample more than the example has, and one alone."""
    try:
        samples = inputs.samples
    except ArgumentError:
        return
    # Indices into the samples (the edges of a graph) would point beyond a smaller batch, which kills the process.
    given = [t for t in tensors_in(inputs) if t.ndim]
    if any(t.layout != torch.strided or (t.shape[0] != samples and not t.is_floating_point()) for t in given):
        return
    for batch in sorted({samples + 1, 1} - {samples}, reverse=True):
        yield UsageMode(f"on a batch of {batch}", False, False, inputs.resize(batch))


def _error_of(model: nn.Module, use: UsageMode) -> str:
    """What ``model`` raises in this use; empty if it runs."""
    try:
        _run(model, use)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _run(model: nn.Module, use: UsageMode) -> None:
    with restore_after(model, use.inputs), fixed_seed(model), torch.set_grad_enabled(use.gradients):
        use.inputs.call(model.train(use.training))
