"""Optional dependencies: imported where they are used, with an error that names the extra that brings them."""

import importlib
from types import ModuleType

from nervure.errors import MissingExtraError


def require_extra(module: str, what: str, extra: str) -> ModuleType:
    """Import an optional ``module``, or raise :class:`MissingExtraError` naming the ``extra`` that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs {module.partition('.')[0]}, which is not installed. Run: pip install 'nervure[{extra}]'"
        ) from error
