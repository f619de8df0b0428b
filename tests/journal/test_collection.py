"""Partitions: their names, their items, and what a list says of all of them together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from trio_ckpt import NotEncodableError, partition_of
from trio_ckpt._journal.collection import (
    items_of,
    partition_id,
    partition_index,
    split_partition_id,
)


@given(items=st.integers(0, 10_000), partitions=st.integers(1, 300))
def test_ranges_hold_each_item_once_and_differ_by_one(items: int, partitions: int) -> None:
    ranges = [items_of(items, partitions, index) for index in range(partitions)]
    assert [item for one in ranges for item in one] == list(range(items))
    sizes = {len(one) for one in ranges}
    assert max(sizes) - min(sizes) <= 1


def test_ranges_are_exact_for_a_billion_items() -> None:
    assert items_of(10**9, 10**6, 999_999) == range(999_999_000, 10**9)
    assert items_of(10**9, 7, 6).stop == 10**9


@pytest.mark.parametrize(
    ("key", "partition"),
    [
        ("https://example.org/", 83),
        ("", 952),
        ("größe", 21),
        (0, 789),
        (-(2**63), 170),
        (1.5, 893),
        (None, 494),
        (["repo", 12], 72),
        ({"b": 1, "a": [True]}, 947),
    ],
)
def test_a_key_has_the_same_partition_in_every_version(key: Any, partition: int) -> None:
    """Fixed values: a version in which one differs would do items twice, and lose others."""
    assert partition_of(key, 1_000) == partition


def test_equal_keys_have_one_partition() -> None:
    assert partition_of(("a", 1), 10**6) == partition_of(["a", 1], 10**6)
    assert partition_of({"a": 1, "b": 2}, 10**6) == partition_of({"b": 2, "a": 1}, 10**6)


@pytest.mark.parametrize("key", [b"x", object(), float("nan"), {1: 2}, "\ud800"])
def test_a_key_that_has_no_canonical_text_is_refused(key: Any) -> None:
    with pytest.raises(NotEncodableError, match="key"):
        partition_of(key, 10)


@pytest.mark.parametrize("partitions", [0, -1])
def test_there_is_at_least_one_partition(partitions: int) -> None:
    with pytest.raises(ValueError, match="partitions must be an int from 1 on"):
        partition_of("a", partitions)


def test_keys_are_spread_evenly() -> None:
    counts = [0] * 100
    for number in range(100_000):
        counts[partition_of(f"https://example.org/{number}", 100)] += 1
    assert 850 < min(counts) <= max(counts) < 1_150  # five standard deviations of 31


@given(partitions=st.integers(1, 10**6), data=st.data())
def test_names_sort_by_index_and_are_read_back(partitions: int, data: st.DataObject) -> None:
    one, other = sorted(data.draw(st.lists(st.integers(0, partitions - 1), min_size=2, max_size=2)))
    names = [partition_id("crawl.2", index, partitions) for index in (one, other)]
    assert names == sorted(names)
    assert [partition_index("crawl.2", partitions, name) for name in names] == [one, other]
    assert split_partition_id(names[0]) == ("crawl.2", one, len(names[0]) - len("crawl.2."))


@pytest.mark.parametrize(
    "run_id",
    [
        "crawl",
        "crawl.",
        "crawl.0012",
        "crawl.000012",
        "crawl.00012x",
        "crawl.00012.00003",
        "crawl.01000",
        "crawl.2.00012",
        "crawl.\u0660\u0661\u0662\u0663\u0664",
        "xcrawl.00012",
    ],
)
def test_a_name_that_looks_like_a_partition_is_none(run_id: str) -> None:
    assert partition_index("crawl", 1_000, run_id) is None
