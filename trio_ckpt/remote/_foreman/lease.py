"""A lease: one worker has one work item, from the promise to the last word, or until it is lost.

A lease begins as a promise: the worker's slot is kept, and nothing has been sent.  It is offered
when the item's run is owned and the worker is told; from then on it has a number.  It ends with
the last word of the worker, or because the worker is gone.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import attrs
import trio

from .._wire.messages import (
    ForceCheckpoint,
    ReleaseTask,
    StoreCall,
    TaskCheckpoint,
    TaskFailed,
    TaskMessage,
    TaskProgress,
    TaskResult,
)
from .._wire.protocol import TaskPhase
from .store_proxy import StoreProxy


class Lost(enum.Enum):
    """How a lease ends without a last word."""

    WORKER = "the worker is gone"
    LEFT = "the worker has left"
    MESSAGE = "the worker was not told of it"


Reply = Callable[[TaskMessage], None]
"""Answers on the connection that a question came on, as long as that one is there."""


@attrs.frozen
class _LeaseCall:
    """A question of the worker, and what is called when it is answered."""

    message: TaskCheckpoint | StoreCall
    reply: Reply
    handled: Callable[[], None]


Ending = TaskResult | TaskFailed | ReleaseTask | Lost


class LeaseHolder(Protocol):
    """The worker that has it, as far as a lease needs one."""

    name: str

    def send(self, message: TaskMessage) -> bool:
        """Send something if there is a connection; whether there is."""
        ...

    def phase_of(self, task_id: str) -> TaskPhase:
        """Where an item stands on the connection."""
        ...


@attrs.define(eq=False)
class Lease:
    """One worker has one item.

    Attributes:
        task_id: The item.
        function: What is done with it.
        holder: The worker.
        was: The number under which the worker holds it already; None: it is to begin.
        number: The fence: greater than that of any earlier lease of the item; 0: it is a promise.
        relay: What it may do with the store; None: the item saves nothing.
        since: When it was promised; Unix time, s.
        percent: What the worker said last of its progress.
        is_running: Whether it has said anything.
        is_asked_back: Whether it was asked to hand the item back.
        is_alone: Whether the worker gets nothing else as long as it has this.
        ending: How it ended; None: it goes on.
        lost_at: When the worker was lost; Unix time, s.
    """

    task_id: str
    function: str
    holder: LeaseHolder
    was: int | None = None
    number: int = 0
    relay: StoreProxy | None = None
    since: float = attrs.field(factory=time.time)
    percent: float | None = None
    is_running: bool = False
    is_asked_back: bool = False
    is_alone: bool = False
    ending: Ending | None = attrs.field(default=None, init=False)
    lost_at: float | None = attrs.field(default=None, init=False)
    _notes: deque[str] = attrs.field(factory=deque[str], init=False)  # for the job's history
    _calls: deque[_LeaseCall] = attrs.field(factory=deque["_LeaseCall"], init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)

    @property
    def is_offered(self) -> bool:
        """Whether the worker was told."""
        return self.number > 0

    @property
    def is_live(self) -> bool:
        """Whether the worker was told, and it has not ended."""
        return self.is_offered and self.ending is None

    def is_of(self, number: int) -> bool:
        """Whether a worker that names a number means this lease, or what it goes on from."""
        return number in (self.number, self.was)

    def offer(self, number: int, relay: StoreProxy | None, message: TaskMessage) -> bool:
        """Tell the worker.

        Args:
            number: From now on the number of the lease.
            relay: What it may do with the store.
            message: What says so.

        Returns:
            False: the connection that it was promised on is gone.
        """
        if self.ending is not None or not self.holder.send(message):
            return False
        self.number, self.relay = number, relay
        return True

    async def run(self, note: Callable[[str], Awaitable[None]]) -> Ending:
        """Do what the worker asks of the store, in order, until the lease ends.

        Args:
            note: Writes down what the worker says for the history.

        Cancellation: a save that has begun is waited for.
        """
        try:
            while True:
                while self._calls or self._notes:
                    if self._notes:
                        await note(self._notes.popleft())
                    else:
                        await self._answer(self._calls.popleft())
                if self.ending is not None:
                    return self.ending
                self._changed = trio.Event()
                await self._changed.wait()
        finally:
            self.forget_calls()
            if self.relay is not None:
                self.relay.close()

    async def _answer(self, call: _LeaseCall) -> None:
        try:
            if self.relay is None:
                return
            if isinstance(call.message, TaskCheckpoint):
                call.reply(await self.relay.save(call.message))
            else:
                for part in await self.relay.answer(call.message):
                    call.reply(part)
        finally:
            call.handled()

    def take_call(
        self,
        message: TaskCheckpoint | StoreCall,
        reply: Reply,
        handled: Callable[[], None],
    ) -> None:
        """Take a question to the store.

        Args:
            message: The question.
            reply: Answers it.
            handled: Called when it is answered, and its memory is free again.
        """
        self.is_running = True
        self._calls.append(_LeaseCall(message, reply, handled))
        self._changed.set()

    def take(self, message: TaskMessage) -> None:
        """Take what else the worker says."""
        self.is_running = True
        match message:
            case TaskProgress():
                if message.percent is not None:
                    self.percent = message.percent
                if message.note is not None:
                    self._notes.append(message.note)
            case TaskResult() | TaskFailed() | ReleaseTask():
                self.ending = self.ending or message
            case _:
                return
        self._changed.set()

    def forget_calls(self) -> None:
        """Drop what was not answered: the worker asks again on its next connection."""
        while self._calls:
            self._calls.popleft().handled()

    def disconnect(self) -> None:
        """Note that the connection is gone: a promise ends, and a lease waits for the next one."""
        if self.is_offered:
            self.forget_calls()
        else:
            self.lose(Lost.MESSAGE)

    def lose(self, how: Lost, at: float | None = None) -> None:
        """End it without a last word.

        Args:
            how: Why.
            at: When the worker was lost; Unix time, s.
        """
        self.forget_calls()
        if self.ending is None:
            self.lost_at = at
            self.ending = how
        self._changed.set()

    def force(self) -> bool:
        """Ask for a checkpoint; False: the item saves nothing, or does not run."""
        if self.relay is None or self.holder.phase_of(self.task_id) is not TaskPhase.RUNNING:
            return False
        return self.holder.send(ForceCheckpoint(self.task_id, self.number))

    def ask_back(self, reason: str) -> bool:
        """Ask the worker to save and hand the item back; whether it could be asked."""
        if self.holder.phase_of(self.task_id) is not TaskPhase.RUNNING:
            return False
        self.is_asked_back = True
        return self.holder.send(ReleaseTask(self.task_id, self.number, reason))
