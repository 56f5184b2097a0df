"""GC-Net: a companion network of connectivity is pruned, and what goes there goes in the original.

GC-Net (arXiv:2411.09199; Neural Processing Letters, 2025) prunes a network whose weights are the connectivity between
consecutive layers, maps what was pruned back, and does best where connectivity guides the later layers while earlier
ones are pruned directly. Only the abstract could be read: how connectivity is measured, which operators prune it and at
which layer guidance begins are reconstructed from earlier work of the same laboratory (arXiv:2204.12010), as
``docs/methods/gcnet.md`` says in full. ``paper=True`` is that reconstruction.

Differs from it by default, as validation under shift prefers: a global ranking of magnitudes decides *how many*
connections of a layer stay, and in the last quarter of the layers magnitude times conditional connectivity *which*.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from nervure.budget import CountedName, Scope, allocate, find_budget
from nervure.budget.weights import Pattern
from nervure.core.schema import Count, Density, Rounds, Share, Size
from nervure.errors import ArgumentError
from nervure.methods.base import Inquiry, View
from nervure.methods.gcnet.companion import ConnectivityInquiry
from nervure.methods.gcnet.guidance import Criterion, Mode, combine_scores, match_ranks, score_companion
from nervure.methods.masks.base_masks import Guard, NetworkScored, PrunableWeights, Scored
from nervure.methods.masks.gradients import lay_on, twin
from nervure.methods.snacs.survey import ConnectivityEvidence, EvidenceOf
from nervure.plan import Plan
from nervure.scores import magnitude
from nervure.scores.bundles import Layer
from nervure.scores.parent_dependence import Dependence, are_last, unit_scores

STARTS: Mapping[Mode, float] = {"split": 0.5, "product": 0.75}
"""Before which share of the depth layers go by magnitude alone, where nothing else is said; other modes: 0."""
PAPER: Mapping[str, object] = {
    "granularity": "connection",
    "distribution": "uniform",
    "mode": "split",
    "start": None,
    "estimator": "classwise",
    "criterion": "magnitude",
    "rounds": 1,
    "of": "means",
}


@final
@dataclass(frozen=True, slots=True)
class GCNet(NetworkScored):
    """Mask the connections, or cut the filters, that a network's companion can spare.

    The other hyper-parameters are those of every method that masks weights: ``density``, ``distribution`` (with
    ``"global"``, each layer keeps as many as a global ranking of magnitudes would leave it), ``block``, ``guard``,
    ``dense``. Needs data, with labels for ``estimator="classwise"``. The first layer has no layer before it and goes by
    magnitude; so do the output layers, but for ``mode="pure"``, and layers of which nothing can be heard.

    Attributes:
        granularity: ``"connection"``: all weights between two units, as in the paper; ``"filters"`` cuts whole units
            by what their readers need of them; or as for every such method.
        mode: how connectivity and magnitude decide: ``"pure"`` connectivity; ``"split"`` the same, in later layers
            only; ``"product"``, ``"mix"``, ``"union"`` or ``"intersection"`` of both, see
            :func:`nervure.methods.gcnet.guidance.combine_scores`.
        start: the share of the depth, in [0, 1], before which layers go by magnitude alone; None: 0.5 for ``"split"``,
            0.75 for ``"product"`` and 0 for the others.
        alpha: the part of magnitude in a ``"mix"``, in [0, 1].
        estimator: of connectivity, see :func:`nervure.scores.parent_dependence.of_layers`.
        criterion: how the companion is pruned, see :func:`nervure.methods.gcnet.guidance.score_companion`.
        rounds: in how many rounds, each of which measures what the last has left.
        samples: how many samples at most are measured.
        per_class: where above 0, at most so many of each class; needs labels.
        budget: what ``density`` is a fraction of, for ``"filters"``: ``"macs"``, ``"params"``, ``"channels"``,
            ``"memory"``, or a :class:`nervure.budget.Budget` of your own.
        of: what connectivity is measured on: ``"means"`` over positions, or ``"patches"``, what really enters a layer,
            see :func:`nervure.methods.gcnet.companion.companion`; patches have no other ``estimator`` than the default.
        paper: the reconstruction of the paper: split, correlation class by class, the same density in each layer, one
            round, pairs of units.
    """

    density: Density = 0.1
    granularity: str = "connection"
    guard: Guard = "units"
    mode: Mode = "product"
    start: Share | None = None
    alpha: Share = 0.5
    estimator: Dependence = "residual"
    criterion: Criterion = "magnitude"
    rounds: Rounds = 1
    samples: Size = 2048
    per_class: Count = 0
    budget: CountedName = "macs"
    paper: bool = False
    of: EvidenceOf = "means"

    def check(self) -> None:
        """Complain about a hyper-parameter that is out of range."""
        if self.paper:
            for name, value in PAPER.items():
                object.__setattr__(self, name, value)
        if self.of == "patches" and (self.estimator != "residual" or self.per_class):
            raise ArgumentError(
                f"of='patches' with estimator={self.estimator!r} and per_class={self.per_class}: these are for "
                "of='means'. Leave them out: on patches connectivity is the variance that is lost, whatever the class."
            )
        if self.granularity == "filters":
            self._check_filters()

    def _check_filters(self) -> None:
        if self.distribution not in ("global", "uniform") or self.rounds > 1:
            raise ArgumentError(
                f"granularity='filters' with distribution={self.distribution!r} and rounds={self.rounds}: filters are "
                "cut by one ranking, 'global' or 'uniform', in one round. Prune several times for more."
            )

    @property
    def pattern(self) -> Pattern:
        """What stays or goes together."""
        return Pattern.of("connection" if self.granularity == "filters" else self.granularity, self.block)

    def plan(self, view: View) -> Plan:
        """Mask connections or cut units.

        Raises:
            DataError: there are no data to measure, or labels are needed and missing.
            BudgetError: there is nothing to prune, or the density is too low.
        """
        return self.decide(view, self.evidence(view) if self.density < 1 else ConnectivityEvidence({}))

    @property
    def asks_of_scores(self) -> tuple[Inquiry[Any], ...]:
        """Connectivity, and what it becomes as connections leave, where there are several rounds."""
        return (self._connectivity, self.inquiry) if self.in_stages else (self._connectivity,)

    @property
    def in_stages(self) -> bool:
        """Whether there are several rounds."""
        return self.rounds > 1

    @property
    def _connectivity(self) -> ConnectivityInquiry:
        return ConnectivityInquiry(self.estimator, self.samples, self.per_class, self.of)

    def evidence(self, view: View) -> ConnectivityEvidence:
        """The connectivity that the first round goes by: the weights of the companion."""
        return view.ask(self._connectivity)

    def decide(self, view: View, found: ConnectivityEvidence) -> Plan:
        """The plan that follows from connectivity; only further rounds ask the network again. Raises BudgetError."""
        if self.granularity == "filters":
            return self._cuts(view, found)
        return NetworkScored.plan(self, view.with_answer(self._connectivity, found))

    def scores(self, view: View, field: PrunableWeights) -> Scored:
        """From connectivity, where there is one round."""
        return view.ask(self.inquiry) if self.in_stages else self._scores(field, self.evidence(view))

    def ask_scores(self, view: View, field: PrunableWeights) -> Scored:
        """From connectivity round by round."""
        found, model = self.evidence(view), twin(view)

        def scores(masks: Scored) -> Scored:
            if all(bool(mask.all()) for mask in masks.values()):
                return self._scores(field, found)
            lay_on(model, view.weights, field.from_matrices(masks))
            weights = {**view.weights, **{name: model.get_parameter(name).detach() for name in masks}}
            left = replace(view, model=model, weights=weights, stats=None, answers=())
            return self._scores(PrunableWeights.of(left, self.dense), self.evidence(left))

        return self.in_rounds(field, self.rounds, scores)

    def _scores(self, field: PrunableWeights, found: ConnectivityEvidence) -> Scored:
        """A score for each weight."""
        guides = self._guides(field, found)
        sizes = dict(field.sizes)
        return sizes | {
            layer.tensor: self._score(layer, sizes[layer.tensor], guides[layer.tensor])
            for layer in field.layers()
            if layer.tensor in guides
        }

    def _score(self, layer: Layer, sizes: Tensor, guide: Tensor) -> Tensor:
        """Scores of the weights of one layer, as ``sizes``: [outputs, inputs, kernel positions]."""
        spread = guide[:, layer.blocks, None].to(sizes)
        if self.pattern.joined:
            direct = layer.fold(sizes)[:, layer.blocks, None].to(sizes)
        else:
            direct = sizes if self.pattern.block is None else sizes.mean(2, keepdim=True)
        direct, spread = torch.broadcast_tensors(direct, spread)
        scores = combine_scores(direct, spread, self.mode, self.alpha)
        if self.distribution == "global":
            scores = match_ranks(scores, direct)
        return scores.expand_as(sizes)

    def _guides(self, field: PrunableWeights, found: ConnectivityEvidence) -> dict[str, Tensor]:
        """For each layer that connectivity guides, what the criterion says of its companion."""
        listed = field.layers()
        direct = set() if self.mode == "pure" else are_last(listed)
        first = STARTS.get(self.mode, 0.0) if self.start is None else self.start
        able = {
            layer.tensor: number
            for number, layer in enumerate(listed)
            if layer.tensor in found.scores and layer.tensor not in direct
        }
        guided = [name for name, number in able.items() if number >= first * len(listed)]
        if self.start is None:
            # A network of few layers has none so late: then the last that can be guided.
            guided = guided or list(able)[-1:]
        generator = torch.Generator().manual_seed(field.view.seed)
        return {name: score_companion(found.scores[name], self.criterion, generator) for name in guided}

    def _cuts(self, view: View, found: ConnectivityEvidence) -> Plan:
        """Cut the units that their readers need least."""
        if self.density == 1:
            return Plan(
                (), view.graph.fingerprint, {"keep": 1.0, "budget": find_budget(self.budget).name}, {"keep": 1.0}
            )
        field = PrunableWeights.of(view, self.dense)
        guides = self._guides(field, found)
        rho = {layer.tensor: layer.strength() for layer in field.layers()}
        rho |= {name: combine_scores(rho[name], guide, self.mode, self.alpha) for name, guide in guides.items()}
        scores = unit_scores(view.graph, field.layers(), rho, magnitude(view.graph, view.weights))
        scope: Scope = "global" if self.distribution == "global" else "layer"
        return allocate(view.graph, scores, keep=self.density, budget=self.budget, scope=scope)
