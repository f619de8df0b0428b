"""Plain damage: bytes changed, taken out, doubled, put in, or taken from another input."""

from __future__ import annotations

import random
from collections.abc import Sequence

MUTATIONS = 4  # of one input at most
HEAD_BYTES = 48  # half of all damage is done here: most of what can go wrong is
TELLING = (
    *(b"\0", b"\x01", b"\x7f", b"\x80", b"\xff", b"\xc0", b"\xcb", b"\x91", b"\x81"),
    *(b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\xdd\xff\xff\xff\xff", b"\xdf\0\xff\xff\xff"),
    *(b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\0" * 7, b"\xcb\x7f\xf8" + b"\0" * 6),
    *(b'"', b"{", b"[", b"]}", b"\\", b"\\ud800", b"NaN", b"1e999", b"-1", b"\n", b"..", b"/"),
    *(b"\xed\xa0\x80", "\u202e".encode(), b"\x1b[31m", b"%00", b":", b"@", b"=", b"--"),
)


def mutate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` with some things done to it."""
    result = bytearray(data)
    for _ in range(rng.randint(1, MUTATIONS)):
        end = len(result) if rng.random() < 0.5 else min(len(result), HEAD_BYTES)
        at = rng.randrange(end + 1)
        match rng.randrange(7):
            case 0:
                result[at : at + 1] = bytes((rng.randrange(256),))
            case 1 if at < len(result):
                result[at] ^= 1 << rng.randrange(8)
            case 2:
                del result[at : at + rng.randint(1, 9)]
            case 3:
                result[at:at] = result[at : at + rng.randint(1, 64)]
            case 4:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                result[at : at + rng.randint(0, 9)] = other[start : start + rng.randint(1, 40)]
            case 5:
                telling = rng.choice(TELLING)
                result[at : at + rng.choice((0, 1, len(telling)))] = telling
            case _:
                result[at : at + rng.randint(0, 8)] = rng.randbytes(rng.randint(1, 8))
    return bytes(result)
