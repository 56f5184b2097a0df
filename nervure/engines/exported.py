"""A module as a graph of operators, by ``torch.export``: what the other engines and file formats begin with."""

import inspect
import re
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves, tree_map

from nervure.core.inputs import Inputs
from nervure.core.tensors import tensors_in
from nervure.engines.engine import Runner, Structure
from nervure.engines.quiet import quiet
from nervure.errors import EngineError, ForwardError, NervureError
from nervure.graph.copies import copy_model
from nervure.graph.models import evaluating
from nervure.graph.preserve import restore_after

TRACED_SAMPLES = 3
"""torch.export takes an axis of one for always one, and this many is seldom also another size."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """A module as a graph of operators on the CPU.

    Attributes:
        program: the graph.
        structure: of what the module returns.
        positional: how many tensors are given by position, before the others.
        names: of the keyword arguments, in the order of the graph.
        dynamic: whether any number of samples can be run; else only as many as ``samples``.
        samples: the number of samples it was traced with.
    """

    program: ExportedProgram
    structure: Structure
    positional: int
    names: tuple[str, ...]
    dynamic: bool
    samples: int

    @property
    def fixed(self) -> int | None:
        """The only number of samples that can be run; None: any."""
        return None if self.dynamic else self.samples

    def tensors(self, inputs: Any) -> list[Tensor]:
        """The tensors among ``inputs`` in the order in which the graph takes them."""
        given = Inputs.of(inputs)
        ordered = [*given.args, *(given.kwargs[name] for name in self.names if name in given.kwargs)]
        return [leaf.detach().cpu().contiguous() for leaf in tree_leaves(ordered) if isinstance(leaf, Tensor)]

    def describe(self, inputs: Any) -> str:
        """What inputs it was exported for, and what to do about these others."""
        made = [entry.meta["val"] for entry in self.placeholders()]
        told = ", ".join(f"({', '.join(map(_size, x.shape))}) {str(x.dtype).removeprefix('torch.')}" for x in made)
        given = [(x.dtype, x.shape[1:]) for x in self.tensors(inputs)]
        if self.dynamic and given == [(x.dtype, x.shape[1:]) for x in made]:
            return f"It was exported for {told}; export it for this number of samples alone: dynamic=False."
        return f"It was exported for {told}. Give such inputs, or export it with an example like these."

    def placeholders(self) -> list[torch.fx.Node]:
        """The places of the graph where tensors of the user enter, in order."""
        inputs = {s.arg.name for s in self.program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT}
        nodes = (node for node in self.program.graph.nodes if node.op == "placeholder" and node.name in inputs)
        return [node for node in nodes if isinstance(node.meta.get("val"), Tensor)]


def export_graph(model: nn.Module, inputs: Inputs, *, dynamic: bool | None = None) -> Exported:
    """The graph of ``model`` in evaluation mode; the model is left as it is.

    Args:
        model: any module; one on another device is copied to the CPU.
        inputs: of the module; their first axis is that of the samples.
        dynamic: True: for any number of samples; False: for as many as the inputs have; None: for any number where the
            model allows it.

    Raises:
        EngineError: ``torch.export`` cannot read the model, or cannot leave the number of samples open as asked.
    """
    if dynamic is False:
        return _export_graph(model, inputs, False)
    try:
        found = _export_graph(model, inputs, True)
    except (EngineError, ForwardError) as error:
        # What cannot be read for a fixed number either has another reason, and that is what is raised then.
        fixed = _export_graph(model, inputs, False)
        if dynamic:
            raise EngineError(
                f"{type(model).__name__} cannot be exported for any number of samples, but it can for {fixed.samples} "
                f"as in the example: give dynamic=False. ({reason(error)}.)"
            ) from error
        return fixed
    if found.dynamic:
        return found
    if dynamic:
        raise EngineError(
            f"{type(model).__name__} does not leave the number of samples open: its graph is for {found.samples}. "
            "Look for sizes written as numbers in its forward, or export it for a fixed number (dynamic=False)."
        )
    return _export_graph(model, inputs, False)


def _export_graph(model: nn.Module, inputs: Inputs, dynamic: bool) -> Exported:
    model, inputs = _on_cpu(model), inputs.to(torch.device("cpu"))
    shown = _in_order(model, inputs.resize(TRACED_SAMPLES) if dynamic else inputs)
    args, kwargs = shown.args, dict(shown.kwargs)
    structure = Structure.of(model, shown)
    try:
        with restore_after(model, shown), evaluating(model), quiet():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=_shapes(model, shown, dynamic))
    except Exception as error:
        raise EngineError(f"torch.export cannot read {type(model).__name__}: {_explain(error)}.") from error
    found = Exported(program, structure, len(tensors_in(args)), tuple(kwargs), False, shown.samples)
    # A model that fixes the number of samples makes it a plain number.
    free = any(isinstance(size, torch.SymInt) for node in found.placeholders() for size in node.meta["val"].shape[:1])
    return replace(found, dynamic=free)


def _on_cpu(model: nn.Module) -> nn.Module:
    away = any(t.device.type != "cpu" for t in (*model.parameters(), *model.buffers()))
    return copy_model(model).cpu() if away else model


def _in_order(model: nn.Module, inputs: Inputs) -> Inputs:
    """Keyword arguments in the order of the signature, which is that of the graph."""
    order = [*inspect.signature(model.forward).parameters, *inputs.kwargs]
    return Inputs(inputs.args, {name: inputs.kwargs[name] for name in order if name in inputs.kwargs})


def _size(size: Any) -> str:
    return "any" if isinstance(size, torch.SymInt) else str(size)


def _shapes(model: nn.Module, inputs: Inputs, dynamic: bool) -> Any:
    """Which axes may vary: the first of every tensor that has as many samples as the first tensor."""
    samples = inputs.samples

    def free(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        return {0: Dim.AUTO} if dynamic and leaf.ndim and leaf.shape[0] == samples else {}

    if inputs.args and inputs.kwargs:
        return tree_map(free, inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs).arguments)
    return tree_map(free, inputs.args or inputs.kwargs)


def _explain(error: Exception) -> str:
    """What ``torch.export`` complains about, and what to do where that is known."""
    text = f"{type(error).__name__}: {error}"
    if "Cache" in text and "not a known type" in text:
        return (
            "it returns a cache for the next call, which no file holds. Set model.config.use_cache = False, or add "
            "use_cache=False to the example"
        )
    if "DataDependent" in text:
        return (
            "its forward branches on numbers that are not known before it runs. Write that with torch.where, or leave "
            f"the branch out. ({reason(error)})"
        )
    return reason(error)


def tell_misfits(engine: str, graph: Exported, run: Runner) -> Runner:
    """The runner, whose errors say what was given to it and what it takes."""

    def run_told(inputs: Any) -> Any:
        try:
            return run(inputs)
        except NervureError:
            raise
        except Exception as error:
            raise EngineError(
                f"{engine} cannot run the module on {Inputs.of(inputs)}: {reason(error)}. {graph.describe(inputs)}"
            ) from error

    return run_told


def lacking(graph: Exported, error: BaseException) -> str:
    """Which operator of which layer an error of an exporter is about; empty where it names none of the graph."""
    text = f"{error} {error.__cause__ or ''}"
    inner = set(re.findall(r"prims[.:]+(\w+)", text))
    for node in graph.program.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        space, _, name = node.target._schema.name.partition("::")
        named = re.search(rf"\b{space}(\.|::){name}\b", text)
        # Exporters take some operators apart, and tell of the part: special_bessel_j0 is bessel_j0 then.
        if named or any(name.endswith(part) for part in inner):
            return f"it lacks the operator {space}.{name} of {_layer_of(node)}"
    return ""


def _layer_of(node: torch.fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else kind.__name__
    return f"layer {path!r} ({kind.rpartition('.')[2]})" if path else "the module itself"


def exporter_error(what: str, graph: Exported, error: Exception) -> EngineError:
    """The error of an exporter in our words: the operator and the layer where it names them, else its first lines."""
    return EngineError(f"{what}: {lacking(graph, error) or reason(error)}.")


def reason(error: Exception) -> str:
    """The first lines of an error, or of what it comes from."""
    told = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(told[:3]).rstrip('.') or 'no reason given'}"
