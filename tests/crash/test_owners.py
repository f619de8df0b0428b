"""A few owners that fight or sleep; many by hand: ``python -m tests.crash --sweep owners``."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import attrs
import pytest

from tests.crash.far_owners import problems_of_saves, wake_far_zombies
from tests.crash.forks import Zygote
from tests.crash.owners import (
    BATCHES,
    IN_SUITE,
    KINDS,
    MAY_REPLACE,
    OF_LINES,
    SweepError,
    Twins,
    Zombie,
    schedule,
)
from tests.crash.steady import OWNERS_FLAW, POINTS, ROOT, RUN
from trio_ckpt.cli._exits import EXIT_OWNED

SEED = 1
CAUGHT_WITHIN = 20  # schedules; most show it


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as made:
        yield made


@pytest.mark.parametrize("number", range(IN_SUITE))
@pytest.mark.parametrize("kind", KINDS)
def test_of_twins_one_has_the_run_and_each_batch_is_confirmed_once(
    kind: str, number: int, zygote: Zygote
) -> None:
    figures: Counter[str] = Counter()
    with schedule(f"{kind} {SEED} {number}", kind) as (place, chance):
        Twins(place, zygote, chance, figures).run()
    assert figures["starts"] >= 1


@pytest.mark.parametrize("appends", [False, True])
@pytest.mark.parametrize("point", [*POINTS, ""])
@pytest.mark.parametrize("kind", KINDS)
def test_an_owner_waking_after_a_takeover_saves_and_damages_nothing(
    kind: str, point: str, appends: bool, zygote: Zygote
) -> None:
    """And before it is taken over: who is stopped owns the run as one who works does."""
    if point in OF_LINES and not appends:
        return
    figures: Counter[str] = Counter()
    with schedule(f"{kind} {SEED} {point}", kind) as (place, chance):
        Zombie(place, zygote, chance, figures, point, appends).run()
    assert figures["refused"] == figures["woken"] == 1
    replaced = figures["replaced an output, which was noticed and done again"]
    assert replaced <= (point in MAY_REPLACE)


def test_who_changes_files_without_asking_who_owns_the_run_is_caught(zygote: Zygote) -> None:
    """A sweep that finds nothing in that would find nothing anywhere."""

    def run() -> None:
        for number in range(CAUGHT_WITHIN):
            with schedule(f"flaw {SEED} {number}", "sqlite") as (place, chance):
                Zombie(place, zygote, chance, Counter(), "append", flaw=OWNERS_FLAW).run()

    with pytest.raises(SweepError, match=r"line \d+ is not what was confirmed"):
        run()


@pytest.mark.parametrize("kind", KINDS)
def test_commands_that_change_a_run_are_refused_for_a_stopped_owner(
    kind: str, zygote: Zygote
) -> None:
    with schedule(f"{kind} {SEED} command", kind) as (place, _):
        owner = zygote.start(attrs.evolve(place.orders(), stop_at="save", stop_index=3))
        try:
            assert owner.wait_stopped()
            command = [sys.executable, "-m", "trio_ckpt", "reset", str(place.folder / "store")]
            done = subprocess.run(
                [*command, RUN, "--yes"], capture_output=True, text=True, check=False, cwd=ROOT
            )
            assert done.returncode == EXIT_OWNED
            assert f"owned by process {owner.pid} on" in done.stderr
            owner.send(signal.SIGCONT)
            owner.read_all()
            assert owner.wait() == 0
            assert owner.said("confirmed") == list(range(BATCHES))
        finally:
            owner.close()
        place.check_at_end()


def test_a_worker_that_wakes_after_its_lease_was_lost_saves_nothing() -> None:
    """It goes on until it hears of it, and nothing of that is in any store."""
    figures = wake_far_zombies(IN_SUITE, SEED)
    assert figures["woken"] == IN_SUITE


ROWS = [(1, 1, "7 1"), (1, 2, "7 2"), (2, 3, "8 3"), (2, 4, "8 4")]  # owner, sequence, label


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ([], None),
        ([(2, 4, "8 4")], "saved 2 times"),
        ([(1, 5, "7 3")], "an older owner saved"),
        ([(2, 5, "7 3")], "two processes saved as one owner"),
        ([(3, 5, "7 3")], "saved as its newest owner"),
    ],
)
def test_what_no_worker_may_do_would_be_noticed(
    more: list[tuple[int, int, str]], problem: str | None
) -> None:
    rows = [
        {"stream": "s", "owner": owner, "sequence": sequence, "label": label, "refused": None}
        for owner, sequence, label in [*ROWS, *more]
    ]
    found = problems_of_saves(rows, "7")
    assert (problem is None and not found) or any(problem in text for text in found if problem)
