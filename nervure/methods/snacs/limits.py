"""How much of a layer can go: the operating constraints of SNACS, read off curves of quality.

Each layer is pruned alone. Either the network itself says what that costs it, in a unit that is the same for all
layers; or, on paper, a probe that was fitted on what the children of the layer say unpruned names the classes from
what they would say. The limit is where quality begins to fail.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor
from torch.nn import functional as F

from nervure.errors import DataError

GRID = tuple(step / 20 for step in range(20))
"""Shares that are tried: nothing, then in steps of 5 %."""
FLAT = 0.02
"""Where quality changes by less, pruning the layer alone does no harm that could be seen."""
KNOWN = 0.05
"""A network this close to chance knows nothing that pruning a layer could take."""
HELD_OUT = 0.3


@final
@dataclass(frozen=True, slots=True)
class Limit:
    """How the classes fade as a layer is pruned.

    Attributes:
        shares: shares of connections (or units) that were removed.
        quality: how well the classes are named then, made monotone: the share of held-out samples that a probe names
            right, or what the network holds likely of the right class.
        upper: the largest share that may go.
        slack: of the quality above chance, the share that may be lost; None for a limit off a probe, or a given one.
        chance: the quality of knowing nothing.
    """

    shares: tuple[float, ...]
    quality: tuple[float, ...]
    upper: float
    slack: float | None = None
    chance: float = 0.0

    def raise_by(self, share: float) -> float:
        """The limit where all limits are raised by this share, in [0, 1], of the way to none."""
        if self.slack is None:
            return self.upper + (1 - self.upper) * share
        return _bearable(self.shares, self.quality, self.slack + (1 - self.slack) * share, self.chance)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "shares": list(self.shares),
            "quality": list(self.quality),
            "upper": self.upper,
            "slack": self.slack,
            "chance": self.chance,
        }


class LayerProbe(Protocol):
    """Learns to name classes: from [samples, children] and labels, a function from [samples, children] to labels."""

    def __call__(self, said: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """Fit."""
        ...


def limit(shares: Sequence[float], quality: Sequence[float], slack: float) -> Limit:
    """Read the upper limit off a curve.

    It is the largest share whose quality, made monotone, is at least the best minus ``slack`` times the range: on a
    curve that recovers by chance, the last crossing would prune too much.

    >>> limit((0.0, 0.5, 0.9), (0.9, 0.8, 0.1), slack=0.7).upper
    0.5
    """
    falling = torch.tensor(quality).cummin(0).values
    best, worst = float(falling.max()), float(falling.min())
    bar = -1.0 if best - worst < FLAT else best - slack * (best - worst)
    upper = max(share for share, value in zip(shares, falling.tolist(), strict=True) if value >= bar - 1e-9)
    return Limit(tuple(shares), tuple(round(q, 6) for q in falling.tolist()), upper)


def bearable(shares: Sequence[float], quality: Sequence[float], slack: float, chance: float) -> Limit:
    """Read the upper limit off a curve whose quality is that of the network itself.

    All layers share one bar, ``slack`` of the way from the unpruned network down to chance; between two points the
    curve, made monotone, is a line. A network that knows nothing has no limits.

    >>> bearable((0.0, 0.5, 0.9), (0.9, 0.7, 0.1), slack=0.5, chance=0.1).upper
    0.6333333333333333
    """
    falling = [round(q, 6) for q in torch.tensor(quality).cummin(0).values.tolist()]
    return Limit(tuple(shares), tuple(falling), _bearable(shares, falling, slack, chance), slack, chance)


def _bearable(shares: Sequence[float], falling: Sequence[float], slack: float, chance: float) -> float:
    known = falling[0] - chance
    bar = falling[0] - slack * known
    if slack >= 1 or known < KNOWN:
        return 1.0
    below = next((place for place, quality in enumerate(falling) if quality < bar - 1e-9), None)
    if below is None:
        return 1.0
    (x, y), (x1, y1) = ((shares[place], falling[place]) for place in (below - 1, below))
    return x + (x1 - x) * (y - bar) / (y - y1)


def qualities(said: Iterable[Tensor], labels: Tensor, probe: LayerProbe, *, seed: int = 0) -> list[float]:
    """How well a probe, fitted on the first of ``said``, names the classes from each of them.

    Each tensor is centred and scaled by itself: what a mask adds to all samples is taken away by the next norm, or by
    the recovery.

    Args:
        said: [samples, children] each; the first is the layer unpruned.
        labels: [samples].
        probe: what is fitted, on 70 % of the samples.
        seed: draws the 30 % that are held out.

    Returns:
        Share of held-out samples named right, for each tensor.
    """
    fit, test = _split(labels, seed)
    names: Callable[[Tensor], Tensor] | None = None
    found = []
    for values in said:
        scaled = (values - values[fit].mean(0)) / values[fit].std(0).clamp(min=1e-6)
        names = names or probe(scaled[fit], labels[fit])
        found.append(float((names(scaled[test]) == labels[test]).float().mean()))
    return found


def ridge(said: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Least squares on one-hot labels with a small ridge: the default probe, exact and without a choice to make."""
    targets = F.one_hot(labels, int(labels.max()) + 1).to(said.dtype)
    mean = targets.mean(0)
    gram = said.T @ said + 0.01 * len(said) * torch.eye(said.shape[1], dtype=said.dtype)
    weight = torch.linalg.solve(gram, said.T @ (targets - mean))
    return lambda values: (values @ weight + mean).argmax(1)


def require_classes(labels: Tensor | None) -> Tensor:
    """The labels if a probe can learn from them, else DataError that says what to do."""
    if labels is None:
        raise DataError(
            "the limits of the layers need labels: give data as (inputs, labels) batches, or use limits=False."
        )
    classes = int(labels.unique().numel())
    if classes < 2:
        raise DataError(
            f"all {len(labels)} samples have the same label, so no limit can be found. Shuffle the data, draw evenly "
            "with per_class=, or use limits=False."
        )
    if len(labels) < 4 * classes:
        raise DataError(
            f"{len(labels)} samples of {classes} classes are too few to find limits: 4 of each are the least. "
            "Raise samples=, or use limits=False."
        )
    return labels.long()


def _split(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held_out = max(1, round(HELD_OUT * len(labels)))
    return order[held_out:], order[:held_out]
