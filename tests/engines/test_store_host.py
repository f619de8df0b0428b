"""The thread with the open stores of a process that runs items."""

from __future__ import annotations

import errno
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
import trio

from tests.hangs import HANG_S
from trio_ckpt import StoreError
from trio_ckpt.abc import Store
from trio_ckpt.engines import _store_host
from trio_ckpt.engines._store_host import StoreHost, close_host, open_in_host
from trio_ckpt.stores import open_store


async def test_a_host_that_has_ended_is_replaced(tmp_path: Path) -> None:
    """Else all items of the process would fail from then on."""
    store = await open_store(tmp_path / "s")
    await store.aclose()
    async with open_in_host(store.address, "full") as (ended, _):
        pass
    await end(ended)
    with pytest.raises(StoreError, match="the thread for stores has ended"):
        await ended.call(trio.lowlevel.checkpoint)
    async with open_in_host(store.address, "full") as (host, opened):
        assert host is not ended
        assert await host.call(opened.list_runs) == ()
    await close_host()


async def end(host: StoreHost) -> None:
    """End a host as an error in its trio run does, and wait until that is over."""
    host.stop()
    with trio.fail_after(HANG_S), suppress(trio.RunFinishedError):
        while True:
            host.soon(int)
            await trio.sleep(0.001)


async def test_a_host_that_ends_by_an_error_closes_its_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that an item uses, whose calls fail: none waits for ever."""
    closed: list[Store] = []
    close = _store_host._close

    async def note(store: Store) -> None:
        await close(store)
        closed.append(store)

    monkeypatch.setattr(_store_host, "_close", note)
    is_called = threading.Event()

    async def wait() -> None:
        is_called.set()
        await trio.sleep_forever()

    stores = [await open_store(tmp_path / name) for name in ("used", "idle")]
    for store in stores:
        await store.aclose()
    async with open_in_host(stores[1].address, "full") as (host, idle):
        pass
    used = await host.call(host.use, (stores[0].address, "full"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_call_of_ended, host, wait)
        assert await trio.to_thread.run_sync(is_called.wait, HANG_S)
        await end(host)
    assert set(closed) == {idle, used}
    await close_host()


async def _call_of_ended(host: StoreHost, func: Callable[[], Awaitable[None]]) -> None:
    with trio.fail_after(HANG_S), pytest.raises(StoreError, match="has ended"):
        await host.call(func)


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
