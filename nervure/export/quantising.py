"""Networks in whole numbers of eight bits, by the static quantiser of ONNX Runtime."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nervure.engines.exported import Exported, exporter_error
from nervure.engines.quiet import quiet

INT8 = "int8"


def write_quantised(model: Any, graph: Exported, path: Path, calibration: Sequence[Any]) -> None:
    """Write ``model`` (a ``ModelProto``) to ``path`` in eight bits: weights per channel, activations per tensor.

    The ranges of the activations are the smallest and largest values met on the inputs in ``calibration``. What is
    computed in eight bits stands between a pair of QuantizeLinear and DequantizeLinear, which engines fuse.

    Raises:
        EngineError: the quantiser does not take the model.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    names = [entry.name for entry in model.graph.input]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = _feeds(names, graph, calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    try:
        # It advises to run passes that the exporter has run already.
        with tempfile.TemporaryDirectory() as folder, quiet():
            whole = str(Path(folder) / "model.onnx")
            onnx.save(model, whole)
            quantize_static(
                whole,
                str(path),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    except Exception as error:
        raise exporter_error("the quantiser of ONNX Runtime does not take the model", graph, error) from error


def _feeds(names: Sequence[str], graph: Exported, calibration: Sequence[Any]) -> Iterator[dict[str, np.ndarray]]:
    for inputs in calibration:
        yield dict(zip(names, (tensor.numpy() for tensor in graph.tensors(inputs)), strict=True))
