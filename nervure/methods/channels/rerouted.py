"""Experts leave that their mixture misses least, once the gate has sent their tokens to others."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import ClassVar, TypeAlias, final

import torch

from nervure.core.check import Checked
from nervure.core.progress import track
from nervure.core.schema import Share, Size
from nervure.errors import ScoreError
from nervure.graph.mixtures import Mixture, mixture_of, output_with
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph
from nervure.methods.base import Folder, Inquiry, View, draw_samples, model_to_run
from nervure.methods.evidence_folder import answer_folder, remember
from nervure.plan import Cut, Keep, Plan
from nervure.refit.activations import running
from nervure.refit.calls import Call, heard
from nervure.refit.replay import Replay
from nervure.surgery.apply import apply_sharing

Experts: TypeAlias = tuple[int, ...]
"""Some of a mixture, by their numbers."""
SETS = 256
"""How many sets of experts are tried, where several leave at once."""


@final
@dataclass(frozen=True, slots=True)
class Rerouted(Checked):
    """Keep the experts without which their mixture says something else.

    An expert that leaves is no silence: the gate sends its tokens to others. So each expert leaves in turn, alone, and
    its mixture is compared with the whole one on what enters the dense network's. The experts by which it changes least
    leave, in rounds: what is left is looked at again. Ours. Counts of tokens, and norms of what experts say
    (:func:`nervure.scores.frequency`, :func:`nervure.scores.reap`), do not see where tokens go. Labels are not looked
    at. A refit (:func:`nervure.refit`) makes the others take over: ``prune(..., refit=True)``.

    Attributes:
        keep: the fraction of each mixture's experts that stays, in (0, 1]; the same number in mixtures of one size.
        samples: how many samples at most are looked at.
        rounds: in how many rounds experts leave, at most. One expert a round is the most careful.
    """

    wants: ClassVar[frozenset[str]] = frozenset()

    keep: Share = 0.5
    samples: Size = 64
    rounds: Size = 8

    @property
    def asks(self) -> tuple[Inquiry[Mapping[str, torch.Tensor]], ...]:
        """In which order experts leave."""
        return (self._departures,)

    @property
    def _departures(self) -> "Departures":
        return Departures(self.keep, self.samples, self.rounds)

    def plan(self, view: View) -> Plan:
        """Cut the experts whose leaving changes their mixture least.

        Raises:
            ScoreError: the model has no mixture of experts that can be heard.
            DataError: the view has no model with weights, or no data.
        """
        kept = view.ask(self._departures)
        cuts = [Cut(name, Keep.of(stay)) for name, stay in kept.items() if not bool(stay.all())]
        return Plan(tuple(cuts), view.graph.fingerprint, asked={"keep": self.keep, "budget": "experts"})


@final
@dataclass(frozen=True, slots=True)
class Departures:
    """Which experts stay; see :class:`Rerouted`."""

    keep: float = 0.5
    samples: int = 64
    rounds: int = 8

    def of(self, view: View, folder: Folder = None) -> Mapping[str, torch.Tensor]:
        """For each mixture which of its experts stay, boolean [experts]."""
        model, mixtures = model_to_run(view), find_mixtures(view)
        place = answer_folder(folder, view, self)

        def make() -> Mapping[str, torch.Tensor]:
            parts, dense = draw_samples(view, self.samples), Replay(model)
            found = {}
            for mixture in track(mixtures, "experts leave", len(mixtures), enabled=view.shows_progress):
                calls = [call for part in parts for call in heard(dense, [mixture.path], 0, part)[mixture.path]]
                if not calls:
                    raise ScoreError(f"{mixture.path!r} does not run on these data. Give others, or ignore=[its gate].")
                found[mixture.group.name] = self._stay(dense, view.graph, mixture, calls)
            return found

        return remember(place and place / "rerouted.safetensors", make)

    def _stay(self, dense: Replay, graph: Graph, mixture: Mixture, calls: Sequence[Call]) -> torch.Tensor:
        stay = torch.ones(mixture.group.size, dtype=torch.bool)
        left = mixture.group.round_up(max(round(self.keep * mixture.group.size), 1))
        for rounds in range(self.rounds, 0, -1):
            surplus = (int(stay.sum()) - left) // mixture.group.multiple
            if surplus <= 0:
                break
            costs = {
                leaving: self._cost(dense, graph, mixture, calls, stay, leaving)
                for leaving in together(stay.nonzero()[:, 0].tolist(), mixture.group.multiple)
            }
            for leaving in apart(sorted(costs, key=costs.__getitem__))[: -(-surplus // rounds)]:
                stay[list(leaving)] = False
        return stay

    def _cost(
        self,
        dense: Replay,
        graph: Graph,
        mixture: Mixture,
        calls: Sequence[Call],
        stay: torch.Tensor,
        leaving: Experts,
    ) -> float:
        """The squared change of what the mixture gives where these experts leave as well."""
        keep = stay.clone()
        keep[list(leaving)] = False
        smaller = apply_sharing(dense.model, graph, Plan((Cut(mixture.group.name, Keep.of(keep)),), graph.fingerprint))
        module, cost = smaller.get_submodule(mixture.path), 0.0
        with running(smaller), torch.no_grad():
            for args, kwargs, said in calls:
                cost += float((output_with(module, {}, args, kwargs) - said).double().square().sum())
        return cost


def together(units: Sequence[int], count: int) -> list[Experts]:
    """What may leave at once: each expert alone, or, where so many leave at a time, sets of them; not all of many."""
    if count == 1 or comb(len(units), count) <= SETS:
        return list(combinations(units, count))
    dice = random.Random(0)
    return sorted({tuple(sorted(dice.sample(list(units), count))) for _ in range(SETS)})


def apart(sets: Iterable[Experts]) -> list[Experts]:
    """The sets, in their order, that have no expert in common with one before."""
    found, taken = list[Experts](), set[int]()
    for one in sets:
        if taken.isdisjoint(one):
            found.append(one)
            taken |= {*one}
    return found


def find_mixtures(view: View) -> list[Mixture]:
    """The mixtures whose experts may leave.

    Raises:
        ScoreError: there is none, or one cannot be heard.
    """
    tensors, found = named_tensors(model_to_run(view)), list[Mixture]()
    for group in view.graph.prunable:
        mixture = mixture_of(group, tensors) if group.kind == "experts" else None
        if isinstance(mixture, str):
            raise ScoreError(f"experts of {group.name!r} cannot be heard: {mixture}. Leave them out: ignore=.")
        found += [] if mixture is None else [mixture]
    if not found:
        raise ScoreError(
            "no expert of this model may leave: it has no mixture, or those that it has stay (nervure.trace says why)."
        )
    return found
