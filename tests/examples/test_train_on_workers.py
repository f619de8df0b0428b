"""The networks that are trained on workers: the same weights, whether workers are killed or not."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from examples import train_on_workers
from tests.hangs import PROGRAM_S

ROOT = Path(__file__).parents[2]


def options(out: Path) -> argparse.Namespace:
    return argparse.Namespace(
        out=out, networks=2, epochs=12, seed=7, workers=2, foreman=None, secret_file=None
    )


def workers_of(pid: int) -> list[int]:
    """The processes that a program has started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def test_killed_workers_change_no_weight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trio.run(train_on_workers.main, options(tmp_path / "whole")) == 0
    whole = capsys.readouterr().out
    assert len(re.findall(r"digest \w{16}$", whole, re.MULTILINE)) == 2
    command = [sys.executable, "-m", "examples.train_on_workers", "--networks", "2"]
    command += ["--epochs", "12", "--out", str(tmp_path / "killed")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as program:
        killed, deadline = 0, time.monotonic() + PROGRAM_S
        while program.poll() is None and time.monotonic() < deadline:
            time.sleep(1.2)
            for worker in workers_of(program.pid)[:1] if killed < 2 else []:
                os.kill(worker, signal.SIGKILL)
                killed += 1
        output, _ = program.communicate(timeout=PROGRAM_S)
    assert program.returncode == 0
    assert killed > 0
    assert output == whole
