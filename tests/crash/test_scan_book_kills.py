"""Pages of a book, four at once, killed from outside: every sum stays exact, no page is lost.

What was begun is known from a file that the processes append to before they begin a page; what
was saved is read from the store after every kill.  The two together say whom a kill has hit.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import attrs
import pytest
import trio

from tests.hangs import PROGRAM_S
from trio_ckpt import Progress, Status
from trio_ckpt._journal.history import read_pages
from trio_ckpt.stores import open_store

ROOT = Path(__file__).parents[2]
KILLS = 50
PAGES = 40
WORKERS = 4
LATENCY_S = 0.01  # of the pretended model, so that kills meet pages at work
LONGEST_S = 0.6  # from the start of a process to a kill that nothing announces

Attempt = tuple[str, int, int]  # stage, page, attempt

BOOK = "".join(
    f"Chapter  {page}:   teh page\n  has ``quotes'' and num-\nber {page * 7919 % 101}.\n"
    for page in range(1, PAGES + 1)
)


@attrs.frozen
class Stage:
    """What the store knows of a stage, and what the records of its history add up to."""

    progress: Progress
    spent: Mapping[str, Fraction]

    def has_saved(self, page: int, attempt: int) -> bool:
        """Whether an attempt at a page left a record."""
        failed = self.progress.failures.get(page)
        has_failed = failed is not None and failed.attempts >= attempt
        return page in self.progress.confirmed or has_failed


async def read_stages(folder: Path) -> dict[str, Stage]:
    """Read the store, as another process finds it."""
    store = await open_store(folder)
    stages = {}
    view = await store.load_run("book")
    for key, entry in view.streams.items() if view is not None else ():
        spent: dict[str, Fraction] = {}
        async for page in read_pages(store, "book", 0, key):
            for _, record in page:
                for name, amount in record.spent.items():
                    spent[name] = spent.get(name, Fraction()) + Fraction(amount)
        stages["/".join(key)] = Stage(entry.progress, spent)
    await store.aclose()
    return stages


def exact(stage: Stage, kind: str) -> dict[str, Fraction]:
    """Its sums of "totals" or "spent", before they are rounded."""
    sums = getattr(stage.progress, kind)
    return {name: Fraction(value.numerator, 1 << value.shift) for name, value in sums.items()}


@attrs.define(eq=False)
class Scan:
    """One book in a folder, and the processes that work on it, one after the other.

    Attributes:
        out: The folder.
        kills: How many processes were killed.
        begun: How often each attempt was begun.
        hits: How often a kill met it: begun, and not saved.
    """

    out: Path
    kills: int = 0
    begun: Counter[Attempt] = attrs.Factory(Counter)
    hits: Counter[Attempt] = attrs.Factory(Counter)

    def start(self) -> subprocess.Popen[bytes]:
        """The next process; logging opens its file with O_APPEND, one write for a line."""
        self.out.mkdir(exist_ok=True)
        (self.out / "book.txt").write_text(BOOK)
        command = [sys.executable, "-m", "examples.scan_book", str(self.out / "book.txt")]
        command += ["--out", str(self.out), "--log", str(self.out / "begun.log")]
        command += ["--lines-per-page", "3", "--latency", str(LATENCY_S)]
        return subprocess.Popen(
            [*command, "--workers", str(WORKERS)], cwd=ROOT, stderr=subprocess.DEVNULL
        )

    def read_log(self) -> list[Attempt]:
        """Every attempt that was begun, in order."""
        path = self.out / "begun.log"
        text = path.read_text() if path.exists() else ""
        found = re.findall(r"^(\w+) page (\d+) attempt (\d+)$", text, re.MULTILINE)
        return [(stage, int(page), int(attempt)) for stage, page, attempt in found]

    def run(self, chance: random.Random | None = None) -> int:
        """Run a process to its end, or to its death at a moment left to chance."""
        before = len(self.read_log())
        process = self.start()
        try:
            if chance is not None and self._wait_for_moment(process, chance):
                os.kill(process.pid, signal.SIGKILL)
            code = process.wait(PROGRAM_S)
        finally:
            process.kill()
            process.wait()
        self._take_stock(self.read_log()[before:], was_killed=code == -signal.SIGKILL)
        return code

    def _wait_for_moment(self, process: subprocess.Popen[bytes], chance: random.Random) -> bool:
        """Wait for some pages to begin, or some time from the start; False: it ended before."""
        pages = chance.choice([0, chance.randint(1, 12)])
        pause_s = chance.random() * (0.01 if pages else LONGEST_S)
        goal, deadline = len(self.read_log()) + pages, time.monotonic() + PROGRAM_S
        while len(self.read_log()) < goal:
            if process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                pytest.fail(f"{pages} pages were not begun within {PROGRAM_S} s")
            time.sleep(0.001)
        time.sleep(pause_s)
        return process.poll() is None

    def _take_stock(self, begun: list[Attempt], *, was_killed: bool) -> None:
        self.begun.update(begun)
        if not was_killed:
            return
        self.kills += 1
        stages = trio.run(read_stages, self.out / "book.ckpt")
        hits = [a for a in begun if a[0] not in stages or not stages[a[0]].has_saved(*a[1:])]
        assert len(hits) <= WORKERS, "a kill cost more than what was in flight"
        self.hits.update(hits)

    def pages(self) -> dict[str, bytes]:
        """Every file of both stages, whatever its name."""
        files = [*(self.out / "extract").iterdir(), *(self.out / "correct").iterdir()]
        return {path.relative_to(self.out).as_posix(): path.read_bytes() for path in files}


def test_sigkill_at_random_moments_changes_no_sum_and_no_page(tmp_path: Path) -> None:
    whole = Scan(tmp_path / "whole")
    assert whole.run() == 0
    wanted = trio.run(read_stages, whole.out / "book.ckpt")
    assert len(whole.pages()) == 2 * PAGES
    assert any(attempt > 1 for _, _, attempt in whole.begun), "nothing was refused: spent is dull"

    chance = random.Random(50)
    kills, hits, scans = 0, 0, 0
    while kills < KILLS:
        scans += 1  # one that ends before its kill leaves the number of kills as it is
        scan = Scan(tmp_path / f"scan {scans}")
        while (code := scan.run(chance if kills + scan.kills < KILLS else None)) != 0:
            assert code == -signal.SIGKILL
        assert scan.pages() == whole.pages()
        check_stages(trio.run(read_stages, scan.out / "book.ckpt"), wanted)
        assert set(scan.begun) == set(whole.begun)
        for attempt, times in scan.begun.items():
            assert times == 1 + scan.hits[attempt], f"{attempt} was saved, and done again"
        kills, hits = kills + scan.kills, hits + scan.hits.total()
    assert kills == KILLS
    assert hits >= KILLS // 5, "too few kills met a page at work to show anything"


def check_stages(stages: dict[str, Stage], wanted: dict[str, Stage]) -> None:
    """See that two runs have produced and spent the same, to the last bit."""
    for name in ("extract", "correct"):
        stage, other = stages[name], wanted[name]
        assert stage.progress.status is Status.COMPLETE
        assert stage.progress.records == other.progress.records == PAGES
        produced, spent = exact(stage, "totals"), exact(stage, "spent")
        assert produced == exact(other, "totals")
        assert spent == stage.spent, "spent is not the sum of what was saved"
        assert spent == exact(other, "spent"), "what a kill cut off was never saved"
        assert all(spent[key] >= produced[key] for key in spent)
