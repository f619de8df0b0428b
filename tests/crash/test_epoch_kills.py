"""A training killed five times in each epoch sees each sample once an epoch, whatever fetches."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.crash.epochs import EPOCHS, PLACES, STOP, WORKER_LOST, Session
from tests.fork_server import ForkServer

KILLS = 5  # in each epoch of 31 batches, each of them after a few
LONGEST_S = 0.004  # from the beginning of a save to the kill: about as long as the save takes

Ended = tuple[str, list[int]]


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer("tests.crash.epochs") as started:
        yield started


def finish(server: ForkServer, session: Session) -> Ended:
    """Let a session end; returns the digest of its weights, and how often samples were seen."""
    told = server.ask(attrs.asdict(session))
    assert told.code == 0
    ((digest, seen),) = told.words("ended")
    return digest, seen


def train_killed(
    server: ForkServer, root: Path, workers: int, ranks: list[int], seed: int, **how: Any
) -> Ended:
    """Kill five sessions in each epoch, each at a place of its own; the last one ends."""
    chance, number = random.Random(seed), 0
    places = ("fetch",) if how.get("dies") == "worker" else PLACES
    code = WORKER_LOST if how.get("dies") == "worker" else -signal.SIGKILL
    for epoch in range(EPOCHS):
        for _ in range(KILLS):
            place, now = chance.choice(places), ranks[number % len(ranks)]
            count = chance.randint(1, 2) * (now if place == "fetch" else 1)
            delay_s = chance.choice([0.0, chance.uniform(1e-4, LONGEST_S)]) * (place == "save")
            session = Session(str(root), workers, now, epoch, place, count, delay_s, **how)
            assert server.ask(attrs.asdict(session)).code == code, session
            number += 1
    return finish(server, Session(str(root), workers, ranks[number % len(ranks)], **how))


@pytest.mark.parametrize(("workers", "ranks"), [(0, 1), (2, 1), (4, 1), (2, 3)])
def test_kills_in_each_epoch_change_no_weight(
    server: ForkServer, tmp_path: Path, workers: int, ranks: int
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    expected = finish(server, Session(str(whole), 0, ranks))
    assert expected[1] == [1]
    assert train_killed(server, killed, workers, [ranks], seed=workers + ranks) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_another_number_of_ranks_in_each_session_repeats_no_sample(
    server: ForkServer, tmp_path: Path, workers: int
) -> None:
    _, seen = train_killed(server, tmp_path, workers, [1, 2, 3], seed=workers)
    assert seen == [1]


@pytest.mark.parametrize(
    ("dies", "workers", "ranks"),
    [("all", 2, 1), ("all", 4, 1), ("all", 2, 3), ("owner", 4, 1), ("worker", 2, 1)],
)
def test_kills_of_worker_processes_change_no_weight(
    server: ForkServer, tmp_path: Path, dies: str, workers: int, ranks: int
) -> None:
    """With the owner of the run, before it, or not at all: then they live beside the next one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    expected = finish(server, Session(str(whole), 0, ranks))
    try:
        found = train_killed(
            server, killed, workers, [ranks], seed=workers + ranks, dies=dies, has_processes=True
        )
    finally:
        (killed / STOP).touch()
    assert found == expected
