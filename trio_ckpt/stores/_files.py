"""The folder of a local store: names made durable.  Blocking functions."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from .._errors import StoreDamagedError, StoreError, StoreVersionError

if sys.platform == "darwin":
    import fcntl

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def explain(path: Path, doing: str) -> Generator[None, None, None]:
    """Turn the system's errors into `StoreError`, naming the path and the reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"{path}: {doing} failed: {reason}") from error


def open_file(path: Path, flags: int) -> int:
    """Open a member of the store, private to its user, never through a link."""
    return os.open(path, flags | _NO_FOLLOW, 0o600)


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


def refuse_links(folder: Path, names: tuple[str, ...]) -> None:
    """See that none of the store's own members is a symbolic link.

    Raises:
        StoreError: one is.
    """
    for name in names:
        if (folder / name).is_symlink():
            raise StoreError(f"{folder / name} is a symbolic link: refused")
