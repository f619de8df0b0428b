"""Why a start does what it does: one reason, one template, one renderer.

A template says the fact and, where there is something to do, what to do.  ``{n:batch}`` is a number
with its noun, ``{n:is|are}`` the form for the number; `_Template` has the others.
"""

from __future__ import annotations

import enum
import string
from collections.abc import Mapping

from .._journal.store import Finding, FindingKind
from .._util.text import duration, message_of, moment, number, plural, printable


class Reason(enum.Enum):
    """A reason; its value is its template."""

    # The run.
    NOTHING_SAVED = "Run {run:quoted} has saved no batch yet: a start begins it."
    RUN_INCOMPLETE = (
        "Run {run:quoted}: {complete} of {streams:stream} complete. A start skips {done:batch} "
        "that {done:is|are} confirmed{saves}; {left}."
    )
    RUN_COMPLETE = (
        "Run {run:quoted} is complete: {which}. A start skips {done:batch}{saves}; by the store "
        "nothing is left to do."
    )
    PAUSED = "It is paused {paused}: no batch is handed out until `{resume:raw}`."
    FILES_UNSEEN = (
        "Whether the files are what was confirmed was not looked at (`trio-ckpt verify` does), nor "
        "whether a source has grown."
    )
    SOURCE_UNSEEN = "Whether a source has grown was not looked at."
    ASSUMED = (
        "Reserved and not settled: {assumed}. It counts as spent, since a call that was cut off "
        "may have been paid."
    )
    BEGUN_AFRESH = (
        "The run was begun afresh {times:time} (fresh=True, on_config_change='restart', or reset): "
        "what was confirmed before that is in the archive and is not continued."
    )
    AGAIN_GOES_ON = (
        "Generation {generation} began from generation {base} (again=True) and is not complete: "
        "every start goes on with it. What is known of an item is read from generation {base}."
    )
    AGAIN_COMPLETE = (
        "Generation {generation} began from generation {base} (again=True), with {counts:raw}: "
        "`trio-ckpt changes` lists them."
    )
    AGAIN_NEXT = "With again=True a start begins generation {next} from this one."
    NO_CONFIG = "No config was given, so a start compares none."
    CONFIG = (
        "A start compares its config with that of session {last.number:raw} (digest {digest}), "
        "value by value: white space and the order of keys never count."
    )
    CONFIG_CHANGED = "{field:quoted} was changed by {sessions:session}."
    CONFIG_CHANGES_OFTEN = (
        "A field that is another one on every start (a date, a host) is named in exclude=, or in "
        "tunable= if its changes are to be logged."
    )
    PHASE_COMPLETE = "Phase {phase:quoted} is complete: phase.complete is true on a start."
    PHASE_PASSES_OVER = (
        "But there are streams with work left: a start passes them over where they are in a block "
        "with `if not phase.complete`."
    )
    PHASE_INCOMPLETE = "Phase {phase:quoted} is not complete: a start goes through it again."
    OUTPUTS_COMPARED = (
        "A start looks at the {files:confirmed file} below {last.output_dir} first; what is "
        "missing or altered is re-queued. Where very many or a whole append file are missing it "
        "refuses (OutputsMissingError), unless redo_missing=True. `trio-ckpt verify` says what is "
        "wrong."
    )

    # Its owner, and its last session.
    OWNED = (
        "Process {owner.pid:raw} on {owner.host} has it open since {since:moment}: a second start "
        "is refused (RunLockedError) until that process ends or is stopped. What is said below "
        "holds for the start after that."
    )
    OWNER_SILENT = (
        "It has saved nothing for {idle_s:duration}, but it is alive: its log, or show_progress in "
        "the program, says what it waits for. Nothing in the store needs repair; stop it and start "
        "it again if it hangs."
    )
    OWNER_ACTIVE = "It saved last {idle_s:duration} ago."
    NO_BATCH_OPEN = "It has no batch open at this moment."
    BATCHES_OPEN = "{open:batch} {open:is|are} open at this moment, the oldest first: {batches}."
    NO_SESSION = "It has had no session, and no process has it open."
    SESSION_KILLED = (
        "Session {last.number:raw} (process {last.pid:raw} on {last.host}, begun "
        "{last.began:moment}) was killed: it left no word of its end. Nothing is to be done first: "
        "its lock went with the process, and no file has to be deleted. What was confirmed stands; "
        "the batches that were open then run again."
    )
    SESSION_ENDED = (
        "Session {last.number:raw} (process {last.pid:raw} on {last.host}, begun "
        "{last.began:moment}) {last.how}{at}. No process has the run open: a start is free to."
    )

    SESSION_LIMITED = (
        "Session {last.number:raw} (process {last.pid:raw} on {last.host}, begun "
        "{last.began:moment}) stopped by itself{at}, by its {last.reason}. No process has the "
        "run open: a start is free to, and hands out nothing while a limit is exceeded."
    )

    SESSION_DEFERRED = (
        "Session {last.number:raw} (process {last.pid:raw} on {last.host}, begun "
        "{last.began:moment}) stopped by itself{at}, by its {last.reason}. No process has the "
        "run open: a start is free to, and hands out nothing of that before {last.next_due:moment}."
    )

    # What a start needs and would not find, and what went wrong.
    STATE_LOST = (
        "Stream {name} cannot go on, because its state{after} is not whole: {why:message}. A start "
        "refuses it (StoreDamagedError). Restore the store from a copy; or open the stream with "
        "recover=True, which goes back to the newest state that is whole, as `{verify:raw} --full "
        "--repair` does."
    )
    MORE_STATES_LOST = "The states of {more:more stream} are lost."
    FOLDER_LOST = (
        "The output folder {folder} is not there; if it was moved, give output_dir= its new place."
    )
    FILE_LOST = "Stream {name}, batch {index}, file {path}: {why}. A start re-queues the batch."
    LINES_LOST = (
        "Stream {name}, append file {path}: {why}. A start goes back to before the lines that are "
        "missing, or refuses if all are."
    )
    MORE_FILES_LOST = "{more:more file} {more:is|are} missing: `{verify:raw}` lists them."
    TROUBLE = "Stream {name}, {at:moment}: {text:message}. Work went on."
    MORE_TROUBLES = "{more:more such note} of late: see the history."

    # A stream, or many alike.
    FAILED_FOR_GOOD = (
        "{subject} failed for good ({error}): a start refuses {n:it|them} (StreamFailedError) "
        "unless retry_failed=True or `{retry:raw}` is given first{named}."
    )
    CONFIRMED_STAY = "Its {done:confirmed batch} {done:stays|stay}."
    FAILED = (
        "{subject} failed ({error}); that may be tried again: a start goes on {where}, with "
        "{done:batch} confirmed{named}."
    )
    FIRST_OPEN = "{subject} goes on {where}, because none is confirmed yet{has}."
    SECOND_OPEN = "{subject} goes on {where}, because the one before it is done{has}."
    REST_OPEN = "{subject} goes on {where}, because all {done} before it are confirmed{has}."
    HOLE_OPEN = (
        "{subject} goes on {where}, because {done:batch} {done:is|are} confirmed, but not {holes}: "
        "they were re-queued, later ones were done first, or a range left them out{has}."
    )
    ONLY_END_OPEN = (
        "{subject} has every batch done that is known of ({done} confirmed): a start only finds "
        "out that batch {at} is none."
    )
    LEFT = "{left} {left:is|are} left."
    LEFT_UNKNOWN = "How many are left is not known."
    SAVES = "It skips what is confirmed{saves}."
    DEFERRED = (
        "{deferred:batch} {deferred:is|are} deferred: a start does not hand {deferred:it|them} out "
        "before {deferred:it is|they are} due, the first at {due:moment}; `{retry:raw}` puts "
        "{deferred:it|them} back now."
    )
    CODE_CHANGED = (
        "The code of {function} changed in session {since:raw}; {old:batch} {old:is|are} of the "
        "old ({versions}): `{retry:raw} --code DIGEST` re-queues them."
    )
    BATCH_FAILED = "Batch {index} failed {attempts:time} ({error}) and is tried again."
    MORE_BATCHES_FAILED = "So did {more:other}."
    MANY_GO_ON = (
        "{subject} go on where they were left: {done:batch} confirmed{saves}; {left} ({places})."
    )
    MANY_HAVE_HOLES = "{with_holes} of them have holes, which are filled."
    MANY_BATCHES_FAILED = "{failing:batch} failed before and {failing:is|are} tried again."
    NOT_BEGUN = "{subject} {n:has|have} not begun: a start begins {n:it|them}{named}."
    COMPLETE = (
        "{subject} {n:is|are} complete: {n:it is|they are} skipped, with {done:batch} "
        "confirmed{saves}{named}."
    )
    GIVEN_UP = (
        "{skipped:batch}{which} {skipped:was|were} given up and {skipped:stays|stay} "
        "skipped{spans} unless retry_failed=True or `{retry:raw}` puts {skipped:it|them} back."
    )
    BUILT_OVER = (
        "{skipped:batch} {skipped:was|were} given up and {skipped:stays|stay} skipped{spans} "
        "unless the stream is rewound to batch {before}, because later ones build on it."
    )
    UNLISTED = "add_streams never named it, unlike others: streams_to_process gives it last."


Clause = tuple[Reason, Mapping[str, object]]
"""A reason, with the fields of its template."""


def lost(name: str, finding: Finding, verify_command: str) -> Clause:
    """What a start does where a state or an output of a stream is gone."""
    index = finding.batch_index
    reason = Reason.LINES_LOST if index is None else Reason.FILE_LOST
    if finding.kind is FindingKind.STATE:
        reason = Reason.STATE_LOST
    return reason, {
        "name": name,
        "index": index,
        "after": "" if index is None else f" after batch {number(index)}",
        "path": finding.path,
        "why": finding.what,
        "verify": verify_command,
    }


class _Template(string.Formatter):
    """Renders the fields of a template; one without a format is printable text, or a number."""

    def format_field(self, value: object, format_spec: str) -> str:
        match value, format_spec:
            case int(), "":
                return number(value)
            case _, "":
                return printable(str(value))
            case _, "raw":
                return str(value)
            case _, "quoted":
                return repr(printable(str(value)))
            case _, "message":
                return message_of(str(value))
            case ((int() | float()), "moment"):
                return moment(value)
            case ((int() | float()), "duration"):
                return duration(value)
            case int(), noun:
                one, _, many = noun.partition("|")
                return (one if value == 1 else many) if many else plural(value, noun)
            case _:
                raise ValueError(f"{value!r} cannot be said as {format_spec!r}")


def render(*clauses: Clause) -> str:
    """Say some reasons in words."""
    template = _Template()
    return " ".join(template.vformat(reason.value, (), fields) for reason, fields in clauses)
