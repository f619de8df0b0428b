"""Group commit: takes checkpoints from submitted to durable, many in one transaction.

Theory of operation
===================

One trio task of the run saves.  It takes *all* that is queued, saves it as one group, and
never waits for a timer: while one group is being written, the next one fills the queue.
After a group it passes one schedule point, so that the loops it has just woken can submit
their next batch; without that they split into two alternating halves.

For each checkpoint of a group, in this order:

    blobs -> lines appended and fsynced -> store.save -> progress -> token -> the loop wakes

Blobs are durable before the checkpoint that names them is queued: those of a state when it is
captured, a large record itself in `submit`.  What makes `store.save` durable is the COMMIT in
`stores/_sqlite/writer` or on the server of `stores/_postgres`, the sync of the journal in
`stores/_json/journal`, the answer to the PUT in `stores/_objects/save`.  `PendingCommit.end` does
the rest.  This ensures that no task sees a checkpoint before it is durable, and that a task
that wakes sees progress that includes it.

A checkpoint that fails also fails the later ones of its stream log that were submitted
already: their sequence numbers follow a number that does not exist.  Their batches run again.

A save that does not end in time has an unknown outcome.  Then the run is *poisoned*:
this process saves nothing more, and only the next start can find out what is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import islice

import trio

from .._journal.progress import Progress
from .._journal.record import Record, RecordKind
from .._journal.store import BlobPayload, Checkpoint, FarStore, RunKey, Store
from .._util.errors import (
    LeaseLostError,
    SaveOutcomeUnknownError,
    StoreConflictError,
    StoreError,
    TrioCkptError,
)
from .._util.exceptions import class_name, text_of
from .._util.log import at, get_logger
from .._util.patience import give_up_after
from .._util.plain import StreamKey, encode_key
from .._util.text import plural
from .._util.threads import NOT_BEGUN, refuse_to_abort
from .._util.uninterrupted import uninterrupted
from .fold_schedule import Derived, FoldSchedule
from .line_appender import LineAppender
from .observers import Observers, counted
from .ownership import Ownership
from .stream_log import Lines, PendingCommit, StreamLog

log = get_logger(__name__)

MAX_GROUP = 4_096  # bounds the memory and the time of one transaction
MAX_GROUP_BYTES = 16 * 2**20  # of payloads, likewise: what a database takes in one statement
DEFAULT_SAVE_TIMEOUT_S = 60.0
LOST_AFTER = 0.8  # of a lease: so long after the last proof of it the run is lost


@uninterrupted
class GroupCommitter:
    """Saves what is submitted; its `run` is a background task of the run.

    Attributes:
        run_key: The run and the owner in whose name it saves.
        poison: The error after which nothing is saved any more; None: the run is not poisoned.
        observers: They are called with what the run does.
        appender: Appends lines to files.
        lease_s: The lease of the store; None: it has none.
        ownership: That this process owns the run, as far as the store has said so.
        is_far: Whether a save is a request over the network.
    """

    def __init__(
        self,
        store: Store,
        run_key: RunKey,
        *,
        save_timeout_s: float,
        on_poison: Callable[[], None],
        observers: Observers | None = None,
        known: Mapping[StreamKey, Progress] | None = None,
        ownership: Ownership | None = None,
    ) -> None:
        self.run_key = run_key
        self.poison: TrioCkptError | None = None
        self.observers = observers or Observers()
        self.appender = LineAppender(save_timeout_s)
        self.lease_s = lease_s = store.lease_s
        self.ownership = ownership or Ownership(store, run_key)
        self._store = store
        self.is_far = isinstance(store, FarStore)
        self._timeout_s = save_timeout_s
        self._save_timeout_s = (
            save_timeout_s if lease_s is None else min(save_timeout_s, lease_s * LOST_AFTER)
        )
        self._on_poison = on_poison
        self._queue: list[PendingCommit] = []
        self._taken: list[PendingCommit] = []  # the group in flight
        self._saving = trio.CancelScope()  # of the save in flight
        self._putting = set[trio.CancelScope]()  # of the blobs that are being written
        self._stream_logs: list[StreamLog] = []
        self._folds = FoldSchedule(store, run_key, known)
        self._idle_task: trio.lowlevel.Task | None = None
        self._is_due = False  # whether a record in the queue does not wait for another one
        self._is_closing = False
        self._is_over = False
        self._make_seal = partial(store.seal, run_key.run_id, run_key.generation)

    # -- the way in -------------------------------------------------------------------

    @property
    def stream_logs(self) -> tuple[StreamLog, ...]:
        """The stream logs of all streams that the run has touched."""
        return tuple(self._stream_logs)

    def add_stream_log(self, key: StreamKey, progress: Progress) -> StreamLog:
        """Make the stream log of a stream; it continues from `progress`."""
        stream_log = StreamLog(key, encode_key(key), self._make_seal, progress, progress.sequence)
        self._stream_logs.append(stream_log)
        self._folds.add_stream(stream_log)
        return stream_log

    async def submit(
        self,
        stream_log: StreamLog,
        record: Record,
        payload: bytes,
        on_outcome: Callable[[Exception | None], None],
        *,
        blobs: tuple[str, ...] = (),
        lines: Lines = (),
        is_due: bool = True,
    ) -> PendingCommit:
        """Seal the next record of a stream, and queue it for the next group.

        A large record is first written as a durable blob.

        Args:
            stream_log: The log of the stream.
            record: The record.
            payload: The encoded record.
            on_outcome: Called once with None or the error: when the record is durable and in
                progress, or when it is known that it was not saved.  It is called in the order of
                the records, and no other task runs before it returns.
            blobs: The blobs that the record names.
            lines: What is appended before the record is saved.
            is_due: Whether it is saved now; False: with the next record that is, or at the end.

        Raises:
            NotEncodableError: the stream would count more records than a sum can hold.
            StoreError: the blob cannot be written.
            TrioCkptError: the run is poisoned.

        Cancellation: none; a store that does not write a blob in time poisons the run.
        """
        tools, is_large = stream_log.tools, len(payload) >= self._store.inline_limit_bytes
        if is_large or tools.placing.locked():
            checkpoint = await self._seal_in_turn(stream_log, payload, blobs, is_large=is_large)
        else:
            sequence = stream_log.submitted + 1
            sealed = tools.seal.close(sequence, payload)
            checkpoint = Checkpoint(stream_log.text, sequence, sealed, None, blobs)
        if self.poison is not None or self._is_over:
            run_id = self.run_key.run_id
            raise self.poison or TrioCkptError("the run is closed", run_id=run_id)
        produced = record.records if record.kind is RecordKind.BATCH else 0
        stream_log.reserve(checkpoint.sequence, produced)
        pending = PendingCommit(stream_log, record, checkpoint, lines, produced, on_outcome)
        self._queue.append(pending)
        if is_due:
            self._is_due = True
            self._wake()
        return pending

    async def _seal_in_turn(
        self, stream_log: StreamLog, payload: bytes, blobs: tuple[str, ...], *, is_large: bool
    ) -> Checkpoint:
        """Seal a large record as a blob, or one that has to wait for a large one before it."""
        tools, digest, sealed, sequence = stream_log.tools, None, b"", -1
        with trio.CancelScope(shield=True):
            # Else the blob is sealed and written again for each record that overtakes it.  The next
            # waiter for the lock runs after this record has been submitted.
            async with tools.placing:
                while stream_log.submitted + 1 != sequence:  # again, if one before it has failed
                    sequence = stream_log.submitted + 1
                    sealed = tools.seal.close(sequence, payload)
                    digest = await self.put_blob(sealed) if is_large else None
        return Checkpoint(stream_log.text, sequence, b"" if is_large else sealed, digest, blobs)

    async def put_blob(self, payload: BlobPayload) -> str:
        """Write a blob; returns its name, see `Store.put_blob`.

        Raises:
            StoreConflictError: another process has taken the run over; nothing more is saved.
            StoreError: the blob cannot be written.

        Durability: when this returns the blob is durable.
        Cancellation: none; a store that does not write it in time poisons the run.
        """
        sizes: list[int] = []
        with give_up_after(self._timeout_s) as scope:
            self._putting.add(scope)
            try:
                name = await self._store.put_blob(self.run_key, counted(payload, sizes))
            except StoreError as error:  # also one that comes after the lease was lost
                is_lost = isinstance(error, StoreConflictError)
                if (reason := self.set_poison(error) if is_lost else self.poison) is not None:
                    raise reason from reason.__cause__
                raise
            finally:
                self._putting.discard(scope)
            if self.observers.all:
                self.observers.saved(self.run_key.run_id, sum(sizes))
            return name
        raise self._poison_for_time("writing a blob", self._timeout_s)

    async def check_owner(self, max_age_s: float = 0.0) -> None:
        """Check that no other process has taken the run over, before a shared file is changed.

        Args:
            max_age_s: An answer of the store that is not older than this is enough; seconds.

        Raises:
            StoreConflictError: another process has taken it over; nothing more is saved.
            StoreError: the store cannot answer.

        Cancellation: none; a store that does not answer in time poisons the run.
        """
        if trio.current_time() - self.ownership.owned_at < max_age_s:
            return
        if not await self.ask_owner(self._save_timeout_s):
            raise self._poison_for_time("a save", self._save_timeout_s)

    async def ask_owner(self, limit_s: float) -> bool:
        """Ask who owns the run, for the time of a save at most; see `Ownership.ask`.

        Raises:
            StoreConflictError: another process has taken it over; nothing more is saved.
            StoreError: the store cannot answer.

        Cancellation: none; it ends when the run is poisoned.
        """
        try:
            return await self.ownership.ask(min(limit_s, self._save_timeout_s))
        except (StoreConflictError, SaveOutcomeUnknownError) as error:
            reason = self.set_poison(error)
            raise reason from reason.__cause__

    def close(self) -> None:
        """Let `run` end when everything submitted has been saved."""
        self._is_closing = True
        self._wake()

    def close_sinks(self) -> None:
        """Close the append files; lines that were not confirmed stay in them."""
        for stream_log in self._stream_logs:
            for sink in stream_log.sinks.values():
                sink.close()

    def _wake(self) -> None:
        if self._idle_task is not None:
            trio.lowlevel.reschedule(self._idle_task)
            self._idle_task = None

    # -- the background task ------------------------------------------------------------

    async def run(self) -> None:
        """Save group after group until closed.

        However it ends, all tasks that wait for a checkpoint wake.

        Cancellation: none; it ends by `close`, or when the run is poisoned.
        """
        with trio.CancelScope(shield=True):
            try:
                while self._queue or not self._is_closing:
                    if self._is_due or self._is_closing:
                        await self._save_next_group()
                        await trio.lowlevel.cancel_shielded_checkpoint()  # see above
                    else:
                        self._idle_task = trio.lowlevel.current_task()
                        await trio.lowlevel.wait_task_rescheduled(refuse_to_abort)
                await self._save_last_folds()
            except BaseException as error:  # a bug of a store or a key function: all waiters wake
                self._idle_task = None
                self.set_poison(self._unknown(f"a save raised {class_name(error)}"))
                raise
            finally:
                self._is_over = True
                self.appender.stop()

    async def _save_next_group(self) -> None:
        group = self._take_group()
        if self.poison is not None:
            self._end_all(group, self.poison)
            return
        if any(pending.lines for pending in group):
            group = await self._append_lines(group)
        if group:
            outcomes = await self._save(group, self._folds.take_due())
            for pending, outcome in zip(group, outcomes, strict=True):
                if pending.is_over:
                    continue
                if outcome is None:
                    self._folds.add(pending.stream_log)
                    pending.end(None)
                else:
                    self._fail(pending, outcome)

    async def _save_last_folds(self) -> None:
        """Save the folds that are left and the summary, best effort: reading is faster then."""
        self._is_over = True
        derived = Derived() if self.is_far else self._folds.take_all()
        if derived.folds and self.poison is None:
            await self._save([], derived)

    def _take_group(self) -> list[PendingCommit]:
        """Move the next group out of the queue: what fits, and at least one checkpoint."""
        size = count = 0
        for pending in islice(self._queue, MAX_GROUP):
            size += len(pending.checkpoint.payload)
            if size > MAX_GROUP_BYTES and count:
                break
            count += 1
        group = self._taken = self._queue[:count]
        del self._queue[:count]
        self._is_due = bool(self._queue)
        return group

    async def _save(self, group: list[PendingCommit], derived: Derived) -> list[Exception | None]:
        checkpoints, asked_at = [pending.checkpoint for pending in group], trio.current_time()
        with give_up_after(self._save_timeout_s) as self._saving:
            try:
                outcomes = await self.ownership.saving(self.run_key)(
                    self.run_key, checkpoints, derived.folds, summary=derived.summary
                )
            except (StoreError, *NOT_BEGUN) as error:
                self._report_failed(len(group), error)
                return [error] * len(group)
            self.ownership.answered(asked_at)
            if self.observers.all:
                self._report_saved(checkpoints, outcomes, derived)
            return outcomes
        return [self._poison_for_time("a save", self._save_timeout_s)] * len(group)

    def _report_failed(self, count: int, error: Exception) -> None:
        """Log why a group was not saved, or poison the run where its outcome is not known."""
        if isinstance(error, StoreConflictError | SaveOutcomeUnknownError):
            self.set_poison(error)
            return
        log.error(
            "saving %s failed: %s",
            plural(count, "checkpoint"),
            text_of(error),
            extra=at(self.run_key.run_id),
        )

    def _report_saved(
        self,
        checkpoints: list[Checkpoint],
        outcomes: list[Exception | None],
        derived: Derived,
    ) -> None:
        size = derived.nbytes
        for checkpoint, outcome in zip(checkpoints, outcomes, strict=False):
            size += len(checkpoint.payload) if outcome is None else 0
        self.observers.saved(self.run_key.run_id, size)

    def _unknown(self, problem: str) -> SaveOutcomeUnknownError:
        return SaveOutcomeUnknownError(
            f"run {self.run_key.run_id!r}: {problem}, so its outcome is unknown; "
            "restart the run to find out",
            run_id=self.run_key.run_id,
        )

    def _poison_for_time(self, what: str, limit_s: float) -> TrioCkptError:
        """Poison the run, because something did not end in time; see `set_poison`."""
        name = "save_timeout_s" if limit_s == self._timeout_s else f"{LOST_AFTER:.0%} of the lease"
        return self.set_poison(self._unknown(f"{what} took longer than {limit_s:g} s ({name})"))

    def lose(self, error: LeaseLostError) -> None:
        """Poison the run because its lease is lost, and abandon what is being saved."""
        reason: TrioCkptError = error
        if not all(pending.is_over for pending in self._taken):
            reason = self._unknown("a save was not confirmed before the lease was lost")
            reason.__cause__ = error
        self.set_poison(reason)
        for scope in (self._saving, *self._putting):
            scope.cancel()

    def _fail(self, pending: PendingCommit, error: Exception) -> None:
        """Fail a checkpoint that was not saved, and the queued ones of its stream after it."""
        stream_log = pending.stream_log
        followers = [queued for queued in self._queue if queued.stream_log is stream_log]
        self._queue = [queued for queued in self._queue if queued.stream_log is not stream_log]
        stream_log.give_back(pending.checkpoint.sequence)
        self._end_all([pending, *followers], error)

    def _end_all(self, pending_commits: Iterable[PendingCommit], error: Exception) -> None:
        with ExitStack() as stack:  # all of them end, also if the callback of one raises
            for pending in reversed(list(pending_commits)):
                if pending.is_over:
                    pending.wake()
                else:
                    stack.callback(pending.end, error)

    def set_poison(self, error: TrioCkptError) -> TrioCkptError:
        """Save nothing more; returns the reason, which may be an earlier one."""
        if self.poison is not None:
            return self.poison
        run_id = self.run_key.run_id
        if self.lease_s is not None and type(error) is StoreConflictError:
            why = f"run {run_id!r} was taken over, or its store was changed: {error}"
            lost = LeaseLostError(why, run_id=run_id)
            lost.__cause__, error = error, lost
        self.poison = error
        self.ownership.give_up()
        left, self._queue = [*self._taken, *self._queue], []
        try:
            self._end_all(left, error)
        finally:
            self._on_poison()
        log.error("run %r is poisoned and saves nothing more: %s", run_id, error, extra=at(run_id))
        return error

    async def _append_lines(self, taken: list[PendingCommit]) -> list[PendingCommit]:
        """Append all lines of a group; returns the commits left to save."""
        failed = await self.appender.append(taken)
        if failed is None:
            self._end_all(taken, self._poison_for_time("an append", self._timeout_s))
            return []
        for pending in taken:
            if pending.stream_log in failed and not pending.is_over:
                self._fail(pending, failed[pending.stream_log])
        return [pending for pending in taken if not pending.is_over]
