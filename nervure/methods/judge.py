"""Asking a model how it does without some of its blocks."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, final

import torch
from torch import nn

from nervure.errors import DataError
from nervure.evaluation import evaluate, latency
from nervure.graph.types import Graph
from nervure.methods.base import View
from nervure.plan import Drop, Plan
from nervure.stats import Stats, measure
from nervure.surgery.apply import apply
from nervure.training.norms import recalibrate

HELD_EVERY = 10
HELD_BATCHES = 20
LATENCY_ROUNDS = 30


def plan_of(graph: Graph, names: Iterable[str]) -> Plan:
    """Drop these blocks, in this order."""
    return Plan(tuple(Drop(name) for name in names), graph.fingerprint)


def model_of(view: View) -> nn.Module:
    """The model; raises DataError where the view has none."""
    if view.model is None:
        raise DataError("this asks the model itself, but the view has none. Give model= (nervure.prune does).")
    return view.model


def data_of(view: View) -> Iterable[Any]:
    """The data; raises DataError where the view has none."""
    if view.data is None:
        raise DataError("this measures, and no data were given. Give data=, batches of (inputs, labels).")
    return view.data


@final
class Judge:
    """Runs the model without some of its blocks; each answer is worked out once."""

    def __init__(self, view: View, batches: int) -> None:
        self._view, self._batches = view, batches
        self._accuracies: dict[tuple[str, ...], float] = {}
        self._latencies: dict[tuple[str, ...], float] = {}
        self._parts: tuple[list[Any], list[Any]] | None = None

    def measured_without(self, names: tuple[str, ...], wants: Iterable[str]) -> View:
        """The view of the smaller model, measured; blocks keep their names."""
        smaller, wanted = self._smaller(names), frozenset(wants)
        stats: Stats | None = None
        if wanted:
            data = data_of(self._view)
            stats = measure(smaller, self._view.graph, data, want=wanted, seed=self._view.seed, progress=False)
        return replace(self._view, model=smaller, stats=stats)

    def accuracy(self, names: tuple[str, ...]) -> float:
        """Accuracy on the part held out."""
        if names not in self._accuracies:
            smaller = self._smaller(names) if names else model_of(self._view)
            self._accuracies[names] = evaluate(smaller, self._split()[1], progress=False).accuracy
        return self._accuracies[names]

    def latency(self, names: tuple[str, ...]) -> float:
        """Time of a forward pass on the example, relative to the whole model's in the same rounds."""
        if names not in self._latencies:
            if self._view.example is None:
                raise DataError('budget="latency" times the model: give the example it was traced with.')
            model = model_of(self._view)
            pair = {"whole": model, "part": apply(model, self._view.graph, plan_of(self._view.graph, names)).eval()}
            table = latency(pair, self._view.example, rounds=LATENCY_ROUNDS, threads=[torch.get_num_threads()])
            self._latencies[names] = table.row("part").ratio
        return self._latencies[names]

    def _smaller(self, names: tuple[str, ...]) -> nn.Module:
        smaller = apply(model_of(self._view), self._view.graph, plan_of(self._view.graph, names)).eval()
        if self._view.data is not None:
            recalibrate(smaller, _pairs(self._split()[0]), self._batches)
        return smaller

    def _split(self) -> tuple[list[Any], list[Any]]:
        """Batches to recalibrate on, and batches held out; kept, since a shuffling loader would mix them."""
        if self._parts is None:
            self._parts = _parted(data_of(self._view), self._batches)
        return self._parts


def _parted(data: Iterable[Any], batches: int) -> tuple[list[Any], list[Any]]:
    seen: list[Any] = []
    held: list[Any] = []
    for number, batch in enumerate(itertools.islice(data, HELD_EVERY * HELD_BATCHES)):
        if number % HELD_EVERY == HELD_EVERY - 1:
            held.append(batch)
        elif len(seen) < batches:
            seen.append(batch)
    if not held and len(seen) > 1:
        held = [seen.pop()]
    if not held:
        raise DataError("one batch of data cannot be parted into some to measure and some to judge on. Give two.")
    return seen, held


def _pairs(batches: Iterable[Any]) -> Iterator[Any]:
    """Recalibration looks at no labels, but takes pairs."""
    for batch in batches:
        yield batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, torch.zeros(1))
