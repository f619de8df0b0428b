"""Explains what a start would do with a run, and why.  Pure: facts in, sentences out.

It answers the questions that users have about a store: what is skipped, where the rest continues,
what is tried again, what needs a decision first, and whether anything has to be cleaned up after
a crash (nothing has).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from .._journal.history import KILLED
from .._journal.progress import Progress
from .._journal.record import Status
from .._journal.summary import in_order, is_to_process, phase_statuses
from .._util.plain import StreamKey
from .._util.text import (
    are,
    duration,
    message_of,
    moment,
    plural,
    printable,
    quoted_name,
    stream_name,
)
from .drift import DriftProblem
from .explain_streams import (
    MAX_NAMED,
    Facts,
    Sentence,
    explain_streams,
    left_words,
    saved_words,
)
from .losses import LostState

MAX_TROUBLES = 5  # notes that get a sentence each
STUCK_AFTER_S = 600.0  # a live owner that has saved nothing for this long is reported


def explain_run(facts: Facts, *, every: bool = False) -> tuple[Sentence, ...]:
    """Say what a start would do, the most important first.

    Args:
        facts: What is known of the run.
        every: Whether each stream gets its own sentence, however many there are.
    """
    return (
        _headline(facts),
        _owner_or_session(facts),
        *_pending(facts),
        *_lost(facts),
        *_troubles(facts),
        *_archive(facts),
        *_config(facts),
        *_phases(facts),
        *explain_streams(facts, every=every),
        *_outputs(facts),
    )


def _headline(facts: Facts) -> Sentence:
    name, keys = repr(printable(facts.run_id)), in_order(facts.parts)
    parts = [facts.parts[key] for key in keys]
    if not parts:
        return Sentence("run", f"Run {name} has saved no batch yet: a start begins it.")
    complete = sum(progress.status is Status.COMPLETE for progress in parts)
    done = sum(len(progress.confirmed) for progress in parts)
    saves = saved_words(parts)
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
        f"{plural(done, 'batch')} that are confirmed{saves}; {left_words(parts)}.",
    )


def _unseen(parts: Sequence[Progress]) -> str:
    """Say what was not checked, and what a start may therefore still find."""
    if any(progress.outputs or progress.sinks for progress in parts):
        return (
            "Whether the files are what was confirmed was not looked at (`trio-ckpt verify` does), "
            "nor whether a source has grown."
        )
    return "Whether a source has grown was not looked at."


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


def _pending(facts: Facts) -> Iterator[Sentence]:
    """Say which batches the live owner has open."""
    if facts.owner is None or facts.pending_total is None:
        return
    if not facts.pending:
        yield Sentence("owner", "It has no batch open at this moment.")
        return
    texts = [
        f"{_name_of(facts, key)} batch {index:,} for {duration(age_s)}"
        for key, index, age_s in facts.pending[:MAX_NAMED]
    ]
    more = facts.pending_total - len(texts)
    if more > 0:
        texts.append(f"{more:,} more")
    yield Sentence(
        "owner",
        f"{plural(facts.pending_total, 'batch')} {are(facts.pending_total)} open at this moment, "
        f"the oldest first: {', '.join(texts)}.",
    )


def _name_of(facts: Facts, key: StreamKey) -> str:
    return quoted_name(facts.names.get(key, stream_name(key)))


def _lost(facts: Facts) -> Iterator[Sentence]:
    """Say what a start needs and would not find."""
    losses = facts.losses
    for lost in losses.states[:MAX_TROUBLES]:
        yield Sentence("lost", lost_state(_name_of(facts, lost.stream), lost, facts.verify_command))
    if (more := len(losses.states) - MAX_TROUBLES) > 0:
        yield Sentence("lost", f"The states of {plural(more, 'more stream')} are lost.")
    if losses.folder:
        yield Sentence("lost", lost_folder(losses.folder))
    for file in losses.files[:MAX_TROUBLES]:
        yield Sentence("lost", lost_file(_name_of(facts, file.stream), file))
    if (more := len(losses.files) - MAX_TROUBLES) > 0:
        text = (
            f"{plural(more, 'more file')} {are(more)} missing: `{facts.verify_command}` lists them."
        )
        yield Sentence("lost", text)


def lost_state(name: str, lost: LostState, verify_command: str) -> str:
    """Say that a stream cannot go on, and what to do."""
    after = "" if lost.batch_index is None else f" after batch {lost.batch_index:,}"
    return (
        f"Stream {name} cannot go on, because its state{after} is not whole: "
        f"{message_of(lost.reason)}. A start refuses it (StoreDamagedError). Restore the store "
        "from a copy; or open the stream with recover=True, which goes back to the newest state "
        f"that is whole, as `{verify_command} --full --repair` does."
    )


def lost_folder(folder: str) -> str:
    """Say that the output folder is gone, and what to do."""
    return (
        f"The output folder {printable(folder)} is not there; if it was moved, give output_dir= "
        "its new place."
    )


def lost_file(name: str, lost: DriftProblem) -> str:
    """Say that an output is gone, and what a start would do."""
    if lost.batch_index is None:
        return (
            f"Stream {name}, append file {printable(lost.path)}: {lost.reason}. A start goes back "
            "to before the lines that are missing, or refuses if all are."
        )
    return (
        f"Stream {name}, batch {lost.batch_index:,}, file {printable(lost.path)}: {lost.reason}. A "
        "start re-queues the batch."
    )


def _troubles(facts: Facts) -> Iterator[Sentence]:
    """Say what went wrong while the run went on."""
    for one in facts.troubles[:MAX_TROUBLES]:
        name = _name_of(facts, one.stream)
        yield Sentence(
            "trouble", f"Stream {name}, {moment(one.at)}: {message_of(one.text)}. Work went on."
        )
    more = len(facts.troubles) - MAX_TROUBLES
    if more > 0:
        yield Sentence("trouble", f"{plural(more, 'more such note')} of late: see the history.")


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
            "archive and is not continued.",
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
    phases = phase_statuses(facts.parts)
    is_over = all(status is Status.COMPLETE for status in phases.values())
    has_work = any(is_to_process(facts.parts[key]) for key in in_order(facts.parts))
    for at, (name, status) in enumerate(phases.items(), 1):
        if status is Status.COMPLETE:
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
            "is missing or altered is re-queued. Where very many or a whole append file are "
            "missing it refuses (OutputsMissingError), unless redo_missing=True. "
            "`trio-ckpt verify` says what is wrong.",
        )
