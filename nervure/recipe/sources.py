"""Where a network comes from: the zoo, a library, a function of the user's own; and what a saved file says of it."""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, final

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from nervure import zoo
from nervure.core.check import nearest
from nervure.core.importing import import_named, is_import_path
from nervure.core.schema import convert
from nervure.errors import FileError, MissingExtraError, NervureError, RecipeError
from nervure.export import read_header
from nervure.graph import Graph
from nervure.recipe.libraries import library_of

Options: TypeAlias = Mapping[str, Any]


@final
@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a network comes from, and its options.

    Attributes:
        name: of the zoo, or of a library: ``"timm:resnet50"``, see :mod:`nervure.recipe.libraries`.
        factory: ``"package.module:function"``.
        options: what the function that builds it is given.
    """

    name: str = ""
    factory: str = ""
    options: Options = field(default_factory=dict, hash=False)

    @staticmethod
    def of_name(name: str, options: Options) -> "ModelSource":
        """The source that one word names: a network of the zoo or of a library, or a function by its path."""
        is_factory = is_import_path(name) and library_of(name) is None
        return ModelSource("" if is_factory else name, name if is_factory else "", options)

    @property
    def runs_code(self) -> bool:
        """Whether more is called than the zoo, so that whoever names it must be known."""
        return bool(self.factory) or library_of(self.name) is not None

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
            except (RecipeError, MissingExtraError):
                # Says already what is wrong, and what to do.
                raise
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
        library = library_of(self.name)
        if library is not None:
            build, name = library.build, self.name.partition(":")[2]
            return lambda **options: build(name, options)
        builder = _of_zoo(self.name)
        _require_options(self.name, builder, self.options)
        return builder

    def suited_to(self, channels: int, classes: int) -> "ModelSource":
        """With channels and classes of the data where a network is not told otherwise; a function is left to itself."""
        told = {"in_channels": channels, "num_classes": classes}
        if self.factory:
            return self
        library = library_of(self.name)
        if library is not None:
            return replace(self, options=library.suit(self.options, channels, classes) | dict(self.options))
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
    if not source.runs_code:
        _require_within(path, source, Graph.from_json(header.earlier[0].graph if header.earlier else header.graph))
    elif not trust_factory:
        raise FileError(
            f"{str(path)!r} says that its network is built by calling {source}: code that may do anything, named by "
            f"whoever made the file. If you know it, name it yourself (--model {source.factory or source.name}, and "
            "--option KEY=VALUE for each option), or add --trust-factory to make that very call."
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


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """What a function of the user's own takes, by name; nothing where it does not say."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        # Functions written in C may keep their signature to themselves.
        return {}


def require_taken(function: Callable[..., Any], options: Options, where: str) -> None:
    """Raise RecipeError for the first of the options that a function of the user's own does not take."""
    taken = parameters_of(function)
    if any(one.kind is one.VAR_KEYWORD for one in taken.values()):
        return
    for option in options:
        if taken and option not in taken:
            raise RecipeError(f"{where} has no option {option!r}.{nearest(option, taken, listed=True)}")
        if not taken:
            raise RecipeError(f"{where} takes no options, and {option!r} is given.")
