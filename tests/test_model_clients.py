"""The clients of OpenAI and Anthropic in the batches of a run, on trio, against a mock server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from tests.opening import begin
from tests.served import served
from trio_ckpt import Again, Batch, Limits, RunStoppedError, http_retries, run_batches
from trio_ckpt.stores import MemoryStore

openai = pytest.importorskip("openai", reason="the client of OpenAI is of the extra tests")
anthropic = pytest.importorskip("anthropic", reason="that of Anthropic is of the extra tests")

Ask = Callable[[Any, str], Awaitable[tuple[str, int]]]


class Models(BaseHTTPRequestHandler):
    """Answers both APIs with the prompt in capitals; each prompt meets its rate limit once."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = request["messages"][0]["content"]
        self.asked[prompt] += 1
        is_limited = self.asked[prompt] == 1
        answer = {"error": {"message": "slow down"}} if is_limited else self.answer(prompt)
        body = json.dumps(answer).encode()
        self.send_response(429 if is_limited else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, prompt: str) -> dict[str, Any]:
        text = prompt.upper()
        if self.path.endswith("/messages"):
            return {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "mock",
                "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn",
                "usage": {"input_tokens": 3, "output_tokens": 7},
            }
        message = {"role": "assistant", "content": text}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "mock",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10},
        }

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def models() -> Generator[str]:
    """A server on loopback; yields its address."""
    Models.asked.clear()
    with served(Models) as url:
        yield url


async def ask_openai(client: Any, prompt: str) -> tuple[str, int]:
    found = await client.chat.completions.create(
        model="mock", messages=[{"role": "user", "content": prompt}]
    )
    return found.choices[0].message.content, found.usage.total_tokens


async def ask_anthropic(client: Any, prompt: str) -> tuple[str, int]:
    found = await client.messages.create(
        model="mock", max_tokens=99, messages=[{"role": "user", "content": prompt}]
    )
    return found.content[0].text, found.usage.input_tokens + found.usage.output_tokens


def open_openai(address: str) -> Any:
    return openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def open_anthropic(address: str) -> Any:
    return anthropic.AsyncAnthropic(base_url=address, api_key="none", max_retries=0)


CLIENTS = [(open_openai, ask_openai), (open_anthropic, ask_anthropic)]
each_client = pytest.mark.parametrize(("connect", "ask"), CLIENTS, ids=["openai", "anthropic"])


@each_client
def test_a_run_asks_a_model_again_when_its_limit_is_met(
    tmp_path: Path, connect: Callable[[str], Any], ask: Ask
) -> None:
    async def main(address: str) -> float:
        async with (
            connect(address) as client,
            begin(output_dir=tmp_path) as run,
            run.open_stream("pages") as stream,
        ):

            async def handle(batch: Batch[str]) -> None:
                text, tokens = await ask(client, batch.item)
                batch.spend(tokens=tokens)
                await batch.write_text(f"{batch.item}.txt", text)
                batch.complete()

            retry = http_retries(backoff_s=0)
            await run_batches(stream, ["one", "two", "three"], handle, concurrency=2, retry=retry)
        return run.statistics().spent["tokens"]

    with models() as address:
        assert trio.run(main, address) == 30
    assert Models.asked == {"one": 2, "two": 2, "three": 2}
    assert {path.name: path.read_text() for path in tmp_path.glob("*.txt")} == {
        "one.txt": "ONE",
        "two.txt": "TWO",
        "three.txt": "THREE",
    }


@each_client
def test_tokens_that_a_model_counts_are_a_budget(connect: Callable[[str], Any], ask: Ask) -> None:
    store, limits = MemoryStore(), Limits(spent={"tokens": 20})

    async def main(address: str) -> None:
        async with (
            connect(address) as client,
            begin(store=store, limits=limits) as run,
            run.open_stream("pages", retry=http_retries(backoff_s=0)) as stream,
        ):
            async for batch in stream.batches(["one", "two", "three"]):
                try:
                    _, tokens = await ask(client, batch.item)
                except openai.APIError as error:
                    batch.fail(error)
                except anthropic.APIError as error:
                    batch.fail(error)
                else:
                    batch.spend(tokens=tokens)
                    batch.complete()

    with models() as address:
        for _ in range(2):
            with pytest.raises(RunStoppedError) as caught:
                trio.run(main, address)
            assert caught.value.exit_code == 75
    assert Models.asked == {"one": 2, "two": 2}


@each_client
def test_a_model_that_cannot_be_reached_is_asked_again(
    connect: Callable[[str], Any], ask: Ask
) -> None:
    async def main() -> bool:
        async with connect("http://127.0.0.1:1") as client:
            with pytest.raises((openai.APIConnectionError, anthropic.APIConnectionError)) as caught:
                await ask(client, "one")
            return isinstance(http_retries().decide(caught.value, 1), Again)

    assert trio.run(main)
