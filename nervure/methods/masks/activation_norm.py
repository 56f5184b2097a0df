"""How loud the inputs of each weight are: their Euclidean norm over samples and positions."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from nervure.budget.weights import sheets
from nervure.errors import DataError
from nervure.graph.models import device_of, evaluating
from nervure.graph.operands import Entering, listen
from nervure.graph.types import Product
from nervure.methods.base import Folder, View, model_of
from nervure.methods.evidence_folder import answer_folder, remember
from nervure.stats.loaders import batches, fixed_seed
from nervure.tasks.task import Task


def input_norms(
    model: nn.Module,
    products: Iterable[Product],
    data: Iterable[Any],
    samples: int,
    seed: int = 0,
    task: Task | None = None,
) -> dict[str, Tensor]:
    """Norm of what each weight multiplies, over samples and positions (and steps of a recurrent layer).

    Args:
        model: a model in evaluation mode.
        products: the weights.
        data: batches of any form.
        samples: how many samples at most.
        seed: of torch's random numbers while the data are drawn.
        task: how batches go into the model.

    Returns:
        [outputs, inputs of one output] for each tensor that was heard, [1, inputs] where all outputs hear the same; 1
        throughout an output that nothing entered.

    Raises:
        DataError: the data are empty or malformed, or what enters is not finite.
    """
    entering, device = Entering(torch.square), device_of(model)
    with fixed_seed(seed):
        for batch in batches(data, samples, labelled=False, task=task):
            listen(model, partial(batch.to(device).feed, model), entering.hear)
    norms = {}
    for name, squares, counts in entering.totals({product.tensor: product for product in products}):
        if not bool(torch.isfinite(squares).all()):
            raise DataError(f"what enters {name!r} is NaN or infinite. The model or the data are broken.")
        found = squares.sqrt().where(counts.any(1, keepdim=True), 1.0)
        norms[name] = found[:1].clone() if bool((found == found[:1]).all()) else found
    return norms


@final
@dataclass(frozen=True, slots=True)
class InputNorms:
    """How loud what enters is, of all weights but those of layers that stay ``dense``, on so many samples."""

    dense: tuple[str, ...]
    samples: int

    def of(self, view: View, folder: Folder = None) -> dict[str, Tensor]:
        """Run the model of a view; see :func:`input_norms`. Raises DataError, ArgumentError, BudgetError."""
        if view.data is None:
            raise DataError("what enters the layers is listened to: give data=, batches of inputs.")
        data, model = view.data, model_of(view)
        products = sheets(model, view.graph, self.dense, view.ignored)
        place = answer_folder(folder, view, self)
        return remember(
            place and place / "norms.safetensors",
            lambda: self._hear(model, products, data, view),
        )

    def _hear(
        self, model: nn.Module, products: Iterable[Product], data: Iterable[Any], view: View
    ) -> dict[str, Tensor]:
        with evaluating(model):
            return input_norms(model, products, data, self.samples, view.seed, view.task)
