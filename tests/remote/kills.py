"""Kill -9 of foreman, workers and client in a random order: the results are those of no kill.

python -m tests.remote.kills SCHEDULES [FIRST_SEED]

Each is a process of its own, with the store on disk.  What the functions do leaves a line in a
file each time, so what was done twice is counted.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
MODULE = "tests.engines.jobs"
ITEMS = 5
STEPS = 20
STEP_S = 0.05
INTERVAL_S = 0.2
MAX_S = 90.0
SECRET = "a secret of 16 bytes or more"  # of a test

CLIENT = """
import sys, trio
from trio_ckpt import remote

async def main():
    url, marks, items, interval_s = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    async with remote.connect(url, secret=sys.argv[5]) as client:
        items = [[marks, n] for n in range(items)]
        print(await client.map("tests.engines.jobs:steps", items, job_id="job-k", losses=1000,
                               checkpoint_interval_s=interval_s))

trio.run(main)
"""


@attrs.frozen
class Outcome:
    """What a schedule has shown.

    Attributes:
        results: What the client got.
        kills: How often each kind of process was killed.
        steps: How often each step of each item was done.
        seconds: How long it took.
    """

    results: str
    kills: Counter[str]
    steps: Counter[tuple[int, int]]
    seconds: float

    @property
    def wanted(self) -> str:
        """What the client should have got."""
        return str([STEPS * (STEPS + 1) // 2 + n for n in range(ITEMS)])

    @property
    def redone(self) -> int:
        """Steps that were done again, all together."""
        return sum(self.steps.values()) - len(self.steps)

    @property
    def allowed(self) -> int:
        """Steps that may be: for each kill of a worker an interval of what it had, and what was on
        its way; a foreman that is killed may lose its workers, if it is away for long."""
        per_loss = int(INTERVAL_S / STEP_S) + 6
        return (self.kills["worker"] + 2 * self.kills["foreman"]) * 2 * per_loss


class Cast:
    """The processes of one schedule."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.url = f"ws://127.0.0.1:{port}"
        self.port = port
        self.env = {**os.environ, "TRIO_CKPT_SECRET": SECRET, "PYTHONPATH": str(ROOT)}
        (folder / "marks").mkdir()

    def start(self, kind: str) -> subprocess.Popen[str]:
        """Start one of a kind."""
        program = [sys.executable, "-m", "trio_ckpt"]
        arguments = {
            "foreman": [*program, "foreman", str(self.folder / "s"), "--port", str(self.port)],
            "worker": [*program, "worker", self.url, "--allow", MODULE, "--slots", "2"],
            "client": [
                *(sys.executable, "-c", CLIENT, self.url, str(self.folder / "marks")),
                *(str(ITEMS), str(INTERVAL_S), SECRET),
            ],
        }[kind]
        with (self.folder / f"{kind}.err").open("a") as errors:
            return subprocess.Popen(
                arguments,
                cwd=ROOT,
                env=self.env,
                text=True,
                stdout=subprocess.PIPE if kind == "client" else subprocess.DEVNULL,
                stderr=errors,
            )


def end(process: subprocess.Popen[str]) -> None:
    """Kill one, and let go of it."""
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def run_schedule(seed: int, folder: Path) -> Outcome:
    """Kill and start again until the client has its results."""
    rng = random.Random(seed)
    cast = Cast(folder, free_port())
    kinds = ["foreman", "client", "worker", "worker"]
    running = [(kind, cast.start(kind)) for kind in kinds]
    kills: Counter[str] = Counter()
    started = time.monotonic()
    next_kill = started + rng.uniform(1.0, 2.5)
    try:
        while time.monotonic() - started < MAX_S:
            place, client = next((n, p) for n, (kind, p) in enumerate(running) if kind == "client")
            if client.poll() is not None:
                output = client.stdout.read() if client.stdout is not None else ""
                if client.returncode == 0:
                    seconds = time.monotonic() - started
                    return Outcome(output.strip(), kills, read_steps(folder), seconds)
                end(client)
                running[place] = ("client", cast.start("client"))
            if time.monotonic() > next_kill and sum(kills.values()) < 6:
                victim = rng.randrange(len(running))
                kind, process = running[victim]
                end(process)  # with SIGKILL
                kills[kind] += 1
                time.sleep(rng.choice([0.0, 0.0, 0.5]))
                running[victim] = (kind, cast.start(kind))
                next_kill = time.monotonic() + rng.uniform(0.2, 1.5)
            time.sleep(0.02)
        errors = "".join(path.read_text()[-1_500:] for path in folder.glob("*.err"))
        raise AssertionError(f"seed {seed} has not ended; {dict(kills)}; {errors}")
    finally:
        for _kind, process in running:
            end(process)


def read_steps(folder: Path) -> Counter[tuple[int, int]]:
    """How often each step was done."""
    steps: Counter[tuple[int, int]] = Counter()
    for path in (folder / "marks").iterdir():
        for line in path.read_text().split():
            steps[int(path.name), int(line)] += 1
    return steps


def main() -> None:
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    kills: Counter[str] = Counter()
    redone = bad = 0
    for seed in range(first, first + count):
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_schedule(seed, Path(folder))
        kills += outcome.kills
        redone += outcome.redone
        if outcome.results != outcome.wanted or outcome.redone > outcome.allowed:
            bad += 1
            print(f"seed {seed}: {outcome}")
    print(
        f"{count} schedules, {dict(kills)} kills, {redone} of {count * ITEMS * STEPS} steps done "
        f"again, {bad} bad"
    )


if __name__ == "__main__":
    main()
