"""Correlation: what numpy says, class by class, and what happens to small classes and dead channels."""

import numpy as np
import pytest
import torch

from nervure.dependence import correlation
from nervure.errors import ArgumentError, DataError


def drawn(samples: int = 300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    parents = torch.randn(samples, 4, generator=generator)
    return parents, parents @ torch.randn(4, 3, generator=generator) + torch.randn(samples, 3, generator=generator)


def by_numpy(parents: torch.Tensor, children: torch.Tensor) -> torch.Tensor:
    whole = np.corrcoef(parents.double().numpy().T, children.double().numpy().T)
    return torch.from_numpy(np.abs(whole[parents.shape[1] :, : parents.shape[1]])).float()


def test_without_labels_it_is_the_absolute_correlation() -> None:
    parents, children = drawn()
    torch.testing.assert_close(correlation(parents, children), by_numpy(parents, children))


def test_with_labels_it_is_the_mean_over_classes() -> None:
    parents, children = drawn()
    labels = torch.arange(300) % 3
    each = [by_numpy(parents[labels == c], children[labels == c]) for c in range(3)]
    torch.testing.assert_close(correlation(parents, children, labels), torch.stack(each).mean(0))


def test_what_only_follows_the_class_is_not_connected_within_it() -> None:
    # Simpson: over all samples the two rise together, within each class the second falls.
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(900) % 3
    inner = torch.randn(900, generator=generator)
    parents = torch.stack([4.0 * labels + inner, 4.0 * labels + torch.randn(900, generator=generator)], 1)
    child = 4.0 * labels - inner
    over_all, within = correlation(parents, child)[0], correlation(parents, child, labels)[0]
    assert over_all.min() > 0.8
    assert within[0] > 0.999
    assert within[1] < 0.1


def test_small_classes_are_pooled_and_count_for_their_number() -> None:
    parents, children = drawn(70)
    labels = torch.tensor([0] * 40 + [1] * 15 + [2] * 15)
    large, small = by_numpy(parents[:40], children[:40]), by_numpy(parents[40:], children[40:])
    torch.testing.assert_close(correlation(parents, children, labels), (large + 2 * small) / 3)


def test_a_few_samples_of_other_classes_are_left_out() -> None:
    parents, children = drawn(45)
    labels = torch.tensor([7] * 40 + [1, 2, 3, 3, 3])
    torch.testing.assert_close(correlation(parents, children, labels), by_numpy(parents[:40], children[:40]))


def test_fewer_samples_than_classes_are_looked_at_together() -> None:
    parents, children = drawn(12)
    torch.testing.assert_close(correlation(parents, children, torch.arange(12)), correlation(parents, children))


def test_a_constant_variable_is_connected_to_nothing() -> None:
    parents, children = drawn()
    parents[:, 1], children[:, 2] = 3.0, -1.0
    found = correlation(parents, children, torch.arange(300) % 2)
    assert not found[:, 1].any()
    assert not found[2].any()
    assert (found[:2][:, [0, 2, 3]] > 0).all()


def test_scale_and_place_do_not_matter() -> None:
    parents, children = drawn()
    moved = correlation(parents * torch.tensor([1.0, -2.0, 30.0, 0.1]) + 5, children - 1)
    torch.testing.assert_close(moved, correlation(parents, children))


def test_bad_arguments_are_refused() -> None:
    parents, children = drawn(30)
    with pytest.raises(DataError, match="one whole number"):
        correlation(parents, children, torch.zeros(30))
    with pytest.raises(DataError, match="29"):
        correlation(parents, children, torch.zeros(29, dtype=torch.long))
    with pytest.raises(ArgumentError, match="least"):
        correlation(parents, children, least=0)
