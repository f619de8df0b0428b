"""`trio-ckpt new`: each project that it writes passes its own tests, and survives kill -9."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.tools import Terminal
from tests.hangs import PROGRAM_S
from tests.leash import leashed
from trio_ckpt.cli._new import KINDS

ROOT = Path(__file__).parents[2]

FILES = {"README.md", "pyproject.toml", "my_work.py", "test_my_work.py"}

WORK = {"collector": 3 * 10, "pipeline": 2 * 24, "training": 12, "crawler": 41}
"""How many lines of work a program prints; a snapshot begins an epoch a second time."""

IN_FLIGHT = 4
"""How many lines may be printed before what they name is durable."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def environment() -> dict[str, str]:
    """That of a program which has the package, installed or not."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@contextmanager
def working(project: Path, most: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """The program of a project; it is killed at the end.

    With `most` it stops itself when it begins so many batches.
    """
    with subprocess.Popen(
        [sys.executable, "my_work.py"] if most is None else leashed(most, "my_work.py"),
        stdout=subprocess.PIPE,
        text=True,
        cwd=project,
        env=environment(),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def is_work(line: str) -> bool:
    return re.match(r"(ant|bee|cat): |extract |analyse |epoch |/\d", line) is not None


def test_every_kind_has_a_folder_of_templates() -> None:
    folders = (ROOT / "trio_ckpt" / "cli" / "_projects").iterdir()
    assert {folder.name for folder in folders} == set(KINDS) == set(WORK)


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_has_its_name_wherever_it_stands(run: Terminal, here: Path, kind: str) -> None:
    said = run("new", kind, "my_work")
    assert (said.code, said.err) == (0, "")
    assert said.out == (
        f"my_work/ has a {kind}: README.md, my_work.py, pyproject.toml, test_my_work.py\n"
        "go on with: cd my_work && python my_work.py\n"
    )
    texts = {path.name: path.read_text("utf-8") for path in (here / "my_work").iterdir()}
    assert set(texts) == FILES
    assert not [name for name, text in texts.items() if "project_name" in text]
    described = tomllib.loads(texts["pyproject.toml"])
    assert described["project"]["name"] == "my_work"
    for command in ("python my_work.py &", "kill -9 $!", "python my_work.py  "):
        assert command in texts["README.md"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_tests_of_a_project_pass(run: Terminal, here: Path, kind: str) -> None:
    run("new", kind, "my_work")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "trio_ckpt_pytest", "-W", "error"],
        cwd=here / "my_work",
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d passed in", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_that_is_killed_goes_on(run: Terminal, here: Path, kind: str) -> None:
    run("new", kind, "my_work")
    before: list[str] = []
    with working(here / "my_work", 3 * IN_FLIGHT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "nothing saved yet\n"
        for line in process.stdout:
            before.append(line)
            if len(before) == 2 * IN_FLIGHT:
                break
        process.kill()
        before += process.stdout  # what it has printed meanwhile is done, too
    assert "was killed" in run("explain", "my_work/my_work.ckpt").out

    with working(here / "my_work") as process:
        out, _ = process.communicate(timeout=PROGRAM_S)
    assert process.returncode == 0
    found, *after = out.splitlines(keepends=True)
    assert found != "nothing saved yet\n"
    durable = before[:-IN_FLIGHT]
    assert not set(durable) & set(after)
    names = {re.sub(" from point .*", "", line) for line in (*before, *after) if is_work(line)}
    assert len(names) == WORK[kind]
    assert run("watch", "my_work/my_work.ckpt").code == 0


@pytest.mark.parametrize("name", ["My_work", "1st", "a-b", "../up", "work_", "", "class", "a" * 51])
def test_a_name_that_no_package_may_have_is_refused(run: Terminal, here: Path, name: str) -> None:
    said = run("new", "collector", name)
    assert said.code == 2
    assert said.err == (
        f"trio-ckpt: {name!r} is not the name of a package: write small letters, digits and _, "
        "a letter first, as in 'my_crawl'\n"
    )
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", ["json", "trio", "trio_ckpt", "sys"])
def test_a_name_that_would_hide_a_module_is_refused(run: Terminal, here: Path, name: str) -> None:
    said = run("new", "collector", name)
    assert said.code == 2
    assert f"{name!r} is the name of a module that is installed" in said.err
    assert list(here.iterdir()) == []


def test_what_exists_is_refused_and_stays(run: Terminal, here: Path) -> None:
    (here / "file").write_text("mine")
    (here / "folder").mkdir()
    (here / "link").symlink_to("nowhere")
    for name in ("file", "folder", "link"):
        said = run("new", "collector", name)
        assert (said.code, said.err) == (7, f"trio-ckpt: {name!r} exists: choose another name\n")
    assert (here / "file").read_text() == "mine"
    assert list((here / "folder").iterdir()) == []
    assert (here / "link").readlink() == Path("nowhere")


def test_a_kind_that_there_is_not_is_refused_with_those_there_are(
    run: Terminal, here: Path
) -> None:
    said = run("new", "website", "my_work")
    assert said.code == 2
    assert "'collector', 'pipeline', 'training', 'crawler'" in said.err


def test_json_names_the_folder_and_its_files(run: Terminal, here: Path) -> None:
    assert run("new", "crawler", "my_work", "--json").json == {
        "project": "my_work",
        "kind": "crawler",
        "folder": str(here / "my_work"),
        "files": sorted(FILES),
    }
