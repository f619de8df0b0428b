"""The recorder in C, as Python sees it: built, told what to do, and its log read.

`recorder.c` says what it does.  A process that is to be watched is started with it in
LD_PRELOAD, and speaks to it through `Recorder`; the others read what it wrote.
"""

from __future__ import annotations

import ctypes
import enum
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs

SOURCE = Path(__file__).with_name("recorder.c")
NAME = "recorder.so"
NO_COMPILER = "there is no C compiler (cc) to build tests/crash/recorder.c with"
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden")


class Kind(enum.IntFlag):
    """What is done to a file, as in recorder.c."""

    LOOK = 1  # opens a file that is there, or makes a folder that is there
    MAKE = 2
    RESIZE = 4
    WRITE = 8
    RENAME = 16
    LINK = 32
    UNLINK = 64
    MKDIR = 128
    RMDIR = 256
    SYNC = 512
    DATASYNC = 1024
    MARK = 2048


SYNCS = Kind.SYNC | Kind.DATASYNC
NAMES = Kind.MAKE | Kind.RENAME | Kind.LINK | Kind.UNLINK | Kind.MKDIR | Kind.RMDIR
CHANGES = NAMES | Kind.RESIZE | Kind.WRITE | SYNCS
OPENS = Kind.LOOK | Kind.MAKE
GROWS = Kind.MAKE | Kind.MKDIR | Kind.RENAME | Kind.WRITE | SYNCS  # takes room on a disk


class Action(enum.IntEnum):
    """What happens to a process at an operation, as in recorder.c."""

    NONE = 0
    KILL_BEFORE = 1
    KILL_AFTER = 2
    KILL_HALF = 3
    FAIL = 4
    SHORT = 5
    FILL = 6


@attrs.frozen
class Plan:
    """What goes wrong in one session.

    Attributes:
        action: What happens.
        at: At which of the operations that count; the first is 1.
        kinds: Which count.
        error: The errno of an operation that fails.
        persistent: Whether all after it fail, too.
    """

    action: Action = Action.NONE
    at: int = 0
    kinds: Kind = CHANGES
    error: int = 0
    persistent: bool = False


NO_PLAN = Plan()


def has_compiler() -> bool:
    """Whether the recorder can be built here."""
    return shutil.which("cc") is not None


def build(folder: Path) -> Path:
    """Compile the recorder into a folder; where it is."""
    library = folder / NAME
    subprocess.run(["cc", *FLAGS, "-o", str(library), str(SOURCE), "-lpthread"], check=True)
    return library


class Recorder:
    """The recorder that this process was started with."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.recorder_count.restype = ctypes.c_long
        self._library.recorder_hits.restype = ctypes.c_long
        self._library.recorder_plan.argtypes = [
            ctypes.c_uint, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int
        ]  # fmt: skip
        self._library.recorder_clock.argtypes = [ctypes.c_int64]

    def watch(self, folder: Path, log: Path | None, *, waits: bool = True) -> None:
        """Count from now on what happens below a folder.

        Args:
            folder: Absolute.
            log: Where it is written down.
            waits: Whether syncs wait for the disk.  Where power is cut in a model only, no disk
                needs to have anything.
        """
        name = os.fsencode(log) if log else None
        self._library.recorder_watch(os.fsencode(folder), name, int(waits))

    def set_clock(self, now_s: int) -> None:
        """Have files changed at a time that each change moves on, in place of the system's."""
        self._library.recorder_clock(now_s * 10**9)

    def arm(self, plan: Plan) -> None:
        """Have something go wrong."""
        self._library.recorder_plan(
            int(plan.kinds), plan.at, int(plan.action), plan.error, int(plan.persistent)
        )

    def mark(self, text: str) -> None:
        """Put a word of the program's own into the log, in order."""
        self._library.recorder_mark(text.encode())

    def count(self, kinds: Kind) -> int:
        """How many operations of these kinds there were."""
        return int(self._library.recorder_count(int(kinds)))

    def hits(self) -> int:
        """How many operations the plan has met."""
        return int(self._library.recorder_hits())


@attrs.frozen
class Operation:
    """One line of the log.

    Attributes:
        kind: What was done.
        error: 0, or with what it was made to fail: then it was not done.
        path, goal: Relative to the watched folder; of a mark the path is its text.
        inode: Of the file, where it was open.
        offset, data: Of a write.
        size: Of a file that was cut or made longer.
        mtime_ns: Of the file, afterwards.
        hits: How many operations the plan had met by then.
    """

    kind: Kind
    error: int
    path: str
    goal: str
    inode: int
    offset: int
    size: int
    mtime_ns: int
    data: bytes = attrs.field(repr=lambda data: f"{len(data)} bytes")
    hits: int = 0


_HEAD = struct.Struct("=IiQqqqIIII")


def read_log(log: Path) -> Iterator[Operation]:
    """What was written down, in order."""
    content = log.read_bytes()
    at = 0
    while at < len(content):
        kind, error, inode, offset, size, mtime_ns, *lengths, hits = _HEAD.unpack_from(content, at)
        at += _HEAD.size
        parts: list[bytes] = []
        for length in lengths:
            parts.append(content[at : at + length])
            at += length
        path, goal = os.fsdecode(parts[0]), os.fsdecode(parts[1])
        yield Operation(
            Kind(kind), error, path, goal, inode, offset, size, mtime_ns, parts[2], hits
        )
