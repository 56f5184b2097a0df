"""Run as ``python -m nervure.recipe.fresh FOLDER``: load the saved model and compare it with what it computed.

Which network it is comes as JSON on standard input, from the run that knows it: what the folder says names no code.
"""

import json
import sys
from pathlib import Path

import torch

from nervure.export import load
from nervure.recipe.probe import answers, largest_difference, read_probe
from nervure.recipe.sources import ModelSource


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
    inputs, outputs = read_probe(folder / "probe.safetensors")
    return largest_difference(answers(model, inputs), outputs)


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True, warn_only=True)
    print(json.dumps({"error": difference(Path(sys.argv[1]), ModelSource(**json.load(sys.stdin)))}))
