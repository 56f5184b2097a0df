"""Compilers and exporters talk of their own internals; this keeps it from those who cannot change them."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

TALKATIVE = (
    "torch.onnx",
    "torch.export",
    "torch.onnx._internal.exporter._registration",
    "onnxscript",
    "onnx_ir",
)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, and no log below an error, inside the block."""
    levels = [(logger, logger.level) for logger in map(logging.getLogger, TALKATIVE)]
    for logger, _ in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
