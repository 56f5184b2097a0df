"""What a recipe names, made: the network, the data, the method, and one training as its sections describe it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from nervure import zoo
from nervure.core.check import nearest
from nervure.core.importing import import_named, is_import_path
from nervure.engines import require_engine
from nervure.errors import ArgumentError, FileError, NervureError, RecipeError
from nervure.evaluation import CORRUPTIONS
from nervure.methods import METHODS, Method, method_from, method_keeping
from nervure.methods.dynamic.dynamic_sparse import DynamicSparse
from nervure.methods.lookup import find_method, options_of
from nervure.recipe.own_data import Data, OwnData, loaders_in
from nervure.recipe.recipe import DataSection, Recipe, RecoverSection, TrainSection, plain
from nervure.recipe.sources import ModelSource, parameters_of, require_taken
from nervure.recipe.text_windows import TEXT, TextWindows
from nervure.refit import Refit
from nervure.smallest import require_amount
from nervure.tasks import Task
from nervure.training import (
    SAM,
    Callback,
    History,
    Hook,
    Objective,
    Views,
    augmented,
    consistent,
    label_smoothing,
    picture_views,
    recalibrate,
    train,
    with_distillation,
)
from nervure.training.checkpoint import read_progress
from nervure.zoo import Dataset, Split


def source_of(recipe: Recipe, data: Data) -> ModelSource:
    """Where the recipe's network comes from, suited to its data."""
    return suit_source(ModelSource.of_name(recipe.model.name or recipe.model.factory, recipe.model.options), data)


def suit_source(source: ModelSource, data: Data) -> ModelSource:
    """The source with channels and classes of the data, where these are images of known classes."""
    return source.suited_to(data.shape[0], len(data.classes)) if isinstance(data, Dataset) else source


def data_of(recipe: Recipe) -> Data:
    """The recipe's data set, with as many samples as it asks for; raises RecipeError or DataError."""
    return dataset_of(recipe.data, recipe.run.seed)


def dataset_of(section: DataSection, seed: int) -> Data:
    """The data set of a section, with as many samples as it asks for; ``seed`` draws the validation split and samples.

    Raises:
        RecipeError: there is no such data set, or a function of the user's own makes none.
        DataError: its files are missing or damaged.
    """
    if section.name.startswith(TEXT):
        return _texts(section)
    path = section.factory or (section.name if is_import_path(section.name) else "")
    data: Any = _own_data(path, section, seed) if path else _zoo_data(section, seed)
    if section.train_samples:
        data = replace(data, train=data.train.sample(section.train_samples, seed))
    if section.test_samples:
        data = replace(data, test=data.test.sample(section.test_samples, seed))
    found: Data = data
    return found


def _texts(section: DataSection) -> OwnData:
    where = f"[data] {section.name}"
    if "tokenizer" not in section.options:
        raise RecipeError(f'{where} needs a tokenizer: options = {{ tokenizer = "FOLDER" }}, that of the model.')
    require_taken(TextWindows, section.options, where)
    try:
        how = TextWindows(**section.options)
    except ArgumentError as error:
        raise RecipeError(f"{where}: {error}") from error
    return how.load(section.name.removeprefix(TEXT))


def _zoo_data(section: DataSection, seed: int) -> Dataset:
    if section.name not in zoo.DATASETS:
        raise RecipeError(
            f"[data] the zoo has no data set {section.name!r}.{nearest(section.name, zoo.DATASETS, listed=True)} "
            'One of your own is named "package.module:function".'
        )
    if section.options:
        raise RecipeError(f"[data] options are for a function of your own; {section.name!r} takes none.")
    size = section.size or None
    return zoo.load(section.name, section.root or None, validation=section.validation, seed=seed, size=size)


def _own_data(path: str, section: DataSection, seed: int) -> Data:
    """What a function of the user's own makes of its options, and of root, size, validation and seed where it asks."""
    where = f"[data] {path}"
    maker = import_named(path, f"[data] {'factory' if section.factory else 'name'}", RecipeError)
    told = {"root": section.root or None, "size": section.size or None, "validation": section.validation, "seed": seed}
    taken = parameters_of(maker)
    for key in ("root", "size", "validation"):
        if key not in taken and getattr(section, key) != getattr(DataSection(), key):
            raise RecipeError(f"{where} takes no {key}: leave {key} out, or let the function have it.")
    require_taken(maker, section.options, where)
    try:
        data = maker(**({key: value for key, value in told.items() if key in taken} | dict(section.options)))
    except NervureError:
        raise
    except Exception as error:  # whatever the user's own function raises
        raise RecipeError(f"{where} cannot be made: {type(error).__name__}: {error}.") from error
    return data if isinstance(data, Dataset) else loaders_in(data, path)


def method_of(recipe: Recipe) -> Method:
    """The recipe's method with its hyper-parameters; raises RecipeError where it does not take them."""
    section = recipe.prune
    with _told_of("[prune]", section.method):
        method = method_keeping(
            section.method,
            as_before(section.method, section.options, section.version, section.budget),
            keep=section.share,
            budget=section.budget,
            density=section.density or None,
        )
        if section.tolerance:
            method = require_amount(method, ())
    if recipe.refit.samples and begins_fresh(recipe, method):
        raise RecipeError(
            "[refit] fits to what the trained network says, and what is pruned here has its first weights."
        )
    if section.tolerance and begins_fresh(recipe, method):
        raise RecipeError(
            "[prune] tolerance compares with a trained network, and what is pruned here has its first weights."
        )
    return method


@final
@dataclass(frozen=True, slots=True)
class FormerDefaults:
    """What a method had where a recipe of an earlier version leaves it open.

    Attributes:
        options: what it had.
        newer: options that there were not then; a recipe that has one means the method as it is now.
        now: what else says so.
    """

    options: Mapping[str, Any]
    newer: frozenset[str] = frozenset()
    now: Mapping[str, Any] = field(default_factory=dict)

    def fill(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options with what they leave open."""
        is_new = bool(self.newer & options.keys()) or any(options.get(key) == value for key, value in self.now.items())
        return options if is_new else {**self.options, **options}


_SYNTHESIS = FormerDefaults({"pool": 3})
FORMER: Mapping[int, Mapping[str, FormerDefaults]] = {
    1: {
        "Synthesis": _SYNTHESIS,
        "SNACS": FormerDefaults(
            {"granularity": "kernels", "ranking": "connectivity", "of": "means", "sizes": "threshold"},
            newer=frozenset({"of", "sizes", "views"}),
            now={"ranking": "compensated"},
        ),
    },
    2: {"Synthesis": _SYNTHESIS},
}
"""By the version of a recipe, then by the name of a method; what is not here has always been what it is."""
ROUNDS_WIDTHS = 3
"""The version of recipes in which methods round the widths of wide groups by themselves."""


def as_before(name: str, options: Mapping[str, Any], version: int = 1, budget: str = "") -> Mapping[str, Any]:
    """The options of a method in a recipe of that version, with what the version means by what they leave open.

    ``budget`` is what is counted where the options do not say it.
    """
    for known, former in FORMER.get(version, {}).items():
        if name.rpartition(":")[2].lower() == known.lower() and find_method(METHODS, name) is METHODS[known]:
            options = former.fill(options)
    return _with_free_widths(name, options, budget) if version < ROUNDS_WIDTHS else options


def _with_free_widths(name: str, options: Mapping[str, Any], budget: str) -> Mapping[str, Any]:
    """Widths were rounded for an engine only, before."""
    maker = find_method(METHODS, name)
    is_rounded = maker in METHODS.values() and "multiple" in options_of(maker)
    for_engine = "engine" in options or options.get("budget", budget) == "latency"
    return {"multiple": 1, **options} if is_rounded and not for_engine else options


def begins_fresh(recipe: Recipe, method: Method) -> bool:
    """Whether what is pruned has its first weights, and learns everything afterwards."""
    said = recipe.prune.begin
    return said == "fresh" or (said == "auto" and isinstance(method, DynamicSparse) and method.begins_by_lot)


def refit_of(recipe: Recipe) -> tuple[Refit, ...]:
    """How what stays is refitted; nothing where it is not."""
    return (Refit(**plain(recipe.refit), seed=recipe.run.seed),) if recipe.refit.samples else ()


def methods_after(recipe: Recipe) -> tuple[Method, ...]:
    """The methods that prune what the first has left, in order; raises RecipeError as :func:`method_of`."""
    found = []
    for number, table in enumerate(recipe.prune.then, start=1):
        name = str(table.get("method", ""))
        with _told_of(f"[[prune.then]] number {number}:", name):
            options = {key: value for key, value in table.items() if key != "method"}
            found.append(method_from(name, **as_before(name, options, recipe.prune.version)))
    return tuple(found)


@contextmanager
def _told_of(where: str, name: str) -> Iterator[None]:
    """Say where in the recipe the method ``name`` is that is unknown, or does not take what it is given."""
    if not is_import_path(name) and name not in METHODS:
        raise RecipeError(f"{where} there is no method {name!r}.{nearest(name, METHODS, listed=True)}")
    try:
        yield
    except (ArgumentError, TypeError) as error:
        raise RecipeError(f"{where} {error}") from error


def require_engines(recipe: Recipe) -> None:
    """Raise MissingExtraError where the library of an engine that is to be timed is not installed."""
    for name in recipe.evaluate.engines if recipe.evaluate.latency else ():
        require_engine(name)


def require_views(recipe: Recipe, data: Data, task: Task | None = None) -> None:
    """Raise RecipeError where nothing makes the views of a training, or it compares answers that are no classes."""
    for where, section in (("[train]", recipe.train), ("[recover]", recipe.recover)):
        if section.objective == "plain":
            continue
        try:
            _views_of(section, data, recipe.evaluate.shift or CORRUPTIONS)
        except RecipeError as error:
            raise RecipeError(f"{where} {error}") from error
        if section.objective == "consistent" and task is not None and task.classes is None:
            raise RecipeError(
                f'{where} objective = "consistent" compares probabilities of classes, which {task.name} has none of. '
                'Take "augmented", or name a task that says its classes: Task(objective=, classes=).'
            )


def device_of(recipe: Recipe) -> torch.device:
    """The recipe's device; raises RecipeError where torch does not have it."""
    try:
        return torch.zeros((), device=recipe.run.device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"[run] device = {recipe.run.device!r} cannot be used: {reason}.") from error


def train_section(  # noqa: PLR0913 - one keyword per choice
    model: nn.Module,
    data: Data,
    section: TrainSection | RecoverSection,
    *,
    seed: int,
    checkpoint: Path | None = None,
    masks: Mapping[str, Tensor] | None = None,
    hooks: Sequence[Hook] = (),
    teacher: nn.Module | None = None,
    task: Task | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    tested: Sequence[str] = CORRUPTIONS,
) -> History:
    """Train ``model`` in place as ``section`` says; with ``checkpoint``, go on from where that file stands.

    A ``teacher`` is listened to where the section distils. Without a ``task``, labels are classes. No view
    of pictures is made by what is ``tested``.
    """
    split = data.train if isinstance(data, OwnData) else _without_a_last_one(data.train, section.batch_size)
    batches = split.batches(section.batch_size, shuffle_seed=seed, augment=section.augment)
    if isinstance(section, RecoverSection) and section.recalibrate and _epochs_done(checkpoint) == 0:
        recalibrate(model, batches, section.recalibrate, task=task)
    if not section.epochs:
        return History((), (), 0, 0.0)
    return train(
        model,
        batches,
        task=task,
        epochs=section.epochs,
        lr=section.lr,
        optimizer=section.optimizer,
        momentum=section.momentum,
        weight_decay=section.weight_decay,
        schedule=section.schedule,
        precision=section.precision,
        masks=masks,
        hooks=hooks,
        validation=data.validation.batches(500),
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        callbacks=callbacks,
        objective=_objective(section, teacher, task, data, tested),
        sharpness=SAM(section.sharpness, section.adaptive) if section.sharpness else None,
    )


def _objective(
    section: TrainSection | RecoverSection,
    teacher: nn.Module | None,
    task: Task | None,
    data: Data,
    tested: Sequence[str],
) -> Objective:
    if task is not None and section.smoothing:
        raise RecipeError("smoothing is the task's: leave it out, or say so there, [task] smoothing = 0.1.")
    objective: Objective = label_smoothing(section.smoothing) if task is None else task
    if teacher is not None and isinstance(section, RecoverSection) and section.distill:
        objective = with_distillation(objective, teacher, section.distill, section.temperature)
    match section.objective:
        case "plain":
            return objective
        case "augmented":
            return augmented(objective, _views_of(section, data, tested))
        case "consistent":
            views = _views_of(section, data, tested)
            return consistent(objective, views, section.consistency, count=section.view_count)


def _views_of(section: TrainSection | RecoverSection, data: Data, tested: Sequence[str]) -> Views:
    """What makes views of batches: the user's own, or that of pictures."""
    if section.views:
        views: Views = import_named(section.views, "views", RecipeError)
        return views
    if not isinstance(data, Dataset):
        raise RecipeError(
            f"objective = {section.objective!r}: of loaders of your own it is not known what a view is. Say "
            'views = "package.module:name": a function of a batch and a seed, or what nervure.training.picture_views() '
            "and shift_views() return."
        )
    return picture_views(normalisation=(data.mean, data.std), tested=tested)


def _without_a_last_one(split: Split, batch_size: int) -> Split:
    """Leave one sample out where the last batch would hold one only: batch norms cannot train on a single sample."""
    lonely = batch_size > 1 and len(split) > 1 and len(split) % batch_size == 1
    return split.select(torch.arange(len(split) - 1)) if lonely else split


def _epochs_done(checkpoint: Path | None) -> int:
    if checkpoint is None or not checkpoint.exists():
        return 0
    try:
        return read_progress(checkpoint).epochs
    except FileError:
        # What is wrong with the file is said, better, by the training that reads it next.
        return 0
