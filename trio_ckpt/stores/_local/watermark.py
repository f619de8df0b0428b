"""High-water mark of acknowledged records: detects a store that lost its end or is an older copy.

Theory of operation.  Every record is sealed and every file has digests, but a part of a
store can still be replaced by an older one that is whole: a copy of ``state.db``, a write-ahead log
or a journal that lost its end.  What is left is consistent, there is only less of it.  So the
owner of a run writes to a file of its own how much was acknowledged.  If the store has less than
that, it is damaged.

The watermark is written after the save is durable, so it is never ahead of what was acknowledged.
It is not synced: an older watermark is true as well.  It fits into one sector and costs one
write(2) per group.  A failure to write it does not fail a save.

A watermark that differs from what its owner has written last means that a copy of the store was
written over the open files, each of which kept its identity.  Blocking functions.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from ..._util.errors import StoreConflictError, StoreError
from ..._util.forks import close_unshared, open_unshared
from ..._util.log import get_logger
from ..._util.text import plural
from .files import hashed_name, open_file

logger = get_logger(__name__)

SUFFIX = ".seen"
MAX_WATERMARK_BYTES = 4_096  # a run's name in JSON and three numbers take less
_WATERMARK = re.compile(
    rb"trio_ckpt seen 1 ([0-9]{20}) ([0-9]{20}) ([0-9]{20}) ([0-9a-f]{32}) (.+)\n", re.DOTALL
)


class Watermark(msgspec.Struct, frozen=True):
    """How much of a run was acknowledged.

    Attributes:
        run_id: The run.
        owner: Its newest owner number.
        generation: Its newest generation.
        records: The number of records of all streams, all generations together.
    """

    run_id: str
    owner: int
    generation: int
    records: int

    def is_ahead_of(self, generation: int, records: int) -> bool:
        """Return whether more was acknowledged than the given generation and records."""
        has_more = self.generation > generation or self.records > records
        return bool(self.records) and has_more


def watermark_path(folder: Path, run_id: str) -> Path:
    """Return the path of a run's watermark."""
    return folder / "lock" / (hashed_name(run_id) + SUFFIX)


def encode_watermark(seen: Watermark) -> bytes:
    """Encode a watermark; the length is constant for a run."""
    numbers = b"%020d %020d %020d" % (seen.owner, seen.generation, seen.records)
    name = json.dumps(seen.run_id).encode()
    return b"trio_ckpt seen 1 %b %b %b\n" % (numbers, _check(numbers, name), name)


def decode_watermark(content: bytes) -> Watermark | None:
    """Decode a watermark; None: it was not written whole."""
    match = _WATERMARK.fullmatch(content)
    if match is None:
        return None
    owner, generation, records, check, name = match.groups()
    if check != _check(b" ".join((owner, generation, records)), name):
        return None
    return Watermark(json.loads(name), int(owner), int(generation), int(records))


def _check(numbers: bytes, name: bytes) -> bytes:
    return hashlib.blake2b(numbers + name, digest_size=16).hexdigest().encode()


def read_watermark(path: Path) -> Watermark | None:
    """Read the watermark in a file; None: the file is missing or empty.

    Raises:
        OSError: it cannot be read.
        StoreError: it is not a file of the store.
        ValueError: it is not what was written.
    """
    try:
        fd = open_file(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        content = file.read(MAX_WATERMARK_BYTES)
    if not content.strip(b"\0"):
        return None  # power loss: the file was there before its content
    seen = decode_watermark(content)
    if seen is None or watermark_path(path.parent.parent, seen.run_id) != path:
        raise ValueError("it is not what was written")
    return seen


def all_watermarks(folder: Path) -> Iterator[tuple[Path, Watermark | None]]:
    """Yield the watermarks of a store; None: the one at that path cannot be read."""
    for path in sorted((folder / "lock").glob("*" + SUFFIX)):
        try:
            seen = read_watermark(path)
        except (OSError, StoreError, ValueError):
            yield path, None
        else:
            if seen is not None:
                yield path, seen


class WatermarkWriter:
    """Writes the watermarks of the runs that a handle owns, in one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, int] = {}
        self._written: dict[str, bytes] = {}
        self._seen: dict[str, Watermark] = {}

    def begin(self, seen: Watermark) -> None:
        """Start the watermark of an owned run at what the store has; log a loss."""
        path = watermark_path(self._folder, seen.run_id)
        with suppress(OSError, StoreError, ValueError):
            before = read_watermark(path)
            if before is not None and before.is_ahead_of(seen.generation, seen.records):
                logger.error(
                    "run %r has lost checkpoints that were acknowledged: there were %d in %s, "
                    "there are %d in %d; an older copy was put in its place, or its newest part "
                    "is damaged",
                    seen.run_id,
                    before.records,
                    plural(before.generation + 1, "generation"),
                    seen.records,
                    seen.generation + 1,
                )
        try:
            self._open[seen.run_id] = open_unshared(open_file, path, os.O_RDWR | os.O_CREAT)
        except (OSError, StoreError) as error:
            logger.debug("%s: %s", path, error)
            return
        self._write(seen)
        with suppress(OSError):  # a foreign file there may have been longer
            os.ftruncate(self._open[seen.run_id], len(encode_watermark(seen)))

    def saved(self, run_id: str, generation: int, records: int) -> None:
        """Raise the watermark by records that are durable."""
        seen = self._seen.get(run_id)
        if seen is not None:
            now = seen.records + records
            self._write(Watermark(run_id, seen.owner, generation, now))

    def need_own(self, run_id: str) -> None:
        """Check that the watermark of a run is what was written last.

        Raises:
            StoreConflictError: it is not.
        """
        written = self._written.get(run_id)
        if written is not None:
            with suppress(OSError):
                if os.pread(self._open[run_id], len(written), 0) != written:
                    raise self._not_own(run_id)

    def _not_own(self, run_id: str) -> StoreConflictError:
        return StoreConflictError(
            f"{watermark_path(self._folder, run_id)} was written by another process while the run "
            "went on, as when a copy of the store is put back: nothing more is saved; find out "
            "what did it, put the newest copy back, and start again",
            run_id=run_id,
        )

    def reset(self, run_id: str, records: int) -> None:
        """Set the number of records, because some are about to be removed on purpose."""
        if run_id in self._seen:
            self._write(msgspec.structs.replace(self._seen[run_id], records=records))

    def end(self, run_id: str) -> None:
        """Close the watermark of a run that is released."""
        self._seen.pop(run_id, None)
        self._written.pop(run_id, None)
        fd = self._open.pop(run_id, None)
        if fd is not None:
            close_unshared(fd)

    def close(self) -> None:
        """Close all watermarks."""
        for run_id in tuple(self._open):
            self.end(run_id)

    def _write(self, seen: Watermark) -> None:
        self._seen[seen.run_id] = seen
        self._written.pop(seen.run_id, None)
        content = encode_watermark(seen)
        try:
            if os.pwrite(self._open[seen.run_id], content, 0) == len(content):
                self._written[seen.run_id] = content
        except OSError as error:
            logger.debug("run %r: its watermark was not written: %s", seen.run_id, error)
