"""What the stores in a local folder have in common: who writes, who owns a run, who cleans up.

Theory of operation.  Whatever changes a store is done by its `LocalWriter`, in the order it was
asked for, in one long-lived thread.  Blobs go through trio's threads, but for those that are
removed: whoever puts one of these waits for it, and may have taken the last of trio's threads.

A save that was given up on may still land.  So its run stays locked until the process ends,
and nothing here waits for the writing thread after it.

A blob is put before a record names it, so all blobs that nobody names may be removed only while
nobody owns a run of the store: when a run is locked and nobody else owns one (a crash may
have left some), and when a run that was pruned is given back.  Those that were dropped are known
by name, and each is removed at once unless somebody has put it and not named it yet
(`trio_ckpt.stores._local.blob_pins`).
"""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Literal, Protocol, TypeVar, TypeVarTuple

import trio

from ..._journal.store import (
    MAX_INLINE_LIMIT_BYTES,
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
from ..._util.errors import NoThreadError, SaveOutcomeUnknownError, StoreDamagedError, StoreError
from ..._util.forks import need_process, this_process
from ..._util.threads import NOT_BEGUN, WorkerThread, run_blocking
from ..._util.uninterrupted import shielded
from .blob_pins import BlobPins
from .blobs import Blobs, check_part
from .check import Step
from .live import read_live, write_live
from .locks import RunLock, lock_run, read_owner
from .watermark import Watermark, WatermarkWriter

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class LocalWriter(Protocol):
    """Changes a store.  Everything here blocks, and is called in one thread.

    Attributes:
        claims: What it names in a save is claimed there.
    """

    claims: BlobPins

    def raise_owner(self, run_id: str) -> int:
        """A new owner number for a run, durable; it exists from now on."""
        ...

    def count(self, run_id: str) -> tuple[int, int]:
        """The newest generation of a run that is owned, and its records in all generations.

        Only right after it was locked or pruned.
        """
        ...

    def give_back(self, run_id: str) -> None:
        """The run is about to be unlocked.

        Raises:
            StoreConflictError: the store was removed or replaced since the last save.
        """
        ...

    def save(
        self, run: RunKey, group: Sequence[Checkpoint], folds: Sequence[Fold]
    ) -> list[Exception | None]:
        """See `Store.save`."""
        ...

    def prune(self, run: RunKey, keep: int) -> Pruned:
        """See `Store.prune`; blobs are only counted."""
        ...

    def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> set[str]:
        """See `Store.drop_blobs`; the digests that were named."""
        ...

    def unnamed(self, digests: Iterable[str]) -> list[str]:
        """Those that no record of the store names."""
        ...

    def remove_orphans(self) -> None:
        """Remove blobs that no record names; what goes wrong is logged."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class LocalReader(Protocol):
    """Reads a store, beside whoever writes it; blocking functions."""

    def read_run(self, run_id: str, generation: int | None) -> StoredRun | None:
        """See `Store.read_run`."""
        ...

    def history(
        self, run_id: str, stream: str, generation: int | None, place: str | None, limit: int
    ) -> HistoryPage:
        """See `Store.history`."""
        ...

    def list_runs(self) -> tuple[RunSummary, ...]:
        """See `Store.list_runs`."""
        ...


class LocalStore(Store):
    """A store in a local folder."""

    has_live = True

    def __init__(
        self,
        scheme: str,
        logger: logging.Logger,
        folder: Path,
        writer: LocalWriter,
        reader: LocalReader,
        thread: WorkerThread,
        check_steps: Callable[[Path], Iterator[Step]],
        *,
        mac_key: bytes | None,
        durability: Literal["full", "process"],
        inline_limit_bytes: int,
    ) -> None:
        self.url = f"{scheme}:{folder}"
        self.mac_key = mac_key
        self.durability = durability
        self.inline_limit_bytes = inline_limit_bytes
        self._folder = folder
        self._blobs = Blobs(folder / "blobs")
        self._writer = writer
        self._reader = reader
        self._claims = writer.claims
        self._notes = WatermarkWriter(folder, logger)
        self._check_steps = check_steps
        self._writing = thread
        self._removing = WorkerThread(f"trio_ckpt removes in {folder.name}")
        self._logger = logger
        self._in_doubt: set[str] = set()  # runs with a save whose outcome is unknown
        self._owned = 0  # runs that this handle owns
        self._leaving: set[str] = set()  # runs of which blobs without a name may be left
        self._is_closed = False
        self._process = this_process()

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        """See `Store.lock_run`.  The kernel's lock: it goes with this process."""
        self._check_open()
        await trio.lowlevel.checkpoint()
        lock = await shielded(run_blocking, self._lock, run_id)
        self._owned += 1
        has_failed = True
        try:
            # Shielded: raised late, the number would lock out whoever owns the run by then.
            owner = await shielded(self._writing.run, self._raise_owner, run_id)
            if lock.is_alone:  # cleaned after that: no save of an older owner can land any more
                await shielded(self._clean, lock)
            yield owner
            has_failed = False
        finally:
            if run_id in self._in_doubt:
                self._logger.error("run %r stays locked: a save may still land", run_id)
            else:
                await self._give_back_after(lock, run_id, has_failed=has_failed)

    async def _give_back_after(self, lock: RunLock, run_id: str, *, has_failed: bool) -> None:
        """Give a run back; after a failure, which says more, what goes wrong is logged."""
        try:
            await shielded(self._give_back, lock, run_id)
        except StoreError as error:
            if not has_failed:
                raise
            self._logger.error("giving back run %r failed: %s", run_id, error)

    def _lock(self, run_id: str) -> RunLock:
        lock = lock_run(self._folder, run_id)
        with suppress(StoreError):  # what an owner that was killed was at: nobody is any more
            write_live(self._folder, run_id, b"")
        return lock

    def _raise_owner(self, run_id: str) -> int:
        owner = self._writer.raise_owner(run_id)
        generation, records = self._writer.count(run_id)
        self._notes.begin(Watermark(run_id, owner, generation, records))
        return owner

    async def _clean(self, lock: RunLock) -> None:
        """Remove what crashes left, then let others own runs."""
        await self._writing.run(self._writer.remove_orphans)
        await run_blocking(lock.share)

    async def _give_back(self, lock: RunLock, run_id: str) -> None:
        self._owned -= 1
        try:
            try:
                await self._writing.run(self._end_owning, run_id)
            finally:
                if not self._owned:
                    await run_blocking(self._claims.release_kept)
            if run_id in self._leaving:
                self._leaving.discard(run_id)
                if await run_blocking(lock.be_alone):
                    await self._writing.run(self._writer.remove_orphans)
        finally:
            try:
                await run_blocking(lock.release)
            except NoThreadError:
                lock.release()  # or the run would be locked until the process ends

    def _end_owning(self, run_id: str) -> None:
        try:
            self._notes.need_own(run_id)
        finally:
            self._notes.end(run_id)
            self._writer.give_back(run_id)

    async def save(
        self, run: RunKey, group: Sequence[Checkpoint], folds: Sequence[Fold] = ()
    ) -> list[Exception | None]:
        """See `Store.save`.  One transaction, one fsync."""
        self._check_open()
        try:
            return await self._writing.run(self._save, run, group, folds)
        except NOT_BEGUN:
            raise
        except BaseException as error:
            is_unknown = isinstance(error, SaveOutcomeUnknownError)
            if (group or folds) and (is_unknown or not isinstance(error, StoreError)):
                self._in_doubt.add(run.run_id)
            raise

    def _save(
        self, run: RunKey, group: Sequence[Checkpoint], folds: Sequence[Fold]
    ) -> list[Exception | None]:
        try:
            outcomes = self._writer.save(run, group, folds)
        except BaseException as error:
            if not isinstance(error, SaveOutcomeUnknownError):  # or what it names is needed yet
                self._claims.end_save(group)
            raise
        self._claims.end_save(group, outcomes)
        self._notes.need_own(run.run_id)
        self._notes.saved(run.run_id, run.generation, outcomes.count(None))
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
        if limit < 1:
            raise ValueError(f"limit is {limit}, not positive")
        return await self._read(self._reader.history, run_id, stream, generation, cursor, limit)

    async def list_runs(self) -> tuple[RunSummary, ...]:
        """See `Store.list_runs`."""
        return await self._read(self._reader.list_runs)

    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        """See `Store.prune`."""
        if keep < 0:
            raise ValueError(f"keep is {keep}, less than 0")
        self._check_open()
        await trio.lowlevel.checkpoint()
        try:
            pruned = await shielded(self._writing.run, self._prune, run, keep)
        except SaveOutcomeUnknownError:
            self._in_doubt.add(run.run_id)
            raise
        self._leaving.add(run.run_id)
        return pruned

    def _prune(self, run: RunKey, keep: int) -> Pruned:
        self._notes.reset(run.run_id, 0)  # first: it must never say more than there is
        pruned = self._writer.prune(run, keep)
        self._notes.reset(run.run_id, self._writer.count(run.run_id)[1])
        return pruned

    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        """See `Store.drop_blobs`."""
        self._check_open()
        await trio.lowlevel.checkpoint()
        try:
            size, doomed = await shielded(self._writing.run, self._drop, run, stream, sequences)
        except SaveOutcomeUnknownError:
            self._in_doubt.add(run.run_id)
            raise
        self._leaving.add(run.run_id)
        if doomed:
            await shielded(self._removing.run, self._remove, doomed)
        return size

    def _drop(self, run: RunKey, stream: str, sequences: Sequence[int]) -> tuple[int, list[str]]:
        """Drop, durably; how much nobody names any more, and what of it is to be removed."""
        dropped = self._writer.drop_blobs(run, stream, sequences)
        doomed = self._claims.doom(dropped)
        free: list[str] = []
        try:
            free = self._writer.unnamed(dropped)  # after nobody can claim them any more
            return sum(map(self._blobs.size, free)), [name for name in doomed if name in free]
        except StoreError as error:  # the drop itself is done
            self._logger.warning("blobs that were dropped are left: %s", error)
            return 0, []
        finally:
            self._claims.spare(name for name in doomed if name not in free)

    def _remove(self, doomed: list[str]) -> None:
        try:
            self._blobs.remove(doomed)
        except StoreError as error:
            self._logger.warning("blobs that were dropped are left: %s", error)
        finally:
            self._claims.spare(doomed)

    async def read_owner(self, run_id: str) -> Owner | None:
        """See `Store.read_owner`.

        On Linux; elsewhere it raises `StoreError`.
        """
        self._check_open()
        return await run_blocking(read_owner, self._folder, run_id)

    async def publish(self, run_id: str, payload: bytes) -> None:
        """See `Store.publish`."""
        self._check_open()
        await run_blocking(write_live, self._folder, run_id, payload)

    async def read_live(self, run_id: str) -> bytes:
        """See `Store.read_live`."""
        self._check_open()
        return await run_blocking(read_live, self._folder, run_id)

    async def find_orphans(self) -> tuple[int, int]:
        """How many blobs no record names, and their bytes.

        The next owner removes them, unless somebody is just about to name them.

        Raises:
            StoreError: the store cannot be read.
        """
        self._check_open()
        names = await run_blocking(self._blobs.names)
        free = await shielded(self._writing.run, self._writer.unnamed, names)
        return len(free), sum(map(self._blobs.size, free))

    async def check(self) -> AsyncGenerator[Finding]:
        """See `Store.check`."""
        self._check_open()
        for step in self._check_steps(self._folder):
            for finding in await run_blocking(step):
                yield finding

    async def put_blob(self, payload: BlobPayload) -> str:
        """See `Store.put_blob`.

        Durability: the file and its name are durable on return.
        Cancellation: not while it is written.
        """
        self._check_open()
        return await run_blocking(self._blobs.put, payload, self._claim)

    @contextmanager
    def _claim(self, digest: str) -> Generator[None]:
        """See that nobody removes a blob while it is put, nor before a record names it."""
        self._claims.hold(digest)
        try:
            yield
            if self._owned:
                self._claims.keep(digest)
        finally:
            self._claims.release(digest)

    async def read_blob(self, digest: str, offset: int = 0, size: int | None = None) -> bytes:
        """See `Store.read_blob`."""
        self._check_open()
        check_part(offset, size)
        return await run_blocking(self._blobs.read, digest, offset, size)

    async def aclose(self) -> None:
        """See `Store.aclose`.

        Cancellation: shielded.  It waits for saves under way, but not for one that was
            given up on: the files are closed after that one has ended.
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
                    self._notes.close()
                    self._claims.close()
            finally:
                self._writing.stop(self._close_late if self._in_doubt else int)
                self._removing.stop()

    def _close_late(self) -> None:
        """Close what writes when no caller is left; what goes wrong is logged."""
        try:
            self._writer.close()
        except Exception as error:
            self._logger.error("closing the store %s failed: %s", self.url, error)

    async def _read(self, func: Callable[[*Ts], T], *args: *Ts) -> T:
        """What a read says, or a second one where the first found damage.

        Readers hold no lock, so `prune` may take away a blob that a read is about to open.  The
        second read is after that, and finds damage only where there is some.
        """
        self._check_open()
        try:
            return await self._run_reader(func, *args)
        except StoreDamagedError as error:
            self._logger.debug("reading again, after: %s", error)
            return await self._run_reader(func, *args)

    @abstractmethod
    async def _run_reader(self, func: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run a function of the reader in the thread where it reads."""

    @abstractmethod
    async def _stop_reading(self) -> None:
        """Let go of what reads; shielded."""

    def _check_open(self) -> None:
        need_process(self._process)
        if self._is_closed:
            raise StoreError(f"the store {self.url} is closed")


async def open_writer(folder: Path, make: Callable[[], T]) -> tuple[T, WorkerThread]:
    """Make a writer in the thread that is going to be its own.

    Cancellation: not once it has begun.
    """
    await trio.lowlevel.checkpoint()
    thread = WorkerThread(f"trio_ckpt writes {folder.name}")
    try:
        # Shielded, or nobody would close what it opened.
        return await shielded(thread.run, make), thread
    except BaseException:
        thread.stop()
        raise


def check_options(durability: object, inline_limit_bytes: object, create: object) -> None:
    """See that the options of a local store are such.

    Raises:
        TypeError, ValueError: one is not, with its name and value.
    """
    one_of("durability", durability, ("full", "process"))
    whole_number("inline_limit_bytes", inline_limit_bytes, least=1, most=MAX_INLINE_LIMIT_BYTES)
    flag("create", create)


def absolute_folder(path: str | os.PathLike[str]) -> Path:
    """Where a store is, whatever the current folder will be."""
    plain = os.fspath(path)
    if "\0" in plain:
        raise StoreError(f"{path!r} cannot be the name of a folder")
    if names_home(plain):
        raise StoreError(f"{plain!r} {NOT_EXPANDED}")
    return Path(os.path.abspath(path))
