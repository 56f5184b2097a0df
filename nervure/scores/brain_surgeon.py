"""What readers lose with a unit if all others take over, unit by unit: the optimal brain surgeon without an order.

Hassibi and Stork, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon", 1993, for the squared error of
each layer that reads (LeCun, Denker and Solla's "Optimal Brain Damage", 1989, is the same without the inverse).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from nervure.scores.elimination import ReaderProblem


def obs(readers: Iterable[ReaderProblem], units: int) -> Tensor:
    """``|w_i|^2 / [H^-1]_ii`` of each input, summed over the inputs of a unit and over all that read it.

    As if each input were the only one to go: neither the inputs of a unit nor several units that go depend on one
    another. Twice what one weight at a time costs by the paper's equation 5, which changes no order.

    Args:
        readers: what reads any of the units.
        units: how many there are.

    Returns:
        [units], 0 or more, in squared outputs.
    """
    total = torch.zeros(units, dtype=torch.float64)
    for reader in readers:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(reader.moments)).diagonal()
        costs = torch.cat([reader.weight.square().sum(0) / inverse, inverse.new_zeros(1)]).cpu()
        # -1 is no input: the place behind the last, which costs nothing.
        total += costs[reader.columns.cpu()].sum(1)
    return total
