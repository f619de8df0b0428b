"""Explains what a start would do with each stream, and why.  Pure: facts in, sentences out."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

from .._journal.history import SessionView
from .._journal.progress import Progress
from .._journal.record import ErrorInfo, Status
from .._journal.store import Owner
from .._journal.summary import failing, in_order
from .._util.exact_sum import ExactSum, add_sums, shown
from .._util.plain import StreamKey
from .._util.text import (
    amounts,
    are,
    message_of,
    plural,
    printable,
    quoted_name,
    spans,
    stream_names,
)
from .losses import Losses

MAX_ALIKE = 5  # streams of one kind with a sentence each; more share one sentence
MAX_NAMED = 3  # streams named in a shared sentence


class StartAction(enum.Enum):
    """What a start would do with a stream."""

    SKIP = "skip"
    GO_ON = "go on"
    TRY_AGAIN = "try again"
    REFUSE = "refuse"
    BEGIN = "begin"


@attrs.frozen
class Sentence:
    """One sentence of an explanation.

    Attributes:
        about: "run", "owner", "lost", "session", "archive", "config", "phase", "outputs",
            "trouble" or "streams".
        text: The sentence, for people.
        action: What a start would do with `streams`, if it is about streams.
        streams: Which streams.
    """

    about: str
    text: str
    action: StartAction | None = None
    streams: tuple[StreamKey, ...] = ()


def _names_of_parts(facts: Facts) -> Mapping[StreamKey, str]:
    return stream_names(facts.parts)


@attrs.frozen
class Trouble:
    """Something that went wrong in a stream that went on.

    Attributes:
        stream: The key of the stream.
        at: When it happened; Unix time, s.
        text: What happened.
    """

    stream: StreamKey
    at: float
    text: str


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
        retry_command: The command that re-queues failed work, without the stream.
        verify_command: The command that compares everything with what was saved.
        losses: What a start needs and would not find.
        pending: The tokens that the owner has pending, as published: the stream, the batch,
            and for how many seconds; oldest first.
        pending_total: How many tokens are pending; None: not known.
        troubles: What went wrong in streams that went on, the newest first.
        names: The name of each stream; default: names that are unique among `parts`.
    """

    run_id: str
    generation: int
    parts: Mapping[StreamKey, Progress]
    sessions: Sequence[SessionView]
    owner: Owner | None
    now: float
    retry_command: str = "trio-ckpt retry"
    verify_command: str = "trio-ckpt verify"
    losses: Losses = attrs.field(factory=Losses)
    pending: Sequence[tuple[StreamKey, int, float]] = ()
    pending_total: int | None = None
    troubles: Sequence[Trouble] = ()
    names: Mapping[StreamKey, str] = attrs.field(
        default=attrs.Factory(_names_of_parts, takes_self=True)
    )


def explain_streams(facts: Facts, *, every: bool = False) -> Iterator[Sentence]:
    """Say what a start would do with each stream; many similar ones share a sentence.

    Streams that need a decision of the user come first, streams that are skipped last.
    """
    alike: dict[tuple[StartAction, bool], list[StreamKey]] = {}
    has_list = any(progress.position is not None for progress in facts.parts.values())
    for key in in_order(facts.parts):
        progress = facts.parts[key]
        is_unlisted = has_list and progress.position is None
        alike.setdefault((action_of(progress), is_unlisted), []).append(key)
    for action in (
        StartAction.REFUSE,
        StartAction.TRY_AGAIN,
        StartAction.GO_ON,
        StartAction.BEGIN,
        StartAction.SKIP,
    ):
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


def action_of(progress: Progress) -> StartAction:
    """Say what a start would do with a stream."""
    if progress.status is Status.COMPLETE:
        return StartAction.SKIP
    if progress.status is Status.PENDING:
        return StartAction.BEGIN
    if progress.status is Status.FAILED:
        is_final = progress.error is not None and not progress.error.retryable
        return StartAction.REFUSE if is_final else StartAction.TRY_AGAIN
    return StartAction.GO_ON


def holes(progress: Progress) -> list[tuple[int, int]]:
    """Intervals that are left below the last batch that is confirmed or skipped."""
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
    text += f"{saved_words([progress])}."
    if progress.skipped:
        text += f" {_given_up(facts, progress, key)}"
    return text


def _given_up(facts: Facts, progress: Progress, key: StreamKey) -> str:
    count = len(progress.skipped)
    return (
        f"{plural(count, 'batch')} {'was' if count == 1 else 'were'} given up and "
        f"{'stays' if count == 1 else 'stay'} skipped ({spans(progress.skipped.intervals())}) "
        f"unless {_puts_back(facts, progress, key)}."
    )


def _puts_back(facts: Facts, progress: Progress, key: StreamKey) -> str:
    """Say what re-queues skipped batches."""
    if (first := progress.built_over) is not None:
        return f"the stream is rewound to batch {first - 1:,}, because later ones build on it"
    them = "it" if len(progress.skipped) == 1 else "them"
    return f"retry_failed=True or `{_retry(facts, key)}` puts {them} back"


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
            f"{plural(done, 'batch')} {are(done)} confirmed, but not {spans(gaps)}: they were "
            "re-queued, later ones were done first, or a range left them out"
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
        text += f" {progress.left:,} {are(progress.left)} left."
    else:
        text += " How many are left is not known."
    if saves := saved_words([progress]):
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
    """Say which batches failed and may run again."""
    if not failing(progress):
        return ""
    texts: list[str] = []
    for index, failure in sorted(progress.failures.items()):
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


def left_words(parts: Sequence[Progress]) -> str:
    """Say how many batches are left, as far as that is known."""
    known = [progress.left for progress in parts if progress.left is not None]
    unknown, left = len(parts) - len(known), sum(known)
    if not unknown:
        return f"{plural(left, 'batch')} {are(left)} left"
    of = f"of {plural(unknown, 'stream')}"
    if left:
        return f"at least {plural(left, 'batch')} {are(left)} left ({of} it is not known how many)"
    return f"how many are left is not known {of}"


def saved_words(parts: Sequence[Progress]) -> str:
    """Say what was spent on the confirmed batches: a start does not spend it again."""
    sums = dict[str, ExactSum]()
    for progress in parts:
        add_sums(sums, progress.spent_confirmed)
    spent = amounts(shown(sums))
    adopted = sum(len(progress.adopted) for progress in parts)
    without = f", without that of {plural(adopted, 'adopted batch')}" if adopted else ""
    return f" (saves {spent}{without})" if spent else ""


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
    text += f"{saved_words(parts)} ({_named(facts, keys)})."
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
        f"{plural(_done_of(facts, keys), 'batch')} confirmed{saved_words(parts)}; "
        f"{left_words(parts)} ({', '.join(places)} and {len(keys) - MAX_NAMED:,} more)."
    )
    with_holes = sum(bool(holes(progress)) for progress in parts)
    if with_holes:
        text += f" {with_holes:,} of them have holes, which are filled."
    again = sum(map(failing, parts))
    if again:
        text += f" {plural(again, 'batch')} failed before and {are(again)} tried again."
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


_ONE: Mapping[StartAction, Callable[[Facts, StreamKey], str]] = {
    StartAction.SKIP: _skip_one,
    StartAction.GO_ON: _go_on_one,
    StartAction.BEGIN: _begin_one,
    StartAction.TRY_AGAIN: _try_again_one,
    StartAction.REFUSE: _refuse_one,
}
_SUM_UP: Mapping[StartAction, Callable[[Facts, Sequence[StreamKey]], str]] = {
    StartAction.SKIP: _skip_many,
    StartAction.GO_ON: _go_on_many,
    StartAction.BEGIN: _begin_many,
    StartAction.TRY_AGAIN: _try_again_many,
    StartAction.REFUSE: _refuse_many,
}
