"""A run leaves a store as one file; see `trio_ckpt._maintenance.archive_file` for what is in it.

Theory of operation
===================

An export takes one moment: the newest record that `Store.load_run` returned for each stream.
Later records are left out, so the run may continue.  History comes newest first and a page at
a time; each page becomes a chunk, and the manifest lists the chunks in the reverse order.  The
zip is written strictly forward: it is hashed on the way and never read again.  Blobs that
records name (the arrays of a state) follow the chunk in which they are named first, piece by
piece.
"""

from __future__ import annotations

import os
from contextlib import aclosing, closing, suppress

import attrs

from .._journal.history import LiveRecords, stored_pages
from .._journal.record import Output, Record, Seal, decode_record, utc_now
from .._journal.store import RunKey, Store, StoredRecord, StreamView
from .._journal.summary import is_users
from .._util.arguments import path_text
from .._util.errors import ArchiveError, OutputError, StoreDamagedError
from .._util.plain import encode_key
from .._util.threads import run_blocking
from ..outputs import AnyPath, OutputDir, Outputs
from ..state import decode_frame
from .archive_file import BLOBS, OUTPUTS, PIECE_BYTES, Manifest, StreamPart, chunk_name, held
from .archive_writer import ArchiveWriter, fitting_of, pack

PAGE = 1_000  # records held at a time


@attrs.frozen
class ExportSummary:
    """The content of an archive that was written or imported.

    Attributes:
        path: The archive, absolute.
        run_id: The run in the store: the exported or the imported one.
        generation: Its generation there.
        streams: The number of the user's streams.
        records: The number of their records.
        outputs: The number of output files.
        size_bytes: Size of the archive.
        created_at: When it was exported, ISO 8601, UTC.
    """

    path: str
    run_id: str
    generation: int
    streams: int
    records: int
    outputs: int
    size_bytes: int
    created_at: str


def summarize_archive(
    path: str, run: RunKey, manifest: Manifest, *, outputs: int, size_bytes: int
) -> ExportSummary:
    """Sum up an archive with this manifest, and where its run is in a store."""
    users = [part for part in manifest.streams if is_users(part.key)]
    return ExportSummary(
        path=path,
        run_id=run.run_id,
        generation=run.generation,
        streams=len(users),
        records=sum(part.records for part in users),
        outputs=outputs,
        size_bytes=size_bytes,
        created_at=manifest.created_at,
    )


async def export_run(
    store: Store, run_id: str, path: AnyPath, *, outputs: Outputs | None = None
) -> ExportSummary:
    """Write the newest generation of a run into an archive.

    The run may continue: records that are saved after the call began are left out.

    Args:
        store: The run's store.
        run_id: The run.
        path: The path of the archive.  Its folder must exist, a file of its name must not.
        outputs: The run's output folder, to include the files that confirmed batches name,
            and append files up to their confirmed end.

    Returns:
        What the archive contains.

    Raises:
        ArchiveError: there is no such run; it is larger than an archive may be; or `path`
            exists, or is in a folder that does not exist.
        OutputError: an output is not what was confirmed, or the archive cannot be written.
        StoreDamagedError: a record, or a blob that one names, is damaged; or the running
            program has dropped a state during the export: export it again.
        StoreError: the run cannot be read.
        TypeError, ValueError: `path` is not a path, or begins with ``~``.

    Durability: the archive survives a power cut once this has returned.
    Cancellation: leaves what was at `path` as it was, and no temporary file.
    """
    folder_path, name = _split(path)
    view = await store.load_run(run_id)
    if view is None:
        raise ArchiveError(f"there is no run {run_id!r} in {store.url}", run_id=run_id)
    await run_blocking(_refuse_taken, folder_path, name)
    created_at = utc_now().isoformat(timespec="seconds")
    async with held(await run_blocking(OutputDir.open, folder_path)) as folder:
        await run_blocking(folder.remove_orphans, [""])  # of an export that was killed
        async with (
            held(await run_blocking(folder.create, name)) as file,
            held(ArchiveWriter(file)) as writer,
        ):
            exporter = _Exporter(store, run_id, view.generation, writer)
            for stream in view.streams.values():
                if stream.progress.sequence:
                    await exporter.add_stream(stream)
            if outputs is not None:
                await exporter.add_outputs(outputs)
            manifest = await run_blocking(
                lambda: writer.finish(
                    run_id=run_id,
                    generation=view.generation,
                    created_at=created_at,
                    streams=exporter.parts,
                )
            )
            await run_blocking(_refuse_taken, folder_path, name)  # another process may be faster
            await run_blocking(file.commit)
        return summarize_archive(
            os.path.join(folder_path, name),
            RunKey(run_id, view.generation, view.owner),
            manifest,
            outputs=manifest.outputs,
            size_bytes=file.size,
        )


def _split(path: AnyPath) -> tuple[str, str]:
    return os.path.split(os.path.abspath(path_text("path", path)))


def _refuse_taken(folder: str, name: str) -> None:
    """Check that an archive of this name would be a new file, in a folder that exists.

    Raises:
        ArchiveError: the file exists, or its folder does not.
    """
    path = os.path.join(folder, name)
    if os.path.lexists(path):
        raise ArchiveError(f"{path} is there already: choose another name, or remove it first")
    if not os.path.isdir(folder):
        raise ArchiveError(f"{path} cannot be made: there is no folder {folder}")


@attrs.define(eq=False)
class _Exporter:
    """Writes one run; confirmed outputs are collected while its records are written."""

    store: Store
    run_id: str
    generation: int
    writer: ArchiveWriter
    parts: list[StreamPart] = attrs.field(factory=list[StreamPart], init=False)
    _standing: dict[str, Output] = attrs.field(factory=dict[str, Output], init=False)
    _sinks: dict[str, int] = attrs.field(factory=dict[str, int], init=False)
    _blobs: set[str] = attrs.field(factory=set[str], init=False)

    async def add_stream(self, stream: StreamView) -> None:
        """Write the records of a stream, up to the newest one in its view."""
        text, number = encode_key(stream.key), len(self.parts)
        seal = self.store.seal(self.run_id, self.generation, stream.key)
        standing, named = LiveRecords(stream.progress), dict[int, tuple[str, ...]]()
        left, chunks = stream.progress.sequence, list[int]()
        pages = stored_pages(self.store, self.run_id, self.generation, text, limit=PAGE)
        async with aclosing(pages):
            while left:
                page = await anext(pages, None)
                if page is None:
                    raise StoreDamagedError(f"record {left} of {text} is missing")
                wanted = [stored for stored in page if stored.sequence <= left]
                expected = list(range(left, left - len(wanted), -1))
                if [stored.sequence for stored in wanted] != expected:
                    raise StoreDamagedError(f"a record of {text} is missing before record {left}")
                if wanted:
                    sizes = await run_blocking(self._add_chunk, number, seal, wanted, standing)
                    named.update({s.sequence: s.blobs for s in wanted if s.blobs})
                    for digest in dict.fromkeys(digest for s in wanted for digest in s.blobs):
                        if digest not in self._blobs:
                            self._blobs.add(digest)
                            await self._add_blob(digest, sizes.get(digest))
                    chunks.append(wanted[-1].sequence)
                    left -= len(wanted)
        self._sinks.update(stream.progress.sinks)
        part = StreamPart(stream.key, stream.progress.sequence, tuple(reversed(chunks)), named)
        self.parts.append(part)

    def _add_chunk(
        self, number: int, seal: Seal, newest_first: list[StoredRecord], standing: LiveRecords
    ) -> dict[str, int]:
        """Write a page of records; return the blobs' sizes, as far as the records name them."""
        plain: list[tuple[int, bytes]] = []
        records: list[tuple[int, Record]] = []
        sizes: dict[str, int] = {}
        for stored in newest_first:
            payload = seal.open(stored.sequence, stored.payload)
            record = decode_record(payload)
            plain.append((stored.sequence, payload))
            records.append((stored.sequence, record))
            if stored.blobs and record.state:
                with suppress(StoreDamagedError):  # `verify` reports it; it is exported as it is
                    frame = decode_frame(record.state)
                    sizes[frame.blob] = frame.data_bytes
        for entry in standing.of(records):
            self._standing.update({output.path: output for output in entry.record.outputs})
        plain.reverse()
        self.writer.add_held(chunk_name(number, plain[0][0]), pack(plain))
        return sizes

    async def _add_blob(self, digest: str, size: int | None) -> None:
        """Write a blob piece by piece, or in one piece if no record names its size."""
        first = None if size is None else min(size, PIECE_BYTES)
        piece = await self.store.read_blob(self.run_id, digest, 0, first)
        left = (len(piece) if size is None else size) - len(piece)
        begin, name = self.writer.begin, f"{BLOBS}{digest}"
        fitting = await run_blocking(fitting_of, piece)
        async with held(await run_blocking(begin, name, left + len(piece), fitting)) as entry:
            await run_blocking(entry.write, piece)
            while left:
                wanted = min(left, PIECE_BYTES)
                piece = await self.store.read_blob(self.run_id, digest, entry.size, wanted)
                await run_blocking(entry.write, piece)
                left -= len(piece)
            member = await run_blocking(self.writer.end, entry)
        if member.sha256 != digest:
            raise StoreDamagedError(f"blob {digest} is not what was saved")

    async def add_outputs(self, outputs: Outputs) -> None:
        """Write the confirmed output files, and append files up to their confirmed end."""
        for output in self._standing.values():
            await run_blocking(
                self._add_file, outputs, output.path, output.size, output.size + 1, output.sha256
            )
        for path, size in self._sinks.items():
            if size:  # without a confirmed byte after a rewind, the file may not exist
                await run_blocking(self._add_file, outputs, path, size, size, None)

    def _add_file(
        self, outputs: Outputs, path: str, size: int, limit: int, sha256: str | None
    ) -> None:
        with closing(outputs.read_pieces(path, limit)) as pieces:
            member = self.writer.add(f"{OUTPUTS}{path}", size, pieces)
        if member.size != size or sha256 not in (None, member.sha256):
            raise OutputError(path, "is not what was confirmed; open the run to have it redone")
