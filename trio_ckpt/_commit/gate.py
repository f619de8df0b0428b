"""The gate: the one function that every exit of a batch passes.

Theory of operation
===================

A batch is left in one of five ways: the loop asks for the next one, `confirm` is
called, its block ends, an exception leaves, or it is cancelled.  What happens then depends
on the state of the attempt: the table `GATE` defines it, and `Gate.pass_gate` executes it.
It saves first and moves the token last:

    check outputs -> capture state -> submit -> (the group committer) -> token CONFIRMED

A completed batch whose checks fail is a failed attempt.  A failed attempt is saved, and
the retry table decides whether the batch runs again.  What an attempt did to the state
in memory is undone unless it is confirmed.

Where an exception is leaving already, an error while saving is logged instead of raised:
it must not replace the exception that leaves.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import Any

import attrs
import trio

from .._journal.record import (
    CheckpointResult,
    Record,
    RecordKind,
    SinkLines,
    describe_error,
    encode_record,
)
from .._journal.store import AttemptEnd
from .._tokens.registry import AnyToken
from .._tokens.token import (
    CANCELLED,
    WITHDRAWN,
    Failure,
    TokenEvent,
    TokenState,
    failure_of,
    may,
    move,
)
from .._util.arguments import whole_number
from .._util.errors import (
    BatchFailedError,
    NotEncodableError,
    OutputError,
    StreamBusyError,
    StreamFailedError,
    TokenNeverSettledError,
    TrioCkptError,
    class_name,
    failures_in,
    text_of,
)
from .._util.log import get_logger
from .._util.plain import copy_plain
from .._util.text import one_line
from .._util.uninterrupted import uninterrupted
from ..outputs import AppendFile, lines_digest
from .awaits import NeverAwaitedError
from .batch import AnyBatch, AttemptState, Batch, check_awaited, staged_of
from .exits import Exit, is_ended_from_outside
from .open_stream import OpenStream
from .pending_commit import PendingCommit
from .retry import Again, GiveUp, Then
from .stored_state import EncodedState

log = get_logger(__name__)


def _ignore(_token: AnyToken) -> None:
    """Do nothing: no test watches."""


watch_handed_out: trio.lowlevel.RunVar[Callable[[AnyToken], None]] = trio.lowlevel.RunVar(
    "trio_ckpt handed out", _ignore
)
"""Called, in this trio run, with the token of each attempt: for `trio_ckpt.testing`."""


class GateAction(enum.Enum):
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


GATE: dict[AttemptState, dict[Exit, GateAction]] = {
    AttemptState.OVER: dict.fromkeys(Exit, GateAction.PASS),
    AttemptState.OPEN: {
        Exit.NEXT: GateAction.FORGOTTEN,
        Exit.CONFIRM: GateAction.REFUSE,
        Exit.EXIT: GateAction.FORGOTTEN,
        Exit.ERROR: GateAction.FAIL,
        Exit.CANCEL: GateAction.CANCEL,
    },
    AttemptState.COMPLETED: {
        Exit.NEXT: GateAction.SAVE,
        Exit.CONFIRM: GateAction.SAVE,
        Exit.EXIT: GateAction.SAVE,
        Exit.ERROR: GateAction.REJECT,
        Exit.CANCEL: GateAction.SAVE_OR_REJECT,
    },
    AttemptState.SUBMITTED: dict.fromkeys(Exit, GateAction.WAIT),
    AttemptState.FAILED: {
        Exit.NEXT: GateAction.DECIDE,
        Exit.CONFIRM: GateAction.GIVE_UP,
        Exit.EXIT: GateAction.GIVE_UP,
        Exit.ERROR: GateAction.RECORD,
        Exit.CANCEL: GateAction.RECORD,
    },
    AttemptState.SKIPPED: dict.fromkeys(Exit, GateAction.RECORD),
    AttemptState.WITHDRAWN: {
        Exit.NEXT: GateAction.END,
        Exit.CONFIRM: GateAction.ILLEGAL,
        Exit.EXIT: GateAction.END,
        Exit.ERROR: GateAction.FORGET,
        Exit.CANCEL: GateAction.FORGET,
    },
}

_LEAVING = (Exit.ERROR, Exit.CANCEL)


class Passed(enum.Enum):
    """What the loop may do after the gate; where the batch runs again it gets an `Again`."""

    GO_ON = "go on"
    ENDED = "the loop ends"


@uninterrupted
@attrs.define(eq=False)
class Gate:
    """Hands out the batches of an open stream, and decides what each exit of a batch does.

    Attributes:
        open_stream: The stream.
    """

    open_stream: OpenStream

    def hand_out(self, index: int, item: Any, digest: bytes) -> AnyBatch:
        """Make the next attempt at a batch.

        Raises:
            StreamBusyError: an attempt at it is open.
            ValueError: the index is above `MAX_INDEX`.
        """
        whole_number("the index of a batch", index)
        stream = self.open_stream
        if index in stream.open:
            raise StreamBusyError(
                f"{stream.where(index)} is open already: settle it, or use run_batches for several "
                "at once",
                run_id=stream.run_id,
                stream=stream.stream_log.key,
                batch_index=index,
            )
        token = stream.tokens.get(index)
        if token is None:
            token = stream.coordinator.adopt(stream.run_id, stream.stream_log.key, index, stream)
            stream.tokens[index] = token
            stream.failed.pop(index, None)
        before = stream.stream_log.progress.failures.get(index)
        attempt = 1 if before is None else before.attempts + 1
        batch: AnyBatch = Batch(index, copy_plain(item), attempt, token, stream, self, item, digest)
        if stream.state_manager is not None:
            batch.resumed_from = stream.state_manager.begin_batch(index)
        stream.open[index] = batch
        stream.handed_at = trio.current_time()
        stream.stop.enter_batch(token)
        if stream.committer.observers:
            stream.committer.observers.began(stream.attempt_of(batch))
        watch_handed_out.get()(token)
        return batch

    async def pass_gate(
        self, batch: AnyBatch, way: Exit, error: BaseException | None = None
    ) -> Passed | Again:
        """Leave a batch, as the table `GATE` defines.

        Raises:
            TokenNeverSettledError, BatchFailedError: as the table defines.
            Exception: the reason why the checkpoint was not saved, unless another exception
                is leaving already.

        Cancellation: none once something is being saved.
        """
        try:
            return await self._pass(batch, way, error)
        finally:
            if self.open_stream.committer.observers and batch.state is AttemptState.OVER:
                self.open_stream.committer.observers.left(self.open_stream.attempt_of(batch))

    async def _pass(
        self, batch: AnyBatch, way: Exit, error: BaseException | None
    ) -> Passed | Again:
        if batch.state is AttemptState.SUBMITTED:
            await self._wait_submitted(batch, way)
        if (way is Exit.CANCEL or self.open_stream.stop.is_parking) and is_ended_from_outside(
            batch
        ):
            batch.state = AttemptState.OPEN
            await self._pass(batch, Exit.CANCEL, None)
        action = GATE[batch.state][way]
        if action is GateAction.PASS:
            if way is Exit.CONFIRM:
                self._check_confirmed(batch)
            return Passed.GO_ON
        if action is GateAction.REFUSE:
            raise self._forgotten(batch)
        if action is GateAction.ILLEGAL:
            raise RuntimeError("a withdrawn batch has nothing to confirm")
        shield = trio.CancelScope(shield=True) if way in _LEAVING else nullcontext()
        try:
            with shield:
                return await self._act(action, batch, way, error)
        except (TokenNeverSettledError, BatchFailedError, StreamFailedError):
            raise
        except Exception as problem:
            batch.problem = problem
            self.open_stream.drop(batch, failure_of(problem))
            if way not in _LEAVING:
                raise
            log.error(
                "while an exception left %s, saving failed: %s",
                self.open_stream.where(batch.index),
                one_line(text_of(problem)),
                extra=self.open_stream.place(batch.index),
            )
            return Passed.GO_ON
        except BaseException:  # KeyboardInterrupt, say, before anything was submitted
            if self.open_stream.open.get(batch.index) is batch:
                self.open_stream.drop(
                    batch, CANCELLED
                )  # else a task that waits for it waits for ever
            raise

    def _check_confirmed(self, batch: AnyBatch) -> None:
        """Raise if an attempt that is over did not end in a saved batch."""
        if (
            batch.token.state is TokenState.CONFIRMED
            or self.open_stream.stream_log.progress.is_done(batch.index)
        ):
            return
        failure = self.open_stream.failed.get(batch.index, Failure("this attempt is over"))
        raise batch.problem or BatchFailedError(
            failure.reason,
            run_id=self.open_stream.run_id,
            stream=self.open_stream.stream_log.key,
            batch_index=batch.index,
        ) from failure.cause

    async def _act(
        self, action: GateAction, batch: AnyBatch, way: Exit, error: BaseException | None
    ) -> Passed | Again:
        match action:
            case GateAction.SAVE:
                return await self._save_batch(batch, way)
            case GateAction.SAVE_OR_REJECT if self.open_stream.state_manager is None:
                return await self._save_batch(batch, way)
            case GateAction.DECIDE | GateAction.GIVE_UP:
                return await self._decide(batch, may_retry=action is GateAction.DECIDE)
            case GateAction.RECORD if batch.state is AttemptState.SKIPPED:
                await self._save_skip(batch, staged_of(batch).error)
            case GateAction.RECORD:
                await self._save_attempt(batch, staged_of(batch).error, is_final=True)
            case GateAction.FAIL:
                await self._save_attempt(batch, error, is_final=True)
            case GateAction.FORGOTTEN:
                forgotten = self._forgotten(batch)
                await self._save_attempt(batch, forgotten, is_final=True)
                raise forgotten
            case GateAction.CANCEL | GateAction.SAVE_OR_REJECT:
                self.open_stream.drop(batch, CANCELLED)
                await self._keep_spent(batch)
            case GateAction.REJECT:
                self.open_stream.drop(batch, failure_of(error) if error is not None else CANCELLED)
                await self._keep_spent(batch)
            case GateAction.END:
                await self._save_end(batch)
                return Passed.ENDED
            case GateAction.FORGET:
                self.open_stream.drop(batch, WITHDRAWN)
                await self._keep_spent(batch)
            case _:
                raise RuntimeError(f"the gate cannot {action.value}")
        return Passed.GO_ON

    async def confirm(self, batch: AnyBatch) -> None:
        """Pass the gate now, before the batch is left.

        Cancellation: none once something is being saved.
        """
        await self.pass_gate(batch, Exit.CONFIRM)

    def _forgotten(self, batch: AnyBatch) -> TokenNeverSettledError:
        return TokenNeverSettledError(
            f"{self.open_stream.where(batch.index)} was left without complete(), fail(), skip() "
            "or withdraw()",
            run_id=self.open_stream.run_id,
            stream=self.open_stream.stream_log.key,
            batch_index=batch.index,
        )

    # -- saving -----------------------------------------------------------------------------

    async def _save_batch(self, batch: AnyBatch, way: Exit) -> Passed | Again:
        staged = staged_of(batch)
        batch.state = AttemptState.SUBMITTED
        try:
            check_awaited(batch, is_left=True)
            if staged.adopted:
                await self.open_stream.files.adopt(staged.adopted, batch.index, staged.outputs)
                staged.adopted.clear()
            if (validator := self.open_stream.policy.validator) is not None:
                await self.open_stream.files.check(staged.outputs, validator)
            lines = await self.open_stream.files.open_sinks(staged.lines) if staged.lines else ()
            adds = (
                self.open_stream.encode_adds(batch)
                if self.open_stream.frontier is not None
                else b""
            )
            saved = (
                None
                if self.open_stream.state_manager is None
                else await self.open_stream.state_manager.save()
            )
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
                state=b"" if saved is None else saved.payload,
                adds=adds,
                last_index=batch.index if staged.is_last else None,
                expected=self.open_stream.new_expected(),
                estimate=self.open_stream.new_estimate(),
                opened=self.open_stream.new_opening(),
                phase=self.open_stream.new_phase(),
            )
            payload = encode_record(record)
        except (OutputError, NotEncodableError, NeverAwaitedError, MemoryError) as problem:
            batch.state = AttemptState.FAILED  # a failed check is a failed attempt
            staged_of(batch).error = problem
            return await self._act(GATE[batch.state][way], batch, way, problem)
        blobs = () if saved is None else saved.kept.blobs
        await self._save(batch, record, payload, lines, partial(self._confirmed, saved), blobs)
        if self.open_stream.state_manager is not None:
            await self.open_stream.prune_state()
        return Passed.GO_ON

    def _confirmed(self, saved: EncodedState | None, batch: AnyBatch, record: Record) -> None:
        if self.open_stream.frontier is not None:
            self.open_stream.frontier.number(staged_of(batch).adds)
            self.open_stream.frontier.finish(batch.index - self.open_stream.first_index)
            if self.open_stream.listener is not None and self.open_stream.frontier.is_ready:
                self.open_stream.listener.frontier_grew()
        elif self.open_stream.state_manager is not None:
            sequence = (
                self.open_stream.stream_log.progress.sequence
            )  # that of this record: it was just applied
            self.open_stream.state_manager.mark_durable(
                saved, sequence, record.at, is_confirmed=True
            )
        self.open_stream.files.release(batch.index, {output.path for output in record.outputs})
        result = CheckpointResult(
            record.outputs,
            record.metadata,
            record.records,
            datetime.fromtimestamp(record.at, UTC),
        )
        self.open_stream.stream_log.confirmed += 1
        self.open_stream.close_attempt(batch, AttemptEnd.CONFIRMED)
        # It may not where the coordinator was closed during the save.
        if may(batch.token, TokenEvent.CONFIRM):
            move(batch.token, TokenEvent.CONFIRM, result)

    async def _decide(self, batch: AnyBatch, *, may_retry: bool) -> Passed | Again:
        """Save a failed attempt, and decide what happens to the batch."""
        error = staged_of(batch).error or "it failed"
        verdict: Again | GiveUp = GiveUp(Then.FAIL)
        if may_retry and not staged_of(batch).is_final:
            problem = error if isinstance(error, BaseException) else Exception(error)
            try:
                verdict = self.open_stream.policy.retry.decide(problem, batch.attempt)
            except BaseException:  # raised by a rule; it must not replace the batch's own error
                log.exception(
                    "the retry table failed for %s",
                    class_name(problem),
                    extra=self.open_stream.place(batch.index),
                )
        if isinstance(verdict, Again):
            await self._save_attempt(batch, error, is_final=False)
            self.open_stream.stream_log.retries += 1
            if verdict.pauses:
                self.open_stream.pause_for(
                    verdict.after_s, f"asked to wait: {failure_of(error).reason}"
                )
            return verdict
        if verdict.then is Then.SKIP:
            await self._save_skip(batch, error)
            return Passed.GO_ON
        await self._save_attempt(batch, error, is_final=True, retryable=verdict.retryable)
        failure = failure_of(error)
        if verdict.then is Then.FAIL_STREAM:  # also if the caller catches the error raised below
            self.open_stream.failure = describe_error(
                error, retryable=verdict.retryable, batch_index=batch.index
            )
        kind = StreamFailedError if verdict.then is Then.FAIL_STREAM else BatchFailedError
        raise kind(
            failure.reason,
            run_id=self.open_stream.run_id,
            stream=self.open_stream.stream_log.key,
            batch_index=batch.index,
            retryable=verdict.retryable,
        ) from failure.cause

    async def _save_attempt(
        self,
        batch: AnyBatch,
        error: BaseException | str | None,
        *,
        is_final: bool,
        retryable: bool = True,
    ) -> None:
        error = error or "it failed"

        def on_durable(batch: AnyBatch, _record: Record) -> None:
            end = AttemptEnd.FAILED if is_final else AttemptEnd.RETRIED
            self.open_stream.close_attempt(batch, end, error)
            self.open_stream.mark_state_dirty()
            if is_final:
                self.open_stream.files.release(batch.index)
                self.open_stream.fail_token(batch.token, failure_of(error))
            elif may(batch.token, TokenEvent.RETRY):
                move(batch.token, TokenEvent.RETRY)
            else:  # the token stays PENDING, but monitors count attempts
                self.open_stream.coordinator.registry.touch()

        await self._wait_for_snapshot()
        record = self._record(RecordKind.ATTEMPT, batch, error, retryable=retryable)
        await self._save(batch, record, encode_record(record), (), on_durable)
        await self.open_stream.restore_state()

    async def _save_skip(self, batch: AnyBatch, error: BaseException | str | None) -> None:
        error = error or "it was skipped"

        def on_durable(batch: AnyBatch, _record: Record) -> None:
            self.open_stream.close_attempt(batch, AttemptEnd.SKIPPED, error)
            self.open_stream.mark_state_dirty()
            self.open_stream.files.release(batch.index)
            self.open_stream.stream_log.skipped += 1
            self.open_stream.fail_token(
                batch.token, failure_of(error), is_kept=False
            )  # progress has it

        await self._wait_for_snapshot()
        record = self._record(RecordKind.SKIP, batch, error)
        await self._save(batch, record, encode_record(record), (), on_durable)
        await self.open_stream.restore_state()

    async def _wait_for_snapshot(self) -> None:
        """Wait for a snapshot of the attempt: it must precede the record that ends the attempt."""
        if self.open_stream.state_manager is not None:
            await self.open_stream.state_manager.wait_saved()

    async def _save_end(self, batch: AnyBatch) -> None:
        def on_durable(batch: AnyBatch, _record: Record) -> None:
            self.open_stream.close_attempt(batch, AttemptEnd.WITHDRAWN)
            self.open_stream.mark_state_dirty()
            self.open_stream.files.release(batch.index)
            move(batch.token, TokenEvent.WITHDRAW, WITHDRAWN)

        record = Record(
            kind=RecordKind.SAVE,
            at=time.time(),
            spent=staged_of(batch).spent,
            last_index=batch.index - 1,
            opened=self.open_stream.new_opening(),
            phase=self.open_stream.new_phase(),
        )
        await self._save(batch, record, encode_record(record), (), on_durable)
        await self.open_stream.restore_state()

    def _record(
        self,
        kind: RecordKind,
        batch: AnyBatch,
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
            spent=staged_of(batch).spent,
            error=describe_error(error, retryable=retryable, batch_index=batch.index),
            metadata=_details_of(error),
            opened=self.open_stream.new_opening(),
            phase=self.open_stream.new_phase(),
        )

    async def _save(
        self,
        batch: AnyBatch,
        record: Record,
        payload: bytes,
        lines: tuple[tuple[AppendFile, bytes], ...],
        on_durable: Callable[[AnyBatch, Record], None],
        blobs: tuple[str, ...] = (),
    ) -> None:
        """Submit a record of a batch, and wait for the outcome."""

        def settle(error: Exception | None) -> None:
            try:
                if error is not None:
                    raise error
                on_durable(batch, record)
            except BaseException as problem:
                if isinstance(problem, Exception):
                    batch.problem = problem
                self.open_stream.drop(batch, failure_of(problem))
                if problem is not error:  # e.g. a user's key function: the run ends with it
                    raise

        batch.state = AttemptState.SUBMITTED
        if self.open_stream.committer.observers:
            self.open_stream.committer.observers.settled(self.open_stream.attempt_of(batch))
        checkpoint = await self.open_stream.committer.encode(
            self.open_stream.stream_log, payload, blobs
        )
        pending = PendingCommit(self.open_stream.stream_log, record, checkpoint, lines, settle)
        self.open_stream.committer.submit(pending)
        await pending.wait()

    async def _keep_spent(self, batch: AnyBatch) -> None:
        """Save the costs of an attempt that leaves no record of its own."""
        if staged_of(batch).spent and self.open_stream.committer.poison is None:
            record = Record(kind=RecordKind.SAVE, at=time.time(), spent=staged_of(batch).spent)
            await self.open_stream.save_plain(record)

    async def _wait_submitted(self, batch: AnyBatch, way: Exit) -> None:
        """Wait for the outcome of a batch with which another task passes the gate."""
        with trio.CancelScope(shield=True):
            while batch.state is AttemptState.SUBMITTED:
                await self.open_stream.awaited.setdefault(batch.index, trio.Event()).wait()
        if batch.problem is not None and way not in _LEAVING:
            raise batch.problem


def _details_of(error: BaseException | str) -> dict[str, Any]:
    """The details stored beside the text of an error; for a group those of its first error."""
    for part in () if isinstance(error, str) else failures_in(error):
        if isinstance(part, TrioCkptError) and part.details:
            return dict(part.details)
    return {}
