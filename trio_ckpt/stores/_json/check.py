"""Checks of the files of the JSON store.

Reading a run detects every byte of its two files that is not what was written (`format.py`).
The steps here check the rest: files of no run, a journal that lost its end, and runs that are
gone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from itertools import chain
from pathlib import Path

from ..._journal.store import Finding, Severity
from ..._util.errors import StoreError
from ..._util.text import plural
from .._local.check import (
    REMOVED,
    Step,
    blob_steps,
    capped,
    explained,
    lost_runs,
    missing_blobs,
    odd_generations,
    stranger,
    strangers,
)
from .content import blobs_of
from .files import (
    FILES,
    FOLDERS,
    Loaded,
    check_marker,
    folder_name,
    journal_path,
    load,
    run_folders,
)

REPAIR = "--repair writes the run again from what can be read"
MANY = 2**63
_LEFTOVER = re.compile(r"journal\.[1-9][0-9]{0,17}\.jsonl|checkpoint\.json\.tmp", re.ASCII)


def steps(folder: Path) -> Iterator[Step]:
    """Yield the steps that check a store, one after another."""
    yield partial(explained, "store.json", lambda: _check_marker(folder))
    for path in _folders(folder):
        yield partial(explained, f"runs/{path.name}", partial(_check_run, path))
    yield partial(explained, "blobs", lambda: capped(_missing(folder)))
    names = cache(partial(_names, folder))  # once: it reads all runs
    yield from blob_steps(folder, names, partial(_named, names))
    yield partial(strangers, folder, (*FILES, *FOLDERS))
    yield partial(lost_runs, folder, partial(_found, folder))


def _folders(folder: Path) -> list[Path]:
    try:
        return list(run_folders(folder))
    except StoreError:
        return []  # other steps report it


def _check_marker(folder: Path) -> list[Finding]:
    check_marker(folder)
    return []


def _check_run(path: Path) -> list[Finding]:
    where = f"runs/{path.name}"
    if path.is_symlink() or not path.is_dir() or not path.name.isascii():
        return [stranger(where)]
    try:
        loaded = load(path)
    except StoreError as error:
        return [Finding(where, str(error), REPAIR)]
    if loaded is None:
        what = "it holds no run: a crash left it" if not os.listdir(path) else "it holds no run"
        return [Finding(where, what, severity=Severity.NOTE)]
    return capped(_odd_in_run(path, where, loaded))


def _odd_in_run(path: Path, where: str, loaded: Loaded) -> Iterator[Finding]:
    state = loaded.state
    if folder_name(state.run_id) != path.name:
        what = f"it is run {state.run_id!r}, whose folder is runs/{folder_name(state.run_id)}"
        yield Finding(
            where, what, "move it out of the store, if that is there", run_id=state.run_id
        )
        return
    numbers = (state.first, state.generation, state.owner)
    yield from odd_generations(where, state.run_id, numbers, {n for n, _ in state.streams})
    for generation, key in state.streams:
        if not state.first <= generation <= state.generation:
            what = f"stream {key} is of generation {generation}, which the run does not have"
            yield Finding(where, what, REPAIR, run_id=state.run_id, stream=key)
    if loaded.end.torn:
        torn = plural(loaded.end.torn, "byte")
        what = f"a crash cut a save off: {torn} at its end count for nothing"
        name = journal_path(path, state.journal).name
        yield Finding(f"{where}/{name}", what, REMOVED, severity=Severity.NOTE, run_id=state.run_id)
    ours = ("checkpoint.json", journal_path(path, state.journal).name)
    for name in sorted(set(os.listdir(path)).difference(ours)):
        if _LEFTOVER.fullmatch(name):
            yield Finding(f"{where}/{name}", "a crash left it", REMOVED, severity=Severity.NOTE)
        else:
            yield stranger(f"{where}/{name}")


def _names(folder: Path) -> dict[str, frozenset[str]]:
    """Return the blobs that are named, by run; a run that cannot be read has another finding."""
    names: dict[str, frozenset[str]] = {}
    for path in _folders(folder):
        with suppress(StoreError):
            if (loaded := load(path)) is not None:
                state = loaded.state
                names[state.run_id] = frozenset(blobs_of(state.streams.values()))
    return names


def _named(
    read_names: Callable[[], Mapping[str, frozenset[str]]],
    run_id: str | None,
    digests: Iterable[str],
) -> set[str]:
    """Return those of some digests that a run names, or any run."""
    names = read_names()
    named = chain.from_iterable(names.values()) if run_id is None else names.get(run_id, ())
    return set(digests).intersection(named)


def _missing(folder: Path) -> Iterator[Finding]:
    names = ((run_id, one) for run_id, named in _names(folder).items() for one in sorted(named))
    return missing_blobs(folder, names, partial(_named, partial(_names, folder)))


def _found(folder: Path, run_id: str) -> tuple[int, int, int] | None:
    path = folder / "runs" / folder_name(run_id)
    try:
        loaded = load(path, run_id)
    except StoreError:
        return MANY, MANY, MANY  # its own finding says why; how much it has is unknown
    if loaded is None:
        return None
    state = loaded.state
    return (
        state.owner,
        state.generation,
        sum(len(s.entries) for s in state.streams.values()),
    )
