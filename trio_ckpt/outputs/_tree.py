"""The files below the root: named, opened without following links, written whole, read."""

from __future__ import annotations

import enum
import errno
import hashlib
import itertools
import os
import re
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import attrs
import msgspec

from .._journal.record import Output
from .._util.errors import OutputError, OutputExistsError
from .._util.fsync import refuse_unsynced
from .._util.shown import Shown
from .._util.text import plural
from ._system import FOLDER, NEW, READ, ROOT, System, output_errors, write_all

# ---------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------

AnyPath = str | os.PathLike[str]

ARCHIVE = ".archive"  # the folder below the root where `fresh=True` moves old outputs
MAX_PATH_CHARS = 4_096  # Linux's PATH_MAX: other programs could not open a longer path
TEMP_STEM_BYTES = 80  # of the goal's name in a temporary one: well below NAME_MAX, 255

# With which owner of which run writes it; files without a run, of an export say, have none.
TEMP_NAME = re.compile(
    r"\..*\.ckpt-tmp-(?:(?P<run>[0-9a-f]{8})-(?P<owner>[0-9]{1,19})-)?[0-9a-f]{16}", re.DOTALL
)
_BAD_CHARS = re.compile("[\\\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class OutputPathError(OutputError, ValueError):
    """The path is not valid for an output."""


def relative_path(root: str, path: AnyPath) -> str:
    """Return the canonical name of an output: relative to `root`, with ``/``, no empty parts.

    Args:
        root: The output folder, absolute.
        path: Relative to it, or absolute and below it.

    Raises:
        OutputPathError: it is empty, too long, not below `root`, or has ``..``, a
            backslash, a control character, or a name that is reserved for the library.
    """
    text = os.fspath(path)
    if text.startswith("/"):
        text = _without_root(root, text)
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not parts:
        raise OutputPathError(text, "is not the name of a file")
    if len(text) > MAX_PATH_CHARS:
        raise OutputPathError(text, f"has {len(text)} characters, over {MAX_PATH_CHARS}")
    if ".." in parts:
        raise OutputPathError(text, "has '..' in it")
    if _BAD_CHARS.search(text):
        raise OutputPathError(text, "has a backslash, a control character or a surrogate in it")
    if parts[0] == ARCHIVE or any(map(TEMP_NAME.fullmatch, parts)):
        raise OutputPathError(text, "is reserved for the library")
    return "/".join(parts)


def _without_root(root: str, path: str) -> str:
    prefix = root.rstrip("/") + "/"
    if not path.startswith(prefix):
        raise OutputPathError(
            path, f"is not below the output folder {root!r}; give a path relative to it"
        )
    return path[len(prefix) :]


class TempOwner(msgspec.Struct, frozen=True):
    """Who writes temporary files: an owner of a run.

    Attributes:
        run: A digest of the run's id.
        number: The owner number.
    """

    run: str
    number: int

    @classmethod
    def of(cls, run_id: str, owner: int) -> TempOwner:
        """An owner of a run."""
        return cls(hashlib.sha256(run_id.encode(errors="surrogatepass")).hexdigest()[:8], owner)

    def outlives(self, temp: re.Match[str]) -> bool:
        """Whether a temporary file was written by an earlier owner of the same run."""
        return temp["run"] == self.run and int(temp["owner"]) < self.number


def temp_name(name: str, owner: TempOwner | None = None) -> str:
    """Return a new temporary name for a file that is to become `name`, in the same folder."""
    stem = name.encode()[:TEMP_STEM_BYTES].decode(errors="ignore")
    mark = "" if owner is None else f"{owner.run}-{owner.number}-"
    return f".{stem}.ckpt-tmp-{mark}{os.urandom(8).hex()}"


def above(name: str) -> str:
    """Return the folder of an output, ``""`` for the root."""
    return name.rpartition("/")[0]


def below(folder: str, name: str) -> str:
    """Join a folder and a name: the inverse of `above`."""
    return f"{folder}/{name}" if folder else name


# ---------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------

LOST = (
    "an earlier fsync of it failed, so the content of the disk is unknown and a later fsync proves "
    "nothing; check the disk, then start the program again"
)
MAX_SURE_FOLDERS = 100_000  # folders remembered as durable; a forgotten one costs an fsync


class Sync(enum.Enum):
    """How to treat the names of the folders on the way to a file."""

    NONE = enum.auto()  # only for reading
    MOVE = enum.auto()  # only for reading, of a file that is to be moved away
    MAKE = enum.auto()  # make missing folders, sync names that this session has not synced yet
    ALL = enum.auto()  # sync all names: the user made the folders, at an unknown time


@attrs.define(eq=False, repr=False)
class Tree:
    """The opened root, and the durability of the names below it in this session.

    Attributes:
        root: Its absolute path.
        system: Carries out its operations.
        kept_out: Device and inode of the store's folder, into which no output is written.
        owner: Who writes; None: no run does.
        is_shared: Whether a process on another host may own the run next.
    """

    root: str
    system: System
    _fd: int
    kept_out: tuple[int, int] | None = attrs.field(default=None, init=False)
    owner: TempOwner | None = attrs.field(default=None, init=False)
    is_shared: bool = attrs.field(default=False, init=False)
    _sure: set[str] = attrs.field(factory=set[str], init=False)  # folders with durable names
    _lost: set[str] = attrs.field(factory=set[str], init=False)  # names that failed to sync

    @classmethod
    def open(cls, system: System, root: str) -> Tree:
        """Open the folder `root`; make it, and those above it, if they are missing."""
        return cls(root, system, _open_root(system, root))

    def close(self) -> None:
        """Close the root; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd != -1:
            self.system.close(fd)

    @contextmanager
    def folder(self, name: str, sync: Sync) -> Generator[tuple[int, str]]:
        """Open the folder that a file is in; yields it and the last part of the file's name."""
        *parts, last = name.split("/")
        fd, at = self._fd, ""
        try:
            for part in parts:
                inner = self._step(fd, at, part, sync)
                outer, fd, at = fd, inner, below(at, part)
                if outer != self._fd:
                    self.system.close(outer)
            if sync in (Sync.MAKE, Sync.ALL):
                self.refuse_lost(at)
            yield fd, last
        finally:
            if fd != self._fd:
                self.system.close(fd)

    def _step(self, folder: int, at: str, part: str, sync: Sync) -> int:
        """Open a folder in the folder `at`; makes it and its name durable if `sync` says so."""
        name = below(at, part)
        try:
            fd = self.system.open(part, FOLDER, dir_fd=folder)
        except FileNotFoundError:
            if sync is not Sync.MAKE:
                raise
            with suppress(FileExistsError):
                self.system.mkdir(part, dir_fd=folder)
            self._sure.discard(name)
            fd = self.system.open(part, FOLDER, dir_fd=folder)
        try:
            if sync is not Sync.NONE and self.kept_out is not None:
                self._refuse_kept_out(fd, name)
            # Also for an existing one: a process killed after mkdir has not synced its name.
            if sync is Sync.ALL or (sync is Sync.MAKE and name not in self._sure):
                self.sync(folder, at)
                if len(self._sure) >= MAX_SURE_FOLDERS:
                    self._sure.clear()
                self._sure.add(name)
        except BaseException:
            self.system.close(fd)
            raise
        return fd

    def _refuse_kept_out(self, fd: int, name: str) -> None:
        """Compare by inode: a link, a mount or another letter case may lead to the folder."""
        found = self.system.fstat(fd)
        if (found.st_dev, found.st_ino) == self.kept_out:
            raise OutputError(name, "is the folder of the store: outputs need another one")

    @contextmanager
    def opened(self, folder: int, name: str) -> Generator[tuple[int, os.stat_result]]:
        """Open a name for reading without waiting; it may not be a regular file."""
        fd = self.system.open(name, READ, dir_fd=folder)
        try:
            yield fd, self.system.fstat(fd)
        finally:
            self.system.close(fd)

    @contextmanager
    def reading(self, name: str) -> Generator[tuple[int, os.stat_result]]:
        """Open a file for reading as `opened` does, and the folders on the way to it."""
        with self.folder(name, Sync.NONE) as (folder, last), self.opened(folder, last) as found:
            yield found

    def mode_of(self, name: str) -> int:
        """Return the file mode of a file, see `mode`; its folder may be missing, too."""
        try:
            with self.folder(name, Sync.NONE) as (folder, last):
                return self.mode(folder, last)
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def mode(self, folder: int, name: str) -> int:
        """Return the file mode of a name, links not followed; 0: it does not exist."""
        try:
            return self.system.lstat(name, dir_fd=folder).st_mode
        except FileNotFoundError:
            return 0

    # -- syncing --------------------------------------------------------------------

    def sync(self, fd: int, name: str) -> None:
        """Sync a file or folder, unless an earlier sync of it has failed."""
        self.refuse_lost(name)
        try:
            _fsync(self.system, fd, below(self.root, name) if name else self.root)
        except BaseException:
            self.mark_lost(name)
            raise

    def mark_lost(self, name: str) -> None:
        """Remember that a sync of this file or folder has failed."""
        self._lost.add(name)

    def mark_new(self, name: str) -> None:
        """Remember that the name denotes another file now."""
        self._lost.discard(name)

    def refuse_lost(self, name: str) -> None:
        """Raise if a sync of this file or folder has failed."""
        if name in self._lost:
            raise OutputError(name or self.root, LOST)


def _fsync(system: System, fd: int, path: str) -> None:
    try:
        system.fsync(fd)
    except OSError as error:
        refuse_unsynced(error, path)
        raise


def _open_root(system: System, root: str) -> int:
    folder_path, name = os.path.split(root)
    try:
        fd = system.open(root, ROOT)
    except FileNotFoundError:
        folder = _open_root(system, folder_path)
        try:
            with suppress(FileExistsError):
                system.mkdir(name, dir_fd=folder)
            _fsync(system, folder, folder_path)
            return system.open(name, ROOT, dir_fd=folder)
        finally:
            system.close(folder)
    with suppress(OSError):  # it existed: the folder above it may be unreadable for this user
        folder = system.open(folder_path, ROOT)
        try:
            system.fsync(folder)
        finally:
            system.close(folder)
    return fd


# ---------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------

NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP}  # of file systems without hard links
HASH_CHUNK_BYTES = 2**20  # the memory for hashing a file


@attrs.define(eq=False, repr=False)
class NewFile(Shown):
    """A file that is written beside its goal and renamed over it, from `OutputDir.create`.

    Until `commit` the goal is unchanged; `close` comes last.  One thread at a time.

    Where other hosts may own the run, a file that must be new gets its name by link(2): it fails
    where there is one already, also over a network, and leaves no instant to look before.

    Attributes:
        path: Its final path, relative to the output folder.
        size: The number of bytes written so far.
    """

    path: str
    _tree: Tree
    _stack: ExitStack
    _folder: int
    _last: str
    _temp: str
    _fd: int
    _is_first: bool  # there must be no file of its name, which is seen to on a shared disk
    size: int = attrs.field(default=0, init=False)
    _hasher: Any = attrs.field(factory=hashlib.sha256, init=False)

    def _shown(self) -> Iterable[tuple[str, str]]:
        return [("", self.path), ("written", plural(self.size, "byte"))]

    def write(self, data: bytes) -> None:
        """Write `data` at the end.

        Durability: none yet; `commit` makes the whole file durable.

        Raises:
            OutputError: it cannot be written, or was committed.
        """
        with output_errors(self.path):
            if not self._temp:  # its bytes are hashed and have the final name
                raise OutputError(self.path, "is committed or closed: nothing more is written")
            write_all(self._tree.system, self._fd, self.path, data, self.size)
        self._hasher.update(data)
        self.size += len(data)

    def commit(self) -> Output:
        """Give the file its name, in place of the one that has it.

        Durability: file and name survive a power cut once this has returned.  The file is
        synced before the rename, since a file system may keep a new name before the content;
        the folder is synced after it, since the name is in the folder.  An error before the
        rename leaves the old file whole; after it, the new one.

        Raises:
            OutputError: it could not be made durable, or was not renamed.
        """
        system = self._tree.system
        with output_errors(self.path):
            _fsync(system, self._fd, below(self._tree.root, self.path))
            written = system.fstat(self._fd)
            if self._is_first and self._link():
                system.unlink(self._temp, dir_fd=self._folder)
            else:
                system.rename(
                    self._temp, self._last, src_dir_fd=self._folder, dst_dir_fd=self._folder
                )
            self._temp = ""
            self._tree.mark_new(self.path)  # the name denotes another file now
            self._tree.sync(self._folder, above(self.path))
        return Output(self.path, written.st_size, written.st_mtime_ns, self._hasher.hexdigest())

    def _link(self) -> bool:
        """Give the file its name by a link, which replaces nothing; False: there are no links.

        Raises:
            OutputExistsError: a file has its name.
        """
        system, folder = self._tree.system, self._folder
        try:
            system.link(self._temp, self._last, src_dir_fd=folder, dst_dir_fd=folder)
        except FileExistsError as error:
            if system.fstat(self._fd).st_nlink == 1:  # else its answer was lost, and it is ours
                raise OutputExistsError(
                    self.path, "exists already; it was not overwritten"
                ) from error
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return False
        return True

    def close(self) -> None:
        """Close the file and remove it unless it is committed; a second call does nothing."""
        fd, self._fd = self._fd, -1
        with output_errors(self.path), self._stack:
            try:
                if fd != -1:
                    self._tree.system.close(fd)
            finally:
                temp, self._temp = self._temp, ""
                if temp:
                    with suppress(OSError):
                        self._tree.system.unlink(temp, dir_fd=self._folder)


def open_new(tree: Tree, name: str, *, is_new: bool = False) -> NewFile:
    """Make the temporary file of a new one; the folders on the way are made and durable.

    Raises:
        OutputExistsError: `is_new`, and a file has its name.
        OutputError: it cannot be made, or something that is not a file has its name.
    """
    with output_errors(name), ExitStack() as stack:
        folder, last = stack.enter_context(tree.folder(name, Sync.MAKE))
        if mode := tree.mode(folder, last):
            if not stat.S_ISREG(mode):
                raise OutputError(name, "something that is not a regular file has its name")
            if is_new:
                raise OutputExistsError(name, "exists already; it was not overwritten")
        temp = temp_name(last, tree.owner)
        fd = tree.system.open(temp, NEW, dir_fd=folder)
        with suppress(OSError):  # some file systems have no locks
            tree.system.lock(fd)  # until it is closed, so that remove_orphans keeps it
        is_first = is_new and tree.is_shared
        return NewFile(name, tree, stack.pop_all(), folder, last, temp, fd, is_first)


def write_pieces(tree: Tree, name: str, data: Iterable[bytes]) -> Output:
    """Write a file whole, in place of the one that has its name.

    Durability: as for `NewFile.commit`; the names of the folders on the way survive, too.

    Raises:
        OutputError: it cannot be written, or something that is not a file has its name.
    """
    with closing(open_new(tree, name)) as file:
        for piece in data:
            file.write(piece)
        return file.commit()


@contextmanager
def open_regular(tree: Tree, name: str) -> Generator[tuple[int, os.stat_result]]:
    """Open a regular file for reading."""
    with tree.reading(name) as (fd, found):
        if not stat.S_ISREG(found.st_mode):
            raise OutputError(name, "is not a regular file")
        yield fd, found


def pieces(system: System, fd: int, end: int | None = None, offset: int = 0) -> Iterator[bytes]:
    """Yield the content of a file from `offset` on, up to `end`."""
    size = HASH_CHUNK_BYTES
    while end is None or (size := min(end - offset, HASH_CHUNK_BYTES)) > 0:
        piece = system.pread(fd, size, offset)
        if not piece:
            return
        yield piece
        offset += len(piece)


def content_of(system: System, fd: int) -> tuple[int, str]:
    """Return size and SHA-256 of the content."""
    hasher, size = hashlib.sha256(), 0
    for piece in pieces(system, fd):
        hasher.update(piece)
        size += len(piece)
    return size, hasher.hexdigest()


def numbered(name: str) -> Iterator[str]:
    """Yield a name and those of its further copies: ``f``, ``f~2``, ``f~3`` …"""
    yield name
    yield from (f"{name}~{copy}" for copy in itertools.count(2))
