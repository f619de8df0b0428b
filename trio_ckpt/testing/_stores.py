"""The contract of `trio_ckpt.abc.Store` as one function.

Every clause of the contract is a public async function of one of the files of this room; its
docstring is the clause, and is what a failure says.  Each works on a run of its own, so that one
store serves them all, and opens another handle where it checks what a restart would find.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from .._journal.store import Store
from . import (
    _store_blobs as blobs,
    _store_listing as listing,
    _store_owning as owning,
    _store_pruning as pruning,
    _store_reading as reading,
    _store_saving as saving,
)
from ._store_case import Case

# In the order of the files: a later clause may need what an earlier one checks.
CLAUSES: tuple[Callable[[Case], Awaitable[None]], ...] = tuple(
    member
    for file in (saving, owning, reading, pruning, listing, blobs)
    for name, member in vars(file).items()
    if inspect.iscoroutinefunction(member) and member.__module__ == file.__name__ and name[0] != "_"
)


async def check_store(maker: Callable[[], Awaitable[Store]]) -> None:
    """Check that a store keeps the whole contract of `trio_ckpt.abc.Store`.

    It neither kills processes nor cuts power: what survives that is for tests of your own.

    Use it in the tests of a store of your own::

        async def test_my_store(tmp_path):
            await check_store(lambda: MyStore.open(tmp_path / "store"))

    Args:
        maker: Opens the store: each call gives a new handle onto the same store, as another
            process would open it.  There are no runs in it at first.

    Cancellation: safe at any time; handles are closed.

    Raises:
        AssertionError: the first clause that does not hold, as text.
    """
    for clause in CLAUSES:
        says = " ".join((clause.__doc__ or "").split())
        async with AsyncExitStack() as handles:
            case = Case(maker, f"check {clause.__name__}", handles)
            try:
                await clause(case)
            except AssertionError as error:
                raise AssertionError(f"{says} Here: {error}") from error
            except Exception as error:
                raise AssertionError(f"{says} Here: it raised {error!r}") from error
