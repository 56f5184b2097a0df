"""Rows of layers that are alike are told once, and nothing that differs is lost."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from nervure import Magnitude, prune, zoo
from nervure.core.markup import fold_numbered

numbers = st.lists(st.integers(0, 12), unique=True)


def unfolded(row: tuple[str, ...]) -> list[tuple[str, ...]]:
    before, brace, after = row[0].partition("{")
    if not brace:
        return [row]
    ranges, _, end = after.partition("}")
    ends = [[int(n) for n in one.split("..")] for one in ranges.split(",")]
    return [(f"{before}{n}{end}", *row[1:]) for one in ends for n in range(one[0], one[-1] + 1)]


@given(numbers, numbers)
def test_what_is_told_once_is_all_that_there_was(wide: list[int], narrow: list[int]) -> None:
    rows = [*((f"layers.{n}.fc", "8 -> 4") for n in wide), *((f"layers.{n}.fc", "8 -> 2") for n in narrow)]
    found = fold_numbered(rows)
    assert sorted(itertools.chain.from_iterable(map(unfolded, found))) == sorted(rows)
    assert len(found) == sum(1 if len(some) > 2 else len(some) for some in (wide, narrow))


def test_names_that_are_not_numbered_by_dots_and_equal_numbers_stay() -> None:
    names = ("layer1", "layer2", "layer3", "a.1{}", "a.2{}", "a.3{}", "{}", "a.01", "a.1", "b.2")
    rows = [(name, "") for name in names]
    assert fold_numbered(rows) == rows


def test_a_plan_tells_layers_that_are_cut_alike_once() -> None:
    vit = zoo.build("vit_tiny", image_size=16, patch=4, dim=32, depth=4, heads=2)
    pruned = prune(vit, torch.randn(1, 3, 16, 16), Magnitude(keep=0.5, scope="uniform"), progress=False)
    lines = pruned.plan.describe(pruned.graph).splitlines()
    (hidden,) = (line for line in lines if "{0..3}.mlp" in line)
    assert "128 -> 64" in hidden
