"""The clause of the store contract about checking."""

from __future__ import annotations

from contextlib import aclosing

from .._journal.store import Checkpoint, Fold, RunKey, Store
from .._util.errors import StoreError
from ._store_case import A, Case, chain, expect


async def check_finds_what_is_wrong(case: Case) -> None:
    """check finds no damage in a store that is as it was saved, running or not; or it refuses."""
    store = await case.open()
    async with case.own(store) as run:
        digest = await store.put_blob(b"attached")
        await case.save_all(store, run, chain(A, 1, 3))
        await case.save_all(store, run, [Checkpoint(A, 4, b"four", blobs=(digest,))])
        await store.save(run, [], [Fold(A, 3, b"fold")])
        await store.put_blob(b"not named yet")
        await _expect_sound(store)
        await case.save_all(store, RunKey(case.run_id, 1, run.owner), chain(A, 1, 1))
    await _expect_sound(store)
    await _expect_sound(await case.reopen(store))


async def _expect_sound(store: Store) -> None:
    try:
        async with aclosing(store.check()) as findings:
            async for finding in findings:
                expect(not finding.is_damage, f"a sound store is damaged: {finding}")
    except StoreError:
        return  # it cannot be checked from here
