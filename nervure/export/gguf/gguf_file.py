"""A GGUF file: written tensor by tensor, read back and compared."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from nervure.core.extras import require_extra
from nervure.engines.engine import BF16, FLOAT32
from nervure.errors import EngineError, VerificationError
from nervure.export.gguf.decoder import Decoder
from nervure.export.gguf.vocabulary import put, write_vocabulary

LIBRARY, EXTRA = "gguf", "gguf"
PRECISIONS: Mapping[str, tuple[str, str]] = {
    FLOAT32: ("F32", "ALL_F32"),
    "float16": ("F16", "MOSTLY_F16"),
    BF16: ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}
"""Precision -> type of matrices in the file, and what the file calls itself. Vectors are always in float32."""
BLOCK = 32
"""Numbers that share a scale in Q8_0."""
ROUNDING: Mapping[str, float] = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8, "Q8_0": 0.51 / 127 + 2.0**-11}
"""Largest error of a number: as a share of itself, or of the largest of its block."""
LARGEST: Mapping[str, float] = {"F16": 65504.0, "Q8_0": 127 * 65504.0}
"""Largest number that a type can say; the scales of Q8_0 are in float16."""
SMALLEST = 2.0**-24
"""The step of the smallest numbers of float16."""


def write_gguf(decoder: Decoder, path: Path, precision: str) -> None:
    """Write a decoder, one tensor in memory at a time.

    Raises:
        ArgumentError: the tokenizer is missing or not of this model.
        EngineError: the precision does not hold the tensors; the message says which does.
    """
    gguf = require_gguf()
    shapes = {name: make().shape for name, make in decoder.tensors.items()}
    _require_blocks(decoder, precision)
    writer = gguf.GGUFWriter(path, decoder.family.name)
    try:
        writer.add_file_type(getattr(gguf.LlamaFileType, PRECISIONS[precision][1]))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, value in decoder.settings.items():
            put(writer, f"{decoder.family.name}.{key}", value)
        write_vocabulary(writer, decoder.tokenizer, decoder.vocabulary)
        for name, shape in shapes.items():
            _announce(writer, name, tuple(shape), precision)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, make in decoder.tensors.items():
            kind = _type_of(shapes[name], precision)
            numbers = _require_range(make(), name, kind.name).contiguous().numpy()
            writer.write_tensor_data(gguf.quants.quantize(numbers, kind))
    finally:
        writer.close()


def require_gguf() -> Any:
    """The library; MissingExtraError where it is not installed."""
    return require_extra(LIBRARY, "GGUF", EXTRA)


@final
class GgufReader:
    """A GGUF file: what it says (``settings``), and its tensors by name in float32."""

    def __init__(self, path: Path) -> None:
        self._gguf = require_gguf()
        reader = self._gguf.GGUFReader(path)
        self.settings: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.types: dict[str, str] = {name: tensor.tensor_type.name for name, tensor in self._tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """A tensor in float32; KeyError where there is none."""
        found = self._tensors[name]
        numbers = self._gguf.quants.dequantize(found.data, found.tensor_type)
        return torch.from_numpy(numbers.copy()).reshape(*reversed(found.shape.tolist()))


def compare_tensors(decoder: Decoder, file: GgufReader) -> None:
    """Raise VerificationError where the file holds other tensors than the decoder, beyond its rounding."""
    if file.types.keys() != decoder.tensors.keys():
        name = min(file.types.keys() ^ decoder.tensors.keys())
        raise VerificationError(f"tensor {name!r} is in the {'file' if name in file.types else 'model'} only.")
    for name, make in decoder.tensors.items():
        expected, found = make(), file.tensor(name)
        if found.shape != expected.shape:
            raise VerificationError(f"{name} has shape {tuple(found.shape)}, the model's is {tuple(expected.shape)}.")
        kind = file.types[name]
        scale = expected.abs()
        if kind == "Q8_0":
            scale = scale.unflatten(-1, (-1, BLOCK)).amax(-1).repeat_interleave(BLOCK, -1)
        allowed = ROUNDING[kind] * scale + (SMALLEST if kind in ("F16", "Q8_0") else 0.0)
        if bool(((found - expected).abs() > allowed).any()):
            raise VerificationError(f"{name} differs from the model's by {float((found - expected).abs().max()):.3g}.")


def _require_range(tensor: Tensor, name: str, kind: str) -> Tensor:
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    if largest > LARGEST.get(kind, math.inf):
        raise EngineError(
            f"{name} holds {largest:.4g}, more than {kind} can say. Take precision='bf16' or precision='float32'."
        )
    return tensor


def _type_of(shape: Any, precision: str) -> Any:
    """The type of a tensor: vectors and rows that do not fall into blocks are not quantised."""
    types = require_gguf().GGMLQuantizationType
    if len(shape) == 1:
        return types.F32
    kind = PRECISIONS[precision][0]
    return types.F16 if kind == "Q8_0" and shape[-1] % BLOCK else types[kind]


def _announce(writer: Any, name: str, shape: tuple[int, ...], precision: str) -> None:
    import numpy as np

    kind = _type_of(shape, precision)
    types = require_gguf().GGMLQuantizationType
    if kind in (types.F32, types.F16):
        dtype = np.dtype(np.float32 if kind == types.F32 else np.float16)
    else:
        dtype, shape = np.dtype(np.uint8), require_gguf().quants.quant_shape_to_byte_shape(shape, kind)
    writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize, raw_dtype=kind)


def _require_blocks(decoder: Decoder, precision: str) -> None:
    width = decoder.settings["embedding_length"]
    assert isinstance(width, int)
    if precision == "q8_0" and width % BLOCK:
        raise EngineError(
            f"embeddings are {width} wide, and precision='q8_0' takes rows in blocks of {BLOCK}. Take "
            f"precision='float16', or let {width - width % BLOCK} of the embedding stay."
        )
