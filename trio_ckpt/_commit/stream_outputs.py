"""The files of one stream: whose they are, where they go, and what they must hold.

Names are relative to the run's folder wherever they are kept; users name them relative
to the stream's, which is the same or a folder in it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

import attrs
import trio

from .._journal.record import Output
from .._util.arguments import any_path
from .._util.errors import OutputClaimedError, OutputExistsError
from .._util.log import at
from .._util.text import plural, printable
from .._util.threads import run_blocking
from .._util.uninterrupted import shielded
from ..outputs import AppendFile, OutputDir, Validator, check_found, check_outputs
from .stream_log import StreamLog

log = logging.getLogger("trio_ckpt.outputs")

AnyPath = str | os.PathLike[str]
PathOwners = dict[str, tuple[str, int]]  # a name -> the stream as text, and the batch

OWNER_AGE_S = 0.5  # who was stopped for less has lost no lease; asking costs a transaction
MAX_COUNTED = 1_000  # files of a folder that a message counts
SINK = -1  # in the place of a batch: an append file belongs to its stream


@attrs.define(eq=False)
class StreamFiles:
    """What a stream knows of its files.

    Attributes:
        run_id: The run.
        stream_log: The stream; its append files are there.
        path_owners: Whose each name is; shared by all streams of the run.
        check_owner: Raises if somebody else has the run by now; an answer of the given age
            will do.
        root: The run's folder; None: it has none.
        folder: The stream's, relative to it; empty: the same.
        validator: What its outputs must pass.
        since: What is older in the folder belongs to no batch of the run; Unix time, s.
    """

    run_id: str
    stream_log: StreamLog
    path_owners: PathOwners
    check_owner: Callable[[float], Awaitable[None]]
    root: OutputDir | None = None
    folder: str = ""
    validator: Validator | None = None
    since: float = 0.0
    _claimed: dict[int, set[str]] = attrs.field(factory=dict[int, set[str]], init=False)
    _sink_lock: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    @property
    def dir(self) -> OutputDir:
        """Where outputs go.

        Raises:
            RuntimeError: the run has no folder.
        """
        if self.root is None:
            raise RuntimeError("the run has no folder for outputs: open_run(..., output_dir=...)")
        return self.root

    def name(self, path: AnyPath) -> str:
        """The name under which a file is kept, of a path as users give it.

        Raises:
            OutputError: it is not below the folder.
        """
        return self.dir.relative(os.path.join(self.folder, any_path("path", path)))

    def path(self, name: str) -> str:
        """The inverse of `name`."""
        return name.removeprefix(f"{self.folder}/") if self.folder else name

    # -- whose they are -----------------------------------------------------------------------

    def claim(self, index: int, name: str) -> None:
        """Reserve a name for a batch.

        Raises:
            OutputClaimedError: another batch has it.
        """
        self._take(name, index)
        self._claimed.setdefault(index, set()).add(name)

    def claim_confirmed(self, index: int, outputs: Iterable[Output]) -> None:
        """Reserve the names that the record of a batch has."""
        for output in outputs:
            self._take(output.path, index)

    def claim_sink(self, name: str) -> None:
        """Reserve an append file's name for this stream; else as `claim`."""
        self._take(name, SINK)

    def _take(self, name: str, index: int) -> None:
        owner = (self.stream_log.text, index)
        has = self.path_owners.setdefault(name, owner)
        if has != owner:
            whose = "the append files" if has[1] == SINK else f"batch {has[1]}"
            raise OutputClaimedError(
                name, f"it belongs to {whose} of stream {has[0]}; batches share no files"
            )

    def release(self, index: int, kept: Collection[str] = ()) -> None:
        """Let go of the names that attempts at a batch have reserved, but for those kept."""
        for name in self._claimed.pop(index, ()):
            if name not in kept:
                del self.path_owners[name]

    # -- what they hold -----------------------------------------------------------------------

    async def write(self, path: AnyPath, data: bytes, index: int) -> Output:
        """Write a file of a batch, whole or not at all.

        A process that has slept through a takeover replaces nothing of what the next owner has
        confirmed, unless it slept in the instant between this look and the rename.

        Raises:
            OutputExistsError: a file that is older than the run has its name.
        """
        name = self.name(path)
        is_written = name in self._claimed.get(index, ())
        self.claim(index, name)
        await self.check_owner(OWNER_AGE_S)
        if is_written:
            return await run_blocking(self.dir.write, name, data)
        try:
            return await run_blocking(self._write_first, name, data)
        except OutputExistsError:
            self._claimed[index].discard(name)
            del self.path_owners[name]
            raise

    def _write_first(self, name: str, data: bytes) -> Output:
        """Write a file that no attempt of this session has written.  Blocks."""
        self._make_room(name, data)
        return self.dir.write(name, data)

    async def adopt(self, paths: Iterable[AnyPath], index: int, known: dict[str, Output]) -> None:
        """Take files that the user wrote as outputs of a batch, into `known`."""
        for path in paths:
            name = self.name(path)
            if name not in known:
                self.claim(index, name)
                with trio.CancelScope(shield=True):
                    known[name] = await run_blocking(self.dir.adopt, name)

    async def check(self, known: Mapping[str, Output]) -> None:
        """Have the validator look at what a batch has written.

        Raises:
            OutputInvalidError: it refuses one, or there is none.
        """
        if self.validator is not None:
            outputs = tuple(known.values())
            with trio.CancelScope(shield=True):
                await run_blocking(check_outputs, self.dir, outputs, self.validator)

    async def check_found(self, known: Mapping[str, Output]) -> None:
        """Look at outputs of a batch that no record names yet.

        Raises:
            OutputInvalidError: one is empty, is no JSON where it should be, or is refused by the
                validator.
        """
        outputs = tuple(known.values())
        with trio.CancelScope(shield=True):
            await run_blocking(check_found, self.dir, outputs, self.validator)

    # -- append files -------------------------------------------------------------------------

    async def open_sinks(
        self, lines: Mapping[str, bytearray]
    ) -> tuple[tuple[AppendFile, bytes], ...]:
        """The append files that lines are staged for, opened, and those lines."""
        for name in lines:
            await self.open_sink(name)
        return tuple(
            (self.stream_log.sinks[name], bytes(data)) for name, data in lines.items() if data
        )

    async def open_sink(self, name: str) -> None:
        """Open an append file for the session; what is behind its confirmed bytes is cut off.

        It is locked before the last look at who owns the run, and cut after it.  So a process
        that has slept through a takeover cuts nothing, and one that sleeps in between keeps
        the next owner from the file.

        Raises:
            OutputError: it cannot be opened, or confirmed bytes are missing.
            StoreConflictError: somebody else has the run by now.
        """
        if name in self.stream_log.sinks:
            return
        await shielded(self._open_sink, name)

    async def _open_sink(self, name: str) -> None:
        async with self._sink_lock:  # opening cuts: a second one would cut what was appended
            if name in self.stream_log.sinks:
                return
            confirmed = self.stream_log.progress.sinks.get(name, 0)
            is_cut_back = name in self.stream_log.tools.cut_back
            if confirmed == 0 and not is_cut_back:
                await self.check_owner(0)  # or these may be the lines of the next one
                await self._keep_foreign(name)
            sink = await run_blocking(AppendFile.take, self.dir, name, confirmed)
            try:
                await self.check_owner(0)
            except BaseException:
                await run_blocking(sink.close)
                raise
            await run_blocking(sink.begin)
            self.stream_log.tools.sinks[name] = sink
            if sink.cut_bytes and not is_cut_back:
                log.warning(
                    "%s: an unconfirmed tail of %s was cut off",
                    name,
                    plural(sink.cut_bytes, "byte"),
                    extra=at(self.run_id, self.stream_log.key),
                )

    async def cut_tails(self) -> None:
        """Cut off what is behind the confirmed bytes of all append files of the stream.

        A save that failed leaves lines there, and so does a rewind.  The next append would cut
        them off, but no other may come: then they would stay in the file of a complete stream.

        Raises:
            OutputError: a file cannot be cut, or confirmed bytes are missing.
        """
        stream_log = self.stream_log
        for name in dict.fromkeys((*stream_log.progress.sinks, *stream_log.sinks)):
            sink = stream_log.sinks.get(name)
            if sink is not None:
                with trio.CancelScope(shield=True):
                    await run_blocking(sink.cut_tail)
            elif stream_log.progress.sinks[name] or await self._length(name):
                await self.open_sink(name)

    async def _length(self, name: str) -> int | None:
        return await run_blocking(self.dir.length, name)

    async def _keep_foreign(self, name: str) -> None:
        """Move a file out of the way that no record knows: it may be somebody's only copy."""
        if await self._length(name) == 0:
            return  # as a session leaves it that was killed before its first append
        await run_blocking(self._make_room, name, b"")

    # -- what is in the way -------------------------------------------------------------------

    def _make_room(self, name: str, data: bytes) -> None:
        """Archive a file that no record names before `data` takes its place.  Blocks.

        An earlier session may have left it, which was killed before the record; with the same
        content nothing is lost.

        Raises:
            OutputExistsError: it is older than the run, so no session of the run has left it.
        """
        found = self.dir.look(name)
        if found is None:
            return
        has_decided = len(self.stream_log.progress.adopted) > 0  # by a rescan, in whatever session
        if found.st_mtime < self.since and not has_decided:
            raise self._refusal(name)
        if found.st_size == len(data):
            digest = hashlib.sha256(data).hexdigest()
            if self.dir.check(Output(name, len(data), -1, digest), "sha256") is None:
                return
        archived = self.dir.archive([name], f"{self.run_id}-unconfirmed")
        for goal in archived.moved.values():
            log.warning(
                "%s is in no record of the run: it is kept as %s",
                name,
                goal,
                extra=at(self.run_id, self.stream_log.key),
            )

    def _refusal(self, name: str) -> OutputExistsError:
        count = self.dir.count_files(MAX_COUNTED)
        files = f"{count:,} or more files" if count == MAX_COUNTED else plural(count, "file")
        return OutputExistsError(
            name,
            f"is there already, is older than run {self.run_id!r}, and no record of the run names "
            f"it; nothing was written over it. The folder {printable(self.dir.root)} holds "
            f"{files}. If they are outputs of an earlier run, its store was lost or another store "
            "was named: name that store, or take them over with stream.rescan(path_of, "
            "adopt_outputs=True). If their work is to be done again, open_run(fresh=True) moves "
            "each to .archive/ before it is replaced",
            run_id=self.run_id,
            stream=self.stream_log.key,
        )
