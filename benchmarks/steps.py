"""Durable sequential batches: each one is on the disk before its loop gets the next.

1, 8 and 64 loops, each a stream of one run on the SQLite store, with nothing in the body but
``batch.complete()``; then 100 and 1,000 streams.  The controls (benchmarks.controls) take turns
with ours, ratios are made within a round, and the median round is shown.
"""

import json
import subprocess
import tempfile
import time
from pathlib import Path

import attrs
import trio

from benchmarks import Found, Options, Section, best, folder_bytes, median, median_ratio
from benchmarks.controls import ROW_BYTES, Figures, raw_sqlite, thread_hop_sqlite
from benchmarks.peers import PEERS_FOLDER, ensure_environment, with_version
from trio_ckpt import Batch, Run, Stream, open_run

LOOPS = (1, 8, 64)
STREAMS = (100, 1_000)  # as many loops: what a batch costs must not grow with them
PEERS = {"dbos": "DBOS", "langgraph": "LangGraph"}
# Long enough for several checkpoints of the write-ahead log in every round.
BATCHES_PER_LOOP = {1: 2_000, 8: 2_000, 64: 1_000, 100: 50, 1_000: 50}
QUICK_BATCHES_PER_LOOP = {1: 50, 8: 10, 64: 2, 100: 1, 1_000: 1}
ROUNDS = 5
QUICK_ROUNDS = 1
STEPS = 1_000  # of a peer
QUICK_STEPS = 100


@attrs.frozen
class Steps:
    """What some loops together came to, ours or a peer's."""

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


def peer(name: str, python: Path, folder: Path, loops: int, steps: int) -> Steps:
    """What a peer prints about itself."""
    folder.mkdir()
    command = [str(python), str(PEERS_FOLDER / f"{name}_steps.py"), "--steps", str(steps)]
    done = subprocess.run(
        [*command, "--loops", str(loops), "--folder", str(folder)],
        check=True,
        stdout=subprocess.PIPE,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    cpu_us, bytes_each = figures["cpu_s"] / steps * 1e6, figures["db_bytes"] / steps
    return Steps(figures["steps_per_s"], cpu_us, bytes_each)


@attrs.define
class Rounds:
    """Every round's figures, in the order of the rounds."""

    raw: list[Figures] = attrs.field(factory=list)
    hop: list[Figures] = attrs.field(factory=list)
    ours: dict[int, list[Steps]] = attrs.field(
        factory=lambda: {loops: [] for loops in BATCHES_PER_LOOP}
    )

    def add(self, folder: Path, batches_per_loop: dict[int, int]) -> None:
        """Measure one round."""
        self.raw.append(raw_sqlite(folder, batches_per_loop[1]))
        self.hop.append(thread_hop_sqlite(folder, batches_per_loop[1]))
        for loops, batches in batches_per_loop.items():
            home = folder / str(loops)
            home.mkdir()
            self.ours[loops].append(ours(home, loops, batches))

    def middle(self, loops: int) -> Steps:
        """Each figure of the median round."""
        each = self.ours[loops]
        return Steps(
            median([steps.per_s for steps in each]),
            median([steps.cpu_us for steps in each]),
            median([steps.bytes_each for steps in each]),
        )

    def ratio(self, loops: int, control: list[Figures]) -> float:
        """Our rate against a control's of the same round, the median."""
        rates = [steps.per_s for steps in self.ours[loops]]
        return median_ratio(rates, [figures.per_s for figures in control])


Peers = dict[int, dict[str, Steps]]  # by loops and by name


def judge(rounds: Rounds, peers: Peers) -> dict[str, Found]:
    """What belongs to the rows of the table."""
    raw = f"{median([figures.per_s for figures in rounds.raw]):,.0f}/s"
    hop = f"{median([figures.per_s for figures in rounds.hop]):,.0f}/s"
    raw_cpu = f"{median([figures.cpu_us for figures in rounds.raw]):,.0f} us"
    cpu_us = {loops: [steps.cpu_us for steps in each] for loops, each in rounds.ours.items()}
    rates = {
        loops: best({name: each.per_s for name, each in of_loops.items()}, "/s")
        for loops, of_loops in peers.items()
    }
    least_cpu = best(
        {name: each.cpu_us for name, each in peers.get(64, {}).items()}, " us", least=True
    )
    few, many = STREAMS
    return {
        "1 loop": Found(rounds.ratio(1, rounds.hop), hop, rates.get(1, "")),
        "8 loops": Found(rounds.ratio(8, rounds.raw), raw, rates.get(8, "")),
        "64 loops": Found(rounds.ratio(64, rounds.raw), raw, rates.get(64, "")),
        "64 loops: CPU": Found(median(cpu_us[64]), raw_cpu, least_cpu),
        "1,000 streams": Found(rounds.ratio(many, rounds.raw), raw),
        "CPU of a batch: 1,000 streams against 100": Found(
            median_ratio(cpu_us[many], cpu_us[few]), f"{median(cpu_us[few]):,.0f} us"
        ),
        **{
            f"database of a batch, {loops} loop{'s' if loops > 1 else ''}": Found(
                rounds.middle(loops).bytes_each, f"{ROW_BYTES} bytes and its key"
            )
            for loops in LOOPS
        },
    }


def line(name: str, per_s: float, cpu_us: float, raw: float, hop: float, size: str = "") -> str:
    """One row of the table."""
    return f"{name:<20} {per_s:>9,.0f} {cpu_us:>8,.0f} {raw:>7.2f} {hop:>7.2f} {size:>8}"


def measure(options: Options) -> Section:
    """Run it."""
    batches_per_loop = QUICK_BATCHES_PER_LOOP if options.is_quick else BATCHES_PER_LOOP
    rounds = Rounds()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="steps-") as temporary:
        home = Path(temporary)
        for number in range(QUICK_ROUNDS if options.is_quick else ROUNDS):
            folder = home / f"round {number}"
            folder.mkdir()
            rounds.add(folder, batches_per_loop)
        peers, versions = measure_peers(options, home, QUICK_STEPS if options.is_quick else STEPS)

    raw = median([figures.per_s for figures in rounds.raw])
    hop = median([figures.per_s for figures in rounds.hop])
    raw_cpu_us = median([figures.cpu_us for figures in rounds.raw])
    hop_cpu_us = median([figures.cpu_us for figures in rounds.hop])
    lines = [
        f"{'':<20} {'per s':>9} {'CPU us':>8} {'x raw':>7} {'x hop':>7} {'bytes':>8}",
        line("raw_sqlite", raw, raw_cpu_us, 1, raw / hop),
        line("thread_hop_sqlite", hop, hop_cpu_us, hop / raw, 1),
    ]
    rows = {f"ours, {loops} loops": rounds.middle(loops) for loops in rounds.ours}
    for loops, of_loops in peers.items():
        rows |= {f"{name}, {loops} loops": each for name, each in of_loops.items()}
    lines += [
        line(
            name,
            each.per_s,
            each.cpu_us,
            each.per_s / raw,
            each.per_s / hop,
            f"{each.bytes_each:.0f}",
        )
        for name, each in rows.items()
    ]
    if not peers:
        lines.append("peers: left out, give --peers-cache")
    figures: dict[str, object] = {
        "raw_per_s": [figures.per_s for figures in rounds.raw],
        "thread_hop_per_s": [figures.per_s for figures in rounds.hop],
        "ours": {loops: list(map(attrs.asdict, each)) for loops, each in rounds.ours.items()},
        "peers": {
            loops: {name: attrs.asdict(each) for name, each in of_loops.items()}
            for loops, of_loops in peers.items()
        },
    }
    return Section(figures, lines, judge(rounds, peers), versions)


def measure_peers(options: Options, home: Path, steps: int) -> tuple[Peers, tuple[str, ...]]:
    """The peers by as many loops as ours, and their versions, where they may be installed."""
    if options.peers_cache is None:
        return {}, ()
    python = ensure_environment(options.peers_cache)
    found: Peers = {}
    for module, name in PEERS.items():
        for loops in LOOPS:
            folder = home / f"{module} {loops}"
            found.setdefault(loops, {})[name] = peer(module, python, folder, loops, steps)
    return found, tuple(with_version(python, name) for name in PEERS)
