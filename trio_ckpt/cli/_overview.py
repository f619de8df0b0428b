"""`ls` and `show`: the status of runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from .._journal.history import KILLED, RUNNING, run_runtime_s
from .._journal.progress import Progress
from .._journal.record import ErrorInfo, Status
from .._journal.store import Store
from .._journal.summary import Summary, current_phase, failing, groups_of, phase_statuses, status_of
from .._runs.live_view import LiveView
from .._util.errors import StoreError
from .._util.exact_sum import Number
from .._util.plain import StreamKey
from .._util.text import (
    amounts,
    duration,
    iso_moment,
    message_of,
    moment,
    one_line,
    plural,
    stream_names,
)
from ._exits import EXIT_OK, EXIT_STORE, error_document
from ._look import (
    RunStatus,
    choose_streams,
    error_part,
    left_of,
    look_at,
    owner_document,
    summary_document,
    word_of,
)
from ._pending import (
    left_out_pairs,
    live_of,
    pending_blocks,
    pending_document,
    stopping_document,
    stopping_texts,
)
from ._report import Block, CommandAnswer, Pairs, Table, capped

MAX_ROWS = 20  # of a table, unless all are asked for


# ---------------------------------------------------------------------------------------
# ls
# ---------------------------------------------------------------------------------------


async def list_runs(store: Store, *, now: float) -> CommandAnswer:
    """All runs of a store, one line for each."""
    looks = dict[str, RunStatus | StoreError]()
    for run in await store.list_runs():
        try:
            looks[run.run_id] = await look_at(store, run.run_id)
        except StoreError as error:  # the others can be read
            looks[run.run_id] = error
    damaged = {run_id: e for run_id, e in looks.items() if isinstance(e, StoreError)}

    def document() -> dict[str, Any]:
        return {
            "store": store.url,
            "runs": [
                {"run": run_id, **error_document(look, one_line(str(look)), EXIT_STORE)}
                if isinstance(look, StoreError)
                else _run_document(look)
                for run_id, look in looks.items()
            ],
        }

    def blocks() -> Sequence[Block]:
        if not looks:
            return [f"{store.url} has no runs yet"]
        found: list[Block] = [f"store {store.url}"]
        rows = [_run_row(look, now) for look in looks.values() if isinstance(look, RunStatus)]
        found += [Table(_RUN_COLUMNS, rows)] if rows else []
        return found + [
            f"run {run_id!r} cannot be read: {one_line(str(error))}"
            for run_id, error in damaged.items()
        ]

    return CommandAnswer(document, blocks, EXIT_STORE if damaged else EXIT_OK)


_RUN_COLUMNS = ("run", "status", "streams", ">done", ">left", ">skipped", "last saved", "session")


def _run_document(look: RunStatus) -> dict[str, Any]:
    summary = look.summary()
    parts = summary_document(summary)
    return {
        "run": look.run_id,
        "status": word_of(look.status_of(summary)),
        "generation": look.view.generation,
        "running": look.owner is not None,
        "owner": owner_document(look.owner),
        "streams": parts["streams"],
        "batches": parts["batches"],
        "last_activity": iso_moment(look.last_activity()),
        "session": _session_document(look),
        "exit_code": look.exit_code(),
    }


def _session_document(look: RunStatus) -> dict[str, Any] | None:
    if not look.facts:
        return None
    return {
        "number": look.facts["session"],
        "host": look.facts["host"],
        "pid": look.facts["pid"],
        "began": iso_moment(look.facts["began"]),
        "ended": iso_moment(look.facts.get("at")),
        "how": last_how(look),
    }


def last_how(look: RunStatus) -> str:
    """How the last session ended, in words."""
    if look.owner is not None:
        return RUNNING
    how: str = look.facts.get("ended", KILLED)
    return how


def _run_row(look: RunStatus, now: float) -> tuple[str, ...]:
    summary = look.summary()
    saved = look.last_activity()
    if look.owner is not None:
        session = f"is running: process {look.owner.pid} on {look.owner.host}"
    else:
        session = f"{look.facts['session']} {last_how(look)}" if look.facts else "none"
    return (
        look.run_id,
        look.status_of(summary).value,
        per_status(summary.streams),
        f"{summary.confirmed:,}",
        left_text(left_of(summary)),
        f"{summary.skipped:,}",
        "never" if saved is None else f"{duration(now - saved)} ago",
        session,
    )


def per_status(streams: Mapping[Status, int]) -> str:
    """``3 complete, 1 failed``: the statuses that occur."""
    texts = [f"{count:,} {status.value}" for status, count in streams.items() if count]
    return ", ".join(texts) or "none"


def left_text(left: int | None) -> str:
    """How many batches are left, as far as is known."""
    return "unknown" if left is None else f"{left:,}"


# ---------------------------------------------------------------------------------------
# show
# ---------------------------------------------------------------------------------------


async def show_run(
    store: Store, run_id: str | None, *, stream: str | None, every: bool
) -> CommandAnswer:
    """One run: totals, phases, groups and streams."""
    look = await look_at(store, run_id)
    live, now = await live_of(look), time.time()
    keys = choose_streams(look.keys, stream)
    only = None if stream is None else keys
    limit = None if every else MAX_ROWS
    return CommandAnswer(
        lambda: {
            **_show_document(look, keys, only),
            "pending": pending_document(live, now),
            "stopping": stopping_document(live),
        },
        lambda: [
            *_show_blocks(look, keys, live, limit),
            *pending_blocks(live, stream_names(look.keys), only, now, limit),
        ],
    )


def _show_document(
    look: RunStatus, keys: Sequence[StreamKey], only: Sequence[StreamKey] | None
) -> dict[str, Any]:
    groups = _groups(look, keys)
    return {
        "store": look.store.url,
        **_run_document(look),
        "only": None if only is None else [list(key) for key in only],
        "phase": current_phase(look.parts),
        "phases": {name: word_of(s) for name, s in phase_statuses(look.parts).items()},
        "runtime_s": run_runtime_s(look.view),
        "total": summary_document(look.summary(keys)),
        "last_session": look.facts.get("counts"),
        "config_digest": look.facts.get("config_digest"),
        "output_dir": look.facts.get("output_dir"),
        "groups": [
            {"group": list(key), **summary_document(look.summary(members, key))}
            for key, members in groups.items()
        ],
        "streams": [_stream_document(look, key) for key in keys],
    }


def _show_blocks(
    look: RunStatus, keys: Sequence[StreamKey], live: LiveView | None, limit: int | None
) -> Sequence[Block]:
    stopping = [("stopping", text) for text in stopping_texts(live, time.time())]
    names = stream_names(look.keys)
    run, status, *more = _run_pairs(look, keys)
    pairs = [run, status, *stopping, *more, *left_out_pairs(live, names)]
    blocks: list[Block] = [Pairs(pairs)]
    groups = _groups(look, keys)
    group_names = stream_names(_groups(look, look.keys))
    if any(len(key) > 1 for key in keys) and len(groups) > 1:
        blocks.append(
            capped(
                _GROUP_COLUMNS,
                list(groups),
                lambda key: _group_row(group_names[key], look.summary(groups[key], key)),
                limit,
                "groups",
            )
        )
    if keys:
        order = keys if limit is None else sorted(keys, key=lambda key: _urgency(look, key))
        row = partial(_stream_row, look, names)
        blocks.append(capped(_STREAM_COLUMNS, order, row, limit, "streams"))
    if len(keys) == 1:
        blocks.append(_one_stream(look.parts[keys[0]]))
    return blocks


def _groups(
    look: RunStatus, keys: Sequence[StreamKey]
) -> dict[StreamKey, dict[StreamKey, Progress]]:
    return groups_of({key: look.parts[key] for key in keys})


_GROUP_COLUMNS = ("group", "status", "streams", ">done", ">left", ">skipped", ">records", "spent")
_STREAM_COLUMNS = ("stream", "status", ">done", ">left", ">skipped", ">records", "spent", "error")

_FIRST = (Status.FAILED, Status.IN_PROGRESS, Status.INTERRUPTED, Status.PENDING, Status.COMPLETE)


def _urgency(look: RunStatus, key: StreamKey) -> int:
    """The position of a stream in a table that is cut: lower comes first."""
    return _FIRST.index(stream_status(look, key))


def stream_status(look: RunStatus, key: StreamKey) -> Status:
    """The status of a stream; only the owner of the run knows which streams are open."""
    return status_of(look.parts[key], is_open=key in look.open_streams)


def _run_pairs(look: RunStatus, keys: Sequence[StreamKey]) -> list[tuple[str, str]]:
    summary, is_whole = look.summary(keys), len(keys) == len(look.keys)
    pairs = [("run", f"{look.run_id} in {look.store.url}")]
    pairs.append(("status", f"{look.status_of(summary).value}; {_session_text(look)}"))
    sessions = look.facts.get("session", 0)
    if sessions and is_whole:
        runtime = duration(run_runtime_s(look.view))
        pairs.append(("runtime", f"{runtime} in {plural(sessions, 'session')}, without downtime"))
    phases = phase_statuses(look.parts)
    if phases:
        texts = [f"{name} {status.value}" for name, status in phases.items()]
        pairs.append(("phases", ", ".join(texts)))
    if look.view.generation:
        text = f"{look.view.generation:,}: begun afresh, what was before is in the archive"
        pairs.append(("generation", text))
    pairs.append(("streams", per_status(summary.streams)))
    pairs += total_pairs(summary)
    if is_whole:
        pairs.append(("last session", _last_session(look)))
    if summary.error is not None:
        last = max(keys, key=lambda key: look.parts[key].failed_at or 0.0)
        pairs.append(
            ("last error", f"{stream_names(look.keys)[last]}: {error_text(summary.error)}")
        )
    return pairs


def _session_text(look: RunStatus) -> str:
    if look.owner is not None:
        owner = look.owner
        since = moment(owner.since.timestamp())
        return f"session {look.facts.get('session', 1)} is running since {since}: process " + (
            f"{owner.pid} on {owner.host}"
        )
    if not look.facts:
        return "it has had no session"
    return f"session {look.facts['session']} {last_how(look)}"


def total_pairs(summary: Summary) -> list[tuple[str, str]]:
    """The work of all sessions together, produced and spent apart."""
    done = f"{plural(summary.confirmed, 'batch')} confirmed, {summary.skipped:,} skipped, "
    done += f"{summary.failing:,} failing, {left_text(left_of(summary))} left"
    pairs = [("total", done)]
    without = ""
    if summary.adopted:
        without = f" (without those of {plural(summary.adopted, 'adopted batch')})"
    produced = amounts({"records": summary.records, **summary.totals})
    pairs.append(("total produced", f"{produced}{without}"))
    if summary.spent:
        pairs.append(("total spent", amounts(summary.spent)))
        saved = f"{amounts(summary.saved) or 'nothing'} (what resuming saves)"
        pairs.append(("spent on confirmed batches", f"{saved}{without}"))
        known = summary.confirmed - summary.adopted
        if known and summary.saved:
            pairs.append(("mean per confirmed batch", amounts(_over(summary.saved, known))))
    return pairs


def _over(values: Mapping[str, Number], count: int) -> dict[str, Number]:
    return {name: value / count for name, value in values.items()}


def _last_session(look: RunStatus) -> str:
    if look.owner is not None:
        return "is running: its share is in the total, and told apart when it ends"
    counts: Mapping[str, Any] | None = look.facts.get("counts")
    if not counts:
        return "left no counts; its share is in the total" if look.facts else "none"
    return counts_text(counts)


def counts_text(counts: Mapping[str, Any]) -> str:
    """The work of one session, in words."""
    text = f"{plural(counts.get('batches', 0), 'batch')} confirmed, "
    text += f"{counts.get('skipped', 0):,} skipped"
    produced = amounts({"records": counts.get("records", 0), **counts.get("totals", {})})
    text += f"; produced {produced}"
    spent = amounts(counts.get("spent", {}))
    return f"{text}; spent {spent}" if spent else text


def error_text(error: ErrorInfo) -> str:
    """A recorded error, and whether it may be tried again."""
    where = f" (batch {error.batch_index:,})" if error.batch_index is not None else ""
    then = "may be tried again" if error.retryable else "for good"
    return f"{error.type}: {message_of(error.message)}{where}; {then}"


def _group_row(name: str, summary: Summary) -> tuple[str, ...]:
    return (
        name,
        summary.status.value,
        per_status(summary.streams),
        f"{summary.confirmed:,}",
        left_text(left_of(summary)),
        f"{summary.skipped:,}",
        f"{summary.records:,}",
        amounts(summary.spent),
    )


def _stream_row(look: RunStatus, names: Mapping[StreamKey, str], key: StreamKey) -> tuple[str, ...]:
    progress = look.parts[key]
    error = _error_of(progress)
    return (
        names[key],
        stream_status(look, key).value,
        f"{len(progress.confirmed):,}",
        left_text(progress.left),
        f"{len(progress.skipped):,}",
        f"{progress.records:,}",
        amounts({name: total.value for name, total in progress.spent.items()}),
        "" if error is None else error_text(error),
    )


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


def _stream_document(look: RunStatus, key: StreamKey) -> dict[str, Any]:
    progress = look.parts[key]
    return {
        "stream": list(key),
        **summary_document(look.summary([key], key)),
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


def _intervals(intervals: Any) -> list[list[int]]:
    """First and last index of each: both are in it."""
    return [[start, stop - 1] for start, stop in intervals]


def _one_stream(progress: Progress) -> Block:
    pairs = [("runtime of the stream", f"{duration(progress.runtime_s)}, without downtime")]
    if progress.metadata:
        texts = [f"{name} {value}" for name, value in progress.metadata.items()]
        pairs.append(("metadata", ", ".join(texts)))
    return Pairs(pairs)
