"""The clauses of the store contract about attached blobs; the last is about checking a store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import aclosing
from functools import partial

from .._journal.store import BlobPart, BlobPayload, Checkpoint, Fold, Pruned, RunKey, Store
from .._util.errors import StoreConflictError, StoreDamagedError, StoreError
from ._store_case import A, B, Case, chain, expect, expect_raised, payload_of

BLOB_BYTES = 1000


class _HalfError(Exception):
    """What an iterator of buffers raises."""


async def _put_some(store: Store, run: RunKey, count: int) -> dict[str, bytes]:
    payloads = [os.urandom(BLOB_BYTES + n) for n in range(count)]
    return {await store.put_blob(run, payload): payload for payload in payloads}


def _naming(stream: str, sequence: int, *digests: str) -> Checkpoint:
    return Checkpoint(stream, sequence, payload_of(sequence), blobs=digests)


async def _names(case: Case, store: Store, stream: str) -> dict[int, tuple[str, ...]]:
    """What the records of a stream name, told alike by read_run and by history."""
    entry = await case.read_stream(store, stream)
    page = await store.history(case.run_id, stream)
    expect(page.records[::-1] == entry.tail, "history and read_run differ")
    for record in entry.tail:
        expect(record.payload == payload_of(record.sequence), "a payload differs")
    return {record.sequence: record.blobs for record in entry.tail}


async def _expect_there(store: Store, run_id: str, blobs: dict[str, bytes]) -> None:
    for digest, payload in blobs.items():
        try:
            found = await store.read_blob(run_id, digest)
        except StoreDamagedError as error:
            raise AssertionError(f"a blob that is named is not there: {error}") from error
        expect(found == payload, "a blob is not what was put")


async def _expect_gone(store: Store, run_id: str, digest: str) -> None:
    what = "a blob that no record of its run names is still there"
    await expect_raised(StoreDamagedError, what, store.read_blob, run_id, digest)


async def attached_blobs(case: Case) -> None:
    """A checkpoint may name blobs beyond its payload: its record tells them, and they are kept."""
    store = await case.open()
    async with case.own(store) as run:
        blobs = await _put_some(store, run, 3)
        names = tuple(blobs)
        group = [
            _naming(A, 1, *names),
            _naming(A, 2, names[2], names[0], names[2]),
            *chain(A, 3, 3),
        ]
        await case.save_all(store, run, group)
        own = await store.put_blob(run, payload_of(1))
        group = [Checkpoint(B, 1, b"", own, (names[1],))]
        await case.save_all(store, run, group)
    wanted = {1: names, 2: (names[2], names[0]), 3: ()}
    for _ in range(2):
        found = await _names(case, store, A)
        expect(found == wanted, f"its records name {found}, not {wanted}")
        found = await _names(case, store, B)
        expect(found == {1: (names[1],)}, f"one whose payload is a blob names {found}")
        async with store.lock_run(case.run_id):  # where unnamed blobs may be removed
            pass
        await _expect_there(store, case.run_id, blobs)
        store = await case.reopen(store)


async def attached_blobs_are_needed(case: Case) -> None:
    """A checkpoint that names a blob that is not there fails, and with it its followers only."""
    store = await case.open()
    absent = hashlib.sha256(b"never put").hexdigest()
    async with case.own(store) as run:
        (there,) = await _put_some(store, run, 1)
        bad = [_naming(A, 2, there, absent), _naming(A, 2, "no digest"), _naming(A, 2, "../x")]
        await case.save_all(store, run, chain(A, 1, 1))
        for number, one in enumerate(bad, 1):
            group = [one, *chain(B, number, number), *chain(A, 3, 3)]
            outcomes = await store.save(run, group)
            kinds = [outcome if outcome is None else type(outcome) for outcome in outcomes]
            refused = [isinstance(outcome, StoreError) for outcome in outcomes]
            expect(refused == [True, False, True], f"naming {one.blobs} gave {kinds}")
        await case.save_all(store, run, [_naming(A, 2, there)])
    await case.expect_saved(await case.reopen(store), {A: 2, B: len(bad)})


async def put_blob(case: Case) -> None:
    """A blob is one buffer or several, made when asked for; its name is their SHA-256."""
    store = await case.open()
    odd = memoryview(memoryview(bytes(range(96))).cast("d", (3, 4)))  # of an array, say
    payloads: list[tuple[BlobPayload, bytes]] = [
        (b"", b""),
        ([], b""),
        ([b"", memoryview(b"")], b""),
        (b"one", b"one"),
        ([b"one"], b"one"),
        ([b"on", b"", memoryview(b"e tw"), odd, b"o"], b"one tw" + bytes(range(96)) + b"o"),
        ([bytes([n % 256]) for n in range(3000)], bytes(n % 256 for n in range(3000))),
    ]
    async with case.own(store) as run:
        for payload, whole in payloads:
            digest = hashlib.sha256(whole).hexdigest()
            for _ in range(2):
                name = await store.put_blob(run, payload)
                expect(name == digest, f"a blob is named {name}, not {digest}")
                await _expect_there(store, case.run_id, {digest: whole})
        made = [os.urandom(BLOB_BYTES) for _ in range(3)]
        name = await store.put_blob(run, (one for one in made))
        await _expect_there(store, case.run_id, {name: b"".join(made)})

        def fail() -> Iterator[bytes]:
            yield b"half of it" + made[0]
            raise _HalfError

        what = "an iterator that fails gave a blob"
        await expect_raised(_HalfError, what, store.put_blob, run, fail())
        half = hashlib.sha256(b"half of it" + made[0]).hexdigest()
        (outcome,) = await store.save(run, [_naming(A, 1, half)])
        expect(outcome is not None, "half of a blob is there")


async def read_blob(case: Case) -> None:
    """read_blob gives exactly the part that is asked for, without the lock, or raises."""
    store, other = await case.open(), await case.open()
    async with case.own(store) as run:
        ((digest, payload),) = (await _put_some(store, run, 1)).items()
        await case.save_all(store, run, [_naming(A, 1, digest)])
        end = len(payload)
        parts = [(0, None), (0, end), (0, 1), (1, 10), (end - 1, 1), (7, None), (end, 0), (3, 0)]
        for handle in (store, other):
            for offset, size in parts:
                found = await handle.read_blob(case.run_id, digest, offset, size)
                wanted = payload[offset : None if size is None else offset + size]
                expect(found == wanted, f"{size} bytes from {offset} on are other ones")
    absent = hashlib.sha256(b"never put").hexdigest()
    bad: list[tuple[type[Exception], str, int, int | None]] = [
        (StoreDamagedError, digest, 0, end + 1),
        (StoreDamagedError, digest, end, 1),
        (StoreDamagedError, digest, end + 1, None),
        (StoreDamagedError, digest, end + 1, 0),
        (StoreDamagedError, absent, 0, 0),
        (StoreError, "no digest", 0, None),
        (ValueError, digest, -1, None),
        (ValueError, digest, 0, -1),
    ]
    for error, name, offset, size in bad:
        what = f"{size} bytes from {offset} on of {end} were read"
        await expect_raised(error, what, store.read_blob, case.run_id, name, offset, size)


async def read_blob_parts(case: Case) -> None:
    """read_blob_parts fills the memory of each part before it asks for the next one, or raises."""
    store = await case.open()
    payloads: dict[str, bytes] = {}

    def ask(fails: bool = False) -> Iterator[BlobPart]:
        for offset, size in ((0, BLOB_BYTES), (7, 1), (BLOB_BYTES, 0), (3, 500)):
            for digest, payload in payloads.items():
                memory, cut = bytearray(size), size // 3
                view = memoryview(memory)
                yield BlobPart(digest, offset, (view[:cut], view[:0], view[cut:]))
                wanted = payload[offset : offset + size]
                expect(bytes(memory) == wanted, f"{size} bytes from {offset} on are other ones")
        if fails:
            raise _HalfError

    async with case.own(store) as run:
        payloads |= await _put_some(store, run, 2)
        await case.save_all(store, run, [_naming(A, 1, *payloads)])
        await store.read_blob_parts(case.run_id, ask())
        what = "parts were read of an iterator that fails"
        read = partial(store.read_blob_parts, case.run_id)
        await expect_raised(_HalfError, what, read, ask(fails=True))
    absent, one = hashlib.sha256(b"never put").hexdigest(), next(iter(payloads))
    end, target = len(payloads[one]), memoryview(bytearray(10))
    bad: list[tuple[type[Exception], str, int]] = [
        (StoreDamagedError, one, end - 9),
        (StoreDamagedError, absent, 0),
        (StoreError, "no digest", 0),
        (ValueError, one, -1),
    ]
    for error, name, offset in bad:
        what = f"10 bytes from {offset} on of {end} were read"
        parts = [BlobPart(name, offset, (target,))]
        await expect_raised(error, what, store.read_blob_parts, case.run_id, parts)


async def drop_blobs(case: Case) -> None:
    """drop_blobs ends the naming, not the records; blobs that no other record names are removed."""
    store, other = await case.open(), await case.open()
    async with other.lock_run(f"{case.run_id} 2"), case.own(store) as run:
        blobs = await _put_some(store, run, 4)
        one, two, shared, payload = blobs
        group = [
            _naming(A, 1, one, shared, payload),
            _naming(A, 2, two, shared),
            _naming(A, 3, shared),
            Checkpoint(B, 1, b"", payload),
        ]
        await case.save_all(store, run, group)
        for stream, sequences in ((A, []), (A, [0, -1, 4, 10**30]), (B, [1]), ("?", [1])):
            size = await store.drop_blobs(run, stream, sequences)
            expect(size == 0, f"dropping {sequences} of {stream} frees {size} bytes")
        size = await store.drop_blobs(run, A, [2, 1, 1, 9])
        wanted = len(blobs[one]) + len(blobs[two])
        expect(size == wanted, f"it frees {size} bytes, not {wanted}")
        for digest in (one, two):  # at once, though another run is owned
            await _expect_gone(store, case.run_id, digest)
        size = await store.drop_blobs(run, A, [1, 2])
        expect(size == 0, f"the second time it frees {size} bytes")
        names = {1: (), 2: (), 3: (shared,)}
        found = await _names(case, store, A)
        expect(found == names, f"the records name {found}, not {names}")
        await case.save_all(store, run, chain(A, 4, 4))
    store = await case.reopen(store)
    found = await _names(case, store, A)
    expect(found == names | {4: ()}, f"the records name {found} once it is opened again")
    kept = {name: blobs[name] for name in (shared, payload)}
    async with case.own(store) as run:
        for digest in (one, two):
            await _expect_gone(store, case.run_id, digest)
        await _expect_there(store, case.run_id, kept)
        size = await store.drop_blobs(run, A, [3])
        expect(size == len(blobs[shared]), f"dropping the last name frees {size} bytes")
        await _expect_gone(store, case.run_id, shared)
    async with store.lock_run(case.run_id):
        await _expect_gone(store, case.run_id, shared)
        await _expect_there(store, case.run_id, {payload: blobs[payload]})


async def drop_is_fenced(case: Case) -> None:
    """drop_blobs drops nothing for another owner than the newest, or another generation."""
    store, other = await case.open(), await case.open()
    async with store.lock_run(case.run_id) as old:
        run = RunKey(case.run_id, 0, old)
        blobs = await _put_some(store, run, 1)
        await case.save_all(store, run, [_naming(A, 1, *blobs)])
        await case.save_all(store, RunKey(case.run_id, 1, old), [_naming(A, 1, *blobs)])
    async with other.lock_run(case.run_id) as owner:
        for handle, key in (
            (store, RunKey(case.run_id, 1, old)),
            (other, RunKey(case.run_id, 1, old)),
            (other, RunKey(case.run_id, 1, owner + 1)),
            (other, RunKey(case.run_id, 0, owner)),
            (other, RunKey(case.run_id, 2, owner)),
        ):
            what = f"dropping as {key} was done"
            await expect_raised(StoreConflictError, what, handle.drop_blobs, key, A, [1])
    for generation in (0, 1):
        entry = (await case.read(other, generation)).streams[0]
        found = entry.tail[0].blobs
        expect(found == tuple(blobs), f"generation {generation} names {found}")
    for key in (RunKey(case.run_id, 1, owner), RunKey(f"{case.run_id} 2", 0, 1)):
        what = f"dropping as {key}, unlocked, was done"
        await expect_raised(StoreConflictError, what, other.drop_blobs, key, A, [1])
    await _expect_there(other, case.run_id, blobs)


async def blob_about_to_be_named(case: Case) -> None:
    """A blob that was put and is not named yet stays until the run is released, and not longer."""
    store, other = await case.open(), await case.open()
    async with other.lock_run(f"{case.run_id} 2"):
        async with case.own(store) as run:
            blobs = await _put_some(store, run, 1)
            ((digest, payload),) = blobs.items()
            await case.save_all(store, run, [_naming(A, 1, digest)])
            await store.put_blob(run, payload)
            await store.drop_blobs(run, A, [1])
            await _expect_there(store, case.run_id, blobs)
            outcomes = await store.save(run, [_naming(B, 1, digest)])
            expect(outcomes == [None], f"a blob that was put cannot be named: {outcomes}")
            await store.drop_blobs(run, B, [1])
            await _expect_gone(store, case.run_id, digest)
            for _ in range(2):
                await store.put_blob(run, payload)
            await case.save_all(store, run, [_naming(A, 2, digest)])
            await store.drop_blobs(run, A, [2])
            outcomes = await store.save(run, [_naming(B, 2, digest)])
            expect(outcomes == [None], f"a blob that was put twice is named once: {outcomes}")
            await store.drop_blobs(run, B, [2])
            await _expect_gone(store, case.run_id, digest)
            await store.put_blob(run, payload)
        async with case.own(store) as run:
            await _expect_gone(store, case.run_id, digest)
            (outcome,) = await store.save(run, [_naming(B, 3, digest)])
            expect(outcome is not None, "a blob that is gone was named")


async def blobs_belong_to_their_run(case: Case) -> None:
    """A blob is read by the id of its own run, and named by records of its own run alone."""
    store = await case.open()
    async with case.own(store) as run, store.lock_run(f"{case.run_id} 2") as second:
        other = RunKey(f"{case.run_id} 2", 0, second)
        blobs = await _put_some(store, run, 1)
        ((digest, payload),) = blobs.items()
        await case.save_all(store, run, [_naming(A, 1, digest)])
        for run_id in (other.run_id, f"{case.run_id} 3"):
            what = f"a blob of another run was read as one of {run_id!r}"
            await expect_raised(StoreDamagedError, what, store.read_blob, run_id, digest)
            parts = [BlobPart(digest, 0, (memoryview(bytearray(1)),))]
            await expect_raised(StoreDamagedError, what, store.read_blob_parts, run_id, parts)
        (outcome,) = await store.save(other, [_naming(A, 1, digest)])
        expect(outcome is not None, "a blob of another run was named")
        await store.put_blob(other, payload)
        await case.save_all(store, other, [_naming(A, 1, digest)])
        size = await store.drop_blobs(run, A, [1])
        expect(size == len(payload), f"dropping what another run names frees {size} bytes")
        await _expect_gone(store, case.run_id, digest)
        await _expect_there(store, other.run_id, blobs)


async def put_is_fenced(case: Case) -> None:
    """put_blob stores nothing for another owner than the newest, or without the lock."""
    store, other = await case.open(), await case.open()
    payload = os.urandom(BLOB_BYTES)
    digest = hashlib.sha256(payload).hexdigest()
    async with store.lock_run(case.run_id) as old:
        await case.save_all(store, RunKey(case.run_id, 0, old), chain(A, 1, 1))
    async with case.own(other) as run:
        for handle, owner in ((store, old), (other, old), (other, run.owner + 1)):
            what = f"a blob was put by owner {owner}"
            key = RunKey(case.run_id, 0, owner)
            await expect_raised(StoreConflictError, what, handle.put_blob, key, payload)
        await _expect_gone(other, case.run_id, digest)
        (outcome,) = await other.save(run, [_naming(A, 2, digest)])
        expect(outcome is not None, "what was refused is there, and was named")
    for key in (run, RunKey(f"{case.run_id} 2", 0, 1)):
        what = f"a blob was put by {key}, unlocked"
        await expect_raised(StoreConflictError, what, other.put_blob, key, payload)
    async with case.own(other):
        await _expect_gone(other, case.run_id, digest)


async def prune_knows_attached_blobs(case: Case) -> None:
    """prune removes attached blobs that no other record names, and no others."""
    store = await case.open()
    async with store.lock_run(case.run_id) as owner:
        old, run = RunKey(case.run_id, 0, owner), RunKey(case.run_id, 1, owner)
        blobs = await _put_some(store, old, 3)
        lost, kept, dropped = blobs
        await case.save_all(store, old, [_naming(A, 1, lost, kept), _naming(A, 2, dropped)])
        await store.drop_blobs(old, A, [2])
        await case.save_all(store, run, [_naming(A, 1, kept)])
        pruned = await store.prune(run, keep=1)
        wanted = Pruned(1, 2, len(payload_of(1)) + len(payload_of(2)) + len(blobs[lost]))
        expect(pruned == wanted, f"it removed {pruned}, not {wanted}")
    store = await case.reopen(store)
    async with store.lock_run(case.run_id):
        await _expect_gone(store, case.run_id, lost)
        await _expect_there(store, case.run_id, {kept: blobs[kept]})
    found = await _names(case, store, A)
    expect(found == {1: (kept,)}, f"the generation that was kept names {found}")


async def a_sound_store_has_no_damage(case: Case) -> None:
    """check finds no damage in a store that is as it was saved, running or not; or it refuses."""
    store = await case.open()
    async with case.own(store) as run:
        digest = await store.put_blob(run, b"attached")
        await case.save_all(store, run, chain(A, 1, 3))
        await case.save_all(store, run, [Checkpoint(A, 4, b"four", blobs=(digest,))])
        await store.save(run, [], [Fold(A, 3, b"fold")])
        await store.put_blob(run, b"not named yet")
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
