"""By any method what is restored is what was captured, to the bit, and no more is saved."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st

from tests.hangs import HANG_S
from tests.state.arrays.test_dirty_pages import ComparingKernel
from trio_ckpt._util.errors import StoreDamagedError
from trio_ckpt.state._arrays.arena import SLAB_BYTES, Arena, ArenaClosedError
from trio_ckpt.state._arrays.block_digests import BLOCK_BYTES, SPAN_BYTES, DigestTable, make_table
from trio_ckpt.state._arrays.block_ranges import decode_ranges, encode_ranges, ranges_of
from trio_ckpt.state._arrays.buffers import Buffer, collect
from trio_ckpt.state._arrays.capture import DENSE_AFTER, PROBE_EVERY, Capture, Method, Report
from trio_ckpt.state._arrays.compress import open_compressor
from trio_ckpt.state._arrays.dirty_chunks import ChunkPacker
from trio_ckpt.state._arrays.dirty_pages import Tracker, Untracked, open_tracker
from trio_ckpt.state._arrays.engine import ArrayEngine
from trio_ckpt.state._arrays.memory import Bytes, zeros
from trio_ckpt.state._arrays.restore import Assembly
from trio_ckpt.state._tree.frame import Layout, Patch, StateFrame
from trio_ckpt.state._tree.identity import ArrayLeaf

BLOCKS = 150
NBYTES = BLOCKS * BLOCK_BYTES - 1000  # the last block is short


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    made = Arena(16 * SLAB_BYTES)
    yield made
    assert made.used_bytes == 0
    made.close()


def open_simulated() -> Tracker:
    tracker = open_tracker(ComparingKernel())
    assert isinstance(tracker, Tracker)
    return tracker


COMPRESSOR = open_compressor()
UNWATCHED = Untracked("")


def apply(patches: list[Patch], stored: bytes, target: Bytes) -> None:
    """Write what was packed for one buffer to where it belongs."""
    for patch in patches:
        ranges, parts, at = decode_ranges(patch.ranges, target.size), list[Bytes](), patch.offset
        for length, size in zip(patch.stored, patch.sizes, strict=True):
            parts.append(COMPRESSOR.unpacked(stored[at : at + length], size))
            at += length
        data, done = np.concatenate(parts), 0
        for start, nbytes in ranges.tolist():
            target[start : start + nbytes] = data[done : done + nbytes]
            done += nbytes
        assert done == data.size


def buffer_of(data: Bytes, root: object = None, reason: str = "") -> Buffer:
    return Buffer(data, None, root, reason, 1)


@attrs.define(eq=False)
class Chain:
    """Saves of one buffer, and what a restore of them all would be."""

    data: Bytes
    arena: Arena
    tracker: Tracker | Untracked = UNWATCHED
    root: object = None
    table: DigestTable | None = None
    stored: Bytes = attrs.Factory(lambda self: np.zeros(self.data.size, np.uint8), True)

    def save(self, *, fails: bool = False, after: Any = None) -> Report:
        capture = Capture(buffer_of(self.data, self.root), self.table, self.tracker)
        packer = ChunkPacker(self.arena, COMPRESSOR)
        packer.add(0, capture)
        if after is not None:
            after()  # the program goes on before the copies are compared
        stored = b"".join(packer.pieces())
        assert packer.is_packed
        packer.release()
        if not fails:
            apply(packer.patches, stored, self.stored)
            self.table = capture.table()
        return capture.report

    def check(self) -> None:
        assert (self.stored == self.data).all()


def noise(seed: int, nbytes: int = NBYTES) -> Bytes:
    data = zeros(nbytes, np.uint8)
    data[:] = np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)
    return data


WRITES = st.lists(
    st.tuples(st.integers(0, NBYTES - 1), st.sampled_from([1, 10, 4096, 20_000, 300_000])),
    max_size=4,
)


@pytest.mark.parametrize("method", ["pages", "simulated", "hash"])
@given(
    saves=st.lists(st.tuples(WRITES, st.sampled_from(["", "", "fails", "rewrite"])), max_size=12)
)
@settings(max_examples=25, deadline=None)
def test_any_sequence_of_writes_and_failed_saves_is_restored(
    arena: Arena, method: str, saves: list[tuple[list[tuple[int, int]], str]]
) -> None:
    tracker = {"pages": open_tracker, "simulated": open_simulated, "hash": lambda: UNWATCHED}[
        method
    ]()
    chain = Chain(noise(0), arena, tracker)
    chain.save()
    chain.check()
    value = 0
    for writes, how in saves:
        before = chain.stored.copy()
        for start, length in writes:
            value += 1
            chain.data[start : start + length] ^= value % 255 + 1
        if how == "rewrite":
            chain.data[:] = chain.data.copy()  # written, but not changed
        report = chain.save(fails=how == "fails")
        if how == "fails":
            assert (chain.stored == before).all()
            continue
        chain.check()
        differ = np.unique(np.flatnonzero(chain.data != before) // BLOCK_BYTES)
        least = differ.size * BLOCK_BYTES - (1000 if BLOCKS - 1 in differ else 0)
        assert report.changed_bytes >= least
        if report.method == "hash":
            assert report.changed_bytes == least
    if isinstance(tracker, Tracker):
        tracker.close()


def test_each_method_saves_the_changed_blocks_and_no_others(arena: Arena) -> None:
    found = {}
    for name, tracker in (
        ("pages", open_tracker()),
        ("hash", UNWATCHED),
        ("simulated", open_simulated()),
    ):
        chain = Chain(noise(1), arena, tracker)
        chain.save()
        chain.save()
        for block in (0, 33, 34, 149):
            chain.data[block * BLOCK_BYTES] ^= 1
        found[name] = chain.save()
        chain.check()
        assert found[name].changed_bytes == 4 * BLOCK_BYTES - 1000
    assert found["simulated"].method == "pages"
    assert found["hash"].method == "hash"
    assert found["pages"].method == "pages" or found["pages"].reason


def test_what_changes_after_the_copy_belongs_to_the_next_save(arena: Arena) -> None:
    """The copies are of the moment; nothing that is written later gets lost, either."""
    for tracker in (UNWATCHED, open_simulated(), open_tracker()):
        chain = Chain(noise(2), arena, tracker)
        chain.save()
        for n in range(6):
            chain.data[n * 5000 : n * 5000 + 100] ^= 7
            at_save = chain.data.copy()

            def go_on(chain: Chain = chain, n: int = n) -> None:
                chain.data[n * 5000 + 50 : n * 5000 + 60_000] ^= 9

            chain.save(after=go_on)
            assert (chain.stored == at_save).all()
        chain.save()
        chain.check()


def test_nan_payloads_and_negative_zero_are_changes(arena: Arena) -> None:
    """They are equal as numbers (or never equal), so numbers are not what is compared."""
    array = zeros(50_000)
    chain = Chain(array.view(np.uint8), arena)
    chain.save()
    array[1] = -0.0
    array.view(np.uint64)[40_000] = 0x7FF8DEADBEEF0001
    assert chain.save().changed_bytes == 2 * BLOCK_BYTES
    chain.check()
    assert chain.save().changed_bytes == 0


def test_nothing_changed_is_nothing_saved(arena: Arena) -> None:
    for tracker in (UNWATCHED, open_simulated()):
        chain = Chain(noise(3), arena, tracker)
        assert chain.save().changed_bytes == NBYTES
        report = chain.save()
        assert (report.changed_bytes, report.copied_bytes) == (0, 0)


def test_an_immutable_object_is_known_by_itself(arena: Arena) -> None:
    raw, other = bytes(NBYTES), bytes(NBYTES)
    chain = Chain(np.frombuffer(raw, np.uint8), arena, root=raw)
    assert chain.save().method == "full"
    assert chain.save().method == "identity"
    chain.data, chain.root = np.frombuffer(other, np.uint8), other
    assert chain.save().method == "hash"
    chain.data, chain.stored = chain.data[BLOCK_BYTES:], chain.stored[BLOCK_BYTES:]
    assert chain.save().method == "full"
    assert chain.save().method == "identity"


def test_another_part_of_the_same_object_is_not_the_same(arena: Arena) -> None:
    raw = random.Random(1).randbytes(2 * SPAN_BYTES)
    whole = np.frombuffer(raw, np.uint8)
    chain = Chain(whole[:SPAN_BYTES], arena, root=raw)
    chain.save()
    chain.data = whole[SPAN_BYTES:]
    assert chain.save().method == "hash"
    chain.check()


def test_another_part_of_the_same_region_is_not_what_was_tracked(arena: Arena) -> None:
    """The tracker saw no write, but the buffer is elsewhere now."""
    whole = noise(4, 4 * NBYTES)
    for tracker in (open_simulated(), open_tracker()):
        chain = Chain(whole[:NBYTES], arena, tracker)
        chain.save()
        chain.save()
        chain.data = whole[2 * NBYTES : 3 * NBYTES]
        assert chain.save().method == "hash"
        chain.check()
        chain.data = whole[:NBYTES]
        chain.save()
        chain.check()


def test_an_array_replaced_by_another_is_compared_by_what_is_in_it(arena: Arena) -> None:
    for tracker in (open_simulated(), open_tracker()):
        chain = Chain(noise(5), arena, tracker)
        chain.save()
        for seed in range(6, 10):
            chain.data = np.empty(0, np.uint8)
            gc.collect()
            chain.data = noise(seed)
            assert chain.save().method in ("hash", "dense")
            chain.check()


def test_a_buffer_of_another_length_is_saved_in_full(arena: Arena) -> None:
    chain = Chain(noise(6), arena)
    chain.save()
    chain.data = noise(6)[:-1]
    chain.stored = chain.stored[:-1]
    assert chain.save().method == "full"
    chain.check()


@pytest.mark.parametrize("tracked", [False, True])
def test_arrays_that_change_a_lot_are_copied_first_while_they_do(
    arena: Arena, tracked: bool
) -> None:
    chain = Chain(noise(7), arena, open_simulated() if tracked else UNWATCHED)
    find: Method = "pages" if tracked else "hash"
    chain.save()
    methods: list[str] = []
    for _ in range(DENSE_AFTER + PROBE_EVERY + 2):
        chain.data ^= 1
        methods.append(chain.save().method)
        chain.check()
    assert methods == [find] * DENSE_AFTER + ["dense"] * (PROBE_EVERY + 2)
    methods = []
    for n in range(2 * PROBE_EVERY + 2):  # one block in each span: dense sees 100 %
        chain.data[(n % 32) * BLOCK_BYTES :: SPAN_BYTES] ^= 1
        methods.append(chain.save().method)
        chain.check()
    assert methods[0] == "dense"
    assert methods[-2:] == [find, find]
    chain.data[0] ^= 1
    assert chain.save().changed_bytes == BLOCK_BYTES


def test_the_reason_says_why_the_tracker_was_not_used(arena: Arena) -> None:
    chain = Chain(noise(8), arena, Untracked("no dirty-page tracking: too old"))
    assert chain.save().reason == "no dirty-page tracking: too old"
    chain.tracker = open_simulated()
    assert chain.save().reason == "watched from now on"
    assert chain.save() == Report("pages", "", NBYTES, 0, 0)
    chain.tracker.close()
    assert chain.save().reason == "the tracker is closed"


def test_a_table_made_of_what_was_restored_goes_on_with_deltas(arena: Arena) -> None:
    chain = Chain(noise(9), arena)
    chain.stored[:] = chain.data
    chain.table = make_table(chain.data)
    chain.data[70_000] ^= 1
    assert chain.save() == Report("hash", "", NBYTES, SPAN_BYTES, BLOCK_BYTES)
    chain.check()


@pytest.mark.parametrize(
    "nbytes", [0, 1, 4095, 4096, 4097, SPAN_BYTES, SPAN_BYTES + 1, SLAB_BYTES + 5]
)
def test_any_length(arena: Arena, nbytes: int) -> None:
    chain = Chain(noise(10, nbytes), arena)
    chain.save()
    chain.check()
    for at in {0, nbytes // 2, max(0, nbytes - 1)} if nbytes else set[int]():
        chain.data[at] ^= 1
        assert 0 < chain.save().changed_bytes <= BLOCK_BYTES
        chain.check()


def save_collected(
    array: Any, table: DigestTable | None, arena: Arena
) -> tuple[DigestTable, Report]:
    (buffer,) = collect([array]).buffers
    capture, packer = Capture(buffer, table, TRACKER), ChunkPacker(arena, COMPRESSOR)
    packer.add(0, capture)
    list(packer.pieces())
    packer.release()
    return capture.table(), capture.report


TRACKER = open_tracker()


@pytest.mark.skipif(isinstance(TRACKER, Untracked), reason="no dirty-page tracking here")
@pytest.mark.parametrize("library", ["numpy", "pages"])
def test_ordinary_arrays_are_tracked_from_save_to_save(arena: Arena, library: str) -> None:
    array: Any = zeros(2**20) if library == "pages" else np.zeros(2**20)
    table, _report = save_collected(array, None, arena)
    array[2**19] = 1
    table, report = save_collected(array, table, arena)
    assert report.method == "pages"
    # An array that begins within a page has two blocks in each, and its ends are never sure.
    assert BLOCK_BYTES <= report.changed_bytes <= 6 * BLOCK_BYTES
    table, report = save_collected(array, table, arena)
    assert (report.method, report.changed_bytes) == ("pages", 0)


def test_what_is_copied_for_each_save_is_not_tracked(arena: Arena) -> None:
    array = np.zeros((2**10, 2**10))[:, ::2]
    table, _report = save_collected(array, None, arena)
    array[5, 5] = 1
    _table, report = save_collected(array, table, arena)
    assert report.method == "hash"
    if isinstance(TRACKER, Tracker):
        assert report.reason == "it was copied without its holes"
    assert report.changed_bytes == BLOCK_BYTES


def test_what_is_copied_for_each_save_says_so_in_statistics() -> None:
    """The reason comes through the engine, as a user sees it."""
    engine = ArrayEngine()
    if isinstance(engine.tracker, Untracked):
        engine.tracker = open_simulated()
    held = engine.hold([ArrayLeaf("state.a", np.zeros((2**10, 2**10))[:, ::2])], {})
    list(held.pieces())
    assert held.stored().reports["state.a"].reason == "it was copied without its holes"
    held.release()
    engine.close()


def test_memory_that_a_library_copies_is_not_watched() -> None:
    tracker = open_simulated()
    capture = Capture(buffer_of(noise(15), reason="its library copies it"), None, tracker)
    assert (capture.report.reason, tracker.regions) == ("its library copies it", 0)


def test_a_capture_larger_than_the_arena_is_packed_to_make_room() -> None:
    small = Arena(4 * SLAB_BYTES)
    data = noise(11, 11 * SLAB_BYTES + 77)
    capture, packer = Capture(buffer_of(data), None, UNWATCHED), ChunkPacker(small, COMPRESSOR)
    packer.add(0, capture)
    assert small.used_bytes == 4 * SLAB_BYTES
    stored = np.zeros(data.size, np.uint8)
    packed = b"".join(packer.pieces())
    assert [len(patch.sizes) for patch in packer.patches] == [4, 4, 4]
    apply(packer.patches, packed, stored)
    assert (stored == data).all()
    assert capture.table().nbytes == data.size
    packer.release()
    packer.release()
    assert small.used_bytes == 0


def start_to_wait(thread: threading.Thread, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a thread, and return when it waits for a condition."""
    waits, real = threading.Event(), threading.Condition.wait

    def wait(condition: threading.Condition, timeout: float | None = None) -> bool:
        if threading.current_thread() is thread:
            waits.set()  # the lock is held until it waits
        return real(condition, timeout)

    monkeypatch.setattr(threading.Condition, "wait", wait)
    thread.start()
    assert waits.wait(HANG_S)


def test_a_capture_waits_for_room_that_another_save_gives_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = Arena(2 * SLAB_BYTES)
    others = [small.reserve(), small.reserve()]
    data = noise(12, 3 * SLAB_BYTES)
    packer = ChunkPacker(small, COMPRESSOR)
    waiter = threading.Thread(
        target=packer.add, args=(0, Capture(buffer_of(data), None, UNWATCHED))
    )
    start_to_wait(waiter, monkeypatch)
    for slab in others:
        slab.release()
    waiter.join()
    stored = np.zeros(data.size, np.uint8)
    apply(packer.patches, b"".join(packer.pieces()), stored)
    assert (stored == data).all()
    packer.release()
    assert small.used_bytes == 0


def test_small_buffers_share_a_slab() -> None:
    """A thousand of them fill one slab, not the arena."""
    arena = Arena(2 * SLAB_BYTES)
    packer = ChunkPacker(arena, COMPRESSOR)
    buffers = [noise(seed, 100 + seed) for seed in range(1000)]
    for number, data in enumerate(buffers):
        packer.add(number, Capture(buffer_of(data), None, UNWATCHED))
    assert arena.used_bytes == SLAB_BYTES
    packed = b"".join(packer.pieces())
    assert [patch.buffer for patch in packer.patches] == list(range(1000))
    for data, patch in zip(buffers, packer.patches, strict=True):
        stored = np.zeros(data.size, np.uint8)
        apply([patch], packed, stored)
        assert (stored == data).all()
    packer.release()


def test_scattered_changes_are_packed_together(arena: Arena) -> None:
    """One block in each of 16 spans is one piece of 16 blocks, not 16 pieces."""
    chain = Chain(noise(16, 4 * SLAB_BYTES), arena)
    chain.save()
    chain.data[::SPAN_BYTES] ^= 1
    packer = ChunkPacker(arena, COMPRESSOR)
    packer.add(0, Capture(buffer_of(chain.data), chain.table, UNWATCHED))
    list(packer.pieces())
    (patch,) = packer.patches
    assert patch.sizes == (32 * BLOCK_BYTES,)
    packer.release()


def test_a_capture_that_is_given_up_leaves_nothing_behind() -> None:
    arena = Arena(80 * SLAB_BYTES)
    packer = ChunkPacker(arena, COMPRESSOR)
    packer.add(0, Capture(buffer_of(noise(14, 70 * SLAB_BYTES)), None, UNWATCHED))
    next(packer.pieces())
    packer.release()
    assert arena.used_bytes == 0
    assert packer.is_packed


def test_a_description_before_all_is_packed_is_refused() -> None:
    engine = ArrayEngine()
    held = engine.hold([ArrayLeaf("state.a", noise(13, 3 * SLAB_BYTES))], {})
    pieces = held.pieces()
    next(pieces)
    with pytest.raises(RuntimeError, match="pieces are packed"):
        held.stored()
    list(pieces)
    assert held.stored().nbytes > 3 * SLAB_BYTES
    held.release()
    engine.close()


# -- the arena --------------------------------------------------------------------------


def test_an_arena_is_bounded_and_reuses_its_memory() -> None:
    arena = Arena(3 * SLAB_BYTES - 5)
    slabs = [arena.reserve() for _ in range(3)]
    assert arena.reserve_nowait() is None
    slabs[1].release()
    slabs[1].release()
    assert arena.used_bytes == 2 * SLAB_BYTES
    again = arena.reserve()
    assert again.offset == slabs[1].offset
    assert arena.reserve_nowait() is None
    for slab in (slabs[0], slabs[2], again):
        slab.release()
    assert arena.used_bytes == 0


def test_closing_an_arena_wakes_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(SLAB_BYTES)
    slab = arena.reserve()
    memory = arena.memory(slab.offset, SLAB_BYTES)
    ends: list[str] = []

    def wait() -> None:
        try:
            arena.reserve()
        except ArenaClosedError as error:
            ends.append(str(error))

    waiter = threading.Thread(target=wait, daemon=True)
    start_to_wait(waiter, monkeypatch)
    arena.close()
    waiter.join(HANG_S)
    assert ends == ["the staging arena is closed"]
    memory[:] = 1  # the last one out keeps the memory
    slab.release()
    for use in (arena.reserve_nowait, arena.reserve, lambda: arena.memory(0, 1)):
        with pytest.raises(ArenaClosedError):
            use()


# -- ranges -----------------------------------------------------------------------------


@given(st.sets(st.integers(0, 60), max_size=30), st.integers(0, BLOCK_BYTES - 1))
@settings(deadline=None)
def test_ranges_are_the_blocks(blocks: set[int], short: int) -> None:
    nbytes = 61 * BLOCK_BYTES - short
    ranges = ranges_of(np.array(sorted(blocks), np.intp), nbytes)
    covered = np.zeros(nbytes, np.bool_)
    for start, length in ranges.tolist():
        assert not covered[start : start + length].any()
        covered[start : start + length] = True
    wanted = [n // BLOCK_BYTES in blocks for n in range(0, nbytes, BLOCK_BYTES)]
    assert covered[::BLOCK_BYTES].tolist() == wanted
    assert decode_ranges(encode_ranges(ranges), nbytes).tolist() == ranges.tolist()


def rows(*pairs: tuple[int, int]) -> npt.NDArray[np.int64]:
    return np.array(pairs, np.int64).reshape(-1, 2)


WHOLE = encode_ranges(rows((0, 20_000)))


@pytest.mark.parametrize(
    "payload",
    [
        b"1234567",
        encode_ranges(rows((0, 4096), (0, 4096))),
        encode_ranges(rows((4096, 4096), (0, 4096))),
        encode_ranges(rows((0, 8000), (4096, 3904))),
        encode_ranges(rows((8192, 4096))),
        encode_ranges(rows((4096, 8192))),
        encode_ranges(rows((0, 0))),
        b"\xff" * 8,  # the end is over 2**32
        b"\0\0\0\0\xff\xff\xff\xff",
    ],
)
def test_ranges_that_do_not_fit_are_refused(payload: bytes) -> None:
    with pytest.raises(StoreDamagedError, match="table of changed ranges"):
        decode_ranges(payload, 8000)


@pytest.mark.parametrize(
    ("ranges", "sizes"),
    [
        (rows((0, 4096)), [4095]),
        (rows((0, 4096)), [4096, 1]),
        (rows((0, 4096), (8192, 4096)), [4096]),
        (rows((0, 4096), (8192, 4096)), [4096, 4095]),
        (rows((0, 4096)), []),
        (rows(), [1]),
    ],
)
def test_more_or_fewer_bytes_than_ranges_are_refused(
    ranges: npt.NDArray[np.int64], sizes: list[int]
) -> None:
    """By the assembly, before any memory is written."""
    patch = Patch(0, encode_ranges(ranges), 0, (9,) * len(sizes), tuple(sizes), b"d" * 16)
    layout = Layout(("a",), (20_000,), ())
    frames = [
        StateFrame(
            lineage=b"l" * 8,
            number=number,
            parent=b"p" * 16 * number,
            tree=b"",
            layout=layout,
            patches=(patches,),
            data_bytes=9,
        )
        for number, patches in ((1, patch), (0, Patch(0, WHOLE, 0, (9,), (20_000,), b"d" * 16)))
    ]
    Assembly(frames[1:])
    with pytest.raises(StoreDamagedError, match="more or fewer bytes than changes"):
        Assembly(frames)
