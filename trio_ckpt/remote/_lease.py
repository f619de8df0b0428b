"""A lease: one worker has one work item, until its last word, or until it is lost."""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from ._messages import (
    CheckpointAck,
    ForceCheckpoint,
    ReleaseTask,
    StoreCall,
    StoreReply,
    TaskCheckpoint,
    TaskFailed,
    TaskMessage,
    TaskProgress,
    TaskResult,
)
from ._protocol import TaskPhase
from ._relay import Relay


class Lost(enum.Enum):
    """How a lease ends without a last word."""

    WORKER = "the worker is gone"


@attrs.frozen
class _Call:
    """A question of the worker, and who wants to know that it was answered."""

    message: TaskCheckpoint | StoreCall
    handled: Callable[[], None]


Ending = TaskResult | TaskFailed | ReleaseTask | Lost


class Holder(Protocol):
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
        number: The fence: greater than that of any earlier lease of the item.
        holder: The worker.
        relay: What it may do with the store; None: the item saves nothing.
        since: When it was given; Unix time, s.
        percent: What the worker said last of its progress.
        is_running: Whether it has said anything.
        is_asked_back: Whether it was asked to hand the item back.
        notes: What it has said for the job's history, and nobody has written down yet.
        ending: How it ended; None: it goes on.
        lost_at: When the worker was lost; Unix time, s.
    """

    task_id: str
    function: str
    number: int
    holder: Holder
    relay: Relay | None
    since: float = attrs.field(factory=time.time)
    percent: float | None = None
    is_running: bool = False
    is_asked_back: bool = False
    notes: list[str] = attrs.field(factory=list[str])
    ending: Ending | None = attrs.field(default=None, init=False)
    lost_at: float | None = attrs.field(default=None, init=False)
    _calls: deque[_Call] = attrs.field(factory=deque["_Call"], init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def run(self) -> Ending:
        """Do what the worker asks of the store, in order, until the lease ends.

        Cancellation: a save that has begun is waited for.
        """
        try:
            while True:
                while self._calls:
                    call = self._calls.popleft()
                    await self._answer(call.message)
                    call.handled()
                if self.ending is not None:
                    return self.ending
                self._changed = trio.Event()
                await self._changed.wait()
        finally:
            if self.relay is not None:
                self.relay.close()

    async def _answer(self, call: TaskCheckpoint | StoreCall) -> None:
        if self.relay is None:
            return
        replies: list[CheckpointAck] | list[StoreReply]
        if isinstance(call, TaskCheckpoint):
            replies = [await self.relay.save(call)]
        else:
            replies = await self.relay.answer(call)
        for reply in replies:
            if self.holder.phase_of(self.task_id) in (TaskPhase.NONE, TaskPhase.HELD):
                return  # it is asked again on the next connection
            self.holder.send(reply)

    def take_call(self, message: TaskCheckpoint | StoreCall, handled: Callable[[], None]) -> None:
        """Take a question to the store.

        Args:
            message: The question.
            handled: Called when it is answered, and its memory is free again.
        """
        self.is_running = True
        self._calls.append(_Call(message, handled))
        self._changed.set()

    def take(self, message: TaskMessage) -> None:
        """Take what else the worker says."""
        self.is_running = True
        match message:
            case TaskProgress():
                if message.percent is not None:
                    self.percent = message.percent
                if message.note is not None:
                    self.notes.append(message.note)
            case TaskResult() | TaskFailed() | ReleaseTask():
                self.ending = self.ending or message
            case _:
                return
        self._changed.set()

    def forget_calls(self) -> None:
        """The connection is gone, and with it who asked; it asks again on the next one."""
        self._calls.clear()

    def lose(self, at: float) -> None:
        """Take note that the worker is gone for good.

        Args:
            at: When; Unix time, s.
        """
        self._calls.clear()
        if self.ending is None:
            self.lost_at = at
            self.ending = Lost.WORKER
        self._changed.set()

    def force(self) -> bool:
        """Ask for a checkpoint; whether there is anybody who saves."""
        if self.relay is None or self.holder.phase_of(self.task_id) is not TaskPhase.RUNNING:
            return False
        return self.holder.send(ForceCheckpoint(self.task_id, self.number))

    def ask_back(self, reason: str) -> bool:
        """Ask the worker to save and hand the item back; whether it could be asked."""
        if self.holder.phase_of(self.task_id) is not TaskPhase.RUNNING:
            return False
        self.is_asked_back = True
        return self.holder.send(ReleaseTask(self.task_id, self.number, reason))
