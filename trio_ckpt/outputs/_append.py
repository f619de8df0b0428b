"""Append files: they grow at their end, and are cut to what was confirmed.

`encode_lines` makes their lines, `keep_tail` archives lines before they are cut off, and
`find_lines_damage` compares lines with records.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress

import attrs
import msgspec

from .._util.errors import CannotRedoError, OutputError, SinkClosedError
from .._util.exceptions import text_of
from .._util.plain import as_plain
from .._util.shown import Shown
from .._util.text import plural
from ._contract import Outputs
from ._dir import tree_of
from ._members import BEGINNING_BYTES
from ._mounts import HOST_LOCKS
from ._system import APPEND, output_errors, words, write_all
from ._tree import ARCHIVE, AnyPath, Sync, Tree, above, numbered, pieces, write_pieces

LINES_DIGEST_BYTES = 16

_json = msgspec.json.Encoder()


class SinkTooShortError(CannotRedoError):
    """An append file has lost bytes that were confirmed.

    Attributes:
        missing_bytes: The number of missing bytes.
    """

    def __init__(self, path: str, size: int, confirmed: int) -> None:
        self.missing_bytes = confirmed - size
        super().__init__(
            path, f"{self.missing_bytes} of its {confirmed} confirmed bytes are missing"
        )


@attrs.define(eq=False, repr=False)
class AppendFile(Shown):
    """A file that grows at its end, from `AppendFile.open`.

    The order of one turn is `append`, the store's commit, `confirm`.  The next append cuts off
    one that was never confirmed.  One thread at a time.

    While it is open it is locked: the next owner of the run changes nothing in it before
    this process has closed it or has ended.  So an owner that was stopped, and has lost
    its run since, cannot resume and cut off or overwrite what another owner has confirmed.

    Attributes:
        path: Relative to the output folder.
        confirmed: The number of bytes that records confirm.
        cut_bytes: The number of bytes that `begin` cut off.
        beginning: The first confirmed bytes that `begin` found, as many as tell how they are
            compressed.
    """

    path: str
    confirmed: int
    cut_bytes: int
    _tree: Tree
    _fd: int
    _end: int  # of the last append
    beginning: bytes = attrs.field(default=b"", init=False)
    _problem: str = attrs.field(default="it is closed", init=False)

    def _shown(self) -> Iterable[tuple[str, str]]:
        return [("", self.path), ("confirmed", plural(self.confirmed, "byte"))]

    @property
    def has_tail(self) -> bool:
        """Whether bytes were appended behind the confirmed ones."""
        return self._end > self.confirmed

    @classmethod
    def open(cls, outdir: Outputs, path: AnyPath, confirmed: int) -> AppendFile:
        """Open or make a file as `take` does, and `begin` it."""
        self = cls.take(outdir, path, confirmed)
        self.begin()
        return self

    @classmethod
    def take(cls, outdir: Outputs, path: AnyPath, confirmed: int) -> AppendFile:
        """Open or make a file and lock it, without cutting it.

        Durability: the file's name survives a power cut once `begin` has returned.

        Raises:
            SinkTooShortError: confirmed bytes are missing.
            OutputError: it cannot be opened, or another process has it open.
        """
        name = outdir.relative(path)
        flags = APPEND if confirmed else APPEND | os.O_CREAT
        sync = Sync.ALL if confirmed else Sync.MAKE
        tree = tree_of(outdir, path)
        with output_errors(name):
            try:
                with tree.folder(name, sync) as (folder, last):
                    tree.refuse_lost(name)
                    fd = tree.system.open(last, flags, dir_fd=folder)
                    self = cls(name, confirmed, 0, tree, fd, confirmed)
                    self._lock()
            except FileNotFoundError:
                if not confirmed:
                    raise
                raise SinkTooShortError(name, 0, confirmed) from None
        return self

    def begin(self) -> None:
        """Cut off the bytes after the confirmed ones.

        Durability: the file's name and its confirmed length survive a power cut once this
        has returned.

        Raises:
            SinkTooShortError: confirmed bytes are missing.
            OutputError: it is not a regular file, or cannot be cut; it is closed then.
        """
        try:
            with output_errors(self.path), self._tree.folder(self.path, Sync.NONE) as (folder, _):
                self._refuse_other_names()
                self.cut_bytes, self._end = self._cut(), self.confirmed
                if self.cut_bytes:
                    self._tree.sync(self._fd, self.path)
                self._tree.sync(folder, above(self.path))
            self.beginning = self.read_back(0, min(self.confirmed, BEGINNING_BYTES))
        except BaseException:
            self.close()
            raise

    def has_more(self) -> bool:
        """Whether there are bytes after the confirmed ones, also those of another process.

        Raises:
            SinkTooShortError: confirmed bytes are missing.
            OutputError: it is not a regular file, or cannot be examined.
        """
        with output_errors(self.path):
            return self._excess() > 0

    def cut_tail(self) -> None:
        """Cut off an append that was never confirmed.

        Durability: as for `begin`.

        Raises:
            SinkClosedError: an append has failed, so the content of the file is unknown.
            OutputError: as for `begin`.
        """
        self._refuse_closed()
        if self.has_tail:
            self.begin()

    def append(self, chunks: Sequence[bytes]) -> None:
        """Write `chunks` after the confirmed bytes, in place of an unconfirmed append.

        The confirmed length stays as it is until `confirm`.

        Durability: the bytes survive a power cut once this has returned.  One fdatasync is
        enough: it omits times, but not the size (fdatasync(2)), and the name was
        synced when the file was opened.

        Raises:
            SinkClosedError: they could not be written, now or at an earlier call: the
                file accepts no append any more in this session.
            OutputError: another process shortened or removed the file; it is closed, too.
        """
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._refuse_closed()
        try:
            self._cut()
            write_all(self._tree.system, self._fd, self.path, data, self.confirmed)
            self._tree.system.fdatasync(self._fd)
        except OutputError as error:
            self._give_up(error)
            raise
        except BaseException as error:
            self._tree.mark_lost(self.path)  # else a new open would repeat the failed sync
            self._give_up(error)
            if isinstance(error, OSError):
                raise SinkClosedError(self.path, self._problem) from error
            raise
        self._end = self.confirmed + len(data)

    def confirm(self, length: int) -> None:
        """Confirm the first `length` bytes: the records about them are committed.

        Raises:
            ValueError: it is less than the confirmed length, or more than was appended.
            SinkClosedError: as for `append`.
        """
        self._refuse_closed()
        if not self.confirmed <= length <= self._end:
            raise ValueError(
                f"{self.path!r}: between {self.confirmed} and {self._end} bytes can be "
                f"confirmed, not {length}"
            )
        self.confirmed = length

    def read_back(self, offset: int, size: int) -> bytes:
        """Read `size` bytes at `offset`, to compare them with a record's digest.

        Raises:
            OutputError: some are missing, or cannot be read.
        """
        self._refuse_closed()
        chunks: list[bytes] = []
        with output_errors(self.path):
            while size and (chunk := self._tree.system.pread(self._fd, size, offset)):
                chunks.append(chunk)
                offset, size = offset + len(chunk), size - len(chunk)
        if size:
            raise OutputError(
                self.path, f"ends {plural(size, 'byte')} before it should, at byte {offset}"
            )
        return b"".join(chunks)

    def close(self) -> None:
        """Close the file; a second call does nothing.  Unconfirmed bytes stay in it."""
        fd, self._fd = self._fd, -1
        if fd != -1:
            with suppress(OSError):  # some file systems have no locks
                self._tree.system.unlock(fd)
            self._tree.system.close(fd)

    def _lock(self) -> None:
        try:
            self._tree.system.lock(self._fd)
        except BlockingIOError:
            self.close()
            raise OutputError(
                self.path,
                "another process has it open, which may be a stopped one: wait for it to end or "
                "end it",
            ) from None
        except OSError as error:  # some file systems have no locks
            if self._tree.is_shared:
                self._refuse_lock(f"its file system has no locks ({words(error)})")
        except BaseException:
            self.close()
            raise
        if self._tree.is_shared:
            options = HOST_LOCKS & self._tree.system.mount_options(self._fd)
            if options:
                self._refuse_lock(f"locks of its file system stay on this host ({min(options)})")

    def _refuse_lock(self, why: str) -> None:
        self.close()
        raise OutputError(
            self.path,
            f"{why}, and the run may go on on another host: two could cut off each other's lines; "
            "mount it with locks, or write files of their own (write_json, write_bytes)",
        )

    def _refuse_other_names(self) -> None:
        names = self._tree.system.fstat(self._fd).st_nlink
        if names > 1:
            raise OutputError(
                self.path,
                f"has {names} names (hard links), so an append would change the other "
                "files, too: copy it, and put the copy in its place",
            )

    def _cut(self) -> int:
        """Cut off the bytes after the confirmed ones, and return their number."""
        excess = self._excess()
        if excess:
            self._tree.system.truncate(self._fd, self.confirmed)
        return excess

    def _excess(self) -> int:
        """How many bytes there are after the confirmed ones."""
        found = self._tree.system.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            raise OutputError(self.path, "is not a regular file")
        if found.st_nlink == 0:
            raise OutputError(self.path, "was removed while it was open")
        if found.st_size < self.confirmed:
            raise SinkTooShortError(self.path, found.st_size, self.confirmed)
        return found.st_size - self.confirmed

    def _refuse_closed(self) -> None:
        if self._fd == -1:
            raise SinkClosedError(self.path, self._problem)

    def _give_up(self, error: BaseException) -> None:
        why = words(error) if isinstance(error, OSError) else text_of(error)
        self._problem = f"an append failed ({why}), so it is closed until the next session"
        with suppress(OSError):
            self.close()


def encode_lines(records: Iterable[object]) -> bytes:
    """Encode plain values as JSON lines (UTF-8, compact), each ended by a newline.

    Args:
        records: One value per line.

    Raises:
        NotEncodableError: a value is not JSON-like; NaN and infinity are not.
    """
    lines = as_plain(list(records), "records")  # msgspec would write NaN as null
    return _json.encode_lines(lines)


def lines_digest(data: bytes) -> bytes:
    """Return the digest that a record keeps of appended lines (BLAKE2b, RFC 7693)."""
    return hashlib.blake2b(data, digest_size=LINES_DIGEST_BYTES).digest()


def keep_tail(outdir: Outputs, path: AnyPath, offset: int, label: str) -> str | None:
    """Copy an append file from `offset` on into ``.archive/<label>/``.

    Durability: the copy survives a power cut once this has returned.

    Returns:
        The path of the copy, relative to the root; None: there is nothing to copy.

    Raises:
        OutputError: it cannot be read or copied.
    """
    name = outdir.relative(path)
    tree = tree_of(outdir, path)
    goals = numbered(f"{ARCHIVE}/{label}/{name}~{offset}")
    with output_errors(name):
        try:
            with tree.reading(name) as (fd, found):
                if found.st_size <= offset:
                    return None
                goal = next(goal for goal in goals if not tree.mode_of(goal))
                write_pieces(tree, goal, pieces(tree.system, fd, offset=offset))
                return goal
        except FileNotFoundError:
            return None


def find_lines_damage(
    outdir: Outputs, path: AnyPath, offset: int, size: int, digest: bytes | None
) -> str | None:
    """Compare the lines that a batch has appended with the existing file.

    Args:
        outdir: The output folder.
        path: The name of the append file.
        offset: Where the lines begin, in bytes.
        size: The number of bytes that they have.
        digest: Their digest, see `lines_digest`; None: only their presence is checked.

    Returns:
        None if they are good, else a text that says what is wrong with them.

    Raises:
        OutputError: this is unknown, because the file cannot be read.
    """
    name = outdir.relative(path)
    tree = tree_of(outdir, path)
    with output_errors(name):
        try:
            with tree.reading(name) as (fd, found):
                if found.st_size < offset + size:
                    missing = min(size, offset + size - found.st_size)
                    return f"truncated: {missing:,} missing of {plural(size, 'byte')} at {offset}"
                if digest is None:
                    return None
                data = b"".join(pieces(tree.system, fd, offset + size, offset))
        except FileNotFoundError:
            return "missing"
    return None if lines_digest(data) == digest else f"altered: {plural(size, 'byte')} at {offset}"
