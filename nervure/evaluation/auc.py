"""Area under the ROC curve, one class against the rest."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nervure.core.check import checked
from nervure.errors import DataError
from nervure.evaluation.labelled import Data, call, pairs, require_finite_outputs, require_labels, to_device
from nervure.evaluation.metrics import accuracy
from nervure.graph.models import evaluating, on_device


class Quality(NamedTuple):
    """Accuracy and macro AUC, both in [0, 1]."""

    accuracy: float
    auc: float


@checked
def macro_auc(scores: Tensor, labels: Tensor) -> float:
    """Mean over classes of the chance that a sample of the class scores higher for it than one of another class.

    Equal scores count half (Hand and Till, 2001, one against the rest). Classes without a sample, or without others,
    are left out.

    Args:
        scores: [samples, classes], any monotone measure of belief, such as probabilities.
        labels: int64, [samples].

    Raises:
        DataError: the labels are all of one class.

    >>> macro_auc(torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), torch.tensor([0, 0, 1]))
    1.0
    """
    labels = require_labels(labels, scores)
    found = [
        _auc(scores[:, c].double(), labels == c)
        for c in range(scores.shape[1])
        if 0 < (labels == c).double().mean() < 1
    ]
    if not found:
        raise DataError("the labels are all of one class, and an AUC needs two. Give samples of several classes.")
    return sum(found) / len(found)


@checked
def accuracy_and_auc(model: nn.Module, data: Data) -> Quality:
    """Accuracy and macro AUC of a classifier on data, in evaluation mode; the model comes back as it was.

    Raises:
        DataError: data are empty or of one class, a label is out of range, or an output is NaN or infinite.
    """
    logits, labels = [], []
    with on_device(model, None) as place, evaluating(model):
        for number, (inputs, named) in enumerate(pairs(data)):
            out = call(model, to_device(inputs, place))
            require_finite_outputs(out, f"batch {number}")
            labels.append(require_labels(named.to(out.device), out).reshape(-1).cpu())
            logits.append(out.movedim(1, -1).reshape(-1, out.shape[1]).float().cpu())
    probabilities, classes = torch.cat(logits).double().softmax(1), torch.cat(labels)
    return Quality(accuracy(probabilities, classes), macro_auc(probabilities, classes))


def _auc(scores: Tensor, own: Tensor) -> float:
    """The rank sum of Mann and Whitney, ranks of equal scores averaged."""
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2.0)[place]
    positive = int(own.sum())
    negative = len(own) - positive
    return float((ranks[own].sum() - positive * (positive + 1) / 2) / (positive * negative))
