"""One message of each kind, and bytes that no peer may send."""

from __future__ import annotations

from trio_ckpt.abc import Checkpoint, Fold
from trio_ckpt.remote._wire.codec import encode_message
from trio_ckpt.remote._wire.frames import Fragmenter
from trio_ckpt.remote._wire.job_messages import (
    AttachJob,
    CancelJob,
    Control,
    ControlReply,
    JobAccepted,
    JobDone,
    JobItems,
    JobOptions,
    JobRefused,
    JobResult,
    JobWaits,
    SubmitJob,
    TaskError,
)
from trio_ckpt.remote._wire.message import (
    MIB,
    VERSIONS,
    Credit,
    Goodbye,
    Heartbeat,
    HeldItem,
    Hello,
    Message,
    MessageKind,
    Refused,
    Slots,
    Welcome,
)
from trio_ckpt.remote._wire.protocol import Connection
from trio_ckpt.remote._wire.tables import PeerRole
from trio_ckpt.remote._wire.task_messages import (
    AssignTask,
    Cancel,
    CheckpointAck,
    Fault,
    ForceCheckpoint,
    NewLease,
    ReadRun,
    ReleaseTask,
    ResumeTask,
    StoreCall,
    StoreReply,
    TaskAck,
    TaskCheckpoint,
    TaskFailed,
    TaskProgress,
    TaskResult,
)

T = ("job-1.000000", 7)  # an item, and its lease

SAMPLES: dict[MessageKind, Message] = {
    MessageKind.HELLO: Hello(VERSIONS, "worker", b"secret", "w", "peer", 2, ("pkg",)),
    MessageKind.WELCOME: Welcome(1, 5.0, 20.0, 16 * MIB),
    MessageKind.REFUSED: Refused("secret", "the secret does not match"),
    MessageKind.GOODBYE: Goodbye("done"),
    MessageKind.HEARTBEAT: Heartbeat(),
    MessageKind.CREDIT: Credit(1),
    MessageKind.SLOTS: Slots(0),
    MessageKind.SUBMIT_JOB: SubmitJob("job-1", "pkg:f", JobOptions(), 2),
    MessageKind.JOB_ITEMS: JobItems("job-1", 0, [1, {"a": None}]),
    MessageKind.JOB_ACCEPTED: JobAccepted("job-1"),
    MessageKind.JOB_REFUSED: JobRefused("job-1", "exists", "it is another"),
    MessageKind.ATTACH_JOB: AttachJob("job-1", 1, (0, 3)),
    MessageKind.JOB_RESULT: JobResult("job-1", 1, 0, {"loss": 0.5}),
    MessageKind.JOB_DONE: JobDone("job-1", 1, "completed"),
    MessageKind.CANCEL_JOB: CancelJob("job-1"),
    MessageKind.CONTROL: Control(1, "force-checkpoint", T[0]),
    MessageKind.CONTROL_REPLY: ControlReply(1, 202),
    MessageKind.JOB_WAITS: JobWaits("job-1", 1, "no worker is connected"),
    MessageKind.ASSIGN_TASK: AssignTask(*T, "job-1", 0, "pkg:f", 3),
    MessageKind.RESUME_TASK: ResumeTask(*T, "job-1", 0, "pkg:f", 3, 1, 10.0, {}, 5, 1.0),
    MessageKind.LEASE: NewLease(*T, 6),
    MessageKind.CANCEL: Cancel(*T, "the job was cancelled"),
    MessageKind.RELEASE_TASK: ReleaseTask(*T),
    MessageKind.FORCE_CHECKPOINT: ForceCheckpoint(*T),
    MessageKind.TASK_CHECKPOINT: TaskCheckpoint(
        *T, 1, 0, (Checkpoint("[]", 1, b"x"),), (Fold("[]", 1, b"y"),)
    ),
    MessageKind.CHECKPOINT_ACK: CheckpointAck(*T, 1, (None, Fault("store", "full"))),
    MessageKind.STORE_CALL: StoreCall(*T, 2, ReadRun()),
    MessageKind.STORE_REPLY: StoreReply(*T, 2, b"x"),
    MessageKind.TASK_PROGRESS: TaskProgress(*T, 50.0),
    MessageKind.TASK_RESULT: TaskResult(*T, [1, 2]),
    MessageKind.TASK_FAILED: TaskFailed(*T, TaskError("ValueError", "no")),
    MessageKind.TASK_ACK: TaskAck(*T),
}


def frames_of(message: Message, number: int = 999) -> list[bytes]:
    """The frames of a message, whether it may be sent or not."""
    fragmenter = Fragmenter(message.KIND, number, encode_message(message))
    frames = [fragmenter.next()]
    while not fragmenter.is_over:
        frames.append(fragmenter.next())
    return frames


def deliver(sender: Connection, receiver: Connection) -> list[Message]:
    """All that one side may send now, taken and handled by the other."""
    messages: list[Message] = []
    while (frame := sender.next_frame()) is not None:
        received = receiver.receive(frame)
        if received is not None:
            messages.append(received.message)
            receiver.consumed(received)
    return messages


def exchange(one: Connection, other: Connection) -> None:
    """Let both say what they have to say, until neither has anything."""
    while deliver(one, other) or deliver(other, one):
        pass


def hello(role: PeerRole, *held: str) -> Hello:
    name = "worker" if role is PeerRole.WORKER else "client"
    return Hello(
        VERSIONS,
        name,
        b"secret",
        "w",
        "peer",
        2,
        ("pkg",),
        tuple(HeldItem(t, 6, 1) for t in held),
    )


def open_pair(role: PeerRole = PeerRole.WORKER, *held: str) -> tuple[Connection, Connection]:
    """A peer and a foreman that have greeted each other."""
    peer, foreman = Connection(role), Connection(None)
    peer.send(hello(role, *held))
    exchange(peer, foreman)
    foreman.send(Welcome(1, 5.0, 20.0, foreman.window))
    exchange(foreman, peer)
    return peer, foreman
