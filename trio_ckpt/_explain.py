"""What a start would do with a run, and why, in words.  Pure: facts in, sentences out.

Every question that people ask a store is answered here: what is skipped, where the rest
goes on, what is tried again, what needs their word first, and whether anything has to be
tidied up after a crash (nothing has).
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

from ._groups import failing, in_order, phases_of
from ._history import KILLED, SessionView
from ._progress import Progress
from ._records import ErrorInfo, Status
from ._totals import ExactSum, add_sums, shown
from ._values import StreamKey
from ._words import (
    amounts,
    duration,
    message_of,
    moment,
    plural,
    printable,
    quoted_name,
    spans,
    stream_names,
)
from .abc import Owner

MAX_ALIKE = 5  # streams of one kind that have a sentence each; more are summed up in one
MAX_NAMED = 3  # of those that are summed up
STUCK_AFTER_S = 600.0  # a live owner that has saved nothing for so long is worth a word


class Action(enum.Enum):
    """What a start would do with a stream."""

    SKIP = "skip"
    GO_ON = "go on"
    TRY_AGAIN = "try again"
    REFUSE = "refuse"
    BEGIN = "begin"


@attrs.frozen
class Sentence:
    """One thing to know.

    Attributes:
        about: "run", "owner", "session", "archive", "config", "phase", "outputs" or "streams".
        text: The sentence, for people.
        action: What a start would do with `streams`, if it is about streams.
        streams: Which streams.
    """

    about: str
    text: str
    action: Action | None = None
    streams: tuple[StreamKey, ...] = ()


def _names_of_parts(facts: Facts) -> Mapping[StreamKey, str]:
    return stream_names(facts.parts)


@attrs.frozen
class Facts:
    """What is known of a run.

    Attributes:
        run_id: Its name.
        generation: How often it was begun afresh.
        parts: The progress of its streams.
        sessions: The oldest first.
        owner: The live process that has it, if one has.
        now: Unix time, s.
        retry_command: What to type to put failed work back, without the stream.
        names: How each stream is named; default: so that no two of `parts` have one name.
    """

    run_id: str
    generation: int
    parts: Mapping[StreamKey, Progress]
    sessions: Sequence[SessionView]
    owner: Owner | None
    now: float
    retry_command: str = "trio-ckpt retry"
    names: Mapping[StreamKey, str] = attrs.field(
        default=attrs.Factory(_names_of_parts, takes_self=True)
    )


def explain_run(facts: Facts, *, every: bool = False) -> tuple[Sentence, ...]:
    """Say what a start would do, the most important first.

    Args:
        facts: What is known.
        every: Give each stream a sentence of its own, however many there are.
    """
    return (
        _headline(facts),
        _owner_or_session(facts),
        *_archive(facts),
        *_config(facts),
        *_phases(facts),
        *explain_streams(facts, every=every),
        *_outputs(facts),
    )


# ---------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------


def _headline(facts: Facts) -> Sentence:
    name, keys = repr(printable(facts.run_id)), in_order(facts.parts)
    parts = [facts.parts[key] for key in keys]
    if not parts:
        return Sentence("run", f"Run {name} has saved no batch yet: a start begins it.")
    complete = sum(progress.status is Status.COMPLETE for progress in parts)
    done = sum(len(progress.confirmed) for progress in parts)
    saves = _saved(parts)
    if complete == len(parts):
        what = "its stream is" if complete == 1 else f"all {plural(complete, 'stream')} are"
        return Sentence(
            "run",
            f"Run {name} is complete: {what}. A start skips {plural(done, 'batch')}{saves}; by "
            f"the store nothing is left to do. {_unseen(parts)}",
        )
    return Sentence(
        "run",
        f"Run {name}: {complete:,} of {plural(len(parts), 'stream')} complete. A start skips "
        f"{plural(done, 'batch')} that are confirmed{saves}; {_left(parts)}.",
    )


def _unseen(parts: Sequence[Progress]) -> str:
    """What a start may find all the same, because nobody has looked at it here."""
    if any(progress.outputs or progress.sinks for progress in parts):
        return (
            "The files were not looked at (`trio-ckpt verify` does), nor whether a source has "
            "grown."
        )
    return "Whether a source has grown was not looked at."


def _left(parts: Sequence[Progress]) -> str:
    known = [progress.left for progress in parts if progress.left is not None]
    unknown, left = len(parts) - len(known), sum(known)
    if not unknown:
        return f"{plural(left, 'batch')} {_are(left)} left"
    of = f"of {plural(unknown, 'stream')}"
    if left:
        return f"at least {plural(left, 'batch')} {_are(left)} left ({of} it is not known how many)"
    return f"how many are left is not known {of}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _saved(parts: Sequence[Progress]) -> str:
    """What was spent on the confirmed batches: a start does not spend it again."""
    sums = dict[str, ExactSum]()
    for progress in parts:
        add_sums(sums, progress.spent_confirmed)
    spent = amounts(shown(sums))
    adopted = sum(len(progress.adopted) for progress in parts)
    without = f", without that of {plural(adopted, 'adopted batch')}" if adopted else ""
    return f" (saves {spent}{without})" if spent else ""


def _owner_or_session(facts: Facts) -> Sentence:
    owner = facts.owner
    if owner is None:
        return _last_session(facts)
    text = (
        f"Process {owner.pid} on {printable(owner.host)} has it open since "
        f"{moment(owner.since.timestamp())}: a second start is refused (RunLockedError) until "
        "that process ends or is stopped. What is said below holds for the start after that."
    )
    newest = max((p.updated_at or 0.0 for p in facts.parts.values()), default=0.0)
    idle_s = facts.now - newest
    if newest and idle_s > STUCK_AFTER_S:
        text += (
            f" It has saved nothing for {duration(idle_s)}, but it is alive: its log, or "
            "show_progress in the program, says what it waits for. Nothing in the store needs "
            "repair; stop it and start it again if it hangs."
        )
    elif newest:
        text += f" It saved last {duration(idle_s)} ago."
    return Sentence("owner", text)


def _last_session(facts: Facts) -> Sentence:
    if not facts.sessions:
        return Sentence("session", "It has had no session, and no process has it open.")
    last = facts.sessions[-1]
    which = f"Session {last.number} (process {last.pid} on {printable(last.host)}, "
    which += f"begun {moment(last.began)})"
    if last.how == KILLED:
        return Sentence(
            "session",
            f"{which} was killed: it left no word of its end. Nothing is to be done first: its "
            "lock went with the process, and no file has to be deleted. What was confirmed "
            "stands; the batches that were open then run again.",
        )
    ended = f" at {moment(last.ended)}" if last.ended is not None else ""
    return Sentence(
        "session",
        f"{which} {printable(last.how)}{ended}. No process has the run open: a start is free to.",
    )


def _archive(facts: Facts) -> Iterator[Sentence]:
    if facts.generation:
        yield Sentence(
            "archive",
            f"The run was begun afresh {plural(facts.generation, 'time')} (fresh=True, "
            "on_config_change='restart', or reset): what was confirmed before that is in the "
            "archive and is not gone on with.",
        )


def _config(facts: Facts) -> Iterator[Sentence]:
    if not facts.sessions:
        return
    last = facts.sessions[-1]
    if not last.config:
        yield Sentence("config", "No config was given, so a start compares none.")
        return
    text = (
        f"A start compares its config with that of session {last.number} (digest "
        f"{last.config_digest[:12]}), value by value: white space and the order of keys never "
        "count."
    )
    counts = Counter(field for session in facts.sessions for field, _, _ in session.changes)
    for field, count in sorted(counts.items()):
        text += f" {printable(field)!r} was changed by {plural(count, 'session')}."
    if any(count > 1 for count in counts.values()):
        text += (
            " A field that is another one on every start (a date, a host) is named in exclude=, "
            "or in tunable= if its changes are to be logged."
        )
    yield Sentence("config", text)


def _phases(facts: Facts) -> Iterator[Sentence]:
    phases = phases_of(facts.parts)
    is_over = all(progress.status is Status.COMPLETE for progress in phases.values())
    has_work = any(facts.parts[k].status is not Status.COMPLETE for k in in_order(facts.parts))
    for at, (name, progress) in enumerate(phases.items(), 1):
        if progress.status is Status.COMPLETE:
            text = f"Phase {printable(name)!r} is complete: phase.complete is true on a start."
            if is_over and has_work and at == len(phases):
                text += (
                    " But there are streams with work left: a start passes them over where they "
                    "are in a block with `if not phase.complete`."
                )
        else:
            text = f"Phase {printable(name)!r} is not complete: a start goes through it again."
        yield Sentence("phase", text)


def _outputs(facts: Facts) -> Iterator[Sentence]:
    files = sum(p.outputs + len(p.sinks) for p in facts.parts.values())
    if files and facts.sessions and facts.sessions[-1].output_dir:
        folder = printable(facts.sessions[-1].output_dir)
        yield Sentence(
            "outputs",
            f"A start looks at the {plural(files, 'confirmed file')} below {folder} first; what "
            "is missing or altered goes back to work. Where very many or a whole append file are "
            "missing it refuses (OutputsMissingError), unless redo_missing=True. "
            "`trio-ckpt verify` says what is wrong.",
        )


# ---------------------------------------------------------------------------------------
# Its streams
# ---------------------------------------------------------------------------------------


def explain_streams(facts: Facts, *, every: bool = False) -> Iterator[Sentence]:
    """Say what a start would do with each stream; like ones together where there are many.

    What needs a word of the user comes first, what is simply skipped last.
    """
    alike: dict[tuple[Action, bool], list[StreamKey]] = {}
    has_list = any(progress.position is not None for progress in facts.parts.values())
    for key in in_order(facts.parts):
        progress = facts.parts[key]
        is_unlisted = has_list and progress.position is None
        alike.setdefault((action_of(progress), is_unlisted), []).append(key)
    for action in (Action.REFUSE, Action.TRY_AGAIN, Action.GO_ON, Action.BEGIN, Action.SKIP):
        for is_unlisted in (False, True):
            keys = alike.get((action, is_unlisted), [])
            unlisted = _UNLISTED if is_unlisted else ""
            if len(keys) > MAX_ALIKE and not every:
                text = _SUM_UP[action](facts, keys)
                yield Sentence("streams", text + unlisted, action, tuple(keys))
                continue
            for key in keys:
                text = _ONE[action](facts, key)
                yield Sentence("streams", text + unlisted, action, (key,))


_UNLISTED = " add_streams never named it, unlike others: streams_to_process gives it last."


def action_of(progress: Progress) -> Action:
    """What a start would do with a stream."""
    if progress.status is Status.COMPLETE:
        return Action.SKIP
    if progress.status is Status.PENDING:
        return Action.BEGIN
    if progress.status is Status.FAILED:
        is_final = progress.error is not None and not progress.error.retryable
        return Action.REFUSE if is_final else Action.TRY_AGAIN
    return Action.GO_ON


def holes(progress: Progress) -> list[tuple[int, int]]:
    """What is left below the last batch that is confirmed or skipped, as intervals."""
    done = sorted([*progress.confirmed.intervals(), *progress.skipped.intervals()])
    found, border = list[tuple[int, int]](), progress.first_index
    for start, stop in done:
        if start > border:
            found.append((border, start))
        border = max(border, stop)
    return found


def _name(facts: Facts, key: StreamKey) -> str:
    return quoted_name(facts.names[key])


def _error(error: ErrorInfo | None) -> str:
    if error is None:
        return "no error kept"
    return f"{printable(error.type)}: {message_of(error.message)}"


def _skip_one(facts: Facts, key: StreamKey) -> str:
    progress = facts.parts[key]
    done = plural(len(progress.confirmed), "batch")
    text = f"Stream {_name(facts, key)} is complete: it is skipped, with {done} confirmed"
    text += f"{_saved([progress])}."
    if progress.skipped:
        text += f" {_given_up(facts, progress, key)}"
    return text


def _given_up(facts: Facts, progress: Progress, key: StreamKey) -> str:
    count = len(progress.skipped)
    return (
        f"{plural(count, 'batch')} {'was' if count == 1 else 'were'} given up and "
        f"{'stays' if count == 1 else 'stay'} skipped ({spans(progress.skipped.intervals())}) "
        f"unless retry_failed=True or `{_retry(facts, key)}` puts "
        f"{'it' if count == 1 else 'them'} back."
    )


def _retry(facts: Facts, key: StreamKey) -> str:
    name = facts.names[key]
    quoted = name if name.replace("/", "").isalnum() else "'" + name.replace("'", "'\"'\"'") + "'"
    return f"{facts.retry_command} --stream {quoted}"


def _go_on_one(facts: Facts, key: StreamKey) -> str:
    progress = facts.parts[key]
    at = progress.first_left(progress.first_index)
    done, gaps = len(progress.confirmed), holes(progress)
    if not done and not progress.skipped:
        why = "none is confirmed yet"
    elif gaps:
        why = (
            f"{plural(done, 'batch')} {_are(done)} confirmed, but not {spans(gaps)}: they were "
            "put back to work, later ones were done first, or a range left them out"
        )
    else:
        why = f"all {done:,} before it are confirmed" if done > 1 else "the one before it is done"
    text = f"Stream {_name(facts, key)} goes on at batch {at:,}, because {why}{_with(progress)}."
    if progress.left == 0:
        text = (
            f"Stream {_name(facts, key)} has every batch done that is known of ({done:,} "
            f"confirmed): a start only finds out that batch {at:,} is none."
        )
    elif progress.left is not None:
        text += f" {progress.left:,} {_are(progress.left)} left."
    else:
        text += " How many are left is not known."
    if saves := _saved([progress]):
        text += f" It skips what is confirmed{saves}."
    text += _failing(progress)
    if progress.skipped:
        text += f" {_given_up(facts, progress, key)}"
    return text


def _with(progress: Progress) -> str:
    has = [
        name
        for name, there in (("state", progress.has_state), ("cursor", progress.cursor is not None))
        if there
    ]
    return f"; it has its saved {' and '.join(has)}" if has else ""


def _failing(progress: Progress) -> str:
    """The batches that failed and may run again."""
    if not failing(progress):
        return ""
    texts: list[str] = []
    for index, failure in sorted(progress.failures.items()):
        if index in progress.skipped:
            continue
        texts.append(
            f" Batch {index:,} failed {plural(failure.attempts, 'time')} "
            f"({_error(failure.error)}) and is tried again."
        )
    if len(texts) > MAX_NAMED:
        more = len(texts) - MAX_NAMED
        texts[MAX_NAMED:] = [f" So did {plural(more, 'other')}."]
    return "".join(texts)


def _begin_one(facts: Facts, key: StreamKey) -> str:
    return f"Stream {_name(facts, key)} has not begun: a start begins it."


def _try_again_one(facts: Facts, key: StreamKey) -> str:
    progress = facts.parts[key]
    at = progress.first_left(progress.first_index)
    return (
        f"Stream {_name(facts, key)} failed ({_error(progress.error)}); that may be tried again: a "
        f"start goes on at batch {at:,}, with {plural(len(progress.confirmed), 'batch')} confirmed."
    )


def _refuse_one(facts: Facts, key: StreamKey) -> str:
    progress = facts.parts[key]
    return (
        f"Stream {_name(facts, key)} failed for good ({_error(progress.error)}): a start "
        f"refuses it (StreamFailedError) unless retry_failed=True or `{_retry(facts, key)}` is "
        f"given first. Its {plural(len(progress.confirmed), 'confirmed batch')} "
        f"{'stays' if len(progress.confirmed) == 1 else 'stay'}."
    )


# -- many alike ------------------------------------------------------------------------------


def _named(facts: Facts, keys: Sequence[StreamKey]) -> str:
    names = ", ".join(_name(facts, key) for key in keys[:MAX_NAMED])
    return f"{names} and {len(keys) - MAX_NAMED:,} more"


def _done_of(facts: Facts, keys: Sequence[StreamKey]) -> int:
    return sum(len(facts.parts[key].confirmed) for key in keys)


def _errors_of(facts: Facts, keys: Sequence[StreamKey]) -> str:
    errors = [facts.parts[key].error for key in keys]
    types = Counter("no error kept" if e is None else printable(e.type) for e in errors)
    return ", ".join(f"{name} {count:,}" for name, count in types.most_common())


def _skip_many(facts: Facts, keys: Sequence[StreamKey]) -> str:
    parts = [facts.parts[key] for key in keys]
    done = plural(_done_of(facts, keys), "batch")
    text = f"{len(keys):,} streams are complete: they are skipped, with {done} confirmed"
    text += f"{_saved(parts)} ({_named(facts, keys)})."
    given_up = sum(len(progress.skipped) for progress in parts)
    if given_up:
        text += (
            f" {plural(given_up, 'batch')} of them {'was' if given_up == 1 else 'were'} given up "
            f"and {'stays' if given_up == 1 else 'stay'} skipped unless retry_failed=True or "
            f"`{facts.retry_command}` puts {'it' if given_up == 1 else 'them'} back."
        )
    return text


def _go_on_many(facts: Facts, keys: Sequence[StreamKey]) -> str:
    parts = [facts.parts[key] for key in keys]
    places = [
        f"{_name(facts, key)} at batch {progress.first_left(progress.first_index):,}"
        for key, progress in zip(keys[:MAX_NAMED], parts, strict=False)
    ]
    text = (
        f"{len(keys):,} streams go on where they were left: "
        f"{plural(_done_of(facts, keys), 'batch')} confirmed{_saved(parts)}; {_left(parts)} "
        f"({', '.join(places)} and {len(keys) - MAX_NAMED:,} more)."
    )
    with_holes = sum(bool(holes(progress)) for progress in parts)
    if with_holes:
        text += f" {with_holes:,} of them have holes, which are filled."
    again = sum(map(failing, parts))
    if again:
        text += f" {plural(again, 'batch')} failed before and {_are(again)} tried again."
    return text


def _begin_many(facts: Facts, keys: Sequence[StreamKey]) -> str:
    return f"{len(keys):,} streams have not begun: a start begins them ({_named(facts, keys)})."


def _try_again_many(facts: Facts, keys: Sequence[StreamKey]) -> str:
    return (
        f"{len(keys):,} streams failed ({_errors_of(facts, keys)}); that may be tried again: a "
        f"start goes on with them, with {plural(_done_of(facts, keys), 'batch')} confirmed "
        f"({_named(facts, keys)})."
    )


def _refuse_many(facts: Facts, keys: Sequence[StreamKey]) -> str:
    return (
        f"{len(keys):,} streams failed for good ({_errors_of(facts, keys)}): a start refuses "
        f"them (StreamFailedError) unless retry_failed=True or `{facts.retry_command}` is given "
        f"first ({_named(facts, keys)})."
    )


_ONE: Mapping[Action, Callable[[Facts, StreamKey], str]] = {
    Action.SKIP: _skip_one,
    Action.GO_ON: _go_on_one,
    Action.BEGIN: _begin_one,
    Action.TRY_AGAIN: _try_again_one,
    Action.REFUSE: _refuse_one,
}
_SUM_UP: Mapping[Action, Callable[[Facts, Sequence[StreamKey]], str]] = {
    Action.SKIP: _skip_many,
    Action.GO_ON: _go_on_many,
    Action.BEGIN: _begin_many,
    Action.TRY_AGAIN: _try_again_many,
    Action.REFUSE: _refuse_many,
}
