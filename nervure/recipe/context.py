"""What the steps of a run share: the recipe and what it names, the folder, and the log of what is done."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Required, TypedDict, final

import torch
from torch import nn

from nervure.core.files import is_there, read_json
from nervure.core.schema import NotNegative
from nervure.evaluation.tolerance import AmountSearch
from nervure.export import load, load_state, save
from nervure.graph import Graph
from nervure.integrations.trackers import Tracker
from nervure.methods import Method, with_amount
from nervure.methods.dynamic.dynamic_sparse import DynamicSparse
from nervure.plan import Plan
from nervure.prune import Pruned
from nervure.recipe.making import begins_fresh
from nervure.recipe.own_data import Data, OwnData
from nervure.recipe.purpose import Purpose
from nervure.recipe.recipe import Recipe
from nervure.recipe.sources import ModelSource
from nervure.tasks import Task
from nervure.zoo import Dataset

STATS, STATS_FRESH = "stats.safetensors", "stats-fresh.safetensors"
SURVEYS = "surveys"
REFIT = "refit.json"
SEARCH = "search.json"
SHARED = frozenset({"dense.safetensors", "dense.history.json", "graph.json", STATS, STATS_FRESH, SURVEYS})


class Log(TypedDict, total=False):
    """What ``steps.json`` holds: what was begun, and which of its steps are done."""

    recipe: dict[str, dict[str, Any]]
    fingerprint: str
    method: str
    done: Required[list[str]]
    seconds: Required[dict[str, NotNegative]]
    clearing: bool


@final
@dataclass(frozen=True, slots=True, eq=False)
class RunContext:
    """What every step works with: the recipe and what it names, the folder, and how to speak.

    Attributes:
        recipe: the recipe.
        folder: where artefacts are read and written.
        data: its data.
        source: where its network comes from.
        method: what decides.
        device: where networks run.
        say: tells the user one line (or a table).
        progress: whether to show bars.
        shared: the folder of the dense network and its evidence, where several runs share them; None: the folder.
        purpose: what the network is for, and how it is called.
        tracker: what is told of every step and epoch of its trainings; None: nobody.
    """

    recipe: Recipe
    folder: Path
    data: Data
    source: ModelSource
    method: Method
    device: torch.device
    say: Callable[[str], None]
    progress: bool = True
    shared: Path | None = None
    purpose: Purpose = field(default_factory=Purpose)
    tracker: Tracker | None = None

    @property
    def task(self) -> Task | None:
        """What the network is for; None: classes, measured as always."""
        return self.purpose.task

    @property
    def meets_shift(self) -> bool:
        """Whether the corruptions of images mean something here."""
        return not self.without_shift

    @property
    def without_shift(self) -> str:
        """Why shift is not measured, though the recipe asks for it, in a sentence; empty: it is."""
        if isinstance(self.data, Dataset) and self.purpose.name == "classification":
            return ""
        why = "the data are loaders of your own" if isinstance(self.data, OwnData) else f"this is {self.purpose.name}"
        return (
            f"Shift was not measured: the corruptions of a recipe are for images of known range with a class each, and "
            f'{why}. evaluate(model, data, task=task, shift="all") measures it for pictures, rows and tokens.'
        )

    def path(self, name: str) -> Path:
        """Where artefact ``name`` is."""
        return (self.shared if self.shared is not None and name in SHARED else self.folder) / name

    def fresh(self) -> nn.Module:
        """The network with its first weights."""
        return self.source.build(self.recipe.run.seed).to(self.device)

    def dense(self) -> nn.Module:
        """The trained dense network."""
        return load_state(self.path("dense.safetensors"), self.fresh()).eval()

    @property
    def begins_fresh(self) -> bool:
        """Whether what is pruned has its first weights, and learns everything afterwards."""
        return begins_fresh(self.recipe, self.method)

    @property
    def stats(self) -> Path:
        """Where the evidence on the network that is pruned is."""
        return self.path(STATS_FRESH if self.begins_fresh else STATS)

    def origin(self) -> nn.Module:
        """The network that is pruned."""
        return self.fresh().eval() if self.begins_fresh else self.dense()

    @property
    def search(self) -> AmountSearch | None:
        """How the amount was looked for; None where it was told, or was not looked for yet."""
        path = self.path(SEARCH)
        return AmountSearch.from_json(read_json(path, "a search for an amount")) if is_there(path) else None

    @property
    def decided(self) -> Method:
        """The method, with the amount that was found where it was looked for."""
        found = None if self.search is None else self.search.found
        return self.method if found is None else with_amount(self.method, found.keep)

    def example(self) -> Any:
        """What the network is called with for one sample, on the device."""
        if isinstance(self.data, OwnData):
            assert self.purpose.example is not None
            return self.purpose.example.to(self.device).plain()
        return self.data.example(1).to(self.device)

    def graph(self) -> Graph:
        """The graph of the dense network."""
        return Graph.from_json(read_json(self.path("graph.json"), "a graph"))

    def plan(self) -> Plan:
        """The plan of the method."""
        return Plan.from_json(read_json(self.path("plan.json"), "a plan"))

    def final_plan(self) -> Plan:
        """The plan with the masks of the end, where training rewired."""
        return self.pruned("model.safetensors").plan if isinstance(self.method, DynamicSparse) else self.plan()

    def pruned(self, name: str) -> Pruned:
        """The pruned network saved as ``name``."""
        return load(self.path(name), self.fresh())

    def save(self, name: str, pruned: Pruned) -> None:
        """Save a pruned network with what is needed to build it again."""
        save(self.path(name), pruned, meta={"model": self.source.to_json(), "recipe": self.recipe.to_dict()})
