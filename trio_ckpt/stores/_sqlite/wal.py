"""Check of SQLite's write-ahead log, read as a file.

Theory of operation.  SQLite takes from a log what its checksums confirm, and ignores the rest
silently: after a damaged frame all later saves are lost without an error.  A crash leaves
such an end, too, but only of the transaction that was under way, which was never acknowledged.  So
two transactions or more behind a frame that does not fit are damage.  One transaction could be
either; the watermark shows whether an acknowledged save is missing (`_local/watermark.py`).

The file is read without a lock: SQLite holds no lock on it.  While a process writes, its
end may be half written, and SQLite may restart the log, which changes its header: then it is read
again.  https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from ..._journal.store import Finding, Severity
from .._local.files import open_file

NAME = "state.db-wal"
RESTORE = "restore the store from a copy, or go on without what is missing"
_HEAD, _FRAME = struct.Struct(">8I"), struct.Struct(">6I")
_MAGIC = 0x377F0682  # with 1 added: checksums are of big-endian words
_VERSION = 3_007_000
_MAX_PAGE_BYTES = 65_536
_TRIES = 5  # each fails only if the log was restarted, which takes a checkpoint
_MASK = 0xFFFFFFFF

_Sum = tuple[int, int]


class _Log(msgspec.Struct, frozen=True):
    """The contents of a log.

    Attributes:
        frames: The number of valid frames, up to the last complete transaction.
        behind: The number of later frames of the log, which do not count.
        commits: The number of transactions that end among these.
        is_torn: Whether they fail their checksums; else they only lack a commit.
    """

    frames: int
    behind: int
    commits: int
    is_torn: bool


def check_wal(folder: Path) -> list[Finding]:
    """Return what is wrong with the log of a database.

    Raises:
        OSError: it cannot be read.
    """
    path = folder / NAME
    for _ in range(_TRIES):
        try:
            fd = open_file(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            return []
        with open(fd, "rb") as file:
            head = file.read(_HEAD.size)
            found = _check(file, head)
            file.seek(0)
            if file.read(_HEAD.size) == head:
                return found
    return [
        Finding(NAME, "it is restarted all the time: it was not checked", severity=Severity.NOTE)
    ]


def _check(file: BinaryIO, head: bytes) -> list[Finding]:
    if not head:
        return []
    if len(head) < _HEAD.size:
        what = "it ends within its first bytes: nothing in it counts"
        return [Finding(NAME, what, severity=Severity.NOTE)]
    magic, version, page_bytes, _, *salts, one, two = _HEAD.unpack(head)
    order = ">" if magic & 1 else "<"
    is_sound = magic & ~1 == _MAGIC and version == _VERSION
    is_sound = is_sound and 512 <= page_bytes <= _MAX_PAGE_BYTES
    if not is_sound or _add((0, 0), head[:24], order) != (one, two):
        what = "its first bytes are not what was written: none of the saves in it count"
        return [Finding(NAME, what, RESTORE)]
    log = _read_frames(file, page_bytes, (salts[0], salts[1]), (one, two), order)
    if log.commits > 1:
        what = f"frame {log.frames + 1} is damaged: {log.commits} saves from there on are lost"
        return [Finding(NAME, what, RESTORE)]
    if log.is_torn:
        what = "the last save in it does not count: a crash cut it off, or it is damaged"
        return [Finding(NAME, what, "a start goes on before it", severity=Severity.NOTE)]
    return []


def _read_frames(file: BinaryIO, page_bytes: int, salts: _Sum, start: _Sum, order: str) -> _Log:
    sum_, is_whole = start, True
    counted = behind = commits = 0
    for number, (frame, page) in enumerate(_frames(file, page_bytes), 1):
        if len(frame) < _FRAME.size:
            is_whole = False
            break
        _, commit, *rest = _FRAME.unpack(frame)
        is_ours = (rest[0], rest[1]) == salts
        if is_whole:
            sum_ = _add(_add(sum_, frame[:8], order), page, order)
            is_whole = is_ours and len(page) == page_bytes and sum_ == (rest[2], rest[3])
        if is_whole:
            if commit:
                counted, behind = number, 0
            else:
                behind += 1
        elif is_ours:
            behind += 1
            commits += commit != 0
    return _Log(counted, behind, commits, behind > 0 and not is_whole)


def _frames(file: BinaryIO, page_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    while frame := file.read(_FRAME.size):
        yield frame, file.read(page_bytes)


def _add(sum_: _Sum, data: bytes, order: str) -> _Sum:
    """Continue SQLite's checksum over some bytes, a multiple of eight."""
    one, two = sum_
    words = struct.unpack(f"{order}{len(data) // 4 & ~1}I", data[: len(data) & ~7])
    for at in range(0, len(words), 2):
        one = (one + words[at] + two) & _MASK
        two = (two + words[at + 1] + one) & _MASK
    return one, two
