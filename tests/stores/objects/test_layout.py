"""Keys have the order of what they stand for, and no object is taken for another."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trio_ckpt._util.errors import StoreDamagedError
from trio_ckpt.stores._objects.layout import LogPage, StoreKeys, position_of, seal, unseal

KEYS = StoreKeys("a/b")
ids = st.text(max_size=30)


@given(ids.filter(bool), ids.filter(bool))
def test_names_are_in_the_order_of_short_ids(one: str, other: str) -> None:
    assert (KEYS.name(one) < KEYS.name(other)) == (one < other)


@given(ids.filter(bool), ids.filter(bool))
def test_a_list_begins_before_all_ids_from_a_text_on(start: str, run_id: str) -> None:
    before = KEYS.before_name(start)
    assert before is not None
    if run_id >= start:
        assert KEYS.name(run_id) > before
    elif len(run_id.encode()) == len(start.encode()) and run_id[:-1] != start[:-1]:
        assert KEYS.name(run_id) < KEYS.name(start)
    assert before < KEYS.name(start)


def test_long_ids_have_keys_that_fit() -> None:
    names = {KEYS.name("é" * 199 + end) for end in "abc"}
    assert len(names) == 3
    assert max(map(len, names)) < 250
    assert KEYS.name("a" * 100) != KEYS.name("a" * 101)


def test_positions_are_read_from_keys() -> None:
    run = KEYS.run("run")
    for position in (1, 255, 2**40):
        assert position_of(run.log(position)) == position
        assert position_of(run.base(position), is_base=True) == position
    assert run.log(15) < run.log(16)
    assert run.base(15) > run.base(16)
    for key in (run.page(LogPage(1, 2, 3)), f"{run.logs}/x", f"{run.logs}/{'0' * 17}"):
        with pytest.raises(StoreDamagedError, match="is not an object of a store"):
            position_of(key)


def test_an_altered_object_is_noticed() -> None:
    data = seal([1, 2])
    assert unseal(data, list[int], "key") == [1, 2]
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 1
        with pytest.raises(StoreDamagedError, match="key is not what was saved"):
            unseal(bytes(altered), list[int], "key")
    with pytest.raises(StoreDamagedError, match="key cannot be read"):
        unseal(data, LogPage, "key")
    with pytest.raises(StoreDamagedError):
        unseal(b"", list[int], "key")
