"""The socket of a run, through which other processes of its user steer it: beside its live view.

Theory of operation.  Only the owner of a run makes its socket, while it has the lock of the run.
So one of that name that is there already is what a killed owner has left, and is removed.  A
process that connects to such a socket is refused by the kernel.

Whom it lets in: the folder must belong to this user, and no other user may write to it, which both
sides check on the open folder.  The socket has the mode 0600.  Where the kernel tells who is at the
other end (``SO_PEERCRED`` of unix(7)), both sides look, too.

The address of such a socket has room for some hundred bytes, and a path may be longer.  On Linux
``/proc/self/fd/N/NAME`` is short, and names the folder that was checked.

Blocking functions.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from ..._util.errors import StoreError
from .files import explain, hashed_name

BACKLOG = 64
MAX_ADDRESS_BYTES = 107 if sys.platform == "linux" else 103  # of sun_path, without its end

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_SUFFIX = ".ctl"
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


class _PeerSocket(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def listen_for_acts(folder: Path, run_id: str) -> socket.socket:
    """Make the socket of a run that this process owns.

    Args:
        folder: The folder of the store.
        run_id: The run.

    Raises:
        StoreError: it cannot be made here; the message says why.
    """
    with _open_private(folder) as (parent, fd), explain(parent, "making the socket of a run"):
        name = hashed_name(run_id) + _SUFFIX
        _remove(name, fd)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(_address(parent, fd, name))
            os.chmod(name, 0o600, dir_fd=fd)  # before `listen`: until then every caller is refused
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        return listener


def remove_socket(folder: Path, run_id: str) -> None:
    """Remove the socket of a run that this process owns, if it is there.

    Raises:
        StoreError: it cannot be removed.
    """
    with _open_private(folder) as (parent, fd), explain(parent, "removing the socket of a run"):
        _remove(hashed_name(run_id) + _SUFFIX, fd)


@contextmanager
def socket_address(folder: Path, run_id: str) -> Generator[str]:
    """The address of the socket of a run, while the block runs.

    Raises:
        StoreError: this platform has none, or other users can write to the folder.
    """
    with _open_private(folder) as (parent, fd):
        yield _address(parent, fd, hashed_name(run_id) + _SUFFIX)


def is_of_other_user(connection: _PeerSocket) -> bool:
    """Whether another user is at the other end; False where the kernel does not tell.

    Raises:
        OSError: the connection is gone.
    """
    option: int | None = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return False
    found = connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(found)[1] != os.geteuid())


@contextmanager
def _open_private(folder: Path) -> Generator[tuple[Path, int]]:
    """Open the folder of the sockets, which no other user may write to."""
    parent = folder / "live"
    if not hasattr(socket, "AF_UNIX") or sys.platform == "win32":
        raise StoreError("this platform has no Unix sockets")
    with explain(parent, "opening it"):
        fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise StoreError(f"{parent} belongs to another user, uid {status.st_uid}")
        if status.st_mode & _OTHERS_WRITE:
            mode = stat.S_IMODE(status.st_mode)
            raise StoreError(f"{parent} can be written by others (mode {mode:03o}): chmod go-w")
        yield parent, fd
    finally:
        os.close(fd)


def _address(parent: Path, fd: int, name: str) -> str:
    """An address that fits, of a socket in an open folder."""
    short, address = f"/proc/self/fd/{fd}/{name}", str(parent / name)
    if sys.platform == "linux" and os.path.exists(short.rpartition("/")[0]):
        return short
    if len(os.fsencode(address)) > MAX_ADDRESS_BYTES:
        raise StoreError(
            f"{address} is longer than {MAX_ADDRESS_BYTES} bytes, too long for the address of a "
            "socket: put the store into a folder with a shorter path"
        )
    return address


def _remove(name: str, fd: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=fd)
