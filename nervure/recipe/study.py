"""Grids of trials as frozen values: networks x methods x budgets x seeds, as a study says, or a recipe's ``[sweep]``.

Both unfold into trials in the same way, and each trial is a recipe: what differs between two trials is what is varied,
and nothing else.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, final

from nervure.budget.kinds import COUNTED
from nervure.core.schema import Fraction, Seed, Size
from nervure.errors import RecipeError
from nervure.recipe.recipe import (
    DECIDES_NOTHING,
    SECTIONS,
    DataSection,
    EvaluateSection,
    ModelSection,
    Options,
    PruneSection,
    Recipe,
    RecoverSection,
    RefitSection,
    RunSection,
    SweepSection,
    TaskSection,
    Threads,
    TrainSection,
    budget_among,
    check_rules,
    checked_recipe,
    distinct,
    known_version,
    plain,
    require_known,
    rule,
    section_of,
    task_table,
    toml_of,
)
from nervure.report.run_report import DENSE, DENSE_PLUS


def _one_or_more(value: tuple[float, ...]) -> str:
    return distinct(value) if value else "must hold one number at least"


@final
@dataclass(frozen=True, slots=True)
class StudySection:
    """What varies: ``seeds`` and fractions that stay (``keeps``, in the unit of ``budget``).

    ``baseline`` is the label of the method that the others are compared with, trial by trial; ``samples`` how many
    images evidence is gathered on; ``threads`` and ``device`` are as under ``[run]`` of a recipe, ``version`` as under
    ``[prune]``.
    """

    title: str = "Comparison"
    seeds: tuple[Seed, ...] = rule(_one_or_more, (0, 1, 2))
    keeps: tuple[Fraction, ...] = rule(_one_or_more, (0.5,))
    budget: str = rule(budget_among(COUNTED), "macs")
    baseline: str = "Random"
    samples: Size = 2048
    folder: str = "runs/study"
    threads: Threads = 1
    device: str = "cpu"
    dense_plus: bool = True
    version: int = rule(known_version, 1)


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
    """One method: its ``name``, a ``label``, its ``options``; on these ``networks`` and ``keeps`` only (empty: all).

    ``refit`` is what it has of ``[refit]`` otherwise than the others, such as ``{ samples = 1024 }``.
    """

    label: str = ""
    name: str = ""
    options: Options = field(default_factory=dict, hash=False)
    networks: tuple[str, ...] = ()
    keeps: tuple[Fraction, ...] = ()
    refit: Options = field(default_factory=dict, hash=False)


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
        told = _non_defaults(self.recipe)
        return _digest({name: told[name] for name in ("model", "data", "train", "run", "task") if name in told})

    @property
    def key(self) -> str:
        """A digest of everything that the study says about the trial; what it does not say is left to defaults."""
        return _digest(_non_defaults(self.recipe))

    @property
    def identity(self) -> dict[str, Any]:
        """What its outcome says of the trial itself."""
        prune = self.recipe.prune
        told = {"key": self.key, "network": self.network, "method": self.method, "seed": self.recipe.run.seed}
        return told | {"keep": prune.keep, "budget": prune.budget}

    def to_json(self) -> dict[str, Any]:
        """Plain data, for another process."""
        return {"network": self.network, "method": self.method, "recipe": self.recipe.to_dict()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Trial":
        """Read what :meth:`to_json` wrote."""
        return Trial(data["network"], data["method"], Recipe.from_dict(data["recipe"]))

    def __str__(self) -> str:
        prune, seed = self.recipe.prune, self.recipe.run.seed
        return f"{self.network}, seed {seed}, {self.method} at {prune.keep} of {prune.budget}"


@final
@dataclass(frozen=True, slots=True)
class Study:
    """What to compare; ``[data]``, ``[task]``, ``[train]``, ``[refit]``, ``[recover]``, ``[evaluate]`` hold for all.

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
    refit: RefitSection = field(default_factory=RefitSection)
    task: TaskSection = field(default_factory=TaskSection)

    def __post_init__(self) -> None:
        check_rules(self.study, "[study]")
        for kind, entries in (("network", self.network), ("method", self.method)):
            if not entries:
                raise RecipeError(f"a study needs at least one [[{kind}]].")
            _require_labels(f"[[{kind}]]", entries, *((DENSE, DENSE_PLUS) if kind == "method" else (DENSE_PLUS,)))
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
                section_of(RefitSection, data.get("refit", {}), "[refit]"),
                section_of(TaskSection, task_table(data.get("task", {})), "[task]"),
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
        return distinct_trials(
            trial
            for network in self.network
            for trial in unfold(
                self._recipe(network),
                network.label,
                [entry for entry in self.method if not entry.networks or network.label in entry.networks],
                dense_plus=self.study.dense_plus,
            )
        )

    def _recipe(self, network: NetworkEntry) -> Recipe:
        """What all trials of a network have in common, as a recipe to be swept."""
        told, where = self.study, f"[[network]] {network.label!r}"
        return Recipe(
            model=ModelSection(network.name, network.factory, "", network.options),
            data=self.data,
            train=section_of(TrainSection, plain(self.train) | dict(network.train), f"{where} train"),
            prune=PruneSection(budget=told.budget, samples=told.samples, version=told.version),
            recover=section_of(RecoverSection, plain(self.recover) | dict(network.recover), f"{where} recover"),
            evaluate=self.evaluate,
            refit=self.refit,
            run=RunSection(folder=told.folder, threads=told.threads, device=told.device),
            sweep=SweepSection(told.keeps, told.seeds),
            task=self.task,
        )


def swept_trials(recipe: Recipe) -> tuple[Trial, ...]:
    """Every trial that the recipe's ``[sweep]`` asks for, seed by seed; without methods there, of that of ``[prune]``.

    Raises:
        RecipeError: there is no budget, or two methods are alike.
    """
    own = {"name": recipe.prune.method, "options": recipe.prune.options}
    entries = [entry_of(MethodEntry, table, "[[sweep.method]]") for table in recipe.sweep.method or (own,)]
    _require_labels("[[sweep.method]]", entries, DENSE, DENSE_PLUS)
    for entry in entries:
        if entry.networks:
            raise RecipeError("[[sweep.method]] networks: a sweep has one network. Compare several with a study.")
        if not (entry.keeps or recipe.sweep.keeps):
            raise RecipeError(
                f"nothing to sweep for {entry.label!r}: give the fractions that stay, e.g. keeps = [0.8, 0.6, 0.4] "
                "under [sweep], --keep 0.8 --keep 0.6 on the command line, keeps=(0.8, 0.6) in Python."
            )
    dense_plus = recipe.run.twins and recipe.recover.epochs > 0
    return distinct_trials(unfold(recipe, recipe.model.label, entries, dense_plus=dense_plus))


def unfold(recipe: Recipe, network: str, methods: Sequence[MethodEntry], *, dense_plus: bool) -> Iterator[Trial]:
    """One network's trials, seed by seed: each method at its budgets, or at those of ``[sweep]``."""
    alone = replace(recipe, sweep=SweepSection())
    for seed in recipe.sweep.seeds or (recipe.run.seed,):
        seeded = replace(alone, run=replace(recipe.run, seed=seed))
        if dense_plus:
            # Keeping everything is the empty plan.
            whole = PruneSection(keep=1.0, budget=recipe.prune.budget)
            yield Trial(network, DENSE_PLUS, replace(seeded, prune=whole, refit=RefitSection()))
        for method in methods:
            told = f"[[method]] {method.label!r} refit"
            refit = section_of(RefitSection, plain(recipe.refit) | dict(method.refit), told)
            for keep in method.keeps or recipe.sweep.keeps:
                prune = replace(recipe.prune, method=method.name, keep=keep, options=method.options)
                yield Trial(network, method.label, replace(seeded, prune=prune, refit=refit))


def distinct_trials(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """The trials, where no two are the same; raises RecipeError otherwise."""
    listed = tuple(trials)
    found = {trial.key: trial for trial in listed}
    for trial in listed:
        if (other := found[trial.key]) is not trial:
            raise RecipeError(f"{trial} and {other} are the same trial, with the same options. Leave one out.")
    return listed


def _require_labels(where: str, entries: Sequence[Any], *reserved: str) -> None:
    """Raise RecipeError unless each entry has a label of its own, which is not one of ``reserved``."""
    labels = [entry.label for entry in entries]
    for label in labels:
        if not label or labels.count(label) > 1 or label in reserved:
            raise RecipeError(
                f"{where} label {label!r} must be there, once, and not {' or '.join(map(repr, reserved))}."
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
    told = {name: table for name, table in told.items() if name not in DECIDES_NOTHING}
    # Digests are as they were before there were such sections.
    return {name: table for name, table in told.items() if table or name not in ("refit", "task", "folder")}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
