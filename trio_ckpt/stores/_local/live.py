"""The live view of a run for other processes: a file of its own, beside the records.

Nothing is fsynced.  A reader sees the old file or the new one whole, because it is renamed into
its place; after power loss it may be gone or empty, and then there is no live view.

A reader leaves a sign: it sets the time of another file beside it, an empty one.  Only the owner
makes that file, when it locks the run: so one who reads before it first asks is noticed, too.  The
file is removed with the live view, and made again when the owner asks.  So a reader makes no files,
and one that may not write to the store reads what there is.  Blocking functions.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from ..._journal.store import WATCHED_FOR_S
from .files import explain, hashed_name, make_member, need_folder, open_file

MAX_LIVE_BYTES = 2**20  # a thousand pending tokens are 100 KiB

_NEW, _SIGN = ".new", ".read"


def begin_live(folder: Path, run_id: str) -> None:
    """Remove the live view of an owner that was killed, and make the sign of the new one.

    Raises:
        StoreError: the old one cannot be removed, or the sign not be made.
    """
    write_live(folder, run_id, b"")
    path = _path(folder, run_id).with_suffix(_SIGN)
    with explain(path, f"making the sign of readers of run {run_id!r}"):
        _make_sign(path)


def write_live(folder: Path, run_id: str, payload: bytes) -> None:
    """Replace the live view of a run; an empty payload removes it.

    Raises:
        StoreError: it cannot be written.
    """
    path = _path(folder, run_id)
    with explain(path, f"publishing the live view of run {run_id!r}"):
        if not payload:
            for name in (path, path.with_suffix(_NEW), path.with_suffix(_SIGN)):
                name.unlink(missing_ok=True)
            return
        make_member(path.parent)
        new = path.with_suffix(_NEW)
        new.unlink(missing_ok=True)  # a killed owner may have left one
        fd = open_file(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with open(fd, "wb") as file:
            file.write(payload)
        os.replace(new, path)


def read_live(folder: Path, run_id: str) -> bytes:
    """Read the live view of a run, and leave the sign if its owner asks for it.

    Raises:
        StoreError: it cannot be read.
    """
    path = _path(folder, run_id)
    need_folder(path.parent)
    with explain(path, f"reading the live view of run {run_id!r}"):
        with suppress(OSError):  # no owner asks, or this process may not write here
            os.utime(path.with_suffix(_SIGN), follow_symlinks=False)
        try:
            fd = open_file(path, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        with open(fd, "rb") as file:
            return file.read(MAX_LIVE_BYTES)


def is_watched(folder: Path, run_id: str) -> bool:
    """Return whether a process has read the live view within the last `WATCHED_FOR_S`.

    Raises:
        StoreError: the sign cannot be read or made.
    """
    path = _path(folder, run_id).with_suffix(_SIGN)
    with explain(path, f"asking who reads the live view of run {run_id!r}"):
        try:
            read_at = os.stat(path, follow_symlinks=False).st_mtime
        except FileNotFoundError:
            _make_sign(path)
            return False
    return abs(time.time() - read_at) <= WATCHED_FOR_S


def _make_sign(path: Path) -> None:
    make_member(path.parent)
    os.close(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    os.utime(path, (0, 0))


def _path(folder: Path, run_id: str) -> Path:
    return folder / "live" / hashed_name(run_id)
