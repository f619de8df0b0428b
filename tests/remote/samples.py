"""One message of each kind, and bytes that nobody may send."""

from __future__ import annotations

from trio_ckpt.abc import Checkpoint, Fold
from trio_ckpt.remote._wire import messages as m
from trio_ckpt.remote._wire.frames import Cutter
from trio_ckpt.remote._wire.messages import Kind, Message
from trio_ckpt.remote._wire.protocol import Connection, Role

T = ("job-1.000000", 7)  # an item, and its lease

SAMPLES: dict[Kind, Message] = {
    Kind.HELLO: m.Hello(m.VERSIONS, "worker", b"secret", "w", "peer", 2, ("pkg",)),
    Kind.WELCOME: m.Welcome(1, 5.0, 20.0, 16 * m.MIB),
    Kind.REFUSED: m.Refused("secret", "the secret is another"),
    Kind.GOODBYE: m.Goodbye("done"),
    Kind.HEARTBEAT: m.Heartbeat(),
    Kind.CREDIT: m.Credit(1),
    Kind.SLOTS: m.Slots(0),
    Kind.SUBMIT_JOB: m.SubmitJob("job-1", "pkg:f", m.JobOptions(), 2),
    Kind.JOB_ITEMS: m.JobItems("job-1", 0, [1, {"a": None}]),
    Kind.JOB_ACCEPTED: m.JobAccepted("job-1"),
    Kind.JOB_REFUSED: m.JobRefused("job-1", "exists", "it is another"),
    Kind.ATTACH_JOB: m.AttachJob("job-1", 1, (0, 3)),
    Kind.JOB_RESULT: m.JobResult("job-1", 1, 0, {"loss": 0.5}),
    Kind.JOB_DONE: m.JobDone("job-1", 1, "completed"),
    Kind.CANCEL_JOB: m.CancelJob("job-1"),
    Kind.CONTROL: m.Control(1, "force-checkpoint", T[0]),
    Kind.CONTROL_REPLY: m.ControlReply(1, 202),
    Kind.JOB_WAITS: m.JobWaits("job-1", 1, "no worker is connected"),
    Kind.ASSIGN_TASK: m.AssignTask(*T, "job-1", 0, "pkg:f", 3),
    Kind.RESUME_TASK: m.ResumeTask(*T, "job-1", 0, "pkg:f", 3, 1, 10.0, {}, 5, 1.0),
    Kind.LEASE: m.NewLease(*T, 6),
    Kind.CANCEL: m.Cancel(*T, "the job was cancelled"),
    Kind.RELEASE_TASK: m.ReleaseTask(*T),
    Kind.FORCE_CHECKPOINT: m.ForceCheckpoint(*T),
    Kind.TASK_CHECKPOINT: m.TaskCheckpoint(
        *T, 1, 0, (Checkpoint("[]", 1, b"x"),), (Fold("[]", 1, b"y"),)
    ),
    Kind.CHECKPOINT_ACK: m.CheckpointAck(*T, 1, (None, m.Fault("store", "full"))),
    Kind.STORE_CALL: m.StoreCall(*T, 2, m.ReadRun()),
    Kind.STORE_REPLY: m.StoreReply(*T, 2, b"x"),
    Kind.TASK_PROGRESS: m.TaskProgress(*T, 50.0),
    Kind.TASK_RESULT: m.TaskResult(*T, [1, 2]),
    Kind.TASK_FAILED: m.TaskFailed(*T, m.TaskError("ValueError", "no")),
    Kind.TASK_ACK: m.TaskAck(*T),
}


def frames_of(message: Message, number: int = 999) -> list[bytes]:
    """The frames of a message, whether it may be sent or not."""
    cutter = Cutter(message.KIND, number, m.encode_message(message))
    frames = [cutter.next()]
    while not cutter.is_over:
        frames.append(cutter.next())
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
    """Let both say what they have to say, until nobody has anything."""
    while deliver(one, other) or deliver(other, one):
        pass


def hello(role: Role, *held: str) -> m.Hello:
    name = "worker" if role is Role.WORKER else "client"
    return m.Hello(
        m.VERSIONS, name, b"secret", "w", "peer", 2, ("pkg",), tuple(m.Held(t, 6, 1) for t in held)
    )


def open_pair(role: Role = Role.WORKER, *held: str) -> tuple[Connection, Connection]:
    """A peer and a foreman that have greeted each other."""
    peer, foreman = Connection(role), Connection(None)
    peer.send(hello(role, *held))
    exchange(peer, foreman)
    foreman.send(m.Welcome(1, 5.0, 20.0, foreman.window))
    exchange(foreman, peer)
    return peer, foreman
