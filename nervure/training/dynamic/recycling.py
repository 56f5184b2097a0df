"""Connections on no path from an input to an output go, and grow again where they lie on one."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nervure.analysis.live_paths import LivePaths
from nervure.training.dynamic.counts import Counts, grow_best, protected_connections
from nervure.training.dynamic.growth import CLOSED
from nervure.training.dynamic.sites import Site

LOWEST = -1e300
"""Below every score."""
ROUNDS = 3
"""Layers that wait for one another are joined one after another."""


def live_connections(paths: LivePaths, sites: Sequence[Site], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the masks on a path, and those without which a norm would divide by zero."""
    found = paths.live(masks)
    divided = {s.name: protected_connections(s, grace=-1, lifelines=False) for s in sites if s.is_divided}
    return found | {name: found[name] | masks[name] & needed for name, needed in divided.items()}


def rank_dead_last(
    paths: LivePaths, sites: Sequence[Site], scores: Mapping[str, Tensor], spare: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scores of dropping and what is spared, such that what lies on no path goes first and each output keeps a path.

    Args:
        paths: of the network.
        sites: its layers.
        scores: how much each connection deserves to stay.
        spare: those that must not go.
    """
    masks = {site.name: site.mask for site in sites}
    live = live_connections(paths, sites, masks)
    lines = paths.lifelines({site.name: site.weight.abs() for site in sites}, masks)
    ranked = {name: scores[name].masked_fill(~there, LOWEST) for name, there in live.items()}
    return ranked, {name: spare[name] & there | lines[name] for name, there in live.items()}


def open_sites(paths: LivePaths, sites: Sequence[Site]) -> list[Site]:
    """The layers, with the places where a connection would lie on a path."""
    places = paths.live_places({site.name: site.mask for site in sites})
    return [site.with_open(places.get(site.name)) for site in sites]


def grow_on_paths(
    paths: LivePaths, sites: Sequence[Site], scores: Mapping[str, Tensor], total: Counts | int, *, joins: bool
) -> dict[str, Tensor]:
    """All connections that are there, and the best free places on paths; others only where these are too few.

    Args:
        paths: of the network.
        sites: its layers, as :func:`open_sites` gives them.
        scores: of all places.
        total: weights in the end, by tensor or in all.
        joins: whether what had to be taken beside the paths is joined to them from the other side, by places of other
            layers that go before better ones.
    """
    masks = {site.name: site.mask for site in sites}
    ranked = {s.name: scores[s.name] if s.open is None else scores[s.name] + CLOSED * ~s.open for s in sites}
    grown = grow_best(sites, masks, ranked, total)
    for _ in range(ROUNDS if joins else 0):
        if all(torch.equal(live, grown[name]) for name, live in paths.live(grown).items()):
            break
        ranked |= {name: _raise_bridges(ranked[name], places) for name, places in paths.bridges(grown).items()}
        grown = grow_best(sites, masks, ranked, total)
    return grown


def _raise_bridges(scores: Tensor, bridges: Tensor) -> Tensor:
    """Of the bridges to or from each unit the one of the highest score goes before everything else."""
    offered = scores.masked_fill(~bridges, LOWEST)
    raised = torch.zeros(scores.shape, dtype=torch.bool)
    for axis in (0, 1):
        moved = offered.movedim(axis, 0)
        rows = moved.flatten(1)
        best = torch.zeros(rows.shape, dtype=torch.bool).scatter_(1, rows.argmax(1, keepdim=True), True)
        raised |= best.reshape(moved.shape).movedim(0, axis)
    return torch.where(raised & bridges, scores.clamp(min=0) - CLOSED, scores)
