"""Finds the valid records of a damaged store: the part of a repair that all local stores share.

Theory of operation.  A record is valid if its seal opens and it follows the previous one.  Where
a record is lost, the stream can continue after it only if the later records do not build on it:
where batches are independent of each other.  Then a note takes its place, and the batches that it
had confirmed run again.  Where they build on each other (a state, a cursor, an append file, a
frontier) the stream is cut off before it.  That loses what was confirmed later, so it is done only
if no valid record is lost, or if the user accepts the loss.

Nothing is changed in place.  A file is copied into ``damaged/TIME/`` before it is replaced, and the
new one is written beside it and renamed.  Blocking functions.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import attrs

from .._journal.folds import encode_progress
from .._journal.progress import Progress, apply
from .._journal.record import DIGEST_BYTES, Record, RecordKind, Seal, decode_record, encode_record
from .._journal.store import Repaired
from .._util.errors import StoreDamagedError, StoreError
from .._util.index_set import IndexSet
from .._util.text import number, plural, spans
from ..state import decode_frame
from ..stores._local.check import LOSSES, blob_problem
from ..stores._local.files import make_folder, open_file, sync_file, sync_folder
from ..stores._local.watermark import (
    Watermark,
    all_watermarks,
    encode_watermark,
    read_watermark,
    watermark_path,
)

SHA256_DIGITS = 64
MAX_NOTES = 100_000  # in place of lost records; a stream that lost more is cut off
LOST = "a repair put this in the place of a checkpoint that was lost"
ACCEPT = "--accept-loss goes on without them, and their batches run again"

Place = tuple[str, int, str]  # run, generation, key of the stream
Records = Callable[[], Iterable[tuple[int, bytes | None]]]  # in order; None: unreadable


@attrs.frozen
class ValidPrefix:
    """The valid prefix of a stream.

    Attributes:
        progress: The sum of its valid records, up to the first damaged one.
        later: How many valid records follow after that.
        newest: The greatest sequence that exists at all.
    """

    progress: Progress
    later: int
    newest: int

    @property
    def through(self) -> int:
        """The sequence of the newest record in the prefix."""
        return self.progress.sequence

    def fold(self, seal: Seal) -> bytes:
        """The sealed fold of the prefix."""
        return seal.close(-self.through, encode_progress(self.progress))


def measure(seal: Seal, records: Records) -> ValidPrefix:
    """Find the valid prefix of a stream."""
    progress, bad, later, newest = Progress(), 0, 0, 0
    for sequence, payload in records():
        newest = max(newest, sequence)
        try:
            if payload is None:
                raise StoreDamagedError("it cannot be read")
            record = decode_record(seal.open(sequence, payload))
            if not bad:
                apply(progress, sequence, record)
            else:
                later += sequence > bad
        except StoreDamagedError:
            bad = bad or (sequence if sequence <= progress.sequence + 1 else progress.sequence + 1)
            later += _opens(seal, sequence, payload) and sequence > bad
    if bad:  # a record that could not be added may have changed a part of the sum
        progress = Progress()
        for sequence, payload in records():
            if sequence >= bad or payload is None:
                break
            apply(progress, sequence, decode_record(seal.open(sequence, payload)))
    return ValidPrefix(progress, later, newest)


def _opens(seal: Seal, sequence: int, payload: bytes | None) -> bool:
    try:
        return payload is not None and bool(decode_record(seal.open(sequence, payload)))
    except StoreDamagedError:
        return False


@attrs.frozen
class GapFill:
    """A stream in which notes replace lost records.

    Attributes:
        progress: The sum of its records.
        notes: The sealed notes, by sequence.
    """

    progress: Progress
    notes: dict[int, bytes]


def bridge(seal: Seal, records: Records, head: int) -> GapFill | None:
    """Replace lost records by notes; None: a later record builds on one of them.

    Args:
        seal: The seal of the stream.
        records: The records that exist.
        head: The newest record that existed, as far as is known.
    """
    progress, notes, at = Progress(), dict[int, bytes](), 0.0
    for sequence, payload in chain(records(), [(head + 1, None)]):
        try:
            record = None if payload is None else decode_record(seal.open(sequence, payload))
        except StoreDamagedError:
            record = None
        stop = sequence if record is not None or sequence > head else sequence + 1
        for lost in range(progress.sequence + 1, stop):
            if len(notes) >= MAX_NOTES:
                return None
            note = Record(kind=RecordKind.NOTE, at=at, metadata={"reason": LOST})
            apply(progress, lost, note)
            notes[lost] = seal.close(lost, encode_record(note))
        if record is None:
            continue
        if record.adds or _is_twice(record, progress):
            return None
        try:
            apply(progress, sequence, record)
        except StoreDamagedError:
            return None
        at = record.at
    return None if progress.is_ordered else GapFill(progress, notes)


def _is_twice(record: Record, progress: Progress) -> bool:
    """Whether a batch is confirmed again without having been re-queued: that record is lost."""
    if record.kind is not RecordKind.BATCH or record.index is None:
        return False
    return record.index in progress.confirmed


@attrs.define(eq=False)
class Salvage:
    """One repair of a store: where it keeps replaced files, and its results.

    Attributes:
        folder: The store's folder.
        mac_key: Seals the store's records.
        may_cut: Whether a stream may lose intact records that follow a damaged one.
        done: What was repaired.
        left: What was not repaired, and why.
        opened: How many records could be opened.
        reported: How many lost records of each run were reported.
    """

    folder: Path
    mac_key: bytes | None
    may_cut: bool
    done: list[Repaired] = attrs.field(factory=list[Repaired], init=False)
    left: list[Repaired] = attrs.field(factory=list[Repaired], init=False)
    opened: int = attrs.field(default=0, init=False)
    reported: Counter[str] = attrs.field(factory=Counter[str], init=False)
    _losses: Path | None = attrs.field(default=None, init=False)

    def is_cut(self, place: Place, sound: ValidPrefix, head: int) -> bool:
        """Whether a stream is to be cut off after its valid prefix; reports the loss."""
        run_id, _, stream = place
        where = f"stream {stream} of run {run_id!r}"
        self.opened += sound.through + sound.later
        end = max(head, sound.newest)
        if end <= sound.through:
            return False
        lost = plural(end - sound.through, "checkpoint") + f" from {sound.through + 1} on"
        if sound.later and not self.may_cut:
            what = f"{lost} cannot be continued, though {number(sound.later)} of them can be read: "
            self.left.append(Repaired(where, what + ACCEPT))
            return False
        what = f"{lost} lost: it goes on after {sound.through}"
        self.done.append(Repaired(where, what, is_loss=True))
        self.reported[run_id] += end - sound.through
        return True

    def bridged(self, place: Place, seal: Seal, records: Records, head: int) -> GapFill | None:
        """Replace lost records of a stream by notes, if possible, and report it."""
        found = bridge(seal, records, head)
        if found is not None and found.notes:
            run_id, _, stream = place
            lost = spans(IndexSet(found.notes).intervals())
            what = f"{plural(len(found.notes), 'checkpoint')} lost ({lost}): they run again, "
            what += "what was confirmed after them stays"
            self.done.append(Repaired(f"stream {stream} of run {run_id!r}", what, is_loss=True))
            self.opened += found.progress.sequence - len(found.notes)
        return found

    def is_reported(self, run_id: str, generation: int, records: int) -> bool:
        """Whether every acknowledged record of a run exists, or is reported as lost.

        Otherwise an older copy took its place, or a part of it is gone without a trace: the run
        is given up only if the user accepts the loss.
        """
        before = self._seen(run_id)
        if before is None or not before.is_ahead_of(generation, records) or self.may_cut:
            return True
        reported = self.reported[run_id]
        if before.generation == generation and before.records - records <= reported and records:
            return True
        there = plural(records, "checkpoint")
        what = f"{plural(before.records, 'checkpoint')} acknowledged, {there} to be read: "
        self.left.append(Repaired(f"run {run_id!r}", what + ACCEPT))
        return False

    def _seen(self, run_id: str) -> Watermark | None:
        try:
            return read_watermark(watermark_path(self.folder, run_id))
        except (OSError, ValueError):
            return None

    def need_opened(self) -> None:
        """Check that the records of this store can be opened at all.

        Raises:
            StoreError: none can be opened: the store is sealed with another key.
        """
        if not self.opened:
            raise StoreError(
                f"{self.folder}: not one record can be opened: it is sealed with another key, or "
                "nothing is left; nothing was changed, restore it from a copy"
            )

    def keep(self, path: Path) -> None:
        """Keep a durable copy of a file that is about to be replaced."""
        if path.exists():
            goal = self._goal(path)
            with open(path, "rb") as source, open(_new(goal), "wb") as target:
                shutil.copyfileobj(source, target, 2**20)
                target.flush()
                sync_file(target.fileno())
            sync_folder(goal.parent)

    def put_aside(self, path: Path) -> None:
        """Move a file out of the store, durably."""
        goal = self._goal(path)
        os.replace(path, goal)
        sync_folder(goal.parent)
        sync_folder(path.parent)

    def _goal(self, path: Path) -> Path:
        if self._losses is None:
            stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
            self._losses = self.folder / LOSSES / stamp
            self.done.append(Repaired(f"{LOSSES}/{stamp}", "what was replaced is kept there"))
        goal = self._losses / path.relative_to(self.folder)
        make_folder(goal.parent)
        return goal

    def put_bad_blobs_aside(self) -> None:
        """Move away blobs that do not match their names; their records then miss them."""
        for path in sorted((self.folder / "blobs").glob("??/*")):
            if len(path.name) == SHA256_DIGITS and (problem := blob_problem(path)) is not None:
                where = f"blobs/{path.parent.name}/{path.name}"
                self.put_aside(path)
                self.done.append(Repaired(where, f"{problem}: it was moved away", is_loss=True))

    def blobs_of(self, payload: bytes | None) -> tuple[str, ...]:
        """The attached blobs that a record needs for its saved state, and that exist.

        No seal covers the store's own list of them; the saved state itself names them.
        """
        try:
            state = decode_record(payload[DIGEST_BYTES:]).state if payload else b""
            blob = decode_frame(state).blob if state else ""
        except StoreDamagedError:
            return ()
        path = self.folder / "blobs" / blob[:2] / blob
        return (blob,) if blob and path.is_file() else ()

    def put_unnamed_blobs_aside(self, named: Collection[str]) -> None:
        """Move away blobs that no record names: after a repair their origin is unknown."""
        for path in sorted((self.folder / "blobs").glob("??/*")):
            if len(path.name) == SHA256_DIGITS and path.name not in named:
                self.put_aside(path)
                where = f"blobs/{path.parent.name}/{path.name}"
                self.done.append(Repaired(where, "no record names it: it was moved away"))

    def forget_gone(self, is_there: Callable[[str], bool]) -> None:
        """Move away watermarks of runs that are gone, if the user accepts the loss."""
        for path, seen in list(all_watermarks(self.folder)):
            if seen is not None and seen.records and not is_there(seen.run_id):
                where, gone = f"run {seen.run_id!r}", plural(seen.records, "checkpoint")
                if self.may_cut:
                    self.put_aside(path)
                    self.done.append(Repaired(where, f"it is gone, with {gone}", is_loss=True))
                else:
                    self.left.append(Repaired(where, f"it is gone, with {gone}: {ACCEPT}"))

    def put_bad_notes_aside(self) -> None:
        """Move away watermarks that cannot be read: the next owners write new ones."""
        for path, seen in list(all_watermarks(self.folder)):
            if seen is None:
                self.put_aside(path)
                what = "it was damaged: it was moved away"
                self.done.append(Repaired(f"lock/{path.name}", what))

    def note(self, seen: Watermark) -> None:
        """Set the watermark of a run to what is left, and report what is lost."""
        path, before = watermark_path(self.folder, seen.run_id), self._seen(seen.run_id)
        if before is None or before == seen:
            return
        if not self.is_reported(seen.run_id, seen.generation, seen.records):
            return
        self.keep(path)
        temporary = path.with_suffix(".tmp")
        with open(_new(temporary), "wb") as file:
            file.write(encode_watermark(seen))
            file.flush()
            sync_file(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
        if before.is_ahead_of(seen.generation, seen.records):
            left = plural(seen.records, "checkpoint")
            what = f"{plural(before.records, 'checkpoint')} acknowledged, {left} left"
            self.done.append(Repaired(f"run {seen.run_id!r}", what, is_loss=True))


def _new(path: Path) -> int:
    path.unlink(missing_ok=True)
    return open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
