"""Batches and labels that do not fit, and what is advised then."""

from typing import Any

import pytest
import torch

from nervure.errors import DataError
from nervure.evaluation.labelled import pairs, require_classes


@pytest.mark.parametrize("label", [-100, -1, 255])
def test_labels_that_mark_what_does_not_count_are_not_answered_with_more_outputs(label: int) -> None:
    with pytest.raises(DataError, match=rf"label {label} .*ignore={label}\)") as caught:
        require_classes(torch.tensor([0, label, 1]), 3)
    assert "more outputs" not in str(caught.value)


def test_other_labels_out_of_range_are_numbers_of_classes() -> None:
    with pytest.raises(DataError, match="Number the classes from 0, or give the model more outputs"):
        require_classes(torch.tensor([0, 3]), 3)


@pytest.mark.parametrize(
    "batch",
    [
        {"x": torch.zeros(2, 3), "labels": torch.zeros(2)},
        (torch.zeros(2, 3), (torch.zeros(2), torch.zeros(2))),
        torch.zeros(2, 3),
    ],
    ids=["dict", "labels in a tuple", "tensor"],
)
def test_batches_of_other_forms_are_told_of_the_tasks_that_read_them(batch: Any) -> None:
    with pytest.raises(DataError, match=r"give pairs .*task="):
        list(pairs([batch]))
