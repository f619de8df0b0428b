"""The demonstration waits for a slow machine, not for a crawler that stands still."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from examples.crawl_demo import STALLED_AFTER_S, CountingProxy, free_port, run_crawler


async def test_a_crawl_may_take_as_long_as_pages_come(autojump_clock: MockClock) -> None:
    proxy, begun = CountingProxy(0), trio.current_time()

    async def answer() -> None:
        for page in range(5):
            await trio.sleep(STALLED_AFTER_S - 1)
            proxy.count(f"/{page}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        with pytest.raises(trio.TooSlowError):
            await proxy.fail_when_stalled()
    assert proxy.answered.total() == 5
    assert trio.current_time() - begun == pytest.approx(6 * STALLED_AFTER_S - 5)


async def test_the_crawler_ends_with_a_demonstration_that_fails(tmp_path: Path) -> None:
    """Else it would go on in a folder that is removed."""
    started: trio.Process | None = None
    with pytest.raises(KeyError):
        async with run_crawler(f"http://127.0.0.1:{free_port()}/", tmp_path / "out") as started:
            raise KeyError
    assert started is not None
    assert started.returncode == -signal.SIGKILL
