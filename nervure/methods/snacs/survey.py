"""The evidence of SNACS: what was measured and scored, as a value that is kept on disk and thresholded again."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeGuard, final

import torch
from torch import Tensor

from nervure.core.container import DamageError, Kind, read_container, reading, write_container
from nervure.core.schema import Count
from nervure.dependence.estimator_options import Estimator
from nervure.errors import ArgumentError, DataError, FileError
from nervure.methods.base import Folder, View, data_of, task_of
from nervure.methods.channels.compensated import curve_scores
from nervure.methods.channels.compensation import CompensationSurvey
from nervure.methods.evidence_folder import evidence_folder, remember
from nervure.methods.snacs import published
from nervure.methods.snacs.layerwise import SHARES, LayerwiseSensitivity, Trial, unit_trials
from nervure.methods.snacs.limits import GRID, Limit, bearable, limit, qualities, require_classes, ridge
from nervure.methods.snacs.patches import PatchSurvey
from nervure.methods.snacs.sensitivity import propagate_importance, protected_units, sensitivity
from nervure.plan import Keep, Mask
from nervure.scores import magnitude
from nervure.scores.bundles import Layer, layers
from nervure.scores.parent_dependence import connectivity, unit_scores, weigh_by_magnitude
from nervure.stats import Stats, are_labelled, data_digest, keep_position, response
from nervure.stats.loaders import are_classes

RankedBy: TypeAlias = Literal["compensated", "connectivity", "dependence", "magnitude"]
EvidenceOf: TypeAlias = Literal["patches", "means"]
KIND = Kind("nervure-connectivity", "connectivity saved by nervure", version=3, remedy="Remove it; it is made again.")
CELL = Kind("nervure-connectivity-layer", "the connectivity of a layer", version=3)
PART = ".layer.safetensors"
VALUES = "values"
LARGEST = 32
"""Rows and columns of a matrix in JSON; larger ones are averaged over blocks."""


@final
@dataclass(frozen=True, slots=True)
class _SurveyHeader:
    limits: dict[str, Limit]
    order: tuple[str, ...]
    skipped: dict[str, str]
    samples: Count


@final
@dataclass(frozen=True, slots=True, eq=False)
class ConnectivityEvidence:
    """What SNACS found out about a network.

    Attributes:
        scores: for each weight tensor [children, parents], dependence times weight: rho; dependence alone where
            that is what ranks.
        limits: for each weight tensor (kernels) or group (filters) how much of it may go; empty where not wanted.
        protected: for each group that has any, the units that stay. Boolean [units].
        skipped: weight tensors that could not be scored, and why.
        samples: number of samples behind it.
    """

    scores: Mapping[str, Tensor]
    limits: Mapping[str, Limit] = field(default_factory=dict)
    protected: Mapping[str, Tensor] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    samples: int = 0

    def upper(self, name: str, raised: float = 0.0) -> float:
        """The largest share of this tensor's connections, or of this group's units, that may go.

        With ``raised`` where all limits are raised by that share, in [0, 1], of the way to none.
        """
        return self.limits[name].raise_by(raised) if name in self.limits else 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain data for a report; matrices above 32 x 32 are averaged over blocks."""
        return {
            "samples": self.samples,
            "sizes": {name: list(values.shape) for name, values in self.scores.items()},
            "layers": {name: _matrix(values) for name, values in self.scores.items()},
            "limits": {name: value.to_json() for name, value in self.limits.items()},
            "protected": {name: keep.nonzero().flatten().tolist() for name, keep in self.protected.items()},
            "skipped": dict(self.skipped),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to one safetensors file, atomically, and return its path; raises :class:`FileError`."""
        tensors = {f"scores/{name}": values for name, values in self.scores.items()}
        tensors |= {f"protected/{name}": keep for name, keep in self.protected.items()}
        header = _SurveyHeader(dict(self.limits), tuple(self.scores), dict(self.skipped), self.samples)
        return write_container(path, tensors, header, KIND)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "ConnectivityEvidence":
        """Read what :meth:`save` wrote; raises :class:`FileError` where it is missing, damaged, foreign or newer."""
        header, tensors = read_container(path, _SurveyHeader, KIND)
        scores = {name.removeprefix("scores/"): t for name, t in tensors.items() if name.startswith("scores/")}
        protected = {name.removeprefix("protected/"): t for name, t in tensors.items() if name.startswith("protected/")}
        with reading(path, KIND):
            if sorted(header.order) != sorted(scores) or any(values.ndim != 2 for values in scores.values()):
                raise DamageError("its scores are not those that its header lists.")
            if any(keep.ndim != 1 or keep.dtype != torch.bool for keep in protected.values()):
                raise DamageError("what it protects are not booleans, one for each unit.")
        ordered = {name: scores[name] for name in header.order}
        return ConnectivityEvidence(ordered, header.limits, protected, header.skipped, header.samples)


@final
@dataclass(frozen=True, slots=True)
class SurveyOptions:
    """How connectivity is surveyed: the options of SNACS that decide what is measured, apart from any budget."""

    per_unit: bool = False
    estimator: Estimator = "residual"
    limits: bool = True
    probe: bool = False
    slack: float = 0.15
    protect: bool = True
    propagated: bool = False
    samples: int = 2048
    per_class: int = 0
    paper: bool = False
    hears: bool = False
    ranking: RankedBy = "connectivity"
    evidence: EvidenceOf = "means"
    curves: CompensationSurvey | None = None

    def of(self, view: View, folder: Folder = None) -> ConnectivityEvidence:
        """Survey the model of a view, or read what was found out before about the same model on the same data.

        With a cache, the measurement and each layer are written as soon as they are done: a survey that was stopped
        goes on from there, and several processes may work on the same one.

        Raises:
            DataError: there are neither data nor connections to look at, or limits cannot be found from the labels.
            FileError: the cache cannot be written.
        """
        require_evidence(view, "SNACS")
        if self.limits and not (has_classes(view) if self.probe else can_be_judged(view)):
            require_classes(None)
        if self.limits and not self.probe and (view.model is None or view.data is None):
            raise DataError(
                "the limits of the layers ask the network itself: give model and data, or use probe=True, which asks "
                "what was measured, or limits=False."
            )
        if folder is None or " at 0x" in repr(self.curves):
            return self._made(view, self._measure(view), None)
        labelled = "labels" in self.wanted(view)
        data = connections_digest(view, samples=self.samples, per_class=self.per_class, labelled=labelled)
        curves = None if self.curves is None else repr(self.curves)
        question = [KIND.version, asdict(replace(self, curves=None)) | {"curves": curves}]
        place = evidence_folder(folder, view, question, data)
        whole = place / "connectivity.safetensors"
        with suppress(FileError):  # it is not there yet, or damaged
            return ConnectivityEvidence.load(whole)
        self._made(view, self._read_or_measure(view, place / "stats.safetensors"), place).save(whole)
        # And nothing that another process is writing.
        for path in (*place.glob(f"*{PART}"), place / "stats.safetensors"):
            path.unlink(missing_ok=True)
        return ConnectivityEvidence.load(whole)

    def wanted(self, view: View) -> frozenset[str]:
        """The evidence it needs of a view."""
        return frozenset({"connections", "labels"} if self.limits and has_classes(view) else {"connections"})

    def _measure(self, view: View) -> Stats:
        return heard(view, self.wanted(view), samples=self.samples, per_class=self.per_class)

    def _read_or_measure(self, view: View, path: Path) -> Stats:
        if path.exists():
            with suppress(FileError):  # another process that was done first has removed it
                return Stats.load(path)
        stats = self._measure(view)
        stats.save(path)
        return stats

    def _made(self, view: View, stats: Stats, place: Path | None) -> ConnectivityEvidence:
        labels = require_classes(stats.labels) if self.limits and (self.probe or stats.labels is not None) else None
        shares = view.ask(PatchSurvey(self.samples)) if self.evidence == "patches" else {}
        listed = layers(view.graph, view.weights, stats.connections)
        factors = published.signed_factors(listed) if self.paper else {la.tensor: la.strength() for la in listed}
        rho = {
            layer.tensor: _part(
                place,
                layer.tensor,
                (layer.children, layer.parents),
                partial(self._score_layer, layer, listed[:number], stats, factors[layer.tensor], shares),
            )
            for number, layer in enumerate(listed)
        }
        leaned = (
            propagate_importance(view.graph, listed, rho)
            if self.propagated
            else sensitivity(view.graph, listed, factors)
        )
        saved = protected_units(leaned) if self.protect else {}
        found = self._limits(view, listed, rho, stats, labels, place) if self.limits else {}
        skipped = {name: reason for name, reason in stats.skipped.items() if name in view.graph.tensors}
        return ConnectivityEvidence(rho, found, saved, skipped, stats.samples)

    def _score_layer(
        self,
        layer: Layer,
        earlier: tuple[Layer, ...],
        stats: Stats,
        factor: Tensor,
        shares: Mapping[str, Tensor],
    ) -> Tensor:
        if layer.tensor in shares:
            return shares[layer.tensor]
        if self.ranking == "compensated":
            return factor
        if self.paper:
            return published.raw_connectivity(layer, earlier, stats.connections, stats.seed) * factor
        dependence = connectivity(layer, stats.connections[layer.tensor], estimator=self.estimator)
        return dependence if self.ranking == "dependence" else weigh_by_magnitude(layer, dependence)

    def _limits(
        self,
        view: View,
        listed: Iterable[Layer],
        rho: Mapping[str, Tensor],
        stats: Stats,
        labels: Tensor | None,
        place: Path | None,
    ) -> dict[str, Limit]:
        scores = self.unit_scores(view, listed, rho) if self.per_unit else {}
        if self.probe and labels is not None:
            return self._limits_by_probe(listed, rho, scores, stats, labels, place)
        trials = unit_trials(view.graph, scores) if self.per_unit else _connection_trials(listed, rho)
        network = LayerwiseSensitivity(view, keep_position(view.data))
        # What a network that knows nothing would reach: of losses nobody knows.
        chance = 0.0 if labels is None else 1 / int(labels.unique().numel())
        return {
            name: bearable(
                (0.0, *(share for share, _ in steps)),
                _part(place, f"limit of {name}", (len(steps) + 1,), partial(network.curve, steps)).tolist(),
                self.slack,
                chance,
            )
            for name, steps in trials.items()
        }

    def _limits_by_probe(
        self,
        listed: Iterable[Layer],
        rho: Mapping[str, Tensor],
        scores: Mapping[str, Tensor],
        stats: Stats,
        labels: Tensor,
        place: Path | None,
    ) -> dict[str, Limit]:
        ranks, found = {name: _places(values) for name, values in scores.items()}, dict[str, Limit]()
        for layer in listed:
            heard = stats.connections[layer.tensor]
            orders = _unit_orders(layer, ranks) if self.per_unit else _connection_order(layer, rho[layer.tensor])
            for name, places in orders.items():
                probe = published.qualities if self.paper else partial(qualities, probe=ridge, seed=stats.seed)
                make = partial(_curve, layer, heard, places, labels, probe)
                curve = _part(place, f"limit of {name} at {layer.tensor}", (len(GRID),), make)
                here = limit(GRID, curve.tolist(), self.slack)
                found[name] = min(found.get(name, here), here, key=lambda one: one.upper)
        return found

    def unit_scores(self, view: View, listed: Iterable[Layer], rho: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What units are ranked by: for each prunable group a tensor [units]."""
        if self.curves is not None:
            return curve_scores(view, view.ask(self.curves))
        norms = magnitude(view.graph, view.weights)
        if self.ranking == "magnitude":
            return {group.name: norms[group.name].to("cpu", torch.float32) for group in view.graph.prunable}
        return unit_scores(view.graph, listed, rho, norms, hears=self.hears)


def _part(place: Path | None, name: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Tensor:
    """The result of that name and shape for a single layer; kept in a folder where there is one."""

    def fits(found: Mapping[str, Tensor]) -> bool:
        values = found.get(VALUES, torch.zeros(0))
        return values.shape == shape and values.is_floating_point()

    path = place and place / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}{PART}"
    return remember(path, lambda: {VALUES: make()}, CELL, fits)[VALUES]


def _is_measured(stats: Stats | None) -> TypeGuard[Stats]:
    return stats is not None and "connections" in stats.want


def heard(view: View, want: frozenset[str], **options: int) -> Stats:
    """What enters the layers of a view's model: as was measured before, or in one pass over its data."""
    found = view.stats if _is_measured(view.stats) else view.listen(want, **options).stats
    assert found is not None
    return found


def require_evidence(view: View, asker: str) -> None:
    """Raise :class:`DataError` in the name of ``asker`` where a view has no evidence and no way to it."""
    if _is_measured(view.stats):
        return
    if view.model is None or view.data is None:
        raise DataError(
            f"{asker} measures what enters each layer: give data=, batches of (inputs, labels), or stats measured with "
            'want={"connections", "labels"}.'
        )


def is_labelled(view: View) -> bool:
    """Whether the evidence of a view has labels, or its data would give some."""
    if _is_measured(view.stats):
        return view.stats.labels is not None
    return view.data is not None and are_labelled(view.data, view.task)


def has_classes(view: View) -> bool:
    """Whether there is a class number for each sample."""
    if _is_measured(view.stats):
        return view.stats.labels is not None
    return view.data is not None and are_classes(view.data, view.task)


def can_be_judged(view: View) -> bool:
    """Whether it can be told how well the network does: by labels, or as its task says."""
    if is_labelled(view):
        return True
    try:
        return view.data is not None and view.model is not None and task_of(view).has_loss
    except (ArgumentError, DataError):
        return False


def connections_digest(view: View, *, samples: int, per_class: int, labelled: bool) -> str:
    """A digest of what :func:`heard` would give."""
    if _is_measured(view.stats):
        digest = hashlib.sha256(view.stats.digest.encode())
        for name, tensor in sorted(view.stats.connections.items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()
    return data_digest(
        data_of(view), samples=samples, per_class=per_class, labelled=labelled, seed=view.seed, task=view.task
    )


def _curve(
    layer: Layer,
    heard: Tensor,
    places: Tensor,
    labels: Tensor,
    probe: Callable[[Iterable[Tensor], Tensor], list[float]],
) -> Tensor:
    """Quality of the layer's children with more and more of its connections gone. Shape [shares]."""
    said = (response(layer.weight * layer.mask(places >= share), heard) for share in GRID)
    return torch.tensor(probe(said, labels))


def _connection_order(layer: Layer, rho: Tensor) -> dict[str, Tensor]:
    """For each connection the share of the layer that goes before it. [children, parents]."""
    return {layer.tensor: _places(rho.flatten()).reshape(rho.shape)} if layer.is_prunable else {}


def _connection_trials(listed: Iterable[Layer], rho: Mapping[str, Tensor]) -> dict[str, list[Trial]]:
    """For each layer masks that take more and more of its connections."""
    return {
        name: [(share, Mask(layer.tensor, Keep.of(layer.mask(places >= share).contiguous()))) for share in SHARES]
        for layer in listed
        for name, places in _connection_order(layer, rho[layer.tensor]).items()
    }


def _places(scores: Tensor) -> Tensor:
    """For each of these scores the share of all that goes before it; a hair more, for comparing with shares."""
    order = torch.argsort(scores, stable=True, descending=True).flip(0)
    places = torch.empty(len(scores))
    places[order] = torch.arange(len(scores)) / len(scores)
    return places + 1e-9


def _unit_orders(layer: Layer, ranks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each group that the layer reads, per connection the share of units that go before its parent."""
    orders = {}
    for group, units in layer.columns:
        if group in ranks:
            index = torch.tensor(units.array)
            places = torch.where(index >= 0, ranks[group][index.clamp(min=0)], 1.0)
            orders[group] = places.expand(layer.children, layer.parents)
    return orders


def _matrix(values: Tensor) -> list[list[float]]:
    small = torch.nn.functional.adaptive_avg_pool2d(
        values[None, None], (min(len(values), LARGEST), min(values.shape[1], LARGEST))
    )
    return [[float(f"{v:.3g}") for v in row] for row in small[0, 0].tolist()]
