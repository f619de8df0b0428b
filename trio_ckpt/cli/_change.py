"""The commands that write: `retry`, `rewind`, `compact`, `reset`, `prune`.

A command that changes a run first says what it would do, and asks. It takes the run's lock, so
it is refused while another process runs the run.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress

import attrs
import click
import msgspec

from .._journal.changes import check_prunable
from .._journal.code import batches_by_code
from .._journal.progress import Progress
from .._journal.record import Status
from .._journal.store import Owner, Pruned, RunKey, Store
from .._journal.summary import RunStatus
from .._maintenance.compact import Compacted
from .._maintenance.offline import open_maintenance, requeue_all
from .._util.errors import RunLockedError, StoreDamagedError
from .._util.index_set import IndexSet
from .._util.plain import StreamKey
from .._util.text import batches_are, number, plural, printable, redacted_url, stream_name
from .._util.threads import run_blocking
from ..outputs import Outputs, is_url, open_existing
from ..state._retention import Retention
from ._exits import EXIT_NOT_FOUND, EXIT_REFUSED, EXIT_USAGE, CommandError
from ._options import (
    TypedPath,
    count_option,
    output_dir_option,
    run_argument,
    store_command,
    stream_option,
    yes_option,
)
from ._render import CommandAnswer
from ._select import choose_stream, choose_streams, no_such_run, read_status

MAX_BATCHES = 10_000_000  # that one command re-queues: more is a mistake in a number
MIN_CODE_CHARS = 4  # of a digest: fewer may be those of another
GO_ON = "start the program to go on"

_SPAN = re.compile(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?", re.ASCII)


def confirm(what: str, *, yes: bool) -> None:
    """Ask on the terminal whether to go on, unless the user gave ``--yes``.

    Raises:
        CommandError: the answer is no, or there is no terminal to ask on.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CommandError(
            f"this would {what}; give --yes to do it without being asked", EXIT_USAGE
        )
    if not click.confirm(printable(f"This would {what}. Go on?"), err=True):
        raise CommandError("nothing was changed", EXIT_REFUSED)


def parse_batches(text: str, where: str = "--batches") -> IndexSet:
    """``17,203-210`` as a set of batch indexes.

    Args:
        text: What was typed.
        where: What messages call it.

    Raises:
        CommandError: the text has another form.
    """
    found = IndexSet()
    for part in text.split(","):
        match = _SPAN.fullmatch(part)
        if match is None:
            raise CommandError(f"{where} is written 17,203-210, not {text!r}", EXIT_USAGE)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise CommandError(f"{where}: {part.strip()} is not a span of batches", EXIT_USAGE)
        found = found.union(IndexSet.from_steps((first, last + 1 - first)))
    if len(found) > MAX_BATCHES:
        raise CommandError(
            f"{where}: {number(len(found))} batches; at most {number(MAX_BATCHES)} are "
            "re-queued at a time",
            EXIT_USAGE,
        )
    return found


async def _read_free(store: Store, run_id: str, output_dir: str | None = None) -> RunStatus:
    """Read a run that is to be changed.

    Raises:
        RunLockedError: a process runs it.
        CommandError: there is no such run, or the output folder that the user named is gone.
    """
    run = await read_status(store, run_id)
    _refuse_owned(run_id, run.owner)
    if output_dir is not None and not await run_blocking(_has_place, output_dir):
        raise CommandError(f"the output folder {output_dir} is not there", EXIT_NOT_FOUND)
    return run


async def open_outputs(folder: str, advice: str) -> Outputs:
    """Open the output folder of a run.

    Raises:
        CommandError: it is not there, and opening it would make it; the message ends in `advice`.
    """
    outputs = await run_blocking(open_existing, folder)
    if outputs is None:
        raise CommandError(f"the output folder {folder} is not there{advice}", EXIT_NOT_FOUND)
    return outputs


def _has_place(path: str) -> bool:
    return is_url(path) or os.path.isdir(path)


async def _generation_of(store: Store, run_id: str) -> int:
    """The newest generation of a run that is to be pruned; its progress is not read."""
    stored = await store.read_run(run_id)
    if stored is None:
        raise CommandError(await no_such_run(store, run_id), EXIT_NOT_FOUND)
    return stored.generation


def _refuse_owned(run_id: str, owner: Owner | None) -> None:
    if owner is not None:
        since = owner.since.isoformat(timespec="seconds")
        raise RunLockedError(
            run_id,
            host=owner.host,
            pid=owner.pid,
            since=since,
            lease_left_s=owner.lease_left_s,
        )


def _reason(command: str) -> str:
    """Why batches are re-queued, in their records."""
    return f"asked for with trio-ckpt {command}"


def _changed(
    run: RunStatus, keys: Sequence[StreamKey], *texts: str, **document: object
) -> CommandAnswer:
    streams = [list(key) for key in keys]
    return answer(run.store, *texts, run=run.run_id, streams=streams, **document)


def answer(store: Store, *texts: str, **document: object) -> CommandAnswer:
    """What a command has done to a run of a store: as text, and as a document."""
    return CommandAnswer(lambda: {"store": store.url, **document}, lambda: texts)


# ---------------------------------------------------------------------------------------
# retry and rewind
# ---------------------------------------------------------------------------------------


@store_command(
    "retry",
    run_argument,
    stream_option,
    click.option("--batches", metavar="17,203-210", help="These batches, also confirmed ones."),
    click.option(
        "--code", metavar="DIGEST", help="What this code has done, or `old`: all but the newest."
    ),
    output_dir_option,
    yes_option,
)
async def retry(
    store: Store,
    run_id: str,
    *,
    stream: str | None,
    batches: str | None,
    code: str | None,
    output_dir: str | None,
    yes: bool,
) -> CommandAnswer:
    """Re-queue what was given up, what has failed for good, and what is deferred."""
    indexes = None if batches is None else parse_batches(batches)
    run = await _read_free(store, run_id, output_dir)
    if indexes is not None:
        return await _redo(run, choose_stream(run.keys, stream), indexes, output_dir, yes=yes)
    keys = choose_streams(run.keys, stream)
    if code is not None:
        return await _retry_code(run, keys, code, output_dir, yes=yes)
    failed = [key for key in keys if run.parts[key].status is Status.FAILED]
    needed = [
        key for key in keys if run.parts[key].skipped or run.parts[key].deferred or key in failed
    ]
    built_over = [key for key in needed if run.parts[key].built_over is not None]
    wanted = needed if stream is not None else [key for key in needed if key not in built_over]
    skipped = sum(len(run.parts[key].skipped) for key in wanted)
    deferred = sum(len(run.parts[key].deferred) for key in wanted)
    texts: list[str] = []
    if wanted:
        streams = plural(sum(key in failed for key in wanted), "failed stream")
        lifted = f", {plural(deferred, 'deferred batch')}" if deferred else ""
        what = f"{plural(skipped, 'skipped batch')}{lifted} and {streams}"
        confirm(f"re-queue {what} of run {run_id!r}", yes=yes)
        async with open_maintenance(store, run_id, output_dir=output_dir) as maintenance:
            await maintenance.retry(wanted)
        done = f"{plural(skipped + deferred, 'batch')} of {plural(len(wanted), 'stream')} re-queued"
        texts.append(f"{done}; {GO_ON}")
    elif not built_over:
        texts.append("nothing was given up or deferred, and no stream has failed: nothing to do")
    texts += [
        f"stream {stream_name(key)!r} stays as it is: later batches build on batch "
        f"{run.parts[key].built_over}, which was skipped; rewind the stream to before it"
        for key in built_over
    ]
    left = [list(key) for key in built_over]
    return _changed(run, wanted, *texts, batches=skipped + deferred, built_over=left)


async def _retry_code(
    run: RunStatus, keys: Sequence[StreamKey], code: str, output_dir: str | None, *, yes: bool
) -> CommandAnswer:
    """Re-queue what a code has confirmed.

    Args:
        run: The run.
        keys: Its streams that are meant.
        code: The digest of the code, or its first letters; ``old``: all but the newest.
        output_dir: The folder of the outputs; None: that of the last session.
        yes: Whether the user has agreed already.
    """
    wanted = {key: _of_code(run.parts[key], code) for key in keys}
    wanted = {key: indexes for key, indexes in wanted.items() if indexes}
    if not wanted:
        raise CommandError(
            f"no confirmed batch of run {run.run_id!r} is of code {code!r}: `trio-ckpt explain` "
            "says of which code they are",
            EXIT_USAGE,
        )
    count = sum(map(len, wanted.values()))
    what = f"{plural(count, 'batch')} of {plural(len(wanted), 'stream')}"
    confirm(f"re-queue {what} of run {run.run_id!r} and move their outputs aside", yes=yes)
    async with open_maintenance(run.store, run.run_id, output_dir=output_dir) as maintenance:
        for key, indexes in wanted.items():
            await maintenance.redo(key, indexes, _reason(f"retry --code {code}"))
    return _changed(run, list(wanted), f"{what} re-queued; {GO_ON}", batches=count)


def _of_code(progress: Progress, code: str) -> IndexSet:
    """The batches that a code has confirmed; see `_retry_code`."""
    found, known = IndexSet(), progress.old_code
    if code != "old":
        known = batches_by_code(progress.confirmed, progress.code, known)
    for one in known:
        is_named = len(code) >= MIN_CODE_CHARS and one.mark.digest.startswith(code)
        found = found.union(one.indexes) if code == "old" or is_named else found
    return found


async def _redo(
    run: RunStatus, key: StreamKey, indexes: IndexSet, output_dir: str | None, *, yes: bool
) -> CommandAnswer:
    """Re-queue batches of one stream, also confirmed ones."""
    undone = indexes.copy()
    undone.subtract(run.parts[key].done)
    if undone:
        raise CommandError(
            f"stream {stream_name(key)!r}: {batches_are(undone)} neither confirmed nor skipped: "
            "there is nothing to re-queue",
            EXIT_USAGE,
        )
    what = f"{plural(len(indexes), 'batch')} of stream {stream_name(key)!r}"
    confirm(f"re-queue {what} of run {run.run_id!r} and move their outputs aside", yes=yes)
    async with open_maintenance(run.store, run.run_id, output_dir=output_dir) as maintenance:
        await maintenance.redo(key, indexes, _reason("retry"))
    return _changed(run, [key], f"{what} re-queued; {GO_ON}", batches=len(indexes))


@store_command(
    "rewind",
    run_argument,
    stream_option,
    click.option(
        "--to", type=int, required=True, metavar="K", help="The last batch that stays confirmed."
    ),
    output_dir_option,
    yes_option,
)
async def rewind(
    store: Store,
    run_id: str,
    *,
    stream: str | None,
    to: int,
    output_dir: str | None,
    yes: bool,
) -> CommandAnswer:
    """Go back to when batch K of a stream was the last one; state and cursor, too."""
    run = await _read_free(store, run_id, output_dir)
    key = choose_stream(run.keys, stream)
    name = stream_name(key)
    taken = run.parts[key].done.after(to)
    text = f"stream {name!r} has no batch after {number(to)}: nothing to do"
    if taken:
        confirm(
            f"re-queue {plural(len(taken), 'batch')} of stream {name!r} of run {run_id!r}, "
            f"all after batch {number(to)}, and move their outputs aside",
            yes=yes,
        )
        async with open_maintenance(store, run_id, output_dir=output_dir) as maintenance:
            taken = await maintenance.rewind(key, to=to, reason=_reason("rewind"))
        text = f"{plural(len(taken), 'batch')} of stream {name!r} re-queued; {GO_ON}"
    return _changed(run, [key], text, batches=len(taken))


# ---------------------------------------------------------------------------------------
# compact, reset and prune
# ---------------------------------------------------------------------------------------


@store_command(
    "compact",
    run_argument,
    stream_option,
    count_option(
        "--keep",
        "How many states keep their large arrays, the newest counted; pinned ones do, too.",
        default=Retention().last,
    ),
    click.option(
        "--archive",
        type=TypedPath(),
        metavar="STORE",
        help="Move the others there instead of deleting them.",
    ),
    yes_option,
)
async def compact(
    store: Store,
    run_id: str,
    *,
    stream: str | None,
    keep: int,
    archive: str | None,
    yes: bool,
) -> CommandAnswer:
    """Merge saved states, so that a start reads one, and drop old arrays."""
    run = await _read_free(store, run_id)
    keys = [key for key in choose_streams(run.keys, stream) if run.parts[key].has_state]
    done = Compacted()
    goal = None if archive is None else redacted_url(archive)
    if keys:
        confirm(
            f"merge the saved states of {plural(len(keys), 'stream')} of run {run_id!r} and "
            f"{'drop' if goal is None else f'move to {goal}'} the large arrays of all "
            f"but the newest {plural(keep, 'state')} and those pinned",
            yes=yes,
        )
        async with open_maintenance(store, run_id) as maintenance:
            done = await maintenance.compact(keys, retention=Retention(last=keep, archive=archive))
    text = "no state was saved as differences: nothing to merge"
    if done.merged:
        text = f"{plural(done.frames, 'saved state')} of {plural(done.merged, 'stream')} merged"
    if done.dropped:
        fate = "dropped" if goal is None else f"moved to {goal}"
        text += f"; arrays of {plural(done.dropped, 'old state')} {fate}: "
        text += f"{plural(done.freed_bytes, 'byte')}"
    return _changed(run, keys, text, **attrs.asdict(done))


@store_command("reset", run_argument, stream_option, output_dir_option, yes_option)
async def reset(
    store: Store, run_id: str, *, stream: str | None, output_dir: str | None, yes: bool
) -> CommandAnswer:
    """Archive a run, so that the next start begins it again. Nothing is deleted."""
    run = await _read_free(store, run_id, output_dir)
    if stream is not None:
        return await _reset_streams(run, choose_streams(run.keys, stream), output_dir, yes=yes)
    done = plural(run.summary().confirmed, "confirmed batch")
    confirm(
        f"archive run {run_id!r} with {done} and their outputs, so that it begins again", yes=yes
    )
    async with open_maintenance(store, run_id, output_dir=output_dir) as maintenance:
        await maintenance.reset(_reason("reset"))
    generation = run.view.generation
    text = f"run {run_id!r} is archived as generation {generation}, with {done}; the next start "
    return answer(store, f"{text}begins it again", run=run_id, archived_generation=generation)


async def _reset_streams(
    run: RunStatus, keys: Sequence[StreamKey], output_dir: str | None, *, yes: bool
) -> CommandAnswer:
    """Begin some streams of a run again: all their batches are re-queued."""
    batches = sum(len(run.parts[key].done) for key in keys)
    what = f"{plural(len(keys), 'stream')} of run {run.run_id!r}"
    done = f"{plural(batches, 'batch')} re-queued"
    confirm(f"begin {what} again, with {done} and their outputs moved aside", yes=yes)
    async with open_maintenance(run.store, run.run_id, output_dir=output_dir) as maintenance:
        for key in keys:
            await requeue_all(maintenance, key, _reason("reset"))
    text = f"{what} begin{'s' if len(keys) == 1 else ''} again, with {done}; {GO_ON}"
    return _changed(run, keys, text, batches=batches)


@store_command(
    "prune",
    run_argument,
    count_option(
        "--keep",
        "How many generations are left, the newest counted; 0 removes the run.",
        least=0,
    ),
    yes_option,
)
async def prune(store: Store, run_id: str, *, keep: int, yes: bool) -> CommandAnswer:
    """Remove archived generations of a run from the store."""
    owner = await store.read_owner(run_id)
    newest = await _generation_of(store, run_id)  # also of a run that cannot be read
    _refuse_owned(run_id, owner)
    removed = Pruned(0, 0, 0)
    kept = plural(keep, "generation")
    text = f"run {run_id!r} has nothing older than its newest {kept}: nothing to prune"
    is_needed = keep == 0 or (
        newest >= keep and await store.read_run(run_id, newest - keep) is not None
    )
    if is_needed:
        older = plural(newest + 1 - keep, "archived generation")
        what = f"remove up to {older} of run {run_id!r}"
        if keep == 0:
            what = f"remove run {run_id!r} from the store, its newest generation too"
        confirm(what, yes=yes)
        async with store.lock_run(run_id) as number_of_owner:
            newest = await _generation_of(store, run_id)
            with suppress(StoreDamagedError):  # a run that cannot be read needs nothing
                view = await store.load_run(run_id) if keep else None
                if view is not None:
                    check_prunable(view, keep)
            removed = await store.prune(RunKey(run_id, newest, number_of_owner), keep=keep)
        text = f"{plural(removed.generations, 'generation')} removed: "
        text += f"{plural(removed.records, 'record')}, {plural(removed.bytes, 'byte')}"
    return answer(store, text, run=run_id, **msgspec.structs.asdict(removed))
