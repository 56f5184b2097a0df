"""The companion of a network: a network of the same widths whose weights are the connectivity between its layers.

It is there to be looked at and pruned, with any operator, and what is pruned in it is pruned in the original.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as operators

from nervure.core.annotations import Batches
from nervure.core.check import checked
from nervure.core.schema import Count, Seed, Size
from nervure.errors import ArgumentError, DataError, FileError
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph
from nervure.methods.base import Folder, View
from nervure.methods.evidence_folder import evidence_folder
from nervure.methods.snacs.patches import PatchSurvey
from nervure.methods.snacs.survey import (
    ConnectivityEvidence,
    EvidenceOf,
    connections_digest,
    heard,
    is_labelled,
    require_evidence,
)
from nervure.plan import Keep, Mask, Plan
from nervure.scores.bundles import layers
from nervure.scores.parent_dependence import UNLABELLED, Dependence, of_layers
from nervure.tracing import trace

FILE = "connectivity.safetensors"


@final
class Companion(nn.Module):
    """Linear layers [children, parents] whose weights are connectivity, one for each layer but those of the input.

    It is not trained and not run; children of a grouped convolution have the parents of their own group only. Masks
    that the operators of ``torch.nn.utils.prune`` lay on its layers become masks of the original by :meth:`plan`.

    Attributes:
        layers: the linear layers, in running order.
        names: the weight tensor of the original that each stands for.
        connectivity: what was measured, as a value that can be saved.
    """

    def __init__(self, found: ConnectivityEvidence, graph: Graph, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.connectivity = found
        self._fingerprint = graph.fingerprint
        self._originals = layers(graph, weights, found.scores)
        self.names = tuple(layer.tensor for layer in self._originals)
        self.layers = nn.ModuleList(_linear(found.scores[name]) for name in self.names)

    def __getitem__(self, name: str) -> nn.Linear:
        """The layer that stands for this weight tensor of the original."""
        layer = self.layers[self.names.index(name)]
        assert isinstance(layer, nn.Linear)
        return layer

    def kept(self) -> dict[str, Tensor]:
        """The connections that no operator has pruned, for each weight tensor a boolean [children, parents]."""
        buffers = dict(self.named_buffers())
        return {
            name: buffers.get(f"layers.{n}.weight_mask", torch.ones(found.children, found.parents)).bool()
            for n, (name, found) in enumerate(zip(self.names, self._originals, strict=True))
        }

    def follow(self, plan: Plan) -> None:
        """Prune the companion as a plan prunes the original: connections of which no weight stays go."""
        masks = {mask.tensor: mask.keep.tensor() for mask in plan.masks}
        for layer in self._originals:
            if layer.tensor in masks:
                kept = layer.fold(masks[layer.tensor].float()) > 0
                operators.custom_from_mask(self[layer.tensor], "weight", kept)

    def plan(self) -> Plan:
        """What is pruned here as masks of the original, for ``nervure.prune(model, x, plan)``."""
        kept = self.kept()
        edits = tuple(
            Mask(layer.tensor, Keep.of(layer.mask(kept[layer.tensor]).contiguous()))
            for layer in self._originals
            if not bool(kept[layer.tensor].all())
        )
        whole = sum(keep.numel() for keep in kept.values())
        share = sum(int(keep.sum()) for keep in kept.values()) / max(whole, 1)
        return Plan(edits, self._fingerprint, {"budget": "connections"}, {"connections": share})

    def to_json(self) -> dict[str, Any]:
        """Plain data for a report; what is pruned is 0, matrices above 32 x 32 are averaged over blocks."""
        kept = self.kept()
        scores = {name: self.connectivity.scores[name] * kept[name] for name in self.names}
        return ConnectivityEvidence(
            scores, skipped=self.connectivity.skipped, samples=self.connectivity.samples
        ).to_json()


@checked
def companion(
    model: nn.Module,
    example: Any,
    data: Batches | None = None,
    *,
    found: ConnectivityEvidence | None = None,
    estimator: Dependence | None = None,
    samples: Size = 2048,
    per_class: Count = 0,
    seed: Seed = 0,
    of: EvidenceOf = "means",
) -> Companion:
    """Build the companion of a network.

    Args:
        model: the network; it is left as it was.
        example: a tensor, a tuple of positional arguments or a dict, to trace it with.
        data: batches of (inputs, labels); labels may be left out where the estimator looks at none.
        found: connectivity that was measured (and saved) before, instead of data.
        estimator: of means, see :func:`nervure.scores.parent_dependence.of_layers`; None: ``"classwise"``.
        samples: how many samples at most.
        per_class: where above 0, at most so many of each class.
        seed: of the draw of the data.
        of: what connectivity is measured on: ``"means"`` over positions, or ``"patches"``, what really enters a layer:
            the share of a child's variance that is lost without the parent, with all others taking over.

    Raises:
        DataError: there are neither data nor ``found``, or labels are needed and missing.
        ArgumentError: an argument is outside its range.
    """
    graph = trace(model, example)
    weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    if found is None:
        view = View(graph, weights, None, seed, model, example, data, shows_progress=True)
        found = ConnectivityInquiry(_estimator_of(estimator, per_class, of), samples, per_class, of).of(view)
    return Companion(found, graph, weights)


@final
@dataclass(frozen=True, slots=True)
class ConnectivityInquiry:
    """Connectivity between the layers of a model; the fields are those of :func:`companion`."""

    estimator: Dependence
    samples: int
    per_class: int
    on: EvidenceOf = "means"

    def of(self, view: View, folder: Folder = None) -> ConnectivityEvidence:
        """In one pass over the data; raises DataError where there are no data, or labels are needed and missing."""
        if self.on == "patches":
            return self._on_patches(view, folder)
        require_evidence(view, "a companion network")
        labelled = self.estimator == "classwise"
        if labelled and not is_labelled(view):
            raise DataError(UNLABELLED)
        if folder is None:
            return self._measured(view, labelled)
        data = connections_digest(view, samples=self.samples, per_class=self.per_class, labelled=labelled)
        path = evidence_folder(folder, view, ["companion", self.estimator, self.samples, self.per_class], data) / FILE
        with suppress(FileError):  # it is not there yet, or damaged
            return ConnectivityEvidence.load(path)
        return ConnectivityEvidence.load(self._measured(view, labelled).save(path))

    def _on_patches(self, view: View, folder: Folder) -> ConnectivityEvidence:
        found = PatchSurvey(self.samples).of(view, folder)
        listed = [layer for layer in layers(view.graph, view.weights, found) if not layer.is_first]
        silent = {edge.tensor for edge in view.graph.edges} - found.keys()
        skipped = dict.fromkeys(sorted(silent), "what enters it cannot be read position by position")
        return ConnectivityEvidence(
            {one.tensor: found[one.tensor] for one in listed}, skipped=skipped, samples=self.samples
        )

    def _measured(self, view: View, labelled: bool) -> ConnectivityEvidence:
        wants = frozenset({"connections", "labels"} if labelled else {"connections"})
        stats = heard(view, wants, samples=self.samples, per_class=self.per_class)
        listed = layers(view.graph, view.weights, stats.connections)
        skipped = {name: reason for name, reason in stats.skipped.items() if name in view.graph.tensors}
        scores = of_layers(listed, stats, estimator=self.estimator)
        return ConnectivityEvidence(scores, skipped=skipped, samples=stats.samples)


def _estimator_of(estimator: Dependence | None, per_class: int, of: EvidenceOf) -> Dependence:
    """The estimator of means; raises ArgumentError where patches are told what is for means alone."""
    if of == "patches" and (estimator is not None or per_class):
        raise ArgumentError(
            f"of='patches' with estimator={estimator!r} and per_class={per_class}: these are for of='means'. "
            "Leave them out: on patches connectivity is the variance that is lost, whatever the class."
        )
    return estimator or "classwise"


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).requires_grad_(False)
    layer.weight.copy_(weight)
    return layer
