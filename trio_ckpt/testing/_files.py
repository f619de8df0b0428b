"""A file tree in memory, behind the operating system calls that outputs make.

It answers as Linux does, error numbers included; a test puts the same calls to both.  There are
no links and no rights, and a folder is removed only by renaming another over it; later calls
through its descriptor are not refused.  Outputs need none of this.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Concatenate, Literal, NoReturn, ParamSpec, TypeVar

import attrs

from ..outputs import System
from ._inodes import File, Folder, Resize, Write, after_power_cut, move

P = ParamSpec("P")
T = TypeVar("T")

Loss = Literal["kill", "power"]

NAME_MAX_BYTES = 255  # Linux's NAME_MAX
FIRST_FD = 1_000_000  # no real descriptor is that large, so a confusion fails
# Of the tree's own clock: one change, one tick.  It is ahead of every other clock, so that a
# file of an earlier session is not older than the run.
FIRST_TIME_NS = 4_000_000_000 * 10**9
TICK_NS = 1_000_000
CREATES = os.O_CREAT
WRITES = os.O_WRONLY | os.O_RDWR


@attrs.define(eq=False)
class _Open:
    """The target of a descriptor."""

    node: File | Folder
    name: str
    reads: bool
    writes: bool


def _call(
    method: Callable[Concatenate[MemoryFiles, P], T],
) -> Callable[Concatenate[MemoryFiles, P], T]:
    """Let one call run at a time, while the tree exists."""

    def call(self: MemoryFiles, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.lock_all:
            self.check_alive()
            return method(self, *args, **kwargs)

    return call


@attrs.define(eq=False)
class MemoryFiles(System):
    """Files and folders in memory; any number of threads may use them.

    Attributes:
        root: Where absolute paths begin.
        check_alive: Called before every call; it raises where the host is down.
        reach: Called with a verb and a name before every change, twice for a write: before
            it, and half way through.
        lock_all: Held by every call.
    """

    root: Folder = attrs.field(factory=lambda: Folder(1))
    check_alive: Callable[[], None] = lambda: None
    reach: Callable[[str, str], None] = lambda _verb, _name: None
    lock_all: threading.RLock = attrs.field(factory=threading.RLock)
    _opened: dict[int, _Open] = attrs.field(factory=dict[int, _Open], init=False)
    _locks: dict[int, int] = attrs.field(factory=dict[int, int], init=False)  # inode -> fd
    _next_fd: int = attrs.field(default=FIRST_FD, init=False)
    _next_inode: int = attrs.field(default=2, alias="next_inode")
    _now_ns: int = attrs.field(default=FIRST_TIME_NS, alias="now_ns")

    def after_crash(self, loss: Loss, chance: random.Random) -> MemoryFiles:
        """Return the tree as the next start finds it; this one must not be used any more.

        Args:
            loss: A kill keeps everything that was done; a power cut what was synced, and by
                chance a part of the rest.
            chance: The source of random numbers.
        """
        with self.lock_all:  # a call of another thread that has begun is completed
            root = self.root if loss == "kill" else after_power_cut(self.root, chance)
        return MemoryFiles(root, next_inode=self._next_inode, now_ns=self._now_ns)

    def find(self, path: str) -> File | Folder | None:
        """The file or folder at an absolute path, for inspection; None: there is none."""
        node: File | Folder | None = self.root
        for part in filter(None, path.split("/")):
            node = node.entries.get(part) if isinstance(node, Folder) else None
        return node

    # -- descriptors ------------------------------------------------------------------------

    @_call
    def open(self, path: str, flags: int, *, dir_fd: int | None = None) -> int:
        folder, name = self._place(path, dir_fd)
        node: File | Folder | None = folder.entries.get(name) if name else folder
        writes = bool(flags & WRITES)
        changes = flags & (WRITES | CREATES | os.O_TRUNC)  # O_TRUNC cuts what is opened to be read
        if node is None:
            if not flags & CREATES:
                _fail(errno.ENOENT, path)
            self.reach("make", name)
            node = File(self._take_inode(), mtime_ns=self._tick())
            folder.rename({name: node}, self._now_ns)
        elif flags & CREATES and flags & os.O_EXCL:
            _fail(errno.EEXIST, path)
        elif isinstance(node, Folder) and changes:
            _fail(errno.EISDIR, path)
        elif isinstance(node, File) and flags & os.O_DIRECTORY:
            _fail(errno.ENOTDIR, path)
        if isinstance(node, File) and flags & os.O_TRUNC and node.data:
            self.reach("cut", name)
            node.change(Resize(0), self._tick())
        fd, self._next_fd = self._next_fd, self._next_fd + 1
        self._opened[fd] = _Open(node, name or "/", not flags & os.O_WRONLY, writes)
        return fd

    @_call
    def close(self, fd: int) -> None:
        entry = self._entry(fd)
        del self._opened[fd]
        if self._locks.get(entry.node.number) == fd:
            del self._locks[entry.node.number]

    @_call
    def lock(self, fd: int) -> None:
        number = self._entry(fd).node.number
        if self._locks.setdefault(number, fd) != fd:
            _fail(errno.EAGAIN)

    @_call
    def unlock(self, fd: int) -> None:
        number = self._entry(fd).node.number
        if self._locks.get(number) == fd:
            del self._locks[number]

    @_call
    def fstat(self, fd: int) -> os.stat_result:
        return _stat_of(self._entry(fd).node)

    # -- content ----------------------------------------------------------------------------

    @_call
    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if offset < 0:
            _fail(errno.EINVAL)
        entry = self._entry(fd)
        if not entry.reads:
            _fail(errno.EBADF)
        if isinstance(entry.node, Folder):
            _fail(errno.EISDIR)
        return entry.node.data[offset : offset + size]

    @_call
    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        if offset < 0:
            _fail(errno.EINVAL)
        entry, content = self._entry(fd), bytes(data)
        if not entry.writes or isinstance(entry.node, Folder):
            _fail(errno.EBADF)
        if not content:
            return 0
        self.reach("write", entry.name)
        half = len(content) // 2
        if half:
            # A kill may leave half of it anywhere; a disk writes sectors, so to a power cut
            # the write is one change.
            entry.node.show(Write(offset, content[:half]), self._tick())
            self.reach("write the second half of", entry.name)
        entry.node.change(Write(offset, content), self._tick())
        return len(content)

    @_call
    def truncate(self, fd: int, size: int) -> None:
        if size < 0:
            _fail(errno.EINVAL)
        entry = self._entry(fd)
        if not entry.writes or isinstance(entry.node, Folder):
            _fail(errno.EINVAL)
        self.reach("cut", entry.name)
        entry.node.change(Resize(size), self._tick())

    @_call
    def fsync(self, fd: int) -> None:
        entry = self._entry(fd)
        self.reach("fsync", entry.name)
        entry.node.sync()

    @_call
    def fdatasync(self, fd: int) -> None:
        entry = self._entry(fd)
        self.reach("fdatasync", entry.name)
        if isinstance(entry.node, Folder):
            entry.node.sync()
        else:
            entry.node.sync(with_time=False)

    # -- names ------------------------------------------------------------------------------

    @_call
    def lstat(self, name: str, *, dir_fd: int) -> os.stat_result:
        return _stat_of(self._named(name, dir_fd)[2])

    @_call
    def scan(self, fd: int) -> Iterator[tuple[str, bool]]:
        folder = self._entry(fd).node
        if isinstance(folder, File):
            _fail(errno.ENOTDIR)
        return iter([(name, isinstance(node, Folder)) for name, node in folder.entries.items()])

    @_call
    def mkdir(self, name: str, *, dir_fd: int) -> None:
        folder, last = self._place(name, dir_fd)
        if not last or last in folder.entries:
            _fail(errno.EEXIST, name)
        self.reach("make the folder", last)
        folder.rename({last: Folder(self._take_inode(), self._tick())}, self._now_ns)

    @_call
    def unlink(self, name: str, *, dir_fd: int) -> None:
        folder, last, node = self._named(name, dir_fd)
        if isinstance(node, Folder):
            _fail(errno.EISDIR, name)
        self.reach("remove", last)
        node.links -= 1
        folder.rename({last: None}, self._tick())

    @_call
    def link(self, name: str, goal: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        node = self._named(name, src_dir_fd)[2]
        target, wanted = self._place(goal, dst_dir_fd)
        if not wanted or wanted in target.entries:
            _fail(errno.EEXIST, goal)
        if isinstance(node, Folder):
            _fail(errno.EPERM, name)
        self.reach("link to", wanted)
        node.links += 1
        target.rename({wanted: node}, self._tick())

    @_call
    def mount_options(self, fd: int) -> frozenset[str]:
        return frozenset()

    @_call
    def rename(self, name: str, goal: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        source, last = self._place(name, src_dir_fd)
        target, wanted = self._place(goal, dst_dir_fd)
        if not last or not wanted:
            _fail(errno.EBUSY, name)
        node = self._named(name, src_dir_fd)[2]
        there = target.entries.get(wanted)
        _check_rename(node, source, there, target, goal)
        if there is node:
            return
        self.reach("rename to", wanted)
        move(node, source, last, target, wanted, self._tick())

    # -- the tree ---------------------------------------------------------------------------

    def _entry(self, fd: int) -> _Open:
        entry = self._opened.get(fd)
        if entry is None:
            _fail(errno.EBADF)
        return entry

    def _place(self, path: str, dir_fd: int | None) -> tuple[Folder, str]:
        """Return the folder that a path ends in, and its last part; "": the folder itself."""
        if "\0" in path:
            raise ValueError("embedded null byte")
        if not path:
            _fail(errno.ENOENT, path)
        node: File | Folder = self.root
        if not path.startswith("/"):
            if dir_fd is None:
                raise ValueError(f"{path!r} is not absolute, and no folder is given for it")
            node = self._entry(dir_fd).node
        parts = [part for part in path.split("/") if part not in ("", ".")]
        for part in parts[:-1]:
            node = self._step(node, part, path)
        if not isinstance(node, Folder):
            _fail(errno.ENOTDIR, path)
        last = parts[-1] if parts else ""
        if len(os.fsencode(last)) > NAME_MAX_BYTES:
            _fail(errno.ENAMETOOLONG, path)
        return node, last

    def _step(self, node: File | Folder, part: str, path: str) -> File | Folder:
        if not isinstance(node, Folder):
            _fail(errno.ENOTDIR, path)
        found = node.entries.get(part)
        if found is None:
            is_long = len(os.fsencode(part)) > NAME_MAX_BYTES
            _fail(errno.ENAMETOOLONG if is_long else errno.ENOENT, path)
        return found

    def _named(self, name: str, dir_fd: int) -> tuple[Folder, str, File | Folder]:
        folder, last = self._place(name, dir_fd)
        node = folder.entries.get(last) if last else folder
        if node is None:
            _fail(errno.ENOENT, name)
        return folder, last, node

    def _take_inode(self) -> int:
        number, self._next_inode = self._next_inode, self._next_inode + 1
        return number

    def _tick(self) -> int:
        self._now_ns += TICK_NS
        return self._now_ns


def _fail(code: int, name: str | None = None) -> NoReturn:
    if name is None:
        raise OSError(code, os.strerror(code))
    raise OSError(code, os.strerror(code), name)


def _check_rename(
    node: File | Folder, source: Folder, there: File | Folder | None, target: Folder, goal: str
) -> None:
    """See rename(2)."""
    if isinstance(node, Folder) and _holds(node, target):
        _fail(errno.EINVAL, goal)
    if isinstance(there, Folder) and _holds(there, source):
        _fail(errno.ENOTEMPTY, goal)
    if isinstance(there, Folder) and isinstance(node, File):
        _fail(errno.EISDIR, goal)
    if isinstance(there, File) and isinstance(node, Folder):
        _fail(errno.ENOTDIR, goal)
    if isinstance(there, Folder) and there is not node and there.entries:
        _fail(errno.ENOTEMPTY, goal)


def _holds(folder: Folder, wanted: Folder) -> bool:
    return folder is wanted or any(
        isinstance(node, Folder) and _holds(node, wanted) for node in folder.entries.values()
    )


def _stat_of(node: File | Folder) -> os.stat_result:
    is_file = isinstance(node, File)
    mode = stat.S_IFREG | 0o644 if is_file else stat.S_IFDIR | 0o755
    size, links = (len(node.data), node.links) if isinstance(node, File) else (4096, 2)
    seconds = node.mtime_ns // 10**9
    fields = (mode, node.number, 1, links, 0, 0, size, seconds, seconds, seconds)
    return os.stat_result(fields, {"st_mtime_ns": node.mtime_ns, "st_mtime": node.mtime_ns / 1e9})
