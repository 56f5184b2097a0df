"""A study as a frozen value: which methods to compare, on which networks, at which budgets, with which seeds.

A study unfolds into trials, and each trial is a recipe: what differs between two trials is what the study varies, and
nothing else.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, final

from nervure.budget.kinds import COUNTED
from nervure.core.schema import Fraction, Seed, Size
from nervure.errors import RecipeError
from nervure.recipe.recipe import (
    SECTIONS,
    DataSection,
    EvaluateSection,
    ModelSection,
    Options,
    PruneSection,
    Recipe,
    RecoverSection,
    RunSection,
    Threads,
    TrainSection,
    check_rules,
    checked_recipe,
    distinct,
    one_of,
    plain,
    require_known,
    rule,
    section_of,
    toml_of,
)

DENSE_PLUS = "dense+"
"""The label of the network that is not cut but gets the recovery of the others."""


def _one_or_more(value: tuple[float, ...]) -> str:
    return distinct(value) if value else "must hold one number at least"


@final
@dataclass(frozen=True, slots=True)
class StudySection:
    """What varies: ``seeds`` and fractions that stay (``keeps``, in the unit of ``budget``).

    ``baseline`` is the label of the method that the others are compared with, trial by trial; ``samples`` how many
    images evidence is gathered on; ``threads`` and ``device`` as under ``[run]`` of a recipe.
    """

    title: str = "Comparison"
    seeds: tuple[Seed, ...] = rule(_one_or_more, (0, 1, 2))
    keeps: tuple[Fraction, ...] = rule(_one_or_more, (0.5,))
    budget: str = rule(one_of(COUNTED), "macs")
    baseline: str = "Random"
    samples: Size = 2048
    folder: str = "runs/study"
    threads: Threads = 1
    device: str = "cpu"
    dense_plus: bool = True


@final
@dataclass(frozen=True, slots=True)
class NetworkEntry:
    """One network: the keys of ``[model]``, a ``label``, and what differs from the shared ``train`` and ``recover``."""

    label: str = ""
    name: str = ""
    factory: str = ""
    options: Options = field(default_factory=dict, hash=False)
    train: Options = field(default_factory=dict, hash=False)
    recover: Options = field(default_factory=dict, hash=False)


@final
@dataclass(frozen=True, slots=True)
class MethodEntry:
    """One method: its ``name``, a ``label``, its ``options``; on these ``networks`` and ``keeps`` only (empty: all)."""

    label: str = ""
    name: str = ""
    options: Options = field(default_factory=dict, hash=False)
    networks: tuple[str, ...] = ()
    keeps: tuple[Fraction, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Trial:
    """One line of the results: the labels of network and method, and the recipe that says everything else."""

    network: str
    method: str
    recipe: Recipe

    @property
    def dense_key(self) -> str:
        """A digest of what decides the dense network and its evidence: network, data, training and seed."""
        return _digest({name: _non_defaults(self.recipe)[name] for name in ("model", "data", "train", "run")})

    @property
    def key(self) -> str:
        """A digest of everything that the study says about the trial; what it does not say is left to defaults."""
        return _digest(_non_defaults(self.recipe))

    def __str__(self) -> str:
        prune, seed = self.recipe.prune, self.recipe.run.seed
        return f"{self.network}, seed {seed}, {self.method} at {prune.keep:g} of {prune.budget}"


@final
@dataclass(frozen=True, slots=True)
class Study:
    """What to compare. ``[study]``, ``[data]``, ``[train]``, ``[recover]`` and ``[evaluate]`` hold for all trials.

    >>> study = Study.from_toml('''
    ... [study]
    ... seeds = [0, 1]
    ... keeps = [0.5, 0.25]
    ... [data]
    ... name = "digits"
    ... [[network]]
    ... name = "resnet8"
    ... [[method]]
    ... name = "Magnitude"
    ... [[method]]
    ... name = "Random"
    ... ''')
    >>> len(study.trials())  # 2 seeds x (2 methods x 2 budgets + the dense network recovered alike)
    10
    """

    study: StudySection
    data: DataSection
    network: tuple[NetworkEntry, ...]
    method: tuple[MethodEntry, ...]
    train: TrainSection = field(default_factory=TrainSection)
    recover: RecoverSection = field(default_factory=RecoverSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)

    def __post_init__(self) -> None:
        check_rules(self.study, "[study]")
        for kind, entries in (("network", self.network), ("method", self.method)):
            if not entries:
                raise RecipeError(f"a study needs at least one [[{kind}]].")
            labels = [entry.label for entry in entries]
            for label in labels:
                if not label or labels.count(label) > 1 or label == DENSE_PLUS:
                    raise RecipeError(f"[[{kind}]] label {label!r} must be there, once, and not {DENSE_PLUS!r}.")
        for method in self.method:
            require_known(method.networks, [n.label for n in self.network], "[[method]] networks names no [[network]]")
        require_known([self.study.baseline], [m.label for m in self.method], "[study] baseline names no [[method]]")
        self.trials()

    @staticmethod
    @checked_recipe
    def from_dict(data: Mapping[str, Any], *, source: str = "the study") -> "Study":
        """Build a study from nested plain data; raises :class:`RecipeError` on anything unknown or of a wrong type."""
        require_known(data, [f.name for f in fields(Study)], f"{source} has no section")
        try:
            return Study(
                section_of(StudySection, data.get("study", {}), "[study]"),
                section_of(DataSection, data.get("data", {}), "[data]"),
                tuple(entry_of(NetworkEntry, table, "[[network]]") for table in _tables(data, "network")),
                tuple(entry_of(MethodEntry, table, "[[method]]") for table in _tables(data, "method")),
                section_of(TrainSection, data.get("train", {}), "[train]"),
                section_of(RecoverSection, data.get("recover", {}), "[recover]"),
                section_of(EvaluateSection, data.get("evaluate", {}), "[evaluate]"),
            )
        except RecipeError as error:
            raise RecipeError(f"{source}: {error}") from None

    @staticmethod
    @checked_recipe
    def from_toml(path_or_text: str | os.PathLike[str]) -> "Study":
        """Read a study from a TOML file, or from TOML text.

        Raises:
            RecipeError: the file is missing or not TOML, or a key is unknown, of a wrong type or out of range.
        """
        data, source = toml_of(path_or_text)
        return Study.from_dict(data, source=source)

    def trials(self) -> tuple[Trial, ...]:
        """Every trial, network by network and seed by seed, so that what is finished early is whole."""
        return tuple(
            trial for network in self.network for seed in self.study.seeds for trial in self._trials(network, seed)
        )

    def _trials(self, network: NetworkEntry, seed: int) -> Iterator[Trial]:
        if self.study.dense_plus:
            # Keeping everything is the empty plan.
            yield Trial(network.label, DENSE_PLUS, self._recipe(network, PruneSection(keep=1.0), seed))
        for method in self.method:
            if method.networks and network.label not in method.networks:
                continue
            for keep in method.keeps or self.study.keeps:
                prune = PruneSection(method.name, keep, self.study.budget, self.study.samples, method.options)
                yield Trial(network.label, method.label, self._recipe(network, prune, seed))

    def _recipe(self, network: NetworkEntry, prune: PruneSection, seed: int) -> Recipe:
        where = f"[[network]] {network.label!r}"
        return Recipe(
            model=ModelSection(network.name, network.factory, "", network.options),
            data=self.data,
            train=section_of(TrainSection, plain(self.train) | dict(network.train), f"{where} train"),
            prune=replace(prune, budget=self.study.budget),
            recover=section_of(RecoverSection, plain(self.recover) | dict(network.recover), f"{where} recover"),
            evaluate=self.evaluate,
            run=RunSection(seed, self.study.folder, self.study.threads, self.study.device),
        )


def _tables(data: Mapping[str, Any], name: str) -> list[Any]:
    tables = data.get(name, [])
    if not isinstance(tables, list):
        raise RecipeError(f"{name} must be written [[{name}]], once for each.")
    return tables


def entry_of(cls: type[Any], table: Any, where: str) -> Any:
    """An entry of a study, labelled by its name where it has no label."""
    entry = section_of(cls, table, where)
    return entry if entry.label else replace(entry, label=entry.name or getattr(entry, "factory", ""))


def _non_defaults(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What the recipe says that is not the default: a key that a later version adds leaves the digest as it is."""
    defaults = {name: plain(cls()) for name, cls in SECTIONS.items()}
    told = {
        name: {key: value for key, value in table.items() if value != defaults[name].get(key)}
        for name, table in recipe.to_dict().items()
    }
    told["run"] = {"seed": recipe.run.seed}
    # What else was swept decides nothing about this one.
    del told["sweep"]
    return told


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
