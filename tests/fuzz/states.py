"""What saved states are read from: frames, trees, deltas, blocks, ranges, views of arrays."""

from __future__ import annotations

import itertools
import random

import msgspec
import numpy as np
import xxhash

from tests.fuzz.case import Reader, Target, law
from tests.fuzz.samples import (
    ARRAYS,
    BLOCK_BYTES,
    PLAN,
    deltas,
    make_blocks,
    make_chain,
    parts_of,
    replace_inside,
    shake,
    trees,
)
from trio_ckpt._journal.store import scatter
from trio_ckpt._util.errors import NotEncodableError, StoreDamagedError, StoreError
from trio_ckpt.state import Layout, StateFrame, decode_frame, encode_frame, tree_of
from trio_ckpt.state._arrays.block_ranges import decode_ranges, encode_ranges, ranges_of
from trio_ckpt.state._arrays.buffers import check_view, collect, rebuild
from trio_ckpt.state._arrays.compress import HEAD, open_compressor
from trio_ckpt.state._arrays.engine import ArrayEngine
from trio_ckpt.state._arrays.restore import Assembly
from trio_ckpt.state._tree.delta import patch_tree
from trio_ckpt.state._tree.errors import StateChangedError
from trio_ckpt.state._tree.format import Tree, decode_tree, encode_tree
from trio_ckpt.state._tree.frame import Patch, View

# -- frames -------------------------------------------------------------------------------


def open_frame() -> Reader:
    """A chain of three frames, one of them damaged: decoded, planned, filled."""
    engine = ArrayEngine()
    chain = make_chain(engine)

    def read(data: bytes) -> str:
        place = data[0] % len(chain) if data else 0
        payloads = [*chain[:place], data[1:], *chain[place + 1 :]]
        frame = decode_frame(payloads[place])
        law(holds=decode_frame(encode_frame(frame)) == frame, broken="it came back another")
        frames = [decode_frame(payload) for payload in payloads]
        tree_of(frames)
        assembly = Assembly(frames)
        for wanted in assembly.reads:
            stored = frames[wanted.frame].data[wanted.offset : wanted.offset + wanted.size]
            landing = assembly.land(wanted)
            scatter(stored, landing.targets)
            assembly.fill(landing, engine.compressor)
        assembly.arrays()
        return "read"

    seeds = [bytes((place,)) + payload for place, payload in enumerate(chain)]
    return Reader(read, seeds, close=engine.close)


# -- trees --------------------------------------------------------------------------------


def _build(tree: Tree, arrays: list[object]) -> str:
    try:
        PLAN.build(tree, arrays)
    except (StoreDamagedError, StateChangedError) as error:
        return f"read, then {type(error).__name__}"
    return "read"


def _encoded(tree: Tree) -> bytes:
    """Its bytes; of what no tree can be, those of nothing."""
    try:
        return encode_tree(tree)
    except (TypeError, ValueError, OverflowError, RecursionError, NotEncodableError):
        return b""


def open_tree() -> Reader:
    seeds, arrays = trees()
    decoded = [decode_tree(data) for data in seeds]
    parts = [part for tree in decoded for part in parts_of(tree)]

    def read(data: bytes) -> str:
        tree = decode_tree(data)
        law(holds=encode_tree(tree) == data, broken="two texts of one tree")
        return _build(tree, arrays)

    def fresh(rng: random.Random) -> bytes:
        return _encoded(replace_inside(rng, rng.choice(decoded), parts))

    return Reader(read, seeds, fresh)


def open_delta() -> Reader:
    pairs = deltas()
    _, arrays = trees()
    decoded = [decode_tree(data) for _, data in pairs]
    parts = [part for tree in decoded for part in parts_of(tree)]

    def read(data: bytes) -> str:
        old, _ = pairs[data[0] % len(pairs) if data else 0]
        before = encode_tree(old)
        tree = patch_tree(old, decode_tree(data[1:]))
        law(holds=encode_tree(old) == before, broken="the old tree was altered")
        return _build(tree, arrays)

    def fresh(rng: random.Random) -> bytes:
        place = rng.randrange(len(pairs))
        return bytes((place,)) + _encoded(replace_inside(rng, decoded[place], parts))

    return Reader(read, [bytes((n,)) + data for n, (_, data) in enumerate(pairs)], fresh)


# -- arrays -------------------------------------------------------------------------------


def open_block() -> Reader:
    """The first byte says how much of the head is mended, so that the body is looked at."""
    compressor = open_compressor("slow")
    guard = 64

    def read(data: bytes) -> str:
        mends, block = data[:1], bytearray(data[1:])
        body = len(block) - HEAD.size
        if mends > b"\x40" and body >= 0:
            block[2:10] = BLOCK_BYTES.to_bytes(4, "little") + body.to_bytes(4, "little")
            if mends > b"\x80" and block[0] == 1 and body >= 32:
                block[10:12], block[13] = b"\x05\x01", block[1]
                block[14:18] = BLOCK_BYTES.to_bytes(4, "little")
                block[22:26] = body.to_bytes(4, "little")
        target = np.zeros(BLOCK_BYTES + guard, np.uint8)
        target[BLOCK_BYTES:] = 0xA5
        compressor.unpack(bytes(block), target[:BLOCK_BYTES])
        law(holds=bool((target[BLOCK_BYTES:] == 0xA5).all()), broken="it wrote past the end")
        return "read"

    return Reader(read, [mark + block for block in make_blocks() for mark in (b"\0", b"\xff")])


def open_ranges() -> Reader:
    """Two bytes for the length of the buffer, one for the length of the data; the ranges."""
    most = 40 * 4096
    compressor = open_compressor()

    def read(data: bytes) -> str:
        nbytes = most - int.from_bytes(data[:2]) % 4096
        ranges = decode_ranges(data[3:], nbytes)
        law(holds=encode_ranges(ranges) == data[3:], broken="they came back others")
        length = max(0, int(ranges[:, 1].sum()) + (0, 0, 0, -1, 1)[data[2] % 5 if data[2:] else 0])
        whole = encode_ranges(ranges_of(np.arange(40), nbytes))
        frames = [
            _frame_of(1, nbytes, data[3:], compressor.pack(np.ones(length, np.uint8), 1), length),
            _frame_of(0, nbytes, whole, compressor.pack(np.zeros(nbytes, np.uint8), 1), nbytes),
        ]
        assembly = Assembly(frames)
        for part in itertools.chain(*assembly.rounds):
            stored = frames[part.frame].data[part.offset : part.offset + part.size]
            landing = assembly.land(part)
            scatter(stored, landing.targets)
            assembly.fill(landing, compressor)
        found = np.zeros(nbytes, np.uint8)
        for start, size in ranges.tolist():
            found[start : start + size] = 1
        law(holds=bool((assembly.buffers[0] == found).all()), broken="other bytes were written")
        return "read"

    rng = np.random.default_rng(1)
    blocks = [np.flatnonzero(rng.random(40) < share) for share in (0.0, 0.1, 0.3, 0.9)]
    ranges = [encode_ranges(ranges_of(chosen, most)) for chosen in blocks]
    return Reader(read, [head + text for head in (b"\0\0\0", b"\x0f\0\x01") for text in ranges])


def _frame_of(number: int, nbytes: int, ranges: bytes, block: bytes, length: int) -> StateFrame:
    """Return a frame of one buffer, with one piece in it if there are any bytes."""
    pieces = (len(block),) if length else ()
    digest = xxhash.xxh3_128_digest(block) if length else b""
    return StateFrame(
        lineage=b"l" * 8,
        number=number,
        parent=b"p" * 16 * number,
        tree=b"",
        layout=Layout(("a",), (nbytes,), ()),
        patches=(Patch(0, ranges, 0, pieces, (length,) if length else (), digest),),
        data=block,
    )


def open_view() -> Reader:
    """How an array lies in its buffer: nothing may reach outside of it."""
    collected = collect(ARRAYS)
    sizes = [buffer.data.nbytes for buffer in collected.buffers]
    plain = [msgspec.to_builtins(view) for view in collected.views]
    buffers = [np.zeros(size, np.uint8) for size in sizes]
    most_touched = 100_000

    def read(data: bytes) -> str:
        try:
            view = msgspec.msgpack.decode(data, type=View)
        except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError):
            return "no view"
        check_view(view, sizes)
        array = rebuild([view], buffers)[0]
        law(holds=isinstance(array, np.ndarray), broken="it is no array")
        if array.size < most_touched:
            array.tobytes()  # touches every byte that the view reaches
        return "read"

    def fresh(rng: random.Random) -> bytes:
        try:
            return msgspec.msgpack.encode(shake(rng, rng.choice(plain)))
        except (OverflowError, msgspec.MsgspecError):
            return b""

    return Reader(read, [msgspec.msgpack.encode(view) for view in plain], fresh)


TARGETS = {
    "frame": Target(open_frame, (StoreDamagedError, StoreError), share=0.5),
    "tree": Target(open_tree, ends=frozenset({"read", "read, then StoreDamagedError"})),
    "delta": Target(open_delta, ends=frozenset({"read", "read, then StoreDamagedError"})),
    "block": Target(open_block),
    "ranges": Target(open_ranges),
    "view": Target(open_view),
}
