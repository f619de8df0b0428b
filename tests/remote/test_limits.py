"""What the limits of fields allow fits into its message: nothing that is checked at the border can
end a connection later."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.remote.site import F, open_site
from trio_ckpt import remote
from trio_ckpt._util.network import MAX_SECRET_BYTES
from trio_ckpt.abc import Checkpoint, RunKey
from trio_ckpt.remote._foreman import peers
from trio_ckpt.remote._foreman.store_proxy import StoreProxy
from trio_ckpt.remote._wire.codec import decode_message, encode_message
from trio_ckpt.remote._wire.job_messages import (
    AttachJob,
    ControlReply,
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
    MAX_ALLOW_BYTES,
    MAX_GROUP,
    MAX_NAME_CHARS,
    MAX_SEQUENCES,
    MAX_SLOTS,
    MAX_STEPS,
    MAX_TEXT_CHARS,
    MAX_TRACEBACK_CHARS,
    VERSIONS,
    Goodbye,
    HeldItem,
    Hello,
    Message,
    Refused,
)
from trio_ckpt.remote._wire.task_messages import (
    Cancel,
    DropBlobs,
    Fault,
    ReleaseTask,
    StoreCall,
    StoreReply,
    TaskCheckpoint,
    TaskFailed,
    TaskProgress,
)
from trio_ckpt.stores import MemoryStore

WIDE = "\U0001f40d"  # four bytes in UTF-8
NAME = WIDE * MAX_NAME_CHARS
TEXT = WIDE * MAX_TEXT_CHARS
JOB = "job-" + "x" * 96
TASK = (f"{JOB}.000000", 2**63 - 1)
ERROR = TaskError(NAME, TEXT, WIDE * MAX_TRACEBACK_CHARS)
BIG = 2**63 - 1

LARGEST: list[Message] = [
    Hello(
        VERSIONS * 16,
        "worker",
        b"s" * MAX_SECRET_BYTES,
        NAME,
        NAME,
        MAX_SLOTS,
        (NAME,) * (MAX_ALLOW_BYTES // len(NAME.encode())),
        (HeldItem(*TASK, BIG),) * MAX_SLOTS,
    ),
    Refused(NAME, TEXT),
    Goodbye(TEXT),
    SubmitJob(JOB, NAME, JobOptions(trace={f"{n:0200}": TEXT for n in range(16)}), 1),
    JobRefused(JOB, NAME, TEXT),
    JobDone(JOB, BIG, "interrupted", ERROR, BIG),
    JobResult(JOB, BIG, BIG, None, ERROR),
    JobWaits(JOB, BIG, TEXT),
    ControlReply(BIG, 409, TEXT),
    AttachJob(JOB, BIG, (BIG,) * MAX_STEPS),
    Cancel(*TASK, TEXT),
    ReleaseTask(*TASK, TEXT, is_trouble=True),
    TaskProgress(*TASK, 100.0, TEXT),
    TaskFailed(*TASK, ERROR),
    StoreCall(*TASK, BIG, DropBlobs(BIG, TEXT, (BIG,) * MAX_SEQUENCES)),
    StoreReply(*TASK, BIG, b"", fault=Fault(NAME, TEXT)),
]


@pytest.mark.parametrize("message", LARGEST, ids=lambda message: message.KIND.name)
def test_a_message_whose_fields_are_at_their_limits_fits(message: Message) -> None:
    assert decode_message(message.KIND, encode_message(message)) == message


async def test_an_answer_about_thousands_of_failed_saves_fits() -> None:
    """Each of them for a reason of thousands of characters."""

    class Refusing(MemoryStore):
        async def save(
            self, run: RunKey, group: object, folds: object = (), *, summary: object = None
        ) -> list[Exception | None]:
            await trio.lowlevel.checkpoint()
            return [remote.RemoteError(TEXT)] * MAX_GROUP

    group = tuple(Checkpoint("[]", n, b"x") for n in range(1, MAX_GROUP + 1))
    proxy = StoreProxy(Refusing(), TASK[0], 1)
    ack = await proxy.save(TaskCheckpoint(*TASK, 1, 0, group))
    assert decode_message(ack.KIND, encode_message(ack)) == ack


async def test_a_failure_in_any_script_reaches_the_client(autojump_clock: MockClock) -> None:
    """Its text and its traceback are as long as may be, in characters of four bytes."""
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with site.client() as client:
            for errors in ("raise", "collect"):
                try:
                    (error,) = await client.map(F + "fail_at_length", [WIDE], errors=errors)
                except remote.TaskFailedError as raised:
                    error = raised
                assert error.error_message.startswith(WIDE * 1_000)
                assert error.remote_traceback.endswith("\n")
                assert len(error.remote_traceback.encode()) > 64 * 1024


async def test_modules_that_do_not_fit_are_refused_at_once() -> None:
    names = [WIDE * 100 + f"{n}" for n in range(100)]
    with pytest.raises(ValueError, match="allow must have at most 32,768 bytes"):
        await remote.run_worker("ws://127.0.0.1:1", secret="s" * 16, allow=names)


def send_as_another_client(client: remote.Client, job_id: str, item: str) -> None:
    """Submit a job with one item, without the checks of our own client."""
    client._session.send(SubmitJob(job_id, F + "echo", JobOptions(), 1))
    client._session.send(JobItems(job_id, 0, [item]))


TOO_LARGE = 8 * 2**20 - 40  # it fits into JOB_ITEMS, and into no assignment


async def test_an_item_that_fits_into_no_assignment_is_refused(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site, site.client() as client:
        await site.start_worker("a")
        send_as_another_client(client, "job-large", "x" * TOO_LARGE)
        await trio.sleep(1)
        with pytest.raises(remote.JobRefusedError, match="there is no job"):
            await client.attach("job-large")
        assert await client.map(F + "echo", ["y"]) == ["y"]


async def test_an_item_that_cannot_be_assigned_fails_its_job_alone(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of a job that was stored by an older foreman."""
    monkeypatch.setattr(peers, "MAX_VALUE_BYTES", 2**30)
    async with open_site(MemoryStore()) as site, site.client() as client:
        await site.start_worker("a")
        send_as_another_client(client, "job-large", "x" * TOO_LARGE)
        await trio.sleep(1)
        with pytest.raises(remote.RemoteError, match="over its limit"):
            await client.attach("job-large")
        assert await client.map(F + "echo", ["y"]) == ["y"]
