"""The saver: what is accepted is read back, and what cannot be is refused before it is durable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings, strategies as st

import trio_ckpt
from tests.watched import WatchedStore
from trio_ckpt import Batch, NotEncodableError, StoreError, open_run, run_batches
from trio_ckpt._commit.group_commit import (
    MAX_GROUP,
    MAX_GROUP_BYTES,
    GroupCommitter,
)
from trio_ckpt._commit.lease import open_committer
from trio_ckpt._commit.saves import save_record
from trio_ckpt._commit.stream_log import PendingCommit, StreamLog
from trio_ckpt._journal.overview import overview_of, stored_overview
from trio_ckpt._journal.record import Record, RecordKind, encode_record
from trio_ckpt._journal.store import MAX_INLINE_LIMIT_BYTES
from trio_ckpt._journal.summary import run_status_from
from trio_ckpt._util.arguments import MAX_INDEX
from trio_ckpt._util.exact_sum import MAX_AMOUNT
from trio_ckpt._util.exceptions import leaves_of
from trio_ckpt.abc import BlobPayload, Checkpoint, Fold, RunKey
from trio_ckpt.cli._render import to_json
from trio_ckpt.cli._show import _run_document
from trio_ckpt.stores import MemoryStore

LARGE = "x" * 2_000  # of a record that becomes a blob in the stores here
INLINE_BYTES = 1_000


class CountingStore(WatchedStore):
    """Counts its blobs, and takes its time for each."""

    def __init__(self, put_s: float = 1.0) -> None:
        super().__init__(inline_limit_bytes=INLINE_BYTES)
        self.put: Counter[str] = Counter()
        self.put_s = put_s

    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        await trio.sleep(self.put_s)
        digest = await super().put_blob(run, payload)
        self.put[digest] += 1
        return digest


class SlowStore(CountingStore):
    """Takes half as long for a save as for a blob."""

    async def before_save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
        await trio.sleep(self.put_s / 2)


# ---------------------------------------------------------------------------------------
# Large records
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 4, 64])
async def test_each_large_record_is_put_once(
    autojump_clock: trio.testing.MockClock, concurrency: int
) -> None:
    """Also where many are on their way: none is sealed again because another came between."""
    store = CountingStore()

    async def handle(batch: Batch[int]) -> None:
        batch.complete(metadata={"page": f"{batch.index} {LARGE}"})

    async with open_run("r", store=store) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(64), handle, concurrency=concurrency)
    assert len(store.put) == store.put.total() == 64
    assert [finding async for finding in store.check()] == []


async def test_small_records_among_large_ones_neither_starve_nor_repeat(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = CountingStore()

    async def handle(batch: Batch[int]) -> None:
        is_large = batch.index % 10 == 0
        batch.complete(metadata={"page": f"{batch.index} {LARGE}" if is_large else ""})

    async with open_run("r", store=store) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(100), handle, concurrency=16)
    assert len(store.put) == store.put.total() == 10
    assert trio.current_time() == 10  # one after another, and nothing else waited for


async def test_streams_do_not_wait_for_each_others_large_records(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = CountingStore(put_s=10)
    times: dict[str, float] = {}

    async def work(run: trio_ckpt.Run, name: str, page: str) -> None:
        async with run.open_stream(name) as stream:
            async for batch in stream.batches(range(1)):
                batch.complete(metadata={"page": page})
        times[name] = trio.current_time()

    async with open_run("r", store=store) as run, trio.open_nursery() as nursery:
        nursery.start_soon(work, run, "large", LARGE)
        nursery.start_soon(work, run, "small", "")
    assert times == {"large": 10, "small": 0}


async def test_blob_of_a_record_before_which_one_failed_is_sealed_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its sequence is another then."""
    store = SlowStore()
    async with (
        store.lock_run("r") as owner,
        open_committer(store, RunKey("r", 0, owner)) as committer,
    ):
        stream_log = committer.add_stream_log(("s",), trio_ckpt.Progress())
        record = Record(kind=RecordKind.NOTE, at=1.0)
        is_absent = ("0" * 64,)
        bad = await committer.submit(
            stream_log, record, encode_record(record), lambda _error: None, blobs=is_absent
        )
        large = Record(kind=RecordKind.NOTE, at=1.0, metadata={"x": LARGE})
        await save_record(committer, stream_log, large)  # the other fails while its blob is written
        with pytest.raises(StoreError, match="was not put"):
            await bad.wait()
    assert stream_log.progress.sequence == 1
    assert store.put.total() == 2


# ---------------------------------------------------------------------------------------
# Groups
# ---------------------------------------------------------------------------------------


class GroupedStore(WatchedStore):
    """Remembers the groups that it was given, by their sizes in bytes."""

    def __init__(self) -> None:
        super().__init__(inline_limit_bytes=MAX_INLINE_LIMIT_BYTES)
        self.groups: list[list[int]] = []

    async def before_save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
        self.groups.append([len(checkpoint.payload) for checkpoint in group])


async def save_sizes(sizes: Sequence[int]) -> list[list[int]]:
    """The groups in which records of these sizes are saved, by their numbers of records."""
    store = GroupedStore()
    async with (
        store.lock_run("r") as owner,
        open_committer(store, RunKey("r", 0, owner)) as committer,
    ):
        stream_log = committer.add_stream_log(("s",), trio_ckpt.Progress())
        record = Record(kind=RecordKind.NOTE, at=1.0)
        left = [
            await committer.submit(stream_log, record, bytes(size), lambda _error: None)
            for size in sizes
        ]
        for pending in left:
            await pending.wait()
    groups = [group for group in store.groups if group]
    assert sum(map(len, groups)) == stream_log.progress.sequence == len(sizes)
    assert all(len(group) == 1 or sum(group) <= MAX_GROUP_BYTES for group in groups)
    return groups


async def test_a_group_is_bounded_in_bytes() -> None:
    """Records of 1,000,000 bytes, sealed: sixteen fit, a seventeenth does not."""
    groups = await save_sizes([1_000_000] * 40)
    assert [len(group) for group in groups] == [16, 16, 8]


async def test_a_record_that_is_larger_than_a_group_goes_alone() -> None:
    sizes = [10, MAX_GROUP_BYTES + 1, 10, MAX_GROUP_BYTES + 1, MAX_GROUP_BYTES + 1, 10, 10]
    assert [len(group) for group in await save_sizes(sizes)] == [1, 1, 1, 1, 1, 2]


async def test_a_group_is_bounded_in_records() -> None:
    groups = await save_sizes([1] * (2 * MAX_GROUP + 1))
    assert [len(group) for group in groups] == [MAX_GROUP, MAX_GROUP, 1]


# ---------------------------------------------------------------------------------------
# What cannot be counted
# ---------------------------------------------------------------------------------------


async def submit_batch(
    committer: GroupCommitter, stream_log: StreamLog, index: int, records: int
) -> PendingCommit:
    record = Record(at=1.0, index=index, records=records)
    return await committer.submit(stream_log, record, encode_record(record), lambda _error: None)


async def test_records_beyond_what_can_be_counted_are_refused() -> None:
    """With those on their way, and none is lost by it."""
    store = MemoryStore()
    async with store.lock_run("r") as owner:
        async with open_committer(store, RunKey("r", 0, owner)) as committer:
            stream_log = committer.add_stream_log(("s",), trio_ckpt.Progress())
            await submit_batch(committer, stream_log, 0, 2**62)
            with pytest.raises(NotEncodableError, match="more than the largest count"):
                await submit_batch(committer, stream_log, 1, 2**62)
            second = await submit_batch(committer, stream_log, 1, 2**62 - 1)
            await second.wait()
            with pytest.raises(NotEncodableError, match="more than the largest count"):
                await submit_batch(committer, stream_log, 2, 1)
        view = await store.load_run("r")
        assert view is not None
        assert view.streams["s",].progress.records == 2**63 - 1


async def test_what_was_not_saved_is_not_counted() -> None:
    store = MemoryStore()
    async with (
        store.lock_run("r") as owner,
        open_committer(store, RunKey("r", 0, owner)) as committer,
    ):
        stream_log = committer.add_stream_log(("s",), trio_ckpt.Progress())
        stream_log.submitted = 7  # so the store refuses it
        refused = await submit_batch(committer, stream_log, 0, 2**62)
        with pytest.raises(trio_ckpt.StoreConflictError):
            await refused.wait()
        stream_log.submitted = 0
        landed = await submit_batch(committer, stream_log, 0, 2**62)
        await landed.wait()
        assert (stream_log.progress.records, stream_log.records_ahead) == (2**62, 0)


async def test_the_last_index_of_all_is_the_end() -> None:
    store = MemoryStore()

    async def work() -> None:
        async with (
            open_run("r", store=store) as run,
            run.open_stream("s", first_index=MAX_INDEX) as stream,
        ):
            async for batch in stream.batches():
                batch.complete()

    for _ in range(2):
        with pytest.raises(ValueError, match="the index of a batch must be an int from 0 to"):
            await work()
    view = await store.load_run("r")
    assert view is not None
    assert list(view.streams["s",].progress.confirmed) == [MAX_INDEX]


# ---------------------------------------------------------------------------------------
# Whatever is accepted
# ---------------------------------------------------------------------------------------

COUNTS = st.sampled_from([0, 1, 2**53, 2**62, MAX_INDEX])
NUMBERS = st.sampled_from([2**63, 2**64 - 1, 0.1, 5e-324, 1e280, MAX_AMOUNT, 1e308, 1.7e308])
AMOUNTS = st.dictionaries(st.sampled_from(["usd", "é"]), NUMBERS, max_size=2)
LEAVES = NUMBERS | st.sampled_from([-(2**63), float("nan"), float("-inf"), True, None, "x" * 3_000])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("é\x00"), inner),
    max_leaves=4,
)
DEED = st.fixed_dictionaries(
    {"records": COUNTS},
    optional={
        "totals": AMOUNTS,
        "metadata": st.dictionaries(st.sampled_from("ab"), VALUES, max_size=2),
        "cursor": VALUES,
    },
)


@given(
    first_index=st.sampled_from([0, 1, 2**62, MAX_INDEX - 1, MAX_INDEX, MAX_INDEX + 1]),
    deeds=st.lists(st.tuples(DEED, AMOUNTS, AMOUNTS), min_size=1, max_size=4),
    finish=st.dictionaries(st.sampled_from("ab"), VALUES, max_size=2),
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_accepted_is_read_back(
    first_index: int, deeds: list[tuple[Any, Any, Any]], finish: dict[str, Any]
) -> None:
    """By the next start, `ls` and the monitor: nothing that is durable ends a run for ever."""
    store = MemoryStore(inline_limit_bytes=INLINE_BYTES)

    async def work() -> None:
        async with (
            open_run("r", store=store) as run,
            run.open_stream("s", first_index=first_index) as stream,
        ):
            async for batch in stream.batches():
                deed, spent, more = deeds[min(batch.index - first_index, len(deeds) - 1)]
                batch.spend(**spent)
                batch.spend(**more)
                batch.complete(**deed, last=batch.index - first_index == len(deeds) - 1)
            await stream.finish(finish)

    async def look() -> None:
        view = await store.load_run("r")
        if view is not None:
            read = overview_of(run_status_from(store, view, None))
            shown = [to_json(_run_document(read, None))]
            for line in await store.list_runs():
                stored = stored_overview(store, line)  # None where a sum is over 64 bits
                shown += [] if stored is None else [to_json(_run_document(stored, None))]
            assert len(set(shown)) == 1

    for _ in range(2):
        try:
            trio.run(work)
        except BaseException as error:  # refused, and by what
            for leaf in leaves_of(error):
                assert isinstance(leaf, trio_ckpt.TrioCkptError | ValueError | TypeError), leaf
                assert not isinstance(leaf, trio_ckpt.StoreError), leaf
        trio.run(look)
