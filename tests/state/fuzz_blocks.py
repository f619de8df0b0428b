"""Feed damaged bytes to every decoder of arrays: ``python -m tests.state.fuzz_blocks 1000000``.

What comes out is what was saved, or `StoreDamagedError`; nothing else, and no more memory
than was asked for.  The tests run a short one.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable

import msgspec
import numpy as np

from trio_ckpt._errors import StoreDamagedError
from trio_ckpt.state._buffers import View, collect, rebuild
from trio_ckpt.state._compress import HEAD, Compressor, open_compressor
from trio_ckpt.state._patches import apply, decode_ranges, encode_ranges, ranges_of

NBYTES = 6_000
Case = Callable[[random.Random, bytearray], str]


def damage(rng: random.Random, data: bytearray) -> bytearray:
    """Some bytes flipped, replaced by telling ones, cut, doubled or swapped."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4, 8))):
        if not data:
            return bytearray(rng.randbytes(rng.randrange(40)))
        at = rng.randrange(len(data))
        if rng.random() < 0.5:
            at = rng.randrange(min(len(data), 44))  # most of what can go wrong is in the head
        match rng.randrange(6):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice((0, 1, 2, 0x7F, 0x80, 0xFF))
            case 2:
                data[at : at + 4] = rng.choice((b"\xff" * 4, b"\0\0\0\x80", rng.randbytes(4)))
            case 3:
                del data[at:]
            case 4:
                data[at:at] = data[at : at + rng.randrange(64)]
            case _:
                data[at : at + 16] = rng.randbytes(16)
    return data


def make_blocks() -> list[bytes]:
    """Blocks of each codec, as `Compressor.pack` makes them."""
    rng = np.random.default_rng(1)
    slow = open_compressor("slow")
    raws = [
        np.zeros(NBYTES, np.uint8),
        np.arange(NBYTES // 4, dtype="<f4").view(np.uint8),
        rng.integers(0, 9, NBYTES // 8).astype("<i8").view(np.uint8),
        np.frombuffer(b"the quick brown fox " * (NBYTES // 20), np.uint8),
        rng.integers(0, 256, NBYTES, np.uint8),
    ]
    blocks = [
        open_compressor().pack(raw, size) for raw, size in zip(raws, (4, 4, 8, 1, 1), strict=True)
    ]
    return blocks + [slow.pack(raw, size) for raw, size in zip(raws, (1, 1, 8, 1, 1), strict=True)]


def fuzz_block(compressor: Compressor, rng: random.Random, blocks: list[bytes]) -> str:
    data = damage(rng, bytearray(rng.choice(blocks)))
    if len(data) >= HEAD.size and rng.random() < 0.7:  # let it pass the checks of the head
        body = len(data) - HEAD.size
        data[2:10] = NBYTES.to_bytes(4, "little") + body.to_bytes(4, "little")
        if data[0] == 1 and body >= 32 and rng.random() < 0.8:
            data[10:12], data[13], data[14:18] = b"\x05\x01", data[1], NBYTES.to_bytes(4, "little")
            data[22:26] = body.to_bytes(4, "little")
    target = np.zeros(NBYTES + 64, np.uint8)
    target[NBYTES:] = 0xA5
    compressor.unpack(bytes(data), target[:NBYTES])
    assert (target[NBYTES:] == 0xA5).all(), "wrote past the end"
    return "unpacked"


def fuzz_ranges(rng: random.Random) -> str:
    blocks = np.flatnonzero(np.random.default_rng(rng.randrange(99)).random(40) < 0.3)
    nbytes = 40 * 4096 - rng.randrange(4096)
    payload = bytes(damage(rng, bytearray(encode_ranges(ranges_of(blocks, nbytes)))))
    ranges = decode_ranges(payload, nbytes)
    target = np.zeros(nbytes, np.uint8)
    length = max(0, int(ranges[:, 1].sum()) + rng.choice((0, 0, 0, -1, 1)))
    apply(target, ranges, [np.ones(length, np.uint8)])
    assert int(target.sum()) == length
    return "applied"


ARRAYS = [
    np.arange(64, dtype="<f4").reshape(8, 8)[::-2, ::-1],
    np.zeros((), "<M8[ns]"),
    np.zeros((0, 3), ">i2"),
    np.zeros(4, np.dtype([("a", "<i4"), ("b", "|S3", (2,))], align=True)),
    np.zeros((3, 5), "<U7", order="F"),
    np.broadcast_to(np.float64(3), (4, 4)),
]
COLLECTED = collect(ARRAYS)
PLAIN = [view.to_plain() for view in COLLECTED.views]
SIZES = [buffer.data.nbytes for buffer in COLLECTED.buffers]
WORDS = [
    None,
    0,
    1,
    -1,
    2**31,
    2**62,
    2**63,
    2**64 - 1,
    -(2**63),
    "",
    "<f4",
    "|O8",
    "|S9",
    True,
    0.5,
    [],
]


def shake(rng: random.Random, plain: object) -> object:
    """A plain value with some of its leaves or branches replaced."""
    if rng.random() < 0.08:
        return rng.choice(WORDS)
    if isinstance(plain, list):
        rows = [shake(rng, item) for item in plain]
        if rows and rng.random() < 0.05:
            rows.insert(rng.randrange(len(rows)), rng.choice(rows))
        if rows and rng.random() < 0.03:
            rows.pop()
        return rows
    if type(plain) is int and rng.random() < 0.2:
        return plain + rng.choice((-8, -1, 1, 4, 8, 1000))
    return plain


def fuzz_view(rng: random.Random) -> str:
    plain = shake(rng, rng.choice(PLAIN))
    if rng.random() < 0.2:
        try:
            plain = msgspec.msgpack.decode(
                bytes(damage(rng, bytearray(msgspec.msgpack.encode(plain))))
            )
        except (msgspec.MsgspecError, OverflowError, UnicodeDecodeError):
            return "no msgpack"
    view = View.from_plain(plain, SIZES)
    buffers = [np.zeros(size, np.uint8) for size in SIZES]
    array = rebuild([view], buffers)[0]
    assert isinstance(array, np.ndarray)
    if array.size < 100_000:
        array.tobytes()  # touches every byte that the view reaches
    return "rebuilt"


def fuzz(executions: int, seed: int) -> Counter[str]:
    """So many executions, spread over the decoders; how they ended."""
    rng = random.Random(seed)
    blocks, compressor = make_blocks(), open_compressor("slow")
    ends: Counter[str] = Counter()
    for n in range(executions):
        try:
            match n % 4:
                case 0 | 1:
                    ends[fuzz_block(compressor, rng, blocks)] += 1
                case 2:
                    ends[fuzz_ranges(rng)] += 1
                case _:
                    ends[fuzz_view(rng)] += 1
        except StoreDamagedError as error:
            ends[f"{type(error).__name__}: {str(error)[:40]}"] += 1
    return ends


def main() -> None:
    executions, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    began = time.perf_counter()
    for end, count in fuzz(executions, seed).most_common():
        print(f"{count:10,}  {end}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    took = time.perf_counter() - began
    print(f"{executions:,} executions, seed {seed}, {took:.0f} s, peak {peak} MiB")


if __name__ == "__main__":
    main()
