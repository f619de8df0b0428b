"""File systems without fsync(2): they cannot make a file or a name durable.

EINVAL and similar numbers do not mean a failed write: the file system, or its part that talks to a
server or to another program (CIFS, vboxsf, some of FUSE), has no fsync for such a file.  It is
usually a folder, and without its fsync the name of a new file may be lost in a power cut, so the
error must not be ignored.
"""

from __future__ import annotations

import errno
import os

NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def refuse_unsynced(error: OSError, path: str | os.PathLike[str]) -> None:
    """Name the file or folder in the error of an fsync that its file system does not have.

    Raises:
        OSError: the file system has no fsync: the error with its number, and with a message that
            names the path.
    """
    if error.errno in NOT_SUPPORTED:
        raise OSError(
            error.errno,
            f"{os.fspath(path)} cannot be synced ({os.strerror(error.errno or 0)}): its file "
            "system does not keep names over a power cut; use a folder on a local disk, which no "
            "network and no virtual machine shares",
        ) from error
