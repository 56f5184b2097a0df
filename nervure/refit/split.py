"""The samples that a refit runs on: some to fit on, some left out to choose by."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from nervure.core import collectives
from nervure.core.collectives import require_portion
from nervure.core.tensors import tensors_in
from nervure.errors import DataError
from nervure.refit.gather import GramPart
from nervure.stats.loaders import batches, fixed_seed
from nervure.tasks.task import Task

HELD = 4
"""One sample in so many is left out of fits, and chooses among them."""
PLACES, POSITIONS = 32, 8192
"""Places of a sample that are looked at, or more, until there are so many positions in all."""


def split(
    data: Iterable[Any], samples: int, task: Task | None = None, view: int = 0, *, seed: int = 0
) -> list[GramPart]:
    """The first so many samples, every fourth of them apart; raises DataError where there are too few.

    A loader that shuffles gives the same for the same ``seed``, whatever was drawn before.
    """
    parts, seen = list[GramPart](), 0
    with fixed_seed(seed):
        drawn = list(batches(data, require_portion(samples, "samples"), labelled=False, task=task))
    for batch in drawn:
        # The place among all samples, of which each process has every so-manieth.
        place = (torch.arange(batch.size) + seen) * collectives.count() + collectives.rank()
        held = place % HELD == HELD - 1
        seen += batch.size
        for rows, apart in ((~held, False), (held, True)):
            if bool(rows.any()):
                parts.append(GramPart(batch.rows(rows.nonzero()[:, 0]), apart, view))
    (seen,) = map(int, collectives.add_up_numbers(seen))
    if seen < HELD:
        raise DataError(f"{seen} samples are too few to refit on: give {HELD} or more, hundreds where there are any.")
    return parts


def places_per_sample(samples: int, least: int = PLACES) -> int:
    """At how many places of each sample a convolution is looked at: there are layers of thousands of inputs."""
    return max(least, -(-POSITIONS // samples))


def count_samples(parts: Sequence[GramPart]) -> tuple[int, int]:
    """How many samples of the data, not of other views, are fitted on, and how many are left out."""
    home = [part for part in parts if not part.view]
    own = sum(p.batch.size for p in home if not p.held), sum(p.batch.size for p in home if p.held)
    fitted, held = map(int, collectives.add_up_numbers(*own))
    return fitted, held


def require_different(parts: Sequence[GramPart]) -> None:
    """Raise where every sample is the first one again."""
    first = [tensor[:1] for tensor in _inputs(parts[0])]
    are_same = bool(first) and all(
        a.shape[1:] == b.shape[1:] and bool((a == b).all())
        for part in parts
        for a, b in zip(_inputs(part), first, strict=False)
    )
    if are_same:
        seen = sum(part.batch.size for part in parts)
        raise DataError(f"all {seen} samples are the same: nothing can be learnt from them. Give real data.")


def _inputs(part: GramPart) -> list[Tensor]:
    return [tensor for tensor in tensors_in(part.batch.inputs) if tensor.ndim]
