"""Labels that move with their picture: a thing stays under its mask and in its box."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nervure.errors import ArgumentError, DataError
from nervure.evaluation import SEVERITIES, corrupt, picture_shifts
from nervure.evaluation.corruptions import MOVING, SHIFTS, motion_of

SIDE = 64
BOX = torch.tensor([20.0, 24.0, 36.0, 44.0])


def things(samples: int = 3, height: int = SIDE) -> tuple[Tensor, Tensor]:
    """White blocks on grey ground, and where they are."""
    pictures = torch.full((samples, 3, height, SIDE), 0.3)
    masks = torch.zeros(samples, height, SIDE, dtype=torch.int64)
    for row in range(samples):
        pictures[row, :, 24 + row : 44 + row, 20:36] = 1.0
        masks[row, 24 + row : 44 + row, 20:36] = 1
    return pictures, masks


@pytest.mark.parametrize("name", sorted(MOVING - {"zoom_blur"}))
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_masks_go_where_the_picture_went(name: str, severity: int) -> None:
    pictures, masks = things()
    (shift,) = picture_shifts(name)
    moved, labels = shift((pictures, masks), severity)
    assert torch.equal(moved, corrupt(pictures, name, severity))
    white = moved[:, 0] > 0.65
    assert float(((labels == 1) & white).sum() / ((labels == 1) | white).sum()) > 0.9
    assert set(labels.unique().tolist()) <= {0, 1, 255}
    # Nothing but what came into view is ignored, and that is black where the shift leaves it so.
    if name in SHIFTS:
        assert float(moved[:, 0][labels == 255].max()) < 0.16
    assert torch.equal(masks, things()[1])


@pytest.mark.parametrize("name", sorted(MOVING))
def test_a_box_holds_the_thing_after_the_shift(name: str) -> None:
    pictures, _ = things(1)
    (shift,) = picture_shifts(name)
    for severity in SEVERITIES:
        targets = [{"boxes": BOX[None], "labels": torch.tensor([7]), "image_id": torch.tensor([3])}]
        moved, (target,) = shift((list(pictures), targets), severity)
        rows, columns = (moved[0][0] > 0.65).nonzero().unbind(1)
        seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (target["boxes"][0] - seen).abs().max() < (4 if name == "zoom_blur" else 1.6)
        assert target["labels"].tolist() == [7] and target["image_id"].tolist() == [3]


def test_masks_of_another_size_move_alike() -> None:
    pictures, masks = things(1)
    motion = motion_of(pictures, "rotate", 4)
    fine = masks[0].repeat_interleave(2, 0).repeat_interleave(2, 1)[None]
    whole, double = motion.masks(masks, 255), motion.masks(fine, 255)
    assert float((double[:, ::2, ::2] == whole).float().mean()) > 0.97


def test_floats_and_yes_and_no_have_nothing_outside() -> None:
    pictures, masks = things()
    (shift,) = picture_shifts("translate", ignore=-100)
    assert -100 in shift((pictures, masks), 5)[1]
    assert set(shift((pictures, masks[:, None].float()), 5)[1].unique().tolist()) == {0.0, 1.0}
    assert shift((pictures, masks.bool()), 5)[1].dtype == torch.bool


def test_boxes_that_left_the_picture_are_dropped_with_all_that_is_said_of_them() -> None:
    pictures, _ = things(1)
    across = int(motion_of(pictures, "translate", 5).matrix[0, 0, 2].abs() > 0)  # type: ignore[index]
    edges = [[0.0, 0, 60, 4], [0, 60, 60, 64], [0, 0, 4, 60], [60, 0, 64, 60]]
    boxes = torch.tensor([*edges[2 * across : 2 * across + 2], BOX.tolist()])
    target = {
        "boxes": boxes,
        "labels": torch.tensor([1, 2, 3]),
        "area": torch.tensor([10.0, 20.0, 320.0]),
        "masks": torch.ones(3, SIDE, SIDE, dtype=torch.uint8),
        "size": torch.tensor([64, 64, 3]),
    }
    _, (found,) = picture_shifts("translate")[0](([pictures[0]], [target]), 5)
    assert found["boxes"].shape == (2, 4) and found["labels"].tolist() in ([1, 3], [2, 3])
    assert float(found["area"][1]) == pytest.approx(320, rel=1e-4)
    assert found["masks"].shape == (2, SIDE, SIDE) and 0 in found["masks"]
    assert found["size"].tolist() == [64, 64, 3] and len(target["boxes"]) == 3


def test_three_families_of_detectors_are_told_the_same() -> None:
    pictures, _ = things(2)
    shares = torch.cat(((BOX[:2] + BOX[2:]) / 2, BOX[2:] - BOX[:2]))[None] / SIDE
    empty = torch.zeros(0, 4)
    for name in ("rotate", "elastic_transform"):
        (shift,) = picture_shifts(name)
        listed = shift((list(pictures), [{"boxes": BOX[None], "labels": torch.ones(1)}, {"boxes": empty}]), 3)[1]
        queries: Any = {
            "pixel_values": pictures,
            "pixel_mask": torch.ones(2, SIDE, SIDE),
            "labels": [
                {"boxes": shares, "class_labels": torch.ones(1)},
                {"boxes": empty, "class_labels": torch.ones(0)},
            ],
        }
        asked = shift(queries, 3)["labels"]
        flat = {"img": pictures, "bboxes": shares, "cls": torch.ones(1, 1), "batch_idx": torch.zeros(1)}
        found = shift(flat, 3)
        assert torch.allclose(asked[0]["boxes"], found["bboxes"], atol=1e-5) and asked[1]["boxes"].shape == (0, 4)
        x, y, width, height = found["bboxes"][0] * SIDE
        corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        assert torch.allclose(listed[0]["boxes"][0], corners, atol=1e-3)
        assert found["cls"].shape == (1, 1) and found["batch_idx"].tolist() == [0]


def test_labels_stay_where_the_picture_does() -> None:
    pictures, masks = things()
    for shift in picture_shifts(["fog", "invert"]):
        found = shift({"image": pictures, "labels": masks}, 5)
        assert torch.equal(found["labels"], masks) and not torch.equal(found["image"], pictures)
    assert picture_shifts("rotate")[0]((pictures, torch.tensor([1, 2, 3])), 5)[1].tolist() == [1, 2, 3]


def test_pictures_may_be_normalised_or_of_8_bits() -> None:
    pictures, masks = things()
    pictures = pictures * 0.5
    expected = corrupt(pictures, "contrast", 4)
    (shift,) = picture_shifts("contrast", normalisation=((0.4,), (0.2,)))
    found, _ = shift(((pictures - 0.4) / 0.2, masks), 4)
    assert torch.allclose(found * 0.2 + 0.4, expected, atol=1e-4)
    bytes_ = (pictures * 255).round().to(torch.uint8)
    found = picture_shifts("contrast")[0](bytes_, 4)
    assert found.dtype == torch.uint8 and (found / 255 - expected).abs().max() < 0.01


def test_what_cannot_move_is_told() -> None:
    pictures, masks = things()
    (shift,) = picture_shifts("rotate")
    with pytest.raises(DataError, match="do not lie on pictures of 64 x 64"):
        shift((pictures, torch.zeros(3, 17, 2)), 1)
    with pytest.raises(DataError, match="cannot be moved"):
        shift((list(pictures), [{"boxes": BOX[None], "keypoints": torch.ones(1, 5, 3)}] * 3), 1)
    with pytest.raises(DataError, match="no picture"):
        shift(torch.rand(3, 5), 1)
    with pytest.raises(DataError, match="2 pictures"):
        shift({"a": pictures, "b": pictures}, 1)
    with pytest.raises(ArgumentError, match="unknown"):
        picture_shifts("fogg")
    found = picture_shifts("rotate", inputs="a")[0]({"a": pictures, "b": pictures, "labels": masks}, 5)
    assert torch.equal(found["b"], pictures) and not torch.equal(found["a"], pictures)
