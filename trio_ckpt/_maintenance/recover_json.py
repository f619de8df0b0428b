"""Rewrites a damaged run of the JSON store from the lines that can be read.

Theory of operation.  Each record is a line of ``checkpoint.json``, or a part of a line of a
journal, and has its own seal.  So the files are read line by line, and lines in no known format are
skipped; the seals tell which records are valid.  The lines of one stream follow a line that names
it; where that line is damaged, the stream is found by trying the seals of the others.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import attrs
import msgspec

from .._journal.folds import decode_progress
from .._journal.store import Checkpoint, Fold
from .._util.errors import StoreDamagedError, StoreError
from .._util.text import plural
from ..stores._json.content import blobs_of
from ..stores._json.files import (
    MAX_FILE_BYTES,
    folder_name,
    load,
    prepare,
    publish,
    read_whole,
    remove_leftovers,
    run_folders,
)
from ..stores._json.format import JournalLine, RunState, StreamState
from ..stores._json.records import (
    Entry,
    decode_entry,
    decode_fold,
    encode_entry,
    encode_fold,
    payload_of,
)
from ..stores._local.blobs import Blobs, is_digest
from ..stores._local.files import explain
from ..stores._local.watermark import Watermark, all_watermarks
from ..stores._sqlite.schema import make_tables
from .recover_rows import measure, open_record, recover_rows
from .recovery import Recovery, StreamPlace

_NUMBER = {
    name: re.compile(rb'"%b": ([0-9]{1,18}),' % name.encode())
    for name in ("owner", "generation", "first", "journal")
}
_NAME = re.compile(rb'"(?:run_id|stream)": (".*"),')
_RUN_HEAD = re.compile(rb'"line":\{"run_id":("(?:[^"\\]|\\.)*"),"journal":[0-9]+\}')
_LINE = re.compile(rb'\{"check":"[^"]*","line":(.*)\}', re.DOTALL)
_JOURNAL = re.compile(r"journal\.([1-9][0-9]{0,17})\.jsonl", re.ASCII)
_FRAME_LINE = re.compile(
    rb'[0-9]{1,18},$|[{}]$|\]$|\]\},?$|"(check|format|run_id|owner|generation|first|journal|updated_at|summary|stream)":|'
    rb'"(fold|records|streams)": '
)
_line_decoder = msgspec.json.Decoder(JournalLine)

MAX_SEQUENCE = 2**62  # of a number in the files

_ADD = "INSERT INTO log (stream, sequence, prev, payload, blob) VALUES (?, ?, 0, ?, ?)"
_DETACH = "DELETE FROM attached WHERE stream = ? AND sequence = ?"
_STREAMS = (
    "SELECT streams.id, generation, streams.stream, through, payload FROM streams "
    "JOIN heads ON heads.stream = streams.id LEFT JOIN folds ON folds.stream = streams.id "
    "ORDER BY generation, streams.id"
)
_ATTACHED = "SELECT sequence, digest FROM attached WHERE stream = ? ORDER BY sequence, place"
_RECORDS = "SELECT sequence, payload, blob FROM log WHERE stream = ? ORDER BY sequence"

Place = tuple[int, str]  # generation, key of the stream


@attrs.define(eq=False)
class _Found:
    """The readable content of a run's files."""

    run_id: str | None = None
    owner: int = 1
    generation: int = 0
    first: int = 0
    journal: int = 0
    entries: dict[Place, list[Entry]] = attrs.field(factory=dict[Place, list[Entry]])
    homeless: list[Entry] = attrs.field(factory=list[Entry])
    garbled: int = 0  # lines that may have been records
    drops: dict[Place, set[int]] = attrs.field(factory=dict[Place, set[int]])

    def add(self, place: Place | None, raw: bytes) -> None:
        """Add a record that was found."""
        try:
            entry = decode_entry(msgspec.Raw(raw))
        except StoreDamagedError:
            self.garbled += 1
            return
        if not 1 <= entry.sequence <= MAX_SEQUENCE:
            self.garbled += 1
        elif place is None:
            self.homeless.append(entry)
        else:
            self.entries.setdefault(place, []).append(entry)


def recover_runs(recovery: Recovery) -> None:
    """Rewrite every run that is not as it was written.

    Raises:
        StoreError: nothing can be read, or the store cannot be written.
    """
    todo: list[tuple[Path, RunState]] = []
    whole: list[Watermark] = []
    for path in run_folders(recovery.folder):
        if not path.is_dir() or path.is_symlink():
            continue
        try:
            state = _whole_run(path, recovery)
            whole += [] if state is None else [_seen_of(state)]
        except StoreError:
            state = _recover_run(path, recovery)
            todo += [] if state is None else [(path, state)]
    for seen in whole:
        recovery.set_watermark(seen)
    recovery.forget_gone(
        lambda run_id: any((recovery.folder / "runs").glob(f"{folder_name(run_id)}/*"))
    )
    if todo:
        recovery.need_opened()
    for path, state in todo:
        for name in sorted(path.iterdir()):
            if name.is_file() and not name.is_symlink():
                recovery.keep(name)
        with explain(path, "repairing"):
            written = prepare(path, state)
            publish(path)
            remove_leftovers(path, written.journal)
        recovery.report(f"runs/{path.name}", "it was rewritten")
        recovery.set_watermark(_seen_of(state))
    with suppress(StoreError):  # a run that cannot be read may name any blob
        states = [one.state for one in map(load, run_folders(recovery.folder)) if one is not None]
        recovery.put_unnamed_blobs_aside(
            (state.run_id, digest)
            for state in states
            for digest in blobs_of(state.streams.values())
        )


def _seen_of(state: RunState) -> Watermark:
    records = sum(len(stream.entries) for stream in state.streams.values())
    return Watermark(state.run_id, state.owner, state.generation, records)


def _whole_run(path: Path, recovery: Recovery) -> RunState | None:
    """Return a run that is as it was written; None: no run belongs in this folder.

    A run of another folder is reported by the check, and left alone.

    Raises:
        StoreError: a record does not open or does not follow, or the records and a fold differ.
    """
    loaded = load(path)
    if loaded is None or folder_name(loaded.state.run_id) != path.name:
        return None
    blobs = Blobs(recovery.folder, loaded.state.run_id)
    for (generation, key), stream in loaded.state.streams.items():
        place = StreamPlace(loaded.state.run_id, generation, key)
        seal = place.seal(recovery.mac_key)
        prefix = measure(seal, partial(_records, stream.entries, blobs))
        recovery.opened += prefix.through
        if prefix.through != len(stream.entries):
            raise StoreDamagedError(f"record {prefix.through + 1} of {place} is damaged")
        if stream.fold is not None:
            fold = decode_fold(stream.fold)
            said = decode_progress(seal.open(-fold.through, fold.payload))
            folded = partial(_records, stream.entries[: fold.through], blobs)
            if measure(seal, folded).progress != said:
                raise StoreDamagedError(f"the fold of {place} is not what its records add up to")
    return loaded.state


def _records(raws: list[msgspec.Raw], blobs: Blobs) -> Iterator[tuple[int, bytes]]:
    for number, entry in enumerate(map(decode_entry, raws), 1):
        yield number, _payload(entry, blobs) if entry.sequence == number else b""


def _payload(entry: Entry, blobs: Blobs) -> bytes:
    """Return the sealed record; empty: it cannot be read."""
    with suppress(StoreError):
        return payload_of(entry) if entry.blob is None else blobs.get(entry.blob)
    return b""


# ---------------------------------------------------------------------------------------
# One run
# ---------------------------------------------------------------------------------------


def _recover_run(path: Path, recovery: Recovery) -> RunState | None:
    """Recover the run; None: nothing can be done."""
    found = _read(path)
    noted = [seen for _, seen in all_watermarks(recovery.folder) if seen is not None]
    seen = next((seen for seen in noted if folder_name(seen.run_id) == path.name), None)
    names = [found.run_id, seen.run_id if seen is not None else None, path.name]
    run_id = next((name for name in names if name and folder_name(name) == path.name), None)
    where = f"runs/{path.name}"
    if run_id is None:
        recovery.leave(where, "which run it is cannot be read", is_loss=True)
        return None
    if seen is not None:
        found.owner = max(found.owner, seen.owner)
    done, left = len(recovery.done), len(recovery.left)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as rows:
        _write_rows(rows, found, run_id, recovery)
        (now,) = recover_rows(rows, recovery)
        recovery.reported[run_id] += found.garbled
        is_reported = recovery.is_reported(run_id, now.generation, now.records)
        if (len(recovery.left) > left or not is_reported) and not recovery.accept_loss:
            del recovery.done[done:]  # the run stays as it is: nothing of it is lost
            return None
        state = _read_rows(rows, found)
    if found.garbled:
        what = f"unreadable, and what was there is lost: {plural(found.garbled, 'line')}"
        recovery.report(where, what, is_loss=True)
    return state


def _write_rows(rows: sqlite3.Connection, found: _Found, run_id: str, recovery: Recovery) -> None:
    """Put what was found into the tables of a store."""
    make_tables(rows)
    blobs = Blobs(recovery.folder, run_id)
    _house(found, run_id, recovery.mac_key, blobs)
    numbers = (found.generation, found.first, found.owner)
    rows.execute("INSERT INTO runs VALUES (1, ?, ?, ?, ?)", (run_id, *numbers))
    for number, ((generation, key), entries) in enumerate(found.entries.items(), 1):
        rows.execute("INSERT INTO streams VALUES (?, 1, ?, ?)", (number, generation, key))
        for entry in entries:
            payload = _payload(entry, blobs) if entry.blob is None else b""
            rows.execute(_ADD, (number, entry.sequence, payload, entry.blob))
            rows.execute(_DETACH, (number, entry.sequence))  # the names of an older copy
            named = [digest for digest in entry.blobs if is_digest(digest) and blobs.has(digest)]
            attached = [(number, entry.sequence, *place) for place in enumerate(named)]
            rows.executemany("INSERT INTO attached VALUES (?, ?, ?, ?)", attached)


def _read_rows(rows: sqlite3.Connection, found: _Found) -> RunState:
    """Make the run of the recovered tables."""
    _, run_id, newest, first, owner = rows.execute("SELECT * FROM runs").fetchone()
    state = RunState(run_id, owner, newest, first, found.journal)
    for number, generation, key, through, fold in rows.execute(_STREAMS).fetchall():
        stream = state.streams[generation, key] = StreamState()
        names: dict[int, list[str]] = {}
        for sequence, digest in rows.execute(_ATTACHED, (number,)):
            if sequence not in found.drops.get((generation, key), ()):
                names.setdefault(sequence, []).append(digest)
        for sequence, payload, blob in rows.execute(_RECORDS, (number,)):
            one = Checkpoint(key, sequence, payload, blob, tuple(names.get(sequence, ())))
            stream.entries.append(msgspec.Raw(encode_entry(one)))
        if through is not None:
            stream.fold = msgspec.Raw(encode_fold(Fold(key, through, fold)))
    return state


def _house(found: _Found, run_id: str, mac_key: bytes | None, blobs: Blobs) -> None:
    """Assign records of unreadable streams to the stream whose seal opens them."""
    for entry in found.homeless:
        for (generation, key), entries in found.entries.items():
            with suppress(StoreDamagedError):
                seal = StreamPlace(run_id, generation, key).seal(mac_key)
                if open_record(seal, entry.sequence, _payload(entry, blobs)) is not None:
                    entries.append(entry)


def _read(path: Path) -> _Found:
    found = _Found()
    for name in ("checkpoint.json.tmp", "checkpoint.json"):
        if (content := _content(path / name)) is not None:
            _read_checkpoint(content, found)
    journals = sorted((int(m[1]), n) for n in path.iterdir() if (m := _JOURNAL.fullmatch(n.name)))
    for number, journal in journals:
        found.journal = max(found.journal, number)
        if (content := _content(journal)) is not None:
            _read_journal(content, found)
    return found


def _content(path: Path) -> bytes | None:
    try:
        return read_whole(path, MAX_FILE_BYTES)
    except (OSError, StoreError):
        return None


def _read_checkpoint(content: bytes, found: _Found) -> None:
    head, *streams = content.split(b'\n{"generation": ')
    name = _NAME.search(head)
    found.run_id = _text(name) or found.run_id
    for field in ("owner", "generation", "first", "journal"):
        match = _NUMBER[field].search(head)
        if match is not None:
            setattr(found, field, max(getattr(found, field), int(match[1])))
    for part in (head, *streams):
        number = re.match(rb"([0-9]{1,18}),", part)
        key = _text(_NAME.search(part)) if part is not head else None
        place = (int(number[1]), key) if number is not None and key is not None else None
        for line in part.split(b"\n"):
            if line.startswith(b'{"sequence":'):
                found.add(place, line.rstrip(b","))
            elif line and not _FRAME_LINE.match(line):
                found.garbled += 1


def _text(match: re.Match[bytes] | None) -> str | None:
    try:
        return None if match is None else msgspec.json.decode(match[1], type=str)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _read_journal(content: bytes, found: _Found) -> None:
    for text in content.split(b"\n"):
        if (head := _RUN_HEAD.search(text)) is not None:
            found.run_id = found.run_id or _text(head)
        match = _LINE.fullmatch(text)
        try:
            line = _line_decoder.decode(match[1]) if match is not None else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            line = None
        if line is None:
            found.garbled += bool(text) and head is None
            continue
        found.owner, found.generation = (
            max(found.owner, line.owner),
            max(found.generation, line.generation),
        )
        for key, raw in line.records:
            found.add((line.generation, key), bytes(raw))
        for key, sequences in line.drops:
            found.drops.setdefault((line.generation, key), set()).update(sequences)
