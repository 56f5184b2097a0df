"""What a saved model was called with and what it computed, so that another process can compare."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten, treespec_dumps, treespec_loads

from nervure.core.container import Kind, read_container, write_container
from nervure.core.inputs import Inputs
from nervure.core.tensors import outputs_in
from nervure.errors import FileError

PROBE = Kind("nervure-probe", "inputs of a saved model and what it computed", version=1, remedy="Remove it; run again.")
WHOLE = frozenset({"inputs", "outputs"})
"""The names where one tensor goes in and one comes out."""


@final
@dataclass(frozen=True, slots=True)
class _Form:
    """How several inputs are put together: the form of ``(args, kwargs)``, and its leaves that are no tensors."""

    form: str = ""
    others: dict[str, bool | int | float | str | None] = field(default_factory=dict)


def answers(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors that a model gives, on the CPU, without gradients."""
    with torch.no_grad():
        return [output.cpu() for output in outputs_in(inputs.run(model))]


def write_probe(path: Path, inputs: Inputs, outputs: list[Tensor]) -> Path:
    """Write inputs and outputs; raises FileError where they cannot be written."""
    leaves, form = tree_flatten((inputs.args, dict(inputs.kwargs)))
    if len(outputs) == 1 and len(inputs.args) == 1 and not inputs.kwargs and isinstance(inputs.args[0], Tensor):
        return write_container(path, {"inputs": leaves[0].cpu(), "outputs": outputs[0]}, {}, PROBE)
    tensors = {f"inputs.{number}": leaf.cpu() for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    others = {str(number): leaf for number, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
    tensors |= {f"outputs.{number}": output for number, output in enumerate(outputs)}
    return write_container(path, tensors, _Form(treespec_dumps(form), others), PROBE)


def read_probe(path: Path) -> tuple[Inputs, list[Tensor]]:
    """What :func:`write_probe` wrote; raises FileError where it is damaged."""
    told, tensors = read_container(path, _Form, PROBE)
    if tensors.keys() == WHOLE:
        return Inputs((tensors["inputs"],)), [tensors["outputs"]]
    outputs = [tensor for _, tensor in _numbered(tensors, "outputs")]
    leaves = dict(_numbered(tensors, "inputs")) | {int(number): leaf for number, leaf in told.others.items()}
    try:
        args, kwargs = tree_unflatten([leaves[number] for number in range(len(leaves))], treespec_loads(told.form))
    except (LookupError, TypeError, ValueError, NotImplementedError, AssertionError) as error:
        raise FileError(f"{str(path)!r} holds {sorted(tensors)}, not inputs and outputs.") from error
    if not outputs:
        raise FileError(f"{str(path)!r} holds {sorted(tensors)}, not inputs and outputs.")
    return Inputs(args, kwargs), outputs


def _numbered(tensors: dict[str, Any], what: str) -> list[tuple[int, Any]]:
    found = ((name.partition(".")[2], tensor) for name, tensor in tensors.items() if name.startswith(f"{what}."))
    return sorted(((int(number), tensor) for number, tensor in found if number.isdecimal()), key=lambda pair: pair[0])


def largest_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of two lists of outputs, relative to the largest number expected of the same output."""
    if len(found) != len(expected):
        return float("inf")
    return max((_difference(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    scale = float(expected.double().abs().max().clamp_min(1e-12))
    return float((found.double() - expected.double()).abs().max()) / scale
