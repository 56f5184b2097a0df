"""The file formats: how each is written and read back, what it needs, what it can be computed in."""

import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nervure.core.extras import require_extra
from nervure.core.inputs import Inputs
from nervure.engines.engine import BF16, FLOAT32, Runner
from nervure.engines.exported import Exported, tell_misfits
from nervure.engines.onnxruntime import LIBRARIES as ONNX_LIBRARIES
from nervure.engines.onnxruntime import session_runner, to_onnx
from nervure.engines.openvino import compiled_runner, to_openvino
from nervure.engines.quiet import quiet
from nervure.export.gguf import PRECISIONS as GGUF_PRECISIONS
from nervure.export.gguf import Decoder, FileDecoder, GgufReader, write_gguf
from nervure.export.quantising import INT8, write_quantised
from nervure.graph.copies import copy_model

LARGEST_MESSAGE = 2**31 - 2**20
"""A protocol buffer holds less than 2 GiB; weights beyond that go to a file of their own beside it."""

Extra = tuple[tuple[str, ...], str]
ONNX: Extra = (ONNX_LIBRARIES, "onnx")
OPENVINO: Extra = (("openvino",), "openvino")
EXECUTORCH: Extra = (("executorch",), "executorch")
GGUF: Extra = (("gguf",), "gguf")


@final
@dataclass(frozen=True, slots=True)
class Format:
    """A file format.

    Attributes:
        name: what users call it.
        suffix: of its file.
        write: writes a graph to a path in a precision, with batches to calibrate on.
        read: gives a runner of the file at a path, written in that precision, on one thread.
        needs: for each precision it is written in, the libraries and the extras that bring them.
        beside: names of the files that stand beside it, made of its ``{name}`` or its ``{stem}``.
        dynamic: whether it is for any number of samples.
        decoders: whether it is for decoders only: ``write`` and ``read`` get a :class:`nervure.export.gguf.Decoder`,
            not a traced network.
        usage: the lines of Python that run it, with the name of the file as ``{name}``.
    """

    name: str
    suffix: str
    write: Callable[[Any, Path, str, Sequence[Any]], None]
    read: Callable[[Path, Any, str], Runner]
    needs: Mapping[str, tuple[Extra, ...]]
    usage: str
    beside: tuple[str, ...] = ()
    dynamic: bool = True
    decoders: bool = False

    def files(self, path: Path) -> tuple[Path, ...]:
        """The files that make up an export to ``path``, those that may be missing included."""
        return (path, *(path.with_name(name.format(name=path.name, stem=path.stem)) for name in self.beside))

    def libraries(self, precision: str) -> tuple[str, ...]:
        """The libraries that this precision needs."""
        return tuple(library for libraries, _ in self.needs[precision] for library in libraries)

    def require(self, precision: str) -> None:
        """Raise MissingExtraError where a library for this precision is not installed."""
        for libraries, extra in self.needs[precision]:
            for library in libraries:
                require_extra(library, f"export to {self.name!r} in {precision}", extra)


def _write_onnx(graph: Exported, path: Path, precision: str, calibration: Sequence[Any]) -> None:
    model = to_onnx(graph)
    _forget_places(model)
    if precision == INT8:
        write_quantised(model, graph, path, calibration)
        return
    import onnx

    apart = model.ByteSize() > LARGEST_MESSAGE
    onnx.save(model, str(path), save_as_external_data=apart, location=f"{path.name}.data" if apart else None)


def _forget_places(model: Any) -> None:
    """Leave out the lines and folders of the source that the exporter notes; what names the layers stays."""
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        scopes = [entry for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"]
        del node.metadata_props[:]
        node.metadata_props.extend(scopes)


def _read_onnx(path: Path, graph: Exported, precision: str) -> Runner:
    return session_runner(str(path), graph, 1)


def _write_openvino(graph: Exported, path: Path, precision: str, calibration: Sequence[Any]) -> None:
    import openvino

    if precision == INT8:
        with tempfile.TemporaryDirectory() as folder:
            between = Path(folder) / "model.onnx"
            _write_onnx(graph, between, precision, calibration)
            with quiet():
                model = openvino.convert_model(str(between))
    else:
        model = to_openvino(graph)
    # Told in every case: left alone, OpenVINO rounds the weights to half precision.
    openvino.save_model(model, str(path), compress_to_fp16=False)


def _read_openvino(path: Path, graph: Exported, precision: str) -> Runner:
    return compiled_runner(str(path), graph, 1, BF16 if precision == BF16 else FLOAT32)


def _write_torch(graph: Exported, path: Path, precision: str, calibration: Sequence[Any]) -> None:
    program = graph.program
    for node in program.graph.nodes:
        # The lines and folders of the source.
        node.meta.pop("stack_trace", None)
    # What it was traced on would go into the file.
    program.example_inputs = None
    content = io.BytesIO()
    with quiet():
        torch.export.save(program, content)
    # Not by the library itself: on a full disk it ends the whole process.
    path.write_bytes(content.getbuffer())


def _read_torch(path: Path, graph: Exported, precision: str) -> Runner:
    with quiet():
        module = torch.export.load(str(path)).module()

    def run(inputs: Any) -> Any:
        with torch.no_grad():
            return Inputs.of(inputs).to(torch.device("cpu")).call(module)

    return tell_misfits("the torch file", graph, run)


def _write_executorch(graph: Exported, path: Path, precision: str, calibration: Sequence[Any]) -> None:
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(graph.program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)


def _read_executorch(path: Path, graph: Exported, precision: str) -> Runner:
    with quiet():
        from executorch.runtime import Runtime

        method = Runtime.get().load_program(str(path)).load_method("forward")

    def run(inputs: Any) -> Any:
        # The outputs lie in memory that the next run writes to.
        return graph.structure.fill([tensor.clone() for tensor in method.execute(graph.tensors(inputs))])

    return tell_misfits("ExecuTorch", graph, run)


def _write_gguf(decoder: Decoder, path: Path, precision: str, calibration: Sequence[Any]) -> None:
    write_gguf(decoder, path, precision)


def _read_gguf(path: Path, decoder: Decoder, precision: str) -> Runner:
    file = GgufReader(path)
    return FileDecoder(file.settings, file.tensor)


def in_bf16(model: nn.Module) -> nn.Module:
    """A copy whose weights and computation are in bf16; it takes and returns float32 as before."""
    lower = copy_model(model).to(torch.bfloat16)
    lower.register_forward_pre_hook(lambda module, args, kwargs: tree_map(_lower, (args, kwargs)), with_kwargs=True)
    lower.register_forward_hook(lambda module, args, output: tree_map(_higher, output))
    return lower


def _lower(x: Any) -> Any:
    return x.to(torch.bfloat16) if isinstance(x, Tensor) and x.dtype == torch.float32 else x


def _higher(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x


FORMATS: Mapping[str, Format] = {
    form.name: form
    for form in (
        Format(
            "onnx",
            ".onnx",
            _write_onnx,
            _read_onnx,
            {FLOAT32: (ONNX,), INT8: (ONNX,)},
            "import onnxruntime\n"
            'session = onnxruntime.InferenceSession("{name}", providers=["CPUExecutionProvider"])\n'
            "outputs = session.run(None, {{{inputs}}})  # arrays of numpy",
            beside=("{name}.data",),
        ),
        Format(
            "openvino",
            ".xml",
            _write_openvino,
            _read_openvino,
            {FLOAT32: (OPENVINO,), BF16: (OPENVINO,), INT8: (OPENVINO, ONNX)},
            "import openvino\n"
            'model = openvino.compile_model("{name}", "CPU", {{"INFERENCE_PRECISION_HINT": "{hint}"}})\n'
            "outputs = model({{{inputs}}})  # arrays of numpy",
            beside=("{stem}.bin",),
        ),
        Format(
            "torch",
            ".pt2",
            _write_torch,
            _read_torch,
            {FLOAT32: (), BF16: ()},
            'import torch\nmodel = torch.export.load("{name}").module()\noutputs = model({arguments})',
        ),
        Format(
            "executorch",
            ".pte",
            _write_executorch,
            _read_executorch,
            {FLOAT32: (EXECUTORCH,)},
            "from executorch.runtime import Runtime\n"
            'method = Runtime.get().load_program("{name}").load_method("forward")\n'
            "outputs = method.execute([{values}])",
            dynamic=False,
        ),
        Format(
            "gguf",
            ".gguf",
            _write_gguf,
            _read_gguf,
            dict.fromkeys(GGUF_PRECISIONS, (GGUF,)),
            "from llama_cpp import Llama  # or: llama-cli -m {name}\n"
            'print(Llama("{name}")("Once upon a time", max_tokens=32)["choices"][0]["text"])',
            decoders=True,
        ),
    )
}
