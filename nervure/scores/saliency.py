"""How much single weights matter: pure functions of a weight and what is known about it, higher = keep.

All take and give tensors of the weight's shape.

=============  ======================================================================================
``snip``       Lee, Ajanthan and Torr, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", 2019
``grasp``      Wang, Zhang and Grosse, "Picking Winning Tickets Before Training by Preserving Gradient Flow", 2020
``synflow``    Tanaka, Kunin, Yamins and Ganguli, "Pruning neural networks without any data by iteratively
               conserving synaptic flow", 2020
``wanda``      Sun, Liu, Bair and Kolter, "A Simple and Effective Pruning Approach for Large Language Models", 2024
=============  ======================================================================================
"""

from torch import Tensor


def snip(weight: Tensor, slope: Tensor) -> Tensor:
    """How much the loss answers to a weight's gate: ``|w * dL/dw|``, 0 or more.

    The division by the sum over all weights in the paper changes no ranking.
    """
    return (weight * slope).abs()


def grasp(weight: Tensor, product: Tensor) -> Tensor:
    """What removing a weight takes from the squared norm of the gradient, up to a factor: ``w * (H g)``; any sign.

    The paper scores ``-w * (H g)`` and removes what is highest.

    Args:
        weight: the weight.
        product: the Hessian of the loss times its gradient, at the weight.
    """
    return weight * product


def synflow(weight: Tensor, slope: Tensor) -> Tensor:
    """The flow through a weight: ``|w * dR/dw|``, R the sum of the outputs of the network of absolute weights."""
    return (weight * slope).abs()


def wanda(weight: Tensor, norms: Tensor) -> Tensor:
    """Magnitude times the Euclidean norm of what enters: ``|w| * ||x||``, 0 or more.

    Args:
        weight: [outputs, inputs, kernel positions].
        norms: of each input of each output, [outputs, inputs], or [1, inputs] where all hear the same.
    """
    return weight.abs() * norms[:, :, None]
