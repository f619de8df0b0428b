"""A run enters a store out of an archive, whole or not at all.

Theory of operation
===================

Every byte, every record and every name of the archive is checked before the store is asked for
anything.  Then, under the lock of the new run: output files first, since a record may only name a
file that exists; then the records, sealed for their new place, in groups, with folds; before each
group the blobs that it names.

The run's own stream gets one more record.  It says where the outputs are *here*, or that there
are none: no command may touch the files of the exported run.

A crash must not leave a partial run that a program would resume.  A store has no transaction over
several groups.  But it replaces folds in the transaction of a save, and no reader passes a fold
that is not valid progress.  So the first save holds one record of the first stream and, as this
stream's fold, a *marker*: sealed like a fold, but with a status that is not one.  From then on a
process that loads the run gets an error (`StoreDamagedError`, with the marker's text).  The marker
moves with the stream's newest record.  The last save of all replaces it by the true fold, and that
alone makes the run valid.

An import that finds a marked run starts it from the beginning, in its next generation, from
whatever archive it is given.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from typing import Any

import attrs
import msgspec
import trio

from .._commit.group_commit import DEFAULT_SAVE_TIMEOUT_S
from .._journal.apply import apply
from .._journal.folds import encode_progress
from .._journal.history import KILLED, LiveRecords
from .._journal.progress import Progress
from .._journal.record import Output, Record, RecordKind, Seal, Status, decode_record, encode_record
from .._journal.store import BlobPayload, Checkpoint, Fold, RunKey, Store, StoredRun
from .._runs.session import ARCHIVING, archived_note, is_archiving
from .._util.arguments import path_text
from .._util.errors import ArchiveError, SaveOutcomeUnknownError, StoreDamagedError
from .._util.index_set import IndexSet
from .._util.patience import give_up_after
from .._util.plain import RUN_STREAM, check_run_id, decode_key, encode_key
from .._util.threads import run_blocking
from ..outputs import AnyPath, Outputs, open_outputs
from .archive_file import Archive, Member, held
from .export import PAGE, ExportSummary, summarize_archive

GROUP_BYTES = 4 * 2**20  # records in one save: these, or `PAGE`; decoded they are larger
HALF = "half imported: import it again, from this archive or another"


async def import_run(
    store: Store,
    path: AnyPath,
    *,
    run_id: str | None = None,
    output_dir: AnyPath | None = None,
) -> ExportSummary:
    """Import a run from an archive into a store.

    Everything in the archive is checked before anything is saved.  Records keep their
    sequences, times and metadata, and the blobs that they name; the run gets its own owner
    number and generation, and one record that says where its outputs are now.  After an
    interrupted import no process can open the run, and another import starts it again.

    Args:
        store: The store to import into.
        path: The archive.
        run_id: The name of the run there; default: its name in the archive.
        output_dir: The folder for its output files; without it they stay in the archive.
            A file that exists there must have the same content.

    Returns:
        What was imported.

    Raises:
        ArchiveError: the archive is damaged or not one; the store has a run of this name; or
            an output file would replace another.
        RunLockedError: another process owns a run of this name.
        OutputError: an output cannot be written.
        SaveOutcomeUnknownError: a save has not ended.
        StoreError: a save failed.
        TypeError, ValueError: `path` or `output_dir` is not a path, or begins with ``~``.
        OSError: the archive cannot be read, or a blob cannot be unpacked into a temporary
            file.

    Durability: the run and its outputs are durable once this has returned.
    Cancellation: waits for a save, and for the check of the archive's seal; then the import
        is interrupted.
    """
    async with checked_archive(path, run_id=run_id) as checked:
        return await import_checked(store, checked, output_dir=output_dir)


@attrs.frozen
class CheckedArchive:
    """An archive that was checked completely; from `checked_archive`.

    Attributes:
        archive: The open archive.
        run_id: The name of its run in the store.
        worked_at: When the run was last worked on.
    """

    archive: Archive
    run_id: str
    worked_at: float | None


@asynccontextmanager
async def checked_archive(
    path: AnyPath, *, run_id: str | None = None
) -> AsyncGenerator[CheckedArchive]:
    """Check everything in an archive; the store is not needed, so a bad one creates none.

    Raises:
        ArchiveError: the file is damaged or is not an archive.
        ValueError: a run cannot have this name.
        OSError: the file cannot be read.
    """
    async with held(await run_blocking(Archive.open, path)) as archive:
        target = check_run_id(archive.manifest.run_id if run_id is None else run_id)
        yield CheckedArchive(archive, target, await _check_all(archive))


async def import_checked(
    store: Store, checked: CheckedArchive, *, output_dir: AnyPath | None = None
) -> ExportSummary:
    """Import a checked archive; see `import_run`."""
    if output_dir is not None:
        path_text("output_dir", output_dir)
    archive, target = checked.archive, checked.run_id
    async with store.lock_run(target) as owner:
        generation = _free_generation(store, await store.read_run(target), target)
        outputs, root = 0, None
        if output_dir is not None:
            async with held(await run_blocking(open_outputs, output_dir)) as folder:
                outputs, root = await _import_outputs(archive, folder), folder.root
        run_key = RunKey(target, generation, owner)
        await _Importer(store, run_key, archive, root, checked.worked_at).run()
    return summarize_archive(
        archive.path, run_key, archive.manifest, outputs=outputs, size_bytes=archive.size_bytes
    )


def _free_generation(store: Store, stored: StoredRun | None, run_id: str) -> int:
    """Decide where an import begins: in an empty run, or again in a partly imported one."""
    if stored is None:
        return 0
    if not stored.streams:  # locking the run has created it
        return stored.generation
    for entry in stored.streams:
        if entry.fold is not None:
            seal = store.seal(run_id, stored.generation, decode_key(entry.stream))
            if _is_marker(seal.open(-entry.fold.through, entry.fold.payload)):
                return stored.generation + 1
    raise ArchiveError(
        f"{store.url} has a run {run_id!r} already; give the imported one another name: run_id=, "
        "or --as on the command",
        run_id=run_id,
    )


# -- looking ------------------------------------------------------------------------------


async def _check_all(archive: Archive) -> float | None:
    """Read the whole archive and check that it is a run; return when it was last worked on.

    Raises:
        ArchiveError: it is not a valid run.
    """
    named: dict[str, tuple[int, str | None]] = {}
    times: list[float] = []
    for number in range(len(archive.manifest.streams)):
        try:
            progress = await _check_stream(archive, number, named)
            times += [] if progress.worked_at is None else [progress.worked_at]
        except (StoreDamagedError, ValueError, OverflowError, TypeError) as error:
            raise ArchiveError(f"{archive.path!r} has an invalid record: {error}") from error
    for path, member in archive.outputs.items():
        size, sha256 = named.get(path, (-1, None))
        if size != member.size or sha256 not in (None, member.sha256):
            raise ArchiveError(f"{archive.path!r}: no record speaks of output {path!r} as it is")
        await run_blocking(_read_through, archive, member)
    for member in archive.blobs.values():
        await run_blocking(_read_through, archive, member)
    return max(times, default=None)


async def _check_stream(
    archive: Archive, number: int, named: dict[str, tuple[int, str | None]]
) -> Progress:
    progress, batches, with_outputs = Progress(), list[tuple[int, Record]](), IndexSet()
    async with aclosing(_groups(archive, number)) as groups:
        async for group in groups:
            for sequence, _, record in group:
                apply(progress, sequence, record)
                if archive.outputs and record.kind is RecordKind.BATCH and record.index is not None:
                    if record.outputs:
                        with_outputs.add(record.index)
                    if record.index in with_outputs:  # only what the check needs is kept
                        slim = Record(at=record.at, index=record.index, outputs=record.outputs)
                        batches.append((sequence, slim))
    encode_progress(progress)
    for entry in LiveRecords(progress).of(batches[::-1]):
        named.update({o.path: (o.size, o.sha256) for o in entry.record.outputs})
    named.update({path: (size, None) for path, size in progress.sinks.items()})
    return progress


def _read_through(archive: Archive, member: Member) -> None:
    with closing(archive.pieces(member)) as pieces:
        for _ in pieces:
            pass


_Group = list[tuple[int, bytes, Record]]


async def _groups(archive: Archive, number: int) -> AsyncGenerator[_Group]:
    """Yield the records of a stream, oldest first, in groups that fit into one save."""
    limit = 1  # the first record alone: it is saved with the marker
    async with held(archive.records(number)) as records:
        while group := await run_blocking(_take, records, limit):
            yield group
            limit = PAGE


def _take(records: Iterator[tuple[int, bytes]], limit: int) -> _Group:
    group: _Group = []
    size = 0
    for sequence, payload in records:
        group.append((sequence, payload, decode_record(payload)))
        size += len(payload)
        if len(group) >= limit or size >= GROUP_BYTES:
            break
    return group


# -- outputs ------------------------------------------------------------------------------


async def _import_outputs(archive: Archive, folder: Outputs) -> int:
    """Write the output files that do not exist; return how many exist now."""
    missing: list[str] = []
    of_a_killed_one = list(dict.fromkeys(os.path.dirname(path) for path in archive.outputs))
    await run_blocking(folder.remove_orphans, of_a_killed_one)
    for path, member in archive.outputs.items():
        wanted = Output(path, member.size, 0, member.sha256)
        found = await run_blocking(folder.check, wanted, "sha256")
        if found == "missing":
            missing.append(path)
        elif found is not None:
            raise ArchiveError(
                f"{path!r} is in {folder.root!r} already and is another: {found}; give another "
                "folder: output_dir=, or --output-dir on the command"
            )
    for path in missing:
        await run_blocking(_write_output, archive, folder, path)
    return len(archive.outputs)


def _write_output(archive: Archive, folder: Outputs, path: str) -> None:
    with (
        closing(archive.pieces(archive.outputs[path])) as pieces,
        closing(folder.create(path)) as file,
    ):
        for piece in pieces:
            file.write(piece)
        file.commit()


# -- records ------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Importer:
    """Saves the records of an archive as a run; see the theory of operation.

    Attributes:
        store: The target store.
        run_key: The run to create.
        archive: The source.
        output_dir: The folder with its outputs; None: they were not imported.
        worked_at: When the run was last worked on.
    """

    store: Store
    run_key: RunKey
    archive: Archive
    output_dir: str | None
    worked_at: float | None
    _put: set[str] = attrs.field(factory=set[str], init=False)

    async def run(self) -> None:
        """Save everything, the true fold of the first stream last."""
        last: list[Fold] = []
        for number in range(len(self.archive.manifest.streams)):
            fold = await self._add_stream(number, is_marked=number == 0)
            if number == 0:
                last.append(fold)
        if last:
            await self._save([], last)

    async def _add_stream(self, number: int, *, is_marked: bool) -> Fold:
        """Save one stream; return its fold, which is saved already unless it is marked."""
        part = self.archive.manifest.streams[number]
        text, progress = encode_key(part.key), Progress()
        seal = self.store.seal(self.run_key.run_id, self.run_key.generation, part.key)

        def fold(payload: bytes) -> Fold:
            through = progress.sequence
            return Fold(text, through, seal.close(-through, payload))

        async def save(group: _Group, blobs: dict[int, tuple[str, ...]]) -> None:
            for sequence, _, record in group:
                apply(progress, sequence, record)
            payload = _marker(progress) if is_marked else encode_progress(progress)
            await self._save(await self._place(text, seal, group, blobs), [fold(payload)])

        archiving: bool | None = None
        async with aclosing(_groups(self.archive, number)) as groups:
            async for group in groups:
                await save(group, part.blobs)
                if part.key == RUN_STREAM:
                    said = [is_archiving(record) for _, _, record in group]
                    archiving = next((word for word in said[::-1] if word is not None), archiving)
        if part.key == RUN_STREAM:
            moved = self._moved(progress, bool(archiving))
            if moved is not None:
                await save([(progress.sequence + 1, encode_record(moved), moved)], {})
        return fold(encode_progress(progress))

    def _moved(self, own: Progress, archiving: bool) -> Record | None:
        """Build a record of where the outputs are; None: the newest record is right.

        It repeats the end of the last session, with the time of that.
        """
        session = own.metadata
        at = time.time() if own.updated_at is None else own.updated_at
        if not session:
            return archived_note(at) if archiving else None
        if session.get("output_dir") == self.output_dir and not archiving:
            return None
        moved: dict[str, Any] = {"ended": KILLED, "at": self.worked_at or at, "counts": {}}
        moved |= {name: value for name, value in session.items() if name != ARCHIVING}
        moved["output_dir"] = self.output_dir
        return Record(kind=RecordKind.END, at=at, metadata=moved)

    async def _place(
        self, text: str, seal: Seal, group: _Group, blobs: dict[int, tuple[str, ...]]
    ) -> list[Checkpoint]:
        """Seal records for their new place; large ones are put as blobs, durably."""
        placed: list[Checkpoint] = []
        limit = self.store.inline_limit_bytes
        for sequence, payload, sealed in await run_blocking(_seal_all, seal, group):
            names = blobs.get(sequence, ())
            for digest in names:
                if digest not in self._put:
                    with closing(self.archive.pieces(self.archive.blobs[digest])) as pieces:
                        await self._put_blob(pieces)
                    self._put.add(digest)
            if len(payload) < limit:
                placed.append(Checkpoint(text, sequence, sealed, blobs=names))
                continue
            digest = await self._put_blob(sealed)
            placed.append(Checkpoint(text, sequence, b"", digest, names))
        return placed

    async def _put_blob(self, payload: BlobPayload) -> str:
        digest = ""
        with give_up_after(DEFAULT_SAVE_TIMEOUT_S) as scope:
            digest = await self.store.put_blob(self.run_key, payload)
        self._need_end(scope)
        return digest

    async def _save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
        """Save a group, or raise its first error.

        Cancellation: waits for a submitted save first.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        outcomes: list[Exception | None] = []
        with give_up_after(DEFAULT_SAVE_TIMEOUT_S) as scope:
            outcomes = await self.store.save(self.run_key, group, folds)
        self._need_end(scope)
        for error in outcomes:
            if error is not None:
                raise error

    def _need_end(self, scope: trio.CancelScope) -> None:
        if scope.cancelled_caught:
            raise SaveOutcomeUnknownError(
                f"a save of the import has not ended in {DEFAULT_SAVE_TIMEOUT_S:g} s; see to the "
                "store, then import again in a new process",
                run_id=self.run_key.run_id,
            )


def _seal_all(seal: Seal, group: _Group) -> list[tuple[int, bytes, bytes]]:
    return [(sequence, payload, seal.close(sequence, payload)) for sequence, payload, _ in group]


# -- the marker ---------------------------------------------------------------------------


def _marker(progress: Progress) -> bytes:
    """A fold that no reader takes for progress: its status is not a valid one."""
    plain: list[Any] = msgspec.msgpack.decode(encode_progress(Progress(progress.sequence)))
    plain[_STATUS] = HALF
    return msgspec.msgpack.encode(plain)


def _is_marker(payload: bytes) -> bool:
    plain: Any = msgspec.msgpack.decode(payload)
    return isinstance(plain, list) and plain[_STATUS : _STATUS + 1] == [HALF]


def _status_place() -> int:
    """Find the status in a fold: in an empty fold no other text is equal to it."""
    plain: list[Any] = msgspec.msgpack.decode(encode_progress(Progress()))
    return plain.index(Status.PENDING.value)


_STATUS = _status_place()
