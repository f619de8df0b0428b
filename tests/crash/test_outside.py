"""A share of the crash tests from outside; all of them: ``nox -s crash -- --full``."""

from __future__ import annotations

import errno
import sys

import pytest

from tests.crash import __main__ as command, sweeps
from tests.crash.recorder import CHANGES, NO_COMPILER, OPENS, Action, Kind, Plan, has_compiler
from tests.crash.schedules import Schedule, read_schedule

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the recorder is for Linux"),
    pytest.mark.skipif(not has_compiler(), reason=NO_COMPILER),
]


@pytest.mark.parametrize("store", sweeps.STORES)
@pytest.mark.parametrize("name", sweeps.SWEEPS)
def test_every_promise_is_kept(name: str, store: str) -> None:
    found = sweeps.run_sweep(name, store, full=False, seed=1)
    assert not found.violations, "\n".join(found.violations)
    assert found.figures["crash points"] >= 10


BROKEN = [
    ("kills", "tells_too_early", "are lost"),
    ("kills", "saves_before_it_writes", "its output is not there"),
    ("power", "forgets_to_sync", "its output is not there"),
    ("errors", "tells_too_early", "are lost"),
    ("syncs", "forgives_a_failed_sync", "its output is not there"),
]


@pytest.mark.parametrize(("name", "program", "words"), BROKEN)
def test_a_broken_program_is_caught_and_its_replay_fails_again(
    name: str, program: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = sweeps.run_sweep(
        name, "json", full=False, seed=1, program=program, most_violations=1, sample=40
    )
    (violation,) = found.violations
    assert words in violation
    schedule = violation.rpartition("--replay ")[2].strip("'")
    assert read_schedule(schedule).program == program
    assert command.main(["--replay", schedule]) == 1
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("store", sweeps.STORES)
def test_a_schedule_takes_the_same_steps_in_every_laboratory(store: str) -> None:
    plans = (Plan(Action.KILL_AFTER, 60), Plan(Action.FAIL, 40, CHANGES, errno.EIO), Plan())

    def steps() -> list[tuple[Kind, str, str, int, int]]:
        with sweeps.open_lab(store) as lab:
            done = lab.record(plans).operations
        return [(one.kind, one.path, one.goal, one.offset, len(one.data)) for one in done]

    first = steps()
    assert len(first) > 200
    assert steps() == first


def test_a_replay_of_a_program_that_is_right_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    schedule = Schedule("kills", "json", (Plan(Action.KILL_AFTER, 60),))
    assert command.main(["--replay", str(schedule)]) == 0
    assert "every promise was kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule("kills", "sqlite", (Plan(Action.KILL_HALF, 3, Kind.WRITE), Plan())),
        Schedule("power", "json", (Plan(),), cut=17, seed=4),
        Schedule("errors", "json", (Plan(Action.FAIL, 1, OPENS, errno.EMFILE, True),), program="x"),
        Schedule("errors", "json", (Plan(Action.SHORT, 9, CHANGES, 0, True),)),
    ],
)
def test_a_schedule_is_what_its_text_says(schedule: Schedule) -> None:
    assert read_schedule(str(schedule)) == schedule
