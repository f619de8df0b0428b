"""The tables of the protocol, cell by cell, and what goes beyond them: order, credit, calls."""

from __future__ import annotations

import itertools

import pytest

from tests.remote.samples import SAMPLES, T, deliver, exchange, frames_of, hello, open_pair
from trio_ckpt.remote._wire.codec import MESSAGES
from trio_ckpt.remote._wire.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from trio_ckpt.remote._wire.frames import FRAME_BYTES, decode_frame
from trio_ckpt.remote._wire.job_messages import JobItems
from trio_ckpt.remote._wire.message import (
    MAX_MESSAGE_BYTES,
    MIB,
    Credit,
    Goodbye,
    Heartbeat,
    Message,
    MessageKind,
    TaskMessage,
    Welcome,
)
from trio_ckpt.remote._wire.protocol import MAX_CALLS, WINDOW_BYTES, Connection, choose_version
from trio_ckpt.remote._wire.tables import PHASES, TASKS, ConnectionPhase, PeerRole, TaskPhase
from trio_ckpt.remote._wire.task_messages import (
    AssignTask,
    Cancel,
    CheckpointAck,
    NewLease,
    PutBlob,
    ReadRun,
    StoreCall,
    StoreReply,
    TaskAck,
    TaskProgress,
    TaskResult,
)

IS_FOREMAN = {
    PeerRole.TO_WORKER: True,
    PeerRole.TO_CLIENT: True,
    PeerRole.WORKER: False,
    PeerRole.CLIENT: False,
}
PEER = {
    PeerRole.WORKER: PeerRole.TO_WORKER,
    PeerRole.CLIENT: PeerRole.TO_CLIENT,
    PeerRole.TO_WORKER: PeerRole.WORKER,
    PeerRole.TO_CLIENT: PeerRole.CLIENT,
}
LAST_WORDS = (MessageKind.TASK_RESULT, MessageKind.TASK_FAILED, MessageKind.RELEASE_TASK)


def sides_in(role: PeerRole, phase: ConnectionPhase) -> tuple[Connection, Connection]:
    """Who speaks in a role, and who listens, with their connection in a phase."""
    peer_role = PEER[role] if IS_FOREMAN[role] else role
    peer, foreman = Connection(peer_role), Connection(None)
    if phase is not ConnectionPhase.NEW:
        peer.send(hello(peer_role))
        exchange(peer, foreman)
    if phase in (ConnectionPhase.OPEN, ConnectionPhase.CLOSED):
        foreman.send(Welcome(1, 5.0, 20.0, foreman.window))
        exchange(foreman, peer)
    speaker, listener = (foreman, peer) if IS_FOREMAN[role] else (peer, foreman)
    if phase is ConnectionPhase.CLOSED:
        speaker.send(Goodbye())
        exchange(speaker, listener)
    return speaker, listener


def sample_for(role: PeerRole, kind: MessageKind) -> Message:
    """One of the kind; a HELLO says what the speaker is."""
    return hello(role) if kind is MessageKind.HELLO and not IS_FOREMAN[role] else SAMPLES[kind]


def make_legal(side: Connection, message: Message) -> None:
    """Set up what the other table, of tasks and calls, asks for."""
    if isinstance(message, TaskMessage):
        for was, cells in TASKS.items():
            if any(kind is message.KIND for _, kind in cells):
                side.tasks[message.task_id] = was
                break
        if message.KIND is MessageKind.TASK_ACK:
            side.tasks[message.task_id] = TaskPhase.ENDED
        if message.KIND is MessageKind.RELEASE_TASK:
            side.tasks[message.task_id] = TaskPhase.RUNNING
    if isinstance(message, CheckpointAck | StoreReply):
        question = SAMPLES[
            MessageKind.TASK_CHECKPOINT
            if isinstance(message, CheckpointAck)
            else MessageKind.STORE_CALL
        ]
        side._note_call(question)


def receive_all(listener: Connection, message: Message) -> None:
    """Give one side a message, whether it may be sent or not."""
    for frame in frames_of(message):
        listener.receive(frame)


CELLS = list(itertools.product(PeerRole, ConnectionPhase, MessageKind))


def cell_id(cell: tuple[PeerRole, ConnectionPhase, MessageKind]) -> str:
    role, phase, kind = cell
    return f"{role.value}-{phase.value}-{kind.name}"


@pytest.mark.parametrize("cell", CELLS, ids=cell_id)
def test_each_cell_of_the_table_of_phases(
    cell: tuple[PeerRole, ConnectionPhase, MessageKind],
) -> None:
    """What the table allows moves both sides alike; the rest raises on both, and moves neither."""
    role, phase, kind = cell
    then = PHASES[role][phase].get(kind)
    speaker, listener = sides_in(role, phase)
    message = sample_for(role, kind)
    for side in (speaker, listener):
        make_legal(side, message)
    if kind is MessageKind.CREDIT:
        listener.credit -= 1  # of what it had sent
    tasks = dict(speaker.tasks)
    if then is not None:
        speaker.send(message)
        assert speaker.phase is then
        assert deliver(speaker, listener) == [message]
        assert listener.phase is then
        return
    with pytest.raises(LocalProtocolError):
        speaker.send(message)
    assert (speaker.phase, speaker.tasks, speaker.next_frame()) == (phase, tasks, None)
    with pytest.raises(RemoteProtocolError):
        receive_all(listener, message)
    assert (listener.phase, listener.tasks) == (phase, tasks)


TASK_CELLS = [
    (was, role, kind)
    for was, role, kind in itertools.product(
        TaskPhase, (PeerRole.WORKER, PeerRole.TO_WORKER), MessageKind
    )
    if isinstance(SAMPLES[kind], TaskMessage) and kind in PHASES[role][ConnectionPhase.OPEN]
]


@pytest.mark.parametrize("cell", TASK_CELLS, ids=lambda c: f"{c[0].value}-{c[1].value}-{c[2].name}")
def test_each_cell_of_the_table_of_tasks(cell: tuple[TaskPhase, PeerRole, MessageKind]) -> None:
    was, role, kind = cell
    then = TASKS[was].get((role, kind))
    speaker, listener = sides_in(role, ConnectionPhase.OPEN)
    message = SAMPLES[kind]
    for side in (speaker, listener):
        make_legal(side, message)
        side.tasks.pop(T[0], None)
        if was is not TaskPhase.NONE:
            side.tasks[T[0]] = was
    before = dict(speaker.tasks)
    if then is not None:
        speaker.send(message)
        assert deliver(speaker, listener) == [message]
        after = {} if then is TaskPhase.NONE else {T[0]: then}
        assert speaker.tasks == listener.tasks == after
        return
    with pytest.raises(LocalProtocolError, match=was.value):
        speaker.send(message)
    assert (speaker.tasks, speaker.next_frame()) == (before, None)
    with pytest.raises(RemoteProtocolError, match=was.value):
        receive_all(listener, message)
    assert listener.tasks == before


def test_crossing_messages_are_legal_in_either_order() -> None:
    """A CANCEL, a RELEASE or a FORCE_CHECKPOINT may meet the last word of the worker."""
    for word, order in itertools.product(
        LAST_WORDS, (MessageKind.CANCEL, MessageKind.RELEASE_TASK, MessageKind.FORCE_CHECKPOINT)
    ):
        worker, foreman = open_pair()
        foreman.send(SAMPLES[MessageKind.ASSIGN_TASK])
        exchange(foreman, worker)
        worker.send(SAMPLES[word])
        foreman.send(SAMPLES[order])
        assert deliver(worker, foreman) == [SAMPLES[word]]
        assert deliver(foreman, worker) == [SAMPLES[order]]
        foreman.send(SAMPLES[MessageKind.TASK_ACK])
        exchange(foreman, worker)
        assert worker.tasks == foreman.tasks == {}


def test_what_a_worker_holds_is_held_until_the_foreman_speaks() -> None:
    worker, foreman = open_pair(PeerRole.WORKER, "a", "b", "c")
    assert foreman.tasks == worker.tasks == dict.fromkeys("abc", TaskPhase.HELD)
    with pytest.raises(LocalProtocolError):
        worker.send(TaskResult("a", 6, 1))
    foreman.send(NewLease("a", 7, 6))
    foreman.send(Cancel("b", 6))
    exchange(foreman, worker)
    wanted = {"a": TaskPhase.RUNNING, "b": TaskPhase.STOPPING, "c": TaskPhase.HELD}
    assert worker.tasks == foreman.tasks == wanted


def test_a_foreman_says_nothing_before_hello() -> None:
    with pytest.raises(LocalProtocolError, match="waits for HELLO"):
        Connection(None).send(SAMPLES[MessageKind.WELCOME])


def test_a_client_may_not_say_what_a_worker_may() -> None:
    client, _ = open_pair(PeerRole.CLIENT)
    with pytest.raises(LocalProtocolError):
        client.send(SAMPLES[MessageKind.TASK_RESULT])


# -- calls ----------------------------------------------------------------------------------


def running() -> tuple[Connection, Connection]:
    worker, foreman = open_pair()
    foreman.send(SAMPLES[MessageKind.ASSIGN_TASK])
    exchange(foreman, worker)
    return worker, foreman


def test_an_answer_is_to_what_was_asked() -> None:
    worker, foreman = running()
    worker.send(StoreCall(*T, 5, ReadRun()))
    exchange(worker, foreman)
    for wrong in (
        StoreReply(*T, 6),
        CheckpointAck(*T, 5),
        StoreReply("other", 7, 5),
    ):
        with pytest.raises(ProtocolError):
            foreman.send(wrong)
        with pytest.raises(RemoteProtocolError):
            worker.receive(frames_of(wrong)[0])
    foreman.send(StoreReply(*T, 5, b"a", is_last=False))
    foreman.send(StoreReply(*T, 5, b"b"))
    exchange(foreman, worker)
    with pytest.raises(LocalProtocolError, match="does not answer any call"):
        foreman.send(StoreReply(*T, 5, b"c"))
    assert worker.calls == foreman.calls == {}


def test_an_acknowledged_item_has_no_questions_left() -> None:
    """What was asked under a lease that was lost has no answer: it does not count for ever."""
    worker, foreman = running()
    worker.send(StoreCall(*T, 5, ReadRun()))
    worker.send(TaskResult(*T, 1))
    exchange(worker, foreman)
    foreman.send(TaskAck(*T))
    exchange(foreman, worker)
    assert worker.calls == foreman.calls == {}


def test_questions_have_numbers_of_their_own_and_are_limited() -> None:
    worker, foreman = running()
    for call in range(MAX_CALLS):
        worker.send(StoreCall(*T, call, ReadRun()))
    exchange(worker, foreman)
    with pytest.raises(LocalProtocolError, match="was already made"):
        worker.send(StoreCall(*T, 5, ReadRun()))
    flood = StoreCall(*T, MAX_CALLS, ReadRun())
    with pytest.raises(LocalProtocolError, match="wait for an answer"):
        worker.send(flood)
    with pytest.raises(RemoteProtocolError, match="wait for an answer"):
        foreman.receive(frames_of(flood)[0])


# -- order and size -------------------------------------------------------------------------

BIG = b"x" * (6 * MIB)


def two_tasks() -> tuple[Connection, Connection]:
    worker, foreman = open_pair()
    for task_id in "ab":
        foreman.send(AssignTask(task_id, 1, "job-1", 0, "pkg:f", 3))
    exchange(foreman, worker)
    return worker, foreman


def sent(connection: Connection) -> list[MessageKind]:
    """The kinds of the frames that it sends, in order."""
    kinds: list[MessageKind] = []
    while (frame := connection.next_frame()) is not None:
        kinds.append(decode_frame(frame).kind)
    return kinds


def test_a_heartbeat_waits_behind_one_frame_at_most() -> None:
    worker, _ = two_tasks()
    worker.send(TaskResult("a", 1, BIG))
    first = worker.next_frame()
    worker.send(Heartbeat())
    second = worker.next_frame()
    assert first is not None
    assert second is not None
    assert decode_frame(first).kind is MessageKind.TASK_RESULT
    assert decode_frame(second).kind is MessageKind.HEARTBEAT


def test_channels_take_turns_and_each_is_in_order() -> None:
    """A small message of another item waits behind one frame of a large one; of the same item,
    behind all of it."""
    worker, foreman = two_tasks()
    worker.send(StoreCall("a", 1, 1, PutBlob("d" * 64, len(BIG), 0, BIG)))
    worker.send(TaskResult("a", 1, "small"))
    assert worker.next_frame() is not None
    worker.send(TaskProgress("b", 1, 1.0))
    kinds = sent(worker)
    assert kinds.index(MessageKind.TASK_PROGRESS) <= 1
    assert kinds[-1] is MessageKind.TASK_RESULT
    assert foreman.phase is ConnectionPhase.OPEN


def test_goodbye_is_the_last() -> None:
    worker, foreman = two_tasks()
    worker.send(TaskResult("a", 1, BIG))
    worker.send(Goodbye())
    kinds = sent(worker)
    assert kinds[-1] is MessageKind.GOODBYE
    assert kinds.count(MessageKind.TASK_RESULT) == -(-(len(BIG) + 20) // FRAME_BYTES)
    assert foreman.phase is ConnectionPhase.OPEN


def test_what_is_begun_fits_and_what_is_granted_can_be_used() -> None:
    """Three messages of 6 MiB in a window of 16: the third begins when the first is handled."""
    worker, foreman = two_tasks()
    foreman.send(AssignTask("c", 1, "job-1", 0, "pkg:f", 3))
    exchange(foreman, worker)
    for task_id in "abc":
        worker.send(TaskResult(task_id, 1, BIG))
    frames: list[bytes] = []
    while (frame := worker.next_frame()) is not None:
        frames.append(frame)
    received = [found for frame in frames if (found := foreman.receive(frame)) is not None]
    assert [found.message.channel for found in received] == ["a", "b"]
    assert worker.queued_bytes > len(BIG)
    foreman.consumed(received[0])
    assert [message.KIND for message in deliver(foreman, worker)] == [MessageKind.CREDIT]
    assert [message.channel for message in deliver(worker, foreman)] == ["c"]
    assert worker.queued_bytes == 0


def test_what_waits_for_credit_is_not_overtaken_by_what_begins_later() -> None:
    worker, _ = two_tasks()
    worker.credit = 2**20
    worker.send(TaskResult("a", 1, BIG))
    worker.send(TaskResult("b", 1, "small"))
    assert worker.next_frame() is None
    worker.send(Heartbeat())
    assert sent(worker) == [MessageKind.HEARTBEAT]


def test_more_than_is_granted_is_refused_before_it_is_kept() -> None:
    worker, foreman = two_tasks()
    body = StoreCall("a", 1, 1, PutBlob("d" * 64, len(BIG), 0, BIG))
    for number in range(2):
        foreman.receive(frames_of(body, number)[0])
    with pytest.raises(RemoteProtocolError, match="more bytes than its credit"):
        foreman.receive(frames_of(body, 2)[0])
    assert len(foreman._reassembler) == 2
    assert worker.phase is ConnectionPhase.OPEN


def test_credit_that_was_not_used_is_refused() -> None:
    worker, foreman = two_tasks()
    foreman.credit = WINDOW_BYTES - 4
    with pytest.raises(RemoteProtocolError, match="credit"):
        foreman.receive(frames_of(Credit(5))[0])
    foreman.receive(frames_of(Credit(4))[0])
    assert foreman.credit == WINDOW_BYTES
    assert worker.phase is ConnectionPhase.OPEN


def test_a_large_kind_before_the_welcome_is_refused_at_once() -> None:
    foreman = Connection(None)
    big = JobItems("job-1", 0, [BIG])
    with pytest.raises(RemoteProtocolError, match="JOB_ITEMS arrived while new"):
        foreman.receive(frames_of(big)[0])
    assert len(foreman._reassembler) == 0


def test_the_largest_message_fits_into_the_window() -> None:
    assert max(struct.MAX_BYTES for struct in MESSAGES.values()) <= WINDOW_BYTES
    assert MAX_MESSAGE_BYTES <= WINDOW_BYTES


def test_kinds_without_a_channel_are_one_frame() -> None:
    for kind, message in SAMPLES.items():
        if not message.channel:
            assert MESSAGES[kind].MAX_BYTES <= FRAME_BYTES, kind


# -- versions -------------------------------------------------------------------------------


def test_the_newest_common_version_is_chosen() -> None:
    assert choose_version((1,)) == 1
    assert choose_version((1, 99)) == 1
    assert choose_version((98, 99)) is None


def test_a_welcome_to_a_version_that_is_not_known_is_refused() -> None:
    worker, foreman = Connection(PeerRole.WORKER), Connection(None)
    worker.send(hello(PeerRole.WORKER))
    exchange(worker, foreman)
    with pytest.raises(RemoteProtocolError, match="version 2"):
        worker.receive(frames_of(Welcome(2, 5.0, 20.0, WINDOW_BYTES))[0])
