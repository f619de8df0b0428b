"""The collector with `--partitions`: several processes on one store collect each record once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from examples._api.records import BLOCKS, characters_of, decompositions_of
from examples.collector import parse_options
from tests.examples.collecting import Direct, api, collect, lines, pages
from tests.hangs import PROGRAM_S
from trio_ckpt import RunStoppedError, partition_of

ROOT = Path(__file__).parents[2]
PARTITIONS = 4
WORDS = ("--partitions", str(PARTITIONS))


def folder_of(out: Path, repo: str) -> Path:
    """Where the partition of a repository has its files."""
    return out / f"collector.{partition_of(repo, PARTITIONS):05d}"


def check_all(out: Path) -> None:
    for repo in BLOCKS:
        assert lines(folder_of(out, repo), repo) == characters_of(repo)
        assert pages(folder_of(out, repo), repo) == decompositions_of(repo)


async def test_two_claimers_collect_every_record_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    codes: list[int] = []
    clients = [Direct(api(blocks=tuple(BLOCKS))) for _ in range(2)]

    async def claimer(client: Direct) -> None:
        codes.append(await collect(client, tmp_path, *WORDS))

    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(claimer, client)
    assert codes == [0, 0]
    check_all(tmp_path)
    asked = [target for client in clients for target in client.order("/blocks/kana/")]
    assert sorted(asked) == sorted(set(asked))


async def test_what_failed_for_good_shows_in_the_exit_code(
    tmp_path: Path, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Direct(api("403 /blocks/kana/hiragana/characters?page=1"))
    assert await collect(client, tmp_path, *WORDS) == 69
    assert "1 failed for good, such as 'collector.0000" in capsys.readouterr().err
    assert await collect(Direct(api()), tmp_path, *WORDS, "--retry-failed") == 0
    check = folder_of(tmp_path, "kana/hiragana")
    assert lines(check, "kana/hiragana") == characters_of("kana/hiragana")


async def test_limits_hold_for_partitions(tmp_path: Path, autojump_clock: MockClock) -> None:
    with pytest.raises(RunStoppedError, match="limit batches: 1 of 1 batches are done"):
        await collect(Direct(api()), tmp_path, *WORDS, "--max-batches", "1")
    assert await collect(Direct(api()), tmp_path, *WORDS) == 0


def test_fresh_and_partitions_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--out", "x", "--partitions", "2", "--fresh"])
    assert "--fresh is for a run without --partitions" in capsys.readouterr().err


def test_processes_that_are_killed_share_the_collection(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.collector", "--out", str(tmp_path), *WORDS]
    command += ["--store", f"sqlite:{tmp_path / 'store'}", "--per-page", "2"]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)

    processes = [start() for _ in range(3)]
    deadline = time.monotonic() + PROGRAM_S
    while not list(tmp_path.glob("collector.*/characters/*/*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes[0].send_signal(signal.SIGKILL)
    processes.append(start())
    codes = [process.wait(PROGRAM_S) for process in processes]
    assert codes[0] in (-signal.SIGKILL, 0)
    assert codes[1:] == [0, 0, 0]
    for repo in BLOCKS:
        assert lines(folder_of(tmp_path, repo), repo) == characters_of(repo)
