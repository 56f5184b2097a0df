"""A recipe as a frozen value: what to train, cut, recover and compare; read from TOML and checked before any work."""

import dataclasses
import hashlib
import json
import os
import reprlib
import tomllib
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, final

from msgspec import Meta

from nervure.budget import BUDGETS
from nervure.core.annotations import is_path
from nervure.core.check import checked, nearest, show_value
from nervure.core.documents import is_shallow, open_document
from nervure.core.importing import is_import_path, look_beside
from nervure.core.schema import (
    Between,
    Count,
    Decay,
    Fraction,
    NotNegative,
    Part,
    Positive,
    Rate,
    Seed,
    Share,
    Size,
    convert,
    hints_of,
)
from nervure.engines import ENGINES
from nervure.errors import ArgumentError, RecipeError
from nervure.evaluation.corruptions import SEVERITIES, expand_names
from nervure.export.unsaid import PARTS
from nervure.integrations.trackers import TRACKERS
from nervure.recipe.task_making import task_from
from nervure.refit.settings import RefitChoices

Options = Mapping[str, Any]
Section = TypeVar("Section")
F = TypeVar("F", bound=Callable[..., Any])


def checked_recipe(function: F) -> F:
    """As :func:`nervure.core.check.checked`, with :class:`RecipeError`."""
    return checked(function, RecipeError)


def _corruptions(value: tuple[str, ...]) -> str:
    try:
        expand_names(value or "all")
    except ArgumentError as error:
        return f"is wrong: {str(error).rstrip('.')}"
    return ""


def _engines(value: tuple[str, ...]) -> str:
    unknown = [name for name in value if name not in ENGINES]
    if unknown:
        return f"names no engine with {unknown[0]!r}.{nearest(unknown[0], ENGINES, listed=True)}".rstrip(".")
    return "" if value and len(set(value)) == len(value) else "must name at least one engine, each once"


def _parts(value: tuple[str, ...]) -> str:
    known = ", ".join(map(repr, PARTS))
    return "" if value and set(value) <= set(PARTS) else f"must hold some of {known}"


def _tracker(value: str) -> str:
    known = ", ".join(map(repr, TRACKERS))
    return "" if value in TRACKERS or not value else f"is not one of {known}"


def _views(value: str) -> str:
    return "" if not value or is_import_path(value) else "is not written 'package.module:name'"


def _severities(value: tuple[int, ...]) -> str:
    return "" if value and all(v in SEVERITIES for v in value) else f"must hold some of {SEVERITIES}"


def distinct(value: tuple[float, ...]) -> str:
    """What is wrong with a list in which each number should be once; empty: nothing."""
    return "" if len(set(value)) == len(value) else "must hold each number once"


Rounds = Annotated[int, Meta(ge=3, le=1000)]
"""A median with quartiles takes at least 3."""
Threads = Annotated[int, Meta(ge=0, le=4096)]
"""Of torch; 0: as torch has it."""


VERSION = 3
"""Of the recipes that are written now."""


def known_version(value: int) -> str:
    """What is wrong with the version of a recipe; empty: nothing."""
    return "" if 1 <= value <= VERSION else f"is not one of 1 to {VERSION}, which this version of nervure knows"


def rule(wrong: Callable[[Any], str], default: Any) -> Any:
    """A field whose value must be right: ``wrong`` returns what is wrong with it, or nothing."""
    return field(default=default, metadata={"rule": wrong})


def budget_among(names: Collection[str]) -> Callable[[str], str]:
    """The rule that a budget is one of ``names``, or one of the user's own, which the method looks at."""
    known = f"is not one of {', '.join(map(repr, names))}, nor one of your own, 'package.module:name'"
    return lambda value: "" if value in names or is_import_path(value) else known


@final
@dataclass(frozen=True, slots=True)
class ModelSection:
    """Which network: a ``name`` or a ``factory`` written ``package.module:function``, with its ``options``.

    The name is of the zoo (``"resnet20"``) or of a library: ``"timm:resnet50"``, ``"torchvision:resnet18"``,
    ``"hf:folder-or-name"``. With ``options = { pretrained = true }`` these begin with the library's own weights.

    ``weights`` is a file of trained weights (safetensors); with it the dense network is not trained again.
    """

    name: str = ""
    factory: str = ""
    weights: str = ""
    options: Options = field(default_factory=dict, hash=False)

    @property
    def label(self) -> str:
        """What the network is called."""
        return self.name or self.factory


@final
@dataclass(frozen=True, slots=True)
class DataSection:
    """Which data set of the zoo, and where its files lie (``root``; empty: where they are installed).

    Texts for a language model are ``name = "text:FILE-or-FOLDER"`` (``"text:ONE,OTHER"`` for several kinds), with
    ``options = { tokenizer = "FOLDER" }`` and those of :class:`nervure.recipe.text_windows.TextWindows`.

    Your own are made by a function, ``factory = "package.module:function"``, or ``name = `` the same: it gets its
    ``options``, and those of ``root``, ``size``, ``validation`` and ``seed`` that it takes, and returns three loaders
    (train, validation, test) of batches of any form, or a data set of the zoo's form.

    ``size`` is the side in pixels to which images are resized (0: as published), ``validation`` the share of the
    training images held out, ``train_samples`` and ``test_samples`` how many of each split to use (0: all).
    """

    name: str = ""
    root: str = ""
    size: Count = 0
    validation: Between = 0.1
    train_samples: Count = 0
    test_samples: Count = 0
    factory: str = ""
    options: Options = field(default_factory=dict, hash=False)

    @property
    def label(self) -> str:
        """What the data are called."""
        return self.name or self.factory


@final
@dataclass(frozen=True, slots=True)
class TaskSection:
    """What the network is for: the ``name`` of a task of :mod:`nervure.tasks`, and its options beside it.

    One of your own is ``"package.module:name"``: a task, a function of the options that returns one, or an objective
    (a function of a model and a batch that gives the mean loss). Without options, ``task = "segmentation"`` says the
    same. Without a name, it is told from the first batch.
    """

    name: str = ""
    options: Options = field(default_factory=dict, hash=False)


@final
@dataclass(frozen=True, slots=True)
class TrainSection:
    """How the dense network is trained; the words are those of ``nervure.train`` and of ``split.batches``.

    ``objective`` is the loss on the batches as they are (``"plain"``), on a view of each (``"augmented"``), or on them
    with ``consistency`` times how far the answers to ``view_count`` views are from theirs (``"consistent"``). ``views``
    says what makes views, ``"package.module:name"`` of a function of a batch and a seed; without it
    :func:`nervure.training.picture_views`, for pictures, which leaves out what ``[evaluate] shift`` tests.

    ``sharpness`` above 0 is the radius of sharpness-aware steps; ``adaptive`` measures it relative to each weight.
    """

    epochs: Count = 10
    lr: Rate = 0.1
    batch_size: Size = 128
    augment: bool = False
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Part = 0.9
    weight_decay: Decay = 5e-4
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    precision: Literal["float32", "bf16"] = "float32"
    smoothing: Part = 0.0
    objective: Literal["plain", "augmented", "consistent"] = "plain"
    views: str = rule(_views, "")
    view_count: Size = 2
    consistency: NotNegative = 12.0
    sharpness: NotNegative = 0.0
    adaptive: bool = False


@final
@dataclass(frozen=True, slots=True)
class PruneSection:
    """Which ``method``, how much stays (``keep``, in the unit of ``budget``), and the method's other ``options``.

    One of your own is named ``method = "package.module:name"``; it is imported, from the working folder too. So is a
    kind of ``budget`` of your own. With ``keep = "limits"`` each layer is cut to the limit that the method finds for it
    (SNACS, Compensated), and ``budget`` has no say.

    With ``budget = "latency"`` the ``options`` say ``engine`` and ``target``, a share or a time like ``"3 ms"``; with
    ``budget = "memory"`` they may say ``target``, a share, bytes or ``"200 MB"``.
    ``density`` is the fraction of the weights that stays, for methods that mask them (0: as ``keep`` says). Each table
    in ``then`` (``[[prune.then]]``) names another ``method`` with its options; it prunes what is left.

    With ``tolerance`` above 0 the amount is looked for instead, see :func:`nervure.smallest`: as little stays as costs
    at most so much on the validation data (0.01 is a point of accuracy, or one percent of a perplexity), with what
    ``[refit]`` says and before ``[recover]``. ``strict`` counts the whole interval.

    ``begin`` says what is pruned: the ``"trained"`` network, which then recovers, or a ``"fresh"`` one, which is then
    trained as ``[train]`` says, as its random twin is. ``"auto"``: fresh for methods that begin with a sparse network
    by lot and rewire it while it trains, such as ``RigL``, trained for all others.

    ``version`` says what a method has where the recipe leaves it open: 1, as without the key, what it had when recipes
    began (SNACS masks kernels by one threshold over means), 2 what it had before widths were rounded (``multiple`` is 1
    where a cost is counted and no engine is named; ``pool`` of Synthesis is 3), 3 what it has now.
    """

    method: str = "Magnitude"
    keep: Fraction | Literal["limits"] = 0.5
    budget: str = rule(budget_among(BUDGETS), "macs")
    samples: Size = 2048
    options: Options = field(default_factory=dict, hash=False)
    then: tuple[Options, ...] = field(default=(), hash=False)
    density: Share = 0.0
    begin: Literal["auto", "trained", "fresh"] = "auto"
    tolerance: NotNegative = 0.0
    strict: bool = False
    version: int = rule(known_version, 1)

    @property
    def share(self) -> float | None:
        """The fraction that stays; None where limits decide."""
        return None if self.keep == "limits" else self.keep


@final
@dataclass(frozen=True, slots=True)
class RefitSection(RefitChoices):
    """Whether what stays takes over what left, after the cut and before it recovers, see :class:`nervure.Refit`.

    ``samples`` is how many training images it is fitted on (0: no refit); the other keys are those of ``Refit``. The
    random twin gets the same. ``positions`` is 8, as it was when recipes began; 0: what ``Refit`` chooses.
    """

    samples: Count = 0
    positions: Count = 8


@final
@dataclass(frozen=True, slots=True)
class RecoverSection:
    """How the cut network is trained again (0 epochs: not at all); the two twins get the same training.

    With ``recalibrate`` above 0, its batch norms first take their statistics anew over so many batches. With
    ``distill`` above 0, that share of the loss is the pull towards the answers of the dense network, softened by
    ``temperature``. ``objective``, ``views``, ``sharpness`` and the keys with them are those of ``[train]``.
    """

    epochs: Count = 5
    lr: Rate = 0.02
    batch_size: Size = 128
    augment: bool = False
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Part = 0.9
    weight_decay: Decay = 5e-4
    schedule: Literal["onecycle", "cosine", "constant"] = "cosine"
    precision: Literal["float32", "bf16"] = "float32"
    smoothing: Part = 0.0
    recalibrate: Count = 0
    distill: Share = 0.0
    temperature: Positive = 4.0
    objective: Literal["plain", "augmented", "consistent"] = "plain"
    views: str = rule(_views, "")
    view_count: Size = 2
    consistency: NotNegative = 12.0
    sharpness: NotNegative = 0.0
    adaptive: bool = False


@final
@dataclass(frozen=True, slots=True)
class EvaluateSection:
    """What is measured: batch size for accuracy, batch sizes for latency (an empty list: no latency) and its rounds.

    ``engines`` are what latency is measured in, see :func:`nervure.engines.runner`.

    ``shift`` names corruptions of the test images ("all", kinds or names; an empty list: none), ``severities`` which of
    1 to 5, and ``shift_samples`` how many test images meet them (0: all).
    """

    batch_size: Size = 500
    latency: tuple[Size, ...] = (1, 64)
    rounds: Rounds = 20
    engines: tuple[str, ...] = rule(_engines, ("eager",))
    shift: tuple[str, ...] = rule(_corruptions, ("all",))
    severities: tuple[int, ...] = rule(_severities, (3,))
    shift_samples: Count = 500


@final
@dataclass(frozen=True, slots=True)
class FolderSection:
    """Where a folder goes that the model's library loads by itself, see :func:`nervure.export.save_pretrained`.

    With a ``path`` (empty: none) only ``parts`` are pruned, and of these what a config can say: ``"ffn"`` (units inside
    a layer), ``"heads"`` (keys and values with their queries), ``"width"`` (the stream between layers), ``"layers"``
    (whole ones, for methods that drop blocks). ``source`` is the folder of the dense model, whose tokenizer goes with
    it; empty: that of ``name = "hf:FOLDER"``.
    """

    path: str = ""
    parts: tuple[str, ...] = rule(_parts, ("ffn",))
    source: str = ""


@final
@dataclass(frozen=True, slots=True)
class RunSection:
    """Seed, folder of the artefacts, threads (0: as torch has it), device, and whether the two twins are run."""

    seed: Seed = 0
    folder: str = "runs/latest"
    threads: Threads = 1
    device: str = "cpu"
    twins: bool = True


@final
@dataclass(frozen=True, slots=True)
class SweepSection:
    """What ``nervure sweep`` varies: fractions that stay (``keeps``), ``seeds``, and methods; a run passes it over.

    Each ``[[sweep.method]]`` has a ``name``, and may have ``options``, a ``label``, and ``keeps`` and ``refit`` of its
    own. Without any, the method of ``[prune]`` is swept; without ``seeds``, that of ``[run]`` is the only one.
    """

    keeps: tuple[Fraction, ...] = rule(distinct, ())
    seeds: tuple[Seed, ...] = rule(distinct, ())
    method: tuple[Options, ...] = field(default=(), hash=False)


@final
@dataclass(frozen=True, slots=True)
class TrackSection:
    """Where a run tells how its trainings go: ``"tensorboard"``, ``"wandb"`` or ``"mlflow"``; empty: nowhere.

    Options stand beside it: those of :mod:`nervure.integrations.trackers`. Nothing here decides a result.
    """

    to: str = rule(_tracker, "")
    options: Options = field(default_factory=dict, hash=False)


@final
@dataclass(frozen=True, slots=True)
class Recipe:
    """What to train, cut, recover and compare. See the sections for their keys.

    >>> recipe = Recipe.from_toml('''
    ... [model]
    ... name = "resnet8"
    ... [data]
    ... name = "digits"
    ... [prune]
    ... keep = 0.4
    ... ''')
    >>> recipe.prune.keep, recipe.recover.epochs
    (0.4, 5)
    """

    model: ModelSection
    data: DataSection
    train: TrainSection = field(default_factory=TrainSection)
    prune: PruneSection = field(default_factory=PruneSection)
    refit: RefitSection = field(default_factory=RefitSection)
    recover: RecoverSection = field(default_factory=RecoverSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    run: RunSection = field(default_factory=RunSection)
    sweep: SweepSection = field(default_factory=SweepSection)
    task: TaskSection = field(default_factory=TaskSection)
    track: TrackSection = field(default_factory=TrackSection)
    folder: FolderSection = field(default_factory=FolderSection)

    def __post_init__(self) -> None:
        for name in SECTIONS:
            check_rules(getattr(self, name), f"[{name}]")
        for name in ("train", "recover"):
            _require_used(getattr(self, name), f"[{name}]")
        _require_one_model(self.model)
        require_one_data(self.data)
        require_task(self.task)
        _require_one_search(self.prune)
        if self.track.options and not self.track.to:
            raise RecipeError(f'[track] needs to = "tensorboard" or another beside {next(iter(self.track.options))!r}.')
        _require_there(self.model.weights, "[model] weights", "a file", Path.is_file)
        _require_there(self.data.root, "[data] root", "a folder", Path.is_dir)

    @staticmethod
    @checked_recipe
    def from_dict(data: Mapping[str, Any], *, source: str = "the recipe") -> "Recipe":
        """Build a recipe from nested plain data; raises :class:`RecipeError` on anything unknown or of a wrong type."""
        require_known(data, SECTIONS, f"{source} has no section")
        try:
            given = dict(data) | {"task": task_table(data.get("task", {}))}
            given["track"] = task_table(data.get("track", {}), "to")
            return Recipe(**{name: section_of(cls, given.get(name, {}), f"[{name}]") for name, cls in SECTIONS.items()})
        except RecipeError as error:
            raise RecipeError(f"{source}: {error}") from None

    @staticmethod
    @checked_recipe
    def from_toml(path_or_text: str | os.PathLike[str]) -> "Recipe":
        """Read a recipe from a TOML file, or from TOML text; paths in it are relative to the working folder.

        Modules that it names are found there, and beside the file.

        Raises:
            RecipeError: the file is missing or not TOML, or a key is unknown, of a wrong type or out of range.
        """
        data, source = toml_of(path_or_text)
        return Recipe.from_dict(data, source=source)

    @staticmethod
    def from_json(text: str) -> "Recipe":
        """Read what ``json.dumps(recipe.to_dict())`` wrote; raises :class:`RecipeError`."""
        return Recipe.from_dict(open_document(text, "this recipe", RecipeError))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain data, every key present, that :meth:`from_dict` reads back to an equal recipe."""
        return {name: plain(getattr(self, name)) for name in SECTIONS}

    def to_toml(self) -> str:
        """TOML text that :meth:`from_toml` reads back to an equal recipe."""
        return "\n".join(_toml_table(name, table) for name, table in self.to_dict().items())

    @property
    def fingerprint(self) -> str:
        """A digest of everything that decides the result: all but where it is told, and what a sweep varies."""
        content = without_newer(self.to_dict())
        del content["run"]["folder"]
        content = {name: table for name, table in content.items() if name not in DECIDES_NOTHING}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


SECTIONS: Mapping[str, type[Any]] = {
    "model": ModelSection,
    "data": DataSection,
    "train": TrainSection,
    "prune": PruneSection,
    "refit": RefitSection,
    "recover": RecoverSection,
    "evaluate": EvaluateSection,
    "run": RunSection,
    "sweep": SweepSection,
    "task": TaskSection,
    "track": TrackSection,
    "folder": FolderSection,
}
DECIDES_NOTHING = frozenset({"sweep", "track"})
"""Sections that say nothing about the result of one run."""
NEWER_OF_TRAINING = ("objective", "views", "view_count", "consistency", "sharpness", "adaptive")
NEWER: Mapping[str, tuple[str, ...]] = {
    "refit": (),
    "task": (),
    "folder": (),
    "data": ("factory", "options"),
    "prune": ("tolerance", "strict", "version"),
    "train": NEWER_OF_TRAINING,
    "recover": NEWER_OF_TRAINING,
}
"""Sections, and keys of older sections, that recipes of the first version did not have."""


def without_newer(content: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The plain data of a recipe without what is newer and says nothing: digests are as they were before."""
    for name, keys in NEWER.items():
        defaults, table = plain(SECTIONS[name]()), content[name]
        if not keys and table == defaults:
            del content[name]
        for key in keys:
            if table.get(key) == defaults[key]:
                del table[key]
    return content


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two recipes' plain data, e.g. ``["[prune] keep: 0.5 -> 0.4"]``.

    The folder is no matter, a tracker and what a sweep varies neither. What was not there yet had its default.
    """
    known = dict(before)
    for name, keys in NEWER.items():
        defaults = plain(SECTIONS[name]())
        known[name] = {key: defaults[key] for key in keys or defaults} | dict(known.get(name, {}))
    return [
        f"[{section}] {key}: {known.get(section, {}).get(key)!r} -> {value!r}"
        for section, table in after.items()
        for key, value in table.items()
        if known.get(section, {}).get(key) != value
        and (section, key) != ("run", "folder")
        and section not in DECIDES_NOTHING
    ]


def toml_of(path_or_text: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """The data in a TOML file, or in TOML text, and what to call it; raises RecipeError where it cannot be read."""
    text, source = _text_of(path_or_text)
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{source} is not TOML: {error}.") from error
    if not is_shallow(data):
        raise RecipeError(f"{source} is not TOML for people: it is nested too deeply.")
    return data, source


def _text_of(path_or_text: str | os.PathLike[str]) -> tuple[str, str]:
    if isinstance(path_or_text, str) and ("\n" in path_or_text or "=" in path_or_text):
        return path_or_text, "the recipe"
    path = Path(path_or_text)
    if not is_path(path) or not path.is_file():
        raise RecipeError(f"there is no recipe at {show_value(str(path))}. Give the path of a TOML file.")
    look_beside(path)
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {str(path)!r} cannot be read: {error}.") from error


def section_of(cls: type[Section], table: Any, where: str) -> Section:
    """A section from plain data; raises RecipeError on an unknown key, or a value of a wrong type or out of bounds."""
    if not isinstance(table, Mapping):
        raise RecipeError(f"{where} = {reprlib.repr(table)} must be a table of keys.")
    hints = hints_of(cls)
    require_known(table, hints, f"{where} has no key")
    return cls(**{key: _value(hints[key], value, f"{where} {key}") for key, value in table.items()})


def require_known(given: Iterable[str], known: Iterable[str], complaint: str) -> None:
    """Raise RecipeError for the first of ``given`` that is not among ``known``, naming the nearest."""
    names = list(known)
    for key in given:
        if key not in names:
            raise RecipeError(f"{complaint} {key!r}.{nearest(key, names, listed=True)}")


def _value(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``hint`` says; a whole number is welcome where a float is expected, never a boolean."""
    told = f"{where} = {reprlib.repr(value)}"
    if not is_shallow(value):
        raise RecipeError(f"{where} is nested too deeply.")
    _require_plain(value, where)
    if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
        raise RecipeError(f"{told} is not one of {', '.join(map(repr, typing.get_args(hint)))}.")
    return convert(value, hint, told, RecipeError)


def _require_plain(value: Any, where: str) -> None:
    """Options travel through JSON, which has no dates, so TOML's dates are refused where they are written."""
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            _require_plain(item, where)
    elif not isinstance(value, str | int | float | bool | None):
        kind = type(value).__name__
        raise RecipeError(f"{where} holds {show_value(value)}, a {kind}; expected text, numbers, true or false, lists.")


def check_rules(section: Any, where: str) -> None:
    """Raise RecipeError for the first field whose value is not right."""
    hints = hints_of(type(section))
    for f in dataclasses.fields(section):
        _value(hints[f.name], getattr(section, f.name), f"{where} {f.name}")
        wrong = f.metadata.get("rule", lambda _: "")(getattr(section, f.name))
        if wrong:
            raise RecipeError(f"{where} {f.name} = {getattr(section, f.name)!r} {wrong}.")


def _require_one_model(model: ModelSection) -> None:
    if bool(model.name) == bool(model.factory):
        given = "both" if model.name else "neither"
        raise RecipeError(
            f'[model] needs either a name from the zoo or a factory "package.module:function"; {given} was given.'
        )
    if model.factory and ":" not in model.factory:
        raise RecipeError(f'[model] factory = {model.factory!r} must be written "package.module:function".')


def _require_one_search(prune: PruneSection) -> None:
    if prune.tolerance and prune.then:
        raise RecipeError(
            f"[prune] tolerance = {prune.tolerance:g}: what [[prune.then]] takes away later would not be tolerated. "
            "Leave one of them out."
        )
    if prune.strict and not prune.tolerance:
        raise RecipeError("[prune] strict = true needs a tolerance, e.g. tolerance = 0.01.")


def require_one_data(data: DataSection) -> None:
    """Raise RecipeError unless the data have a name or a factory, and only one of the two."""
    if bool(data.name) == bool(data.factory):
        given = "both were" if data.name else "neither was"
        raise RecipeError(
            '[data] needs a name, e.g. name = "digits", or a factory "package.module:function" of your own; '
            f"{given} given."
        )
    if data.factory and not is_import_path(data.factory):
        raise RecipeError(f'[data] factory = {data.factory!r} must be written "package.module:function".')


def task_table(told: Any, key: str = "name") -> Any:
    """A section as it is written, or its ``key`` alone, as the keys of its section: what is beside it is an option."""
    if isinstance(told, str):
        return {key: told}
    if not isinstance(told, Mapping):
        return told
    beside = {name: value for name, value in told.items() if name not in (key, "options")}
    inner = told.get("options", {})
    options = dict(inner) | beside if isinstance(inner, Mapping) else inner
    return {key: told.get(key, ""), "options": options}


def require_task(task: TaskSection) -> None:
    """Raise RecipeError unless there is such a task, with such options; what a path names is looked at when it runs."""
    if task.name and not is_import_path(task.name):
        task_from(task.name, task.options)
    elif task.options and not task.name:
        raise RecipeError(f'[task] needs a name beside {next(iter(task.options))!r}, e.g. name = "segmentation".')


def _require_used(section: TrainSection | RecoverSection, where: str) -> None:
    """Raise RecipeError where a key says how to do what is not asked for."""
    unused = {
        "views": bool(section.views) and section.objective == "plain",
        "adaptive": section.adaptive and not section.sharpness,
    }
    needs = {"views": 'objective = "augmented" or "consistent"', "adaptive": "a sharpness above 0, such as 0.5"}
    for name in (name for name, is_so in unused.items() if is_so):
        raise RecipeError(f"{where} {name} = {getattr(section, name)!r} needs {needs[name]}.")


def _require_there(path: str, what: str, kind: str, test: Callable[[Path], bool]) -> None:
    if path and not (is_path(path) and test(Path(path))):
        raise RecipeError(f"{what} = {path!r}: there is no such thing; expected {kind} (relative to {os.getcwd()!r}).")


def plain(section: Any) -> dict[str, Any]:
    """A section as plain data, every key present."""
    values = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain_value(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain_value(item) for key, item in value.items()}
    return value


def _toml_table(name: str, table: Mapping[str, Any]) -> str:
    lines = [f"[{name}]"]
    lines += [f"{_toml_key(key)} = {_toml(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _toml_key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml_key(key)} = {_toml(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        # TOML's basic strings escape as JSON's do, but want DEL escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    # repr, not json: JSON's NaN and Infinity are nan and inf in TOML, as in Python.
    return str(value).lower() if isinstance(value, bool) else repr(value)
