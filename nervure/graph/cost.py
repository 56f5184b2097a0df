"""What a model costs: parameters, non-zero parameters and multiply-accumulates, in total and by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import nn

from nervure.core.check import checked
from nervure.core.inputs import Inputs
from nervure.core.schema import Count, convert
from nervure.core.tensors import has_shape_only
from nervure.graph.labels import LabelState, TensorLabels
from nervure.graph.lifetimes import peak_bytes
from nervure.graph.models import evaluating, unwrap, without_fakes
from nervure.graph.modes import leave_modes
from nervure.graph.ops.table import find_operator
from nervure.graph.propagate import LabelPropagation
from nervure.graph.tape import Tape, record


class LayerCost(NamedTuple):
    """Cost of one module, without its submodules."""

    params: Count
    nonzero: Count
    macs: Count


@final
@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a model.

    Attributes:
        params: number of parameters (shared ones once).
        nonzero: how many of them are not zero.
        macs: multiply-accumulates of one forward pass on the example: convolutions, matrix products, attention.
        layers: the same for every module that has parameters or multiplies, by qualified name (shared parameters count
            where they are first held).
        memory: bytes of weights, inputs and the most activations that are there at once in that pass; 0: not known, in
            files of an earlier version of nervure.
    """

    params: Count
    nonzero: Count
    macs: Count
    layers: Mapping[str, LayerCost] = field(default_factory=dict, repr=False)
    memory: Count = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "params": self.params,
            "nonzero": self.nonzero,
            "macs": self.macs,
            "layers": {name: list(cost) for name, cost in self.layers.items()},
            "memory": self.memory,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Cost":
        """Read what :meth:`to_json` wrote; raises :class:`FileError` on anything else."""
        return convert(data, Cost, "these costs")


@checked
@leave_modes()
def count(model: nn.Module, example: Any) -> Cost:
    """Count parameters and multiply-accumulates of ``model`` on ``example`` (in evaluation mode).

    Everything that multiplies and sums is counted as it runs, functional calls and attention included; additions,
    activations and norms are not. A bias adds nothing.

    Args:
        model: any module; left as it is.
        example: a tensor, a tuple of positional arguments or a dict of keyword arguments; its batch size counts.

    Raises:
        ForwardError: the model's forward raised on the example.
    """
    model = unwrap(model)
    with without_fakes(model) as twin, evaluating(twin):
        tape, _ = record(twin, Inputs.several(example, twin))
    return cost_of_run(model, tape)


def cost_of_run(model: nn.Module, tape: Tape) -> Cost:
    """The cost of a model whose run is on ``tape``."""
    flow = LabelPropagation(tape, {}, LabelState(last=True))
    flow.spaces.update({number: TensorLabels() for number in tape.inputs})
    flow.run(find_operator)
    return cost_of(model, flow)


def cost_of(model: nn.Module, flow: LabelPropagation) -> Cost:
    """The cost of a model whose run ``flow`` has read already."""
    macs: dict[str, int] = {}
    for work in flow.works:
        total = work.fixed * int(np.prod([size for size, _ in work.axes], dtype=np.int64))
        macs[work.module] = macs.get(work.module, 0) + total
    layers = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen |= {id(p) for p in own}
        if own or name in macs:
            entries, nonzero = sum(p.numel() for p in own), sum(map(_nonzero, own))
            layers[name] = LayerCost(entries, nonzero, macs.get(name, 0))
    totals = [sum(values) for values in zip(*layers.values(), strict=True)] or [0, 0, 0]
    return Cost(totals[0], totals[1], totals[2], layers, peak_bytes(flow.tape))


def _nonzero(parameter: torch.Tensor) -> int:
    return parameter.numel() if has_shape_only(parameter) else int(torch.count_nonzero(parameter))
