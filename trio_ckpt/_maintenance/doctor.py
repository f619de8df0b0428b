"""Measures and checks what a machine and a folder can do; blocking functions.

No check here can prove that a disk keeps what fsync promised: only pulling the plug can.  A check
can show whether the disk answers faster than any disk could.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .._journal.store import Finding, FindingKind, Severity
from .._util.extras import pip_command
from .._util.text import number, plural
from ..stores._local.files import sync_folder
from ..stores._local.locks import HAS_FLOCK

if sys.platform != "win32":
    import resource

FSYNC_TRIES = 32
FSYNC_BYTES = 4_096
TOO_FAST_S = 30e-6  # the fastest drives with a capacitor take 20 to 40 microseconds
SLOW_S = 0.05
LOW_BYTES = 2**30
LOW_FILES = 10_000  # inodes
FEW_DESCRIPTORS = 1_024

NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "afs", "ceph"})
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})
PACKAGES = ("trio-ckpt", "trio", "attrs", "msgspec")
ARRAY_PACKAGES = ("numpy", "xxhash", "blosc2")


def checked(check: str, severity: Severity, text: str, advice: str = "") -> Finding:
    """The result of one check, named by one or two words."""
    return Finding(check, text, advice, severity, kind=FindingKind.CHECK)


def examine(folder: Path) -> list[Finding]:
    """Check the machine, and the place where a store is or is to be.

    Writes a few files into the folder, and removes them.

    Args:
        folder: It need not exist: otherwise its nearest parent is checked.
    """
    place = folder
    while not place.is_dir() and place != place.parent:
        place = place.parent
    found = [_versions(), *_arrays(), _locks(), _descriptors(), _file_system(place)]
    found.append(_space(place))
    if not os.access(place, os.W_OK):
        text = f"{place} cannot be written to by this user"
        return [*found, checked("writing", Severity.BAD, text, "change its owner or mode")]
    return [*found, *_tried(place)]


def _tried(place: Path) -> Iterator[Finding]:
    for name, check in (("fsync", _fsync), ("WAL", _wal)):
        try:
            yield check(place)
        except (OSError, sqlite3.Error) as error:
            yield checked(name, Severity.BAD, f"{place}: {error}", "put the store elsewhere")


def _versions() -> Finding:
    names = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    python = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    return checked(
        "versions", Severity.GOOD, f"{names}; {python}; {platform.system()} {platform.release()}"
    )


def _arrays() -> Iterator[Finding]:
    missing = [name for name in ARRAY_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        text = f"{', '.join(missing)} not installed: a state cannot hold arrays"
        advice = f"if yours does: {pip_command('arrays')}"
        yield checked("arrays", Severity.NOTE, text, advice)
        return
    from ..state._arrays.dirty_pages import (  # it needs NumPy, which is an extra
        Untracked,
        open_tracker,
    )

    tracker = open_tracker()
    if isinstance(tracker, Untracked):
        text = f"{tracker.reason}; changes are found by hashing, which reads all of an array"
        yield checked("kernel tracker", Severity.NOTE, text)
    else:
        tracker.close()
        text = "the kernel tells which pages of an array were written (userfaultfd, PAGEMAP_SCAN)"
        yield checked("kernel tracker", Severity.GOOD, text)


def _locks() -> Finding:
    if HAS_FLOCK:
        text = "a run has one owner at a time, by the kernel's locks"
        return checked("locks", Severity.GOOD, text)
    text = "this platform has no flock(2), so the local stores refuse to work"
    return checked("locks", Severity.BAD, text)


def _descriptors() -> Finding:
    if sys.platform == "win32":
        return checked("open files", Severity.NOTE, "this platform does not say how many it allows")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FEW_DESCRIPTORS:
        advice = "raise it (ulimit -n) before very many append files or connections"
        return checked(
            "open files", Severity.DOUBT, f"{number(soft)} of {number(hard)} are allowed", advice
        )
    shown = "any number" if soft == resource.RLIM_INFINITY else number(soft)
    return checked("open files", Severity.GOOD, f"{shown} are allowed")


def _file_system(place: Path) -> Finding:
    kind = file_system_of(place)
    if kind in MEMORY_FILE_SYSTEMS:
        text = f"{place} is {kind}: it is memory, and gone with power"
        return checked("file system", Severity.BAD, text, "put the store on a disk")
    if kind in NETWORK_FILE_SYSTEMS:
        text = f"{place} is {kind}: a local store's locks and log do not hold over a network"
        return checked("file system", Severity.BAD, text, "put the store on a local disk")
    return checked("file system", Severity.GOOD, f"{place} is {kind or 'of a kind not known'}")


def file_system_of(place: Path) -> str | None:
    """The kind of the file system that a folder is on; None where the system does not say."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    best, kind = -1, None
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        is_above = place == Path(point) or Path(point) in place.parents
        if is_above and len(point) >= best:
            best, kind = len(point), after.split()[0]
    return kind


def _space(place: Path) -> Finding:
    free = shutil.disk_usage(place).free
    text = f"{free / 2**30:,.1f} GiB free"
    if free < LOW_BYTES:
        return checked("space", Severity.DOUBT, text, "make room: a save that finds none fails")
    if sys.platform != "win32":
        status = os.statvfs(place)
        if status.f_files and status.f_favail < LOW_FILES:
            text += f", but only {plural(status.f_favail, 'file')} more"
            return checked("space", Severity.DOUBT, text, "remove small files that are not needed")
    return checked("space", Severity.GOOD, text)


def _fsync(place: Path) -> Finding:
    """Measure how long fsync takes."""
    sync_folder(place)
    with tempfile.TemporaryFile(dir=place) as file:
        times: list[float] = []
        for _ in range(FSYNC_TRIES):
            file.seek(0)
            file.write(os.urandom(FSYNC_BYTES))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return judge_fsync(statistics.median(times), max(times))


def judge_fsync(median_s: float, longest_s: float) -> Finding:
    """Judge a disk by the time that fsync takes; it proves nothing."""
    text = f"{median_s * 1e3:.3g} ms (median of {FSYNC_TRIES}, {longest_s * 1e3:.3g} ms at most)"
    if median_s < TOO_FAST_S:
        text += ": faster than any disk that writes; something answers before it is durable"
        advice = (
            "a drive with a capacitor may do so and keep its word; a virtual machine's cache, or a "
            "file system mounted without barriers, does not: only pulling the plug tells"
        )
        return checked("fsync", Severity.DOUBT, text, advice)
    if median_s > SLOW_S:
        advice = "several streams at once share one fsync; durability='process' needs none"
        return checked("fsync", Severity.NOTE, f"{text}: each group of saves waits for it", advice)
    return checked("fsync", Severity.GOOD, f"{text}: as a disk that writes would take")


def _wal(place: Path) -> Finding:
    with tempfile.TemporaryDirectory(dir=place) as folder:
        connection = sqlite3.connect(Path(folder) / "test.db")
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        finally:
            connection.close()
    if mode == "wal":
        return checked("WAL", Severity.GOOD, "SQLite keeps its write-ahead log here")
    text = f"SQLite falls back to {mode!r}: there is no shared memory here"
    return checked("WAL", Severity.BAD, text, "use a json: store here, or put it on a local disk")
