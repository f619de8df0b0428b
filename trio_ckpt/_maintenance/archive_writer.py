"""Writes the file of an exported run: a zip that is hashed on the way, and never read again."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import IO

import msgspec

from .._util.errors import ArchiveError
from ..outputs import NewFile
from .archive_file import (
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
    total_bytes,
)

SAMPLE_BYTES = 2**16  # of a file, to test whether deflating makes it smaller
WORTH_IT = 0.9  # the greatest share left after deflating; otherwise the file is stored as it is


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


class ArchiveEntry:
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


class ArchiveWriter:
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
        return self._add(name, size, fitting_of(b"".join(sample)), chain(sample, rest))

    def add_held(self, name: str, pieces: Sequence[bytes]) -> Member:
        """Write a member that its reader holds in memory."""
        return self._add(name, sum(map(len, pieces)), _fitting_held(pieces), pieces)

    def _add(self, name: str, size: int, fitting: int, pieces: Iterable[bytes]) -> Member:
        with closing(self.begin(name, size, fitting)) as entry:
            for piece in pieces:
                entry.write(piece)
            return self.end(entry)

    def begin(self, name: str, size: int, fitting: int) -> ArchiveEntry:
        """Begin a member of `size` bytes, deflated or stored; the caller closes it.

        Raises:
            ArchiveError: the archive has too many members.
        """
        if len(self._members) >= MAX_MEMBERS:
            raise ArchiveError(f"an archive takes {MAX_MEMBERS:,} files and chunks of records")
        info = zipfile.ZipInfo(name)  # of 1980: the time is in the manifest
        info.compress_type = fitting
        info.file_size = size  # decides whether it is zip64
        return ArchiveEntry(name, self._zip.open(info, "w"))

    def end(self, entry: ArchiveEntry) -> Member:
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


def fitting_of(sample: bytes) -> int:
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
