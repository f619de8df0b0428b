"""Rewrites a damaged run of the JSON store from the lines that can be read.

Theory of operation.  Each record is a line of ``checkpoint.json``, or a part of a line of a
journal, and has its own seal.  So the files are read line by line, and lines in no known format are
skipped; the seals tell which records are valid.  The lines of one stream follow a line that names
it; where that line is damaged, the stream is found by trying the seals of the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import attrs
import msgspec

from .._journal.folds import decode_progress
from .._journal.record import Seal
from .._journal.store import Checkpoint, Fold, Repaired
from .._util.errors import StoreDamagedError, StoreError
from .._util.plain import decode_key
from .._util.text import plural
from ..stores._json.content import named_in
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
    with_blobs,
    without_blobs,
)
from ..stores._local.blobs import Blobs, is_digest
from ..stores._local.files import explain
from ..stores._local.watermark import Watermark, all_watermarks
from .salvage import Salvage, ValidPrefix, measure

_NUMBER = {
    name: re.compile(rb'"%b": ([0-9]{1,18}),' % name.encode())
    for name in ("owner", "generation", "first", "journal")
}
_NAME = re.compile(rb'"(?:run_id|stream)": (".*"),')
_RUN_HEAD = re.compile(rb'"line":\{"run_id":("(?:[^"\\]|\\.)*"),"journal":[0-9]+\}')
_LINE = re.compile(rb'\{"check":"[^"]*","line":(.*)\}', re.DOTALL)
_JOURNAL = re.compile(r"journal\.([1-9][0-9]{0,17})\.jsonl", re.ASCII)
_FRAME_LINE = re.compile(
    rb'[0-9]{1,18},$|[{}]$|\]$|\]\},?$|"(check|format|run_id|owner|generation|first|journal|stream)":|'
    rb'"(fold|records|streams)": '
)
_line_decoder = msgspec.json.Decoder(JournalLine)

Place = tuple[int, str]


@attrs.define(eq=False)
class _Found:
    """The readable content of a run's files."""

    run_id: str | None = None
    owner: int = 1
    generation: int = 0
    first: int = 0
    journal: int = 0
    entries: dict[Place, dict[int, list[msgspec.Raw]]] = attrs.field(
        factory=dict[Place, dict[int, list[msgspec.Raw]]]
    )
    homeless: list[msgspec.Raw] = attrs.field(factory=list[msgspec.Raw])
    garbled: int = 0  # lines that may have been records
    drops: dict[Place, set[int]] = attrs.field(factory=dict[Place, set[int]])

    def add(self, place: Place | None, raw: bytes) -> None:
        """Add a record that was found."""
        entry = _entry(msgspec.Raw(raw))
        if entry is None:
            self.garbled += 1
            return
        if place is None:
            self.homeless.append(msgspec.Raw(raw))
        else:
            found = self.entries.setdefault(place, {})
            found.setdefault(entry.sequence, []).append(msgspec.Raw(raw))


def repair_runs(salvage: Salvage) -> None:
    """Rewrite every run that is not as it was written.

    Raises:
        StoreError: nothing can be read, or the store cannot be written.
    """
    todo: list[tuple[Path, RunState, int]] = []
    whole: list[Watermark] = []
    for path in run_folders(salvage.folder):
        if not path.is_dir() or path.is_symlink():
            continue
        if _is_whole(path, salvage):
            loaded = load(path)
            if loaded is not None and folder_name(loaded.state.run_id) == path.name:
                whole.append(_seen_of(loaded.state))
        elif (state := _salvaged(path, salvage)) is not None:
            todo.append((path, state, state.journal))
    for seen in whole:
        salvage.note(seen)
    salvage.forget_gone(
        lambda run_id: any((salvage.folder / "runs").glob(f"{folder_name(run_id)}/*"))
    )
    if not todo:
        _put_unnamed_aside(salvage)
        return
    salvage.need_opened()
    for path, state, _ in todo:
        for name in sorted(path.iterdir()):
            if name.is_file() and not name.is_symlink():
                salvage.keep(name)
        with explain(path, "repairing"):
            written = prepare(path, state)
            publish(path)
            remove_leftovers(path, written.journal)
        salvage.done.append(Repaired(f"runs/{path.name}", "it was rewritten"))
        salvage.note(_seen_of(state))
    _put_unnamed_aside(salvage)


def _seen_of(state: RunState) -> Watermark:
    records = sum(len(stream.entries) for stream in state.streams.values())
    return Watermark(state.run_id, state.owner, state.generation, records)


def _put_unnamed_aside(salvage: Salvage) -> None:
    """Move unnamed blobs away, unless a run cannot be read: it may name any of them."""
    with suppress(StoreError):
        salvage.put_unnamed_blobs_aside(set(named_in(run_folders(salvage.folder))))


def _is_whole(path: Path, salvage: Salvage) -> bool:
    """Whether a run is as it was written, and all its records open and add up."""
    try:
        loaded = load(path)
    except StoreError:
        return False
    if loaded is None:
        return True
    state, blobs = loaded.state, Blobs(salvage.folder / "blobs")
    if folder_name(state.run_id) != path.name:
        return True  # not this run's place: it is reported, and left alone
    for (generation, key), stream in state.streams.items():
        try:
            seal = Seal(state.run_id, generation, decode_key(key), salvage.mac_key)
        except StoreDamagedError:
            return False
        sound = measure(seal, partial(_records, stream.entries, blobs))
        salvage.opened += sound.through
        if sound.through != len(stream.entries) or not _is_fold_true(stream, seal, blobs):
            return False
    return True


def _is_fold_true(stream: StreamState, seal: Seal, blobs: Blobs) -> bool:
    if stream.fold is None:
        return True
    try:
        fold = decode_fold(stream.fold)
        said = decode_progress(seal.open(-fold.through, fold.payload))
    except StoreDamagedError:
        return False
    folded = stream.entries[: fold.through]
    return measure(seal, partial(_records, folded, blobs)).progress == said


def _records(raws: list[msgspec.Raw], blobs: Blobs) -> Iterator[tuple[int, bytes | None]]:
    for number, raw in enumerate(raws, 1):
        entry = _entry(raw)
        payload = None if entry is None else _payload(entry, blobs)
        yield number, payload if entry is not None and entry.sequence == number else None


def _entry(raw: msgspec.Raw) -> Entry | None:
    try:
        return decode_entry(raw)
    except StoreDamagedError:
        return None


def _payload(entry: Entry, blobs: Blobs) -> bytes | None:
    try:
        return payload_of(entry) if entry.blob is None else blobs.get(entry.blob)
    except StoreError:
        return None


# ---------------------------------------------------------------------------------------
# Reading what is left
# ---------------------------------------------------------------------------------------


def _salvaged(path: Path, salvage: Salvage) -> RunState | None:
    """Rebuild the run; None: nothing can be done."""
    found = _read(path)
    noted = [seen for _, seen in all_watermarks(salvage.folder) if seen is not None]
    seen = next((seen for seen in noted if folder_name(seen.run_id) == path.name), None)
    names = [found.run_id, seen.run_id if seen is not None else None, path.name]
    run_id = next((name for name in names if name and folder_name(name) == path.name), None)
    where = f"runs/{path.name}"
    if run_id is None:
        salvage.left.append(Repaired(where, "which run it is cannot be read", is_loss=True))
        return None
    if seen is not None:
        found.owner = max(found.owner, seen.owner)
    state = RunState(run_id, found.owner, found.generation, found.first, found.journal)
    blobs = Blobs(salvage.folder / "blobs")
    _house(found, run_id, salvage.mac_key, blobs)
    done, left = len(salvage.done), len(salvage.left)
    for place in sorted(found.entries, key=lambda place: place[0]):
        stream = _stream(found, place, run_id, salvage, blobs)
        if stream is not None:
            state.streams[place] = stream
    generations = {generation for generation, _ in state.streams}
    if generations:
        state.generation = max(generations)
        state.first = min(state.first, min(generations))
    salvage.reported[run_id] += found.garbled
    records = sum(len(stream.entries) for stream in state.streams.values())
    is_reported = salvage.is_reported(run_id, state.generation, records)
    if (len(salvage.left) > left or not is_reported) and not salvage.may_cut:
        del salvage.done[done:]  # the run stays as it is: nothing of it is lost
        return None
    if found.garbled:
        what = f"unreadable, and what was there is lost: {plural(found.garbled, 'line')}"
        salvage.done.append(Repaired(where, what, is_loss=True))
    return state


def _stream(
    found: _Found, place: Place, run_id: str, salvage: Salvage, blobs: Blobs
) -> StreamState | None:
    generation, key = place
    try:
        seal = Seal(run_id, generation, decode_key(key), salvage.mac_key)
    except StoreDamagedError as error:
        where = f"stream {key} of run {run_id!r}"
        salvage.left.append(Repaired(where, str(error)))
        return None
    chosen: dict[int, msgspec.Raw] = {}
    for sequence, raws in sorted(found.entries[place].items()):
        good = [raw for raw in raws if _is_sealed(seal, sequence, raw, blobs)]
        chosen[sequence] = (good or raws)[-1]

    def records() -> Iterator[tuple[int, bytes | None]]:
        for sequence, raw in chosen.items():
            entry = _entry(raw)
            yield sequence, None if entry is None else _payload(entry, blobs)

    sound, spot = measure(seal, records), (run_id, generation, key)
    if sound.newest > sound.through and (
        bridged := salvage.bridged(spot, seal, records, sound.newest)
    ):
        for sequence, payload in bridged.notes.items():
            chosen[sequence] = msgspec.Raw(encode_entry(Checkpoint(key, sequence, payload)))
        sound = ValidPrefix(bridged.progress, 0, sound.newest)
    else:
        salvage.is_cut(spot, sound, 0)
    entries = [
        _with_blobs(chosen[sequence], salvage, blobs) for sequence in range(1, sound.through + 1)
    ]
    for sequence in found.drops.get(place, ()):
        if sequence <= len(entries):
            entries[sequence - 1] = without_blobs(entries[sequence - 1])
    fold = Fold(key, sound.through, sound.fold(seal))
    return StreamState(entries, msgspec.Raw(encode_fold(fold)) if entries else None)


def _with_blobs(raw: msgspec.Raw, salvage: Salvage, blobs: Blobs) -> msgspec.Raw:
    """Return a record that names only those attached blobs that exist."""
    entry = decode_entry(raw)
    named = [name for name in entry.blobs if is_digest(name) and blobs.has(name)]
    needed = salvage.blobs_of(_payload(entry, blobs))
    return with_blobs(raw, tuple(dict.fromkeys([*named, *needed])))


def _is_sealed(seal: Seal, sequence: int, raw: msgspec.Raw, blobs: Blobs) -> bool:
    entry = _entry(raw)
    payload = None if entry is None else _payload(entry, blobs)
    try:
        return payload is not None and bool(seal.open(sequence, payload))
    except StoreDamagedError:
        return False


def _house(found: _Found, run_id: str, mac_key: bytes | None, blobs: Blobs) -> None:
    """Assign records of unreadable streams to the stream whose seal opens them."""
    for raw in found.homeless:
        entry = _entry(raw)
        for generation, key in list(found.entries) if entry is not None else ():
            try:
                seal = Seal(run_id, generation, decode_key(key), mac_key)
            except StoreDamagedError:
                continue
            if entry is not None and _is_sealed(seal, entry.sequence, raw, blobs):
                found.add((generation, key), bytes(raw))


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
