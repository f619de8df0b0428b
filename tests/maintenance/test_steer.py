"""Acts on a run that no process runs, and on one whose process cannot be reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.opening import begin
from trio_ckpt import Limits, UnknownRunError
from trio_ckpt._journal.acts import ActRefusedError, new_act, read_acts
from trio_ckpt._maintenance import steer as steer_module
from trio_ckpt._maintenance.steer import OFFLINE, steer
from trio_ckpt._util.index_set import IndexSet
from trio_ckpt.stores import MemoryStore, open_store

Clock = trio.testing.MockClock


async def asked(store: Any, do: Any, **more: Any) -> str:
    return (await steer(store, "r", new_act(do, "ann", **more))).text


async def refused(store: Any, do: Any, **more: Any) -> str:
    with pytest.raises(ActRefusedError) as caught:
        await asked(store, do, **more)
    return str(caught.value)


@pytest.fixture
async def store() -> MemoryStore:
    """A store with a run that has had a session."""
    made = MemoryStore()
    async with begin(made) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):
            batch.complete()
    return made


async def test_a_run_can_be_paused_without_a_process(store: MemoryStore) -> None:
    assert await asked(store, "pause", why="now") == f"{OFFLINE}: the next start starts paused"
    assert "is paused already, since 2" in await refused(store, "pause")
    with trio.move_on_after(0.01):
        async with begin(store) as run, run.open_stream("t") as stream:
            async for _ in stream.batches(range(2)):
                raise AssertionError("a batch is handed out")
    assert await asked(store, "resume") == f"{OFFLINE}: the next start hands out batches again"
    assert "is not paused" in await refused(store, "resume")
    async with begin(store) as run, run.open_stream("t") as stream:
        async for batch in stream.batches(range(2)):
            batch.complete()
    acts = await read_acts(store, "r")
    assert [(act.do, act.user, act.why) for act in acts] == [
        ("pause", "ann", "now"),
        ("resume", "ann", ""),
    ]
    assert acts[0].at <= acts[1].at


async def test_batches_are_changed_without_a_process(store: MemoryStore) -> None:
    about: dict[str, Any] = {"stream": ("s",), "indexes": IndexSet([0])}
    assert "batch 0 is done already" in await refused(store, "skip", **about)
    assert await asked(store, "requeue", **about) == (
        f"{OFFLINE}: batch 0 is re-queued, for the next start"
    )
    assert "neither confirmed nor skipped" in await refused(store, "requeue", **about)
    assert await asked(store, "skip", why="bad", **about) == (
        f"{OFFLINE}: batch 0 is skipped, for the next start"
    )
    assert "no stream 'q'" in await refused(store, "skip", stream=("q",), indexes=IndexSet([0]))
    assert [(act.do, act.why) for act in await read_acts(store, "r")] == [
        ("requeue", ""),
        ("skip", "bad"),
    ]
    async with begin(store) as run, run.open_stream("s") as stream:
        async for _ in stream.batches(range(2)):
            raise AssertionError("a batch is handed out")
        assert run.exit_code == 3


async def test_what_needs_a_process_is_refused_without_one(store: MemoryStore) -> None:
    assert await refused(store, "stop") == f"{OFFLINE}, and stop needs one"
    assert await read_acts(store, "r") == []


async def test_the_status_of_a_run_is_read_without_a_process(store: MemoryStore) -> None:
    await asked(store, "pause")
    reply = await steer(store, "r", new_act("status", "ann"))
    assert reply.text == OFFLINE
    assert reply.status["session"] == 1
    assert reply.status["paused"]["user"] == "ann"


async def test_a_run_without_a_session_cannot_be_paused() -> None:
    store = MemoryStore()
    with pytest.raises(UnknownRunError):
        await asked(store, "pause")
    async with store.lock_run("r"):
        pass
    assert await refused(store, "pause") == "run 'r' has had no session"


async def test_a_running_run_in_a_store_without_an_inbox_is_refused(store: MemoryStore) -> None:
    async with begin(store):
        refusal = await refused(store, "pause")
    assert "has neither a folder, beside which a socket could be, nor an inbox" in refusal
    assert await read_acts(store, "r") == []


async def test_an_owner_without_a_socket_is_waited_for_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steer_module, "FIND_S", 0.01)
    async with begin(tmp_path):
        pass
    store = await open_store(tmp_path)
    async with store.lock_run("r"):  # as a command takes it
        assert "no process listens at its socket" in await refused(store, "pause")
    assert await asked(store, "pause") == f"{OFFLINE}: the next start starts paused"
    await store.aclose()


async def test_the_limits_of_a_session_that_has_ended_are_not_shown() -> None:
    store = MemoryStore()
    async with begin(store, limits=Limits(spent={"usd": 1})):
        pass
    reply = await steer(store, "r", new_act("status", "ann"))
    assert (reply.text, reply.status["limits"]) == (OFFLINE, {})
