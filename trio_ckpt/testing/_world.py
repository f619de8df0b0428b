"""The world of a program that is made to crash: a store, files, and notes that survive."""

from __future__ import annotations

import os
import posixpath
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs

from .._journal.progress import Progress
from .._journal.store import Store
from .._util.plain import StreamKey
from ..outputs import SystemPath
from ..stores import MemoryStore
from ._crash_points import CrashKind, CrashTrigger, LawBrokenError
from ._crash_store import CrashStore
from ._files import Loss, MemoryFiles
from ._inodes import File, Folder
from ._invariants import InvariantChecker

OUTPUT_DIR = "/output"

Note = tuple[Any, ...]


class WorldFiles:
    """Files of the program's own, as plain blocking functions.

    Paths are relative to the output folder, or absolute.  Nothing is durable before it is
    synced: a file, and the names in a folder, each by `fsync`.
    """

    def __init__(self, files: MemoryFiles) -> None:
        self._files = files

    def write(self, path: str, data: bytes) -> None:
        """Replace the content of a file, or create it and the folders above it.

        Durability: none, see `fsync`.
        """
        folder = posixpath.dirname(_absolute(path))
        self.mkdir(folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._with(path, lambda fd: self._put(fd, data, 0), flags)

    def append(self, path: str, data: bytes) -> None:
        """Append to a file; creates it as `write` does.

        Durability: none, see `fsync`.
        """
        self.mkdir(posixpath.dirname(_absolute(path)))

        def put(fd: int) -> None:
            self._put(fd, data, self._files.fstat(fd).st_size)

        self._with(path, put, os.O_WRONLY | os.O_CREAT)

    def fsync(self, path: str) -> None:
        """Make the content of a file, or the names in a folder, survive a power cut."""
        self._with(path, self._files.fsync)

    def rename(self, path: str, goal: str) -> None:
        """Rename a file, replacing the file that has the new name.

        Durability: none; a power cut may leave either name.
        """
        names = (_absolute(path)[1:], _absolute(goal)[1:])
        self._with("/", lambda root: self._files.rename(*names, src_dir_fd=root, dst_dir_fd=root))

    def unlink(self, path: str) -> None:
        """Remove a file."""
        self._with("/", lambda root: self._files.unlink(_absolute(path), dir_fd=root))

    def mkdir(self, path: str) -> None:
        """Create a folder and the missing ones above it."""

        def make(root: int) -> None:
            at = ""
            for part in filter(None, _absolute(path).split("/")):
                at = f"{at}/{part}"
                if self._files.find(at) is None:
                    self._files.mkdir(at, dir_fd=root)

        self._with("/", make)

    def read(self, path: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        found: list[bytes] = []

        def take(fd: int) -> None:
            found.append(self._files.pread(fd, self._files.fstat(fd).st_size, 0))

        self._with(path, take)
        return found[0]

    def exists(self, path: str) -> bool:
        """Whether a file or a folder has this name."""
        self._files.check_alive()
        return self._files.find(_absolute(path)) is not None

    def names(self, folder: str = "") -> list[str]:
        """The names in a folder; empty if there is no folder."""
        self._files.check_alive()
        node = self._files.find(_absolute(folder))
        return sorted(node.entries) if isinstance(node, Folder) else []

    def tree(self) -> dict[str, bytes]:
        """Every file below the output folder, by its path in it."""
        self._files.check_alive()
        found: dict[str, bytes] = {}
        _gather(self._files.find(OUTPUT_DIR), "", found)
        return found

    def _put(self, fd: int, data: bytes, offset: int) -> None:
        self._files.pwrite(fd, memoryview(data), offset)

    def _with(self, path: str, use: Callable[[int], None], flags: int = os.O_RDONLY) -> None:
        fd = self._files.open(_absolute(path), flags)
        try:
            use(fd)
        finally:
            self._files.close(fd)


def _absolute(path: str) -> str:
    return posixpath.join(OUTPUT_DIR, path)


def _gather(node: File | Folder | None, path: str, found: dict[str, bytes]) -> None:
    if isinstance(node, File):
        found[path] = node.data
    elif node is not None:
        for name, entry in sorted(node.entries.items()):
            _gather(entry, f"{path}/{name}" if path else name, found)


@attrs.define(eq=False)
class SimulatedHost:
    """What remains when a program has died: the disk, what was promised, the notes.

    Attributes:
        store: The store as the next session finds it.
        files: The files as the next session finds them.
        invariants: What was promised, and whether it holds.
        notes: The notes of the program.
        crashes: How many sessions were crashed or cancelled.
        sessions: How many sessions have begun.
    """

    store: MemoryStore = attrs.field(factory=MemoryStore)
    files: MemoryFiles = attrs.field(factory=MemoryFiles)
    invariants: InvariantChecker = attrs.field(factory=InvariantChecker)
    notes: list[Note] = attrs.field(factory=list[Note])
    crashes: int = 0
    sessions: int = 0

    def crash(self, kind: CrashKind, seed: int) -> None:
        """Take down what the next session finds."""
        loss: Loss = "power" if kind == "power" else "kill"
        self.store = self.store.after_crash()
        self.files = self.files.after_crash(loss, random.Random(seed))  # noqa: S311  # chance that can be repeated
        self.invariants.crash()

    def end_session(self) -> None:
        """Close and unlock everything, after a program has ended by itself."""
        self.files = self.files.after_crash("kill", random.Random(0))  # noqa: S311  # chance that can be repeated
        self.store = self.store.after_crash()
        self.invariants.end_session()

    async def check_given_back(self) -> None:
        """Check that the program that has ended owns nothing any more.

        Raises:
            LawBrokenError: it still owns a run.
        """
        handle = self.store.reopen()
        for run_id in self.invariants.run_ids:
            if await handle.read_owner(run_id) is not None:
                raise LawBrokenError(f"the program has ended, and still owns run {run_id!r}")

    def check(self) -> None:
        """Check that all invariants hold.

        Raises:
            LawBrokenError: an invariant does not hold.
        """

        def read(path: str) -> bytes | None:
            node = self.files.find(path)
            return node.data if isinstance(node, File) else None

        def is_mine(folder: str) -> bool:
            return folder == OUTPUT_DIR or folder.startswith(f"{OUTPUT_DIR}/")

        problem = self.invariants.check(read, is_mine)
        if problem is not None:
            raise LawBrokenError(problem)


class World:
    """The environment of a program under `explore_crashes`; new for each session.

    After a crash it is frozen: later calls of the dying program change nothing, and raise
    `Crashed`.

    Attributes:
        store: Pass it to `open_run` as ``store=``.
        output_dir: Pass it to `open_run` as ``output_dir=``.
        files: Files of the program's own.
    """

    store: Store
    output_dir: SystemPath
    files: WorldFiles

    def __init__(self, host: SimulatedHost, trigger: CrashTrigger, seed: int) -> None:
        self._host = host
        self._trigger = trigger
        host.store = host.store.reopen()
        host.files.check_alive = trigger.check_alive
        host.files.reach = partial(trigger.reach, "files")
        self.store = CrashStore(host.store, trigger, host.invariants.saved, seed)
        self.output_dir = SystemPath(OUTPUT_DIR, host.files)
        self.files = WorldFiles(host.files)

    def note(self, *what: Any) -> None:
        """Record a fact for the check; it survives every crash.

        Args:
            what: Its parts, ``world.note("ran", batch.index)``, say.
        """
        self._trigger.check_alive()
        self._host.notes.append(what)

    @property
    def notes(self) -> tuple[Note, ...]:
        """All notes of all sessions, in order."""
        return tuple(self._host.notes)

    def count(self, *what: Any) -> int:
        """How often exactly this was noted."""
        return self._host.notes.count(what)

    @property
    def crashes(self) -> int:
        """How many sessions were crashed or cancelled so far."""
        return self._host.crashes

    def progress(self, *parts: str, run_id: str | None = None) -> Progress:
        """What is durable of a stream at this moment, whatever the program believes.

        Args:
            parts: Its key.
            run_id: The run; may be left out where there is one.
        """
        key: StreamKey = parts
        return self._host.invariants.progress(run_id, key)
