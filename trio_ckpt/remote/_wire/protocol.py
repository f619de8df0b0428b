"""The protocol between a foreman and one peer, without any I/O.

Theory of operation
===================

Two tables define which side may send which message, and when.  Both sides use the same tables,
for what they send and for what they receive.

`PHASES` is about the connection.  A peer sends HELLO, the foreman answers WELCOME or REFUSED,
then both may send until one of them sends GOODBYE.

`TASKS` is about each work item of a worker.  The foreman assigns it; the worker saves, asks,
reports, and ends it (TASK_RESULT, TASK_FAILED, RELEASE_TASK); the foreman acknowledges the end.
Messages cross: a CANCEL may cross a TASK_RESULT, so each of them is legal after the other.  An
item that a worker still has when it reconnects is HELD until the foreman answers that it
continues (LEASE) or ends (CANCEL).  With TASK_ACK both sides forget the item, including its
unanswered calls.

An illegal message raises and changes nothing.  `LocalProtocolError` is a bug of this side,
`RemoteProtocolError` a bug of the other side.

**Order and size.**  A message goes into the channel of its subject.  Channels take turns, frame
by frame, and messages of one channel arrive in order; a message without a subject, such as a
heartbeat, overtakes.  Each side may have `window_bytes` of messages in flight that the other side
has not handled.  It begins a message only if the whole message fits, so every message that is
begun can be finished, and the other side never holds more than the window.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

import attrs

from .codec import MESSAGES, decode_message, encode_message
from .errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from .frames import Fragmenter, Reassembler, WireFrame, decode_frame, next_number
from .message import (
    MIB,
    VERSIONS,
    Credit,
    Hello,
    JobMessage,
    Message,
    MessageKind,
    TaskMessage,
    Welcome,
)
from .tables import PHASES, TASKS, ConnectionPhase, PeerRole, TaskPhase
from .task_messages import CheckpointAck, StoreCall, StoreReply, TaskCheckpoint

WINDOW_BYTES = 16 * MIB  # two of the largest messages: one is handled while the next arrives
MAX_CALLS = 256  # unanswered calls of a worker; each slot has a few
CREDIT_SHARE = 4  # credit is returned when this fraction (1/4) of the window has been handled


@attrs.frozen
class Received:
    """A complete message.

    Attributes:
        message: The message.
        cost: Pass it to `Connection.consumed` when the message is handled.
    """

    message: Message
    cost: int


class _OpenCall(NamedTuple):
    """A call without an answer."""

    task_id: str
    is_save: bool


@attrs.define(eq=False)
class Connection:
    """One side of a connection.

    Attributes:
        role: This side's role; None for a foreman until the peer has sent its own.
        phase: State of the connection.
        tasks: State of each work item; items that this side does not know are absent.
        calls: Unanswered calls of the worker, by number.
        window: How many bytes may be in flight and unhandled, in each direction.
        credit: How many bytes this side may send now.
        queued_bytes: Bytes of messages that are not completely sent.
    """

    role: PeerRole | None
    phase: ConnectionPhase = ConnectionPhase.NEW
    tasks: dict[str, TaskPhase] = attrs.field(factory=dict[str, TaskPhase])
    calls: dict[int, _OpenCall] = attrs.field(factory=dict[int, _OpenCall])
    window: int = WINDOW_BYTES
    credit: int = attrs.field(
        default=attrs.Factory(lambda self: self.window, takes_self=True), init=False
    )
    _granted: int = attrs.field(  # how many bytes the other side may send
        default=attrs.Factory(lambda self: self.window, takes_self=True), init=False
    )
    _handled: int = attrs.field(default=0, init=False)  # of these, not credited back
    _number: int = attrs.field(default=0, init=False)
    _first: deque[Fragmenter] = attrs.field(factory=deque[Fragmenter], init=False)
    _channels: OrderedDict[str, deque[Fragmenter]] = attrs.field(
        factory=OrderedDict[str, deque[Fragmenter]], init=False
    )
    _begun: set[int] = attrs.field(factory=set[int], init=False)
    _last: Fragmenter | None = attrs.field(default=None, init=False)
    _reassembler: Reassembler = attrs.field(factory=Reassembler, init=False)
    queued_bytes: int = attrs.field(default=0, init=False)

    # -- sending ----------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue a message; `next_frame` returns its frames.

        Raises:
            LocalProtocolError: the message is not allowed now.
            ProtocolError: the message is over a limit.
        """
        role = self.role
        if role is None:
            raise LocalProtocolError(f"a foreman waits for HELLO before it sends {message}")
        self._step(role, message, LocalProtocolError, encode_message(message))

    def next_frame(self) -> bytes | None:
        """Return the bytes to send next, one transport message; None: nothing can be sent now."""
        if self._first:
            return self._cut(self._first.popleft())  # these messages are one frame each
        is_blocked = False  # a message that waits for credit is not overtaken by a later one
        for channel, fragmenters in self._channels.items():
            fragmenter = fragmenters[0]
            if fragmenter.number not in self._begun:
                is_blocked = is_blocked or len(fragmenter.body) > self.credit
                if is_blocked:
                    continue
                self.credit -= len(fragmenter.body)
                self._begun.add(fragmenter.number)
            frame = self._cut(fragmenter)
            if fragmenter.is_over:
                self._begun.discard(fragmenter.number)
                fragmenters.popleft()
            if fragmenters:
                self._channels.move_to_end(channel)
            else:
                del self._channels[channel]
            return frame
        if self._last is not None and not self._channels:
            fragmenter, self._last = self._last, None
            return self._cut(fragmenter)
        return None

    def _cut(self, fragmenter: Fragmenter) -> bytes:
        frame = fragmenter.next()
        if fragmenter.is_over:
            self.queued_bytes -= len(fragmenter.body)
        return frame

    def _queue(self, message: Message, body: bytes) -> None:
        self._number = next_number(self._number)
        fragmenter = Fragmenter(message.KIND, self._number, body)
        self.queued_bytes += len(body)
        if message.KIND is MessageKind.GOODBYE:
            self._last = fragmenter
        elif not message.channel:
            self._first.append(fragmenter)
        else:
            self._channels.setdefault(message.channel, deque()).append(fragmenter)

    # -- receiving --------------------------------------------------------------------------

    def receive(self, data: bytes) -> Received | None:
        """Receive one frame; return the message if this frame completes it.

        Raises:
            RemoteProtocolError: the frame breaks the rules; the caller closes the connection.
        """
        frame = decode_frame(data)
        cost = self._admit(frame)
        body = self._reassembler.add(frame)
        if frame.is_first:
            self._granted -= cost
        if body is None:
            return None
        try:
            message = decode_message(frame.kind, body)
        except ProtocolError as error:
            raise RemoteProtocolError(str(error)) from error
        role = self._peer_role
        if self.role is None and isinstance(message, Hello):
            role = PeerRole(message.role)
        self._step(role, message, RemoteProtocolError)
        self.role = role.peer
        return Received(message, frame.size if message.channel else 0)

    def _admit(self, frame: WireFrame) -> int:
        """Check that a message is allowed before any part of it is kept; return its cost."""
        if frame.kind not in PHASES[self._peer_role][self.phase]:
            raise RemoteProtocolError(f"{frame.kind.name} arrived while {self.phase.value}")
        is_small = frame.kind in _WITHOUT_CHANNEL
        if frame.is_first and not is_small and frame.size > self._granted:
            raise RemoteProtocolError("the peer sent more bytes than its credit allows")
        return 0 if is_small else frame.size

    @property
    def _peer_role(self) -> PeerRole:
        """The role of the other side; before HELLO, a worker and a client may send the same."""
        return PeerRole.WORKER if self.role is None else self.role.peer

    def consumed(self, received: Received) -> None:
        """Mark a message as handled, so that the other side may send more."""
        self._handled += received.cost
        if self._handled >= self.window // CREDIT_SHARE and self.phase is ConnectionPhase.OPEN:
            credit = Credit(self._handled)
            self._granted += self._handled
            self._handled = 0
            self._queue(credit, encode_message(credit))

    # -- both -------------------------------------------------------------------------------

    def _step(
        self,
        role: PeerRole,
        message: Message,
        error: type[ProtocolError],
        body: bytes | None = None,
    ) -> None:
        """Check one message against the tables and advance; queue it if this side sends it."""
        phase = PHASES[role][self.phase].get(message.KIND)
        if phase is None:
            raise error(f"{message.KIND.name} of a {role.value} while {self.phase.value}")
        task = self._check_task(role, message, error)
        self._check_call(message, error)
        if isinstance(message, Credit) and body is None:
            if self.credit + message.size > self.window:
                raise error("more credit was returned than was used")
            self.credit += message.size
        if isinstance(message, Welcome):
            self._take_welcome(message, error)
        self.phase = phase
        if task is not None:
            task_id, task_phase = task
            if task_phase is TaskPhase.NONE:
                self._forget_task(task_id)
            else:
                self.tasks[task_id] = task_phase
        if isinstance(message, Hello):
            self.tasks.update((held.task_id, TaskPhase.HELD) for held in message.held)
        self._note_call(message)
        if body is not None:
            self._queue(message, body)

    def _forget_task(self, task_id: str) -> None:
        self.tasks.pop(task_id, None)
        self.calls = {n: call for n, call in self.calls.items() if call.task_id != task_id}

    def _check_task(
        self, role: PeerRole, message: Message, error: type[ProtocolError]
    ) -> tuple[str, TaskPhase] | None:
        if not isinstance(message, TaskMessage):
            return None
        was = self.tasks.get(message.task_id, TaskPhase.NONE)
        phase = TASKS[was].get((role, message.KIND))
        if phase is None:
            raise error(f"{message.KIND.name} is not allowed for an item that is {was.value}")
        return message.task_id, phase

    def _check_call(self, message: Message, error: type[ProtocolError]) -> None:
        if isinstance(message, TaskCheckpoint | StoreCall):
            if message.call in self.calls:
                raise error(f"call {message.call} was already made")
            if len(self.calls) >= MAX_CALLS:
                raise error(f"more than {MAX_CALLS} calls wait for an answer")
        elif isinstance(message, CheckpointAck | StoreReply):
            call = self.calls.get(message.call)
            if call != (message.task_id, isinstance(message, CheckpointAck)):
                raise error(f"{message.KIND.name} {message.call} does not answer any call")

    def _note_call(self, message: Message) -> None:
        if isinstance(message, TaskCheckpoint | StoreCall):
            self.calls[message.call] = _OpenCall(
                message.task_id, isinstance(message, TaskCheckpoint)
            )
        elif isinstance(message, CheckpointAck) or (
            isinstance(message, StoreReply) and message.is_last
        ):
            del self.calls[message.call]

    def _take_welcome(self, message: Welcome, error: type[ProtocolError]) -> None:
        if message.version not in VERSIONS:
            raise error(f"version {message.version} of the protocol is not supported")
        if self.role in (PeerRole.WORKER, PeerRole.CLIENT):  # nothing that costs credit was sent
            self.window = self.credit = self._granted = message.window_bytes


_WITHOUT_CHANNEL = frozenset(
    kind for kind, struct in MESSAGES.items() if not issubclass(struct, JobMessage | TaskMessage)
)
"""Kinds without a subject, so without an order: one frame each, without credit."""


def choose_version(offered: tuple[int, ...]) -> int | None:
    """Return the newest protocol version that both sides support."""
    return max(set(offered) & set(VERSIONS), default=None)
