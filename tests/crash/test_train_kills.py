"""A training killed from outside, again and again: the same weights, the same curve.

Each process is killed only after its store has saved something new, so each has done work, and
each leaves a mark of its own in the plot.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import trio

import trio_ckpt
from examples.train import resume_points
from tests.examples.test_train import marks
from tests.hangs import PROGRAM_S
from tests.leash import leashed
from trio_ckpt import StoreError
from trio_ckpt.stores import open_store

ROOT = Path(__file__).parents[2]
KILLS = 5
EPOCHS = 150
LONGEST_S = 0.03  # from a save to the kill: more than an epoch takes, so it hits any moment of one
MOST_MORE = 12  # epochs that a process begins after that: then it waits for the kill


def start(out: Path, most_epochs: int | None = None) -> subprocess.Popen[str]:
    """Start a training; with `most_epochs` it stops itself when it begins so many."""
    program = ["-m", "examples.train", "--out", str(out), "--epochs", str(EPOCHS)]
    return subprocess.Popen(
        [sys.executable, *program] if most_epochs is None else leashed(most_epochs, *program),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Let a process end by itself; returns the digest that it prints."""
    said, _ = process.communicate(timeout=PROGRAM_S)
    assert process.returncode == 0
    return str(re.findall(r"^digest (\w{64})$", said, re.MULTILINE)[0])


async def read_epochs(out: Path) -> int:
    """How many epochs the store has, as another process finds it."""
    try:
        store = await open_store(out / "train.ckpt")
    except StoreError:  # it is being made
        return 0
    try:
        view = await store.load_run("digits")
    finally:
        await store.aclose()
    if view is None or ("train",) not in view.streams:
        return 0
    return len(view.streams["train",].progress.confirmed)


def wait_for(process: subprocess.Popen[str], out: Path, epochs: int) -> None:
    """Wait until so many epochs are saved."""
    deadline = time.monotonic() + PROGRAM_S
    while not (out / "train.ckpt").exists() or trio.run(read_epochs, out) < epochs:
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"{epochs} epochs were not saved before the end, or in {PROGRAM_S} s")
        time.sleep(0.005)


def kill_one(out: Path, chance: random.Random) -> None:
    """Start a process, and kill it at some moment after it has saved a few epochs."""
    before = trio.run(read_epochs, out) if (out / "train.ckpt").exists() else 0
    more = chance.randint(4, 8)
    process = start(out, more + MOST_MORE)
    try:
        wait_for(process, out, before + more)
        time.sleep(chance.random() * LONGEST_S)
        assert process.poll() is None, "it ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert trio.run(read_epochs, out) > before


async def kinds_saved(out: Path) -> set[str]:
    store = await open_store(out / "train.ckpt")
    history = trio_ckpt.read_history(store, "digits", ("train",))
    kinds = {checkpoint.kind async for checkpoint in history}
    await store.aclose()
    return kinds


def test_sigkill_at_random_moments_changes_no_weight_and_no_loss(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = finish(start(whole))
    chance = random.Random(3)
    for _ in range(KILLS):
        kill_one(killed, chance)
    assert finish(start(killed)) == expected

    with np.load(whole / "weights.npz") as one, np.load(killed / "weights.npz") as other:
        assert {name: one[name].tobytes() for name in one} == {
            name: other[name].tobytes() for name in other
        }
    assert {"batch", "snapshot"} <= trio.run(kinds_saved, killed)
    points = trio.run(resume_points, killed / "train.ckpt", "digits")
    assert len(points) == KILLS
    assert points == sorted(set(points)), "each session has saved an epoch of its own"
    assert (killed / "loss.png").stat().st_size > 10_000
    assert marks(killed / "loss.png") == KILLS
    assert marks(whole / "loss.png") == 0
