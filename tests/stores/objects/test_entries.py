"""What the entries of a log amount to; an entry that was never written there is damage."""

from __future__ import annotations

import msgspec
import pytest

from trio_ckpt._util.errors import StoreDamagedError
from trio_ckpt.stores._objects.entries import (
    Drop,
    Holder,
    LogEntry,
    LogRecord,
    LogState,
    NewBlob,
    NewFold,
)

HOLDER = Holder("host", 1, 0.0, 60.0, b"nonce")


def begun() -> LogState:
    state = LogState()
    state.apply(LogEntry(1, 0, 1.0, holder=HOLDER))
    return state


def record(sequence: int, prev: int, *blobs: str) -> LogRecord:
    return LogRecord("[]", sequence, prev, b"xy", None, blobs)


def test_a_state_is_the_same_after_it_was_stored() -> None:
    state = begun()
    state.apply(LogEntry(1, 0, 2.0, (record(1, 0, "d"),), uploads=(NewBlob("d", "u", 9),)))
    state.apply(LogEntry(1, 0, 3.0, (record(2, 2),), (NewFold("[]", 1, b"fold"),), summary=b"s"))
    data = msgspec.msgpack.encode(state)
    assert msgspec.msgpack.decode(data, type=LogState) == state
    (generation,) = state.generations.values()
    assert (generation.records, generation.size, generation.updated_at) == (2, 4, 3.0)


def test_a_blob_is_freed_with_its_last_name() -> None:
    state = begun()
    state.apply(LogEntry(1, 0, 2.0, (record(1, 0, "d"),), uploads=(NewBlob("d", "u", 9),)))
    state.apply(LogEntry(1, 0, 2.0, (record(2, 2, "d"),)))
    assert state.apply(LogEntry(1, 0, 3.0, drops=(Drop("[]", (1,)),))) == {}
    freed = state.apply(LogEntry(1, 0, 3.0, drops=(Drop("[]", (1, 2, 3)),)))
    assert {digest: blob.size for digest, blob in freed.items()} == {"d": 9}
    assert not state.uploads


def test_a_removed_run_goes_on_with_the_next_generation() -> None:
    state = begun()
    state.apply(LogEntry(1, 0, 2.0, (record(1, 0),)))
    state.apply(LogEntry(1, 0, 3.0, first=1))
    assert state.newest is None
    assert state.next_generation() == 1
    state.apply(LogEntry(1, 0, 3.0, is_released=True))
    assert state.holder is None
    state.apply(LogEntry(2, 1, 4.0, holder=HOLDER))
    assert state.newest is not None
    assert state.newest.heads == {}


@pytest.mark.parametrize(
    "entry",
    [
        LogEntry(1, 0, 2.0, holder=HOLDER),
        LogEntry(3, 0, 2.0, holder=HOLDER),
        LogEntry(0, 0, 2.0),
        LogEntry(2, 0, 2.0),
        LogEntry(1, 2, 2.0),
        LogEntry(1, 0, 2.0, (record(2, 0),)),
        LogEntry(1, 0, 2.0, (record(1, 1),)),
        LogEntry(1, 0, 2.0, (record(1, 0, "unknown"),)),
    ],
)
def test_an_entry_that_does_not_follow_is_damage(entry: LogEntry) -> None:
    with pytest.raises(StoreDamagedError):
        begun().apply(entry)


def test_nothing_follows_a_run_that_was_given_back_but_an_owner() -> None:
    state = begun()
    state.apply(LogEntry(1, 0, 2.0, is_released=True))
    with pytest.raises(StoreDamagedError):
        state.apply(LogEntry(1, 0, 3.0))
