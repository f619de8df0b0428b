"""Programs that only call ``trio.run(main)``: how they end, and what people see of them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

import pytest

from tests.hangs import PROGRAM_S

README = Path(__file__).parents[1] / "README.md"

STOPPABLE = """
import os, signal, sys
import trio, trio_ckpt

async def stop_here(index):
    for number in sys.argv[1:]:
        if index == 1:
            os.kill(os.getpid(), getattr(signal, number))
            await trio.sleep(0.05)  # the signal arrives

async def work(run, key="pages"):
    async with run.open_stream(key) as stream:
        async for batch in stream.batches(range(4)):
            await stop_here(batch.index)
            batch.complete()
"""


def run_program(code: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = folder / "program.py"
    program.write_text(dedent(code), encoding="utf-8")
    command = [sys.executable, str(program), *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=PROGRAM_S, check=False
    )


def lines_with(text: str, said: str) -> list[str]:
    return [line for line in said.splitlines() if text in line]


def readme_program() -> str:
    """The example of the README; it gets the signal that it is told while it works on a page."""
    program = re.search(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert program is not None
    work = "await trio.sleep(0.3)  # the work"
    assert work in program[1]
    return "import os, signal, sys\n" + program[1].replace(work, "await do_work()").replace(
        "trio.run(main)",
        "async def do_work():\n"
        "    for number in sys.argv[1:]:\n"
        "        os.kill(os.getpid(), getattr(signal, number))\n"
        "        await trio.sleep(0.05)\n\n"
        "trio.run(main)",
    )


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        (["SIGINT"], 75),
        (["SIGTERM"], 75),
        (["SIGINT", "SIGINT"], 130),
        (["SIGTERM", "SIGTERM"], 143),
    ],
)
def test_a_stop_ends_the_readme_example_without_traceback(
    signals: Sequence[str], code: int, tmp_path: Path
) -> None:
    stopped = run_program(readme_program(), tmp_path, *signals)
    assert stopped.returncode == code, stopped.stderr
    assert "Traceback" not in stopped.stderr
    (line,) = lines_with("go on with", stopped.stderr)
    assert line.startswith("run 'book' was stopped (")
    assert line.endswith(f"program.py {' '.join(signals)}")
    rest = run_program(readme_program(), tmp_path)
    assert rest.returncode == 0, rest.stderr
    assert (tmp_path / "pages" / "10.txt").exists()


ENDINGS = {
    "one stream": "await work(run)",
    "a nursery in the run": """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, run, "a")
            nursery.start_soon(work, run, "b")
    """,
    "nurseries in nurseries": """
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as inner:
                inner.start_soon(work, run, "a")
            nursery.start_soon(work, run, "b")
    """,
    "an except Exception around it": """
        try:
            await work(run)
        except Exception:
            pass
    """,
    "side by side": """
        async def do(batch):
            await stop_here(batch.index)
            batch.complete()
        async with run.open_stream("pages") as stream:
            await trio_ckpt.run_batches(stream, range(4), do, concurrency=2)
    """,
}


@pytest.mark.parametrize("body", ENDINGS.values(), ids=ENDINGS)
def test_a_stop_ends_a_program_with_75(body: str, tmp_path: Path) -> None:
    block = "\n".join(" " * 8 + line for line in dedent(body).strip().splitlines())
    code = (
        f"{STOPPABLE}\nasync def main():\n"
        f"    async with trio_ckpt.open_run('r', store='s') as run:\n{block}\n\ntrio.run(main)\n"
    )
    stopped = run_program(code, tmp_path, "SIGTERM")
    assert (stopped.returncode, stopped.stdout) == (75, ""), stopped.stderr
    assert len(stopped.stderr.splitlines()) == 1
    assert len(lines_with("go on with", stopped.stderr)) == 1


MAIN = """
async def main():
    async with trio_ckpt.open_run("r", store="s") as run:
        await work(run)
"""


def test_a_program_that_catches_a_stop_decides_the_code(tmp_path: Path) -> None:
    code = f"""{STOPPABLE}{MAIN}
try:
    trio.run(main)
except trio_ckpt.TrioCkptError as error:
    sys.exit(error.exit_code - 70)
"""
    stopped = run_program(code, tmp_path, "SIGTERM")
    assert stopped.returncode == 5
    assert len(stopped.stderr.splitlines()) == 1


def test_runs_in_a_nursery_are_caught_as_a_group(tmp_path: Path) -> None:
    """A nursery around runs makes a group, which is no SystemExit: ``except*`` answers it."""
    code = f"""{STOPPABLE}{MAIN}
async def several():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(main)
code = 0
try:
    trio.run(several)
except* trio_ckpt.RunStoppedError as stopped:
    code = max(error.exit_code for error in stopped.exceptions)
sys.exit(code)
"""
    stopped = run_program(code, tmp_path, "SIGTERM")
    assert stopped.returncode == 75
    assert len(stopped.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "call",
    [
        "concurrent.futures.ThreadPoolExecutor(1).submit(trio.run, main).result()",
        "trio.run(trio.to_thread.run_sync, trio.run, main)",
    ],
)
def test_a_stop_leaves_a_thread_as_any_exception(call: str, tmp_path: Path) -> None:
    code = f"""{STOPPABLE}
import concurrent.futures
async def main():
    async with trio_ckpt.open_run("r", store="s") as run:
        run.request_stop()
        await work(run)
{call}
"""
    stopped = run_program(code, tmp_path)
    assert stopped.returncode == 75, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert len(lines_with("go on with", stopped.stderr)) == 1


def test_an_error_beside_a_stop_is_shown_with_its_traceback(tmp_path: Path) -> None:
    code = f"""{STOPPABLE}
async def main():
    async with trio_ckpt.open_run("r", store="s") as run:
        try:
            await work(run)
        finally:
            raise KeyError("of the program")
trio.run(main)
"""
    stopped = run_program(code, tmp_path, "SIGTERM")
    assert stopped.returncode == 1
    assert stopped.stderr.rstrip().endswith("KeyError: 'of the program'")


def test_people_see_once_how_a_run_resumes(tmp_path: Path) -> None:
    code = f"{STOPPABLE}{MAIN}\ntrio.run(main)\n"
    assert run_program(code, tmp_path, "SIGTERM").returncode == 75
    resumed = run_program(code, tmp_path)
    assert resumed.returncode == 0
    (line,) = resumed.stderr.splitlines()
    assert line.startswith("run 'r' resumes: 2 batches done, ")
    assert " was stopped at 20" in line


def test_a_run_that_is_new_says_nothing(tmp_path: Path) -> None:
    new = run_program(f"{STOPPABLE}{MAIN}\ntrio.run(main)\n", tmp_path)
    assert (new.returncode, new.stdout, new.stderr) == (0, "", "")


def test_a_run_that_leaves_signals_alone_resumes_quietly(tmp_path: Path) -> None:
    main = MAIN.replace('store="s"', 'store="s", handle_signals=False')
    code = f"{STOPPABLE}{main}\ntrio.run(main)\n"
    for _ in range(2):
        done = run_program(code, tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
