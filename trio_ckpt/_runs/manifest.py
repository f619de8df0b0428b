"""The manifest: every output of a complete run with its hash, in one readable file.

Checkpoints are for resuming; a manifest is for the consumer of the outputs.  It is written
whenever a run is left complete.  It contains the number of checkpoints and the configuration that
it was made from, so that an outdated one is recognized, also after a kill: it is moved into the
archive when the run is opened or left.  Its text follows from the records alone: the order of
streams, phases and sums does not depend on which was opened first.  A command that re-queues
batches moves it first; between the first redo of a session and the end of the session the
manifest is outdated.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, closing
from functools import partial

import msgspec
import trio

from .._commit.group_commit import GroupCommitter
from .._commit.stream_outputs import OWNER_AGE_S
from .._journal.changes import count_checkpoints, is_all_complete
from .._journal.history import LiveRecords, read_pages, session_metadata_of
from .._journal.progress import Progress
from .._journal.record import Output
from .._journal.store import RunKey, RunView, Store
from .._journal.summary import in_order, phase_statuses, summarize
from .._util.errors import OutputError, StoreConflictError, StoreError, TrioCkptError
from .._util.exact_sum import shown
from .._util.index_set import MAX_LISTED, IndexSet
from .._util.log import at, get_logger
from .._util.plain import Plain, StreamKey, encode_key, nan_as_null
from .._util.threads import run_blocking
from ..outputs import Outputs

log = get_logger(__name__)

MANIFEST = "manifest.json"
FORMAT = 1
_HEAD = re.compile(
    r'\{"format":\d+,"run":"(?:[^"\\]|\\.)*","generation":(\d{1,18}),"checkpoints":(\d{1,18}),'
    r'"config_digest":"([0-9a-f]{0,64})",'
)
WRITTEN = "manifest"  # in session metadata: how many checkpoints its manifest was made from
MAX_MANIFEST_HEAD_BYTES = 2**16  # enough to find the run that a manifest belongs to


class RunContents(msgspec.Struct, frozen=True):
    """What a manifest is made from, beside the records of the outputs.

    Attributes:
        run_key: The run.
        parts: The progress of every stream.
        session_metadata: That of its newest session.
    """

    run_key: RunKey
    parts: Mapping[StreamKey, Progress]
    session_metadata: Mapping[str, Plain]

    @classmethod
    def of(cls, view: RunView) -> RunContents:
        """The contents of a run as the store has it."""
        parts = {key: entry.progress for key, entry in view.streams.items()}
        return cls(
            RunKey(view.run_id, view.generation, view.owner), parts, session_metadata_of(view)
        )

    @property
    def checkpoints(self) -> int:
        """How many checkpoints a manifest counts: those of all streams but the run's own."""
        return count_checkpoints(self.parts)

    @property
    def is_complete(self) -> bool:
        """Whether the run is complete: all its streams and phases are."""
        return is_all_complete(self.parts)

    def identity(self) -> dict[str, Plain]:
        """The first fields of a manifest: no two states of a run have equal ones."""
        return {
            "format": FORMAT,
            "run": self.run_key.run_id,
            "generation": self.run_key.generation,
            "checkpoints": self.checkpoints,
            "config_digest": self.session_metadata.get("config_digest", ""),
        }


async def leave_manifest(
    store: Store,
    committer: GroupCommitter,
    contents: RunContents,
    outputs: Outputs,
    *,
    is_wanted: bool,
) -> int | None:
    """Write the manifest if the run is complete, best effort; archive an outdated one.

    Returns:
        The number of checkpoints that the manifest was made from; None: there is no manifest.
    """
    if isinstance(committer.poison, StoreConflictError):
        return None  # the manifest belongs to the process that owns the run now
    run_id = contents.run_key.run_id
    with trio.CancelScope(shield=True):
        try:
            if committer.poison is None:
                await committer.check_owner(OWNER_AGE_S)
            if not (is_wanted and contents.is_complete):
                await set_outdated_aside(contents, outputs)
            elif await is_current(contents, outputs) or await write_manifest(
                store, contents, outputs
            ):
                return contents.checkpoints
        except TrioCkptError as error:
            log.warning(
                "the manifest of run %r could not be written: %s", run_id, error, extra=at(run_id)
            )
    return None


async def write_manifest(store: Store, contents: RunContents, outputs: Outputs) -> bool:
    """Write ``manifest.json`` into the output folder.

    It has the run, its configuration, its sums, and for each stream its outputs (path, size,
    sha256, batch) and append files (path, size, sha256).  It is written stream by stream, so a
    million outputs are never in memory at once.

    Returns:
        False if the folder has the manifest of another run, which is not replaced.

    Durability: when this returns the manifest survives power loss.
    """
    run_id = contents.run_key.run_id
    if await run_blocking(manifest_owner, outputs) not in (None, run_id):
        log.warning(
            "%s is the manifest of another run: none is written for this one",
            MANIFEST,
            extra=at(run_id),
        )
        return False
    # After a power cut the temporary file of an earlier, failed manifest may exist again.
    await run_blocking(outputs.remove_orphans, [""])
    file = await run_blocking(outputs.create, MANIFEST)
    with closing(file):
        async with aclosing(manifest_pieces(store, contents, outputs)) as pieces:
            async for piece in pieces:
                await run_blocking(file.write, piece.encode())
        await run_blocking(file.commit)
    return True


async def manifest_pieces(
    store: Store, contents: RunContents, outputs: Outputs
) -> AsyncGenerator[str]:
    """The text of the manifest, piece by piece; see `write_manifest`."""
    parts = contents.parts
    mine = {key: parts[key] for key in sorted(in_order(parts), key=partial(_place, parts))}
    whole = summarize((), mine)
    phases = {name: status.value for name, status in phase_statuses(parts).items()}
    head: dict[str, Plain] = {
        **contents.identity(),
        "completed_at": whole.completed_at,
        "config": contents.session_metadata["config"],
        "batches": whole.confirmed,
        "skipped": whole.skipped,
        "records": whole.records,
        "totals": _by_name(whole.totals),
        "spent": _by_name(whole.spent),
        "adopted": whole.adopted,
        "phases": _by_name(phases),
    }
    yield _dump(head)[:-1] + ',"streams":['
    for place, (key, progress) in enumerate(mine.items()):
        entry = {
            "stream": key,
            "status": progress.status.value,
            "batches": len(progress.confirmed),
            "skipped": _listed(progress.skipped),
            "records": progress.records,
            "totals": _by_name(shown(progress.totals)),
            "spent": _by_name(shown(progress.spent)),
            "runtime_s": round(progress.runtime_s, 3),
            "metadata": progress.metadata,
            "append_files": [
                await run_blocking(_append_entry, outputs, path, size)
                for path, size in sorted(progress.sinks.items())
            ],
        }
        yield (",\n" if place else "\n") + _dump(entry)[:-1] + ',"outputs":['
        if progress.outputs:
            async with aclosing(_outputs(store, contents.run_key, key, progress)) as pages:
                separator = "\n"
                async for page in pages:
                    yield separator + ",\n".join(page)
                    separator = ",\n"
        yield "]}"
    yield "]}\n"


def _listed(indexes: IndexSet) -> list[int]:
    if len(indexes) > MAX_LISTED:
        raise StoreError(f"{len(indexes):,} skipped batches are more than a manifest lists")
    return list(indexes)


def _place(parts: Mapping[StreamKey, Progress], key: StreamKey) -> tuple[float, str]:
    """Sort by the run's list, then by name: no record has the order of opening."""
    position = parts[key].position
    return (math.inf if position is None else position, encode_key(key))


def _by_name(values: Mapping[str, Plain]) -> dict[str, Plain]:
    return dict(sorted(values.items()))


async def _outputs(
    store: Store, run_key: RunKey, key: StreamKey, progress: Progress
) -> AsyncGenerator[list[str]]:
    """The outputs of a stream as JSON, newest first, a page at a time."""
    live = LiveRecords(progress)
    async with aclosing(read_pages(store, run_key.run_id, run_key.generation, key)) as pages:
        async for records in pages:
            lines = [
                _dump(_entry(entry.index, output))
                for entry in live.of(records)
                for output in entry.record.outputs
            ]
            if lines:
                yield lines


def _append_entry(outputs: Outputs, path: str, size: int) -> dict[str, Plain]:
    """The entry of an append file, up to its confirmed bytes."""
    hasher = hashlib.sha256()
    if size:
        with closing(outputs.read_pieces(path, size)) as pieces:
            for piece in pieces:
                hasher.update(piece)
    return {"path": path, "size": size, "sha256": hasher.hexdigest()}


def _entry(index: int, output: Output) -> dict[str, Plain]:
    return {"path": output.path, "size": output.size, "sha256": output.sha256, "batch": index}


def _dump(value: Plain) -> str:
    """Compact JSON; NaN and infinity, which metadata may have and JSON has not, become null."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if "NaN" in text or "Infinity" in text:  # it may also be part of a name
        plain = nan_as_null(value)
        return json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text


def manifest_owner(outputs: Outputs) -> str | None:
    """The run of the manifest in a folder; empty: it is not a manifest; None: no such file."""
    return _owner(_read_head(outputs))


def _read_head(outputs: Outputs) -> bytes | None:
    """The first bytes; empty: it cannot be read (a folder, a link); None: no such file."""
    with closing(outputs.read_pieces(MANIFEST, MAX_MANIFEST_HEAD_BYTES)) as pieces:
        try:
            return b"".join(pieces)
        except OutputError as error:
            return None if isinstance(error.__cause__, FileNotFoundError) else b""


def _owner(head: bytes | None) -> str | None:
    if head is None:
        return None
    start = b'{"format":%d,"run":' % FORMAT
    if not head.startswith(start):
        return ""
    try:
        name, _ = json.JSONDecoder().raw_decode(head[len(start) :].decode(errors="replace"))
    except (ValueError, RecursionError):  # truncated, or written by another program
        return ""
    return name if isinstance(name, str) else ""


async def is_current(contents: RunContents, outputs: Outputs) -> bool:
    """Whether the run has a manifest, and nothing has changed since it was written."""
    head = await run_blocking(_read_head, outputs)
    wanted = _dump(contents.identity())[:-1].encode() + b","
    return head is not None and head.startswith(wanted)


def written_of(outputs: Outputs) -> tuple[str, int, int, str] | None:
    """The run, generation, number of checkpoints and config digest in a manifest.

    Blocks.  None: there is no file, or it is not a manifest.
    """
    return _written(_read_head(outputs))


def _written(head_bytes: bytes | None) -> tuple[str, int, int, str] | None:
    head = (head_bytes or b"").decode(errors="replace")
    owner, match = _owner(head.encode()), _HEAD.match(head)
    return (owner, int(match[1]), int(match[2]), match[3]) if owner and match else None


async def set_outdated_aside(contents: RunContents, outputs: Outputs) -> None:
    """Move the run's manifest into the archive if anything has changed since it was written.

    Raises:
        OutputError: it cannot be moved.

    Durability: when this returns the move survives power loss.
    """
    if not await is_current(contents, outputs):
        await set_manifest_aside(contents.run_key, outputs)


async def set_manifest_aside(run_key: RunKey, outputs: Outputs) -> None:
    """Move the run's manifest into the archive, if there is one.

    Raises:
        OutputError: it cannot be moved.

    Durability: when this returns the move survives power loss.
    """
    if await run_blocking(manifest_owner, outputs) == run_key.run_id:
        await run_blocking(outputs.archive, [MANIFEST], _label_of_outdated(run_key))
        log.info(
            "%s is out of date and was moved into the archive", MANIFEST, extra=at(run_key.run_id)
        )


def is_set_aside(contents: RunContents, outputs: Outputs) -> bool:
    """Whether the archive has the manifest that would be current: a change began and was killed.

    Blocks.
    """
    label = _label_of_outdated(contents.run_key)
    try:
        head = outputs.archived_head(MANIFEST, label, MAX_MANIFEST_HEAD_BYTES)
    except OutputError:  # it cannot be read
        return False
    identity = contents.identity()
    wanted = tuple(identity[name] for name in ("run", "generation", "checkpoints", "config_digest"))
    return _written(head) == wanted


def _label_of_outdated(run_key: RunKey) -> str:
    return f"{run_key.run_id}-{run_key.generation}-outdated"
