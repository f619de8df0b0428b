"""A provider of language models that has batch APIs, without the network; it answers nonsense.

It has the endpoints that OpenAI and Anthropic document for batches, with the fields that a pipeline
needs. Some requests fail and some expire, as the digest of their custom id says, so the same
program always meets the same. What is answered costs money; what fails or expires does not.

It remembers every batch that was submitted, in a file if it has one.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.parser import BytesParser
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

import attrs

Dialect = Literal["openai", "anthropic"]
Outcome = Literal["succeeded", "errored", "expired"]

USD_PER_TOKEN = 2**-16  # some 0.000015, and floats add it up exactly
MAX_TOKENS = 200  # of an answer: what a request can cost at most
PAGE = 20  # batches in a list, unless a client asks for more
CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@attrs.frozen
class Submitted:
    """A batch as it was submitted.

    Attributes:
        id: The id that the provider gave it.
        dialect: The API that it came by.
        at: When; Unix time, s.
        requests: The custom ids of its requests.
        metadata: What the client stored with it.
    """

    id: str
    dialect: Dialect
    at: float
    requests: list[str]
    metadata: Mapping[str, str] = attrs.Factory(dict)

    @property
    def cost_usd(self) -> float:
        """What the provider charges for it."""
        return sum(tokens_of(one) * USD_PER_TOKEN for one in self.requests)


def outcome_of(custom_id: str) -> Outcome:
    """How a request ends."""
    draw = hashlib.sha256(custom_id.encode()).digest()[0] % 8
    return "errored" if draw == 0 else "expired" if draw == 1 else "succeeded"


def tokens_of(custom_id: str) -> int:
    """How many tokens the answer to a request has; 0 where there is none."""
    if outcome_of(custom_id) != "succeeded":
        return 0
    return 1 + hashlib.sha256(custom_id.encode()).digest()[1] % MAX_TOKENS


class RefusedError(Exception):
    """A request that has no good answer."""

    def __init__(self, status: HTTPStatus, problem: str) -> None:
        super().__init__(problem)
        self.status = status


@attrs.define(eq=False)
class Provider:
    """The provider.

    Attributes:
        takes_s: How long a batch takes, in seconds.
        save: Called with each batch that is submitted, as a plain value, before it is accepted.
        now: The time; Unix time, s.
    """

    takes_s: float = 0.0
    save: Callable[[dict[str, Any]], None] = lambda _batch: None
    now: Callable[[], float] = time.time
    _batches: dict[str, Submitted] = attrs.Factory(dict)  # by id, in the order of their submission
    _files: dict[str, list[str]] = attrs.Factory(dict)  # the custom ids of each uploaded file

    @classmethod
    def of_file(cls, path: Path, takes_s: float) -> Provider:
        """A provider that remembers in a file what was submitted to it."""
        provider = cls(takes_s)
        if path.exists():
            provider.remember(map(json.loads, path.read_text(encoding="utf-8").splitlines()))

        def save(batch: dict[str, Any]) -> None:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(batch) + "\n")

        provider.save = save
        return provider

    def remember(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Take up what was submitted before."""
        for batch in batches:
            self._batches[batch["id"]] = Submitted(**batch)

    @property
    def batches(self) -> list[Submitted]:
        """All batches, the oldest first."""
        return list(self._batches.values())

    def answer(self, method: str, target: str, body: bytes, content_type: str) -> tuple[int, bytes]:
        """Answer one request: the status, and the body."""
        path, _, words = target.partition("?")
        try:
            found = self._find(method, path, dict(parse_qsl(words)), body, content_type)
        except RefusedError as error:
            return error.status, _json({"error": {"message": str(error)}})
        except (ValueError, KeyError, TypeError) as error:
            return HTTPStatus.BAD_REQUEST, _json({"error": {"message": repr(error)}})
        return HTTPStatus.OK, found if isinstance(found, bytes) else _json(found)

    def _find(
        self, method: str, path: str, query: Mapping[str, str], body: bytes, content_type: str
    ) -> Any:
        match method, path.split("/")[1:]:
            case "POST", ["v1", "files"]:
                return self._upload(body, content_type)
            case "POST", ["v1", "batches"]:
                given = json.loads(body)
                requests = self._files[given["input_file_id"]]
                return _openai(self._submit("openai", requests, given.get("metadata", {})), False)
            case "GET", ["v1", "batches"]:
                return self._page("openai", query.get("after"), query)
            case "GET", ["v1", "batches", name]:
                return self._show(self._known(name, "openai"))
            case "GET", ["v1", "files", name, "content"]:
                kind, _, batch = name.partition("-of-")
                return _lines(_openai_file(self._ended(batch, "openai"), kind))
            case "POST", ["v1", "messages", "batches"]:
                requests = [str(one["custom_id"]) for one in json.loads(body)["requests"]]
                return _anthropic(self._submit("anthropic", requests, {}), False)
            case "GET", ["v1", "messages", "batches"]:
                return self._page("anthropic", query.get("after_id"), query)
            case "GET", ["v1", "messages", "batches", name]:
                return self._show(self._known(name, "anthropic"))
            case "GET", ["v1", "messages", "batches", name, "results"]:
                return _lines(_anthropic_results(self._ended(name, "anthropic")))
            case _:
                raise RefusedError(HTTPStatus.NOT_FOUND, f"no {method} {path}")

    def _upload(self, body: bytes, content_type: str) -> Mapping[str, Any]:
        form = BytesParser().parsebytes(f"Content-Type: {content_type}\n\n".encode() + body)
        parts = {
            part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
            for part in form.walk()
            if not part.is_multipart()
        }
        content = parts["file"]
        if parts["purpose"] != b"batch" or not isinstance(content, bytes):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "a file for batches has purpose=batch")
        requests = [str(json.loads(line)["custom_id"]) for line in content.splitlines()]
        name = f"file-{len(self._files)}"
        self._files[name] = requests
        return {"id": name, "object": "file", "purpose": "batch"}

    def _submit(
        self, dialect: Dialect, requests: list[str], metadata: Mapping[str, str]
    ) -> Submitted:
        if not requests or len(set(requests)) < len(requests):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "custom ids are unique in a batch")
        if not all(map(CUSTOM_ID.fullmatch, requests)):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "a custom id has 1 to 64 letters")
        prefix = "batch" if dialect == "openai" else "msgbatch"
        name = f"{prefix}_{len(self._batches):06}"
        batch = Submitted(name, dialect, self.now(), requests, dict(metadata))
        self.save(attrs.asdict(batch))
        self._batches[name] = batch
        return batch

    def _known(self, name: str, dialect: Dialect) -> Submitted:
        batch = self._batches.get(name)
        if batch is None or batch.dialect != dialect:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"no batch {name}")
        return batch

    def _ended(self, name: str, dialect: Dialect) -> Submitted:
        batch = self._known(name, dialect)
        if not self._has_ended(batch):
            raise RefusedError(HTTPStatus.NOT_FOUND, f"batch {name} has no results yet")
        return batch

    def _has_ended(self, batch: Submitted) -> bool:
        return self.now() - batch.at >= self.takes_s

    def _show(self, batch: Submitted) -> Mapping[str, Any]:
        show = _openai if batch.dialect == "openai" else _anthropic
        return show(batch, self._has_ended(batch))

    def _page(
        self, dialect: Dialect, after: str | None, query: Mapping[str, str]
    ) -> Mapping[str, Any]:
        """A page of a list, the newest first."""
        every = [batch for batch in reversed(self.batches) if batch.dialect == dialect]
        ids = [batch.id for batch in every]
        begin = 0 if after is None else ids.index(after) + 1
        end = begin + int(query.get("limit", PAGE))
        return {
            "data": [self._show(batch) for batch in every[begin:end]],
            "first_id": next(iter(ids[begin:end]), None),
            "last_id": next(iter(ids[begin:end][::-1]), None),
            "has_more": end < len(every),
        }


# ---------------------------------------------------------------------------------------
# How the two APIs show a batch
# ---------------------------------------------------------------------------------------


def _counts(batch: Submitted) -> dict[Outcome, int]:
    counts: dict[Outcome, int] = {"succeeded": 0, "errored": 0, "expired": 0}
    for one in batch.requests:
        counts[outcome_of(one)] += 1
    return counts


def _openai(batch: Submitted, has_ended: bool) -> Mapping[str, Any]:
    counts, total = _counts(batch), len(batch.requests)
    status = "in_progress"
    if has_ended:
        status = "expired" if counts["expired"] else "completed"
    failed = total - counts["succeeded"]
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "status": status,
        "created_at": int(batch.at),
        "metadata": dict(batch.metadata),
        "output_file_id": f"output-of-{batch.id}" if has_ended and counts["succeeded"] else None,
        "error_file_id": f"errors-of-{batch.id}" if has_ended and failed else None,
        "request_counts": {
            "total": total,
            "completed": counts["succeeded"] if has_ended else 0,
            "failed": failed if has_ended else 0,
        },
    }


def _openai_file(batch: Submitted, kind: str) -> Iterator[Mapping[str, Any]]:
    """The lines of the file of answers, or of the file of what failed or expired."""
    for one in batch.requests:
        outcome = outcome_of(one)
        if (outcome == "succeeded") != (kind == "output"):
            continue
        response: Any = None
        error = None
        if outcome == "succeeded":
            choices = [{"index": 0, "message": {"role": "assistant", "content": _text(one)}}]
            body = {"choices": choices, "usage": {"completion_tokens": tokens_of(one)}}
            response = {"status_code": HTTPStatus.OK, "body": body}
        elif outcome == "errored":
            body = {"error": {"message": "overloaded"}}
            response = {"status_code": HTTPStatus.INTERNAL_SERVER_ERROR, "body": body}
        else:
            error = {"code": "batch_expired", "message": "the completion window is over"}
        yield {"custom_id": one, "response": response, "error": error}


def _anthropic(batch: Submitted, has_ended: bool) -> Mapping[str, Any]:
    counts, total = _counts(batch), len(batch.requests)
    if not has_ended:
        counts = dict.fromkeys(counts, 0)
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if has_ended else "in_progress",
        "request_counts": {"processing": 0 if has_ended else total, "canceled": 0, **counts},
        "results_url": f"/v1/messages/batches/{batch.id}/results" if has_ended else None,
    }


def _anthropic_results(batch: Submitted) -> Iterator[Mapping[str, Any]]:
    for one in batch.requests:
        outcome = outcome_of(one)
        result: dict[str, Any] = {"type": outcome}
        if outcome == "succeeded":
            content = [{"type": "text", "text": _text(one)}]
            result["message"] = {"content": content, "usage": {"output_tokens": tokens_of(one)}}
        elif outcome == "errored":
            result["error"] = {"type": "api_error", "message": "overloaded"}
        yield {"custom_id": one, "result": result}


def _text(custom_id: str) -> str:
    return f"the answer to {custom_id.rpartition('_')[2]}"


def _lines(values: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(_json(value) + b"\n" for value in values)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
