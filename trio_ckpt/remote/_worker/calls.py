"""A worker's RPC client for one work item: calls to the foreman, and their answers.

A call is kept until it is answered.  If the connection is lost, the call is sent again on the next
one, in order: saves that exist already are acknowledged again, and reads change nothing.  The wait
is bounded, and so is the life of the lease.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import attrs
import trio

from ..._journal.store import Checkpoint, Fold
from ..._util.errors import StoreConflictError, StoreError
from ..._util.patience import wait_awake
from .._wire.link import Link
from .._wire.message import TaskMessage
from .._wire.task_messages import (
    AnyCall,
    CheckpointAck,
    StoreCall,
    StoreReply,
    TaskCheckpoint,
    error_of,
)

PATIENCE_S = 600.0  # without a connection: a foreman that moves to another machine, for example

MakeCall = Callable[[int, int], TaskCheckpoint | StoreCall]  # of the call's number and the lease


@attrs.define(eq=False)
class _PendingCall:
    """A call without an answer."""

    make_call: MakeCall
    answered: trio.Event = attrs.field(factory=trio.Event)
    parts: list[bytes] = attrs.field(factory=list[bytes])
    ack: CheckpointAck | None = None
    error: Exception | None = None


@attrs.define(eq=False)
class RpcClient:
    """The RPC client of one work item.

    Attributes:
        task_id: The item.
        lease: The lease number under which this worker has the item now.
        patience_s: How long a call waits for its answer, in seconds.
        link: The connection; None: there is none, or the item is not resumed on it yet.
        numbers: Call numbers, for all items of a connection.
        lost: Why this worker does not have the item any more.
    """

    task_id: str
    lease: int
    patience_s: float = PATIENCE_S
    link: Link | None = None
    lost: Exception | None = attrs.field(default=None, init=False)
    numbers: Iterator[int] = attrs.field(factory=itertools.count)
    _pending: dict[int, _PendingCall] = attrs.field(factory=dict[int, _PendingCall], init=False)

    async def call(self, verb: AnyCall) -> bytes:
        """Make a call to the foreman's store.

        Raises:
            StoreError: the error of the store, or no answer came in time.
            StoreConflictError: this worker does not have the item any more.

        Cancellation: gives up waiting; the answer is dropped.
        """
        pending = await self._wait(lambda call, lease: StoreCall(self.task_id, lease, call, verb))
        return b"".join(pending.parts)

    async def save(
        self, generation: int, checkpoints: Sequence[Checkpoint], folds: Sequence[Fold]
    ) -> list[Exception | None]:
        """Save checkpoints in the foreman's store, in one transaction; see `Store.save`.

        Raises, Cancellation: as for `call`.
        """
        group = tuple(checkpoints), tuple(folds)
        pending = await self._wait(
            lambda call, lease: TaskCheckpoint(self.task_id, lease, call, generation, *group)
        )
        faults = () if pending.ack is None else pending.ack.outcomes
        if len(faults) != len(checkpoints):
            raise StoreError(f"{len(checkpoints)} checkpoints have {len(faults)} outcomes")
        return [None if fault is None else error_of(fault) for fault in faults]

    async def _wait(self, make_call: MakeCall) -> _PendingCall:
        if self.lost is not None:
            raise self.lost
        call, pending = next(self.numbers), _PendingCall(make_call)
        self._pending[call] = pending
        try:
            self._send(call, pending)
            if not await wait_awake(pending.answered, self.patience_s):
                raise StoreError(f"the foreman did not answer for {self.patience_s:g} s")
        finally:
            self._pending.pop(call, None)
        if pending.error is not None:
            raise pending.error
        return pending

    def _send(self, call: int, pending: _PendingCall) -> None:
        if self.link is not None:
            self.link.send(pending.make_call(call, self.lease))

    def send(self, message: TaskMessage) -> bool:
        """Send a message about the item; False: there is no connection now."""
        if self.link is None:
            return False
        self.link.send(message)
        return True

    # -- the other direction ----------------------------------------------------------------

    def answer(self, message: TaskMessage) -> None:
        """Handle an answer; one that no call waits for is dropped."""
        if not isinstance(message, StoreReply | CheckpointAck):
            return
        pending = self._pending.get(message.call)
        if pending is None:
            return
        if message.fault is not None:
            pending.error = error_of(message.fault)
        if isinstance(message, CheckpointAck):
            pending.ack = message
        else:
            pending.parts.append(message.data)
        if pending.error is not None or not isinstance(message, StoreReply) or message.is_last:
            pending.answered.set()

    def connect(self, link: Link, lease: int) -> None:
        """Continue over a new connection; unanswered calls are sent again."""
        self.link, self.lease = link, lease
        for call, pending in self._pending.items():
            pending.parts.clear()
            self._send(call, pending)

    def disconnect(self) -> None:
        """Mark the connection as lost."""
        self.link = None

    def lose(self, reason: str) -> None:
        """Mark the item as lost: all waiting calls fail."""
        if self.lost is None:
            self.lost = StoreConflictError(
                f"work item {self.task_id} is not this worker's any more: {reason}",
                run_id=self.task_id,
            )
        for pending in self._pending.values():
            pending.error = pending.error or self.lost
            pending.answered.set()
