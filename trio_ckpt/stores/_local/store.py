"""What the stores in a local folder have in common: saving, ownership of runs, cleaning up.

Theory of operation.  Every change of records and owners is made by the `LocalWriter` of the store,
in the order of the calls, in one long-lived thread.  There, too, blobs that no record names any
more lose their names; the files are unlinked in a thread of their own, because that takes long
where they are large, and saves would wait.  Blobs are put and read through `run_blocking`.

A save that was given up on may still land.  So its run stays locked until the process ends, and
closing the store does not wait for the writing thread.

Blobs belong to their run, so all removal is decided by its owner: when it has locked the run (a
crash may have left some that no record names), when it drops blobs or prunes, except for those that
it has put again (`trio_ckpt.stores._local.blob_pins`), and of those when it releases the run.  The
store's owner number is compared first, and no other process can raise it until the names are gone.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Self, TypeVar, TypeVarTuple

import trio
from msgspec.structs import replace

from ..._journal.store import (
    INLINE_LIMIT_BYTES,
    MAX_INLINE_LIMIT_BYTES,
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
    StoredRun,
)
from ..._util.arguments import NOT_EXPANDED, flag, names_home, one_of, whole_number
from ..._util.errors import (
    NoThreadError,
    SaveOutcomeUnknownError,
    StoreConflictError,
    StoreDamagedError,
    StoreError,
)
from ..._util.forks import need_process, this_process
from ..._util.log import get_logger
from ..._util.threads import NOT_BEGUN, WorkerThread, run_blocking
from ..._util.uninterrupted import shielded
from .blob_pins import BlobPins
from .blobs import Blobs, check_part, need_positive, unlink_all
from .fence import need_lock
from .kind import LocalKind, LocalWriter
from .live import begin_live, is_watched, read_live, write_live
from .locks import RunLock, lock_run, owned_among, read_owner
from .watermark import Watermark, WatermarkWriter

logger = get_logger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class LocalStore(Store):
    """A store in a local folder."""

    has_live = True

    _kind: ClassVar[LocalKind]

    def __init__(
        self,
        folder: Path,
        writer: LocalWriter,
        thread: WorkerThread,
        *,
        mac_key: bytes | None,
        durability: Literal["full", "process"],
        inline_limit_bytes: int,
    ) -> None:
        self.address = f"{self._kind.scheme}:{folder}"
        self.mac_key = mac_key
        self.durability = durability
        self.inline_limit_bytes = inline_limit_bytes
        self._folder = folder
        self._blobs_of = partial(Blobs, folder)
        self._writer = writer
        self._reader = self._kind.make_reader(folder)
        self._watermarks = WatermarkWriter(folder)
        self._writing = thread
        in_thread = self._kind.reads_in_thread
        self._reading = WorkerThread(f"trio_ckpt reads {folder.name}") if in_thread else None
        self._removing = WorkerThread(f"trio_ckpt removes in {folder.name}")
        self._in_doubt: set[str] = set()  # runs with a save whose outcome is unknown
        self._owners: dict[str, int] = {}  # runs that this handle owns, by their numbers
        self._pins = BlobPins(self._owners)
        self._is_closed = False
        self._process = this_process()

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        mac_key: bytes | None = None,
        durability: Literal["full", "process"] = "full",
        inline_limit_bytes: int = INLINE_LIMIT_BYTES,
        create: bool = True,
    ) -> Self:
        """Open the store in a folder; see `trio_ckpt.stores.open_store`.

        Args:
            path: The folder.  Parents that are missing are made.
            mac_key: Seals records with a key.
            durability: "full", or "process": faster, but power loss may take the newest saves.
            inline_limit_bytes: A payload of this size or more is a file of its own.
            create: Whether to create a store that does not exist.

        Durability: the names of the folder and of what is in it are durable on return.
        Cancellation: not once it has begun.
        """
        one_of("durability", durability, ("full", "process"))
        whole_number("inline_limit_bytes", inline_limit_bytes, least=1, most=MAX_INLINE_LIMIT_BYTES)
        flag("create", create)
        folder = absolute_folder(path)
        make = partial(cls._kind.make_writer, folder, durability=durability, create=create)
        await trio.lowlevel.checkpoint()
        thread = WorkerThread(f"trio_ckpt writes {folder.name}")
        try:
            # Shielded: a cancelled caller could not close what the writer opened.
            writer = await shielded(thread.run, make)
        except BaseException:
            thread.stop()
            raise
        return cls(
            folder,
            writer,
            thread,
            mac_key=mac_key,
            durability=durability,
            inline_limit_bytes=inline_limit_bytes,
        )

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        """See `Store.lock_run`.  It is a lock of the kernel, which ends with this process."""
        self._check_open()
        await trio.lowlevel.checkpoint()
        lock = await shielded(run_blocking, self._lock, run_id)
        self._owners[run_id] = 0  # until it is raised
        has_failed = True
        try:
            # Shielded: raised late, the number would lock out the next owner of the run.
            self._owners[run_id] = await shielded(self._writing.run, self._raise_owner, run_id)
            yield self._owners[run_id]
            has_failed = False
        finally:
            if run_id in self._in_doubt:
                logger.error("run %r stays locked: a save may still land", run_id)
            else:
                await self._give_back_after(lock, run_id, has_failed=has_failed)

    async def _give_back_after(self, lock: RunLock, run_id: str, *, has_failed: bool) -> None:
        """Release a run; after a failure, which is raised instead, an error is logged."""
        try:
            await shielded(self._give_back, lock, run_id)
        except StoreError as error:
            if not has_failed:
                raise
            logger.error("releasing run %r failed: %s", run_id, error)

    def _lock(self, run_id: str) -> RunLock:
        lock = lock_run(self._folder, run_id)
        with suppress(StoreError):  # then the first reader is not noticed
            begin_live(self._folder, run_id)
        return lock

    def _raise_owner(self, run_id: str) -> int:
        owner = self._writer.raise_owner(run_id)
        generation, records = self._writer.count(run_id)
        run = RunKey(run_id, generation, owner)
        with self._writer.owning(run):  # else it may be the watermark of the next owner
            self._watermarks.begin(Watermark(run_id, owner, generation, records))
        self._remove_orphans(run)  # no older owner can save now
        return owner

    def _remove_orphans(self, run: RunKey) -> None:
        """Remove blobs of a run that no record names; other errors than these are logged.

        Raises:
            StoreConflictError: another owner has the run.
        """
        blobs = self._blobs_of(run.run_id)
        try:
            digests, temporaries = list(blobs.names()), list(blobs.temporaries())
            if digests or temporaries:
                with self._writer.owning(run):  # else they may be those of another owner
                    unnamed = self._writer.unnamed(run.run_id, digests)
                    blobs.remove_orphans([*unnamed, *temporaries])
        except StoreConflictError:
            raise
        except (OSError, StoreError) as error:
            logger.warning("%s: orphans are left: %s", self._folder, error)

    async def _give_back(self, lock: RunLock, run_id: str) -> None:
        run = RunKey(run_id, 0, self._owners.pop(run_id))  # of whichever generation
        try:
            await self._writing.run(self._end_owning, run)
        finally:
            try:
                await run_blocking(lock.release)
            except NoThreadError:
                lock.release()  # without a thread: else the run stays locked until the process ends

    def _end_owning(self, run: RunKey) -> None:
        has_unnamed = self._pins.release(run.run_id)
        try:
            self._watermarks.need_own(run.run_id)
            if has_unnamed:
                self._remove_orphans(run)
        finally:
            self._watermarks.end(run.run_id)
            self._writer.give_back(run.run_id)
        self._blobs_of(run.run_id).remove_folder()
        with suppress(StoreError):  # the next owner removes it
            write_live(self._folder, run.run_id, b"")

    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        """See `Store.save`.  One transaction, one fsync."""
        self._check_open()
        need_lock(self._owners, run)
        try:
            return await self._writing.run(self._save, run, group, folds, summary)
        except NOT_BEGUN:
            raise
        except BaseException as error:
            is_unknown = isinstance(error, SaveOutcomeUnknownError)
            if (group or folds or summary) and (is_unknown or not isinstance(error, StoreError)):
                self._in_doubt.add(run.run_id)
            raise

    def _save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold],
        summary: bytes | None,
    ) -> list[Exception | None]:
        outcomes = self._writer.save(run, group, folds, summary)
        saved = (one for one, outcome in zip(group, outcomes, strict=True) if outcome is None)
        self._pins.release_named(run.run_id, saved)
        self._watermarks.need_own(run.run_id)
        self._watermarks.saved(run.run_id, run.generation, outcomes.count(None))
        return outcomes

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        """See `Store.read_run`."""
        return await self._read(self._reader.read_run, run_id, generation)

    async def history(
        self,
        run_id: str,
        stream: str,
        *,
        generation: int | None = None,
        cursor: str | None = None,
        limit: int = 1000,
    ) -> HistoryPage:
        """See `Store.history`."""
        need_positive(limit)
        return await self._read(self._reader.history, run_id, stream, generation, cursor, limit)

    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        """See `Store.list_runs`."""
        need_positive(limit)
        return await self._read(self._list, prefix, after, limit)

    def _list(self, prefix: str, after: str | None, limit: int) -> tuple[RunSummary, ...]:
        page = self._reader.list_runs(prefix, after, limit)
        owned = owned_among(self._folder, [run.run_id for run in page])
        if not owned:
            return page
        return tuple([replace(run, is_owned=run.run_id in owned) for run in page])

    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        """See `Store.prune`."""
        if keep < 0:
            raise ValueError(f"keep is {keep}, less than 0")
        self._check_open()
        await trio.lowlevel.checkpoint()
        need_lock(self._owners, run)
        pruned, size = await self._remove(run, self._prune, run, keep)
        return replace(pruned, bytes=pruned.bytes + size)

    def _prune(self, run: RunKey, keep: int) -> tuple[Pruned, set[str]]:
        self._watermarks.reset(run.run_id, 0)  # first: it must never exceed what the store has
        pruned, digests = self._writer.prune(run, keep)
        self._watermarks.reset(run.run_id, self._writer.count(run.run_id)[1])
        return pruned, digests

    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        """See `Store.drop_blobs`."""
        self._check_open()
        await trio.lowlevel.checkpoint()
        need_lock(self._owners, run)
        return (await self._remove(run, self._drop, run, stream, sequences))[1]

    def _drop(self, run: RunKey, stream: str, sequences: Sequence[int]) -> tuple[None, set[str]]:
        return None, self._writer.drop_blobs(run, stream, sequences)

    async def _remove(
        self, run: RunKey, func: Callable[[*Ts], tuple[T, set[str]]], *args: *Ts
    ) -> tuple[T, int]:
        """Remove records or names of blobs durably, and then the blobs.

        Args:
            run: The run.
            func: Removes them, in the writing thread; returns a result, and what was named.
            *args: Its arguments.

        Returns:
            The result, and the size of the blobs that no record names any more.
        """

        def remove() -> tuple[T, int, list[Path]]:
            result, digests = func(*args)
            return result, *self._take_names(run, digests)

        try:
            result, size, doomed = await shielded(self._writing.run, remove)
        except SaveOutcomeUnknownError:
            self._in_doubt.add(run.run_id)
            raise
        if doomed:
            await shielded(self._removing.run, unlink_all, doomed)
        return result, size

    def _take_names(self, run: RunKey, digests: set[str]) -> tuple[int, list[Path]]:
        """Take their names from blobs that no record names any more; errors are logged.

        Returns:
            The size of these blobs, and the files to unlink: not those that were put again.
        """
        blobs, size = self._blobs_of(run.run_id), 0
        if not digests:
            return 0, []
        try:
            with self._writer.owning(run):  # else another owner may be about to name them
                free = self._writer.unnamed(run.run_id, digests)
                size = sum(map(blobs.size, free))
                with self._pins.removing(run.run_id, free) as doomed:
                    return size, blobs.set_aside(doomed)
        except (OSError, StoreError) as error:  # what named them is gone durably
            logger.warning("dropped blobs were not removed: %s", error)
            return size, []

    async def read_owner(self, run_id: str) -> Owner | None:
        """See `Store.read_owner`.

        On Linux; on other systems it raises `StoreError`.
        """
        self._check_open()
        return await run_blocking(read_owner, self._folder, run_id)

    async def publish(self, run_id: str, payload: bytes) -> None:
        """See `Store.publish`."""
        self._check_open()
        await run_blocking(write_live, self._folder, run_id, payload)

    async def is_watched(self, run_id: str) -> bool:
        """See `Store.is_watched`."""
        self._check_open()
        return await run_blocking(is_watched, self._folder, run_id)

    async def read_live(self, run_id: str) -> bytes:
        """See `Store.read_live`."""
        self._check_open()
        return await run_blocking(read_live, self._folder, run_id)

    async def find_orphans(self) -> tuple[int, int]:
        """Return the number of blobs that no record of their run names, and their size in bytes.

        The owners of their runs remove them, unless they are about to be named.  What a store of
        format 2 shared among its runs is not counted: `check` finds it.

        Raises:
            StoreError: the store cannot be read.

        Cancellation: not once it has begun.
        """
        self._check_open()
        sizes = await shielded(self._writing.run, self._find_orphans)
        return len(sizes), sum(sizes)

    def _find_orphans(self) -> list[int]:
        """Return the sizes of the blobs that no record of their run names."""
        sizes: list[int] = []
        for run_id in self._writer.run_ids():
            blobs = self._blobs_of(run_id)
            sizes += map(blobs.size, self._writer.unnamed(run_id, list(blobs.names())))
        return sizes

    async def check(self) -> AsyncGenerator[Finding]:
        """See `Store.check`."""
        self._check_open()
        for step in self._kind.check_steps(self._folder):
            for finding in await run_blocking(step):
                yield finding

    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        """See `Store.put_blob`.

        Durability: the file and its name are durable on return.
        Cancellation: not while the blob is written.
        """
        self._check_open()
        need_lock(self._owners, run)
        pinning = partial(self._pins.pinning, run)
        return await run_blocking(self._blobs_of(run.run_id).put, payload, pinning)

    async def read_blob(
        self, run_id: str, digest: str, offset: int = 0, size: int | None = None
    ) -> bytes:
        """See `Store.read_blob`."""
        self._check_open()
        check_part(offset, size)
        return await run_blocking(self._blobs_of(run_id).read, digest, offset, size)

    async def read_blob_parts(self, run_id: str, parts: Iterable[BlobPart]) -> None:
        """See `Store.read_blob_parts`."""
        self._check_open()
        await run_blocking(self._blobs_of(run_id).read_parts, parts)

    async def aclose(self) -> None:
        """See `Store.aclose`.

        Cancellation: shielded.  It waits for saves under way, but not for a save that was
            given up on: the files are closed after that save has ended.
        """
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return
        self._is_closed = True
        try:
            await self._stop_reading()
        finally:
            try:
                if not self._in_doubt:
                    await shielded(self._writing.run, self._writer.close)
                    self._watermarks.close()
            finally:
                self._writing.stop(self._close_late if self._in_doubt else int)
                self._removing.stop()

    def _close_late(self) -> None:
        """Close the writer when no caller is left to wait for it; errors are logged."""
        try:
            self._writer.close()
        except Exception as error:
            logger.error("closing the store %s failed: %s", self.url, error)

    async def _read(self, func: Callable[[*Ts], T], *args: *Ts) -> T:
        """Return the result of a read, repeated once if the first found damage.

        Readers hold no lock, so `prune` may remove a blob that a read is about to open.  The
        second read comes after that, and finds damage only if it is real.
        """
        self._check_open()
        try:
            return await self._run_reader(func, *args)
        except StoreDamagedError as error:
            logger.debug("reading again, after: %s", error)
            return await self._run_reader(func, *args)

    async def _run_reader(self, func: Callable[[*Ts], T], *args: *Ts) -> T:
        if self._reading is None:
            return await run_blocking(func, *args)
        return await self._reading.run(func, *args)

    async def _stop_reading(self) -> None:
        if self._reading is None:
            self._reader.close()
        elif self._in_doubt:  # the disk may hang
            self._reading.stop(self._reader.close)
        else:
            try:
                await shielded(self._reading.run, self._reader.close)
            finally:
                self._reading.stop()

    def _check_open(self) -> None:
        need_process(self._process)
        if self._is_closed:
            raise StoreError(f"the store {self.url} is closed")


def absolute_folder(path: str | os.PathLike[str]) -> Path:
    """Return a store's absolute folder, independent of later changes of the current folder."""
    plain = os.fspath(path)
    if "\0" in plain:
        raise StoreError(f"{path!r} cannot be the name of a folder")
    if names_home(plain):
        raise StoreError(f"{plain!r} {NOT_EXPANDED}")
    return Path(os.path.abspath(path))
