"""A task from what a recipe or the command line says of it: the name of a maker with its options, or a path."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from nervure import tasks
from nervure.core.check import nearest
from nervure.core.importing import import_named, is_import_path
from nervure.errors import ArgumentError, RecipeError
from nervure.recipe.sources import parameters_of, require_taken
from nervure.tasks import Task

Options: TypeAlias = Mapping[str, Any]

MAKERS: Mapping[str, Callable[..., Task]] = {
    "classification": tasks.classification,
    "multilabel": tasks.multilabel,
    "regression": tasks.regression,
    "token_classification": tasks.token_classification,
    "language_modelling": tasks.language_modelling,
    "segmentation": tasks.segmentation,
    "detection": tasks.detection,
    "embedding": tasks.embedding,
    "sequence": tasks.sequence,
    "multitask": tasks.multitask,
    "model_loss": tasks.model_loss,
}
"""The tasks that a recipe may name; ``agreement`` takes a model, and has a function of the user's own."""


def task_from(name: str, options: Options) -> Task:
    """The task of that name: one of :data:`MAKERS`, or ``"package.module:name"``.

    What the path names is a task, a function of the ``options`` that returns one, or an objective: a function of a
    model and a batch that gives the mean loss.

    Raises:
        RecipeError: there is no such task, or it does not take the options.
    """
    if is_import_path(name):
        return _own_task(name, options)
    require_known_task(name)
    maker, where = MAKERS[name], f"[task] {name}"
    require_taken(maker, options, where)
    given = {key: _value_for(name, key, value) for key, value in options.items()}
    lacks = [key for key, one in parameters_of(maker).items() if _is_needed(one) and key not in given]
    if lacks:
        raise RecipeError(f"{where} needs {lacks[0]}: {parameters_of(maker)[lacks[0]].annotation}.")
    try:
        return maker(**given)
    except (ArgumentError, TypeError) as error:
        raise RecipeError(f"{where}: {error}") from error


def require_known_task(name: str) -> None:
    """Raise RecipeError unless the name is that of a maker, or a path."""
    if name == "agreement":
        raise RecipeError(
            "[task] agreement compares with a model, which a recipe cannot write down. Give a function of your own "
            'that returns tasks.agreement(dense): task = "package.module:function".'
        )
    if not is_import_path(name) and name not in MAKERS:
        raise RecipeError(f"[task] there is no task {name!r}.{nearest(name, MAKERS, listed=True)}")


def _value_for(name: str, key: str, value: Any) -> Any:
    """A value as the maker takes it: several places are a tuple, the heads of several tasks are tasks."""
    if name == "multitask" and isinstance(value, Mapping) and "name" in value:
        return task_from(str(value["name"]), {k: v for k, v in value.items() if k != "name"})
    return tuple(value) if isinstance(value, list) else value


def _is_needed(one: inspect.Parameter) -> bool:
    return one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)


def _own_task(path: str, options: Options) -> Task:
    found = import_named(path, "[task] name", RecipeError, expected="task or function")
    where = f"[task] {path}"
    if not isinstance(found, Task) and _is_objective(found):
        found = Task(objective=found, name=path.rpartition(":")[2])
    if isinstance(found, Task):
        if options:
            raise RecipeError(f"{where} is a task already, and takes no options such as {next(iter(options))!r}.")
        return found
    require_taken(found, options, where)
    try:
        made = found(**options)
    except Exception as error:  # whatever the user's own function raises
        raise RecipeError(f"{where} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(made, Task):
        raise RecipeError(
            f"{where} returned a {type(made).__name__}. Give a task, a function that returns one, or an objective: "
            "a function of a model and a batch that gives the mean loss."
        )
    return made


def _is_objective(function: Any) -> bool:
    """Whether it is a function of a model and a batch: two arguments that must be given."""
    return sum(map(_is_needed, parameters_of(function).values())) == 2
