"""What open batches have noted and reserved outlives whatever is done to their run from outside."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import aclosing, closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.maintenance.export_tools import KINDS, make_store
from tests.opening import begin
from trio_ckpt import (
    Batch,
    Limits,
    RetryRule,
    RetryTable,
    RunStoppedError,
    StoreError,
    open_maintenance,
    run_batches,
)
from trio_ckpt._journal.progress import Progress
from trio_ckpt._maintenance.export import export_run
from trio_ckpt._maintenance.import_ import import_run
from trio_ckpt._maintenance.offline import Maintenance
from trio_ckpt._maintenance.repair import repair_all
from trio_ckpt._maintenance.verify_store import check_all
from trio_ckpt._util.exact_sum import shown
from trio_ckpt.abc import Finding, Store
from trio_ckpt.stores import MemoryStore, open_store

Act = Callable[[Maintenance], Awaitable[None]]

ITEMS = ["confirmed", "skipped", "open"]
NOTES = {"job": {"id": [1, None]}, "large": "x" * 5_000}  # over the inline limit


class LeftError(Exception):
    """The last batch is left open."""


async def work(store: Store) -> None:
    """Batches that are confirmed, skipped and open; each has notes, a cost and a reservation."""
    with suppress(LeftError):
        async with begin(store) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(ITEMS):
                await batch.note("job", NOTES["job"], usd=0.5)
                await batch.note("large", NOTES["large"])
                await batch.reserve(usd=0.25)
                if batch.item == "open":
                    raise LeftError
                batch.skip("no") if batch.item == "skipped" else batch.complete()


async def progress_of(store: Store, run_id: str = "r") -> Progress:
    view = await store.load_run(run_id)
    assert view is not None
    return view.streams["s",].progress


def check(progress: Progress) -> None:
    """What `work` has left is there."""
    assert progress.notes is not None
    assert list(progress.notes.by_batch) == [1, 2]
    assert progress.notes.of(1) == progress.notes.of(2) == NOTES
    assert shown(progress.notes.total) == {"usd": 1}
    assert shown(progress.assumed) == {"usd": 0.75}
    assert shown(progress.spent) == {"usd": 0.5}


async def findings(store: Store) -> list[Finding]:
    async with aclosing(check_all(store)) as found:
        return [finding async for finding in found]


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
async def test_an_archive_has_them(tmp_path: Path, source: str, target: str) -> None:
    store = await make_store(source, tmp_path / "a")
    other = await make_store(target, tmp_path / "b", b"another key")
    await work(store)
    await export_run(store, "r", tmp_path / "r.zip")
    await import_run(other, tmp_path / "r.zip", run_id="again")
    check(await progress_of(other, "again"))
    assert await findings(store) == await findings(other) == []
    async with begin(other, "again") as run, run.open_stream("s") as stream:
        async for batch in stream.batches(ITEMS):
            assert (batch.item, batch.notes) == ("open", NOTES)
            batch.complete()
    assert shown((await progress_of(other, "again")).spent) == {"usd": 1}
    await store.aclose()
    await other.aclose()


async def test_a_recovery_adds_them_up_from_the_records(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 's'}"
    store = await open_store(url)
    await work(store)
    await store.aclose()
    with closing(sqlite3.connect(tmp_path / "s" / "state.db")) as connection, connection:
        connection.execute("DELETE FROM runs")
        connection.execute("DELETE FROM folds")
    store = await open_store(url)
    found = await findings(store)
    await store.aclose()
    report = await repair_all(url, found)
    assert report.left == ()
    assert not any(part.is_loss for part in report.done)
    store = await open_store(url)
    check(await progress_of(store))
    await store.aclose()


async def _retry(maintenance: Maintenance) -> None:
    assert await maintenance.retry() == 1


async def _redo(maintenance: Maintenance) -> None:
    await maintenance.redo(("s",), [0], "why")


async def _compact(maintenance: Maintenance) -> None:
    await maintenance.compact()


async def _prune(maintenance: Maintenance) -> None:
    await maintenance.prune(keep=1)


@pytest.mark.parametrize(
    ("act", "again"),
    [
        (_retry, {"skipped": NOTES}),
        (_redo, {"confirmed": {}}),  # it was confirmed, and begins without notes
        (_compact, {}),
        (_prune, {}),
    ],
)
async def test_an_act_from_outside_keeps_them(act: Act, again: dict[str, Any]) -> None:
    store = MemoryStore()
    await work(store)
    async with open_maintenance(store, "r") as maintenance:
        await act(maintenance)
    check(await progress_of(store))
    seen = dict[str, Any]()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(ITEMS):
            seen[batch.item] = dict(batch.notes)
            batch.complete()
    assert seen == {**again, "open": NOTES}


@pytest.mark.parametrize("how", ["fresh", "rewind"])
async def test_a_beginning_has_none_and_a_rewind_keeps_open_ones(how: str) -> None:
    store, kept = MemoryStore(), dict[str, Any]()
    await work(store)
    async with begin(store, fresh=how == "fresh") as run:
        if how == "rewind":
            await run.rewind(("s",), to=-1, reason="why")
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(ITEMS):
                if batch.notes:
                    kept[batch.item] = dict(batch.notes)
                batch.complete()
        statistics = run.statistics()
        assert kept == ({} if how == "fresh" else {"skipped": NOTES, "open": NOTES})
        assert statistics.noted == {}
        assert statistics.spent == ({} if how == "fresh" else {"usd": 1.5})
        assert statistics.assumed == ({} if how == "fresh" else {"usd": 0.75})


async def test_a_deferred_batch_keeps_them_over_sessions() -> None:
    store, attempts = MemoryStore(), list[int]()

    async def poll(batch: Batch[int]) -> None:
        attempts.append(batch.attempt)
        if "job" not in batch.notes:
            await batch.note("job", 7, usd=0.5)
            await batch.reserve(usd=0.25)
            batch.spend(usd=0.125)
        if len(attempts) < 3:
            batch.defer(until=0 if len(attempts) == 1 else 3_600)
            return
        await batch.note("job", 7, usd=0.375)
        batch.complete()

    limits = Limits(spent={"usd": 0.75})  # no room for a second job
    with pytest.raises(RunStoppedError):
        async with begin(store, limits=limits) as run, run.open_stream("s") as stream:
            await run_batches(stream, range(1), poll, concurrency=2)
    assert len(attempts) == 2
    async with open_maintenance(store, "r") as maintenance:
        await maintenance.retry()  # now, not in an hour
    async with begin(store, limits=limits) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(1), poll, concurrency=2)
        statistics = run.statistics()
    assert attempts == [1, 1, 1]
    assert statistics.spent == {"usd": 0.5}
    assert statistics.noted == statistics.assumed == {}


class Shaky(MemoryStore):
    """A store of which the seventh save fails, then the eighth after it, the ninth, and so on.

    With a fixed step, each session of a last batch could fail at the same save for ever.
    """

    saves = 0
    failures = 0
    next_failure = 7

    async def save(self, *args: Any, **kwargs: Any) -> Any:
        self.saves += 1
        await trio.lowlevel.checkpoint()
        if self.saves == self.next_failure:
            self.failures += 1
            self.next_failure += 7 + self.failures
            raise StoreError("as planned")
        return await super().save(*args, **kwargs)


async def test_failed_saves_beside_many_workers_hide_no_cost() -> None:
    store, paid, jobs = Shaky(), list[float](), set[int]()
    again = RetryTable([RetryRule((StoreError,), attempts=99, backoff_s=0.0)])

    async def buy(batch: Batch[int]) -> None:
        if "job" not in batch.notes:
            await batch.note("job", batch.index, usd=0.5)
            assert batch.index not in jobs
            jobs.add(batch.index)
        await batch.reserve(usd=0.25)
        paid.append(0.125)
        batch.spend(usd=0.125)
        await batch.note("job", batch.index, usd=0.25)
        batch.complete()

    for _ in range(99):
        with suppress(StoreError, ExceptionGroup):
            async with begin(store, limits=Limits(spent={"usd": 999})) as run:
                async with run.open_stream("s", retry=again) as stream:
                    await run_batches(stream, range(200), buy, concurrency=64)
                watched = run.statistics().spent
                break
    assert store.failures > 1
    progress = await progress_of(store.reopen())
    assert len(progress.confirmed) == len(jobs) == 200
    total = sum(paid) + 200 * 0.25
    assert sum(sum(shown(sums).values()) for sums in (progress.spent, progress.reserved)) >= total
    assert watched == shown(progress.spent)
    assert progress.notes is None
