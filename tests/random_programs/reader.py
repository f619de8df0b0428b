"""What a store and an output folder hold, read by plain means: SQLite, JSON, MessagePack, files.

Nothing of the library is imported here, and nothing that it has added up is believed: no fold, no
head.  docs/reference/file-format.md is all that this relies on.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import attrs
import msgspec

SEAL_BYTES = 16
KINDS = (
    *("batch", "skip", "attempt", "fail", "finish", "save", "redo", "session", "end", "retry"),
    *("note", "add", "snapshot", "pin", "unpin"),
)
LETTERS = "kinojpscmlrz"
FIELDS = "kind index records outputs lines totals spent cursor metadata last_index steps taken"
NAMES = dict(zip(LETTERS, FIELDS.split(), strict=True))
TAKEN = ("totals", "spent", "resets_state")
Key = tuple[str, ...]
Sums = dict[str, Fraction]


@attrs.frozen
class File:
    """A confirmed output."""

    path: str
    size: int
    sha256: str


@attrs.frozen
class Entry:
    """One record of a stream, whichever store it was in.

    Attributes:
        sequence: Its place.
        kind: What it says.
        index: The batch.
        records: Produced; of a redo: taken back.
        files: Outputs.
        lines: Bytes appended, per file.
        totals, spent: Amounts; of a redo: taken back.
        cursor: Given, or None.
        metadata: The user's.
        steps: The batches that a redo or a retry puts back.
    """

    sequence: int
    kind: str
    index: int | None
    records: int
    files: tuple[File, ...]
    lines: tuple[tuple[str, int], ...]
    totals: Sums
    spent: Sums
    cursor: Any
    metadata: Mapping[str, Any]
    steps: frozenset[int]


Records = dict[Key, list[Entry]]


# ---------------------------------------------------------------------------------------
# Stores
# ---------------------------------------------------------------------------------------


def read_records(store: Path, run_id: str) -> tuple[int, Records]:
    """The newest generation of a run and the records of its streams, the oldest first."""
    read = _read_sqlite if (store / "state.db").exists() else _read_json
    generation, found = read(store, run_id)
    records: Records = {}
    for stream, raw in found.items():
        entries = sorted((_entry(sequence, record) for sequence, record in raw), key=_sequence)
        if [entry.sequence for entry in entries] != list(range(1, len(entries) + 1)):
            raise AssertionError(f"{stream}: sequences {[entry.sequence for entry in entries]}")
        records[tuple(json.loads(stream))] = entries
    return generation, records


Raw = dict[str, list[tuple[int, dict[str, Any]]]]


def _read_sqlite(store: Path, run_id: str) -> tuple[int, Raw]:
    with closing(sqlite3.connect(store / "state.db")) as db:
        row = db.execute("SELECT id, generation FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            return 0, {}
        number, generation = row
        rows = db.execute(
            "SELECT streams.stream, log.sequence, log.payload, log.blob FROM log JOIN streams "
            "ON streams.id = log.stream WHERE streams.run = ? AND streams.generation = ?",
            (number, generation),
        ).fetchall()
    found: Raw = {}
    for stream, sequence, payload, blob in rows:
        sealed = _blob(store, blob) if blob else payload
        found.setdefault(stream, []).append((sequence, _long(sealed[SEAL_BYTES:])))
    return generation, found


def _blob(store: Path, digest: str) -> bytes:
    (path,) = (path for path in (store / "blobs").rglob("*") if digest.endswith(path.name[-60:]))
    return path.read_bytes()


def _long(payload: bytes) -> dict[str, Any]:
    """A record of MessagePack with the names and shapes that one of JSON has."""
    short = msgspec.msgpack.decode(payload)
    record = {NAMES[name]: value for name, value in short.items() if name in NAMES}
    record["kind"] = KINDS[record.get("kind", 0)]
    record["outputs"] = [
        dict(zip(("path", "size", "mtime_ns", "sha256"), output, strict=True))
        for output in record.get("outputs", ())
    ]
    record["lines"] = [
        dict(zip(("path", "size", "digest"), lines, strict=True))
        for lines in record.get("lines", ())
    ]
    if record.get("taken"):
        record["taken"] = dict(zip(TAKEN, record["taken"], strict=False))
    return record


def _read_json(store: Path, run_id: str) -> tuple[int, Raw]:
    folder = store / "runs" / run_id
    if not (folder / "checkpoint.json").exists():
        return 0, {}
    document = json.loads((folder / "checkpoint.json").read_bytes())
    streams: dict[tuple[int, str], list[Any]] = {}
    for stream in document["streams"]:
        streams[stream["generation"], stream["stream"]] = list(stream["records"])
    generation = document["generation"]
    journal = folder / f"journal.{document['journal']}.jsonl"
    if journal.exists():
        for line in journal.read_bytes().split(b"\n")[1:-1]:  # the last one has no end
            said = json.loads(line)["line"]
            generation = max(generation, said["generation"])
            for stream, record in said.get("records", ()):
                streams.setdefault((said["generation"], stream), []).append(record)
    return generation, {
        stream: [(record["sequence"], _opened(store, record)) for record in records]
        for (number, stream), records in streams.items()
        if number == generation
    }


def _opened(store: Path, entry: dict[str, Any]) -> dict[str, Any]:
    if "record" in entry:
        record: dict[str, Any] = entry["record"]
        return record
    sealed = _blob(store, entry["blob"]) if "blob" in entry else b64(entry["payload"])
    return _long(sealed[SEAL_BYTES:])


def b64(text: str) -> bytes:
    return base64.b64decode(text)


def _sequence(entry: Entry) -> int:
    return entry.sequence


def _entry(sequence: int, record: dict[str, Any]) -> Entry:
    taken = record.get("taken") or {}
    return Entry(
        sequence=sequence,
        kind=record.get("kind", "batch"),
        index=record.get("index"),
        records=record.get("records", 0),
        files=tuple(File(o["path"], o["size"], o["sha256"]) for o in record.get("outputs", ())),
        lines=tuple((lines["path"], lines["size"]) for lines in record.get("lines", ())),
        totals=_sums(taken.get("totals") or record.get("totals", {})),
        spent=_sums(taken.get("spent") or record.get("spent", {})),
        cursor=record.get("cursor"),
        metadata=record.get("metadata", {}),
        steps=_indexes(record.get("steps", ())),
    )


def _sums(amounts: Mapping[str, Any]) -> Sums:
    """Amounts are numbers; sums are ``[numerator in hexadecimal, shift]``."""
    return {
        name: Fraction(int(amount[0], 16), 2 ** amount[1])
        if isinstance(amount, list)
        else Fraction(amount)
        for name, amount in amounts.items()
    }


def _indexes(steps: Iterable[int]) -> frozenset[int]:
    borders = list(accumulate(steps))
    pairs = zip(borders[::2], borders[1::2], strict=True)
    return frozenset(index for start, stop in pairs for index in range(start, stop))


# ---------------------------------------------------------------------------------------
# What records add up to
# ---------------------------------------------------------------------------------------


@attrs.define
class Ledger:
    """A stream, added up record by record; what cannot be is an AssertionError.

    Attributes:
        key: The stream.
        standing: The record of each confirmed batch.
        skipped: The record of each skipped one.
        spent: On all attempts.
        status: As far as records say.
        last_index: Of the last batch, once known.
    """

    key: Key
    standing: dict[int, Entry] = attrs.field(factory=dict[int, Entry])
    skipped: dict[int, Entry] = attrs.field(factory=dict[int, Entry])
    spent: Sums = attrs.field(factory=dict[str, Fraction])
    is_complete: bool = False

    @classmethod
    def of(cls, key: Key, entries: Iterable[Entry]) -> Ledger:
        ledger = cls(key)
        for entry in entries:
            ledger.add(entry)
        return ledger

    def add(self, entry: Entry) -> None:
        where = f"{self.key}, checkpoint {entry.sequence} ({entry.kind})"
        if entry.kind != "redo":
            add(self.spent, entry.spent)
        if entry.kind in ("batch", "skip"):
            assert entry.index is not None, where
            assert entry.index not in self.standing, f"{where}: {entry.index} is confirmed twice"
            assert entry.index not in self.skipped, f"{where}: {entry.index} is skipped already"
            (self.standing if entry.kind == "batch" else self.skipped)[entry.index] = entry
        if entry.kind == "redo":
            self._take_back(entry, where)
        if entry.kind == "retry":
            assert not entry.steps & set(self.standing), f"{where}: it puts back confirmed batches"
            for index in entry.steps:
                self.skipped.pop(index, None)
        if entry.kind == "finish":
            self.is_complete = True
        elif entry.kind in ("batch", "skip", "attempt", "fail", "redo", "retry"):
            self.is_complete = False

    def _take_back(self, entry: Entry, where: str) -> None:
        """A redo must take back exactly what its batches have added."""
        strangers = entry.steps - set(self.standing) - set(self.skipped)
        assert not strangers, f"{where}: it puts back {sorted(strangers)}, which are not done"
        taken = [self.standing.pop(index) for index in entry.steps if index in self.standing]
        for index in entry.steps:
            self.skipped.pop(index, None)
        assert entry.records == sum(old.records for old in taken), f"{where}: records"
        assert clean(entry.totals) == total(old.totals for old in taken), f"{where}: totals"
        assert clean(entry.spent) == total(old.spent for old in taken), f"{where}: spent"
        assert sizes(entry.lines) == sizes(part for old in taken for part in old.lines), where

    # -- sums ---------------------------------------------------------------------------------

    @property
    def records(self) -> int:
        return sum(entry.records for entry in self.standing.values())

    @property
    def totals(self) -> Sums:
        return total(entry.totals for entry in self.standing.values())

    @property
    def sinks(self) -> dict[str, int]:
        return sizes(part for entry in self.standing.values() for part in entry.lines)

    def in_order(self) -> list[Entry]:
        """The confirmed batches, in the order in which they were."""
        return sorted(self.standing.values(), key=_sequence)

    @property
    def cursor(self) -> Any:
        """Of the last batch that stands."""
        return self.in_order()[-1].cursor if self.standing else None


def add(sums: Sums, amounts: Mapping[str, Fraction]) -> None:
    for name, amount in amounts.items():
        sums[name] = sums.get(name, Fraction()) + amount


def total(parts: Iterable[Mapping[str, Fraction]]) -> Sums:
    sums: Sums = {}
    for part in parts:
        add(sums, part)
    return clean(sums)


def clean(sums: Mapping[str, Fraction]) -> Sums:
    return {name: amount for name, amount in sums.items() if amount}


def sizes(lines: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for path, size in lines:
        found[path] = found.get(path, 0) + size
    return {path: size for path, size in found.items() if size}


# ---------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------


def file_damage(folder: Path, file: File) -> str | None:
    """What is wrong with a confirmed output; None: nothing."""
    path = folder / file.path
    if not path.is_file():
        return "missing"
    content = path.read_bytes()
    if len(content) != file.size or hashlib.sha256(content).hexdigest() != file.sha256:
        return "altered"
    return None


def files_below(folder: Path) -> Iterator[str]:
    """Every file, relative to the folder, without the archive."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] != ".archive":
            yield str(name)


def archived(folder: Path) -> set[str]:
    """The hashes of what is in the archive."""
    files = (folder / ".archive").rglob("*")
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}
