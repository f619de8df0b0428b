"""What changed, packed on its way into a blob, and what is known of it after a restore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import msgspec
import numpy as np
import pytest
import xxhash

from trio_ckpt import state
from trio_ckpt._journal.store import scatter
from trio_ckpt._util.errors import StoreDamagedError
from trio_ckpt.state import StateFrame, new_lineage
from trio_ckpt.state._arrays.arena import SLAB_BYTES, Arena
from trio_ckpt.state._arrays.compress import HEAD
from trio_ckpt.state._arrays.dirty_pages import Tracker
from trio_ckpt.state._arrays.engine import ArrayEngine, Assembly, DigestTable, EncodedArrays
from trio_ckpt.state._tree.identity import ArrayLeaf


def leaves(array: Any) -> list[ArrayLeaf]:
    return [ArrayLeaf("state.weights", array)]


def random(nbytes: int) -> Any:
    array = state.empty(nbytes, np.uint8)
    array[:] = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
    return array


def saved(
    engine: ArrayEngine, array: Any, tables: Mapping[str, DigestTable] | None = None
) -> tuple[EncodedArrays, bytes]:
    held = engine.hold(leaves(array), tables or {})
    data = b"".join(held.pieces())
    stored = held.stored()
    held.release()
    return stored, data


def frame_of(
    stored: EncodedArrays, data: bytes, parent: bytes = b"", number: int = 0
) -> StateFrame:
    return StateFrame(
        lineage=new_lineage(),
        number=number,
        parent=parent,
        tree=b"x",
        layout=stored.layout,
        patches=stored.patches,
        data=data,
        data_bytes=len(data),
    )


def restored(engine: ArrayEngine, *frames: StateFrame) -> tuple[list[Any], dict[str, Any]]:
    assembly = Assembly(frames)
    for reads in assembly.rounds:
        for read in reversed(reads):  # in any order within a round
            data = frames[read.frame].data[read.offset : read.offset + read.size]
            landing = assembly.land(read)
            scatter(data, landing.targets)
            assembly.fill(landing, engine.compressor)
    arrays, tables = assembly.arrays(engine.tracker)
    return arrays, tables


def test_pieces_stay_in_the_arena_until_they_are_released() -> None:
    """They are parts of its slabs, not copies; the array may change meanwhile."""
    engine, array = ArrayEngine(), random(10 * SLAB_BYTES + 5)
    before = array.tobytes()
    held = engine.hold(leaves(array), {})
    pieces = list(held.pieces())
    array[:] = 7
    assert engine.arena.used_bytes >= len(before)
    raw = b"".join(piece for piece in pieces if isinstance(piece, memoryview))
    assert raw == before
    held.release()
    held.release()
    assert engine.arena.used_bytes == 0
    engine.close()


def test_pieces_are_made_when_they_are_asked_for() -> None:
    engine, array = ArrayEngine(), random(10 * SLAB_BYTES)
    held = engine.hold(leaves(array), {})
    pieces = held.pieces()
    assert not held._packer.nbytes
    next(pieces)
    assert 0 < held._packer.nbytes < 2 * SLAB_BYTES
    held.release()
    engine.close()


def test_small_arena_holds_what_is_larger() -> None:
    """What is copied out of it in time is the same as what stays in it."""
    engine, array = ArrayEngine(), random(20 * SLAB_BYTES + 5)
    wanted, plain = saved(engine, array)
    engine.arena.close()
    engine.arena = Arena(10 * SLAB_BYTES)
    stored, packed = saved(engine, array)
    assert packed == plain
    assert stored.nbytes == len(packed) == wanted.nbytes
    assert engine.arena.used_bytes == 0
    (again,), _ = restored(engine, frame_of(stored, packed))
    assert (again == array).all()
    engine.close()


@pytest.mark.parametrize("at", [0, 3, HEAD.size, SLAB_BYTES // 2, SLAB_BYTES + HEAD.size - 1])
def test_damage_of_what_is_read_into_its_buffer_is_found(at: int) -> None:
    engine, array = ArrayEngine(), random(2 * SLAB_BYTES)
    stored, data = saved(engine, array)
    damaged = bytearray(data)
    damaged[at] ^= 1
    with pytest.raises(StoreDamagedError, match="is not what was saved"):
        restored(engine, frame_of(stored, bytes(damaged)))
    engine.close()


@pytest.mark.parametrize(
    "head", [(1, 1, SLAB_BYTES, SLAB_BYTES), (0, 0, SLAB_BYTES, SLAB_BYTES), (0, 1, 5, 5)]
)
def test_piece_that_is_as_long_as_a_raw_one_and_is_none(head: tuple[int, int, int, int]) -> None:
    engine, array = ArrayEngine(), random(SLAB_BYTES)
    stored, data = saved(engine, array)
    data = HEAD.pack(*head) + data[HEAD.size :]
    (patch,) = stored.patches
    digest = xxhash.xxh3_128_digest(data)
    stored = attrs.evolve(stored, patches=(msgspec.structs.replace(patch, digests=digest),))
    with pytest.raises(StoreDamagedError, match="a block"):
        restored(engine, frame_of(stored, data))
    engine.close()


def test_after_a_restore_only_what_was_written_since_is_saved() -> None:
    engine, array = ArrayEngine(), random(10 * SLAB_BYTES)
    full, data = saved(engine, array)
    array[5_000_000] ^= 1
    delta, changed = saved(engine, array, full.tables)
    frames = frame_of(delta, changed, b"p" * 16, 1), frame_of(full, data)
    (again,), tables = restored(engine, *frames)
    assert (again == array).all()
    again[1_000_000] ^= 1
    third, changed = saved(engine, again, tables)
    (report,) = third.reports.values()
    assert report.changed_bytes == 4096
    if isinstance(engine.tracker, Tracker):
        assert report.method == "pages"
    (last,), _ = restored(engine, frame_of(third, changed, b"q" * 16, 2), *frames)
    assert (last == again).all()
    engine.close()


def test_small_arrays_that_did_not_change_keep_their_tables() -> None:
    """One that did is found, also where only its sign of zero or its place in memory changed."""
    engine, arrays = ArrayEngine(), [np.zeros(64) for _ in range(100)]

    def save(tables: Mapping[str, DigestTable]) -> EncodedArrays:
        state = [ArrayLeaf(f"state[{at}]", one) for at, one in enumerate(arrays)]
        held = engine.hold(state, tables)
        list(held.pieces())
        held.release()
        return held.stored()

    first = save({})
    arrays[7][63] = -0.0
    arrays[8] = arrays[8].copy()
    second = save(first.tables)
    assert [patch.buffer for patch in second.patches] == [7]
    assert second.layout == first.layout
    same = [name for name, table in second.tables.items() if first.tables[name] is table]
    assert len(same) == 99
    report = second.reports["state[8]"]
    assert (report.method, report.copied_bytes, report.changed_bytes) == ("hash", 0, 0)
    assert report.reason
    assert second.reports["state[7]"].changed_bytes == 512
    assert list(save(second.tables).patches) == []
    engine.close()
