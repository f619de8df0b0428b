"""The gate: the one function that every way out of a batch passes.

Theory of operation
===================

A batch is left in one of five ways: the loop asks for the next one, `confirm` is
called, its block ends, an exception leaves, or it is cancelled.  What that means depends
on where the attempt stands: the table `GATE` says it, and `Desk.pass_gate` does it.  It
saves first and moves the token last:

    check outputs -> capture state -> submit -> (the saver) -> token CONFIRMED

A completed batch whose checks fail is a failed attempt.  A failed attempt is saved, and
the retry table says whether the batch runs again.  Whatever an attempt did to the state
in memory is undone unless it is confirmed.

Where nothing can be raised any more, because an exception is leaving already, what goes
wrong while saving is logged: the exception that leaves is the one that matters.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

import attrs
import msgspec
import trio

from ._batch import AttemptState, Batch
from ._coordinator import CheckpointCoordinator
from ._errors import (
    BatchFailedError,
    NotEncodableError,
    OutputError,
    StreamBusyError,
    StreamFailedError,
    TokenNeverSettledError,
    describe_batch,
)
from ._lane import Lane
from ._records import (
    CheckpointResult,
    Kind,
    Opened,
    Output,
    Record,
    SinkLines,
    describe_error,
    encode_record,
)
from ._registry import AnyToken
from ._retry import Again, GiveUp, RetryTable, Then
from ._saver import Saver, Submission
from ._staging import AnyPath, StreamFiles
from ._statistics import Waiting
from ._stop import Stop
from ._token import (
    CANCELLED,
    WITHDRAWN,
    Failure,
    TokenEvent,
    TokenState,
    failure_of,
    may,
    move,
)
from .abc import StateCodec
from .outputs import AppendFile, lines_digest
from .state import Frontier

log = logging.getLogger("trio_ckpt.gate")


class Way(enum.Enum):
    """A way out of a batch."""

    NEXT = "next batch"
    CONFIRM = "confirm()"
    EXIT = "block left normally"
    ERROR = "left by an exception"
    CANCEL = "left by cancellation"

    __hash__ = object.__hash__


class Action(enum.Enum):
    """What the gate does."""

    PASS = "nothing"  # noqa: S105  # no password
    REFUSE = "TokenNeverSettledError; the token stays PENDING"
    FORGOTTEN = "fail with TokenNeverSettledError, save, raise it"
    FAIL = "fail with the exception, save"
    CANCEL = "BatchCancelledError for waiters; no record"
    SAVE = "check, capture, save, confirm"
    REJECT = "FAILED, runs again; no record"
    SAVE_OR_REJECT = "save, shielded; with state: reject"
    WAIT = "wait for its outcome"
    DECIDE = "save; the retry table: again, or raise BatchFailedError"
    GIVE_UP = "save, raise BatchFailedError"
    RECORD = "save"
    END = "save; the loop ends"
    FORGET = "WITHDRAWN; no record"
    ILLEGAL = "RuntimeError"


GATE: dict[AttemptState, dict[Way, Action]] = {
    AttemptState.OVER: dict.fromkeys(Way, Action.PASS),
    AttemptState.OPEN: {
        Way.NEXT: Action.FORGOTTEN,
        Way.CONFIRM: Action.REFUSE,
        Way.EXIT: Action.FORGOTTEN,
        Way.ERROR: Action.FAIL,
        Way.CANCEL: Action.CANCEL,
    },
    AttemptState.COMPLETED: {
        Way.NEXT: Action.SAVE,
        Way.CONFIRM: Action.SAVE,
        Way.EXIT: Action.SAVE,
        Way.ERROR: Action.REJECT,
        Way.CANCEL: Action.SAVE_OR_REJECT,
    },
    AttemptState.SUBMITTED: dict.fromkeys(Way, Action.WAIT),
    AttemptState.FAILED: {
        Way.NEXT: Action.DECIDE,
        Way.CONFIRM: Action.GIVE_UP,
        Way.EXIT: Action.GIVE_UP,
        Way.ERROR: Action.RECORD,
        Way.CANCEL: Action.RECORD,
    },
    AttemptState.SKIPPED: dict.fromkeys(Way, Action.RECORD),
    AttemptState.WITHDRAWN: {
        Way.NEXT: Action.END,
        Way.CONFIRM: Action.ILLEGAL,
        Way.EXIT: Action.END,
        Way.ERROR: Action.FORGET,
        Way.CANCEL: Action.FORGET,
    },
}

_LEAVING = (Way.ERROR, Way.CANCEL)


class Passed(enum.Enum):
    """What the loop may do after the gate; or it gets an `Again`."""

    GO_ON = "go on"
    ENDED = "the loop ends"


@attrs.define(eq=False)
class Desk:
    """All that the gate needs to know of one open stream; also the host of its tokens.

    Attributes:
        run_id: The run.
        lane: Its way to the store.
        open: The attempts handed out, by batch index.
        tokens: The tokens of batches handed out or waiting to run again.
        failed: Batches that failed for good in this session.
        files: Its outputs.
        state: What is captured with every batch, where there is state.
        state_bytes: The last confirmed state.
        is_state_saved: Whether the store has it; at first it is only what the user gave.
        opened_at: Unix time, s; the first record from then on says so.
        expected: How many batches there are in all, where that is known.
        pause: Until when nothing is handed out, and why; trio's clock.
        changed: Called when a token has moved.
        put_back: Called with the index of a confirmed batch that goes back to work.
    """

    run_id: str
    lane: Lane
    saver: Saver
    coordinator: CheckpointCoordinator
    stop: Stop
    retry: RetryTable
    files: StreamFiles
    codec: StateCodec[Any] | None = None
    frontier: Frontier[Any] | None = None
    first_index: int = 0
    state: Any = None
    state_bytes: bytes = b""
    is_state_saved: bool = False
    open: dict[int, Batch[Any]] = attrs.field(factory=dict[int, Batch[Any]])
    tokens: dict[int, AnyToken] = attrs.field(factory=dict[int, AnyToken])
    failed: dict[int, Failure] = attrs.field(factory=dict[int, Failure])
    is_parallel: bool = False
    is_open_ended: bool = False
    opened_at: float = attrs.field(factory=time.time)
    expected: int | None = None
    pause: tuple[float, str] | None = None
    changed: Callable[[], None] = lambda: None
    put_back: Callable[[int], None] = lambda _index: None

    # -- handing out ----------------------------------------------------------------------

    def hand_out(self, index: int, item: Any, digest: bytes) -> Batch[Any]:
        """Make the next attempt at a batch.

        Raises:
            StreamBusyError: an attempt at it is open.
        """
        if index in self.open:
            where = describe_batch(self.run_id, self.lane.key, index)
            raise StreamBusyError(
                f"{where} is open already: settle it, or use run_batches for several at once",
                run_id=self.run_id,
                stream=self.lane.key,
                batch_index=index,
            )
        token = self.tokens.get(index)
        if token is None:
            token = self.coordinator.adopt(self.run_id, self.lane.key, index, self)
            self.tokens[index] = token
            self.failed.pop(index, None)
        before = self.lane.progress.failures.get(index)
        attempt = 1 if before is None else before.attempts + 1
        batch: Batch[Any] = Batch(index, item, attempt, token, self, digest)
        self.open[index] = batch
        self.stop.busy += 1
        return batch

    # -- the gate -------------------------------------------------------------------------

    async def pass_gate(
        self, batch: Batch[Any], way: Way, error: BaseException | None = None
    ) -> Passed | Again:
        """Leave a batch.  See the table `GATE`.

        Raises:
            TokenNeverSettledError, BatchFailedError: as the table says.
            Exception: whatever kept the checkpoint from being saved, unless an exception
                is leaving already.

        Cancellation: none once something is being saved.
        """
        if batch.state is AttemptState.SUBMITTED:
            await self._wait_submitted(batch, way)
        action = GATE[batch.state][way]
        if action is Action.PASS:
            if way is Way.CONFIRM:
                self._check_confirmed(batch)
            return Passed.GO_ON
        if action is Action.REFUSE:
            raise self._forgotten(batch)
        if action is Action.ILLEGAL:
            raise RuntimeError("a withdrawn batch has nothing to confirm")
        shield = trio.CancelScope(shield=True) if way in _LEAVING else nullcontext()
        try:
            with shield:
                return await self._act(action, batch, way, error)
        except (TokenNeverSettledError, BatchFailedError):
            raise
        except Exception as problem:
            batch.problem = problem
            self._drop(batch, failure_of(problem))
            if way not in _LEAVING:
                raise
            where = describe_batch(self.run_id, self.lane.key, batch.index)
            log.error("while an exception left %s, saving failed: %s", where, problem)
            return Passed.GO_ON

    def _check_confirmed(self, batch: Batch[Any]) -> None:
        """Raise if an attempt that is over did not end in a saved batch."""
        if batch.token.state is TokenState.CONFIRMED or self.lane.progress.is_done(batch.index):
            return
        failure = self.failed.get(batch.index, Failure("this attempt at it is over"))
        raise batch.problem or BatchFailedError(
            failure.reason,
            run_id=self.run_id,
            stream=self.lane.key,
            batch_index=batch.index,
        ) from failure.cause

    async def _act(
        self, action: Action, batch: Batch[Any], way: Way, error: BaseException | None
    ) -> Passed | Again:
        match action:
            case Action.SAVE:
                return await self._save_batch(batch, way)
            case Action.SAVE_OR_REJECT if self.codec is None:
                return await self._save_batch(batch, way)
            case Action.DECIDE | Action.GIVE_UP:
                return await self._decide(batch, may_retry=action is Action.DECIDE)
            case Action.RECORD if batch.state is AttemptState.SKIPPED:
                await self._save_skip(batch, batch.staged.error)
            case Action.RECORD:
                await self._save_attempt(batch, batch.staged.error, is_final=True)
            case Action.FAIL:
                await self._save_attempt(batch, error, is_final=True)
            case Action.FORGOTTEN:
                forgotten = self._forgotten(batch)
                await self._save_attempt(batch, forgotten, is_final=True)
                raise forgotten
            case Action.CANCEL | Action.SAVE_OR_REJECT:
                self._drop(batch, CANCELLED)
                await self._keep_spent(batch)
            case Action.REJECT:
                self._drop(batch, failure_of(error) if error is not None else CANCELLED)
                await self._keep_spent(batch)
            case Action.END:
                await self._save_end(batch)
                return Passed.ENDED
            case Action.FORGET:
                self._drop(batch, WITHDRAWN)
                await self._keep_spent(batch)
            case _:
                raise RuntimeError(f"the gate cannot {action.value}")
        return Passed.GO_ON

    # -- saving -----------------------------------------------------------------------------

    async def _save_batch(self, batch: Batch[Any], way: Way) -> Passed | Again:
        staged = batch.staged
        batch.state = AttemptState.SUBMITTED
        try:
            if staged.adopted:
                await self.files.adopt(staged.adopted, batch.index, staged.outputs)
                staged.adopted.clear()
            await self.files.check(staged.outputs)
            lines = await self.files.open_sinks(staged.lines) if staged.lines else ()
            adds = self._encode_adds(batch) if self.frontier is not None else b""
            record = Record(
                at=time.time(),
                index=batch.index,
                item=batch.digest,
                attempts=batch.attempt,
                records=staged.records,
                outputs=tuple(staged.outputs.values()),
                lines=tuple(SinkLines(s.path, len(b), lines_digest(b)) for s, b in lines),
                totals=staged.totals,
                spent=staged.spent,
                cursor=staged.cursor,
                metadata=staged.metadata,
                state=self._capture() if self.codec is not None else b"",
                adds=adds,
                last_index=batch.index if staged.is_last else None,
                expected=self._new_expected(),
                opened=self._new_opening(),
            )
            payload = encode_record(record)
        except (OutputError, NotEncodableError) as problem:
            batch.state = AttemptState.FAILED  # its checks failed, so the attempt has
            batch.staged.error = problem
            return await self._act(GATE[batch.state][way], batch, way, problem)
        await self._save(batch, record, payload, lines, self._confirmed)
        return Passed.GO_ON

    def _confirmed(self, batch: Batch[Any], record: Record) -> None:
        if self.frontier is not None:
            self.frontier.fold(record.adds)
            self.frontier.finish(batch.index - self.first_index)
        elif record.state:
            self.state_bytes, self.is_state_saved = record.state, True
        self.files.release(batch.index, {output.path for output in record.outputs})
        result = CheckpointResult(
            record.outputs,
            record.metadata,
            record.records,
            datetime.fromtimestamp(record.at, UTC),
        )
        self.lane.confirmed += 1
        self._close(batch)
        if may(batch.token, TokenEvent.CONFIRM):  # a coordinator closed meanwhile has failed it
            move(batch.token, TokenEvent.CONFIRM, result)

    async def _decide(self, batch: Batch[Any], *, may_retry: bool) -> Passed | Again:
        """Save a failed attempt, and say what becomes of the batch."""
        error = batch.staged.error or "it failed"
        verdict: Again | GiveUp = GiveUp(Then.FAIL)
        if may_retry and not batch.staged.is_final:
            problem = error if isinstance(error, BaseException) else Exception(error)
            try:
                verdict = self.retry.decide(problem, batch.attempt)
            except Exception:  # the batch's own error is the one that matters
                log.exception("the retry table failed for %r", problem)
        if isinstance(verdict, Again):
            await self._save_attempt(batch, error, is_final=False)
            self.lane.retries += 1
            if verdict.pauses:
                self._pause(verdict.after_s, f"asked to wait: {failure_of(error).reason}")
            return verdict
        if verdict.then is Then.SKIP:
            await self._save_skip(batch, error)
            return Passed.GO_ON
        await self._save_attempt(batch, error, is_final=True, retryable=verdict.retryable)
        failure = failure_of(error)
        kind = StreamFailedError if verdict.then is Then.FAIL_STREAM else BatchFailedError
        raise kind(
            failure.reason,
            run_id=self.run_id,
            stream=self.lane.key,
            batch_index=batch.index,
            retryable=verdict.retryable,
        ) from failure.cause

    def _pause(self, for_s: float, reason: str) -> None:
        until = trio.current_time() + for_s
        if self.pause is None or until > self.pause[0]:
            self.pause = until, reason
            log.info("%s waits %.3g s: %s", self.where(), for_s, reason)

    async def wait_paused(self) -> None:
        """Wait until nobody asks the stream to wait any more.

        Cancellation: a cancellation point if there is something to wait for.
        """
        while (pause := self.pause) is not None:
            await trio.sleep_until(pause[0])
            if self.pause == pause:  # it may have been made longer meanwhile
                self.pause = None

    def waiting(self) -> Waiting | None:
        """What the stream waits for before it begins another batch, if it does."""
        if self.pause is None:
            return None
        until, reason = self.pause
        left_s = until - trio.current_time()
        return Waiting(self.lane.key, reason, left_s) if left_s > 0 else None

    def left(self) -> int | None:
        """How many batches are known to be left; None where nobody knows."""
        progress = self.lane.progress
        expected = self.expected if self.frontier is None else len(self.frontier)
        if expected is None:
            return progress.left
        return expected - len(progress.confirmed) - len(progress.skipped)

    def where(self, index: int | None = None) -> str:
        """The stream, or a batch of it, in words."""
        return describe_batch(self.run_id, self.lane.key, index)

    async def _save_attempt(
        self,
        batch: Batch[Any],
        error: BaseException | str | None,
        *,
        is_final: bool,
        retryable: bool = True,
    ) -> None:
        error = error or "it failed"

        def landed(batch: Batch[Any], _record: Record) -> None:
            self._close(batch)
            self.restore_state()
            if is_final:
                self.files.release(batch.index)
                self._fail_token(batch.token, failure_of(error))
            elif may(batch.token, TokenEvent.RETRY):
                move(batch.token, TokenEvent.RETRY)
            else:  # the token stays PENDING, but who waits for this attempt has to know
                self.coordinator.registry.touch()

        record = self._record(Kind.ATTEMPT, batch, error, retryable=retryable)
        await self._save(batch, record, encode_record(record), (), landed)

    async def _save_skip(self, batch: Batch[Any], error: BaseException | str | None) -> None:
        error = error or "it was skipped"

        def landed(batch: Batch[Any], _record: Record) -> None:
            self._close(batch)
            self.restore_state()
            self.files.release(batch.index)
            self.lane.skipped += 1
            self._fail_token(batch.token, failure_of(error))

        record = self._record(Kind.SKIP, batch, error)
        await self._save(batch, record, encode_record(record), (), landed)

    async def _save_end(self, batch: Batch[Any]) -> None:
        def landed(batch: Batch[Any], _record: Record) -> None:
            self._close(batch)
            self.restore_state()
            self.files.release(batch.index)
            move(batch.token, TokenEvent.WITHDRAW, WITHDRAWN)

        record = Record(
            kind=Kind.SAVE,
            at=time.time(),
            spent=batch.staged.spent,
            last_index=batch.index - 1,
            opened=self._new_opening(),
        )
        await self._save(batch, record, encode_record(record), (), landed)

    def _record(
        self,
        kind: Kind,
        batch: Batch[Any],
        error: BaseException | str,
        *,
        retryable: bool = True,
    ) -> Record:
        return Record(
            kind=kind,
            at=time.time(),
            index=batch.index,
            item=batch.digest,
            attempts=batch.attempt,
            spent=batch.staged.spent,
            error=describe_error(error, retryable=retryable, batch_index=batch.index),
            opened=self._new_opening(),
        )

    def _new_opening(self) -> Opened | None:
        """What the first record of a stream that was opened says of it."""
        if self.lane.progress.opened_at == self.opened_at:
            return None
        return Opened(self.opened_at, self.first_index)

    def _new_expected(self) -> int | None:
        """How many batches there are, if the records do not know."""
        expected = self.expected if self.frontier is None else len(self.frontier)
        return None if expected == self.lane.progress.expected else expected

    async def _save(
        self,
        batch: Batch[Any],
        record: Record,
        payload: bytes,
        lines: tuple[tuple[AppendFile, bytes], ...],
        landed: Callable[[Batch[Any], Record], None],
    ) -> None:
        """Send a record of a batch on its way and wait for the outcome."""

        def tell(error: Exception | None) -> None:
            try:
                if error is not None:
                    raise error
                landed(batch, record)
            except Exception as problem:
                batch.problem = problem
                self._drop(batch, failure_of(problem))
                if problem is not error:  # a user's key function, say: the run ends with it
                    raise

        batch.state = AttemptState.SUBMITTED
        checkpoint = await self.saver.encode(self.lane, payload)
        submission = Submission(self.lane, record, checkpoint, lines, tell)
        self.saver.submit(submission)
        await submission.wait()

    async def save_plain(self, record: Record) -> None:
        """Save a record of the stream that is not about a batch; see `Saver.save`."""
        opened, expected = self._new_opening(), self._new_expected()
        if opened is not None or expected is not None:
            record = msgspec.structs.replace(record, opened=opened, expected=expected)
        await self.saver.save(self.lane, record)

    async def _keep_spent(self, batch: Batch[Any]) -> None:
        """Save what an attempt has cost that leaves no record of its own."""
        if batch.staged.spent and self.saver.poison is None:
            record = Record(kind=Kind.SAVE, at=time.time(), spent=batch.staged.spent)
            await self.save_plain(record)

    async def _wait_submitted(self, batch: Batch[Any], way: Way) -> None:
        """Another task passes the gate with this batch: wait for the outcome."""
        registry = self.coordinator.registry
        version = registry.version
        with trio.CancelScope(shield=True):
            while batch.state is AttemptState.SUBMITTED:
                version = await registry.wait_changed(version)
        if batch.problem is not None and way not in _LEAVING:
            raise batch.problem

    # -- what goes into a checkpoint ----------------------------------------------------------

    def _encode_adds(self, batch: Batch[Any]) -> bytes:
        frontier = self.frontier
        return b"" if frontier is None else frontier.encode(frontier.stage(batch.staged.adds))

    def _capture(self) -> bytes:
        if self.codec is None:
            return b""
        payload = self.codec.encode(self.state)
        return b"" if payload == self.state_bytes and self.is_state_saved else payload

    def restore_state(self) -> None:
        """Undo what a failed attempt did to the state in memory."""
        if self.codec is not None:
            self.state = self.codec.decode(self.state_bytes)

    # -- the ends of tokens -------------------------------------------------------------------

    def _close(self, batch: Batch[Any]) -> None:
        if self.open.pop(batch.index, None) is not None:
            self.stop.leave_batch()
        batch.state = AttemptState.OVER

    def _drop(self, batch: Batch[Any], failure: Failure) -> None:
        """End an attempt without a record: the batch runs again."""
        if batch.index in self.open:
            self.restore_state()
        self._close(batch)
        self.files.release(batch.index)
        self._fail_token(batch.token, failure)

    def _fail_token(self, token: AnyToken, failure: Failure) -> None:
        if token.is_pending:
            self.failed[token.batch_index] = failure
            event = TokenEvent.WITHDRAW if failure is WITHDRAWN else TokenEvent.REJECT
            move(token, event, failure)

    def close(self) -> None:
        """Leave no token pending, but for those whose save is under way: they are told."""
        for batch in tuple(self.open.values()):
            if batch.state is not AttemptState.SUBMITTED:
                self._drop(batch, CANCELLED)
        for token in tuple(self.tokens.values()):
            if token.batch_index not in self.open:
                self._fail_token(token, CANCELLED)

    def _forgotten(self, batch: Batch[Any]) -> TokenNeverSettledError:
        where = describe_batch(self.run_id, self.lane.key, batch.index)
        return TokenNeverSettledError(
            f"{where} was left without complete(), fail(), skip() or withdraw()",
            run_id=self.run_id,
            stream=self.lane.key,
            batch_index=batch.index,
        )

    # -- the host of tokens ---------------------------------------------------------------------

    def complete(self, token: AnyToken, result: Any) -> bool:
        """Settle a batch through its token, from whatever task has it."""
        batch = self.open.get(token.batch_index)
        if batch is None:
            return False
        if result is None:
            return batch.complete()
        if not isinstance(result, CheckpointResult):
            kind = type(result).__qualname__
            raise TypeError(f"in a run a token is completed with a CheckpointResult, not {kind}")
        return batch.complete(
            outputs=[output.path for output in result.outputs],
            records=result.records,
            metadata=result.metadata,
        )

    def fail(self, token: AnyToken, error: BaseException | str) -> bool:
        """Fail a batch through its token: for good."""
        batch = self.open.get(token.batch_index)
        if batch is None or not batch.fail(error):
            return False
        batch.staged.is_final = True
        return True

    def check_wait(self, token: AnyToken) -> None:
        """Refuse to let a body wait for itself."""
        batch = self.open.get(token.batch_index)
        if batch is not None and batch.task is trio.lowlevel.current_task():
            raise RuntimeError(
                "a body that waits for its own token waits for ever: use 'await batch.confirm()'"
            )

    def moved(self, token: AnyToken) -> None:
        """Tell the monitors, and whoever waits for work."""
        if token.state not in (TokenState.PENDING, TokenState.COMPLETED):
            self.tokens.pop(token.batch_index, None)
        self.coordinator.registry.moved(token)
        self.changed()

    # -- the host of batches --------------------------------------------------------------------

    def output_name(self, path: AnyPath) -> str:
        """The name under which an output is kept."""
        return self.files.name(path)

    def claim_sink(self, name: str) -> None:
        """Reserve an append file's name for this stream."""
        self.files.claim_sink(name)

    async def write(self, batch: Batch[Any], path: AnyPath, data: bytes) -> tuple[Output, str]:
        """Write an output; returns it, and its path as users name it."""
        output = await self.files.write(path, data, batch.index)
        return output, self.files.path(output.path)

    def check_withdraw(self, batch: Batch[Any]) -> None:
        """Only an open end can be found to be no batch."""
        if not self.is_open_ended or self.is_parallel:
            raise RuntimeError(
                "withdraw() is for batches() without a source, one at a time; "
                f"batch {batch.index} is in the source: skip() it"
            )

    def check_cursor(self) -> None:
        """A cursor has an order."""
        if self.is_parallel:
            raise ValueError("a cursor needs batches in order: concurrency=1")

    def stage_items(self, items: Iterable[Any]) -> list[Any]:
        """Those that are new to the frontier."""
        if self.frontier is None:
            raise TypeError("batch.add() needs a stream whose state is a Frontier")
        return [item for item in items if self.frontier.key_of(item)]

    async def confirm(self, batch: Batch[Any]) -> None:
        """The gate pulled forward."""
        await self.pass_gate(batch, Way.CONFIRM)
