"""What is wrong is refused at the public border, with its name, its value and what would be right.

A row is a call, the argument that is wrong, and its value.  The message must name both, and a
refused call must have changed nothing.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import numpy as np
import pytest

from trio_ckpt import (
    Retention,
    RetryRule,
    RetryTable,
    Run,
    open_run,
)
from trio_ckpt.progress import show_progress
from trio_ckpt.stores import MemoryStore

NO_COUNT = (1.5, "1", None, True, np.float64(1), [1], math.nan)
NO_SECONDS = ("1", True, [1], 1j, object())
NO_SPAN = (-1, math.nan, -math.inf)
NO_FLAG = ("no", "false", 0, 1, [])
NO_LIST = (5, "name", b"name", {"name": 1})
NO_FUNCTION = (5, "len", [len])


@attrs.frozen
class Call:
    """A callable, and the argument that is varied."""

    name: str
    argument: str
    call: Callable[..., Any]

    def __str__(self) -> str:
        return f"{self.name}({self.argument}=)"


def rows(
    name: str, call: Callable[..., Any], **wrong: tuple[object, ...]
) -> list[tuple[Call, object]]:
    return [
        (Call(name, argument, call), value)
        for argument, values in wrong.items()
        for value in values
    ]


def rule(**changed: Any) -> RetryRule:
    return RetryRule(**{"errors": (OSError,), **changed})


RECORDS = [
    *rows(
        "RetryRule",
        rule,
        errors=(5, OSError, "OSError", ["OSError"], [5], [object]),
        when=NO_FUNCTION,
        attempts=(*NO_COUNT, 0, -1),
        then=("skip", "SKIP", 5, None),
        retryable=NO_FLAG,
        backoff_s=(*NO_SECONDS, *NO_SPAN, math.inf, None),
        max_backoff_s=(*NO_SECONDS, *NO_SPAN, math.inf, None),
        jitter=(*NO_SECONDS, *NO_SPAN, math.inf, None),
        retry_after=NO_FUNCTION,
        max_retry_after_s=(*NO_SECONDS, *NO_SPAN, None),
    ),
    *rows("RetryTable", RetryTable, rules=(rule(), 5, "rules")),
    *rows(
        "Retention",
        Retention,
        last=(*NO_COUNT, 0),
        every=(*NO_COUNT, -1),
        max_age_s=(*NO_SECONDS, *NO_SPAN, None),
        max_bytes=(*NO_COUNT, -1),
    ),
]


def ids(value: object) -> str:
    return str(value) if isinstance(value, Call) else f"{type(value).__name__}-{value!r:.30}"


def is_named(argument: str, error: BaseException) -> bool:
    """Whether a message begins with the name of the argument and says what would be right."""
    return re.match(rf"{argument} must (not )?be .+", str(error)) is not None


@pytest.mark.parametrize(("call", "value"), RECORDS, ids=ids)
def test_a_record_with_a_wrong_field_is_refused(call: Call, value: object) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call.call(**{call.argument: value})
    assert is_named(call.argument, caught.value), caught.value


def test_rules_that_are_no_rules_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^a rule must be a RetryRule, not 5$"):
        RetryTable((5,))  # type: ignore[arg-type]


def test_lists_serve_where_tuples_are_kept() -> None:
    table = RetryTable([RetryRule([OSError])])  # type: ignore[arg-type]
    assert table.rules[0].errors == (OSError,)


@asynccontextmanager
async def opened(**changed: Any) -> AsyncGenerator[Run]:
    arguments = {"store": MemoryStore(), "handle_signals": False, **changed}
    async with open_run("run", **arguments) as run:
        yield run


OPEN_RUN = rows("open_run", opened, exclude=NO_LIST, tunable=NO_LIST)


@pytest.mark.parametrize(("call", "value"), OPEN_RUN, ids=ids)
async def test_a_run_with_a_wrong_argument_is_refused(call: Call, value: object) -> None:
    store = MemoryStore()
    with pytest.raises((TypeError, ValueError)) as caught:
        async with call.call(store=store, **{call.argument: value}):
            pass
    assert is_named(call.argument, caught.value), caught.value
    assert await store.load_run("run") is None


@pytest.mark.parametrize("value", [*NO_SECONDS, *NO_SPAN, 0])
async def test_a_display_of_a_wrong_pace_is_refused(value: Any) -> None:
    async with opened() as run:
        with pytest.raises((TypeError, ValueError), match=r"^every_s must be a number of seconds"):
            await show_progress(run, file=io.StringIO(), every_s=value)


@pytest.mark.parametrize("value", [None, 5, "run", Run])
async def test_a_display_of_what_is_no_run_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^run must be an open run, not "):
        await show_progress(value)
