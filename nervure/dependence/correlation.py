"""Absolute Pearson correlation of every child with every parent, over all samples or class by class.

Within a class the label explains nothing, so that what is left is what the two say to each other beyond the class; over
all samples two units that merely answer to the same classes are correlated too.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from nervure.core.check import checked, require_positive
from nervure.dependence.distances import holds_numbers
from nervure.dependence.samples import as_samples, require_same_samples, result_type, standardise
from nervure.errors import DataError

LEAST = 20
"""Samples of a class that a correlation can be told from; fewer are pooled with other small classes."""


@checked
def correlation(parents: Tensor, children: Tensor, labels: Tensor | None = None, *, least: int = LEAST) -> Tensor:
    """Absolute Pearson correlation of every child with every parent.

    With labels it is taken within each class and averaged over the classes, each counting the same, as connectivity is
    defined in "Information Flow on Continual Learning" (Andle and Yasaei Sekeh, 2022, arXiv:2204.12010) but for one
    detail: here each variable is standardised by itself, where there a layer is as a whole; a correlation is the same.

    Args:
        parents: [N, parents], one value per sample and channel; [N] is one parent.
        children: [N, children], of the same samples.
        labels: [N], the class of each sample, whole numbers; None: all samples together.
        least: classes with fewer samples are pooled and count as many times as there are of them; where even all of
            them together have fewer, they are left out, unless there are no others.

    Returns:
        [children, parents], in [0, 1], float64 where the input is and float32 otherwise. A constant parent or child
        (standard deviation below 1e-6) has 0.

    Raises:
        ArgumentError: ``least`` is not a positive whole number.
        DataError: NaN or infinite values, different numbers of samples, fewer than 2, or labels of another kind.

    >>> x = torch.tensor([0.0, 1.0, 2.0, 3.0])
    >>> correlation(torch.stack([x, torch.ones(4)], 1), -2 * x)
    tensor([[1., 0.]])
    """
    require_positive(least, "least")
    p, x = as_samples(parents, "parents"), as_samples(children, "children")
    count = require_same_samples(parents=p, children=x)
    total = torch.zeros(x.shape[1], p.shape[1], dtype=torch.float64, device=p.device)
    counted = 0
    for rows, classes in _parts(labels, count, least):
        (a, _), (b, _) = standardise(p[rows]), standardise(x[rows])
        total += classes * (b.T @ a / len(a)).abs()
        counted += classes
    return (total / counted).clamp(max=1).to(result_type(parents, children))


def _parts(labels: Tensor | None, count: int, least: int) -> Iterator[tuple[Tensor, int]]:
    """The samples that are looked at together, as rows, and how many classes these are."""
    if labels is None:
        yield torch.arange(count), 1
        return
    whole = not labels.is_floating_point() and not labels.is_complex() and holds_numbers(labels)
    if labels.shape != (count,) or not whole:
        raise DataError(
            f"labels of shape {tuple(labels.shape)} and dtype {labels.dtype} for {count} samples: one whole number "
            "per sample is needed."
        )
    _, place, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    for number in (sizes >= least).nonzero().flatten().tolist():
        yield (place == number).nonzero().flatten(), 1
    rest = (sizes < least)[place].nonzero().flatten()
    if len(rest) >= least or len(rest) == count:
        yield rest, int((sizes < least).sum())
