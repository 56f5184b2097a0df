"""Sharpness-aware steps: by the gradient where the loss is worst nearby (Foret et al., ICLR 2021, arXiv:2010.01412).

With the gradient g, weights w move to w + e, e = rho g / |g|, and the optimizer steps from w by the gradient there.
Adaptive (Kwon et al., ICML 2021, arXiv:2102.11600): e = rho w^2 g / |w g|, which scaling a layer does not change.
Masked weights do not move, and play no part in |g|.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from nervure.core.check import Checked
from nervure.core.collectives import whole
from nervure.core.schema import Positive
from nervure.training.veil import Veil

TINY = 1e-12


@final
@dataclass(frozen=True, slots=True)
class SAM(Checked):
    """Sharpness-aware minimisation; a step costs two passes forward and backward.

    Attributes:
        rho: how far weights move, in the norm of all of them; above 0. About 0.05 is usual, adaptive about 0.5 to 2.
        adaptive: measure the move relative to each weight.
    """

    rho: Positive = 0.05
    adaptive: bool = False


@contextmanager
def climbed(model: nn.Module, how: SAM, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Weights are at w + e inside the block, and at w after it; buffers too are as they were.

    Args:
        model: with the gradients at w in ``.grad``.
        how: which step.
        masks: parameter name -> True stays.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    veils = {id(named[name]): Veil(mask) for name, mask in masks.items()}
    able = [one for one in model.parameters() if one.grad is not None and not one.grad.is_sparse]
    moved = [(parameter, _gradient(parameter, veils.get(id(parameter)))) for parameter in able]
    weights = [parameter.detach().clone() for parameter, _ in moved]
    # The second pass must not count twice in what batch norms remember.
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.no_grad():
        scales = [weight.abs() if how.adaptive else torch.ones_like(weight) for weight in weights]
        steps = [scale * gradient for scale, (_, gradient) in zip(scales, moved, strict=True)]
        share = how.rho / _norm(steps).clamp(min=TINY)
        for scale, step, (parameter, _) in zip(scales, steps, moved, strict=True):
            parameter.add_(scale * step * share.to(step))
    try:
        yield
    finally:
        with torch.no_grad():
            for old, (parameter, _) in zip(weights, moved, strict=True):
                parameter.copy_(old)
            for buffer, kept in buffers:
                buffer.copy_(kept)


def _gradient(parameter: Tensor, veil: Veil | None) -> Tensor:
    assert parameter.grad is not None
    gradient = parameter.grad.detach().clone()
    if veil is not None:
        veil.lay_on(gradient)
    return gradient


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """Of all of them, as of one vector."""
    norms = [whole(torch.linalg.vector_norm(tensor.float())) for tensor in tensors]
    together: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    return together
