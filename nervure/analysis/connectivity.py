"""``connectivity``: which units of a network still hear its input and are heard at its output, and how well."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, final, get_args, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from nervure.analysis.build import draw_circuit
from nervure.analysis.edge_strength import Strength
from nervure.analysis.heat import Laplacian, Normalize
from nervure.analysis.neuron_graph import Flags, Floats, Ints, NeuronGraph, NodeSet
from nervure.analysis.paths import LayerCounts, Mass, carried_heat, census, heard, log_sum, masses, read
from nervure.core.check import checked, require_choice
from nervure.core.markup import listing
from nervure.errors import ArgumentError
from nervure.graph.tape import named_tensors
from nervure.surgery.link import Wire

MIXED = 1000.0
"""At ``t*`` the slowest mode of the reference has fallen to one part in so many."""
GRID = (0.25, 1.0, 4.0, 16.0)
HEADINGS = ("layer", "units", "unheard", "unread", "connections", "density", "live", "log10 mass", "width")


@runtime_checkable
class HasMasks(Protocol):
    """A model with masks beside it, as :func:`nervure.prune` returns it."""

    @property
    def model(self) -> nn.Module:
        """The model."""

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """For each masked parameter which entries stay."""


@final
@dataclass(frozen=True, slots=True)
class LayerPaths:
    """One layer of a network as part of paths from inputs to outputs.

    Attributes:
        name: the layer.
        units: how many outputs it has.
        unheard: units that no path leads to from an input.
        unread: units that no path leads from to an output.
        places: connections it could have; 0 for the input itself.
        connections: those it has: weights that are not 0.
        live: those of them on a path from an input to an output.
        mass: base-10 logarithm of the mass of all paths through it; ``-inf`` without any.
        width: how many units carry that mass, in [1, units], as the exponential of the entropy of their shares; 0
            where none does.
    """

    name: str
    units: int
    unheard: int
    unread: int
    places: int
    connections: int
    live: int
    mass: float
    width: float


class LayerUnits(NamedTuple):
    """The units of one layer: which lie on a path from an input to an output, and the directed heat through each."""

    name: str
    alive: Flags
    heat: Floats


@final
@dataclass(frozen=True, eq=False)
class Connectivity:
    """The units of a network as a graph, made by :func:`connectivity`. What takes time is computed when first asked.

    Attributes:
        circuit: the units and what joins them.
        reference: the network it is compared with, if any.
        normalize: which Laplacian heat flows by.
    """

    circuit: NeuronGraph
    reference: "Connectivity | None" = None
    normalize: Normalize = "none"

    # -- along the direction of computing -------------------------------------------------------------------------

    @cached_property
    def _heard(self) -> Flags:
        return heard(self.circuit)

    @cached_property
    def _read(self) -> Flags:
        return read(self.circuit)

    @cached_property
    def _mass(self) -> Mass:
        return masses(self.circuit)

    @cached_property
    def _census(self) -> tuple[LayerCounts, ...]:
        return census(self.circuit, self._heard, self._read)

    @cached_property
    def places(self) -> int:
        """How many prunable connections the network could have; linked skip connections have no place of their own."""
        return sum(c.places for c in self._census if c.tensor not in self.circuit.links)

    @property
    def density(self) -> float:
        """Connections (weights that are not 0), links included, as a fraction of ``places``."""
        return sum(c.connections for c in self._census) / max(1, self.places)

    @property
    def effective_density(self) -> float:
        """Connections on a live path from an input to an output, links included, as a fraction of ``places``."""
        return sum(c.live for c in self._census) / max(1, self.places)

    @cached_property
    def dead(self) -> Mapping[str, tuple[int, ...]]:
        """For each layer that has dead units (no path from an input, or none to an output) their numbers.

        A unit of a layer that runs several times is dead where it is in every run.
        """
        found = {units.name: _numbers(~units.alive) for units in self.units}
        return {name: numbers for name, numbers in found.items() if numbers}

    @cached_property
    def dead_classes(self) -> tuple[int, ...]:
        """The outputs of the network that hear no input."""
        return _numbers(~self._heard[self.circuit.outputs])

    @cached_property
    def path_mass(self) -> float:
        """Base-10 logarithm of the mass of all paths from inputs to outputs; ``-inf`` without any."""
        return log_sum(self._mass.arrived[self.circuit.outputs]) / math.log(10)

    @cached_property
    def output_width(self) -> float:
        """How evenly the mass of paths is spread over the outputs, in [0, 1]: the share of them that carry it.

        The exponential of the entropy of their shares, over their number: 1 where all get as much, 0 without paths.
        """
        outputs = self.circuit.outputs
        return _width(self._mass.arrived[outputs]) / max(1, len(outputs))

    @cached_property
    def _rows(self) -> tuple[tuple[str, Ints, LayerCounts | None], ...]:
        """The inputs and the layers: name, nodes [readings of its weight, units], and what was counted."""
        stages = self.circuit.stages
        given = [(s.name, _nodes([s]), None) for s in stages if s.kind == "input"]
        made = [(_layer_name(c.tensor), _nodes([stages[n] for n in c.stages]), c) for c in self._census]
        return (*given, *made)

    @cached_property
    def layers(self) -> tuple[LayerPaths, ...]:
        """The inputs, then every layer with weights that can be pruned, in running order."""
        return tuple(self._layer(*row) for row in self._rows)

    def _layer(self, name: str, nodes: Ints, counted: LayerCounts | None) -> LayerPaths:
        through = np.logaddexp.reduce(self._mass.through[nodes], axis=0)
        return LayerPaths(
            name,
            nodes.shape[1],
            int((~self._heard[nodes]).all(axis=0).sum()),
            int((~self._read[nodes]).all(axis=0).sum()),
            counted.places if counted else 0,
            counted.connections if counted else 0,
            counted.live if counted else 0,
            log_sum(through) / math.log(10),
            _width(through),
        )

    @cached_property
    def units(self) -> tuple[LayerUnits, ...]:
        """What :attr:`layers` counts, unit by unit; over several runs of a layer heat is summed."""
        alive, heat = self._heard & self._read, carried_heat(self.circuit)
        return tuple(
            LayerUnits(name, np.atleast_1d(alive[nodes].any(axis=0)), heat[nodes].sum(axis=0))
            for name, nodes, _ in self._rows
        )

    @cached_property
    def directed_heat(self) -> Tensor:
        """The heat that has come through each unit when every input began with 1 and heat moves forward only.

        A unit hands all that it gets to those that hear it, in proportion to the strength of the connections; what has
        nowhere to go is lost. Nervure's own measure: the heat of :meth:`heat` also flows backwards, into dead ends.
        Shape [units of ``circuit``]; units that are one with another (see :attr:`mesh`) have 0.
        """
        return torch.from_numpy(self._directed_scores)

    @cached_property
    def _directed_scores(self) -> Floats:
        whole, last = self.mesh.whole, np.zeros(self.circuit.size, dtype=np.int64)
        np.maximum.at(last, whole, np.arange(len(whole)))
        # All that the parts of a sum get arrives in the sum, which is the last of them.
        here, found = self.mesh.nodes, np.zeros(self.circuit.size)
        found[here] = carried_heat(self.circuit)[last[here]]
        return found

    @cached_property
    def directed_distance(self) -> float:
        """The share of the reference's directed heat at the outputs that does not arrive there, in [0, 1].

        A measure of nervure's own: what arrives at an output beyond what the reference has there makes up for nothing.
        It grows where heat is lost in dead ends and where some outputs get little.

        Raises:
            ArgumentError: there is no reference, or a layer has another number of units in it.
        """
        other = self._required_reference()
        ends = np.zeros(other.circuit.size)
        ends[other.mesh.whole[other.circuit.outputs]] = 1.0
        pairs = [
            (mine, theirs * ends[s.nodes])
            for s, mine, theirs in self._pair_stages(self._directed_scores, other._directed_scores)
        ]
        total = sum(float(theirs.sum()) for _, theirs in pairs)
        arrived = sum(float(np.minimum(mine, theirs).sum()) for mine, theirs in pairs)
        return 1 - arrived / total if total > 0 else 0.0

    # -- the undirected graph -------------------------------------------------------------------------------------

    @cached_property
    def mesh(self) -> Laplacian:
        """The undirected graph, in which sums are one with what is only added to them."""
        return Laplacian.of(self.circuit, self.normalize)

    @property
    def components(self) -> int:
        """Parts of the undirected graph that no edge joins."""
        return int(self.mesh.components.max(initial=-1)) + 1

    @property
    def isolated(self) -> int:
        """Units without any connection."""
        return len(self.mesh.isolated)

    @property
    def spectral_gap(self) -> float:
        """First eigenvalue of the Laplacian above 0 (of all components the least); 0 without connections."""
        return self.mesh.gap

    @cached_property
    def times(self) -> tuple[float, ...]:
        """Times worth a look: 1/4, 1, 4 and 16 times ``t* = ln(1000) / gap`` (of the reference), and infinity."""
        gap = (self.reference or self).spectral_gap
        return (*(scale * math.log(MIXED) / gap for scale in GRID), math.inf) if gap else (math.inf,)

    def heat(self, t: float) -> Tensor:
        """The heat of every unit after time ``t``, when at first every input had 1: S(t) = exp(-t L) A.

        Args:
            t: 0 or more; ``math.inf`` is the mean over each component.

        Returns:
            Shape [units of ``circuit``]; units that are one with another (see :attr:`mesh`) have 0.
        """
        return self.heats((t,))[0]

    def heats(self, times: Sequence[float]) -> tuple[Tensor, ...]:
        """:meth:`heat` at several times, which costs hardly more than at the last."""
        return tuple(map(torch.from_numpy, self._spread([_time(t) for t in times])))

    def distance(self, t: float, *, relative: bool = False) -> float:
        """How far heat is from that of the reference at time ``t``: the Euclidean norm over all units.

        Units that only one of the two has count as having no heat in the other.

        Args:
            t: 0 or more; see :attr:`times` for which are of use.
            relative: as a fraction of the norm of the reference's heat.

        Raises:
            ArgumentError: there is no reference, or a layer has another number of units in it.
        """
        return self.distances((t,), relative=relative)[0]

    def distances(self, times: Sequence[float], *, relative: bool = False) -> tuple[float, ...]:
        """:meth:`distance` at several times, which costs hardly more than at the last."""
        other, listed = self._required_reference(), [_time(t) for t in times]
        pairs = zip(self._spread(listed), other._spread(listed), strict=True)
        return tuple(self._apart(mine, theirs, relative=relative) for mine, theirs in pairs)

    def _spread(self, times: Sequence[float]) -> list[Floats]:
        found = []
        for values in self.mesh.heat(times):
            whole = np.zeros(self.circuit.size)
            whole[self.mesh.nodes] = values
            found.append(whole)
        return found

    def _required_reference(self) -> "Connectivity":
        if self.reference is None:
            raise ArgumentError("distances are to a reference: give connectivity(..., reference=) the dense network.")
        return self.reference

    def _apart(self, mine: Floats, theirs: Floats, *, relative: bool) -> float:
        far = sum(float(np.sum(np.square(a - b))) for _, a, b in self._pair_stages(mine, theirs))
        # What the reference does not have: all of its heat is a difference.
        names = {s.name for s in self._required_reference().circuit.stages}
        far += sum(float(np.sum(np.square(mine[s.nodes]))) for s in self.circuit.stages if s.name not in names)
        return math.sqrt(far) / (float(np.linalg.norm(theirs)) or 1.0 if relative else 1.0)

    def _pair_stages(self, mine: Floats, theirs: Floats) -> Iterator[tuple[NodeSet, Floats, Floats]]:
        """The reference's stages, with what this network and the reference have there."""
        here = {s.name: s for s in self.circuit.stages}
        for stage in self._required_reference().circuit.stages:
            own = here.get(stage.name)
            if own is not None and own.size != stage.size:
                raise ArgumentError(
                    f"layer {stage.name!r} has {own.size} units, {stage.size} in the reference: distances compare unit "
                    "by unit. Compare the masked network, before it is cut."
                )
            yield stage, np.zeros(stage.size) if own is None else mine[own.nodes], theirs[stage.nodes]

    # -- to be read -----------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Plain data: every number, the layers, and the dead units by layer."""
        return {
            "units": self.circuit.size,
            "places": self.places,
            "density": self.density,
            "effective_density": self.effective_density,
            "components": self.components,
            "isolated": self.isolated,
            "spectral_gap": self.spectral_gap,
            "path_mass": _finite(self.path_mass),
            "output_width": self.output_width,
            "dead": {name: list(units) for name, units in self.dead.items()},
            "dead_classes": list(self.dead_classes),
            "layers": [{**asdict(row), "mass": _finite(row.mass)} for row in self.layers],
            "notes": list(self.circuit.notes),
            **(self._distances_told() if self.reference is not None else {}),
        }

    def _distances_told(self) -> dict[str, Any]:
        told = [_finite(t) for t in self.times]
        return {
            "times": told,
            "distances": list(self.distances(self.times)),
            "relative_distances": list(self.distances(self.times, relative=True)),
            "directed_distance": self.directed_distance,
        }

    def describe(self) -> str:
        """A readable table of layers, and the numbers of the whole network."""
        rows = [HEADINGS, *(_format_row(row) for row in self.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}"
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        lines += [f"note: {note}" for note in self.circuit.notes]
        lines.append(
            f"{self.components} components, {self.isolated} isolated units, spectral gap {self.spectral_gap:.4g}; "
            f"density {self.density:.2%}, effective density {self.effective_density:.2%}; "
            f"{sum(map(len, self.dead.values()))} dead units, {len(self.dead_classes)} dead outputs"
        )
        if self.reference is not None:
            far = zip(self.times, self.distances(self.times, relative=True), strict=True)
            lines.append(
                f"directed heat distance {self.directed_distance:.3g}; relative heat distance "
                + ", ".join(f"{d:.3g} at t={t:.3g}" for t, d in far)
            )
        return listing(lines)

    def __str__(self) -> str:
        return self.describe()


@checked
def connectivity(
    model: nn.Module | HasMasks,
    example: Any,
    *,
    reference: "nn.Module | HasMasks | Connectivity | None" = None,
    strength: Strength = "l2",
    normalize: Normalize = "none",
) -> Connectivity:
    """Analyse which units of a network are joined, dense or sparse, by running it once on ``example``.

    Every unit (channel, neuron) of every activation is a node; a connection is there where a weight is not 0. Shortcuts
    join units of the same number. Where activations meet without weights (gates, attention), all that decides on a
    result is taken to be joined to it; norms join nothing.

    Args:
        model: any module, or a result of :func:`nervure.prune`, whose masked weights count as 0.
        example: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        reference: a network with the same units to compare heat with, usually the dense one; or what this function
            made of it (with the same ``strength`` and ``normalize``).
        strength: of a connection of several weights (a kernel): ``"l2"`` norm, ``"l1"`` norm, ``"mean"`` absolute
            weight, or ``"binary"``, 1.
        normalize: the Laplacian of the undirected graph: ``"none"``; ``"meandeg"``: of strengths relative to the mean
            degree, so that the scale of weights does not matter; ``"sym"``: the symmetric normalised one.

    Returns:
        The connectivity; what takes time in it is computed when first asked for.

    Raises:
        ForwardError: the model's own forward raised.
        TraceError: its weights are missing or not finite.
        ArgumentError: an option is none of those named, or a mask does not fit the model.
        MissingExtraError: scipy is not installed.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]))
        >>> found = connectivity(net, torch.zeros(1, 3))
        >>> found.components, found.dead, found.effective_density  # the second neuron hears nothing
        (2, {'input': (2,), '0': (1,)}, 0.375)
    """
    require_choice(strength, get_args(Strength), "strength")
    require_choice(normalize, get_args(Normalize), "normalize")
    if reference is not None and not isinstance(reference, Connectivity):
        reference = connectivity(reference, example, strength=strength, normalize=normalize)
    module, masks = _parts(model)
    links = frozenset(
        f"{name}.{key}" for name, m in module.named_modules() if isinstance(m, Wire) for key, _ in m.named_parameters()
    )
    circuit = draw_circuit(module, example, masks=masks, strength=strength, links=links)
    return Connectivity(circuit, reference, normalize)


def _parts(model: Any) -> tuple[nn.Module, Mapping[str, Tensor]]:
    if isinstance(model, nn.Module):
        return model, {}
    if not isinstance(model, HasMasks):
        raise ArgumentError(f"a {type(model).__name__} is no network: give a module, or what prune returned.")
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model.model).items()}
    for name, mask in model.masks.items():
        if shapes.get(name) != tuple(mask.shape):
            raise ArgumentError(f"mask {name!r} has shape {tuple(mask.shape)}, the model's tensor {shapes.get(name)}.")
    return model.model, model.masks


@checked
def measures(
    model: nn.Module | HasMasks, example: Any, reference: "nn.Module | HasMasks | Connectivity"
) -> dict[str, float]:
    """One row of a table: the numbers that may rank sparse networks, by name.

    Args:
        model: see :func:`connectivity`.
        example: inputs.
        reference: the dense network.
    """
    found = connectivity(model, example, reference=reference)
    names = [*(f"heat_distance_{scale:g}" for scale in GRID), "heat_distance_inf"]
    return {
        "density": found.density,
        "effective_density": found.effective_density,
        "components": found.components,
        "isolated": found.isolated,
        "spectral_gap": found.spectral_gap,
        "dead_units": sum(map(len, found.dead.values())),
        "dead_classes": len(found.dead_classes),
        "path_mass": found.path_mass,
        "output_width": found.output_width,
        "directed_distance": found.directed_distance,
        **dict(zip(names, found.distances(found.times, relative=True), strict=True)),
    }


def _time(t: float) -> float:
    if isinstance(t, bool) or not isinstance(t, int | float) or not t >= 0:
        raise ArgumentError(f"t={t!r} is no time: give 0 or more; math.inf is the end.")
    return float(t)


def _numbers(flags: Flags) -> tuple[int, ...]:
    return tuple(np.flatnonzero(flags).tolist())


def _nodes(stages: Sequence[NodeSet]) -> Ints:
    """The nodes of one layer, [readings, units]; side by side where its readings make different numbers of units."""
    found = [np.arange(s.start, s.start + s.size) for s in stages]
    return np.stack(found) if len({s.size for s in stages}) == 1 else np.concatenate(found)[None]


def _layer_name(tensor: str) -> str:
    return tensor.removesuffix(".weight")


def _width(logs: Floats) -> float:
    """The exponential of the entropy of shares whose logarithms, up to a constant, are ``logs``."""
    total = log_sum(logs)
    if total == -math.inf:
        return 0.0
    shares = np.exp(logs - total)
    return float(np.exp(-np.sum(shares * np.where(shares > 0, logs - total, 0.0))))


def _finite(value: float) -> float | None:
    """As JSON has it, which knows no infinity."""
    return value if math.isfinite(value) else None


def _format_row(row: LayerPaths) -> tuple[str, ...]:
    counted = ("", "", "")
    if row.places:
        counted = (f"{row.connections:,}", f"{row.connections / row.places:.2%}", f"{row.live / row.places:.2%}")
    return (
        row.name,
        f"{row.units:,}",
        f"{row.unheard:,}",
        f"{row.unread:,}",
        *counted,
        f"{row.mass:.2f}" if math.isfinite(row.mass) else "no path",
        f"{row.width:.1f}",
    )
