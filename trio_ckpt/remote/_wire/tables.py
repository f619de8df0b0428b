"""The tables of the protocol: which side may send which message, and when.

`PHASES` is about a connection, `TASKS` about each work item of a worker; `Connection` reads both.
A message about an item is legal on an open connection if `TASKS` has it in any state.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from .message import MessageKind


class PeerRole(enum.Enum):
    """The role of the sender; a foreman has one role for workers and one for clients."""

    WORKER = "worker"
    CLIENT = "client"
    TO_WORKER = "foreman to worker"
    TO_CLIENT = "foreman to client"

    __hash__ = object.__hash__

    @property
    def peer(self) -> PeerRole:
        """The role of the other side."""
        return _PEERS[self]


_PEERS = {
    PeerRole.WORKER: PeerRole.TO_WORKER,
    PeerRole.CLIENT: PeerRole.TO_CLIENT,
    PeerRole.TO_WORKER: PeerRole.WORKER,
    PeerRole.TO_CLIENT: PeerRole.CLIENT,
}


class ConnectionPhase(enum.Enum):
    """State of a connection."""

    NEW = "new"
    GREETED = "greeted"
    OPEN = "open"
    CLOSED = "closed"

    __hash__ = object.__hash__


class TaskPhase(enum.Enum):
    """State of a work item between the foreman and one worker."""

    NONE = "none"
    HELD = "held"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"

    __hash__ = object.__hash__


_TaskCells = dict[tuple[PeerRole, MessageKind], TaskPhase]
_PhaseCells = dict[MessageKind, ConnectionPhase]

_CALLS = (MessageKind.TASK_CHECKPOINT, MessageKind.STORE_CALL, MessageKind.TASK_PROGRESS)
_ENDS = (MessageKind.TASK_RESULT, MessageKind.TASK_FAILED, MessageKind.RELEASE_TASK)
_REPLIES = (MessageKind.CHECKPOINT_ACK, MessageKind.STORE_REPLY)
_REQUESTS = (MessageKind.FORCE_CHECKPOINT, MessageKind.RELEASE_TASK)


def _by_worker(kinds: Iterable[MessageKind], then: TaskPhase) -> _TaskCells:
    return {(PeerRole.WORKER, kind): then for kind in kinds}


def _by_foreman(kinds: Iterable[MessageKind], then: TaskPhase) -> _TaskCells:
    return {(PeerRole.TO_WORKER, kind): then for kind in kinds}


TASKS: dict[TaskPhase, _TaskCells] = {
    TaskPhase.NONE: _by_foreman(
        (MessageKind.ASSIGN_TASK, MessageKind.RESUME_TASK), TaskPhase.RUNNING
    ),
    TaskPhase.HELD: {
        **_by_foreman((MessageKind.LEASE,), TaskPhase.RUNNING),
        **_by_foreman((MessageKind.CANCEL,), TaskPhase.STOPPING),
    },
    TaskPhase.RUNNING: {
        **_by_worker(_CALLS, TaskPhase.RUNNING),
        **_by_worker(_ENDS, TaskPhase.ENDED),
        **_by_foreman((*_REPLIES, *_REQUESTS), TaskPhase.RUNNING),
        **_by_foreman((MessageKind.CANCEL,), TaskPhase.STOPPING),
    },
    TaskPhase.STOPPING: {
        **_by_worker(_CALLS, TaskPhase.STOPPING),
        **_by_worker(_ENDS, TaskPhase.ENDED),
        **_by_foreman(_REPLIES, TaskPhase.STOPPING),
    },
    TaskPhase.ENDED: {
        **_by_foreman((*_REPLIES, *_REQUESTS, MessageKind.CANCEL), TaskPhase.ENDED),
        **_by_foreman((MessageKind.TASK_ACK,), TaskPhase.NONE),
    },
}
"""State of an item, role of the sender, message kind -> next state."""


def _phases(
    role: PeerRole, before: dict[ConnectionPhase, _PhaseCells], *kinds: MessageKind
) -> dict[ConnectionPhase, _PhaseCells]:
    """The rows of a role: `before` it is open, then `kinds` and those that `TASKS` has for it."""
    about_items = (kind for cells in TASKS.values() for sender, kind in cells if sender is role)
    keep_open = (MessageKind.HEARTBEAT, MessageKind.CREDIT, *kinds, *about_items)
    opened = dict.fromkeys(keep_open, ConnectionPhase.OPEN)
    opened[MessageKind.GOODBYE] = ConnectionPhase.CLOSED
    return {phase: {} for phase in ConnectionPhase} | before | {ConnectionPhase.OPEN: opened}


_HELLO = {ConnectionPhase.NEW: {MessageKind.HELLO: ConnectionPhase.GREETED}}
_ANSWER = {
    ConnectionPhase.GREETED: {
        MessageKind.WELCOME: ConnectionPhase.OPEN,
        MessageKind.REFUSED: ConnectionPhase.CLOSED,
    }
}

PHASES: dict[PeerRole, dict[ConnectionPhase, _PhaseCells]] = {
    PeerRole.WORKER: _phases(PeerRole.WORKER, _HELLO, MessageKind.SLOTS),
    PeerRole.TO_WORKER: _phases(PeerRole.TO_WORKER, _ANSWER),
    PeerRole.CLIENT: _phases(
        PeerRole.CLIENT,
        _HELLO,
        *(MessageKind.SUBMIT_JOB, MessageKind.JOB_ITEMS, MessageKind.ATTACH_JOB),
        *(MessageKind.CANCEL_JOB, MessageKind.CONTROL),
    ),
    PeerRole.TO_CLIENT: _phases(
        PeerRole.TO_CLIENT,
        _ANSWER,
        *(MessageKind.JOB_ACCEPTED, MessageKind.JOB_REFUSED, MessageKind.JOB_RESULT),
        *(MessageKind.JOB_DONE, MessageKind.JOB_WAITS, MessageKind.CONTROL_REPLY),
    ),
}
"""Role of the sender, phase, message kind -> next phase."""
