"""What changed, packed on its way into a blob, and what is known of it after a restore."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from trio_ckpt import state
from trio_ckpt.state import Frame, new_lineage
from trio_ckpt.state._arena import SLAB_BYTES
from trio_ckpt.state._arrays import ArrayEngine, Assembly, Stored
from trio_ckpt.state._ledger import ArrayLeaf
from trio_ckpt.state._pages import Tracker


def leaves(array: Any) -> list[ArrayLeaf]:
    return [ArrayLeaf("state.weights", array)]


def random(nbytes: int) -> Any:
    array = state.empty(nbytes, np.uint8)
    array[:] = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
    return array


def frame_of(stored: Stored, parent: bytes = b"", number: int = 0) -> Frame:
    data = b"".join(stored.pieces)
    return Frame(
        lineage=new_lineage(),
        number=number,
        parent=parent,
        tree=b"x",
        layout=stored.layout,
        patches=stored.patches,
        data=data,
        data_bytes=len(data),
    )


def restored(engine: ArrayEngine, *frames: Frame) -> tuple[Any, dict[str, Any]]:
    assembly = Assembly(frames)
    for reads in assembly.rounds:
        for read in reversed(reads):  # in any order within a round
            data = frames[read.frame].data[read.offset : read.offset + read.size]
            assembly.fill(read, data, engine.compressor)
    arrays, tables = assembly.arrays(engine.tracker)
    return arrays[0], tables


# Fewer bytes than threads are begun for, and more; the last slab is a part of one.
@pytest.mark.parametrize("nbytes", [3 * SLAB_BYTES + 5, 70 * SLAB_BYTES + 5])
def test_what_stays_in_the_arena_is_the_same_as_what_is_copied(nbytes: int) -> None:
    engine, array = ArrayEngine(), random(nbytes)
    copied = engine.hold(leaves(array), {}).finish()
    assert engine.arena.statistics().used_bytes == 0
    in_place = engine.hold(leaves(array), {}).finish(in_place=True)
    assert engine.arena.statistics().used_bytes >= nbytes
    joined = b"".join(in_place.pieces)
    assert joined == b"".join(copied.pieces)
    assert in_place.name == copied.name == hashlib.sha256(joined).hexdigest()
    assert in_place.patches == copied.patches
    in_place.release()
    assert engine.arena.statistics().used_bytes == 0
    engine.close()


def test_copies_outlive_the_arena() -> None:
    engine, array = ArrayEngine(), random(10 * SLAB_BYTES)
    stored = engine.hold(leaves(array), {}).finish()
    before = b"".join(stored.pieces)
    array[:] = 7
    engine.hold(leaves(array), {}).finish()  # into the same slabs
    assert b"".join(stored.pieces) == before
    engine.close()


def test_after_a_restore_only_what_was_written_since_is_saved() -> None:
    engine, array = ArrayEngine(), random(10 * SLAB_BYTES)
    full = engine.hold(leaves(array), {}).finish()
    array[5_000_000] ^= 1
    delta = engine.hold(leaves(array), full.tables).finish()
    frames = frame_of(delta, b"p" * 16, 1), frame_of(full)
    again, tables = restored(engine, *frames)
    assert (again == array).all()
    again[1_000_000] ^= 1
    third = engine.hold(leaves(again), tables).finish()
    (report,) = third.reports.values()
    assert report.changed_bytes == 4096
    if isinstance(engine.tracker, Tracker):
        assert report.rung == "pages"
    last, _ = restored(engine, frame_of(third, b"q" * 16, 2), *frames)
    assert (last == again).all()
    engine.close()
