"""`trio-ckpt foreman` and `trio-ckpt worker` as processes: three terminals, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.cli.tools import Terminal
from tests.engines.jobs import hold
from tests.hangs import HANG_S, PROGRAM_S
from tests.ports import keep_port, port_of
from trio_ckpt import RunStoppedError, remote
from trio_ckpt.cli._remote import read_secret
from trio_ckpt.stores import open_store

ROOT = Path(__file__).parents[2]
ALLOW = "tests.engines.jobs"


@contextmanager
def started(*typed: object, **env: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A command, when it has said in JSON that it works; it is killed at the end."""
    command = [sys.executable, "-m", "trio_ckpt", *map(str, typed), "--json"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield process, json.loads(line)
        finally:
            process.kill()


async def wait_listening(port: int) -> None:
    while True:
        try:
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
        except OSError:
            await trio.sleep(0.05)
        else:
            return


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is of Linux")
@pytest.mark.parametrize("redirected", ["2>/dev/full", "2>&-", ">/dev/full", ">&- 2>&-"])
async def test_a_foreman_that_cannot_say_anything_works(tmp_path: Path, redirected: str) -> None:
    """Clients come and go, and are logged; what cannot be shown ends nothing."""
    secret_file = tmp_path / "secret"
    kept = keep_port()
    port = port_of(kept)
    typed = ["foreman", str(tmp_path / "s"), "--port", str(port), "--secret-file", str(secret_file)]
    words = ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-m", "trio_ckpt", *typed]
    with kept, trio.fail_after(HANG_S):
        process = await trio.lowlevel.open_process(words, cwd=ROOT)
        try:
            await wait_listening(port)
            secret = secret_file.read_text().strip()
            async with remote.connect(f"ws://127.0.0.1:{port}", secret=secret):
                pass
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        finally:
            process.kill()


def steps_of(path: Path) -> list[int]:
    """The numbers of the steps that a function has noted; a line may be on its way."""
    text = path.read_text() if path.exists() else ""
    lines = [line.split() for line in text.rpartition("\n")[0].splitlines()]
    return [int(line[1]) for line in lines if line[0] == "step"]


async def test_three_terminals(tmp_path: Path) -> None:
    """A foreman that makes its secret, a worker that is stopped while it works, another one that
    goes on, and a client."""
    marks, secret_file = tmp_path / "marks", tmp_path / "secret"
    marks.mkdir()
    hold(marks, 10)
    foreman = ("foreman", tmp_path / "s", "--port", 0, "--secret-file", secret_file)
    with started(*foreman) as (boss, told):
        assert stat.S_IMODE(secret_file.stat().st_mode) == 0o600
        secret = secret_file.read_text().strip()
        worker = ("worker", told["url"], "--allow", ALLOW, "--secret-file", secret_file)
        with started(*worker, "--name", "first") as (first, said):
            assert said["name"] == "first"
            async with remote.connect(told["url"], secret=secret) as client:
                job_id = await client.submit(
                    f"{ALLOW}:steps", [[str(marks), 0, 40]], checkpoint_interval_s=60.0
                )
                with trio.fail_after(PROGRAM_S):
                    while len(steps_of(marks / "0")) < 6:  # noqa: ASYNC110  # no event reports it
                        await trio.sleep(0.05)
                first.send_signal(signal.SIGTERM)
                assert first.wait(PROGRAM_S) == 0
                assert 6 <= len(steps_of(marks / "0")) <= 10
                hold(marks, None)
                with started(*worker, "--name", "second", "--quiet"):
                    assert await client.attach(job_id) == [sum(range(1, 41))]
        # The second goes on from what the first saved when it was stopped: no step runs twice.
        assert steps_of(marks / "0") == [*range(1, 41)]
        boss.send_signal(signal.SIGTERM)
        assert boss.wait(PROGRAM_S) == 0
    store = await open_store(tmp_path / "s")
    assert (await remote.read_job(store, job_id)).completed_tasks == 1
    await store.aclose()


def test_a_secret_is_needed_and_kept(
    run: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRIO_CKPT_SECRET", raising=False)
    said = run("foreman", tmp_path / "s")
    assert said.code == 2
    assert "TRIO_CKPT_SECRET" in said.err
    loose = tmp_path / "loose"
    loose.write_text("a secret of 16 bytes or more")
    loose.chmod(0o644)
    said = run("worker", "ws://127.0.0.1:1", "--allow", "x", "--secret-file", loose)
    assert said.code == 2
    assert "chmod 600" in said.err
    monkeypatch.setenv("TRIO_CKPT_SECRET", "short")
    said = run("worker", "ws://127.0.0.1:1", "--allow", "x")
    assert said.code == 2
    assert "16" in said.err
    said = run("worker", "ws://127.0.0.1:1", "--allow", "x", "--secret-file", tmp_path / "none")
    assert said.code == 4


def test_a_secret_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """As with a kill between making the file and writing it, which left one that is empty."""
    resource = pytest.importorskip("resource")
    path, limit = tmp_path / "secret", resource.RLIMIT_FSIZE
    soft, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (0, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            read_secret(path, may_make=True)
    finally:
        resource.setrlimit(limit, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    secret = read_secret(path, may_make=True)
    assert [path] == list(tmp_path.iterdir())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret == read_secret(path, may_make=True) == read_secret(path, may_make=False)


def test_a_secret_of_another_foreman_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one has made the file after this one has looked for it."""
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_text("the secret of the other one")
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert read_secret(path, may_make=True) == "the secret of the other one"


def test_a_foreman_beyond_this_machine_needs_tls(
    run: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIO_CKPT_SECRET", "a secret of 16 bytes or more")
    said = run("foreman", tmp_path / "s", "--host", "0.0.0.0")
    assert said.code == 2
    assert "--tls-cert and --tls-key, or --allow-plain" in said.err


@pytest.mark.parametrize("command", ["foreman", "monitor"])
def test_a_bad_certificate_is_named(
    run: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("TRIO_CKPT_SECRET", "a secret of 16 bytes or more")
    bad = tmp_path / "bad.pem"
    bad.write_text("this is none")
    said = run(command, tmp_path / "s", "--tls-key", bad)
    assert (said.code, said.err) == (2, "trio-ckpt: --tls-key needs --tls-cert\n")
    said = run(command, tmp_path / "s", "--tls-cert", bad)
    assert said.code == 2
    assert said.err.startswith(f"trio-ckpt: {bad}: ")


def test_a_worker_that_is_not_let_in_says_so(tmp_path: Path) -> None:
    secret = {"TRIO_CKPT_SECRET": "a secret of 16 bytes or more"}
    with started("foreman", tmp_path / "s", "--port", 0, **secret) as (_boss, told):
        done = subprocess.run(
            [sys.executable, "-m", "trio_ckpt", "worker", told["url"], "--allow", ALLOW],
            env={**os.environ, "TRIO_CKPT_SECRET": "another secret of 16 bytes"},
            cwd=ROOT,
            text=True,
            capture_output=True,
            timeout=PROGRAM_S,
            check=False,
        )
    assert done.returncode == 7
    assert "the secret does not match" in done.stderr


def test_a_worker_without_a_foreman_is_stopped_well() -> None:
    command = [sys.executable, "-m", "trio_ckpt", "worker", "ws://127.0.0.1:1", "--allow", ALLOW]
    env = {**os.environ, "TRIO_CKPT_SECRET": "a secret of 16 bytes or more"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env
    ) as process:
        assert process.stderr is not None
        try:
            assert "no connection to the foreman" in process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            said, told = process.communicate(timeout=PROGRAM_S)
        finally:
            process.kill()
    assert (process.returncode, said) == (0, "")
    assert "Traceback" not in told


def test_a_module_that_no_worker_can_find_is_refused(
    run: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIO_CKPT_SECRET", "a secret of 16 bytes or more")
    said = run("worker", "ws://127.0.0.1:1", "--allow", "nosuchmodule")
    assert said.code == 7
    assert "module 'nosuchmodule' cannot be found" in said.err


def test_a_foreman_that_loses_a_lease_exits_with_75(
    run: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service manager starts it again on that."""

    async def serve(*_args: object, **_options: object) -> None:
        raise RunStoppedError("job-x", exit_code=75, resume_command=None)

    monkeypatch.setenv("TRIO_CKPT_SECRET", "a secret of 16 bytes or more")
    monkeypatch.setattr("trio_ckpt.cli._remote.serve_foreman", serve)
    said = run("foreman", tmp_path / "s", "--port", 0)
    assert said.code == 75
    assert "'job-x' was stopped" in said.err
