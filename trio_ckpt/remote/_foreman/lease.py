"""The workers from the foreman's side, and their leases.

With a lease one worker has one work item, from the promise to the item's end, or until it is lost.
It begins as a promise: the worker's slot is reserved, and no message was sent.  It is offered
when the assignment is sent, for an item that saves when the foreman owns the item's run, else at
once; from then on it has a number.  It ends with the worker's last message about the item, or
because the worker is gone.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

import attrs
import trio

from ..._util.log import get_logger
from .._wire.errors import LocalProtocolError
from .._wire.link import Link
from .._wire.message import HeldItem, Hello, TaskMessage
from .._wire.names import is_allowed
from .._wire.tables import TaskPhase
from .._wire.task_messages import (
    AssignTask,
    ForceCheckpoint,
    NewLease,
    ReleaseTask,
    StoreCall,
    TaskAck,
    TaskCheckpoint,
    TaskFailed,
    TaskProgress,
    TaskResult,
)
from .store_proxy import StoreProxy

log = get_logger(__name__)


class Lost(enum.Enum):
    """How a lease ends without a last message of the worker."""

    WORKER = "the worker is gone"
    LEFT = "the worker has left"
    MESSAGE = "the worker was not told of it"


Reply = Callable[[TaskMessage], None]
"""Answers on the connection of the call, as long as that connection is open."""


@attrs.frozen
class _LeaseCall:
    """A call of the worker, and the callback for its answer."""

    message: TaskCheckpoint | StoreCall
    reply: Reply
    handled: Callable[[], None]


Ending = TaskResult | TaskFailed | ReleaseTask | Lost


@attrs.define(eq=False)
class Lease:
    """One worker has one item.

    Attributes:
        task_id: The item.
        function: The item's function.
        holder: The worker.
        was: The number under which the worker already holds the item; None: the item is to begin.
        number: The fence: greater than that of any earlier lease of the item; 0: a promise.
        proxy: The worker's access to the store; None: the item saves nothing.
        since: When the slot was promised; Unix time, s.
        percent: The progress that the worker reported last.
        is_running: Whether the worker has sent anything about the item.
        is_release_requested: Whether the worker was asked to hand the item back.
        is_alone: Whether the worker gets no other item during this lease.
        changed: Set when there is something to handle, and replaced before the next wait.
        ending: How the lease ended; None: it has not ended.
        problem: Why it cannot be offered, which fails its item.
        lost_at: When the worker was lost; Unix time, s.
    """

    task_id: str
    function: str
    holder: WorkerHandle
    was: int | None = None
    number: int = 0
    proxy: StoreProxy | None = None
    since: float = attrs.field(factory=time.time)
    percent: float | None = None
    is_running: bool = False
    is_release_requested: bool = False
    is_alone: bool = False
    changed: trio.Event = attrs.field(factory=trio.Event)
    ending: Ending | None = attrs.field(default=None, init=False)
    problem: Exception | None = attrs.field(default=None, init=False)
    lost_at: float | None = attrs.field(default=None, init=False)
    _notes: deque[str] = attrs.field(factory=deque[str], init=False)  # for the job's history
    _calls: deque[_LeaseCall] = attrs.field(factory=deque["_LeaseCall"], init=False)

    @property
    def is_offered(self) -> bool:
        """Whether the assignment was sent."""
        return self.number > 0

    @property
    def is_live(self) -> bool:
        """Whether the assignment was sent, and the lease has not ended."""
        return self.is_offered and self.ending is None

    def is_of(self, number: int) -> bool:
        """Whether a number from a worker means this lease, or the one that it continues."""
        return number in (self.number, self.was)

    def offer(self, number: int, proxy: StoreProxy | None, message: TaskMessage) -> bool:
        """Send the assignment to the worker.

        Args:
            number: The number of the lease from now on.
            proxy: The worker's access to the store.
            message: The assignment.

        Returns:
            False: the connection that it was promised on is gone.
        """
        if self.ending is not None or not self.holder.send(message):
            return False
        self.number, self.proxy = number, proxy
        return True

    async def run(self, note: Callable[[str], Awaitable[None]]) -> Ending:
        """Serve the worker's calls to the store, in order, until the lease ends.

        Args:
            note: Records the worker's notes in the job's history.

        Cancellation: waits for a save that has begun.
        """
        try:
            while True:
                while self._calls or self._notes:
                    if self._notes:
                        await note(self._notes.popleft())
                    else:
                        await self._answer(self._calls.popleft())
                if self.problem is not None:
                    raise self.problem
                if self.ending is not None:
                    return self.ending
                self.changed = trio.Event()
                await self.changed.wait()
        finally:
            self.forget_calls()
            if self.proxy is not None:
                self.proxy.close()

    async def _answer(self, call: _LeaseCall) -> None:
        try:
            if self.proxy is None:
                return
            if isinstance(call.message, TaskCheckpoint):
                call.reply(await self.proxy.save(call.message))
            else:
                for part in await self.proxy.answer(call.message):
                    call.reply(part)
        finally:
            call.handled()

    def take_call(
        self,
        message: TaskCheckpoint | StoreCall,
        reply: Reply,
        handled: Callable[[], None],
    ) -> None:
        """Queue a call to the store.

        Args:
            message: The call.
            reply: Sends the answer.
            handled: Called when the call is answered, and its memory is free again.
        """
        self.is_running = True
        self._calls.append(_LeaseCall(message, reply, handled))
        self.changed.set()

    def take(self, message: TaskMessage) -> None:
        """Handle any other message of the worker."""
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
        self.changed.set()

    def forget_calls(self) -> None:
        """Drop unanswered calls: the worker sends them again on its next connection."""
        while self._calls:
            self._calls.popleft().handled()

    def disconnect(self) -> None:
        """Mark the connection as lost: a promise ends, a lease waits for the next connection."""
        if self.is_offered:
            self.forget_calls()
        else:
            self.lose(Lost.MESSAGE)

    def lose(self, how: Lost, at: float | None = None) -> None:
        """End the lease without a last message of the worker.

        Args:
            how: The reason.
            at: When the worker was lost; Unix time, s.
        """
        self.forget_calls()
        if self.ending is None:
            self.lost_at = at
            self.ending = how
        self.changed.set()

    def fail(self, problem: Exception) -> None:
        """End the lease with an error that `run` raises: it cannot be offered."""
        self.problem = problem
        self.lose(Lost.MESSAGE)

    def force(self) -> bool:
        """Ask for a checkpoint; False: the item saves nothing, or does not run."""
        if self.proxy is None or self.holder.phase_of(self.task_id) is not TaskPhase.RUNNING:
            return False
        return self.holder.send(ForceCheckpoint(self.task_id, self.number))

    def request_release(self, reason: str) -> bool:
        """Ask the worker to save and hand the item back; return whether it could be asked."""
        if self.holder.phase_of(self.task_id) is not TaskPhase.RUNNING:
            return False
        self.is_release_requested = True
        return self.holder.send(ReleaseTask(self.task_id, self.number, reason))


_NO_TASKS: Mapping[str, TaskPhase] = {}


@attrs.define(eq=False)
class WorkerHandle:
    """A worker from the foreman's side.

    Attributes:
        peer_id: Random; made by the worker's process.
        name: The worker's name in logs.
        slots: How many items the worker takes at a time.
        allow: Modules whose functions the worker runs.
        link: The connection; None: it is lost, and the worker may reconnect.
        held: The items that the worker has on this connection, named in its HELLO or assigned
            since, by item; the same items as in `tasks`.
        leases: The items that the worker has or is promised, by id.
        connections: The number of its connections so far.
    """

    peer_id: str
    name: str
    slots: int
    allow: tuple[str, ...]
    link: Link | None = None
    held: dict[str, HeldItem] = attrs.field(factory=dict[str, HeldItem])
    leases: dict[str, Lease] = attrs.field(factory=dict[str, Lease])
    connections: int = 0

    @property
    def is_connected(self) -> bool:
        """Whether a message can be sent."""
        return self.link is not None and self.link.is_open

    @property
    def tasks(self) -> Mapping[str, TaskPhase]:
        """State of each item on the connection."""
        link = self.link
        return link.connection.tasks if link is not None and link.is_open else _NO_TASKS

    @property
    def takes_items(self) -> bool:
        """Whether the worker gets further items, as soon as it has a free slot."""
        is_taken = any(lease.is_alone for lease in self.leases.values())
        return self.is_connected and self.slots > 0 and not is_taken

    @property
    def free(self) -> int:
        """The number of free slots: items on the connection and promises take one each."""
        if not self.takes_items:
            return 0
        tasks = self.tasks
        return self.slots - len(tasks) - sum(task_id not in tasks for task_id in self.leases)

    @property
    def running(self) -> int:
        """The number of items that the worker has."""
        return len(self.leases)

    @property
    def is_idle(self) -> bool:
        """Whether the worker has no item and no promise."""
        return not self.tasks and not self.leases

    def runs(self, function: str) -> bool:
        """Whether the worker runs functions of this function's module."""
        return is_allowed(function.partition(":")[0], self.allow)

    def phase_of(self, task_id: str) -> TaskPhase:
        """State of an item on the connection."""
        return self.tasks.get(task_id, TaskPhase.NONE)

    def connect(self, link: Link, hello: Hello) -> None:
        """Continue over a new connection."""
        self.link = link
        self.connections += 1
        self.slots, self.allow = hello.slots, hello.allow
        self.held = {held.task_id: held for held in hello.held}

    def disconnect(self) -> None:
        """Mark the connection as lost: promises end with it, leases do not."""
        self.link = None
        self.held = {}
        for lease in self.leases.values():
            lease.disconnect()

    def send(self, message: TaskMessage) -> bool:
        """Send a message; return False if there is no connection.

        A message that the protocol does not allow now is a bug of the foreman.  It costs only the
        connection: the worker reconnects and names what it holds, so both sides agree again.
        """
        link = self.link
        if link is None:
            return False
        try:
            is_sent = link.send(message)
        except LocalProtocolError as error:
            log.exception("worker %s is disconnected", self.name)
            link.end(f"a message of the foreman breaks the protocol: {error}")
            return False
        if is_sent:
            self._note(message)
        return is_sent

    def _note(self, message: TaskMessage) -> None:
        match message:
            case AssignTask(task_id=task_id, lease=lease, attempt=attempt):
                self.held[task_id] = HeldItem(task_id, lease, attempt)
            case NewLease(task_id=task_id, lease=lease):
                self.held[task_id] = HeldItem(task_id, lease, self.held[task_id].attempt)
            case TaskAck(task_id=task_id):
                del self.held[task_id]
            case _:
                pass
