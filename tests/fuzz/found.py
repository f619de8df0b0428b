"""Inputs that broke a law once: the target, what happened, the input."""

from __future__ import annotations

FOUND: list[tuple[str, str, bytes]] = [
    (
        "live",
        "text that is not UTF-8 left as UnicodeDecodeError",
        b"\x99\xcb?\xf0\0\0\0\0\0\0\x03\x91\x94\x91\xa1\xff",
    ),
    ("names", "a lone surrogate left as UnicodeEncodeError", b'k["\xed\xb2\x80"]'),
    (
        "entry",
        "a record without its kind: AttributeError",
        b'f{"sequence":1,"seal":"","record":{"time":"","at":1.0}}',
    ),
    (
        "record",
        "more records than a fold can hold: OverflowError",
        bytes.fromhex("83a174cb3ff8000000000000a16900a16ecfffffffffffffffff"),
    ),
    (
        "record",
        "an index that len cannot tell: OverflowError",
        bytes.fromhex("82a174cb3ff8000000000000a169cfffffffffffffffff"),
    ),
    (
        "fold",
        "a set that len cannot tell: OverflowError",
        bytes.fromhex(
            "dc001b03940001060290800381a4636f737492a1310181a16e92a1320081a16e92a132009207cfffffffff"
            "ffff7fff81a4706167659201c0c3c205c0c0c0ab696e746572727570746564c00181a7612e6a736f6e6c09"
            "8094cb3ff8000000000000cb4008000000000000c0c001cb3ff0000000000000cb4008000000000000cb00"
            "0000000000000080"
        ),
    ),
]
