"""The algebra of labels: unions, patterns, products."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nervure.graph.labels import NONE, LabelArray, LabelState, TensorLabels, Unions, compress, is_pending, pattern


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60))
def test_unions_agree_with_a_plain_search_for_connected_parts(pairs: list[tuple[int, int]]) -> None:
    unions = Unions()
    unions.fresh(30)
    if pairs:
        unions.unite(np.array([a for a, _ in pairs]), np.array([b for _, b in pairs]))
    parts = [{i} for i in range(30)]
    for a, b in pairs:
        joined = next(p for p in parts if a in p) | next(p for p in parts if b in p)
        parts = [p for p in parts if not p & joined] + [joined]
    expected = [min(next(p for p in parts if i in p)) for i in range(30)]
    assert unions.find(np.arange(30)).tolist() == expected


def test_labels_survive_growing() -> None:
    unions = Unions()
    first = unions.fresh(3)
    unions.unite(first[:1], first[1:2])
    later = unions.fresh(5000)
    unions.unite(first[2:], later[-1:])
    assert unions.find(np.array([first[1], later[-1], NONE])).tolist() == [0, 2, NONE]


def test_compressing_drops_only_constant_axes() -> None:
    labels = np.broadcast_to(np.arange(4)[None, :, None], (2, 4, 3))
    assert compress(labels).shape == (1, 4, 1)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.permutations(range(5)))
def test_a_pattern_forgets_names_only(labels: list[int], names: list[int]) -> None:
    array = np.array(labels)
    assert pattern(array) == pattern(np.array(names)[array])
    changed = array.copy()
    changed[0] = 7
    assert (pattern(array) == pattern(changed)) == (labels.count(labels[0]) == 1)


def row(labels: list[int], axis: int, rank: int) -> LabelArray:
    return LabelArray(np.array(labels).reshape([-1 if i == axis else 1 for i in range(rank)]))


def test_joining_unites_where_both_have_units_and_pins_where_only_one_has() -> None:
    store = LabelState()
    a, b, c = store.unions.fresh(3), store.unions.fresh(3), store.unions.fresh(2)
    left = TensorLabels((row(a.tolist(), 0, 2), row(c.tolist(), 1, 2)))
    right = TensorLabels((row(b.tolist(), 0, 2),))
    store.join([(left, (3, 2)), (right, (3, 2))], (3, 2), "here")
    assert store.unions.find(b).tolist() == a.tolist()
    assert [p.labels.tolist() for p in store.pins] == [c.tolist()]


def test_a_broadcast_operand_pins_nothing() -> None:
    store = LabelState()
    a = store.unions.fresh(3)
    joined = store.join([(TensorLabels((row(a.tolist(), 1, 2),)), (2, 3)), (TensorLabels(), (1,))], (2, 3), "here")
    assert not store.pins
    assert len(joined.layers) == 1


def test_a_layer_over_two_axes_asks_to_become_a_product() -> None:
    store = LabelState()
    labels = store.unions.fresh(6).reshape(2, 3)
    waiting = store.rectangular([LabelArray(labels)], "here")
    assert [layer.support for layer in waiting] == [(0,), (1,)]
    assert all(is_pending(layer) for layer in waiting)
    (split,) = store.splits
    assert sorted(map(tuple, split.coordinates.tolist())) == [(i, j) for i in range(2) for j in range(3)]


def test_slices_put_together_from_different_places_are_cut_alike() -> None:
    store = LabelState()
    a, b = store.unions.fresh(3), store.unions.fresh(3)
    (kept,) = store.rectangular([LabelArray(np.stack([a, b]))], "here")
    assert kept.support == (1,)
    assert store.unions.find(b).tolist() == a.tolist()


def test_parts_of_an_axis_that_are_divided_differently_meet_part_by_part() -> None:
    store = LabelState()
    channels, widths = store.unions.fresh(3), store.unions.fresh(2)
    blocks = [
        LabelArray(np.concatenate([channels, np.repeat(channels, 2)])),
        LabelArray(np.array([-1, -1, -1, *[*widths] * 3])),
    ]
    reader = LabelArray(store.unions.fresh(9))
    store.match([reader], blocks, "here")
    assert not store.pins
    assert [len(s.labels) for s in store.splits] == [6]


def test_a_division_meets_a_finer_one_of_the_same_axis() -> None:
    store = LabelState()
    heads, widths = store.unions.fresh(2), store.unions.fresh(3)
    coarse = [LabelArray(np.tile(np.repeat(heads, 3), 2)), LabelArray(np.tile(widths, 4))]
    finer = [
        LabelArray(np.repeat(store.unions.fresh(4), 3)),
        LabelArray(np.tile(store.unions.fresh(6).reshape(2, 3), 2).reshape(-1)),
    ]
    store.match(coarse, list(reversed(finer)), "here")
    assert not store.pins and not store.splits
    assert len(np.unique(store.unions.find(finer[0].labels))) == 2


def test_divisions_that_cross_each_other_stay() -> None:
    store = LabelState()
    one = [LabelArray(np.repeat(store.unions.fresh(2), 3)), LabelArray(np.tile(store.unions.fresh(3), 2))]
    other = [LabelArray(np.repeat(store.unions.fresh(3), 2)), LabelArray(np.tile(store.unions.fresh(2), 3))]
    store.match(one, other, "here")
    assert "another division" in store.pins[0].reason


def layers_of(store: LabelState, *drawn: str) -> tuple[list[LabelArray], dict[str, int]]:
    """Layers as they are drawn in docstrings, ``"a a b -"``, and the label of each sign."""
    signs = [line.split() for line in drawn]
    names = list(dict.fromkeys(sign for line in signs for sign in line if sign != "-"))
    labels = dict(zip(names, store.unions.fresh(len(names)).tolist(), strict=True)) | {"-": NONE}
    return [LabelArray(np.array([labels[sign] for sign in line])) for line in signs], labels


MATCHES: dict[str, tuple[list[str], list[str], str]] = {
    "equal patterns pair up": (["0 0 1 1", "5 6 5 6"], ["8 9 8 9", "3 3 4 4"], "03 14 58 69"),
    "stretch by stretch": (["0 1 2 3 4"], ["7 8 - - -", "- - a b c"], "07 18 2a 3b 4c"),
    "one tells more apart": (
        ["0 0 1 1 2 2 3 3", "5 6 5 6 5 6 5 6"],
        ["7 7 7 7 8 8 8 8", "9 a b c 9 a b c"],
        "01 07 23 28 59 5b 6a 6c",
    ),
    "parts told apart": (
        ["0 0 1 1 2 2 3 3", "4 5 4 5 6 7 6 7"],
        ["h h i i h h i i", "w x w x w x w x", "p p p p q q q q"],
        "0h 2h 1i 3i 4w 6w 5x 7x",
    ),
}


@pytest.mark.parametrize("name", MATCHES)
def test_layers_are_matched_as_it_is_drawn(name: str) -> None:
    left, right, expected = MATCHES[name]
    store = LabelState()
    drawn, labels = layers_of(store, *left, *right)
    store.match(drawn[: len(left)], drawn[len(left) :], "here")
    united = {sign: store.unions.root(label) for sign, label in labels.items()}
    assert all(united[a] == united[b] for a, b in expected.split())
    met = {sign for pair in expected.split() for sign in pair}
    alone = {sign for sign in labels if sign not in met and sign != "-"}
    assert len({united[sign] for sign in alone}) == len(alone)
    assert {label for pin in store.pins for label in pin.labels.tolist()} == {labels[sign] for sign in alone}


def test_one_layer_that_meets_several_becomes_a_product_of_them() -> None:
    store = LabelState()
    drawn, _ = layers_of(store, "0 1 2 3", "5 5 6 6", "8 9 8 9")
    store.match(drawn[:1], drawn[1:], "here")
    assert [split.coordinates.tolist() for split in store.splits] == [[[0, 0], [0, 1], [1, 0], [1, 1]]]


@pytest.mark.parametrize(("rows", "places"), [([[0, 1, 2], [3, 4, 5]], [1, 1]), ([[0, 1, 2], [2, 3, 4]], None)])
def test_a_layer_is_a_product_if_each_unit_has_one_place_along_each_axis(
    rows: list[list[int]], places: list[int] | None
) -> None:
    store = LabelState()
    store.unions.fresh(6)
    kept = store.rectangular([LabelArray(np.array(rows))], "here")
    if places is None:
        assert not store.splits
        assert not kept
        assert store.pins
    else:
        assert store.splits[0].coordinates[4].tolist() == places
