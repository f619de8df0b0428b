"""`IndexSet` is a set of ints, whatever is done to it, and as small as its gaps."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from trio_ckpt._util.index_set import IndexSet, spans

INDEXES = st.integers(0, 9)  # few, so that gaps open and close
SETS = st.sets(INDEXES)
STEPS = st.lists(st.tuples(st.booleans(), INDEXES))


def check(indexes: IndexSet, plain: set[int]) -> None:
    """See that the two are equal in every way one can look at them."""
    assert list(indexes) == sorted(plain)
    assert len(indexes) == len(plain)
    assert [index in indexes for index in range(-1, 33)] == [n in plain for n in range(-1, 33)]
    assert indexes.stop == max(plain, default=-1) + 1
    intervals = list(indexes.intervals())
    assert all(start < stop for start, stop in intervals)
    assert all(before[1] < after[0] for before, after in pairwise(intervals))  # joined if adjacent


@given(STEPS)
def test_adding_and_discarding_is_that_of_a_set(steps: list[tuple[bool, int]]) -> None:
    indexes, plain = IndexSet(), set[int]()
    for is_add, index in steps:
        if is_add:
            assert indexes.add(index) == (index not in plain)
            plain.add(index)
        else:
            assert indexes.discard(index) == (index in plain)
            plain.discard(index)
        check(indexes, plain)


@given(SETS, INDEXES, INDEXES)
def test_what_is_missing(plain: set[int], start: int, stop: int) -> None:
    indexes = IndexSet(plain)
    missing = [index for index in range(start, stop) if index not in plain]
    assert list(indexes.missing(start, stop)) == missing
    assert indexes.covers(start, stop) == (not missing)
    first = next(index for index in range(start, 64) if index not in plain)
    assert indexes.first_missing(start) == first


@given(SETS, SETS)
def test_equality_is_that_of_the_sets(one: set[int], other: set[int]) -> None:
    assert (IndexSet(one) == IndexSet(sorted(other, reverse=True))) == (one == other)
    assert IndexSet(one) != one


@given(SETS, INDEXES)
def test_a_copy_goes_its_own_way(plain: set[int], index: int) -> None:
    indexes = IndexSet(plain)
    twin = indexes.copy()
    twin.add(index)
    twin.discard(min(plain, default=0))
    check(indexes, plain)
    check(twin, (plain | {index}) - {min(plain, default=0)})


@given(SETS)
def test_steps_bring_back_the_same_set(plain: set[int]) -> None:
    indexes = IndexSet(plain)
    check(IndexSet.from_steps(indexes.to_steps()), plain)
    assert IndexSet.from_steps(indexes.to_steps()) == indexes


@given(st.lists(st.integers(-2, 5)))
def test_steps_are_a_set_in_its_one_form_or_refused(steps: list[int]) -> None:
    try:
        indexes = IndexSet.from_steps(steps)
    except ValueError:
        assert len(steps) % 2 or min(steps) < 0 or 0 in steps[1:]
    else:
        check(indexes, set(indexes))
        assert indexes.to_steps() == steps


def test_a_million_in_order_is_one_interval_and_two_steps() -> None:
    indexes = IndexSet(range(1_000_000))
    assert list(indexes.intervals()) == [(0, 1_000_000)]
    assert indexes.to_steps() == [0, 1_000_000]


def test_an_index_is_not_negative() -> None:
    with pytest.raises(ValueError, match="not -1"):
        IndexSet([-1])


def test_it_is_shown_as_people_write_it_and_has_no_hash() -> None:
    assert repr(IndexSet([0, 1, 2, 5])) == "IndexSet(0-2, 5)"
    with pytest.raises(TypeError):
        hash(IndexSet())


@given(SETS, SETS)
def test_subtracting_is_that_of_sets(one: set[int], other: set[int]) -> None:
    indexes, gone = IndexSet(one), IndexSet(other)
    indexes.subtract(gone)
    check(indexes, one - other)
    check(gone, other)


@given(SETS, st.integers(-3, 12))
def test_after_is_what_is_greater(plain: set[int], index: int) -> None:
    indexes = IndexSet(plain)
    later = indexes.after(index)
    check(later, {one for one in plain if one > index})
    later.add(11)
    check(indexes, plain)


@given(SETS, st.integers(-1, 12), st.none() | st.integers(-1, 12))
def test_counting_is_that_of_a_set(plain: set[int], start: int, stop: int | None) -> None:
    end = 64 if stop is None else stop
    assert IndexSet(plain).count(start, stop) == sum(start <= index < end for index in plain)


def test_of_a_million_a_few_are_subtracted_and_counted() -> None:
    indexes = IndexSet.from_steps([0, 1_000_000])
    indexes.subtract(IndexSet([0, 500_000, 999_999, 2_000_000]))
    assert list(indexes.intervals()) == [(1, 500_000), (500_001, 999_999)]
    assert len(indexes) == indexes.count(0) == 999_997
    assert list(indexes.after(999_996)) == [999_997, 999_998]


def test_more_than_memory_has_room_for_is_not_listed() -> None:
    """As where a store says how many batches there are: nothing has checked that."""
    done = IndexSet.from_steps([10, 2**62])
    assert done.list_missing(5, 2**62) == [5, 6, 7, 8, 9]
    assert done.list_missing(7, 3) == []
    with pytest.raises(ValueError, match="4,611,686,018,427,387,904 batches are too many"):
        IndexSet().list_missing(0, 2**62)


def test_indexes_as_text_are_intervals_and_a_count_of_more() -> None:
    assert spans([(17, 18), (203, 211)]) == "17, 203-210"
    assert str(IndexSet([3, 4, 5, 7])) == "3-5, 7"
    assert str(IndexSet(range(0, 22, 2))) == "0, 2, 4, 6, 8, 10, 12, 14, … (3 more)"
    assert str(IndexSet()) == ""
