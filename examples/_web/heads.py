"""The head of a response: its headers, and what servers get wrong about them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import attrs

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_LINE_END = re.compile(rb"\r?\n")
_INFORMATIONAL = re.compile(rb"HTTP/\d\.\d\s+1\d\d\b")
_TOKEN = re.compile(rb"[!#$%&'*+.^`|~\w-]+", re.ASCII)
_LENGTH = re.compile(rb"\s*\d+\s*(,\s*\d+\s*)*")
# Control characters, but for the tab, as blanks.
_NO_CONTROLS = bytes(
    0x20 if (byte < 0x20 and byte != 0x09) or byte == 0x7F else byte for byte in range(256)
)


@attrs.frozen
class Headers(Mapping[str, str]):
    """The headers of a response, by name in any case.

    Repeated ones are joined by commas, but for Location, of which the first counts.
    """

    _by_name: dict[str, str]

    @classmethod
    def of(cls, raw: Iterable[tuple[bytes, bytes]]) -> Headers:
        """From h11's pairs, whose names are in lower case."""
        by_name: dict[str, str] = {}
        for raw_name, raw_value in raw:
            name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
            if name not in by_name:
                by_name[name] = value
            elif name != "location":
                by_name[name] += f", {value}"
        return cls(by_name)

    def __getitem__(self, name: str) -> str:
        return self._by_name[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


def mended(received: bytes) -> bytes:
    """What was received, without what browsers pass over and RFC 9112 does not allow.

    Empty lines in front of the head; a blank before a colon; header lines without a colon, or
    whose name has blanks in it; control characters; a Content-Length that is not a number, and the
    Transfer-Encoding "identity". The body behind the head stays as it is.
    """
    rest, heads = received.lstrip(b"\r\n"), list[bytes]()
    while (end := _HEAD_END.search(rest)) is not None:
        status_line, *lines = _LINE_END.split(rest[: end.start()])
        heads.append(b"\r\n".join([status_line, *_mended_lines(lines), b"", b""]))
        rest = rest[end.end() :]
        if not _INFORMATIONAL.match(status_line):
            break
    return b"".join(heads) + rest


def _mended_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    is_kept = False
    for line in lines:
        if not line.startswith((b" ", b"\t")):
            name, colon, value = line.partition(b":")
            name = name.rstrip(b" \t")
            is_kept = bool(colon) and _is_usable(name, value)
            line = name + b":" + value  # what is yielded below, if at all
        if is_kept:  # a line that begins with a blank continues the one before
            yield line.translate(_NO_CONTROLS)


def _is_usable(name: bytes, value: bytes) -> bool:
    match name.lower():
        case b"content-length":
            return _LENGTH.fullmatch(value) is not None
        case b"transfer-encoding":
            return value.strip().lower() != b"identity"
        case _:
            return _TOKEN.fullmatch(name) is not None
