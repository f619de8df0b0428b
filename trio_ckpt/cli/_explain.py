"""`explain` and `history`: what a start of a run would do and why, and what happened before."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from contextlib import aclosing
from itertools import groupby

from msgspec.structs import asdict

from .._journal.acts import Act, paused_text, plain_act, read_acts, target_text
from .._journal.changes import again_of, is_complete
from .._journal.history import (
    SessionView,
    iter_records,
    read_sessions,
    read_state_inside,
    read_troubles,
)
from .._journal.record import TROUBLE, Record, RecordKind
from .._journal.store import Store
from .._journal.summary import RunStatus, is_over
from .._maintenance.explain import Facts, Sentence, explain_run
from .._maintenance.explain_losses import Losses
from .._util.exact_sum import numbers
from .._util.plain import StreamKey
from .._util.text import (
    amounts,
    duration,
    iso_moment,
    moment,
    number,
    plural,
    printable,
    quoted_name,
    stream_names,
)
from ._options import (
    all_option,
    any_run_argument,
    limit_option,
    store_command,
    stream_option,
)
from ._pending import live_of
from ._render import POINT, Block, CommandAnswer, Document, Table, error_part, owner_document
from ._select import choose_stream, choose_streams, read_status
from ._show import counts_text, error_text

MAX_LOOKED_AT = 20  # streams, for what went wrong in them

# ---------------------------------------------------------------------------------------
# explain
# ---------------------------------------------------------------------------------------


@store_command("explain", any_run_argument, stream_option, all_option)
async def explain(
    store: Store,
    run_id: str | None,
    *,
    stream: str | None,
    show_all: bool,
    now: float | None = None,
) -> CommandAnswer:
    """Say in words what a start would do, and why."""
    now = time.time() if now is None else now
    run = await read_status(store, run_id)
    keys = choose_streams(run.keys, stream)
    chosen = set(keys)
    live = await live_of(run)
    tokens = (
        [] if live is None else [t for t in live.tokens if stream is None or t.stream in chosen]
    )
    total = None if live is None else live.pending if stream is None else len(tokens)
    facts = Facts(
        run_id=run.run_id,
        generation=run.view.generation,
        parts={k: p for k, p in run.parts.items() if stream is None or k in chosen},
        sessions=await _sessions(run),
        owner=run.owner,
        now=now,
        retry_command=shlex.join(["trio-ckpt", "retry", store.url, run.run_id]),
        verify_command=shlex.join(["trio-ckpt", "verify", store.url, run.run_id]),
        resume_command=shlex.join(["trio-ckpt", "ctl", store.url, run.run_id, "resume"]),
        paused=paused_text(run.session_metadata),
        losses=await _losses(run, keys),
        pending=tokens,
        pending_total=total,
        inside=await _inside(run, keys),
        troubles=await _troubles(run, keys),
        names=stream_names(run.keys),
        began_from=again_of(run.session_metadata, run.view.generation),
        may_begin_next=run.owner is None and is_complete(run.view),
    )
    sentences = list(explain_run(facts, every=show_all))
    document = {
        "store": store.url,
        "run": run.run_id,
        "owner": owner_document(run.owner),
        "sentences": [_sentence_document(sentence) for sentence in sentences],
    }
    return CommandAnswer(lambda: document, lambda: _bulleted(sentences))


def _bulleted(sentences: Sequence[Sentence]) -> Sequence[Block]:
    """Sentences about the run as paragraphs, sentences about streams as a list."""
    blocks: list[Block] = []
    for is_list, group in groupby(sentences, key=lambda sentence: sentence.about == "streams"):
        blocks += [""] if blocks else []
        blocks += [f"{POINT}{sentence.text}" if is_list else sentence.text for sentence in group]
    return blocks


def _sentence_document(sentence: Sentence) -> Document:
    document: Document = {"about": sentence.about, "text": sentence.text}
    if sentence.action is None:
        return document
    streams = [list(key) for key in sentence.streams]
    return {**document, "action": sentence.action.value, "streams": streams}


async def _losses(run: RunStatus, keys: Sequence[StreamKey]) -> Losses:
    """What a start needs and would not find; only states and outputs can be lost."""
    parts = [run.parts[key] for key in keys]
    if not any(part.has_state or part.outputs or part.sinks for part in parts):
        return Losses()

    from .._maintenance.losses import find_losses  # needs most of the library

    return await find_losses(run.store, run.view, run.session_metadata.get("output_dir"), keys)


async def _troubles(
    run: RunStatus, keys: Sequence[StreamKey]
) -> list[tuple[StreamKey, float, str]]:
    """Recent troubles, the newest first; streams that are not over are read before others.

    Streams that are over are read, too, because a complete job may have left out something.
    """
    begun = [key for key in keys if run.parts[key].sequence]
    left = sorted(begun, key=lambda key: is_over(run.parts[key]))
    found = [
        (key, at, text)
        for key in left[:MAX_LOOKED_AT]
        for at, text in await read_troubles(run.store, run.run_id, run.view.generation, key)
    ]
    return sorted(found, key=lambda one: one[1], reverse=True)


async def _inside(run: RunStatus, keys: Sequence[StreamKey]) -> dict[StreamKey, tuple[int, float]]:
    """The batches inside of which a state was saved last, and when."""
    begun = [key for key in keys if run.parts[key].has_state and not is_over(run.parts[key])]
    found = {
        key: await read_state_inside(run.store, run.run_id, run.view.generation, key)
        for key in begun[:MAX_LOOKED_AT]
    }
    return {key: one for key, one in found.items() if one is not None}


async def _sessions(run: RunStatus) -> list[SessionView]:
    return await read_sessions(
        run.store,
        run.run_id,
        generation=run.view.generation,
        is_running=run.owner is not None,
    )


# ---------------------------------------------------------------------------------------
# history
# ---------------------------------------------------------------------------------------


@store_command("history", any_run_argument, stream_option, limit_option)
async def show_history(
    store: Store, run_id: str | None, *, stream: str | None, limit: int
) -> CommandAnswer:
    """List the sessions of a run, or with --stream the checkpoints of a stream."""
    if stream is None:
        return await show_sessions(store, run_id, limit=limit)
    return await show_checkpoints(store, run_id, stream=stream, limit=limit)


async def show_sessions(store: Store, run_id: str | None, *, limit: int) -> CommandAnswer:
    """The sessions of a run and the acts on it, the newest first."""
    run = await read_status(store, run_id)
    sessions = (await _sessions(run))[::-1]
    generation = run.view.generation
    acts = (await read_acts(run.store, run.run_id, generation=generation))[::-1]
    document = {
        "store": store.url,
        "run": run.run_id,
        "generation": generation,
        "sessions": [_session_document(session) for session in sessions[:limit]],
        "more": max(0, len(sessions) - limit),
        "acts": [{**plain_act(act), "at": iso_moment(act.at)} for act in acts[:limit]],
        "more_acts": max(0, len(acts) - limit),
    }
    if not sessions:
        blocks: list[Block] = [f"run {run.run_id!r} has had no session"]
        return CommandAnswer(lambda: document, lambda: blocks)
    columns = (">session", "=began", "=took", "how it ended", "process", "config", "what it did")
    rows = [_session_row(session) for session in sessions[:limit]]
    more = len(sessions) - limit
    note = f"and {plural(more, 'more session')}; --limit shows more" if more > 0 else ""
    blocks = [f"run {run.run_id!r} in {store.url}", Table(columns, rows, note)]
    blocks += [
        f"session {session.number}: config {field}: {was} -> {now}"
        for session in sessions[:limit]
        for field, was, now in session.changes
    ]
    blocks += _act_blocks(acts, limit)
    return CommandAnswer(lambda: document, lambda: blocks)


def _act_blocks(acts: Sequence[Act], limit: int) -> list[Block]:
    """The acts on a run, as a table if there are any."""
    if not acts:
        return []
    rows = [
        (
            moment(act.at),
            f"{act.do}{target_text(act)}",
            printable(act.user),
            f"{act.pid} on {act.host}",
            act.why,
        )
        for act in acts[:limit]
    ]
    more = len(acts) - limit
    note = f"and {plural(more, 'more act')}; --limit shows more" if more > 0 else ""
    return ["", Table(("=at", "act", "user", "process", "why"), rows, note)]


def _session_document(session: SessionView) -> Document:
    document = asdict(session)
    del document["runtime_s"]  # of the sessions before it
    times = {name: iso_moment(document[name]) for name in ("began", "ended", "next_due")}
    return {**document, **times, "counts": session.counts or None}


def _session_row(session: SessionView) -> tuple[str, ...]:
    took = "" if session.ended is None else duration(session.ended - session.began)
    did = counts_text(session.counts) if session.counts else "unknown"
    return (
        number(session.number),
        moment(session.began),
        took,
        session.how,
        f"{session.pid} on {session.host}",
        session.config_digest[:12] if session.config else "none",
        did if session.reason is None else f"{did}; stopped by its {session.reason}",
    )


KINDS = {
    RecordKind.BATCH: "confirmed",
    RecordKind.SKIP: "given up",
    RecordKind.ATTEMPT: "attempt failed",
    RecordKind.FAIL: "stream failed",
    RecordKind.FINISH: "stream complete",
    RecordKind.SAVE: "saved between batches",
    RecordKind.REDO: "re-queued",
    RecordKind.SESSION: "session began",
    RecordKind.END: "session ended",
    RecordKind.RETRY: "to be tried again",
    RecordKind.NOTE: "note",
    RecordKind.ADD: "put on the list",
    RecordKind.SNAPSHOT: "state in a batch",
    RecordKind.PIN: "state pinned",
    RecordKind.UNPIN: "pin taken away",
    RecordKind.INTENT: "noted in a batch",
}


async def show_checkpoints(
    store: Store, run_id: str | None, *, stream: str, limit: int
) -> CommandAnswer:
    """The checkpoints of a stream, the newest first."""
    run = await read_status(store, run_id)
    key = choose_stream(run.keys, stream)
    found: list[tuple[int, Record]] = []
    generation = run.view.generation
    records = iter_records(store, run.run_id, generation, key, limit=min(limit, 1_000))
    async with aclosing(records):
        async for entry in records:
            found.append(entry)
            if len(found) == limit:
                break
    more = max(0, run.parts[key].sequence - len(found))
    document = {
        "store": store.url,
        "run": run.run_id,
        "generation": generation,
        "stream": list(key),
        "checkpoints": [_checkpoint_document(sequence, record) for sequence, record in found],
        "more": more,
    }
    columns = (">checkpoint", "=saved", "what", ">batch", ">attempts", ">records", "files", "why")
    rows = [_checkpoint_row(sequence, record) for sequence, record in found]
    note = f"and {plural(more, 'more checkpoint')}; --limit shows more" if more else ""
    name = quoted_name(stream_names(run.keys)[key])
    title = f"stream {name} of run {run.run_id!r} in {store.url}"
    return CommandAnswer(lambda: document, lambda: [title, Table(columns, rows, note)])


def _checkpoint_document(sequence: int, record: Record) -> Document:
    return {
        "checkpoint": sequence,
        "at": iso_moment(record.at),
        "kind": record.kind.name.lower(),
        "batch_index": record.index,
        "attempts": record.attempts,
        "records": record.records,
        "outputs": [
            {"path": output.path, "size": output.size, "sha256": output.sha256}
            for output in record.outputs
        ],
        "produced": record.totals,
        "spent": numbers(record.spent),
        "reserved": numbers(record.reserved or {}),
        "adopted": record.adopted,
        "metadata": record.metadata,
        "error": error_part(record.error),
        "due": iso_moment(record.due),
    }


def intent_text(record: Record) -> str:
    """What an open batch has put on record: the names of notes, and amounts."""
    reserved = amounts(numbers(record.reserved or {}))
    parts = [", ".join(record.metadata), f"{reserved} reserved" if reserved else ""]
    return "; ".join(filter(None, parts))


def _checkpoint_row(sequence: int, record: Record) -> tuple[str, ...]:
    is_batch = record.kind in (RecordKind.BATCH, RecordKind.SKIP, RecordKind.ATTEMPT)
    files = [output.path for output in record.outputs[:1]]
    if len(record.outputs) > 1:
        files.append(f"and {number(len(record.outputs) - 1)} more")
    says = {
        RecordKind.REDO: "reason",
        RecordKind.RETRY: "reason",
        RecordKind.NOTE: "reason",
        RecordKind.PIN: "label",
        RecordKind.UNPIN: "label",
    }
    why = record.metadata.get(says[record.kind], "") if record.kind in says else ""
    why = record.metadata.get(TROUBLE, why)
    if record.kind is RecordKind.INTENT:
        why = intent_text(record)
    what = "adopted" if record.adopted else KINDS[record.kind]
    if record.due is not None:
        what, why = "deferred", f"until {moment(record.due)}"
    if record.error is not None:
        why = f"{why}: {error_text(record.error)}".removeprefix(": ")
    return (
        number(sequence),
        moment(record.at),
        what,
        "" if record.index is None else number(record.index),
        number(record.attempts) if is_batch else "",
        number(record.records) if record.kind is RecordKind.BATCH else "",
        " ".join(files),
        str(why),
    )
