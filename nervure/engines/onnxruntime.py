"""ONNX Runtime on the CPU, and the ONNX model that it runs."""

import copy
from typing import Any

import torch
from torch import nn

from nervure.core.extras import require_extra
from nervure.core.inputs import Inputs
from nervure.engines.engine import FLOAT32, Engine, Program, Runner
from nervure.engines.exported import Exported, export_graph, exporter_error, reason, tell_misfits
from nervure.engines.quiet import quiet
from nervure.errors import EngineError

EXTRA = "onnx"
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


def to_onnx(graph: Exported) -> Any:
    """The ONNX model (a ``ModelProto``, newest operator set that torch writes) of an exported module.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        EngineError: an operator of the module has no form in ONNX.
    """
    for library in LIBRARIES[:2]:
        require_extra(library, "export to ONNX", EXTRA)
    try:
        with quiet():
            # A copy, since the exporter decomposes the operators in place.
            written = torch.onnx.export(copy.deepcopy(graph.program), dynamo=True, verbose=False)
            assert written is not None
            return written.model_proto
    except Exception as error:
        raise exporter_error("the module cannot be written as ONNX", graph, error) from error


def session_runner(model: bytes | str, graph: Exported, threads: int) -> Runner:
    """Run an ONNX model, given as bytes or as a path, with so many threads on the CPU.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        EngineError: ONNX Runtime does not take the model.
    """
    library = require_extra("onnxruntime", "the engine 'onnxruntime'", EXTRA)
    options = library.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Threads that wait in a circle take the processor from whatever runs next, such as another model being timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = library.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"ONNX Runtime does not take the model: {reason(error)}.") from error
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Any) -> Any:
        given = dict(zip(names, (tensor.numpy() for tensor in graph.tensors(inputs)), strict=True))
        return graph.structure.fill([torch.from_numpy(found) for found in session.run(None, given)])

    return tell_misfits("ONNX Runtime", graph, run)


def _prepare(model: nn.Module, example: Any, precision: str) -> Program:
    graph = export_graph(model, Inputs.of(example), dynamic=None)
    written = to_onnx(graph).SerializeToString()
    return Program(lambda threads: session_runner(written, graph, threads), graph.fixed)


ONNXRUNTIME = Engine("onnxruntime", _prepare, (FLOAT32,), LIBRARIES, EXTRA)
