"""Verification on resume: the outputs that records name are checked against the files.

The newest records of a stream are checked before its first batch, the rest beside the
run, a page at a time.  Batches whose outputs are missing, altered or invalid are re-queued.

Where batches build on each other all records are checked before the first batch, because
the stream is then rewound to before the first damaged one, which is impossible while a loop
runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import attrs
import msgspec
import trio

from .._commit.open_stream import OpenStream
from .._commit.redo import Redo
from .._journal.history import LiveRecord, LiveRecords
from .._journal.record import Record
from .._util.errors import CannotRedoError, OutputInvalidError, OutputsMissingError, describe_batch
from .._util.index_set import IndexSet
from .._util.log import get_logger
from .._util.text import printable
from .._util.threads import run_blocking
from ..outputs import Outputs, find_lines_damage

if TYPE_CHECKING:
    from ..outputs._validate import Validator

log = get_logger(__name__)

Verify = Literal["off", "size", "sha256"]

MISSING_MANY = 10  # with more than these, and more than a tenth, the folder may be the wrong one
MISSING_SHARE = 0.1
MISSING = "missing"


@attrs.define(eq=False, repr=False)
class Verifier:
    """Checks the outputs of one stream, newest first.

    Attributes:
        open_stream: The stream.
        redo: Re-queues batches with damaged outputs.
        mode: How files are compared.
        redo_missing: Whether to go on even if very many outputs are missing.
    """

    open_stream: OpenStream
    redo: Redo
    mode: Verify
    redo_missing: bool
    _live: LiveRecords = attrs.field(init=False)
    _was_ordered: bool = attrs.field(init=False)
    _ends: dict[str, int] = attrs.field(init=False)
    _validator: Validator | None = attrs.field(init=False)
    _first_bad: Damage | None = attrs.field(default=None, init=False)
    _checked: int = attrs.field(default=0, init=False)
    _missing: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        stream_log = self.open_stream.stream_log
        stream_log.tools.redone = IndexSet()  # batches re-queued earlier have no live record now
        self._live = LiveRecords(stream_log.progress)
        self._was_ordered = stream_log.progress.is_ordered
        self._ends = dict(stream_log.progress.sinks)
        self._validator = self.open_stream.files.validator  # a loop may have another

    async def check(self, records: list[tuple[int, Record]]) -> None:
        """Check a page of records, and re-queue batches with damaged outputs.

        Where batches build on each other the first damage is only stored, for `rewind`.

        Raises:
            OutputsMissingError: so many outputs are missing that the folder may be the wrong one.
            OutputClaimedError: two batches have confirmed one file.
            CannotRedoError: an output is damaged, and open batches build on its batch.
        """
        live = self._live.of(records)
        entries = [entry for entry in live if entry.record.outputs]
        files, damages = self.open_stream.files, list[Damage]()
        if self.mode != "off" and files.root is not None:
            damages = await find_damages(files.root, entries, self.mode, self._validator)
            if self._ends and self.mode == "sha256":  # their length is checked elsewhere
                damages += await run_blocking(find_lines_damages, files.root, live, self._ends)
        self._checked += len(entries)
        damages = [damage for damage in damages if self._is_live(damage.entry)]
        self._refuse_many(damages)
        damaged = {damage.entry.index for damage in damages}
        for entry in entries:
            if entry.index not in damaged and self._is_live(entry):
                files.claim_confirmed(entry.index, entry.record.outputs)
        for damage in damages:
            await self._take(damage)

    def _is_live(self, entry: LiveRecord) -> bool:
        """Whether a record that was live when the verification began still is.

        A batch that was re-queued since and is confirmed again has a newer record.
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
        if not self._is_live(entry):  # it may have changed while others were saved
            return
        # Without the claim the file of another batch could be moved.
        self.open_stream.files.claim_confirmed(entry.index, entry.record.outputs)
        where = describe_batch(
            self.open_stream.run_id, self.open_stream.stream_log.key, entry.index
        )
        reason = printable(damage.reason)
        log.warning(
            "%s is re-queued: %s is %s",
            where,
            damage.path,
            reason,
            extra=self.open_stream.place(entry.index),
        )
        if self._was_ordered:
            if self._first_bad is None or entry.sequence < self._first_bad.entry.sequence:
                self._first_bad = damage
        elif self.open_stream.stream_log.progress.is_ordered:
            raise CannotRedoError(
                damage.path,
                f"{reason}, and batches of this session build on earlier ones; restart the "
                "program, which rewinds the stream",
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


# -- comparing the outputs of records with their files: of a resume, or of a check --------------


class Damage(msgspec.Struct, frozen=True):
    """A confirmed batch with an output that differs from its record."""

    entry: LiveRecord
    path: str
    reason: str


async def find_damages(
    outputs: Outputs,
    entries: Sequence[LiveRecord],
    mode: Literal["size", "sha256"],
    validator: Validator | None = None,
) -> list[Damage]:
    """Compare the outputs of records with their files, several at once.

    Cancellation: files that the threads have begun are finished.
    """
    if mode == "size" and validator is None:
        entries = await run_blocking(_find_changed, outputs, entries)
    large = [entry for entry in entries if _is_large(entry.record, outputs.large_bytes)]
    small = [entry for entry in entries if not _is_large(entry.record, outputs.large_bytes)]
    threads = outputs.at_once
    parts = [small, *(large[part::threads] for part in range(threads))]
    found: list[Damage] = []
    errors: list[Exception] = []

    async def check_part(part: Sequence[LiveRecord]) -> None:
        try:
            found.extend(await run_blocking(_find_damages, outputs, part, mode, validator))
        except Exception as error:  # raised below, alone
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for part in filter(None, parts):
            nursery.start_soon(check_part, part)
    if errors:
        raise errors[0]
    return sorted(found, key=lambda damage: -damage.entry.sequence)


def find_lines_damages(
    outputs: Outputs,
    entries: Sequence[LiveRecord],
    ends: dict[str, int],
    *,
    by_digest: bool = True,
) -> list[Damage]:
    """Compare the lines that batches appended with their files.  Blocks.

    Args:
        outputs: The folder of the files.
        entries: The batches, newest first, none left out.
        ends: For each file, the offset in bytes where the lines of the first batch end; it is
            moved in place.
        by_digest: Whether to compare their content, too, not only their presence.
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


def _is_large(record: Record, large_bytes: int) -> bool:
    return any(output.size >= large_bytes for output in record.outputs)


def _find_changed(outputs: Outputs, entries: Sequence[LiveRecord]) -> list[LiveRecord]:
    """Return the records with an output that has another size or time now.  Blocks."""
    with outputs.unchanged() as is_unchanged:
        return [entry for entry in entries if not all(map(is_unchanged, entry.record.outputs))]


def _find_damages(
    outputs: Outputs,
    entries: Sequence[LiveRecord],
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
                from ..outputs._validate import check_outputs  # few programs validate

                try:
                    check_outputs(outputs, listed, validator)
                except OutputInvalidError as error:
                    reason = (
                        f"invalid: {error.field}: {error.reason}" if error.field else error.reason
                    )
                    damages.append(Damage(entry, error.path, reason))
    return damages
