"""The output folder: files are written whole, adopted, checked and archived."""

# The functions of this file read the private fields of its class, so that users do not see them.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, closing, contextmanager, suppress

import attrs

from .._journal.record import Output
from .._util.arguments import NOT_EXPANDED, names_home
from .._util.errors import OutputError
from .._util.log import get_logger
from ._contract import (
    Archived,
    FileStatus,
    Outputs,
    Verify,
    digest_problem,
    label_of,
    length_problem,
)
from ._system import READ, TROUBLE, System, SystemPath, output_errors, words
from ._tree import (
    ARCHIVE,
    TEMP_NAME,
    AnyPath,
    NewFile,
    OutputPathError,
    Sync,
    TempOwner,
    Tree,
    above,
    below,
    content_of,
    numbered,
    open_new,
    open_regular,
    pieces,
    relative_path,
    write_pieces,
)

_log = get_logger(__name__)


@attrs.define(eq=False, repr=False)
class OutputDir(Outputs):
    """A folder of outputs, from `OutputDir.open`.

    Threads may use it at the same time, for different paths; `close` comes last.  It
    remembers which folders it has made durable: a user who removes one and makes it again
    in the same session calls `adopt` for the files in it.
    """

    _tree: Tree

    @classmethod
    def open(cls, path: AnyPath, *, system: System | None = None) -> OutputDir:
        """Open the folder at `path`, which may be reached through links; make it if it is missing.

        Args:
            path: The folder; a `SystemPath` brings its system along.
            system: Carries out all operations; default: the operating system.

        Durability: its name, and those of the folders made above it, survive a power cut.

        Raises:
            OutputError: it cannot be opened or made, or is not a folder; or its path is not
                UTF-8, which a store requires, or begins with ``~``.
        """
        if names_home(given := os.fspath(path)):
            raise OutputError(given, NOT_EXPANDED)
        root = os.path.abspath(given)
        if any("\ud800" <= char <= "\udfff" for char in root):  # a name that is not text
            raise OutputError(root, "its path is not UTF-8: give a folder whose path is")
        if os.open not in os.supports_dir_fd:
            raise OutputError(root, "outputs need openat(2), which this platform does not have")
        if system is None:
            system = path.system if isinstance(path, SystemPath) else System()
        with output_errors(root):
            return cls(Tree.open(system, root))

    @property
    def root(self) -> str:
        """The folder's absolute path."""
        return self._tree.root

    def close(self) -> None:
        """Close the folder; a second call does nothing."""
        self._tree.close()

    @property
    def _system(self) -> System:
        return self._tree.system

    def relative(self, path: AnyPath) -> str:
        """Return the name of an output, see `relative_path`; the root may be a resolved path."""
        try:
            return relative_path(self._tree.root, path)
        except OutputPathError:
            if not os.path.isabs(path):
                raise
            return relative_path(os.path.realpath(self._tree.root), path)

    def names(self) -> list[str]:
        """Return the sorted names in the folder itself.

        Raises:
            OutputError: it cannot be read.
        """
        with output_errors(self.root), self._tree.folder("-", Sync.NONE) as (folder, _):
            return sorted(name for name, _ in self._system.scan(folder))

    def write(
        self,
        path: AnyPath,
        data: bytes,
        *,
        is_new: bool = False,
        over: FileStatus | None = None,
    ) -> Output:
        """Write a file whole, in place of the one that has its name.

        Args:
            path: Its path, relative to the folder.
            data: Its content.
            is_new: Replace no file.
            over: Has no effect in a folder.

        Durability: file, name and folders survive a power cut once this has returned.  An
        error before the rename leaves the old file whole; after it, the new one.

        Raises:
            OutputExistsError: `is_new`, and a file has its name.
            OutputError: it cannot be written, or something that is not a file has its name.
        """
        with closing(open_new(self._tree, self.relative(path), is_new=is_new)) as file:
            file.write(data)
            return file.commit()

    def create(self, path: AnyPath) -> NewFile:
        """Begin a file that is too large for memory: written piece by piece, then committed.

        Durability: none yet; the file is durable when `NewFile.commit` has returned.

        Raises:
            OutputError: it cannot be made, or something that is not a file has its name.
        """
        return open_new(self._tree, self.relative(path))

    def read(self, path: AnyPath, limit_bytes: int) -> bytes:
        """Read a file, without following links.

        Raises:
            OutputError: it is missing, not a regular file, behind a link, or larger than
                `limit_bytes`, which is checked before it is read.
        """
        name = self.relative(path)
        with output_errors(name), open_regular(self._tree, name) as (fd, found):
            if found.st_size > limit_bytes:
                raise OutputError(name, f"has {found.st_size:,} bytes, over {limit_bytes:,}")
            data = b"".join(pieces(self._system, fd, limit_bytes + 1))
        if len(data) > limit_bytes:
            raise OutputError(name, f"has grown over {limit_bytes:,} bytes while it was read")
        return data

    def read_pieces(self, path: AnyPath, limit_bytes: int) -> Generator[bytes]:
        """Read a file piece by piece, `limit_bytes` in all; close it at the end.

        Raises:
            OutputError: it is missing, not a regular file, or behind a link.
        """
        name = self.relative(path)
        with output_errors(name), open_regular(self._tree, name) as (fd, _):
            yield from pieces(self._system, fd, limit_bytes)

    def adopt(self, path: AnyPath) -> Output:
        """Adopt a file that the user wrote as an output.

        Durability: file, name and folders survive a power cut once this has returned.

        Raises:
            OutputError: it is missing, not a regular file, behind a link, or still changing.
        """
        name = self.relative(path)
        with (
            output_errors(name),
            self._tree.folder(name, Sync.ALL) as (folder, last),
            self._tree.opened(folder, last) as (fd, before),
        ):
            if not stat.S_ISREG(before.st_mode):
                raise OutputError(name, "is not a regular file")
            size, sha256 = content_of(self._system, fd)
            self._tree.sync(fd, name)
            after = self._system.fstat(fd)
            if size != after.st_size or before.st_mtime_ns != after.st_mtime_ns:
                raise OutputError(name, "was written to while it was hashed: close it first")
            self._tree.sync(folder, above(name))
        return Output(name, size, after.st_mtime_ns, sha256)

    def check(self, output: Output, verify: Verify = "size") -> str | None:
        """Compare a confirmed output with the existing file.

        Args:
            output: As it was confirmed.
            verify: ``"size"``: size and mtime, and the content where the mtime differs;
                ``"sha256"``: the content.

        Returns:
            None if it is good, else a text that says what is wrong with it.

        Raises:
            OutputError: this is unknown, because the file cannot be opened.
        """
        try:
            name = self.relative(output.path)
            with self._tree.reading(name) as (fd, found):
                return self._compare(fd, found, output, verify)
        except FileNotFoundError:
            return "missing"
        except OutputPathError as error:
            return str(error)
        except OSError as error:
            if error.errno == errno.EIO or error.errno in TROUBLE:
                return words(error)
            raise OutputError(output.path, f"cannot be checked: {words(error)}") from error

    @contextmanager
    def unchanged(self) -> Generator[Callable[[Output], bool]]:
        """Open a block with a quick check: whether a file has the size and time of an output.

        It takes one call of the system where the folder is that of the output before.  False
        means that `check` has to find out what is wrong, if anything is.
        """
        with ExitStack() as stack:
            at: str | None = None
            fd = -1

            def is_unchanged(output: Output) -> bool:
                nonlocal at, fd
                try:
                    name = self.relative(output.path)
                    folder, _, last = name.rpartition("/")
                    if folder != at:
                        at = None
                        stack.close()
                        fd, _ = stack.enter_context(self._tree.folder(name, Sync.NONE))
                        at = folder
                    found = self._system.lstat(last, dir_fd=fd)
                except (OSError, OutputError):
                    return False
                return (
                    stat.S_ISREG(found.st_mode)
                    and found.st_size == output.size
                    and found.st_mtime_ns == output.mtime_ns
                )

            yield is_unchanged

    def remove_orphans(self, folders: Iterable[str] | None = None) -> list[str]:
        """Remove temporary files that writers left behind when they were killed.

        Those of other runs stay, and of later owners of this one, see `belong_to`.  So do those of
        live writers, which are locked.  No error is raised: files that cannot be removed are
        logged.

        Args:
            folders: The folders to search, relative to the root (``""``); None: all folders
                below it, except the archive.

        Returns:
            The removed files, relative to the root.
        """
        removed: list[str] = []
        left = [""] if folders is None else [at and self.relative(at) for at in folders]
        while left:
            at = left.pop()
            try:
                with self._tree.folder(below(at, "-"), Sync.NONE) as (folder, _):
                    for name, is_folder in self._system.scan(folder):
                        where = below(at, name)
                        if is_folder and folders is None and where != ARCHIVE:
                            left.append(where)
                        elif not is_folder and self._remove_orphan(folder, name):
                            removed.append(where)
            except FileNotFoundError:
                continue
            except OSError as error:
                _log.warning("temporary files in %r were not removed: %s", at, error)
        return removed

    def archive(self, paths: Iterable[str], label: str) -> Archived:
        """Move outputs into ``.archive/<label>/``, each keeping its path.

        Outputs that an earlier call with the same label moved count as moved, so an
        interrupted call can be repeated.

        Durability: all moves survive a power cut once this has returned; during it, a
        file has its old name or its new one.

        Args:
            paths: The outputs, as recorded.
            label: The label of their run, one part of a path.

        Raises:
            OutputError: one cannot be moved.
        """
        label_of(self._tree.root, label)
        moved: dict[str, str] = {}
        missing: list[str] = []
        for path in paths:
            name = self.relative(path)
            with output_errors(name):
                goal = self._move(name, f"{ARCHIVE}/{label}/{name}")
            if goal is None:
                missing.append(name)
            else:
                moved[name] = goal
        for folder in dict.fromkeys(map(above, [*moved.values(), *moved])):  # goals first
            with (
                output_errors(folder),
                suppress(FileNotFoundError),  # the old folder of a file that was moved earlier
                self._tree.folder(below(folder, "-"), Sync.NONE) as (fd, _),
            ):
                self._tree.sync(fd, folder)
        return Archived(moved, tuple(missing))

    def set_aside(self, path: AnyPath, label: str) -> str | None:
        """Move a file into ``.archive/<label>/`` that is about to be replaced, see `archive`."""
        return self.archive([self.relative(path)], label).moved.get(self.relative(path))

    def archived_head(self, path: AnyPath, label: str, limit_bytes: int) -> bytes | None:
        """Read the head of the copy of a path that `archive` moved last; None: there is none.

        Raises:
            OutputError: it cannot be read.
        """
        name = self.relative(path)
        with output_errors(name):
            places = numbered(f"{ARCHIVE}/{label}/{name}")
            copies = list(itertools.takewhile(self._has_file, places))
            if not copies:
                return None
            with open_regular(self._tree, copies[-1]) as (fd, _):
                return b"".join(pieces(self._system, fd, limit_bytes))

    def status(self, path: AnyPath) -> FileStatus | None:
        """Return the size and the time of a file; None: there is no such file.

        Raises:
            OutputError: it cannot be examined.
        """
        name = self.relative(path)
        with output_errors(name):
            try:
                with self._tree.folder(name, Sync.NONE) as (folder, last):
                    found = self._system.lstat(last, dir_fd=folder)
            except FileNotFoundError:
                return None
        return FileStatus(found.st_size, found.st_mtime) if stat.S_ISREG(found.st_mode) else None

    def count(self, limit: int) -> int:
        """Count the files in and below the folder, without the archive; at most `limit`."""
        count, left = 0, [""]
        while left and count < limit:
            at = left.pop()
            with (
                suppress(OSError),
                self._tree.folder(below(at, "-"), Sync.NONE) as (folder, _),
            ):
                for name, is_folder in self._system.scan(folder):
                    if not is_folder:
                        count += 1
                    elif (where := below(at, name)) != ARCHIVE:
                        left.append(where)
        return min(count, limit)

    def now(self) -> float:
        """The time of this machine; Unix time, s."""
        return time.time()

    def keep_out(self, store: str) -> None:
        """Refuse writes into the folder of a store, however its name is spelt.

        Raises:
            OutputError: it is the root itself.
        """
        with suppress(OSError):  # the store may be elsewhere, or not a folder
            found = os.stat(store)
            self._tree.kept_out = (found.st_dev, found.st_ino)
            root = os.stat(self.root)
            if (root.st_dev, root.st_ino) == self._tree.kept_out:
                raise OutputError(
                    self.root, "is the folder of the store, too: give output_dir= another one"
                )

    def belong_to(self, run_id: str, owner: int, *, is_shared: bool) -> None:
        """Say which owner of which run writes from now on: temporary files are named after it.

        Args:
            run_id: The run.
            owner: The owner number.
            is_shared: Whether a process on another host may own the run next: then files that must
                be new are linked, and append files need locks that cross hosts.
        """
        self._tree.owner, self._tree.is_shared = TempOwner.of(run_id, owner), is_shared

    def need_append(self, path: AnyPath) -> None:
        """Do nothing: files can grow."""

    def _compare(
        self, fd: int, found: os.stat_result, output: Output, verify: Verify
    ) -> str | None:
        if not stat.S_ISREG(found.st_mode):
            return "is not a regular file"
        if (problem := length_problem(found.st_size, output)) is not None:
            return problem
        if verify == "size" and found.st_mtime_ns == output.mtime_ns:
            return None
        _, sha256 = content_of(self._system, fd)
        return digest_problem(sha256, output)

    def _remove_orphan(self, folder: int, name: str) -> bool:
        temp = TEMP_NAME.fullmatch(name)
        if temp is None:
            return False
        owner = self._tree.owner
        if temp["run"] is not None and (owner is None or not owner.outlives(temp)):
            return False  # its writer may live on another host, whose locks are not seen here
        try:
            fd = self._system.open(name, READ, dir_fd=folder)
            try:
                self._system.lock(fd)
                self._system.unlink(name, dir_fd=folder)
            finally:
                self._system.close(fd)
        except BlockingIOError:
            return False  # its writer is alive
        except OSError as error:
            _log.warning("temporary file %r was not removed: %s", name, error)
            return False
        return True

    def _move(self, name: str, goal: str) -> str | None:
        """Move a file to `goal`, and return its new place; None: there is no file."""
        if not self._has_file(name):
            return goal if self._has_file(goal) else None
        with (
            self._tree.folder(name, Sync.MOVE) as (source, last),
            self._tree.folder(goal, Sync.MAKE) as (target, wanted),
        ):
            free = next(n for n in numbered(wanted) if not self._tree.mode(target, n))
            goal = below(above(goal), free)
            try:
                self._system.rename(last, free, src_dir_fd=source, dst_dir_fd=target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                with open_regular(self._tree, name) as (fd, found):  # on another disk, or mount
                    write_pieces(self._tree, goal, pieces(self._system, fd, found.st_size))
                self._system.unlink(last, dir_fd=source)
        return goal

    def _has_file(self, name: str) -> bool:
        return stat.S_IFMT(self._tree.mode_of(name)) not in (0, stat.S_IFDIR)


def tree_of(outputs: Outputs, path: AnyPath) -> Tree:
    """The folders below the root, for append files.

    Raises:
        OutputError: files cannot grow there.
    """
    outputs.need_append(path)
    if not isinstance(outputs, OutputDir):
        raise TypeError(f"append files need an OutputDir, not {outputs!r}")
    return outputs._tree
