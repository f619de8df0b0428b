"""Power cuts of a real ext4: nothing more reaches the disk from one moment on.

    python -m tests.crash --sweep ext4 [--full] [--seed N] [--keep]

Needs root and loop devices.  A file system in a file is mounted, `tests.crash.steady` works on
it, and at a random moment ``FS_IOC_SHUTDOWN`` shuts it down without flushing its journal
(``EXT4_GOING_FLAGS_NOLOGFLUSH``, see ext4's ioctl.c): what was not durable is gone, and a process
that goes on gets EIO.  Then it is mounted again, which replays the journal as after a power cut,
and the laws are looked at, as a reader finds them and after the run was resumed to its end.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from tests.crash.evidence import Evidence, litter, look, problems_at_end
from tests.crash.ext4 import OPTIONS, Disk
from tests.crash.forks import Process, Zygote
from tests.crash.plain_writes import cut_plain_writes
from tests.crash.steady import Orders
from tests.proof import Figures

KINDS = ("sqlite", "json")
BATCHES = 12
IN_SUITE = 6  # cuts for each store
FULL = 300

SECOND_CUT = 0.3  # the chance that the resumed run is cut, too
LONGEST_WAIT_S = 0.004  # from a line that it says to the cut: longer than a batch takes


class PowerCutError(AssertionError):
    """Something did not survive; says what, and how to see it again."""


def need(condition: object, what: str) -> None:
    """See that something holds."""
    if not condition:
        raise PowerCutError(what)


@attrs.define
class Machine:
    """One run on a disk: its power is cut, it is mounted and resumed, until the run is done."""

    disk: Disk
    zygote: Zygote
    kind: str
    chance: random.Random
    figures: Counter[str]
    flaw: str = ""
    confirmed: frozenset[int] = attrs.field(default=frozenset(), init=False)
    raced: frozenset[int] = attrs.field(default=frozenset(), init=False)
    cut_at: tuple[int, int] = attrs.field(default=(0, 0), init=False)

    @property
    def url(self) -> str:
        return f"{self.kind}:{self.disk.root / 'work' / 'store'}"

    @property
    def out(self) -> Path:
        return self.disk.root / "work" / "out"

    def run(self) -> None:
        """From the beginning to the end."""
        options = self.chance.choice(OPTIONS)
        self.disk.mount(options)
        try:
            shutil.rmtree(self.out.parent, ignore_errors=True)  # of one that has failed
            is_done = False
            cuts = 1
            while not is_done:
                is_done = self._session(cuts > 0)
                if not is_done:
                    self.disk.unmount()
                    self.disk.mount(options)
                    self._look()
                    cuts = int(self.chance.random() < SECOND_CUT)
            self._check_at_end()
        finally:
            if self.disk.is_mounted:
                self.disk.unmount()

    def _session(self, is_cut: bool) -> bool:
        """One process; whether it ended as it should, and the power was there all the time."""
        orders = Orders(self.url, str(self.out), BATCHES, flaw=self.flaw)
        process = self.zygote.start(orders)
        try:
            is_cut = is_cut and self._wait_for_moment(process)
            if is_cut:
                self._cut(process)
            process.read_all()
            code = process.wait()
        finally:
            process.close()
        again = self.confirmed.intersection(process.said("begun"))
        need(not again, f"batches {sorted(again)} were confirmed, and begun again")
        self._take_stock(process, is_cut)
        need(is_cut or code == 0, f"it cannot be resumed: {process.lines[-2:]}")
        return not is_cut

    def _wait_for_moment(self, process: Process) -> bool:
        wanted = self.chance.randint(0, 2 * BATCHES)
        wait_s = self.chance.random() * LONGEST_WAIT_S
        process.read_until(lambda: len(process.lines) >= wanted)
        time.sleep(wait_s)
        return True

    def _cut(self, process: Process) -> None:
        """Cut the power; the process dies with the machine, or lives on to hear EIO."""
        began_at = time.monotonic_ns()
        self.disk.cut()
        self.cut_at = (began_at, time.monotonic_ns())
        self.figures["cuts"] += 1
        if self.chance.random() < 0.5:
            process.send(signal.SIGKILL)
            return
        process.read_all()
        if process.wait() != 0:
            self.figures["told of EIO"] += 1

    def _take_stock(self, process: Process, is_cut: bool) -> None:
        """Sort what was said to be confirmed by when that was.

        Before the cut: it must survive.  Of a batch that was begun after the cut: no process may
        say so.  In between: an fsync was on its way, or had just come back.  On a machine whose
        power is cut no process would live to say it; this kernel lives on, and now and then an
        fsync that meets the cut comes back without an error, and nothing of it is on the disk.
        Those are counted, and prove nothing either way.
        """
        self.raced = frozenset()
        said = process.times("confirmed")
        if not is_cut:
            self.confirmed |= set(said)
            return
        began_at, ended_at = self.cut_at
        begun = process.times("begun")
        lies = [index for index in said if begun[index] > ended_at]
        need(not lies, f"batches {lies} were begun after the cut, and said to be confirmed")
        self.confirmed |= {index for index, at in said.items() if at < began_at}
        self.raced = frozenset(said) - self.confirmed

    def _look(self) -> None:
        """What must hold before anything is repaired."""
        found = look(self.url, self.out)
        need(not found.problems, f"after the cut: {found.problems}")
        lost = self.confirmed - found.confirmed
        need(not lost, f"batches {sorted(lost)} were said to be confirmed, and are not")
        self.figures["acknowledged while the cut was on its way"] += len(self.raced)
        self.figures["of these lost"] += len(self.raced - found.confirmed)
        self.figures["acknowledged batches"] += len(self.confirmed)
        self.figures["landed without being acknowledged"] += len(found.confirmed - self.confirmed)
        self.figures["runs without a checkpoint yet"] += found == Evidence()
        self.confirmed = found.confirmed

    def _check_at_end(self) -> None:
        problems = problems_at_end(look(self.url, self.out), self.out, BATCHES)
        problems += litter(self.url, self.out, BATCHES, is_archive_allowed=True)
        need(not problems, f"at the end: {problems}")


def cut_power(
    disk: Disk, zygote: Zygote, kind: str, cuts: int, seed: int, flaw: str = ""
) -> dict[str, int]:
    """Cut the power so often; what was counted.

    Raises:
        PowerCutError: something did not survive.
    """
    figures: Counter[str] = Counter(dict.fromkeys(("cuts", "acknowledged batches"), 0))
    number = 0
    while figures["cuts"] < cuts:
        name = f"{kind} {seed} {number}"
        try:
            Machine(disk, zygote, kind, random.Random(name), figures, flaw).run()
        except PowerCutError as error:
            raise PowerCutError(f"run {name!r}, after {figures['cuts']} cuts: {error}") from error
        number += 1
    figures["runs"] = number
    return dict(figures)


def sweep_power_cuts(full: bool, seed: int) -> Figures:
    """All stores; what was counted.

    Raises:
        CannotCutError: power cannot be cut here.
        PowerCutError: something did not survive.
    """
    figures: dict[str, int | str] = {}

    def cut(kind: str) -> dict[str, int]:
        with Disk.make() as disk, Zygote() as zygote:
            return cut_power(disk, zygote, kind, FULL if full else IN_SUITE, seed)

    with ThreadPoolExecutor() as pool:  # each has a disk of its own, and waits most of the time
        for kind, counted in zip(KINDS, pool.map(cut, KINDS), strict=True):
            figures |= {f"{kind}, {what}": n for what, n in counted.items()}
    with Disk.make() as disk:
        plain = cut_plain_writes(disk, FULL if full else IN_SUITE, seed)
    need(plain.lost_before == 0, "blocks that were synced before the cut are lost: is it a disk?")
    need(plain.after == 0, "blocks were synced after the cut: it was none")
    figures |= {
        "plain, cuts": plain.cuts,
        "plain, acknowledged while the cut was on its way": plain.meanwhile,
        "plain, of these lost": plain.lost_meanwhile,
    }
    return figures | {"acknowledged batches lost": 0}  # or it had raised
