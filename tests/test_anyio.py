"""The library under anyio, and httpx in its batches."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import anyio
import httpx
import pytest

from tests.opening import begin
from tests.served import served
from trio_ckpt import Batch, http_retries, run_batches


class Pages(BaseHTTPRequestHandler):
    """Answers with the number of the page; each page fails the first time."""

    failed: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        is_first = self.path not in self.failed
        self.failed.add(self.path)
        body = json.dumps({"page": int(self.path[1:])}).encode()
        self.send_response(503 if is_first else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def site() -> Generator[str]:
    """A server on loopback; yields its address."""
    Pages.failed.clear()
    with served(Pages) as url:
        yield url


def test_httpx_fetches_the_pages_of_a_run(tmp_path: Path) -> None:
    async def main(address: str) -> int:
        async with (
            httpx.AsyncClient(base_url=address, trust_env=False) as client,
            begin(output_dir=tmp_path) as run,
            run.open_stream("pages") as stream,
        ):

            async def handle(batch: Batch[int]) -> None:
                response = await client.get(f"/{batch.item}")
                response.raise_for_status()
                await batch.write_json(f"{batch.item}.json", response.json())
                batch.complete()

            retry = http_retries(backoff_s=0)
            await run_batches(stream, range(6), handle, concurrency=3, retry=retry)
        return run.exit_code

    with site() as address:
        assert anyio.run(main, address, backend="trio") == 0
    assert len(list(tmp_path.glob("[0-9]*.json"))) == 6


def test_task_groups_and_scopes_of_anyio_are_those_of_trio() -> None:
    async def main() -> list[int]:
        async with begin() as run, anyio.create_task_group() as group:

            async def collect(key: str) -> None:
                async with run.open_stream(key) as stream:
                    async for batch in stream.batches(range(3)):
                        batch.complete()

            group.start_soon(collect, "a")
            group.start_soon(collect, "b")
            await run.add_streams([("a",), ("b",), ("c",)])
            await run.wait_confirmed(("a",), range(3))
            await run.wait_confirmed(("b",), range(3))
            with anyio.move_on_after(0.01) as scope:
                async with run.open_stream("c") as stream:
                    async for _ in stream.batches(range(3)):
                        await anyio.sleep_forever()
            assert scope.cancelled_caught
        return list(stream.progress.done)

    assert anyio.run(main, backend="trio") == []


def test_on_its_asyncio_backend_the_error_says_what_to_do() -> None:
    async def main() -> None:
        async with begin():
            pass

    with pytest.raises(RuntimeError, match=r"under asyncio: .* trio_ckpt\.from_asyncio\.run"):
        anyio.run(main, backend="asyncio")


def test_a_synchronous_caller_is_told_of_the_synchronous_runs() -> None:
    with pytest.raises(RuntimeError, match=r"outside of trio: .* use trio_ckpt\.blocking"):
        begin().__aenter__().send(None)
