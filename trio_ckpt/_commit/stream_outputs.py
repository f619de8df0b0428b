"""The output files of one stream: which batch owns them, where they are, how they are checked.

Stored names are relative to the run's folder; users name files relative to the stream's folder,
which is the run's folder or one below it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from .._journal.record import Output
from .._util.arguments import any_path, whole_number
from .._util.errors import OutputClaimedError, OutputExistsError
from .._util.log import at, get_logger
from .._util.text import plural, printable
from .._util.threads import run_blocking
from .._util.uninterrupted import shielded
from ..outputs import (
    AppendFile,
    Compression,
    FileStatus,
    Outputs,
    load_compressor,
)
from .path_owners import SINK, PathOwner, PathOwners
from .rotation import Rotation, check_no_part, check_template
from .sink_writer import SinkKind, SinkWriter, StagedPiece
from .stream_log import Lines, StreamLog

if TYPE_CHECKING:
    from ..outputs._validate import Validator

log = get_logger(__name__)

AnyPath = str | os.PathLike[str]

OWNER_AGE_S = 0.5  # no lease ends within it, and each check costs a transaction
MAX_OPEN = 64  # append files of a stream, beside those that are written to
MAX_COUNTED = 1_000  # files of a folder that a message counts


@attrs.define(eq=False, repr=False)
class StreamFiles:
    """The output files of a stream.

    Attributes:
        run_id: The run.
        stream_log: The log of the stream, which also has its open append files.
        path_owners: The owner of each name; shared by all streams of the run.
        claimed: The names that attempts at a batch have reserved, by batch.
        check_owner: Raises if another process has taken the run over; an answer of the given
            age, in seconds, is enough.
        root: The run's folder; None: it has none.
        folder: The stream's folder, relative to `root`; empty: it is `root`.
        validator: The check of the stream; a loop may have another, see `LoopPolicy`.
        since: Files that are older do not belong to the run; Unix time, s.
        replaced: Where in the archive a file of the last generation goes that is replaced; None: no
            generation is known that this one began from.
    """

    run_id: str
    stream_log: StreamLog
    path_owners: PathOwners
    check_owner: Callable[[float], Awaitable[None]]
    root: Outputs | None = None
    folder: str = ""
    validator: Validator | None = None
    since: float = 0.0
    replaced: str | None = None
    claimed: dict[int, set[str]] = attrs.field(factory=dict[int, set[str]], init=False)
    _known_sinks: dict[str, SinkWriter] = attrs.field(factory=dict[str, SinkWriter], init=False)
    _rotations: list[Rotation] = attrs.field(factory=list[Rotation], init=False)
    _sink_lock: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    def allow_replacing(self) -> None:
        """Allow batches to replace files that are older than the run: the user has decided."""
        self.since = 0.0

    @property
    def dir(self) -> Outputs:
        """The folder for outputs.

        Raises:
            RuntimeError: the run has no folder.
        """
        if self.root is None:
            raise RuntimeError("the run has no folder for outputs: open_run(..., output_dir=...)")
        return self.root

    def name(self, path: AnyPath) -> str:
        """The stored name of a file, from a path as users give it.

        Raises:
            OutputError: it is not below the folder.
        """
        given = path if type(path) is str else any_path("path", path)
        return self.dir.relative(os.path.join(self.folder, given))

    def path(self, name: str) -> str:
        """The path as users give it, from a stored name: the inverse of `name`."""
        return name.removeprefix(f"{self.folder}/") if self.folder else name

    # -- whose they are -----------------------------------------------------------------------

    def claim(self, index: int, name: str) -> None:
        """Reserve a name for a batch.

        Raises:
            OutputClaimedError: another batch owns it.
        """
        self._claim(name, index, self.path_owners.hold)
        self.claimed.setdefault(index, set()).add(name)

    def claim_confirmed(self, index: int, outputs: Iterable[Output]) -> None:
        """Reserve the names of the outputs in the record of a batch.

        Raises:
            OutputClaimedError: another batch owns one.
        """
        for output in outputs:
            self._claim(output.path, index, self.path_owners.confirm)

    def claim_sink(self, name: str) -> None:
        """Reserve the name of an append file for this stream.

        Raises:
            OutputClaimedError: a batch or another stream owns it.
        """
        self._claim(name, SINK, self.path_owners.hold)

    def _claim(self, name: str, index: int, give: Callable[[str, PathOwner], PathOwner]) -> None:
        """Give a name to a batch, as one of `PathOwners` does it, or refuse."""
        owner = self._owner(index)
        if (has := give(name, owner)) != owner:
            whose = "the append files" if has[1] == SINK else f"batch {has[1]}"
            problem = f"it belongs to {whose} of stream {has[0]}; give each batch its own file name"
            raise OutputClaimedError(name, problem)

    def _owner(self, index: int) -> PathOwner:
        return self.stream_log.text, index

    def release(self, index: int, kept: Iterable[Output] = ()) -> None:
        """Release the names that attempts at a batch have reserved, except those in `kept`."""
        if index in self.claimed:
            names = self.claimed.pop(index)
            for output in kept:
                self.path_owners.confirm(output.path, self._owner(index))
            for name in names.difference([output.path for output in kept]):
                self.path_owners.drop(name, self._owner(index))

    # -- what they hold -----------------------------------------------------------------------

    async def write(self, path: AnyPath, data: bytes, index: int) -> Output:
        """Write a file of a batch, whole or not at all.

        A process that was suspended during a takeover replaces no file that the next owner has
        confirmed: what it replaces was there before it was asked who owns the run.  A folder cannot
        tell, so there is an instant before the rename in which it must not be suspended.

        Raises:
            OutputExistsError: a file that is older than the run has its name.

        Durability: when this returns the file and its name survive power loss.
        """
        name = self.name(path)
        is_written = name in self.claimed.get(index, ())
        self.claim(index, name)
        if is_written:
            return await self._write_again(name, data)
        await self.check_owner(OWNER_AGE_S)
        try:
            return await run_blocking(partial(self.dir.write, name, data, is_new=True))
        except OutputExistsError:  # else what is there may be of the next owner
            return await self._write_over(name, data, index)

    async def _write_again(self, name: str, data: bytes) -> Output:
        """Write a file that an attempt of this session has written."""
        found = await run_blocking(self.dir.status, name)
        await self.check_owner(OWNER_AGE_S)
        return await self._replace(name, data, found)

    async def _write_over(self, name: str, data: bytes, index: int) -> Output:
        """Write a file that no attempt of this session has written, where there is one already."""
        found = await run_blocking(self.dir.status, name)
        await self.check_owner(0)
        try:
            await run_blocking(self._make_room, name, data, found)
        except OutputExistsError:
            self.claimed[index].discard(name)
            self.path_owners.drop(name, self._owner(index))
            raise
        return await self._replace(name, data, found)

    async def _replace(self, name: str, data: bytes, found: FileStatus | None) -> Output:
        write = partial(self.dir.write, name, data, is_new=found is None, over=found)
        return await run_blocking(write)

    async def adopt(self, paths: Iterable[AnyPath], index: int, known: dict[str, Output]) -> None:
        """Take files that the user wrote as outputs of a batch, into `known`."""
        for path in paths:
            name = self.name(path)
            if name not in known:
                self.claim(index, name)
                with trio.CancelScope(shield=True):
                    known[name] = await run_blocking(self.dir.adopt, name)

    async def check(self, known: Mapping[str, Output], validator: Validator) -> None:
        """Run a validator on the outputs of a batch.

        Raises:
            OutputInvalidError: it refuses an output, or there is none.
        """
        from ..outputs._validate import check_outputs  # few programs validate

        outputs = tuple(known.values())
        with trio.CancelScope(shield=True):
            await run_blocking(check_outputs, self.dir, outputs, validator)

    async def check_found(self, known: Mapping[str, Output]) -> None:
        """Check outputs of a batch that no record names yet.

        Raises:
            OutputInvalidError: one is empty, is not JSON although its name says so, or is refused
                by the validator.
        """
        from ..outputs._validate import check_found  # as above

        outputs = tuple(known.values())
        with trio.CancelScope(shield=True):
            await run_blocking(check_found, self.dir, outputs, self.validator)

    # -- append files -------------------------------------------------------------------------

    def stage_piece(
        self,
        staged: dict[str, StagedPiece],
        path: AnyPath,
        piece: StagedPiece,
        compress: Compression | None,
        rotate_bytes: int | None,
    ) -> None:
        """Stage bytes for an append file, and decide for the session how it is written.

        Args:
            staged: What the batch appends, by stored name; it is changed.
            path: The file, as users give it.
            piece: What the batch appends with this call.
            compress, rotate_bytes: How the file is written, see `SinkKind`.

        Raises:
            OutputError: the path is bad, a batch or another stream owns it, or files cannot grow
                where the outputs are.
            MissingExtraError: the library that compresses is not installed.
            ValueError: there is no such compression, the path has no place for the number of a
                part or is that of a part, or the session writes the file in another way.
        """
        name, kind = self.name(path), SinkKind(compress, rotate_bytes)
        if rotate_bytes is None:
            self.claim_sink(name)
        if name not in self._known_sinks:
            self.dir.need_append(name)
            self._known_sinks[name] = self._new_sink(name, kind)
        sink = self._known_sinks[name]
        if kind != sink.kind:
            is_other = kind.compress != sink.kind.compress
            what = "compress" if is_other else "rotate_bytes"
            has, given = getattr(sink.kind, what), getattr(kind, what)
            raise ValueError(
                f"{self.path(name)!r} has {what}={has!r} in this session, not {given!r}: all that "
                "is appended to a file is written in one way"
            )
        sink.has_json |= piece.has_json
        if name in staged:
            staged[name].extend(piece)
        else:
            staged[name] = piece

    def _new_sink(self, name: str, kind: SinkKind) -> SinkWriter:
        rotation, make = None, None if kind.compress is None else load_compressor(kind.compress)
        if kind.rotate_bytes is not None:
            whole_number("rotate_bytes", kind.rotate_bytes, least=1)
            check_template(name)
            rotation = Rotation(name, kind.rotate_bytes)
            check_no_part(self._known_sinks, [rotation])
            self._rotations.append(rotation)
        check_no_part([name], self._rotations)
        return SinkWriter(kind, make, rotation)

    async def open_sinks(self, lines: Mapping[str, StagedPiece]) -> Lines:
        """Open the append files that lines are staged for; returns them with what they get.

        A batch that waits for the first bytes of a file has been given only files whose names are
        before it.  This ensures that no two batches wait for each other.

        Raises:
            OutputError: one cannot be opened, or is compressed in another way.
            StoreConflictError: another process has taken the run over.
        """
        taken = list[tuple[str, int]]()
        try:
            found = list[tuple[AppendFile, bytes]]()
            for name, staged in sorted(lines.items()):
                known = self._known_sinks[name]
                path, piece = await self._place(name, known, staged)
                taken.append((path, len(piece)))
                self.claim_sink(path)
                await self.open_sink(path)
                sink = self.stream_log.sinks[path]
                known.check(sink)
                if piece:
                    found.append((sink, piece))
                else:
                    self.stream_log.take_pieces([taken.pop()])
        except BaseException:
            self.stream_log.take_pieces(taken)
            raise
        return tuple(found)

    async def _place(self, name: str, known: SinkWriter, staged: StagedPiece) -> tuple[str, bytes]:
        """Choose the file of a piece, and count the piece as given to it.

        Where a piece has a header, it waits until it is known whether a file that has no bytes yet
        gets those which are on their way.  This ensures that the file begins with one header.

        Returns:
            The file, and what it gets.
        """
        piece = await known.piece(staged.data)
        header = await known.piece(staged.header) if piece else b""
        if known.rotation is not None:
            await self._check_newest(known, known.rotation)
        path = self._path_of(name, known)
        while header and self.stream_log.is_beginning(path):
            await self.stream_log.wait_piece(path)
            path = self._path_of(name, known)
        if not self.stream_log.length_of(path):
            piece = header + piece
        self.stream_log.give_piece(path, len(piece))
        return path, piece

    def _path_of(self, name: str, known: SinkWriter) -> str:
        rotation = known.rotation
        return name if rotation is None else rotation.place(self.stream_log.length_of)

    async def _check_newest(self, known: SinkWriter, rotation: Rotation) -> None:
        """Check once, in the newest part that earlier sessions have written, what `known` does."""
        if known.has_checked:
            return
        newest = rotation.newest(self.stream_log.length_of)
        if self.stream_log.progress.sinks.get(newest):
            await self.open_sink(newest)
            if newest in self.stream_log.sinks:
                known.check(self.stream_log.sinks[newest])
        known.has_checked = True

    async def open_sink(self, name: str) -> None:
        """Open an append file for the session; what is behind its confirmed bytes is cut off.

        The file is locked before the last check of who owns the run, and cut after it.  This
        ensures that a process that was suspended during a takeover cuts nothing, and that one
        suspended in between keeps the next owner from the file.

        Raises:
            OutputError: it cannot be opened, or confirmed bytes are missing.
            StoreConflictError: another process has taken the run over.
        """
        sinks = self.stream_log.sinks
        if name in sinks:
            sinks[name] = sinks.pop(name)  # the last one now: it was used last
            return
        await shielded(self._open_sink, name)

    async def _open_sink(self, name: str) -> None:
        async with self._sink_lock:  # opening cuts: a second one would cut what was appended
            if name in self.stream_log.sinks:
                return
            confirmed = self.stream_log.progress.sinks.get(name, 0)
            is_cut_back = name in self.stream_log.tools.cut_back
            if confirmed == 0 and not is_cut_back:
                await self.check_owner(0)  # else the lines may be those of the next owner
                await self._keep_foreign(name)
            sink = await run_blocking(AppendFile.take, self.dir, name, confirmed)
            try:
                await self.check_owner(0)
            except BaseException:
                await run_blocking(sink.close)
                raise
            await run_blocking(sink.begin)
            self.stream_log.tools.sinks[name] = sink
            self._close_idle()
            if sink.cut_bytes and not is_cut_back:
                log.warning(
                    "%s: an unconfirmed tail of %s was cut off",
                    name,
                    plural(sink.cut_bytes, "byte"),
                    extra=at(self.run_id, self.stream_log.key),
                )

    def _close_idle(self) -> None:
        """Close the append files that were not used for longest, beyond `MAX_OPEN`.

        The next append opens one again, if this process still owns the run.
        """
        tools = self.stream_log.tools
        for name in tuple(tools.sinks)[:-MAX_OPEN]:
            if not (tools.on_its_way.get(name) or tools.sinks[name].has_tail):
                tools.sinks.pop(name).close()

    async def settle_sinks(self) -> None:
        """Cut all append files to their confirmed bytes, and open those that were made last.

        Raises:
            OutputError, StoreConflictError: as for `open_sink`.
        """
        names = [name for name, size in self.stream_log.progress.sinks.items() if size]
        for name in names[:-MAX_OPEN]:
            await self._settle(name)
        for name in names[-MAX_OPEN:]:
            await self.open_sink(name)

    async def _settle(self, name: str) -> None:
        """Cut off what is behind the confirmed bytes of a file that is not open.

        Where nothing is, the store is not asked who owns the run: there may be very many files.
        """
        with trio.CancelScope(shield=True):
            async with self._sink_lock:
                if name in self.stream_log.sinks or await run_blocking(self._is_settled, name):
                    return
            await self.open_sink(name)

    def _is_settled(self, name: str) -> bool:
        """Whether a file has its confirmed bytes and no others.  Blocks."""
        with closing(AppendFile.take(self.dir, name, self.stream_log.progress.sinks[name])) as sink:
            return not sink.has_more()

    async def cut_tails(self) -> None:
        """Cut off what is behind the confirmed bytes of all append files of the stream.

        A save that failed leaves lines there, and so does a rewind.  The next append cuts them
        off, but without another append they would stay in the file of a complete stream.

        Raises:
            OutputError: a file cannot be cut, or confirmed bytes are missing.
        """
        stream_log = self.stream_log
        for name in dict.fromkeys((*stream_log.progress.sinks, *stream_log.sinks)):
            sink = stream_log.sinks.get(name)
            if sink is not None:
                with trio.CancelScope(shield=True):
                    await run_blocking(sink.cut_tail)
            elif stream_log.progress.sinks[name]:
                await self._settle(name)
            elif await self._length(name):
                await self.open_sink(name)

    async def _length(self, name: str) -> int | None:
        return await run_blocking(self.dir.length, name)

    async def _keep_foreign(self, name: str) -> None:
        """Archive a file that no record names: it may be a user's only copy."""
        if await self._length(name) == 0:
            return  # left by a session that was killed before its first append
        found = await run_blocking(self.dir.status, name)
        await run_blocking(self._make_room, name, b"", found)

    # -- what is in the way -------------------------------------------------------------------

    def _make_room(self, name: str, data: bytes, found: FileStatus | None) -> None:
        """Archive a file that no record names before `data` takes its place.  Blocks.

        A session that was killed before its record may have left it.  A file with the same content
        is not archived.

        Raises:
            OutputExistsError: it is older than the run, so no session of the run has written it.
        """
        if found is None:
            return
        has_decided = len(self.stream_log.progress.adopted) > 0  # by a rescan, in any session
        if found.written_at < self.since and not has_decided:
            raise self._refusal(name)
        if found.size == len(data):
            digest = hashlib.sha256(data).hexdigest()
            if self.dir.check(Output(name, len(data), -1, digest), "sha256") is None:
                return
        if self.replaced and self.dir.archived_head(name, self.replaced, 1) is None:
            self.dir.set_aside(name, self.replaced)
            return
        goal = self.dir.set_aside(name, f"{self.run_id}-unconfirmed")
        if goal is not None:
            log.warning(
                "no record of the run names %s: it was moved to %s",
                name,
                goal,
                extra=at(self.run_id, self.stream_log.key),
            )

    def _refusal(self, name: str) -> OutputExistsError:
        count = self.dir.count(MAX_COUNTED)
        files = f"{count:,} or more files" if count == MAX_COUNTED else plural(count, "file")
        return OutputExistsError(
            name,
            f"exists already, is older than run {self.run_id!r}, and no record of the run names "
            f"it; it was not overwritten. The folder {printable(self.dir.root)} holds {files}. If "
            "they are outputs of an earlier run, its store was lost or another store was named: "
            "name that store, or adopt them with stream.rescan(path_of, adopt_outputs=True). To "
            "do their work again, use open_run(fresh=True), which moves each to .archive/ before "
            "it is replaced",
            run_id=self.run_id,
            stream=self.stream_log.key,
        )
