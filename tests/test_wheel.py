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
    found = {name for name in files_of(wheel) if ".dist-info/" not in name}
    assert found == ours | {"trio_ckpt_pytest.py"}
    assert {"trio_ckpt/py.typed", "trio_ckpt/monitor/static/index.html"} <= found


def test_a_project_is_written_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    where = run(["-c", "import trio_ckpt; print(trio_ckpt.__file__)"], wheel)
    assert Path(where.strip()) == wheel / "trio_ckpt" / "__init__.py"
    said = run(["-m", "trio_ckpt", "new", "crawler", "my_crawl"], tmp_path, PYTHONPATH=str(wheel))
    assert said.startswith("my_crawl/ has a crawler: README.md, my_crawl.py")
