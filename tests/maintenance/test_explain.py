"""What a start would do, in words: every sentence that a user can meet."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

from trio_ckpt._journal.changes import BeganFrom
from trio_ckpt._journal.code import CodeBatches, CodeMark
from trio_ckpt._journal.deferral import Deferral
from trio_ckpt._journal.history import KILLED, RUNNING, SessionView
from trio_ckpt._journal.live_view import LiveToken
from trio_ckpt._journal.progress import FailedAttempt, Progress
from trio_ckpt._journal.record import ErrorInfo, Status
from trio_ckpt._maintenance.explain import (
    Facts,
    Sentence,
    StartAction,
    action_of,
    explain_run,
    holes,
)
from trio_ckpt._maintenance.explain_losses import Losses
from trio_ckpt._maintenance.reasons import Reason, render
from trio_ckpt._util.exact_sum import ExactSum
from trio_ckpt._util.index_set import IndexSet
from trio_ckpt._util.plain import StreamKey, encode_key
from trio_ckpt._util.text import stream_names
from trio_ckpt.abc import Finding, FindingKind, Owner

OLD, NEW = CodeMark("f", "0a", 1), CodeMark("f", "0b", 3)
NOW = datetime(2025, 11, 20, 12, 0, tzinfo=UTC).timestamp()
THEN = NOW - 3_600
FORBIDDEN = ErrorInfo("ForbiddenError", "403", retryable=False, batch_index=3)
SLOW_DOWN = ErrorInfo("RateLimitError", "slow down", retryable=True, batch_index=3)


def some(confirmed: range = range(0), **fields: Any) -> Progress:
    """Progress of a stream; INTERRUPTED if nothing else is said."""
    spent = fields.pop("spent", None)
    if spent is not None:
        fields["spent_confirmed"] = {"cost_usd": ExactSum().plus(spent)}
    values: dict[str, Any] = {"status": Status.INTERRUPTED, "updated_at": NOW - 5, **fields}
    return Progress(sequence=1, confirmed=IndexSet(confirmed), **values)


def session(number: int = 1, how: str = "ended", **fields: Any) -> SessionView:
    ended = None if how in (KILLED, RUNNING) else THEN + 60
    values: dict[str, Any] = {
        "config": {},
        "config_digest": "0123456789abcdef",
        "changes": (),
        "output_dir": None,
        "counts": {},
        "runtime_s": 0.0,
        **fields,
    }
    return SessionView(number, "box", 4711, THEN, ended, how, **values)


def facts_of(parts: dict[StreamKey, Progress], **fields: Any) -> Facts:
    values: dict[str, Any] = {"generation": 0, "sessions": (session(),), "owner": None, **fields}
    return Facts("gh-2025", parts=parts, now=NOW, names=stream_names(parts), **values)


def state_lost(key: StreamKey, index: int, what: str) -> Finding:
    stream, kind = encode_key(key), FindingKind.STATE
    return Finding("a state", what, kind=kind, stream=stream, batch_index=index)


def output_lost(key: StreamKey, index: int | None, path: str, what: str) -> Finding:
    stream, kind = encode_key(key), FindingKind.OUTPUT
    return Finding("a file", what, kind=kind, stream=stream, batch_index=index, path=path)


def said(facts: Facts, about: str, *, every: bool = False) -> list[str]:
    return [s.text for s in explain_run(facts, every=every) if s.about == about]


def said_of(progress: Progress, key: StreamKey = ("org/repo1", "pulls")) -> str:
    """What is said of one stream."""
    (text,) = said(facts_of({key: progress}), "streams")
    return text


# -- the four troubleshooting entries of seed 004 -------------------------------------------------


def test_troubleshooting_a_checkpoint_exists_but_nothing_resumes() -> None:
    """It says what is skipped and where the rest goes on; and that an archive is not used."""
    parts = {
        ("org/repo1", "pulls"): some(range(12), status=Status.COMPLETE, last_index=11, spent=0.25),
        ("org/repo2", "pulls"): some(range(4), last_index=9, spent=0.5),
    }
    assert said(facts_of(parts), "run") == [
        "Run 'gh-2025': 1 of 2 streams complete. A start skips 16 batches that are confirmed "
        "(saves cost_usd 0.75); 6 batches are left."
    ]
    assert said(facts_of(parts), "streams") == [
        "Stream 'org/repo2/pulls' goes on at batch 4, because all 4 before it are confirmed. "
        "6 are left. It skips what is confirmed (saves cost_usd 0.5).",
        "Stream 'org/repo1/pulls' is complete: it is skipped, with 12 batches confirmed "
        "(saves cost_usd 0.25).",
    ]
    assert said(facts_of(parts, generation=2), "archive") == [
        "The run was begun afresh 2 times (fresh=True, on_config_change='restart', or reset): what "
        "was confirmed before that is in the archive and is not continued."
    ]


def test_troubleshooting_config_changed_on_every_run() -> None:
    """It names the fields that keep changing; white space is said not to count."""
    changed = (("started", '"mon"', '"tue"'),)
    sessions = [
        session(1, config={"started": "sun"}),
        session(2, config={"started": "mon"}, changes=changed),
        session(3, config={"started": "tue"}, changes=(*changed, ("model", '"a"', '"b"'))),
    ]
    assert said(facts_of({("a",): some()}, sessions=sessions), "config") == [
        "A start compares its config with that of session 3 (digest 0123456789ab), value by value: "
        "white space and the order of keys never count. 'model' was changed by 1 session. "
        "'started' was changed by 2 sessions. A field that is another one on every start (a date, "
        "a host) is named in exclude=, or in tunable= if its changes are to be logged."
    ]


def test_what_is_lost_is_told_with_what_to_do() -> None:
    losses = Losses(
        states=(state_lost(("train",), 2, "blob 7a15 is missing"),),
        files=(output_lost(("pages",), 1, "1.json", "missing"),),
    )
    facts = facts_of({("train",): some(), ("pages",): some()}, losses=losses)
    assert said(facts, "lost") == [
        "Stream 'train' cannot go on, because its state after batch 2 is not whole: blob 7a15 is "
        "missing. A start refuses it (StoreDamagedError). Restore the store from a copy; or open "
        "the stream with recover=True, which goes back to the newest state that is whole, as "
        "`trio-ckpt verify --full --repair` does.",
        "Stream 'pages', batch 1, file 1.json: missing. A start re-queues the batch.",
    ]


def test_troubleshooting_lock_file_not_released() -> None:
    """After kill -9 nothing is to be done, and that is said."""
    assert said(facts_of({("a",): some()}, sessions=[session(3, KILLED)]), "session") == [
        "Session 3 (process 4711 on box, begun 2025-11-20 11:00:00 UTC) was killed: it left no "
        "word of its end. Nothing is to be done first: its lock went with the process, and no file "
        "has to be deleted. What was confirmed stands; the batches that were open then run again."
    ]


def test_troubleshooting_progress_seems_stuck() -> None:
    """A live owner that saves nothing is told from one that works; neither needs repair."""
    owner = Owner("box", 4711, datetime(2025, 11, 20, 11, 0, tzinfo=UTC))
    stuck = {("a",): some(range(3), updated_at=NOW - 7_200)}
    refused = (
        "Process 4711 on box has it open since 2025-11-20 11:00:00 UTC: a second start is refused "
        "(RunLockedError) until that process ends or is stopped. What is said below holds for the "
        "start after that."
    )
    assert said(facts_of(stuck, owner=owner, sessions=[session(1, RUNNING)]), "owner") == [
        f"{refused} It has saved nothing for 2 h 00 min, but it is alive: its log, or "
        "show_progress in the program, says what it waits for. Nothing in the store needs repair; "
        "stop it and start it again if it hangs."
    ]
    works = {("a",): some(range(3))}
    assert said(facts_of(works, owner=owner), "owner") == [f"{refused} It saved last 5.0 s ago."]


# -- the run --------------------------------------------------------------------------------------


def test_a_run_without_a_batch() -> None:
    assert said(facts_of({}, sessions=()), "run") == [
        "Run 'gh-2025' has saved no batch yet: a start begins it."
    ]
    assert said(facts_of({}, sessions=()), "session") == [
        "It has had no session, and no process has it open."
    ]


def test_a_run_that_is_complete() -> None:
    done = some(range(3), status=Status.COMPLETE)
    assert said(facts_of({("a",): done}), "run") == [
        "Run 'gh-2025' is complete: its stream is. A start skips 3 batches; by the store nothing "
        "is left to do. Whether a source has grown was not looked at."
    ]
    assert said(facts_of({("a",): done, ("b",): done}), "run") == [
        "Run 'gh-2025' is complete: all 2 streams are. A start skips 6 batches; by the store "
        "nothing is left to do. Whether a source has grown was not looked at."
    ]
    for files in ({"outputs": 3}, {"sinks": {"log": 9}}):
        (text,) = said(facts_of({("a",): attrs.evolve(done, **files)}), "run")
        assert text.endswith(
            "Whether the files are what was confirmed was not looked at (`trio-ckpt verify` does), "
            "nor whether a source has "
            "grown."
        )


def test_what_is_left_is_said_to_be_unknown_where_it_is() -> None:
    parts = {("a",): some(range(2), last_index=4), ("b",): some(range(2))}
    (text,) = said(facts_of(parts), "run")
    assert text.endswith("at least 3 batches are left (of 1 stream it is not known how many).")
    (text,) = said(facts_of({("b",): some(range(2))}), "run")
    assert text.endswith("confirmed; how many are left is not known of 1 stream.")


def test_what_was_saved_names_adopted_batches() -> None:
    """What was spent on outputs that were found, not made, is not known."""
    parts = {("a",): some(range(3), spent=2, adopted=IndexSet([1]))}
    (text,) = said(facts_of(parts), "run")
    assert "(saves cost_usd 2, without that of 1 adopted batch);" in text


@pytest.mark.parametrize("how", ["ended", "was stopped", "was cancelled", "ended by ValueError"])
def test_a_session_that_ended(how: str) -> None:
    assert said(facts_of({("a",): some()}, sessions=[session(2, how)]), "session") == [
        f"Session 2 (process 4711 on box, begun 2025-11-20 11:00:00 UTC) {how} at "
        "2025-11-20 11:01:00 UTC. No process has the run open: a start is free to."
    ]


def test_a_session_that_has_reached_a_limit() -> None:
    limited = session(2, "was stopped", reason="limit batches: 9 of 9 batches are done")
    assert said(facts_of({("a",): some()}, sessions=[limited]), "session") == [
        "Session 2 (process 4711 on box, begun 2025-11-20 11:00:00 UTC) stopped by itself at "
        "2025-11-20 11:01:00 UTC, by its limit batches: 9 of 9 batches are done. No process has "
        "the run open: a start is free to, and hands out nothing while a limit is exceeded."
    ]


def test_a_run_without_a_config() -> None:
    assert said(facts_of({("a",): some()}), "config") == [
        "No config was given, so a start compares none."
    ]


def test_phases() -> None:
    parts = {
        ("@phase", "discovery"): some(range(1), status=Status.COMPLETE, started_at=1.0),
        ("@phase", "collection"): some(started_at=2.0),
    }
    assert said(facts_of(parts), "phase") == [
        "Phase 'discovery' is complete: phase.complete is true on a start.",
        "Phase 'collection' is not complete: a start goes through it again.",
    ]
    assert said(facts_of(parts), "streams") == []


def test_a_complete_phase_with_work_left() -> None:
    """`if not phase.complete` would pass that work over: the phase was complete too early."""
    parts = {
        ("@phase", "discovery"): some(range(1), status=Status.COMPLETE, started_at=1.0),
        ("@phase", "collection"): some(range(1), status=Status.COMPLETE, started_at=2.0),
        ("a",): some(range(2), last_index=3),
    }
    assert said(facts_of(parts), "phase") == [
        "Phase 'discovery' is complete: phase.complete is true on a start.",
        "Phase 'collection' is complete: phase.complete is true on a start. But there are streams "
        "with work left: a start passes them over where they are in a block with `if not "
        "phase.complete`.",
    ]
    done = {**parts, ("a",): some(range(2), status=Status.COMPLETE)}
    under_way = {**parts, ("@phase", "collection"): some(started_at=2.0)}
    for others in (done, under_way):
        assert not any("But" in text for text in said(facts_of(others), "phase"))


def test_two_streams_of_one_name_are_told_apart() -> None:
    gone = some(range(1), status=Status.FAILED, error=FORBIDDEN)
    texts = said(facts_of({("a/b", "c"): gone, ("a", "b/c"): gone, (" ",): some()}), "streams")
    assert texts[0].startswith('Stream ["a/b", "c"] failed for good')
    assert """--stream '["a/b", "c"]'`""" in texts[0]
    assert texts[1].startswith('Stream ["a", "b/c"] failed for good')
    assert texts[2].startswith('Stream [" "] goes on')


def test_outputs_are_looked_at_first() -> None:
    facts = facts_of({("a",): some(outputs=3)}, sessions=[session(output_dir="/data")])
    assert said(facts, "outputs") == [
        "A start looks at the 3 confirmed files below /data first; what is missing or altered is "
        "re-queued. Where very many or a whole append file are missing it refuses "
        "(OutputsMissingError), unless redo_missing=True. `trio-ckpt verify` says what is wrong."
    ]


# -- one stream -----------------------------------------------------------------------------------


def test_a_complete_stream_with_batches_given_up() -> None:
    progress = some(range(10), status=Status.COMPLETE, skipped=IndexSet([10, 17, 18]))
    assert said_of(progress) == (
        "Stream 'org/repo1/pulls' is complete: it is skipped, with 10 batches confirmed. "
        "3 batches were given up and stay skipped (10, 17-18) unless retry_failed=True or "
        "`trio-ckpt retry --stream org/repo1/pulls` puts them back."
    )


def test_a_stream_with_holes() -> None:
    progress = some([0, 1, 2, 4, 8, 9], last_index=11)
    assert said_of(progress) == (
        "Stream 'org/repo1/pulls' goes on at batch 3, because 6 batches are confirmed, but not 3, "
        "5-7: they were re-queued, later ones were done first, or a range left them out. "
        "6 are left."
    )


def test_a_stream_that_was_interrupted_before_its_first_batch() -> None:
    assert said_of(some()) == (
        "Stream 'org/repo1/pulls' goes on at batch 0, because none is confirmed yet. How many are "
        "left is not known."
    )


def test_a_stream_goes_on_with_its_state_and_cursor() -> None:
    progress = some(range(1), has_state=True, cursor="abc", first_index=0)
    assert said_of(progress) == (
        "Stream 'org/repo1/pulls' goes on at batch 1, because the one before it is done; it has "
        "its saved state and cursor. How many are left is not known."
    )


def test_a_stream_of_which_only_the_end_is_open() -> None:
    assert said_of(some(range(5), expected=5)) == (
        "Stream 'org/repo1/pulls' has every batch done that is known of (5 confirmed): a start "
        "only finds out that batch 5 is none."
    )


def test_batches_that_failed_are_tried_again() -> None:
    timeout = ErrorInfo("TimeoutError", "timed out")
    failures = {index: FailedAttempt(2, timeout) for index in (2, 3, 4, 5, 6)}
    text = said_of(some(range(2), last_index=9, failures=failures))
    assert text.endswith(
        " 8 are left. Batch 2 failed 2 times (TimeoutError: timed out) and is tried again. "
        "Batch 3 failed 2 times (TimeoutError: timed out) and is tried again. "
        "Batch 4 failed 2 times (TimeoutError: timed out) and is tried again. So did 2 others."
    )


def test_a_stream_that_has_not_begun() -> None:
    progress = Progress(position=0)
    assert said_of(progress) == "Stream 'org/repo1/pulls' has not begun: a start begins it."


def test_a_stream_that_failed_and_may_be_tried_again() -> None:
    assert said_of(some(range(3), status=Status.FAILED, error=SLOW_DOWN)) == (
        "Stream 'org/repo1/pulls' failed (RateLimitError: slow down); that may be tried again: a "
        "start goes on at batch 3, with 3 batches confirmed."
    )


def test_a_stream_that_failed_for_good() -> None:
    assert said_of(some(range(3), status=Status.FAILED, error=FORBIDDEN)) == (
        "Stream 'org/repo1/pulls' failed for good (ForbiddenError: 403): a start refuses it "
        "(StreamFailedError) unless retry_failed=True or `trio-ckpt retry --stream "
        "org/repo1/pulls` is given first. Its 3 confirmed batches stay."
    )


def test_a_stream_that_is_on_no_list() -> None:
    parts = {("a",): Progress(position=0), ("b",): some(range(2))}
    assert said(facts_of(parts), "streams")[0].endswith(
        " add_streams never named it, unlike others: streams_to_process gives it last."
    )


def test_without_a_list_no_stream_is_called_unlisted() -> None:
    assert "list" not in said_of(some(range(2)))


def test_a_name_that_a_shell_would_split_is_quoted() -> None:
    text = said_of(some(status=Status.FAILED, error=FORBIDDEN), ("it's mine", "a b"))
    assert """`trio-ckpt retry --stream 'it'"'"'s mine/a b'`""" in text


def test_text_from_outside_cannot_steer_the_terminal() -> None:
    error = ErrorInfo("Bad\x1b[2J", "\x1b]0;owned\x07\n\u202eno", retryable=False)
    text = said_of(some(status=Status.FAILED, error=error), ("a\u202eb", "[red]"))
    assert text.isprintable()
    assert "[red]" in text


# -- many streams ---------------------------------------------------------------------------------


def many(progress: Progress, count: int = 1_000) -> Facts:
    return facts_of({(f"repo{n}",): attrs.evolve(progress) for n in range(count)})


NAMED = "'repo0', 'repo1', 'repo2' and 997 more"


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (
            some(range(100), status=Status.COMPLETE, spent=0.5, skipped=IndexSet([100])),
            "1,000 streams are complete: they are skipped, with 100,000 batches confirmed "
            f"(saves cost_usd 500) ({NAMED}). 1,000 batches of them were given up and stay "
            "skipped unless retry_failed=True or `trio-ckpt retry` puts them back.",
        ),
        (
            some(range(1, 50), last_index=99, failures={50: FailedAttempt(1, None)}),
            "1,000 streams go on where they were left: 49,000 batches confirmed; 51,000 batches "
            "are left ('repo0' at batch 0, 'repo1' at batch 0, 'repo2' at batch 0 and 997 more). "
            "1,000 of them have holes, which are filled. 1,000 batches failed before and are tried "
            "again.",
        ),
        (Progress(), f"1,000 streams have not begun: a start begins them ({NAMED})."),
        (
            some(range(2), status=Status.FAILED, error=SLOW_DOWN),
            "1,000 streams failed (RateLimitError 1,000); that may be tried again: a start goes on "
            f"with them, with 2,000 batches confirmed ({NAMED}).",
        ),
        (
            some(status=Status.FAILED, error=FORBIDDEN),
            "1,000 streams failed for good (ForbiddenError 1,000): a start refuses them "
            "(StreamFailedError) unless retry_failed=True or `trio-ckpt retry` is given first "
            f"({NAMED}).",
        ),
    ],
    ids=["complete", "interrupted", "pending", "failed", "failed for good"],
)
def test_many_streams_alike_are_summed_up_in_one_sentence(progress: Progress, text: str) -> None:
    assert said(many(progress), "streams") == [text]


def test_each_stream_has_its_own_sentence_if_asked_for() -> None:
    assert len(said(many(some(range(3))), "streams", every=True)) == 1_000


def test_few_streams_alike_have_a_sentence_each() -> None:
    assert len(said(many(some(range(3)), 5), "streams")) == 5
    assert len(said(many(some(range(3)), 6), "streams")) == 1


def test_what_needs_a_word_comes_first_and_every_stream_is_named_once() -> None:
    parts = {
        ("done",): some(range(1), status=Status.COMPLETE),
        ("new",): Progress(),
        ("open",): some(range(1)),
        ("slow",): some(status=Status.FAILED, error=SLOW_DOWN),
        ("gone",): some(status=Status.FAILED, error=FORBIDDEN),
    }
    sentences: Iterator[Sentence] = explain_run(facts_of(parts))
    found = [(s.action, s.streams) for s in sentences if s.about == "streams"]
    assert found == [
        (StartAction.REFUSE, (("gone",),)),
        (StartAction.TRY_AGAIN, (("slow",),)),
        (StartAction.GO_ON, (("open",),)),
        (StartAction.BEGIN, (("new",),)),
        (StartAction.SKIP, (("done",),)),
    ]


def test_every_status_has_an_action() -> None:
    for status in Status:
        assert action_of(Progress(status=status)) in StartAction


def test_holes_are_neither_confirmed_nor_skipped_and_below_the_last() -> None:
    progress = some(range(1, 3), first_index=1, skipped=IndexSet([5, 6, 9]))
    progress.confirmed.add(7)
    assert holes(progress) == [(3, 5), (8, 9)]
    assert holes(some(range(3))) == []
    assert holes(some()) == []


# -- the reasons ----------------------------------------------------------------------------------


def test_every_reason_has_the_fields_that_its_template_names() -> None:
    owner = Owner("box", 1, datetime(2025, 11, 20, 11, 0, tzinfo=UTC))
    done, failure = some(range(3), status=Status.COMPLETE), FailedAttempt(1, None)
    gone = some(status=Status.FAILED, error=FORBIDDEN)
    key = ("a",)
    one_each = {
        ("done",): attrs.evolve(done, skipped=IndexSet([3])),
        ("built",): some([0, 1, 3], skipped=IndexSet([2]), has_state=True, position=0),
        ("new",): Progress(),
        ("first",): some(last_index=9),
        ("second",): some(range(1), spent=1),
        ("rest",): some(range(2), failures=dict.fromkeys(range(2, 7), failure)),
        ("hole",): some([0, 2]),
        ("end",): some(range(5), expected=5),
        ("slow",): some(status=Status.FAILED, error=SLOW_DOWN),
        ("gone",): gone,
        ("@phase", "early"): done,
    }
    lost = Losses(
        states=(state_lost(key, 2, "gone"),) * 9,
        files=tuple(output_lost(key, index, "p", "gone") for index in (None, *range(8))),
        folder="/data",
    )
    changes = (("started", "1", "2"),)
    changed = [session(n, config={"started": n}, changes=changes) for n in (1, 2)]
    every: list[Facts] = [
        facts_of(one_each, generation=2, sessions=changed),
        facts_of({**one_each, ("@phase", "late"): some()}, sessions=[session(1, KILLED)]),
        facts_of({key: attrs.evolve(done, outputs=1)}, sessions=[session(output_dir="/data")]),
        facts_of({key: done}, losses=lost, owner=owner, pending_total=0),
        facts_of(
            {key: some(updated_at=THEN)},
            owner=owner,
            pending_total=1,
            pending=[LiveToken(key, 1, "pending", NOW - 1)],
        ),
        facts_of({key: some()}, troubles=[(key, NOW, "odd")] * 9, sessions=()),
        facts_of({key: some()}, sessions=[session(1, "was stopped", reason="limit batches: 9")]),
        facts_of(
            {key: some(deferred={3: Deferral(THEN, NOW)})},
            sessions=[session(1, "was stopped", reason="deferred work: 1 batch", next_due=NOW)],
        ),
        facts_of({key: some(code=NEW, old_code=(CodeBatches(OLD, IndexSet([1])),))}),
        facts_of({}, paused="since noon, by ann"),
        facts_of({key: some()}, generation=2, began_from=BeganFrom(1)),
        facts_of(
            {key: done}, generation=2, began_from=BeganFrom(1, 5, {"new": 1}), may_begin_next=True
        ),
        facts_of({key: some(reserved={"cost_usd": ExactSum().plus(1)})}),
        many(attrs.evolve(done, skipped=IndexSet([3]))),
        many(some([0, 2], last_index=9, failures={1: failure})),
    ]
    sentences = [sentence for facts in every for sentence in explain_run(facts)]
    assert all(sentence.text.isprintable() for sentence in sentences)
    found = {reason for sentence in sentences for reason, _ in sentence.clauses}
    assert set(Reason) - found == set()


def test_a_field_that_cannot_be_said_is_an_error() -> None:
    with pytest.raises(ValueError, match="'x' cannot be said as 'moment'"):
        render((Reason.TROUBLE, {"name": "s", "at": "x", "text": ""}))


def test_an_open_batch_that_waits_says_until_when() -> None:
    key, owner = ("s",), Owner("vm", 1, datetime(2025, 11, 20, 11, 0, tzinfo=UTC))
    tokens = [
        LiveToken(key, 3, "pending", NOW - 90, NOW - 90, NOW + 30),
        LiveToken(key, 4, "pending", NOW - 5),
    ]
    facts = facts_of({key: some(updated_at=THEN)}, owner=owner, pending_total=2, pending=tokens)
    text = " ".join(sentence.text for sentence in explain_run(facts))
    assert (
        "2 batches are open at this moment, the oldest first: 's' batch 3 for 1 min 30 s (failed, "
        "waits for its next attempt until 2025-11-20 12:00:30 UTC), 's' batch 4 for 5.0 s."
    ) in text


def test_one_batch_that_is_confirmed_has_a_verb_of_its_own() -> None:
    text = " ".join(one.text for one in explain_run(facts_of({("s",): some(range(1))})))
    assert "A start skips 1 batch that is confirmed;" in text
