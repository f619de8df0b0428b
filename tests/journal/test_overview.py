"""A list shows what the summary of a run says only where that is what its records say."""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

import gc
from contextlib import suppress
from typing import Any, ClassVar

import msgspec
import pytest
import trio

import trio_ckpt
from tests.opening import begin
from trio_ckpt import RunStoppedError, Status
from trio_ckpt._journal.history import find_run
from trio_ckpt._journal.overview import (
    RunOverview,
    encode_overview,
    overview_of,
    read_overview,
    stored_overview,
)
from trio_ckpt._journal.stored import join_summary, sealed_part
from trio_ckpt._journal.summary import read_run_status
from trio_ckpt._maintenance.offline import open_maintenance
from trio_ckpt.abc import RunSummary, StoredRun
from trio_ckpt.cli._show import list_runs
from trio_ckpt.stores import MemoryStore


class CountingStore(MemoryStore):
    """Counts the reads of runs and owners, and the pages of lists."""

    reads = 0
    pages = 0

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        self.reads += 1
        return await super().read_run(run_id, generation)

    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        self.pages += 1
        return await super().list_runs(prefix, after, limit)


async def line_of(store: MemoryStore, run_id: str = "r") -> RunSummary:
    line = await find_run(store, run_id)
    assert line is not None
    return line


async def both(store: MemoryStore) -> tuple[RunOverview | None, RunOverview]:
    """What the summary of the run says, and what its records say."""
    run = await read_run_status(store, "r")
    assert run is not None
    return stored_overview(store, await line_of(store)), overview_of(run)


async def collect(store: MemoryStore, *names: str, pages: int = 3, **options: Any) -> None:
    async with begin(store, **options) as run:
        for name in names:
            async with run.open_stream("repo", name) as stream:
                async for batch in stream.batches(range(pages)):
                    batch.complete(records=2, totals={"cost_usd": 0.1})


async def complete(store: MemoryStore) -> None:
    await collect(store, "a", "b")


async def empty(store: MemoryStore) -> None:
    async with begin(store):
        pass


async def untouched(store: MemoryStore) -> None:
    """A stream that was opened and left is not in the store."""
    async with begin(store) as run, run.open_stream("s"):
        pass


async def skipped(store: MemoryStore) -> None:
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(5)):
            if batch.index == 3:
                batch.skip("is blank")
            else:
                batch.complete()


async def failed(store: MemoryStore) -> None:
    await collect(store, "a")
    async with begin(store) as run:
        async with run.open_stream("s", on_fail="record") as stream:
            await stream.fail("forbidden", retryable=False)


async def broken(store: MemoryStore) -> None:
    with suppress(KeyError):
        async with begin(store) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(5)):
                if batch.index == 2:
                    raise KeyError("the body's own")
                batch.complete()


async def stopped(store: MemoryStore) -> None:
    with suppress(RunStoppedError):
        async with begin(store) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(5)):
                batch.complete()
                run.request_stop()


async def phased(store: MemoryStore) -> None:
    async with begin(store) as run:
        async with run.phase("collect"):
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(2)):
                    batch.complete()
        with suppress(KeyError):
            async with run.phase("score"):
                raise KeyError("the body's own")


async def begun_again(store: MemoryStore) -> None:
    await collect(store, "a", "b", "c")
    await collect(store, "a", fresh=True)


async def retried(store: MemoryStore) -> None:
    await skipped(store)
    async with open_maintenance(store, "r") as maintenance:
        assert await maintenance.retry() == 1


async def opened_only(store: MemoryStore) -> None:
    with suppress(KeyError):
        async with begin(store) as run, run.open_stream("s"):
            raise KeyError("the body's own")


PROGRAMS = {
    complete: (Status.COMPLETE, True),
    empty: (Status.PENDING, True),
    untouched: (Status.PENDING, True),
    skipped: (Status.COMPLETE, True),
    failed: (Status.FAILED, False),
    broken: (Status.FAILED, False),
    stopped: (Status.INTERRUPTED, False),
    phased: (Status.COMPLETE, False),
    begun_again: (Status.COMPLETE, True),
    retried: (Status.INTERRUPTED, False),
    opened_only: (Status.FAILED, False),
}
"""Program -> the status of the user's streams, and whether nothing is left to do."""


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
async def test_a_summary_says_what_the_records_say(program: Any) -> None:
    store = MemoryStore(mac_key=b"a key of thirty-two bytes, or so")
    await program(store)
    stored, read = await both(store)
    assert stored == read
    assert (read.status, read.is_complete) == PROGRAMS[program]
    assert (await line_of(store)).is_complete == read.is_complete


async def test_a_run_that_is_owned_is_read() -> None:
    store = CountingStore()
    await complete(store)
    async with begin(store) as run:
        async with run.open_stream("more") as stream:
            async for batch in stream.batches(range(3)):
                line = await line_of(store)
                assert stored_overview(store, line) is None
                found = await read_overview(store, line)
                assert found is not None
                assert found.owner is not None
                assert found.summary.confirmed == 6 + batch.index
                batch.complete()


async def test_a_run_that_is_only_locked_is_shown_with_its_owner() -> None:
    """Its summary is still current, and says nothing of an owner."""
    store = MemoryStore()
    await complete(store)
    async with store.lock_run("r"):
        line = await line_of(store)
        assert line.is_current
        found = await read_overview(store, line)
        assert found is not None
        assert found.owner is not None
    found = await read_overview(store, await line_of(store))
    assert found is not None
    assert found.owner is None


@pytest.mark.parametrize("moment", [0, 1, 700])
async def test_a_run_whose_owner_was_killed_is_read(moment: int) -> None:
    """Whatever its summary was: before the first record, after one, and after a fold."""
    store = CountingStore()
    await complete(store)
    async with begin(store) as run:
        async with run.open_stream("more") as stream:
            if not moment:
                left = store.after_crash()
            async for batch in stream.batches(range(moment)):
                batch.complete()
            if moment:
                left = store.after_crash()
    line = await line_of(left)
    assert (line.is_owned, line.is_current, line.is_complete) == (False, False, False)
    assert bool(line.summary)
    assert stored_overview(left, line) is None
    found = await read_overview(left, line)
    assert found is not None
    assert found.summary.confirmed == 6 + moment
    assert not found.is_complete


async def test_a_run_that_was_removed_since_is_none() -> None:
    store = MemoryStore()
    await collect(store, "a")
    line = msgspec.structs.replace(await line_of(store), summary=b"")
    async with open_maintenance(store, "r") as maintenance:
        await maintenance.prune(keep=0)
    assert await read_overview(store, line) is None


async def test_a_summary_that_is_not_what_was_saved_is_not_shown() -> None:
    store = CountingStore(mac_key=b"a key of thirty-two bytes, or so")
    await complete(store)
    line = await line_of(store)
    for other in (
        bytes(9),
        line.summary[:-1],
        line.summary[:9] + bytes([line.summary[9] ^ 1]) + line.summary[10:],
        line.summary[:-1] + bytes([line.summary[-1] ^ 1]),
        join_summary(sealed_part(line.summary), records=line.records, is_complete=True)[:20],
    ):
        assert stored_overview(store, msgspec.structs.replace(line, summary=other)) is None
    for short in (b"", b"\x01", line.summary[:8]):
        damaged = msgspec.structs.replace(line, summary=short)
        assert (damaged.is_current, damaged.is_complete) == (False, False)
        assert stored_overview(store, damaged) is None
    reader = CountingStore()  # without the key
    reader._memory = store._memory
    assert stored_overview(reader, line) is None


async def test_a_summary_of_another_run_is_not_shown() -> None:
    store = MemoryStore()
    await complete(store)
    line = await line_of(store)
    for changes in ({"run_id": "other"}, {"generation": 1}):
        assert stored_overview(store, msgspec.structs.replace(line, **changes)) is None


async def test_a_sum_that_is_too_large_for_a_summary_leaves_none() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        for name in ("a", "b", "c"):
            async with run.open_stream(name) as stream:
                async for batch in stream.batches(range(1)):
                    batch.complete(records=2**63 - 2)
    line = await line_of(store)
    assert line.summary == b""
    found = await read_overview(store, line)
    assert found is not None
    assert found.summary.records == 3 * (2**63 - 2)
    view = await store.load_run("r")
    assert view is not None
    assert encode_overview(store, view) is None


async def test_a_list_reads_no_run_that_has_ended() -> None:
    store = CountingStore()
    for number in range(25):
        await collect(store, "a", run_id=f"run-{number:02}")
    store.reads = store.pages = 0
    answer = await list_runs(store)
    assert len(answer.document()["runs"]) == 25  # type: ignore[arg-type]
    assert (store.reads, store.pages) == (0, 1)
    async with begin(store, "run-07"), begin(store, "run-11"):
        await list_runs(store)
        assert store.reads == 2 + 2  # those of the list, and those of the two starts


async def test_a_list_gives_the_garbage_collector_nothing_to_walk() -> None:
    store = MemoryStore()
    await collect(store, "a")
    line = await line_of(store)
    found = stored_overview(store, line)
    assert found is not None
    assert found.session is not None
    assert found.session.counts is not None
    for part in (line, found, found.summary, found.session, found.session.counts):
        assert not gc.is_tracked(part)


async def test_lists_say_the_same_with_summaries_and_without() -> None:
    for program in PROGRAMS:
        store = MemoryStore()
        with_it: list[Any] = []
        await program(store)
        for _ in range(2):
            answer = await list_runs(store, now=2e9)
            with_it.append((answer.document(), answer.blocks(), answer.exit_code))
            store._memory.runs["r"].summary = b""
        assert with_it[0] == with_it[1]


async def test_the_end_of_a_session_costs_no_save_of_its_own() -> None:
    """The summary goes with the last folds, which were saved before there were summaries, too."""

    class Saves(MemoryStore):
        saved: ClassVar[list[tuple[int, int, bool]]] = []

        async def save(
            self, run: Any, group: Any, folds: Any = (), *, summary: Any = None
        ) -> list[Exception | None]:
            self.saved.append((len(group), len(folds), summary is not None))
            return await super().save(run, group, folds, summary=summary)

    store = Saves()
    async with trio_ckpt.open_run("r", store=store, handle_signals=False) as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete()
    assert [saved for saved in store.saved if saved[1]] == [(0, 2, True)]
    assert sum(has_summary for _, _, has_summary in store.saved) == 1
    await trio.lowlevel.checkpoint()
