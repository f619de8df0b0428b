"""One worker from the foreman's side, across all its connections."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from ..._util.log import get_logger
from .._wire.errors import LocalProtocolError
from .._wire.link import Link
from .._wire.message import HeldItem, Hello, TaskMessage
from .._wire.names import is_allowed
from .._wire.tables import TaskPhase
from .._wire.task_messages import AssignTask, NewLease, TaskAck
from .lease import Lease

log = get_logger(__name__)

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
