"""Owners that fight for a run, and owners that sleep through a takeover and wake.

    python -m tests.crash --sweep owners [--full] [--seed N] [--keep]

*Twins* are two processes that want one run at the same instant.  One has it, the other is told
whose it is; the one that has it is killed at random moments, while the other tries again.

*Zombies* are owners that SIGSTOP has stopped, anywhere in a batch.  While one lives the kernel
keeps its lock, so first the run is refused.  Then the sweep does what the documentation
forbids, and removes the lock: another process takes the run over, and the zombie wakes.
Whatever it does then, it confirms nothing, and nothing of what its successor has confirmed is
lost: that is read from the records, the outputs and the lines, each of which says who made it.
"""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from tests.crash.evidence import litter, look, problems_at_end
from tests.crash.far_owners import wake_far_zombies
from tests.crash.forks import LIMIT_S, Process, Zygote
from tests.crash.steady import OWNER_AGE_S, POINTS, Orders
from tests.proof import Figures
from trio_ckpt.cli._exits import EXIT_OWNED

KINDS = ("sqlite", "json")
BATCHES = 12
PAUSE_S = 0.002  # of a batch, so that signals meet the body, too
MAX_KILLS = 5
HOLDS_DATABASE_S = 0.3  # then its heir waits for it to go on, and it has to be woken
MAX_STARTS = 100  # of one schedule; a few are enough
IN_SUITE = 3  # schedules of each sort and store
FULL = 100

SLEEP_S = 2 * OWNER_AGE_S  # who has slept for less may replace an output before it asks
# The instant between the last look at the owner and the rename of a file is not promised.  What
# is replaced then is noticed by the next start, which does it again.
MAY_REPLACE = ("rename", "")
OF_LINES = ("append", "pwrite")

BREAKS = ("lock", "locks", "folder")  # the run's lock file, all lock files, their folder, too


class SweepError(AssertionError):
    """Something that must hold does not; says where, and how to see it again."""


def need(condition: object, what: str) -> None:
    """See that something holds."""
    if not condition:
        raise SweepError(what)


@attrs.frozen
class Place:
    """Where one schedule happens."""

    folder: Path
    kind: str

    @property
    def url(self) -> str:
        return f"{self.kind}:{self.folder / 'store'}"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def orders(self, tag: str = "", *, waits: bool = False) -> Orders:
        """What a process is to do here."""
        out = str(self.out)
        return Orders(self.url, out, BATCHES, tag=tag, pause_s=PAUSE_S, waits=waits)

    def check_at_end(self) -> None:
        """See that the run is whole."""
        found = look(self.url, self.out)
        problems = problems_at_end(found, self.out, BATCHES)
        problems += litter(self.url, self.out, BATCHES, is_archive_allowed=True)
        need(not problems, f"{self.kind}: {problems}")


# -- twins ----------------------------------------------------------------------------------


@attrs.define
class Twins:
    """Two at one run, again and again until it is done."""

    place: Place
    zygote: Zygote
    chance: random.Random
    figures: Counter[str]
    confirmed: Counter[int] = attrs.field(factory=Counter[int], init=False)

    def run(self) -> None:
        """One schedule."""
        kills = self.chance.randint(0, MAX_KILLS)
        for _ in range(MAX_STARTS):
            with ExitStack() as stack:
                pair = [self.zygote.start(self.place.orders(waits=True)) for _ in range(2)]
                for process in pair:
                    stack.callback(process.close)
                for process in self.chance.sample(pair, 2):
                    process.release()
                self.figures["starts"] += 1
                is_killed = kills > 0 and self._kill_one(pair)
                kills -= is_killed
                codes = [self._end(process) for process in pair]
            self._check_codes(codes)
            if 0 in codes:
                need(not any(n > 1 for n in self.confirmed.values()), "a batch was confirmed twice")
                self.place.check_at_end()
                return
        raise SweepError(f"the run is not done after {MAX_STARTS} starts")

    def _kill_one(self, pair: list[Process]) -> bool:
        """Kill the one that has the run, at a moment left to chance; False: it was too fast."""
        winner = self._winner(pair)
        if winner is None:
            return False
        wanted = len(winner.lines) + self.chance.randint(0, BATCHES)
        if not winner.read_until(lambda: len(winner.lines) >= wanted):
            return False
        winner.send(signal.SIGKILL)
        self.figures["kills"] += 1
        twin = pair[1 - pair.index(winner)]
        self._try_at_once(twin)
        return True

    def _winner(self, pair: list[Process]) -> Process | None:
        while True:
            for process in pair:
                process.read(0.001)
                if any(text.startswith("owner ") for text in process.lines):
                    return process
            if all(process.lines for process in pair):
                return None  # both were refused, by one that was just being killed

    def _try_at_once(self, twin: Process) -> None:
        """While one dies a third comes; it is let in, or told whose the run is."""
        third = self.zygote.start(self.place.orders())
        try:
            code = self._end(third)
            need(code in (0, EXIT_OWNED), f"a third exits with {code}: {third.lines}")
            self.figures["refused"] += code == EXIT_OWNED
        finally:
            third.close()
        twin.read()

    def _end(self, process: Process) -> int:
        process.read_all()
        code = process.wait()
        self.confirmed.update(process.said("confirmed"))
        if code == EXIT_OWNED:
            (text,) = process.lines
            word, pid, message = text.split(" ", 2)
            need(word == "locked" and int(pid) != process.pid, text)
            need(f"is owned by process {pid} on" in message, text)
            self.figures["refused"] += 1
        return code

    def _check_codes(self, codes: list[int]) -> None:
        allowed = {0, EXIT_OWNED, -signal.SIGKILL}
        need(set(codes) <= allowed, f"exit codes {codes}")


# -- zombies on one host --------------------------------------------------------------------


@attrs.define
class Zombie:
    """One that is stopped, is taken over, and wakes."""

    place: Place
    zygote: Zygote
    chance: random.Random
    figures: Counter[str]
    point: str  # where it is stopped; empty: anywhere
    appends: bool = True
    flaw: str = ""
    processes: list[Process] = attrs.field(factory=list[Process], init=False)
    stopped_at: float = attrs.field(default=0.0, init=False)

    def run(self) -> None:
        """One schedule."""
        with ExitStack() as stack:
            zombie = self._start(stack, "zombie", point=self.point)
            if not self._stop(zombie):
                zombie.send(signal.SIGCONT)
                zombie.read_all()
                need(zombie.wait() == 0, f"it was to be stopped: {zombie.lines}")
                return self.place.check_at_end()
            self._see_refused(stack, zombie)
            self._break_lock()
            heir = self._start(stack, "heir")
            self._wake_while(heir, zombie)
            self._finish(stack, heir)
        self._check()
        return None

    def _start(self, stack: ExitStack, tag: str, *, point: str = "") -> Process:
        index = self.chance.randrange(BATCHES)
        orders = attrs.evolve(
            self.place.orders(tag), stop_at=point, stop_index=index, appends=self.appends
        )
        orders = attrs.evolve(orders, flaw=self.flaw)
        process = self.zygote.start(orders)
        stack.callback(process.close)
        return process

    def _stop(self, zombie: Process) -> bool:
        """Stop it; False: it was through with its work, and may have given the run back."""
        if not self.point:
            wanted = self.chance.randint(1, 2 * BATCHES)
            if zombie.read_until(lambda: len(zombie.lines) >= wanted):
                zombie.send(signal.SIGSTOP)
        is_stopped = zombie.wait_stopped()
        self.stopped_at = time.monotonic()
        while zombie.read():
            pass
        return is_stopped and len(zombie.said("confirmed")) < BATCHES

    def _see_refused(self, stack: ExitStack, zombie: Process) -> None:
        """The first law: who is stopped owns the run as one who works does."""
        other = self._start(stack, "other")
        other.read_all()
        need(other.wait() == EXIT_OWNED, f"a stopped owner lost its run: {other.lines}")
        need(other.lines[0].startswith(f"locked {zombie.pid} "), other.lines[0])
        self.figures["refused"] += 1

    def _break_lock(self) -> None:
        """Remove the lock of a run, which the documentation forbids."""
        how = self.chance.choice(BREAKS)
        locks = self.place.folder / "store" / "lock"
        for path in locks.iterdir():
            if how != "lock" or len(path.name) == 32:
                path.unlink()
        if how == "folder":
            locks.rmdir()

    def _wake_while(self, heir: Process, zombie: Process) -> None:
        """Wake it when its heir has got somewhere, or has ended, or waits for it."""
        wanted = self.chance.choice([1, 2, 5, 9, 10**6])
        patience_s = HOLDS_DATABASE_S if self.point == "commit" else LIMIT_S
        heir.read_until(lambda: len(heir.lines) >= wanted, patience_s)
        time.sleep(max(0.0, self.stopped_at + SLEEP_S - time.monotonic()))
        zombie.send(signal.SIGCONT)
        self.figures["woken"] += 1
        zombie.read_all()
        code = zombie.wait()
        self.processes.append(zombie)
        self.figures[f"woken one exits {code}"] += 1

    def _finish(self, stack: ExitStack, heir: Process) -> None:
        """The owner that comes now works to the end; an heir may have been refused or disturbed."""
        heir.read_all()
        code = heir.wait()
        self.figures[f"heir exits {code}"] += 1
        last = self._start(stack, "last")
        last.read_all()
        need(last.wait() == 0, f"the run cannot be resumed: {last.lines}")
        self.processes += [heir, last]

    def _check(self) -> None:
        """See that the run is whole, and that each batch was confirmed by one process."""
        place = self.place
        found = look(place.url, place.out)
        problems = problems_at_end(found, place.out, BATCHES)
        if found.redos and self.point in MAY_REPLACE:
            need(not problems, f"{place.kind}, {self.point}: {problems}")
            self.figures["replaced an output, which was noticed and done again"] += 1
            return
        problems += litter(place.url, place.out, BATCHES, is_archive_allowed=True)
        said = Counter(index for process in self.processes for index in process.said("confirmed"))
        problems += [f"{index} was confirmed {n} times" for index, n in said.items() if n > 1]
        for process in self.processes:
            for index in process.said("confirmed"):
                tag = found.records[index].metadata["tag"]
                if tag != process.tag:
                    problems.append(f"{process.tag} was told {index} is confirmed, it is of {tag}")
        need(not problems, f"{place.kind}, {self.point}: {problems}")


# -- all of them ----------------------------------------------------------------------------


def sweep_owners(full: bool, seed: int) -> Figures:
    """Run them all; what was counted.

    Raises:
        SweepError: something does not hold.
    """
    figures: dict[str, int | str] = {}
    with Zygote() as zygote:
        for kind in KINDS:
            figures |= sweep_kind(zygote, kind, full, seed)
    far = wake_far_zombies(FULL if full else IN_SUITE, seed)
    figures |= {f"zombies, far, {what}": n for what, n in far.items()}
    return figures | {"batches confirmed twice": 0}  # or it had raised


def sweep_kind(zygote: Zygote, kind: str, full: bool, seed: int) -> dict[str, int]:
    """The twins and zombies of one kind of store."""
    twins, zombies = Counter[str](), Counter[str]()
    times = FULL if full else IN_SUITE
    for number in range(times):
        with schedule(f"{kind} {seed} {number}", kind) as (place, chance):
            Twins(place, zygote, chance, twins).run()
    points = (*POINTS, "")
    for number in range(max(times, len(points))):
        with schedule(f"{kind} {seed} {number}", kind) as (place, chance):
            point = points[number % len(points)]
            # Without lines its heir is let in at once; with them it must wait for their file.
            appends = point in OF_LINES or chance.random() < 0.5
            Zombie(place, zygote, chance, zombies, point, appends).run()
    return {
        **{f"twins, {kind}, {what}": n for what, n in twins.items()},
        **{f"zombies, {kind}, {what}": n for what, n in zombies.items()},
    }


@contextmanager
def schedule(name: str, kind: str) -> Iterator[tuple[Place, random.Random]]:
    """A place and a chance of one schedule; an error is told with the way to see it again."""
    folder = Path(tempfile.mkdtemp(prefix="owners-"))
    try:
        yield Place(folder, kind), random.Random(name)
    except SweepError as error:
        raise SweepError(f"schedule {name!r}: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
