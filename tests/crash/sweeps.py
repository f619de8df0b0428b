"""The sweeps: which schedules are played.  `sweep_*` yields them, `Sweep` plays them.

A *full* sweep takes every operation; the others a share of them, chosen by the seed.
"""

from __future__ import annotations

import errno
import os
import random
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from tests.crash.disk import Disk
from tests.crash.lab import Lab, Recording, ViolationError
from tests.crash.recorder import (
    CHANGES,
    GROWS,
    NO_PLAN,
    OPENS,
    SYNCS,
    Action,
    Kind,
    Plan,
    build,
)
from tests.crash.schedules import Schedule, read_schedule
from tests.crash.zygote import Ended, Zygote

STORES = ("sqlite", "json")
MAX_VIOLATIONS = 20  # of one sweep: no reader needs more
MOST_KILLS = 5  # of one random schedule
RANDOM_SCHEDULES = 150  # of a full sweep
# What is left of one power cut is left to chance so often.  The JSON store does less with files,
# and both are to have 2,000 crash points.
CUT_SEEDS = {"sqlite": 3, "json": 5}
SYNC_CUTS = 3  # moments of a power cut after each failed sync
SAMPLE = 6  # schedules of each kind that a sweep takes which is not full
PREFIX = "trio-ckpt-crash-"
MEMORY = Path("/dev/shm")  # where looking at a copy waits for no disk

Figures = dict[str, int | str]


@attrs.define
class Found:
    """What a sweep came to.

    Attributes:
        figures: What it counted, by name.
        violations: What was broken, each with the command that shows it again.
    """

    figures: Figures
    violations: list[str]


@contextmanager
def open_lab(store: str, program: str = "good", folder: Path | None = None) -> Generator[Lab]:
    """A laboratory in a temporary folder, ready to play schedules."""
    memory = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder, ignore_cleanup_errors=True) as base,
        tempfile.TemporaryDirectory(prefix=PREFIX, dir=memory, ignore_cleanup_errors=True) as aside,
        Zygote(build(Path(base))) as zygote,
    ):
        yield Lab(Path(base), Path(aside), zygote, store, program)


@attrs.define(eq=False)
class Sweep:
    """Plays the schedules of one sweep.

    Attributes:
        name: Of the sweep.
        lab: Where they are played.
        full: Whether every operation is taken.
        seed: Decides what is left to chance.
        say: Told how far it is.
        most_violations: After so many it ends.
        sample: How many schedules of each kind it takes, if it is not full.
        violations: What was broken.
    """

    name: str
    lab: Lab
    full: bool
    seed: int
    say: Callable[[str], None]
    most_violations: int = MAX_VIOLATIONS
    sample: int = SAMPLE
    violations: list[str] = attrs.field(factory=list[str])
    chance: random.Random = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.chance = random.Random(f"{self.seed} {self.name} {self.lab.store}")

    def some(self, numbers: Iterable[int], times: float = 1) -> list[int]:
        """All of them, or as many as a sweep takes that is not full."""
        found = list(numbers)
        most = max(1, int(self.sample * times))
        if self.full or len(found) <= most:
            return found
        return sorted(self.chance.sample(found, most))

    def schedule(self, *plans: Plan, cut: int | None = None, seed: int = 0) -> Schedule:
        """A schedule of this sweep."""
        return Schedule(self.name, self.lab.store, plans, cut, seed, self.lab.program)

    def guard(self, schedule: Schedule, play: Callable[[], None]) -> bool:
        """Play; what is broken is noted.  False: the sweep may end."""
        try:
            play()
        except ViolationError as problem:
            self.violations.append(
                f"{self.name}, {schedule.store}: {problem}\n"
                f"    see it again: python -m tests.crash --replay '{schedule}'"
            )
        self.say(f"{schedule}: {self.lab.counts.points} points, {len(self.violations)} violations")
        return len(self.violations) < self.most_violations

    def play_all(self, schedules: Iterable[Schedule]) -> None:
        """Play schedules as they come."""
        for schedule in schedules:
            if not self.guard(schedule, lambda one=schedule: self.lab.play(one)):
                return


# ---------------------------------------------------------------------------------------
# Kills
# ---------------------------------------------------------------------------------------


def sweep_kills(sweep: Sweep, clean: Ended) -> None:
    """SIGKILL before, after and in the middle of every operation; and several in a row."""
    sweep.play_all(_kills(sweep, clean))


def _kills(sweep: Sweep, clean: Ended) -> Iterator[Schedule]:
    for action in (Action.KILL_BEFORE, Action.KILL_AFTER):
        for at in sweep.some(range(1, clean.count(CHANGES) + 1)):
            yield sweep.schedule(Plan(action, at))
    for at in sweep.some(range(1, clean.count(Kind.WRITE) + 1)):
        yield sweep.schedule(Plan(Action.KILL_HALF, at, Kind.WRITE))
    for _ in range(RANDOM_SCHEDULES if sweep.full else sweep.sample):
        times = sweep.chance.randint(2, MOST_KILLS)
        actions = [sweep.chance.choice([Action.KILL_BEFORE, Action.KILL_AFTER])] * times
        # Later sessions have fewer operations: these are drawn from the first part.
        most = clean.count(CHANGES) // 2
        yield sweep.schedule(*(Plan(one, sweep.chance.randint(1, most)) for one in actions))


# ---------------------------------------------------------------------------------------
# Power cuts
# ---------------------------------------------------------------------------------------


def sweep_power(sweep: Sweep, clean: Ended) -> None:
    """Power is cut after every operation of a clean run, and of one that resumes after a kill."""
    middle = clean.count(CHANGES) // 2
    for plans in ((NO_PLAN,), (Plan(Action.KILL_AFTER, middle), NO_PLAN)):
        recording = sweep.lab.record(plans)
        first = recording.ends[-2] if len(plans) > 1 else 0
        cuts = set(sweep.some(range(first, len(recording.operations) + 1), 2))
        if not _cut_all(sweep, plans, recording, cuts):
            return


def _cut_all(sweep: Sweep, plans: tuple[Plan, ...], recording: Recording, cuts: set[int]) -> bool:
    disk = Disk()
    for at in range(len(recording.operations) + 1):
        if at:
            disk.apply(recording.operations[at - 1])
        times = CUT_SEEDS[sweep.lab.store] if sweep.full else 1
        for number in range(times if at in cuts else 0):
            seed = sweep.seed * 1000 + number
            schedule = sweep.schedule(*plans, cut=at, seed=seed)
            left = disk.cut(seed)
            if not sweep.guard(schedule, lambda tree=left: sweep.lab.play_cut(disk, tree)):
                return False
    return True


# ---------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------

# What may fail with what: a disk that is full has room to remove, and gives out descriptors.
ERRORS = (
    (errno.EIO, CHANGES | Kind.LOOK),
    (errno.ENOSPC, GROWS),
    (errno.EDQUOT, GROWS),
    (errno.EMFILE, OPENS),
)


def sweep_errors(sweep: Sweep, clean: Ended) -> None:
    """Every operation fails: once, or from then on; writes are short, disks get full."""
    sweep.play_all(_errors(sweep, clean))


def _errors(sweep: Sweep, clean: Ended) -> Iterator[Schedule]:
    for error, kinds in ERRORS:
        for persistent in (False, True):
            for at in sweep.some(range(1, clean.count(kinds) + 1), 0.5):
                yield sweep.schedule(Plan(Action.FAIL, at, kinds, error, persistent))
    for at in sweep.some(range(1, clean.count(GROWS) + 1), 0.5):
        yield sweep.schedule(Plan(Action.FILL, at, GROWS, errno.ENOSPC, persistent=True))
    for persistent in (False, True):
        for at in sweep.some(range(1, clean.count(Kind.WRITE) + 1), 0.5):
            yield sweep.schedule(Plan(Action.SHORT, at, Kind.WRITE, 0, persistent))


# ---------------------------------------------------------------------------------------
# Failed syncs
# ---------------------------------------------------------------------------------------


def sweep_syncs(sweep: Sweep, clean: Ended) -> None:
    """A sync fails, and what it was for is lost; the program ends, or goes on; power is cut."""
    for at in sweep.some(range(1, clean.count(SYNCS) + 1), 2):
        plan = Plan(Action.FAIL, at, SYNCS, errno.EIO)
        recording = sweep.lab.record((plan,))
        failed = [n for n, one in enumerate(recording.operations, 1) if one.error]
        if not failed:
            sweep.lab.counts.not_reached += 1
            continue
        last = len(recording.operations)
        cuts = {last, *(sweep.chance.randint(failed[0], last) for _ in range(SYNC_CUTS - 1))}
        if not _cut_all(sweep, (plan,), recording, cuts):
            return


SWEEPS: dict[str, Callable[[Sweep, Ended], None]] = {
    "kills": sweep_kills,
    "power": sweep_power,
    "errors": sweep_errors,
    "syncs": sweep_syncs,
}


def run_sweep(
    name: str,
    store: str,
    *,
    full: bool,
    seed: int = 0,
    program: str = "good",
    say: Callable[[str], None] = lambda _text: None,
    most_violations: int = MAX_VIOLATIONS,
    sample: int = SAMPLE,
) -> Found:
    """Run one sweep with one kind of store."""
    began = time.perf_counter()
    with open_lab(store, program) as lab:
        sweep = Sweep(name, lab, full, seed, say, most_violations, sample)
        clean = lab.learn()
        SWEEPS[name](sweep, clean)
        figures: Figures = {
            "crash points": lab.counts.points,
            "sessions": lab.counts.sessions,
            "not reached": lab.counts.not_reached,
            "violations": len(sweep.violations),
            "seconds": round(time.perf_counter() - began),
        }
    return Found(figures, sweep.violations)


def replay(text: str) -> None:
    """Play one schedule again.

    Raises:
        ViolationError: a promise was broken.
        ValueError: this is no schedule.
    """
    schedule = read_schedule(text)
    with open_lab(schedule.store, schedule.program) as lab:
        lab.learn()
        lab.play(schedule)
