"""Intents: what open batches put on record before they are done, which are notes and reservations.

Theory of operation
===================

An intent is a record of its own, of the kind INTENT.  It goes the way of every record, through the
group committer, so those of any number of batches share a commit.  `_journal.apply` adds it up:
the notes of each batch that is not confirmed, and what is reserved.  This ensures that the next
attempt, in this session or after a kill, reads what `note` has returned for.

Notes are about what a batch has set in motion outside of the run.  So they stay through failures,
retries, skips and re-queues, and are gone only when the batch is confirmed, when its stream begins
again from the beginning, or when another item in its place notes something.

A reservation that would exceed a limit is not made.  The run stops, and the body does not go on:
it is parked, as one in `Batch.waiting` is, until the other batches are saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import msgspec
import trio

from .._journal.notes import Notes, encode_note, note_bytes
from .._journal.record import Record, RecordKind
from .._util.arguments import text
from .._util.errors import NotEncodableError
from .._util.exact_sum import ExactSum, Number, add_amounts, add_sums, as_amount
from .._util.plain import Plain, as_amounts, as_plain
from .._util.text import number
from .._util.uninterrupted import uninterrupted
from .batch import AnyBatch, AttemptState, staged_of
from .group_commit import GroupCommitter
from .limit_watch import LimitWatch
from .reservations import Reservations
from .saves import save_record
from .shutdown import Stop
from .staged import Staged
from .stream_log import StreamLog

MAX_BATCH_NOTES = 32  # of a batch
MAX_NOTE_CHARS = 200  # of a name
MAX_NOTE_BYTES = 65_536  # of one note, with its name; more belongs into an output
MAX_STREAM_NOTES_BYTES = 2**26  # of all notes of a stream: they are in memory, and in each fold


@uninterrupted
@attrs.define(eq=False, repr=False)
class Intents:
    """Saves what the open batches of one stream note and reserve.

    Attributes:
        is_used: Whether an attempt has reserved something, or a note with a cost.
    """

    _stream_log: StreamLog
    _committer: GroupCommitter
    _stop: Stop
    _limits: LimitWatch | None
    _introduce: Callable[[Record], Record]
    is_used: bool = attrs.field(default=False, init=False)
    _changing: set[tuple[int, str]] = attrs.field(factory=set[tuple[int, str]], init=False)

    def notes_of(self, batch: AnyBatch) -> dict[str, Plain]:
        """Copies of the notes of a batch, by name."""
        notes = self._stream_log.progress.notes
        return {} if notes is None else notes.of(batch.index, staged_of(batch).digest)

    async def note(
        self, batch: AnyBatch, name: str, value: Any, cost: Mapping[str, Number]
    ) -> None:
        """Save a note, see `Batch.note`."""
        _check_open(batch, "note")
        plain = as_plain(value, "value")
        self._check_limits(batch, text("name", name), encode_note(plain))
        given, place = as_amounts(cost, "note", least=0), (batch.index, name)
        if place in self._changing:
            raise RuntimeError(
                f"the note {name!r} of batch {batch.index} is being saved: wait for that first"
            )
        self._changing.add(place)
        try:
            notes = self._stream_log.progress.notes or Notes()
            change = notes.change_of(*place, given, staged_of(batch).digest)
            await self._make_room(batch, change)
            await self._save(batch, change, metadata={name: plain})
        finally:
            self._changing.discard(place)

    def _check_limits(self, batch: AnyBatch, name: str, payload: bytes) -> None:
        as_plain(name, "name")  # which refuses lone surrogates
        if len(name) > MAX_NOTE_CHARS:
            raise ValueError(f"name must have at most {MAX_NOTE_CHARS} characters, not {len(name)}")
        size, notes = note_bytes(name, payload), self._stream_log.progress.notes or Notes()
        if size > MAX_NOTE_BYTES:
            raise NotEncodableError(
                "value",
                f"the note {name!r} has {number(size)} bytes, over {number(MAX_NOTE_BYTES)}: "
                "put large values into an output, and note its name",
            )
        mine = notes.of_item(batch.index, staged_of(batch).digest)
        if name not in mine and len(mine) >= MAX_BATCH_NOTES:
            raise ValueError(f"batch {batch.index} has {MAX_BATCH_NOTES} notes, which is the limit")
        more = size - (note_bytes(name, mine[name].payload) if name in mine else 0)
        if more > 0 and notes.nbytes + more > MAX_STREAM_NOTES_BYTES:
            raise ValueError(
                f"the notes of the stream have {number(notes.nbytes)} bytes, of at most "
                f"{number(MAX_STREAM_NOTES_BYTES)}: they are gone when their batches are confirmed"
            )

    async def reserve(self, batch: AnyBatch, amounts: Mapping[str, Number]) -> None:
        """Save a reservation, see `Batch.reserve`."""
        _check_open(batch, "reserve")
        given, staged = as_amounts(amounts, "reserve", least=0), staged_of(batch)
        mine = self._reservations_of(staged)
        change = mine.change(staged.spent, given)
        await self._make_room(batch, change)
        mine.add(given, change)
        try:
            await self._save(batch, change, on_durable=lambda: add_sums(mine.saved, change))
        except BaseException:
            mine.take_back(given, change)
            raise

    def _reservations_of(self, staged: Staged) -> Reservations:
        """What an attempt has reserved; made on first use."""
        self.is_used = True
        staged.reservations = staged.reservations or Reservations()
        return staged.reservations

    async def _make_room(self, batch: AnyBatch, change: Mapping[str, ExactSum]) -> None:
        """Count what is reserved; where a limit has no room, stop the run and never return.

        The stop ends the body when the other batches are saved.
        """
        if self._limits is not None and not self._limits.reserve(change):
            async with self._stop.aside(batch.token):
                await trio.sleep_forever()

    async def _save(
        self,
        batch: AnyBatch,
        change: Mapping[str, ExactSum],
        *,
        metadata: dict[str, Plain] | None = None,
        on_durable: Callable[[], None] = lambda: None,
    ) -> None:
        record = Record(
            kind=RecordKind.INTENT,
            at=time.time(),
            index=batch.index,
            item=staged_of(batch).digest,
            attempts=batch.attempt,
            metadata=metadata or {},
            reserved={of: as_amount(total) for of, total in change.items()} or None,
        )
        record = self._introduce(record)
        try:
            await save_record(self._committer, self._stream_log, record, on_durable=on_durable)
        except BaseException:
            if self._limits is not None:
                self._limits.unreserve(change)
            raise

    def costs_of(self, index: int) -> dict[str, ExactSum]:
        """What the notes of a batch cost together."""
        notes = self._stream_log.progress.notes
        return {} if notes is None else notes.costs(index)

    def with_costs(self, batch: AnyBatch, record: Record) -> Record:
        """The record of a confirmed batch with what its notes cost: it is spent now.

        Args:
            batch: The attempt.
            record: Its record, without that.
        """
        costs = self.costs_of(batch.index)
        if not costs:
            return record
        self._reservations_of(staged_of(batch)).of_notes = costs
        spent, reserved = dict[str, ExactSum](), dict[str, ExactSum]()
        add_amounts(spent, record.spent)
        add_sums(spent, costs)
        add_amounts(reserved, record.reserved or {})
        add_sums(reserved, costs, sign=-1)
        return msgspec.structs.replace(
            record,
            spent={of: as_amount(total) for of, total in spent.items()},
            reserved={of: as_amount(total) for of, total in reserved.items()},
        )

    def end(self, batch: AnyBatch, *, is_confirmed: bool) -> None:
        """Count what an attempt has reserved as spent, because the attempt is over.

        What its last record takes out of the sum is counted with that record.

        Args:
            batch: The attempt.
            is_confirmed: Whether its batch is confirmed, and its notes are gone with it.
        """
        reservations = staged_of(batch).reservations
        if self._limits is not None and reservations is not None:
            self._limits.end_reserved(reservations.submitted)
            if is_confirmed:
                self._limits.end_reserved(reservations.of_notes)


def saved_sums(batches: Mapping[int, AnyBatch]) -> dict[str, ExactSum]:
    """What open batches have reserved, as far as it is durable."""
    sums = dict[str, ExactSum]()
    for batch in batches.values():
        if (mine := staged_of(batch).reservations) is not None:
            add_sums(sums, mine.saved)
    return sums


def _check_open(batch: AnyBatch, method: str) -> None:
    if batch.state is not AttemptState.OPEN:
        raise RuntimeError(
            f"attempt {batch.attempt} at batch {batch.index} is {batch.state.value}: {method}() is "
            "for an attempt that is not settled"
        )
