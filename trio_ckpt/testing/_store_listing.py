"""The clauses of the store contract about what the list of runs says of each, and who looks."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .._journal.history import find_run
from .._journal.store import MAX_INBOX_BYTES, Checkpoint, Fold, RunKey, RunSummary, Store
from .._journal.stored import join_summary
from .._util.errors import StoreConflictError
from ._store_case import A, B, Case, chain, expect, expect_raised

CLOCK_STEP_S = 5.0  # by which the clocks of a store and of this process may differ
MAX_SAVES = 1_000  # until the clock of a store has moved, which may tick slowly


def _summary(text: str, records: int, *, is_complete: bool = False) -> bytes:
    return join_summary(text.encode() + b"\x00\xff", records=records, is_complete=is_complete)


async def _line(case: Case, store: Store) -> RunSummary:
    """The run in the list, on this handle; a new one has the same summary."""
    found = await find_run(store, case.run_id)
    again = await find_run(await case.open(), case.run_id)
    if found is None or again is None:
        raise AssertionError("the run is not listed")
    expect(found.summary == again.summary, f"one handle lists {found}, another {again}")
    return found


async def _expect_summary(case: Case, store: Store, wanted: bytes) -> RunSummary:
    line = await _line(case, store)
    expect(line.summary == wanted, f"the summary is {line.summary!r}, not {wanted!r}")
    return line


async def summaries(case: Case) -> None:
    """A summary is saved with its save, which may have nothing else, until the next replaces it."""
    store = await case.open()
    async with case.own(store) as run:
        await _expect_summary(case, store, b"")
        await store.save(run, chain(A, 1, 3), summary=_summary("first", 3))
        line = await _expect_summary(case, store, _summary("first", 3))
        expect(line.is_current, "it counts all records, and is not current")
        await case.save_all(store, run, chain(B, 1, 2))
        await store.save(run, [], [Fold(A, 3, b"fold")])
        await store.save(run, [])
        line = await _expect_summary(case, store, _summary("first", 3))
        expect(not line.is_current, "more was saved, and it is current")
        outcomes = await store.save(run, [], summary=_summary("second", 5, is_complete=True))
        expect(outcomes == [], f"a summary has outcomes: {outcomes}")
    store = await case.reopen(store)
    line = await _expect_summary(case, store, _summary("second", 5, is_complete=True))
    expect(line.is_complete and line.records == 5, f"a complete run is listed as {line}")
    async with case.own(store) as run:
        line = await _expect_summary(case, store, _summary("second", 5, is_complete=True))
        expect(line.is_complete, "a lock alone made a complete run incomplete")
        await case.save_all(store, run, chain(A, 4, 4))
        expect(not (await _line(case, store)).is_complete, "a record was saved: it is complete")
    for prefix in ("", case.run_id[:-1]):
        found = [one.summary for one in await store.list_runs(prefix) if one.run_id == case.run_id]
        expect(found == [_summary("second", 5, is_complete=True)], f"other pages have {found}")


async def refused_summaries(case: Case) -> None:
    """A save that is refused leaves the summary; a checkpoint that fails does not."""
    store, other = await case.open(), await case.open()
    async with case.own(other) as old:
        await other.save(old, chain(A, 1, 2), summary=_summary("kept", 2))
    async with case.own(store) as run:
        groups: tuple[Sequence[Checkpoint], ...] = ([], chain(A, 3, 3))
        for wrong in (old, RunKey(run.run_id, 0, run.owner + 1), RunKey(run.run_id, 2, run.owner)):
            for group in groups:
                await _expect_refused(store, wrong, group)
        await _expect_summary(case, store, _summary("kept", 2))
        (outcome,) = await store.save(run, chain(A, 9, 9), summary=_summary("with it", 2))
        expect(outcome is not None, "a checkpoint that does not follow was saved")
        await _expect_summary(case, store, _summary("with it", 2))
    await _expect_refused(store, run, [])
    await _expect_summary(case, store, _summary("with it", 2))


async def _expect_refused(store: Store, run: RunKey, group: Sequence[Checkpoint]) -> None:
    async def save() -> object:
        return await store.save(run, group, summary=_summary("refused", 9))

    await expect_raised(StoreConflictError, f"a save as {run} was taken", save)


async def summaries_of_generations(case: Case) -> None:
    """A summary is of its generation: the next one begins without, and so does a pruned run."""
    store = await case.open()
    async with store.lock_run(case.run_id) as owner:
        runs = [RunKey(case.run_id, generation, owner) for generation in range(3)]
        await store.save(runs[0], chain(A, 1, 1), summary=_summary("zero", 1))
        await case.save_all(store, runs[1], chain(A, 1, 1))
        line = await _expect_summary(case, store, b"")
        expect(line.generation == 1, f"generation {line.generation} is listed")
        await store.save(runs[1], [], summary=_summary("one", 1))
        await store.prune(runs[1], keep=1)
        await _expect_summary(case, store, _summary("one", 1))
        await store.save(runs[2], chain(A, 1, 1), summary=_summary("two", 1))
        await _expect_summary(case, store, _summary("two", 1))
        await store.prune(runs[2], keep=0)
    async with store.lock_run(case.run_id):
        line = await _expect_summary(case, store, b"")
        expect(line.updated_at is None, f"nothing was saved since, at {line.updated_at}")


async def owned_runs(case: Case) -> None:
    """list_runs tells which runs are owned now, on any handle, as read_owner does."""
    store, other = await case.open(), await case.open()
    second = f"{case.run_id} 2"
    async with other.lock_run(second):
        pass
    for _ in range(2):
        async with case.own(store) as run:
            for handle in (store, other):
                await _expect_owned(case, handle, {case.run_id})
            await case.save_all(store, run, chain(A, run.owner, run.owner))
            async with other.lock_run(second):
                await _expect_owned(case, store, {case.run_id, second})
            await _expect_owned(case, other, {case.run_id})
        await _expect_owned(case, store, set())
    try:
        async with case.own(other):
            raise KeyError("the body's own")
    except KeyError:
        pass
    await _expect_owned(case, await case.reopen(store), set())


async def _expect_owned(case: Case, store: Store, wanted: set[str]) -> None:
    for limit in (1, 1000):
        owned: set[str] = set()
        after = None
        while page := await store.list_runs(case.run_id, after, limit):
            owned.update(run.run_id for run in page if run.is_owned)
            after = page[-1].run_id
        expect(owned == wanted, f"in pages of {limit} {owned} are owned, not {wanted}")


async def times_of_runs(case: Case) -> None:
    """updated_at is when the newest record was saved; what is no record does not move it."""
    store = await case.open()
    async with case.own(store) as run:
        line = await _line(case, store)
        expect(line.updated_at is None, f"nothing was saved, at {line.updated_at}")
        before = time.time() - CLOCK_STEP_S
        await case.save_all(store, run, chain(A, 1, 2))
        first = (await _line(case, store)).updated_at
        is_right = first is not None and before <= first <= time.time() + CLOCK_STEP_S
        expect(is_right, f"it was saved at {first}, says the store")
        await store.save(run, [], [Fold(A, 2, b"fold")], summary=_summary("a summary", 2))
        await store.save(run, [])
        await store.save(run, chain(B, 2, 2))  # which fails
    async with case.own(store) as run:
        again = (await _line(case, store)).updated_at
        expect(again == first, f"no record came, and it moved from {first} to {again}")
        last = first
        for number in range(1, MAX_SAVES):
            await case.save_all(store, run, chain(B, number, number))
            last = (await _line(case, store)).updated_at
            if last != first:
                break
        has_moved = first is not None and last is not None and last > first
        expect(has_moved, f"records came, and it is {last} after {first}")


async def watched_live_views(case: Case) -> None:
    """A process that reads a live view is noticed by the owner that asks for it."""
    store, other = await case.open(), await case.open()
    async with store.lock_run(case.run_id):
        await store.is_watched(case.run_id)
        await other.read_live(case.run_id)
        found = await store.is_watched(case.run_id)
        expect(found == store.has_live, f"its view was read, and whether it is watched: {found}")
        await store.publish(case.run_id, b"view")
        found = await store.is_watched(case.run_id)
        expect(found == store.has_live, f"it was published, and whether it is watched: {found}")


async def inboxes(case: Case) -> None:
    """What any process puts into the inbox of a run is read by any, until empty bytes remove it."""
    store, other = await case.open(), await case.open()
    async with store.lock_run(case.run_id) as owner:
        for payload in (b"", b"asked", b"answered\x00\xff" * 1_000, b"", b""):
            await other.write_inbox(case.run_id, payload)
            found = await store.read_inbox(case.run_id)
            wanted = b"" if store.inbox_every_s is None else payload
            expect(found == wanted, f"{len(payload)} bytes were put in, {len(found)} are read")
        await other.write_inbox(case.run_id, bytes(MAX_INBOX_BYTES + 1))
        read = len(await store.read_inbox(case.run_id))
        expect(read <= MAX_INBOX_BYTES, f"{read} bytes of an inbox were read")
        found = await store.read_inbox(f"{case.run_id} that is not there")
        expect(found == b"", f"of a run that is not there {found!r} is read")
        await case.save_all(store, RunKey(case.run_id, 0, owner), chain(A, 1, 1))
        await other.write_inbox(case.run_id, b"")
    await case.expect_saved(store, {A: 1})
