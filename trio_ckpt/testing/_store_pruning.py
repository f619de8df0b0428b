"""The clauses of the store contract about pruning."""

from __future__ import annotations

import hashlib
import os
from functools import partial

from .._journal.store import Checkpoint, Fold, HistoryPage, Pruned, RunKey, Store
from .._util.errors import StoreConflictError, StoreDamagedError
from ._store_case import (
    A,
    B,
    Case,
    chain,
    expect,
    expect_conflict,
    expect_raised,
    payload_of,
)


async def _three_generations(case: Case, store: Store, owner: int) -> RunKey:
    """Generation n has n + 2 records of A and two of B; each has a fold."""
    runs = [RunKey(case.run_id, generation, owner) for generation in range(3)]
    for run in runs:
        await case.save_all(store, run, [*chain(A, 1, run.generation + 2), *chain(B, 1, 2)])
        await store.save(run, [], [Fold(A, 1, b"fold")])
    return runs[-1]


def _bytes_of(generation: int) -> int:
    records = [*range(1, generation + 3), 1, 2]
    return sum(len(payload_of(n)) for n in records) + len(b"fold")


async def _expect_gone(case: Case, store: Store, generation: int) -> None:
    stored = await store.read_run(case.run_id, generation)
    expect(stored is None, f"generation {generation} is still there: {stored}")
    page = await store.history(case.run_id, A, generation=generation)
    expect(page == HistoryPage((), None), f"generation {generation} has a history: {page}")


async def prune_keeps_the_newest(case: Case) -> None:
    """prune removes all generations but the newest ones, and says what went."""
    store = await case.open()
    async with store.lock_run(case.run_id) as owner:
        run = await _three_generations(case, store, owner)
        for keep in (4, 3):
            pruned = await store.prune(run, keep=keep)
            expect(pruned == Pruned(0, 0, 0), f"keeping {keep} of three removed {pruned}")
        pruned = await store.prune(run, keep=2)
        wanted = Pruned(1, 4, _bytes_of(0))
        expect(pruned == wanted, f"keeping 2 of three removed {pruned}, not {wanted}")
        await _expect_gone(case, store, 0)
        heads = {entry.stream: entry.sequence for entry in (await case.read(store, 1)).streams}
        expect(heads == {A: 3, B: 2}, f"generation 1, which was kept, has {heads}")
        pruned = await store.prune(run, keep=1)
        wanted = Pruned(1, 5, _bytes_of(1))
        expect(pruned == wanted, f"keeping 1 of two removed {pruned}, not {wanted}")
        await case.save_all(store, run, chain(A, 5, 5))
    store = await case.reopen(store)
    for generation in (0, 1):
        await _expect_gone(case, store, generation)
    stored = await case.read(store)
    expect((stored.generation, stored.owner) == (2, owner), f"what was kept is {stored}")
    entry = await case.read_stream(store, A)
    expect(entry.fold == Fold(A, 1, b"fold"), f"the fold that was kept is {entry.fold}")
    page = await store.history(case.run_id, A)
    found = [(record.sequence, record.payload) for record in page.records]
    wanted_records = [(n, payload_of(n)) for n in range(5, 0, -1)]
    expect(found == wanted_records, f"the history that was kept is {found}")


async def prune_everything(case: Case) -> None:
    """Of a run pruned to nothing the numbers stay: owner and generation go on from there."""
    store = await case.open()
    async with store.lock_run(case.run_id) as owner:
        run = await _three_generations(case, store, owner)
        pruned = await store.prune(run, keep=0)
        wanted = Pruned(3, 15, sum(map(_bytes_of, range(3))))
        expect(pruned == wanted, f"it removed {pruned}, not {wanted}")
        await case.expect_no_run(store)
        await expect_conflict(store, run, chain(A, 1, 1))  # or old records would fit again
        pruned = await store.prune(run, keep=0)
        expect(pruned == Pruned(0, 0, 0), f"the second time it removed {pruned}")
    store = await case.reopen(store)
    await case.expect_no_run(store)
    async with store.lock_run(case.run_id) as following:
        expect(following > owner, f"after owner {owner} comes {following}")
        stored = await case.read(store)
        expect(stored.generation == 3, f"after generation 2 comes {stored.generation}")
        expect(stored.streams == (), f"a new run has {stored.streams}")
        run = RunKey(case.run_id, 3, following)
        await expect_conflict(store, RunKey(case.run_id, 0, following), chain(A, 1, 1))
        await case.save_all(store, run, chain(A, 1, 2))
        await case.expect_saved(store, {A: 2})
        await store.prune(run, keep=0)
        await case.save_all(store, RunKey(case.run_id, 4, following), chain(B, 1, 1))
    store = await case.reopen(store)
    await case.expect_saved(store, {B: 1})
    await _expect_gone(case, store, 3)


async def removed_runs_fill_no_page(case: Case) -> None:
    """Runs that were removed take no places in the pages of list_runs."""
    store = await case.open()
    names = [f"{case.run_id} {number}" for number in range(6)]
    kept = names[2:6:3]
    for name in names:
        async with store.lock_run(name) as owner:
            await case.save_all(store, RunKey(name, 0, owner), chain(A, 1, 1))
            if name not in kept:
                await store.prune(RunKey(name, 0, owner), keep=0)
    page = [run.run_id for run in await store.list_runs(f"{case.run_id} ", None, 2)]
    expect(page == kept, f"a page of two has {page}, not {kept}")


async def prune_is_fenced(case: Case) -> None:
    """prune removes nothing for another owner than the newest, or another generation."""
    store, other = await case.open(), await case.open()
    async with store.lock_run(case.run_id) as old:
        await _three_generations(case, store, old)
    async with other.lock_run(case.run_id) as owner:
        for handle, key in (
            (store, RunKey(case.run_id, 2, old)),
            (other, RunKey(case.run_id, 2, old)),
            (other, RunKey(case.run_id, 2, owner + 1)),
            (other, RunKey(case.run_id, 1, owner)),
            (other, RunKey(case.run_id, 3, owner)),
        ):
            prune = partial(handle.prune, keep=0)
            await expect_raised(StoreConflictError, f"pruning as {key} was done", prune, key)
        prune = partial(other.prune, keep=-1)
        await expect_raised(
            ValueError, "to keep -1 was not refused", prune, RunKey(case.run_id, 2, owner)
        )
    for generation in range(3):
        await case.read(await case.open(), generation)
    for key in (RunKey(case.run_id, 2, owner), RunKey(f"{case.run_id} 2", 0, 1)):
        prune = partial(other.prune, keep=0)
        await expect_raised(StoreConflictError, f"pruning as {key}, unlocked, was done", prune, key)
    await case.read(other)


async def prune_removes_blobs(case: Case) -> None:
    """prune removes the blobs that no record of the run names any more, and no others."""
    store = await case.open()
    lost, shared, borrowed = (os.urandom(1000) for _ in range(3))
    names = [hashlib.sha256(payload).hexdigest() for payload in (lost, shared, borrowed)]
    async with store.lock_run(f"{case.run_id} 2") as owner:
        run = RunKey(f"{case.run_id} 2", 0, owner)
        await store.put_blob(run, borrowed)
        await case.save_all(store, run, [Checkpoint(A, 1, b"", names[2])])
        async with store.lock_run(case.run_id) as owner:
            run = RunKey(case.run_id, 0, owner)
            for payload in (lost, shared, borrowed):
                await store.put_blob(run, payload)
            group = [Checkpoint(A, n, b"", name) for n, name in enumerate(names, 1)]
            await case.save_all(store, run, group)
            run = RunKey(case.run_id, 1, owner)
            await case.save_all(store, run, [Checkpoint(A, 1, b"", names[1])])
            pruned = await store.prune(run, keep=1)
            wanted = Pruned(1, 3, len(lost) + len(borrowed))
            expect(pruned == wanted, f"it removed {pruned}, not {wanted}")
            what = "a blob that no record of its run names is still there"
            # At once, though another run is owned.
            await expect_raised(StoreDamagedError, what, store.read_blob, case.run_id, names[0])
    store = await case.reopen(store)
    entry = await case.read_stream(store, A)
    expect(entry.tail[0].payload == shared, "a blob that the newest generation names is gone")
    page = await store.history(f"{case.run_id} 2", A)
    expect(page.records[0].payload == borrowed, "a blob that another run names is gone")
    async with case.own(store, 1) as run:
        (outcome,) = await store.save(run, [Checkpoint(B, 1, b"", names[0])])
    if outcome is None:
        await expect_raised(StoreDamagedError, what, store.history, case.run_id, B)


async def late_save_brings_no_run_back(case: Case) -> None:
    """A run that was removed is not brought back by a late save, nor by that of its remover."""
    zombie, store = await case.open(), await case.open()
    async with zombie.lock_run(case.run_id) as old:
        await case.save_all(zombie, RunKey(case.run_id, 0, old), chain(A, 1, 2))
    async with store.lock_run(case.run_id) as owner:
        await store.prune(RunKey(case.run_id, 0, owner), keep=0)
        await _expect_refused(zombie, case.run_id, old)
        await case.expect_no_run(store)
    for handle in (zombie, store):
        for number in (old, owner, owner + 1):
            await _expect_refused(handle, case.run_id, number)
    store = await case.reopen(store)
    await case.expect_no_run(store)
    async with zombie.lock_run(case.run_id) as following:
        for number in (old, owner):
            await _expect_refused(zombie, case.run_id, number)
        await case.save_all(zombie, RunKey(case.run_id, 1, following), chain(B, 1, 1))
    await case.expect_saved(store, {B: 1})


async def _expect_refused(store: Store, run_id: str, owner: int) -> None:
    for generation in range(3):
        for group in ([], chain(A, 1, 1), chain(A, 3, 3)):
            await expect_conflict(store, RunKey(run_id, generation, owner), group)
