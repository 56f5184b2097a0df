"""From a model and an example to its circuit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nervure.analysis.constant_folding import Statics
from nervure.analysis.edge_strength import Strength
from nervure.analysis.neuron_graph import NeuronGraph
from nervure.analysis.neuron_ops import find_rule
from nervure.analysis.propagator import Propagator
from nervure.core.inputs import Inputs
from nervure.errors import TraceError
from nervure.graph.models import evaluating, is_weightless, unwrap
from nervure.graph.modes import leave_modes
from nervure.graph.tape import Tape, named_tensors, record
from nervure.graph.trace import check_weights


@leave_modes()
def draw_circuit(
    model: nn.Module,
    example: Any,
    *,
    masks: Mapping[str, Tensor] | None = None,
    strength: Strength = "l2",
    links: frozenset[str] = frozenset(),
) -> NeuronGraph:
    """Run ``model`` once on ``example`` and find which unit hears which, and how strongly.

    Args:
        model: any module that runs; it is left as it was.
        example: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        masks: for parameters, by name, which entries are there; the others count as zero.
        strength: see :func:`nervure.connectivity`.
        links: names of weights that have no place in the network without links.

    Raises:
        ForwardError: the model's own forward raised.
        TraceError: the weights are missing or not finite, or no tensor came out.
        MissingExtraError: scipy is not installed.
    """
    model = unwrap(model)
    if is_weightless(model):
        raise TraceError("the model has shapes only (it is on the meta device): give it weights, whose zeros matter.")
    with evaluating(model):
        check_weights(model)
        tape, _ = record(model, Inputs.several(example, model), tag=False, auxiliary=False)
        statics = Statics(tape, _mask_tensors(named_tensors(model), masks or {}))
        ways = {number: _way(tape, number) for number in tape.inputs}
        carrier = _propagate(tape, statics, strength, ways)
        better = {n: g.better for n, g in zip(ways, carrier.given, strict=True) if g.better}
        if better:
            carrier = _propagate(tape, statics, strength, ways | better)
    return carrier.circuit(links)


def _mask_tensors(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kept = {
        name: nn.Parameter(tensors[name].detach() * mask.to(tensors[name].device), requires_grad=False)
        for name, mask in masks.items()
        if name in tensors
    }
    return {**tensors, **kept}


def _propagate(tape: Tape, statics: Statics, strength: Strength, ways: Mapping[int, str]) -> Propagator:
    carrier = Propagator(tape, statics, strength)
    for number, way in ways.items():
        carrier.give(number, way)
    carrier.run(find_rule)
    return carrier


def _way(tape: Tape, number: int) -> str:
    """A first guess of which axis of an input holds units: tokens are one, channels lie along axis 1."""
    value = tape.values[number]
    is_picture = value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.uint8
    return "channels" if is_picture and value.shape else "whole"
