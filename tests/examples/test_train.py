"""The training of a network, killed or not: the same weights and the same curve, bit for bit."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from examples import train
from tests.examples.running import run_example

ROOT = Path(__file__).parents[2]
EPOCHS = 6
STEPS = 57  # of an epoch: 1,797 digits, 32 at once
ORANGE = np.array([255, 127, 14]) / 255  # tab:orange, the colour of the marks


def options(out: Path, **changed: int) -> argparse.Namespace:
    return argparse.Namespace(out=out, **{"epochs": EPOCHS, "hidden": 64, "seed": 7, **changed})


async def run_train(out: Path, capsys: pytest.CaptureFixture[str], **changed: int) -> str:
    """One session; returns the digest that it prints."""
    assert await train.main(options(out, **changed)) == 0
    return str(re.findall(r"^digest (\w{64})$", capsys.readouterr().out, re.MULTILINE)[0])


def die_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[tuple[int, int]]:
    """Let a session die at a step of all; returns where each step of the next ones began."""
    begun: list[tuple[int, int]] = []
    take_step = train.take_step

    def take(state: train.TrainState, *data: Any) -> None:
        begun.append((state.steps, state.order.position // train.BATCH_SIZE))
        if state.steps == step:
            monkeypatch.setattr(train, "take_step", take_step)
            raise KeyboardInterrupt
        take_step(state, *data)

    monkeypatch.setattr(train, "take_step", take)
    return begun


def marks(path: Path) -> int:
    """How many resume marks a plot shows: runs of columns that are orange far down.

    The legend is in the upper half, so the lower one has nothing else in that colour.
    """
    image = imread(path)[:, :, :3]
    lower = image[image.shape[0] // 2 :]
    columns = (np.abs(lower - ORANGE).max(axis=2) < 0.2).sum(axis=0) > 20
    return int((columns & ~np.roll(columns, 1)).sum())


async def test_it_learns_and_leaves_weights_and_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await train.main(options(tmp_path)) == 0
    said = capsys.readouterr().out
    assert f"{EPOCHS} epochs" in said
    share = float(re.findall(r"([\d.]+)% of digits right", said)[0])
    assert share > 95
    with np.load(tmp_path / "weights.npz") as weights:
        assert weights["hidden.weight"].shape == (64, 64)
        assert weights["output.bias"].shape == (10,)
    assert marks(tmp_path / "loss.png") == 0


@pytest.mark.parametrize("step", [0, 1, STEPS - 1, STEPS, STEPS + 1, 3 * STEPS + 20])
async def test_a_session_that_dies_at_any_step_changes_nothing(
    step: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await run_train(tmp_path / "whole", capsys)
    die_at(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        await train.main(options(tmp_path / "killed"))
    assert await run_train(tmp_path / "killed", capsys) == expected
    files = [(tmp_path / name / "weights.npz").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]
    assert marks(tmp_path / "killed" / "loss.png") == 1


async def test_an_epoch_goes_on_where_its_newest_snapshot_was_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    died_at = 2 * STEPS + 40
    die_at(monkeypatch, died_at)
    with pytest.raises(KeyboardInterrupt):
        await train.main(options(tmp_path))
    begun = die_at(monkeypatch, -1)
    await run_train(tmp_path, capsys)
    steps, step = begun[0]
    assert 2 * STEPS < steps <= died_at
    assert 0 < step == steps - 2 * STEPS


async def test_more_epochs_go_on_from_those_that_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`epochs` is tunable: the run that was complete is taken up again."""
    await run_train(tmp_path / "a", capsys, epochs=3)
    grown = await run_train(tmp_path / "a", capsys)
    assert grown == await run_train(tmp_path / "b", capsys)
    assert marks(tmp_path / "a" / "loss.png") == 1


async def test_a_session_that_has_nothing_left_to_do_leaves_no_mark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        await run_train(tmp_path, capsys, epochs=3)
    assert marks(tmp_path / "loss.png") == 0


def test_the_command_trains_and_a_second_start_has_nothing_left_to_do(tmp_path: Path) -> None:
    words = ("--out", str(tmp_path), "--epochs", "2")
    first = run_example("train", *words)
    assert first.returncode == 0, first.stderr
    assert re.search(r"^digest \w{64}$", first.stdout, re.MULTILINE)
    second = run_example("train", *words)
    assert (second.returncode, second.stdout) == (0, first.stdout), second.stderr


def test_another_network_is_refused_by_the_field_that_changed(tmp_path: Path) -> None:
    words = ("--out", str(tmp_path), "--epochs", "1")
    assert run_example("train", *words).returncode == 0
    refused = run_example("train", *words, "--hidden", "8")
    assert refused.returncode != 0
    assert "hidden" in refused.stderr
