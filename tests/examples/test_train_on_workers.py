"""The networks that are trained on workers: the same weights, whether workers are killed or not."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import trio

from examples import train_on_workers
from tests.hangs import PROGRAM_S
from tests.leash import is_stopped, leashed

ROOT = Path(__file__).parents[2]
NETWORKS, WORKERS = 3, 2


def options(out: Path) -> argparse.Namespace:
    return argparse.Namespace(
        out=out,
        networks=NETWORKS,
        epochs=12,
        seed=7,
        workers=WORKERS,
        foreman=None,
        secret_file=None,
    )


def workers_of(pid: int) -> list[int]:
    """The processes that a program, which is stopped, has started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def test_killed_workers_change_no_weight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trio.run(train_on_workers.main, options(tmp_path / "whole")) == 0
    whole = capsys.readouterr().out
    assert len(re.findall(r"digest \w{16}$", whole, re.MULTILINE)) == NETWORKS
    command = ["-m", "examples.train_on_workers", "--networks", str(NETWORKS)]
    command += ["--epochs", "12", "--out", str(tmp_path / "killed")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        leashed(NETWORKS, *command),
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as program:
        # It stops itself when a worker is done with a network, and is to get the last one.
        deadline = time.monotonic() + PROGRAM_S
        while not is_stopped(program.pid):
            assert program.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        killed = workers_of(program.pid)
        for worker in killed:
            os.kill(worker, signal.SIGKILL)
        program.send_signal(signal.SIGCONT)
        output, _ = program.communicate(timeout=PROGRAM_S)
    assert program.returncode == 0
    assert len(killed) == WORKERS
    assert output == whole
