"""Unpickle plain arrays and containers, nothing else.

The official Python version of CIFAR is pickled, and unpickling may run any code a file names. This reader admits numpy
array reconstruction and the containers built into the format (dict, list, tuple, str, bytes, numbers); a file that
names anything else is refused before that thing is imported. nervure itself never writes a pickle.
"""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nervure.errors import DataError


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not admitted")
    return text.encode("latin1")


_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
# numpy moved its core; files written before and after name the same function differently.
ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that knows the names in ``ADMITTED`` and no other."""

    def find_class(self, module: str, name: str) -> Any:
        """The admitted object of that name, else ``UnpicklingError``."""
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a file of arrays has no use for")
        return ADMITTED[module, name]


def unpickle_arrays(content: bytes, path: Path) -> dict[bytes, Any]:
    """The dictionary pickled in ``content``, its Python 2 strings as bytes.

    Raises:
        DataError: the file names anything but arrays and containers, is damaged, or holds no dictionary.
    """
    try:
        value = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    # A damaged pickle can fail in any of its building steps, each with its own error.
    except Exception as error:
        raise DataError(f"{str(path)!r} is refused as a pickled batch: {error}.") from error
    if not isinstance(value, dict):
        raise DataError(f"{str(path)!r} holds a {type(value).__name__}, not the dictionary of a pickled batch.")
    return {key.encode() if isinstance(key, str) else key: item for key, item in value.items()}
