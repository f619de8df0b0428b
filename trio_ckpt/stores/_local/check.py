"""Checks of every local store: its blobs, its watermarks, and files that are not its own.

Blocking functions, each of some seconds at most: a check is a sequence of many of them.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

from ..._journal.store import Finding, FindingKind, Severity
from ..._util.errors import StoreError
from ..._util.text import plural
from .blobs import Blobs, is_digest
from .files import hashed_name, open_file
from .watermark import all_watermarks

Step = Callable[[], list[Finding]]
# The given digests that a record of a run names; without a run, that a record of any names.
Named = Callable[[str | None, Iterable[str]], set[str]]

MAX_FINDINGS = 1_000  # per step: more findings of one kind add no information
READ_BYTES = 2**20
DAMAGED = "damaged"  # the folder where a repair keeps what it replaced
KNOWN = (DAMAGED,)

RESTORE = "restore the store from a copy"
GONE = "restore the store from a copy, or go on with what is there: --repair --accept-loss"
REMOVED = "the next start removes it"
MOVED = "--repair moves what no record names out of the store"

_SHARED = re.compile(r"[0-9a-f]{2}", re.ASCII)  # of a store of format 2: for all its runs
_BLOBS = re.compile(rf"[0-9a-f]{{32}}|{_SHARED.pattern}", re.ASCII)
_LOCK = re.compile(r"[0-9a-f]{32}(\.seen)?|store|open|blobs", re.ASCII)  # blobs: of format 2


def capped(findings: Iterable[Finding]) -> list[Finding]:
    """Return the first `MAX_FINDINGS` findings, and one more that says that there are others."""
    some = iter(findings)
    found = list(islice(some, MAX_FINDINGS))
    if next(some, None) is not None:
        found.append(Finding(found[-1].where, f"there are over {MAX_FINDINGS:,} of this kind"))
    return found


def explained(where: str, step: Step) -> list[Finding]:
    """Return the findings of a step; that it cannot read something is a finding."""
    try:
        return step()
    except OSError as error:
        return [Finding(where, f"it cannot be read: {error.strerror or error}", RESTORE)]
    except StoreError as error:
        return [Finding(where, str(error), RESTORE)]


# ---------------------------------------------------------------------------------------
# Blobs
# ---------------------------------------------------------------------------------------


def blob_steps(folder: Path, run_ids: Callable[[], Iterable[str]], named: Named) -> Iterator[Step]:
    """Yield the steps that check the blobs, one per folder of blobs.

    Args:
        folder: The folder of the store.
        run_ids: Returns the ids of the runs that can be read.
        named: Tells which blobs are named.
    """
    blobs = folder / "blobs"
    yield partial(_odd_in, blobs, _BLOBS, "blobs")
    names: list[str] = []
    with suppress(OSError):  # the first step reports it
        names = sorted(filter(_BLOBS.fullmatch, os.listdir(blobs)))
    runs: dict[str, str] = {}  # by the names of their folders
    if names:
        yield partial(explained, "blobs", partial(_read_runs, runs, run_ids))
    for name in names:
        check = partial(_check_blobs, blobs / name, runs, named)
        yield partial(explained, f"blobs/{name}", check)


def _read_runs(runs: dict[str, str], run_ids: Callable[[], Iterable[str]]) -> list[Finding]:
    runs.update({hashed_name(run_id): run_id for run_id in run_ids()})
    return []


def _odd_in(folder: Path, ours: re.Pattern[str], where: str) -> list[Finding]:
    """Return findings for foreign names, and for files that killed writers left."""

    def findings() -> Iterator[Finding]:
        for name in sorted(os.listdir(folder)):
            if name.endswith(".tmp"):
                yield _left(f"{where}/{name}")
            elif not ours.fullmatch(name):
                yield stranger(f"{where}/{name}")

    return explained(where, lambda: capped(findings()))


def _left(where: str) -> Finding:
    return Finding(where, "a crash left it", REMOVED, severity=Severity.NOTE)


def stranger(where: str) -> Finding:
    """Return the finding for a file that does not belong to the store."""
    shown = where.encode(errors="backslashreplace").decode()  # a name may be no text
    return Finding(
        shown, "it does not belong to the store", "move it elsewhere", severity=Severity.NOTE
    )


def _check_blobs(folder: Path, runs: dict[str, str], named: Named) -> list[Finding]:
    run_id = runs.get(folder.name)
    is_shared = _SHARED.fullmatch(folder.name) is not None
    prefix, removed = (folder.name, MOVED) if is_shared else ("", REMOVED)
    if run_id is None and not is_shared:
        what = "they are of no run that can be read"
        return [Finding(f"blobs/{folder.name}", what, MOVED, severity=Severity.NOTE)]

    def findings() -> Iterator[Finding]:
        names = sorted(os.listdir(folder))
        ours = [name for name in names if is_digest(name) and name.startswith(prefix)]
        needed = named(run_id, ours)
        for name in names:
            where = f"blobs/{folder.name}/{name}"
            if name.endswith(".tmp"):
                yield _left(where)
                continue
            if name not in ours:
                yield stranger(where)
                continue
            problem = blob_problem(folder / name)
            if name not in needed:
                if problem != "it is missing":  # a missing one was removed since the listing
                    text = "no record names it"
                    yield Finding(where, text, removed, severity=Severity.NOTE, blob=name)
            elif problem is not None:
                yield Finding(where, problem, RESTORE, blob=name, run_id=run_id)

    return capped(findings())


def blob_problem(path: Path) -> str | None:
    """Return why a file is not the blob of its name; None: it is."""
    hasher = hashlib.sha256()
    try:
        fd = open_file(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return "it is not a file"
            while piece := file.read(READ_BYTES):
                hasher.update(piece)
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    return None if hasher.hexdigest() == path.name else "its content does not match its name"


def missing_blobs(
    folder: Path, names: Iterable[tuple[str, str]], named: Named
) -> Iterator[Finding]:
    """Yield findings for blobs that records name and that do not exist.

    Args:
        folder: The folder of the store.
        names: Runs, and the digests that they name.
        named: Tells which blobs are named now.
    """
    for run_id, digest in names:
        if not is_digest(digest):
            what = f"a record names it, and {digest!r} is not the name of a blob"
            yield Finding("blobs", what, RESTORE, blob=digest, run_id=run_id)
            continue
        path = Blobs(folder, run_id).find(digest)
        if not os.path.lexists(path) and named(run_id, [digest]):  # the record may be pruned since
            where, what = str(path.relative_to(folder)), "it is missing, and a record names it"
            yield Finding(where, what, RESTORE, blob=digest, run_id=run_id)


# ---------------------------------------------------------------------------------------
# The folder, and the watermarks
# ---------------------------------------------------------------------------------------


def strangers(folder: Path, members: Iterable[str]) -> list[Finding]:
    """Return findings for what does not belong to the store."""
    ours = re.compile("|".join(map(re.escape, (*members, *KNOWN))))

    def findings() -> list[Finding]:
        names = sorted(os.listdir(folder))
        return capped(stranger(name) for name in names if not ours.fullmatch(name))

    found = explained(str(folder), findings)
    return found + _odd_in(folder / "lock", _LOCK, "lock")


def lost_runs(folder: Path, found: Callable[[str], tuple[int, int, int] | None]) -> list[Finding]:
    """Return findings for runs that have less than was acknowledged.

    Args:
        folder: The folder of the store.
        found: Returns a run's owner number, newest generation, and records in all generations;
            None: the run does not exist.
    """

    def findings() -> Iterator[Finding]:
        watermarks = list(all_watermarks(folder))  # read first, since later saves only add
        for path, seen in watermarks:
            where = f"lock/{path.name}"
            if seen is None:
                advice = "the next start of its run writes it again"
                yield Finding(where, "it is not what was written", advice)
                continue
            now = found(seen.run_id)
            if now is None:
                if seen.records:
                    gone = plural(seen.records, "checkpoint")
                    what = f"run {seen.run_id!r} is gone, with {gone}"
                    yield Finding(where, what, GONE, run_id=seen.run_id, kind=FindingKind.LOSS)
                continue
            owner, generation, records = now
            if seen.is_ahead_of(generation, records):
                what = f"run {seen.run_id!r} has {plural(records, 'checkpoint')} in "
                what += f"{plural(generation + 1, 'generation')}, {seen.records:,} in "
                what += f"{seen.generation + 1:,} were acknowledged"
                yield Finding(where, what, GONE, run_id=seen.run_id, kind=FindingKind.LOSS)
            elif owner < seen.owner:
                what = f"run {seen.run_id!r} has had owner {seen.owner}, and now has {owner}"
                yield Finding(where, what, "--repair raises it", run_id=seen.run_id)

    return explained("lock", lambda: capped(findings()))


def odd_generations(
    where: str, run_id: str, numbers: tuple[int, int, int], have: set[int]
) -> Iterator[Finding]:
    """Return what is inconsistent in the numbers of a run: its generations, and its owner."""
    first, newest, owner = numbers
    if owner < 1 or first < 0 or newest < 0 or first > newest + 1:
        what = f"run {run_id!r} has owner {owner}, and generations {first} to {newest}"
        yield Finding(where, what, RESTORE, run_id=run_id)
    elif first < newest:
        # A generation begins with a record.  The oldest may have none: it was only locked.
        lacking = next((n for n in range(first + 1, newest + 1) if n not in have), None)
        if lacking is not None:
            what = f"run {run_id!r} has no record of its generation {lacking}"
            yield Finding(where, what, RESTORE, run_id=run_id, generation=lacking)
