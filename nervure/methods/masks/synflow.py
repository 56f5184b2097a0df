"""SynFlow: weights that much can flow through stay; no data are needed.

Tanaka, Kunin, Yamins and Ganguli, "Pruning neural networks without any data by iteratively conserving synaptic flow",
2020, algorithm 1.

Differs from the paper: norms and activation functions pass what they are given, and biases are zero, so that only
weights are on the paths (in the paper's networks at their start this is the same); what stays is counted exactly.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from nervure.core.inputs import Inputs
from nervure.core.schema import Rounds
from nervure.core.tensors import outputs_in
from nervure.errors import ArgumentError
from nervure.methods.base import View
from nervure.methods.masks.base_masks import NetworkScored, PrunableWeights, Scored
from nervure.methods.masks.gradients import lay_on, twin
from nervure.scores.saliency import synflow

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@final
@dataclass(frozen=True, slots=True)
class SynFlow(NetworkScored):
    """Mask, in many rounds, the weights through which least flows from an input of ones: ``|w * dR/dw|``.

    R is the sum of the outputs with all weights replaced by their absolute values. The other hyper-parameters are
    those of every method that masks weights: ``density``, ``distribution``, ``granularity``, ``block``, ``guard``,
    ``dense``.

    Attributes:
        steps: rounds; the density falls in equal ratios.
    """

    steps: Rounds = 100

    @property
    def in_stages(self) -> bool:
        """Whether there are several rounds."""
        return self.steps > 1

    def ask_scores(self, view: View, field: PrunableWeights) -> Scored:
        """The flow through each weight."""
        if view.example is None:
            raise ArgumentError(f"{self!r} runs the model on an input of ones: give the view its example.")
        model, weights = _linear(twin(view)), {name: w.detach().abs() for name, w in view.weights.items()}
        inputs = Inputs.of(view.example).map(_ones)
        parameters = [model.get_parameter(name).requires_grad_() for name in field.weights]

        def scores(masks: Scored) -> Scored:
            lay_on(model, weights, field.from_matrices(masks))
            outputs = [out for out in outputs_in(inputs.call(model)) if out.requires_grad]
            if not outputs:
                raise ArgumentError("the outputs do not depend on the weights: does the model detach them?")
            found = torch.autograd.grad(
                torch.stack([out.sum() for out in outputs]).sum(), parameters, allow_unused=True, materialize_grads=True
            )
            slopes = field.to_matrix(dict(zip(field.weights, found, strict=True)))
            # Rounds change the scale of the flow by many powers of ten; scores are compared within a round only.
            top = max(float((field.weights[name].abs() * slope).max()) for name, slope in slopes.items()) or 1.0
            return {name: synflow(weight, slopes[name] / top) for name, weight in field.weights.items()}

        return self.in_rounds(field, self.steps, scores)


def _linear(model: nn.Module) -> nn.Module:
    """The model in double precision with absolute weights, no biases, and norms and activations that only pass."""
    model = model.double()
    biases = [name for name, parameter in model.named_parameters() if parameter.ndim < len(("outputs", "inputs"))]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_() if name in biases else parameter.abs_()
    for module in model.modules():
        if isinstance(module, NORMS) or _is_activation(module):
            module.register_forward_hook(_pass)
    return model


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, nn.MultiheadAttention)


def _pass(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """What was given, where it has the shape of what comes out."""
    given = args[0] if args else None
    same = isinstance(given, Tensor) and isinstance(output, Tensor) and given.shape == output.shape
    return given if same else output


def _ones(value: Any) -> Any:
    """Ones in double precision for what can be differentiated; whole numbers, such as tokens, stay."""
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return torch.ones_like(value, dtype=torch.float64) if floating else value
