"""A program that defers batches is killed again and again: none is lost, twice, or early."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.hangs import PROGRAM_S

KILLS = 15
COUNT = 60
PROGRAM = """
import os, sys, time, trio, trio_ckpt
from datetime import UTC, datetime, timedelta

COUNT = 60
LOG = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def say(*words):
    os.write(LOG, (" ".join(map(str, words)) + "\\n").encode())

async def main():
    async with trio_ckpt.open_run("r", store="store.ckpt", wait_for_deferred_s=0) as run:
        async with run.open_stream("s") as stream:
            async def work(batch):
                say("began", batch.index, time.time())
                await trio.sleep(0.005)
                if batch.index % 4 == 0 and batch.index not in stream.progress.deferred:
                    until = datetime.now(UTC) + timedelta(seconds=1.5)
                    batch.defer(until=until)
                    await batch.confirm()
                    say("deferred", batch.index, until.timestamp())
                else:
                    batch.complete()
                    await batch.confirm()
                    say("confirmed", batch.index)
            await trio_ckpt.run_batches(stream, range(COUNT), work, concurrency=3)

try:
    trio.run(main)
except trio_ckpt.RunStoppedError as stopped:
    say("stopped", stopped.next_due.timestamp())
    sys.exit(stopped.exit_code)
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=folder, stderr=subprocess.DEVNULL)


def lines(folder: Path) -> list[list[str]]:
    log = folder / "log"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def test_no_kill_loses_doubles_or_hurries_a_deferred_batch(tmp_path: Path) -> None:
    chance = random.Random(6)
    for _ in range(KILLS):
        before = len(lines(tmp_path))
        with start(tmp_path) as process:
            deadline = time.monotonic() + PROGRAM_S
            while len(lines(tmp_path)) < before + 4 and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.02))
            process.kill()
            process.wait(PROGRAM_S)
        assert process.returncode in (-signal.SIGKILL, 0, 75)
    codes = list[int]()
    while not codes or codes[-1] == 75:
        with start(tmp_path) as process:
            codes.append(process.wait(PROGRAM_S))
        time.sleep(0.2)
    assert codes[-1] == 0
    due, confirmed = dict[str, float](), set[str]()
    for what, *values in lines(tmp_path):
        if what == "deferred":
            due[values[0]] = float(values[1])
        elif what == "confirmed":
            assert values[0] not in confirmed
            confirmed.add(values[0])
        elif what == "began":
            index, at = values
            assert index not in confirmed
            assert float(at) >= due.get(index, 0.0) - 0.001  # the file's own clock
    assert due
    assert len(confirmed) >= COUNT - KILLS * 3  # those whose word was cut off by a kill
