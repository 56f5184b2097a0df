"""A model of a folder without its weights: found are its layers, and with what each is called on a batch.

Parameters are on ``meta``; buffers, which constructors compute, are real. What lies before or behind the layers gets
its weights when it runs, and gives them back.
"""

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from nervure.core.extras import require_extra
from nervure.errors import ArgumentError, FileError
from nervure.export.stock import build_from_config
from nervure.graph.models import evaluating
from nervure.graph.tape import names_of_tensors
from nervure.refit.activations import Enough
from nervure.refit.replay import run_instead
from nervure.stats.loaders import Batch
from nervure.streaming.sharded_weights import ShardedWeights

Call: TypeAlias = Mapping[str, Any]
"""What a layer is given beside the stream, by name."""
CONFIG = "config.json"


@final
@dataclass(frozen=True, slots=True, eq=False)
class HollowModel:
    """What a config builds, and where its weights lie.

    Attributes:
        whole: the model, all of it on ``meta``, as it is traced and cut.
        shell: the same with real buffers.
        layers: the names of its layers, in running order.
        weights: its tensors.
        aliases: the name in the files of each tensor of its state.
        dtype: of its parameters.
        example: a few tokens.
        device: where its layers are; what is outside of them runs on the CPU.
    """

    whole: nn.Module
    shell: nn.Module
    layers: tuple[str, ...]
    weights: ShardedWeights
    aliases: Mapping[str, str]
    dtype: torch.dtype
    example: Batch
    device: torch.device

    @staticmethod
    def of(
        kind: Any, config: Any, weights: ShardedWeights, example: Batch, device: torch.device | str = "cpu"
    ) -> "HollowModel":
        """The model that a class makes of a config.

        Args:
            kind: the class.
            config: its config.
            weights: of the folder.
            example: a few tokens, to see how its layers are called.
            device: where layers are to be.

        Raises:
            FileError: the files hold other tensors than the model has.
            ArgumentError: its layers are no list that runs from first to last.
        """
        whole = build_from_config(kind, config)
        dtype = _dtype_of(config, weights)
        shell, names, cpu = build_shell(kind, config), names_in_files(whole, weights), torch.device("cpu")
        found = HollowModel(whole, shell, (), weights, names, dtype, example, cpu)
        return replace(found, layers=_find_layers(found), device=torch.device(device))

    def with_weights(self, weights: ShardedWeights) -> "HollowModel":
        """The same with tensors of other files."""
        return replace(self, weights=weights)

    def layer(self, number: int) -> nn.Module:
        """A layer with its weights, in memory of its own."""
        name = self.layers[number]
        made = copy.deepcopy(self.shell.get_submodule(name)).eval()
        files = {key: self.aliases[f"{name}.{key}"] for key in made.state_dict()}
        tensors = self.weights.tensors(set(files.values()), self.dtype)
        made.load_state_dict({key: tensors[file] for key, file in files.items()}, assign=True)
        return made.to(self.device)

    def outside(self) -> list[str]:
        """The tensors in the files that are in no layer."""
        inside = tuple(f"{name}." for name in self.layers)
        return sorted({file for name, file in self.aliases.items() if not name.startswith(inside)})

    def calls(self, batch: Batch) -> tuple[Tensor, list[Call]]:
        """What the first layer is given as its stream, and with what each layer is called besides."""
        seen: list[tuple[Tensor, Call]] = []
        last = len(self.layers) - 1

        def stub(number: int, taken: Sequence[str], stream: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if number != len(seen) or (seen and stream is not seen[0][0]):
                raise ArgumentError(f"{self.layers[number]!r} does not run on what the layer before it gave.")
            seen.append((stream, dict(zip(taken, args, strict=False)) | kwargs))
            if number == last:
                raise Enough
            return stream

        with ExitStack() as stack:
            for number, name in enumerate(self.layers):
                layer = self.shell.get_submodule(name)
                taken = [*inspect.signature(type(layer).forward).parameters][2:]
                stack.enter_context(run_instead(layer, partial(stub, number, taken)))
            self._run(batch, stack)
        return seen[0][0].detach().clone(), [call for _, call in seen]

    def answer(self, batch: Batch, stream: Tensor) -> Any:
        """What the model puts out where its last layer gives ``stream``."""
        with ExitStack() as stack:
            for name in self.layers:
                stack.enter_context(run_instead(self.shell.get_submodule(name), lambda *args, **kwargs: stream))
            return self._run(batch, stack)

    @contextmanager
    def filled(self) -> Iterator[None]:
        """While this lasts what is outside of the layers keeps the weights that it got when it ran first."""
        inside = tuple(f"{name}." for name in self.layers)
        with ExitStack() as stack:
            for name, module in self.shell.named_modules():
                if not f"{name}.".startswith(inside):
                    stack.enter_context(self._filling(name, module))
            yield

    def _run(self, batch: Batch, stack: ExitStack) -> Any:
        stack.enter_context(suppress(Enough))
        stack.enter_context(evaluating(self.shell))
        stack.enter_context(self.filled())
        return batch.feed(self.shell)

    @contextmanager
    def _filling(self, name: str, module: nn.Module) -> Iterator[None]:
        """While this lasts a module has its own parameters as soon as it runs."""
        own = {key: p for key, p in module.named_parameters(recurse=False)}
        dot = f"{name}." if name else ""

        def fill(*_: Any) -> None:
            for key, parameter in own.items():
                held = module._parameters[key]
                if held is None or not held.is_meta:
                    continue
                tensor = self.weights.read(self.aliases[dot + key], self.dtype)
                module._parameters[key] = nn.Parameter(tensor, parameter.requires_grad)

        handle = module.register_forward_pre_hook(fill) if own else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()
                module._parameters.update(own)


def read_config(folder: Path) -> tuple[Any, Any]:
    """The class and the config that a folder says, the cache switched off.

    Raises:
        FileError: the folder has no config, or transformers knows no such class.
        MissingExtraError: transformers is not installed.
    """
    transformers: Any = require_extra("transformers", "a folder that is pruned layer by layer", "transformers")
    if not (folder / CONFIG).is_file():
        raise FileError(f"{str(folder)!r} holds no {CONFIG}: give a folder that save_pretrained of transformers wrote.")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FileError(f"{str(folder / CONFIG)!r} cannot be read: {str(error).splitlines()[0]}") from error
    name = next(iter(getattr(config, "architectures", None) or ()), "")
    kind = getattr(transformers, name, None) if name else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        known = f"transformers {transformers.__version__} has no model {name!r}" if name else "it names no class"
        raise FileError(f'{str(folder / CONFIG)!r}: {known}. Say it there: "architectures": ["LlamaForCausalLM"].')
    config.use_cache = False
    return kind, config


def _dtype_of(config: Any, weights: ShardedWeights) -> torch.dtype:
    """What transformers computes in: what the config says, or else what the first tensor has."""
    said = getattr(config, "dtype", None)
    if isinstance(said, torch.dtype):
        return said
    return weights.read(next(iter(weights.files))).dtype


def names_in_files(whole: nn.Module, weights: ShardedWeights) -> dict[str, str]:
    """The name in the files of each tensor of a model's state; tied tensors are in them under one of their names."""
    state = {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    found: dict[str, str] = {}
    for names in names_of_tensors(whole).values():
        there = next((name for name in names if name in weights.files), "")
        for name in names if there else ():
            found[name] = there
    missing = [name for name in state if name not in found]
    other = [name for name in state if name in found and weights.shapes[found[name]] != state[name]]
    if missing or other:
        name = (missing or other)[0]
        said = f"has no {name!r}" if missing else f"has {name!r} as {list(weights.shapes[found[name]])}"
        raise FileError(
            f"{str(weights.folder)!r} {said}, and {type(whole).__name__} built from its config has it as "
            f"{list(state[name])} ({len(missing) + len(other)} such tensors). Where transformers changes tensors as it "
            "loads them, load the model and prune it in memory: nervure.prune."
        )
    return {name: found[name] for name in state}


def _find_layers(model: HollowModel) -> tuple[str, ...]:
    """The longest list of layers that run once each, in order, each on the tensor that the one before gave."""
    lists = [
        tuple(f"{name}.{key}" if name else key for key, _ in listed.named_children())
        for name, listed in model.shell.named_modules()
        if isinstance(listed, nn.ModuleList | nn.Sequential) and len(listed) > 1
    ]
    reasons = list[str]()
    for names in sorted(lists, key=len, reverse=True):
        tried = replace(model, layers=names)
        reason = "they share weights" if _share(model.whole, names) else _why_no_chain(tried)
        if not reason:
            return names
        reasons.append(f" {names[0].rpartition('.')[0]}: {reason}.")
    raise ArgumentError(
        f"{type(model.whole).__name__} is not a list of layers that run once each, from first to last, on the tensor "
        "that the one before gave, and share no weights: there is nothing to stream. Load the model and prune it in "
        f"memory: nervure.prune.{''.join(reasons)}"
    )


def _why_no_chain(model: HollowModel) -> str:
    """Why layers are not called in order with a stream, or a layer gives none; empty: they are."""
    try:
        stream, calls = model.calls(model.example)
        given = model.layer(0)(stream, **calls[0])
    except FileError:
        raise
    except Exception as error:  # whatever a layer that is no such layer raises
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    is_chain = isinstance(given, Tensor) and given.shape == stream.shape and len(calls) == len(model.layers)
    return "" if is_chain else "what one gives is not what the next one is given"


def _share(whole: nn.Module, layers: Sequence[str]) -> bool:
    """Whether layers share a tensor with each other or with anything else."""
    inside = tuple(f"{name}." for name in layers)
    return any(
        len(names) > 1 and any(n.startswith(inside) for n in names) for names in names_of_tensors(whole).values()
    )


def build_shell(kind: Any, config: Any) -> nn.Module:
    """What a class makes of a config, parameters on ``meta``, buffers computed."""

    def empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        return None if parameter is None else nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    again = type(config).from_dict(config.to_dict())
    hook = register_module_parameter_registration_hook(empty)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shell: nn.Module = kind(again)
    finally:
        hook.remove()
    return shell.eval()


@final
class Interned:
    """Values of calls that are equal are held once: masks and positions are those of all batches of one shape."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def call(self, call: Call) -> dict[str, Any]:
        """The same call."""
        return {name: self._value(value) for name, value in call.items()}

    def _value(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._value, value))
        if not isinstance(value, Tensor):
            return value
        value = value.detach()
        same = (t for t in self._tensors if t.shape == value.shape and t.dtype == value.dtype and torch.equal(t, value))
        known = next(same, None)
        if known is None:
            known = value.clone()
            self._tensors.append(known)
        return known
