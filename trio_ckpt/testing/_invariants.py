"""What has been promised, and whether it holds: the invariants of every program.

Theory of operation
===================

The checker reads every record as it is saved, so it knows the content of the store without
asking it, and it sees every token that is handed out.  After each crash it compares the two
with each other and with the files:

1. a batch whose token was CONFIRMED has a record;
2. an output that a record names is there, byte by byte, and so are the lines of append files;
3. a batch whose record stands is not handed out again;
4. a session that was not killed has released its run, and left no token pending;
5. no attempt gives back more than was reserved, or noted as a cost.

The checker computes all of it again, from records and bytes, so that a mistake of the library
does not hide itself.
"""

from __future__ import annotations

import functools
import hashlib
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator

import attrs

from .._journal.apply import apply
from .._journal.progress import Progress
from .._journal.record import Output, Record, RecordKind, Seal, SinkLines, decode_record
from .._journal.store import RunKey
from .._tokens.token import CANCELLED, AnyToken, TokenEvent, TokenState, move
from .._util.plain import RUN_STREAM, StreamKey, decode_key
from ..outputs import lines_digest

ReadFile = Callable[[str], bytes | None]  # an absolute path -> content; None: there is none
Batch = tuple[str, StreamKey, int]


@attrs.define(eq=False)
class _StreamTotals:
    """The records of a stream of one generation, added up."""

    seal: Seal
    progress: Progress = attrs.field(factory=Progress)
    outputs: dict[int, tuple[Output, ...]] = attrs.field(factory=dict[int, tuple[Output, ...]])
    lines: dict[str, list[SinkLines]] = attrs.field(factory=dict[str, list[SinkLines]])

    def add(self, sequence: int, record: Record) -> None:
        """Add the next record."""
        apply(self.progress, sequence, record)
        if record.kind is RecordKind.BATCH and record.index is not None:
            self.outputs[record.index] = record.outputs
        if record.kind in (RecordKind.BATCH, RecordKind.SAVE):
            for lines in record.lines:
                self.lines.setdefault(lines.path, []).append(lines)
        elif record.kind is RecordKind.REDO:
            for index in [i for i in self.outputs if i not in self.progress.confirmed]:
                del self.outputs[index]
            for taken in record.lines:
                self._cut(taken.path, taken.size)

    def _cut(self, path: str, size: int) -> None:
        """Forget the newest lines of a file, whose batches were re-queued."""
        lines = self.lines.get(path, [])
        while size > 0 and lines:
            size -= lines.pop().size


@attrs.define(eq=False)
class InvariantChecker:
    """All that is known of one program, over all its sessions.

    Attributes:
        broken: The first invariant that was broken during a session.
    """

    broken: str | None = None
    _runs: dict[str, dict[StreamKey, _StreamTotals]] = attrs.field(
        factory=dict[str, dict[StreamKey, _StreamTotals]], init=False
    )
    _generations: dict[str, int] = attrs.field(factory=dict[str, int], init=False)
    _saved: Counter[Batch] = attrs.field(factory=Counter[Batch], init=False)
    _confirmed: Counter[Batch] = attrs.field(factory=Counter[Batch], init=False)
    _tokens: dict[int, AnyToken] = attrs.field(factory=dict[int, AnyToken], init=False)
    _dying: list[AnyToken] = attrs.field(factory=list[AnyToken], init=False)

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The runs that have records."""
        return tuple(self._runs)

    def saved(self, run: RunKey, text: str, sequence: int, payload: bytes) -> None:
        """Add a record that has reached the store."""
        if self._generations.get(run.run_id, -1) < run.generation:
            self._generations[run.run_id] = run.generation
            self._runs[run.run_id] = {}
        streams, key = self._runs[run.run_id], decode_key(text)
        stream = streams.get(key)
        if stream is None:
            stream = streams[key] = _StreamTotals(Seal(run.run_id, run.generation, key, None))
        record = decode_record(stream.seal.open(sequence, payload))
        stream.add(sequence, record)
        for name, total in stream.progress.reserved.items():
            if total.numerator < 0:
                where = _name(run.run_id, key, record.index)
                self.broken = self.broken or f"{where} gives back more {name} than was reserved"
        if record.kind is RecordKind.BATCH and record.index is not None:
            self._saved[run.run_id, key, record.index] += 1

    def handed_out(self, token: AnyToken) -> None:
        """Add a token: an attempt at a batch begins."""
        self._tokens[id(token)] = token
        stream = self._runs.get(token.run_id, {}).get(token.stream)
        if stream is not None and token.batch_index in stream.progress.confirmed:
            self.broken = self.broken or (
                f"{_name(token.run_id, token.stream, token.batch_index)} is confirmed, and was "
                "handed out again"
            )

    def crash(self) -> None:
        """The host goes down: later changes of tokens have no effect."""
        self._dying = self._take_tokens()

    def bury(self) -> None:
        """Settle the tokens of a dead program, so that none warns that it is pending."""
        for token in self._dying:
            if token.is_pending:
                move(token, TokenEvent.REJECT, CANCELLED)
        self._dying.clear()

    def end_session(self) -> None:
        """Check the tokens of a program that has ended by itself."""
        for token in self._take_tokens():
            if token.is_pending:
                name = _name(token.run_id, token.stream, token.batch_index)
                self.broken = self.broken or f"the program has ended, and {name} is still pending"
                move(token, TokenEvent.REJECT, CANCELLED)  # it is reported here: it need not warn

    def _take_tokens(self) -> list[AnyToken]:
        tokens = list(self._tokens.values())
        for token in tokens:
            if token.state is TokenState.CONFIRMED:
                self._confirmed[token.run_id, token.stream, token.batch_index] += 1
        self._tokens.clear()
        return tokens

    def progress(self, run_id: str | None, key: StreamKey) -> Progress:
        """What is durable of a stream; empty if nothing is.

        Raises:
            ValueError: there are several runs, and `run_id` is not given.
        """
        if run_id is None and len(self._runs) > 1:
            raise ValueError(f"name one of the runs: run_id= is one of {sorted(self._runs)}")
        run = self._runs.get(run_id or next(iter(self._runs), ""), {})
        return run[key].progress if key in run else Progress()

    def check(self, read: ReadFile, is_mine: Callable[[str], bool]) -> str | None:
        """Return the first invariant that does not hold, as text; None: all of them hold.

        Args:
            read: Reads a file.
            is_mine: Whether `read` knows the folder of a run.
        """
        return self.broken or next(self._problems(read, is_mine), None)

    def _problems(self, read: ReadFile, is_mine: Callable[[str], bool]) -> Iterator[str]:
        for batch, times in self._confirmed.items():
            if self._saved[batch] < times:
                yield f"{_name(*batch)} was confirmed, and the store has no record of it"
        for run_id, streams in self._runs.items():
            own = streams.get(RUN_STREAM)
            folder = own.progress.metadata.get("output_dir") if own is not None else None
            if isinstance(folder, str) and is_mine(folder):
                for key, stream in streams.items():
                    yield from _missing_outputs(run_id, key, stream, folder, read)
                    yield from _missing_lines(run_id, key, stream, folder, read)


def _missing_outputs(
    run_id: str, key: StreamKey, stream: _StreamTotals, folder: str, read: ReadFile
) -> Iterator[str]:
    for index, outputs in stream.outputs.items():
        for output in outputs:
            problem = _compare(output, read(posixpath.join(folder, output.path)))
            if problem is not None:
                where = _name(run_id, key, index)
                yield f"{where} is confirmed, and its output {output.path} {problem}"


def _compare(output: Output, data: bytes | None) -> str | None:
    if data is None:
        return "is missing"
    if len(data) != output.size:
        return f"has {len(data)} bytes instead of {output.size}"
    return None if _sha256(data) == output.sha256 else "has another content"


@functools.lru_cache(maxsize=10_000)  # the same outputs are checked after every crash
def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _missing_lines(
    run_id: str, key: StreamKey, stream: _StreamTotals, folder: str, read: ReadFile
) -> Iterator[str]:
    for path, every in stream.lines.items():
        data, offset = read(posixpath.join(folder, path)) or b"", 0
        for lines in every:
            found = data[offset : offset + lines.size]
            # Those of the last generation, which go on growing, have no digest.
            is_good = not lines.digest or lines_digest(found) == lines.digest
            if len(found) < lines.size or not is_good:
                where = _name(run_id, key, None)
                yield f"{where}: {lines.size} confirmed bytes of {path} at {offset} are not there"
                break
            offset += lines.size


def _name(run_id: str, stream: StreamKey, index: int | None) -> str:
    where = "/".join(stream) or run_id
    return where if index is None else f"batch {index} of {where}"
