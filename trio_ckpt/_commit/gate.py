"""The gate: every batch is handed out by it, and every exit of a batch passes it.

Theory of operation
===================

A batch is left in one of six ways: the loop asks for the next one, `confirm` is called, its
transaction ends, its block ends, an exception leaves, or it is cancelled.  What happens then
depends on the state of the attempt: the table `GATE` says it, and `Gate.pass_gate` carries it out.
Where a failed attempt is left for the next batch, the retry table decides whether its batch runs
again, and the record says so.  Where an exception is leaving already, an error while saving is
logged instead of raised: it must not replace the exception that leaves.

Whatever the table says, there is one way for an attempt to become durable, and one function that
goes it: `Gate._save`.  A confirmed batch, a failed attempt, a skip and a withdrawal differ in what
they have to say.  The steps, and their order, are the same:

    check -> capture -> encode -> (commit) -> submit -> durable -> advance -> token -> wake

**Check** comes first, because a record is believed: a resume takes its outputs for written and
valid.  What fails here is the attempt, not the save.  Nothing is queued yet, so the attempt, which
is SUBMITTED since the gate has it, can still become a failed one; its row in the table is that of
FAILED.

**Capture** copies the state, so the record has it as it was when the attempt ended, whatever
changes it later.  An array's blobs are durable when it ends.  An attempt that is not confirmed has
no state in its record; it only waits until its snapshot that is being saved is durable, which
comes before the end of the attempt in the records.

**Encode** ends with the bytes of the record.  **Submit** seals them for the next sequence number of
the stream, those of a large record as a blob, and queues them without a schedule point between
the number and the queue, so that no other record takes the number.  From here on nothing is
abandoned: a cancelled loop waits, since nothing could tell it afterwards whether its batch was
saved.

**Commit** is for a batch whose rows go into a database of the user (`trio_ckpt.sinks`).  The record
is in that transaction, too, so the next start saves it if this process ends before it is saved.  A
refused commit makes the attempt a failed one, and so does another exit while the transaction is
open.  After a commit the record has to follow, or the run ends: the batch must not run again.

**Durable** is the group committer's word (see `trio_ckpt._commit.group_commit`): lines appended
and fsynced, the record in the store.  Then `PendingCommit.end` moves progress, record by record.

**Advance** and **token** are `Gate._on_outcome`, which it calls next, in the committer's task: what
the open stream counts, then the token.  Records come in the order of their sequence numbers.  This
ensures that a frontier numbers new items in the order in which a resume will read them.  Then the
loop **wakes**; the tasks of several wake in any order.  No other task runs between progress and
the token.  This ensures that we don't cheat: who sees a token CONFIRMED sees progress that includes
its batch, and both are on the disk.

What an attempt did to the state in memory is undone unless it is confirmed: `_on_outcome` marks
the state dirty, and the loop restores it before the next batch.  An attempt that could not be saved
leaves no record, its token is rejected, and its batch runs again.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from .._journal.observer import AttemptEnd
from .._journal.record import CheckpointResult, Record, RecordKind, describe_error, encode_record
from .._tokens.token import (
    CANCELLED,
    WITHDRAWN,
    AnyToken,
    Failure,
    TokenState,
    failure_of,
)
from .._util.arguments import MAX_INDEX, whole_number
from .._util.errors import (
    BatchFailedError,
    StreamBusyError,
    StreamFailedError,
    TokenNeverSettledError,
)
from .._util.exceptions import text_of
from .._util.log import get_logger
from .._util.plain import copy_plain
from .._util.text import one_line
from .._util.uninterrupted import shielded, uninterrupted
from .batch import AnyBatch, AttemptState, Batch, staged_of
from .exits import (
    CONFIRMED,
    GATE,
    Ending,
    Exit,
    GateAction,
    is_ended_from_outside,
    settled_ending,
)
from .open_stream import OpenStream
from .retry import Again, GiveUp, Then
from .rows import commit_staged, end_run_if_committed
from .staged import RowsCommit, Staged, settlement_of
from .submission import NO_LINES, REFUSALS, check_batch, confirmed_record, record_of_end

if TYPE_CHECKING:
    from .stored_state import EncodedState

log = get_logger(__name__)

_LEAVING = (Exit.ERROR, Exit.CANCEL)
_WITHOUT_SAVE = (GateAction.PASS, GateAction.REFUSE, GateAction.ILLEGAL)
_NO_SHIELD = nullcontext()


class Passed(enum.Enum):
    """What the loop may do after the gate; where the batch runs again it gets an `Again`."""

    GO_ON = "go on"
    ENDED = "the loop ends"


watch_handed_out: trio.lowlevel.RunVar[Callable[[AnyToken], None] | None] = trio.lowlevel.RunVar(
    "trio_ckpt handed out", None
)
"""Called, in this trio run, with the token of each attempt: for `trio_ckpt.testing`."""


@uninterrupted
@attrs.define(eq=False, repr=False)
class Gate:
    """Hands out the batches of an open stream, and decides what each exit of a batch does.

    Attributes:
        open_stream: The stream.
    """

    open_stream: OpenStream
    _watch: Callable[[AnyToken], None] | None = attrs.field(
        factory=watch_handed_out.get, init=False
    )

    def hand_out(self, index: int, item: Any, digest: bytes) -> AnyBatch:
        """Make the next attempt at a batch.

        Raises:
            StreamBusyError: an attempt at it is open.
            ValueError: the index is above `MAX_INDEX`.
        """
        stream, task = self.open_stream, trio.lowlevel.current_task()
        if index > MAX_INDEX or index in stream.open:
            raise self._not_handed_out(index)
        token = stream.tokens.get(index) or stream.make_token(index)
        before = stream.stream_log.progress.failures.get(index)
        attempt = 1 if before is None else before.attempts + 1
        own, staged = copy_plain(item), Staged(digest)
        batch: AnyBatch = Batch(
            index, own, attempt, token, stream, self, item, task, stream.portal, staged
        )
        stream.enter(batch, task)
        if self._watch is not None:
            self._watch(token)
        return batch

    def _not_handed_out(self, index: int) -> Exception:
        """The error for a batch that cannot be handed out."""
        stream = self.open_stream
        if index > MAX_INDEX:
            whole_number("the index of a batch", index)  # which raises
        return stream.error(
            StreamBusyError,
            f"{stream.where(index)} is open already: settle it, or use run_batches for several at "
            "once",
            index,
        )

    def previous_of(self, batch: AnyBatch) -> CheckpointResult | None:
        """What the last generation knows of the item of a batch: nothing, see `AgainGate`."""
        return None

    def carry_over(self, batch: AnyBatch) -> Record:
        """Refuse: there is no last generation to carry a batch over from; see `AgainGate`.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            f"{self.open_stream.where(batch.index)} cannot be unchanged: the run was not begun "
            "with again=True, so that no generation is known to compare it with"
        )

    async def pass_gate(
        self, batch: AnyBatch, way: Exit, error: BaseException | None = None
    ) -> Passed | Again:
        """Leave a batch, as the table `GATE` defines.

        Raises:
            TokenNeverSettledError, BatchFailedError, StreamFailedError: as the table defines.
            Exception: the reason why the checkpoint was not saved, unless another exception
                is leaving already.

        Cancellation: none once something is being saved.
        """
        stream = self.open_stream
        try:
            if batch.state is AttemptState.SUBMITTED:
                await self._wait_submitted(batch, way)
            if (way is Exit.CANCEL or stream.stop.is_parking) and is_ended_from_outside(batch):
                batch.state = AttemptState.OPEN
                await self._carry_out(GateAction.CANCEL, batch, Exit.CANCEL, None)
            action = GATE[batch.state][way]
            if action is GateAction.SAVE and way not in _LEAVING:  # hot path: a frame less
                try:
                    if await self._save(batch, CONFIRMED):
                        return Passed.GO_ON
                except BaseException as problem:
                    self._end_unsaved(batch, problem, way)
                    raise
                action = GATE[batch.state][way]  # its checks have made it a failed one
            if action in _WITHOUT_SAVE:
                return self._answer(action, batch, way)
            return await self._carry_out(action, batch, way, error)
        finally:
            if stream.committer.observers.all and batch.state is AttemptState.OVER:
                stream.committer.observers.left(stream.attempt_of(batch))

    async def confirm(self, batch: AnyBatch) -> None:
        """Pass the gate now, before the batch is left.

        Cancellation: none once something is being saved.
        """
        await self.pass_gate(batch, Exit.CONFIRM)

    async def commit(self, batch: AnyBatch, rows: RowsCommit) -> None:
        """Pass the gate at the end of a transaction, with what commits its rows.

        Raises:
            Exception: why they are not committed; the attempt has failed with it.

        Cancellation: none once the rows are being committed.
        """
        staged = staged_of(batch)
        staged.commit = rows
        try:
            await self.pass_gate(batch, Exit.COMMIT)
        except Exception as problem:
            poison = self.open_stream.committer.poison
            if staged.is_committed and poison is not None:
                raise poison from problem  # the run ends with it
            raise
        if batch.state is AttemptState.FAILED and isinstance(staged.error, BaseException):
            raise staged.error

    def _answer(self, action: GateAction, batch: AnyBatch, way: Exit) -> Passed:
        """Carry out an action that changes nothing."""
        if action is GateAction.REFUSE:
            raise self._forgotten(batch)
        if action is GateAction.ILLEGAL:
            raise RuntimeError("a withdrawn batch has nothing to confirm")
        if way is Exit.CONFIRM:
            self._check_confirmed(batch)
        return Passed.GO_ON

    async def _carry_out(
        self, action: GateAction, batch: AnyBatch, way: Exit, error: BaseException | None
    ) -> Passed | Again:
        """Carry out an action that saves, or ends the attempt without a record."""
        if action is GateAction.SAVE_OR_REJECT:  # the body may have been changing the state
            is_bare = self.open_stream.state_manager is None
            action = GateAction.SAVE if is_bare else GateAction.CANCEL
        try:
            with trio.CancelScope(shield=True) if way in _LEAVING else _NO_SHIELD:
                if action is GateAction.SAVE:
                    if await self._save(batch, CONFIRMED):
                        return Passed.GO_ON
                    action = GATE[batch.state][way]  # its checks have made it a failed one
                    if action is GateAction.PASS:
                        return Passed.GO_ON  # its loop decides what follows
                return await self._end_unconfirmed(action, batch, error)
        except BaseException as problem:
            if not self._end_unsaved(batch, problem, way):
                raise
            return Passed.GO_ON

    def _end_unsaved(self, batch: AnyBatch, problem: BaseException, way: Exit) -> bool:
        """End an attempt that an error leaves; returns whether the error is logged, not raised."""
        stream = self.open_stream
        if isinstance(problem, TokenNeverSettledError | BatchFailedError | StreamFailedError):
            return False  # the verdict on an attempt that is saved
        if not isinstance(problem, Exception):  # KeyboardInterrupt before the submission, say
            end_run_if_committed(self.open_stream, batch, problem)
            if stream.open.get(batch.index) is batch:
                stream.drop(batch, CANCELLED)  # else a task that waits for it waits for ever
            return False
        self._give_up_save(batch, problem)
        if way in _LEAVING:
            log.error(
                "while an exception left %s, saving failed: %s",
                stream.where(batch.index),
                one_line(text_of(problem)),
                extra=stream.place(batch.index),
            )
        return way in _LEAVING

    async def _end_unconfirmed(
        self, action: GateAction, batch: AnyBatch, error: BaseException | None
    ) -> Passed | Again:
        match action:
            case GateAction.DECIDE | GateAction.GIVE_UP:
                return await self._decide(batch, may_retry=action is GateAction.DECIDE)
            case GateAction.RECORD:
                await self._save(batch, settled_ending(batch))
            case GateAction.FAIL:
                await self._save(batch, Ending(AttemptEnd.FAILED, error or "it failed"))
            case GateAction.FORGOTTEN:
                forgotten = self._forgotten(batch)
                await self._save(batch, Ending(AttemptEnd.FAILED, forgotten))
                raise forgotten
            case GateAction.END:
                await self._save(batch, Ending(AttemptEnd.WITHDRAWN))
                return Passed.ENDED
            case GateAction.CANCEL:
                await self._forget(batch, CANCELLED)
            case GateAction.REJECT:
                await self._forget(batch, CANCELLED if error is None else failure_of(error))
            case GateAction.FORGET:
                await self._forget(batch, WITHDRAWN)
            case _:
                raise RuntimeError(f"the gate cannot {action.value}")
        return Passed.GO_ON

    async def _decide(self, batch: AnyBatch, *, may_retry: bool) -> Passed | Again:
        """Decide what happens to the batch of a failed attempt, and save the attempt so.

        Raises:
            BatchFailedError, StreamFailedError: it does not run again in this session.
        """
        stream, staged = self.open_stream, staged_of(batch)
        error = staged.error or "it failed"
        verdict: Again | GiveUp = GiveUp(Then.FAIL)
        if may_retry and not staged.is_final:
            verdict = stream.policy.verdict_on(error, batch.attempt, stream.place(batch.index))
        if isinstance(verdict, Again) and verdict.defers:
            due = time.time() + verdict.after_s
            await self._save(batch, Ending(AttemptEnd.DEFERRED, error, due=due))
            return Passed.GO_ON
        if isinstance(verdict, Again):
            await self._save(batch, Ending(AttemptEnd.RETRIED, error))
            if verdict.pauses:
                stream.pauses.pause_for(
                    verdict.after_s, f"asked to wait: {failure_of(error).reason}"
                )
            return verdict
        if verdict.then is Then.SKIP:
            await self._save(batch, Ending(AttemptEnd.SKIPPED, error))
            return Passed.GO_ON
        await self._save(batch, Ending(AttemptEnd.FAILED, error, retryable=verdict.retryable))
        failure = failure_of(error)
        if verdict.then is Then.FAIL_STREAM:  # also if the caller catches the error raised below
            described = describe_error(error, retryable=verdict.retryable, batch_index=batch.index)
            stream.set_failure(described)
        kind = StreamFailedError if verdict.then is Then.FAIL_STREAM else BatchFailedError
        raise stream.error(
            kind, failure.reason, batch.index, retryable=verdict.retryable
        ) from failure.cause

    # -- the one way to the store ---------------------------------------------------------------

    async def _save(self, batch: AnyBatch, ending: Ending) -> bool:
        """Save how an attempt ended; the order of the steps is argued for at the top of the file.

        Args:
            batch: The attempt.
            ending: How it ended.

        Returns:
            False: the batch did not pass its checks.  Nothing is saved, and the attempt is FAILED.

        Raises:
            Exception: the reason why it was not saved.

        Durability: when this returns True the record is durable.
        Cancellation: none once it is submitted.
        """
        stream, staged, is_done = self.open_stream, staged_of(batch), ending is CONFIRMED
        states, state, lines = stream.state_manager, None, NO_LINES
        refused = pending = None
        batch.state = AttemptState.SUBMITTED
        try:
            try:
                if is_done:
                    lines = await check_batch(stream, batch)  # check
                if states is not None and is_done:  # capture
                    state = await states.encode_state()
                elif states is not None:
                    await states.wait_saved()
                record = stream.introduce(
                    confirmed_record(stream, batch, state, lines)
                    if is_done
                    else record_of_end(batch, ending)
                )
                payload = encode_record(record)  # encode
                blobs = () if state is None else state.stored.blobs
                if is_done and staged.commit is not None:
                    refused = await shielded(commit_staged, staged, payload, bool(blobs or lines))
            except REFUSALS as problem:
                if not is_done:
                    raise
                return _refuse(batch, problem)
            if refused is not None:
                return _refuse(batch, refused)
            if stream.committer.observers.all:
                stream.committer.observers.settled(stream.attempt_of(batch))
            on_outcome = partial(self._on_outcome, batch, ending, state, record)
            pending = await stream.committer.submit(  # submit
                stream.stream_log, record, payload, on_outcome, blobs=blobs, lines=lines
            )
            await pending.wait()  # durable, then `_on_outcome`, and the loop wakes
        finally:
            if pending is None:  # nothing of it is queued
                stream.stream_log.take_lines(lines)
        if not is_done:
            await stream.restore_state()
        elif states is not None and states.needs_pruning:
            from .archive_states import prune_states  # only a stream with a state needs it

            await prune_states(stream)
        return True

    def _on_outcome(
        self,
        batch: AnyBatch,
        ending: Ending,
        state: EncodedState | None,
        record: Record,
        problem: Exception | None,
    ) -> None:
        """Called once by the committer, see `GroupCommitter.submit`."""
        try:
            if problem is None:
                self.open_stream.advance(batch, ending, state, record)  # advance
                self.open_stream.end_saved(batch, ending, record)  # token
        except BaseException as bug:  # e.g. of a user's key function: the run ends with it
            self._give_up_save(batch, bug)
            raise
        if problem is not None:
            self._give_up_save(batch, problem)

    # -- without a record -----------------------------------------------------------------------

    def _give_up_save(self, batch: AnyBatch, problem: BaseException) -> None:
        """End an attempt that could not be saved, so that the batch runs again."""
        end_run_if_committed(self.open_stream, batch, problem)
        if isinstance(problem, Exception):
            staged_of(batch).problem = problem
        self.open_stream.drop(batch, failure_of(problem))

    async def _forget(self, batch: AnyBatch, failure: Failure) -> None:
        """End an attempt that leaves no record but of what it has cost."""
        stream, spent = self.open_stream, staged_of(batch).spent
        reserved = settlement_of(staged_of(batch))
        stream.drop(batch, failure)
        if (spent or reserved) and stream.committer.poison is None:
            cost = Record(kind=RecordKind.SAVE, at=time.time(), spent=spent, reserved=reserved)
            await stream.save_plain(cost)

    async def _wait_submitted(self, batch: AnyBatch, way: Exit) -> None:
        """Wait for the outcome of a batch with which another task passes the gate."""
        with trio.CancelScope(shield=True):
            while batch.state is AttemptState.SUBMITTED:
                await self.open_stream.awaited.setdefault(batch.index, trio.Event()).wait()
        problem = staged_of(batch).problem
        if problem is not None and way not in _LEAVING:
            raise problem

    def _check_confirmed(self, batch: AnyBatch) -> None:
        """Raise if an attempt that is over did not end in a saved batch."""
        stream = self.open_stream
        is_done = stream.stream_log.progress.is_done(batch.index)
        if is_done or batch.token.state is TokenState.CONFIRMED:
            return
        failure = stream.failed.get(batch.index, Failure("this attempt is over"))
        raise staged_of(batch).problem or stream.error(
            BatchFailedError, failure.reason, batch.index
        ) from failure.cause

    def _forgotten(self, batch: AnyBatch) -> TokenNeverSettledError:
        where = self.open_stream.where(batch.index)
        message = f"{where} was left without complete(), fail(), skip() or withdraw()"
        return self.open_stream.error(TokenNeverSettledError, message, batch.index)


def _refuse(batch: AnyBatch, problem: BaseException) -> bool:
    batch.state, staged_of(batch).error = AttemptState.FAILED, problem
    return False
