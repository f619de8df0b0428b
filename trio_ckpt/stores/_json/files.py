"""The folder of the JSON store: its names, and how its files are read and replaced.

Theory of operation.  A reader takes no lock.  It reads ``checkpoint.json`` and then the journal
that this file names.  If that journal is gone, the run was rewritten in between, and the reader
starts again; if it is gone and ``checkpoint.json`` names it again, it is lost: that is damage.

A rewrite of a run leaves files that say the same at every instruction: first an empty journal
with the next number, durable with its name; then the new ``checkpoint.json`` under another name,
fsynced, read back and parsed, renamed, and its name made durable; the old journal is
removed last.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import attrs
import msgspec

from ..._util.errors import StoreDamagedError, StoreError
from .._local.files import (
    check_version,
    explain,
    make_member,
    make_store_folder,
    need_folder,
    open_file,
    refuse_strangers,
    sync_folder,
    warn_of_others,
    write_durably,
)
from .format import (
    JournalEnd,
    RunState,
    journal_head,
    parse_checkpoint,
    render_checkpoint,
    replay,
)

FORMAT_VERSION = 3  # format 1 was used during development, and never released
FORMAT_BEFORE = 2  # its files are valid files of format 3, which has more fields
FILES = ("store.json", "store.json.tmp")
FOLDERS = ("runs", "blobs", "lock", "live")
MAX_RUN_BYTES = 64 * 2**20  # for a run's two files together: people open them, readers load them
MAX_FILE_BYTES = 2 * MAX_RUN_BYTES  # read into memory: the store never writes a larger file
MAX_MARKER_BYTES = 1_000
READ_TRIES = 10  # each fails only if the run was rewritten, for which it must grow by half

_CHECKPOINT, _TEMPORARY = "checkpoint.json", "checkpoint.json.tmp"
_JOURNAL = re.compile(r"journal\.[1-9][0-9]{0,17}\.jsonl", re.ASCII)
_SAFE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}[a-z0-9]|[a-z0-9]", re.ASCII)
_HASHED_NAME = re.compile(r"[a-z0-9._-]{0,40}~[0-9a-f]{32}", re.ASCII)
_UNSAFE = re.compile(r"[^a-z0-9._-]+", re.ASCII)


class _Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    version: int


_FORMAT = "trio_ckpt json store"


# ---------------------------------------------------------------------------------------
# The store's folder
# ---------------------------------------------------------------------------------------


def make_folders(folder: Path, *, create: bool) -> None:
    """Make the store's folder and those in it; leaves a foreign folder unchanged.

    Raises:
        StoreError: it is not a folder, holds foreign files, or cannot be written.
    """
    with explain(folder, "opening the store"):
        has_marker = (folder / "store.json").exists()
        make_store_folder(folder, "store.json", files=FILES, folders=FOLDERS, create=create)
        if not has_marker:
            refuse_strangers(folder, "json store", (*FILES, *FOLDERS))
        for name in ("lock", "blobs", "runs"):
            make_member(folder / name)
        warn_of_others(folder)


def make_marker(folder: Path) -> None:
    """Check that the folder is a readable store, or make it one.

    The caller holds the lock of opening.  A store of `FORMAT_BEFORE` gets the present marker, so
    that an older version, which does not know the newer fields, refuses it.

    Raises:
        StoreError: it is something else.
        StoreVersionError: another version wrote it.
        StoreDamagedError: its marker cannot be read.
    """
    with explain(folder, "opening the store"):
        if not (folder / "store.json").exists() or _is_before(folder):
            _write_marker(folder)
    check_marker(folder)


def check_marker(folder: Path) -> None:
    """Check that the folder is a readable store.

    Raises:
        StoreError: it is something else.
        StoreVersionError: another version wrote it.
        StoreDamagedError: its marker cannot be read.
    """
    if not _is_before(folder):
        check_version(folder / "store.json", _read_marker(folder).version, FORMAT_VERSION)


def _is_before(folder: Path) -> bool:
    return _read_marker(folder).version == FORMAT_BEFORE


def _read_marker(folder: Path) -> _Marker:
    path = folder / "store.json"
    with explain(folder, "opening the store"):
        try:
            marker = msgspec.json.decode(read_whole(path, MAX_MARKER_BYTES), type=_Marker)
        except (msgspec.MsgspecError, ValueError) as error:
            raise StoreDamagedError(f"{path} cannot be read: {error}") from error
    if marker.format != _FORMAT:
        raise StoreError(f"{folder} is not a trio_ckpt json store; choose another folder")
    return marker


def _write_marker(folder: Path) -> None:
    content = msgspec.json.encode(_Marker(_FORMAT, FORMAT_VERSION)) + b"\n"
    write_durably(folder / "store.json.tmp", content)
    os.replace(folder / "store.json.tmp", folder / "store.json")
    sync_folder(folder)
    sync_folder(folder.parent)  # a crash may have come between the folder's making and this


def folder_name(run_id: str) -> str:
    """Return the name of a run's folder: the id itself if it is safe on every file system.

    Otherwise its readable part and a hash; a safe name has no ``~``, so no two names are equal,
    even if the file system ignores case.
    """
    if _SAFE_NAME.fullmatch(run_id):
        return run_id
    readable = _UNSAFE.sub("_", run_id.lower())[:40].strip("._-")
    return f"{readable}~{hashlib.sha256(run_id.encode()).hexdigest()[:32]}"


def is_folder_name(run_id: str) -> bool:
    """Return whether a text looks like a folder's name that differs from its run's id."""
    return _HASHED_NAME.fullmatch(run_id) is not None


def run_folder(folder: Path, run_id: str) -> Path:
    """Return the folder of a run."""
    return folder / "runs" / folder_name(run_id)


def run_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders of all runs, without foreign files."""
    with explain(folder, "listing the runs"):
        with os.scandir(folder / "runs") as entries:
            names = [entry.name for entry in entries if not entry.is_file(follow_symlinks=False)]
        for name in sorted(names):
            yield folder / "runs" / name


# ---------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------


@attrs.frozen
class Loaded:
    """The contents of a run's files, at one moment."""

    state: RunState
    checkpoint_bytes: int
    end: JournalEnd


def load(folder: Path, run_id: str | None = None) -> Loaded | None:
    """Read a run; None: it does not exist.

    Args:
        folder: The folder of the run.
        run_id: The run that the files must be of; None: any run.

    Raises:
        StoreDamagedError: the files are not what was written.
        StoreError: the files cannot be read.
    """
    need_folder(folder)
    path, missing = folder / _CHECKPOINT, 0
    for _ in range(READ_TRIES):
        try:
            content = read_whole(path, MAX_FILE_BYTES)
        except FileNotFoundError as error:
            if not _has_saved(folder):
                return None
            if path.exists():
                continue  # the file was made since it was opened
            raise StoreDamagedError(f"{path} is missing: restore it from a copy") from error
        except OSError as error:
            raise StoreError(f"{path}: reading failed: {error.strerror}") from error
        state = parse_checkpoint(path, content, run_id)
        journal = journal_path(folder, state.journal)
        try:
            lines = read_whole(journal, MAX_FILE_BYTES)
        except FileNotFoundError as error:
            if state.journal == missing:
                raise StoreDamagedError(f"{journal} is missing: restore it from a copy") from error
            missing = state.journal
            continue
        except OSError as error:
            raise StoreError(f"{journal}: reading failed: {error.strerror}") from error
        return Loaded(state, len(content), replay(journal, lines, state))
    raise StoreError(f"{folder} is being rewritten all the time; try again")


def _has_saved(folder: Path) -> bool:
    """Return whether there is or was a checkpoint.json.

    A journal with more than its first line comes after one, and so does every journal but
    the first, which is made before the first checkpoint.json.
    """
    for journal in folder.glob("journal.*.jsonl"):
        if _JOURNAL.fullmatch(journal.name) and journal.name != journal_path(folder, 1).name:
            return True
        with suppress(FileNotFoundError):
            if read_whole(journal, MAX_FILE_BYTES).count(b"\n") > 1:
                return True
    return False


def read_whole(path: Path, limit_bytes: int) -> bytes:
    """Read the content of a file of the store.

    Raises:
        StoreError: it is not a file, or is over the limit.
    """
    fd = open_file(path, os.O_RDONLY)
    with open(fd, "rb", buffering=0) as file:
        size = os.fstat(fd).st_size
        if size > limit_bytes:
            raise StoreError(f"{path} has {size:,} bytes, over {limit_bytes:,}: refused")
        return file.read(size)  # a file that grows during the read is read at its old size


def journal_path(folder: Path, number: int) -> Path:
    """Return the path of a journal."""
    return folder / f"journal.{number}.jsonl"


# ---------------------------------------------------------------------------------------
# Rewriting
# ---------------------------------------------------------------------------------------


@attrs.frozen
class PreparedFile:
    """The files that `prepare` made.

    Attributes:
        journal: The number of the new journal, which has only its first line.
        journal_bytes: The size of the new journal.
        check: The check of that first line.
        checkpoint_bytes: The size of ``checkpoint.json``.
    """

    journal: int
    journal_bytes: int
    check: bytes
    checkpoint_bytes: int


def prepare(folder: Path, state: RunState) -> PreparedFile:
    """Make the next journal, and ``checkpoint.json`` under another name; both are durable.

    Readers ignore the files that a failure leaves.

    Raises:
        OSError: a file cannot be written.
        StoreError: a file was not read back as written, or is over `MAX_RUN_BYTES`.
    """
    state.journal += 1
    head, check = journal_head(state)
    content = render_checkpoint(state)
    if len(content) > MAX_RUN_BYTES:
        raise StoreError(f"{folder} would be over {MAX_RUN_BYTES:,} bytes")
    write_durably(journal_path(folder, state.journal), head)
    write_durably(folder / _TEMPORARY, content)
    sync_folder(folder)
    temporary = folder / _TEMPORARY
    if read_whole(temporary, MAX_FILE_BYTES) != content:
        raise StoreDamagedError(f"{temporary} was not read back as written: check the disk")
    parse_checkpoint(temporary, content, state.run_id)
    return PreparedFile(state.journal, len(head), check, len(content))


def publish(folder: Path) -> None:
    """Rename the files that `prepare` made to their final names.

    Raises:
        OSError: either file may be there after power loss.
    """
    os.replace(folder / _TEMPORARY, folder / _CHECKPOINT)
    sync_folder(folder)


def remove_leftovers(folder: Path, journal: int) -> None:
    """Remove the store's own files except ``checkpoint.json`` and its journal."""
    kept = journal_path(folder, journal).name
    for name in os.listdir(folder):
        if name == _TEMPORARY or (_JOURNAL.fullmatch(name) and name != kept):
            (folder / name).unlink(missing_ok=True)
