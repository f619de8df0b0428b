"""A run as one file: a zip that is accepted only when every byte of it is as written.

Theory of operation
===================

An archive holds ``manifest.json``, the records of each stream in chunks
(``streams/<number>/<first sequence>``: frames of sequence, length and the record, not
sealed, because a seal binds a record to its store), the blobs that records name, each once
(``blobs/<SHA-256>``), and output files (``outputs/<path>``).
The manifest lists every other member with its size and SHA-256, so that a user can check members
that were unpacked by hand.  The zip's comment is the SHA-256 of all bytes before it, so that a
flipped bit anywhere, also in the headers, is found before the zip is read.  Neither is a
signature: they detect damage, not deliberate changes.

An archive may come from an untrusted source.  So every read is limited before memory is allocated,
nothing is unpacked by name, and a member ends where the manifest says it does.  The parts that are
held in memory, the manifest and records, are at most `MAX_RATIO` times as large as in the file: a
sender of one megabyte cannot make the reader allocate gigabytes.  What deflates further is stored
as it is, except records of `SMALL_BYTES`.  Outputs and blobs go to the disk piece by piece, and may
be deflated without a limit.

All functions block.  `trio_ckpt._maintenance.export` writes archives.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import BinaryIO, Protocol, TypeVar

import attrs
import msgspec
import trio

from .._util.arguments import path_text
from .._util.errors import ArchiveError, OutputError
from .._util.plain import MAX_KEY_CHARS, StreamKey, check_run_id
from .._util.threads import run_blocking
from ..outputs import relative_path

FORMAT = "trio-ckpt archive"
VERSION = 1
MANIFEST = "manifest.json"
OUTPUTS = "outputs/"
BLOBS = "blobs/"

MAX_MEMBERS = 500_000  # the zip's directory and the manifest hold a line for each in memory
MAX_MANIFEST_BYTES = 2**28  # 500 bytes for each of so many members
MAX_DIRECTORY_BYTES = 2**28  # likewise, of the zip's own directory
MAX_RECORD_BYTES = 2**30  # a record is held in memory whole, also by the process that saves it
MAX_TOTAL_BYTES = 2**40  # unpacked; more is a bomb, or too much for one file

MAX_RATIO = 20  # of a member held in memory to its size in the file
SMALL_BYTES = 2**23  # records of up to this size may deflate to anything, as a state of zeros does

PIECE_BYTES = 2**20  # held by copying and hashing

FRAME = struct.Struct(">QI")  # sequence, length
SEAL_WORDS = b"trio-ckpt sha256 "  # and 64 hexadecimal digits: the zip's comment
SEAL_BYTES = len(SEAL_WORDS) + 64
_SEAL = re.compile(SEAL_WORDS + rb"[0-9a-f]{64}")
_END = struct.Struct("<4s4H2IH")  # APPNOTE.TXT 4.3.16, end of central directory
_END64 = struct.Struct("<4sQ2H2I4Q")  # 4.3.14, the same for zip64
_LOCATOR_BYTES = 20  # 4.3.15, between the two
_STORED_OR_DEFLATED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1


class Member(msgspec.Struct, frozen=True):
    """One file in the archive."""

    name: str
    size: int
    sha256: str


class StreamPart(msgspec.Struct, frozen=True):
    """One stream of an archive.

    Attributes:
        key: Its key.
        records: The number of records.
        chunks: The first sequence of each chunk.
        blobs: The sequences of the records that name blobs, and their digests.
    """

    key: StreamKey
    records: int
    chunks: tuple[int, ...]
    blobs: dict[int, tuple[str, ...]] = {}  # msgspec copies it for each instance


class Manifest(msgspec.Struct, frozen=True):
    """The manifest of an archive."""

    format: str
    version: int
    run_id: str
    generation: int
    created_at: str
    records: int
    outputs: int
    streams: tuple[StreamPart, ...]
    members: tuple[Member, ...]


def chunk_name(number: int, first: int) -> str:
    """The member with the records of this stream from `first` on."""
    return f"streams/{number:06}/{first:012}"


def total_bytes(members: Iterable[Member]) -> int:
    """How much of an archive is checked."""
    return sum(member.size for member in members)


@attrs.define(eq=False)
class Archive:
    """An archive whose bytes are as written, from `Archive.open`.

    Attributes:
        path: The path of the archive.
        size_bytes: Size of the file.
        manifest: The manifest.
        outputs: The output files: path below the output folder -> member.
        blobs: The blobs that its records name: digest -> member.
    """

    path: str
    size_bytes: int
    manifest: Manifest
    outputs: dict[str, Member]
    blobs: dict[str, Member]
    _file: BinaryIO
    _zip: zipfile.ZipFile
    _members: dict[str, Member]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Archive:
        """Open the archive at `path`, and check that it is complete.

        Raises:
            ArchiveError: the file is damaged, not an archive, or of a newer version.
            OSError: the file cannot be read.
            TypeError, ValueError: `path` is not a path, or begins with ``~``.
        """
        name = os.path.abspath(path_text("path", path))
        with _explained(name):
            if not stat.S_ISREG(os.stat(name).st_mode):
                raise ArchiveError(f"{name!r} is not a regular file")
            file = open(name, "rb")  # noqa: SIM115  # it lives as long as the archive
            try:
                size = _check_seal(file, name)
                _check_directory(file, name, size)
                opened = zipfile.ZipFile(file)
                manifest = _read_manifest(opened, name, size)
                members = _check_members(opened, manifest, name, size)
                _check_streams(manifest, members, name)
                outputs = _find_outputs(manifest, name)
                blobs = _find_blobs(manifest, name)
                return cls(name, size, manifest, outputs, blobs, file, opened, members)
            except BaseException:
                file.close()
                raise

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._zip.close()
        self._file.close()

    def pieces(self, member: Member) -> Generator[bytes]:
        """Yield the content of a member, piece by piece; close the iterator at the end.

        Raises:
            ArchiveError: the content does not match the manifest; raised at its end at the latest.
        """
        hasher, size = hashlib.sha256(), 0
        with _explained(self.path), self._zip.open(member.name) as source:
            while piece := source.read(PIECE_BYTES):  # never more than the zip announces
                size += len(piece)
                hasher.update(piece)
                yield piece
        if size != member.size or hasher.hexdigest() != member.sha256:
            raise ArchiveError(f"{self.path!r}: {member.name} is not what its manifest says")

    def records(self, number: int) -> Generator[tuple[int, bytes]]:
        """Yield the records of a stream, oldest first, with their sequences.

        Raises:
            ArchiveError: the records do not match the manifest.
        """
        part, expected = self.manifest.streams[number], 1
        for first in part.chunks:
            member = self._members[chunk_name(number, first)]
            if first != expected:
                raise ArchiveError(f"{self.path!r}: {member.name} is not about record {expected}")
            with closing(self.pieces(member)) as pieces:
                for sequence, payload in _frames(pieces, f"{self.path!r}: {member.name}"):
                    if sequence != expected:
                        raise ArchiveError(f"{self.path!r}: record {expected} is missing")
                    yield sequence, payload
                    expected += 1
        if expected != part.records + 1:
            raise ArchiveError(f"{self.path!r}: record {expected} of {part.key!r} is missing")


@contextmanager
def _explained(path: str) -> Generator[None]:
    """Convert zip errors to errors that name the archive."""
    try:
        yield
    except ArchiveError:
        raise
    except (
        zipfile.BadZipFile,
        msgspec.MsgspecError,
        zlib.error,
        struct.error,
        EOFError,
        NotImplementedError,  # a zip feature that archives never use
        RuntimeError,  # an encrypted member
        ValueError,
    ) as error:
        raise ArchiveError(f"{path!r} is not a trio_ckpt archive: {error}") from error


def _check_seal(file: BinaryIO, path: str) -> int:
    """Return the size of the file, if its bytes match its seal."""
    size = file.seek(0, os.SEEK_END)
    left = size - SEAL_BYTES
    file.seek(max(left, 0))
    seal = file.read(SEAL_BYTES)
    if not _SEAL.fullmatch(seal):
        raise ArchiveError(f"{path!r} is not a trio_ckpt archive, or it is truncated")
    hasher = hashlib.sha256()
    file.seek(0)
    while left and (piece := file.read(min(left, PIECE_BYTES))):
        hasher.update(piece)
        left -= len(piece)
    if hasher.hexdigest().encode() != seal[-64:]:
        raise ArchiveError(f"{path!r} is damaged: its bytes are not those that were written")
    return size


def _check_directory(file: BinaryIO, path: str, size: int) -> None:
    """Check that the zip's directory is small enough to be read."""
    at = size - SEAL_BYTES - _END.size
    mark, *_, entries, size_bytes, _, comment = _END.unpack(_read_at(file, at, _END.size))
    if mark != b"PK\x05\x06" or comment != SEAL_BYTES:
        raise ArchiveError(f"{path!r} is not a trio_ckpt archive")
    if entries == 0xFFFF or size_bytes == 0xFFFFFFFF:
        at -= _LOCATOR_BYTES + _END64.size
        mark, *_, entries, size_bytes, _ = _END64.unpack(_read_at(file, at, _END64.size))
        if mark != b"PK\x06\x06":
            raise ArchiveError(f"{path!r} is not a trio_ckpt archive")
    if entries > MAX_MEMBERS + 1 or size_bytes > MAX_DIRECTORY_BYTES:
        raise ArchiveError(f"{path!r} has {entries:,} members, more than an archive may")


def _read_at(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(max(at, 0))
    return file.read(size)


def _read_manifest(opened: zipfile.ZipFile, path: str, size: int) -> Manifest:
    info = opened.NameToInfo.get(MANIFEST)
    if info is None or info.file_size > MAX_MANIFEST_BYTES:
        raise ArchiveError(
            f"{path!r} is not a trio_ckpt archive: its manifest is missing or too long"
        )
    _check_info(info, path, size)
    _check_ratio(info, path)
    with opened.open(info) as source:
        data = source.read(MAX_MANIFEST_BYTES + 1)
    head = msgspec.json.decode(data, type=_ArchiveHead)
    if head.format != FORMAT:
        raise ArchiveError(f"{path!r} is not a trio_ckpt archive")
    if head.version != VERSION:
        raise ArchiveError(f"{path!r} is of version {head.version}; this is version {VERSION}")
    manifest = msgspec.json.decode(data, type=Manifest)
    check_run_id(manifest.run_id)
    return manifest


class _ArchiveHead(msgspec.Struct, frozen=True):
    format: str
    version: int


def _check_info(info: zipfile.ZipInfo, path: str, size: int) -> None:
    if not 0 <= info.header_offset < size:  # zipfile does not check it before it seeks
        raise ArchiveError(f"{path!r}: {info.filename} is not inside of the file")
    if info.flag_bits & _ENCRYPTED or info.compress_type not in _STORED_OR_DEFLATED:
        raise ArchiveError(f"{path!r}: {info.filename} is neither stored nor deflated")


def _check_ratio(info: zipfile.ZipInfo, path: str, free_bytes: int = 0) -> None:
    """Check that a member held in memory is not much larger than in the file."""
    if info.file_size > max(free_bytes, MAX_RATIO * info.compress_size):
        raise ArchiveError(
            f"{path!r}: {info.filename} has {info.file_size:,} bytes in {info.compress_size:,}, "
            f"over {MAX_RATIO} times as many (MAX_RATIO): no export makes one, it would fill memory"
        )


def _check_members(
    opened: zipfile.ZipFile, manifest: Manifest, path: str, size: int
) -> dict[str, Member]:
    """Return the members by name: exactly those that the manifest lists."""
    members = {member.name: member for member in manifest.members}
    infos = [info for info in opened.infolist() if info.filename != MANIFEST]
    names = sorted(info.filename for info in infos)
    if names != sorted(member.name for member in manifest.members) or len(names) != len(members):
        odd = sorted(set(names) ^ set(members)) or ["one of them"]
        raise ArchiveError(f"{path!r}: {odd[0]} is missing, extra or there twice")
    if len(opened.infolist()) != len(infos) + 1:
        raise ArchiveError(f"{path!r} has several manifests")
    for info in infos:
        _check_info(info, path, size)
        if not info.filename.startswith((OUTPUTS, BLOBS)):
            _check_ratio(info, path, SMALL_BYTES)
        if info.file_size != members[info.filename].size:
            raise ArchiveError(f"{path!r}: {info.filename} is not what its manifest says")
    if sum(info.compress_size for info in opened.infolist()) > size:
        raise ArchiveError(f"{path!r}: its members overlap")
    if total_bytes(members.values()) > MAX_TOTAL_BYTES:
        raise ArchiveError(f"{path!r} would take more than {MAX_TOTAL_BYTES:,} bytes")
    return members


def _check_streams(manifest: Manifest, members: dict[str, Member], path: str) -> None:
    """Check that the streams' chunks are the members that are neither outputs nor blobs."""
    keys = {part.key for part in manifest.streams}
    names = {
        chunk_name(number, first)
        for number, part in enumerate(manifest.streams)
        for first in part.chunks
    }
    others = {name for name in members if not name.startswith((OUTPUTS, BLOBS))}
    is_sound = all(
        part.records > 0
        and part.chunks[:1] == (1,)
        and list(part.chunks) == sorted(set(part.chunks))
        and all(part.key)
        and sum(map(len, part.key)) <= MAX_KEY_CHARS
        for part in manifest.streams
    )
    if len(keys) != len(manifest.streams) or names != others or not is_sound:
        raise ArchiveError(f"{path!r}: its streams are not what its manifest says")


def _find_outputs(manifest: Manifest, path: str) -> dict[str, Member]:
    """Return the output files by path; none of them leads out of the folder."""
    outputs: dict[str, Member] = {}
    for member in manifest.members:
        if member.name.startswith(OUTPUTS):
            name = member.name.removeprefix(OUTPUTS)
            try:
                is_plain = relative_path("/", name) == name
            except OutputError as error:
                raise ArchiveError(f"{path!r}: {error}") from error
            if not is_plain:
                raise ArchiveError(f"{path!r}: {name!r} is not a valid output name")
            outputs[name] = member
    return outputs


def _find_blobs(manifest: Manifest, path: str) -> dict[str, Member]:
    """Return the blobs by digest: exactly those that records name."""
    blobs = {member.sha256: member for member in manifest.members if member.name.startswith(BLOBS)}
    names = {member.name for member in manifest.members if member.name.startswith(BLOBS)}
    named: set[str] = set()
    for part in manifest.streams:
        for sequence, digests in part.blobs.items():
            named.update(digests)
            if not 1 <= sequence <= part.records or not digests:
                raise ArchiveError(f"{path!r}: a record that is not there names blobs")
    if names != {f"{BLOBS}{digest}" for digest in blobs} or blobs.keys() != named:
        raise ArchiveError(f"{path!r}: its blobs are not those that its records name")
    return blobs


def _frames(pieces: Iterator[bytes], where: str) -> Iterator[tuple[int, bytes]]:
    """Yield the records in a chunk; holds at most one of them and a piece."""
    held = bytearray()
    for piece in pieces:
        held += piece
        at = 0
        while len(held) - at >= FRAME.size:
            sequence, length = FRAME.unpack_from(held, at)
            if length > MAX_RECORD_BYTES:
                raise ArchiveError(f"{where} has a record of {length:,} bytes")
            end = at + FRAME.size + length
            if len(held) < end:
                break
            yield sequence, bytes(held[at + FRAME.size : end])
            at = end
        del held[:at]
    if held:
        raise ArchiveError(f"{where} ends in the middle of a record")


class _Closable(Protocol):
    def close(self) -> None: ...


Thing = TypeVar("Thing", bound=_Closable)


@asynccontextmanager
async def held(thing: Thing) -> AsyncGenerator[Thing]:
    """Close a blocking resource at the end of the block; the close is shielded."""
    try:
        yield thing
    finally:
        with trio.CancelScope(shield=True):
            await run_blocking(thing.close)
