"""The wheel has all of the package and nothing else, and works where only it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.hangs import PROGRAM_S

ROOT = Path(__file__).parents[1]
PROGRAMS = [
    path.stem
    for path in sorted((ROOT / "examples").glob("[a-z]*.py"))
    if "__main__" in path.read_text(encoding="utf-8")
]
BUILD = "import sys, hatchling.build; hatchling.build.build_wheel(sys.argv[1])"


def run(command: Sequence[str | Path], folder: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    run(["-c", BUILD, folder], ROOT)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def files_of(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    ours = {f"trio_ckpt/{name}" for name in files_of(ROOT / "trio_ckpt")}
    examples = {f"trio_ckpt/examples/{name}" for name in files_of(ROOT / "examples")}
    found = {name for name in files_of(wheel) if ".dist-info/" not in name}
    assert found == ours | examples | {"trio_ckpt_pytest.py"}
    assert {"trio_ckpt/py.typed", "trio_ckpt/monitor/static/index.html"} <= found


def test_a_project_is_written_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    where = run(["-c", "import trio_ckpt; print(trio_ckpt.__file__)"], wheel)
    assert Path(where.strip()) == wheel / "trio_ckpt" / "__init__.py"
    said = run(["-m", "trio_ckpt", "new", "crawler", "my_crawl"], tmp_path, PYTHONPATH=str(wheel))
    assert said.startswith("my_crawl/ has a crawler: README.md, my_crawl.py")


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_example_is_called_by_its_name_in_the_wheel(wheel: Path, name: str) -> None:
    said = run(["-m", f"trio_ckpt.examples.{name}", "--help"], wheel)
    assert said.startswith(f"usage: python -m trio_ckpt.examples.{name} ")


def test_an_example_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    command = ["-m", "trio_ckpt.examples.scan_book", "--out", "book", "--latency", "0"]
    run(command, tmp_path, PYTHONPATH=str(wheel))
    assert len([*(tmp_path / "book" / "correct").iterdir()]) == 24


def test_a_worker_takes_an_example_of_the_wheel(wheel: Path, tmp_path: Path) -> None:
    program = (
        "import trio\nfrom trio_ckpt.engines import map_tasks\n"
        "print(trio.run(map_tasks, 'trio_ckpt.examples.squares:square', [1, 2, 3]))"
    )
    assert run(["-c", program], tmp_path, PYTHONPATH=str(wheel)).strip() == "[1, 4, 9]"
