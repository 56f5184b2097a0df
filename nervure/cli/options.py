"""What the sub-commands share: which network, which data, which example, and how errors are told."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, final

import click
import torch
from click.core import ParameterSource
from torch import Tensor, nn

from nervure import zoo
from nervure.budget import BUDGETS
from nervure.cli.command_group import tell
from nervure.core.annotations import is_device
from nervure.engines import ENGINES
from nervure.errors import ArgumentError
from nervure.export import load, load_state
from nervure.graph import Graph
from nervure.methods import Method, method_keeping
from nervure.methods.channels.compensated import LIMITS
from nervure.prune import Pruned
from nervure.recipe.making import dataset_of, suit_source
from nervure.recipe.own_data import Data, OwnData
from nervure.recipe.purpose import Purpose, purpose_of
from nervure.recipe.recipe import DataSection, TaskSection
from nervure.recipe.sources import ModelSource, source_in
from nervure.recipe.task_making import MAKERS, require_known_task
from nervure.tasks import Task
from nervure.tracing import trace
from nervure.zoo import CorruptedBatches, Dataset, Split
from nervure.zoo.readers.folders import tiny_root, wnids_of

Decorator: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]
Example: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
TYPES: Mapping[str, torch.dtype] = {
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "long": torch.int64,
    "int": torch.int32,
    "bool": torch.bool,
}
"""Types of numbers as they are written after a shape."""

SEED = click.IntRange(0, (1 << 63) - 1)
"""What torch takes for a seed."""
HALF = 0.5
"""What stays where nothing says how much."""
BATCH = click.IntRange(1, 1 << 20)
"""How many samples at once."""
ANYWHERE = click.Path(path_type=Path)
PAGE = click.Path(dir_okay=False, path_type=Path)
PAGES = click.Path(file_okay=False, path_type=Path)


def setting(text: str) -> tuple[str, Any]:
    """``key=value``; the value is read as JSON where it is JSON (numbers, true, lists), as text otherwise.

    >>> setting("width=2"), setting("shortcut=projection")
    (('width', 2), ('shortcut', 'projection'))
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"{text!r} is not written key=value, e.g. width=2")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def target(text: str) -> float | str:
    """A share like ``0.5``, or an amount like ``"3 ms"``, which stays text.

    >>> target("0.5"), target("3 ms")
    (0.5, '3 ms')
    """
    try:
        return float(text)
    except ValueError:
        return text


def share(text: str) -> float | str:
    """A fraction like ``0.5``, or the word ``"limits"``.

    >>> share("0.5"), share("limits")
    (0.5, 'limits')
    """
    try:
        return text if text == LIMITS else float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a fraction, like 0.5, nor limits") from None


def named_options() -> frozenset[str]:
    """The options that the user wrote."""
    context = click.get_current_context()
    return frozenset(n for n in context.params if context.get_parameter_source(n) is ParameterSource.COMMANDLINE)


Kept = TypeVar("Kept")


def _once(name: str, make: Callable[[], Kept]) -> Kept:
    """What ``make`` gives, kept while a command runs: loaders of the user's may take long to make."""
    context = click.get_current_context(silent=True)
    if context is None:
        return make()
    if f"nervure.{name}" not in context.meta:
        context.meta[f"nervure.{name}"] = make()
    found: Kept = context.meta[f"nervure.{name}"]
    return found


def shape(text: str) -> tuple[str, tuple[int, ...], torch.dtype]:
    """Name (empty: none), sizes and type of an input written ``1x3x32x32``, ``1x16:long`` or ``ids=1x16:long``.

    >>> shape("1x3x8x8"), shape("ids=1x16:long")
    (('', (1, 3, 8, 8), torch.float32), ('ids', (1, 16), torch.int64))
    """
    left, equals, right = text.partition("=")
    name, (sizes, colon, kind) = left if equals else "", (right if equals else left).partition(":")
    numbers = sizes.lower().split("x")
    if not all(size.isdecimal() and int(size) for size in numbers) or (equals and not name.isidentifier()):
        raise click.BadParameter(f"{text!r} is not a shape like 1x3x32x32, 1x16:long or ids=1x16:long")
    if colon and kind not in TYPES:
        raise click.BadParameter(f"{text!r} asks for numbers of type {kind!r}; it is one of {', '.join(TYPES)}")
    return name, tuple(map(int, numbers)), TYPES[kind or "float"]


def inputs_of(shapes: Sequence[tuple[str, tuple[int, ...], torch.dtype]]) -> Example | None:
    """Random inputs of these shapes, always the same ones: one tensor, or several, by name where they have names."""
    names = [name for name, _, _ in shapes]
    if repeated := [name for name in names if name and names.count(name) > 1]:
        raise click.BadParameter(f"{repeated[0]!r} is named twice; give each input once")
    if any(names) and not all(names):
        told = ", ".join(name or "x".join(map(str, sizes)) for name, sizes, _ in shapes)
        raise click.BadParameter(f"of {told} some have names; name all inputs (ids=1x16:long) or none")
    tensors = [_random(sizes, dtype, seed) for seed, (_, sizes, dtype) in enumerate(shapes)]
    if any(names):
        return dict(zip(names, tensors, strict=True))
    return tuple(tensors) if len(tensors) > 1 else tensors[0] if tensors else None


def _random(sizes: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    try:
        if dtype.is_floating_point:
            return torch.randn(sizes, generator=generator, dtype=dtype)
        # Of whole numbers 0 and 1: every table has these rows.
        return torch.randint(2, sizes, generator=generator).to(dtype)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise click.BadParameter(f"an input of {'x'.join(map(str, sizes))} cannot be made: {reason}") from error


def require_device(name: str) -> str:
    """The name of a device that is there; raises ArgumentError otherwise."""
    if not is_device(name):
        raise ArgumentError(f"--device {name}: torch finds no such device here. Take cpu, or one that is there.")
    return name


def example(*lines: str) -> str:
    """The example at the end of a command's help, each line as it is typed."""
    # The backspace is click's word for: do not wrap this paragraph.
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


@final
@dataclass(frozen=True, slots=True, eq=False)
class NetworkChoice:
    """What the user chose: a network (fresh, or with weights, or a saved pruned one), data, an example, a seed."""

    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    file: str = ""
    data_name: str = ""
    root: str = ""
    inputs: Example | None = None
    seed: int = 0
    device: str = "cpu"
    trust_factory: bool = False
    data_options: Mapping[str, Any] = field(default_factory=dict)
    task_name: str = ""
    task_options: Mapping[str, Any] = field(default_factory=dict)

    def data(self) -> Data:
        """The data set chosen; raises ArgumentError where none is."""
        if not self.data_name:
            raise ArgumentError(
                f"no data: give --data NAME, one of {', '.join(zoo.DATASETS)}, or package.module:function."
            )
        section = DataSection(self.data_name, self.root, options=self.data_options)
        return _once("data", lambda: dataset_of(section, self.seed))

    def purpose(self) -> Purpose:
        """What the network is for: as chosen, or as the first batch says."""
        if self.task_name:
            require_known_task(self.task_name)
        return _once("purpose", self._find_purpose)

    def task(self) -> Task | None:
        """What the network is for; None: it tells classes, measured as always."""
        return self.purpose().task

    def _find_purpose(self) -> Purpose:
        section = TaskSection(self.task_name, self.task_options)
        found = purpose_of(section, self.data(), self.ready)
        if found.reason:
            tell(f"task        {found.name}, told from the first batch: {found.reason}")
        return found

    def images(self) -> Dataset:
        """The data chosen, where they are images of known range; raises ArgumentError where they are not."""
        data = self.data()
        if isinstance(data, OwnData) or self.purpose().name != "classification":
            raise ArgumentError("--shift is for images of known range with a class each, as the zoo's data are.")
        return data

    def load_corrupted(self, root: Path, clean: Split, **options: Any) -> Mapping[tuple[str, int], CorruptedBatches]:
        """The corrupted test data in a folder, labelled as the ``clean`` data of this choice."""
        is_tiny = self.data_name == "tiny-imagenet" and self.root
        order = wnids_of(tiny_root(Path(self.root))) if is_tiny else None
        return zoo.load_corrupted(root, clean, order=order, seed=self.seed, **options)

    def source(self) -> ModelSource:
        """Where the network comes from: as named, or as noted in the file; suited to the data if some are chosen."""
        if not self.model and self.file:
            noted = source_in(self.file, trust_factory=self.trust_factory)
            if noted is not None:
                return noted
        if not self.model:
            raise ArgumentError(
                "no network: give --model NAME of the zoo, timm:NAME, torchvision:NAME, hf:FOLDER-OR-NAME, or "
                "--model package.module:function."
            )
        source = ModelSource.of_name(self.model, self.options)
        return suit_source(source, self.data()) if self.data_name else source

    def network(self) -> nn.Module:
        """The network before any pruning, with the weights chosen if there are some."""
        model = self._build(self.source())
        return load_state(self.weights, model) if self.weights else model

    def pruned(self) -> Pruned:
        """The saved pruned network."""
        source = self.source()
        return load(self.file, lambda: self._build(source))

    def _build(self, source: ModelSource) -> nn.Module:
        return source.build(self.seed).to(self.device)

    def ready(self) -> nn.Module:
        """The network to train or to evaluate: the saved pruned one if a file was given."""
        return self.pruned().model if self.file else self.network()

    def example(self) -> Example:
        """The inputs chosen by their shapes, or else the first image of the data; ArgumentError without either."""
        if self.inputs is not None:
            return self.inputs
        if not self.data_name:
            raise ArgumentError("no example: give --input 1x3x32x32 (your shape), or --data NAME.")
        data = self.data()
        if isinstance(data, OwnData):
            shown = self.purpose().example
            assert shown is not None
            found: Example = shown.plain()
            return found
        return data.example(1)

    def graph(self, model: nn.Module, **options: Any) -> Graph:
        """The network, traced."""
        return trace(model, self.example(), **options)


MODEL: tuple[Decorator, ...] = (
    click.option(
        "--model",
        default="",
        metavar="NAME",
        help="Network of the zoo, timm:NAME, torchvision:NAME, hf:FOLDER-OR-NAME, or package.module:function.",
    ),
    click.option(
        "--option",
        "options",
        type=setting,
        multiple=True,
        metavar="KEY=VALUE",
        help="Option of the network, e.g. width=2.",
    ),
    click.option("--weights", default="", type=click.Path(), help="Trained weights of the network (safetensors)."),
    click.option(
        "--data",
        "data_name",
        default="",
        metavar="NAME",
        help="Data set of the zoo, e.g. digits, or package.module:function.",
    ),
    click.option(
        "--data-option",
        "data_options",
        type=setting,
        multiple=True,
        metavar="KEY=VALUE",
        help="Option of the function that makes the data.",
    ),
    click.option(
        "--task",
        "task_name",
        default="",
        metavar="NAME",
        help=f"What it is for: {', '.join(MAKERS)}, or package.module:name; else told from the first batch.",
    ),
    click.option(
        "--task-option",
        "task_options",
        type=setting,
        multiple=True,
        metavar="KEY=VALUE",
        help="Option of the task, e.g. ignore=255.",
    ),
    click.option("--root", default="", type=click.Path(), help="Folder of the data, where they are not installed."),
    click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of weights, data and choices."),
    click.option(
        "--device",
        default="cpu",
        show_default=True,
        metavar="NAME",
        callback=lambda context, option, name: require_device(name),
        help="Where the network runs, e.g. cuda or cuda:1.",
    ),
)
EXAMPLE: Decorator = click.option(
    "--input",
    "inputs",
    type=shape,
    multiple=True,
    callback=lambda context, option, shapes: inputs_of(shapes),
    metavar="[NAME=]SHAPE[:TYPE]",
    help=f"Example input by its shape, e.g. 1x3x32x32; whole numbers are written 1x16:long ({', '.join(TYPES)}). "
    "Several times for several inputs, in order, or by name: ids=1x16:long.",
)


def from_file(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with the options that choose a saved pruned network."""
    trust = click.option("--trust-factory", is_flag=True, help="Call the function that --file says builds its network.")
    file = click.option("--file", default="", type=click.Path(), help="A pruned network saved by apply, train or run.")
    return file(trust(command))


def input_options(*more: Decorator) -> Decorator:
    """Decorate a command with the options of a :class:`NetworkChoice` and ``more``; it gets the choice first."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        def with_choice(**given: Any) -> Any:
            names = {name: given.pop(name) for name in list(given) if name in NetworkChoice.__slots__}
            tables = {name: dict(names.get(name, ())) for name in ("options", "data_options", "task_options")}
            return command(NetworkChoice(**{**names, **tables}), **given)

        return _add_options(functools.update_wrapper(with_choice, command), (*MODEL, *more))

    return decorate


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """How much a plan is to keep, in the words of :func:`nervure.methods.method_keeping`."""

    keep: float | str | None
    budget: str
    density: float | None
    engine: str | None
    target: float | str | None

    def settle(self, method: str, settings: Mapping[str, Any]) -> "Asked":
        """With what was left open of ``keep``: limits, of a method that finds some, else a half."""
        if self.keep is not None:
            return self
        if self.density is self.target is None and "budget" not in named_options():
            with suppress(ArgumentError):
                replace(self, keep=LIMITS).method(method, settings)
                return replace(self, keep=LIMITS)
        return replace(self, keep=HALF)

    def method(self, name: str, settings: Mapping[str, Any]) -> Method:
        """The method that keeps so much, once that is settled; raises ArgumentError."""
        told = asdict(self) | {"keep": None if self.keep == LIMITS else self.keep}
        return method_keeping(name, settings, **told)


ASKED: tuple[Decorator, ...] = (
    click.option(
        "--keep",
        type=share,
        metavar="SHARE|limits",
        help="The fraction that stays, in (0, 1], or limits, which SNACS and Compensated find; else limits there, 0.5.",
    ),
    click.option("--density", type=float, help="The fraction of the weights that stays, for methods that mask them."),
    click.option("--budget", default="macs", show_default=True, help=f"What keep counts: {', '.join(BUDGETS)}."),
    click.option("--engine", help=f"What the plan is made for: {', '.join(ENGINES)}; sizes become multiples of 16."),
    click.option(
        "--target",
        type=target,
        metavar="SHARE|AMOUNT",
        help="The latency or memory to meet: a share of the dense network's (0.5), or an amount ('3 ms', '200 MB').",
    ),
)


def asking(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with the options of :class:`Asked`; it gets one as ``asked``."""

    def with_asked(*args: Any, **given: Any) -> Any:
        return command(*args, asked=Asked(**{name: given.pop(name) for name in Asked.__slots__}), **given)

    return _add_options(functools.update_wrapper(with_asked, command), ASKED)


FOLDER: Decorator = click.option("--folder", type=PAGES, help="Where all that is made goes.")
QUIET: Decorator = click.option("--quiet", is_flag=True, help="Say nothing but the result.")
GRID: tuple[Decorator, ...] = (
    FOLDER,
    click.option("--limit", type=click.IntRange(0), help="Do so many trials at most; 0: only write the tables again."),
    click.option(
        "--workers", type=int, default=1, show_default=True, help="So many trials at once; 0: one for each core."
    ),
    click.option("--ray", default="", metavar="ADDRESS", help="A Ray cluster that does them: auto, local, or where."),
    QUIET,
)


def grid_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with the options that say how a grid of trials is done."""

    def with_progress(*args: Any, quiet: bool, **given: Any) -> Any:
        return command(*args, progress=not quiet, **given)

    return _add_options(functools.update_wrapper(with_progress, command), GRID)


def _add_options(command: Callable[..., Any], options: Sequence[Decorator]) -> Callable[..., Any]:
    """The command with these options, which its help shows in this order."""
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def output(default: str, what: str) -> Decorator:
    """The ``-o`` option of a command."""
    told = f"Where to write {what}."
    return click.option("-o", "--out", default=default or None, show_default=bool(default), type=PAGE, help=told)
