"""Masks of layers that compete: decided over the weights of all of them, tensor by tensor as files hold them."""

from collections.abc import Mapping
from typing import final

from torch import Tensor

from nervure.core.files import is_there, read_json, write_json
from nervure.core.lazy_tensors import LazyTensors
from nervure.graph.types import Graph
from nervure.methods.base import View
from nervure.methods.masks.magnitude_masks import MagnitudeMasks
from nervure.methods.masks.wanda import Wanda
from nervure.plan import Plan
from nervure.streaming.hollow_model import HollowModel
from nervure.streaming.layer_plans import norms_for
from nervure.streaming.streamed_run import StreamedRun

DECIDED = "decided.json"


@final
class CompetingMasks:
    """Which weights stay, by a method that looks at all layers; once they are decided they are read.

    Args:
        model: the dense model.
        graph: of all of it.
        method: the method.
        run: the folder of the run.
        seed: where randomness starts.
    """

    def __init__(
        self, model: HollowModel, graph: Graph, method: MagnitudeMasks | Wanda, run: StreamedRun, seed: int
    ) -> None:
        self._model, self._graph, self._method, self._run, self._seed = model, graph, method, run, seed

    def __call__(self, norms: Mapping[str, Tensor]) -> Plan:
        """The masks of all layers.

        A weight takes a byte of memory while this lasts, beside one tensor and its scores.

        Args:
            norms: how loud what enters each weight is, as a first pass heard it; empty where that is not asked.

        Raises:
            BudgetError: the density is too low to keep the outputs connected.
            ScoreError: a score is NaN or infinite.
        """
        place = self._run.folder / DECIDED
        if not is_there(place):
            write_json(place, self._method.plan(self._view(norms)).to_json())
        return Plan.from_json(read_json(place, "which weights stay"))

    def _view(self, norms: Mapping[str, Tensor]) -> View:
        model, aliases = self._model, self._model.aliases
        inside = tuple(f"{name}." for name in model.layers)
        return View(
            self._graph,
            LazyTensors(aliases, lambda name: model.weights.read(aliases[name], model.dtype)),
            seed=self._seed,
            model=model.whole,
            ignored=frozenset(p.tensor for p in self._graph.products if not p.tensor.startswith(inside)),
            answers=tuple((asked, dict(norms)) for asked in norms_for(self._method)),
        )
