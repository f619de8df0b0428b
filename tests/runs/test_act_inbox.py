"""A run whose store has inboxes: acts come by them, once each, and for its own owner alone."""

# ruff: noqa: ASYNC110, PT012  (what a whole block does is the claim; a stop has no event)

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock as Clock, wait_all_tasks_blocked

from tests.journal.test_inbox import OneInbox
from tests.opening import begin
from trio_ckpt import Run, RunStoppedError
from trio_ckpt._journal.acts import Act, ActRefusedError, ActReply, new_act, read_acts
from trio_ckpt._journal.inbox import InboxMessage, read_message, write_message
from trio_ckpt._journal.store import Owner
from trio_ckpt._maintenance import ask_inbox
from trio_ckpt._maintenance.steer import ASK_S, steer
from trio_ckpt._runs import act_inbox
from trio_ckpt._runs.run import open_run_of
from trio_ckpt._runs.steering import Steering
from trio_ckpt._util.errors import StoreError
from trio_ckpt.testing import check_store

EVERY_S = 10.0


class Inbox(OneInbox):
    """A store in memory whose owners look into an inbox."""

    inbox_every_s = EVERY_S


@asynccontextmanager
async def steered(store: Inbox) -> AsyncGenerator[Run]:
    async with begin(store) as run:
        yield run


def is_paused(run: Run) -> bool:
    return open_run_of(run).stop.is_paused


def owner_of(run: Run) -> int:
    return open_run_of(run).committer.run_key.owner


async def looked() -> None:
    """Wait until the owner has looked."""
    await trio.sleep(EVERY_S + 1)


async def test_the_store_of_these_tests_keeps_the_contract(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    first = Inbox()

    async def maker() -> Inbox:
        handle = Inbox()
        handle._memory = first._memory
        handle.write_inbox = first.write_inbox  # type: ignore[method-assign]
        handle.read_inbox = first.read_inbox  # type: ignore[method-assign]
        return handle

    monkeypatch.setattr(OneInbox, "read_inbox", _read_own)
    await check_store(maker)


async def _read_own(self: OneInbox, run_id: str) -> bytes:
    await trio.lowlevel.checkpoint()
    return b"" if run_id.endswith("not there") else self.content[: 2**21]


async def test_an_act_is_done_at_the_next_look_of_the_owner(autojump_clock: Clock) -> None:
    store, began = Inbox(), trio.current_time()
    async with steered(store) as run:
        reply = await steer(store, "r", new_act("pause", "ann", why="lunch"))
        assert reply.text.startswith("paused")
        assert is_paused(run)
        assert trio.current_time() - began <= EVERY_S + ask_inbox.LOOK_EVERY_S
        assert store.content == b""  # the answer was read
    assert [act.why for act in await read_acts(store, "r")] == ["lunch"]


async def test_an_owner_that_is_not_asked_reads_once_a_period(autojump_clock: Clock) -> None:
    class Counted(Inbox):
        reads = 0

        async def read_inbox(self, run_id: str) -> bytes:
            self.reads += 1
            return await super().read_inbox(run_id)

    store = Counted()
    async with steered(store):
        await trio.sleep(100 * EVERY_S + 1)
        assert store.reads == 100
    async with steered(store):
        pass
    assert store.reads == 100  # a short run pays nothing


async def test_eight_that_ask_at_once_are_all_answered(autojump_clock: Clock) -> None:
    store, found = Inbox(), list[str]()

    async def ask(number: int) -> None:
        try:
            found.append((await steer(store, "r", new_act("pause", f"u{number}"))).text)
        except ActRefusedError as error:
            found.append(str(error))

    async with steered(store) as run:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(ask, number)
        assert is_paused(run)
    assert len(found) == 8
    assert sum(text.startswith("paused:") for text in found) == 1
    assert sum("it is paused already" in text for text in found) == 7
    assert len(await read_acts(store, "r")) == 1


async def test_who_waits_behind_too_many_others_is_told_so(autojump_clock: Clock) -> None:
    store, refusals = Inbox(), list[str]()

    async def ask(number: int) -> None:
        try:
            await steer(store, "r", new_act("status", f"u{number}"))
        except ActRefusedError as error:
            refusals.append(str(error))

    async with steered(store), trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(ask, number)
    assert refusals
    assert all("other processes ask its owner at the same time" in text for text in refusals)


@pytest.mark.parametrize("again", ["resume", "pause"])
async def test_an_act_that_is_asked_for_again_is_not_done_again(
    again: Any, autojump_clock: Clock
) -> None:
    """Its answer was lost, because another message replaced it."""
    store, act = Inbox(), new_act("pause", "ann")
    async with steered(store) as run:
        await write_message(store, "r", InboxMessage(owner_of(run), act))
        await looked()
        first = await read_message(store, "r")
        if again == "resume":
            await steer(store, "r", new_act("resume", "bob"))
        await write_message(store, "r", InboxMessage(owner_of(run), act))
        await looked()
        assert await read_message(store, "r") == first
        assert is_paused(run) == (again == "pause")
    assert len(await read_acts(store, "r")) == 1 + (again == "resume")


async def test_what_was_asked_of_a_killed_owner_is_not_done_by_the_next(
    autojump_clock: Clock,
) -> None:
    store = Inbox()
    async with steered(store) as run:
        left = InboxMessage(owner_of(run), new_act("stop", "ann"))
    async with steered(store) as run:
        await write_message(store, "r", left)
        await looked()
        assert open_run_of(run).stop.is_requested is False
        await steer(store, "r", new_act("pause", "ann"))  # it is in no one's way
        assert is_paused(run)
    assert [act.do for act in await read_acts(store, "r")] == ["pause"]


def lose_answers(store: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let answers never arrive, though what asks is done."""

    async def lose(_store: object, _run_id: str, message: InboxMessage) -> None:
        assert message.reply is not None
        await store.write_inbox("r", b"")

    monkeypatch.setattr(act_inbox, "write_message", lose)


async def test_a_stop_is_answered_though_its_run_has_ended(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    store, replies = Inbox(), list[ActReply]()
    lose_answers(store, monkeypatch)

    async def ask() -> None:
        replies.append(await steer(store, "r", new_act("stop", "ann")))

    async with trio.open_nursery() as nursery:
        with pytest.raises(RunStoppedError):
            async with steered(store) as run:
                nursery.start_soon(ask)
                while not open_run_of(run).stop.is_requested:
                    await trio.sleep(1)
    assert "done, as the history of the run says" in replies[0].text


async def test_an_act_whose_answer_never_comes_is_found_on_record(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    store = Inbox()
    lose_answers(store, monkeypatch)
    async with steered(store) as run:
        reply = await steer(store, "r", new_act("pause", "ann"))
        assert "done, as the history of the run says" in reply.text
        assert is_paused(run)
    assert len(await read_acts(store, "r")) == 1


async def test_who_asks_an_owner_that_ends_does_it_without_one(autojump_clock: Clock) -> None:
    store, replies = Inbox(), list[ActReply]()

    async def ask() -> None:
        replies.append(await steer(store, "r", new_act("pause", "ann")))

    async with trio.open_nursery() as nursery, steered(store):
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
    assert replies[0].text == "no process runs the run: the next start starts paused"
    assert len(await read_acts(store, "r")) == 1
    assert store.content == b""


async def test_an_owner_that_comes_after_a_long_wait_is_asked(autojump_clock: Clock) -> None:
    """It takes the lock right before it would have been done without one."""

    class Late(Inbox):
        reads = 0

        async def read_owner(self, run_id: str) -> Owner | None:
            self.reads += 1
            return None if self.reads == 2 else await super().read_owner(run_id)

    store, replies = Late(), list[ActReply]()

    async def ask() -> None:
        replies.append(await steer(store, "r", new_act("pause", "ann")))

    async with trio.open_nursery() as nursery:
        async with store.lock_run("r"):
            nursery.start_soon(ask)
            await trio.sleep(3 * EVERY_S)
        async with steered(store) as run:
            await looked()
            await looked()
            assert is_paused(run)
    assert replies[0].text.startswith("paused:")


async def test_an_owner_that_does_not_look_is_named(autojump_clock: Clock) -> None:
    store = Inbox()
    async with store.lock_run("r"):
        began = trio.current_time()
        with pytest.raises(ActRefusedError, match="has not looked into its inbox"):
            await steer(store, "r", new_act("pause", "ann"))
        assert trio.current_time() - began == pytest.approx(ASK_S + EVERY_S, abs=1)
        assert store.content == b""  # and it does not find the act later


async def test_who_gives_up_takes_the_act_back(autojump_clock: Clock) -> None:
    store = Inbox()
    async with steered(store) as run:
        with trio.move_on_after(EVERY_S / 2):
            await steer(store, "r", new_act("pause", "ann"))
        assert store.content == b""
        await looked()
        assert not is_paused(run)


@pytest.mark.parametrize("content", [b"garbage", b"\x00" * 1_000_000])
async def test_garbage_in_the_inbox_is_passed_over(content: bytes, autojump_clock: Clock) -> None:
    store = Inbox()
    async with steered(store) as run:
        store.content = content
        await looked()
        assert store.content == content
        await steer(store, "r", new_act("pause", "ann"))
        assert is_paused(run)


async def test_without_the_key_of_the_store_a_run_is_not_steered(autojump_clock: Clock) -> None:
    store, other = Inbox(mac_key=b"k" * 32), Inbox()
    async with steered(store) as run:
        await write_message(other, "r", InboxMessage(owner_of(run), new_act("stop", "eve")))
        store.content = other.content
        await looked()
        assert not open_run_of(run).stop.is_requested
        await steer(store, "r", new_act("pause", "ann"))
        assert is_paused(run)


@pytest.mark.parametrize("kind", [StoreError, KeyError])
async def test_a_store_that_fails_ends_neither_the_run_nor_its_looks(
    kind: type[Exception], caplog: pytest.LogCaptureFixture, autojump_clock: Clock
) -> None:
    class Failing(Inbox):
        left = 3

        async def read_inbox(self, run_id: str) -> bytes:
            if self.left > 0:
                self.left -= 1
                raise kind("the server starts")
            return await super().read_inbox(run_id)

    caplog.set_level("INFO")
    store = Failing()
    async with steered(store) as run:
        await trio.sleep(4 * EVERY_S)
        assert "the server starts" in caplog.text
        await steer(store, "r", new_act("pause", "ann"))
        assert is_paused(run)


async def test_an_act_that_fails_by_a_bug_is_answered_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, autojump_clock: Clock
) -> None:
    async def do(_steering: Steering, _act: Act) -> ActReply:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Steering, "do", do)
    store, act = Inbox(), new_act("pause", "ann")
    async with steered(store) as run:
        with pytest.raises(ActRefusedError, match=r"it failed \(a bug\); trio-ckpt history"):
            await steer(store, "r", act)
        await write_message(store, "r", InboxMessage(owner_of(run), act))
        await trio.sleep(5 * EVERY_S)
    assert [one.getMessage() for one in caplog.records] == ["run 'r': an act failed: a bug"]


async def test_acts_of_a_session_are_remembered_within_a_limit(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    monkeypatch.setattr(act_inbox, "MAX_REMEMBERED", 2)
    done: list[str] = []

    async def do(_steering: Steering, act: Act) -> ActReply:
        done.append(act.id)
        return ActReply(True, "")

    monkeypatch.setattr(Steering, "do", do)
    store = Inbox()
    async with steered(store) as run:
        for act_id in ("1", "2", "2", "1", "3", "1"):
            act = replace(new_act("pause", "ann"), id=act_id)
            await write_message(store, "r", InboxMessage(owner_of(run), act))
            await looked()
    assert done == ["1", "2", "3", "1"]


async def test_the_other_answers_are_left_for_their_readers(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    monkeypatch.setattr(ask_inbox, "LEAVE_ANSWERS_S", math.inf)
    store = Inbox()
    async with steered(store) as run:
        answer = InboxMessage(owner_of(run), act_id="of another", reply=ActReply(True, "done"))
        await write_message(store, "r", answer)
        with pytest.raises(ActRefusedError):
            await steer(store, "r", new_act("pause", "ann"))
        assert await read_message(store, "r") == answer
