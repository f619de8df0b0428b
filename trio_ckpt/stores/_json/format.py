"""The two files of a run in the JSON store, as bytes: their contents, and their checks.

Theory of operation.  ``checkpoint.json`` holds all that was saved up to some moment, and names
the journal that goes on from there.  It begins with a digest of everything after it, so an
altered byte is detected wherever it is.

``journal.N.jsonl`` is append-only, one line per save: ``{"check":"…","line":{…}}``.  A check
is the digest of the line *and of the check before it*, from the first line on, which names
run and journal; so a line that was altered, lost, doubled or moved is detected, and a group is
there whole or not at all.

A crash leaves at most one unfinished line, at the end.  It was not acknowledged, so it does not
count: a last line without its newline; and one with a newline that does not fit
its check and has a whole sector of zeros in it, which is what power loss leaves of a file that
was extended before its data was written (etcd's write-ahead log distinguishes them by the
same rule, https://pkg.go.dev/go.etcd.io/etcd/server/v3/storage/wal).  Anything else is damage.

The digests detect accidents.  The seals of the records detect deliberate alteration.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, TypeVar

import attrs
import msgspec

from ..._util.errors import StoreDamagedError
from .records import without_blobs

T = TypeVar("T")
Number = Annotated[int, msgspec.Meta(ge=0, le=2**62)]  # so that its successor fits 64 bits, too

CHECK_BYTES = 16
SECTOR_BYTES = 512
MIN_BLANK_BYTES = 16  # of a sector that the line has only a part of: one altered byte is damage
_FORMAT = "trio_ckpt checkpoint"
_BAD_JSON = (msgspec.MsgspecError, ValueError, RecursionError)
_LINE_START, _LINE_MIDDLE, _LINE_END = b'{"check":"', b'","line":', b"}"
_RAW_START = len(_LINE_START) + 2 * CHECK_BYTES + len(_LINE_MIDDLE)


@attrs.define
class StreamState:
    """A stream as it stands in files: its records, from sequence 1 on, and its fold."""

    entries: list[msgspec.Raw] = attrs.field(factory=list[msgspec.Raw])
    fold: msgspec.Raw | None = None


@attrs.define
class RunState:
    """Everything that the files of a run say.

    Attributes:
        owner: The newest owner number.
        generation: The newest generation.
        first: The oldest generation that was not pruned; above `generation`: the run is gone.
        journal: The number of the journal that goes on from ``checkpoint.json``.
        updated_at: When the newest record of the newest generation was saved; Unix time, s.
        summary: The summary of that generation; empty: none was saved.
        streams: The streams by generation and key.
    """

    run_id: str
    owner: int
    generation: int = 0
    first: int = 0
    journal: int = 0
    updated_at: float | None = None
    summary: bytes = b""
    streams: dict[tuple[int, str], StreamState] = attrs.field(
        factory=dict[tuple[int, str], StreamState]
    )

    @property
    def is_gone(self) -> bool:
        """Whether all generations were pruned."""
        return self.first > self.generation

    def of(self, generation: int) -> dict[str, StreamState]:
        """Return the streams of one generation."""
        return {key: state for (n, key), state in self.streams.items() if n == generation}


class _StreamLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    generation: Number
    stream: str
    fold: msgspec.Raw  # or null
    records: list[msgspec.Raw]


class _SealedDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    check: str
    format: str
    run_id: str
    owner: Number
    generation: Number
    first: Number
    journal: Number
    streams: list[_StreamLine]
    updated_at: float | None = None
    summary: bytes = b""


class JournalLine(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One line of a journal: the saved checkpoints and their owner; empty: a run was locked.

    `drops` are sequences of streams whose attached blobs are not named any more.  `at` is when the
    records were saved (Unix time, s), left out where the lines before tell that well enough.  An
    empty `summary` leaves the one before.
    """

    owner: Number
    generation: Number
    records: list[tuple[str, msgspec.Raw]] = []
    folds: list[tuple[str, msgspec.Raw]] = []
    drops: list[tuple[str, list[int]]] = []
    at: float | None = None
    summary: bytes = b""


class _RunHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    run_id: str
    journal: int


_encode = msgspec.json.Encoder().encode
_document_decoder = msgspec.json.Decoder(_SealedDocument)
_line_decoder = msgspec.json.Decoder(JournalLine)


def digest(content: bytes, before: bytes = b"") -> bytes:
    """Return the check of some bytes, as text; `before` is the previous check of the chain."""
    return hashlib.blake2b(before + content, digest_size=CHECK_BYTES).hexdigest().encode()


# ---------------------------------------------------------------------------------------
# checkpoint.json
# ---------------------------------------------------------------------------------------


def render_checkpoint(state: RunState) -> bytes:
    """Return the whole file, one record per line."""
    head: dict[str, object] = {
        "format": _FORMAT,
        "run_id": state.run_id,
        "owner": state.owner,
        "generation": state.generation,
        "first": state.first,
        "journal": state.journal,
    }
    if state.updated_at is not None:
        head["updated_at"] = state.updated_at
    if state.summary:
        head["summary"] = state.summary
    parts = [_field(name, value) for name, value in head.items()]
    parts.append(b'"streams": [')
    for place, ((generation, key), stream) in enumerate(state.streams.items()):
        parts.append(b",\n{" if place else b"\n{")
        parts.append(_field("generation", generation))
        parts.append(_field("stream", key))
        parts.append(b'"fold": %b,\n' % (stream.fold if stream.fold is not None else b"null"))
        parts.append(b'"records": [\n')
        parts.append(b",\n".join(map(bytes, stream.entries)))
        parts.append(b"\n]}")
    parts.append(b"\n]\n}\n")
    content = b"".join(parts)
    return b'{\n"check": "%b",\n%b' % (digest(content), content)


def _field(name: str, value: object) -> bytes:
    return b'"%b": %b,\n' % (name.encode(), _encode(value))


def parse_checkpoint(path: Path, content: bytes, run_id: str | None) -> RunState:
    """Parse the file.

    Args:
        path: The path of the file, for messages.
        content: The content of the file.
        run_id: The run that it must be of; None: any run.

    Raises:
        StoreDamagedError: the file is not what was written.
    """
    try:
        document = _document_decoder.decode(content)
    except _BAD_JSON as error:
        raise StoreDamagedError(f"{path} cannot be read: {error}") from error
    streams = {
        (entry.generation, entry.stream): StreamState(
            entry.records, None if bytes(entry.fold) == b"null" else entry.fold
        )
        for entry in document.streams
    }
    state = RunState(
        document.run_id,
        document.owner,
        document.generation,
        document.first,
        document.journal,
        document.updated_at,
        document.summary,
        streams,
    )
    # Rendered again it gives the same bytes: so the digest fits, and the file has nothing
    # (a name twice, another order, more space) that the store would not write.
    if render_checkpoint(state) != content or (run_id is not None and run_id != state.run_id):
        raise StoreDamagedError(
            f"{path} is not what was written there: it was altered, or is another run's; "
            "restore it from a copy"
        )
    return state


# ---------------------------------------------------------------------------------------
# journal.N.jsonl
# ---------------------------------------------------------------------------------------


def frame(content: bytes, before: bytes) -> tuple[bytes, bytes]:
    """Return a line with its newline, and its check."""
    check = digest(content, before)
    return b"".join((_LINE_START, check, _LINE_MIDDLE, content, _LINE_END, b"\n")), check


def journal_head(state: RunState) -> tuple[bytes, bytes]:
    """Return the first line of a journal, and its check."""
    return frame(_encode(_RunHead(state.run_id, state.journal)), b"")


def encode_line(line: JournalLine) -> bytes:
    """Encode a line for `frame`."""
    return _encode(line)


@attrs.frozen
class JournalEnd:
    """Where a journal ends.

    Attributes:
        size: The number of bytes up to the end of the last whole line.
        check: The check of that line.
        torn: The number of bytes after it, which a crash left.
        lacks_newline: Whether the last whole line lacks only its newline.
    """

    size: int
    check: bytes
    torn: int
    lacks_newline: bool = False


def replay(path: Path, content: bytes, state: RunState) -> JournalEnd:
    """Add a journal to the state that ``checkpoint.json`` gave, in place.

    Raises:
        StoreDamagedError: a line is not what was written; the message has its number.
    """
    lines = content.split(b"\n")
    rest = lines.pop()
    head, check = journal_head(state)
    if not lines or lines[0] != head[:-1]:
        raise _damaged(path, 1)
    size = len(head)
    for number, text in enumerate(lines[1:], 2):
        raw = _unframe(text, check)
        if raw is None:
            if number == len(lines) and not rest and _has_blank_sector(content, size):
                return JournalEnd(size, check, len(content) - size)
            raise _damaged(path, number)
        check = digest(raw, check)
        _apply(path, number, state, raw)
        size += len(text) + 1
    number = len(lines) + 1
    if raw := _unframe(rest, check):
        _apply(path, number, state, raw)
        return JournalEnd(size + len(rest), digest(raw, check), 0, lacks_newline=True)
    if _unframe(rest[:-1], check):
        raise _damaged(path, number)  # a whole line with another byte in place of its newline
    return JournalEnd(size, check, len(rest))


def _unframe(text: bytes, before: bytes) -> bytes | None:
    """Return the content of a line; None: it is not a whole line that continues the chain."""
    raw = text[_RAW_START : -len(_LINE_END)]
    return raw if raw and frame(raw, before)[0][:-1] == text else None


def _has_blank_sector(content: bytes, start: int) -> bool:
    """Return whether a sector, or its part after `start`, is all zeros."""
    while start < len(content):
        end = start - start % SECTOR_BYTES + SECTOR_BYTES
        sector = content[start:end]
        if len(sector) >= MIN_BLANK_BYTES and not sector.strip(b"\0"):
            return True
        start = end
    return False


def _apply(path: Path, number: int, state: RunState, raw: bytes) -> None:
    try:
        line = _line_decoder.decode(raw)
    except _BAD_JSON as error:
        raise _damaged(path, number) from error
    if line.owner < state.owner or line.generation not in (state.generation, state.generation + 1):
        raise _damaged(path, number)
    if line.generation != state.generation:
        state.updated_at, state.summary = None, b""
    state.owner, state.generation = line.owner, line.generation
    if line.at is not None:
        state.updated_at = line.at
    state.summary = line.summary or state.summary
    for key, entry in line.records:
        place = (line.generation, key)
        if place not in state.streams:
            state.streams[place] = StreamState()
        state.streams[place].entries.append(entry)
    for key, fold in line.folds:
        stream = state.streams.get((line.generation, key))
        if stream is None:
            raise _damaged(path, number)
        stream.fold = fold
    for key, sequences in line.drops:
        stream = state.streams.get((line.generation, key), StreamState())
        for sequence in sequences:
            if not 1 <= sequence <= len(stream.entries):
                raise _damaged(path, number)
            stream.entries[sequence - 1] = without_blobs(stream.entries[sequence - 1])


def _damaged(path: Path, number: int) -> StoreDamagedError:
    return StoreDamagedError(
        f"{path}, line {number}, is not what was written there; restore the run from a copy"
    )
