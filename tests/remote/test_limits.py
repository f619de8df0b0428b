"""What the limits of fields allow fits into its message: nothing that is checked at the border can
end a connection later."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.remote.site import F, open_site
from trio_ckpt import remote
from trio_ckpt.abc import Checkpoint, RunKey
from trio_ckpt.remote._foreman.store_proxy import StoreProxy
from trio_ckpt.remote._wire import messages as m
from trio_ckpt.remote._wire.message import MAX_ALLOW_BYTES
from trio_ckpt.remote._wire.messages import Message, decode_message, encode_message
from trio_ckpt.stores import MemoryStore

WIDE = "\U0001f40d"  # four bytes in UTF-8
NAME = WIDE * m.MAX_NAME_CHARS
TEXT = WIDE * m.MAX_TEXT_CHARS
JOB = "job-" + "x" * 96
TASK = (f"{JOB}.000000", 2**63 - 1)
ERROR = m.TaskError(NAME, TEXT, WIDE * m.MAX_TRACEBACK_CHARS)
BIG = 2**63 - 1

LARGEST: list[Message] = [
    m.Hello(
        m.VERSIONS * 16,
        "worker",
        b"s" * m.MAX_SECRET_BYTES,
        NAME,
        NAME,
        m.MAX_SLOTS,
        (NAME,) * (MAX_ALLOW_BYTES // len(NAME.encode())),
        (m.HeldItem(*TASK, BIG),) * m.MAX_SLOTS,
    ),
    m.Refused(NAME, TEXT),
    m.Goodbye(TEXT),
    m.SubmitJob(JOB, NAME, m.JobOptions(trace={f"{n:0200}": TEXT for n in range(16)}), 1),
    m.JobRefused(JOB, NAME, TEXT),
    m.JobDone(JOB, BIG, "interrupted", ERROR, BIG),
    m.JobResult(JOB, BIG, BIG, None, ERROR),
    m.JobWaits(JOB, BIG, TEXT),
    m.ControlReply(BIG, 409, TEXT),
    m.AttachJob(JOB, BIG, (BIG,) * m.MAX_STEPS),
    m.Cancel(*TASK, TEXT),
    m.ReleaseTask(*TASK, TEXT, is_trouble=True),
    m.TaskProgress(*TASK, 100.0, TEXT),
    m.TaskFailed(*TASK, ERROR),
    m.StoreCall(*TASK, BIG, m.DropBlobs(BIG, TEXT, (BIG,) * m.MAX_SEQUENCES)),
    m.StoreReply(*TASK, BIG, b"", fault=m.Fault(NAME, TEXT)),
]


@pytest.mark.parametrize("message", LARGEST, ids=lambda message: message.KIND.name)
def test_a_message_whose_fields_are_at_their_limits_fits(message: Message) -> None:
    assert decode_message(message.KIND, encode_message(message)) == message


async def test_an_answer_about_thousands_of_failed_saves_fits() -> None:
    """Each of them for a reason of thousands of characters."""

    class Refusing(MemoryStore):
        async def save(
            self, run: RunKey, group: object, folds: object = ()
        ) -> list[Exception | None]:
            await trio.lowlevel.checkpoint()
            return [remote.RemoteError(TEXT)] * m.MAX_GROUP

    group = tuple(Checkpoint("[]", n, b"x") for n in range(1, m.MAX_GROUP + 1))
    proxy = StoreProxy(Refusing(), TASK[0], 1)
    ack = await proxy.save(m.TaskCheckpoint(*TASK, 1, 0, group))
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
