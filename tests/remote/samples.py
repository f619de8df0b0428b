"""One message of each kind, and bytes that no peer may send."""

from __future__ import annotations

from trio_ckpt.abc import Checkpoint, Fold
from trio_ckpt.remote._wire import messages as m
from trio_ckpt.remote._wire.frames import Fragmenter
from trio_ckpt.remote._wire.messages import Message, MessageKind
from trio_ckpt.remote._wire.protocol import Connection, PeerRole

T = ("job-1.000000", 7)  # an item, and its lease

SAMPLES: dict[MessageKind, Message] = {
    MessageKind.HELLO: m.Hello(m.VERSIONS, "worker", b"secret", "w", "peer", 2, ("pkg",)),
    MessageKind.WELCOME: m.Welcome(1, 5.0, 20.0, 16 * m.MIB),
    MessageKind.REFUSED: m.Refused("secret", "the secret does not match"),
    MessageKind.GOODBYE: m.Goodbye("done"),
    MessageKind.HEARTBEAT: m.Heartbeat(),
    MessageKind.CREDIT: m.Credit(1),
    MessageKind.SLOTS: m.Slots(0),
    MessageKind.SUBMIT_JOB: m.SubmitJob("job-1", "pkg:f", m.JobOptions(), 2),
    MessageKind.JOB_ITEMS: m.JobItems("job-1", 0, [1, {"a": None}]),
    MessageKind.JOB_ACCEPTED: m.JobAccepted("job-1"),
    MessageKind.JOB_REFUSED: m.JobRefused("job-1", "exists", "it is another"),
    MessageKind.ATTACH_JOB: m.AttachJob("job-1", 1, (0, 3)),
    MessageKind.JOB_RESULT: m.JobResult("job-1", 1, 0, {"loss": 0.5}),
    MessageKind.JOB_DONE: m.JobDone("job-1", 1, "completed"),
    MessageKind.CANCEL_JOB: m.CancelJob("job-1"),
    MessageKind.CONTROL: m.Control(1, "force-checkpoint", T[0]),
    MessageKind.CONTROL_REPLY: m.ControlReply(1, 202),
    MessageKind.JOB_WAITS: m.JobWaits("job-1", 1, "no worker is connected"),
    MessageKind.ASSIGN_TASK: m.AssignTask(*T, "job-1", 0, "pkg:f", 3),
    MessageKind.RESUME_TASK: m.ResumeTask(*T, "job-1", 0, "pkg:f", 3, 1, 10.0, {}, 5, 1.0),
    MessageKind.LEASE: m.NewLease(*T, 6),
    MessageKind.CANCEL: m.Cancel(*T, "the job was cancelled"),
    MessageKind.RELEASE_TASK: m.ReleaseTask(*T),
    MessageKind.FORCE_CHECKPOINT: m.ForceCheckpoint(*T),
    MessageKind.TASK_CHECKPOINT: m.TaskCheckpoint(
        *T, 1, 0, (Checkpoint("[]", 1, b"x"),), (Fold("[]", 1, b"y"),)
    ),
    MessageKind.CHECKPOINT_ACK: m.CheckpointAck(*T, 1, (None, m.Fault("store", "full"))),
    MessageKind.STORE_CALL: m.StoreCall(*T, 2, m.ReadRun()),
    MessageKind.STORE_REPLY: m.StoreReply(*T, 2, b"x"),
    MessageKind.TASK_PROGRESS: m.TaskProgress(*T, 50.0),
    MessageKind.TASK_RESULT: m.TaskResult(*T, [1, 2]),
    MessageKind.TASK_FAILED: m.TaskFailed(*T, m.TaskError("ValueError", "no")),
    MessageKind.TASK_ACK: m.TaskAck(*T),
}


def frames_of(message: Message, number: int = 999) -> list[bytes]:
    """The frames of a message, whether it may be sent or not."""
    fragmenter = Fragmenter(message.KIND, number, m.encode_message(message))
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


def hello(role: PeerRole, *held: str) -> m.Hello:
    name = "worker" if role is PeerRole.WORKER else "client"
    return m.Hello(
        m.VERSIONS,
        name,
        b"secret",
        "w",
        "peer",
        2,
        ("pkg",),
        tuple(m.HeldItem(t, 6, 1) for t in held),
    )


def open_pair(role: PeerRole = PeerRole.WORKER, *held: str) -> tuple[Connection, Connection]:
    """A peer and a foreman that have greeted each other."""
    peer, foreman = Connection(role), Connection(None)
    peer.send(hello(role, *held))
    exchange(peer, foreman)
    foreman.send(m.Welcome(1, 5.0, 20.0, foreman.window))
    exchange(foreman, peer)
    return peer, foreman
