"""What a recipe names, made: the network, the data, the method, and one training as its sections describe it."""

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from nervure import zoo
from nervure.core.check import nearest
from nervure.core.container import Kind
from nervure.core.importing import import_named, is_import_path
from nervure.core.schema import convert
from nervure.engines import require_engine
from nervure.errors import ArgumentError, FileError, NervureError, RecipeError
from nervure.export import read_header
from nervure.graph import Graph
from nervure.methods import METHODS, Method, method_from, method_keeping
from nervure.methods.dynamic.dynamic_sparse import DynamicSparse
from nervure.recipe.recipe import DataSection, Options, Recipe, RecoverSection, TrainSection, plain
from nervure.refit import Refit
from nervure.training import History, Hook, Objective, label_smoothing, recalibrate, train, with_distillation
from nervure.training.checkpoint import read_progress
from nervure.zoo import Dataset, Split

PROBE = Kind("nervure-probe", "inputs of a saved model and what it computed", version=1, remedy="Remove it; run again.")


@final
@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a network comes from: a zoo ``name`` or a ``factory`` "package.module:function", and its options."""

    name: str = ""
    factory: str = ""
    options: Options = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        """The call that builds the network."""
        return f"{self.factory or self.name}({', '.join(f'{key}={value!r}' for key, value in self.options.items())})"

    def build(self, seed: int = 0) -> nn.Module:
        """The network with fresh weights drawn from ``seed``; raises RecipeError where that fails.

        Torch's global random state is as it was afterwards.
        """
        builder = self.builder()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                model = builder(**self.options)
            except Exception as error:  # whatever the user's own function, or torch where a size is too large, raises
                kind = "" if isinstance(error, NervureError) else f"{type(error).__name__}: "
                # Below its first line torch tells where in itself it was.
                reason = (str(error).splitlines() or [""])[0].rstrip(".")
                raise RecipeError(f"[model] {self.name or self.factory} cannot be built: {kind}{reason}.") from error
        if not isinstance(model, nn.Module):
            raise RecipeError(
                f"[model] factory {self.factory!r} returned a {type(model).__name__}, not a torch module."
            )
        return model

    def builder(self) -> Callable[..., Any]:
        """The function that builds the network; raises RecipeError where it is not there or takes no such options."""
        if self.factory:
            return factory_of(self.factory)
        builder = _of_zoo(self.name)
        _require_options(self.name, builder, self.options)
        return builder

    def suited_to(self, data: Dataset) -> "ModelSource":
        """With the channels and classes of ``data`` where a zoo network is not told otherwise."""
        told = {"in_channels": data.shape[0], "num_classes": len(data.classes)}
        if self.factory:
            return self
        known = inspect.signature(_of_zoo(self.name)).parameters
        return replace(self, options={k: v for k, v in told.items() if k in known} | dict(self.options))

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``ModelSource(**data)``."""
        return {"name": self.name, "factory": self.factory, "options": dict(self.options)}


@final
@dataclass(frozen=True, slots=True)
class _FileStep:
    graph: dict[str, Any]


@final
@dataclass(frozen=True, slots=True)
class _Meta:
    model: ModelSource | None = None


@final
@dataclass(frozen=True, slots=True)
class _FileHeader:
    """What a saved file says of its network: where it comes from, and its graphs, the earliest first."""

    graph: dict[str, Any] | None = None
    earlier: tuple[_FileStep, ...] = ()
    meta: _Meta = field(default_factory=_Meta)


def source_in(path: str | os.PathLike[str], *, trust_factory: bool = False) -> ModelSource | None:
    """Where the network of a saved file comes from, as its header says; None where it does not say.

    A file is data: only a network of the zoo is taken from it, once its options are known to make no more, and no
    larger, tensors than the graph in the file has. A factory is code of whoever made the file.

    Args:
        path: a file that :func:`nervure.save` wrote.
        trust_factory: also take a factory. It is imported and called when the network is built.

    Raises:
        FileError: the file is damaged, names a factory that is not trusted, or a network that is not the graph's.
    """
    header = convert(read_header(path), _FileHeader, f"the header of {str(path)!r}")
    source = header.meta.model
    if source is None:
        return None
    if header.graph is None:
        raise FileError(f"{str(path)!r} holds a network that is not pruned: give it as --weights, with --model NAME.")
    if not source.factory:
        _require_within(path, source, Graph.from_json(header.earlier[0].graph if header.earlier else header.graph))
    elif not trust_factory:
        raise FileError(
            f"{str(path)!r} says that its network is built by calling {source}: code that may do anything, named by "
            f"whoever made the file. If you know it, name it yourself (--model {source.factory}, and --option "
            "KEY=VALUE for each option), or add --trust-factory to make that very call."
        )
    return source


def _require_within(path: str | os.PathLike[str], source: ModelSource, graph: Graph) -> None:
    """Raise FileError where a network of the zoo would have more or larger parameters than ``graph``.

    It is built without memory for its weights, and given up at the first parameter too many.
    """
    entries, count = graph.params(), len(graph.parameters)

    def take(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal entries, count
        if parameter is not None and parameter.is_meta:
            entries, count = entries - parameter.numel(), count - 1
            if entries < 0 or count < 0:
                raise FileError(f"it is larger than the {graph.params():,} parameters of the graph")

    hook = register_module_parameter_registration_hook(take)
    try:
        with torch.device("meta"):
            source.build()
    except RecipeError as error:
        raise FileError(f"{str(path)!r} names a network that its graph is not of: {error}") from error
    finally:
        hook.remove()


def _require_options(name: str, builder: Callable[..., Any], options: Options) -> None:
    """Raise RecipeError unless ``options`` are those of a network of the zoo, each of the type that it is declared."""
    known = inspect.signature(builder, eval_str=True).parameters
    for option in options:
        if option not in known:
            raise RecipeError(f"[model] {name} has no option {option!r}.{nearest(option, known, listed=True)}")
        convert(options[option], known[option].annotation, f"[model] {name}: option {option!r}", RecipeError)


def _of_zoo(name: str) -> Callable[..., Any]:
    if name not in zoo.MODELS:
        raise RecipeError(f"[model] the zoo has no network {name!r}.{nearest(name, zoo.MODELS, listed=True)}")
    return zoo.MODELS[name]


def factory_of(path: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names; modules in the working folder are found too.

    Raises:
        RecipeError: the module cannot be imported, or has no such function.
    """
    found: Callable[..., Any] = import_named(path, "factory", RecipeError)
    return found


def source_of(recipe: Recipe, data: Dataset) -> ModelSource:
    """Where the recipe's network comes from, suited to its data."""
    return ModelSource(recipe.model.name, recipe.model.factory, recipe.model.options).suited_to(data)


def data_of(recipe: Recipe) -> Dataset:
    """The recipe's data set, with as many samples as it asks for; raises RecipeError or DataError."""
    return dataset_of(recipe.data, recipe.run.seed)


def dataset_of(section: DataSection, seed: int) -> Dataset:
    """The data set of a section, with as many samples as it asks for; ``seed`` draws the validation split and samples.

    Raises:
        RecipeError: there is no such data set, or a function of the user's own makes none.
        DataError: its files are missing or damaged.
    """
    data = _own_data(section, seed) if is_import_path(section.name) else _zoo_data(section, seed)
    if section.train_samples:
        data = replace(data, train=data.train.sample(section.train_samples, seed))
    if section.test_samples:
        data = replace(data, test=data.test.sample(section.test_samples, seed))
    return data


def _zoo_data(section: DataSection, seed: int) -> Dataset:
    if section.name not in zoo.DATASETS:
        raise RecipeError(
            f"[data] the zoo has no data set {section.name!r}.{nearest(section.name, zoo.DATASETS, listed=True)} "
            'One of your own is named "package.module:function".'
        )
    size = section.size or None
    return zoo.load(section.name, section.root or None, validation=section.validation, seed=seed, size=size)


def _own_data(section: DataSection, seed: int) -> Dataset:
    """What a function of the user's own makes of those of root, size, validation and seed that it takes."""
    where = f"[data] {section.name}"
    maker = import_named(section.name, "[data] name", RecipeError)
    told = {"root": section.root or None, "size": section.size or None, "validation": section.validation, "seed": seed}
    try:
        taken = inspect.signature(maker).parameters
        data = maker(**{key: value for key, value in told.items() if key in taken})
    except NervureError:
        raise
    except Exception as error:  # whatever the user's own function raises
        raise RecipeError(f"{where} cannot be made: {type(error).__name__}: {error}.") from error
    for key in ("root", "size", "validation"):
        if key not in taken and getattr(section, key) != getattr(DataSection(), key):
            raise RecipeError(f"{where} takes no {key}: leave {key} out, or let the function have it.")
    if not isinstance(data, Dataset):
        raise RecipeError(f"{where} made a {type(data).__name__}, not a data set; nervure.zoo.data.assemble makes one.")
    return data


def method_of(recipe: Recipe) -> Method:
    """The recipe's method with its hyper-parameters; raises RecipeError where it does not take them."""
    section = recipe.prune
    with _told_of("[prune]", section.method):
        method = method_keeping(
            section.method,
            section.options,
            keep=section.keep,
            budget=section.budget,
            density=section.density or None,
        )
    if recipe.refit.samples and begins_fresh(recipe, method):
        raise RecipeError(
            "[refit] fits to what the trained network says, and what is pruned here has its first weights."
        )
    return method


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
            found.append(method_from(name, **{key: value for key, value in table.items() if key != "method"}))
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


def device_of(recipe: Recipe) -> torch.device:
    """The recipe's device; raises RecipeError where torch does not have it."""
    try:
        return torch.zeros((), device=recipe.run.device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"[run] device = {recipe.run.device!r} cannot be used: {reason}.") from error


def train_section(
    model: nn.Module,
    data: Dataset,
    section: TrainSection | RecoverSection,
    *,
    seed: int,
    checkpoint: Path | None = None,
    masks: Mapping[str, Tensor] | None = None,
    hooks: Sequence[Hook] = (),
    teacher: nn.Module | None = None,
    progress: bool = True,
) -> History:
    """Train ``model`` in place as ``section`` says; with ``checkpoint``, go on from where that file stands.

    A ``teacher`` is listened to where the section distils.
    """
    split = _without_a_last_one(data.train, section.batch_size)
    batches = split.batches(section.batch_size, shuffle_seed=seed, augment=section.augment)
    if isinstance(section, RecoverSection) and section.recalibrate and _epochs_done(checkpoint) == 0:
        recalibrate(model, batches, section.recalibrate)
    if not section.epochs:
        return History((), (), 0, 0.0)
    # The order of an epoch follows from its number: one that goes on must not begin at the first again.
    batches.epoch = _epochs_done(checkpoint)
    return train(
        model,
        batches,
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
        objective=_objective(section, teacher),
    )


def _objective(section: TrainSection | RecoverSection, teacher: nn.Module | None) -> Objective:
    objective = label_smoothing(section.smoothing)
    if teacher is None or not isinstance(section, RecoverSection) or not section.distill:
        return objective
    return with_distillation(objective, teacher, section.distill, section.temperature)


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
