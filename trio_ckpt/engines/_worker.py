"""The process of one worker of `map_tasks`; it ends with its standard input."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Any

import msgspec
import trio

from .._util.patience import sleep_awake
from ..remote import run_worker

GIVE_UP_S = 0.5  # the process does not wait longer for functions in threads


def main() -> None:
    """Read the settings from standard input, and work until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent gets it, too
    logging.basicConfig(level=logging.ERROR)
    told: dict[str, Any] = msgspec.json.decode(sys.stdin.buffer.readline())
    sys.path[:] = told["path"]
    trio.run(_work, told)
    os._exit(0)  # a normal exit would wait for functions in threads


async def _work(told: dict[str, Any]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_with_input, nursery.cancel_scope)
        await run_worker(
            told["url"],
            secret=told["secret"],
            allow=told["allow"],
            slots=told["slots"],
            handle_signals=False,
        )


async def _end_with_input(scope: trio.CancelScope) -> None:
    """Wait for the end of standard input: the parent has closed it, or is gone."""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream:
        while await stream.receive_some(1):
            pass
    scope.cancel()
    await sleep_awake(GIVE_UP_S)


if __name__ == "__main__":
    main()
