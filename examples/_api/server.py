"""The API: blocks, their characters by page, their decompositions by cursor, what changes in them.

    GET /blocks?page=1                                  {"records": [{"full_name": ...}, ...]}
    GET /blocks/kana/hiragana/characters?page=1         {"records": [...]}
    GET /blocks/kana/hiragana/decompositions?cursor=C   {"records": [...], "next": C or null}
    GET /blocks/kana/hiragana/changes?since=T&page=1    {"records": [...]}

A page behind the last one is empty; a cursor comes from the page before it. Changes are those from
a time of ISO 8601 on, in their order, and a header ``Link`` leads to their next page; each
character changes once a day. All take ``per_page`` (50, at most 100).

    python -m examples._api.server --port 8000 --fault "429:2 /blocks/kana/hiragana/characters"

It listens on the loopback only.
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlencode

import attrs
import trio

from trio_ckpt._util.extras import needs_extra

from .._command import command_of
from .._loopback import Handler, next_event, run_server, send_answer
from .faults import Fault, Plan
from .records import BLOCKS, ENDPOINTS, Record, changes_of

with needs_extra("crawler", "the example API"):
    import h11

DEFAULT_PER_PAGE = 50
MAX_PER_PAGE = 100
MAX_PAGE = 1_000_000


class ApiError(Exception):
    """A request that has no good answer."""

    def __init__(self, status: HTTPStatus, problem: str) -> None:
        super().__init__(problem)
        self.status = status


@attrs.frozen
class Answer:
    """What a request gets.

    Attributes:
        status: Of HTTP.
        body: JSON.
        headers: Besides those that every answer has.
        delay_s: What it takes.
        is_reset: A reset instead of all that.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = attrs.Factory(dict)
    delay_s: float = 0.0
    is_reset: bool = False


@attrs.define(eq=False)
class Api:
    """The whole service but for the network, so that tests may do without one.

    Attributes:
        blocks: Those that it has.
        plan: Faults to come.
        changes: The records of ``changes`` of a block.
        requests: The targets asked for, in the order in which they came.
    """

    blocks: Iterable[str] = tuple(BLOCKS)
    plan: Plan = attrs.Factory(Plan)
    changes: Callable[[str], list[Record]] = changes_of
    requests: list[str] = attrs.Factory(list)

    def answer(self, target: str) -> Answer:
        """Answer one GET."""
        self.requests.append(target)
        path, _, words = target.partition("?")
        query = dict(parse_qsl(words))
        fault = self.plan.take(path, query)
        delay_s = fault.delay_s if fault is not None else 0.0
        if fault is not None and fault.is_reset:
            return Answer(0, b"", is_reset=True)
        if fault is not None and fault.status is not None:
            return self._fail(fault, fault.status)
        try:
            body, headers = self._find(path, query)
        except ApiError as error:
            return Answer(error.status, _json({"message": str(error)}))
        return Answer(HTTPStatus.OK, _json(body), headers, delay_s=delay_s)

    def _fail(self, fault: Fault, status: int) -> Answer:
        headers = {}
        if fault.retry_after_s is not None:
            headers["Retry-After"] = str(fault.retry_after_s)
        return Answer(status, _json({"message": f"{status}, as was asked for"}), headers)

    def _find(
        self, path: str, query: Mapping[str, str]
    ) -> tuple[dict[str, Any], Mapping[str, str]]:
        per_page = _number(query, "per_page", DEFAULT_PER_PAGE, MAX_PER_PAGE)
        page = _number(query, "page", 1, MAX_PAGE)
        if path == "/blocks":
            blocks = [{"full_name": name} for name in self.blocks]
            return {"records": blocks[(page - 1) * per_page : page * per_page]}, {}
        block, _, endpoint = path.removeprefix("/blocks/").rpartition("/")
        if block in self.blocks and endpoint == "changes":
            since = _moment(query, "since")
            changes = [r for r in self.changes(block) if r["updated_at"] >= since]
            is_last = len(changes) <= page * per_page
            following = urlencode({**query, "page": page + 1})
            headers = {} if is_last else {"Link": f'<{path}?{following}>; rel="next"'}
            return {"records": changes[(page - 1) * per_page : page * per_page]}, headers
        if block not in self.blocks or endpoint not in ENDPOINTS:
            raise ApiError(HTTPStatus.NOT_FOUND, f"no {path}")
        records = ENDPOINTS[endpoint](block)
        if endpoint == "characters":
            return {"records": records[(page - 1) * per_page : page * per_page]}, {}
        return _from_cursor(records, query.get("cursor"), per_page), {}


def _from_cursor(
    records: list[dict[str, Any]], cursor: str | None, per_page: int
) -> dict[str, Any]:
    """A page that begins with the record that the cursor names."""
    cursors = [record["codepoint"].removeprefix("U+") for record in records]
    if cursor is not None and cursor not in cursors:
        raise ApiError(HTTPStatus.BAD_REQUEST, f"no cursor of ours: {cursor}")
    start = 0 if cursor is None else cursors.index(cursor)
    following = cursors[start + per_page : start + per_page + 1]
    return {
        "records": records[start : start + per_page],
        "next": following[0] if following else None,
    }


def _number(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = query.get(name, str(default))
    if not text.isdecimal() or len(text) > len(str(most)) or not 1 <= int(text) <= most:
        raise ApiError(HTTPStatus.BAD_REQUEST, f"{name} is a number from 1 to {most}")
    return int(text)


def _moment(query: Mapping[str, str], name: str) -> str:
    """A time of UTC, as the records have it; without one all of them are later."""
    try:
        moment = datetime.fromisoformat(query.get(name, "1970-01-01T00:00:00Z"))
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        return moment.isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError) as error:
        problem = f"{name} is a time such as 2026-11-30T12:00:00Z"
        raise ApiError(HTTPStatus.BAD_REQUEST, problem) from error


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


# ------------------------------------------------------------------------------- the network


def handler_of(api: Api) -> Handler:
    """What answers the requests of a connection, one after the other."""

    async def handle(connection: h11.Connection, stream: trio.SocketStream) -> None:
        while await _serve_request(api, connection, stream):
            connection.start_next_cycle()

    return handle


async def _serve_request(api: Api, connection: h11.Connection, stream: trio.SocketStream) -> bool:
    """Answer one request; whether the connection may be used for another."""
    request: h11.Request | None = None
    while not isinstance(event := await next_event(connection, stream), h11.EndOfMessage):
        if isinstance(event, h11.ConnectionClosed):
            return False
        if isinstance(event, h11.Request):
            request = event
    assert request is not None  # h11 has seen to it  # noqa: S101
    answer = _refuse(request) or api.answer(request.target.decode("ascii"))
    await trio.sleep(answer.delay_s)
    if answer.is_reset:
        # A lingering time of 0 s turns closing into a reset: socket(7).
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False
    headers = {"Content-Type": "application/json", **answer.headers}
    await send_answer(connection, stream, answer.status, headers, answer.body)
    return connection.our_state is h11.DONE and connection.their_state is h11.DONE


def _refuse(request: h11.Request) -> Answer | None:
    if request.method == b"GET":
        return None
    return Answer(HTTPStatus.METHOD_NOT_ALLOWED, _json({"message": "only GET"}), {"Allow": "GET"})


# --------------------------------------------------------------------------------- the command


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog=command_of("_api.server"),
        description="Serve the Unicode character database, by page and by cursor.",
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (8000)")
    parser.add_argument(
        "--fault",
        type=Fault.parse,
        action="append",
        default=[],
        metavar="'WHAT[:SECONDS][*TIMES] TARGET'",
        help="what the first requests of a target meet: a status, reset or slow; repeatable",
    )
    options = parser.parse_args()
    run_server(handler_of(Api(plan=Plan(options.fault))), options.port)


if __name__ == "__main__":
    main()
