"""`doctor`: checks of a machine and a store."""

from __future__ import annotations

import shlex
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path

import click

from .._journal.history import list_all_runs, read_pages
from .._journal.store import Finding, Severity, Store
from .._journal.summary import read_run_status
from .._maintenance.doctor import checked, examine
from .._maintenance.explain_losses import explain_losses
from .._maintenance.losses import find_losses
from .._maintenance.reasons import Reason, render
from .._util.errors import StoreDamagedError, StoreError
from .._util.plain import StreamKey
from .._util.text import (
    duration,
    one_line,
    plural,
    quoted_name,
    redacted_url,
    stream_name,
    stream_names,
)
from .._util.threads import run_blocking
from ..remote import read_job
from ..remote._wire.names import is_job_id
from ..state._chain import read_chain
from ..stores import folder_of, is_bucket, is_server, open_store
from ..stores._local.store import LocalStore
from ._app import app
from ._exits import EXIT_OK, EXIT_PROBLEMS
from ._options import TypedPath, json_option, mac_key_option, print_answer
from ._render import Block, CommandAnswer, Document, Table
from ._select import mac_key

MARKS = {Severity.GOOD: "ok", Severity.NOTE: "note", Severity.DOUBT: "doubt", Severity.BAD: "BAD"}
SILENT_S = 600.0  # an owned run that saves nothing for longer gets a finding
MANY_GENERATIONS = 3
LONG_CHAIN = 25  # half of what a chain grows to by itself
MAX_STREAMS = 100  # of a run whose states are looked at


@app.command("doctor")
@click.argument("store", type=TypedPath(), required=False)
@mac_key_option
@json_option
def doctor_command(store: str | None, as_json: bool) -> int:
    """Check this machine, and STORE if it is given.

    No test short of a power cut proves what fsync promises; doctor reports what is suspicious.
    """
    return print_answer(partial(examine_all, store), as_json=as_json)


async def examine_all(url: str | None) -> CommandAnswer:
    """All findings about the machine, and about a store."""
    found = list[Finding]()
    folder = Path.cwd() if url is None else Path(folder_of(url) or Path.cwd())
    if url is not None and not url.startswith("memory:"):
        async with aclosing(_store_findings(url)) as findings:
            found += [finding async for finding in findings]
    found = [*await run_blocking(examine, folder.absolute()), *found]
    bad = sum(finding.severity is Severity.BAD for finding in found)
    return CommandAnswer(
        lambda: _document(url, found, bad),
        lambda: _blocks(found, bad),
        EXIT_PROBLEMS if bad else EXIT_OK,
    )


def _document(url: str | None, found: Sequence[Finding], bad: int) -> Document:
    return {
        "store": None if url is None else redacted_url(url),
        "checks": [
            {
                "check": finding.where,
                "verdict": finding.severity.value,
                "finding": finding.what,
                "advice": finding.advice,
            }
            for finding in found
        ],
        "bad": bad,
    }


def _blocks(found: Sequence[Finding], bad: int) -> list[Block]:
    rows = [(MARKS[finding.severity], finding.where, _text(finding)) for finding in found]
    doubts = sum(finding.severity is Severity.DOUBT for finding in found)
    last = "all is well" if not bad + doubts else f"{bad:,} bad, {doubts:,} doubtful"
    return [Table(("=", "check", "finding"), rows), "", last]


def _text(finding: Finding) -> str:
    return f"{finding.what}; {finding.advice}" if finding.advice else finding.what


# ---------------------------------------------------------------------------------------
# A store
# ---------------------------------------------------------------------------------------


async def _store_findings(url: str) -> AsyncGenerator[Finding]:
    try:
        store = await open_store(url, mac_key=mac_key(), create=False)
    except StoreError as error:
        text = one_line(str(error))
        yield checked("store", Severity.BAD, text, "restore it from a copy, or name another")
        return
    try:
        yield checked("store", Severity.GOOD, f"{store.url} opens, durability {store.durability!r}")
        yield await _runs(store)
        for run in await list_all_runs(store):
            yield await _run(store, run.run_id)
            if run.generation >= MANY_GENERATIONS:
                yield checked(
                    f"run {run.run_id}",
                    Severity.NOTE,
                    f"generation {run.generation:,}: all before it may still be kept",
                    f"trio-ckpt prune {store.url} {run.run_id} --keep 1",
                )
            async for finding in _losses(store, run.run_id):
                yield finding
            async for finding in _habits(store, run.run_id):
                yield finding
        if isinstance(store, LocalStore):
            yield await _orphans(store)
        elif is_server(store.url):
            for finding in await _server_findings(store):
                yield finding
        elif is_bucket(store.url):
            for finding in await _bucket_findings(store):
                yield finding
    finally:
        await store.aclose()


async def _runs(store: Store) -> Finding:
    runs = await list_all_runs(store)
    records = sum(run.records for run in runs)
    return checked(
        "runs", Severity.GOOD, f"{plural(len(runs), 'run')}, {plural(records, 'checkpoint')}"
    )


async def _run(store: Store, run_id: str) -> Finding:
    """Whether every record of a run that a start needs is what was saved, and who has it."""
    name = f"run {run_id}"
    try:
        status = await read_run_status(store, run_id)
    except StoreDamagedError as error:
        advice = "restore the store from a copy; the other runs are not affected"
        return checked(name, Severity.BAD, one_line(str(error)), advice)
    if status is None:
        return checked(name, Severity.NOTE, "it was removed since")
    summary = status.summary()
    text = f"{plural(len(status.keys), 'stream')}, {plural(summary.confirmed, 'batch')} confirmed"
    if status.owner is None:
        return checked(name, Severity.GOOD, f"{text}; no process has it")
    text += f"; process {status.owner.pid} on {status.owner.host} has it"
    silent_s = time.time() - (status.last_activity() or status.owner.since.timestamp())
    if silent_s > SILENT_S:
        text += f", and has saved nothing for {duration(silent_s)}"
        return checked(name, Severity.DOUBT, text, f"trio-ckpt explain {store.url} {run_id}")
    return checked(name, Severity.GOOD, text)


async def _losses(store: Store, run_id: str) -> AsyncGenerator[Finding]:
    """What a start of a run needs and would not find; nothing of a run that is damaged."""
    with suppress(StoreDamagedError):
        status = await read_run_status(store, run_id)
        if status is None:
            return
        losses = await find_losses(store, status.view, status.session_metadata.get("output_dir"))
        name, names = f"run {run_id}", stream_names(status.keys)
        command = shlex.join(["trio-ckpt", "verify", store.url, run_id])
        for clause in explain_losses(losses, lambda key: quoted_name(names[key]), command):
            is_bad = clause[0] in (Reason.STATE_LOST, Reason.MORE_STATES_LOST)
            severity = Severity.BAD if is_bad else Severity.DOUBT
            yield checked(name, severity, one_line(render(clause)))


async def _habits(store: Store, run_id: str) -> AsyncGenerator[Finding]:
    """What makes a start slow, or a loss expensive; nothing for a run that is damaged."""
    name = f"run {run_id}"
    with suppress(StoreDamagedError):
        if is_job_id(run_id):
            job = await read_job(store, run_id, limit=0)
            if job.checkpoint_interval_s is None and job.ended_at is None:
                text = "its items save nothing while they run: what a lost worker did is lost"
                advice = "where they take long, map with checkpoint_interval_s="
                yield checked(name, Severity.NOTE, text, advice)
        async for key, length in _chains(store, run_id):
            if length > LONG_CHAIN:
                text = f"the state of {stream_name(key)} is read from {length} saved ones"
                yield checked(name, Severity.NOTE, text, f"trio-ckpt compact {store.url} {run_id}")


async def _chains(store: Store, run_id: str) -> AsyncGenerator[tuple[StreamKey, int]]:
    """From how many saved states that of each stream is read."""
    view = await store.load_run(run_id)
    if view is None:
        return
    for stream in tuple(view.streams.values())[:MAX_STREAMS]:
        if stream.progress.has_state:
            chain, _ = await read_chain(read_pages(store, run_id, view.generation, stream.key))
            yield stream.key, len(chain)


async def _server_findings(store: Store) -> list[Finding]:
    """What the database under a store is good for."""
    from ..stores._postgres.store import PostgresStore

    assert isinstance(store, PostgresStore)
    found = await store.examine_server()
    return [checked(one.where, one.severity, one.what, one.advice) for one in found]


async def _bucket_findings(store: Store) -> list[Finding]:
    """What the bucket under a store is good for, and what it costs to save in it."""
    from ..stores._objects.store import ObjectsStore

    assert isinstance(store, ObjectsStore)
    found = await store.examine_bucket()
    return [checked(one.where, one.severity, one.what, one.advice) for one in found]


async def _orphans(store: LocalStore) -> Finding:
    count, size = await store.find_orphans()
    if not count:
        return checked("orphans", Severity.GOOD, "every blob is named by a record")
    return checked(
        "orphans",
        Severity.NOTE,
        f"{plural(count, 'blob')} ({plural(size, 'byte')}) that no record names",
        "a crash left them, or they are just being saved; the next owner removes what is left",
    )
