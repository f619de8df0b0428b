"""The socket of a run, through which other processes of its user steer it.

Theory of operation.  Tools that copy the folder of a store may fail at a socket in it.  So the
sockets of all runs of a user lie in one folder among the temporary files, ``trio-ckpt-UID``, and
beside the live view of a run is a file that names that folder: another process may have another
TMPDIR.  The name of a socket follows from the device and the inode of the folder of the live views
and from the run.  So the file in a copy of a store leads nowhere, and never to the original.

Only the owner of a run makes its socket, while it has the lock of the run.  So one of that name
that is there already is what a killed owner has left, and is removed.  A process that connects to
such a socket is refused by the kernel.

Whom it lets in: both folders must belong to this user, and no other user may write to them, which
both sides check on the open folders.  The socket has the mode 0600.  Where the kernel tells who is
at the other end (``SO_PEERCRED`` of unix(7)), both sides look, too.

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
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from ..._util.errors import StoreError
from .files import explain, hashed_name, write_all

BACKLOG = 64
MAX_ADDRESS_BYTES = 107 if sys.platform == "linux" else 103  # of sun_path, without its end
MAX_PATH_BYTES = 4096  # of the folder of the sockets, as of any path on Linux

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_SUFFIX, _NEW = ".ctl", ".new"
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
_NOBODY = (FileNotFoundError, ConnectionRefusedError, BlockingIOError)


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
    live = folder / "live"
    with explain(live, "opening it"), _open_private(live) as live_fd:
        sockets = _sockets_folder()
        with explain(sockets, "making a socket in it"):
            with suppress(FileExistsError):
                sockets.mkdir(mode=0o700)
            with _open_private(sockets) as fd:
                listener = _listen(sockets, fd, _socket_name(live_fd, run_id))
        try:
            _write_folder(sockets, _file_name(run_id), live_fd)
        except BaseException:
            listener.close()
            raise
    return listener


def _listen(sockets: Path, fd: int, name: str) -> socket.socket:
    _remove(name, fd)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(_address(sockets, fd, name))
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
    live = folder / "live"
    with explain(live, "removing the socket of a run"), _open_private(live) as live_fd:
        _remove(_file_name(run_id), live_fd)
        with _open_private(_sockets_folder()) as fd:
            _remove(_socket_name(live_fd, run_id), fd)


def connect_to_run(folder: Path, run_id: str) -> socket.socket | None:
    """Connect to the socket of a run; None: no process listens there, or too many ask it now.

    Args:
        folder: The folder of the store.
        run_id: The run.

    Raises:
        StoreError: this platform has no such sockets, or other users can write to the folder.
    """
    live = folder / "live"
    reaching = explain(live, "reaching the socket of a run")
    with reaching, suppress(*_NOBODY), _open_private(live) as live_fd:
        sockets = _read_folder(_file_name(run_id), live_fd)
        with _open_private(sockets) as fd:
            return _connect(_address(sockets, fd, _socket_name(live_fd, run_id)))
    return None


def _connect(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)  # else it waits while the backlog is full
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


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
def _open_private(folder: Path) -> Generator[int]:
    """Open a folder that no other user may write to.

    Raises:
        StoreError: another user may, or this platform has no sockets to put into it.
        OSError: it cannot be opened.
    """
    if not hasattr(socket, "AF_UNIX") or sys.platform == "win32":
        raise StoreError("this platform has no Unix sockets")
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise StoreError(f"{folder} belongs to another user, uid {status.st_uid}")
        if status.st_mode & _OTHERS_WRITE:
            mode = stat.S_IMODE(status.st_mode)
            raise StoreError(f"{folder} can be written by others (mode {mode:03o}): chmod go-w")
        yield fd
    finally:
        os.close(fd)


def _sockets_folder() -> Path:
    """The folder of the sockets of this user, as the environment of this process says."""
    return Path(tempfile.gettempdir()) / f"trio-ckpt-{os.geteuid()}"


def _file_name(run_id: str) -> str:
    """The name of the file that says where the socket of a run is."""
    return hashed_name(run_id) + _SUFFIX


def _socket_name(live_fd: int, run_id: str) -> str:
    status = os.fstat(live_fd)
    return hashed_name(f"{status.st_dev} {status.st_ino} {run_id}")


def _write_folder(sockets: Path, name: str, live_fd: int) -> None:
    """Write where the sockets are: a reader finds the old file or the new one whole."""
    new = name + _NEW
    _remove(new, live_fd)  # a killed owner may have left one
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o600, dir_fd=live_fd)
    try:
        write_all(fd, os.fsencode(sockets))
    finally:
        os.close(fd)
    os.replace(new, name, src_dir_fd=live_fd, dst_dir_fd=live_fd)


def _read_folder(name: str, live_fd: int) -> Path:
    with open(os.open(name, os.O_RDONLY | _SAFE, dir_fd=live_fd), "rb", buffering=0) as file:
        return Path(os.fsdecode(file.read(MAX_PATH_BYTES) or b""))


def _address(folder: Path, fd: int, name: str) -> str:
    """An address that fits, of a socket in an open folder."""
    short, address = f"/proc/self/fd/{fd}/{name}", str(folder / name)
    if sys.platform == "linux" and os.path.exists(short.rpartition("/")[0]):
        return short
    if len(os.fsencode(address)) > MAX_ADDRESS_BYTES:
        raise StoreError(
            f"{address} is longer than {MAX_ADDRESS_BYTES} bytes, too long for the address of a "
            "socket: set TMPDIR to a folder with a shorter path"
        )
    return address


def _remove(name: str, fd: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=fd)
