"""What the readable store costs beside the SQLite store: saves, growth and a start.

One loop whose every batch is durable before the next, on each of the two stores, beside what a
durable append and a durable replacement cost at all (benchmarks.controls), in turns. Then a run of
10,000 pages with an output each: the first 1,000 saves beside the last 1,000 show whether a save
costs more the more there is; and how long a start takes after them.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from benchmarks import Found, Options, Section, folder_bytes, median, median_ratio
from benchmarks.controls import append_fsync, rename_fsync
from benchmarks.steps import run_loops
from trio_ckpt._commit.fold_schedule import RECORDS_PER_FOLD
from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.folds import encode_progress
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import Output, Record, encode_record
from trio_ckpt._util.plain import encode_key
from trio_ckpt.abc import Checkpoint, Fold, RunKey
from trio_ckpt.stores import open_store

SCHEMES = ("json", "sqlite")
BATCHES = 2_000
PAGES = 10_000
EDGE = 1_000  # saves at each end of the run that are compared
ROUNDS = 3
QUICK_ROUNDS = 1
QUICK_SHARE = 50
LOADS = 7

RUN = "pages"
STREAM = ("org/repo", "pulls")


@attrs.frozen
class Pages:
    """What a run of pages came to.

    Attributes:
        first_us: The mean of the first saves, all that they cost included.
        last_us: Of the last.
        worst_ms: The longest of all: where the run was rewritten, or the log taken in.
        seconds: All saves together.
        load_ms: Of a start, the median.
        bytes_each: On the disk at the end.
    """

    first_us: float
    last_us: float
    worst_ms: float
    seconds: float
    load_ms: float
    bytes_each: float


def step_us(folder: Path, scheme: str, batches: int) -> float:
    """Microseconds of a batch of one loop with nothing in it."""
    seconds, _ = trio.run(run_loops, f"{scheme}:{folder / scheme}", 1, batches)
    return seconds / batches * 1e6


def page(index: int) -> Record:
    """The record of a page of the usual size."""
    output = Output(f"org/repo/pulls-{index}.json", 48_213, 1_750_000_000_000_000_000, "ab" * 32)
    totals = {"cost_usd": 0.0125}
    return Record(at=time.time(), index=index, records=30, outputs=(output,), totals=totals)


async def run_pages(url: str, pages: int, edge: int) -> Pages:
    """Save so many pages one after the other, and read them as a start does."""
    taken: list[float] = []
    text = encode_key(STREAM)
    progress = Progress()
    store = await open_store(url)
    try:
        seal = store.seal(RUN, 0, STREAM)
        async with store.lock_run(RUN) as owner:
            run = RunKey(RUN, 0, owner)
            for number in range(1, pages + 1):
                record = page(number)
                apply(progress, number, record)
                payload = seal.close(number, encode_record(record))
                folds: list[Fold] = []
                if number % RECORDS_PER_FOLD == 0:
                    folds = [Fold(text, number, seal.close(-number, encode_progress(progress)))]
                started = time.perf_counter()
                outcomes = await store.save(run, [Checkpoint(text, number, payload)], folds)
                taken.append(time.perf_counter() - started)
                assert outcomes == [None], "the store refused a checkpoint"
    finally:
        await store.aclose()
    load_ms = await time_load(url, pages)
    return Pages(
        first_us=sum(taken[:edge]) / edge * 1e6,
        last_us=sum(taken[-edge:]) / edge * 1e6,
        worst_ms=max(taken) * 1e3,
        seconds=sum(taken),
        load_ms=load_ms,
        bytes_each=folder_bytes(Path(url.partition(":")[2])) / pages,
    )


async def time_load(url: str, pages: int) -> float:
    """Milliseconds of `load_run`, the median; the store is open."""
    store = await open_store(url)
    taken = []
    try:
        for _ in range(LOADS):
            started = time.perf_counter()
            view = await store.load_run(RUN)
            taken.append((time.perf_counter() - started) * 1000)
            assert view is not None, "the run is gone"
            assert len(view.streams[STREAM].progress.confirmed) == pages, "pages are gone"
    finally:
        await store.aclose()
    return median(taken)


@attrs.define
class Rounds:
    """Every round's figures, in the order of the rounds."""

    append_us: list[float] = attrs.field(factory=list)
    rename_us: list[float] = attrs.field(factory=list)
    step_us: dict[str, list[float]] = attrs.field(factory=lambda: {name: [] for name in SCHEMES})
    pages: dict[str, list[Pages]] = attrs.field(factory=lambda: {name: [] for name in SCHEMES})

    def add(self, folder: Path, share: int) -> None:
        """Measure one round."""
        self.append_us.append(1e6 / append_fsync(folder, BATCHES // share).per_s)
        self.rename_us.append(1e6 / rename_fsync(folder, BATCHES // share).per_s)
        for scheme in SCHEMES:
            self.step_us[scheme].append(step_us(folder, scheme, BATCHES // share))
        for scheme in SCHEMES:
            url = f"{scheme}:{folder / 'pages'}-{scheme}"
            self.pages[scheme].append(trio.run(run_pages, url, PAGES // share, EDGE // share))

    def of(self, scheme: str, get: Callable[[Pages], float]) -> float:
        """A figure of the median round."""
        return median([get(pages) for pages in self.pages[scheme]])


def judge(rounds: Rounds) -> dict[str, Found]:
    """What belongs to the rows of the readable store."""
    ours, sqlite = rounds.step_us["json"], rounds.step_us["sqlite"]
    growth = [pages.last_us / pages.first_us for pages in rounds.pages["json"]]
    first_us = rounds.of("json", lambda pages: pages.first_us)
    load_ms = {name: rounds.of(name, lambda pages: pages.load_ms) for name in SCHEMES}
    return {
        "json store, 1 loop": Found(
            median_ratio(ours, rounds.append_us), f"{median(rounds.append_us):,.0f} us"
        ),
        "json store, 1 loop, against sqlite": Found(
            median_ratio(ours, sqlite), f"{median(sqlite):,.0f} us"
        ),
        "json store, the last saves against the first": Found(
            median(growth), f"{first_us:,.0f} us"
        ),
        "json store, load_run": Found(load_ms["json"], f"{load_ms['sqlite']:.1f} ms"),
    }


def measure(options: Options) -> Section:
    """Run it."""
    share = QUICK_SHARE if options.is_quick else 1
    rounds = Rounds()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="json-") as temporary:
        for number in range(QUICK_ROUNDS if options.is_quick else ROUNDS):
            folder = Path(temporary) / f"round {number}"
            folder.mkdir()
            rounds.add(folder, share)
    append_us, rename_us = median(rounds.append_us), median(rounds.rename_us)
    lines = [
        f"append_fsync {append_us:,.0f} us, rename_fsync {rename_us:,.0f} us",
        f"{'':<8} {'1 loop us':>10} {'x append':>9} {'first us':>9} {'last us':>9} "
        f"{'worst ms':>9} {'all s':>7} {'load ms':>8} {'bytes':>7}",
    ]
    figures: dict[str, object] = {
        "append_us": rounds.append_us,
        "rename_us": rounds.rename_us,
    }
    for scheme in SCHEMES:
        own_us = rounds.step_us[scheme]
        figures[scheme] = {
            "step_us": own_us,
            "pages": [attrs.asdict(pages) for pages in rounds.pages[scheme]],
        }
        lines.append(
            f"{scheme:<8} {median(own_us):>10,.0f} {median_ratio(own_us, rounds.append_us):>9.2f} "
            f"{rounds.of(scheme, lambda p: p.first_us):>9,.0f} "
            f"{rounds.of(scheme, lambda p: p.last_us):>9,.0f} "
            f"{rounds.of(scheme, lambda p: p.worst_ms):>9,.1f} "
            f"{rounds.of(scheme, lambda p: p.seconds):>7.2f} "
            f"{rounds.of(scheme, lambda p: p.load_ms):>8.1f} "
            f"{rounds.of(scheme, lambda p: p.bytes_each):>7,.0f}"
        )
    return Section(figures, lines, judge(rounds))
