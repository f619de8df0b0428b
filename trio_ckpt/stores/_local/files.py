"""The folder of a local store: names made durable, and the kinds of file allowed in it.

The folder itself may be reached through a link: the user chooses it.  What is in it belongs to the
store, and is opened as what the store created: a regular file or a folder.  A link is refused, and
so is a file that would be written in place and has a second name (a hard link, as ``cp -al``
makes): a write would change the other file, too.  Opening never waits for a FIFO.

A user who can write to the folder can replace a file between check and open; so the folder is made
private to its user, and a warning is logged if others can write to it.

Blocking functions.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from ..._util.errors import StoreDamagedError, StoreError, StoreVersionError
from ..._util.fsync import refuse_unsynced
from ..._util.log import get_logger

if sys.platform == "darwin":
    import fcntl

logger = get_logger(__name__)

_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_WRITES = os.O_WRONLY | os.O_RDWR
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def explain(path: Path, doing: str) -> Generator[None, None, None]:
    """Turn the system's errors into `StoreError`, with the path and the reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"{path}: {doing} failed: {reason}") from error


def open_file(path: Path, flags: int) -> int:
    """Open a member of the store, private to its user.

    Raises:
        StoreError: it is a link or not a regular file; or it is to be written, and has other names.
        OSError: it cannot be opened.
    """
    try:
        fd = os.open(path, flags | _SAFE, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreError(f"{path} is a symbolic link: refused") from error
        raise
    try:
        _check_file(path, os.fstat(fd), is_written=bool(flags & _WRITES))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_file(path: Path, status: os.stat_result, *, is_written: bool) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise StoreError(f"{path} is a symbolic link: refused")
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path} is not a file: refused")
    if is_written and status.st_nlink > 1:
        raise StoreError(
            f"{path} has {status.st_nlink} names (hard links), so a write would change the other "
            "files, too: refused; copy the store, and use the copy"
        )


def hashed_name(run_id: str) -> str:
    """Return the name of a run's files: of its lock, for example, or of the folder of its blobs."""
    return hashlib.sha256(run_id.encode()).hexdigest()[:32]


def blob_path(run_id: str, digest: str) -> str:
    """Return the path of a blob, relative to the folder of the store."""
    return f"blobs/{hashed_name(run_id)}/{digest}"


def write_durably(path: Path, content: bytes) -> None:
    """Write a new file with a durable content; its name is not durable yet."""
    path.unlink(missing_ok=True)  # a crash may have left one
    with open(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb", buffering=0) as file:
        write_all(file.fileno(), content)
        sync_file(file.fileno())


def write_all(fd: int, content: bytes) -> None:
    """Write all bytes; a full disk takes a part and refuses the rest."""
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def sync_file(fd: int) -> None:
    """Make a file's content durable."""
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync(2) there stops at the drive's cache
    else:
        os.fsync(fd)


def sync_data(fd: int) -> None:
    """Make a file's content and length durable, but not its times: less work per append."""
    if sys.platform == "linux":
        os.fdatasync(fd)
    else:
        sync_file(fd)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        refuse_unsynced(error, folder)
        raise
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, each name durable."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    except FileNotFoundError:
        if folder.parent.is_dir():
            raise  # /proc does this
        make_folder(folder.parent)
        make_folder(folder)
        return
    sync_folder(folder.parent)


def make_store_folder(
    folder: Path, marker: str, *, files: tuple[str, ...], folders: tuple[str, ...], create: bool
) -> None:
    """Make the folder of a store, or check that it can be one.

    Args:
        folder: The folder; its missing parents are made, too.
        marker: The file that a store of this kind has.
        files: The names of its files.
        folders: The names of its folders.
        create: Whether to make a folder that is not a store yet.

    Raises:
        StoreError: it is not a folder, or no store.
    """
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file, not the folder of a store")
    if not create and not (folder / marker).exists():
        raise StoreError(f"there is no store at {folder}")
    make_folder(folder)
    check_members(folder, files=files, folders=folders)


def refuse_strangers(folder: Path, kind: str, members: Iterable[str]) -> None:
    """Check that a folder that becomes a store holds nothing else.

    Raises:
        StoreError: it does.
    """
    strangers = sorted(set(os.listdir(folder)).difference(members))
    if strangers:
        raise StoreError(
            f"{folder} is not a trio_ckpt {kind}: it holds {strangers[0]!r}; choose an empty or "
            "a new folder"
        )


def check_version(path: Path, version: int, readable: int) -> None:
    """Check that the format of a store is the readable one.

    Raises:
        StoreVersionError: it is another format; no older format is converted yet.
        StoreDamagedError: no such format ever existed.
    """
    if version == readable:
        return
    if version < 1:
        raise StoreDamagedError(f"{path} has format {version}, which never existed")
    advice = "update trio_ckpt"
    if version < readable:
        advice = "no release wrote it; use the version that did, or another folder"
    raise StoreVersionError(
        f"{path} has format {version}, this version of trio_ckpt reads format {readable}: {advice}"
    )


def make_member(folder: Path) -> None:
    """Make a folder in the store's own, its name durable; an existing one must not be a link.

    Raises:
        StoreError: something else has its name.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        need_folder(folder)
    else:
        sync_folder(folder.parent)


def need_folder(folder: Path) -> None:
    """Check that a folder of the store, if it exists, is a folder.

    Raises:
        StoreError: it is a link, or something else.
    """
    try:
        mode = folder.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise StoreError(f"{folder} is a symbolic link: refused")
    if not stat.S_ISDIR(mode):
        raise StoreError(f"{folder} is not a folder: refused")


def check_members(folder: Path, *, files: tuple[str, ...], folders: tuple[str, ...]) -> None:
    """Check that the store's own names, if they exist, denote files and folders as it makes them.

    Raises:
        StoreError: one of them does not.
    """
    for name in folders:
        need_folder(folder / name)
    for name in files:
        try:
            status = (folder / name).lstat()
        except FileNotFoundError:
            continue
        _check_file(folder / name, status, is_written=True)


def warn_of_others(folder: Path) -> None:
    """Warn if others can write to the store: then only a MAC key reveals an alteration."""
    status = folder.stat()
    if status.st_mode & _OTHERS_WRITE:
        logger.warning(
            "%r can be written by others (mode %03o): chmod go-w, or seal it with a mac_key",
            str(folder),
            stat.S_IMODE(status.st_mode),
        )
    elif sys.platform != "win32" and status.st_uid not in (os.geteuid(), 0):
        logger.warning("%r belongs to another user, uid %d", str(folder), status.st_uid)
