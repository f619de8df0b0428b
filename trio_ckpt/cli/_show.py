"""`ls` and `show`: the status of runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from .._journal.acts import paused_text
from .._journal.changes import again_of
from .._journal.collection import CollectionOverview, split_collections, sum_up_collection
from .._journal.history import KILLED, RUNNING, how_text, list_all_runs, run_runtime_s
from .._journal.live_view import LiveView
from .._journal.overview import RunOverview, overview_of, read_overview
from .._journal.progress import Progress
from .._journal.record import PAUSED, ErrorInfo, Status, error_line
from .._journal.store import Owner, RunSummary, Store
from .._journal.summary import (
    RunStatus,
    Summary,
    current_phase,
    failing,
    groups_of,
    left_of,
    phase_statuses,
)
from .._util.errors import StoreError
from .._util.plain import StreamKey
from .._util.text import (
    amounts,
    deferred_text,
    duration,
    iso_moment,
    moment,
    number,
    one_line,
    plural,
    stream_names,
)
from ._collections import (
    collection_pairs,
    owners_text,
    partitions_document,
    partitions_text,
    read_collection,
)
from ._exits import EXIT_OK, EXIT_STORE, error_document
from ._options import (
    all_option,
    any_run_argument,
    prefix_argument,
    store_command,
    stream_option,
)
from ._pending import (
    left_out_pairs,
    live_of,
    pending_blocks,
    pending_document,
    stopping_document,
    stopping_texts,
)
from ._render import (
    Block,
    CommandAnswer,
    Document,
    Pairs,
    Table,
    capped,
    error_part,
    mean_spent,
    owner_document,
    row_limit,
    summary_document,
    word_of,
)
from ._select import choose_streams, read_status

# ---------------------------------------------------------------------------------------
# ls
# ---------------------------------------------------------------------------------------


@store_command("ls", prefix_argument, all_option)
async def list_runs(
    store: Store, prefix: str = "", *, show_all: bool = False, now: float | None = None
) -> CommandAnswer:
    """List the runs of a store, a collection as one; or all whose names begin with PREFIX."""
    now = time.time() if now is None else now
    lines: Sequence[RunSummary] = await list_all_runs(store, prefix)
    collections = dict[str, CollectionOverview]()
    if not (prefix or show_all):
        parts, lines = split_collections(store, lines)
        collections = {name: sum_up_collection(store, one) for name, one in parts.items()}
    found = dict[str, RunOverview | StoreError](
        (name, one.run) for name, one in collections.items()
    )
    for line in lines:
        try:
            overview = await read_overview(store, line)
        except StoreError as error:  # the others can be read
            found[line.run_id] = error
        else:
            if overview is not None:  # else it was removed since
                found[line.run_id] = overview
    if collections:
        found = dict(sorted(found.items()))
    runs = [run for run in found.values() if isinstance(run, RunOverview)]
    errors = {run_id: one_line(str(e)) for run_id, e in found.items() if isinstance(e, StoreError)}

    def document() -> Document:
        documents = [
            _run_document(run, collections.get(run_id))
            if isinstance(run, RunOverview)
            else {"run": run_id, **error_document(run, errors[run_id], EXIT_STORE)}
            for run_id, run in found.items()
        ]
        return {"store": store.url, "runs": documents}

    def rows() -> list[tuple[str, ...]]:
        return [_run_row(run, now, collections.get(run.run_id)) for run in runs]

    def blocks() -> Sequence[Block]:
        if not found:
            return [f"{store.url} has no runs yet"]
        table = [Table(_RUN_COLUMNS, rows())] if runs else []
        damaged = [f"run {run_id!r} cannot be read: {error}" for run_id, error in errors.items()]
        return [f"store {store.url}", *table, *damaged]

    return CommandAnswer(document, blocks, EXIT_STORE if errors else EXIT_OK)


_RUN_COLUMNS = ("run", "status", "streams", ">done", ">left", ">skipped", "last saved", "session")


def _run_document(run: RunOverview, collection: CollectionOverview | None) -> Document:
    parts = summary_document(run.summary)
    return {
        "run": run.run_id,
        "status": word_of(run.status),
        "generation": run.generation,
        "running": run.owner is not None,
        "owner": owner_document(run.owner),
        "streams": parts["streams"],
        "partitions": partitions_document(collection),
        "batches": parts["batches"],
        "last_activity": iso_moment(run.last_activity),
        "session": _session_document(run),
        "exit_code": run.exit_code,
    }


def _session_document(run: RunOverview) -> Document | None:
    session = run.session
    if session is None:
        return None
    return {
        "number": session.number,
        "host": session.host,
        "pid": session.pid,
        "began": iso_moment(session.began),
        "ended": iso_moment(session.at),
        "how": _how(run.owner, session.ended),
        "reason": None if run.owner is not None else session.reason,
        "next_due": None if run.owner is not None else iso_moment(session.next_due),
    }


def last_how(run: RunStatus) -> str:
    """How the last session ended, in words."""
    metadata = run.session_metadata
    return _how(run.owner, metadata.get("ended"), metadata.get("reason"))


def _how(owner: Owner | None, ended: str | None, reason: str | None = None) -> str:
    if owner is not None:
        return RUNNING
    return KILLED if ended is None else how_text(ended, reason)


def _run_row(
    run: RunOverview, now: float, collection: CollectionOverview | None
) -> tuple[str, ...]:
    summary, saved = run.summary, run.last_activity
    streams, session = per_status(summary.streams), "none"
    if collection is not None:
        streams, session = partitions_text(collection), owners_text(collection)
    elif run.owner is not None:
        session = f"is running: process {run.owner.pid} on {run.owner.host}"
    elif run.session is not None:
        session = f"{run.session.number} {_how(None, run.session.ended, run.session.reason)}"
    return (
        run.run_id,
        run.status.value,
        streams,
        *_batch_cells(summary),
        "never" if saved is None else f"{duration(now - saved)} ago",
        session,
    )


def _batch_cells(summary: Summary) -> tuple[str, str, str]:
    return number(summary.confirmed), left_text(summary), number(summary.skipped)


def per_status(streams: Mapping[Status, int]) -> str:
    """``3 complete, 1 failed``: the statuses that occur."""
    texts = [f"{number(count)} {status.value}" for status, count in streams.items() if count]
    return ", ".join(texts) or "none"


def left_text(summary: Summary) -> str:
    """How many batches are left, as far as is known."""
    left = left_of(summary)
    return "unknown" if left is None else number(left)


# ---------------------------------------------------------------------------------------
# show
# ---------------------------------------------------------------------------------------


@store_command("show", any_run_argument, stream_option, all_option)
async def show_run(
    store: Store, run_id: str | None, *, stream: str | None, show_all: bool
) -> CommandAnswer:
    """Show where a run stands: totals, phases, groups, streams."""
    run = await read_status(store, run_id)
    live, now = await live_of(run), time.time()
    collection = await read_collection(run)
    keys = choose_streams(run.keys, stream)
    only = None if stream is None else keys
    limit = row_limit(show_all=show_all)
    return CommandAnswer(
        lambda: {
            **_show_document(run, keys, only, collection),
            "pending": pending_document(live, now),
            "stopping": stopping_document(live),
        },
        lambda: [
            *_show_blocks(run, keys, live, limit),
            *_collection_blocks(collection),
            *pending_blocks(live, stream_names(run.keys), only, now, limit),
        ],
    )


def _show_document(
    run: RunStatus,
    keys: Sequence[StreamKey],
    only: Sequence[StreamKey] | None,
    collection: CollectionOverview | None,
) -> Document:
    whole = None if collection is None else summary_document(collection.run.summary)
    return {
        "store": run.store.url,
        **_run_document(overview_of(run), collection),
        "collection": whole,
        "only": None if only is None else [list(key) for key in only],
        "paused": run.session_metadata.get(PAUSED),
        "phase": current_phase(run.parts),
        "phases": {name: word_of(s) for name, s in phase_statuses(run.parts).items()},
        "runtime_s": run_runtime_s(run.view),
        "total": summary_document(run.summary(keys)),
        "last_session": run.session_metadata.get("counts"),
        "config_digest": run.session_metadata.get("config_digest"),
        "output_dir": run.session_metadata.get("output_dir"),
        "groups": [
            {"group": list(key), **summary_document(summary)}
            for key, summary in run.groups(keys).items()
        ],
        "streams": [_stream_document(run, key) for key in keys],
    }


def _show_blocks(
    run: RunStatus, keys: Sequence[StreamKey], live: LiveView | None, limit: int | None
) -> Sequence[Block]:
    stopping = [("stopping", text) for text in stopping_texts(live, time.time())]
    names = stream_names(run.keys)
    title, status, *more = _run_pairs(run, keys, names)
    blocks: list[Block] = [Pairs([title, status, *stopping, *more, *left_out_pairs(live, names)])]
    groups = run.groups(keys)
    if any(len(key) > 1 for key in keys) and len(groups) > 1:
        group_names = stream_names(groups_of(run.parts))
        summaries = {group_names[key]: summary for key, summary in groups.items()}
        blocks.append(capped(_GROUP_COLUMNS, list(summaries.items()), _group_row, limit, "groups"))
    if keys:
        order = keys if limit is None else run.by_urgency(keys)
        row = partial(_stream_row, run, names)
        blocks.append(capped(_STREAM_COLUMNS, order, row, limit, "streams"))
    if len(keys) == 1:
        blocks += ["", _one_stream(run.parts[keys[0]])]
    return blocks


def _collection_blocks(collection: CollectionOverview | None) -> list[Block]:
    """The partitions of a collection, and the sums of all of them."""
    if collection is None:
        return []
    status = ("collection", collection.run.status.value)
    return [
        "",
        Pairs([status, *collection_pairs(collection), *total_pairs(collection.run.summary)]),
    ]


_GROUP_COLUMNS = ("group", "status", "streams", ">done", ">left", ">skipped", ">records", "spent")
_STREAM_COLUMNS = ("stream", "status", ">done", ">left", ">skipped", ">records", "spent", "error")


def _run_pairs(
    run: RunStatus, keys: Sequence[StreamKey], names: Mapping[StreamKey, str]
) -> list[tuple[str, str]]:
    summary, is_whole = run.summary(keys), len(keys) == len(run.keys)
    pairs = [("run", f"{run.run_id} in {run.store.url}")]
    pairs.append(("status", f"{run.status_of(summary).value}; {_session_text(run)}"))
    if paused := paused_text(run.session_metadata):
        pairs.append((PAUSED, paused))
    sessions = run.session_metadata.get("session", 0)
    if sessions and is_whole:
        runtime = duration(run_runtime_s(run.view))
        pairs.append(("runtime", f"{runtime} in {plural(sessions, 'session')}, without downtime"))
    phases = phase_statuses(run.parts)
    if phases:
        texts = [f"{name} {status.value}" for name, status in phases.items()]
        pairs.append(("phases", ", ".join(texts)))
    if run.view.generation:
        began = again_of(run.session_metadata, run.view.generation)
        how = "begun afresh, what was before is in the archive"
        if began is not None:
            how = f"begun from generation {number(began.base)} with again=True"
        text = f"{number(run.view.generation)}: {how}"
        pairs.append(("generation", text))
    pairs.append(("streams", per_status(summary.streams)))
    pairs += total_pairs(summary)
    if is_whole:
        pairs.append(("last session", _last_session(run)))
    if summary.error is not None:
        last = max(keys, key=lambda key: run.parts[key].failed_at or 0.0)
        pairs.append(("last error", f"{names[last]}: {error_text(summary.error)}"))
    return pairs


def _session_text(run: RunStatus) -> str:
    if run.owner is not None:
        since = moment(run.owner.since.timestamp())
        session = f"session {run.session_metadata.get('session', 1)} is running since {since}"
        return f"{session}: process {run.owner.pid} on {run.owner.host}"
    if not run.session_metadata:
        return "it has had no session"
    return f"session {run.session_metadata['session']} {last_how(run)}"


def total_pairs(summary: Summary) -> list[tuple[str, str]]:
    """The work of all sessions together, produced and spent apart."""
    done = f"{plural(summary.confirmed, 'batch')} confirmed, {number(summary.skipped)} skipped, "
    done += f"{number(summary.failing)} failing, {left_text(summary)} left"
    pairs = [("total", done)]
    if deferred := deferred_text(summary.deferred, summary.next_due):
        pairs.append(("deferred", deferred))
    without = ""
    if summary.adopted:
        without = f" (without those of {plural(summary.adopted, 'adopted batch')})"
    produced = amounts({"records": summary.records, **summary.totals})
    pairs.append(("total produced", f"{produced}{without}"))
    if summary.spent:
        pairs.append(("total spent", amounts(summary.spent)))
        saved = f"{amounts(summary.saved) or 'nothing'} (what resuming saves)"
        pairs.append(("spent on confirmed batches", f"{saved}{without}"))
        if mean := mean_spent(summary):
            pairs.append(("mean per confirmed batch", amounts(mean)))
    if summary.noted:
        noted = f"{amounts(summary.noted)} (of batches that are not confirmed; beside the total)"
        pairs.append(("noted as spent", noted))
    if summary.assumed:
        assumed = f"{amounts(summary.assumed)} (reserved and not settled; beside the total)"
        pairs.append(("assumed spent", assumed))
    return pairs


def _last_session(run: RunStatus) -> str:
    if run.owner is not None:
        return "is running: its share is in the total, and told apart when it ends"
    if counts := run.session_metadata.get("counts"):
        return counts_text(counts)
    return "left no counts; its share is in the total" if run.session_metadata else "none"


def counts_text(counts: Mapping[str, Any]) -> str:
    """The work of one session, in words."""
    text = f"{plural(counts.get('batches', 0), 'batch')} confirmed, "
    text += f"{number(counts.get('skipped', 0))} skipped"
    produced = amounts({"records": counts.get("records", 0), **counts.get("totals", {})})
    spent = amounts(counts.get("spent", {}))
    return f"{text}; produced {produced}" + (f"; spent {spent}" if spent else "")


def error_text(error: ErrorInfo) -> str:
    """A recorded error, and whether it may be tried again."""
    where = f" (batch {number(error.batch_index)})" if error.batch_index is not None else ""
    then = "may be tried again" if error.retryable else "for good"
    return f"{error_line(error)}{where}; {then}"


def _group_row(group: tuple[str, Summary]) -> tuple[str, ...]:
    name, summary = group
    return name, summary.status.value, per_status(summary.streams), *_work_cells(summary)


def _stream_row(run: RunStatus, names: Mapping[StreamKey, str], key: StreamKey) -> tuple[str, ...]:
    summary, error = run.summary([key], key), _error_of(run.parts[key])
    text = "" if error is None else error_text(error)
    return names[key], summary.status.value, *_work_cells(summary), text


def _work_cells(summary: Summary) -> tuple[str, ...]:
    return *_batch_cells(summary), number(summary.records), amounts(summary.spent)


def _error_of(progress: Progress) -> ErrorInfo | None:
    """The last error: the stream's own, or that of a batch that may run again."""
    if progress.error is not None:
        return progress.error
    if not failing(progress):
        return None
    index, failure = max(progress.failures.items())
    if failure.error is None:
        return None
    return ErrorInfo(failure.error.type, failure.error.message, True, index)


def _stream_document(run: RunStatus, key: StreamKey) -> Document:
    progress = run.parts[key]
    return {
        "stream": list(key),
        **summary_document(run.summary([key], key)),
        "confirmed": _intervals(progress.confirmed.intervals()),
        "skipped": _intervals(progress.skipped.intervals()),
        "first_index": progress.first_index,
        "last_index": progress.last_index,
        "expected": progress.expected,
        "next": progress.first_left(progress.first_index),
        "listed": progress.position is not None,
        "runtime_s": progress.runtime_s,
        "metadata": progress.metadata,
        "failures": {
            str(index): {"attempts": failure.attempts, "error": error_part(failure.error)}
            for index, failure in sorted({**progress.failures, **progress.skips}.items())
        },
        "checkpoints": progress.sequence,
    }


def _intervals(intervals: Iterable[tuple[int, int]]) -> list[list[int]]:
    """First and last index of each: both are in it."""
    return [[start, stop - 1] for start, stop in intervals]


def _one_stream(progress: Progress) -> Block:
    pairs = [("runtime of the stream", f"{duration(progress.runtime_s)}, without downtime")]
    if progress.metadata:
        texts = [f"{name} {value}" for name, value in progress.metadata.items()]
        pairs.append(("metadata", ", ".join(texts)))
    return Pairs(pairs)
