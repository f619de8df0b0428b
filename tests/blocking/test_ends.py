"""How synchronous programs end: by signals, by Ctrl-C at any line, by forks."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent

import pytest
import trio

from tests.hangs import HANG_S, PROGRAM_S
from tests.interrupts import Tracer, interrupt, no_memory
from tests.opening import begin_blocking
from trio_ckpt import RunStoppedError
from trio_ckpt.blocking import BlockingRun
from trio_ckpt.blocking._program import Block
from trio_ckpt.stores import MemoryStore

PAGES = 3


def run_program(code: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = folder / "program.py"
    program.write_text(dedent(code), encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(program), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
        check=False,
    )


STOPPABLE = """
import os, signal, sys
from trio_ckpt import blocking

with blocking.open_run("r", store="r.ckpt") as run, run.open_stream("pages") as stream:
    for batch in stream.batches(range(4)):
        if batch.index == 1:
            for number in sys.argv[1:]:
                os.kill(os.getpid(), getattr(signal, number))
        batch.complete()
print("complete", run.exit_code)
"""


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        (["SIGINT"], 75),
        (["SIGTERM"], 75),
        (["SIGINT", "SIGINT"], 130),
        (["SIGTERM", "SIGTERM"], 143),
    ],
)
def test_a_signal_ends_a_program_with_its_code(
    signals: Sequence[str], code: int, tmp_path: Path
) -> None:
    stopped = run_program(STOPPABLE, tmp_path, *signals)
    assert stopped.returncode == code, stopped.stderr
    assert "Traceback" not in stopped.stderr
    (line,) = [line for line in stopped.stderr.splitlines() if "go on with" in line]
    assert line.endswith(f"program.py {' '.join(signals)}")
    done = run_program(STOPPABLE, tmp_path)
    assert (done.returncode, done.stdout) == (0, "complete 0\n")


SLEEPING = """
import logging, signal, time
from trio_ckpt import blocking

logging.basicConfig(level=logging.INFO)
with blocking.open_run("r", store="r.ckpt") as run, run.open_stream("pages") as stream:
    for batch in stream.batches(range(4)):
        print("ready", flush=True)
        while True:
            time.sleep(0.1)  # a signal right before a sleep does not interrupt it
"""


def test_a_second_signal_ends_a_body_that_sleeps(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SLEEPING, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, str(program)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            while "SIGTERM: stopping in good order" not in process.stderr.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=PROGRAM_S)
        finally:
            process.kill()
    assert process.returncode == 143
    assert "Traceback" not in said


WAITING = """
import signal, threading
from trio_ckpt import blocking

async def interrupt(run):
    await run.wait_confirmed(("pages",), [2])  # soon after that the main thread waits, too
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

with blocking.open_run("r", store="r.ckpt", handle_signals=False) as run:
    run.add_streams([("pages",)])
    with run.beside(interrupt), run.open_stream("pages") as stream:
        for batch in stream.batches(range(4)):
            batch.complete()
            if batch.index == 2:
                try:
                    batch.confirm()
                    run.wait_confirmed(stream, [3])
                finally:
                    print("interrupted", flush=True)
"""


def test_ctrl_c_interrupts_a_call_that_waits(tmp_path: Path) -> None:
    """As in any program that handles no signals; what was completed is saved."""
    stopped = run_program(WAITING, tmp_path)
    assert stopped.stdout == "interrupted\n"
    assert stopped.returncode == -signal.SIGINT, stopped.stderr
    assert stopped.stderr.rstrip().endswith("KeyboardInterrupt")
    with begin_blocking(tmp_path / "r.ckpt") as run, run.open_stream("pages") as stream:
        assert list(stream.progress.done) == [0, 1, 2]
        assert stream.progress.failures == {}


def interrupt_main_thread() -> None:
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def test_an_interrupt_cancels_the_call_and_waits_for_its_end() -> None:
    seen = list[str]()

    async def wait() -> None:
        interrupt_main_thread()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.01)
            seen.append("ended")

    with begin_blocking() as run:
        with pytest.raises(KeyboardInterrupt):
            run._program.call(wait)
        assert seen == ["ended"]
        assert run.add_streams([("pages",)]).new == (("pages",),)


def test_a_block_that_is_entered_despite_an_interrupt_is_left() -> None:
    seen = list[str]()

    @asynccontextmanager
    async def enter_late() -> AsyncGenerator[str]:
        interrupt_main_thread()
        while trio.current_effective_deadline() > -math.inf:  # it is cancelled soon
            with trio.CancelScope(shield=True):
                await trio.sleep(0.001)
        try:
            yield "entered"
        finally:
            seen.append("left")

    with begin_blocking() as run:
        with pytest.raises(KeyboardInterrupt), Block(run._program, enter_late, str):
            raise AssertionError("the body began")
        assert seen == ["left"]
        assert run.add_streams([("pages",)]).new == (("pages",),)


ASKING_TWICE = """
import signal, sys, threading
from functools import partial
from trio_ckpt import blocking
from trio_ckpt.blocking import _thread_task

acts, wait, are_sent = [], _thread_task._Request.wait, threading.Event()

def act_and_wait(request):
    if acts:
        acts.pop(0)()  # the request is sent, and the thread waits next
    return wait(request)

def ask(*_):
    run.add_streams([("asked",)])
    print("handled", flush=True)

def together(first):
    run._program.loop.send(are_sent.wait)  # until both requests are sent none of them arrives
    acts[:] = [first, are_sent.set]

def interrupt():
    raise KeyboardInterrupt

signalled = partial(signal.raise_signal, signal.SIGUSR1)
signal.signal(signal.SIGUSR1, ask)
_thread_task._Request.wait = act_and_wait
with blocking.open_run("r", store="memory:", handle_signals=False) as run:
    run.add_streams([("asked",)])
    if sys.argv[1] == "call":
        together(signalled)
        run.wait_confirmed(("asked",), [])
    elif sys.argv[1] == "leave":
        def work():
            with run.open_stream("pages"):
                together(ask)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    else:
        acts[:] = [signalled, interrupt]
        try:
            run.wait_confirmed(("asked",), [0])  # which is never confirmed
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    print("went on", flush=True)
"""


@pytest.mark.parametrize(
    ("during", "said"),
    [
        ("call", "handled\nwent on\n"),
        ("leave", "handled\nwent on\n"),
        ("interrupt", "interrupted\nwent on\n"),
    ],
)
def test_a_call_during_a_call_has_its_turn(during: str, said: str, tmp_path: Path) -> None:
    """A signal handler of the program makes it, or a finalizer."""
    done = run_program(ASKING_TWICE, tmp_path, during)
    assert (done.returncode, done.stdout) == (0, said), done.stderr


def test_a_second_signal_ends_a_call_of_an_inner_run() -> None:
    seen = list[str]()

    async def wait(outer: BlockingRun) -> None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        while not outer.is_stopping:  # noqa: ASYNC110  # a signal handler sets it
            await trio.sleep(0.001)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        with trio.fail_after(HANG_S):
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                seen.append("cancelled")
                raise

    def program() -> None:
        with (
            begin_blocking(run_id="outer", handle_signals=None) as outer,
            begin_blocking(run_id="inner") as inner,
        ):
            inner._program.call(wait, outer)

    with pytest.raises(RunStoppedError, match="'outer'") as raised:
        program()
    assert (raised.value.run_id, seen) == ("outer", ["cancelled"])


@pytest.mark.parametrize(
    ("acts", "code"),
    [
        (["SIGUSR1", "SIGTERM"], 128 + signal.SIGUSR1),
        (["SIGINT", "SIGTERM"], 130),
        (["request_stop", "SIGINT", "SIGINT"], 143),
    ],
)
def test_the_code_is_that_with_which_the_stop_began(acts: Sequence[str], code: int) -> None:
    def program() -> None:
        names = ["SIGINT", "SIGTERM", "SIGUSR1"]
        with (
            begin_blocking(handle_signals=None, stop_signals=names) as run,
            run.open_stream("pages") as stream,
        ):
            for _ in stream.batches(range(PAGES)):
                for act in acts:
                    if act == "request_stop":
                        run.request_stop()
                    else:
                        signal.raise_signal(signal.Signals[act])

    with pytest.raises(RunStoppedError) as raised:
        program()
    assert raised.value.exit_code == code


def test_only_the_main_thread_may_handle_signals() -> None:
    raised = list[BaseException]()

    def work() -> None:
        try:
            with begin_blocking(handle_signals=True):
                pass
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(HANG_S)
    assert [str(error) for error in raised] == [
        "handle_signals=True needs the main thread, which receives the signals"
    ]


def test_handlers_are_restored_when_the_run_is_left() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with begin_blocking(handle_signals=None) as run:
        ours = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        with begin_blocking(run_id="inner", handle_signals=None):  # the first one has them
            assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == ours
        assert ours[0] is ours[1] is not before[0]
        assert not run.is_stopping
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_signals_may_stop_a_run() -> None:
    before, seen = signal.getsignal(signal.SIGUSR1), []

    def program() -> None:
        names = iter(["SIGUSR1"])
        with begin_blocking(handle_signals=None, stop_signals=names) as run:
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            with run.open_stream("pages") as stream:
                for batch in stream.batches(range(PAGES)):
                    seen.append(batch.index)
                    batch.complete()
                    signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(RunStoppedError) as raised:
        program()
    assert (raised.value.exit_code, seen) == (75, [0])
    assert signal.getsignal(signal.SIGUSR1) == before
    with pytest.raises(ValueError, match="stop_signals must have names of signals"):
        begin_blocking(stop_signals=["SIGKILL"]).__enter__()


# -- interrupts at any line ----------------------------------------------------------------------


def collect(store: MemoryStore) -> list[int]:
    """A loop with a state and a helper's call; returns the pages that are done."""
    with begin_blocking(store) as run:
        run.add_streams([("pages",)])
        with run.open_stream("pages", state={"n": 0}) as stream:
            for batch in stream.batches(range(PAGES)):
                stream.state["n"] += 1
                with batch.waiting():
                    pass
                batch.complete()
                batch.confirm()
            assert stream.state == {"n": len(stream.progress.done)}
            return list(stream.progress.done)


def count_lines() -> int:
    collect(MemoryStore())  # what only a first run passes is not interrupted
    tracer = Tracer()
    with tracer.tracing():
        collect(MemoryStore())
    return tracer.passed


@pytest.mark.parametrize("act", [interrupt, no_memory])
def test_an_interrupt_at_any_line_loses_nothing(act: type[BaseException]) -> None:
    count = count_lines()
    assert count > 100
    for at in range(count):
        store, tracer = MemoryStore(), Tracer(at, act)
        with pytest.raises((KeyboardInterrupt, MemoryError)), tracer.tracing():
            collect(store)
        assert collect(store) == list(range(PAGES)), tracer.where


# -- forks ---------------------------------------------------------------------------------------


def exit_code_of_child(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


FORKING = """
import os, sys
from trio_ckpt import ForkedProcessError, blocking

with blocking.open_run("r", store="r.ckpt") as run, run.open_stream("pages") as stream:
    for batch in stream.batches(range(2)):
        if batch.index == 0:
            child = os.fork()
            if child == 0:
                try:
                    batch.confirm()
                except ForkedProcessError:
                    sys.exit(7)  # through all blocks
            print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        batch.complete()
print("complete", run.exit_code)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_nothing_of_the_run(tmp_path: Path) -> None:
    done = run_program(FORKING, tmp_path)
    assert (done.returncode, done.stdout) == (0, "child 7\ncomplete 0\n"), done.stderr
