"""Every target: the one table that the report and docs/explanation/performance.md are made of.

A row is one piece of work, what it should cost, and beside which control of the same run. The
sizes in a row's name are those of a full run; ``--quick`` measures smaller ones.
"""

from __future__ import annotations

import attrs

from benchmarks import Found


@attrs.frozen
class Row:
    """One figure and what it should be.

    Attributes:
        section: Which section measures it.
        name: What is measured; unique.
        unit: Of the figure and its limit.
        limit: What the figure should reach, or stay within.
        control: What is measured beside it in the same run.
        peer: The other libraries that are measured beside it; empty: none does this work.
        at_least: Whether more is better.
        needs_peers: Whether it is left out where no peer is installed, as their figure is its base.
    """

    section: str
    name: str
    unit: str
    limit: float
    control: str
    peer: str = ""
    at_least: bool = attrs.field(default=False, kw_only=True)
    needs_peers: bool = attrs.field(default=False, kw_only=True)

    def is_met(self, value: float) -> bool:
        """Whether a figure is as good as it should be."""
        return value >= self.limit if self.at_least else value <= self.limit

    @property
    def target(self) -> str:
        """The limit in words, as ``<= 28 us/batch``."""
        return f"{'>=' if self.at_least else '<='} {self.limit:g} {self.unit}"


MAX_GROWTH = 1.3  # of the cost of one from a size to ten times as many
STATE_PEERS = "pickle and gzip, safetensors, torch, Orbax"
FILE_CONTROL = "temp, fsync, rename, folder fsync, commit"
CRAWLERS = "Scrapy, Crawlee"
STEPS_PEERS = "LangGraph, DBOS"

ROWS = (
    Row("tokens", "create, complete and read a token", "x", 6, "a slotted object"),
    Row("tokens", "memory of a token", "bytes", 160, "a slotted object"),
    Row("tokens", "memory of a token with its registry entry", "bytes", 260, "a slotted object"),
    Row("steps", "1 loop", "x", 0.75, "commits by one thread, a trio hop each",
        STEPS_PEERS, at_least=True),
    Row("steps", "8 loops", "x", 2.3, "raw SQLite commits", STEPS_PEERS, at_least=True),
    Row("steps", "64 loops", "x", 5.5, "raw SQLite commits", STEPS_PEERS, at_least=True),
    Row("steps", "64 loops: CPU", "us/batch", 28, "CPU of a raw SQLite commit", STEPS_PEERS),
    Row("steps", "1,000 streams", "x", 4, "raw SQLite commits", at_least=True),
    Row("steps", "CPU of a batch: 1,000 streams against 100", "x", MAX_GROWTH, "100 streams"),
    Row("steps", "database of a batch, 1 loop", "bytes", 100, "a raw SQLite row"),
    Row("steps", "database of a batch, 8 loops", "bytes", 100, "a raw SQLite row"),
    Row("steps", "database of a batch, 64 loops", "bytes", 100, "a raw SQLite row"),
    Row("notes", "a note", "x", 1.1, "the commit of a batch"),
    Row("notes", "a note, 64 at once", "x", 1.1, "the commit of a batch, 64 at once"),
    Row("blocking", "a synchronous batch in memory, beyond trio's", "us/batch", 200,
        "a batch of a trio loop"),
    Row("blocking", "a synchronous batch on disk", "x", 1.3, "a batch of a trio loop"),
    Row("postgres", "postgres: a save of 1 record", "x", 0.85, "raw one-row commits",
        at_least=True),
    Row("postgres", "postgres: a save of 64 records", "x", 25, "raw one-row commits",
        at_least=True),
    Row("postgres", "postgres: log of the server for a record of 64", "bytes", 250,
        "a raw one-row commit"),
    Row("postgres", "postgres: 1 loop, commits of 1 ms", "x", 0.75, "raw one-row commits",
        at_least=True),
    Row("postgres", "postgres: 8 loops, commits of 1 ms", "x", 5, "raw one-row commits",
        at_least=True),
    Row("postgres", "postgres: 64 loops, commits of 1 ms", "x", 15, "raw one-row commits",
        at_least=True),
    Row("start", "import beyond trio", "ms", 60, "import trio"),
    Row("start", "peak memory of a small run", "MB", 33, "a process that imports trio"),
    Row("maps", "map_tasks: trivial items against Dask", "x", 1, "a process pool", "Dask",
        at_least=True, needs_peers=True),
    Row("maps", "map_tasks: trivial items in a Dask cluster", "x", 0.8, "client.map there",
        "Dask", at_least=True, needs_peers=True),
    Row("maps", "map_tasks: time of an item, 4,000 items against 400", "x", MAX_GROWTH,
        "400 items"),
    Row("maps", "map_tasks: CPU of an item, 4,000 items against 400", "x", MAX_GROWTH,
        "400 items"),
    Row("maps", "map_tasks: rate with a checkpoint of 1 KiB each", "x", 0.3, "trivial items",
        at_least=True),
    Row("resume", "load_run after 10,000 batches", "ms", 5, "an empty run"),
    Row("resume", "load_run after 1,000,000 batches", "ms", 5, "an empty run"),
    Row("frontier", "time of a batch: 100,000 items against 10,000", "x", MAX_GROWTH,
        "10,000 items"),
    Row("frontier", "bytes of a batch: 100,000 items against 10,000", "x", MAX_GROWTH,
        "10,000 items"),
    Row("answers", "ls", "x", 2, "import trio"),
    Row("answers", "show", "x", 2, "import trio"),
    Row("answers", "explain", "x", 2, "import trio"),
    Row("answers", "ls of 1,000,000 batches", "s", 0.3, "import trio"),
    Row("answers", "show of 1,000,000 batches", "s", 0.3, "import trio"),
    Row("answers", "explain of 1,000,000 batches", "s", 0.3, "import trio"),
    Row("json", "json store, 1 loop", "x", 3, "append and fsync"),
    Row("json", "json store, 1 loop, against sqlite", "x", 1.5, "the SQLite store"),
    Row("json", "json store, the last saves against the first", "x", 1.5, "the first saves"),
    Row("json", "json store, load_run", "ms", 100, "the SQLite store"),
    Row("outputs", "output of 4 KiB, 1 loop", "x", 1.6, FILE_CONTROL),
    Row("outputs", "output of 4 KiB, 8 loops", "x", 1.1, FILE_CONTROL),
    Row("outputs", "output of 4 KiB, 64 loops", "x", 0.8, FILE_CONTROL),
    Row("outputs", "appended line of 4 KiB, 1 loop", "x", 1.5, "write, fdatasync, commit"),
    Row("outputs", "CPU of an output: 10,000 outputs against 1,000", "x", MAX_GROWTH,
        "1,000 outputs"),
    Row("outputs", "memory of a confirmed output", "bytes", 40, "all of a run of 2,000"),
    Row("outputs", "memory of a confirmed output, on resume", "bytes", 40,
        "all of a run of 2,000"),
    Row("pages", "JSON Schema on a page of 4 KiB", "ms", 0.2, "a page that is not validated"),
    Row("pages", "100,000 outputs verified by size", "x", 5, "os.stat in a plain loop"),
    Row("pages", "100,000 outputs verified by sha256", "x", 1, "SHA-256 in a plain loop"),
    Row("state", "stall of a save by dirty pages, nothing changed", "ms", 0.3,
        "a copy of all", STATE_PEERS),
    Row("state", "stall of a save by dirty pages, 1 % changed", "ms", 1.5,
        "a copy of all", STATE_PEERS),
    Row("state", "stall of a save by dirty pages, all changed", "ms", 30,
        "a copy of all", STATE_PEERS),
    Row("state", "total of a save by dirty pages, nothing changed", "ms", 2,
        "write and fsync of all", STATE_PEERS),
    Row("state", "total of a save by dirty pages, 1 % changed", "ms", 10,
        "write and fsync of all", STATE_PEERS),
    Row("state", "total of a save by dirty pages, all changed", "ms", 260,
        "write and fsync of all", STATE_PEERS),
    Row("state", "stall of a save by hashes, nothing changed", "x", 1.2, "xxh3", STATE_PEERS),
    Row("state", "stall of a save by hashes, 1 % changed", "ms", 18, "xxh3", STATE_PEERS),
    Row("state", "stall of a save by hashes, all changed", "ms", 30, "xxh3", STATE_PEERS),
    Row("state", "bytes of a save, 1 % changed", "x", 1.2, "what changed"),
    Row("state", "size of a save by hashes, 1 % changed", "MiB", 3, "what changed"),
    Row("state", "save of 2,000 small arrays, one changed", "ms", 15, "pickling all"),
    Row("state", "CPU of a small array: 2,000 arrays against 200", "x", MAX_GROWTH, "200 arrays"),
    Row("state", "restore over 1 delta", "x", 1.3, "a plain read", STATE_PEERS),
    Row("state", "restore over 50 deltas", "x", 1.5, "a plain read", STATE_PEERS),
    Row("state", "restore over 500 deltas", "x", 2, "a plain read", STATE_PEERS),
    Row("state", "time of a save: 500 deltas against 50", "x", MAX_GROWTH, "50 deltas"),
    Row("state", "lag of the event loop while saving by dirty pages, p99", "ms", 2,
        "an idle loop"),
    Row("state", "lag of the event loop while saving by hashes, p99", "ms", 2, "an idle loop"),
    Row("crawl", "crawl with two kills: pages never fetched, lost, repeated, torn", "pages", 0,
        "the site's own count", CRAWLERS),
    Row("crawl", "crawl: repeated requests of a kill", "requests", 16, "the site's own count"),
    Row("crawl", "crawl: start to the first fetch", "s", 0.2, "the site's own count", CRAWLERS),
    Row("crawl", "crawl: pages/s", "pages/s", 700, "the site's own count", CRAWLERS,
        at_least=True),
    Row("crawl", "crawl: pages/s against Scrapy", "x", 2.5, "Scrapy", "Scrapy",
        at_least=True, needs_peers=True),
    Row("crawl", "crawl: pages/s against Crawlee", "x", 5, "Crawlee", "Crawlee",
        at_least=True, needs_peers=True),
    Row("viewers", "CPU that 200 viewers cost", "%", 5, "no viewers"),
    Row("items", "end of a work item beside 10,000 runs", "x", MAX_GROWTH,
        "the same beside 100 runs"),
    Row("lists", "ls of 10,000 runs, beyond that of one", "s", 0.1, "ls of one run"),
)  # fmt: skip

BY_NAME = {row.name: row for row in ROWS}


def of_section(section: str) -> list[Row]:
    """The rows that a section measures."""
    return [row for row in ROWS if row.section == section]


def verdicts(section: str, found: dict[str, Found]) -> list[str]:
    """A line for each row of a section: met or not, its figure, its target and its control.

    Raises:
        ValueError: The section measured something that is no row of it.
    """
    rows = of_section(section)
    if unknown := found.keys() - {row.name for row in rows}:
        raise ValueError(f"section {section!r} has no row {', '.join(sorted(unknown))} in targets")
    return [_verdict(row, found.get(row.name)) for row in rows]


def _verdict(row: Row, found: Found | None) -> str:
    if found is None:
        return f"  not measured: {row.name} ({row.target})"
    met = "met" if row.is_met(found.value) else "NOT MET"
    peer = f"; {found.peer}" if found.peer else ""
    return (
        f"  {met:<8} {row.name:<46} {found.value:>9,.5g} {row.target}"
        f" | {row.control}: {found.control}{peer}"
    )
