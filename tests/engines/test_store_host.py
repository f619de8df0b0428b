"""The thread with the open stores of a process that runs items."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.hangs import HANG_S
from trio_ckpt.engines._store_host import close_host, open_in_host
from trio_ckpt.stores import open_store


async def test_a_host_that_has_ended_is_replaced(tmp_path: Path) -> None:
    """Else all items of the process would fail from then on."""
    store = await open_store(tmp_path / "s")
    await store.aclose()
    async with open_in_host(store.address, "full") as (ended, _):
        pass
    ended.stop()  # as an error in its trio run ends it
    with trio.fail_after(HANG_S):
        while not ended.has_ended:  # noqa: ASYNC110  # another thread sets it
            await trio.sleep(0.001)
    async with open_in_host(store.address, "full") as (host, opened):
        assert host is not ended
        assert await host.call(opened.list_runs) == ()
    await close_host()
