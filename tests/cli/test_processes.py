"""Another process has the run: the command names it, and after kill -9 nothing is to be done."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

import trio_ckpt
from tests.cli.tools import Terminal

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys, trio, trio_ckpt

async def main():
    async with (
        trio_ckpt.open_run("run", store=sys.argv[1], handle_signals=False) as run,
        run.open_stream("pages") as stream,
    ):
        async for page in stream.batches(range(10)):
            if page.index == 3:
                print("three pages are durable", flush=True)
                await trio.sleep_forever()
            page.complete(records=1)

trio.run(main)
"""


@contextmanager
def working(url: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the run and three pages of it; it is killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "three pages are durable\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("scheme", ["sqlite", "json"])
def test_a_running_owner_is_named_and_after_kill_nothing_is_to_do(
    run: Terminal, store: Path, scheme: str
) -> None:
    url = f"{scheme}:{store}"
    with working(url) as process:
        owner = run("show", url, "--json").json["owner"]
        assert (owner["host"], owner["pid"]) == (socket.gethostname(), process.pid)
        assert f"Process {process.pid} on {owner['host']} has it open since" in (
            run("explain", url).out
        )
        refused = run("reset", url, "run", "--yes")
        assert refused.code == 5
        assert refused.err == (
            f"trio-ckpt: run 'run' is owned by process {process.pid} on {owner['host']} since "
            f"{owner['since']}; wait for it to end or stop it: the lock goes with its process\n"
        )
    said = run("explain", url).out
    assert "was killed: it left no word of its end. Nothing is to be done first" in said
    assert "goes on at batch 3, because all 3 before it are confirmed" in said
    assert run("watch", url).code == 75

    async def go_on() -> list[int]:
        done: list[int] = []
        async with (
            trio_ckpt.open_run("run", store=url, handle_signals=False) as opened,
            opened.open_stream("pages") as stream,
        ):
            async for page in stream.batches(range(10)):
                done.append(page.index)
                page.complete(records=1)
        return done

    assert trio.run(go_on) == [3, 4, 5, 6, 7, 8, 9]
    assert run("watch", url).code == 0
