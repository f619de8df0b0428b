"""The gate: every way out of a batch from every state of its attempt.

`LAW` is the second table of the design, written out by hand: what is raised, what becomes of
the token, which records are saved, and what the next start finds left to do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

import trio_ckpt
from tests.hangs import HANG_S
from tests.opening import begin
from trio_ckpt import (
    BatchCancelledError,
    BatchFailedError,
    BatchWithdrawnError,
    CheckpointFailedError,
    NotEncodableError,
    RetryRule,
    RetryTable,
    TokenNeverSettledError,
    TokenState,
)
from trio_ckpt._commit.batch import Batch
from trio_ckpt._commit.exits import GATE, Exit, GateAction
from trio_ckpt._commit.gate import Passed
from trio_ckpt._commit.retry import Again
from trio_ckpt._commit.staged import AttemptState
from trio_ckpt._commit.stream_outputs import StreamFiles
from trio_ckpt._journal.progress import MAX_SUM
from trio_ckpt._journal.record import Record, RecordKind, decode_record
from trio_ckpt._runs.stream import Stream, loop_cursor_of
from trio_ckpt._util.plain import encode_key
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import Delay, Fail, FaultyStore

CONFIRMED, FAILED, PENDING = TokenState.CONFIRMED, TokenState.FAILED, TokenState.PENDING
WITHDRAWN = TokenState.WITHDRAWN


class BodyError(Exception):
    """What a body raises."""


@attrs.frozen
class Cell:
    """What one cell of the table promises."""

    token: TokenState
    records: tuple[RecordKind, ...] = ()
    raises: type[BaseException] | None = None
    error: type[Exception] | None = None  # what waiters get
    left: int | None = 0  # the first batch left on the next start; None: complete
    passed: Any = Passed.GO_ON


SAVED = Cell(CONFIRMED, (RecordKind.BATCH,), left=1)
OVER = Cell(CONFIRMED, (RecordKind.BATCH,), left=1)
FORGOTTEN = Cell(
    FAILED, (RecordKind.ATTEMPT,), raises=TokenNeverSettledError, error=CheckpointFailedError
)
GIVEN_UP = Cell(FAILED, (RecordKind.ATTEMPT,), raises=BatchFailedError, error=CheckpointFailedError)
RECORDED = Cell(FAILED, (RecordKind.ATTEMPT,), error=CheckpointFailedError)
SKIPPED = Cell(FAILED, (RecordKind.SKIP,), error=CheckpointFailedError, left=1)
CANCELLED = Cell(FAILED, error=BatchCancelledError)
DEFERRED = Cell(PENDING, (RecordKind.ATTEMPT,), left=0)
ENDED = Cell(
    WITHDRAWN, (RecordKind.SAVE,), error=BatchWithdrawnError, left=None, passed=Passed.ENDED
)
NEXT, CONFIRM, COMMIT, EXIT, ERROR, CANCEL = Exit
S = AttemptState

LAW: dict[tuple[AttemptState, Exit], Cell] = {
    (S.OVER, NEXT): OVER,
    (S.OVER, CONFIRM): OVER,
    (S.OVER, COMMIT): OVER,
    (S.OVER, EXIT): OVER,
    (S.OVER, ERROR): OVER,
    (S.OVER, CANCEL): OVER,
    (S.OPEN, NEXT): FORGOTTEN,
    (S.OPEN, CONFIRM): Cell(PENDING, raises=TokenNeverSettledError),
    (S.OPEN, COMMIT): Cell(PENDING, raises=TokenNeverSettledError),
    (S.OPEN, EXIT): FORGOTTEN,
    (S.OPEN, ERROR): RECORDED,
    (S.OPEN, CANCEL): CANCELLED,
    (S.COMPLETED, NEXT): SAVED,
    (S.COMPLETED, CONFIRM): SAVED,
    (S.COMPLETED, COMMIT): SAVED,
    (S.COMPLETED, EXIT): SAVED,
    (S.COMPLETED, ERROR): Cell(FAILED, error=CheckpointFailedError),
    (S.COMPLETED, CANCEL): SAVED,
    (S.SUBMITTED, NEXT): SAVED,
    (S.SUBMITTED, CONFIRM): SAVED,
    (S.SUBMITTED, COMMIT): SAVED,
    (S.SUBMITTED, EXIT): SAVED,
    (S.SUBMITTED, ERROR): SAVED,
    (S.SUBMITTED, CANCEL): SAVED,
    (S.FAILED, NEXT): GIVEN_UP,
    (S.FAILED, CONFIRM): GIVEN_UP,
    (S.FAILED, COMMIT): Cell(PENDING),
    (S.FAILED, EXIT): GIVEN_UP,
    (S.FAILED, ERROR): RECORDED,
    (S.FAILED, CANCEL): RECORDED,
    (S.SKIPPED, NEXT): SKIPPED,
    (S.SKIPPED, CONFIRM): SKIPPED,
    (S.SKIPPED, COMMIT): Cell(PENDING),
    (S.SKIPPED, EXIT): SKIPPED,
    (S.SKIPPED, ERROR): SKIPPED,
    (S.SKIPPED, CANCEL): SKIPPED,
    (S.DEFERRED, NEXT): DEFERRED,
    (S.DEFERRED, CONFIRM): DEFERRED,
    (S.DEFERRED, COMMIT): Cell(PENDING),
    (S.DEFERRED, EXIT): DEFERRED,
    (S.DEFERRED, ERROR): DEFERRED,
    (S.DEFERRED, CANCEL): DEFERRED,
    (S.WITHDRAWN, NEXT): ENDED,
    (S.WITHDRAWN, CONFIRM): Cell(PENDING, raises=RuntimeError),
    (S.WITHDRAWN, COMMIT): Cell(PENDING),
    (S.WITHDRAWN, EXIT): ENDED,
    (S.WITHDRAWN, ERROR): Cell(WITHDRAWN, error=BatchWithdrawnError),
    (S.WITHDRAWN, CANCEL): Cell(WITHDRAWN, error=BatchWithdrawnError),
}
WITH_STATE = {(S.COMPLETED, CANCEL): CANCELLED}  # the body may have been changing the state

SETTLE: dict[AttemptState, Callable[[Batch[Any]], object]] = {
    S.OPEN: lambda batch: None,
    S.COMPLETED: lambda batch: batch.complete(records=3, totals={"n": 1}),
    S.FAILED: lambda batch: batch.fail(BodyError("bad")),
    S.SKIPPED: lambda batch: batch.skip("no use"),
    S.DEFERRED: lambda batch: batch.defer(until=0),
    S.WITHDRAWN: lambda batch: batch.withdraw(),
}


async def records_of(store: MemoryStore, stream: str = "s") -> list[Record]:
    """What the store has of a stream, oldest first."""
    page = await store.history("r", encode_key((stream,)))
    seal = store.seal("r", 0, (stream,))
    return [decode_record(seal.open(s.sequence, s.payload)) for s in reversed(page.records)]


async def left_on_restart(store: MemoryStore, state: Any) -> int | None:
    """The batch that the next start hands out; None: the loop has nothing to do."""
    async with (
        begin(store.after_crash()) as run,
        run.open_stream("s", state=state) as stream,
    ):
        async for batch in stream.batches():
            assert batch.complete()
            index: int = batch.index
            return index
    return None


def test_the_table_is_whole() -> None:
    assert {(state, way) for state in S for way in Exit} == set(LAW)
    assert {(state, way) for state, row in GATE.items() for way in row} == set(LAW)


async def reach(batch: Batch[Any], stream: Stream[Any], state: AttemptState) -> None:
    """Bring a batch into a state by the user's own means."""
    if state in SETTLE:
        SETTLE[state](batch)
    else:
        batch.complete(records=3, totals={"n": 1})
        if state is S.OVER:
            await batch.confirm()


@pytest.mark.parametrize("has_state", [False, True], ids=["stateless", "state"])
@pytest.mark.parametrize("way", Exit)
@pytest.mark.parametrize("state", S)
async def test_every_cell(
    state: AttemptState, way: Exit, has_state: bool, autojump_clock: trio.testing.MockClock
) -> None:
    law = LAW | WITH_STATE if has_state else LAW
    cell = law[state, way]
    store = MemoryStore()
    initial = {"n": 0} if has_state else None
    waited: list[object] = []
    error: BaseException | None = BodyError("body") if way is ERROR else None

    async def wait(batch: Batch[Any]) -> None:
        try:
            waited.append(await batch.token.wait())
        except CheckpointFailedError as problem:
            waited.append(type(problem))

    slow = FaultyStore(store, {2: Delay(1.0)} if state is S.SUBMITTED else {})
    async with (
        begin(slow) as run,
        run.open_stream("s", state=initial) as stream,
        trio.open_nursery() as nursery,
    ):
        gate, open_stream = loop_cursor_of(stream).gate, loop_cursor_of(stream).open_stream
        open_stream.extent.begin_source(None, is_open_ended=True)
        batch = gate.hand_out(0, None, b"")
        nursery.start_soon(wait, batch)
        await trio.testing.wait_all_tasks_blocked()
        await reach(batch, stream, state)
        if state is S.SUBMITTED:
            nursery.start_soon(batch.confirm)
            while batch.state is not S.SUBMITTED:
                await trio.lowlevel.checkpoint()
        raised: BaseException | None = None
        passed: object = None
        try:
            passed = await gate.pass_gate(batch, way, error)
        except (TokenNeverSettledError, BatchFailedError, RuntimeError) as problem:
            raised = problem
        assert type(raised) is (cell.raises or type(None))
        if raised is None:
            assert passed is cell.passed
        assert batch.token.state is cell.token
        saved = await records_of(store)
        assert tuple(record.kind for record in saved) == cell.records
        if cell.token is CONFIRMED:  # 4: durable before a waiter wakes, progress of that moment
            assert stream.progress.records == 3
            assert 0 in stream.progress.confirmed
        if cell.token is PENDING:
            assert batch.state is (S.OVER if cell.records else state)
            assert run.coordinator.find_checkpoint("r", 0, stream=("s",)) is batch.token
            open_stream.close()
        else:
            assert batch.state is S.OVER
            assert run.coordinator.get_pending_checkpoints() == ()
            await trio.testing.wait_all_tasks_blocked()
            assert len(waited) == 1
            if cell.error is not None:
                assert waited == [cell.error]
        assert open_stream.stop.busy == 0
        if has_state:
            assert stream.state == {"n": 0}
        left = await left_on_restart(store, initial)
        assert left == cell.left
        nursery.cancel_scope.cancel()


RETRY = RetryTable((RetryRule((BodyError,), attempts=2, backoff_s=5.0, jitter=0.0),))


async def test_a_retried_attempt_runs_again_under_the_same_token(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()
    async with (
        begin(store) as run,
        run.open_stream("s", retry=RETRY) as stream,
    ):
        gate = loop_cursor_of(stream).gate
        batch = gate.hand_out(0, None, b"")
        batch.fail(BodyError("once"))
        assert await gate.pass_gate(batch, NEXT) == Again(5.0)
        assert batch.token.state is PENDING
        assert not batch.complete()  # that attempt is over
        again = gate.hand_out(0, None, b"")
        assert (again.attempt, again.token) == (2, batch.token)
        again.complete()
        await gate.pass_gate(again, NEXT)
        assert batch.token.state is CONFIRMED
        assert [record.kind for record in await records_of(store)] == [
            RecordKind.ATTEMPT,
            RecordKind.BATCH,
        ]


async def test_a_final_failure_through_the_token_asks_no_table() -> None:
    store = MemoryStore()
    async with (
        begin(store) as run,
        run.open_stream("s", retry=RETRY, on_fail="record") as stream,
    ):
        batch = loop_cursor_of(stream).gate.hand_out(0, None, b"")
        assert batch.token.fail(BodyError("no"))
        assert not batch.token.fail(BodyError("twice"))
        with pytest.raises(BatchFailedError) as info:
            await loop_cursor_of(stream).gate.pass_gate(batch, NEXT)
        assert isinstance(info.value.__cause__, BodyError)
        assert (info.value.run_id, info.value.stream, info.value.batch_index) == ("r", ("s",), 0)


@pytest.mark.parametrize("way", [NEXT, CONFIRM, EXIT, CANCEL])
async def test_a_completed_batch_that_fails_its_checks_is_a_failed_attempt(
    way: Exit, tmp_path: Any
) -> None:
    """Its row is that of FAILED: what leaves when cancelled is the cancellation."""
    store = MemoryStore()
    async with (
        begin(store, output_dir=tmp_path) as run,
        run.open_stream("s") as stream,
    ):
        batch = loop_cursor_of(stream).gate.hand_out(0, None, b"")
        batch.complete(outputs=["never-written.json"])
        if way is CANCEL:
            assert await loop_cursor_of(stream).gate.pass_gate(batch, way, None) is Passed.GO_ON
        else:
            with pytest.raises(BatchFailedError, match="never-written"):
                await loop_cursor_of(stream).gate.pass_gate(batch, way)
        assert batch.token.state is FAILED
        assert [record.kind for record in await records_of(store)] == [RecordKind.ATTEMPT]
    assert await left_on_restart(store, None) == 0


@pytest.mark.parametrize("way", Exit)
@pytest.mark.parametrize("state", [S.OPEN, S.COMPLETED, S.FAILED, S.SKIPPED])
async def test_a_save_that_fails_leaves_no_token_pending(
    state: AttemptState, way: Exit, caplog: pytest.LogCaptureFixture
) -> None:
    """What kept it from being saved is raised, or logged where an exception is leaving."""
    without = (GateAction.REFUSE, GateAction.CANCEL, GateAction.REJECT, GateAction.PASS)
    if GATE[state][way] in without:
        return
    inner = MemoryStore()
    store = FaultyStore(inner, {2: Fail()})
    with caplog.at_level(logging.ERROR, "trio_ckpt._commit.gate"):
        async with (
            begin(store) as run,
            run.open_stream("s") as stream,
        ):
            batch = loop_cursor_of(stream).gate.hand_out(0, None, b"")
            SETTLE[state](batch)
            if way in (ERROR, CANCEL):
                await loop_cursor_of(stream).gate.pass_gate(batch, way, BodyError("body"))
                assert "save 2 fails as planned" in caplog.text
            else:
                with pytest.raises(Exception, match="save 2 fails as planned"):
                    await loop_cursor_of(stream).gate.pass_gate(batch, way)
            assert batch.token.state is FAILED
            assert stream.progress.sequence == 0
            assert loop_cursor_of(stream).open_stream.stop.busy == 0
    assert await records_of(inner) == []
    assert await left_on_restart(inner, None) == 0


async def test_who_waits_for_a_submitted_batch_gets_its_outcome() -> None:
    store = FaultyStore(MemoryStore(), {2: Fail()})
    problems: list[BaseException] = []

    async def confirm(batch: Batch[Any]) -> None:
        try:
            await batch.confirm()
        except Exception as problem:
            problems.append(problem)

    async with (
        begin(store) as run,
        run.open_stream("s") as stream,
    ):
        batch = loop_cursor_of(stream).gate.hand_out(0, None, b"")
        batch.complete()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(confirm, batch)
            nursery.start_soon(confirm, batch)
            nursery.start_soon(confirm, batch)
    assert len(problems) == 3
    assert len(set(map(id, problems))) == 1


async def test_cancelling_who_waits_for_a_submitted_batch_abandons_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = FaultyStore(MemoryStore(), {2: Delay(1.0)})
    async with (
        begin(store) as run,
        run.open_stream("s") as stream,
        trio.open_nursery() as nursery,
    ):
        batch = loop_cursor_of(stream).gate.hand_out(0, None, b"")
        batch.complete()
        nursery.start_soon(batch.confirm)
        while batch.state is not S.SUBMITTED:
            await trio.lowlevel.checkpoint()
        with trio.CancelScope() as scope:
            scope.cancel()
            await batch.confirm()
        assert batch.token.state is CONFIRMED


async def test_what_a_cancelled_attempt_has_cost_is_kept() -> None:
    store = MemoryStore()
    async with (
        begin(store) as run,
        run.open_stream("s") as stream,
    ):
        for way, error in [(CANCEL, None), (ERROR, BodyError("late"))]:
            batch = loop_cursor_of(stream).gate.hand_out(0, None, b"")
            batch.spend(usd=0.25)
            if way is ERROR:
                batch.complete(totals={"pages": 1})
            await loop_cursor_of(stream).gate.pass_gate(batch, way, error)
        assert stream.progress.spent["usd"].value == 0.5
        assert stream.progress.totals == {}
        assert stream.progress.failures == {}


async def test_what_an_unconfirmed_attempt_did_to_the_state_is_undone() -> None:
    async with (
        begin() as run,
        run.open_stream("s", state={"n": 0}) as stream,
    ):
        for way, settle in [(CANCEL, S.OPEN), (ERROR, S.COMPLETED), (ERROR, S.FAILED)]:
            batch = loop_cursor_of(stream).gate.hand_out(0, None, b"")
            stream.state["n"] += 1
            SETTLE[settle](batch)
            await loop_cursor_of(stream).gate.pass_gate(batch, way, BodyError())
            assert stream.state == {"n": 0}


async def test_an_interrupt_in_the_gate_leaves_no_token_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KeyboardInterrupt may come anywhere; who waits for the batch is told."""

    async def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StreamFiles, "adopt", interrupt)
    told: list[type[BaseException]] = []

    async def wait(token: trio_ckpt.CheckpointToken[Any]) -> None:
        with pytest.raises(trio_ckpt.BatchCancelledError) as caught:
            await token.wait()
        told.append(caught.type)

    async def work(nursery: trio.Nursery) -> None:
        async with (
            trio_ckpt.open_run("r", store=MemoryStore(), output_dir=tmp_path) as run,
            run.open_stream("s") as stream,
        ):
            async for batch in stream.batches(range(2)):
                nursery.start_soon(wait, batch.token)
                batch.complete(outputs=["f"])

    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            with pytest.raises(KeyboardInterrupt):
                await work(nursery)
    assert told == [trio_ckpt.BatchCancelledError]


@pytest.mark.parametrize("way", [NEXT, CONFIRM, EXIT])
async def test_a_save_refused_before_it_is_queued_ends_its_attempt(way: Exit) -> None:
    """Nothing of it is submitted, so that no outcome would ever reach its token."""
    store = MemoryStore()
    async with (
        begin(store) as run,
        run.open_stream("s") as stream,
    ):
        gate = loop_cursor_of(stream).gate
        first = gate.hand_out(0, None, b"")
        first.complete(records=MAX_SUM - 2)
        await gate.pass_gate(first, NEXT)
        batch = gate.hand_out(1, None, b"")
        batch.complete(records=2)
        with pytest.raises(NotEncodableError, match="records") as caught:
            await gate.pass_gate(batch, way)
        assert (batch.state, batch.token.state) == (S.OVER, FAILED)
        with pytest.raises(CheckpointFailedError) as told:
            await batch.token.wait()
        assert told.value.__cause__ is caught.value
        assert loop_cursor_of(stream).open_stream.stop.busy == 0
    assert [record.kind for record in await records_of(store)] == [RecordKind.BATCH]
