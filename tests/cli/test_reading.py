"""The commands that only read: what they say, and that they change nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.tools import (
    T0,
    Terminal,
    batch,
    batches,
    complete,
    ended,
    failed,
    make_damaged,
    make_run,
    session,
)
from trio_ckpt._journal.record import ErrorInfo, Opened, Record, RecordKind
from trio_ckpt.cli._explain import KINDS
from trio_ckpt.stores._local.locks import lock_run

READING = ["ls", "show", "watch", "explain", "history", "verify"]
OF_A_RUN = READING[1:]


def squeezed(lines: list[str]) -> list[str]:
    """Columns are as wide as what is in them; what is in them is the point."""
    return [re.sub(r"  +", "  ", line).strip() for line in lines]


# -- ls --------------------------------------------------------------------------------------------


def test_ls_says_where_every_run_stands(run: Terminal, gh: Path) -> None:
    make_run(gh, "another", {("a",): complete(3)}, [session()])
    said = run("ls", gh)
    assert said.code == 0
    assert [re.sub(r"\d+ d \d+ h ago", "AGO", line) for line in squeezed(said.lines)] == [
        f"store sqlite:{gh}",
        "",
        "run  status  streams  done  left  skipped  last saved  session",
        "another  complete  1 complete  3  0  0  AGO  1 was killed",
        "gh-2025  interrupted  1 pending, 2 complete, 2 failed, 1 interrupted  17  unknown  1  "
        "AGO  1 ended",
    ]


def test_ls_of_a_store_without_runs(run: Terminal, store: Path) -> None:
    make_run(store, "run", {})
    assert run("prune", store, "run", "--keep", 0, "--yes").code == 0
    said = run("ls", store)
    assert (said.code, said.out) == (0, f"sqlite:{store} has no runs yet\n")


def test_ls_as_json(run: Terminal, gh: Path) -> None:
    said = run("ls", gh, "--json")
    assert said.json == {
        "store": f"sqlite:{gh}",
        "runs": [
            {
                "run": "gh-2025",
                "status": "interrupted",
                "generation": 0,
                "running": False,
                "owner": None,
                "streams": {
                    "pending": 1,
                    "in_progress": 0,
                    "complete": 2,
                    "failed": 2,
                    "interrupted": 1,
                },
                "partitions": None,
                "batches": {
                    "confirmed": 17,
                    "skipped": 1,
                    "failing": 0,
                    "deferred": 0,
                    "left": None,
                    "adopted": 0,
                },
                "last_activity": "2025-11-20T12:01:00+00:00",
                "session": {
                    "number": 1,
                    "host": "box",
                    "pid": 4711,
                    "began": "2025-11-20T12:00:00+00:00",
                    "ended": "2025-11-20T12:01:00+00:00",
                    "how": "ended",
                    "reason": None,
                    "next_due": None,
                },
                "exit_code": 75,
            }
        ],
    }


@pytest.mark.parametrize("kind", ["sqlite", "json"])
def test_ls_shows_the_other_runs_where_one_cannot_be_read(
    run: Terminal, store: Path, kind: str
) -> None:
    url = f"{kind}:{store}"
    make_run(url, "good", {("a",): complete(3)})
    make_damaged(url, "bad")
    said = run("ls", url)
    assert said.code == 6
    assert said.lines[3].startswith("good  complete  1 complete")
    assert said.lines[4].startswith("run 'bad' cannot be read: ")
    bad, good = run("ls", url, "--json").json["runs"]
    assert (bad["run"], bad["error"]["type"], bad["error"]["exit_code"]) == (
        "bad",
        "StoreDamagedError",
        6,
    )
    assert good["batches"]["confirmed"] == 3


@pytest.mark.parametrize("command", READING)
def test_a_plain_folder_is_the_store_that_is_in_it(
    run: Terminal, store: Path, command: str
) -> None:
    make_run(f"json:{store}", "run", {("a",): complete(1)})
    said = run(command, store, "--json")
    assert (said.code, said.err) == (0, "")
    wrong = run(command, f"sqlite:{store}")
    assert wrong.code == 6
    assert wrong.err.endswith(f"it is a json store: json:{store}\n")


# -- show ------------------------------------------------------------------------------------------


def test_show_keeps_session_and_total_produced_and_spent_apart(run: Terminal, gh: Path) -> None:
    said = run("show", gh, "gh-2025")
    assert squeezed(said.lines) == [
        f"run  gh-2025 in sqlite:{gh}",
        "status  interrupted; session 1 ended",
        "runtime  1 min 00 s in 1 session, without downtime",
        "streams  1 pending, 2 complete, 2 failed, 1 interrupted",
        "total  17 batches confirmed, 1 skipped, 0 failing, unknown left",
        "total produced  records 170",
        "total spent  cost_usd 1.75",
        "spent on confirmed batches  cost_usd 1.75 (what resuming saves)",
        "mean per confirmed batch  cost_usd 0.1029",
        "last session  25 batches confirmed, 0 skipped; produced records 250; spent cost_usd 0.5",
        "last error  org/repo2/pulls: ForbiddenError: 403: not yours (batch 3); for good",
        "",
        "group  status  streams  done  left  skipped  records  spent",
        "org/repo4  pending  1 pending  0  unknown  0  0",
        "org/repo1  interrupted  1 complete, 1 interrupted  8  6  0  80  cost_usd 1",
        "org/repo2  failed  2 failed  5  unknown  0  50  cost_usd 0.75",
        "org/repo3  complete  1 complete  4  0  1  40",
        "",
        "stream  status  done  left  skipped  records  spent  error",
        "org/repo2/pulls  failed  3  0  0  30  cost_usd 0.75  "
        "ForbiddenError: 403: not yours (batch 3); for good",
        "org/repo2/issues  failed  2  unknown  0  20  "
        "RateLimitError: slow down (batch 3); may be tried again",
        "org/repo1/issues  interrupted  4  6  0  40",
        "org/repo4/pulls  pending  0  unknown  0  0",
        "org/repo1/pulls  complete  4  0  0  40  cost_usd 1",
        "org/repo3/pulls  complete  4  0  1  40",
    ]


def test_show_of_one_stream_tells_more_of_it(run: Terminal, store: Path) -> None:
    streams = {
        ("a",): [
            *batches(2),
            Record(kind=RecordKind.FINISH, at=T0 + 20, metadata={"model": "small"}),
        ],
        ("b",): batches(1),
    }
    make_run(store, "run", streams, [session()])
    said = run("show", store, "--stream", "a")
    lines = squeezed(said.lines)
    assert "total  2 batches confirmed, 0 skipped, 0 failing, 0 left" in lines
    assert lines[-2:] == ["runtime of the stream  15 s, without downtime", "metadata  model small"]
    assert not any(line.startswith("last session") for line in lines)  # it is not of this stream


def test_show_says_what_is_not_known_of_adopted_batches(run: Terminal, store: Path) -> None:
    records = [*batches(2, spent={"cost_usd": 1.0}), batch(2, adopted=True, records=0)]
    make_run(store, "run", {("a",): records}, [session()])
    lines = squeezed(run("show", store).lines)
    assert "total produced  records 20 (without those of 1 adopted batch)" in lines
    assert (
        "spent on confirmed batches  cost_usd 2 (what resuming saves) "
        "(without those of 1 adopted batch)" in lines
    )
    assert "mean per confirmed batch  cost_usd 1" in lines


def test_show_says_phases(run: Terminal, store: Path) -> None:
    streams = {
        ("@phase", "discovery"): complete(1),
        ("@phase", "collection"): [batch(0, at=T0 + 99)],
        ("a",): batches(1),
    }
    make_run(store, "run", streams, [session()])
    assert "phases  discovery complete, collection interrupted" in squeezed(
        run("show", store).lines
    )
    document = run("show", store, "--json").json
    assert document["phase"] == "collection"
    assert document["phases"] == {"discovery": "complete", "collection": "interrupted"}
    assert [entry["stream"] for entry in document["streams"]] == [["a"]]


def test_show_of_a_batch_that_failed_and_may_run_again(run: Terminal, store: Path) -> None:
    attempt = Record(
        kind=RecordKind.ATTEMPT, at=T0 + 30, index=2, attempts=2, error=ErrorInfo("E", "no")
    )
    make_run(store, "run", {("a",): [*batches(2), attempt]}, [session()])
    assert squeezed(run("show", store).lines)[-3].endswith("E: no (batch 2); may be tried again")
    (stream,) = run("show", store, "--json").json["streams"]
    assert stream["failures"] == {
        "2": {
            "attempts": 2,
            "error": {"type": "E", "message": "no", "retryable": True, "batch_index": None},
        }
    }


def test_show_as_json_has_what_scripts_need(run: Terminal, gh: Path) -> None:
    document = run("show", gh, "--stream", "org/repo1", "--json").json
    assert document["only"] == [["org/repo1", "pulls"], ["org/repo1", "issues"]]
    assert document["runtime_s"] == 60.0
    assert document["total"]["batches"]["confirmed"] == 8
    assert document["total"]["mean_spent_per_confirmed_batch"] == {"cost_usd": 0.125}
    assert document["last_session"]["spent"] == {"cost_usd": 0.5}
    issues = document["streams"][1]
    assert issues["confirmed"] == [[0, 2], [5, 5]]
    assert issues["next"] == 3
    assert issues["listed"] is False
    assert issues["expected"] == 10


def test_a_table_of_many_streams_is_cut_and_says_so(run: Terminal, store: Path) -> None:
    many = {(f"repo{n:03}",): complete(1) for n in range(100)}
    bad = {("zz",): [*batches(1), failed("403", retryable=False)]}
    make_run(store, "run", {**many, **bad}, [session()])
    lines = run("show", store).lines
    assert lines[-1] == "and 81 more streams; --all shows them"
    assert any(line.startswith("zz ") for line in lines)  # what went wrong is never cut away
    every = run("show", store, "--all").lines
    assert sum(line.startswith("repo") for line in every) == 100


# -- while it is running, and after ----------------------------------------------------------------


@pytest.mark.parametrize("command", [name for name in READING if name != "watch"])
def test_reading_works_while_the_run_is_running_and_says_who_owns_it(
    run: Terminal, gh: Path, command: str
) -> None:
    lock = lock_run(gh, "gh-2025")
    try:
        said = run(command, gh)
        document = run(command, gh, "--json").json
    finally:
        lock.release()
    assert said.code == 0
    if command in ("ls", "show", "explain"):
        assert re.search(r"process \d+ on \S+|Process \d+ on \S+ has it open since", said.out)
        owner = document["runs"][0]["owner"] if command == "ls" else document["owner"]
        assert set(owner) == {"host", "pid", "since"}


def test_show_of_a_running_run_tells_which_streams_are_open(run: Terminal, store: Path) -> None:
    before = batch(0, opened=Opened(T0 - 600, 0))  # in a session before this one
    streams = {("old",): [before], ("now",): batches(2)}
    make_run(store, "run", streams, [session()])
    lock = lock_run(store, "run")
    try:
        lines = squeezed(run("show", store).lines)
    finally:
        lock.release()
    assert lines[1].startswith("status  in progress; session 1 is running since ")
    assert "last session  is running: its share is in the total, and told apart when it ends" in (
        lines
    )
    assert "now  in progress  2  unknown  0  20" in lines
    assert "old  interrupted  1  unknown  0  10" in lines


@pytest.mark.parametrize("command", READING)
def test_reading_leaves_every_byte_of_the_store_as_it_was(
    run: Terminal, gh: Path, command: str
) -> None:
    def content() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in gh.rglob("*") if p.is_file()}

    before = content()
    run(command, gh)
    assert content() == before


@pytest.mark.parametrize("command", READING)
def test_reading_never_makes_a_store(run: Terminal, store: Path, command: str) -> None:
    said = run(command, store)
    assert said.code == 6
    assert said.err == f"trio-ckpt: there is no store at {store}\n"
    assert said.out == ""
    assert not store.exists()


@pytest.mark.parametrize("command", OF_A_RUN)
def test_a_run_that_is_not_there(run: Terminal, gh: Path, command: str) -> None:
    said = run(command, gh, "gh-2024")
    assert said.code == 4
    assert said.err == f"trio-ckpt: sqlite:{gh} has no run 'gh-2024'; it has 'gh-2025'\n"


@pytest.mark.parametrize("command", OF_A_RUN)
def test_the_run_may_be_left_out_where_there_is_one(run: Terminal, gh: Path, command: str) -> None:
    assert run(command, gh, "--json").json["run"] == "gh-2025"
    make_run(gh, "another", {})
    said = run(command, gh)
    assert said.code == 2
    assert said.err == (
        f"trio-ckpt: sqlite:{gh} has several runs, name one: 'another', 'gh-2025'\n"
    )


# -- which streams ---------------------------------------------------------------------------------


def shown(run: Terminal, store: Path, name: str) -> list[list[str]]:
    document = run("show", store, "--stream", name, "--json").json
    return [entry["stream"] for entry in document["streams"]]


def test_a_stream_is_named_as_messages_name_it(run: Terminal, gh: Path) -> None:
    assert shown(run, gh, "org/repo1/pulls") == [["org/repo1", "pulls"]]
    assert shown(run, gh, "org/repo1") == [["org/repo1", "pulls"], ["org/repo1", "issues"]]
    assert shown(run, gh, '["org/repo1", "pulls"]') == [["org/repo1", "pulls"]]
    assert shown(run, gh, '["org/repo1"]') == [["org/repo1", "pulls"], ["org/repo1", "issues"]]


def test_two_streams_of_one_name_are_told_apart(run: Terminal, store: Path) -> None:
    streams = {("a/b", "c"): batches(1), ("a", "b/c"): batches(1), ("[x",): batches(1)}
    make_run(store, "run", streams)
    assert {line.split("  ")[0] for line in run("show", store).lines[-3:]} == {
        '["a/b", "c"]',
        '["a", "b/c"]',
        "[x",
    }
    text = run("explain", store, "--stream", '["a", "b/c"]').out
    assert '- Stream ["a", "b/c"] goes on' in text
    title = run("history", store, "--stream", '["a", "b/c"]').lines[0]
    assert title.startswith('stream ["a", "b/c"] of run')
    said = run("show", store, "--stream", "a/b/c")
    assert said.code == 2
    assert said.err == (
        "trio-ckpt: 'a/b/c' is the name of more than one: write --stream "
        """'["a/b", "c"]' or '["a", "b/c"]'\n"""
    )
    assert shown(run, store, '["a", "b/c"]') == [["a", "b/c"]]
    assert shown(run, store, "[x") == [["[x"]]  # no JSON, but a name


def test_a_name_that_is_blank_is_seen(run: Terminal, store: Path) -> None:
    make_run(store, "run", {(" ",): batches(1)})
    assert squeezed(run("show", store).lines)[-3].startswith('[" "]  interrupted  1')
    assert shown(run, store, '[" "]') == [[" "]]


def test_two_groups_of_one_name_are_told_apart(run: Terminal, store: Path) -> None:
    make_run(store, "run", {("a/b", "c"): batches(1), ("a", "b", "d"): batches(1)})
    said = run("show", store, "--stream", "a/b")
    assert said.code == 2
    assert """write --stream '["a/b"]' or '["a", "b"]'""" in said.err
    assert shown(run, store, '["a", "b"]') == [["a", "b", "d"]]


def test_a_stream_that_is_not_there(run: Terminal, gh: Path) -> None:
    said = run("explain", gh, "--stream", "org/repo1/pull")
    assert said.code == 4
    assert said.err.startswith(
        "trio-ckpt: the run has no stream or group 'org/repo1/pull'; it has 'org/repo1/pulls'"
    )
    make_run(gh.with_name("none.ckpt"), "run", {})
    said = run("show", gh.with_name("none.ckpt"), "--stream", "a")
    assert said.err == "trio-ckpt: the run has no stream or group 'a'; it has none\n"


# -- explain ---------------------------------------------------------------------------------------


def test_explain_in_words(run: Terminal, gh: Path) -> None:
    retry = f"trio-ckpt retry sqlite:{gh} gh-2025"
    never = " add_streams never named it, unlike others: streams_to_process gives it last."
    assert run("explain", gh).lines == [
        "Run 'gh-2025': 2 of 6 streams complete. A start skips 17 batches that are confirmed "
        "(saves cost_usd 1.75); at least 6 batches are left (of 2 streams it is not known how "
        "many).",
        "Session 1 (process 4711 on box, begun 2025-11-20 12:00:00 UTC) ended at 2025-11-20 "
        "12:01:00 UTC. No process has the run open: a start is free to.",
        "A start compares its config with that of session 1 (digest 8b7ca09a1e75), value by "
        "value: white space and the order of keys never count.",
        "",
        "- Stream 'org/repo2/pulls' failed for good (ForbiddenError: 403: not yours): a start "
        f"refuses it (StreamFailedError) unless retry_failed=True or `{retry} --stream "
        "org/repo2/pulls` is given first. Its 3 confirmed batches stay." + never,
        "- Stream 'org/repo2/issues' failed (RateLimitError: slow down); that may be tried "
        "again: a start goes on at batch 2, with 2 batches confirmed." + never,
        "- Stream 'org/repo1/issues' goes on at batch 3, because 4 batches are confirmed, but "
        "not 3-4: they were re-queued, later ones were done first, or a range left them "
        "out. 6 are left." + never,
        "- Stream 'org/repo4/pulls' has not begun: a start begins it.",
        "- Stream 'org/repo1/pulls' is complete: it is skipped, with 4 batches confirmed (saves "
        "cost_usd 1)." + never,
        "- Stream 'org/repo3/pulls' is complete: it is skipped, with 4 batches confirmed. 1 batch "
        "was given up and stays skipped (4) unless retry_failed=True or "
        f"`{retry} --stream org/repo3/pulls` puts it back." + never,
    ]


def test_explain_as_json(run: Terminal, gh: Path) -> None:
    document = run("explain", gh, "--stream", "org/repo2/pulls", "--json").json
    assert [entry["about"] for entry in document["sentences"]] == [
        "run",
        "session",
        "config",
        "streams",
    ]
    last = document["sentences"][-1]
    assert (last["action"], last["streams"]) == ("refuse", [["org/repo2", "pulls"]])


def test_the_command_that_explain_names_does_what_it_says(run: Terminal, gh: Path) -> None:
    text = run("explain", gh, "--stream", "org/repo2/pulls").out
    (command,) = re.findall(r"`trio-ckpt (retry \S+ \S+ --stream \S+)`", text)
    assert run(*command.split(), "--yes").code == 0
    assert "failed for good" not in run("explain", gh, "--stream", "org/repo2/pulls").out


# -- history ---------------------------------------------------------------------------------------


def test_history_tells_the_sessions(run: Terminal, store: Path) -> None:
    first = session(config={"model": "small"})
    second = session(2, config={"model": "large"}, changes=[("model", '"small"', '"large"')])
    counts = {"batches": 3, "records": 30, "totals": {"pages": 3}, "spent": {"cost_usd": 0.5}}
    sessions = [first, ended(first, "was stopped", **counts), second]
    make_run(store, "run", {("a",): batches(3)}, sessions)
    said = run("history", store)
    assert squeezed(said.lines) == [
        f"run 'run' in sqlite:{store}",
        "",
        "session  began  took  how it ended  process  config  what it did",
        "2  2025-11-20 13:00:00 UTC  was killed  4711 on box  b28c63274a85  unknown",
        "1  2025-11-20 12:00:00 UTC  1 min 00 s  was stopped  4711 on box  8b7ca09a1e75  "
        "3 batches confirmed, 0 skipped; produced pages 3, records 30; spent cost_usd 0.5",
        'session 2: config model: "small" -> "large"',
    ]
    document = run("history", store, "--limit", 1, "--json").json
    assert document["more"] == 1
    assert document["sessions"][0]["config"] == {"model": "large"}
    assert document["sessions"][0]["changes"] == [["model", '"small"', '"large"']]
    assert run("history", store, "--limit", 1).lines[4] == (
        "and 1 more session; --limit shows more"
    )


def test_history_of_a_run_without_sessions(run: Terminal, store: Path) -> None:
    make_run(store, "run", {})
    assert run("history", store).out == "run 'run' has had no session\n"


def test_history_tells_the_checkpoints_of_a_stream(run: Terminal, store: Path) -> None:
    timeout = ErrorInfo("TimeoutError", "timed out")
    records = [
        *batches(2),
        Record(kind=RecordKind.ATTEMPT, at=T0 + 20, index=2, attempts=2, error=timeout),
        Record(kind=RecordKind.REDO, at=T0 + 30, steps=(1, 1), metadata={"reason": "a typo"}),
        batch(7, adopted=True, records=0, at=T0 + 40),
    ]
    make_run(store, "run", {("a",): records})
    assert squeezed(run("history", store, "--stream", "a").lines) == [
        f"stream 'a' of run 'run' in sqlite:{store}",
        "",
        "checkpoint  saved  what  batch  attempts  records  files  why",
        "5  2025-11-20 12:00:40 UTC  adopted  7  1  0",
        "4  2025-11-20 12:00:30 UTC  re-queued  a typo",
        "3  2025-11-20 12:00:20 UTC  attempt failed  2  2  TimeoutError: timed out; may be tried "
        "again",
        "2  2025-11-20 12:00:11 UTC  confirmed  1  1  10",
        "1  2025-11-20 12:00:10 UTC  confirmed  0  1  10",
    ]
    limited = run("history", store, "--stream", "a", "--limit", 2)
    assert limited.lines[-1] == "and 3 more checkpoints; --limit shows more"
    document = run("history", store, "--stream", "a", "--limit", 2, "--json").json
    assert [entry["kind"] for entry in document["checkpoints"]] == ["batch", "redo"]
    assert document["more"] == 3


def test_history_shows_what_was_pinned(run: Terminal, store: Path) -> None:
    pin = {"label": "best so far", "lineage": "00"}
    records = [
        *batches(2),
        Record(kind=RecordKind.PIN, at=T0 + 20, index=1, metadata=pin),
        Record(kind=RecordKind.UNPIN, at=T0 + 30, metadata={"label": "best so far"}),
    ]
    make_run(store, "run", {("a",): records})
    assert squeezed(run("history", store, "--stream", "a").lines)[3:5] == [
        "4  2025-11-20 12:00:30 UTC  pin taken away  best so far",
        "3  2025-11-20 12:00:20 UTC  state pinned  1  best so far",
    ]


def test_every_kind_of_record_has_a_word() -> None:
    assert set(KINDS) == set(RecordKind)


def test_history_wants_one_stream(run: Terminal, gh: Path) -> None:
    said = run("history", gh, "--stream", "org/repo1")
    assert said.code == 2
    assert said.err == (
        "trio-ckpt: 2 streams are meant, name one with --stream: 'org/repo1/pulls', "
        "'org/repo1/issues'\n"
    )
