"""What it means that a file system refuses fsync(2): it cannot keep what it is given.

EINVAL and its like are no failed write: the file system, or the part of it that talks to a server
or to another program (CIFS, vboxsf, some of FUSE), has no fsync for such a file.  A folder is the
usual case, and without it the name of a new file may be lost with the power, which nothing here
may promise away.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager

NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


@contextmanager
def naming_unsynced(path: str | os.PathLike[str]) -> Generator[None]:
    """Name the file or folder in the error of an fsync that its file system does not have.

    Raises:
        OSError: whatever fsync(2) raises, with its number; such a one in words.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        raise OSError(
            error.errno,
            f"{os.fspath(path)} cannot be synced ({os.strerror(error.errno)}): its file system "
            "does not keep names over a power cut; use a folder on a local disk, which no network "
            "and no virtual machine shares",
        ) from error
