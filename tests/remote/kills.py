"""Kill -9 of foreman, workers and client: the results are those of no kill.

python -m tests.remote.kills random SCHEDULES [FIRST_SEED] [--minutes M]
python -m tests.remote.kills aimed SCHEDULES [FIRST_SEED] [--minutes M]

The counts so far are printed after every 10 schedules.  After M minutes no schedule is begun.

Each is a process of its own, with the store on disk.  What the functions do leaves a line in a
file each time, so what was done twice is counted.  A *random* schedule kills at any moment.  An
*aimed* one kills one process at one transition of the protocol's tables, which it does itself: see
`tests.remote.doomed`.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from tests.hangs import PROGRAM_S
from tests.ports import keep_port, port_of
from tests.remote.aims import cells, is_passed_only_by_chance
from tests.remote.scenarios import Transition
from trio_ckpt.remote._wire.message import MessageKind
from trio_ckpt.remote._wire.tables import PeerRole, TaskPhase

ROOT = Path(__file__).parents[2]
MODULE = "tests.engines.jobs"
ITEMS = 5
STEPS = 20
AIMED_STEPS = 6
INTERVAL_S = 0.2
SAY_EVERY = 10  # schedules
SECRET = "a secret of 16 bytes or more"  # of a test


@attrs.frozen
class Outcome:
    """What a schedule has shown.

    Attributes:
        results: What the client got.
        kills: How often each kind of process was killed.
        steps: How often each step of each item was done.
        lost: How many functions began with less than was durable of their item.
        count: Steps of an item.
        seconds: How long it took.
    """

    results: str
    kills: Counter[str]
    steps: Counter[tuple[int, int]]
    lost: int
    count: int
    seconds: float

    @property
    def wanted(self) -> str:
        """What the client should have got."""
        return str([self.count * (self.count + 1) // 2 + n for n in range(ITEMS)])

    @property
    def is_right(self) -> bool:
        """Whether the results are those of no kill, each step was done, and no save was lost."""
        every = {(n, k) for n in range(ITEMS) for k in range(1, self.count + 1)}
        return self.results == self.wanted and set(self.steps) == every and not self.lost

    @property
    def redone(self) -> int:
        """Steps that were done again, all together."""
        return sum(self.steps.values()) - len(self.steps)


@attrs.define(eq=False)
class Cast:
    """The processes of one schedule.

    Attributes:
        folder: Where their files are.
        kept: Keeps the port on which the foreman listens.
        steps: Steps of an item.
        interval: How often an item is saved, or "none".
        slots: Of each worker.
        options: Of the foreman.
        doom: What kind of process is about to kill itself, and where; until one has.
        running: The processes, with what kind each is.
        kills: How often each kind was killed.
    """

    folder: Path
    steps: int = STEPS
    interval: str = str(INTERVAL_S)
    slots: int = 2
    options: tuple[str, ...] = ()
    doom: tuple[str, list[str]] = ("", [])
    kept: socket.socket = attrs.field(factory=keep_port)
    running: list[tuple[str, subprocess.Popen[str]]] = attrs.field(factory=list)
    kills: Counter[str] = attrs.field(factory=Counter[str])

    def start(self, kind: str) -> subprocess.Popen[str]:
        """Start one of a kind."""
        url = f"ws://127.0.0.1:{port_of(self.kept)}"
        marks = self.folder / "marks"
        marks.mkdir(exist_ok=True)
        run = {
            "foreman": [
                *("trio_ckpt", "foreman", str(self.folder / "s")),
                *("--port", str(port_of(self.kept)), *self.options),
            ],
            "worker": ["trio_ckpt", "worker", url, "--allow", MODULE, "--slots", str(self.slots)],
            "client": [
                *("tests.remote.kill_client", url, str(marks)),
                *(str(ITEMS), str(self.steps), self.interval),
            ],
        }[kind]
        if self.doom[0] == kind and not self.kills[kind]:
            run = ["tests.remote.doomed", *self.doom[1], *run]
        with (self.folder / f"{kind}.err").open("a") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", *run],
                cwd=ROOT,
                env={**os.environ, "TRIO_CKPT_SECRET": SECRET, "PYTHONPATH": str(ROOT)},
                text=True,
                stdout=subprocess.PIPE if kind == "client" else subprocess.DEVNULL,
                stderr=errors,
            )

    def play(self, strike: Callable[[], None]) -> Outcome:
        """Start again what has ended, and strike, until the client has its results."""
        started = time.monotonic()
        try:
            while time.monotonic() - started < PROGRAM_S:
                for place, (kind, process) in enumerate(self.running):
                    code = process.poll()
                    if code is None:
                        continue
                    if kind == "client" and code == 0:
                        output = process.stdout.read() if process.stdout is not None else ""
                        seconds = time.monotonic() - started
                        steps, lost = read_marks(self.folder)
                        return Outcome(output.strip(), self.kills, steps, lost, self.steps, seconds)
                    self.kills[kind] += code == -signal.SIGKILL
                    end(process)
                    self.running[place] = (kind, self.start(kind))
                strike()
                time.sleep(0.02)
            errors = "".join(path.read_text()[-1_500:] for path in self.folder.glob("*.err"))
            raise AssertionError(f"it has not ended; {dict(self.kills)}; {errors}")
        finally:
            for _kind, process in self.running:
                end(process)
            self.kept.close()


def end(process: subprocess.Popen[str]) -> None:
    """Kill one, and close its files."""
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def run_random(seed: int, folder: Path) -> Outcome:
    """Kill any process at any moment, six times at most."""
    rng = random.Random(seed)
    cast = Cast(folder)
    cast.running = [(kind, cast.start(kind)) for kind in ("foreman", "client", "worker", "worker")]
    next_kill = time.monotonic() + rng.uniform(1.0, 2.5)

    def strike() -> None:
        nonlocal next_kill
        if time.monotonic() < next_kill or sum(cast.kills.values()) >= 6:
            return
        victim = rng.randrange(len(cast.running))
        kind, process = cast.running[victim]
        end(process)  # with SIGKILL
        cast.kills[kind] += 1
        time.sleep(rng.choice([0.0, 0.0, 0.5]))
        cast.running[victim] = (kind, cast.start(kind))
        next_kill = time.monotonic() + rng.uniform(0.2, 1.5)

    return cast.play(strike)


SPEAKS = {
    "foreman": (PeerRole.TO_WORKER, PeerRole.TO_CLIENT),
    "worker": (PeerRole.WORKER,),
    "client": (PeerRole.CLIENT,),
}
HEARS = {
    "foreman": (PeerRole.WORKER, PeerRole.CLIENT),
    "worker": (PeerRole.TO_WORKER,),
    "client": (PeerRole.TO_CLIENT,),
}
NOT_HERE = frozenset(
    {
        *(
            MessageKind.HEARTBEAT,
            MessageKind.CREDIT,
            MessageKind.GOODBYE,
        ),  # these jobs are too short and too small
        *(
            MessageKind.CONTROL,
            MessageKind.CONTROL_REPLY,
            MessageKind.FORCE_CHECKPOINT,
            MessageKind.RELEASE_TASK,
        ),
        *(
            MessageKind.CANCEL_JOB,
            MessageKind.CANCEL,
            MessageKind.REFUSED,
            MessageKind.JOB_REFUSED,
            MessageKind.TASK_FAILED,
        ),
        MessageKind.TASK_PROGRESS,
    }
)
"""What is not said in these jobs; `tests.remote.aims` strikes there, too."""


def targets() -> list[tuple[str, Transition]]:
    """What each kind of process passes in these jobs."""
    return [
        (kind, cell)
        for kind in SPEAKS
        for cell in sorted(cells(), key=str)
        if cell.role in (SPEAKS if cell.is_sent else HEARS)[kind]
        and cell.kind not in NOT_HERE
        and cell.was is not TaskPhase.STOPPING
        and not is_passed_only_by_chance(cell)
    ]


def run_aimed(seed: int, folder: Path) -> Outcome:
    """Have a process kill itself at one transition; seeds in a row take one after the other.

    What is passed only after another kill gets that one first.
    """
    rng = random.Random(seed)
    doomed, cell = targets()[seed % len(targets())]
    side = "sent" if cell.is_sent else "come"
    nth = rng.choice([1, 1, 2, ITEMS]) if cell.kind in OF_EACH_ITEM else 1
    doom = [cell.role.name, cell.kind.name, cell.was.name, side, str(nth)]
    before = {MessageKind.LEASE: "foreman", MessageKind.RESUME_TASK: "worker"}.get(cell.kind)
    interval = "0.05" if cell.kind in SAVING else rng.choice(["none", "0.05"])
    slots, workers = rng.choice([1, 1, 2]), rng.choice([1, 2])
    cast = Cast(folder, AIMED_STEPS, interval, slots, doom=(doomed, doom))
    for kind in ("foreman", "client", *["worker"] * workers):
        cast.running.append((kind, cast.start(kind)))

    def strike() -> None:
        nonlocal before
        if before is not None and any((folder / "marks").iterdir()):
            place = [kind for kind, _ in cast.running].index(before)
            end(cast.running[place][1])  # with SIGKILL
            cast.running[place] = (before, cast.start(before))
            before = None

    return cast.play(strike)


SAVING = (
    *(MessageKind.RESUME_TASK, MessageKind.TASK_CHECKPOINT, MessageKind.CHECKPOINT_ACK),
    *(MessageKind.STORE_CALL, MessageKind.STORE_REPLY),
)


OF_EACH_ITEM = (
    *(MessageKind.ASSIGN_TASK, MessageKind.TASK_RESULT, MessageKind.TASK_ACK),
    *(MessageKind.TASK_CHECKPOINT, MessageKind.CHECKPOINT_ACK),
    *(MessageKind.STORE_CALL, MessageKind.STORE_REPLY),
)
"""What is said so often that a process passes it more than once."""


def read_marks(folder: Path) -> tuple[Counter[tuple[int, int]], int]:
    """How often each step was done, and how often a function began with less than was durable.

    How many steps are done again depends on how long a save takes; that none of them was durable
    does not.
    """
    steps: Counter[tuple[int, int]] = Counter()
    lost = 0
    for path in (folder / "marks").iterdir():
        whole, _, _ = path.read_text().rpartition("\n")  # a line may be on its way
        most = 0
        for line in whole.splitlines():
            what, number, *durable = line.split()
            if what == "begun":
                lost += int(number) < most
            else:
                steps[int(path.name), int(number)] += 1
                most = max(most, *map(int, durable))
    return steps, lost


@attrs.define
class Tally:
    """What the schedules so far have shown, all together.

    Attributes:
        wanted: How many schedules are to be played.
        played: How many were.
        kills: How often each kind of process was killed.
        redone: Steps that were done again.
        steps: Steps that had to be done.
        bad: Schedules that did not end, or not right.
    """

    wanted: int
    played: int = 0
    kills: Counter[str] = attrs.field(factory=Counter[str])
    redone: int = 0
    steps: int = 0
    bad: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count what a schedule that has ended did."""
        self.kills += outcome.kills
        self.redone += outcome.redone
        self.steps += ITEMS * outcome.count

    def __str__(self) -> str:
        return (
            f"{self.played} of {self.wanted} schedules, {dict(self.kills)} kills, "
            f"{self.redone} of {self.steps} steps done again, {self.bad} bad"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Play what is asked for, until the time is over; 1: a schedule was bad."""
    parser = argparse.ArgumentParser("python -m tests.remote.kills")
    parser.add_argument("sort", choices=("random", "aimed"))
    parser.add_argument("schedules", type=int)
    parser.add_argument("first_seed", type=int, nargs="?", default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    options = parser.parse_args(arguments)
    run = {"random": run_random, "aimed": run_aimed}[options.sort]
    end_at = time.monotonic() + 60 * options.minutes
    tally = Tally(options.schedules)
    for seed in range(options.first_seed, options.first_seed + options.schedules):
        if time.monotonic() >= end_at:
            break
        complaint = _play_one(run, seed, tally)
        if complaint:
            print(f"seed {seed}: {complaint}", flush=True)
        if tally.played % SAY_EVERY == 0:
            print(tally, flush=True)
    print(tally, flush=True)
    return int(tally.bad > 0)


def _play_one(run: Callable[[int, Path], Outcome], seed: int, tally: Tally) -> str:
    """Play a schedule and count it; what was bad about it, or nothing."""
    tally.played += 1
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = run(seed, Path(folder))
        except AssertionError as error:
            tally.bad += 1
            return str(error)
    tally.add(outcome)
    if outcome.is_right:
        return ""
    tally.bad += 1
    return str(outcome)


if __name__ == "__main__":
    sys.exit(main())
