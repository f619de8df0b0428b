"""What networks do: cut, half-open, reset, delay, a wrong byte, a slow link, over real sockets.

Items have states; whatever happens, results are those of a run without faults, and what was
acknowledged is not done again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from tests.hangs import HANG_S
from tests.remote import functions
from tests.remote.functions import seen, trained
from tests.remote.proxy import Proxy, open_proxy
from tests.remote.site import ALLOW, F
from tests.remote.wire.test_sockets import SECRET, serving
from trio_ckpt import remote

ITEMS = [1, 2]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    functions.reset()
    yield
    functions.reset()


@asynccontextmanager
async def working(**settings: Any) -> AsyncGenerator[tuple[Proxy, remote.Foreman]]:
    """A job under way behind a proxy; the block ends when it is done."""
    quick = {"heartbeat_s": 0.1, "silence_s": 0.6, "grace_s": HANG_S, **settings}
    async with serving(**quick) as foreman, open_proxy(foreman.port) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}"
        found: list[Any] = []

        async def map_it() -> None:
            async with remote.connect(url, secret=SECRET) as client:
                found.extend(await client.map(F + "train_slowly", ITEMS, checkpoint_interval_s=0.0))
            nursery.cancel_scope.cancel()

        with trio.fail_after(HANG_S):
            async with trio.open_nursery() as nursery:
                work = partial(remote.run_worker, url, secret=SECRET, allow=ALLOW, slots=2)
                nursery.start_soon(partial(work, handle_signals=False))
                nursery.start_soon(map_it)
                while len(seen) < 6:  # noqa: ASYNC110  # no event reports it
                    await trio.sleep(0.01)
                yield proxy, foreman
        assert found == [trained(item) for item in ITEMS]


def begun() -> list[Any]:
    return [entry for entry in seen if entry[0] == "begun"]


def ended() -> list[Any]:
    return [entry for entry in seen if entry[0] == "ended"]


@pytest.mark.parametrize("times", [1, 4])
async def test_cut(times: int) -> None:
    async with working() as (proxy, _):
        for _n in range(times):
            await proxy.cut()
            await trio.sleep(0.4)
    assert len(begun()) == len(ITEMS), "a function that could go on was begun again"


async def test_reset() -> None:
    async with working() as (proxy, _):
        for _n in range(3):
            await proxy.reset()
            await trio.sleep(0.4)
    assert len(begun()) == len(ITEMS)


async def test_half_open() -> None:
    """Nothing comes and neither side learns why: silence is noticed on both sides."""
    async with working() as (proxy, _):
        proxy.is_silent = True
        await trio.sleep(1.5)
        proxy.is_silent = False
        await proxy.cut()
    assert len(begun()) == len(ITEMS)


async def test_unreachable_for_longer_than_the_grace() -> None:
    """The foreman gives the items up.  Who comes first, here the same worker, goes on with them; a
    function whose item was given to another one is cancelled, and its last words are refused."""
    async with working(grace_s=0.2, silence_s=HANG_S) as (proxy, foreman):
        proxy.is_closed = True
        await proxy.cut()
        while foreman.live:  # noqa: ASYNC110  # no event reports it
            await trio.sleep(0.01)
        proxy.is_closed = False
    assert len(begun()) == len(ended()), "a function goes on after its job"
    assert len(begun()) <= 2 * len(ITEMS), "one loss begins an item again once"


async def test_delay() -> None:
    async with working() as (proxy, _):
        proxy.delay_s = 0.05
        await trio.sleep(1)
        proxy.delay_s = 0.0
    assert len(begun()) == len(ITEMS)


async def test_a_wrong_byte() -> None:
    """A bit is turned on the way: the connection is given up, and nothing of it is believed."""
    async with working() as (proxy, _):
        for _n in range(4):
            proxy.corrupt_next = True
            await trio.sleep(0.5)
        proxy.corrupt_next = False
        assert proxy.corrupted >= 1
    assert len(begun()) == len(ITEMS)


async def test_a_slow_link() -> None:
    """States of 400 kB over 300 kB/s: heartbeats pass between their frames, so no peer is given
    up."""
    async with working(heartbeat_s=0.3, silence_s=2.5) as (proxy, _):
        proxy.bytes_per_s = 300_000
        await trio.sleep(3)
        proxy.bytes_per_s = 0
    assert len(begun()) == len(ITEMS)


async def test_connections_that_come_back_in_another_order() -> None:
    """A new connection of a worker takes the place of an old one that was not known to be gone."""
    async with working(silence_s=3.0) as (proxy, _):
        proxy.is_silent = True
        old = set(proxy._streams)
        await trio.sleep(0.1)
        proxy.is_silent = False
        for stream in list(old)[:2]:  # one side only is told
            await trio.aclose_forcefully(stream)
            await trio.sleep(0.3)
    assert len(begun()) <= len(ITEMS) * 2
