"""The contents of runs in the JSON store: the blobs that they name, and their size."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path

from .files import load
from .format import StreamState
from .records import decode_entry, decode_fold, payload_of


def blobs_of(streams: Iterable[StreamState]) -> Generator[str, None, None]:
    """Yield the blobs that the records of streams name."""
    for stream in streams:
        for raw in stream.entries:
            entry = decode_entry(raw)
            if entry.blob is not None:
                yield entry.blob
            yield from entry.blobs


def named_in(folder: Path) -> Generator[str, None, None]:
    """Yield the blobs that the records of a run name; raises what `load` does."""
    loaded = load(folder)
    if loaded is not None:
        yield from blobs_of(loaded.state.streams.values())


def payload_bytes(stream: StreamState) -> int:
    """Return the size of a stream's payloads and of its fold's in bytes, without blobs."""
    entries = map(decode_entry, stream.entries)
    size = sum(len(payload_of(entry)) for entry in entries if entry.blob is None)
    return size + (len(decode_fold(stream.fold).payload) if stream.fold is not None else 0)
