"""The commands that write: `retry`, `rewind`, `compact`, `reset`, `prune`, `export`, `import`.

A command that changes a run first says what it would do, and asks. It takes the run's lock, so
it is refused while another process runs the run.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from itertools import pairwise

import attrs
import click

from .._journal.progress import Progress
from .._journal.record import Status
from .._journal.store import Owner, Pruned, RunKey, Store
from .._maintenance.compact import Compacted
from .._maintenance.export import export_run
from .._maintenance.import_ import checked_archive, import_checked
from .._maintenance.offline import open_maintenance
from .._util.errors import RunLockedError
from .._util.index_set import IndexSet
from .._util.plain import StreamKey
from .._util.text import batches_are, number, plural, printable, stream_name
from .._util.threads import run_blocking
from ..outputs import OutputDir
from ..state._retention import Retention
from ._exits import EXIT_NOT_FOUND, EXIT_REFUSED, EXIT_USAGE, CommandError
from ._look import RunStatus, choose_stream, choose_streams, look_at, no_such_run, reading
from ._report import CommandAnswer

MAX_BATCHES = 10_000_000  # that one command re-queues: more is a mistake in a number
RETRY_REASON = "asked for with trio-ckpt retry"
REWIND_REASON = "asked for with trio-ckpt rewind"
RESET_REASON = "asked for with trio-ckpt reset"

_SPAN = re.compile(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?", re.ASCII)


@attrs.frozen
class Confirmation:
    """How a change is confirmed.

    Attributes:
        yes: The user gave ``--yes``: do not ask.
    """

    yes: bool

    def ask(self, what: str) -> None:
        """Ask on the terminal.

        Raises:
            CommandError: the answer is no, or there is no terminal to ask on.
        """
        if self.yes:
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise CommandError(
                f"this would {what}; give --yes to do it without being asked", EXIT_USAGE
            )
        if not click.confirm(printable(f"This would {what}. Go on?"), err=True):
            raise CommandError("nothing was changed", EXIT_REFUSED)


def parse_batches(text: str) -> IndexSet:
    """``17,203-210`` as a set of batch indexes.

    Raises:
        CommandError: the text has another form.
    """
    wanted: list[tuple[int, int]] = []
    for part in text.split(","):
        match = _SPAN.fullmatch(part)
        if match is None:
            raise CommandError(f"--batches is written 17,203-210, not {text!r}", EXIT_USAGE)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise CommandError(f"--batches: {part.strip()} is not a span of batches", EXIT_USAGE)
        wanted.append((first, last))
    borders = [0]
    for first, last in sorted(wanted):
        if len(borders) > 1 and first <= borders[-1]:
            borders[-1] = max(borders[-1], last + 1)
        else:
            borders += (first, last + 1)
    found = IndexSet.from_steps(after - before for before, after in pairwise(borders))
    if len(found) > MAX_BATCHES:
        raise CommandError(
            f"--batches: {number(len(found))} batches; at most {number(MAX_BATCHES)} are "
            "re-queued at a time",
            EXIT_USAGE,
        )
    return found


async def _need_folder(output_dir: str | None) -> None:
    """Make sure that the folder of outputs that the user named is there.

    Raises:
        CommandError: it is not.
    """
    if output_dir is not None and not await run_blocking(os.path.isdir, output_dir):
        raise CommandError(f"the output folder {output_dir} is not there", EXIT_NOT_FOUND)


async def _look_at_free(store: Store, run_id: str) -> RunStatus:
    """Read a run that is to be changed; refused at once while another process runs it."""
    look = await look_at(store, run_id)
    _refuse_owned(run_id, look.owner)
    return look


async def _generation_of_free(store: Store, run_id: str) -> int:
    """The newest generation of a run that is to be pruned; its progress is not read."""
    owner = await store.read_owner(run_id)
    newest = await _generation_of(store, run_id)
    _refuse_owned(run_id, owner)
    return newest


async def _generation_of(store: Store, run_id: str) -> int:
    stored = await store.read_run(run_id)
    if stored is None:
        raise CommandError(await no_such_run(store, run_id), EXIT_NOT_FOUND)
    return stored.generation


def _refuse_owned(run_id: str, owner: Owner | None) -> None:
    if owner is not None:
        since = owner.since.isoformat(timespec="seconds")
        raise RunLockedError(run_id, host=owner.host, pid=owner.pid, since=since)


# ---------------------------------------------------------------------------------------
# retry
# ---------------------------------------------------------------------------------------


async def retry(
    store: Store, run_id: str, *, stream: str | None, output_dir: str | None, consent: Confirmation
) -> CommandAnswer:
    """Re-queue skipped batches, and the batches at which streams failed."""
    look = await _look_at_free(store, run_id)
    await _need_folder(output_dir)
    keys = choose_streams(look.keys, stream)
    needed = [key for key in keys if _needs_retry(look.parts[key])]
    built_over = [key for key in needed if look.parts[key].built_over is not None]
    wanted = needed if stream is not None else [key for key in needed if key not in built_over]
    batches = sum(len(look.parts[key].skipped) for key in wanted)
    if wanted:
        failed = plural(_failed(look, wanted), "failed stream")
        skipped = plural(batches, "skipped batch")
        consent.ask(f"re-queue {skipped} and {failed} of run {run_id!r}")
        async with open_maintenance(store, run_id, output_dir=output_dir) as maintenance:
            await maintenance.retry(wanted)
    document = {
        "store": store.url,
        "run": run_id,
        "streams": [list(key) for key in wanted],
        "batches": batches,
        "built_over": [list(key) for key in built_over],
    }
    lines: list[str] = []
    if wanted:
        text = f"{plural(batches, 'batch')} of {plural(len(wanted), 'stream')} re-queued"
        lines.append(f"{text}; start the program to go on")
    elif not built_over:
        lines.append("nothing was given up and no stream has failed: nothing to do")
    lines += [_built_over(key, look.parts[key]) for key in built_over]
    return CommandAnswer(lambda: document, lambda: lines)


def _built_over(key: StreamKey, progress: Progress) -> str:
    return (
        f"stream {stream_name(key)!r} stays as it is: later batches build on batch "
        f"{progress.built_over}, which was skipped; rewind the stream to before it"
    )


def _needs_retry(progress: Progress) -> bool:
    return bool(progress.skipped) or progress.status is Status.FAILED


def _failed(look: RunStatus, keys: list[StreamKey]) -> int:
    return sum(look.parts[key].status is Status.FAILED for key in keys)


async def redo(
    store: Store,
    run_id: str,
    *,
    stream: str | None,
    batches: str,
    output_dir: str | None,
    consent: Confirmation,
) -> CommandAnswer:
    """Re-queue batches of one stream, also confirmed ones."""
    indexes = parse_batches(batches)
    look = await _look_at_free(store, run_id)
    await _need_folder(output_dir)
    key = choose_stream(look.keys, stream)
    undone = indexes.copy()
    undone.subtract(look.parts[key].done)
    if undone:
        raise CommandError(
            f"stream {stream_name(key)!r}: {batches_are(undone)} neither confirmed nor skipped: "
            "there is nothing to re-queue",
            EXIT_USAGE,
        )
    consent.ask(
        f"re-queue {plural(len(indexes), 'batch')} of stream {stream_name(key)!r} of run "
        f"{run_id!r} and move their outputs aside"
    )
    async with open_maintenance(store, run_id, output_dir=output_dir) as maintenance:
        await maintenance.redo(key, indexes, RETRY_REASON)
    document = {
        "store": store.url,
        "run": run_id,
        "streams": [list(key)],
        "batches": len(indexes),
    }
    text = f"{plural(len(indexes), 'batch')} of stream {stream_name(key)!r} re-queued"
    return CommandAnswer(lambda: document, lambda: [f"{text}; start the program to go on"])


async def rewind(
    store: Store,
    run_id: str,
    *,
    stream: str | None,
    to: int,
    output_dir: str | None,
    consent: Confirmation,
) -> CommandAnswer:
    """Re-queue all batches of one stream after one of them, and restore its state of then."""
    look = await _look_at_free(store, run_id)
    await _need_folder(output_dir)
    key = choose_stream(look.keys, stream)
    name = stream_name(key)
    taken = look.parts[key].done.after(to)
    if taken:
        consent.ask(
            f"re-queue {plural(len(taken), 'batch')} of stream {name!r} of run {run_id!r}, "
            f"all after batch {number(to)}, and move their outputs aside"
        )
        async with open_maintenance(store, run_id, output_dir=output_dir) as maintenance:
            taken = await maintenance.rewind(key, to=to, reason=REWIND_REASON)
    document = {
        "store": store.url,
        "run": run_id,
        "streams": [list(key)],
        "batches": len(taken),
    }
    text = f"stream {name!r} has no batch after {number(to)}: nothing to do"
    if taken:
        text = f"{plural(len(taken), 'batch')} of stream {name!r} re-queued"
        text += "; start the program to go on"
    return CommandAnswer(lambda: document, lambda: [text])


# ---------------------------------------------------------------------------------------
# compact, reset and prune
# ---------------------------------------------------------------------------------------


async def compact(
    store: Store,
    run_id: str,
    *,
    stream: str | None,
    keep: int,
    archive: str | None,
    consent: Confirmation,
) -> CommandAnswer:
    """Merge the saved states of streams, and drop the arrays of old ones."""
    look = await _look_at_free(store, run_id)
    keys = [key for key in choose_streams(look.keys, stream) if look.parts[key].has_state]
    done = Compacted()
    if keys:
        consent.ask(
            f"merge the saved states of {plural(len(keys), 'stream')} of run {run_id!r} and "
            f"{'drop' if archive is None else f'move to {archive}'} the large arrays of all "
            f"but the newest {plural(keep, 'state')} and those pinned"
        )
        async with open_maintenance(store, run_id) as maintenance:
            done = await maintenance.compact(keys, retention=Retention(last=keep, archive=archive))
    document = {
        "store": store.url,
        "run": run_id,
        "streams": [list(key) for key in keys],
        **attrs.asdict(done),
    }
    text = "no state was saved as differences: nothing to merge"
    if done.merged:
        text = f"{plural(done.frames, 'saved state')} of {plural(done.merged, 'stream')} merged"
    if done.dropped:
        fate = "dropped" if archive is None else f"moved to {archive}"
        text += f"; arrays of {plural(done.dropped, 'old state')} {fate}: "
        text += f"{plural(done.freed_bytes, 'byte')}"
    return CommandAnswer(lambda: document, lambda: [text])


async def reset(
    store: Store, run_id: str, *, output_dir: str | None, consent: Confirmation
) -> CommandAnswer:
    """Archive a run: the next start begins it again.  Nothing is deleted."""
    look = await _look_at_free(store, run_id)
    await _need_folder(output_dir)
    done = plural(look.summary().confirmed, "confirmed batch")
    consent.ask(f"archive run {run_id!r} with {done} and their outputs, so that it begins again")
    async with open_maintenance(store, run_id, output_dir=output_dir) as maintenance:
        await maintenance.reset(RESET_REASON)
    generation = look.view.generation
    document = {"store": store.url, "run": run_id, "archived_generation": generation}
    text = f"run {run_id!r} is archived as generation {generation}, with {done}; the next start "
    text += "begins it again"
    return CommandAnswer(lambda: document, lambda: [text])


async def reset_streams(
    store: Store, run_id: str, *, stream: str, output_dir: str | None, consent: Confirmation
) -> CommandAnswer:
    """Begin some streams of a run again: all their batches are re-queued."""
    look = await _look_at_free(store, run_id)
    await _need_folder(output_dir)
    keys = choose_streams(look.keys, stream)
    batches = sum(len(look.parts[key].done) for key in keys)
    what = f"{plural(len(keys), 'stream')} of run {run_id!r}"
    done = plural(batches, "batch")
    consent.ask(f"begin {what} again, with {done} re-queued and their outputs moved aside")
    async with open_maintenance(store, run_id, output_dir=output_dir) as maintenance:
        for key in keys:
            await maintenance.requeue_all(key, RESET_REASON)
    document = {
        "store": store.url,
        "run": run_id,
        "streams": [list(key) for key in keys],
        "batches": batches,
    }
    text = f"{what} begin{'s' if len(keys) == 1 else ''} again, with {done} re-queued"
    return CommandAnswer(lambda: document, lambda: [f"{text}; start the program to go on"])


async def prune(store: Store, run_id: str, *, keep: int, consent: Confirmation) -> CommandAnswer:
    """Remove old generations of a run from the store, also of one that cannot be read."""
    newest = await _generation_of_free(store, run_id)
    removed = Pruned(0, 0, 0)
    is_needed = keep == 0 or (
        newest >= keep and await store.read_run(run_id, newest - keep) is not None
    )
    if is_needed:
        if keep == 0:
            consent.ask(f"remove run {run_id!r} from the store, its newest generation too")
        else:
            older = plural(newest + 1 - keep, "archived generation")
            consent.ask(f"remove up to {older} of run {run_id!r}")
        async with store.lock_run(run_id) as owner:
            newest = await _generation_of(store, run_id)
            removed = await store.prune(RunKey(run_id, newest, owner), keep=keep)
    document = {
        "store": store.url,
        "run": run_id,
        "generations": removed.generations,
        "records": removed.records,
        "bytes": removed.bytes,
    }
    text = f"{plural(removed.generations, 'generation')} removed: "
    text += f"{plural(removed.records, 'record')}, {plural(removed.bytes, 'byte')}"
    if not is_needed:
        kept = plural(keep, "generation")
        text = f"run {run_id!r} has nothing older than its newest {kept}: nothing to prune"
    return CommandAnswer(lambda: document, lambda: [text])


# ---------------------------------------------------------------------------------------
# export and import
# ---------------------------------------------------------------------------------------


async def export(
    store: Store, run_id: str, path: str, *, with_outputs: bool, output_dir: str | None
) -> CommandAnswer:
    """Write a run into one file; it may be running."""
    look = await look_at(store, run_id)
    folder: str | None = output_dir or look.facts.get("output_dir")
    outputs: OutputDir | None = None
    if with_outputs and folder is not None:
        if not await run_blocking(os.path.isdir, folder):
            raise CommandError(
                f"the output folder {folder} is not there: give --output-dir if it was moved, or "
                "--no-outputs",
                EXIT_NOT_FOUND,
            )
        outputs = await run_blocking(OutputDir.open, folder)
    try:
        done = await export_run(store, look.run_id, path, outputs=outputs)
    finally:
        if outputs is not None:
            outputs.close()
    text = f"run {look.run_id!r} is in {done.path}: {plural(done.streams, 'stream')}, "
    text += f"{plural(done.records, 'record')}, {plural(done.outputs, 'output file')}, "
    text += f"{plural(done.size_bytes, 'byte')}"
    return CommandAnswer(lambda: {"store": store.url, **attrs.asdict(done)}, lambda: [text])


async def import_(
    url: str, path: str, *, run_id: str | None, output_dir: str | None
) -> CommandAnswer:
    """Import a run from a file that was checked; the store is made if it is not there."""
    async with checked_archive(path, run_id=run_id) as checked, reading(url, create=True) as store:
        done = await import_checked(store, checked, output_dir=output_dir)
        place, left_out = store.url, len(checked.archive.outputs) - done.outputs
    text = f"run {done.run_id!r} is in {place}: {plural(done.streams, 'stream')}, "
    text += f"{plural(done.records, 'record')}, {plural(done.outputs, 'output file')}"
    texts = [text]
    if left_out:
        again = shlex.join(["trio-ckpt", "import", url, path])
        texts.append(
            f"{plural(left_out, 'output file')} of the run stayed in {done.path}; to have "
            f"{'it' if left_out == 1 else 'them'}: {again} --as NEW-NAME --output-dir FOLDER"
        )
    document = {"store": place, **attrs.asdict(done), "outputs_left_out": left_out}
    return CommandAnswer(lambda: document, lambda: texts)
