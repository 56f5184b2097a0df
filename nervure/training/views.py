"""Views of a batch to train on: the same samples, as they might come some other day.

What is trained on must not be what is tested. :func:`picture_views` has operations of its own, none of them a
corruption of the benchmarks; :func:`shift_views` takes shifts of :mod:`nervure.evaluation`, and is told which ones are
tested.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor

from nervure.core.check import checked
from nervure.errors import ArgumentError
from nervure.evaluation.corruptions import CORRUPTIONS, GROUPS, expand_names
from nervure.evaluation.features import FEATURE_SHIFTS, TOKEN_SHIFTS
from nervure.evaluation.picture_range import Normalisation, PictureRange
from nervure.evaluation.shifts import AUDIO_SHIFTS, TABLE_SHIFTS, Shift
from nervure.evaluation.shifts.label_motion import is_flat
from nervure.evaluation.shifts.letters import TEXT_GROUPS
from nervure.evaluation.shifts.one_shift import exchange, separate
from nervure.evaluation.shifts.pictures import alter_pictures, pictures_in
from nervure.tasks.batch_forms import Layout, Place
from nervure.training.augmix import MOVING_OPERATIONS, OPERATIONS, augmix

Views: TypeAlias = Callable[[Any, int], Any]
"""From a batch and a seed to another batch of the same samples; what was given stays as it was."""

KINDS: Mapping[str, str] = {
    **{name: name for name in (*AUDIO_SHIFTS, *TABLE_SHIFTS, *FEATURE_SHIFTS, *TOKEN_SHIFTS)},
    **{name: kind for groups in (TEXT_GROUPS, GROUPS) for kind, names in groups.items() for name in names},
    **{name: name for name in GROUPS["geometric"]},
    "speckle_noise": "noise",
    "gaussian_blur": "blur",
    "spatter": "weather",
    "saturate": "digital",
}
"""Of what kind each shift of evaluation is. Those of one kind are too alike to train on one and test by another."""


@checked
def picture_views(
    *,
    normalisation: Normalisation | None = None,
    tested: Iterable[str] = CORRUPTIONS,
    inputs: Place | None = None,
    labels: Place | None = None,
) -> Views:
    """Pictures mixed with mild operations on themselves, see :func:`nervure.training.augmix.augmix`.

    Where labels say where something is (masks, boxes), the operations that move a picture are left out.

    Args:
        normalisation: mean and std per channel of normalised pictures; None: floats in [0, 1], or 8-bit.
        tested: the shifts of the test, as :func:`nervure.evaluation.evaluate` takes them; where rotation or translation
            are among them, no view turns or moves.
        inputs: where the pictures are, see :class:`nervure.tasks.Layout`; None finds the one part of that form.
        labels: where the labels are.

    Raises:
        ArgumentError: a name is unknown, or the normalisation is none.
    """
    names = set(expand_names(tested))
    left = tuple(name for name in OPERATIONS if name.removesuffix("_x").removesuffix("_y") not in names)
    return _PictureViews(PictureRange.of(None, normalisation), Layout(inputs, labels), left)


@checked
def shift_views(
    shifts: Sequence[Shift], *, tested: Iterable[str | Shift], strongest: Literal[1, 2, 3, 4, 5] = 3
) -> Views:
    """Each batch under one of several shifts, drawn anew, at a severity up to ``strongest``.

    For text, sound, tables and tokens, and for shifts of your own. Shifts that are tested, or are of one kind with one
    that is (:data:`KINDS`), are refused.

    Args:
        shifts: what views are made by, such as ``audio_shifts(["quiet", "band_limit"], rate=16000)``.
        tested: what the test will measure: names, groups or shifts.
        strongest: the highest severity.

    Raises:
        ArgumentError: there is no shift, or one that is tested, too.
    """
    if not shifts:
        raise ArgumentError("shift_views(shifts=[]): there is nothing to make views by; give at least one shift.")
    names = {one.name if isinstance(one, Shift) else one for one in tested}
    kinds = {*names, *(KINDS.get(name, name) for name in names)} | ({*KINDS.values()} if "all" in names else set())
    shared = [one.name for one in shifts if {one.name, KINDS.get(one.name, one.name)} & kinds]
    if shared:
        raise ArgumentError(
            f"shift_views: {shared[0]!r} is tested, or is of one kind with what is ({', '.join(sorted(names))}). "
            "What a model has trained on says nothing of other days: train on other shifts, or test by others."
        )
    return _ShiftViews(tuple(shifts), strongest)


@final
@dataclass(frozen=True, slots=True)
class _PictureViews:
    range: PictureRange
    layout: Layout
    operations: tuple[str, ...]

    def __call__(self, batch: Any, seed: int) -> Any:
        batch = separate(batch)
        able = tuple(name for name in self.operations if name not in MOVING_OPERATIONS or not self._says_where(batch))
        change = partial(augmix, seed=seed, operations=able)
        return exchange(batch, alter_pictures(pictures_in(self.layout, batch), self.range, change)[0])

    def _says_where(self, batch: Any) -> bool:
        """Whether labels are of places in the picture."""
        if is_flat(batch):
            return True
        labels = self.layout.labels_in(batch)
        if isinstance(labels, Tensor):
            return labels.ndim > 2
        return isinstance(labels, tuple | list) and any(
            isinstance(one, Mapping) or (isinstance(one, Tensor) and one.ndim > 1) for one in labels
        )


@final
@dataclass(frozen=True, slots=True)
class _ShiftViews:
    shifts: tuple[Shift, ...]
    strongest: int

    def __call__(self, batch: Any, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        which = int(torch.randint(len(self.shifts), (), generator=generator))
        severity = 1 + int(torch.randint(self.strongest, (), generator=generator))
        return self.shifts[which](batch, severity, seed=seed)
