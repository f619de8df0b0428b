"""An act whose process is killed at any change of a file was done, or it never was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.crash.act_sweep import check_killed
from tests.crash.acts import ACTS, MOST_POINTS, AimedKills, prepare
from tests.crash.recorder import NO_COMPILER, Action, build, has_compiler

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the recorder is for Linux"),
    pytest.mark.skipif(not has_compiler(), reason=NO_COMPILER),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AimedKills]:
    with AimedKills(build(tmp_path_factory.mktemp("recorder"))) as started:
        yield started


@pytest.mark.parametrize("kind", ["sqlite", "json"])
@pytest.mark.parametrize("do", ACTS)
def test_an_act_that_is_killed_was_done_or_never_was(
    do: str, kind: str, server: AimedKills, tmp_path: Path
) -> None:
    """Before and after each change of a file that the act makes, until it is answered first."""
    found: list[bool] = []
    for point in range(2, 2 * MOST_POINTS):
        action = Action.KILL_AFTER if point % 2 else Action.KILL_BEFORE
        root = tmp_path / str(point)
        root.mkdir()
        url = f"{kind}:{root / 'store'}"
        trio.run(prepare, url, do)
        told = server.kill(url, root, do, action, point // 2)
        found.append(check_killed(url, do, told))
        if told.words("answered"):
            break
    assert told.words("answered")
    assert found[0] is False
    assert found[-1] is True
