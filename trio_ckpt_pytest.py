"""The pytest plugin of trio_ckpt: fixtures for programs that must survive crashes.

pytest imports its plugins at every start, whether a test uses them or not, so this module is
outside of the package and imports it where a fixture is asked for: a test run that uses none of
them pays a millisecond.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from trio.testing import MockClock

    from trio_ckpt.abc import Store
    from trio_ckpt.testing import Exploration

_SAID = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `ckpt_crashes` and `ckpt_scheduler`."""
    group = parser.getgroup("trio_ckpt", "programs that must survive crashes (trio_ckpt)")
    group.addoption(
        "--ckpt-replay",
        metavar="PLAN",
        help='crash only here, as a CrashFoundError names it: "store:17,power,seed 3"',
    )
    group.addoption(
        "--ckpt-crashes",
        type=int,
        metavar="N",
        help="at most so many plans of crashes for each test, spread evenly",
    )
    group.addoption(
        "--ckpt-time-limit",
        type=float,
        metavar="S",
        help="seconds that each test may explore crashes for",
    )
    group.addoption(
        "--ckpt-seed",
        type=int,
        metavar="N",
        help="what orders and random schedules follow from",
    )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Report what was explored, and above all what was left out."""
    said = config.stash.get(_SAID, [])
    if said:
        terminalreporter.section("crashes")
        for line in said:
            terminalreporter.line(line)


@pytest.fixture
def ckpt_crashes(request: pytest.FixtureRequest) -> Callable[..., Exploration]:
    """`trio_ckpt.testing.explore_crashes`, with the command line's replay and budget.

    For tests that are not coroutines: it runs trio itself.
    """
    from trio_ckpt.testing import explore_crashes

    config, node_id = request.config, request.node.nodeid

    @functools.wraps(explore_crashes)
    def explore(program: Any, check: Any, **settings: Any) -> Exploration:
        for option, name in (
            ("--ckpt-replay", "replay"),
            ("--ckpt-crashes", "crashes"),
            ("--ckpt-time-limit", "time_limit_s"),
            ("--ckpt-seed", "seed"),
        ):
            if (value := config.getoption(option)) is not None:
                settings[name] = value
        settings.setdefault("how_to_replay", f'pytest "{node_id}" --ckpt-replay "{{}}"')
        found = explore_crashes(program, check, **settings)
        config.stash.setdefault(_SAID, []).append(f"{node_id}: {found}")
        return found

    return explore


@pytest.fixture
def ckpt_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store | str:
    """A fresh store, for ``open_run(store=...)``: in memory.

    Parametrise it for others: ``@pytest.mark.parametrize("ckpt_store", ["memory", "sqlite",
    "json"], indirect=True)``; the local ones are URLs of a folder that is empty.
    """
    from trio_ckpt.stores import MemoryStore

    scheme = getattr(request, "param", "memory")
    if scheme == "memory":
        return MemoryStore()
    if scheme not in ("sqlite", "json"):
        raise ValueError(f"ckpt_store is 'memory', 'sqlite' or 'json', not {scheme!r}")
    return f"{scheme}:{tmp_path / 'ckpt'}"


@pytest.fixture
def ckpt_clock() -> MockClock:
    """A mock clock that jumps when all tasks sleep, but not while a thread is running.

    With pytest-trio it is the test's clock; otherwise pass it to `trio.run`.
    """
    from trio_ckpt.testing import make_clock

    return make_clock()


@pytest.fixture
def ckpt_scheduler(request: pytest.FixtureRequest) -> Generator[int, None, None]:
    """Makes trio's order of tasks follow from a seed in this test; gives the seed.

    The seed is ``--ckpt-seed``, else the fixture's parameter, else 0.
    """
    from trio_ckpt.testing import seeded_scheduler

    chosen = request.config.getoption("--ckpt-seed")
    seed: int = getattr(request, "param", 0) if chosen is None else chosen
    scheduler: AbstractContextManager[None] = seeded_scheduler(seed)
    with scheduler:
        yield seed
