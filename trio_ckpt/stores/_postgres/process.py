"""Where the process of an owner runs, so that another one can see that it is gone.

Theory of operation.  The number of a process means something in its pid namespace alone, and each
container has one, maybe under the name of the machine.  So the name proves nothing: beside it is a
*process space*, which stands for the boot of the kernel and the number of the namespace.  Where
both are one's own, and no process has the number, that process is gone and does not come back:
this ensures that an owner that lives is not taken for one.  A number that has gone to another
process shows nothing, and so does a system that says neither.  Virtual machines that were restored
from one snapshot of a running one have the same boot: there the fence alone decides.

https://man7.org/linux/man-pages/man7/pid_namespaces.7.html
"""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")


def this_host() -> str:
    """Return the name of this machine, and after a blank the process space if it is known."""
    return f"{socket.gethostname()} {_process_space()}".rstrip()


def is_gone(host: str, pid: int) -> bool:
    """Return whether a process is known not to exist any more.

    Args:
        host: What `this_host` returned in that process.
        pid: Its number.
    """
    space = host.partition(" ")[2]
    if not space or space != _process_space():
        return False
    try:
        os.kill(pid, 0)  # no signal: only whether there is such a process
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        return False
    return False


def _process_space() -> str:
    """Return what only processes that see each other's numbers have; empty: it is not known.

    A child of this process may be in another namespace, so it is read each time.
    """
    try:
        text = f"{_BOOT.read_text().strip()} {_NAMESPACE.readlink()}"
    except OSError:
        return ""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
