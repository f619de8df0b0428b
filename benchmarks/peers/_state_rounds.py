"""What all the peers of the section `state` do: change an array, save it, restore it.

Of the same size, with the same changes and the same words as ours; every save is fsynced.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROW_FLOATS = 1024
ROWS_PER_MIB = 2**20 // (ROW_FLOATS * 4)
SHARES = (0.0, 0.01, 1.0)

Begin = Callable[[Any, Path], Callable[[], None]]
"""Begins to save a state into a folder; gives what waits for the end when it may change again."""


def sync_tree(folder: Path) -> None:
    """Make all files of a folder durable, and their names."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def folder_bytes(folder: Path) -> int:
    """The size of all files below a folder together."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def time_save(begin: Begin, state: Any, folder: Path) -> dict[str, float]:
    """For how long one save held its caller, and when it was durable."""
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    wait = begin(state, folder)
    held = time.perf_counter()
    wait()
    ended = time.perf_counter()
    return {
        "stall_ms": (held - started) * 1000,
        "total_ms": (ended - started) * 1000,
        "mib": folder_bytes(folder) / 2**20,
    }


def change(array: Any, share: float, rng: np.random.Generator) -> None:
    """Scattered rows, or all."""
    if share == 1:
        array *= 1.0001
    else:
        array[rng.choice(len(array), int(len(array) * share), replace=False)] *= 1.0001


def main(
    peer: str,
    begin: Begin,
    restore: Callable[[Path], Any],
    *,
    make: Callable[[Any], Any] = lambda array: array,
    step: Callable[[Any, float, np.random.Generator], Any] = change,
) -> None:
    """Print the figures as one JSON line.

    Args:
        peer: Its name and version.
        begin: See `Begin`.
        restore: What was saved in a folder, in new memory.
        make: The peer's kind of array from NumPy's.
        step: Changes it; returns the new one where it cannot be changed.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (options.mib * ROWS_PER_MIB, ROW_FLOATS)
    array = make(rng.standard_normal(shape, dtype=np.float32))
    folder = options.folder.absolute() / "save"
    folder.parent.mkdir(parents=True, exist_ok=True)
    time_save(begin, array, folder)  # what is only slow once
    saves: dict[str, list[dict[str, float]]] = {}
    for share in SHARES:
        for _ in range(options.rounds):
            changed = step(array, share, rng)
            array = array if changed is None else changed
            saves.setdefault(f"{share:.0%}", []).append(time_save(begin, array, folder))
    restores = []
    for _ in range(options.rounds):
        started = time.perf_counter()
        found = restore(folder)
        restores.append((time.perf_counter() - started) * 1000)
    assert (np.asarray(found) == np.asarray(array)).all(), "what was restored is something else"
    print(json.dumps({"peer": peer, "saves": saves, "restore_ms": restores}))
