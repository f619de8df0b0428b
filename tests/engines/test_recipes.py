"""The recipes for schedulers without an adapter, run with stand-ins for their commands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import trio

from tests.hangs import PROGRAM_S
from trio_ckpt.stores import open_store

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/engines.md").read_text(encoding="utf-8")


def fence(language: str, word: str) -> str:
    """The block of the page that has a word in it."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    return found


WAIT = """
from pathlib import Path
import trio

async def wait():  # at the first pages, until the signal was sent
    while not Path("signalled").exists():
        await trio.sleep(0.01)
    await trio.sleep(0.1)
"""


def write_program(folder: Path) -> None:
    """The page's program as the module ``pages``, with items that wait for the signal."""
    text = fence("python", "JOB_COMPLETION_INDEX").partition('os.environ["JOB_COMPLETION')[0]
    work = "await trio.sleep(0.01)"
    assert work in text
    text = text.replace(work, "await wait()")
    text = f"{WAIT}\n{text}"
    opening = "        async with run.open_stream"
    text = text.replace(opening, f"        print('open', flush=True)\n{opening}", 1)
    (folder / "pages.py").write_text(text + "\nsys.exit(main())\n")


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", **more}


def confirmed(folder: Path, run_id: str) -> int:
    async def read() -> int:
        async with aclosing(await open_store(folder / "array.ckpt", create=False)) as store:
            view = await store.load_run(run_id)
            assert view is not None
            return len(view.streams["pages",].progress.confirmed)

    return trio.run(read)


def test_a_pod_that_is_evicted_exits_with_75_and_goes_on(tmp_path: Path) -> None:
    """The controller does not count that exit code, and starts the index again."""
    write_program(tmp_path)
    command = [sys.executable, "-m", "pages"]
    env = environment(tmp_path, JOB_COMPLETION_INDEX="3")
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE) as pod:
        assert pod.stdout is not None
        assert pod.stdout.readline() == b"open\n"
        pod.send_signal(signal.SIGTERM)
        (tmp_path / "signalled").touch()
        assert pod.wait(PROGRAM_S) == 75
    assert confirmed(tmp_path, "pages.00003") < 20
    done = subprocess.run(command, cwd=tmp_path, env=env, timeout=PROGRAM_S, check=False)
    assert done.returncode == 0
    assert confirmed(tmp_path, "pages.00003") == 20


def test_the_policy_of_the_pod_names_our_exit_codes() -> None:
    text = fence("yaml", "podFailurePolicy")
    assert "values: [75]" in text
    assert "values: [69]" in text
    assert "restartPolicy: Never" in text


def test_the_array_script_requeues_what_was_stopped(tmp_path: Path) -> None:
    write_program(tmp_path)
    commands, asked = tmp_path / "bin", tmp_path / "asked"
    commands.mkdir()
    # srun passes the signal on to its step, as Slurm does.
    (commands / "srun").write_text('#!/bin/bash\necho $$ > srun.pid\nshift\nexec "$PYTHON" "$@"\n')
    (commands / "scontrol").write_text('#!/bin/bash\necho "$@" >> asked\n')
    for path in commands.iterdir():
        path.chmod(0o755)
    script = tmp_path / "array.sh"
    script.write_text(fence("bash", "SBATCH"))
    env = environment(
        tmp_path,
        PATH=f"{commands}:{os.environ['PATH']}",
        PYTHON=sys.executable,
        SLURM_ARRAY_JOB_ID="41",
        SLURM_ARRAY_TASK_ID="7",
    )
    env.pop("JOB_COMPLETION_INDEX", None)
    command = ["bash", str(script)]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == b"open\n"
        os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGTERM)
        (tmp_path / "signalled").touch()
        assert job.wait(PROGRAM_S) == 75
    assert asked.read_text() == "requeue 41_7\n"
    done = subprocess.run(command, cwd=tmp_path, env=env, timeout=PROGRAM_S, check=False)
    assert done.returncode == 0
    assert asked.read_text() == "requeue 41_7\n", "what is complete is not started again"
    assert confirmed(tmp_path, "pages.00007") == 20
