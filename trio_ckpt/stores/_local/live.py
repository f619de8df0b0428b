"""The live view of a run for other processes: a file of its own, beside the records.

Nothing is fsynced.  A reader sees the old file or the new one whole, because it is renamed into
its place; after power loss it may be gone or empty, and then there is no live view.
Blocking functions.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from .files import explain, make_member, need_folder, open_file

MAX_LIVE_BYTES = 2**20  # a thousand pending tokens are 100 KiB

_NEW = ".new"


def write_live(folder: Path, run_id: str, payload: bytes) -> None:
    """Replace the live view of a run; an empty payload removes it.

    Raises:
        StoreError: it cannot be written.
    """
    path = _path(folder, run_id)
    with explain(path, f"publishing the live view of run {run_id!r}"):
        if not payload:
            for name in (path, path.with_suffix(_NEW)):  # a kill may have left the second
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
    """Read the live view of a run.

    Raises:
        StoreError: it cannot be read.
    """
    path = _path(folder, run_id)
    need_folder(path.parent)
    with explain(path, f"reading the live view of run {run_id!r}"):
        try:
            fd = open_file(path, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        with open(fd, "rb") as file:
            return file.read(MAX_LIVE_BYTES)


def _path(folder: Path, run_id: str) -> Path:
    return folder / "live" / hashlib.sha256(run_id.encode()).hexdigest()[:32]
