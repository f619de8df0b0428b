"""One repair of a local store: what it changed, what it lost, and where it keeps what it replaced.

Nothing is changed in place.  A file is copied into ``damaged/TIME/`` before it is replaced, and the
new one is written beside it and renamed.  Blocking functions.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import attrs

from .._journal.record import Seal
from .._journal.store import Repaired
from .._util.errors import StoreError
from .._util.index_set import IndexSet
from .._util.plain import decode_key
from .._util.text import number, plural
from ..stores._local.blobs import Blobs, is_digest
from ..stores._local.check import DAMAGED, blob_problem
from ..stores._local.files import make_folder, open_file, sync_file, sync_folder, write_durably
from ..stores._local.watermark import (
    Watermark,
    all_watermarks,
    encode_watermark,
    read_watermark,
    watermark_path,
)

ACCEPT = "--accept-loss goes on without them, and their batches run again"


@attrs.frozen
class StreamPlace:
    """Where a stream is in a store; its key is text."""

    run_id: str
    generation: int
    key: str

    def __str__(self) -> str:
        return f"stream {self.key} of run {self.run_id!r}"

    def seal(self, mac_key: bytes | None) -> Seal:
        """Return the seal of its records.

        Raises:
            StoreDamagedError: the text is not a key.
        """
        return Seal(self.run_id, self.generation, decode_key(self.key), mac_key)


@attrs.define(eq=False)
class Recovery:
    """One repair of a store.

    Attributes:
        folder: The store's folder.
        mac_key: Seals the store's records.
        accept_loss: Whether a stream may lose intact records that follow a damaged one.
        done: What was repaired.
        left: What was not repaired, and why.
        opened: How many records could be opened.
        reported: How many lost records of each run were reported.
    """

    folder: Path
    mac_key: bytes | None
    accept_loss: bool
    done: list[Repaired] = attrs.field(factory=list[Repaired], init=False)
    left: list[Repaired] = attrs.field(factory=list[Repaired], init=False)
    opened: int = attrs.field(default=0, init=False)
    reported: Counter[str] = attrs.field(factory=Counter[str], init=False)
    _losses: Path | None = attrs.field(default=None, init=False)

    # -- what is lost ---------------------------------------------------------------------

    def report(self, where: object, what: str, *, is_loss: bool = False) -> None:
        """Add a step that was done."""
        self.done.append(Repaired(str(where), what, is_loss))

    def leave(self, where: object, what: str, *, is_loss: bool = False) -> None:
        """Add what is not repaired, and why."""
        self.left.append(Repaired(str(where), what, is_loss))

    def report_filled(self, place: StreamPlace, lost: Collection[int]) -> None:
        """Report that notes replace lost records of a stream."""
        what = f"{plural(len(lost), 'checkpoint')} lost ({IndexSet(lost)}): "
        what += "they run again, what was confirmed after them stays"
        self.report(place, what, is_loss=True)

    def may_cut(self, place: StreamPlace, through: int, later: int, newest: int) -> bool:
        """Report that a stream ends after its valid prefix; return whether it may be cut there.

        Args:
            place: The stream.
            through: The newest record of the prefix.
            later: How many valid records follow.
            newest: The newest record that existed, as far as is known.
        """
        lost = f"{plural(newest - through, 'checkpoint')} from {through + 1} on"
        if later and not self.accept_loss:
            what = f"{lost} cannot be continued, though {number(later)} of them can be read: "
            self.leave(place, what + ACCEPT)
            return False
        self.report(place, f"{lost} lost: it goes on after {through}", is_loss=True)
        self.reported[place.run_id] += newest - through
        return True

    def is_reported(self, run_id: str, generation: int, records: int) -> bool:
        """Whether every acknowledged record of a run exists, or is reported as lost.

        Otherwise an older copy took its place, or a part of it is gone without a trace: the run
        is given up only if the user accepts the loss.
        """
        before = self.seen(run_id)
        if before is None or not before.is_ahead_of(generation, records) or self.accept_loss:
            return True
        reported = self.reported[run_id]
        if before.generation == generation and before.records - records <= reported and records:
            return True
        there = plural(records, "checkpoint")
        what = f"{plural(before.records, 'checkpoint')} acknowledged, {there} to be read: "
        self.leave(f"run {run_id!r}", what + ACCEPT)
        return False

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

    # -- files ----------------------------------------------------------------------------

    def keep(self, path: Path) -> None:
        """Keep a durable copy of a file that is about to be replaced."""
        if path.exists():
            goal = self._goal(path)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with open(path, "rb") as source, open(open_file(goal, flags), "wb") as target:
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
            self._losses = self.folder / DAMAGED / stamp
            self.report(f"{DAMAGED}/{stamp}", "what was replaced is kept there")
        goal = self._losses / path.relative_to(self.folder)
        make_folder(goal.parent)
        return goal

    def put_bad_blobs_aside(self) -> None:
        """Move away blobs that do not match their names; their records then miss them."""
        for where, path in self._blobs():
            if (problem := blob_problem(path)) is not None:
                self.put_aside(path)
                self.report(where, f"{problem}: it was moved away", is_loss=True)

    def put_unnamed_blobs_aside(self, names: Iterable[tuple[str, str]]) -> None:
        """Move away blobs that no record names: after a repair their origin is unknown.

        Args:
            names: Runs, and the digests that they name.
        """
        named = {
            Blobs(self.folder, run_id).find(digest)
            for run_id, digest in names
            if is_digest(str(digest))
        }
        for where, path in self._blobs():
            if path not in named:
                self.put_aside(path)
                self.report(where, "no record names it: it was moved away")

    def _blobs(self) -> Iterator[tuple[str, Path]]:
        for path in sorted((self.folder / "blobs").glob("*/*")):
            if is_digest(path.name):
                yield str(path.relative_to(self.folder)), path

    # -- watermarks -----------------------------------------------------------------------

    def seen(self, run_id: str) -> Watermark | None:
        """Return the watermark of a run; None: it is missing or damaged."""
        try:
            return read_watermark(watermark_path(self.folder, run_id))
        except (OSError, StoreError, ValueError):
            return None

    def forget_gone(self, is_there: Callable[[str], bool]) -> None:
        """Move away watermarks of runs that are gone, if the user accepts the loss."""
        for path, seen in list(all_watermarks(self.folder)):
            if seen is not None and seen.records and not is_there(seen.run_id):
                where, what = f"run {seen.run_id!r}", f"it is gone, with {_count(seen)}"
                if self.accept_loss:
                    self.put_aside(path)
                    self.report(where, what, is_loss=True)
                else:
                    self.leave(where, f"{what}: {ACCEPT}")

    def put_bad_watermarks_aside(self) -> None:
        """Move away watermarks that cannot be read: the next owners write new ones."""
        for path, seen in list(all_watermarks(self.folder)):
            if seen is None:
                self.put_aside(path)
                self.report(f"lock/{path.name}", "it was damaged: it was moved away")

    def set_watermark(self, seen: Watermark) -> None:
        """Set the watermark of a run to what is left, and report what is lost."""
        path, before = watermark_path(self.folder, seen.run_id), self.seen(seen.run_id)
        if before is None or before == seen:
            return
        if not self.is_reported(seen.run_id, seen.generation, seen.records):
            return
        self.keep(path)
        temporary = path.with_suffix(".tmp")
        write_durably(temporary, encode_watermark(seen))
        os.replace(temporary, path)
        sync_folder(path.parent)
        if before.is_ahead_of(seen.generation, seen.records):
            what = f"{_count(before)} acknowledged, {_count(seen)} left"
            self.report(f"run {seen.run_id!r}", what, is_loss=True)


def _count(seen: Watermark) -> str:
    return plural(seen.records, "checkpoint")
