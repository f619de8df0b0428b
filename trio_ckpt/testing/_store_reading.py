"""The clauses of the store contract about reading and closing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from .._journal.store import Checkpoint, Fold, HistoryPage, RunKey, StoredRun, StoredStream
from .._util.errors import StoreDamagedError, StoreError
from ._store_case import A, B, C, Case, chain, expect, expect_raised, expect_tail, payload_of

GARBAGE_CURSORS = (
    "",
    "0",
    "-1",
    "x",
    "1e3",
    "0.0",
    "1.1.1",
    "999999999.999999999",
    "٣.٣",
    "1 OR 1=1",
    "9" * 40,
    "\0",
)


async def unknown_runs(case: Case) -> None:
    """What does not exist is None or empty; a run exists from its first lock on."""
    store = await case.open()
    expect(await store.read_run(case.run_id) is None, "a run that was never locked is there")
    page = await store.history(case.run_id, A)
    expect(page == HistoryPage((), None), f"a run that is not there has a history: {page}")
    async with store.lock_run(case.run_id) as owner:
        stored = await case.read(store)
        expect(stored == StoredRun(case.run_id, 0, owner, ()), f"a new run is {stored}")
    page = await store.history(case.run_id, A)
    expect(page == HistoryPage((), None), f"a stream that is not there has a history: {page}")


async def folds(case: Case) -> None:
    """A fold replaces the one before it, and the tail starts right after it."""
    store = await case.open()
    async with case.own(store) as run:
        await store.save(run, [*chain(A, 1, 5), *chain(B, 1, 2)], [Fold(A, 3, b"three")])
        _expect_folded(await case.read_stream(store, A), Fold(A, 3, b"three"))
        await store.save(run, chain(A, 6, 7), [Fold(A, 7, b"seven"), Fold(B, 1, b"one")])
        group = [Checkpoint(C, 2, b"bad"), *chain(A, 8, 8)]
        await store.save(run, group, [Fold(C, 2, b"ahead"), Fold(B, 9, b"ahead")])
    store = await case.reopen(store)
    _expect_folded(await case.read_stream(store, A), Fold(A, 7, b"seven"))
    _expect_folded(await case.read_stream(store, B), Fold(B, 1, b"one"))
    streams = {entry.stream for entry in (await case.read(store)).streams}
    expect(streams == {A, B}, f"a stream without records is there: {streams}")


def _expect_folded(entry: StoredStream, fold: Fold) -> None:
    expect(entry.fold == fold, f"the fold is {entry.fold}, not {fold}")
    expect_tail(entry, fold.through + 1)


async def history(case: Case) -> None:
    """History comes newest first, page by page, whole, while more is saved."""
    store = await case.open()
    async with case.own(store) as run:
        await store.save(run, chain(A, 1, 10), [Fold(A, 9, b"nine")])
        await case.save_all(store, run, chain(B, 1, 2))
        for limit in (1, 3, 5, 10, 11):
            found: list[int] = []
            cursor: str | None = None
            newest = (await case.read_stream(store, A)).sequence
            while True:
                page = await store.history(case.run_id, A, cursor=cursor, limit=limit)
                expect(len(page.records) <= limit, f"{len(page.records)} records, over {limit}")
                for record in page.records:
                    expect(record.payload == payload_of(record.sequence), "a payload differs")
                found += [record.sequence for record in page.records]
                if page.cursor is None:
                    break
                if cursor is None:
                    await case.save_all(store, run, chain(A, newest + 1, newest + 1))
                cursor = page.cursor
            wanted = list(range(newest, 0, -1))
            expect(found == wanted, f"pages of {limit} gave {found}, not {wanted}")


async def garbage_cursors(case: Case) -> None:
    """A cursor that was not given for this stream is refused with StoreError."""
    store = await case.open()
    async with case.own(store) as run:
        group = [*chain(A, 1, 4), *chain(B, 1, 4)]
        await case.save_all(store, run, group)
    foreign = (await store.history(case.run_id, B, limit=2)).cursor
    for cursor in (*GARBAGE_CURSORS, foreign):
        read = partial(store.history, case.run_id, A, cursor=cursor)
        await expect_raised(StoreError, f"cursor {cursor!r} was taken", read)
    read = partial(store.history, case.run_id, A, limit=0)
    await expect_raised(ValueError, "a limit of 0 was taken", read)


async def blobs(case: Case) -> None:
    """Blobs come back in place of the payload; one that was not put is refused or missed."""
    store = await case.open()
    payload = os.urandom(1000)
    digest = hashlib.sha256(payload).hexdigest()
    async with case.own(store) as run:
        for _ in range(2):
            await store.put_blob(run, payload)
        await case.save_all(store, run, [Checkpoint(A, 1, b"", digest), *chain(A, 2, 2)])
        absent = hashlib.sha256(b"absent").hexdigest()
        outcomes = await store.save(run, [Checkpoint(B, 1, b"", absent), *chain(A, 3, 3)])
        expect(outcomes[1] is None, f"a blob that was not put took another stream: {outcomes}")
    store = await case.reopen(store)
    async with store.lock_run(case.run_id):  # where orphans may be removed: not those in use
        pass
    page = await store.history(case.run_id, A)
    expect(page.records[-1].payload == payload, "it came back otherwise from history")
    if outcomes[0] is not None:
        entry = await case.read_stream(store, A)
        expect(entry.tail[0].payload == payload, "it came back otherwise from read_run")
        return
    what = "a blob that is not there was read"
    await expect_raised(StoreDamagedError, what, store.history, case.run_id, B)


async def list_runs(case: Case) -> None:
    """list_runs names every run once, sorted by id, with the counts of its newest generation."""
    store = await case.open()
    names = [f"{case.run_id} {letter}" for letter in "cab"]
    owners: dict[str, int] = {}
    for name in names:
        async with store.lock_run(name) as owner:
            owners[name] = owner
            run = RunKey(name, 0, owner)
            await case.save_all(store, run, [*chain(A, 1, 3), *chain(B, 1, 2)])
    async with store.lock_run(names[0]) as owner:
        owners[names[0]] = owner
        await case.save_all(store, RunKey(names[0], 1, owner), chain(C, 1, 1))
    summaries = await store.list_runs()
    ids = [summary.run_id for summary in summaries]
    expect(ids == sorted(set(ids)), f"the ids are {ids}")
    found = [
        (s.run_id, s.generation, s.owner, s.streams, s.records)
        for s in summaries
        if s.run_id in names
    ]
    wanted = [
        (name, 1, owners[name], 1, 1) if name == names[0] else (name, 0, owners[name], 2, 5)
        for name in sorted(names)
    ]
    expect(found == wanted, f"it is {found}, not {wanted}")


async def list_runs_in_pages(case: Case) -> None:
    """list_runs gives a page of the runs with a prefix, after an id; the exact one is first."""
    store = await case.open()
    prefix = f"{case.run_id} x_%"
    last = "\U0010ffff"
    ends = ["", "\0", "0", "a", "A", "é", "\ud7ff", last, last * 2, "b", "b2"]
    inside = sorted(prefix + end for end in ends)
    outside = [
        prefix[:-1],
        prefix[:-1] + "&",
        prefix[:-1] + "a",
        prefix[:-2] + "y%",
        prefix.upper(),
    ]
    for name in [*outside, *inside]:
        async with store.lock_run(name):
            pass
    for limit in (1, 2, 3, len(inside), 1000):
        found: list[str] = []
        page = [""] * limit
        while len(page) == limit and len(found) <= len(inside):
            after = found[-1] if found else None
            page = [run.run_id for run in await store.list_runs(prefix, after, limit)]
            expect(len(page) <= limit, f"a page of {limit} has {len(page)} runs")
            found += page
        expect(found == inside, f"in pages of {limit} they are {found}, not {inside}")
    for after, first in ((None, 0), ("", 0), (inside[0], 1), (f"{inside[4]}!", 5), (last, 99)):
        page = [run.run_id for run in await store.list_runs(prefix, after, 2)]
        wanted = inside[first : first + 2]
        expect(page == wanted, f"after {after!r} come {page}, not {wanted}")
    whole = [run.run_id for run in await store.list_runs()]
    expect(set(inside + outside) <= set(whole), "without a prefix some are missing")
    for limit in (0, -1):
        what = f"a page of {limit} runs was given"
        await expect_raised(ValueError, what, store.list_runs, "", None, limit)


async def read_while_saving(case: Case) -> None:
    """What is read while others save is of one moment, and never goes back."""
    store = await case.open()
    groups = 30
    async with store.lock_run(case.run_id) as owner, trio.open_nursery() as nursery:
        run = RunKey(case.run_id, 0, owner)
        done = trio.Event()

        async def save() -> None:
            for n in range(1, groups + 1):
                group = [*chain(A, n, n), *chain(B, n, n)]
                await case.save_all(store, run, group)
            done.set()

        nursery.start_soon(save)
        seen = 0
        while not done.is_set():
            entries = (await case.read(store)).streams
            heads = {entry.stream: entry.sequence for entry in entries}
            newest = heads.get(A, 0)
            expect(heads.get(B, 0) == newest, f"half a group was read: {heads}")
            expect(newest >= seen, f"{newest} was read after {seen}")
            seen = newest
            for entry in entries:
                expect_tail(entry, 1)
    await case.expect_saved(store, {A: groups, B: groups})


async def reads_are_cancellable(case: Case) -> None:
    """A cancelled read ends, and the store goes on."""
    store = await case.open()
    digest = hashlib.sha256(b"").hexdigest()
    async with case.own(store) as run:
        await store.put_blob(run, b"")
        await case.save_all(store, run, chain(A, 1, 3))
        for read in (
            lambda: store.read_run(case.run_id),
            lambda: store.history(case.run_id, A),
            lambda: store.read_owner(case.run_id),
            lambda: store.read_blob(case.run_id, digest),
            lambda: store.read_live(case.run_id),
            store.list_runs,
        ):
            with trio.CancelScope() as scope:
                scope.cancel()
                await read()
            expect(scope.cancelled_caught, "a read was no cancellation point")
        await case.save_all(store, run, chain(A, 4, 4))
    await case.expect_saved(store, {A: 4})


async def closing(case: Case) -> None:
    """Closing twice is fine; what is used afterwards raises StoreError."""
    store = await case.open()
    async with case.own(store) as run:
        await case.save_all(store, run, chain(A, 1, 1))
    await store.aclose()
    await store.aclose()
    digest = hashlib.sha256(b"").hexdigest()
    uses: dict[str, Callable[[], Awaitable[object]]] = {
        "save": lambda: store.save(run, chain(A, 2, 2)),
        "read_run": lambda: store.read_run(case.run_id),
        "history": lambda: store.history(case.run_id, A),
        "list_runs": store.list_runs,
        "read_owner": lambda: store.read_owner(case.run_id),
        "prune": lambda: store.prune(run, keep=1),
        "read_blob": lambda: store.read_blob(case.run_id, digest),
        "drop_blobs": lambda: store.drop_blobs(run, A, [1]),
        "put_blob": lambda: store.put_blob(run, b""),
        "lock_run": store.lock_run(case.run_id).__aenter__,
    }
    for name, use in uses.items():
        await expect_raised(StoreError, f"{name} works on a closed store", use)
    await case.expect_saved(await case.open(), {A: 1})


async def live_views(case: Case) -> None:
    """What is published for other processes replaces what was there, needs no lock to be read,
    and is removed by empty bytes; a store without live values says so."""
    store = await case.open()
    async with store.lock_run(case.run_id):
        for payload in (b"first", b"second", b""):
            await store.publish(case.run_id, payload)
            found = await (await case.open()).read_live(case.run_id)
            wanted = payload if store.has_live else b""
            expect(found == wanted, f"{payload!r} was published, and {found!r} is read")
    found = await store.read_live(f"{case.run_id} that is not there")
    expect(found == b"", f"of a run that is not there {found!r} is read")
