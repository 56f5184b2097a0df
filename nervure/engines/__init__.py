"""What runs networks: PyTorch as it is and compiled, ONNX Runtime, OpenVINO."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from torch import nn

from nervure.core.annotations import Among
from nervure.core.check import checked, nearest, require_choice, show_value
from nervure.core.extras import require_extra
from nervure.core.schema import Threads
from nervure.engines.eager import COMPILED, EAGER
from nervure.engines.engine import FLOAT32, Engine, Program, Runner
from nervure.engines.onnxruntime import ONNXRUNTIME
from nervure.engines.openvino import OPENVINO
from nervure.errors import ArgumentError

ENGINES: Mapping[str, Engine] = {engine.name: engine for engine in (EAGER, COMPILED, ONNXRUNTIME, OPENVINO)}
EngineName: TypeAlias = Annotated[str, Among(ENGINES)]


@checked
def require_engine(name: str, precision: str = FLOAT32) -> Engine:
    """The engine called ``name``, if it can be used here: ask before long work.

    Raises:
        ArgumentError: there is no such engine, or it does not compute in this precision.
        MissingExtraError: its library is not installed.
    """
    if name not in ENGINES:
        raise ArgumentError(
            f"engine={show_value(name)} is not one of {', '.join(map(repr, ENGINES))}.{nearest(name, ENGINES)}"
        )
    engine = ENGINES[name]
    require_choice(precision, engine.precisions, f"precision of the engine {name!r}")
    for library in engine.libraries:
        require_extra(library, f"the engine {name!r}", engine.extra)
    return engine


@checked
def prepare(engine: str, model: nn.Module, example: Any, *, precision: str = FLOAT32) -> Program:
    """Make ``model`` ready for an engine: all slow work that does not depend on the number of threads.

    Returns:
        What gives a runner with so many threads, see :func:`runner`.

    Raises:
        ArgumentError: the engine or the precision is unknown, or the model is in training mode.
        MissingExtraError: the library of the engine is not installed.
        EngineError: the engine cannot take the model.
    """
    found = require_engine(engine, precision)
    if model.training:
        raise ArgumentError(f"{type(model).__name__} is in training mode; engines run models: call model.eval() first.")
    return found.prepare(model, example, precision)


@checked
def runner(engine: str, model: nn.Module, example: Any, *, threads: Threads = 1, precision: str = FLOAT32) -> Runner:
    """Make ``model`` a function that an engine runs.

    Args:
        engine: ``"eager"``, ``"compile"`` (torch.compile), ``"onnxruntime"`` or ``"openvino"``. The first two run
            where the model is, and see later changes of its weights; the others on the CPU, on weights as they are now.
        model: a module in evaluation mode.
        example: see :class:`nervure.Inputs`. The runner takes any number of samples, where the model does.
        threads: CPU threads.
        precision: what is computed in: ``"float32"`` (as the model has it), ``"bf16"`` (mixed, where the engine
            finds it safe).

    Returns:
        A function of inputs like the example, giving what the module gives, in its structure.

    Raises:
        ArgumentError: the engine or the precision is unknown, or the model is in training mode.
        MissingExtraError: the library of the engine is not installed; the message names the extra.
        EngineError: the engine cannot take the model.
    """
    return prepare(engine, model, example, precision=precision).runner(threads)


__all__ = ["ENGINES", "Engine", "Program", "Runner", "prepare", "require_engine", "runner"]
