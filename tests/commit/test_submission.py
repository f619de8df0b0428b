"""What the record of an attempt says that is not confirmed."""

from __future__ import annotations

import pytest

from tests.opening import begin
from trio_ckpt._commit.exits import Ending
from trio_ckpt._commit.gate import Gate
from trio_ckpt._commit.submission import record_of_end
from trio_ckpt._journal.observer import AttemptEnd
from trio_ckpt._journal.record import Record, RecordKind
from trio_ckpt._runs.stream import loop_cursor_of

DUE = 2_000_000_000.0


async def end(ending: Ending) -> Record:
    """The record of the first attempt at batch 7, which has spent something."""
    async with begin() as run, run.open_stream("s") as stream:
        gate: Gate = loop_cursor_of(stream).gate
        batch = gate.hand_out(7, "item", b"12345678")
        batch.spend(cost_usd=1)
        return record_of_end(batch, ending)


@pytest.mark.parametrize(
    ("ending", "kind", "attempts"),
    [
        (Ending(AttemptEnd.FAILED, OSError("no")), RecordKind.ATTEMPT, 1),
        (Ending(AttemptEnd.RETRIED, OSError("no")), RecordKind.ATTEMPT, 1),
        (Ending(AttemptEnd.SKIPPED, "empty"), RecordKind.SKIP, 1),
        (Ending(AttemptEnd.DEFERRED, OSError("no"), due=DUE), RecordKind.ATTEMPT, 1),
        (Ending(AttemptEnd.DEFERRED, due=DUE), RecordKind.ATTEMPT, 0),
    ],
)
async def test_it_says_how_the_attempt_ended(
    ending: Ending, kind: RecordKind, attempts: int
) -> None:
    record = await end(ending)
    assert (record.kind, record.index, record.item) == (kind, 7, b"12345678")
    assert (record.attempts, record.due, record.spent) == (attempts, ending.due, {"cost_usd": 1})
    assert (record.error is None) is (ending.error is None)


async def test_a_withdrawn_batch_leaves_only_its_cost() -> None:
    record = await end(Ending(AttemptEnd.WITHDRAWN))
    assert (record.kind, record.index, record.last_index) == (RecordKind.SAVE, None, 6)
    assert record.spent == {"cost_usd": 1}
