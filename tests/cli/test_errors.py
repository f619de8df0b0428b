"""Errors: one line, an exit code of its own, a document for scripts; never a traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.tools import T0, Terminal, batches, complete, failed, make_run
from trio_ckpt._journal.record import Record, RecordKind
from trio_ckpt._util import errors, text
from trio_ckpt.cli import _app, _exits, main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "Missing command; see trio-ckpt --help"),
        (["lsx"], "'lsx'; see trio-ckpt --help"),
        (["new"], "Choose from: collector, pipeline, training, crawler; see trio-ckpt new --help"),
        (["show"], "Missing argument 'STORE'; see trio-ckpt show --help"),
        (["show", "x", "--al"], "--al"),
        (["ls", "memory:"], "a store in memory is seen by its own process only"),
        (["prune", "x", "run"], "Missing option '--keep'; see trio-ckpt prune --help"),
        (["history", "x", "--limit", "0"], "Invalid value for '--limit': 0 is not in the range"),
        (["watch", "x", "--every", "0"], "Invalid value for '--every': 0.0 is not in the range"),
    ],
)
def test_a_command_that_is_typed_wrong(run: Terminal, arguments: list[str], what: str) -> None:
    said = run(*arguments)
    assert said.code == 2
    assert said.err.startswith("trio-ckpt: ")
    assert what in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_with_json_an_error_is_a_document_too(run: Terminal, gh: Path) -> None:
    said = run("show", gh, "none", "--json")
    assert said.json == {
        "error": {
            "type": "CommandError",
            "message": f"sqlite:{gh} has no run 'none'; it has 'gh-2025'",
            "exit_code": 4,
        }
    }
    assert said.err.startswith("trio-ckpt: ")
    assert run("show", "--json").json["error"]["exit_code"] == 2


def test_a_store_that_is_damaged(run: Terminal, gh: Path) -> None:
    (gh / "state.db").write_bytes(b"no database" * 1_000)
    for extra in gh.glob("state.db-*"):
        extra.unlink()
    said = run("show", gh)
    assert said.code == 6
    assert said.err.count("\n") == 1
    assert str(gh / "state.db") in said.err


def test_a_file_that_is_no_store(run: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    said = run("ls", file)
    assert said.code == 6
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("command", ["ls", "show", "explain", "history", "verify", "retry"])
def test_a_run_id_that_is_not_utf_8(run: Terminal, gh: Path, command: str) -> None:
    said = run(command, gh, os.fsdecode(b"gh\xff"))
    assert said.code == 2
    assert r"'gh\udcff' is not UTF-8, as the names of all runs are" in said.err
    assert said.err.count("\n") == 1


def test_a_run_id_that_is_none(run: Terminal, gh: Path) -> None:
    said = run("show", gh, "../x")
    assert said.code in (2, 4)
    assert said.err.count("\n") == 1


def test_an_error_of_several_lines_is_put_on_one() -> None:
    changes = (("model", '"a"', '"b"'),)
    error = errors.ConfigChangedError("run", changes)
    assert text.one_line(str(error)) == (
        'the configuration of run \'run\' changed: model: "a" -> "b"; restore it, or choose '
        "on_config_change='accept' to go on with the new one or 'restart' to archive the run and "
        "begin again"
    )


def test_an_unforeseen_error_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(_app.app, "main", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["ls", "x"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (errors.StoreVersionError("newer"), 6),
        (errors.SaveOutcomeUnknownError("who knows"), 6),
        (errors.CannotRedoError("a", "later ones build on it"), 7),
        (errors.UnknownRunError("none"), 4),
        (errors.RunLockedError("run", host="box", pid=1, since="then"), 5),
        (errors.LeaseLostError("who knows who has it"), 6),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 7),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), 4),
        (ValueError("a bad name"), 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_each_kind_of_error_has_its_exit_code(
    run: Terminal, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(_app.app, "main", fails)
    said = run("ls", "x")
    assert said.code == code
    assert said.err.count("\n") == (0 if code == 130 else 1)


def test_exit_codes_of_the_command_are_none_of_the_programs() -> None:
    codes = {v for name, v in vars(_exits).items() if name.startswith("EXIT_")}
    programs = {v for name, v in vars(errors).items() if name.startswith("EXIT_")}
    assert codes & programs == {0}  # both mean the same: all is well
    assert len(codes) == sum(name.startswith("EXIT_") for name in vars(_exits))


# -- text from the store --------------------------------------------------------------------------


def test_text_from_the_store_cannot_steer_the_terminal(run: Terminal, store: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J[red]bold[/red]\rx\x9b31m\u202egnp.exe"
    name = "a\u202eb"  # control characters are refused in names, marks of direction are not
    streams = {
        (name, "x"): [*batches(2), failed(evil, retryable=False, kind="E\x1b[1m")],
        ("b", "y"): [
            *batches(1),
            Record(kind=RecordKind.REDO, at=T0, steps=(0, 1), metadata={"reason": evil}),
            Record(kind=RecordKind.FINISH, at=T0, metadata={evil: evil}),
        ],
    }
    make_run(store, "run", streams)
    commands: list[list[object]] = [
        ["ls", store],
        ["show", store],
        ["show", store, "--stream", "b/y"],
        ["explain", store],
        ["watch", store],
        ["history", store, "--stream", "b/y"],
        ["history", store, "--stream", f"{name}/x"],
        ["show", store, "--json"],
        ["history", store, "--stream", f"{name}/x", "--json"],
        ["show", store, "--stream", evil],
    ]
    for command in commands:
        said = run(*command)
        for line in (said.out + said.err).split("\n"):
            assert line.isprintable(), line
    assert "[red]bold[/red]" in run("show", store).out
    assert r"a\u202eb/x" in run("show", store).out
    # as it is shown, so it may be typed
    assert run("show", store, "--stream", r"a\u202eb/x").code == 0


# -- the process ----------------------------------------------------------------------------------


def python(*arguments: object, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    typed = ["-m", "trio_ckpt"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *typed, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def test_it_runs_as_a_module(gh: Path) -> None:
    done = python("ls", gh, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["runs"][0]["run"] == "gh-2025"
    assert python("show", gh, "none").returncode == 4


def test_what_the_library_warns_of_is_left_to_the_command_to_say(gh: Path) -> None:
    put_back = ["--stream", "org/repo1/pulls", "--batches", "1", "--yes"]
    done = python("retry", gh, "gh-2025", *put_back)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1 batch of stream 'org/repo1/pulls' re-queued")


def test_without_click_or_rich_it_says_what_to_install() -> None:
    for missing in ("click", "rich"):
        done = python(
            code=(
                "import importlib.util, runpy, sys\n"
                "find = importlib.util.find_spec\n"
                f"gone = lambda name, *a: None if name == {missing!r} else find(name, *a)\n"
                "importlib.util.find_spec = gone\n"
                "runpy.run_module('trio_ckpt', run_name='__main__')\n"
            )
        )
        assert done.returncode == 8
        assert done.stderr == "trio-ckpt needs click and rich: pip install 'trio-ckpt[cli]'\n"


@pytest.mark.parametrize("command", ["ls", "show", "explain"])
def test_what_must_answer_at_once_imports_no_rich_and_no_command(gh: Path, command: str) -> None:
    done = python(
        command,
        gh,
        code=(
            "import sys\n"
            "from trio_ckpt.cli import main\n"
            "code = main()\n"
            "late = {'rich', 'trio_ckpt.cli._change', 'trio_ckpt.cli._verify'}\n"
            "found = late & sys.modules.keys()\n"
            "sys.exit(f'imported: {found}' if found else code)\n"
        ),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_explain_of_a_plain_run_imports_neither_outputs_nor_states(tmp_path: Path) -> None:
    """Where nothing can be lost, it does not import what looks for losses."""
    make_run(tmp_path / "store", "run", {("s",): complete(1)})
    done = python(
        "explain",
        tmp_path / "store",
        code=(
            "import sys\n"
            "from trio_ckpt.cli import main\n"
            "code = main()\n"
            "late = {'trio_ckpt.outputs', 'trio_ckpt.state', 'trio_ckpt._maintenance.losses'}\n"
            "found = late & sys.modules.keys()\n"
            "sys.exit(f'imported: {found}' if found else code)\n"
        ),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_is_no_error(store: Path) -> None:
    make_run(store, "run", {(f"{n:03}" + 800 * "x",): complete(1) for n in range(150)})  # > a pipe
    command = [sys.executable, "-m", "trio_ckpt", "show", str(store), "--all"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "command", [["ls"], ["show"], ["show", "--json"], ["show", "none", "--json"], ["watch"]]
)
def test_an_output_that_takes_nothing_is_an_error_of_one_line(
    store: Path, command: list[str]
) -> None:
    make_run(store, "run", {(f"{n:03}" + 80 * "x",): complete(1) for n in range(200)})
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "trio_ckpt", command[0], str(store), *command[1:]],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=False,
        )
    assert done.returncode == (4 if "none" in command else 7)
    assert done.stderr.startswith("trio-ckpt: ")
    assert done.stderr.count("\n") == 1
    assert "none" in command or "No space left on device" in done.stderr


def test_a_name_that_the_output_cannot_encode_is_no_error(store: Path) -> None:
    make_run(store, "run", {("ümläut",): complete(1)})
    done = subprocess.run(
        [sys.executable, "-m", "trio_ckpt", "show", str(store)],
        capture_output=True,
        cwd=ROOT,
        env={"PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert rb"\xfcml\xe4ut" in done.stdout


# -- completion -----------------------------------------------------------------------------------


def completed(*typed: object) -> list[str]:
    """What a shell would offer for the last word."""
    words = ["trio-ckpt", *map(str, typed)]
    done = subprocess.run(
        [sys.executable, "-m", "trio_ckpt"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            "_TRIO_CKPT_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        },
        check=False,
    )
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_completion_knows_commands_runs_and_streams(gh: Path) -> None:
    assert completed("ex") == ["explain", "export"]
    assert completed("show", gh, "gh") == ["gh-2025"]
    assert completed("show", gh, "gh-2025", "--stream", "org/repo2") == [
        "org/repo2/pulls",
        "org/repo2/issues",
    ]


def test_completion_without_a_store_offers_nothing(store: Path) -> None:
    assert completed("show", store, "x") == []
    assert not store.exists()


def test_completion_prints_a_script_for_the_shell() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trio_ckpt"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"_TRIO_CKPT_COMPLETE": "zsh_source"},
        check=True,
    )
    assert "#compdef trio-ckpt" in done.stdout
