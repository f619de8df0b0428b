"""Workers that are stopped past their lease and wake: nothing of theirs is saved any more.

A foreman and two workers are processes of their own, connected over loopback.  The one that has
a work item is stopped, at a random moment or around a save; when its lease is lost the other one
goes on with the item, and the first is woken.  The foreman writes down every save that its store
was asked for, with the owner number, what became of it, and who had made the state in it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from tests.crash.far_job import STEP_S, pids
from trio_ckpt import remote
from trio_ckpt._journal.record import decode_record
from trio_ckpt._util.plain import decode_key
from trio_ckpt.abc import Checkpoint, Fold, RunKey
from trio_ckpt.remote._wire.names import task_id_of
from trio_ckpt.stores import open_store
from trio_ckpt.stores._local.store import LocalStore

ROOT = Path(__file__).parents[2]
SECRET = "a secret of 16 bytes or more"  # of a test
STEPS = 40
INTERVAL_S = 2 * STEP_S  # so that a save is on its way most of the time
HEARTBEAT_S, SILENCE_S, GRACE_S = 0.1, 0.5, 0.1  # a lease is lost in 0.6 s, not in 50
LIMIT_S = 60.0
WHERES = ("before", "after", "")


class FarError(AssertionError):
    """Something that must hold does not."""


def need(condition: object, what: str) -> None:
    """See that something holds."""
    if not condition:
        raise FarError(what)


# -- the foreman ----------------------------------------------------------------------------


async def be_foreman(folder: Path) -> None:
    """Serve, say the port, and write down every save."""
    real = LocalStore.save
    log = (folder / "saves.log").open("a", buffering=1)

    async def save(
        self: LocalStore,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        error, outcomes = None, list[Exception | None]()
        try:
            outcomes = await real(self, run, group, folds)
        except Exception as raised:
            error = raised
            raise
        finally:
            for place, checkpoint in enumerate(group):
                outcome = error if error is not None else outcomes[place]
                row = describe(self, run, checkpoint)
                log.write(json.dumps({**row, "refused": outcome and str(outcome)}) + "\n")
        return outcomes

    LocalStore.save = save  # type: ignore[method-assign]  # this process does nothing else
    store = await open_store(folder / "store")
    async with trio.open_nursery() as nursery:
        serve = partial(
            remote.serve_foreman,
            store,
            secret=SECRET,
            grace_s=GRACE_S,
            heartbeat_s=HEARTBEAT_S,
            silence_s=SILENCE_S,
            port=0,
        )
        foreman = await nursery.start(serve)
        print(foreman.url, flush=True)


def describe(store: LocalStore, run: RunKey, checkpoint: Checkpoint) -> dict[str, Any]:
    """A row of the log; the label of a point says which process has made the state."""
    seal = store.seal(run.run_id, run.generation, decode_key(checkpoint.stream))
    label = ""
    if checkpoint.blob is None:
        record = decode_record(seal.open(checkpoint.sequence, checkpoint.payload))
        label = str(record.metadata.get("label", ""))
    return {
        "run": run.run_id,
        "owner": run.owner,
        "stream": checkpoint.stream,
        "sequence": checkpoint.sequence,
        "label": label,
    }


# -- the site -------------------------------------------------------------------------------


@attrs.define(eq=False)
class FarSite:
    """A foreman and two workers; use it as a context manager."""

    folder: Path = attrs.field(
        factory=lambda: Path(tempfile.mkdtemp(prefix="far-owners-")), init=False
    )
    url: str = attrs.field(default="", init=False)
    workers: list[subprocess.Popen[str]] = attrs.field(
        factory=list["subprocess.Popen[str]"], init=False
    )
    _stack: ExitStack = attrs.field(factory=ExitStack, init=False)

    def __enter__(self) -> FarSite:
        foreman = self._start("-m", "tests.crash.far_owners", str(self.folder))
        assert foreman.stdout is not None
        self.url = foreman.stdout.readline().strip()
        worker = ("-m", "trio_ckpt", "worker", self.url, "--allow", "tests.crash.far_job")
        self.workers += [self._start(*worker) for _ in range(2)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        shutil.rmtree(self.folder)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "TRIO_CKPT_SECRET": SECRET, "PYTHONPATH": str(ROOT)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._stack.callback(_end, process)
        return process

    def saves(self) -> list[dict[str, Any]]:
        """What the store was asked to save."""
        text = (self.folder / "saves.log").read_text()
        whole, _, _ = text.rpartition("\n")  # a line may be on its way
        return [json.loads(line) for line in whole.splitlines()]


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


# -- one schedule ---------------------------------------------------------------------------


@attrs.define
class FarZombie:
    """One worker that is stopped past its lease, and wakes."""

    site: FarSite
    number: int
    chance: random.Random
    figures: Counter[str]

    async def run(self) -> None:
        """One schedule."""
        marks = self.site.folder / f"marks-{self.number}"
        where = WHERES[self.number % len(WHERES)]
        stop_at = self.chance.randint(2, STEPS - 10)
        job_id = f"job-{self.number}"
        results: list[Any] = []

        async def submit() -> None:
            item = [str(marks), STEPS, stop_at, where]
            async with remote.connect(self.site.url, secret=SECRET) as client:
                results.extend(
                    await client.map(
                        "tests.crash.far_job:steps",
                        [item],
                        job_id=job_id,
                        losses=1000,
                        checkpoint_interval_s=INTERVAL_S,
                    )
                )

        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(submit)
                zombie = await self._stop(marks, stop_at, where)
                await self._until(lambda: len(pids(marks)) > 1)
                await trio.sleep(self.chance.random() * STEPS * STEP_S)
                os.kill(zombie, signal.SIGCONT)
                self.figures["woken"] += 1
        need(results == [STEPS * (STEPS + 1) // 2], f"the result is {results}")
        self._check_saves(job_id, str(zombie))
        self._count_steps(marks, str(zombie))

    async def _stop(self, marks: Path, stop_at: int, where: str) -> int:
        """Stop who has the item, or wait until it has stopped itself; its process."""
        wanted = stop_at if not where else 1
        await self._until(lambda: marks.exists() and len(marks.read_text().split("\n")) > wanted)
        pid = int(pids(marks)[0])
        if not where:
            await trio.sleep(self.chance.random() * STEP_S)
            os.kill(pid, signal.SIGSTOP)
        await self._until(lambda: _is_stopped(pid))
        return pid

    async def _until(self, is_true: Callable[[], bool]) -> None:
        while not is_true():  # noqa: ASYNC110  # other processes set no events
            await trio.sleep(0.002)

    def _check_saves(self, job_id: str, zombie: str) -> None:
        rows = [row for row in self.site.saves() if row["run"] == task_id_of(job_id, 0)]
        problems = problems_of_saves(rows, zombie)
        need(not problems, f"{problems}")
        results = Counter(
            (row["stream"], row["sequence"])
            for row in self.site.saves()
            if row["run"] == job_id and row["refused"] is None
        )
        need(results and max(results.values()) == 1, f"the job was saved so: {results}")
        self.figures["saves"] += len(rows)

    def _count_steps(self, marks: Path, zombie: str) -> None:
        """How many steps the woken one made in vain, before it heard that it had lost."""
        makers = [line.split()[0] for line in marks.read_text().splitlines()]
        heir = next(place for place, maker in enumerate(makers) if maker != zombie)
        self.figures["steps in vain of woken ones"] += makers[heir:].count(zombie)


def problems_of_saves(rows: Sequence[dict[str, Any]], zombie: str) -> list[str]:
    """What is wrong with what was saved of an item that one process has lost to another.

    Args:
        rows: Everything that the store was asked to save of it, in order.
        zombie: The process that had lost it.
    """
    problems = []
    saved = [row for row in rows if row["refused"] is None]
    places = Counter((row["stream"], row["sequence"]) for row in saved)
    problems += [f"{place} was saved {n} times" for place, n in places.items() if n > 1]
    owners = [row["owner"] for row in saved]
    if owners != sorted(owners):
        problems.append(f"an older owner saved after a newer one: {owners}")
    makers = {(row["owner"], row["label"].split()[0]) for row in saved if row["label"]}
    if len({maker for _, maker in makers}) < 2:
        problems.append(f"there was no takeover, or nothing saved that shows it: {makers}")
    if len(makers) != len({owner for owner, _ in makers}):
        problems.append(f"two processes saved as one owner: {makers}")
    if (max(owners), zombie) in makers:
        problems.append("the one that had lost it saved as its newest owner")
    return problems


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


def wake_far_zombies(times: int, seed: int) -> dict[str, int]:
    """So many schedules; what was counted."""
    figures: Counter[str] = Counter()
    with FarSite() as site:
        for number in range(times):
            chance = random.Random(f"far {seed} {number}")
            try:
                trio.run(FarZombie(site, number, chance, figures).run)
            except* FarError as error:
                problems = "; ".join(map(str, error.exceptions))
                raise FarError(f"far schedule {number} of seed {seed}: {problems}") from error
    return dict(figures)


if __name__ == "__main__":
    trio.run(be_foreman, Path(sys.argv[1]))
