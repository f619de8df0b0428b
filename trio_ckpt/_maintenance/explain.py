"""Explains what a start would do with a run, and why.  Pure: facts in, sentences out.

It answers the questions that users have about a store: what is skipped, where the rest continues,
what is tried again, what needs a decision first, and whether anything has to be cleaned up after
a crash (nothing has).
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import attrs

from .._journal.changes import BeganFrom
from .._journal.deferral import first_due
from .._journal.history import KILLED, SessionView
from .._journal.live_view import LiveToken
from .._journal.progress import Progress
from .._journal.record import OF_TEXT, ErrorInfo, Status, error_line
from .._journal.store import Owner
from .._journal.summary import deferred, failing, in_order, is_to_process, phase_statuses
from .._util.exact_sum import ExactSum, add_sums, shown
from .._util.index_set import spans
from .._util.plain import StreamKey
from .._util.text import (
    amounts,
    are,
    duration,
    moment,
    number,
    plural,
    quoted_name,
    stream_name,
)
from .explain_again import generation_clauses
from .explain_losses import MAX_TROUBLES, Losses, explain_losses
from .reasons import Clause, Reason, render

MAX_ALIKE = 5  # streams of one kind with a sentence each; more share one sentence
MAX_NAMED = 3  # streams named in a shared sentence
STUCK_AFTER_S = 600.0  # a live owner that has saved nothing for this long is reported


class StartAction(enum.Enum):
    """What a start would do with a stream, what needs a decision first."""

    REFUSE = "refuse"
    TRY_AGAIN = "try again"
    GO_ON = "go on"
    BEGIN = "begin"
    SKIP = "skip"


@attrs.frozen
class Sentence:
    """One sentence of an explanation.

    Attributes:
        about: "run", "owner", "lost", "session", "archive", "config", "phase", "outputs",
            "trouble" or "streams".
        clauses: What it says.
        action: What a start would do with `streams`, if it is about streams.
        streams: Which streams.
    """

    about: str
    clauses: Sequence[Clause]
    action: StartAction | None = None
    streams: tuple[StreamKey, ...] = ()

    @property
    def text(self) -> str:
        """The sentence, for people."""
        return render(*self.clauses)


@attrs.frozen
class Facts:
    """What is known of a run.

    Attributes:
        run_id: The run's name.
        generation: How often it was started from the beginning.
        parts: The progress of its streams.
        sessions: The sessions, the oldest first.
        owner: The live process that owns the run, if there is one.
        now: Unix time, s.
        names: The name of each stream.
        retry_command: The command that re-queues failed work, without the stream.
        verify_command: The command that compares everything with what was saved.
        resume_command: The command that lets a paused run go on.
        paused: Since when the run is paused, by whom and why; empty: it is not.
        losses: What a start needs and would not find.
        pending: The tokens that the owner has pending, as published, oldest first.
        pending_total: How many tokens are pending; None: not known.
        inside: The batches inside of which the newest state was saved, and when; Unix time, s.
        troubles: What went wrong in streams that went on, newest first: stream, Unix time, text.
        began_from: The generation that its own began from by ``again=True``; None: from none.
        may_begin_next: Whether the next generation could begin so now.
    """

    run_id: str
    generation: int
    parts: Mapping[StreamKey, Progress]
    sessions: Sequence[SessionView]
    owner: Owner | None
    now: float
    names: Mapping[StreamKey, str]
    retry_command: str = "trio-ckpt retry"
    verify_command: str = "trio-ckpt verify"
    resume_command: str = "trio-ckpt ctl"
    paused: str = ""
    losses: Losses = attrs.field(factory=Losses)
    pending: Sequence[LiveToken] = ()
    pending_total: int | None = None
    inside: Mapping[StreamKey, tuple[int, float]] = attrs.field(
        factory=dict[StreamKey, tuple[int, float]]
    )
    troubles: Sequence[tuple[StreamKey, float, str]] = ()
    began_from: BeganFrom | None = None
    may_begin_next: bool = False

    def name(self, key: StreamKey) -> str:
        """The name of a stream, as a sentence has it."""
        return quoted_name(self.names.get(key, stream_name(key)))


def explain_run(facts: Facts, *, every: bool = False) -> Iterator[Sentence]:
    """Say what a start would do, the most important first.

    Args:
        facts: What is known of the run.
        every: Whether each stream gets its own sentence, however many there are.
    """
    yield Sentence("run", list(_headline(facts)))
    if facts.owner is None:
        yield Sentence("session", [_last_session(facts)])
    else:
        yield Sentence("owner", list(_owner(facts, facts.owner)))
        yield from (Sentence("owner", [one]) for one in _pending(facts))
    lost_ones = explain_losses(facts.losses, facts.name, facts.verify_command)
    yield from (Sentence("lost", [one]) for one in lost_ones)
    yield from (Sentence("trouble", [one]) for one in _troubles(facts))
    if clauses := generation_clauses(facts.generation, facts.began_from, facts.may_begin_next):
        yield Sentence("archive", clauses)
    if facts.sessions:
        yield Sentence("config", list(_config(facts.sessions)))
    yield from (Sentence("phase", clauses) for clauses in _phases(facts))
    yield from _streams(facts, every=every)
    files = sum(p.outputs + len(p.sinks) for p in facts.parts.values())
    if files and facts.sessions and facts.sessions[-1].output_dir:
        fields = {"files": files, "last": facts.sessions[-1]}
        yield Sentence("outputs", [(Reason.OUTPUTS_COMPARED, fields)])


# ---------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------


def _headline(facts: Facts) -> Iterator[Clause]:
    parts = [facts.parts[key] for key in in_order(facts.parts)]
    complete = sum(progress.status is Status.COMPLETE for progress in parts)
    fields: dict[str, object] = {
        "run": facts.run_id,
        "complete": complete,
        "streams": len(parts),
        "which": "its stream is" if complete == 1 else f"all {plural(complete, 'stream')} are",
        "done": sum(len(progress.confirmed) for progress in parts),
        "saves": _saves(parts),
        "left": _left(parts),
    }
    if not parts:
        yield Reason.NOTHING_SAVED, fields
    elif complete < len(parts):
        yield Reason.RUN_INCOMPLETE, fields
    else:
        has_files = any(progress.outputs or progress.sinks for progress in parts)
        yield Reason.RUN_COMPLETE, fields
        yield Reason.FILES_UNSEEN if has_files else Reason.SOURCE_UNSEEN, fields
    sums = dict[str, ExactSum]()
    for progress in parts:
        add_sums(sums, progress.assumed)
    if assumed := amounts(shown(sums)):
        yield Reason.ASSUMED, {"assumed": assumed}
    if facts.paused:
        yield Reason.PAUSED, {"paused": facts.paused, "resume": facts.resume_command}


def _owner(facts: Facts, owner: Owner) -> Iterator[Clause]:
    yield Reason.OWNED, {"owner": owner, "since": owner.since.timestamp()}
    newest = max((p.updated_at or 0.0 for p in facts.parts.values()), default=0.0)
    if newest:
        idle_s = facts.now - newest
        is_silent = idle_s > STUCK_AFTER_S
        yield Reason.OWNER_SILENT if is_silent else Reason.OWNER_ACTIVE, {"idle_s": idle_s}


def _last_session(facts: Facts) -> Clause:
    if not facts.sessions:
        return Reason.NO_SESSION, {}
    last = facts.sessions[-1]
    at = "" if last.ended is None else f" at {moment(last.ended)}"
    reason = Reason.SESSION_KILLED if last.how == KILLED else Reason.SESSION_ENDED
    if last.reason is not None:
        reason = Reason.SESSION_LIMITED if last.next_due is None else Reason.SESSION_DEFERRED
    return reason, {"last": last, "at": at}


def _pending(facts: Facts) -> Iterator[Clause]:
    """Which batches the live owner has open."""
    if facts.pending_total is None:
        return
    texts = [_pending_text(facts, token) for token in facts.pending[:MAX_NAMED]]
    if (more := facts.pending_total - len(texts)) > 0:
        texts.append(f"{number(more)} more")
    reason = Reason.BATCHES_OPEN if facts.pending else Reason.NO_BATCH_OPEN
    yield reason, {"open": facts.pending_total, "batches": ", ".join(texts)}


def _pending_text(facts: Facts, token: LiveToken) -> str:
    where = f"{facts.name(token.stream)} batch {number(token.batch_index)}"
    age = f"{where} for {duration(max(0.0, facts.now - token.created_at))}"
    if token.waits_until is None:
        return age
    return f"{age} (failed, waits for its next attempt until {moment(token.waits_until)})"


def _troubles(facts: Facts) -> Iterator[Clause]:
    """What went wrong while the run went on."""
    for key, at, text in facts.troubles[:MAX_TROUBLES]:
        yield Reason.TROUBLE, {"name": facts.name(key), "at": at, "text": text}
    if (more := len(facts.troubles) - MAX_TROUBLES) > 0:
        yield Reason.MORE_TROUBLES, {"more": more}


def _config(sessions: Sequence[SessionView]) -> Iterator[Clause]:
    last = sessions[-1]
    if not last.config:
        yield Reason.NO_CONFIG, {}
        return
    yield Reason.CONFIG, {"last": last, "digest": last.config_digest[:12]}
    counts = Counter(field for session in sessions for field, _, _ in session.changes)
    for field, count in sorted(counts.items()):
        yield Reason.CONFIG_CHANGED, {"field": field, "sessions": count}
    if any(count > 1 for count in counts.values()):
        yield Reason.CONFIG_CHANGES_OFTEN, {}


def _phases(facts: Facts) -> Iterator[list[Clause]]:
    phases = phase_statuses(facts.parts)
    is_over = all(status is Status.COMPLETE for status in phases.values())
    has_work = any(is_to_process(facts.parts[key]) for key in in_order(facts.parts))
    for at, (name, status) in enumerate(phases.items(), 1):
        is_complete = status is Status.COMPLETE
        reason = Reason.PHASE_COMPLETE if is_complete else Reason.PHASE_INCOMPLETE
        passes_over = is_over and has_work and at == len(phases)
        yield [(reason, {"phase": name}), *[(Reason.PHASE_PASSES_OVER, {})] * passes_over]


# ---------------------------------------------------------------------------------------
# Streams
# ---------------------------------------------------------------------------------------


def _streams(facts: Facts, *, every: bool) -> Iterator[Sentence]:
    """What a start would do with each stream; many similar ones share a sentence."""
    alike: dict[tuple[StartAction, bool], list[StreamKey]] = {}
    has_list = any(progress.position is not None for progress in facts.parts.values())
    for key in in_order(facts.parts):
        is_unlisted = has_list and facts.parts[key].position is None
        alike.setdefault((action_of(facts.parts[key]), is_unlisted), []).append(key)
    actions = list(StartAction)
    for action, is_unlisted in sorted(alike, key=lambda kind: (actions.index(kind[0]), kind[1])):
        keys = alike[action, is_unlisted]
        unlisted: list[Clause] = [(Reason.UNLISTED, {})] * is_unlisted
        if len(keys) > MAX_ALIKE and not every:
            clauses = _of_many(facts, action, keys) + unlisted
            yield Sentence("streams", clauses, action, tuple(keys))
            continue
        for key in keys:
            yield Sentence("streams", _of_one(facts, action, key) + unlisted, action, (key,))


def action_of(progress: Progress) -> StartAction:
    """Say what a start would do with a stream."""
    if progress.status is Status.FAILED:
        return StartAction.REFUSE if progress.has_failed_for_good else StartAction.TRY_AGAIN
    known = {Status.COMPLETE: StartAction.SKIP, Status.PENDING: StartAction.BEGIN}
    return known.get(progress.status, StartAction.GO_ON)


_REASONS = {
    StartAction.REFUSE: [Reason.FAILED_FOR_GOOD],
    StartAction.TRY_AGAIN: [Reason.FAILED],
    StartAction.BEGIN: [Reason.NOT_BEGUN],
    StartAction.SKIP: [Reason.COMPLETE],
}


def _of_one(facts: Facts, action: StartAction, key: StreamKey) -> list[Clause]:
    """What a start would do with one stream."""
    progress, fields = facts.parts[key], _fields_of_one(facts, key)
    reasons = _REASONS.get(action) or list(_goes_on(progress, saves=bool(fields["saves"])))
    clauses: list[Clause] = [(reason, fields) for reason in reasons]
    if action is StartAction.REFUSE:
        clauses.append((Reason.CONFIRMED_STAY, fields))
    if action is StartAction.GO_ON:
        clauses += _failing(progress)
    if fields["deferred"]:
        clauses.append((Reason.DEFERRED, fields))
    clauses += _code(progress, fields)
    if progress.skipped and action in (StartAction.GO_ON, StartAction.SKIP):
        reason = Reason.GIVEN_UP if progress.built_over is None else Reason.BUILT_OVER
        clauses.append((reason, fields))
    return clauses


def _of_many(facts: Facts, action: StartAction, keys: Sequence[StreamKey]) -> list[Clause]:
    """What a start would do with many streams alike."""
    fields = _fields_of_many(facts, keys)
    clauses: list[Clause] = [(r, fields) for r in _REASONS.get(action, [Reason.MANY_GO_ON])]
    if action is StartAction.SKIP and fields["skipped"]:
        clauses.append((Reason.GIVEN_UP, fields))
    if fields["deferred"]:
        clauses.append((Reason.DEFERRED, fields))
    if action is StartAction.GO_ON and fields["with_holes"]:
        clauses.append((Reason.MANY_HAVE_HOLES, fields))
    if action is StartAction.GO_ON and fields["failing"]:
        clauses.append((Reason.MANY_BATCHES_FAILED, fields))
    return clauses


def _fields_of_one(facts: Facts, key: StreamKey) -> dict[str, object]:
    progress, name = facts.parts[key], facts.names[key]
    at = progress.first_left(progress.first_index)
    saved = {"state": progress.has_state, "cursor": progress.cursor is not None}
    has = " and ".join(what for what, is_there in saved.items() if is_there)
    inside, saved_at = facts.inside.get(key, (None, 0.0))
    if has and inside == at:
        has += f", of {moment(saved_at)}, inside of that batch"
    quoted = name if name.replace("/", "").isalnum() else "'" + name.replace("'", "'\"'\"'") + "'"
    return {
        **_sums([progress]),
        "subject": f"Stream {facts.name(key)}",
        "named": "",
        "at": at,
        "where": f"at batch {number(at)}",
        "has": has and f"; it has its saved {has}",
        "holes": spans(holes(progress)),
        "left": progress.left,
        "error": _error(progress.error),
        "which": "",
        "spans": f" ({progress.skipped})",
        "retry": f"{facts.retry_command} --stream {quoted}",
        "before": (progress.built_over or 0) - 1,
    }


def _fields_of_many(facts: Facts, keys: Sequence[StreamKey]) -> dict[str, object]:
    parts = [facts.parts[key] for key in keys]
    names = [facts.name(key) for key in keys[:MAX_NAMED]]
    places = [
        f"{name} at batch {number(progress.first_left(progress.first_index))}"
        for name, progress in zip(names, parts, strict=False)
    ]
    more = f"{number(len(keys) - MAX_NAMED)} more"
    errors = Counter(_kind(progress.error) for progress in parts)
    return {
        **_sums(parts),
        "subject": plural(len(keys), "stream"),
        "named": f" ({', '.join(names)} and {more})",
        "places": f"{', '.join(places)} and {more}",
        "where": "with them",
        "left": _left(parts),
        "with_holes": sum(bool(holes(progress)) for progress in parts),
        "failing": sum(map(failing, parts)),
        "error": ", ".join(f"{name} {number(count)}" for name, count in errors.most_common()),
        "which": " of them",
        "spans": "",
        "retry": facts.retry_command,
    }


def _sums(parts: Sequence[Progress]) -> dict[str, object]:
    deferrals = [one for progress in parts for one in deferred(progress)]
    return {
        "n": len(parts),
        "deferred": len(deferrals),
        "due": first_due(deferrals) or 0.0,
        "done": sum(len(progress.confirmed) for progress in parts),
        "skipped": sum(len(progress.skipped) for progress in parts),
        "saves": _saves(parts),
    }


def _goes_on(progress: Progress, *, saves: bool) -> Iterator[Reason]:
    """Why a stream goes on where it does, and what is left of it."""
    done = len(progress.confirmed)
    if progress.left == 0:
        yield Reason.ONLY_END_OPEN
    elif not done and not progress.skipped:
        yield Reason.FIRST_OPEN
    elif holes(progress):
        yield Reason.HOLE_OPEN
    else:
        yield Reason.REST_OPEN if done > 1 else Reason.SECOND_OPEN
    if progress.left != 0:
        yield Reason.LEFT_UNKNOWN if progress.left is None else Reason.LEFT
    if saves:
        yield Reason.SAVES


def holes(progress: Progress) -> list[tuple[int, int]]:
    """Intervals that are left below the last batch that is confirmed or skipped."""
    done = sorted([*progress.confirmed.intervals(), *progress.skipped.intervals()])
    found, border = list[tuple[int, int]](), progress.first_index
    for start, stop in done:
        if start > border:
            found.append((border, start))
        border = max(border, stop)
    return found


def _failing(progress: Progress) -> Iterator[Clause]:
    """Which batches failed and may run again."""
    failures = sorted(progress.failures.items()) if failing(progress) else []
    failures = [one for one in failures if one[0] not in progress.deferred]
    for index, failure in failures[:MAX_NAMED]:
        error = _error(failure.error)
        yield Reason.BATCH_FAILED, {"index": index, "attempts": failure.attempts, "error": error}
    if (more := len(failures) - MAX_NAMED) > 0:
        yield Reason.MORE_BATCHES_FAILED, {"more": more}


def _code(progress: Progress, fields: dict[str, object]) -> Iterator[Clause]:
    """How many batches are of older code."""
    old = [one for one in progress.old_code if one.indexes]
    if progress.code is not None and old:
        versions = [
            f"{number(len(one.indexes))} of {one.mark.digest or 'code that was not noted'}"
            + (f" since session {one.mark.session}" if one.mark.session else "")
            for one in old[-MAX_NAMED:]
        ]
        yield (
            Reason.CODE_CHANGED,
            {
                "function": progress.code.name,
                "since": progress.code.session,
                "old": sum(len(one.indexes) for one in old),
                "versions": ", ".join(versions),
                "retry": fields["retry"],
            },
        )


def _kind(error: ErrorInfo | None) -> str:
    return _error(error) if error is None or error.type == OF_TEXT else error.type


def _error(error: ErrorInfo | None) -> str:
    return "no error kept" if error is None else error_line(error)


def _left(parts: Sequence[Progress]) -> str:
    """How many batches are left, as far as that is known."""
    known = [progress.left for progress in parts if progress.left is not None]
    unknown, left = len(parts) - len(known), sum(known)
    if not unknown:
        return f"{plural(left, 'batch')} {are(left)} left"
    of = f"of {plural(unknown, 'stream')}"
    if left:
        return f"at least {plural(left, 'batch')} {are(left)} left ({of} it is not known how many)"
    return f"how many are left is not known {of}"


def _saves(parts: Sequence[Progress]) -> str:
    """What was spent on the confirmed batches: a start does not spend it again."""
    sums = dict[str, ExactSum]()
    for progress in parts:
        add_sums(sums, progress.spent_confirmed)
    spent = amounts(shown(sums))
    adopted = sum(len(progress.adopted) for progress in parts)
    without = f", without that of {plural(adopted, 'adopted batch')}" if adopted else ""
    return f" (saves {spent}{without})" if spent else ""
