"""Every store keeps the whole contract, and `check_store` notices those that do not."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from trio_ckpt._util.errors import StoreConflictError
from trio_ckpt.abc import (
    BlobPart,
    BlobPayload,
    Checkpoint,
    Finding,
    Fold,
    HistoryPage,
    Owner,
    Pruned,
    RunKey,
    RunSummary,
    Store,
    StoredRecord,
    StoredRun,
)
from trio_ckpt.stores import MemoryStore, SqliteStore, open_store
from trio_ckpt.stores._json import writer
from trio_ckpt.stores._local import blobs
from trio_ckpt.stores.memory import _MemoryLock, _Run
from trio_ckpt.testing import FaultyStore, Hang, check_store


def _memory(kind: type[MemoryStore]) -> Callable[[], Awaitable[Store]]:
    """A maker of handles onto one store of a kind."""
    first = kind()

    async def maker() -> Store:
        handle = kind()
        handle._memory = first._memory
        return handle

    return maker


async def test_memory() -> None:
    await check_store(_memory(MemoryStore))


LOCAL = pytest.mark.parametrize("scheme", ["sqlite", "json"])


@LOCAL
async def test_local(scheme: str, tmp_path: Path) -> None:
    await check_store(lambda: open_store(f"{scheme}:{tmp_path / 'store'}"))


@LOCAL
async def test_local_durable_for_the_process(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}:{tmp_path / 'store'}"
    await check_store(lambda: open_store(url, durability="process"))


@LOCAL
async def test_local_under_a_jumping_clock(
    scheme: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """No call to the disk lets virtual time pass."""
    await check_store(lambda: open_store(f"{scheme}:{tmp_path / 'store'}"))
    assert trio.current_time() == 0


async def test_json_rewritten_with_every_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the journal ends and checkpoint.json begins makes no difference."""
    monkeypatch.setattr(writer, "MIN_REWRITE_BYTES", 0)
    monkeypatch.setattr(writer, "REWRITE_SHARE", 0.0)
    await check_store(lambda: open_store(f"json:{tmp_path / 'store'}"))
    assert "the journal grows on" not in caplog.text


async def test_faulty_store_without_faults() -> None:
    maker = _memory(MemoryStore)

    async def faulty() -> Store:
        return FaultyStore(await maker(), {1_000_000: Hang()})

    await check_store(faulty)


# ---------------------------------------------------------------------------------------
# Stores that each break one clause
# ---------------------------------------------------------------------------------------


class ForgetsOnReopen(MemoryStore):
    async def aclose(self) -> None:
        for run in self._memory.runs.values():
            for stream in run.generations[run.generation].values():
                del stream.log[-1:]
        await super().aclose()


class LetsGapsPass(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        streams = self._fence(run)
        heads = {name: len(stream.log) for name, stream in streams.items()}
        renumbered = []
        for checkpoint in group:
            heads[checkpoint.stream] = heads.get(checkpoint.stream, 0) + 1
            renumbered.append(replace(checkpoint, sequence=heads[checkpoint.stream]))
        return await super().save(run, renumbered, folds, summary=summary)


class AllOrNothing(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        probe = self.after_crash()
        probe._memory.locks.update(self._memory.locks)
        failed = [one for one in await MemoryStore.save(probe, run, group) if one is not None]
        if failed:
            return [failed[0]] * len(group)
        return await super().save(run, group, folds, summary=summary)


class SavesLaterOnes(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        outcomes = [(await super(SavesLaterOnes, self).save(run, [one]))[0] for one in group]
        await super().save(run, [], folds, summary=summary)
        return outcomes


class NoFence(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        newest = self._memory.runs[run.run_id].owner
        return await super().save(replace(run, owner=newest), group, folds, summary=summary)


class FencesTooLate(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        try:
            return await super().save(run, group, folds, summary=summary)
        except StoreConflictError:
            newest = self._memory.runs[run.run_id]
            right = replace(run, owner=newest.owner, generation=newest.generation)
            await super().save(right, group, folds, summary=summary)
            raise


class OwnerStays(MemoryStore):
    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        async with super().lock_run(run_id):
            self._memory.runs[run_id].owner = 1
            yield 1


class MakesRunsBySaving(MemoryStore):
    def _find_owned(self, key: RunKey) -> Any:
        self._memory.runs.setdefault(key.run_id, _Run(key.owner, {0: {}}, 1))
        self._memory.locks.setdefault(key.run_id, _MemoryLock(""))
        return super()._find_owned(key)


class RaisesTheDead(MemoryStore):
    def _find_owned(self, key: RunKey) -> Any:
        run = self._memory.runs.get(key.run_id)
        is_removed = run is not None and not run.generations and run.owner == key.owner
        return run if is_removed else super()._find_owned(key)


class NoLock(MemoryStore):
    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        self._memory.locks.pop(run_id, None)
        async with super().lock_run(run_id) as owner:
            yield owner


class KeepsLockOnError(MemoryStore):
    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        async with super().lock_run(run_id) as owner:
            try:
                yield owner
            except BaseException:
                self._in_doubt.add(run_id)
                raise


class KeepsLockOfTheGone(MemoryStore):
    """Its answer takes a while, and is lost when its caller is gone."""

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        async with super().lock_run(run_id) as owner:
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled:
                self._in_doubt.add(run_id)
                raise
            yield owner


class FreshWipes(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        outcomes = await super().save(run, group, folds, summary=summary)
        generations = self._memory.runs[run.run_id].generations
        for number in [number for number in generations if number < run.generation]:
            generations[number] = {}
        return outcomes


class FreshKeeps(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        stored = self._memory.runs[run.run_id]
        if run.generation == stored.generation + 1 and run.owner == stored.owner:
            stored.generations[run.generation] = stored.generations[stored.generation]
        return await super().save(run, group, folds, summary=summary)


class DropsFolds(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        return await super().save(run, group)


class TailOverlapsFold(MemoryStore):
    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        stored = await super().read_run(run_id, generation)
        if stored is None:
            return None
        entries = []
        for entry in stored.streams:
            if entry.fold is not None and entry.fold.through:
                again = StoredRecord(entry.fold.through, b"")
                entry = replace(entry, tail=(again, *entry.tail))
            entries.append(entry)
        return replace(stored, streams=tuple(entries))


class TakesFoldsAhead(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        outcomes = await super().save(run, group, folds, summary=summary)
        for fold in folds:
            stream = self._memory.runs[run.run_id].generations[run.generation].get(fold.stream)
            if stream is not None:
                stream.fold = fold
        return outcomes


class _OtherHistory(MemoryStore):
    async def history(
        self,
        run_id: str,
        stream: str,
        *,
        generation: int | None = None,
        cursor: str | None = None,
        limit: int = 1000,
    ) -> HistoryPage:
        page = await super().history(
            run_id, stream, generation=generation, cursor=self.take(cursor), limit=limit
        )
        return replace(page, records=self.order(page.records))

    def take(self, cursor: str | None) -> str | None:
        return cursor

    def order(self, records: tuple[StoredRecord, ...]) -> tuple[StoredRecord, ...]:
        return records


class OldestFirst(_OtherHistory):
    def order(self, records: tuple[StoredRecord, ...]) -> tuple[StoredRecord, ...]:
        return records[::-1]


class GuessesCursors(_OtherHistory):
    def take(self, cursor: str | None) -> str | None:
        return cursor if cursor and cursor.count(".") == 1 else None


class EmptyForLostBlobs(MemoryStore):
    def _resolve(self, run: _Run, checkpoint: Checkpoint) -> StoredRecord:
        if checkpoint.blob is not None:
            return StoredRecord(checkpoint.sequence, checkpoint.payload)
        return super()._resolve(run, checkpoint)


class ListsInAnyOrder(MemoryStore):
    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        return (await super().list_runs(prefix, after, limit))[::-1]


class ListsAll(MemoryStore):
    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        return await super().list_runs()


class PagesOverlap(MemoryStore):
    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        page = await super().list_runs(prefix, limit=1000)
        return tuple(run for run in page if after is None or run.run_id >= after)[:limit]


class FoldsCase(MemoryStore):
    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        runs = await super().list_runs("", after)
        return tuple(run for run in runs if run.run_id.lower().startswith(prefix.lower()))[:limit]


class MixesUpCase(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        lower = [replace(one, stream=one.stream.lower()) for one in group]
        return await super().save(run, lower, folds, summary=summary)


class HidesTheOwner(MemoryStore):
    async def read_owner(self, run_id: str) -> Owner | None:
        await self._begin()
        return None


class OwnsForEver(MemoryStore):
    async def read_owner(self, run_id: str) -> Owner | None:
        await self._begin()
        if run_id not in self._memory.runs:
            return None
        return Owner(socket.gethostname(), os.getpid(), datetime.now(UTC))


class LooksByLocking(MemoryStore):
    async def read_owner(self, run_id: str) -> Owner | None:
        owner = await super().read_owner(run_id)
        if owner is None and run_id in self._memory.runs:
            self._memory.locks[run_id] = _MemoryLock(datetime.now(UTC).isoformat())
            try:
                await trio.lowlevel.checkpoint()
            finally:
                del self._memory.locks[run_id]
        return owner


class LocalTime(MemoryStore):
    async def read_owner(self, run_id: str) -> Owner | None:
        owner = await super().read_owner(run_id)
        zone = timezone(timedelta(hours=5))
        return owner and replace(owner, since=owner.since.astimezone(zone))


class PrunesOneTooMany(MemoryStore):
    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        return await super().prune(run, keep=max(keep - 1, min(keep, 1)))


class PrunesNothing(MemoryStore):
    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        return await super().prune(run, keep=keep + 9)


class HidesWhatIsPruned(MemoryStore):
    """It says that a generation is gone, but its history is still there."""

    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        kept = self.after_crash()._memory.runs[run.run_id].generations
        pruned = await super().prune(run, keep=keep)
        self.kept = {n: streams for n, streams in kept.items() if n < run.generation + 1 - keep}
        return pruned

    async def history(
        self,
        run_id: str,
        stream: str,
        *,
        generation: int | None = None,
        cursor: str | None = None,
        limit: int = 1000,
    ) -> HistoryPage:
        if generation in getattr(self, "kept", {}):
            found = self.kept[generation][stream].log
            resolve = partial(self._resolve, self._memory.runs[run_id])
            return HistoryPage(tuple(map(resolve, reversed(found))), None)
        return await super().history(
            run_id, stream, generation=generation, cursor=cursor, limit=limit
        )


class BeginsAtZeroAgain(MemoryStore):
    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        pruned = await super().prune(run, keep=keep)
        if keep == 0:
            self._memory.runs[run.run_id].next_generation = 0
        return pruned


class ForgetsTheOwner(MemoryStore):
    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        pruned = await super().prune(run, keep=keep)
        if keep == 0 and pruned.generations:
            self._memory.runs[run.run_id].owner = 0
        return pruned


class PrunesForAnyOwner(MemoryStore):
    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        owner = self._memory.runs[run.run_id].owner
        return await super().prune(replace(run, owner=owner), keep=keep)


class PrunesAnyGeneration(MemoryStore):
    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        newest = self._memory.runs[run.run_id].generation
        return await super().prune(replace(run, generation=newest), keep=keep)


class KeepsBlobs(MemoryStore):
    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        before = self.after_crash()._memory
        pruned = await super().prune(run, keep=keep)
        self._memory.runs[run.run_id].blobs.update(before.runs[run.run_id].blobs)
        return pruned


class PrunesBlobsInUse(MemoryStore):
    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        pruned = await super().prune(run, keep=keep)
        if pruned.generations:
            self._memory.runs[run.run_id].blobs.clear()
        return pruned


class PrunesBlobsOfOthers(MemoryStore):
    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        before = self.after_crash()._memory
        pruned = await super().prune(run, keep=keep)
        gone = before.runs[run.run_id].blobs.keys() - self._memory.runs[run.run_id].blobs.keys()
        for digest in gone:
            for other in self._memory.runs.values():
                other.blobs.pop(digest, None)
        return pruned


class PublishesIntoTheVoid(MemoryStore):
    has_live = True


class NeverCloses(MemoryStore):
    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class CriesWolf(MemoryStore):
    async def check(self) -> AsyncGenerator[Finding]:
        yield Finding("memory", "a wolf")


class DeafToCancellation(MemoryStore):
    async def _begin(self) -> None:
        with trio.CancelScope(shield=True):
            await super()._begin()


class ForgetsAttached(MemoryStore):
    def _resolve(self, run: _Run, checkpoint: Checkpoint) -> StoredRecord:
        return replace(super()._resolve(run, checkpoint), blobs=())


class RepeatsAttached(MemoryStore):
    def _resolve(self, run: _Run, checkpoint: Checkpoint) -> StoredRecord:
        return replace(super()._resolve(run, checkpoint), blobs=checkpoint.blobs)


class RemovesAttached(MemoryStore):
    """A blob that is only attached counts as named by no record."""

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        async with super().lock_run(run_id) as owner:
            yield owner
        run = self._memory.runs[run_id]
        for streams in run.generations.values():
            for digest in {d for s in streams.values() for c in s.log for d in c.blobs}:
                run.blobs.pop(digest, None)


class NamesWhatIsNotThere(MemoryStore):
    def _append(self, run: _Run, streams: dict[str, Any], checkpoint: Checkpoint) -> None:
        there = tuple(name for name in checkpoint.blobs if name in run.blobs)
        checkpoint = replace(checkpoint, blobs=there)
        super()._append(run, streams, checkpoint)


class NamesWhatIsOfOthers(MemoryStore):
    def _append(self, run: _Run, streams: dict[str, Any], checkpoint: Checkpoint) -> None:
        for other in self._memory.runs.values():
            for digest in set(checkpoint.blobs).intersection(other.blobs):
                run.blobs[digest] = other.blobs[digest]
        super()._append(run, streams, checkpoint)


class ReadsWhatIsOfOthers(MemoryStore):
    async def read_blob(
        self, run_id: str, digest: str, offset: int = 0, size: int | None = None
    ) -> bytes:
        for other, run in self._memory.runs.items():
            if digest in run.blobs:
                run_id = other
        return await super().read_blob(run_id, digest, offset, size)


class PutsForAnyOwner(MemoryStore):
    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        owner = self._memory.runs[run.run_id].owner
        return await super().put_blob(replace(run, owner=owner), payload)


class PutsBeforeItComparesTheOwner(MemoryStore):
    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        content = b"".join(blobs.views_of(payload))
        there = self._memory.runs.get(run.run_id)
        if there is not None:
            there.blobs[hashlib.sha256(content).hexdigest()] = content
        return await super().put_blob(run, content)


class KeepsWhatWasNeverNamed(MemoryStore):
    """While any other run is owned."""

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        run = self._memory.runs.get(run_id)
        kept = dict(run.blobs) if run is not None else {}
        async with super().lock_run(run_id) as owner:
            if len(self._memory.locks) > 1:
                self._memory.runs[run_id].blobs.update(kept)
            try:
                yield owner
            finally:
                kept = dict(self._memory.runs[run_id].blobs)
        if self._memory.locks:
            self._memory.runs[run_id].blobs.update(kept)


class TakesOneBuffer(MemoryStore):
    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        if not isinstance(payload, bytes):
            payload = bytes(next(iter(payload), b""))
        return await super().put_blob(run, payload)


class NamesByTheFirstBuffer(MemoryStore):
    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        views = list(blobs.views_of(payload))
        name = await super().put_blob(run, views)
        return hashlib.sha256(views[0]).hexdigest() if views else name


class KeepsHalves(MemoryStore):
    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        views: list[memoryview] = []
        try:
            for view in blobs.views_of(payload):
                views.append(view)
        finally:
            name = await super().put_blob(run, views)
        return name


class ReadsShort(MemoryStore):
    async def read_blob(
        self, run_id: str, digest: str, offset: int = 0, size: int | None = None
    ) -> bytes:
        whole = await super().read_blob(run_id, digest)
        return whole[offset:] if size is None else whole[offset : offset + size]


class ReadsFromTheStart(MemoryStore):
    async def read_blob(
        self, run_id: str, digest: str, offset: int = 0, size: int | None = None
    ) -> bytes:
        part = await super().read_blob(run_id, digest, offset, size)
        return (await super().read_blob(run_id, digest))[: len(part)]


class ReadsPartsAtTheEnd(MemoryStore):
    async def read_blob_parts(self, run_id: str, parts: Iterable[BlobPart]) -> None:
        await super().read_blob_parts(run_id, list(parts))


class LeavesPartsShort(MemoryStore):
    async def read_blob_parts(self, run_id: str, parts: Iterable[BlobPart]) -> None:
        for part in parts:
            data = (await super().read_blob(run_id, part.digest, part.offset))[: part.nbytes]
            for target in part.targets:
                target[: len(data)] = data[: len(target)]
                data = data[len(target) :]


class DropsNothing(MemoryStore):
    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        return await super().drop_blobs(run, stream, [])


class DropsTheRecords(MemoryStore):
    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        size = await super().drop_blobs(run, stream, sequences)
        log = self._memory.runs[run.run_id].generations[run.generation].get(stream)
        for n in sequences if log is not None and size else ():
            if 1 <= n <= len(log.log):
                log.log[n - 1] = replace(log.log[n - 1], payload=b"")
        return size


class DropsWhatOthersName(MemoryStore):
    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        log = self._memory.runs[run.run_id].generations[run.generation].get(stream)
        numbers = [n for n in sequences if log is not None and 1 <= n <= len(log.log)]
        digests = {d for n in numbers if log is not None for d in log.log[n - 1].blobs}
        size = await super().drop_blobs(run, stream, sequences)
        for digest in digests:
            self._memory.runs[run.run_id].blobs.pop(digest, None)
        return size


class CountsWhatOthersName(MemoryStore):
    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        there = self._memory.runs[run.run_id]
        log = there.generations[run.generation].get(stream)
        numbers = {n for n in sequences if log is not None and 1 <= n <= len(log.log)}
        digests = {d for n in numbers if log is not None for d in log.log[n - 1].blobs}
        size = sum(len(there.blobs.get(digest, b"")) for digest in digests)
        await super().drop_blobs(run, stream, sequences)
        return size


class KeepsDropped(MemoryStore):
    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        blobs = self._memory.runs[run.run_id].blobs
        kept = dict(blobs)
        size = await super().drop_blobs(run, stream, sequences)
        blobs.update(kept)
        return size


class DropsForAnyOwner(MemoryStore):
    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        owner = self._memory.runs[run.run_id].owner
        return await super().drop_blobs(replace(run, owner=owner), stream, sequences)


class DropsInAnyGeneration(MemoryStore):
    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        newest = self._memory.runs[run.run_id].generation
        return await super().drop_blobs(replace(run, generation=newest), stream, sequences)


class RemovesWhatIsAboutToBeNamed(MemoryStore):
    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        for there in self._memory.runs.values():
            there.pins.clear()
        return await super().drop_blobs(run, stream, sequences)


class ForgetsThatItWasPutTwice(MemoryStore):
    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        digest = await super().put_blob(run, payload)
        self._memory.runs[run.run_id].pins[digest] = 1
        return digest


class PrunesWithoutAttached(MemoryStore):
    """It counts no more than a record's own blob."""

    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        before = self.after_crash()._memory
        pruned = await super().prune(run, keep=keep)
        was, now = before.runs[run.run_id], self._memory.runs[run.run_id]
        logs = [s.log for streams in was.generations.values() for s in streams.values()]
        attached = {digest for log in logs for one in log for digest in one.blobs}
        gone = attached.difference(now.blobs)
        return replace(pruned, bytes=pruned.bytes - sum(len(was.blobs[d]) for d in gone))


BROKEN = {
    ForgetsOnReopen: "What was acknowledged is there",
    LetsGapsPass: "A checkpoint's sequence is its predecessor's plus one",
    AllOrNothing: "A checkpoint that fails leaves the other streams",
    SavesLaterOnes: "A checkpoint that fails takes the later ones",
    NoFence: "A group may be empty",
    FencesTooLate: "A save that carries another owner number",
    OwnerStays: "Each lock of a run yields a greater owner number",
    NoLock: "A run has one owner at a time.*a second owner was let in",
    KeepsLockOnError: "A run has one owner at a time.*RunLockedError",
    KeepsLockOfTheGone: "A lock whose caller is gone before the answer comes.*RunLockedError",
    MakesRunsBySaving: "Only a lock makes a run",
    RaisesTheDead: "A run that was removed is not brought back by a late save",
    FreshWipes: "The next generation begins empty.*generation 0 has {}",
    FreshKeeps: "The next generation begins empty",
    DropsFolds: "A group may be empty, with folds",
    TailOverlapsFold: "A fold replaces the one before it",
    TakesFoldsAhead: "A fold replaces the one before it.*ahead",
    OldestFirst: "The next generation begins empty.*another history",
    GuessesCursors: "A cursor that was not given for this stream",
    EmptyForLostBlobs: "Blobs come back in place of the payload",
    ListsInAnyOrder: "list_runs names every run once",
    ListsAll: "list_runs gives a page of the runs with a prefix.*a page of 1 has",
    PagesOverlap: "list_runs gives a page of the runs with a prefix",
    FoldsCase: "list_runs gives a page of the runs with a prefix",
    MixesUpCase: "Any text is a good run id",
    HidesTheOwner: "read_owner returns the present owner.*is locked has no owner",
    OwnsForEver: "read_owner returns the present owner.*given back has an owner",
    LooksByLocking: "Locking a run is not refused while another process",
    LocalTime: "read_owner returns the present owner.*not in UTC",
    PrunesOneTooMany: "prune removes all generations but the newest ones",
    PrunesNothing: "prune removes all generations but the newest ones",
    HidesWhatIsPruned: "prune removes all generations but the newest ones.*has a history",
    BeginsAtZeroAgain: "Of a run pruned to nothing the numbers stay",
    ForgetsTheOwner: "Of a run pruned to nothing the numbers stay",
    PrunesForAnyOwner: "prune removes nothing for another owner",
    PrunesAnyGeneration: "prune removes nothing for another owner",
    KeepsBlobs: "prune removes the blobs that no record of the run names.*still there",
    PrunesBlobsInUse: "prune removes the blobs that no record of the run names.*was altered",
    PrunesBlobsOfOthers: "prune removes the blobs that no record of the run names.*was altered",
    ForgetsAttached: "A checkpoint may name blobs beyond its payload",
    RepeatsAttached: "A checkpoint may name blobs beyond its payload",
    RemovesAttached: "A checkpoint may name blobs beyond its payload.*is not there",
    NamesWhatIsNotThere: "A checkpoint that names a blob that is not there fails",
    NamesWhatIsOfOthers: "A blob is read by the id of its own run.*another run was named",
    ReadsWhatIsOfOthers: "A blob is read by the id of its own run.*another run was read",
    PutsForAnyOwner: "put_blob stores nothing for another owner.*was put by owner",
    PutsBeforeItComparesTheOwner: "put_blob stores nothing for another owner.*still there",
    KeepsWhatWasNeverNamed: "A blob that was put and is not named yet stays.*still there",
    TakesOneBuffer: "A blob is one buffer or several",
    NamesByTheFirstBuffer: "A blob is one buffer or several.*a blob is named",
    KeepsHalves: "A blob is one buffer or several.*half of a blob is there",
    ReadsShort: "read_blob gives exactly the part",
    ReadsFromTheStart: "read_blob gives exactly the part.*are other ones",
    ReadsPartsAtTheEnd: "read_blob_parts fills the memory of each part.*are other ones",
    LeavesPartsShort: "read_blob_parts fills the memory of each part.*were read",
    DropsNothing: "drop_blobs ends the naming, not the records",
    DropsTheRecords: "drop_blobs ends the naming, not the records.*a payload differs",
    DropsWhatOthersName: "drop_blobs ends the naming, not the records.*is missing or was",
    CountsWhatOthersName: "drop_blobs ends the naming, not the records.*frees",
    KeepsDropped: "drop_blobs ends the naming, not the records.*is still there",
    DropsForAnyOwner: "drop_blobs drops nothing for another owner",
    DropsInAnyGeneration: "drop_blobs drops nothing for another owner.*generation=0",
    RemovesWhatIsAboutToBeNamed: "A blob that was put and is not named yet stays",
    ForgetsThatItWasPutTwice: "A blob that was put and is not named yet stays.*named once",
    PrunesWithoutAttached: "prune removes attached blobs that no other record names",
    PublishesIntoTheVoid: "What is published for other processes replaces what was there",
    NeverCloses: "Closing twice is fine",
    CriesWolf: "check finds no damage in a store that is as it was saved.*a sound store is damaged",
    DeafToCancellation: "A cancelled read ends",
}


@pytest.mark.parametrize(
    ("kind", "clause"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", "")
)
async def test_broken_store_is_caught(kind: type[MemoryStore], clause: str) -> None:
    with pytest.raises(AssertionError, match=f"(?s)^{clause}"):
        await check_store(_memory(kind))


async def test_raising_store_is_caught() -> None:
    """An error that a store raises by mistake is reported as a broken clause, too."""

    class Raises(MemoryStore):
        async def list_runs(
            self, prefix: str = "", after: str | None = None, limit: int = 1000
        ) -> tuple[RunSummary, ...]:
            raise ZeroDivisionError

    with pytest.raises(AssertionError, match=r"list_runs names every run once.*ZeroDivision"):
        await check_store(_memory(Raises))


async def test_handles_are_closed(tmp_path: Path) -> None:
    """Also after a failure, `check_store` leaves no handle open."""
    opened: list[Store] = []

    async def maker() -> Store:
        opened.append(await SqliteStore.open(tmp_path / "store"))
        if len(opened) == 5:
            raise OSError("enough")
        return opened[-1]

    with pytest.raises(AssertionError, match="enough"):
        await check_store(maker)
    await opened.pop().aclose()
    assert all(store._is_closed for store in opened)  # type: ignore[attr-defined]
