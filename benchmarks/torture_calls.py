"""What is called with bad values: methods, recipes, studies and public functions, with arguments that are right."""

import dataclasses
import decimal
import fractions
import inspect
import itertools
import json
import math
import tomllib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import nervure
from benchmarks.torture_seeds import (
    RECIPE,
    STUDY,
    Small,
    data,
    example,
    latencies,
    masks,
    model,
    recipe,
    save_corrupted,
)
from nervure import dependence, engines, evaluation, stats, training, zoo
from nervure.budget import allocate
from nervure.budget.latency_table import LatencyTally, Rates
from nervure.errors import NervureError
from nervure.export import load_state, save_state
from nervure.methods import METHODS
from nervure.recipe.recipe import SECTIONS
from nervure.recipe.study import MethodEntry, NetworkEntry, StudySection
from nervure.zoo.data import fake


class Endless:
    """Batches without an end, as often as they are asked for."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.cycle(data())


class Strange:
    """Nothing that anybody has a use for."""


def _meta(of: nn.Module) -> nn.Module:
    return of.to("meta")


def _filled(value: float) -> nn.Module:
    network = Small()
    nn.init.constant_(network.stem.weight, value)
    return network


BAD: Mapping[str, Callable[[], Any]] = {
    "None": lambda: None, "True": lambda: True, "False": lambda: False, "''": lambda: "", "'text'": lambda: "text",
    "'1'": lambda: "1", "b'bytes'": lambda: b"bytes", "'\\0'": lambda: "\0", "a long text": lambda: "x" * 10_000,
    "a surrogate": lambda: "\udc80", "a path": lambda: Path("not/there"), "-1": lambda: -1, "0": lambda: 0,
    "1": lambda: 1, "10**6": lambda: 10**6, "2**63": lambda: 2**63, "10**23": lambda: 10**23,
    "-10**23": lambda: -(10**23), "10**400": lambda: 10**400, "0.5": lambda: 0.5, "-0.5": lambda: -0.5,
    "1.5": lambda: 1.5, "1e-320": lambda: 1e-320, "1e308": lambda: 1e308, "nan": lambda: math.nan,
    "inf": lambda: math.inf, "-inf": lambda: -math.inf, "1j": lambda: 1j, "Decimal": lambda: decimal.Decimal("0.5"),
    "Fraction": lambda: fractions.Fraction(1, 2), "numpy number": lambda: np.float32(0.5),
    "numpy array": lambda: np.zeros(3), "[]": list, "()": tuple, "{}": dict, "set()": set, "[None]": lambda: [None],
    "[-1]": lambda: [-1], "['x']": lambda: ["x"], "('x', 'x')": lambda: ("x", "x"), "{1: None}": lambda: {1: None},
    "{'a': 1}": lambda: {"a": 1}, "range": lambda: range(3), "generator": lambda: (i for i in range(3)),
    "iterator of batches": lambda: iter(data()), "endless numbers": itertools.count, "endless batches": Endless,
    "batches of nothing": lambda: [(torch.zeros(0, 3, 6, 6), torch.zeros(0, dtype=torch.long))],
    "batches without labels": lambda: [example()], "labels out of range": lambda: [(example(), torch.tensor([0, 99]))],
    "batches of NaN": lambda: [(example() * math.nan, torch.tensor([0, 1]))],
    "an object": Strange, "a class": lambda: Strange, "a function": lambda: lambda *_, **__: None,
    "a function that raises": lambda: _raise, "Ellipsis": lambda: ..., "a module": lambda: math,
    "zero-dim tensor": lambda: torch.tensor(1.0), "empty tensor": lambda: torch.zeros(0),
    "bool tensor": lambda: torch.ones(3, dtype=torch.bool),
    "meta tensor": lambda: torch.zeros(2, 3, 6, 6, device="meta"),
    "half tensor": lambda: example().half(), "complex tensor": lambda: example().to(torch.complex64),
    "whole numbers": lambda: torch.zeros(2, 3, 6, 6, dtype=torch.long),
    "sparse tensor": lambda: torch.eye(3).to_sparse(),
    "empty batch": lambda: torch.zeros(0, 3, 6, 6), "NaN tensor": lambda: torch.full((2, 3, 6, 6), math.nan),
    "a layer": lambda: nn.Linear(3, 3), "a class of layers": lambda: nn.Linear, "no layers": nn.Sequential,
    "meta model": lambda: _meta(Small()), "double model": lambda: Small().double(),
    "NaN model": lambda: _filled(math.nan),
    "a scripted model": lambda: torch.jit.script(nn.Linear(3, 3)), "a state": lambda: Small().state_dict(),
    "an optimizer": lambda: torch.optim.SGD(Small().parameters(), 0.1), "a plan": nervure.Plan,
    "a method": lambda: nervure.Random(keep=0.5), "a device": lambda: torch.device("cuda", 7),
    "a dtype": lambda: torch.float16, "a list in itself": lambda: _in_itself(2),
}  # fmt: skip


def _raise(*_: object, **__: object) -> None:
    raise NervureError("raised by what was given")


def _in_itself(items: int) -> list[Any]:
    found: list[Any] = []
    found.extend([found] * items)
    return found


# -- what is called --------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A callable, arguments that are right, and the types that are declared."""

    name: str
    function: Callable[..., Any]
    given: Callable[[], dict[str, Any]]
    hints: Mapping[str, Any]

    @property
    def arguments(self) -> list[str]:
        """Names of all of them."""
        return [*self.hints]


def fresh() -> nn.Module:
    """A copy of the small network, with its weights."""
    network = Small().eval()
    network.load_state_dict(model().state_dict())
    return network


@cache
def graph() -> nervure.Graph:
    """Its graph."""
    return nervure.trace(model(), example())


@cache
def pruned() -> nervure.Pruned:
    """Half of it."""
    return nervure.prune(model(), example(), nervure.Magnitude(keep=0.5))


@cache
def measured() -> nervure.Stats:
    """Evidence about it."""
    return nervure.measure(model(), graph(), data(), samples=8, progress=False)


def masked() -> nervure.Pruned:
    """The network with a mask."""
    edits = tuple(nervure.Mask(name, nervure.Keep.of(mask)) for name, mask in masks().items())
    return nervure.prune(model(), example(), nervure.Plan(edits), verify=False)


def table() -> nervure.LatencyTable:
    """Latencies of the network."""
    families = LatencyTally.of(graph(), 8).families
    return dataclasses.replace(latencies(), rates=dict.fromkeys(families, Rates(0.1)))


def _optimizer(network: nn.Module) -> dict[str, Any]:
    return {"model": network, "optimizer": torch.optim.SGD(network.parameters(), 0.1), "masks": masks()}


def _samples() -> Tensor:
    return torch.randn(24, 3, generator=torch.Generator().manual_seed(3))


def _pair() -> dict[str, Any]:
    return {"x": _samples(), "y": _samples().flip(0)}


def _ready() -> dict[str, Any]:
    return {"model": fresh(), "example": example()}


FUNCTIONS: Mapping[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "trace": (nervure.trace, _ready),
    "count": (nervure.count, _ready),
    "prune": (nervure.prune, lambda: _ready() | {"method": nervure.Magnitude(keep=0.5), "data": data()}),
    "prune by a plan": (nervure.prune, lambda: _ready() | {"method": pruned().plan}),
    "apply": (nervure.apply, lambda: {"model": fresh(), "graph": graph(), "plan": pruned().plan}),
    "verify": (nervure.verify, lambda: {"model": fresh(), "pruned": pruned(), "example": example()}),
    "compact": (nervure.compact, lambda: {"graph": graph(), "plan": pruned().plan, **_ready()}),
    "measure": (nervure.measure, lambda: {"model": fresh(), "graph": graph(), "data": data(), "samples": 8}),
    "train": (nervure.train, lambda: {"model": fresh(), "data": data(), "lr": 0.01, "progress": False}),
    "hold": (nervure.hold, lambda: _optimizer(fresh())),
    "evaluate": (nervure.evaluate, lambda: {"model": fresh(), "data": data(), "progress": False}),
    "evaluate under shift": (
        nervure.evaluate,
        lambda: {
            "model": fresh(), "data": fake(24, 4, 3, 8).test.batches(8), "shift": ["brightness"], "severities": (1,),
        },
    ),
    "latency": (
        nervure.latency,
        lambda: {"models": {"a": fresh()}, "example": example(), "rounds": 3, "seconds": 0.01},
    ),
    "similarity": (nervure.similarity, lambda: {"masks_a": masks(), "masks_b": masks()}),
    "connectivity": (nervure.connectivity, _ready),
    "save": (nervure.save, lambda: {"path": "model.safetensors", "pruned": pruned(), "meta": {}}),
    "save_state": (save_state, lambda: {"path": "state.safetensors", "model": fresh(), "masks": masks()}),
    "load": (nervure.load, lambda: {"path": _saved(), "model": fresh()}),
    "load_state": (load_state, lambda: {"path": _saved_state(), "model": fresh()}),
    "compile_sparse": (
        nervure.compile_sparse,
        lambda: {"model": masked(), "example": example(), "rounds": 3, "verbose": False},
    ),
    "zoo.load": (zoo.load, lambda: {"name": "digits"}),
    "zoo.build": (zoo.build, lambda: {"name": "resnet8", "seed": 0}),
    "fake": (fake, dict),
    "load_corrupted": (zoo.load_corrupted, lambda: {"root": _corrupted(), "like": fake(24, 4, 3, 8).test}),
    "allocate": (allocate, lambda: {"graph": graph(), "scores": _scores(), "keep": 0.5}),
    "recalibrate": (training.recalibrate, lambda: {"model": fresh(), "data": data(), "batches": 1}),
    "masks_of": (training.masks_of, lambda: {"model": fresh()}),
    "label_smoothing": (training.label_smoothing, lambda: {"eps": 0.1}),
    "distilled": (training.with_distillation, lambda: {"objective": training.cross_entropy, "teacher": fresh()}),
    "first_batches": (stats.first_batches, lambda: {"data": data(), "samples": 4}),
    "accuracy": (evaluation.accuracy, lambda: {"probabilities": torch.full((8, 4), 0.25), "labels": data()[0][1]}),
    "calibration_error": (
        evaluation.calibration_error,
        lambda: {"probabilities": torch.full((8, 4), 0.25), "labels": data()[0][1]},
    ),
    "corrupt": (evaluation.corrupt, lambda: {"images": torch.rand(2, 3, 8, 8), "name": "fog", "severity": 1}),
    "peak_memory": (evaluation.peak_memory, _ready),
    "file_size": (evaluation.file_size, lambda: {"model": fresh()}),
    "require_engine": (engines.require_engine, lambda: {"name": "eager"}),
    "distance_correlation": (dependence.distance_correlation, _pair),
    "energy_distance": (dependence.energy_distance, _pair),
    "mutual_information": (dependence.mutual_information, _pair),
    "cka": (dependence.cka, _pair),
    "hsic": (dependence.hsic, _pair),
    "Plan": (nervure.Plan, lambda: {"edits": pruned().plan.edits}),
    "Cut": (nervure.Cut, lambda: {"group": "inner", "keep": nervure.Keep.of(torch.ones(8, dtype=torch.bool))}),
    "Mask": (nervure.Mask, lambda: {"tensor": "inner.weight", "keep": nervure.Keep.of(masks()["inner.weight"])}),
    "Drop": (nervure.Drop, lambda: {"block": "inner"}),
    "Keep.of": (nervure.Keep.of, lambda: {"mask": masks()["inner.weight"]}),
    "Plan.from_json": (nervure.Plan.from_json, lambda: {"data": pruned().plan.to_json()}),
    "Graph.from_json": (nervure.Graph.from_json, lambda: {"data": graph().to_json()}),
    "Stats.load": (nervure.Stats.load, lambda: {"path": measured().save("good-stats.safetensors")}),
    "Stats.save": (nervure.Stats.save, lambda: {"self": measured(), "path": "stats"}),
    "LatencyTable.predict": (
        nervure.LatencyTable.predict,
        lambda: {"self": table(), "graph": graph(), "plan": pruned().plan},
    ),
    "Recipe.from_toml": (nervure.Recipe.from_toml, lambda: {"path_or_text": RECIPE}),
    "Recipe.from_json": (nervure.Recipe.from_json, lambda: {"text": json.dumps(recipe().to_dict())}),
    "Recipe.from_dict": (nervure.Recipe.from_dict, lambda: {"data": recipe().to_dict()}),
    "Study.from_dict": (nervure.Study.from_dict, lambda: {"data": tomllib.loads(STUDY)}),
    "run": (nervure.run, lambda: {"recipe": recipe(), "folder": "run", "progress": False}),
    "sweep": (nervure.sweep, lambda: {"recipe": recipe(), "folder": "sweep", "progress": False, "limit": 0}),
}  # fmt: skip
CONVERTED: Mapping[str, Mapping[str, Any]] = {
    "Cut": {"keep": nervure.Keep | Tensor | Iterable[bool]},
    "Mask": {"keep": nervure.Keep | Tensor | Iterable[bool]},
}
"""Fields that take more than they hold."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "GCNet": {"density": 0.5},
    "Synthesis": {"density": 0.5, "start": 0.4},
    "SynFlow": {"steps": 3},
}
"""What methods need to fit the small network, or to be quick."""


def _scores() -> dict[str, Tensor]:
    return {group.name: torch.arange(float(group.size)) for group in graph().prunable}


def _saved() -> Path:
    return nervure.save("good.safetensors", pruned())


def _saved_state() -> Path:
    return save_state("good-state.safetensors", fresh())


def _corrupted() -> Path:
    folder = Path("corrupted")
    folder.mkdir(exist_ok=True)
    save_corrupted(folder)
    return folder


def _hints(function: Any) -> dict[str, Any]:
    """The declared types of all arguments, by name; where they cannot be found: anything."""
    names = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL) and p.name != "self"
    ]
    try:
        known = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (NameError, TypeError):
        known = {}
    return {name: known.get(name, Any) for name in names}


def _fields(cls: type[Any]) -> dict[str, Any]:
    known = typing.get_type_hints(cls)
    return {field.name: known[field.name] for field in dataclasses.fields(cls) if field.init}


class Experts(nn.Module):
    """Four experts, of which each sample chooses two."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)
        self.maps = nn.Parameter(torch.randn(4, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 4] to the same."""
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        return (torch.einsum("bkio,bi->bko", self.maps[chosen], x) * weights[..., None]).sum(1)


def _used(cls: type[Any]) -> Callable[..., Any]:
    def use(**options: Any) -> Any:
        method = cls(**{**OPTIONS.get(cls.__name__, {}), **options})
        if cls is nervure.Rerouted:
            mixture, x = nn.Sequential(nn.Linear(3, 4), Experts(), nn.Linear(4, 2)).eval(), torch.randn(8, 3)
            return nervure.prune(mixture, x, method, data=[x], verify=False, progress=False)
        return nervure.prune(fresh(), example(), method, data=data(), verify=False, progress=False)

    return use


def _section(name: str) -> Callable[..., Any]:
    def read(**keys: Any) -> Any:
        return nervure.Recipe.from_dict(recipe().to_dict() | {name: recipe().to_dict()[name] | keys})

    return read


def _entry(name: str) -> Callable[..., Any]:
    def read(**keys: Any) -> Any:
        method, network = {"name": "Random"}, {"name": "resnet8"}
        tables = {"study": {}, "data": {"name": "digits"}, "network": [network], "method": [method]}
        whole = tables[name] | keys if name == "study" else [tables[name][0] | keys]  # type: ignore[index, operator]
        return nervure.Study.from_dict(tables | {name: whole})

    return read


@cache
def calls() -> tuple[Call, ...]:
    """Everything that is called."""
    methods = [Call(f"method {name}", _used(cls), dict, _fields(cls)) for name, cls in METHODS.items()]
    sections = [Call(f"recipe [{name}]", _section(name), dict, _fields(cls)) for name, cls in SECTIONS.items()]
    entries = {"study": StudySection, "network": NetworkEntry, "method": MethodEntry}
    tables = [Call(f"study [{name}]", _entry(name), dict, _fields(cls)) for name, cls in entries.items()]
    functions = [
        Call(name, function, given, _hints(function) | CONVERTED.get(name, {}))
        for name, (function, given) in FUNCTIONS.items()
    ]
    return (*methods, *sections, *tables, *functions)


@cache
def cases() -> tuple[tuple[int, str, str], ...]:
    """Every callable with every argument and every bad value, and arguments in one another's place."""
    found = [(n, name, bad) for n, call in enumerate(calls()) for name in call.arguments for bad in BAD]
    for number, call in enumerate(calls()):
        given = list(call.given())
        found += [(number, n, f"={o}") for n in given for o in given if "self" not in (n, o) and n != o]
    return tuple(found)
