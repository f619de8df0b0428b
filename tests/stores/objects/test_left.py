"""What a failure leaves in a bucket: it is removed later, or named; and it disturbs no save."""

from __future__ import annotations

import threading

import pytest
import trio

from tests.hangs import HANG_S
from tests.stores.objects.buckets import (
    KEYS,
    LEASE_S,
    ClockedBucket,
    HandClock,
    Process,
    check_confirmed,
    nothing,
    run_keys,
)
from trio_ckpt._buckets.bucket import NoAnswerError, RefusedError
from trio_ckpt._buckets.requests import Requests, retry_s_of
from trio_ckpt.abc import Checkpoint, RunKey, Severity
from trio_ckpt.stores._objects import blobs
from trio_ckpt.stores._objects.check import findings
from trio_ckpt.stores._objects.entries import NamedBlob
from trio_ckpt.stores._objects.merge import EVERY
from trio_ckpt.stores._objects.owning import give_back, remove
from trio_ckpt.stores._objects.store import ObjectsStore

STREAM = '["s"]'


def saved(bucket: ClockedBucket, count: int = 4) -> Process:
    """A process that owns the run, and has saved so much."""
    process = Process.on(bucket)
    process.take()
    for _ in range(count):
        assert process.save()
    return process


def keys_in(bucket: ClockedBucket, folder: str) -> list[str]:
    return [one.key for one in bucket.list(f"{run_keys().folder}/{folder}")]


def named(bucket: ClockedBucket) -> list[tuple[str, Severity]]:
    """What a check names."""
    found = findings(Requests(bucket, pause=lambda _: None), KEYS)
    return [(one.where, one.severity) for one in found if one is not None]


async def test_a_save_does_not_wait_for_the_merging_that_it_is_due_to() -> None:
    bucket, may_go_on = ClockedBucket(HandClock()), threading.Event()
    store = await ObjectsStore.open("s3://bucket", requests=Requests(bucket))

    def wait(_verb: str, key: str) -> None:
        if "/page/" in key:
            may_go_on.wait(HANG_S)

    async with store.lock_run("run") as owner:
        bucket.before = wait
        with trio.fail_after(HANG_S / 2):
            for sequence in range(1, EVERY):
                group = [Checkpoint(STREAM, sequence, b"x")]
                assert await store.save(RunKey("run", 0, owner), group) == [None]
        assert keys_in(bucket, "base") == []
        may_go_on.set()
        group = [Checkpoint(STREAM, EVERY, b"x")]
        assert await store.save(RunKey("run", 0, owner), group) == [None]
        assert len(keys_in(bucket, "base")) == 1  # the next save came after it


@pytest.mark.parametrize("folder", ["base", "log"])
def test_what_could_not_be_removed_is_removed_later(folder: str) -> None:
    bucket = ClockedBucket(HandClock())
    process = saved(bucket)
    process.merge()
    assert process.save()

    def fail(verb: str, key: str) -> None:
        if verb == "delete" and f"/{folder}/" in key:
            raise NoAnswerError("500")

    bucket.before = fail
    process.requests = process.requests.within(0)
    process.merge()
    bucket.before = nothing
    assert [severity for _, severity in named(bucket)] == [Severity.NOTE]
    check_confirmed(bucket, process)
    assert process.owned is not None
    remove(process.requests, process.owned)
    assert named(bucket) == []
    assert len(keys_in(bucket, "base")) == len(keys_in(bucket, "log")) == 1
    check_confirmed(bucket, process)


def merge_without_base(bucket: ClockedBucket, process: Process) -> None:
    """Merge where the bucket refuses the base, so that its page is left."""

    def refuse(verb: str, key: str) -> None:
        if verb == "create" and "/base/" in key:
            raise RefusedError("403")

    bucket.before = refuse
    with pytest.raises(RefusedError):
        process.merge()
    bucket.before = nothing


def test_a_page_that_no_base_names_is_removed_by_the_next_merging() -> None:
    bucket = ClockedBucket(HandClock())
    process = saved(bucket)
    merge_without_base(bucket, process)
    (stray,) = keys_in(bucket, "page")
    assert process.save()
    process.merge()
    assert len(keys_in(bucket, "page")) == 1
    assert keys_in(bucket, "page") != [stray]
    check_confirmed(bucket, process)


def test_a_merging_that_is_tried_again_keeps_its_page() -> None:
    """Nothing was saved since, so it has the same key."""
    bucket = ClockedBucket(HandClock())
    process = saved(bucket)
    merge_without_base(bucket, process)
    process.merge()
    check_confirmed(bucket, process)
    assert named(bucket) == []


def test_what_a_killed_owner_left_is_named() -> None:
    clock = HandClock()
    bucket = ClockedBucket(clock)
    process = saved(bucket)

    def fail(verb: str, _key: str) -> None:
        if verb == "delete":
            raise NoAnswerError("500")

    bucket.put(f"{run_keys().pages}/{2:016x}-{3:016x}-1", b"")  # of a merging before
    process.requests = process.requests.within(0)
    bucket.before = fail
    process.merge()
    bucket.before = nothing
    clock.now += LEASE_S + 1
    heir = Process.on(bucket)
    heir.take()
    assert heir.save()
    found = named(bucket)
    assert {severity for _, severity in found} == {Severity.NOTE}
    left = {key.split("/")[-2] for key, _ in found}
    assert (left, len(found)) == ({"log", "page"}, 5)
    bucket.delete([key for key, _ in found])
    assert named(bucket) == []
    check_confirmed(bucket, process, heir)


def test_a_lock_survives_an_older_base_that_cannot_be_removed() -> None:
    clock = HandClock()
    bucket = ClockedBucket(clock)
    process = saved(bucket)
    process.merge()
    old = bucket.get(run_keys().base(process.saved + 1)) or b""
    assert process.save()
    process.merge()
    bucket.put(run_keys().base(process.saved), old)  # it landed late
    assert process.owned is not None
    give_back(process.requests, process.clock, process.owned)

    def fail(verb: str, _key: str) -> None:
        if verb == "delete":
            raise RefusedError("403")

    bucket.before = fail
    heir = Process.on(bucket)
    heir.take()
    bucket.before = nothing
    assert heir.owned is not None
    remove(heir.requests, heir.owned)
    assert len(keys_in(bucket, "base")) == 1


class DroppingBucket(ClockedBucket):
    """A bucket in which a blob is dropped right before it is read."""

    process: Process | None = None

    def get_range(self, key: str, offset: int, size: int) -> bytes | None:
        if self.process is not None and "/blob/" in key:
            assert self.process.save()  # what the entry says does not matter here
            self.delete([key])
        return super().get_range(key, offset, size)


@pytest.mark.parametrize("is_running", [False, True])
def test_a_blob_that_is_dropped_while_it_is_checked_is_no_damage(is_running: bool) -> None:
    bucket = DroppingBucket(HandClock())
    process = saved(bucket)
    spooled = blobs.spool(process.requests, run_keys(), b"a blob")
    name = blobs.upload(process.requests, run_keys(), spooled)
    assert process.owned is not None
    process.owned.loaded.state.uploads[spooled.digest] = NamedBlob(name, 6, 1)
    process.merge()
    assert named(bucket) == []
    if is_running:
        bucket.process = process
        assert named(bucket) == []
    else:
        bucket.delete([run_keys().blob(spooled.digest, name)])
        assert named(bucket) == [(run_keys().blobs, Severity.BAD)]


def test_requests_of_a_short_lease_are_given_up_before_it_ends() -> None:
    assert retry_s_of(60) == retry_s_of(600) == 25
    assert retry_s_of(6) == 2.5
