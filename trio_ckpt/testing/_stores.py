"""The contract of `trio_ckpt.abc.Store` as one function.

Every clause of the contract is a public async function of one of the files of this room; its
docstring is the clause, and is what a failure says.  Each works on a run of its own, so that one
store serves them all, and opens another handle where it checks what a restart would find.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import ModuleType
from typing import TypeAlias

from .._journal.store import Store
from . import (
    _store_blobs as blobs,
    _store_leases as leases,
    _store_listing as listing,
    _store_owning as owning,
    _store_pruning as pruning,
    _store_reading as reading,
    _store_saving as saving,
)
from ._store_case import Case

Clause: TypeAlias = Callable[[Case], Awaitable[None]]


def _clauses_of(*files: ModuleType) -> tuple[Clause, ...]:
    """The clauses in some files: a later one may need what an earlier one checks."""
    return tuple(
        member
        for file in files
        for name, member in vars(file).items()
        if inspect.iscoroutinefunction(member)
        and member.__module__ == file.__name__
        and name[0] != "_"
    )


CLAUSES = _clauses_of(saving, owning, reading, pruning, listing, blobs)
LEASE_CLAUSES = _clauses_of(leases)


async def check_store(
    maker: Callable[[], Awaitable[Store]], *, lease_s: float | None = None
) -> None:
    """Check that a store keeps the whole contract of `trio_ckpt.abc.Store`.

    It neither kills processes nor cuts power: what survives that is for tests of your own.

    Use it in the tests of a store of your own::

        async def test_my_store(tmp_path):
            await check_store(lambda: MyStore.open(tmp_path / "store"))

    Args:
        maker: Opens the store: each call gives a new handle onto the same store, as another
            process would open it.  There are no runs in it at first.
        lease_s: The lease of the store, `Store.lease_s`.  The clauses about leases take some ten
            times as long; on a mock clock that jumps they take no time.  None: it has none, or
            these clauses are not checked.

    Cancellation: safe at any time; handles are closed.

    Raises:
        AssertionError: the first clause that does not hold, as text.
    """
    for clause in CLAUSES if lease_s is None else CLAUSES + LEASE_CLAUSES:
        says = " ".join((clause.__doc__ or "").split())
        async with AsyncExitStack() as handles:
            run_id = f"check {clause.__name__}"
            case = Case(maker, run_id, handles, math.inf if lease_s is None else lease_s)
            try:
                await clause(case)
            except AssertionError as error:
                raise AssertionError(f"{says} Here: {error}") from error
            except Exception as error:
                raise AssertionError(f"{says} Here: it raised {error!r}") from error
