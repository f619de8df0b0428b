"""A run that goes on beside a web application of asyncio, as the page on programs says it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.hangs import HANG_S

pytest.importorskip("fastapi", reason="fastapi is not installed")

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "programs-without-trio.md"
PROGRAM = re.compile(r'^<!-- skip: next "needs FastAPI: .*?```python\n(.*?)^```$', re.M | re.S)


def program() -> dict[str, Any]:
    """What the program of the page defines."""
    found = PROGRAM.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    defined: dict[str, Any] = {}
    exec(found[1], defined)
    return defined


async def serve(app: Any, until: int) -> list[int]:
    """What the application answers from its start on, until it has so many records."""
    answers = [-1]
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client,
    ):
        while answers[-1] < until:
            await asyncio.sleep(0.01)
            records = (await client.get("/progress")).json()["records"]
            answers += [] if records is None else [records]  # None before the run is open
    return answers[1:]


def test_a_run_goes_on_when_its_web_application_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def session(until: int) -> list[int]:
        return asyncio.run(asyncio.wait_for(serve(program()["app"], until), HANG_S))

    first = session(5)
    second = session(10)
    assert first[-1] < 1_000
    assert first[-1] <= second[0] < 1_000
    assert second[-1] >= 10
