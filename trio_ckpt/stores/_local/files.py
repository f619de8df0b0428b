"""The folder of a local store: names made durable, and what may stand under them.

The folder itself may be reached through a link: which it is, its user says.  What is in it is
ours, and is opened as what we made: a regular file or a folder.  A link is refused, and so is a
file that would be written in its place and has a second name (a hard link, as ``cp -al`` makes
them): a change would be one of the other file, too.  Nothing waits for a FIFO.

Whoever can write to the folder can put something in between looking and opening; so it is made
for its user alone, and others who can write to it are warned of.

Blocking functions.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ..._util.errors import StoreDamagedError, StoreError, StoreVersionError
from ..._util.fsync import naming_unsynced

if sys.platform == "darwin":
    import fcntl

logger = logging.getLogger("trio_ckpt.stores")

_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_WRITES = os.O_WRONLY | os.O_RDWR
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def explain(path: Path, doing: str) -> Generator[None, None, None]:
    """Turn the system's errors into `StoreError`, naming the path and the reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"{path}: {doing} failed: {reason}") from error


def open_file(path: Path, flags: int) -> int:
    """Open a member of the store, private to its user.

    Raises:
        StoreError: it is a link or no regular file; or it is to be written, and has other names.
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
            f"{path} has {status.st_nlink} names (hard links), and a change would be one of the "
            "other files, too: refused; copy the store, and use the copy"
        )


def sync_file(fd: int) -> None:
    """Make a file's content durable."""
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync(2) there stops at the drive's cache
    else:
        os.fsync(fd)


def sync_data(fd: int) -> None:
    """Make a file's content and length durable, its times not: less work for each append."""
    if sys.platform == "linux":
        os.fdatasync(fd)
    else:
        sync_file(fd)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with naming_unsynced(folder):
            os.fsync(fd)
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
            raise  # /proc is such a place
        make_folder(folder.parent)
        make_folder(folder)
        return
    sync_folder(folder.parent)


def check_version(path: Path, version: int, readable: int) -> None:
    """See that the format of a store is the one that is read here.

    Raises:
        StoreVersionError: it is another; there is none yet that is brought up to date.
        StoreDamagedError: there never was such a format.
    """
    if version == readable:
        return
    if version < 1:
        raise StoreDamagedError(f"{path} has format {version}, which there never was")
    advice = "update trio_ckpt"
    if version < readable:
        advice = "nothing was released that wrote it; use the version that did, or another folder"
    raise StoreVersionError(
        f"{path} has format {version}, this version of trio_ckpt reads format {readable}: {advice}"
    )


def make_member(folder: Path) -> None:
    """Make a folder in the store's own, its name durable; one that is there is no link.

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
    """See that a folder of the store, if it is there, is one.

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
    """See that what has the names of the store's own members is what we would make.

    Raises:
        StoreError: it is not.
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
    """Say that others can write to the store: then only a MAC key tells what was altered."""
    status = folder.stat()
    if status.st_mode & _OTHERS_WRITE:
        logger.warning(
            "%r can be written by others (mode %03o): chmod go-w, or seal it with a mac_key",
            str(folder),
            stat.S_IMODE(status.st_mode),
        )
    elif sys.platform != "win32" and status.st_uid not in (os.geteuid(), 0):
        logger.warning("%r belongs to another user, uid %d", str(folder), status.st_uid)
