"""The algebra of labels: unions, patterns, products."""

import numpy as np
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
