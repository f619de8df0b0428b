"""What the section `state` measures of ours, each part in a fresh process, as one JSON object.

    python -m benchmarks.state_ours saves|lag|chain|restore|controls --folder DIR --mib 256 ...

The state is an array of float32, in rows of 4 KiB, and a counter that changes with every save, so
that each has something to make durable.  All of it goes through the public API and the SQLite
store; only the length of a chain is raised by hand.
"""

import argparse
import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import trio
import xxhash

from benchmarks import MIB, median
from trio_ckpt import Batch, Retention, Run, Stream, open_run, state
from trio_ckpt._commit import stored_state
from trio_ckpt.state._arrays import engine
from trio_ckpt.state._arrays.dirty_pages import Untracked

Floats = npt.NDArray[Any]  # of float32
State = dict[str, Any]

ROW_FLOATS = 1024
ROWS_PER_MIB = MIB // (ROW_FLOATS * 4)
SHARES = (0.0, 0.01, 1.0)
PROBE_S = 0.001
SMALL_ARRAYS = (200, 2_000)
PLAIN = "plain.bin"
LAST_SAVES = 20  # of a chain, whose median is what a save takes by then


@attrs.frozen
class Save:
    """One snapshot.

    Attributes:
        stall_ms: For how long `Snapshots.point` held the body.
        total_ms: From then until it was durable.
        write_ms: What the writes before it took in the user's loop.
        again_ms: The same writes a second time: without the faults of the first ones.
        mib: What was written for it.
        method: How the changes were found.
    """

    stall_ms: float
    total_ms: float
    write_ms: float
    again_ms: float
    mib: float
    method: str


def make_weights(mib: int) -> Floats:
    """Random numbers in memory that the tracker can watch."""
    weights: Floats = state.empty((mib * ROWS_PER_MIB, ROW_FLOATS), np.float32)
    np.random.default_rng(0).standard_normal(out=weights, dtype=np.float32)
    return weights


def choose_method(method: str) -> None:
    """Make the streams of this process hash, as if the kernel could not track."""
    if method == "hash":
        engine.open_tracker = lambda: Untracked("the benchmark wants it so")


def forget_files(folder: Path) -> None:
    """Let the kernel have the memory back in which it keeps files that are durable.

    On a virtual machine memory that it never had costs ten times as much to write to, and the
    controls and peers write the same file again and again.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def write(weights: Floats, rows: npt.NDArray[np.intp] | None) -> float:
    """A step of a training: some rows, or all; returns the milliseconds."""
    started = time.perf_counter()
    if rows is None:
        np.multiply(weights, np.float32(1.0001), out=weights)
    elif len(rows):
        weights[rows] *= np.float32(1.0001)
    return (time.perf_counter() - started) * 1000


def choose(weights: Floats, share: float, rng: np.random.Generator) -> npt.NDArray[np.intp] | None:
    """Scattered rows; None: all."""
    if share == 1:
        return None
    return rng.choice(len(weights), int(len(weights) * share), replace=False)


def resident_mib(field: str) -> float:
    """Memory of this process: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


# -- saving ---------------------------------------------------------------------------------------


async def time_saves(folder: Path, mib: int, rounds: int) -> dict[str, object]:
    """Snapshots at each share of changed rows, and what memory they took."""
    weights = make_weights(mib)
    before = resident_mib("VmRSS")
    saves: dict[str, list[Save]] = {}
    async with (
        open_run("state", store=folder, handle_signals=False) as run,
        run.open_stream("train", state={"weights": weights, "step": 0}) as stream,
    ):
        batch: Batch[Any]
        async for batch in stream.batches(range(1)):
            async with stream.snapshots(every_s=0.0) as snapshots:
                for share in SHARES:
                    for number in range(rounds):
                        save = await one_save(stream, snapshots, share, number)
                        saves.setdefault(f"{share:.0%}", []).append(save)
                        forget_files(folder)
            batch.complete()
    return {
        "saves": {share: [attrs.asdict(save) for save in each] for share, each in saves.items()},
        "memory_mib": resident_mib("VmHWM") - before,
        "changed_bytes": int(len(weights) * 0.01) * weights[0].nbytes,
    }


async def one_save(stream: Stream[State], snapshots: Any, share: float, seed: int) -> Save:
    """Change the state, take a snapshot, wait for it."""
    weights: Floats = stream.state["weights"]
    rows = choose(weights, share, np.random.default_rng(seed))
    written, again = write(weights, rows), write(weights, rows)
    stream.state["step"] += 1
    before = stream.statistics().state
    started = time.perf_counter()
    begun = await snapshots.point()
    held = time.perf_counter()
    await snapshots.wait()
    ended = time.perf_counter()
    after = stream.statistics().state
    assert begun, "no snapshot was taken"
    assert before is not None, "there is no state"
    assert after is not None, "there is no state"
    assert not snapshots.skipped, "a snapshot failed"
    return Save(
        stall_ms=(held - started) * 1000,
        total_ms=(ended - started) * 1000,
        write_ms=written,
        again_ms=again,
        mib=(after.saved_bytes - before.saved_bytes) / MIB,
        method=next(iter(after.arrays.values())).method,
    )


# -- many small arrays ----------------------------------------------------------------------------


async def time_small(folder: Path, rounds: int) -> dict[str, object]:
    """Saves of many arrays of 512 bytes, one of them changed, beside pickling them all.

    For each of `SMALL_ARRAYS`: the time of a save, its CPU in all threads, and the time that
    pickling takes, in milliseconds.
    """
    found: dict[str, object] = {}
    for count in SMALL_ARRAYS:
        saves, cpu, pickles = list[float](), list[float](), list[float]()
        new: State = {"arrays": [np.zeros(64) for _ in range(count)]}
        async with (
            open_run(f"small-{count}", store=folder, handle_signals=False) as run,
            run.open_stream("train", state=new) as stream,
        ):
            batch: Batch[Any]
            async for batch in stream.batches(range(rounds)):
                stream.state["arrays"][batch.index % count][0] += 1
                started = time.perf_counter()
                pickle.dumps(stream.state)
                pickled, cpu_before = time.perf_counter(), time.process_time()
                batch.complete()
                await batch.confirm()
                saves.append((time.perf_counter() - pickled) * 1000)
                cpu.append((time.process_time() - cpu_before) * 1000)
                pickles.append((pickled - started) * 1000)
        found[str(count)] = {"save_ms": saves, "cpu_ms": cpu, "pickle_ms": pickles}
    return found


# -- the event loop's lag -------------------------------------------------------------------------


@attrs.define(eq=False)
class Probe:
    """Measures how late the event loop comes back to a task that slept."""

    lags_ms: list[float] = attrs.field(factory=list[float])
    is_on: bool = False

    async def run(self) -> None:
        """Sleep, look at the clock, and so on.

        Cancellation: ends it.
        """
        while True:
            started = time.perf_counter()
            await trio.sleep(PROBE_S)
            if self.is_on:
                self.lags_ms.append((time.perf_counter() - started - PROBE_S) * 1000)

    def take(self) -> dict[str, float]:
        """The figures since the last time."""
        lags, self.lags_ms = sorted(self.lags_ms), []
        last = len(lags) - 1
        return {
            "p50": lags[last // 2],
            "p99": lags[int(last * 0.99)],
            "max": lags[-1],
            "count": len(lags),
        }


async def time_lag(folder: Path, mib: int, method: str, rounds: int) -> dict[str, object]:
    """The lag while all of the state is saved, and that of an idle loop and of a copying thread."""
    weights, probe = make_weights(mib), Probe()
    found: dict[str, object] = {}
    other = np.empty_like(weights)

    def copy_often() -> None:
        for _ in range(4 * rounds):
            np.copyto(other, weights)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(probe.run)
        controls: dict[str, Callable[[], None]] = {
            "idle": partial(time.sleep, 1),
            "memcpy in a thread": copy_often,
        }
        for name, control in controls.items():
            probe.is_on = True
            await trio.to_thread.run_sync(control)
            probe.is_on = False
            found[name] = probe.take()
        async with (
            open_run("state", store=folder, handle_signals=False) as run,
            run.open_stream("train", state={"weights": weights, "step": 0}) as stream,
        ):
            batch: Batch[Any]
            kept: Floats = stream.state["weights"]  # the stream's own: it began with a copy
            async for batch in stream.batches(range(1)):
                async with stream.snapshots(every_s=0.0) as snapshots:
                    for _ in range(rounds):
                        await trio.to_thread.run_sync(write, kept, None)
                        probe.is_on = True
                        assert await snapshots.point(), "no snapshot was taken"
                        await snapshots.wait()
                        probe.is_on = False
                        forget_files(folder)
                batch.complete()
        found[f"saving, {method}"] = probe.take()
        nursery.cancel_scope.cancel()
    return found


# -- restoring ------------------------------------------------------------------------------------


async def build_chain(folder: Path, mib: int, deltas: int) -> dict[str, object]:
    """A state and so many differences to it, 1 % of scattered rows each."""
    stored_state.SHARE_OF_DEAD = float("inf")
    retention = Retention(max_deltas=deltas)
    rng = np.random.default_rng(1)
    taken_ms = list[float]()
    initial: State = {"weights": make_weights(mib), "step": 0}
    async with (
        open_run("state", store=folder / "store", handle_signals=False) as run,
        run.open_stream("train", state=initial, retention=retention) as stream,
    ):
        weights: Floats = stream.state["weights"]  # the stream's own: it began with a copy
        batch: Batch[Any]
        async for batch in stream.batches():
            write(weights, choose(weights, 0.01, rng))
            stream.state["step"] += 1
            started = time.perf_counter()
            batch.complete()
            await batch.confirm()
            taken_ms.append((time.perf_counter() - started) * 1000)
            if batch.index == deltas - 1:
                break
        statistics = stream.statistics().state
    (folder / PLAIN).write_bytes(weights.tobytes())
    assert statistics is not None, "there is no state"
    assert statistics.chain == deltas + 1, "the chain began again"
    return {
        "digest": xxhash.xxh3_128_hexdigest(weights),
        "mib": statistics.saved_bytes / MIB,
        "last_save_ms": median(taken_ms[-LAST_SAVES:]),
    }


async def time_restores(folder: Path, mib: int, rounds: int) -> dict[str, object]:
    """Milliseconds from opening a stream to its state, in turns with a plain read."""
    restores, reads, digest = list[float](), list[float](), ""
    for number in range(rounds + 1):
        blank = np.empty((mib * ROWS_PER_MIB, ROW_FLOATS), np.float32)
        async with open_run("state", store=folder / "store", handle_signals=False) as run:
            started = time.perf_counter()
            digest = await restore(run, blank, started, restores)
        if number:  # the first one also imports
            reads.append(plain_read(folder / PLAIN))
    return {"restore_ms": restores[1:], "read_ms": reads, "digest": digest}


async def restore(run: Run, blank: Floats, started: float, taken: list[float]) -> str:
    """Open the stream; the digest of what it restored."""
    async with run.open_stream("train", state={"weights": blank, "step": 0}) as stream:
        taken.append((time.perf_counter() - started) * 1000)
        return xxhash.xxh3_128_hexdigest(stream.state["weights"])


def plain_read(path: Path) -> float:
    """Milliseconds of reading a file into new memory, in one call."""
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        target = np.empty(os.fstat(file.fileno()).st_size, np.uint8)
        done = 0
        while done < target.nbytes:
            done += file.readinto(target.data[done:])
    return (time.perf_counter() - started) * 1000


# -- controls -------------------------------------------------------------------------------------


def controls(folder: Path, mib: int, rounds: int) -> dict[str, object]:
    """What this machine can do with as many bytes, in milliseconds, the median."""
    weights = make_weights(mib)
    other = np.zeros_like(weights)

    def write_and_sync() -> None:
        with (folder / "control.bin").open("wb", buffering=0) as file:
            view = memoryview(weights).cast("B")
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        (folder / "control.bin").unlink()

    kinds: dict[str, Callable[[], object]] = {
        "xxh3_128": lambda: xxhash.xxh3_128_digest(weights),
        "warm memcpy": lambda: np.copyto(other, weights),
        "fresh copy": weights.copy,
        "write+fsync": write_and_sync,
    }
    return {name: median([time_ms(call) for _ in range(rounds)]) for name, call in kinds.items()}


def time_ms(call: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.state_ours", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=["saves", "lag", "chain", "restore", "controls", "small"])
    parser.add_argument("--folder", type=Path, required=True, help="of a new store")
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--method", choices=["pages", "hash"], default="pages")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--deltas", type=int, default=10, help="of a chain")
    return parser.parse_args(arguments)


def main() -> None:
    """Print the figures."""
    options = parse()
    folder, mib, rounds = options.folder, options.mib, options.rounds
    folder.mkdir(parents=True, exist_ok=True)
    choose_method(options.method)
    parts: dict[str, Callable[[], dict[str, object]]] = {
        "saves": lambda: trio.run(time_saves, folder, mib, rounds),
        "lag": lambda: trio.run(time_lag, folder, mib, options.method, rounds),
        "chain": lambda: trio.run(build_chain, folder, mib, options.deltas),
        "restore": lambda: trio.run(time_restores, folder, mib, rounds),
        "controls": lambda: controls(folder, mib, rounds),
        "small": lambda: trio.run(time_small, folder, rounds),
    }
    json.dump(parts[options.what](), sys.stdout)


if __name__ == "__main__":
    main()
