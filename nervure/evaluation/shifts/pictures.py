"""Shifts of pictures in batches of any form; where the picture moves, masks and boxes move with it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from nervure.core.check import checked
from nervure.core.tensors import tensors_in
from nervure.errors import DataError
from nervure.evaluation.corruptions import MOVING, corrupt, expand_names, motion_of
from nervure.evaluation.picture_range import Normalisation, PictureRange
from nervure.evaluation.shifts.label_motion import Pair, is_flat, move_flat, move_labels
from nervure.evaluation.shifts.one_shift import Shift, exchange, separate
from nervure.tasks.batch_forms import Layout, Place, describe_batch


@checked
def picture_shifts(
    names: str | Iterable[str] = "all",
    *,
    normalisation: Normalisation | None = None,
    ignore: int = 255,
    inputs: Place | None = None,
    labels: Place | None = None,
) -> tuple[Shift, ...]:
    """Corruptions of pictures, one shift for each name.

    Pictures are [samples, 1 or 3, height, width] or a list of [1 or 3, height, width]: floats in [0, 1], 8-bit, or
    normalised. Labels stay but for ``rotate``, ``translate``, ``scale``, ``elastic_transform`` and ``zoom_blur`` (in
    the mean over its magnifications): there masks [samples, ..., height, width] move by the nearest pixel, and boxes as
    torchvision, transformers and ultralytics have them become the upright ones around where they went, cut off at the
    border; those that left the picture are dropped.

    Args:
        names: ``"all"`` (the 19 of Hendrycks and Dietterich), groups (``"noise"``, ``"geometric"``) or names.
        normalisation: mean and std per channel of normalised pictures.
        ignore: the label in a mask where nothing was; masks of floats and of yes and no have 0 there.
        inputs: where the pictures are, see :class:`nervure.tasks.Layout`; None finds the one part of that form.
        labels: where the labels are.

    Raises:
        ArgumentError: a name is unknown, or the normalisation is none.
    """
    range_, layout = PictureRange.of(None, normalisation), Layout(inputs, labels)
    return tuple(Shift(name, _PictureChange(name, range_, layout, ignore)) for name in expand_names(names))


@final
@dataclass(frozen=True, slots=True)
class _PictureChange:
    name: str
    range: PictureRange
    layout: Layout
    ignore: int

    def __call__(self, batch: Any, severity: int, seed: int) -> Any:
        batch = separate(batch)
        found = pictures_in(self.layout, batch)
        change = partial(corrupt, name=self.name, severity=severity, seed=seed)
        pairs, whole = alter_pictures(found, self.range, change)
        if self.name in MOVING:
            motions = [motion_of(pictures, self.name, severity, seed=seed) for pictures in whole]
            if is_flat(batch):
                pairs += move_flat(motions, batch)
            else:
                pairs += move_labels(motions, self.layout.labels_in(batch), self.ignore)
        return exchange(batch, pairs)


def alter_pictures(
    found: Tensor | list[Tensor], range_: PictureRange, change: Callable[[Tensor], Tensor]
) -> tuple[list[Pair], list[Tensor]]:
    """Parts of a batch that are pictures.

    Args:
        found: as :func:`pictures_in` gives them.
        range_: how they become floats in [0, 1].
        change: from such pictures to others of the same shape.

    Returns:
        each part and what it becomes, and the pictures that they were.
    """
    groups = [found] if isinstance(found, Tensor) else [picture[None] for picture in found]
    whole = [group.float() / 255 if group.dtype == torch.uint8 else range_.pictures(group) for group in groups]
    pairs: list[Pair] = []
    for old, group, pictures in zip([found] if isinstance(found, Tensor) else found, groups, whole, strict=True):
        changed = change(pictures)
        new = (changed * 255).round().to(torch.uint8) if group.dtype == torch.uint8 else range_.back(changed)
        pairs.append((old, new.view_as(old)))
    return pairs, whole


def pictures_in(layout: Layout, batch: Any) -> Tensor | list[Tensor]:
    """The pictures of a batch: one tensor of four axes, or a list of those of three; raises DataError."""
    if is_flat(batch):
        found: Tensor = batch["img"]
        return found
    inputs = layout.inputs_in(batch)
    if isinstance(inputs, tuple | list) and inputs and all(_is_picture(part, 3) for part in inputs):
        return list(inputs)
    parts = [part for part in tensors_in(inputs) if _is_picture(part, 4)]
    if len(parts) != 1:
        raise DataError(
            f"there {'is no picture' if not parts else f'are {len(parts)} pictures'} in {describe_batch(batch)}. Give "
            "[samples, 1 or 3 channels, height, width], and say where they are: inputs=."
        )
    return parts[0]


def _is_picture(part: Any, axes: int) -> bool:
    floats = isinstance(part, Tensor) and (part.is_floating_point() or part.dtype == torch.uint8)
    return floats and part.ndim == axes and part.shape[-3] in (1, 3)
