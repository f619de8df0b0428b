"""The thread with the open stores of a process that runs items."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest.mock import Mock

import pytest
import trio

from tests.hangs import HANG_S
from trio_ckpt.engines._store_host import StoreHost, close_host, open_in_host
from trio_ckpt.stores import open_store


async def test_a_host_that_has_ended_is_replaced(tmp_path: Path) -> None:
    """Else all items of the process would fail from then on."""
    store = await open_store(tmp_path / "s")
    await store.aclose()
    async with open_in_host(store.address, "full") as (ended, _):
        pass
    await ended.call(ended.close, 0)
    ended.stop()  # as an error in its trio run ends it
    with trio.fail_after(HANG_S):
        while not ended.has_ended:  # noqa: ASYNC110  # another thread sets it
            await trio.sleep(0.001)
    async with open_in_host(store.address, "full") as (host, opened):
        assert host is not ended
        assert await host.call(opened.list_runs) == ()
    await close_host()


async def test_a_caller_that_cannot_be_reached_ends_no_host(tmp_path: Path) -> None:
    """An engine may interrupt the run of an item while it ends, when nothing can wake it."""
    store = await open_store(tmp_path / "s")
    await store.aclose()
    closed = Mock()
    closed.run_sync_soon.side_effect = OSError(errno.EBADF, "Bad file descriptor")
    with trio.fail_after(HANG_S):
        async with open_in_host(store.address, "full") as (host, opened):
            await _call_unreachable(host, closed)
            assert await host.call(opened.list_runs) == ()
            assert not host.has_ended
        await close_host()


async def _call_unreachable(host: StoreHost, closed: Mock) -> None:
    """Call a function, and give up the call while it is under way."""
    is_called = trio.Event()
    token = trio.lowlevel.current_trio_token()

    async def func() -> None:
        token.run_sync_soon(is_called.set)

    with pytest.MonkeyPatch.context() as patch, trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            patch.setattr(trio.lowlevel, "current_trio_token", lambda: closed)
            nursery.start_soon(host.call, func)
            await is_called.wait()
            scope.cancel()
