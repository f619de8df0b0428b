"""Clients of batch APIs: what a pipeline asks of one, in the words of two providers.

Both APIs take a batch of requests, work on it for minutes or hours, and give the results as lines
of JSON. A client that has lost the answer to its submission can find its batch again: by metadata
in OpenAI's API, by the custom ids of its requests in Anthropic's, whose batches have no metadata.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Protocol
from urllib.parse import urlencode

import attrs
import trio

from .provider import MAX_TOKENS, USD_PER_TOKEN, Outcome

MODEL = "a-model"
INTENT = "intent"  # the name in the metadata
PAGE = 100
BOUNDARY = "llm-batches-boundary"


class ProviderError(OSError):
    """The provider did not answer, or refused."""


class Http(Protocol):
    """Sends requests to the provider."""

    async def request(
        self, method: str, target: str, body: bytes = b"", content_type: str = "application/json"
    ) -> bytes:
        """Send one request; returns the body of the answer.

        Raises:
            ProviderError: there was no answer, or another one than 200.
        """
        ...


@attrs.frozen
class Result:
    """What became of one request.

    Attributes:
        outcome: ``succeeded``, ``errored`` or ``expired``.
        text: The answer; empty where there is none.
        cost_usd: What the provider charges for it.
    """

    outcome: Outcome
    text: str = ""
    cost_usd: float = 0.0


def custom_id(intent: str, number: int) -> str:
    """The custom id of a request: the intent of its batch, and the number of the question."""
    return f"{intent}_{number}"


class BatchApi(Protocol):
    """The batch API of a provider."""

    async def submit(self, intent: str, prompts: Mapping[int, str]) -> str:
        """Submit requests under an intent; returns the id of the batch."""
        ...

    async def find(self, intent: str, prompts: Mapping[int, str]) -> str | None:
        """The id of the batch that was submitted under an intent; None: none was.

        Cancellation: a cancellation point; it may wait for batches that are worked on.
        """
        ...

    async def results(self, batch_id: str) -> dict[int, Result] | None:
        """The results by the numbers of the questions; None: they are not there yet."""
        ...


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


@attrs.frozen
class OpenAi:
    """The batch API as OpenAI documents it: files, and batches with metadata."""

    http: Http
    poll_s: float

    async def submit(self, intent: str, prompts: Mapping[int, str]) -> str:
        """See `BatchApi.submit`."""
        lines = [
            {
                "custom_id": custom_id(intent, number),
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": MODEL,
                    "max_completion_tokens": MAX_TOKENS,
                    "messages": _messages(prompt),
                },
            }
            for number, prompt in prompts.items()
        ]
        content_type, body = _form("".join(json.dumps(line) + "\n" for line in lines))
        uploaded = json.loads(await self.http.request("POST", "/v1/files", body, content_type))
        batch = {
            "input_file_id": uploaded["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {INTENT: intent},
        }
        made = await self.http.request("POST", "/v1/batches", json.dumps(batch).encode())
        return str(json.loads(made)["id"])

    async def find(self, intent: str, prompts: Mapping[int, str]) -> str | None:
        """See `BatchApi.find`."""
        async with aclosing(_pages(self.http, "/v1/batches", "after")) as batches:
            async for batch in batches:
                if (batch["metadata"] or {}).get(INTENT) == intent:
                    return str(batch["id"])
        return None

    async def results(self, batch_id: str) -> dict[int, Result] | None:
        """See `BatchApi.results`."""
        batch = json.loads(await self.http.request("GET", f"/v1/batches/{batch_id}"))
        if batch["status"] not in ("completed", "expired", "failed", "cancelled"):
            return None
        found: dict[int, Result] = {}
        for name in filter(None, (batch["output_file_id"], batch["error_file_id"])):
            content = await self.http.request("GET", f"/v1/files/{name}/content")
            for line in _read(content):
                found[_number(line)] = _openai_result(line)
        return found


def _openai_result(line: Mapping[str, Any]) -> Result:
    if line["error"] is not None:
        return Result("expired" if line["error"]["code"] == "batch_expired" else "errored")
    if line["response"]["status_code"] != 200:
        return Result("errored")
    body = line["response"]["body"]
    cost_usd = body["usage"]["completion_tokens"] * USD_PER_TOKEN
    return Result("succeeded", body["choices"][0]["message"]["content"], cost_usd)


@attrs.frozen
class Anthropic:
    """The Message Batches API as Anthropic documents it: custom ids, and no metadata."""

    http: Http
    poll_s: float

    async def submit(self, intent: str, prompts: Mapping[int, str]) -> str:
        """See `BatchApi.submit`."""
        requests = [
            {
                "custom_id": custom_id(intent, number),
                "params": {
                    "model": MODEL,
                    "max_tokens": MAX_TOKENS,
                    "messages": _messages(prompt),
                },
            }
            for number, prompt in prompts.items()
        ]
        body = json.dumps({"requests": requests}).encode()
        return str(json.loads(await self.http.request("POST", "/v1/messages/batches", body))["id"])

    async def find(self, intent: str, prompts: Mapping[int, str]) -> str | None:
        """See `BatchApi.find`: custom ids are in results, so it waits for each that may be it."""
        async with aclosing(_pages(self.http, "/v1/messages/batches", "after_id")) as batches:
            async for batch in batches:
                if sum(batch["request_counts"].values()) == len(prompts) and intent in (
                    await self._intents(batch["id"])
                ):
                    return str(batch["id"])
        return None

    async def _intents(self, batch_id: str) -> set[str]:
        """The intents that the custom ids of a batch name; waits until it has results."""
        while (lines := await self._lines(batch_id)) is None:  # noqa: ASYNC110  # it is remote
            await trio.sleep(self.poll_s)
        return {line["custom_id"].rpartition("_")[0] for line in lines}

    async def results(self, batch_id: str) -> dict[int, Result] | None:
        """See `BatchApi.results`."""
        lines = await self._lines(batch_id)
        return None if lines is None else {_number(line): _anthropic_result(line) for line in lines}

    async def _lines(self, batch_id: str) -> list[dict[str, Any]] | None:
        batch = json.loads(await self.http.request("GET", f"/v1/messages/batches/{batch_id}"))
        if batch["processing_status"] != "ended":
            return None
        return list(_read(await self.http.request("GET", batch["results_url"])))


def _anthropic_result(line: Mapping[str, Any]) -> Result:
    result = line["result"]
    if result["type"] != "succeeded":
        return Result("expired" if result["type"] == "expired" else "errored")
    message = result["message"]
    cost_usd = message["usage"]["output_tokens"] * USD_PER_TOKEN
    return Result("succeeded", message["content"][0]["text"], cost_usd)


async def _pages(http: Http, path: str, cursor: str) -> AsyncGenerator[dict[str, Any]]:
    """All batches of a list, the newest first."""
    query: dict[str, object] = {"limit": PAGE}
    while True:
        page = json.loads(await http.request("GET", f"{path}?{urlencode(query)}"))
        for batch in page["data"]:
            yield batch
        if not page["has_more"]:
            return
        query[cursor] = page["last_id"]


def _form(content: str) -> tuple[str, bytes]:
    """A form with a file, as its content type and its bytes (RFC 7578)."""
    disposition = "Content-Disposition: form-data; name="
    lines = [f"--{BOUNDARY}", f'{disposition}"purpose"', "", "batch", f"--{BOUNDARY}"]
    lines += [f'{disposition}"file"; filename="requests.jsonl"', "", content, f"--{BOUNDARY}--", ""]
    return f"multipart/form-data; boundary={BOUNDARY}", "\r\n".join(lines).encode()


def _read(lines: bytes) -> Iterator[dict[str, Any]]:
    return map(json.loads, lines.splitlines())


def _number(line: Mapping[str, Any]) -> int:
    """The number of the question that a result is about."""
    return int(line["custom_id"].rpartition("_")[2])
