"""What is known of the process of an owner: only that it is gone, never by a name or a guess."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import NO_PRIVILEGE
from trio_ckpt.stores._postgres import process
from trio_ckpt.stores._postgres.process import is_gone, this_host

SAY_HOST = "from trio_ckpt.stores._postgres.process import this_host; print(this_host())"


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    return ended.pid


def test_a_process_of_this_space_is_known_to_be_gone(gone: int) -> None:
    said = subprocess.run(
        [sys.executable, "-c", SAY_HOST], stdout=subprocess.PIPE, text=True, check=True
    )
    assert said.stdout.strip() == this_host()
    assert is_gone(this_host(), gone)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        assert not is_gone(this_host(), living.pid)


@pytest.mark.parametrize(
    "host",
    [
        socket.gethostname(),
        f"{socket.gethostname()} ",
        f"{socket.gethostname()} 0123456789abcdef",
        f"two words {this_host().partition(' ')[2]}",
    ],
)
def test_the_name_of_a_machine_shows_nothing(host: str, gone: int) -> None:
    assert not is_gone(host, gone)


@pytest.mark.parametrize("unknown", ["_BOOT", "_NAMESPACE"])
def test_where_the_space_is_not_known_nothing_is_shown(
    unknown: str, gone: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, unknown, tmp_path / "missing")
    assert this_host() == socket.gethostname()
    assert not is_gone(this_host(), gone)


@pytest.mark.privileged
def test_a_container_of_this_machine_has_a_space_of_its_own(gone: int) -> None:
    """It has the name of the machine, and numbers of its own."""
    program = shutil.which("unshare")
    if program is None:
        pytest.skip(f"{NO_PRIVILEGE}there is no unshare(1)")
    command = [program, "--pid", "--fork", "--kill-child", sys.executable, "-c", SAY_HOST]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode:
        pytest.skip(f"{NO_PRIVILEGE}no namespace can be made: {said.stderr}")
    name, _, space = said.stdout.strip().partition(" ")
    assert name == socket.gethostname()
    assert space
    assert not is_gone(said.stdout.strip(), gone)
