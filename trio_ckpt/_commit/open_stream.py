"""One open stream: the attempts that are handed out, their tokens, and its state.

The gate decides what happens when an attempt is left, see `trio_ckpt._commit.gate`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sized
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import attrs
import msgspec
import trio

from .._journal.code import CodeMark
from .._journal.observer import Attempt, AttemptEnd
from .._journal.record import CheckpointResult, ErrorInfo, Record, Status
from .._journal.statistics import Waiting
from .._tokens.token import (
    CANCELLED,
    WITHDRAWN,
    AnyToken,
    Confirmed,
    Failure,
    TokenEvent,
    TokenRegistry,
    failure_of,
    make_token,
    may,
    move,
    touch,
)
from .._util.arguments import several
from .._util.errors import BatchFailedError, TrioCkptError, describe_batch
from .._util.log import Place, at
from .._util.threads import Portal
from .._util.uninterrupted import uninterrupted
from ..state import FrontierItems, keyed_items
from .batch import AnyBatch, staged_of, task_of
from .deferrals import Deferrals
from .exits import CONFIRMED, Ending, end_of
from .extent import Extent
from .group_commit import GroupCommitter
from .intents import Intents
from .introduce import introduced
from .limit_watch import LimitWatch
from .pauses import Pauses
from .retry import LoopPolicy
from .saves import save_aside, save_record
from .shutdown import Stop
from .staged import AttemptState
from .stream_log import PendingCommit, StreamLog
from .stream_outputs import StreamFiles

if TYPE_CHECKING:
    from .state_manager import StateManager
    from .stored_state import EncodedState

_E = TypeVar("_E", bound=TrioCkptError)


class LoopListener(Protocol):
    """What the stream tells the loop that works on several of its batches."""

    def frontier_grew(self) -> None:
        """The frontier has items that can be handed out; called before any other task runs."""
        ...

    def reconsider(self, index: int) -> None:
        """A batch is left again, or was given up; called as soon as progress says so."""
        ...


@uninterrupted
@attrs.define(eq=False, repr=False)
class OpenStream:
    """One open stream: its attempts, its tokens, what goes into their records.

    Batches and tokens call it as their host; the gate decides what happens when an attempt is
    left.

    Attributes:
        run_id: The run.
        stream_log: Its stream log.
        registry: The pending tokens of the run, for monitors.
        open: The attempts handed out, by batch index.
        tokens: The tokens of batches handed out or waiting to run again.
        failed: Batches that failed for good in this session.
        policy: What the newest loop does with its batches.
        files: Its outputs.
        nursery: The nursery of the run, for tasks that run beside the loop.
        state_manager: Manages the state that is captured with every batch; None: no state.
        phase: The phase of the run that was open when the stream was opened.
        opened_at: When it was opened; Unix time, s.  Its next record contains this.
        extent: How far it goes, and which part of it the newest loop works on.
        moved_at: When the last attempt was handed out, or was over, on trio's clock.
        failure: The error with which the stream was failed; None: it was not.
        verdicts: The BatchFailedErrors that belong to exceptions of handlers, which leave
            unchanged.
        listener: The loop that several batches are worked on by; None: there is no such loop.
        settled: Called with the index of a batch that is durable, or has failed.
        waited: The waits of the run for batches; while it is empty, `settled` is not called.
        finish: The newest record of this session that says that it is complete.
        portal: The portal to the trio run.
        awaited: Events that are set when an attempt that another task waits for is over, by batch.
        limits: Counts for the limits of the run; None: it has none.
        intents: Saves what open batches note and reserve.
        deferrals: Its deferred batches.
        pauses: Until when it hands out nothing, and why.
        code: The code that works on it, if that is noted.
    """

    run_id: str
    stream_log: StreamLog
    committer: GroupCommitter
    registry: TokenRegistry
    stop: Stop
    policy: LoopPolicy
    files: StreamFiles
    nursery: trio.Nursery
    state_manager: StateManager[Any] | None = None
    frontier: FrontierItems[Any] | None = None
    first_index: int = 0
    open: dict[int, AnyBatch] = attrs.field(factory=dict[int, AnyBatch])
    tokens: dict[int, AnyToken] = attrs.field(factory=dict[int, AnyToken])
    failed: dict[int, Failure] = attrs.field(factory=dict[int, Failure])
    extent: Extent = attrs.field(
        default=attrs.Factory(
            lambda self: Extent(self.stream_log.progress, self.first_index), takes_self=True
        )
    )
    phase: str | None = None
    opened_at: float = attrs.field(factory=lambda: time.time())
    moved_at: float = -math.inf
    failure: ErrorInfo | None = None
    verdicts: list[BatchFailedError] = attrs.field(factory=list[BatchFailedError])
    listener: LoopListener | None = None
    settled: Callable[[int], None] = lambda _index: None
    waited: Sized = ()
    awaited: dict[int, trio.Event] = attrs.field(factory=dict[int, trio.Event])
    finish: PendingCommit | None = None
    portal: Portal = attrs.field(factory=Portal.here)
    limits: LimitWatch | None = None
    intents: Intents = attrs.field(
        default=attrs.Factory(
            lambda s: Intents(s.stream_log, s.committer, s.stop, s.limits, s.introduce),
            takes_self=True,
        )
    )
    code: CodeMark | None = attrs.field(default=None, init=False)
    deferrals: Deferrals = attrs.field(
        default=attrs.Factory(lambda s: Deferrals(s.stream_log.progress), takes_self=True)
    )
    pauses: Pauses = attrs.field(
        default=attrs.Factory(lambda s: Pauses(s.run_id, s.stream_log.key), takes_self=True)
    )

    @property
    def has_failed(self) -> bool:
        """Whether the stream has failed since it was opened."""
        progress = self.stream_log.progress
        return progress.status is Status.FAILED and progress.opened_at == self.opened_at

    @property
    def is_complete(self) -> bool:
        """Whether the stream is complete, or the record that says so is its newest, on its way."""
        finish, stream_log = self.finish, self.stream_log
        return stream_log.progress.status is Status.COMPLETE or (
            finish is not None
            and not finish.is_over
            and finish.checkpoint.sequence == stream_log.submitted
        )

    # -- handing out ----------------------------------------------------------------------

    def make_token(self, index: int) -> AnyToken:
        """Make the token of a batch; all attempts at the batch share it."""
        token = make_token(self.run_id, self.stream_log.key, index, self, self.portal)
        self.tokens[index] = token
        self.failed.pop(index, None)
        return token

    def enter(self, batch: AnyBatch, task: trio.lowlevel.Task) -> None:
        """Begin an attempt, whose body the given task runs."""
        if self.state_manager is not None:
            batch.resumed_from = self.state_manager.begin_batch(batch.index)
        self.open[batch.index] = batch
        self.moved_at = self.portal.clock.current_time()
        self.stop.enter_batch(batch.token, task)
        if self.limits is not None:
            self.limits.began(batch.token)
        if self.committer.observers.all:
            self.committer.observers.began(self.attempt_of(batch))

    def attempt_of(self, batch: AnyBatch) -> Attempt:
        """An attempt as observers get it."""
        return Attempt(self.run_id, self.stream_log.key, batch.index, batch.attempt)

    # -- what its loop and its owner set ------------------------------------------------------

    @contextmanager
    def run_loop(self, policy: LoopPolicy, listener: LoopListener) -> Generator[None]:
        """Apply the policy of a loop, and tell it what it can hand out, while the block runs."""
        own, self.policy, self.listener = self.policy, policy, listener
        try:
            yield
        finally:
            self.policy, self.listener = own, None
            self.deferrals.end_waiting()

    def change_policy(self, **changes: Any) -> None:
        """Use another policy, such as another retry table, from the next batch or failure on."""
        self.policy = msgspec.structs.replace(self.policy, **changes)

    def reconsider(self, index: int) -> None:
        """Tell the loop that a batch is left again, or was given up."""
        self.deferrals.reconsider(index)
        if self.listener is not None:
            self.listener.reconsider(index)

    def set_failure(self, failure: ErrorInfo) -> None:
        """Mark the stream as failed: nothing is handed out any more."""
        self.failure = failure

    def set_frontier(self, frontier: FrontierItems[Any]) -> None:
        """Make the loaded items those that the stream works on."""
        self.frontier = frontier
        self.extent.set_items(frontier)

    def set_state_manager(self, state_manager: StateManager[Any]) -> None:
        """Save the state that was restored with every batch from now on."""
        self.state_manager = state_manager

    # -- waiting --------------------------------------------------------------------------

    async def wait_held(self) -> None:
        """Wait until the pauses of the stream and the run are over; a cancellation point then."""
        await self.pauses.wait_over(self.stop)
        if self.stop.is_holding:
            await self.stop.hold()

    def waiting(self) -> Waiting | None:
        """What the stream waits for before it begins another batch; None: it does not wait."""
        waits = self.pauses.newest or self.deferrals.waits
        if waits is None:
            return None
        until, reason = waits
        left_s = until - trio.current_time()
        return Waiting(self.stream_log.key, reason, left_s) if left_s > 0 else None

    def set_code(self, code: CodeMark) -> None:
        """Note the code that works on it in its next record."""
        self.code = code

    def where(self, index: int | None = None) -> str:
        """The stream, or a batch of it, as messages name it."""
        return describe_batch(self.run_id, self.stream_log.key, index)

    def error(self, kind: type[_E], message: str, index: int | None = None, **more: Any) -> _E:
        """An error that names the stream, or a batch of it, in its fields."""
        return kind(
            message, run_id=self.run_id, stream=self.stream_log.key, batch_index=index, **more
        )

    def place(self, index: int | None = None) -> Place:
        """The stream, or a batch of it, as records of the log have it; see `at`."""
        return at(self.run_id, self.stream_log.key, index)

    def add_verdict(self, verdict: BatchFailedError) -> None:
        """Remember the verdict on an exception of a handler, which leaves unchanged."""
        self.verdicts.append(verdict)

    # -- what goes into a record ----------------------------------------------------------

    async def save_plain(self, record: Record, blobs: tuple[str, ...] = ()) -> int:
        """Save a record of the stream that is not about a batch; see `save_record`."""
        sequence = await save_record(self.committer, self.stream_log, self.introduce(record), blobs)
        if self.limits is not None:
            self.limits.add_cost(record)
        return sequence

    def introduce(self, record: Record) -> Record:
        """Add to a record what the records do not have yet about the stream as a whole."""
        return introduced(self, record)

    async def save_finish(self, record: Record, *, is_due: bool = False) -> None:
        """Save that the stream is complete, after its append files are cut to confirmed bytes.

        Durability: as for `save_aside`.
        """
        if self.files.root is not None:
            await self.files.cut_tails()
        record = self.introduce(record)
        self.finish = await save_aside(self.committer, self.stream_log, record, is_due=is_due)

    def encode_adds(self, adds: Mapping[str, Any]) -> bytes:
        """Encode the items that a batch has staged for the frontier and that are new."""
        frontier = self.frontier
        return b"" if frontier is None else frontier.encode(frontier.news(adds))

    def advance(
        self, batch: AnyBatch, ending: Ending, state: EncodedState | None, record: Record
    ) -> None:
        """Let what is in memory follow a record that is durable.

        Args:
            batch: The attempt.
            ending: How it ended.
            state: The state in its record; None: there is none, or it has not changed.
            record: Its record.
        """
        if ending is not CONFIRMED:
            self.mark_state_dirty()
        elif self.frontier is not None:
            self._advance_frontier(self.frontier, batch)
        elif self.state_manager is not None:
            sequence = self.stream_log.progress.sequence  # that of its record, see `Gate`
            self.state_manager.mark_durable(state, sequence, record.at, is_confirmed=True)
        if batch.index in self.files.claimed and ending.end is not AttemptEnd.RETRIED:
            self.files.release(batch.index, record.outputs)
        self.moved_at = self.portal.clock.current_time()
        self.stream_log.count(ending.end)
        if ending.due is not None:
            self.deferrals.add(batch.index)
        if self.limits is not None:
            self.limits.saved(batch.token, record, is_failure=ending.is_failure)

    def _advance_frontier(self, frontier: FrontierItems[Any], batch: AnyBatch) -> None:
        frontier.number(staged_of(batch).adds)
        frontier.finish(batch.index - self.first_index)
        if self.listener is not None and frontier.is_ready:
            self.listener.frontier_grew()

    def mark_state_dirty(self) -> None:
        """Mark the in-memory state dirty: a failed attempt may have mutated it."""
        if self.state_manager is not None:
            self.state_manager.mark_dirty()

    async def restore_state(self) -> None:
        """Restore the state in memory if a failed attempt has made it dirty.

        Cancellation: a cancellation point where arrays are read back.
        """
        if self.state_manager is not None and self.state_manager.is_dirty:
            await self.state_manager.restore()

    # -- the ends of tokens -------------------------------------------------------------------

    def _close_attempt(self, batch: AnyBatch, ending: Ending) -> None:
        """Mark an attempt as over, and wake the tasks that wait for it."""
        was_open = self.open.pop(batch.index, None) is not None
        if was_open:
            self.stop.leave_batch(batch.token)
            if self.limits is not None:
                self.limits.ended(batch.token)
            if self.intents.is_used:
                self.intents.end(batch, is_confirmed=ending is CONFIRMED)
        batch.state = AttemptState.OVER
        if batch.index in self.awaited:
            self.awaited.pop(batch.index).set()
        if was_open and self.committer.observers.all:
            reason = None if ending.error is None else failure_of(ending.error).reason
            self.committer.observers.ended(self.attempt_of(batch), ending.end, reason)

    def drop(self, batch: AnyBatch, failure: Failure) -> None:
        """End an attempt without a record, so that the batch runs again."""
        if batch.index in self.open:
            self.mark_state_dirty()
        self._close_attempt(batch, Ending(end_of(failure), failure.reason))
        self.files.release(batch.index)
        self.fail_token(batch.token, failure)

    def end_saved(self, batch: AnyBatch, ending: Ending, record: Record) -> None:
        """End an attempt whose record is durable, and move its token, which wakes who waits for it.

        Args:
            batch: The attempt.
            ending: How it ended; without an error it is confirmed or withdrawn.
            record: Its record.
        """
        self._close_attempt(batch, ending)
        if self.limits is not None and self.intents.is_used:
            self.limits.check_spent()  # also what the attempt has left reserved
        if ending is not CONFIRMED:
            self._end_token(batch.token, ending)
        elif may(batch.token, TokenEvent.CONFIRM):  # else the coordinator was closed meanwhile
            saved = Confirmed(record.outputs, record.metadata, record.records, record.at)
            move(batch.token, TokenEvent.CONFIRM, saved)

    def _end_token(self, token: AnyToken, ending: Ending) -> None:
        """Move the token of an attempt that is saved and not confirmed."""
        if ending.end not in (AttemptEnd.RETRIED, AttemptEnd.DEFERRED):
            failure = WITHDRAWN if ending.error is None else failure_of(ending.error)
            self.fail_token(token, failure, is_kept=ending.end is AttemptEnd.FAILED)
        elif may(token, TokenEvent.RETRY):
            move(token, TokenEvent.RETRY)
        else:  # the token stays PENDING, but monitors count attempts
            touch(self.registry)

    def fail_token(self, token: AnyToken, failure: Failure, *, is_kept: bool = True) -> None:
        if token.is_pending:
            if is_kept:
                self.failed[token.batch_index] = failure
            event = TokenEvent.WITHDRAW if failure is WITHDRAWN else TokenEvent.REJECT
            move(token, event, failure)

    def close(self) -> None:
        """End all pending tokens, except those whose save is under way: its outcome ends them."""
        is_over = self.committer.poison is not None  # then no outcome comes any more
        for batch in tuple(self.open.values()):
            if is_over or batch.state is not AttemptState.SUBMITTED:
                self.drop(batch, CANCELLED)
        for token in tuple(self.tokens.values()):
            if token.batch_index not in self.open:
                self.fail_token(token, CANCELLED)

    # -- the host of tokens ---------------------------------------------------------------------

    def complete(self, token: AnyToken, result: Any) -> bool:
        """Settle a batch through its token, from any task."""
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
        """Fail a batch through its token, without a retry."""
        batch = self.open.get(token.batch_index)
        if batch is None or not batch.fail(error):
            return False
        staged_of(batch).is_final = True
        return True

    def check_wait(self, token: AnyToken) -> None:
        """Refuse to let a body wait for itself."""
        batch = self.open.get(token.batch_index)
        if batch is not None and task_of(batch) is trio.lowlevel.current_task():
            raise RuntimeError(
                "a body that waits for its own token waits for ever: use 'await batch.confirm()'"
            )

    def ended(self, token: AnyToken) -> None:
        """Forget a token that is settled, and notify the tasks that wait for the batch."""
        self.tokens.pop(token.batch_index, None)
        if self.waited:
            self.settled(token.batch_index)

    # -- the host of batches --------------------------------------------------------------------

    def check_withdraw(self, batch: AnyBatch) -> None:
        """Raise RuntimeError unless the end is open and batches run one at a time."""
        if not self.extent.is_open_ended or self.policy.is_parallel:
            raise RuntimeError(
                "withdraw() is for batches() without a source, one at a time; "
                f"batch {batch.index} comes from a source: skip() it instead"
            )

    def check_last(self, batch: AnyBatch) -> None:
        """Raise ValueError where the source defines the last batch."""
        if not self.extent.is_open_ended:
            raise ValueError(
                f"last=True is for batches() without a source; batch {batch.index} comes from one"
            )

    def check_cursor(self) -> None:
        """Raise ValueError where batches run side by side: a cursor needs their order."""
        if self.policy.is_parallel:
            raise ValueError("a cursor needs batches in order: concurrency=1")

    def aside(self, batch: AnyBatch) -> AbstractAsyncContextManager[None]:
        """A block that a stop does not wait for."""
        return self.stop.aside(batch.token)

    def stage_items(self, items: Iterable[Any]) -> dict[str, Any]:
        """Copy items for the frontier, by their keys."""
        if self.frontier is None:
            raise TypeError("batch.add() needs a stream whose state is a Frontier")
        return keyed_items(several("items", items, "items"), self.frontier.key)
