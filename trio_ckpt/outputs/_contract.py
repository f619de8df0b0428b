"""What a place for outputs does, whether it is a folder or a bucket."""

from __future__ import annotations

import abc
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from typing import ClassVar, Literal, Protocol

import msgspec

from .._journal.record import Output
from .._util.shown import Shown
from .._util.text import plural, redacted_url
from ._tree import AnyPath, OutputPathError, relative_path

Verify = Literal["size", "sha256"]


class Archived(msgspec.Struct, frozen=True):
    """The result of `Outputs.archive`.

    Attributes:
        moved: The new place of each output, relative to the root.
        missing: The outputs that did not exist, or were not files.
    """

    moved: dict[str, str]
    missing: tuple[str, ...]


class FileStatus(msgspec.Struct, frozen=True):
    """What `Outputs.status` finds.

    Attributes:
        size: The size of the file in bytes.
        written_at: When it was written, by the clock of `Outputs.now`; Unix time, s.
        tags: What its place calls this content of it, see `Outputs.write`; empty: nothing.
    """

    size: int
    written_at: float
    tags: tuple[str | None, ...] = ()


class Writing(Protocol):
    """An output that is written piece by piece, from `Outputs.create`; `close` comes last."""

    def write(self, data: bytes) -> None:
        """Write `data` at the end.

        Durability: none yet; `commit` makes all of it durable.
        """
        ...

    def commit(self) -> Output:
        """Give it its name, in place of the one that has it.

        Durability: it survives a power cut once this has returned.
        """
        ...

    def close(self) -> None:
        """Give it up unless it is committed."""
        ...


class Outputs(Shown, abc.ABC):
    """A place for outputs, from `open_outputs`.  Every method blocks.

    Threads may use it at the same time, for different paths; `close` comes last.  Every method
    with a path raises `OutputPathError` where it is not valid, and `OutputError` where the place
    does not answer as it should.
    """

    __slots__ = ()

    at_once: ClassVar[int] = 4
    """How many threads check large files: hashing and disk reads release the GIL."""

    compared: ClassVar[str] = "size and time, hash where the time differs"
    """What `check` compares by default, in words."""

    large_bytes: ClassVar[int] = 64 * 1024
    """Of smaller files it is the calls that cost, so one thread checks them: more would contend."""

    def _shown(self) -> Iterable[tuple[str, str]]:
        return [("", redacted_url(self.root))]

    @property
    @abc.abstractmethod
    def root(self) -> str:
        """Where it is: the absolute path of a folder, or the URL of a bucket."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close it; a second call does nothing."""

    @abc.abstractmethod
    def now(self) -> float:
        """The time, by the clock that times of files come from, not ahead of it; Unix time, s."""

    @abc.abstractmethod
    def keep_out(self, store: str) -> None:
        """Refuse writes into a store, from its address or URL.

        Raises:
            OutputError: it is the same place.
        """

    @abc.abstractmethod
    def belong_to(self, run_id: str, owner: int, *, is_shared: bool) -> None:
        """Say which owner of which run writes from now on; other runs leave its files alone.

        Args:
            run_id: The run.
            owner: The owner number.
            is_shared: Whether a process on another host may own the run next.
        """

    @abc.abstractmethod
    def need_append(self, path: AnyPath) -> None:
        """Raise `OutputError` where files cannot grow."""

    @abc.abstractmethod
    def relative(self, path: AnyPath) -> str:
        """Return the name of an output, see `relative_path`."""

    @abc.abstractmethod
    def names(self) -> list[str]:
        """Return sorted names in the root itself; of a bucket maybe not all."""

    @abc.abstractmethod
    def count(self, limit: int) -> int:
        """Count the files in and below the root, without the archive; at most `limit`."""

    @abc.abstractmethod
    def status(self, path: AnyPath) -> FileStatus | None:
        """Look at a file; None: there is no such file."""

    def length(self, path: AnyPath) -> int | None:
        """Return the size of a file in bytes; None: there is no such file.

        Raises:
            OutputError: it cannot be examined.
        """
        found = self.status(path)
        return None if found is None else found.size

    @abc.abstractmethod
    def write(
        self,
        path: AnyPath,
        data: bytes,
        *,
        is_new: bool = False,
        over: FileStatus | None = None,
    ) -> Output:
        """Write a file whole, in place of the one that has its name, or of none if `is_new`.

        Args:
            path: Its path, relative to the root.
            data: Its content.
            is_new: Replace no file.
            over: The file as `status` has found it: one that was written since is not replaced, if
                the place can tell them apart; a folder cannot.

        Durability: file and name survive a power cut once this has returned.

        Raises:
            OutputExistsError: `is_new`, and a file has its name.
        """

    @abc.abstractmethod
    def create(self, path: AnyPath) -> Writing:
        """Begin a file that is too large for memory: written piece by piece, then committed.

        Durability: none yet; the file is durable when `Writing.commit` has returned.
        """

    @abc.abstractmethod
    def read(self, path: AnyPath, limit_bytes: int) -> bytes:
        """Read a file of at most `limit_bytes`."""

    @abc.abstractmethod
    def read_pieces(self, path: AnyPath, limit_bytes: int) -> Generator[bytes]:
        """Read a file piece by piece, `limit_bytes` in all; close it at the end."""

    @abc.abstractmethod
    def adopt(self, path: AnyPath) -> Output:
        """Adopt a file that the user wrote as an output.

        Durability: file and name survive a power cut once this has returned.
        """

    @abc.abstractmethod
    def check(self, output: Output, verify: Verify = "size") -> str | None:
        """Compare a confirmed output with the existing file.

        Returns:
            None if it is good, else a text that says what is wrong with it.
        """

    @abc.abstractmethod
    def unchanged(self) -> AbstractContextManager[Callable[[Output], bool]]:
        """Open a block with a check that costs little: whether a file is surely as it was.

        False means that `check` has to find out what is wrong, if anything is.
        """

    @abc.abstractmethod
    def remove_orphans(self, folders: Iterable[str] | None = None) -> list[str]:
        """Remove temporary files that writers left behind when they were killed."""

    @abc.abstractmethod
    def set_aside(self, path: AnyPath, label: str) -> str | None:
        """Keep a file in ``.archive/<label>/`` that is about to be replaced.

        Durability: it survives a power cut there once this has returned.

        Returns:
            Its place there, relative to the root; None: there is no such file.
        """

    @abc.abstractmethod
    def archive(self, paths: Iterable[str], label: str) -> Archived:
        """Move outputs into ``.archive/<label>/``, each keeping its path.

        Durability: all moves survive a power cut once this has returned; an interrupted call can
        be repeated.
        """

    @abc.abstractmethod
    def archived_head(self, path: AnyPath, label: str, limit_bytes: int) -> bytes | None:
        """Read the head of the copy of a path that was archived last; None: there is none."""


def length_problem(found: int, output: Output) -> str | None:
    """Say what is wrong with a file of a size; None: it has the size of the output."""
    if found < output.size:
        return f"truncated: {found:,} of {plural(output.size, 'byte')}"
    if found > output.size:
        return f"altered: {plural(found, 'byte')} instead of {output.size:,}"
    return None


def digest_problem(sha256: str, output: Output) -> str | None:
    """Say what is wrong with a file of a digest; None: it has the content of the output."""
    if sha256 == output.sha256:
        return None
    return f"altered: sha256 {sha256} instead of {output.sha256}"


def label_of(root: str, label: str) -> str:
    """Check the label of an archive.

    Raises:
        OutputPathError: it is not one part of a path.
    """
    if relative_path(root, label) != label or "/" in label:
        raise OutputPathError(label, "is not a label: it must be one part of a path")
    return label
