"""Each record of the log says as fields what it is about."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

import ast
import importlib
import io
import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import trio

import trio_ckpt
from tests.loggers import LOGGERS
from tests.opening import begin
from trio_ckpt import RetryRule, RetryTable, Run, RunStoppedError
from trio_ckpt._util.log import FIELDS, at
from trio_ckpt.abc import Attempt, Observer
from trio_ckpt.stores import MemoryStore

FORMAT = "%(run_id)s|%(stream)s|%(batch)s|%(message)s"


def fields_of(record: Any) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in FIELDS)


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def of_loggers(caplog: pytest.LogCaptureFixture, *names: str) -> list[tuple[Any, ...]]:
    return [fields_of(r) for r in caplog.records if r.name.removeprefix("trio_ckpt.") in names]


@pytest.mark.parametrize("name", LOGGERS)
def test_a_formatter_may_name_the_fields_for_every_logger(name: str) -> None:
    importlib.import_module(name)
    log, out = logging.getLogger(name), io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter(FORMAT))
    log.addHandler(handler)
    try:
        log.error("nowhere")
        log.error("somewhere", extra=at("r", ("org/repo", "pulls"), 3))
        log.error("in a run", extra=at("r"))
    finally:
        log.removeHandler(handler)
    assert out.getvalue().splitlines() == [
        "None|None|None|nowhere",
        "r|org/repo/pulls|3|somewhere",
        "r|None|None|in a run",
    ]


@pytest.fixture
def own_factory() -> Generator[None]:
    was = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = was(*args, **kwargs)
        record.run_id, record.batch = "of the program", 7
        return record

    logging.setLogRecordFactory(make)
    yield
    logging.setLogRecordFactory(was)


async def test_fields_that_a_program_sets_itself_end_no_run(
    own_factory: None, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    for _ in range(2):
        async with begin(store) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(1)):
                batch.complete()
    assert fields_of(caplog.records[0]) == ("r", None, 7)


async def test_a_run_says_which_one_it_is(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    async with begin(store, config={"a": 1}):
        pass
    with pytest.raises(RunStoppedError):
        async with begin(store, config={"a": 2}, tunable=["a"]) as run:
            run.request_stop()
            await work(run)
    assert set(of_loggers(caplog, "_runs.announce", "_commit.shutdown", "_runs.session")) == {
        ("r", None, None)
    }
    assert len(of_loggers(caplog, "_runs.session")) == 1


async def work(run: Run, count: int = 2) -> None:
    async with run.open_stream("org/repo", "pulls") as stream:
        async for batch in stream.batches(range(count)):
            batch.complete()


async def test_a_stream_says_which_one_it_is(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    for count in (2, 3):
        async with begin(store) as run:
            await work(run, count)
    found = of_loggers(caplog, "_runs.loop_bounds", "_runs.stream_operations")
    assert found
    assert set(found) == {("r", "org/repo/pulls", None)}


async def test_a_batch_that_waits_says_of_which_stream(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    class SlowDownError(Exception):
        """It asks to wait."""

    rule = RetryRule((SlowDownError,), attempts=2, retry_after=lambda error: 5.0)
    table = RetryTable([rule])
    async with begin(MemoryStore()) as run, run.open_stream("s", retry=table) as stream:
        async for batch in stream.batches(range(1)):
            if batch.attempt == 1:
                batch.fail(SlowDownError())
            else:
                batch.complete()
    assert of_loggers(caplog, "_commit.pauses") == [("r", "s", None)]


class BadObserver(Observer):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def attempt_began(self, attempt: Attempt) -> None:
        raise self.error


@pytest.mark.parametrize("error", [KeyError("k"), SystemExit(1), KeyboardInterrupt()])
async def test_an_observer_that_fails_says_at_which_batch(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it raises: what only watches ends no program."""
    async with begin(MemoryStore(), observe=[BadObserver(error)]) as run:
        await work(run)
        assert run.exit_code == 0
    assert of_loggers(caplog, "_commit.observers") == [("r", "org/repo/pulls", n) for n in range(2)]


KNOW_NO_RUN = {
    "_journal/live_view.py": ["decode_live"],
    "_commit/shutdown.py": ["take_signals", "obey_signal"],
}


def test_each_line_of_a_run_says_what_it_is_about() -> None:
    """A line that is added later, too."""
    missing: dict[str, list[str]] = {}
    package = Path(trio_ckpt.__file__).parent
    for path in [package / "progress.py", *sorted(package.glob("_*/*.py"))]:
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                missing.setdefault(str(path.relative_to(package)), []).extend(
                    function.name for call in calls_of_log(function) if not has_fields(call)
                )
    assert {name: lacking for name, lacking in missing.items() if lacking} == KNOW_NO_RUN


def calls_of_log(function: ast.AST) -> list[ast.Call]:
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    return [
        call
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "log"
    ]


def has_fields(call: ast.Call) -> bool:
    return any(keyword.arg == "extra" for keyword in call.keywords)
