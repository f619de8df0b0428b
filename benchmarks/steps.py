"""Durable sequential batches: each one is on the disk before its loop gets the next.

1, 8 and 64 loops, each a stream of one run on the SQLite store, with nothing in the body but
``batch.complete()``.  The controls (benchmarks.controls) take turns with ours, ratios are made
within a round, and the median round is shown.  Memory is of a fresh process; so is the time that
the import takes beyond trio's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from benchmarks import Options, Section, Target, folder_bytes, median
from benchmarks.controls import raw_sqlite, thread_hop_sqlite
from benchmarks.peers import PEERS_FOLDER, ensure_environment
from trio_ckpt import Batch, Run, Stream, open_run

LOOPS = (1, 8, 64)
PEERS = ("dbos", "langgraph")
# Long enough for several checkpoints of the write-ahead log in every round.
BATCHES_PER_LOOP = {1: 2_000, 8: 2_000, 64: 1_000}
ROUNDS = 5
QUICK_SHARE = 10  # of the batches
QUICK_ROUNDS = 3
FRESH_BATCHES = 64_000
IMPORT_REPEATS = 7

MIN_OF_THREAD_HOP = 0.85
MIN_OF_RAW = {8: 2.3, 64: 8.0}
MAX_CPU_US = 40.0
MAX_BYTES = 100
MAX_RSS_MB = 35.0
MAX_IMPORT_S = 0.15

_TIME_IMPORT = (
    "import time, trio; started = time.perf_counter(); import trio_ckpt; "
    "print(time.perf_counter() - started)"
)


@attrs.frozen
class Steps:
    """What some loops together came to."""

    per_s: float
    cpu_us: float
    bytes_each: float


async def run_loop(run: Run, name: str, batches: int) -> None:
    """One loop: a stream, and nothing in the body."""
    stream: Stream[None]
    batch: Batch[None]
    async with run.open_stream(name) as stream:
        async for batch in stream.batches():
            batch.complete(last=batch.index == batches - 1)


async def run_loops(folder: Path, loops: int, batches: int) -> tuple[float, float]:
    """Seconds and CPU seconds of all loops, opening and closing the run left out."""
    async with open_run("steps", store=folder, handle_signals=False) as run:
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        async with trio.open_nursery() as nursery:
            for number in range(loops):
                nursery.start_soon(run_loop, run, f"loop {number}", batches)
        return time.perf_counter() - started_s, time.process_time() - started_cpu_s


def ours(folder: Path, loops: int, batches: int) -> Steps:
    """`loops` times `batches` in a new store; its size is that after closing."""
    trio.run(run_loops, folder / "empty", 0, 0)
    seconds, cpu_s = trio.run(run_loops, folder / "store", loops, batches)
    count = loops * batches
    grown = folder_bytes(folder / "store") - folder_bytes(folder / "empty")
    return Steps(count / seconds, cpu_s / count * 1e6, grown / count)


def peak_rss_bytes() -> int:
    """The most memory held so far; ru_maxrss would count that of the parent before the exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def fresh_rss_mb(folder: Path, batches: int) -> float:
    """The peak memory of a fresh process that runs 64 loops."""
    command = [sys.executable, "-m", "benchmarks.steps", "--folder", str(folder)]
    done = subprocess.run([*command, "--batches", str(batches)], check=True, stdout=subprocess.PIPE)
    return float(done.stdout) / 1e6


def import_s(repeats: int) -> float:
    """Seconds that importing takes in a fresh process that has trio already."""
    command = [sys.executable, "-c", _TIME_IMPORT]
    return median(
        [
            float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            for _ in range(repeats)
        ]
    )


def peer(name: str, python: Path, folder: Path, loops: int, steps: int) -> dict[str, float]:
    """The figures that a peer prints about itself."""
    folder.mkdir()
    command = [str(python), str(PEERS_FOLDER / f"{name}_steps.py"), "--steps", str(steps)]
    done = subprocess.run(
        [*command, "--loops", str(loops), "--folder", str(folder)],
        check=True,
        stdout=subprocess.PIPE,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


@attrs.define
class Rounds:
    """Every round's figures, in the order of the rounds."""

    raw_per_s: list[float] = attrs.field(factory=list)
    raw_cpu_us: list[float] = attrs.field(factory=list)
    hop_per_s: list[float] = attrs.field(factory=list)
    hop_cpu_us: list[float] = attrs.field(factory=list)
    ours: dict[int, list[Steps]] = attrs.field(factory=lambda: {loops: [] for loops in LOOPS})

    def add(self, folder: Path, share: int) -> None:
        """Measure one round."""
        commits = BATCHES_PER_LOOP[1] // share
        raw = raw_sqlite(folder, commits)
        self.raw_per_s.append(raw.per_s)
        self.raw_cpu_us.append(raw.cpu_us)
        hop = thread_hop_sqlite(folder, commits)
        self.hop_per_s.append(hop.per_s)
        self.hop_cpu_us.append(hop.cpu_us)
        for loops in LOOPS:
            home = folder / str(loops)
            home.mkdir()
            self.ours[loops].append(ours(home, loops, BATCHES_PER_LOOP[loops] // share))

    def of(self, loops: int, get: Callable[[Steps], float]) -> float:
        """A figure of the median round."""
        return median([get(steps) for steps in self.ours[loops]])

    def ratio(self, loops: int, control_per_s: list[float]) -> float:
        """Our rate against a control's of the same round, the median."""
        pairs = zip(self.ours[loops], control_per_s, strict=True)
        return median([steps.per_s / control for steps, control in pairs])


def judge(rounds: Rounds, rss_mb: float, imported_s: float) -> list[Target]:
    """The targets of ours."""
    return [
        Target(
            "1 loop against thread_hop_sqlite",
            rounds.ratio(1, rounds.hop_per_s),
            MIN_OF_THREAD_HOP,
            "x",
            at_least=True,
        ),
        *(
            Target(
                f"{loops} loops against raw_sqlite",
                rounds.ratio(loops, rounds.raw_per_s),
                limit,
                "x",
                at_least=True,
            )
            for loops, limit in MIN_OF_RAW.items()
        ),
        Target("64 loops: CPU", rounds.of(64, lambda s: s.cpu_us), MAX_CPU_US, "us/batch"),
        *(
            Target(
                f"{loops} loops: database",
                rounds.of(loops, lambda s: s.bytes_each),
                MAX_BYTES,
                "bytes/batch",
            )
            for loops in LOOPS
        ),
        Target("peak memory of a fresh process", rss_mb, MAX_RSS_MB, "MB"),
        Target("import beyond trio", imported_s, MAX_IMPORT_S, "s"),
    ]


def line(name: str, per_s: float, cpu_us: float, raw: float, hop: float, size: str = "") -> str:
    """One row of the table."""
    return f"{name:<20} {per_s:>9,.0f} {cpu_us:>8,.0f} {raw:>7.2f} {hop:>7.2f} {size:>8}"


def measure(options: Options) -> Section:
    """Run it."""
    share = QUICK_SHARE if options.is_quick else 1
    rounds = Rounds()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="steps-") as temporary:
        home = Path(temporary)
        for number in range(QUICK_ROUNDS if options.is_quick else ROUNDS):
            folder = home / f"round {number}"
            folder.mkdir()
            rounds.add(folder, share)
        rss_mb = fresh_rss_mb(home / "fresh", FRESH_BATCHES // share)
        imported_s = import_s(IMPORT_REPEATS)
        peers = measure_peers(options, home, 1_000 // share)

    raw, hop = median(rounds.raw_per_s), median(rounds.hop_per_s)
    lines = [
        f"{'':<20} {'per s':>9} {'CPU us':>8} {'x raw':>7} {'x hop':>7} {'bytes':>8}",
        line("raw_sqlite", raw, median(rounds.raw_cpu_us), 1, raw / hop),
        line("thread_hop_sqlite", hop, median(rounds.hop_cpu_us), hop / raw, 1),
    ]
    figures: dict[str, object] = {
        "raw_per_s": rounds.raw_per_s,
        "thread_hop_per_s": rounds.hop_per_s,
        "rss_mb": rss_mb,
        "import_s": imported_s,
        "peers": peers,
    }
    for loops in LOOPS:
        figures[f"loops {loops}"] = [attrs.asdict(steps) for steps in rounds.ours[loops]]
        lines.append(
            line(
                f"ours, {loops} loops",
                rounds.of(loops, lambda s: s.per_s),
                rounds.of(loops, lambda s: s.cpu_us),
                rounds.ratio(loops, rounds.raw_per_s),
                rounds.ratio(loops, rounds.hop_per_s),
                f"{rounds.of(loops, lambda s: s.bytes_each):.0f}",
            )
        )
    for name, each in peers.items():
        cpu_us = each["cpu_s"] / each["steps"] * 1e6
        size = f"{each['db_bytes'] / each['steps']:.0f}"
        per_s = each["steps_per_s"]
        lines.append(line(name, per_s, cpu_us, per_s / raw, per_s / hop, size))
    lines.append(f"peak memory {rss_mb:.1f} MB, import beyond trio {imported_s * 1000:.0f} ms")
    if not peers:
        lines.append("peers: left out, give --peers-cache")
    return Section(figures, lines, judge(rounds, rss_mb, imported_s))


def measure_peers(options: Options, home: Path, steps: int) -> dict[str, dict[str, float]]:
    """The peers by as many loops as ours, where their environment may be made."""
    if options.peers_cache is None:
        return {}
    python = ensure_environment(options.peers_cache)
    return {
        f"{name}, {loops} loops": peer(name, python, home / f"{name} {loops}", loops, steps)
        for name in PEERS
        for loops in LOOPS
    }


def main() -> None:
    """Run 64 loops and print this process's peak memory in bytes: what measure starts afresh."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--folder", type=Path, required=True, help="of a new store")
    parser.add_argument("--batches", type=int, default=FRESH_BATCHES)
    options = parser.parse_args()
    trio.run(run_loops, options.folder, 64, options.batches // 64)
    if "numpy" in sys.modules:
        raise RuntimeError("NumPy was imported; the figure is to be without it")
    print(peak_rss_bytes())


if __name__ == "__main__":
    main()
