"""What all messages have in common, their limits, and the messages that any peer sends.

A message is a MessagePack array, with the fields in the order of the struct.  A reader skips
fields at the end that it does not know, so a later version may add fields; the meaning of a field
never changes.
"""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar, Literal

import msgspec

from ..._util.network import MAX_SECRET_BYTES
from ..._util.plain import MAX_RUN_ID_CHARS

VERSIONS = (1,)  # versions of the protocol that this library supports

MAX_NAME_CHARS = 200  # of a worker, a function, a module
MAX_TEXT_CHARS = 4_000  # of a reason or a message: enough to understand it
MAX_TRACEBACK_CHARS = 20_000
MAX_ALLOWED = 100  # modules in a worker's list
MAX_SLOTS = 128  # work items of one worker at a time; all of them fit into its HELLO
MAX_JOB_ITEMS = 1_000_000
MAX_SUBMISSIONS = 4  # unanswered submissions of one client: the foreman keeps their items
MAX_FOLLOWED = 1_000  # jobs that one client is attached to
MAX_GROUP = 4_096  # checkpoints in one message; as the group committer groups them
MAX_SEQUENCES = 100_000  # of one call
MAX_STEPS = 200_000  # of a set of indexes

MIB = 2**20
MAX_SMALL_BYTES = 64 * 1024  # one frame: the most that a peer may send before the handshake
MAX_ERROR_BYTES = 2 * MAX_SMALL_BYTES  # a message with a traceback, of any characters
MAX_TRACE_BYTES = 8 * MAX_SMALL_BYTES  # a message with the options of a job, of any characters
MAX_ALLOW_BYTES = 32 * 1024  # of a worker's list: it is in the single frame of its HELLO
MAX_MESSAGE_BYTES = 8 * MIB  # larger things go in parts

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARS)]
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_RUN_ID_CHARS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Lease = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e9)]


class MessageKind(enum.IntEnum):
    """The kinds of messages; the numbers never change."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    GOODBYE = 4
    HEARTBEAT = 5
    CREDIT = 6
    SLOTS = 7

    SUBMIT_JOB = 16
    JOB_ITEMS = 17
    JOB_ACCEPTED = 18
    JOB_REFUSED = 19
    ATTACH_JOB = 20
    JOB_RESULT = 21
    JOB_DONE = 22
    CANCEL_JOB = 23
    CONTROL = 24
    CONTROL_REPLY = 25
    JOB_WAITS = 26

    ASSIGN_TASK = 32
    RESUME_TASK = 33
    LEASE = 34
    CANCEL = 35
    RELEASE_TASK = 36
    FORCE_CHECKPOINT = 37
    TASK_CHECKPOINT = 38
    CHECKPOINT_ACK = 39
    STORE_CALL = 40
    STORE_REPLY = 41
    TASK_PROGRESS = 42
    TASK_RESULT = 43
    TASK_FAILED = 44
    TASK_ACK = 45


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One message.

    Attributes:
        KIND: The kind of message.
        MAX_BYTES: The largest size of its body.
    """

    KIND: ClassVar[MessageKind]
    MAX_BYTES: ClassVar[int] = MAX_SMALL_BYTES

    @property
    def channel(self) -> str:
        """The subject: messages of one channel arrive in order; an empty one overtakes."""
        return ""


class JobMessage(Message, frozen=True, array_like=True):
    """A message about a job."""

    job_id: Id

    @property
    def channel(self) -> str:
        return self.job_id


class TaskMessage(Message, frozen=True, array_like=True):
    """A message about a work item that a worker has.

    Attributes:
        task_id: The item.
        lease: The fence: the lease number under which the worker has the item.
    """

    task_id: Id
    lease: Lease

    @property
    def channel(self) -> str:
        return self.task_id


class HeldItem(msgspec.Struct, frozen=True, array_like=True):
    """A work item that a worker has when it reconnects.

    Attributes:
        task_id: The item.
        lease: The lease number under which the worker got the item.
        attempt: The attempt that this lease is for.
    """

    task_id: Id
    lease: Lease
    attempt: Count


class Hello(Message, frozen=True, array_like=True):
    """The first message of a peer.

    Attributes:
        versions: Versions of the protocol that the peer supports.
        role: The role of the peer.
        secret: The foreman's secret.
        name: The peer's name in logs.
        peer_id: Random; the same for all connections of one process.
        slots: How many work items the worker takes at a time.
        allow: The modules whose functions the worker runs.
        held: The work items that the worker still has.
    """

    KIND: ClassVar[MessageKind] = MessageKind.HELLO
    versions: Annotated[tuple[Count, ...], msgspec.Meta(min_length=1, max_length=16)]
    role: Literal["worker", "client"]
    secret: Annotated[bytes, msgspec.Meta(max_length=MAX_SECRET_BYTES)]
    name: Name
    peer_id: Name
    slots: Annotated[int, msgspec.Meta(ge=0, le=MAX_SLOTS)] = 0
    allow: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_ALLOWED)] = ()
    held: Annotated[tuple[HeldItem, ...], msgspec.Meta(max_length=MAX_SLOTS)] = ()


class Welcome(Message, frozen=True, array_like=True):
    """The foreman accepts the peer.

    Attributes:
        version: The version of the protocol from now on.
        heartbeat_s: Each side sends something at least this often.
        silence_s: A side that is silent for longer is disconnected.
        window_bytes: How many bytes may be in flight to the other side, not yet handled there.
    """

    KIND: ClassVar[MessageKind] = MessageKind.WELCOME
    version: Count
    heartbeat_s: Seconds
    silence_s: Seconds
    window_bytes: Annotated[int, msgspec.Meta(ge=MAX_MESSAGE_BYTES, le=2**31 - 1)]


class Refused(Message, frozen=True, array_like=True):
    """The foreman refuses the peer; the connection ends."""

    KIND: ClassVar[MessageKind] = MessageKind.REFUSED
    code: Name
    reason: Text


class Goodbye(Message, frozen=True, array_like=True):
    """The last message of a side that leaves on purpose."""

    KIND: ClassVar[MessageKind] = MessageKind.GOODBYE
    reason: Text = ""


class Heartbeat(Message, frozen=True, array_like=True):
    """A heartbeat: this side is alive."""

    KIND: ClassVar[MessageKind] = MessageKind.HEARTBEAT


class Slots(Message, frozen=True, array_like=True):
    """A worker's new number of slots; a worker that is about to stop has none."""

    KIND: ClassVar[MessageKind] = MessageKind.SLOTS
    slots: Annotated[int, msgspec.Meta(ge=0, le=MAX_SLOTS)]


class Credit(Message, frozen=True, array_like=True):
    """This many bytes of messages were handled, so the other side may send as many more."""

    KIND: ClassVar[MessageKind] = MessageKind.CREDIT
    size: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
