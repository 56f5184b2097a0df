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
    """No warnings, and no log below an error, inside the block; whatever libraries do to the root logger is undone."""
    root = logging.getLogger()
    # OpenVINO keeps the level, the filters and the handler that it gives the root logger where it takes no model.
    filters, handlers = list(root.filters), list(root.handlers)
    levels = [(logger, logger.level) for logger in (root, *map(logging.getLogger, TALKATIVE))]
    for logger, _ in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
        root.filters, root.handlers = filters, handlers
