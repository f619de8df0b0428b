"""Outputs are the truth: what the records name is looked at before it is believed.

The newest records of a stream are checked before its first batch, the rest beside the
run, a page at a time.  What is missing or altered goes back to work, by a REDO record
that takes back what the batch had added.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from typing import Literal

import attrs

from ._errors import CannotRedoError, OutputClaimedError, OutputsMissingError, describe_batch
from ._gate import Desk
from ._records import Kind, Record, decode_record
from ._threads import run_blocking
from .abc import Store
from .outputs import OutputDir

log = logging.getLogger("trio_ckpt.verify")

Verify = Literal["off", "size", "sha256"]

PAGE = 1_000  # records that are held and checked at a time
MISSING_MANY = 10  # more than these, and more than a tenth: the folder is in doubt
MISSING_SHARE = 0.1


@attrs.frozen
class Damage:
    """A confirmed batch whose outputs are not what was confirmed."""

    index: int
    record: Record
    path: str
    reason: str


async def read_pages(store: Store, desk: Desk) -> AsyncGenerator[list[Record]]:
    """The records of a stream, newest first, a page at a time.

    Raises:
        StoreDamagedError: one is not what was saved.
    """
    lane, cursor = desk.lane, None
    key = desk.saver.run_key
    while True:
        page = await store.history(
            key.run_id, lane.text, generation=key.generation, cursor=cursor, limit=PAGE
        )
        yield [decode_record(lane.seal.open(s.sequence, s.payload)) for s in page.records]
        cursor = page.cursor
        if cursor is None:
            return


@attrs.define(eq=False)
class Verifier:
    """Checks the outputs of one stream, newest first.

    Attributes:
        mode: How closely.
        redo_missing: Go on even if very many are gone.
    """

    desk: Desk
    mode: Verify
    redo_missing: bool
    _superseded: set[int] = attrs.field(factory=set[int], init=False)

    async def check(self, records: list[Record]) -> None:
        """Check a page of records, and put back to work what is damaged.

        Raises:
            OutputsMissingError: so many are gone that the folder itself is in doubt.
            CannotRedoError: a damaged batch cannot be redone alone.
            OutputClaimedError: two batches have confirmed one file.
        """
        current = self._current(records)
        outputs, damages = self.desk.outputs, list[Damage]()
        if current and self.mode != "off" and outputs is not None:
            damages = await run_blocking(_find_damages, outputs, current, self.mode)
        self._refuse_many(damages, len(current))
        if damages:
            await self._redo(damages)
        damaged = {damage.index for damage in damages}
        for record in current:
            if record.index not in damaged:
                self._claim(record)

    def _current(self, records: list[Record]) -> list[Record]:
        """Those with outputs that still stand: the newest record of each confirmed batch."""
        current: list[Record] = []
        for record in records:
            if record.kind is Kind.REDO:
                self._superseded.update(record.indexes)
            elif record.kind is Kind.BATCH and record.outputs:
                index = record.index
                confirmed = self.desk.lane.progress.confirmed
                if index is None or index in self._superseded or index not in confirmed:
                    continue
                current.append(record)
        return current

    def _claim(self, record: Record) -> None:
        owner = (self.desk.lane.text, record.index or 0)
        for output in record.outputs:
            has = self.desk.claims.setdefault(output.path, owner)
            if has != owner:
                raise OutputClaimedError(
                    output.path, f"batch {has[1]} of {has[0]} and batch {owner[1]} of {owner[0]}"
                )

    def _refuse_many(self, damages: list[Damage], checked: int) -> None:
        missing = [damage for damage in damages if damage.reason == "missing"]
        if len(missing) > max(MISSING_MANY, checked * MISSING_SHARE) and not self.redo_missing:
            raise OutputsMissingError(
                missing[0].path,
                f"and {len(missing) - 1} more of {checked} confirmed outputs are missing: is this "
                "the right output folder? redo_missing=True does their batches again",
                run_id=self.desk.run_id,
                stream=self.desk.lane.key,
            )

    async def _redo(self, damages: list[Damage]) -> None:
        desk = self.desk
        progress = desk.lane.progress
        if progress.cursor is not None or desk.codec is not None or progress.sinks:
            first = min(damages, key=lambda damage: damage.index)
            raise CannotRedoError(
                first.path,
                f"is {first.reason}, and batch {first.index} cannot be redone alone because later "
                "ones build on it; restore the file, or archive the run with fresh=True and "
                "begin again",
                run_id=desk.run_id,
                stream=desk.lane.key,
                batch_index=first.index,
            )
        for damage in damages:
            where = describe_batch(desk.run_id, desk.lane.key, damage.index)
            log.warning("%s goes back to work: %s is %s", where, damage.path, damage.reason)
            await desk.save_plain(
                Record(
                    kind=Kind.REDO,
                    at=time.time(),
                    indexes=(damage.index,),
                    records=damage.record.records,
                    totals=damage.record.totals,
                    metadata={"path": damage.path, "reason": damage.reason},
                )
            )
            self._superseded.add(damage.index)
            desk.put_back(damage.index)


def _find_damages(outputs: OutputDir, records: list[Record], mode: Verify) -> list[Damage]:
    damages: list[Damage] = []
    for record in records:
        for output in record.outputs:
            reason = outputs.check(output, "sha256" if mode == "sha256" else "size")
            if reason is not None:
                damages.append(Damage(record.index or 0, record, output.path, reason))
                break
    return damages
