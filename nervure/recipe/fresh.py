"""Run as ``python -m nervure.recipe.fresh FOLDER``: load the saved model and compare it with what it computed.

Which network it is comes as JSON on standard input, from the run that knows it: what the folder says names no code.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from nervure.core.container import read_container
from nervure.errors import FileError
from nervure.export import load
from nervure.recipe.making import PROBE, ModelSource


def difference(folder: Path, source: ModelSource) -> float:
    """Largest difference between the outputs of the saved model and those noted, relative to the largest noted.

    Args:
        folder: a run's folder, with ``model.safetensors`` and ``probe.safetensors``.
        source: what builds the network before pruning.

    Raises:
        FileError: the model or what it computed cannot be read.
    """
    # Another seed than the run's: nothing may be left of the weights that the constructor draws.
    model = load(folder / "model.safetensors", lambda: source.build(seed=987_654_321)).model.eval()
    _, probe = read_container(folder / "probe.safetensors", dict[str, Any], PROBE)
    if probe.keys() != {"inputs", "outputs"}:
        raise FileError(f"{str(folder / 'probe.safetensors')!r} holds {sorted(probe)}, not inputs and outputs.")
    with torch.no_grad():
        outputs = model(probe["inputs"])
    scale = float(probe["outputs"].abs().max().clamp_min(1e-12))
    return float((outputs - probe["outputs"]).abs().max()) / scale


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True, warn_only=True)
    print(json.dumps({"error": difference(Path(sys.argv[1]), ModelSource(**json.load(sys.stdin)))}))
