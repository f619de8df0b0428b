"""Processes that share a collection on one store, and are killed again and again.

    python -m tests.crash.collection [--partitions N] [--processes N] [--kills N] [--store URL]

Each process claims partitions until none is left, and does the last phase if it is the first at it.
Each claim is a line in the journal of its process.  SIGKILL hits a random process whenever a random
number of partitions more has been claimed; another is started in its place.  Until the last kill
the last partition waits, so the work is not over before it, however fast the machine is.  When all
have ended by themselves, each batch has been confirmed once, by the records of all partitions; the
last phase is done; and no record was lost.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import attrs
import trio

from tests.hangs import PROGRAM_S
from trio_ckpt import open_collection
from trio_ckpt._journal.collection import FINISH
from trio_ckpt._journal.history import iter_records, list_all_runs
from trio_ckpt._journal.record import RecordKind
from trio_ckpt._util.plain import PHASE
from trio_ckpt.stores import open_store

MODULE = "tests.crash.collection"
ROOT = Path(__file__).parents[2]
NAME = "crawl"
BATCHES = 10  # of a partition
POLL_S = 0.005
ALL_KILLED = "all-killed"  # a file beside the journals, when no process is killed any more
STREAM = ("pages",)


@attrs.frozen
class Plan:
    """What is shared, and by how many.

    Attributes:
        folder: Where the store and the journals lie.
        url: The store.
        partitions: How many partitions.
        processes: How many processes at a time.
        kills: How many of them are killed.
        pause_s: How long each batch takes, in seconds.
    """

    folder: Path
    url: str
    partitions: int
    processes: int
    kills: int
    pause_s: float = 0.0


@attrs.frozen
class Outcome:
    """What is found when all processes have ended.

    Attributes:
        kills: How many processes were killed while they worked.
        starts: How many were started.
        confirmed: How often each item was confirmed, by the records.
        finished: How many records complete the last phase.
        runs: How many runs are complete, the collection's own included.
        partitions_again: How many partitions were claimed more than once.
        codes: How processes that were not killed have ended.
    """

    kills: int
    starts: int
    confirmed: Counter[int]
    finished: int
    runs: int
    partitions_again: int
    codes: Counter[int]


def note(path: str, text: str) -> None:
    """Append a line, whatever kills this process afterwards."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{text}\n")


async def wait_for_file(path: Path) -> None:
    while not await trio.Path(path).exists():  # noqa: ASYNC110  # another process tells nothing
        await trio.sleep(POLL_S)


async def take_part(url: str, partitions: int, pause_s: float, journal: str) -> int:
    """What each process does; returns its exit code."""
    async with open_collection(
        NAME, store=url, partitions=partitions, items=partitions * BATCHES
    ) as collection:
        note(journal, "begun")
        while True:
            async with collection.claim() as partition:
                if partition is None:
                    break
                note(journal, f"claimed {partition.index}")
                if partition.index == partitions - 1:
                    await wait_for_file(Path(journal).with_name(ALL_KILLED))
                async with partition.run.open_stream(*STREAM) as stream:
                    async for batch in stream.batches(partition.range):
                        await trio.sleep(pause_s)
                        batch.complete(records=1)
        async with collection.finish() as run:
            if run is not None:
                async with run.open_stream("merge") as stream:
                    async for batch in stream.batches(range(3)):
                        batch.complete()
        return collection.exit_code


def read_claims(plan: Plan) -> list[str]:
    """The lines of all journals that say which partition was claimed."""
    texts = [journal.read_text() for journal in plan.folder.glob("journal-*")]
    return [line for text in texts for line in text.splitlines() if line.startswith("claimed")]


class Herd:
    """The processes of one plan."""

    def __init__(self, plan: Plan, chance: random.Random) -> None:
        self._plan = plan
        self._chance = chance
        self._living: list[subprocess.Popen[bytes]] = []
        self.starts = 0
        self.kills = 0
        self.codes = Counter[int]()

    def _start(self) -> None:
        plan = self._plan
        journal = plan.folder / f"journal-{self.starts}"
        command = [sys.executable, "-m", MODULE]
        command += ["--take-part", str(journal), "--store", plan.url]
        command += ["--partitions", str(plan.partitions), "--pause-s", str(plan.pause_s)]
        self._living.append(subprocess.Popen(command, cwd=ROOT))
        self.starts += 1

    def run(self) -> None:
        """Start processes, kill as many as the plan says, and wait for the others.

        When one is killed is a matter of how far the work has come, not of time: a fast machine is
        killed as often as a slow one.
        """
        step = self._plan.partitions / (self._plan.kills + 1)
        deadline = time.monotonic() + PROGRAM_S * max(1, self._plan.kills / 10)
        try:
            while self.kills < self._plan.kills:
                while len(self._living) < self._plan.processes:
                    self._start()
                claims = step * (self.kills + self._chance.random())
                while len(read_claims(self._plan)) < claims:
                    assert time.monotonic() < deadline
                    assert all(process.poll() is None for process in self._living)
                    time.sleep(POLL_S)
                victim = self._chance.choice(self._living)
                victim.send_signal(signal.SIGKILL)
                self._reap(victim)
            (self._plan.folder / ALL_KILLED).touch()
            while self._living:
                self._reap(self._living[0])
        finally:
            for process in self._living:
                process.kill()

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait(PROGRAM_S)
        self._living.remove(process)
        if code == -signal.SIGKILL:
            self.kills += 1
        else:
            self.codes[code] += 1


async def judge(plan: Plan, herd: Herd) -> Outcome:
    """Read what all of them have saved."""
    confirmed = Counter[int]()
    finished = complete = 0
    store = await open_store(plan.url)
    try:
        for line in await list_all_runs(store):
            complete += line.is_complete
            view = await store.load_run(line.run_id)
            assert view is not None
            for key in view.streams:
                pages = iter_records(store, line.run_id, view.generation, key)
                async with aclosing(pages) as records:
                    async for _, record in records:
                        if key == (PHASE, FINISH):
                            finished += record.kind is RecordKind.FINISH
                        elif key == STREAM and record.index is not None:
                            index = int(line.run_id.rpartition(".")[2])
                            confirmed[index * BATCHES + record.index] += 1
    finally:
        await store.aclose()
    again = sum(count > 1 for count in Counter(read_claims(plan)).values())
    return Outcome(herd.kills, herd.starts, confirmed, finished, complete, again, herd.codes)


def kill_processes(plan: Plan, chance: random.Random) -> Outcome:
    """Carry out a plan, and see what is left; `chance` chooses who is killed, and when."""
    herd = Herd(plan, chance)
    herd.run()
    return trio.run(judge, plan, herd)


def problems_of(plan: Plan, found: Outcome) -> list[str]:
    """What is not as it must be."""
    items = range(plan.partitions * BATCHES)
    problems: list[str] = []
    if missing := [item for item in items if not found.confirmed[item]]:
        problems.append(f"{len(missing)} batches were never confirmed, such as {missing[0]}")
    if twice := [item for item, count in found.confirmed.items() if count > 1]:
        problems.append(f"{len(twice)} batches were confirmed more than once, such as {twice[0]}")
    if found.finished != 1:
        problems.append(f"the last phase was completed {found.finished} times")
    if found.runs != plan.partitions + 1:
        problems.append(f"{found.runs} runs are complete, not {plan.partitions + 1}")
    if set(found.codes) - {0}:
        problems.append(f"processes ended with {dict(found.codes)}")
    return problems


def main() -> int:
    """Run a plan; 1: something does not hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--partitions", type=int, default=1_000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pause-s", type=float, default=0.03)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", default="")
    parser.add_argument("--take-part", default="")
    options = parser.parse_args()
    if options.take_part:
        given = (options.store, options.partitions, options.pause_s, options.take_part)
        return trio.run(take_part, *given)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = options.store or f"sqlite:{folder / 'store'}"
        sizes = (options.partitions, options.processes, options.kills, options.pause_s)
        plan = Plan(folder, url, *sizes)
        began = time.monotonic()
        found = kill_processes(plan, random.Random(options.seed))
        print(
            f"{plan.partitions} partitions, {plan.processes} processes, {found.kills} killed of "
            f"{found.starts} started, {time.monotonic() - began:.0f} s: "
            f"{len(found.confirmed)} batches confirmed, the last phase completed {found.finished} "
            f"times; {found.partitions_again} partitions were claimed more than once"
        )
        problems = problems_of(plan, found)
        print("\n".join(problems) or "all holds")
        return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
