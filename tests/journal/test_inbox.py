"""The message in the inbox of a run: sealed, limited in size, and never an error for its reader."""

from __future__ import annotations

import pytest

from trio_ckpt._journal.acts import Act, ActReply
from trio_ckpt._journal.inbox import InboxMessage, read_message, write_message
from trio_ckpt._journal.store import MAX_INBOX_BYTES
from trio_ckpt.stores import MemoryStore

ASKED = InboxMessage(3, Act("pause", "ann", "box", 4711, id="1f"))
ANSWERED = InboxMessage(3, act_id="1f", reply=ActReply(True, "paused"))


class OneInbox(MemoryStore):
    """A store whose runs share one inbox."""

    content = b""

    async def write_inbox(self, run_id: str, payload: bytes) -> None:
        self.content = payload

    async def read_inbox(self, run_id: str) -> bytes:
        return self.content


@pytest.mark.parametrize("message", [ASKED, ANSWERED])
@pytest.mark.parametrize("key", [None, b"k" * 32])
async def test_a_message_is_read_as_it_was_written(
    message: InboxMessage, key: bytes | None
) -> None:
    store = OneInbox(mac_key=key)
    await write_message(store, "r", message)
    assert await read_message(store, "r") == message
    assert await read_message(store, "another") is None  # it was for another run


async def test_who_has_not_the_key_asks_nothing() -> None:
    owner, other = OneInbox(mac_key=b"k" * 32), OneInbox(mac_key=b"x" * 32)
    for writer in (other, OneInbox()):
        await write_message(writer, "r", ASKED)
        owner.content = writer.content
        assert await read_message(owner, "r") is None


async def test_no_byte_of_a_message_can_be_changed() -> None:
    store = OneInbox()
    await write_message(store, "r", ASKED)
    whole = store.content
    for at in range(len(whole)):
        store.content = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        assert await read_message(store, "r") is None
        store.content = whole[:at]
        assert await read_message(store, "r") is None


async def sealed(store: OneInbox, body: bytes) -> None:
    store.content = store.seal("r", -1, ()).close(0, body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{}",
        b"\x00\xff",
        b"[" * 60_000,
        b'{"owner":"3"}',
        b'{"owner":3,"act":{"do":"remove","user":"a","host":"h","pid":1}}',
        b'{"owner":3,"act":{"do":"skip","user":"a","host":"h","pid":1,"steps":[1]}}',
        b'{"owner":3,"act":{"do":"pause","user":"a","host":"h","pid":1,"id":"%s"}}' % (b"1" * 33),
        b" " * MAX_INBOX_BYTES + b'{"owner":3}',
    ],
)
async def test_what_is_no_message_is_none(body: bytes) -> None:
    store = OneInbox()
    await sealed(store, body)
    assert await read_message(store, "r") is None
    await sealed(store, b'{"owner":3}')
    assert await read_message(store, "r") == InboxMessage(3)
