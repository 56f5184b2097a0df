"""Optional dependencies: imported where they are used, with an error that says what to install."""

import importlib
from collections.abc import Mapping
from types import ModuleType

from nervure.errors import MissingExtraError

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "data": ("scikit-learn>=1.4", "pillow>=10"),
    "lightning": ("lightning>=2.4",),
    "transformers": ("transformers>=4.45", "accelerate>=1.1"),
    "timm": ("timm>=1.0",),
    "torchvision": ("torchvision>=0.21",),
    "connectivity": ("scipy>=1.11",),
    "metrics": ("torchmetrics>=1.6",),
    "detection": ("torchmetrics[detection]>=1.6",),
    "ray": ("ray>=2.40",),
    "pdf": ("svglib>=2.0.2", "reportlab>=4.4.3"),
    "tensorboard": ("tensorboard>=2.15",),
    "wandb": ("wandb>=0.17",),
    "mlflow": ("mlflow-skinny>=3.0",),
    "onnx": ("onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"),
    "openvino": ("openvino>=2025.0",),
    "executorch": ("executorch>=1.0",),
    "gguf": ("gguf>=0.10",),
}
"""What each extra of ``pyproject.toml`` brings, for errors that can be followed without a clone of nervure."""


def require_extra(module: str, what: str, extra: str) -> ModuleType:
    """Import an optional ``module``, or raise :class:`MissingExtraError` with what brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_extra(f"{what} needs {module.partition('.')[0]}, which is not installed", extra) from error


def missing_extra(fact: str, extra: str) -> MissingExtraError:
    """The error that says a fact, and the commands that mend it: by its packages, and by the extra in a clone."""
    packages = " ".join(f"'{name}'" for name in EXTRAS[extra])
    return MissingExtraError(f"{fact}. Run: pip install {packages}; in a clone of nervure: pip install '.[{extra}]'")
