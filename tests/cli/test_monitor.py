"""`monitor`: where it says it is, whom it lets in, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.tools import Terminal, make_gh
from tests.hangs import HANG_S
from trio_ckpt.cli import _monitor
from trio_ckpt.monitor import Serving

ROOT = Path(__file__).parents[2]


@contextmanager
def served(*arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "trio_ckpt", "monitor", *map(str, arguments)]
    environ = {**os.environ, **environment}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environ
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def document(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    text = ""
    while not text.endswith("}\n"):
        text += process.stdout.readline()
    found: dict[str, str] = json.loads(text)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(tmp_path: Path, number: int) -> None:
    make_gh(tmp_path / "gh.ckpt")
    with served(tmp_path / "gh.ckpt", "--port", 0, "--json") as process:
        said = document(process)
        assert said["page_url"] == f"{said['url']}#{said['secret']}"
        assert said["action_secret"] is None
        headers = {"Authorization": f"Bearer {said['secret']}"}
        asked = urllib.request.Request(f"{said['url']}api/runs", headers=headers)
        with urllib.request.urlopen(asked, timeout=HANG_S) as answer:
            assert json.load(answer)["runs"][0]["run"] == "gh-2025"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{said['url']}api/runs", timeout=HANG_S)
        process.send_signal(number)
        assert process.wait(HANG_S) == 0


def test_secrets_may_come_from_the_environment(tmp_path: Path) -> None:
    make_gh(tmp_path / "gh.ckpt")
    secrets = {"TRIO_CKPT_MONITOR_SECRET": "a" * 20, "TRIO_CKPT_ACTION_SECRET": "b" * 20}
    with served(tmp_path / "gh.ckpt", "--port", 0, "--allow-actions", **secrets) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().rstrip() for _ in range(4)]
    assert lines[0].startswith("page                http://127.0.0.1:")
    assert lines[0].endswith("#" + "a" * 20)
    assert lines[1:] == [
        f"secret              {'a' * 20}",
        f"secret for actions  {'b' * 20}",
        "stop                Ctrl-C",
    ]


def test_a_password_of_the_store_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    serving = Serving("http://127.0.0.1:1/", "http://127.0.0.1:1/#a", "a", None, 1)
    _monitor._say("postgresql://me:sesame@host/db", serving, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["store"] == "postgresql://me:***@host/db"


def test_what_cannot_be_served_is_said_in_a_line(run: Terminal, tmp_path: Path) -> None:
    make_gh(tmp_path / "gh.ckpt")
    said = run("monitor", tmp_path / "none")
    assert (said.code, said.err.count("\n")) == (6, 1)
    said = run("monitor", tmp_path / "gh.ckpt", "--host", "0.0.0.0")
    assert said.code == 2
    assert "without TLS" in said.err
    said = run("monitor", tmp_path / "gh.ckpt", "--tls-cert", tmp_path / "none.pem")
    assert said.code == 2
    assert "none.pem' does not exist" in said.err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = run("monitor", tmp_path / "gh.ckpt", "--port", port)
    assert said.code == 7
    assert f"cannot listen on 127.0.0.1:{port}" in said.err
