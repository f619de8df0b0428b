"""How file systems are mounted, as Linux tells it: whether a lock holds on other hosts, too.

https://docs.kernel.org/filesystems/proc.html, "/proc/<pid>/mountinfo"
"""

from __future__ import annotations

import os

MOUNTS = "/proc/self/mountinfo"

# nfs(5) (flock(2) is local with these), mount.lustre(8), mount.cifs(8)
HOST_LOCKS = frozenset(
    {"nolock", "local_lock=all", "local_lock=flock", "localflock", "noflock", "nobrl"}
)
"""Options of network file systems by which a lock holds on one host only, or not at all."""


def options_of(device: int) -> frozenset[str]:
    """The options of the mounts of a device; empty: the system does not say.

    Args:
        device: The number of the device, `os.stat_result.st_dev`.
    """
    try:
        with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            return find_options(file.read(), os.major(device), os.minor(device))
    except OSError:
        return frozenset()


def find_options(mounts: str, major: int, minor: int) -> frozenset[str]:
    """The options of the mounts of a device in the text of mountinfo."""
    found = set[str]()
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) > 5 and fields[2] == f"{major}:{minor}":
            found.update(fields[5].split(","), after.rpartition(" ")[2].split(","))
    return frozenset(found)
