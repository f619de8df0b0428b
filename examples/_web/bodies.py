"""Content codings of a body undone, within bounds."""

from __future__ import annotations

import zlib

from .errors import BadResponse, BodyTooLarge, TruncatedBody

# A response may be compressed again by a proxy; more layers are made to be expensive.
MAX_CONTENT_CODINGS = 2
GZIP_MAGIC = b"\x1f\x8b"


def decode_body(body: bytes, codings: str, max_bytes: int, url: str) -> bytes:
    """Undo the Content-Encoding of a body.

    Args:
        body: As received, itself at most ``max_bytes``.
        codings: The header's value. It says how many layers there are; what a layer is, is read
            from its first bytes, which are right more often.
        max_bytes: How large a result may get. Not one byte more is ever decompressed than that
            and one, so a small bomb stays small.
        url: For the errors.

    Raises:
        BodyTooLarge, TruncatedBody, BadResponse: As their names say.
    """
    names = [name for part in codings.lower().split(",") if (name := part.strip())]
    names = [name for name in names if name != "identity"]
    if len(names) > MAX_CONTENT_CODINGS:
        raise BadResponse(url, f"{len(names)} content codings")
    for name in names:
        if name not in ("gzip", "x-gzip", "deflate"):
            raise BadResponse(url, f"unknown content coding {name[:40]!r}")
        try:
            body = _decompress(body, max_bytes, url)
        except zlib.error as error:
            raise BadResponse(url, f"not decodable as {name} ({error})") from error
    return body


def _decompress(body: bytes, max_bytes: int, url: str) -> bytes:
    """gzip (RFC 1952, several members), zlib (RFC 1950), or bare deflate as some servers send."""
    pieces: list[bytes] = []
    room = max_bytes
    while body:
        decompressor = zlib.decompressobj(_window_bits(body))
        piece = decompressor.decompress(body, room + 1)
        room -= len(piece)
        if room < 0:
            raise BodyTooLarge(url, f"decoded body of more than {max_bytes} bytes")
        if not decompressor.eof and not _lacks_only_its_checksum(body, len(piece)):
            raise TruncatedBody(url, "compressed body without its end")
        pieces.append(piece)
        body = decompressor.unused_data
        if not body.startswith(GZIP_MAGIC):
            break  # what follows is padding, which browsers ignore, too
    return b"".join(pieces)


def _window_bits(body: bytes) -> int:
    """zlib's name of the format, by its magic number."""
    if body.startswith(GZIP_MAGIC):
        return 16 + zlib.MAX_WBITS
    is_zlib = body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS


def _lacks_only_its_checksum(body: bytes, decoded_bytes: int) -> bool:
    """Whether the compressed data are whole, and the few bytes behind them are not.

    Some servers leave those out, and browsers do without.
    """
    start = _header_bytes(body)
    if start is None:
        return False
    deflated = zlib.decompressobj(-zlib.MAX_WBITS)
    deflated.decompress(body[start:], decoded_bytes + 1)
    return deflated.eof


def _header_bytes(body: bytes) -> int | None:
    """The length of the header in front of the compressed data; None: not all of it is there."""
    if not body.startswith(GZIP_MAGIC):
        return 2 if _window_bits(body) > 0 else None
    at = 10
    if len(body) < at:
        return None
    flags = body[3]
    if flags & 4:  # RFC 1952: FEXTRA, its length first
        at += 2 + int.from_bytes(body[at : at + 2], "little")
    for text in (8, 16):  # FNAME, FCOMMENT: up to a zero byte
        if flags & text:
            at = body.find(b"\0", at) + 1
            if at == 0:
                return None
    return at + 2 if flags & 2 else at  # FHCRC
