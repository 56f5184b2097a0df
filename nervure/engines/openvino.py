"""OpenVINO on the CPU."""

from typing import Any

import torch
from torch import nn

from nervure.core.extras import require_extra
from nervure.core.inputs import Inputs
from nervure.engines.engine import BF16, FLOAT32, Engine, Program, Runner
from nervure.engines.exported import Exported, export_graph, exporter_error, reason, tell_misfits
from nervure.engines.quiet import quiet
from nervure.engines.signal_stack import keep_signal_stack
from nervure.errors import EngineError

EXTRA = "openvino"
# Told in every case: left alone, OpenVINO computes in bf16 on processors that have it.
HINTS = {FLOAT32: "f32", BF16: "bf16"}


def to_openvino(graph: Exported) -> Any:
    """The OpenVINO model of an exported module, whose axes are as long as they were, but for that of the samples.

    Raises:
        MissingExtraError: openvino is not installed.
        EngineError: an operator of the module has no form in OpenVINO.
    """
    library = require_extra("openvino", "export to OpenVINO", EXTRA)
    try:
        with quiet():
            model = _convert(library, graph)
            shown = [entry.meta["val"].shape for entry in graph.placeholders()]
            model.reshape(
                {
                    place: library.PartialShape([-1 if isinstance(size, torch.SymInt) else size for size in shape])
                    for place, shape in zip(model.inputs, shown, strict=True)
                }
            )
    except Exception as error:
        raise exporter_error("the module cannot be written for OpenVINO", graph, error) from error
    return model


def _convert(library: Any, graph: Exported) -> Any:
    try:
        return library.convert_model(graph.program)
    except Exception as error:
        try:
            # Taken apart there are fewer kinds of operators, and none that writes to its input.
            return library.convert_model(graph.program.run_decompositions())
        except Exception:
            raise error from None


def compiled_runner(model: Any, graph: Exported, threads: int, precision: str = FLOAT32) -> Runner:
    """Run an OpenVINO model, given as such or as the path of its ``.xml``, with so many threads on the CPU.

    Raises:
        MissingExtraError: openvino is not installed.
        EngineError: OpenVINO does not take the model.
    """
    library = require_extra("openvino", "the engine 'openvino'", EXTRA)
    options = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        with keep_signal_stack():
            request = library.Core().compile_model(model, "CPU", options).create_infer_request()
    except Exception as error:
        raise EngineError(f"OpenVINO does not take the model: {reason(error)}.") from error

    def run(inputs: Any) -> Any:
        found = request.infer([tensor.numpy() for tensor in graph.tensors(inputs)], share_inputs=True)
        return graph.structure.fill([torch.from_numpy(found[i]) for i in range(len(found))])

    return tell_misfits("OpenVINO", graph, run)


def _prepare(model: nn.Module, example: Any, precision: str) -> Program:
    graph = export_graph(model, Inputs.of(example), dynamic=None)
    written = to_openvino(graph)
    return Program(lambda threads: compiled_runner(written, graph, threads, precision), graph.fixed)


OPENVINO = Engine("openvino", _prepare, tuple(HINTS), ("openvino",), EXTRA)
