"""Labels that go where their picture went: masks, and boxes in the forms of three families of detectors."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nervure.errors import DataError
from nervure.evaluation.corruptions.motion import Motion
from nervure.tasks.batch_forms import describe_batch, parts_of

Pair: TypeAlias = tuple[Tensor, Tensor]
"""A part of a batch, and what it becomes."""
OF_PICTURES = frozenset({"image_id", "size", "orig_size"})
"""What a target says of the whole picture, not of each box."""
LEAST_SIDE = 1.0
"""Pixels of a side of a box; below it nothing of the thing is to be seen."""


def is_flat(batch: Any) -> bool:
    """Whether a batch is of ultralytics: boxes of all pictures in one list that says of which picture each is."""
    return isinstance(batch, Mapping) and {"img", "bboxes", "cls", "batch_idx"} <= batch.keys()


def move_labels(motions: Sequence[Motion], labels: Any, ignore: int) -> Iterator[Pair]:
    """Labels and what they become.

    Args:
        motions: one for all pictures, or one for each.
        labels: as the batch has them.
        ignore: what is written in masks where nothing was.

    Raises:
        DataError: they say where something is, in a form that is not known.
    """
    each = [(motion, row) for motion in motions for row in range(len(motion.grid))]
    if isinstance(labels, Tensor):
        if labels.ndim > 2:
            yield labels, _move_mask(motions, labels, ignore)
        return
    if not isinstance(labels, tuple | list):
        return
    for (motion, row), target in zip(each, labels, strict=False):
        if isinstance(target, Tensor) and target.ndim > 1:
            yield target, _move_mask([motion], target[None], ignore)[0]
        parts = parts_of(target) or {}
        if "keypoints" in parts or ("masks" in parts and "boxes" not in parts):
            raise DataError(f"{describe_batch(target)} cannot be moved with its picture. Leave out shifts of place.")
        if "boxes" in parts:
            yield from _move_target(motion, row, parts)


def move_flat(motions: Sequence[Motion], batch: Mapping[str, Any]) -> Iterator[Pair]:
    """Boxes of a batch of ultralytics (centre and size, as shares of the picture) and what they become."""
    (motion,) = motions
    boxes, pictures = batch["bboxes"], batch["batch_idx"].flatten().long()
    moved = torch.zeros_like(boxes)
    stays = torch.zeros(len(boxes), dtype=torch.bool)
    for row in range(len(motion.grid)):
        own = pictures == row
        moved[own], stays[own] = _move_shares(motion, row, boxes[own])
    yield boxes, moved[stays]
    for name in ("cls", "batch_idx"):
        yield batch[name], batch[name][stays]


def _move_mask(motions: Sequence[Motion], mask: Tensor, ignore: int) -> Tensor:
    (motion,) = motions
    height, width = motion.grid.shape[1:3]
    if len(mask) != len(motion.grid) or mask.shape[-2] * width != mask.shape[-1] * height:
        raise DataError(
            f"labels {list(mask.shape)} do not lie on pictures of {height} x {width}, and cannot be moved with them. "
            "Leave out shifts of place, or give a Shift of your own."
        )
    numbers = not mask.is_floating_point() and mask.dtype != torch.bool
    return motion.masks(mask, ignore if numbers else 0)


def _move_target(motion: Motion, row: int, target: Mapping[str, Any]) -> Iterator[Pair]:
    boxes: Tensor = target["boxes"]
    shares = "class_labels" in target
    if shares:
        moved, stays = _move_shares(motion, row, boxes)
    else:
        moved = motion.boxes(row, boxes.float()).to(boxes.dtype)
        stays = _are_seen(moved)
    growth = _area(moved, shares) / _area(boxes, shares).clamp(min=1e-12)
    for name, part in target.items():
        if not isinstance(part, Tensor) or name in OF_PICTURES or part.ndim == 0 or len(part) != len(boxes):
            continue
        if name == "boxes":
            yield part, moved[stays]
        elif name == "area":
            yield part, (part * growth)[stays].to(part.dtype)
        elif name == "masks" and len(part):
            one = Motion(motion.grid[row : row + 1])
            yield part, one.masks(part[None], 0)[0][stays]
        else:
            yield part, part[stays]


def _move_shares(motion: Motion, row: int, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes of centre and size as shares of the picture: where they go, and which are still to be seen."""
    height, width = motion.grid.shape[1:3]
    sides = boxes.new_tensor([width, height])
    corners = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1) * sides.repeat(2)
    moved = motion.boxes(row, corners)
    shares = torch.cat(((moved[:, :2] + moved[:, 2:]) / 2 / sides, (moved[:, 2:] - moved[:, :2]) / sides), 1)
    return shares, _are_seen(moved)


def _are_seen(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2] >= LEAST_SIDE).all(1)


def _area(boxes: Tensor, shares: bool) -> Tensor:
    return (boxes[:, 2:] if shares else boxes[:, 2:] - boxes[:, :2]).prod(1)
