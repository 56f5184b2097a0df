"""How the network does when one layer is pruned and no other: the curves behind the limits of SNACS."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from nervure.errors import DataError
from nervure.evaluation.labelled import Batch, call, pairs, to_device
from nervure.graph.models import device_of
from nervure.graph.types import Graph
from nervure.methods.base import View, model_of
from nervure.plan import Cut, Keep, Mask, Plan
from nervure.stats.loaders import fixed_seed
from nervure.surgery.apply import apply
from nervure.training.norms import recalibrate

JUDGED = 512
"""Samples that quality is measured on; half as many go to the norms of the pruned network first."""
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0.95)
Trial: TypeAlias = tuple[float, Cut | Mask]
"""An edit, and the share of a group's units, or of a layer's connections, that it takes away."""


@final
class LayerwiseSensitivity:
    """Asks the network what a single edit costs it."""

    def __init__(self, view: View, data: Iterable[Any]) -> None:
        """Takes the first batches of ``data``; raises DataError where there are none, or they have no labels."""
        self._model, self._graph = model_of(view), view.graph
        # A loader that shuffles draws from torch: the same limits, whatever was drawn before.
        with fixed_seed(view.seed):
            self._norms, self._judged = _split_batches(data)
        self._whole: float | None = None

    def curve(self, trials: Sequence[Trial]) -> Tensor:
        """Quality of the network as it is and with each edit. Shape [1 + trials]."""
        if self._whole is None:
            self._whole = self._quality()
        return torch.tensor([self._whole, *(self._quality(edit) for _, edit in trials)])

    def _quality(self, *edits: Cut | Mask) -> float:
        pruned = apply(self._model, self._graph, Plan(edits, self._graph.fingerprint)).eval()
        if edits:
            recalibrate(pruned, self._norms, len(self._norms))
        return confidence(pruned, self._judged)


def confidence(model: nn.Module, data: Iterable[Batch]) -> float:
    """How likely a model holds the right class, on average: smoother than accuracy, bounded unlike the loss.

    Args:
        model: in evaluation mode.
        data: batches of inputs and labels, whole numbers [samples] or [samples, positions...].

    Raises:
        DataError: labels are no classes of what the model says.
    """
    device, sums, count = device_of(model), 0.0, 0
    with torch.no_grad():
        for inputs, labels in data:
            said, wanted = call(model, to_device(inputs, device)), labels.to(device)
            _require_names(said, wanted)
            right = said.float().softmax(1).gather(1, wanted.long().unsqueeze(1))
            sums, count = sums + float(right.nan_to_num(0.0).sum()), count + right.numel()
    return sums / count


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


def _split_batches(data: Iterable[Any]) -> tuple[list[Batch], list[Batch]]:
    """Batches for the norms and batches to judge by, one to two; a single one is for both."""
    norms: list[Batch] = []
    judged: list[Batch] = []
    for number, batch in enumerate(pairs(data)):
        (judged if number % 3 else norms).append(batch)
        if sum(len(labels) for _, labels in judged) >= JUDGED:
            break
    return norms, judged or norms


def _require_names(said: Tensor, labels: Tensor) -> None:
    fits = said.ndim > 1 and labels.shape == (said.shape[0], *said.shape[2:])
    if not fits or labels.is_floating_point() or not 0 <= int(labels.min()) <= int(labels.max()) < said.shape[1]:
        raise DataError(
            f"the limits of the layers need labels that are classes, but the model says {tuple(said.shape)} and the "
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}. Use limits=False."
        )
