"""Outputs are the truth: what the records name is looked at before it is believed.

The newest records of a stream are checked before its first batch, the rest beside the
run, a page at a time.  What is missing, altered or invalid goes back to work.

Where batches build on each other all records are checked before the first batch, because
the stream is then rewound to before the first bad one, which cannot be done under a loop
that is running.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import attrs
import trio

from .._commit.open_stream import OpenStream
from .._commit.redo import Redo
from .._journal.history import LiveRecords, StandingRecord
from .._journal.record import Record
from .._util.errors import CannotRedoError, OutputInvalidError, OutputsMissingError, describe_batch
from .._util.index_set import IndexSet
from .._util.log import at
from .._util.text import printable
from .._util.threads import run_blocking
from ..outputs import OutputDir, Validator, check_outputs, find_lines_damage

log = logging.getLogger("trio_ckpt.verify")

Verify = Literal["off", "size", "sha256"]

PARALLEL = 4  # threads that look at files: hashing and waiting for disks leave the GIL
MISSING_MANY = 10  # more than these, and more than a tenth: the folder is in doubt
MISSING_SHARE = 0.1
MISSING = "missing"


@attrs.frozen
class Damage:
    """A confirmed batch whose outputs are not what was confirmed."""

    entry: StandingRecord
    path: str
    reason: str


@attrs.define(eq=False)
class Verifier:
    """Checks the outputs of one stream, newest first.

    Attributes:
        open_stream: The stream.
        redo: Puts what is damaged back to work.
        mode: How closely.
        redo_missing: Go on even if very many are gone.
    """

    open_stream: OpenStream
    redo: Redo
    mode: Verify
    redo_missing: bool
    _standing: LiveRecords = attrs.field(init=False)
    _was_ordered: bool = attrs.field(init=False)
    _ends: dict[str, int] = attrs.field(init=False)
    _validator: Validator | None = attrs.field(init=False)
    _first_bad: Damage | None = attrs.field(default=None, init=False)
    _checked: int = attrs.field(default=0, init=False)
    _missing: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        stream_log = self.open_stream.stream_log
        stream_log.tools.redone = (
            IndexSet()
        )  # what was put back before does not stand at this moment
        self._standing, self._was_ordered = (
            LiveRecords(stream_log.progress),
            stream_log.progress.is_ordered,
        )
        self._ends = dict(stream_log.progress.sinks)
        self._validator = self.open_stream.files.validator  # a loop may have another

    async def check(self, records: list[tuple[int, Record]]) -> None:
        """Check a page of records, and put back to work what is damaged.

        Where batches build on each other it is only remembered, for `rewind`.

        Raises:
            OutputsMissingError: so many are gone that the folder itself is in doubt.
            OutputClaimedError: two batches have confirmed one file.
            CannotRedoError: one is damaged, and batches that are under way build on it.
        """
        standing = self._standing.of(records)
        entries = [entry for entry in standing if entry.record.outputs]
        files, damages = self.open_stream.files, list[Damage]()
        if self.mode != "off" and files.root is not None:
            damages = await find_damages(files.root, entries, self.mode, self._validator)
            if self._ends and self.mode == "sha256":  # their length is looked at anyway
                damages += await run_blocking(find_lines_damages, files.root, standing, self._ends)
        self._checked += len(entries)
        damages = [damage for damage in damages if self._stands(damage.entry)]
        self._refuse_many(damages)
        damaged = {damage.entry.index for damage in damages}
        for entry in entries:
            if entry.index not in damaged and self._stands(entry):
                files.claim_confirmed(entry.index, entry.record.outputs)
        for damage in damages:
            await self._take(damage)

    def _stands(self, entry: StandingRecord) -> bool:
        """Whether a record that stood when the verification began stands still.

        A batch that was put back since and is confirmed again has a newer one.
        """
        stream_log = self.open_stream.stream_log
        return (
            entry.index in stream_log.progress.confirmed
            and entry.index not in stream_log.tools.redone
        )

    async def rewind(self) -> None:
        """Rewind the stream to before the first damaged batch, if there was one."""
        damage, self._first_bad = self._first_bad, None
        if damage is not None:
            reason = f"{damage.path} is {damage.reason}, and later batches build on it"
            await self.redo.rewind_before(damage.entry.sequence, reason)

    async def _take(self, damage: Damage) -> None:
        entry = damage.entry
        if not self._stands(entry):  # those before it were saved meanwhile
            return
        self.open_stream.files.claim_confirmed(
            entry.index, entry.record.outputs
        )  # or another's is moved
        where = describe_batch(
            self.open_stream.run_id, self.open_stream.stream_log.key, entry.index
        )
        reason = printable(damage.reason)
        log.warning(
            "%s goes back to work: %s is %s",
            where,
            damage.path,
            reason,
            extra=at(self.open_stream.run_id, self.open_stream.stream_log.key, entry.index),
        )
        if self._was_ordered:
            if self._first_bad is None or entry.sequence < self._first_bad.entry.sequence:
                self._first_bad = damage
        elif self.open_stream.stream_log.progress.is_ordered:
            raise CannotRedoError(
                damage.path,
                f"{reason}, and batches of this session build on those before them; start the "
                "program again: it rewinds the stream",
                run_id=self.open_stream.run_id,
                stream=self.open_stream.stream_log.key,
                batch_index=entry.index,
            )
        else:
            await self.redo.take_damaged(entry, damage.path, damage.reason)

    def _refuse_many(self, damages: list[Damage]) -> None:
        missing = [damage for damage in damages if damage.reason == MISSING]
        self._missing += len(missing)
        is_mass = self._missing > max(MISSING_MANY, self._checked * MISSING_SHARE)
        if missing and is_mass and not self.redo_missing:
            raise OutputsMissingError(
                missing[0].path,
                f"and {self._missing - 1} more of {self._checked} are missing: is this "
                "the right output folder? redo_missing=True does their batches again",
                run_id=self.open_stream.run_id,
                stream=self.open_stream.stream_log.key,
            )


async def find_damages(
    outputs: OutputDir,
    entries: Sequence[StandingRecord],
    mode: Literal["size", "sha256"],
    validator: Validator | None = None,
) -> list[Damage]:
    """Compare the outputs of records with the files that are there, several at once.

    Cancellation: what the threads have begun is waited for.
    """
    found: list[Damage] = []
    errors: list[Exception] = []

    async def look(part: int) -> None:
        try:
            found.extend(
                await run_blocking(_find_damages, outputs, entries[part::PARALLEL], mode, validator)
            )
        except Exception as error:  # raised below, alone
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for part in range(min(PARALLEL, len(entries))):
            nursery.start_soon(look, part)
    if errors:
        raise errors[0]
    return sorted(found, key=lambda damage: -damage.entry.sequence)


def find_lines_damages(
    outputs: OutputDir,
    entries: Sequence[StandingRecord],
    ends: dict[str, int],
    *,
    by_digest: bool = True,
) -> list[Damage]:
    """Compare the lines that batches appended with the files that are there.  Blocks.

    Args:
        outputs: Where the files are.
        entries: The batches, newest first, none left out.
        ends: Where the lines of the first of them end, per file; moved on in place.
        by_digest: Their content, too, not only whether they are there.
    """
    damages: list[Damage] = []
    for entry in entries:
        for lines in entry.record.lines:
            ends[lines.path] -= lines.size
            digest = lines.digest if by_digest else None
            reason = find_lines_damage(outputs, lines.path, ends[lines.path], lines.size, digest)
            if reason is not None:
                damages.append(Damage(entry, lines.path, reason))
    return damages


def _find_damages(
    outputs: OutputDir,
    entries: Sequence[StandingRecord],
    mode: Literal["size", "sha256"],
    validator: Validator | None,
) -> list[Damage]:
    damages: list[Damage] = []
    for entry in entries:
        listed = entry.record.outputs
        for output in listed:
            reason = outputs.check(output, mode)
            if reason is not None:
                damages.append(Damage(entry, output.path, reason))
                break
        else:
            if validator is not None:
                try:
                    check_outputs(outputs, listed, validator)
                except OutputInvalidError as error:
                    reason = (
                        f"invalid: {error.field}: {error.reason}" if error.field else error.reason
                    )
                    damages.append(Damage(entry, error.path, reason))
    return damages
