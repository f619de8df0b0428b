"""A worker as a whole: how it begins and ends, and what it says when it cannot work."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.hangs import HANG_S
from tests.ports import keep_port, port_of
from tests.remote.site import SECRET, open_site
from trio_ckpt import remote
from trio_ckpt.remote import ConnectionLostError, NotAllowedError
from trio_ckpt.remote._client import open_client
from trio_ckpt.remote._worker.worker import Worker
from trio_ckpt.stores import MemoryStore

MISBEHAVING = "tests.remote.misbehaving"


@pytest.fixture
def free_url() -> Iterator[str]:
    """An address at which there is no foreman."""
    with keep_port() as kept:
        yield f"ws://127.0.0.1:{port_of(kept)}"


async def until_said(caplog: pytest.LogCaptureFixture, text: str) -> None:
    with trio.fail_after(HANG_S):
        while text not in caplog.text:  # noqa: ASYNC110  # a log tells no one
            await trio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_stopped_before_it_is_let_in_ends_well(
    caplog: pytest.LogCaptureFixture, number: signal.Signals, free_url: str
) -> None:
    work = partial(remote.run_worker, free_url, secret=SECRET, allow=["json"], handle_signals=True)

    async def stop() -> None:
        await until_said(caplog, "no connection to the foreman")
        os.kill(os.getpid(), number)

    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            assert await nursery.start(work) is False


async def test_a_worker_says_that_no_foreman_is_there(
    caplog: pytest.LogCaptureFixture, free_url: str
) -> None:
    """Soon, and once: it goes on trying."""
    work = partial(remote.run_worker, free_url, secret=SECRET, allow=["json"], handle_signals=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await until_said(caplog, f"{free_url} cannot be reached")
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    told = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(told) == 1


async def test_a_client_is_told_that_no_foreman_is_there(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        site.cut_off.add("client")
        began = trio.current_time()
        with pytest.raises(ConnectionLostError, match=r"within 5 s: .*; start it"):
            async with open_client(site.dial("client"), SECRET, "client"):
                pass
        assert trio.current_time() - began <= 5


@pytest.mark.parametrize("name", ["nosuchmodule", "json.nosuch", "nosuch.below.it", "sys.path"])
async def test_a_module_that_is_not_there_is_told_at_once(name: str) -> None:
    with pytest.raises(NotAllowedError, match=f"module '{name}' cannot be found"):
        await remote.run_worker("ws://127.0.0.1:1", secret=SECRET, allow=["json", name])


async def test_a_parent_that_raises_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raising_parent").mkdir()
    (tmp_path / "raising_parent" / "__init__.py").write_text("raise ValueError('no config')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotAllowedError, match="no config"):
        await remote.run_worker("ws://127.0.0.1:1", secret=SECRET, allow=["raising_parent.tasks"])


async def test_an_interrupt_of_a_person_ends_a_worker(autojump_clock: MockClock) -> None:
    """Where Ctrl-C raises KeyboardInterrupt it is no failure of the function that it meets."""
    worker = Worker(SECRET, (MISBEHAVING,), 1, "a", 600.0, may_be_interrupted=True)
    async with open_site(MemoryStore()) as site, site.client() as client:
        await client.submit(f"{MISBEHAVING}:misbehave_async", ["KeyboardInterrupt"])
        with pytest.raises(KeyboardInterrupt):
            await worker.run(site.dial("a"))
