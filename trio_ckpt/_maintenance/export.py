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

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing, closing, suppress
from itertools import chain
from typing import IO

import attrs
import msgspec

from .._journal.history import LiveRecords, stored_pages
from .._journal.record import Output, Record, Seal, decode_record, utc_now
from .._journal.store import Store, StoredRecord, StreamView
from .._util.arguments import path_text
from .._util.errors import ArchiveError, OutputError, StoreDamagedError
from .._util.plain import encode_key
from .._util.threads import run_blocking
from ..outputs import AnyPath, NewFile, OutputDir
from ..state import decode_frame
from .archive_file import (
    BLOBS,
    FORMAT,
    FRAME,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_MEMBERS,
    MAX_RATIO,
    MAX_RECORD_BYTES,
    MAX_TOTAL_BYTES,
    OUTPUTS,
    PIECE_BYTES,
    SEAL_BYTES,
    SEAL_WORDS,
    VERSION,
    Manifest,
    Member,
    StreamPart,
    chunk_name,
    held,
    total_bytes,
)

PAGE = 1_000  # records held at a time
SAMPLE_BYTES = 2**16  # of a file, to test whether deflating makes it smaller
WORTH_IT = 0.9  # the greatest share left after deflating; otherwise the file is stored as it is


@attrs.frozen
class ExportSummary:
    """The content of an archive that was written or imported.

    Attributes:
        path: The archive, absolute.
        run_id: The run in the store: the exported or the imported one.
        generation: Its generation there.
        streams: The number of streams.
        records: The number of records, of all streams.
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


async def export_run(
    store: Store, run_id: str, path: AnyPath, *, outputs: OutputDir | None = None
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
            held(_Writer(file)) as writer,
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
        return ExportSummary(
            path=os.path.join(folder_path, name),
            run_id=run_id,
            generation=view.generation,
            streams=len(manifest.streams),
            records=manifest.records,
            outputs=manifest.outputs,
            size_bytes=file.size,
            created_at=created_at,
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
    writer: _Writer
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
        piece = await self.store.read_blob(digest, 0, first)
        left = (len(piece) if size is None else size) - len(piece)
        begin, name = self.writer.begin, f"{BLOBS}{digest}"
        fitting = await run_blocking(_fitting, piece)
        async with held(await run_blocking(begin, name, left + len(piece), fitting)) as entry:
            await run_blocking(entry.write, piece)
            while left:
                piece = await self.store.read_blob(digest, entry.size, min(left, PIECE_BYTES))
                await run_blocking(entry.write, piece)
                left -= len(piece)
            member = await run_blocking(self.writer.end, entry)
        if member.sha256 != digest:
            raise StoreDamagedError(f"blob {digest} is not what was saved")

    async def add_outputs(self, outputs: OutputDir) -> None:
        """Write the confirmed output files, and append files up to their confirmed end."""
        for output in self._standing.values():
            await run_blocking(
                self._add_file, outputs, output.path, output.size, output.size + 1, output.sha256
            )
        for path, size in self._sinks.items():
            if size:  # without a confirmed byte after a rewind, the file may not exist
                await run_blocking(self._add_file, outputs, path, size, size, None)

    def _add_file(
        self, outputs: OutputDir, path: str, size: int, limit: int, sha256: str | None
    ) -> None:
        with closing(outputs.read_pieces(path, limit)) as pieces:
            member = self.writer.add(f"{OUTPUTS}{path}", size, pieces)
        if member.size != size or sha256 not in (None, member.sha256):
            raise OutputError(path, "is not what was confirmed; open the run to have it redone")


def pack(records: Iterable[tuple[int, bytes]]) -> list[bytes]:
    """Records as the frames of a chunk.

    Raises:
        ArchiveError: a record is larger than an archive may hold.
    """
    pieces: list[bytes] = []
    for sequence, payload in records:
        if len(payload) > MAX_RECORD_BYTES:
            raise ArchiveError(
                f"a record has {len(payload):,} bytes; an archive takes {MAX_RECORD_BYTES:,}"
            )
        pieces += (FRAME.pack(sequence, len(payload)), payload)
    return pieces


# ---------------------------------------------------------------------------------------
# Writing a zip
# ---------------------------------------------------------------------------------------


class _ZipSink:
    """The file below the zip: it hashes, and leaves room for the seal."""

    def __init__(self, file: NewFile) -> None:
        self._file = file
        self._hasher = hashlib.sha256()
        self._held = bytearray()

    def write(self, data: bytes, /) -> int:
        self._held += data
        if len(self._held) > PIECE_BYTES:
            self._pass_on()
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        """Do nothing: the caller closes the file."""

    def seal(self) -> None:
        """Write the seal over the zip's comment, which was written last."""
        self._pass_on()
        self._file.write(SEAL_WORDS + self._hasher.hexdigest().encode())

    def _pass_on(self) -> None:
        with memoryview(self._held) as held_back:
            data = bytes(held_back[:-SEAL_BYTES])
        del self._held[:-SEAL_BYTES]
        self._hasher.update(data)
        self._file.write(data)


class _Entry:
    """A member that is being written."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name = name
        self.size = 0
        self.hasher = hashlib.sha256()
        self._file = file

    def write(self, piece: bytes) -> None:
        """Write the next bytes."""
        self._file.write(piece)
        self.hasher.update(piece)
        self.size += len(piece)

    def close(self) -> None:
        """Finish the member; a second call does nothing."""
        self._file.close()


class _Writer:
    """Writes an archive, member after member, into a new file."""

    def __init__(self, file: NewFile) -> None:
        self._sink = _ZipSink(file)
        self._zip = zipfile.ZipFile(self._sink, "w")
        self._zip.comment = bytes(SEAL_BYTES)
        self._members: list[Member] = []

    def add(self, name: str, size: int, pieces: Iterable[bytes]) -> Member:
        """Write a member of `size` bytes, or of unknown size.

        Raises:
            ArchiveError: the archive has too many members.
            OutputError: the archive cannot be written.
        """
        rest = iter(pieces)
        sample = _take_sample(rest)
        with closing(self.begin(name, size, _fitting(b"".join(sample)))) as entry:
            for piece in chain(sample, rest):
                entry.write(piece)
            return self.end(entry)

    def add_held(self, name: str, pieces: Sequence[bytes]) -> Member:
        """Write a member that its reader holds in memory."""
        with closing(self.begin(name, sum(map(len, pieces)), _fitting_held(pieces))) as entry:
            for piece in pieces:
                entry.write(piece)
            return self.end(entry)

    def begin(self, name: str, size: int, fitting: int) -> _Entry:
        """Begin a member of `size` bytes, deflated or stored; the caller closes it.

        Raises:
            ArchiveError: the archive has too many members.
        """
        if len(self._members) >= MAX_MEMBERS:
            raise ArchiveError(f"an archive takes {MAX_MEMBERS:,} files and chunks of records")
        info = zipfile.ZipInfo(name)  # of 1980: the time is in the manifest
        info.compress_type = fitting
        info.file_size = size  # decides whether it is zip64
        return _Entry(name, self._zip.open(info, "w"))

    def end(self, entry: _Entry) -> Member:
        """Record that the current member is complete."""
        entry.close()
        self._members.append(Member(entry.name, entry.size, entry.hasher.hexdigest()))
        return self._members[-1]

    def finish(
        self,
        *,
        run_id: str,
        generation: int,
        created_at: str,
        streams: Iterable[StreamPart],
    ) -> Manifest:
        """Write the manifest and the seal; the file is then complete, but not committed.

        Raises:
            ArchiveError: the content exceeds a limit of archives.
            OutputError: the archive cannot be written.
        """
        parts = tuple(streams)
        manifest = Manifest(
            FORMAT,
            VERSION,
            run_id,
            generation,
            created_at,
            sum(part.records for part in parts),
            sum(member.name.startswith(OUTPUTS) for member in self._members),
            parts,
            tuple(self._members),
        )
        data = msgspec.json.encode(manifest)
        if len(data) > MAX_MANIFEST_BYTES or total_bytes(self._members) > MAX_TOTAL_BYTES:
            raise ArchiveError(f"run {run_id!r} is larger than an archive takes", run_id=run_id)
        info = zipfile.ZipInfo(MANIFEST)
        info.compress_type = _fitting_held([data])
        self._zip.writestr(info, data)
        self._zip.close()
        self._sink.seal()
        return manifest

    def close(self) -> None:
        """End the zip, which would end itself when dropped; a second call does nothing."""
        self._zip.close()


def _take_sample(pieces: Iterator[bytes]) -> list[bytes]:
    sample: list[bytes] = []
    size = 0
    while size < SAMPLE_BYTES and (piece := next(pieces, None)) is not None:
        sample.append(piece)
        size += len(piece)
    return sample


def _fitting(sample: bytes) -> int:
    """Choose how to store a member that begins with these bytes."""
    sample = sample[:SAMPLE_BYTES]
    is_smaller = len(zlib.compress(sample, 1)) <= len(sample) * WORTH_IT
    return zipfile.ZIP_DEFLATED if is_smaller else zipfile.ZIP_STORED


def _fitting_held(pieces: Iterable[bytes]) -> int:
    """Choose how to store a member that is read into memory: not deflated if it shrinks a lot."""
    compressor, size, deflated = zlib.compressobj(), 0, 0
    for piece in pieces:
        size += len(piece)
        deflated += len(compressor.compress(piece))
    deflated += len(compressor.flush())
    is_fair = size * WORTH_IT >= deflated >= size * 2 / MAX_RATIO
    return zipfile.ZIP_DEFLATED if is_fair else zipfile.ZIP_STORED
