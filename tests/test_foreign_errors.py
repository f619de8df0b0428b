"""Exceptions of other code are asked for their text in one place, as if they were hostile."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio
from trio.testing import MockClock

import trio_ckpt.abc
from tests.loggers import LOGGERS
from tests.remote.misbehaving import RAISED
from trio_ckpt import CheckpointCoordinator, CheckpointFailedError, RetryRule, RetryTable, Then
from trio_ckpt._journal.record import describe_error
from trio_ckpt._util.arguments import shown
from trio_ckpt._util.errors import NotEncodableError
from trio_ckpt._util.exceptions import class_name, text_of
from trio_ckpt._util.plain import as_plain
from trio_ckpt.monitor._routes import refusal_of
from trio_ckpt.outputs import Validator
from trio_ckpt.stores import MemoryStore

MADE = {what: make() for what, make in RAISED.items()}
ERRORS = {
    what: make
    for what, make in RAISED.items()
    if isinstance(MADE[what], Exception) and not what.startswith("Classless")
}
each_error = pytest.mark.parametrize(("what", "make"), ERRORS.items(), ids=ERRORS.keys())


def text_in(what: str) -> str:
    """What is said without its class."""
    kind, _, text = what.partition(": ")
    return what if "text cannot be made" in kind else text or kind


@pytest.mark.parametrize(
    ("what", "make"),
    [entry for entry in RAISED.items() if not entry[0].startswith("Classless")],
)
def test_a_text_is_there_whatever_the_exception(
    what: str, make: Callable[[], BaseException]
) -> None:
    error = make()
    assert text_in(what) in text_of(error).encode(errors="backslashreplace").decode()
    assert what.startswith(class_name(error))
    info = describe_error(error)
    assert (info.type, text_in(what) in info.message) == (class_name(error), True)


@pytest.mark.parametrize("name", ["trio_ckpt._commit.gate", "trio_ckpt.remote._worker.worker"])
@each_error
def test_a_log_record_is_made_whatever_is_in_it(
    what: str, make: Callable[[], Exception], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert name in LOGGERS
    importlib.import_module(name)
    log = logging.getLogger(name)
    log.warning("an item failed: %s", make())
    try:
        raise make()
    except Exception:
        log.exception("it failed")
    assert caplog.messages[0].startswith("an item failed: ")
    assert caplog.messages[1] == "it failed"
    assert any(kind in caplog.text for kind in ("Error", "Stop", "ExceptionGroup"))


@pytest.mark.parametrize(
    ("what", "make"),
    [
        (what, make)
        for what, make in ERRORS.items()
        if not what.startswith("Stop")  # of which Python makes another in every coroutine
    ],
)
async def test_an_error_leaves_a_run_as_it_is_and_is_remembered(
    what: str, make: Callable[[], Exception]
) -> None:
    store, error = MemoryStore(), make()
    with pytest.raises(class_of(error)) as caught:  # noqa: PT012  # what leaves all of it
        async with (
            trio_ckpt.open_run("r", store=store, handle_signals=False) as run,
            run.open_stream("s") as stream,
        ):
            async for batch in stream.batches(range(2)):
                if batch.index:
                    raise error
                batch.complete()
    assert caught.value is error
    async with trio_ckpt.open_run("r", store=store, handle_signals=False) as run:
        summary = run.group("s")
        assert summary.error is not None
        assert text_in(what) in summary.error.message


def class_of(error: BaseException) -> type[BaseException]:
    """The class of an exception that may say it has another."""
    return type(error)


@each_error
async def test_a_batch_that_failed_with_it_is_tried_again_and_skipped(
    autojump_clock: MockClock, what: str, make: Callable[[], Exception]
) -> None:
    table = RetryTable((RetryRule((Exception,), attempts=2, then=Then.SKIP),))
    store = MemoryStore()
    async with (
        trio_ckpt.open_run("r", store=store, handle_signals=False) as run,
        run.open_stream("s", retry=table) as stream,
    ):
        async for batch in stream.batches(range(2)):
            batch.fail(make())
        skipped = [entry async for entry in stream.skipped()]
    assert [(index, attempt.attempts) for index, _, attempt in skipped] == [(1, 2), (0, 2)]
    for _, _, attempt in skipped:
        assert attempt.error is not None
        assert text_in(what) in attempt.error.message


@each_error
async def test_who_waits_for_a_token_is_told(what: str, make: Callable[[], Exception]) -> None:
    async with CheckpointCoordinator() as coordinator:
        token = coordinator.create_checkpoint("r", 0)
        error = make()
        token.fail(error)
        with pytest.raises(CheckpointFailedError) as caught:
            await token.wait()
    assert caught.value.__cause__ is error
    assert text_in(what) in caught.value.reason.encode(errors="backslashreplace").decode()


@each_error
async def test_a_handler_of_several_batches_that_raises_it_ends_the_run(
    what: str, make: Callable[[], Exception]
) -> None:
    error = make()

    async def handle(batch: trio_ckpt.Batch[int]) -> None:
        await trio.lowlevel.checkpoint()
        batch.fail(error)

    with pytest.raises(trio_ckpt.TrioCkptError) as caught:
        async with (
            trio_ckpt.open_run("r", store=MemoryStore(), handle_signals=False) as run,
            run.open_stream("s") as stream,
        ):
            await trio_ckpt.run_batches(stream, range(1), handle, concurrency=2)
    assert text_in(what) in str(caught.value).encode(errors="backslashreplace").decode()


@each_error
async def test_a_retry_table_that_raises_it_leaves_the_batch_its_own_error(
    what: str, make: Callable[[], Exception]
) -> None:
    def refuse(_error: BaseException) -> NoReturn:
        raise make()

    for rule in (
        RetryRule((Exception,), when=refuse),
        RetryRule((Exception,), retry_after=refuse),
    ):
        with pytest.raises(trio_ckpt.BatchFailedError, match="its own"):  # noqa: PT012  # as above
            async with (
                trio_ckpt.open_run("r", store=MemoryStore(), handle_signals=False) as run,
                run.open_stream("s", retry=RetryTable((rule,))) as stream,
            ):
                async for batch in stream.batches(range(1)):
                    batch.fail(OSError("its own"))


@each_error
def test_a_validator_that_raises_it_refuses_the_output(
    what: str, make: Callable[[], Exception]
) -> None:
    def refuse(_document: Any) -> NoReturn:
        raise make()

    with pytest.raises(trio_ckpt.OutputInvalidError) as caught:
        Validator.of(refuse).check("a.json", b"{}")
    assert text_in(what) in caught.value.reason.encode(errors="backslashreplace").decode()


class Raises(trio_ckpt.abc.Observer):
    """Raises the same at everything that it is told."""

    def __init__(self, make: Callable[[], Exception]) -> None:
        self._make = make

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        raise self._make()


@each_error
async def test_an_observer_that_raises_it_breaks_no_run(
    what: str, make: Callable[[], Exception], tmp_path: Path
) -> None:
    async with (
        trio_ckpt.open_run(
            "r", store=MemoryStore(), handle_signals=False, observe=[Raises(make)]
        ) as run,
        run.open_stream("s") as stream,
    ):
        async for batch in stream.batches(range(3)):
            batch.complete()
    assert run.exit_code == 0


NURSERY = "Exceptions from Trio nursery"


class PartlyError(ExceptionGroup[Exception]):
    def __str__(self) -> str:
        return "3 of 10 are missing"


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ExceptionGroup(NURSERY, [OSError("503")]), "OSError", "503"),
        (ExceptionGroup(NURSERY, [OSError("503"), OSError("503")]), "OSError", "503 (2 times)"),
        (ExceptionGroup(NURSERY, [OSError("a"), OSError("b")]), "OSError", "a; b"),
        (
            ExceptionGroup(
                "unhandled errors in a TaskGroup", [OSError("a"), ExceptionGroup("", [KeyError()])]
            ),
            "ExceptionGroup",
            "OSError: a; KeyError",
        ),
        (ExceptionGroup("two halves", [OSError("a")]), "OSError", "two halves: a"),
        (PartlyError("all", [OSError("a")]), "PartlyError", "3 of 10 are missing"),
        (
            ExceptionGroup(NURSERY, [OSError(str(number)) for number in range(1_000)]),
            "OSError",
            "0; 1; 2; 3; 4; and 995 more",
        ),
    ],
)
def test_a_group_says_what_its_errors_say(error: Exception, kind: str, text: str) -> None:
    assert (class_name(error), text_of(error)) == (kind, text)
    info = describe_error(error)
    assert (info.type, info.message) == (kind, text)


async def test_what_trio_cancelled_beside_an_error_is_not_told() -> None:
    found = list[BaseException]()
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as error:
            found.append(error)
    parts = [found[0], OSError("a")]
    assert text_of(BaseExceptionGroup(NURSERY, parts)) == "a"
    assert class_name(BaseExceptionGroup(NURSERY, parts)) == "OSError"
    assert class_name(BaseExceptionGroup(NURSERY, found)) == "Cancelled"


@pytest.mark.parametrize("is_caught", [False, True])
async def test_records_of_a_group_say_what_went_wrong_in_it(
    autojump_clock: MockClock, is_caught: bool
) -> None:
    """In the record, at the token, and with the stream."""
    store, reasons = MemoryStore(), list[str]()

    async def wait(token: trio_ckpt.CheckpointToken[Any]) -> None:
        with pytest.raises(CheckpointFailedError) as caught:
            await token.wait()
        reasons.append(caught.value.reason)

    async def fail(text: str) -> NoReturn:
        raise OSError(text)

    async def work(batch: trio_ckpt.Batch[int]) -> None:
        await trio.sleep(1)
        async with trio.open_nursery() as both:
            both.start_soon(fail, "503")
            both.start_soon(fail, "503")

    with pytest.raises((ExceptionGroup, trio_ckpt.BatchFailedError)):  # noqa: PT012  # as above
        async with (
            trio.open_nursery() as nursery,
            trio_ckpt.open_run("r", store=store, handle_signals=False) as run,
            run.open_stream("s") as stream,
        ):
            async for batch in stream.batches(range(1)):
                nursery.start_soon(wait, batch.token)
                try:
                    await work(batch)
                except ExceptionGroup as error:
                    if not is_caught:
                        raise
                    batch.fail(error)
    assert reasons == ["503 (2 times)"]
    async with trio_ckpt.open_run("r", store=store, handle_signals=False) as run:
        error = run.group("s").error
        assert error is not None
        assert (error.type, error.message) == ("OSError", "503 (2 times)")


# -- values of other code, and what is said where people read it ----------------------------------


class ExitsWhenShown:
    def __repr__(self) -> str:
        raise SystemExit(3)


class LongText(str):
    def __len__(self) -> int:
        raise ValueError("no length")


class ShownOddly:
    def __repr__(self) -> str:
        return LongText("odd")


class NamelessKind(type):
    def __getattribute__(cls, name: str) -> Any:
        if name.startswith("__") and name.endswith("name__"):
            raise ValueError("no name")
        return super().__getattribute__(name)


class NamelessValue(metaclass=NamelessKind):
    def __repr__(self) -> str:
        raise ValueError("not shown")


HOSTILE: dict[str, Callable[[], Any]] = {
    "an ExitsWhenShown": ExitsWhenShown,
    "odd": ShownOddly,
    "a NamelessValue": NamelessValue,
    "an int": lambda: 10**5_000,  # Python refuses to write it as text
}


@pytest.mark.parametrize(("text", "make"), HOSTILE.items(), ids=HOSTILE.keys())
def test_a_value_is_named_whatever_it_does_when_shown(text: str, make: Callable[[], Any]) -> None:
    assert shown(make()) == text
    with pytest.raises(NotEncodableError, match=rf"its key {text} is not a str"):
        as_plain({"a": [{make(): 1}]}, "metadata")


@each_error
def test_an_error_of_other_code_leaves_the_monitor_as_it_is(
    what: str, make: Callable[[], Exception]
) -> None:
    error = make()
    with pytest.raises(class_of(error)) as caught:
        refusal_of(error)
    assert caught.value is error
