"""Checks saved states: every frame, and every byte of the blobs that they name.

A resume reads only what the newest state needs; this reads the others, too.  The caller need not
own the run, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import aclosing

import attrs

from .._journal.history import read_pages, stored_pages
from .._journal.record import Record, Seal, decode_record
from .._journal.store import Finding, FindingKind, RunView, Store, StoredRecord
from .._journal.summary import in_order
from .._util.errors import StoreDamagedError
from .._util.extras import needs_extra
from .._util.plain import StreamKey, encode_key
from .._util.text import plural
from .._util.threads import run_blocking
from ..state import StateFrame, decode_frame
from ..state._chain import blobs_of, read_chain
from ..state._tree.frame import DIGEST_BYTES

PAGE = 100  # records held at a time: each may have its own state
READ_BYTES = 2**22  # of a blob, held at a time
RECOVER = "--repair goes back to the newest state that is whole"


@attrs.frozen
class StateCheck:
    """The result of checking the saved states of a run.

    Attributes:
        states: How many states were checked.
        bytes: Size of their array data together.
        problems: What is wrong, stream by stream, the newest first.
    """

    states: int
    bytes: int
    problems: tuple[Finding, ...]


def state_finding(
    view: RunView,
    key: StreamKey,
    what: str,
    sequence: int | None = None,
    batch_index: int | None = None,
) -> Finding:
    """A saved state that is damaged; without a sequence the newest one, which is not whole."""
    stream = encode_key(key)
    return Finding(
        f"stream {stream}, saved state",
        what,
        RECOVER,
        kind=FindingKind.STATE,
        run_id=view.run_id,
        generation=view.generation,
        stream=stream,
        sequence=sequence,
        batch_index=batch_index,
    )


async def is_whole(
    store: Store, run_id: str, pages: AsyncGenerator[list[tuple[int, Record]]]
) -> bool:
    """Check whether the newest state in records is whole: its chain, and all bytes of its arrays.

    Args:
        store: The store of the records.
        run_id: Their run.
        pages: The records of its stream, newest first, from the end of the chain on.
    """
    try:
        chain, _ = await read_chain(pages, with_snapshots=False)
        for _, frame in chain:
            await compare_data(store, run_id, frame)
    except StoreDamagedError:
        return False
    return bool(chain)


async def compare_data(store: Store, run_id: str, frame: StateFrame) -> None:
    """Compare the arrays' bytes of a frame with their digests.

    Raises:
        StoreDamagedError: the bytes differ from what was saved.
    """
    for offset, size, pieces in _reads(frame):
        if frame.blob:
            data = await store.read_blob(run_id, frame.blob, offset, size)
        else:
            data = frame.data[offset : offset + size]
        await run_blocking(_compare, data, offset, pieces)


async def see_end(store: Store, run_id: str, frame: StateFrame) -> None:
    """Check that all array bytes of a frame exist; their content is not compared.

    Raises:
        StoreDamagedError: some are missing.
    """
    if frame.blob:
        end = max((offset + size for offset, size, _ in _pieces(frame)), default=0)
        await store.read_blob(run_id, frame.blob, max(0, end - 1), min(1, end))


async def check_states(
    store: Store, view: RunView, keys: Collection[StreamKey] | None = None
) -> StateCheck:
    """Read every saved state of a run.

    A state that the library has dropped (`Store.drop_blobs`) is checked as far as it exists.

    Args:
        store: The run's store.
        view: The run.
        keys: Only these streams; default: all.

    Raises:
        StoreDamagedError: a record is damaged.
        StoreError: the store cannot be read.
        MissingExtraError: a state has arrays, and the packages for arrays are not installed.
    """
    check = _Check(store, view)
    parts = {key: entry.progress for key, entry in view.streams.items()}
    for key in in_order(parts) if keys is None else keys:
        if parts[key].sequence:
            await check.look_at(key)
    return StateCheck(check.states, check.bytes, tuple(check.problems))


@attrs.define(eq=False)
class _Check:
    store: Store
    view: RunView
    states: int = 0
    bytes: int = 0
    problems: list[Finding] = attrs.field(factory=list[Finding])

    async def look_at(self, key: StreamKey) -> None:
        """Check the states of one stream, first those that a start needs."""
        found: list[Finding] = []
        needed = await self._needed(key, found)
        async with aclosing(self._stored(key)) as pages:
            async for stored, record in pages:
                if record.state:
                    self.states += 1
                    try:
                        await self._look_at_state(record, {*stored.blobs, *needed})
                    except StoreDamagedError as error:
                        found.append(
                            state_finding(self.view, key, str(error), stored.sequence, record.index)
                        )
        if found:
            self.problems += await self._without_dropped(key, found)

    async def _needed(self, key: StreamKey, found: list[Finding]) -> set[str]:
        """The blobs that a start needs."""
        if not self.view.streams[key].progress.has_state:
            return set()
        view = self.view
        pages = read_pages(self.store, view.run_id, view.generation, key, limit=PAGE)
        try:
            chain, _ = await read_chain(pages)
        except StoreDamagedError as error:
            found.append(state_finding(self.view, key, str(error)))
            return set()
        return {frame.blob for _, frame in chain}

    async def _without_dropped(self, key: StreamKey, found: list[Finding]) -> list[Finding]:
        """Skip states whose blobs existed when listed, and that a program has dropped since."""
        problems: list[Finding] = []
        needed = await self._needed(key, problems)
        places = {problem.sequence: problem for problem in found}
        async with aclosing(self._stored(key)) as pages:
            async for stored, record in pages:
                if stored.sequence in places and not _is_dropped(stored, record, needed):
                    problems.append(places[stored.sequence])
        return problems

    async def _stored(self, key: StreamKey) -> AsyncGenerator[tuple[StoredRecord, Record]]:
        run_id, generation, text = self.view.run_id, self.view.generation, encode_key(key)
        seal: Seal = self.store.seal(run_id, generation, key)
        pages = stored_pages(self.store, run_id, generation, text, limit=PAGE)
        async with aclosing(pages):
            async for page in pages:
                for stored in page:
                    yield stored, decode_record(seal.open(stored.sequence, stored.payload))

    async def _look_at_state(self, record: Record, named: Collection[str]) -> None:
        frame = decode_frame(record.state)
        if frame.blob and frame.blob not in named:
            return
        self.bytes += frame.data_bytes
        await compare_data(self.store, self.view.run_id, frame)


def _is_dropped(stored: StoredRecord, record: Record, needed: Collection[str]) -> bool:
    """Whether the library has dropped the blob of a state (`Store.drop_blobs`)."""
    try:
        return not {*stored.blobs, *needed}.issuperset(blobs_of(record.state))
    except StoreDamagedError:
        return False


_Piece = tuple[int, int, bytes]  # offset, size, digest


def _reads(frame: StateFrame) -> Iterator[tuple[int, int, list[_Piece]]]:
    """Plan the reads: offset, size, and the adjacent pieces in each read."""
    run: list[_Piece] = []
    for piece in sorted(_pieces(frame)):
        if run:
            end = run[-1][0] + run[-1][1]
            if piece[0] != end or end + piece[1] - run[0][0] > READ_BYTES:
                yield run[0][0], end - run[0][0], run
                run = []
        run.append(piece)
    if run:
        yield run[0][0], run[-1][0] + run[-1][1] - run[0][0], run


def _pieces(frame: StateFrame) -> Iterator[_Piece]:
    for patch in frame.patches:
        offset = patch.offset
        for place, size in enumerate(patch.stored):
            digest = patch.digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES]
            yield offset, size, digest
            offset += size


def _compare(data: bytes, start: int, pieces: list[_Piece]) -> None:
    with needs_extra("arrays", "a state with arrays"):
        import xxhash  # it comes with the extra for arrays; other programs do not need it

    view = memoryview(data)
    for offset, size, digest in pieces:
        piece = view[offset - start : offset - start + size]
        if len(piece) != size or xxhash.xxh3_128_digest(piece) != digest:
            raise StoreDamagedError(f"its arrays are damaged: {plural(size, 'byte')} at {offset:,}")
