"""How the network does when one layer is pruned and no other: the curves behind the limits of SNACS."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from nervure.errors import DataError
from nervure.graph.models import device_of, evaluating
from nervure.graph.types import Graph
from nervure.methods.base import View, model_of, task_of
from nervure.plan import Cut, Keep, Mask, Plan
from nervure.stats.loaders import fixed_seed, leaves_of
from nervure.surgery.apply import apply
from nervure.tasks.batch_forms import move_batch
from nervure.tasks.task import Task
from nervure.training.norms import recalibrate

JUDGED = 512
"""Samples that quality is measured on; half as many go to the norms of the pruned network first."""
TINY = 1e-6
"""A loss that counts as none."""
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0.95)
Trial: TypeAlias = tuple[float, Cut | Mask]
"""An edit, and the share of a group's units, or of a layer's connections, that it takes away."""


@final
class LayerwiseSensitivity:
    """Asks the network what a single edit costs it."""

    def __init__(self, view: View, data: Iterable[Any]) -> None:
        """Takes the first batches of ``data``; raises DataError where there are none, or they have no labels."""
        self._model, self._graph, self._task = model_of(view), view.graph, task_of(view)
        # A loader that shuffles draws from torch: the same limits, whatever was drawn before.
        with fixed_seed(view.seed):
            self._norms, self._judged = _split_batches(data, self._task)
        self._whole: float | None = None
        self._loss: float | None = None

    def curve(self, trials: Sequence[Trial]) -> Tensor:
        """Quality of the network as it is and with each edit. Shape [1 + trials]."""
        if self._whole is None:
            self._whole = self._quality()
        return torch.tensor([self._whole, *(self._quality(edit) for _, edit in trials)])

    def _quality(self, *edits: Cut | Mask) -> float:
        pruned = apply(self._model, self._graph, Plan(edits, self._graph.fingerprint)).eval()
        if edits:
            recalibrate(pruned, self._norms, len(self._norms), task=self._task)
        if self._task.classes is not None:
            return confidence(pruned, self._judged, self._task)
        return self._nearness(mean_loss(pruned, self._judged, self._task))

    def _nearness(self, loss: float) -> float:
        """1 for the loss of the whole network, 1 / e where it is twice that: losses have no bound, and any unit."""
        if self._loss is None:
            with evaluating(self._model):
                self._loss = mean_loss(self._model, self._judged, self._task)
        scale = max(abs(self._loss), TINY)
        return math.exp(min(0.0, (self._loss - loss) / scale)) if math.isfinite(loss) else 0.0


def confidence(model: nn.Module, data: Iterable[Any], task: Task) -> float:
    """How likely a model holds the right class, on average: smoother than accuracy, bounded unlike the loss.

    Args:
        model: in evaluation mode.
        data: batches.
        task: one whose labels are classes.

    Raises:
        DataError: labels are no classes of what the model says.
    """
    assert task.classes is not None
    device, sums, count = device_of(model), 0.0, 0
    with torch.no_grad():
        for given in data:
            batch = move_batch(given, device)
            try:
                said, wanted = task.classes(task.forward(model, batch), batch)
            except DataError as error:
                raise DataError(f"the limits of the layers ask how likely the right class is: {error}") from error
            right = said.float().softmax(1).gather(1, wanted.unsqueeze(1))
            sums, count = sums + float(right.nan_to_num(0.0).sum()), count + right.numel()
    return sums / max(count, 1)


def mean_loss(model: nn.Module, data: Iterable[Any], task: Task) -> float:
    """The loss of a task, over all that counts; the model is in evaluation mode."""
    device = device_of(model)
    with torch.no_grad():
        totals = [task.total(model, move_batch(batch, device)) for batch in data]
    return sum(float(total.loss) for total in totals) / max(sum(total.count for total in totals), 1)


def unit_trials(graph: Graph, scores: Mapping[str, Tensor]) -> dict[str, list[Trial]]:
    """For each group cuts of more and more of the units with the lowest scores [units]."""
    found: dict[str, list[Trial]] = {}
    for name, values in scores.items():
        order, size = torch.argsort(values, descending=True, stable=True), len(values)
        counts = dict.fromkeys(graph[name].round_up(max(1, size - int(share * size + 1e-9))) for share in SHARES)
        found[name] = [(1 - n / size, Cut(name, _first(order, n))) for n in counts if n < size]
    return found


def _first(order: Tensor, count: int) -> Keep:
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order[:count]] = True
    return Keep.of(kept)


def _split_batches(data: Iterable[Any], task: Task) -> tuple[list[Any], list[Any]]:
    """Batches for the norms and batches to judge by, one to two; a single one is for both."""
    norms: list[Any] = []
    judged: list[Any] = []
    for number, batch in enumerate(leaves_of(data)):
        (judged if number % 3 else norms).append(batch)
        if sum(map(task.samples, judged)) >= JUDGED:
            break
    return norms, judged or norms
