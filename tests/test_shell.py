"""The files around the code agree with each other and do what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import trio_ckpt
from tests.hangs import PROGRAM_S

ROOT = Path(__file__).parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """The lines that call nox."""
    return [line for line in text.splitlines() if "/nox -s " in line]


def shell_blocks(name: str) -> str:
    """What a page tells its reader to type."""
    return "".join(re.findall(r"^```sh\n(.*?)^```$", read(name), re.MULTILINE | re.DOTALL))


def test_ci_runs_the_commands_of_the_readme_and_contributing() -> None:
    _crawl, test = commands(shell_blocks("README.md"))
    assert test.endswith("/nox -s tests")
    check, *_others = commands(shell_blocks("CONTRIBUTING.md"))
    assert check.endswith("/nox -s lint types")
    assert commands(read(".ci/run")) == [check, test]


def test_each_extra_of_a_user_is_where_one_looks_for_it() -> None:
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"].keys()
    of_users = extras - {"tests", "typing", "lint", "fuzz", "docs", "dev"}
    for page in ("README.md", "docs/tutorial/install.md"):
        (table,) = re.findall(r"^\| you want \| extra \|\n(?:\|.*\n)+", read(page), re.MULTILINE)
        last_cells = " ".join(line.rpartition(" | ")[2] for line in table.splitlines())
        assert set(re.findall(r"`([a-z]+)`", last_cells)) == of_users, page


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    newest = re.search(r"^## \[(.+?)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version
    assert trio_ckpt.__version__ == version


def test_all_lists_every_public_name() -> None:
    public = {
        name
        for name in dir(trio_ckpt)
        if not name.startswith("_") and not isinstance(getattr(trio_ckpt, name), ModuleType)
    }
    assert set(trio_ckpt.__all__) == public | {"__version__"}
    assert list(trio_ckpt.__all__) == sorted(trio_ckpt.__all__)


def test_a_name_is_imported_when_it_is_first_asked_for() -> None:
    program = "import sys, trio_ckpt; print([m in sys.modules for m in {modules}]); {use}"
    modules = ["trio_ckpt._runs.lifecycle", "trio_ckpt._maintenance.export", "sqlite3", "json"]
    use = f"trio_ckpt.open_run; print([m in sys.modules for m in {modules[:2]}])"
    command = [sys.executable, "-c", program.format(modules=modules, use=use)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[False, False, False, False]", "[True, False]"]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = trio_ckpt.nothing


SKIPS = {
    "a test": "import pytest\ndef test_it(): pytest.skip('no server')\n",
    "a marked test": "import pytest\n@pytest.mark.skip('no server')\ndef test_it(): pass\n",
    "an expected failure": "import pytest\n@pytest.mark.xfail(reason='no server')\n"
    "def test_it(): raise OSError\n",
    "a module": "import pytest\npytest.skip('no server', allow_module_level=True)\n",
}


TRIES = """
import pytest
@pytest.mark.privileged
def test_it(): pytest.skip({reason!r})
"""


@pytest.mark.parametrize(
    ("reason", "is_allowed"), [("no privilege: only root may", True), ("no server", False)]
)
def test_ci_may_skip_what_the_machine_does_not_allow(
    tmp_path: Path, reason: str, is_allowed: bool
) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(TRIES.format(reason=reason), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = privileged\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", tmp_path],
        env={**os.environ, "CI": "true"},
        cwd=tmp_path,
        capture_output=True,
        timeout=PROGRAM_S,
        check=False,
    )
    assert (done.returncode == pytest.ExitCode.OK) is is_allowed


@pytest.mark.parametrize("source", SKIPS.values(), ids=SKIPS.keys())
def test_skips_fail_in_ci_only_and_give_their_reason(tmp_path: Path, source: str) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(source + "def test_other(): pass\n", encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")

    def run(ci: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", tmp_path],
            env={**os.environ, "CI": ci},
            cwd=tmp_path,
            text=True,
            capture_output=True,
            timeout=PROGRAM_S,
            check=False,
        )

    assert run("").returncode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    in_ci = run("true")
    assert in_ci.returncode in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
    assert "CI allows no skips: " in in_ci.stdout
    assert "no server" in in_ci.stdout
