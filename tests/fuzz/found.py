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
]
