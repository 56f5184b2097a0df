"""SNACS as published: what its released code does, where the library does otherwise by default.

Kept apart, so that the difference can be measured. What is known to be wrong in it stays wrong here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nervure.core.extras import require_extra
from nervure.dependence import conditional_connectivity
from nervure.scores.bundles import Layer
from nervure.stats.connections import response


def signed_factors(layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Signed weights rescaled to [0, 1] by one least and one greatest value of the whole network, mean over the kernel.

    A large negative weight counts as next to nothing. Shape [children, parents] for each layer.
    """
    least = min(float(layer.weight.min()) for layer in layers)
    greatest = max(float(layer.weight.max()) for layer in layers)
    span = max(greatest - least, 1e-30)
    return {layer.tensor: (layer.means() - least) / span for layer in layers}


def raw_connectivity(layer: Layer, earlier: Sequence[Layer], heard: Mapping[str, Tensor], seed: int) -> Tensor:
    """The hash estimate of each child's dependence on each parent, both as their own layers put them out.

    Args:
        layer: the layer.
        earlier: the layers that ran before it; the last that writes a parent speaks for it, whatever is added later.
        heard: ``Stats.connections``.
        seed: of the hashes.

    Returns:
        [children, parents], 0 or more.
    """
    splits = layer.splits(heard[layer.tensor])
    parents = layer.said(heard[layer.tensor])
    if splits == 1:
        parents = _raw(layer, earlier, heard, parents[:, 0])[:, None]
    children = response(layer.weight, heard[layer.tensor]).reshape(len(parents), splits, -1)
    parts = [
        conditional_connectivity(parents[:, split], children[:, split], estimator="hash", faithful=True, seed=seed)
        for split in range(splits)
    ]
    return torch.cat(parts).float()


def _raw(layer: Layer, earlier: Sequence[Layer], heard: Mapping[str, Tensor], said: Tensor) -> Tensor:
    """What the parents say before norms and activation functions. [samples, parents]."""
    raw = said.clone()
    for group, units in layer.columns:
        for writer in reversed(earlier):
            rows = {unit: row for name, part in writer.rows if name == group for row, unit in enumerate(part.array)}
            if rows:
                output = response(writer.weight, heard[writer.tensor])
                for parent, unit in enumerate(units.array):
                    if unit in rows:
                        raw[:, parent] = output[:, rows[unit]]
                break
    return raw


def qualities(said: Iterable[Tensor], labels: Tensor) -> list[float]:
    """How many samples a support vector machine names right, fitted on the first of ``said`` and on all samples."""
    names: Callable[[Tensor], Tensor] | None = None
    found = []
    for values in said:
        clamped = values.clamp(min=0)
        names = names or support_vectors(clamped, labels)
        found.append(float((names(clamped) == labels).float().mean()))
    return found


def support_vectors(said: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """A support vector machine with radial basis functions and C=1; raises MissingExtraError without scikit-learn."""
    svm: Any = require_extra("sklearn.svm", "paper=True, with its limits as published,", "data")
    machine = svm.SVC(kernel="rbf", C=1.0).fit(said.numpy(), labels.numpy())
    return lambda values: torch.from_numpy(machine.predict(values.numpy()))
