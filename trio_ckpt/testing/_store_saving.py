"""The clauses of the store contract about saving.  Each docstring is what a failure says."""

from __future__ import annotations

import os

from .._journal.store import Checkpoint, Fold, RunKey
from .._util.errors import StoreError
from ._store_case import A, B, Case, chain, expect, expect_conflict, payload_of

GROUP = 64
BIG_BYTES = 3 * 2**20 + 1
ODD_NAMES = (
    "ünï ☃ 𐍈",
    'it\'s "quoted" `so`',
    "a%2Fb%00c%s",
    "x'); DROP TABLE log; --",
    "../../etc/passwd",
    "a_b",
    "a%b",
    "A_B",
    "é",
    "e\u0301",
    " blank ",
    "x" * 200,
)


async def saved_is_durable(case: Case) -> None:
    """What was acknowledged is there when the store is opened again."""
    store = await case.open()
    async with case.own(store) as run:
        await case.save_all(store, run, [*chain(A, 1, 3), *chain(B, 1, 1)])
        await case.save_all(store, run, [*chain(B, 2, 2), *chain(A, 4, 4), *chain(B, 3, 3)])
    await case.expect_saved(store, {A: 4, B: 3})
    store = await case.reopen(store)
    await case.expect_saved(store, {A: 4, B: 3})
    async with case.own(store) as run:
        await case.save_all(store, run, chain(A, 5, 5))
    await case.expect_saved(await case.reopen(store), {A: 5, B: 3})


async def order_is_kept(case: Case) -> None:
    """A checkpoint's sequence is its predecessor's plus one; any other is refused alone."""
    store = await case.open()
    async with case.own(store) as run:
        await case.save_all(store, run, chain(A, 1, 2))
        for wrong in (0, 1, 2, 4, -1):
            (outcome,) = await store.save(run, [Checkpoint(A, wrong, b"wrong")])
            expect(isinstance(outcome, StoreError), f"{wrong} after 2 gave {outcome!r}")
        (outcome,) = await store.save(run, [Checkpoint(B, 2, b"wrong")])
        expect(isinstance(outcome, StoreError), f"2 as a stream's first gave {outcome!r}")
        await case.expect_saved(store, {A: 2})
        await case.save_all(store, run, [*chain(A, 3, 3), *chain(B, 1, 1)])
    await case.expect_saved(store, {A: 3, B: 1})


async def bad_one_goes_alone(case: Case) -> None:
    """A checkpoint that fails leaves the other streams of its group alone."""
    store = await case.open()
    names = [f'["{number}"]' for number in range(GROUP)]
    group = [Checkpoint(name, 1, payload_of(1)) for name in names]
    group[GROUP // 2] = Checkpoint(names[GROUP // 2], 7, b"bad")
    async with case.own(store) as run:
        outcomes = await store.save(run, group)
        bad = [place for place, outcome in enumerate(outcomes) if outcome is not None]
        expect(len(outcomes) == GROUP, f"{GROUP} checkpoints gave {len(outcomes)} outcomes")
        expect(bad == [GROUP // 2], f"refused were those at {bad}, not the one at {GROUP // 2}")
    saved = {name: 1 for name in names if name != names[GROUP // 2]}
    await case.expect_saved(await case.reopen(store), saved)


async def later_ones_go_with_it(case: Case) -> None:
    """A checkpoint that fails takes the later ones of its own stream in the group with it."""
    store = await case.open()
    group = [*chain(A, 1, 1), Checkpoint(A, 3, b"bad"), *chain(B, 1, 1), *chain(A, 2, 2)]
    async with case.own(store) as run:
        outcomes = await store.save(run, [*group, *chain(B, 2, 2)])
        refused = [outcome is not None for outcome in outcomes]
        expect(refused == [False, True, False, True, False], f"the outcomes were {outcomes}")
    await case.expect_saved(store, {A: 1, B: 2})


async def empty_groups(case: Case) -> None:
    """A group may be empty, with folds or without; the owner is compared all the same."""
    store = await case.open()
    async with case.own(store) as run:
        expect(await store.save(run, []) == [], "an empty group has outcomes")
        await case.save_all(store, run, chain(A, 1, 2))
        expect(await store.save(run, [], [Fold(A, 2, b"sum")]) == [], "folds have outcomes")
        entry = await case.read_stream(store, A)
        expect(entry.fold == Fold(A, 2, b"sum"), f"the fold came back as {entry.fold}")
        await expect_conflict(store, RunKey(case.run_id, 0, run.owner + 1), [])


async def big_payloads(case: Case) -> None:
    """Payloads of any size come back as they were, empty ones, too."""
    store = await case.open()
    payloads = [b"", bytes(BIG_BYTES), os.urandom(BIG_BYTES), b"\0"]
    async with case.own(store) as run:
        group = [Checkpoint(A, n, payload) for n, payload in enumerate(payloads, 1)]
        await case.save_all(store, run, group)
    entry = await case.read_stream(await case.reopen(store), A)
    expect([record.payload for record in entry.tail] == payloads, "they differ")


async def odd_names(case: Case) -> None:
    """Any text is a good run id and a good stream key, and no two are mixed up."""
    store = await case.open()
    run_ids = [f"{case.run_id} {name}" for name in ODD_NAMES]
    for run_id in run_ids:
        async with store.lock_run(run_id) as owner:
            group = [Checkpoint(name, 1, f"{run_id} {name}".encode()) for name in ODD_NAMES]
            await case.save_all(store, RunKey(run_id, 0, owner), group)
    store = await case.reopen(store)
    for run_id in run_ids:
        stored = await store.read_run(run_id)
        expect(stored is not None, f"run {run_id!r} is not there")
        found = {entry.stream: entry.tail[0].payload for entry in stored.streams} if stored else {}
        wanted = {name: f"{run_id} {name}".encode() for name in ODD_NAMES}
        expect(found == wanted, f"run {run_id!r} has other streams than were saved")
