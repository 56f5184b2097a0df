"""Detectors of three families in one form: boxes, true boxes and losses."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import tasks
from nervure.errors import ArgumentError, DataError, MissingExtraError
from nervure.tasks import evaluate_task
from nervure.tasks.boxes import Detection
from tests.tasks.small import Output

PICTURES = [torch.rand(3, 8, 8), torch.rand(3, 6, 8)]
TARGETS = [
    {"boxes": torch.tensor([[1.0, 1.0, 5.0, 5.0]]), "labels": torch.tensor([1])},
    {"boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 2.0, 8.0, 6.0]]), "labels": torch.tensor([0, 1])},
]


class Listed(nn.Module):
    """A detector in torchvision's manner: losses in training, boxes otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.size, self.dropout = nn.BatchNorm1d(2), nn.Parameter(torch.ones(())), nn.Dropout()

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        assert isinstance(images, list)
        if not self.training:
            return [{**target, "scores": torch.ones(len(target["labels"]))} for target in TARGETS]
        assert targets is not None and not self.norm.training and not self.dropout.training
        count = sum(len(target["boxes"]) for target in targets)
        return {"boxes": self.size * count, "classes": self.size.square()}


class Queries(nn.Module):
    """A detector in the manner of transformers: scores and boxes of a fixed number of queries."""

    def __init__(self, targets: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.targets, self.bias = targets, nn.Parameter(torch.zeros(()))

    def forward(self, pixel_values: Tensor, labels: Any = None) -> Output:
        logits = torch.full((2, 3, 3), -9.0) + self.bias
        logits[:, :, 2] = 9
        boxes = torch.rand(2, 3, 4)
        for row, target in enumerate(self.targets):
            for column, (kind, box) in enumerate(zip(target["class_labels"], target["boxes"], strict=True)):
                logits[row, column, 2], logits[row, column, kind], boxes[row, column] = -9, 9, box
        found = Output(logits=logits, pred_boxes=boxes)
        return found if labels is None else Output(loss=self.bias + len(labels), **found)


class Flat(nn.Module):
    """A detector in ultralytics' manner: (centre, size, scores) [samples, 4 + classes, anchors], losses of a dict."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows, self.gain = rows, nn.Parameter(torch.ones(()))
        self.args: Any = {"box": 7.5}

    def forward(self, x: Any) -> Any:
        if isinstance(x, dict):
            assert x["img"].is_floating_point() and float(x["img"].max()) <= 1
            losses = torch.stack([self.gain * self.args.box, self.gain, self.gain]) * len(x["img"])
            return losses, losses.detach()
        return self.rows.expand(len(x), -1, -1), {"feats": [x]}


FLAT_BATCH = {
    "img": torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8),
    "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]]),
    "cls": torch.tensor([[1.0], [0.0]]),
    "batch_idx": torch.tensor([0.0, 1.0]),
}
# Two boxes on one another, of one class; the same again of the other; and one that is too faint.
ANCHORS = torch.tensor(
    [
        [4.0, 4.0, 4.0, 4.0, 0.0, 0.9],
        [4.0, 4.0, 4.0, 3.9, 0.0, 0.8],
        [4.0, 4.0, 4.0, 4.0, 0.7, 0.0],
        [1.0, 1.0, 2.0, 2.0, 0.01, 0.0],
    ]
).T[None]
WHOLE_QUERIES = [
    {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.25, 0.25]])},
    {"class_labels": torch.tensor([0, 1]), "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]])},
]


def test_the_best_of_boxes_that_overlap_stays() -> None:
    found = Detection().found(Flat(ANCHORS)(torch.zeros(2, 3, 8, 8)))
    assert len(found) == 2
    assert found[0]["boxes"].tolist() == [[2, 2, 6, 6], [2, 2, 6, 6]]
    assert found[0]["labels"].tolist() == [1, 0]
    torch.testing.assert_close(found[0]["scores"], torch.tensor([0.9, 0.7]))
    assert len(Detection(score=0.75).found(ANCHORS)[0]["labels"]) == 1
    assert len(Detection(overlap=1.0).found(ANCHORS)[0]["labels"]) == 3
    assert len(Detection(most=1).found(ANCHORS)[0]["labels"]) == 1


def test_boxes_that_are_chosen_already_are_taken() -> None:
    rows = torch.tensor([[[1.0, 1.0, 3.0, 3.0, 0.9, 2.0], [0.0, 0.0, 1.0, 1.0, 0.01, 0.0]]])
    (found,) = Detection().found(rows)
    assert found["boxes"].tolist() == [[1, 1, 3, 3]] and found["labels"].tolist() == [2]


def test_true_boxes_have_one_form() -> None:
    first, second = Detection().wanted(FLAT_BATCH)
    assert first["boxes"].tolist() == [[2, 2, 6, 6]] and first["labels"].tolist() == [1]
    assert second["boxes"].tolist() == [[0, 0, 4, 4]] and second["labels"].tolist() == [0]
    (one, _) = Detection().wanted((PICTURES, WHOLE_QUERIES))
    assert one["boxes"].tolist() == [[0.375, 0.375, 0.625, 0.625]]
    with pytest.raises(DataError, match="it needs boxes and labels"):
        Detection().wanted((PICTURES, [{"box": torch.zeros(1, 4)}] * 2))


def test_losses_are_those_that_the_detector_computes() -> None:
    task = tasks.detection()
    listed, flat, queries = Listed().eval(), Flat(ANCHORS), Queries(WHOLE_QUERIES)
    assert float(task(listed, (PICTURES, TARGETS)).detach()) == 3 + 1
    assert not any(module.training for module in listed.modules())
    assert float(task(flat, FLAT_BATCH).detach()) == 7.5 + 1 + 1
    assert flat.args == {"box": 7.5}
    batch = {"pixel_values": torch.rand(2, 3, 8, 8), "labels": WHOLE_QUERIES}
    assert float(task(queries, batch).detach()) == 2
    assert [task.samples(each) for each in ((PICTURES, TARGETS), FLAT_BATCH, batch)] == [2, 2, 2]
    for model, each in ((listed, (PICTURES, TARGETS)), (flat, FLAT_BATCH), (queries, batch)):
        task(model, each).backward()
        assert all(p.grad is not None for name, p in model.named_parameters() if "norm" not in name)


def test_what_is_no_detector_is_told() -> None:
    with pytest.raises(ArgumentError, match="no boxes are known"):
        Detection().found(torch.zeros(2, 3))
    with pytest.raises(DataError, match="there are no labels"):
        tasks.detection()(Listed(), PICTURES[0][None])


def test_without_its_libraries_the_precision_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchmetrics")
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.delattr("torchmetrics.detection.MeanAveragePrecision", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[detection\]'"):
        evaluate_task(Listed(), [(PICTURES, TARGETS)], tasks.detection())


def test_the_precision_of_true_boxes_is_one() -> None:
    pytest.importorskip("pycocotools")
    pytest.importorskip("torchmetrics.detection.mean_ap")
    batch = {"pixel_values": torch.rand(2, 3, 8, 8), "labels": WHOLE_QUERIES}
    for model, each in ((Listed(), (PICTURES, TARGETS)), (Queries(WHOLE_QUERIES), batch)):
        found = evaluate_task(model, [each], tasks.detection())
        assert (found["map"], found["map_50"]) == (pytest.approx(1), pytest.approx(1))
    flat = evaluate_task(Flat(ANCHORS), [FLAT_BATCH], tasks.detection())
    assert 0 < flat["map_50"] < 1
    pictures = torch.rand(2, 3, 8, 8)
    same = evaluate_task(Flat(ANCHORS), [pictures], tasks.agreement(Flat(ANCHORS), "boxes"))
    assert same == pytest.approx({"map": 1, "map_50": 1})
    off = evaluate_task(Flat(ANCHORS + torch.tensor(1.5)), [pictures], tasks.agreement(Flat(ANCHORS), "boxes"))
    assert off["map"] < 0.5
