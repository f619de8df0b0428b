"""Stores that have everything that can be damaged, and all that readers see of them.

A sample is the bytes of a store's folder and of the folders of its runs' outputs.  The paths in its
records are absolute, so it is always laid out at the place where it was made.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import trio

from trio_ckpt import Batch, Frontier, OutputExistsError, Run, open_run, run_batches
from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.folds import encode_progress
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import decode_record
from trio_ckpt._util.plain import decode_key
from trio_ckpt.abc import Store
from trio_ckpt.outputs import ARCHIVE
from trio_ckpt.stores import open_store

KINDS = ("sqlite", "json")
MANY = 1_050  # records of one stream: more than a fold covers
BIG = "x" * 5_000  # over the limit from which on a record of these stores is a blob
SKIPPED = 3
Files = dict[str, bytes]
RUNS = ("big", "small", "again")


@attrs.frozen
class Sample:
    """A store and its outputs at one moment.

    Attributes:
        name: Of the sample.
        kind: Of the store.
        root: Where it lies; ``store`` and a folder of outputs per run are in it.
        files: What is in it.
        older: The same at earlier moments.
    """

    name: str
    kind: str
    root: Path
    files: Files
    older: tuple[Files, ...]

    @property
    def url(self) -> str:
        return f"{self.kind}:{self.root / 'store'}"


def read_files(root: Path) -> Files:
    """Every file below a folder; not what SQLite has in memory only."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


def lay_out(root: Path, files: Files) -> None:
    """Have these files below a folder, and no others."""
    shutil.rmtree(root, ignore_errors=True)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


async def open_sample(url: str, *, create: bool = True) -> Store:
    store = await open_store(url, create=create)
    store.inline_limit_bytes = 4_000
    return store


async def work(
    store: Store,
    root: Path,
    run_id: str,
    *,
    until: int = 8,
    many: int = MANY,
    fresh: bool = False,
    at_end: Callable[[], None] | None = None,
) -> None:
    """The program of a run: the same outputs however often it is interrupted and resumed."""
    async with open_run(
        run_id,
        store=store,
        output_dir=root / f"out-{run_id}",
        handle_signals=False,
        fresh=fresh,
        verify="sha256",
        redo_missing=True,
    ) as run:
        async with run.open_stream("pages", "a/ä") as pages:
            async for batch in pages.batches(range(until)):
                if batch.index == SKIPPED:
                    batch.skip("is blank")
                    continue
                await batch.write_json(f"pages/{batch.index}.json", {"page": batch.index})
                big = {"big": BIG} if batch.index == 2 else {}
                batch.complete(records=2, totals={"cost": 0.1}, metadata=big)
        async with run.open_stream("lines") as lines:
            async for batch in lines.batches(range(until)):
                batch.append_json("lines.jsonl", {"line": batch.index})
                batch.complete(records=1)
        if run_id == "big":
            await _more(run, until, many)
        if at_end is not None:
            at_end()


async def _more(run: Run, until: int, many: int) -> None:
    state = {"weights": np.random.default_rng(99).random(40_000), "n": 0}
    async with run.open_stream("model", state=state, recover=True) as model:
        async for batch in model.batches(range(until)):
            weights = model.state["weights"]
            place = 512 * batch.index
            weights[place : place + 2_000] = np.random.default_rng(batch.index).random(2_000)
            model.state["n"] += 1
            digest = hashlib.sha256(weights.tobytes()).hexdigest()
            await batch.write_text(f"model/{batch.index}.txt", digest)
            batch.complete()
            if batch.index == 2:
                await model.pin("best")
    async with run.open_stream("site", state=Frontier(["0"])) as site:
        await run_batches(site, None, _visit)
    async with run.open_stream("numbers") as numbers:
        await run_batches(numbers, range(many), _count, concurrency=25)


async def _count(batch: Batch[int]) -> None:
    batch.complete(records=1)


async def _visit(batch: Batch[str]) -> None:
    await batch.write_text(f"site/{batch.item}.txt", batch.item)
    batch.add([f"{batch.item}{letter}" for letter in "ab" if len(batch.item) < 3])
    batch.complete()


def make_sample(kind: str, root: Path, *, is_killed: bool = False) -> Sample:
    """A store with three runs: one with all there is, a small one, one that was begun again.

    Args:
        kind: Of the store.
        root: Where it is laid out; it holds nothing else.
        is_killed: As it was in the moment in which the process of the big run was killed.
    """
    moments: list[Files] = []

    def note() -> None:
        moments.append(read_files(root))

    async def main() -> None:
        store = await open_sample(f"{kind}:{root / 'store'}")
        await work(store, root, "small", until=3)
        await work(store, root, "again", until=2)
        await work(store, root, "again", until=4, fresh=True)
        await work(store, root, "big", until=4, many=20, at_end=note)
        await store.aclose()
        note()
        store = await open_sample(f"{kind}:{root / 'store'}")
        await work(store, root, "big", until=6, many=MANY, at_end=note)
        await store.aclose()
        note()

    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    trio.run(main)
    # 0: killed in the first session, 1: it ended, 2: killed in the second, 3: that ended
    at = 2 if is_killed else 3
    name = f"{kind}, {'killed' if is_killed else 'closed'}"
    lay_out(root, moments[at])
    return Sample(name, kind, root, moments[at], tuple(moments[:at]))


def finish(sample: Sample, *, may_begin_afresh: bool = False) -> Files:
    """Resume every run and let it end; the outputs that there are then.

    A run whose records are lost refuses to replace outputs that no record names.  Where the loss
    was accepted, its user begins it afresh, as the refusal says.
    """

    async def main() -> None:
        store = await open_sample(sample.url, create=False)
        try:
            for run_id in RUNS:
                try:
                    await work(store, sample.root, run_id)
                except OutputExistsError:
                    if not may_begin_afresh:
                        raise
                    await work(store, sample.root, run_id, fresh=True)
        finally:
            await store.aclose()

    trio.run(main)
    return outputs_of(sample.root)


def outputs_of(root: Path) -> Files:
    """The outputs that there are."""
    files = read_files(root)
    return {name: files[name] for name in outputs_from(files)}


async def content_of(sample: Sample) -> dict[str, object]:
    """All that readers see: records, what they add up to, states, outputs.

    It does nothing in the way that `verify` does it, where that can be.
    """
    store = await open_store(sample.url, create=False)
    seen: dict[str, object] = {}
    try:
        runs = await store.list_runs()
        seen["runs"] = [(run.run_id, run.generation, run.records, run.streams) for run in runs]
        for run in runs:
            for generation in range(run.generation + 1):
                stored = await store.read_run(run.run_id, generation)
                for entry in stored.streams if stored is not None else ():
                    place = f"{run.run_id} {generation} {entry.stream}"
                    seen[place] = await _stream_of(store, run.run_id, generation, entry.stream)
            view = await store.load_run(run.run_id)
            assert view is not None
            for key, stream in view.streams.items():
                seen[f"{run.run_id} {key} folded"] = encode_progress(stream.progress)
                for path, size in stream.progress.sinks.items():
                    file = sample.root / f"out-{run.run_id}" / path
                    lines = file.read_bytes() if file.exists() else b""
                    seen[f"{run.run_id} {path}"] = lines[:size]
    finally:
        await store.aclose()
    now = read_files(sample.root)
    for name in outputs_from(sample.files):
        if not name.endswith(".jsonl"):  # behind its confirmed end nothing counts: see above
            seen[f"file {name}"] = now.get(name)
    return seen


async def _stream_of(store: Store, run_id: str, generation: int, stream: str) -> object:
    seal = store.seal(run_id, generation, decode_key(stream))
    records: list[tuple[int, bytes]] = []
    blobs: dict[str, str] = {}
    cursor = None
    while True:
        page = await store.history(run_id, stream, generation=generation, cursor=cursor)
        for stored in page.records:
            records.append((stored.sequence, seal.open(stored.sequence, stored.payload)))
            for digest in stored.blobs:
                blobs[digest] = hashlib.sha256(await store.read_blob(run_id, digest)).hexdigest()
        cursor = page.cursor
        if cursor is None:
            break
    progress = Progress()
    for sequence, payload in reversed(records):
        apply(progress, sequence, decode_record(payload))
    return encode_progress(progress), records, blobs


def outputs_from(files: Files) -> set[str]:
    """The names of outputs among files, without what was archived and without the manifests."""
    return {
        name
        for name in files
        if name.startswith("out-") and ARCHIVE not in name and "manifest" not in name
    }
