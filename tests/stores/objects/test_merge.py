"""Entries are merged into pages, pages into indexes; nothing is lost, and a base stays small."""

from __future__ import annotations

from contextlib import suppress

import attrs
import pytest
from msgspec import msgpack

from tests.stores.objects.buckets import (
    KEYS,
    LEASE_S,
    ClockedBucket,
    HandClock,
    Process,
    check_confirmed,
    payloads_in,
    run_keys,
)
from trio_ckpt._buckets import requests
from trio_ckpt._buckets.bucket import NoAnswerError
from trio_ckpt._buckets.requests import Requests
from trio_ckpt._util.errors import StoreError
from trio_ckpt.abc import RunKey
from trio_ckpt.stores._objects import merge
from trio_ckpt.stores._objects.load import load
from trio_ckpt.stores._objects.owning import give_back
from trio_ckpt.stores._objects.prune import prune
from trio_ckpt.stores._objects.read import read_history


def keys_in(bucket: ClockedBucket, folder: str) -> list[str]:
    return [one.key for one in bucket.list(f"{run_keys().folder}/{folder}")]


def test_a_log_is_merged_when_it_is_long() -> None:
    bucket = ClockedBucket(HandClock())
    process = Process.on(bucket)
    process.take()
    for _ in range(3 * merge.EVERY):
        assert process.save()
    assert len(keys_in(bucket, "page")) == 3
    assert len(keys_in(bucket, "base")) == 1
    assert len(keys_in(bucket, "log")) < merge.EVERY
    check_confirmed(bucket, process)
    assert load(Requests(bucket), run_keys()).base == 3 * merge.EVERY


def test_a_base_stays_small_and_all_pages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "FAN_OUT", 2)
    bucket = ClockedBucket(HandClock())
    process = Process.on(bucket)
    process.take()
    for _ in range(40):
        assert process.save(2)
        process.merge()
    assert process.owned is not None
    state = process.owned.loaded.state
    assert max(map(len, state.pages)) < 4
    assert len(state.pages) == 4
    check_confirmed(bucket, process)
    found, cursor = list[bytes](), None
    while True:
        page = read_history(Requests(bucket), run_keys(), '["s"]', None, cursor, 7)
        found += [record.payload for record in page.records]
        cursor = page.cursor
        if cursor is None:
            break
    assert found[::-1] == process.confirmed


def test_what_a_prune_removes_is_removed_from_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "FAN_OUT", 2)
    bucket = ClockedBucket(HandClock())
    process = Process.on(bucket)
    process.take()
    for _ in range(20):
        process.save()
        process.merge()
    assert process.owned is not None
    pruned = prune(process.requests, process.clock, process.owned, RunKey("run", 0, 1), 0)
    assert (pruned.generations, pruned.records) == (1, 20)
    assert keys_in(bucket, "page") == keys_in(bucket, "index") == []
    assert len(keys_in(bucket, "log")) == len(keys_in(bucket, "base")) == 1
    assert payloads_in(bucket) == []


def test_a_merging_that_fails_disturbs_no_save(caplog: pytest.LogCaptureFixture) -> None:
    bucket = ClockedBucket(HandClock())
    process = Process.on(bucket)
    process.take()

    def fail(_verb: str, key: str) -> None:
        if "/page/" in key or "/base/" in key:
            raise NoAnswerError("500")

    bucket.before = fail
    for _ in range(merge.EVERY + 5):
        assert process.save()
    assert caplog.text.count("its log is merged later") == 1
    bucket.before = lambda verb, key: None
    check_confirmed(bucket, process)
    for _ in range(merge.EVERY):
        assert process.save()
    assert len(keys_in(bucket, "base")) == 1
    check_confirmed(bucket, process)


@attrs.define
class SlowTime:
    """The time of a process whose requests take so long each; `sleep` is not called."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_slow_bucket_does_not_keep_a_lease_from_being_renewed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No request is begun after an eighth of the lease; the log is merged later."""
    bucket, time = ClockedBucket(HandClock()), SlowTime()
    process, begun = Process.on(bucket), list[float]()
    process.take()
    for _ in range(merge.EVERY - 2):  # the owner's own entry is one, too
        assert process.save()
    monkeypatch.setattr(requests, "time", time)

    def take_long(_verb: str, key: str) -> None:
        if "/log/" not in key:
            begun.append(time.now)
            time.now += LEASE_S / 3

    bucket.before = take_long
    assert process.save()
    assert begun == [0.0]
    assert "its log is merged later" in caplog.text
    bucket.before = lambda verb, key: None
    for _ in range(merge.EVERY):
        assert process.save()
    assert len(keys_in(bucket, "page")) == 1  # the one of the merging that was ended is removed
    check_confirmed(bucket, process)


@pytest.mark.parametrize("at", range(8))
def test_a_process_killed_while_it_merges_loses_nothing(at: int) -> None:
    clock = HandClock()
    bucket = ClockedBucket(clock)
    process, heir = Process.on(bucket), Process.on(bucket)
    process.take()
    for _ in range(4):
        process.save()
    process.merge()
    for _ in range(4):
        process.save()
    left = at

    def kill(_verb: str, _key: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    bucket.before = kill
    with suppress(KeyboardInterrupt):
        process.merge()
    bucket.before = lambda verb, key: None
    check_confirmed(bucket, process)
    clock.now += 61
    heir.take()
    assert heir.save()
    heir.merge()
    check_confirmed(bucket, process, heir)


def test_nothing_new_is_not_merged() -> None:
    bucket = ClockedBucket(HandClock())
    process = Process.on(bucket)
    process.take()
    process.save()
    process.merge()
    process.merge()
    check_confirmed(bucket, process)


def test_a_base_of_another_content_is_not_overwritten() -> None:
    bucket = ClockedBucket(HandClock())
    process = Process.on(bucket)
    process.take()
    process.save()
    bucket.put(run_keys().base(2), msgpack.encode("other"))
    with pytest.raises(StoreError, match="base 2 of run 'run' is another one"):
        process.merge()
    assert process.owned is not None
    assert process.owned.loaded.base == 0


def test_a_run_given_back_has_its_names_once() -> None:
    bucket = ClockedBucket(HandClock())
    for _ in range(3):
        process = Process.on(bucket)
        process.take()
        assert process.owned is not None
        give_back(process.requests, process.clock, process.owned)
    assert [one.key for one in bucket.list(KEYS.names)] == [KEYS.name("run")]


def test_large_entries_are_merged_before_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is read in one request."""
    monkeypatch.setattr(merge, "AT_MOST_BYTES", 1_000)
    bucket = ClockedBucket(HandClock())
    process = Process.on(bucket)
    process.take()
    while process.owned is not None and process.owned.loaded.base == 0:
        assert process.save(5)
        assert process.saved < 100
    assert len(payloads_in(bucket)) == process.saved
