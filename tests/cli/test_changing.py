"""The commands that write: they ask, they take the lock, and they do what they say."""

from __future__ import annotations

import hashlib
import io
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

import trio_ckpt
from tests.cli.tools import T0, Terminal, batches, complete, make_damaged, make_run
from tests.outputs.faulty import files_in
from trio_ckpt._journal.record import ErrorInfo, Record, RecordKind
from trio_ckpt._util.index_set import IndexSet
from trio_ckpt.cli._change import parse_batches
from trio_ckpt.stores._local.locks import lock_run

CHANGING: list[tuple[str, list[object], str]] = [
    ("retry", [], "re-queue 1 skipped batch and 2 failed streams of run 'gh-2025'"),
    (
        "retry",
        ["--stream", "org/repo1/pulls", "--batches", "1,3"],
        "re-queue 2 batches of stream 'org/repo1/pulls' of run 'gh-2025' and move their "
        "outputs aside",
    ),
    (
        "reset",
        [],
        "archive run 'gh-2025' with 17 confirmed batches and their outputs, so that it begins "
        "again",
    ),
    (
        "prune",
        ["--keep", 0],
        "remove run 'gh-2025' from the store, its newest generation too",
    ),
]
IDS = ["retry", "redo", "reset", "remove"]


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Typing = Callable[[str], FakeTerminal]


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Typing:
    """A user at a terminal types an answer; returns what the terminal shows."""

    def type_(answer: str) -> FakeTerminal:
        screen = FakeTerminal()
        monkeypatch.setattr("sys.stdin", FakeTerminal(answer))
        monkeypatch.setattr("sys.stderr", screen)
        return screen

    return type_


def saved(run: Terminal, store: Path) -> Any:
    return run("show", store, "gh-2025", "--json").json


# -- asking ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "more", "what"), CHANGING, ids=IDS)
def test_without_a_terminal_they_need_yes(
    run: Terminal, gh: Path, command: str, more: list[object], what: str
) -> None:
    before = saved(run, gh)
    said = run(command, gh, "gh-2025", *more)
    assert said.code == 2
    assert said.err == (f"trio-ckpt: this would {what}; give --yes to do it without being asked\n")
    assert saved(run, gh) == before


@pytest.mark.parametrize(("command", "more", "what"), CHANGING, ids=IDS)
def test_on_a_terminal_they_ask_and_no_changes_nothing(
    run: Terminal, gh: Path, typing: Typing, command: str, more: list[object], what: str
) -> None:
    before = saved(run, gh)
    screen = typing("n\n")
    said = run(command, gh, "gh-2025", *more)
    assert said.code == 7
    assert f"This would {what}. Go on? [y/N]" in screen.getvalue()
    assert screen.getvalue().endswith("trio-ckpt: nothing was changed\n")
    assert saved(run, gh) == before


@pytest.mark.parametrize(("command", "more", "what"), CHANGING, ids=IDS)
def test_on_a_terminal_a_yes_does_it(
    run: Terminal, gh: Path, typing: Typing, command: str, more: list[object], what: str
) -> None:
    typing("y\n")
    assert run(command, gh, "gh-2025", *more).code == 0


def test_ctrl_c_at_the_question_is_no_traceback(run: Terminal, gh: Path, typing: Typing) -> None:
    typing("")  # the end of what is typed
    assert run("reset", gh, "gh-2025").code == 130


# -- the lock -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "more", "what"), CHANGING, ids=IDS)
def test_while_it_is_running_they_are_refused_with_the_owner(
    run: Terminal, gh: Path, command: str, more: list[object], what: str
) -> None:
    lock = lock_run(gh, "gh-2025")
    try:
        owner = saved(run, gh)["owner"]
        said = run(command, gh, "gh-2025", *more, "--yes", "--json")
    finally:
        lock.release()
    assert said.code == 5
    assert said.err == (
        f"trio-ckpt: run 'gh-2025' is open here already: process {owner['pid']} on "
        f"{owner['host']} since {owner['since']}\n"
    )
    error = said.json["error"]
    assert (error["type"], error["exit_code"], error["owner"]) == ("RunLockedError", 5, owner)


# -- retry ----------------------------------------------------------------------------------------


def test_retry_puts_back_what_was_given_up_and_what_failed(run: Terminal, gh: Path) -> None:
    said = run("retry", gh, "gh-2025", "--yes")
    assert (said.code, said.err) == (0, "")
    assert said.out == "1 batch of 3 streams re-queued; start the program to go on\n"
    document = saved(run, gh)
    assert document["total"]["streams"]["failed"] == 0
    assert document["total"]["batches"] == {
        "confirmed": 17,
        "skipped": 0,
        "failing": 0,
        "deferred": 0,
        "left": None,
        "adopted": 0,
    }
    again = run("retry", gh, "gh-2025")  # nothing to ask for
    assert again.code == 0
    why = "nothing was given up or deferred, and no stream has failed"
    assert again.out == f"{why}: nothing to do\n"


def test_retry_of_one_group(run: Terminal, gh: Path) -> None:
    said = run("retry", gh, "gh-2025", "--stream", "org/repo2", "--yes", "--json")
    assert said.json == {
        "store": f"sqlite:{gh}",
        "run": "gh-2025",
        "streams": [["org/repo2", "pulls"], ["org/repo2", "issues"]],
        "batches": 0,
        "built_over": [],
    }
    assert saved(run, gh)["total"]["batches"]["skipped"] == 1


def test_rewind_puts_back_all_after_a_batch(run: Terminal, gh: Path) -> None:
    said = run("rewind", gh, "gh-2025", "--stream", "org/repo1/pulls", "--to", "0", "--yes")
    assert (said.code, said.err) == (0, "")
    assert said.out == (
        "3 batches of stream 'org/repo1/pulls' re-queued; start the program to go on\n"
    )
    stream = run("show", gh, "--stream", "org/repo1/pulls", "--json").json["streams"][0]
    assert stream["confirmed"] == [[0, 0]]
    again = run("rewind", gh, "gh-2025", "--stream", "org/repo1/pulls", "--to", "0", "--json")
    assert again.json["batches"] == 0
    assert (
        "asked for with trio-ckpt rewind" in run("history", gh, "--stream", "org/repo1/pulls").out
    )
    refused = run("rewind", gh, "gh-2025", "--stream", "org/repo1/pulls", "--to", "-1")
    assert refused.code == 2
    assert "all after batch -1, and move their outputs aside; give --yes" in refused.err


def test_retry_of_batches_puts_confirmed_ones_back(run: Terminal, gh: Path) -> None:
    said = run("retry", gh, "gh-2025", "--stream", "org/repo1/pulls", "--batches", "1,2-3", "--yes")
    assert (said.code, said.err) == (0, "")
    assert said.out == (
        "3 batches of stream 'org/repo1/pulls' re-queued; start the program to go on\n"
    )
    stream = run("show", gh, "--stream", "org/repo1/pulls", "--json").json["streams"][0]
    assert stream["confirmed"] == [[0, 0]]
    assert stream["records"] == 10
    assert stream["spent"] == {"cost_usd": 1.0}  # what was spent stays spent
    history = run("history", gh, "--stream", "org/repo1/pulls").out
    assert "asked for with trio-ckpt retry" in history


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1;2", "1,,2", "0-99999999999"])
def test_batches_that_are_none(run: Terminal, gh: Path, text: str) -> None:
    said = run("retry", gh, "gh-2025", "--stream", "org/repo1/pulls", f"--batches={text}", "--yes")
    assert said.code == 2
    assert said.err.startswith("trio-ckpt: --batches")


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("3", [3, 1]),
        ("5-6, 0-1", [0, 2, 3, 2]),
        ("0-1,2-3", [0, 4]),
        ("0-9,2-3,9-11", [0, 12]),
        ("7,7", [7, 1]),
    ],
)
def test_spans_of_batches_are_one_set(text: str, steps: list[int]) -> None:
    assert parse_batches(text) == IndexSet.from_steps(steps)


def test_spans_are_never_counted_out(run: Terminal, gh: Path, monkeypatch: Any) -> None:
    """However many batches are typed: what it costs are the spans."""

    def never(*_: Any) -> None:
        raise AssertionError("an index was touched")

    asked_for: list[int] = []
    contains = IndexSet.__contains__

    def counted(indexes: IndexSet, index: int) -> bool:
        asked_for.append(index)
        return contains(indexes, index)

    for name in ("add", "discard", "__iter__"):
        monkeypatch.setattr(IndexSet, name, never)
    monkeypatch.setattr(IndexSet, "__contains__", counted)
    ask = ("retry", gh, "gh-2025", "--stream", "org/repo1/pulls", "--yes", "--batches")
    said = run(*ask, "0-9999999")
    assert said.code == 2
    assert "stream 'org/repo1/pulls': batches 4-9999999 are neither" in said.err
    said = run(*ask, "0-4999999,5000000-9999999,10000000")  # all of them together
    assert (said.code, said.err) == (
        2,
        "trio-ckpt: --batches: 10,000,001 batches; at most 10,000,000 are re-queued at a time\n",
    )
    assert len(asked_for) < 100  # of those that failed, when the run is read


@pytest.mark.parametrize(
    ("batches", "refused"), [("2-4,7", "batches 3-4, 7 are"), ("2-3", "batch 3 is")]
)
def test_batches_that_are_not_done_are_refused(
    run: Terminal, gh: Path, batches: str, refused: str
) -> None:
    said = run(
        "retry", gh, "gh-2025", "--stream", "org/repo1/issues", "--batches", batches, "--yes"
    )
    assert said.code == 2
    assert said.err == (
        f"trio-ckpt: stream 'org/repo1/issues': {refused} neither confirmed nor skipped: "
        "there is nothing to re-queue\n"
    )


# -- reset and prune ------------------------------------------------------------------------------


def test_reset_archives_and_prune_removes_the_archive(run: Terminal, gh: Path) -> None:
    said = run("reset", gh, "gh-2025", "--yes")
    assert said.out == (
        "run 'gh-2025' is archived as generation 0, with 17 confirmed batches; the next start "
        "begins it again\n"
    )
    document = saved(run, gh)
    assert (document["generation"], document["total"]["batches"]["confirmed"]) == (1, 0)
    assert "1: begun afresh, what was before is in the archive" in run("show", gh).out
    asked = run("prune", gh, "gh-2025", "--keep", 1)
    assert (asked.code, asked.err) == (
        2,
        "trio-ckpt: this would remove up to 1 archived generation of run 'gh-2025'; give --yes to "
        "do it without being asked\n",
    )
    pruned = run("prune", gh, "gh-2025", "--keep", 1, "--yes", "--json").json
    assert pruned["generations"] == 1
    assert pruned["records"] == 25
    for keep in (1, 2, 9):  # nothing to ask for
        again = run("prune", gh, "gh-2025", "--keep", keep)
        newest = "generation" if keep == 1 else "generations"
        assert (again.code, again.out) == (
            0,
            f"run 'gh-2025' has nothing older than its newest {keep} {newest}: nothing to prune\n",
        )
    none = run("prune", gh, "gh-2025", "--keep", 1, "--json").json
    assert (none["generations"], none["records"], none["bytes"]) == (0, 0, 0)
    assert run("prune", gh, "other", "--keep", 1).code == 4


def test_prune_of_everything_removes_the_run(run: Terminal, gh: Path) -> None:
    assert run("prune", gh, "gh-2025", "--keep", 0, "--yes").code == 0
    assert run("ls", gh, "--json").json["runs"] == []


@pytest.mark.parametrize("kind", ["sqlite", "json"])
def test_a_run_that_cannot_be_read_can_be_removed(run: Terminal, store: Path, kind: str) -> None:
    url = f"{kind}:{store}"
    make_damaged(url, "bad")
    assert run("show", url, "bad").code == 6
    said = run("prune", url, "bad", "--keep", 0, "--yes")
    assert (said.code, said.err) == (0, "")
    assert run("ls", url, "--json").json["runs"] == []


# -- verify, export and import --------------------------------------------------------------------


async def write_pages(store: Path, folder: Path) -> list[int]:
    """Write the pages that are left; which they were."""
    done: list[int] = []
    async with (
        trio_ckpt.open_run("run", store=store, output_dir=folder) as run,
        run.open_stream("pages") as stream,
    ):
        async for page in stream.batches(range(5)):
            path = await page.write_text(f"{page.index}.txt", f"page {page.index}")
            page.complete(outputs=[path], records=1)
            done.append(page.index)
    return done


@pytest.fixture
def data(store: Path, tmp_path: Path) -> Path:
    """A run that left files behind, and where."""
    assert trio.run(write_pages, store, tmp_path / "data") == [0, 1, 2, 3, 4]
    return tmp_path / "data"


def test_verify_finds_nothing_where_nothing_is_wrong(
    run: Terminal, store: Path, data: Path
) -> None:
    assert run("verify", store).out == (
        "5 files (30 bytes) checked by size and time, hash where the time differs: all are as "
        "confirmed\n"
    )
    assert run("verify", store, "--sha256").code == 0


def test_verify_lists_every_problem_and_changes_nothing(
    run: Terminal, store: Path, data: Path
) -> None:
    (data / "1.txt").unlink()
    (data / "3.txt").write_text("page X")
    said = run("verify", store, "--sha256")
    assert said.code == 1
    lines = [" ".join(line.split()) for line in said.lines]
    assert lines[0].endswith(
        "checked by sha256: 2 problems; nothing was changed, a start re-queues their batches"
    )
    assert lines[2] == "stream batch file problem"
    assert {line.split()[1] for line in lines[3:]} == {"1", "3"}
    document = run("verify", store, "--sha256", "--json").json
    found = {problem["batch_index"]: problem["path"] for problem in document["problems"]}
    assert found == {1: "1.txt", 3: "3.txt"}
    assert run("show", store, "--json").json["streams"][0]["confirmed"] == [[0, 4]]


def test_verify_of_a_folder_that_is_gone(run: Terminal, store: Path, data: Path) -> None:
    moved = data.with_name("moved")
    data.rename(moved)
    said = run("verify", store)
    assert said.code == 4
    assert said.err == (
        f"trio-ckpt: the output folder {data} is not there; if it was moved, give --output-dir\n"
    )
    assert not data.exists()
    assert run("verify", store, "--output-dir", moved).code == 0


def test_verify_of_a_run_without_files(run: Terminal, gh: Path) -> None:
    assert run("verify", gh).out == "no batch has confirmed a file: nothing to check\n"


def test_export_and_import(run: Terminal, store: Path, data: Path, tmp_path: Path) -> None:
    archive, other = tmp_path / "run.archive", tmp_path / "other.ckpt"
    said = run("export", store, "run", archive)
    assert said.code == 0
    assert said.out.startswith(f"run 'run' is in {archive}: ")
    assert "5 output files" in said.out
    said = run(
        "import", other, archive, "--as", "copy", "--output-dir", tmp_path / "copy", "--json"
    )
    assert (said.json["run_id"], said.json["outputs"]) == ("copy", 5)
    assert (tmp_path / "copy" / "4.txt").read_text() == "page 4"
    digest = hashlib.sha256((data / "4.txt").read_bytes()).hexdigest()
    assert digest == hashlib.sha256((tmp_path / "copy" / "4.txt").read_bytes()).hexdigest()
    assert run("show", other, "copy", "--json").json["total"]["records"] == 5


@pytest.mark.parametrize("command", [["reset"], ["retry", "--batches", "1"]], ids=["reset", "redo"])
def test_a_command_on_a_copy_leaves_the_files_of_the_original(
    run: Terminal, store: Path, data: Path, tmp_path: Path, command: list[str]
) -> None:
    before = files_in(data)
    assert run("export", store, "run", tmp_path / "x").code == 0
    for name, options in (("copy", ["--output-dir", tmp_path / "copy"]), ("bare", [])):
        assert run("import", store, tmp_path / "x", "--as", name, *options).code == 0
        assert run(command[0], store, name, *command[1:], "--yes").code == 0
    assert files_in(data) == before
    assert not (tmp_path / "copy/1.txt").exists()
    assert run("verify", store, "copy").code == 0


@pytest.mark.parametrize("command", [["reset"], ["retry", "--batches", "1"]], ids=["reset", "redo"])
def test_a_folder_that_was_moved_is_named(
    run: Terminal, store: Path, data: Path, command: list[str]
) -> None:
    moved = data.rename(data.with_name("moved"))
    ask = (command[0], store, "run", *command[1:], "--yes", "--output-dir")
    said = run(*ask, data)
    assert (said.code, said.err) == (4, f"trio-ckpt: the output folder {data} is not there\n")
    assert (moved / "1.txt").exists()
    assert run(*ask, moved).code == 0
    assert not (moved / "1.txt").exists()
    assert (moved / ".archive").is_dir()


async def train(store: Path) -> None:
    state = {"weights": np.zeros(90_000)}
    async with (
        trio_ckpt.open_run("run", store=store) as run,
        run.open_stream("train", state=state) as stream,
    ):
        async for batch in stream.batches(range(2)):
            stream.state["weights"] += np.random.default_rng(batch.index).random(90_000)
            batch.complete()


def test_verify_looks_at_saved_states_if_it_is_to_read_all(run: Terminal, store: Path) -> None:
    trio.run(train, store)
    assert run("verify", store, "--json").json["checked_states"] is None
    said = run("verify", store, "--sha256")
    assert said.code == 0
    assert re.search(
        r"^\d saved states \([\d,]+ bytes of arrays\) checked: all are as saved$", said.out, re.M
    )
    document = run("verify", store, "--sha256", "--json").json
    assert document["state_problems"] == []
    blobs = sorted(path for path in (store.parent).rglob("*") if len(path.name) == 64)
    assert blobs
    for path in blobs:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)
    said = run("verify", store, "--sha256")
    assert said.code == 1
    assert "bytes at" in said.out
    problems = run("verify", store, "--sha256", "--json").json["state_problems"]
    assert len(problems) == len(blobs)
    assert {problem["batch_index"] for problem in problems} <= {None, 0, 1}
    assert problems[0]["stream"] == ["train"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "xxhash", None)
        said = run("verify", store, "--sha256")
    assert (said.code, said.err.count("\n")) == (8, 1)
    assert "trio-ckpt[arrays]" in said.err
    blobs[0].unlink()
    assert "missing" in run("verify", store, "--sha256").out


def test_import_refuses_what_is_no_archive(run: Terminal, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"not an archive")
    said = run("import", tmp_path / "s.ckpt", bad)
    assert said.code == 7
    assert said.err.count("\n") == 1
    assert run("import", tmp_path / "s.ckpt", tmp_path / "none").code == 4


def test_export_replaces_no_file_and_makes_no_folder(
    run: Terminal, gh: Path, tmp_path: Path
) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("mine")
    said = run("export", gh, "gh-2025", file)
    assert (said.code, said.err) == (
        7,
        f"trio-ckpt: {file} is there already: choose another name, or remove it first\n",
    )
    assert file.read_text() == "mine"
    said = run("export", gh, "gh-2025", tmp_path / "none" / "x")
    assert said.code == 7
    assert said.err.endswith(f"there is no folder {tmp_path / 'none'}\n")
    assert not (tmp_path / "none").exists()


def test_an_import_that_fails_makes_no_store(run: Terminal, gh: Path, tmp_path: Path) -> None:
    archive, new = tmp_path / "run.archive", tmp_path / "new.ckpt"
    assert run("export", gh, "gh-2025", archive).code == 0
    assert run("import", new, archive, "--as", "../x").code == 2
    assert run("import", new, tmp_path / "none").code == 4
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    assert run("import", new, archive).code == 7
    assert not new.exists()


def test_import_says_how_to_name_it_and_where_the_files_are(
    run: Terminal, store: Path, data: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "run.archive"
    assert run("export", store, "run", archive).code == 0
    said = run("import", store, archive)
    assert said.code == 7
    assert said.err.endswith(
        "give the imported one another name: run_id=, or --as on the command\n"
    )
    said = run("import", store, archive, "--as", "bare")
    assert said.code == 0
    assert said.lines[1] == (
        f"5 output files of the run stayed in {archive}; to have them: trio-ckpt import {store} "
        f"{archive} --as NEW-NAME --output-dir FOLDER"
    )
    whole = ["--as", "whole", "--output-dir", tmp_path / "whole"]
    assert len(run("import", store, archive, *whole).lines) == 1
    bare = run("import", store, archive, "--as", "bare2", "--json").json
    assert (bare["outputs"], bare["outputs_left_out"]) == (0, 5)
    (tmp_path / "whole" / "1.txt").write_text("another")
    said = run("import", store, archive, "--as", "x", "--output-dir", tmp_path / "whole")
    assert "give another folder: output_dir=, or --output-dir on the command" in said.err


async def write_lines(store: Path, folder: Path, *, pages: int = 0) -> None:
    async with trio_ckpt.open_run("run", store=store, output_dir=folder) as run:
        async with run.open_stream("lines") as stream:
            async for line in stream.batches(range(3)):
                line.append_json("lines.jsonl", {"line": line.index})
                line.complete()
        async with run.open_stream("pages") as stream:
            async for page in stream.batches(range(pages)):
                path = await page.write_text(f"{page.index}.txt", "page")
                page.complete(outputs=[path])


def test_verify_says_how_append_files_are_looked_at(
    run: Terminal, store: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    trio.run(write_lines, store, data)
    size = (data / "lines.jsonl").stat().st_size
    how = "append files by length only (--sha256 reads them)"
    assert run("verify", store).out == (
        f"1 file ({size} bytes) checked by {how}: all are as confirmed\n"
    )
    trio.run(partial(write_lines, pages=1), tmp_path / "both.ckpt", tmp_path / "both")
    both = run("verify", tmp_path / "both.ckpt").out
    assert f"checked by size and time, hash where the time differs; {how}: all" in both
    text = (data / "lines.jsonl").read_text()
    (data / "lines.jsonl").write_text(text.replace("1", "7"))
    assert run("verify", store).code == 0
    assert run("verify", store, "--sha256").code == 1


def test_verify_says_where_a_start_refuses(run: Terminal, store: Path, tmp_path: Path) -> None:
    """What it says is what a start does: it doubts the folder, and asks for redo_missing."""
    data = tmp_path / "data"
    trio.run(partial(write_lines, pages=11), store, data)
    appended = (data / "lines.jsonl").read_bytes()
    (data / "lines.jsonl").unlink()
    then = "is this the right output folder? redo_missing=True does their batches again"
    lines = run("verify", store).lines
    assert "start puts" not in lines[0]
    assert lines[1] == (
        "stream 'lines': all of the append file lines.jsonl is missing, so a start refuses "
        f"(OutputsMissingError); {then}"
    )
    for page in range(11):
        (data / f"{page}.txt").unlink()
    assert run("verify", store).lines[2] == (
        "stream 'pages': outputs of 11 batches are missing; if that is more than a tenth of them "
        f"a start refuses (OutputsMissingError); {then}"
    )
    with pytest.raises(trio_ckpt.OutputsMissingError, match=r"lines\.jsonl"):
        trio.run(partial(write_lines, pages=11), store, data)
    (data / "lines.jsonl").write_bytes(appended)
    assert "append file" not in "".join(run("verify", store).lines[1:])
    with pytest.raises(trio_ckpt.OutputsMissingError, match=r"\.txt"):
        trio.run(partial(write_lines, pages=11), store, data)


def test_export_without_its_folder_of_outputs(run: Terminal, store: Path, data: Path) -> None:
    data.rename(data.with_name("moved"))
    said = run("export", store, "run", data.with_name("x"))
    assert said.code == 4
    assert said.err == (
        f"trio-ckpt: the output folder {data} is not there: give --output-dir if it was moved, or "
        "--no-outputs\n"
    )
    assert run("export", store, "run", data.with_name("x"), "--no-outputs").code == 0


# -- what a program then finds --------------------------------------------------------------------


def test_a_program_goes_on_with_what_was_put_back(run: Terminal, store: Path, data: Path) -> None:
    assert run("retry", store, "run", "--batches", "1,3", "--yes").code == 0
    assert trio.run(write_pages, store, data) == [1, 3]


def test_what_cannot_be_done_alone_is_refused_with_the_reason(run: Terminal, store: Path) -> None:
    records = [*batches(2), Record(at=T0 + 20, index=2, cursor="next")]
    make_run(store, "run", {("a",): records})
    said = run("retry", store, "run", "--batches", "1", "--yes")
    assert said.code == 7
    assert "cannot be redone alone" in said.err or "build on" in said.err
    assert said.err.count("\n") == 1


def test_retry_of_a_run_with_one_skip(run: Terminal, store: Path) -> None:
    skip = Record(kind=RecordKind.SKIP, at=T0 + 30, index=4, error=ErrorInfo("E", "no"))
    make_run(store, "run", {("a",): [*complete(2), skip]})
    assert run("retry", store, "run", "--yes").out.startswith("1 batch of 1 stream re-queued")


def test_retry_of_a_run_leaves_alone_what_later_batches_build_over(
    run: Terminal, store: Path
) -> None:
    skips = {
        at: Record(kind=RecordKind.SKIP, at=T0 + at, index=at, error=ErrorInfo("E", "no"))
        for at in (1, 2)
    }
    after = Record(at=T0 + 20, index=2, cursor="next")
    make_run(
        store, "run", {("a",): [*batches(1), skips[1], after], ("b",): [*batches(2), skips[2]]}
    )
    said = run("retry", store, "run", "--yes")
    assert (said.code, said.out.splitlines()) == (
        0,
        [
            "1 batch of 1 stream re-queued; start the program to go on",
            "stream 'a' stays as it is: later batches build on batch 1, which was skipped; rewind "
            "the stream to before it",
        ],
    )
    document = run("retry", store, "run", "--yes", "--json").json
    assert (document["streams"], document["built_over"]) == ([], [["a"]])
    refused = run("retry", store, "run", "--stream", "a", "--yes")
    assert (refused.code, refused.err.count("\n")) == (7, 1)
    assert "rewind the stream to batch 0" in refused.err
    said = run("explain", store, "run")
    assert "unless the stream is rewound to batch 0, because later ones build on it" in said.out


def test_reset_of_one_stream_leaves_the_others(run: Terminal, gh: Path) -> None:
    listed = run("show", gh, "gh-2025", "--json").json["streams"]
    before = {tuple(stream["stream"]): stream for stream in listed}
    asked = run("reset", gh, "gh-2025", "--stream", "org/repo1")
    assert asked.code == 2
    assert "begin 2 streams of run 'gh-2025' again, with" in asked.err
    said = run("reset", gh, "gh-2025", "--stream", "org/repo1", "--yes", "--json")
    assert said.json["streams"] == [["org/repo1", "pulls"], ["org/repo1", "issues"]]
    assert said.json["batches"] > 0
    document = run("show", gh, "gh-2025", "--json").json
    for stream in document["streams"]:
        if stream["stream"][0] == "org/repo1":
            assert (stream["status"], stream["batches"]["confirmed"]) == ("interrupted", 0)
        else:
            assert stream == before[tuple(stream["stream"])]
    again = run("reset", gh, "gh-2025", "--stream", "org/repo1/pulls", "--yes")
    assert again.out == (
        "1 stream of run 'gh-2025' begins again, with 0 batches re-queued; start the program to "
        "go on\n"
    )
