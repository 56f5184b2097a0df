"""How far the connectivity between layers moves when the data shift, before and after pruning.

The theory behind pruning by connectivity says that a network loses little accuracy under shift as long as connectivity
is preserved. That is motivation, not proof; this measures it, layer by layer, and sets it beside the accuracy that was
lost.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypedDict, final

import torch
from torch import Tensor, nn

from nervure.core.check import checked, require_choice
from nervure.core.collectives import group_used
from nervure.core.progress import track
from nervure.core.schema import Count, Seed, Size, convert
from nervure.errors import ArgumentError
from nervure.evaluation.answers import Key
from nervure.evaluation.corruptions import SEVERITIES
from nervure.evaluation.labelled import Batch, Data, pairs
from nervure.evaluation.shift import Normalisation, Normalised, Shifted, shift_batches, shifts_of
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph
from nervure.scores.bundles import layers
from nervure.scores.parent_dependence import Dependence, of_layers
from nervure.stats import measure
from nervure.tracing import trace


@final
@dataclass(frozen=True, slots=True)
class ConnectivityShift:
    """How far connectivity moved: ||C_shift - C_clean|| / ||C_clean||, in Frobenius norms.

    Attributes:
        rows: for each network, for each (shift, severity), for each weight tensor the distance; 0 is none, and NaN
            where nothing is connected on the clean data.
    """

    rows: Mapping[str, Mapping[Key, Mapping[str, float]]]

    def by_layer(self, model: str) -> dict[str, float]:
        """Mean distance of each layer of a network over all shifts."""
        found = list(self.rows[model].values())
        return {layer: _mean(row[layer] for row in found) for layer in found[0]}

    def by_shift(self, model: str) -> dict[Key, float]:
        """Mean distance over the layers of a network under each shift."""
        return {key: _mean(row.values()) for key, row in self.rows[model].items()}

    def relation(self, accuracies: Mapping[str, Shifted]) -> float:
        """Rank correlation of distance and lost accuracy over networks and shifts, in [-1, 1]; NaN where all are equal.

        Args:
            accuracies: what :func:`nervure.evaluation.evaluate_shift` found for the same networks and shifts.

        Raises:
            ArgumentError: a network or shift was not evaluated, or there are fewer than 3 in all.
        """
        moved, lost = [], []
        for model in self.rows:
            for key, distance in self.by_shift(model).items():
                if model not in accuracies or key not in accuracies[model].rows:
                    raise ArgumentError(f"the accuracy of {model!r} under {key} is missing: evaluate the same shifts.")
                moved.append(distance)
                lost.append(accuracies[model].clean.accuracy - accuracies[model].rows[key].accuracy)
        if len(moved) < 3:
            raise ArgumentError(f"{len(moved)} networks and shifts are too few to relate; 3 are the least.")
        return _rank_correlation(torch.tensor(moved), torch.tensor(lost))

    def table(self) -> str:
        """Layers down, networks across, the mean over shifts; as Markdown."""
        columns = {model: self.by_layer(model) for model in self.rows}
        names = list(dict.fromkeys(layer for column in columns.values() for layer in column))
        lines = ["| layer | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for name in names:
            cells = (f"{column[name]:.3f}" if name in column else "-" for column in columns.values())
            lines.append(f"| {name.removesuffix('.weight')} | " + " | ".join(cells) + " |")
        means = (f"{_mean(column.values()):.3f}" for column in columns.values())
        return "\n".join([*lines, "| mean | " + " | ".join(means) + " |"])

    def to_json(self) -> dict[str, Any]:
        """Plain data; :meth:`from_json` reads it back."""
        return {
            model: [{"shift": name, "severity": level, "layers": dict(row)} for (name, level), row in rows.items()]
            for model, rows in self.rows.items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ConnectivityShift":
        """Inverse of :meth:`to_json`; raises :class:`FileError` on anything else."""
        found = convert(data, dict[str, list[_Moved]], "this shift of connectivity")
        return cls({m: {(r["shift"], r["severity"]): r["layers"] for r in rows} for m, rows in found.items()})


class _Moved(TypedDict):
    shift: str
    severity: Count
    layers: dict[str, float]


@checked
def connectivity_shift(
    models: Mapping[str, nn.Module],
    data: Data,
    *,
    shift: str | Iterable[str] = "all",
    severities: Iterable[int] = (3,),
    estimator: Dependence = "classwise",
    samples: Size = 1024,
    normalisation: Normalisation | None = None,
    seed: Seed = 0,
    progress: bool = True,
) -> ConnectivityShift:
    """Measure connectivity on the data and on their shifted copies, and how far it is from the one to the other.

    Args:
        models: by name, e.g. ``{"dense": dense, "sparse": pruned.model}``; they come back as they were. Connections
            whose weights are all zero are none.
        data: (inputs, labels) batches, as for :func:`nervure.evaluation.evaluate_shift`.
        shift: which shifts, as there.
        severities: which of 1 to 5.
        estimator: of connectivity, see :func:`nervure.scores.parent_dependence.of_layers`.
        samples: how many samples at most, the same for all networks and shifts.
        normalisation: mean and std per channel of pictures, as there.
        seed: another seed draws other corruptions.
        progress: show a bar on a terminal.

    Raises:
        DataError: data are empty, mislabelled, or not normalised as said.
        ArgumentError: a shift or severity is unknown, or there is no model.
    """
    require_choice(estimator, ("classwise", "correlation", "residual", "gaussian"), "estimator")
    levels = [require_choice(severity, SEVERITIES, "severity") for severity in severities]
    if not models or not levels:
        raise ArgumentError("nothing to measure: give at least one model and one severity.")
    if normalisation is None and isinstance(data, Normalised):
        normalisation = (data.mean, data.std)
    few = _first(data, samples)
    graphs = {name: trace(model, few[0][0][:2]) for name, model in models.items()}
    clean = {name: _connectivity(model, graphs[name], few, estimator) for name, model in models.items()}
    keys = [(name, level) for name in shifts_of(shift, few[0][0]) for level in levels]
    rows: dict[str, dict[Key, dict[str, float]]] = {name: {} for name in models}
    for key in track(keys, "measuring connectivity", len(keys), enabled=progress):
        moved = list(shift_batches(few, *key, normalisation=normalisation, seed=seed))
        for name, model in models.items():
            found = _connectivity(model, graphs[name], moved, estimator)
            rows[name][key] = {layer: _distance(clean[name][layer], values) for layer, values in found.items()}
    return ConnectivityShift(rows)


def _first(data: Data, samples: int) -> list[Batch]:
    """The first samples, drawn once: what a loader shuffles must not differ between the shifts."""
    taken: list[Batch] = []
    for inputs, labels in pairs(data):
        left = samples - sum(len(known) for _, known in taken)
        taken.append((inputs[:left], labels[:left]))
        if left <= len(labels):
            break
    return taken


def _connectivity(model: nn.Module, graph: Graph, data: list[Batch], estimator: Dependence) -> dict[str, Tensor]:
    with group_used(None):
        stats = measure(model, graph, data, want={"connections", "labels"}, samples=sum(len(y) for _, y in data))
    weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    listed = layers(graph, weights, stats.connections)
    found = of_layers(listed, stats, estimator=estimator)
    return {la.tensor: found[la.tensor] * (la.strength() > 0) for la in listed if la.tensor in found}


def _distance(clean: Tensor, moved: Tensor) -> float:
    whole = float(clean.norm())
    return float((moved - clean).norm()) / whole if whole > 0 else float("nan")


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else float("nan")


def _rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's, equal values with their mean rank."""
    ranks = torch.stack([(v[:, None] > v).sum(1) + (v[:, None] == v).sum(1) / 2 for v in (x, y)]).double()
    centred = ranks - ranks.mean(1, keepdim=True)
    spread = float(centred.square().sum(1).prod().sqrt())
    return float(centred.prod(0).sum()) / spread if spread > 0 else float("nan")
