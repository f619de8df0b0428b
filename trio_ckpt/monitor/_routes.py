"""From a request to an answer: the table of endpoints over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from .._util.errors import (
    RunLockedError,
    StoreDamagedError,
    StoreError,
    UnknownRunError,
    UnknownStreamError,
)
from .._util.exceptions import text_of
from .._util.text import one_line
from ..remote import UnknownJobError
from ._access import AccessDenied, AccessRole
from ._answers import encode_answer
from ._api import MonitorApi
from ._endpoints import ENDPOINTS, Endpoint, Handler
from ._events import MAX_VIEWERS, EventStream
from ._guard import App, Receive, Scope, Send, refusal, role_of
from ._jobs import NotPossibleError
from ._metrics import CONTENT_TYPE as METRICS_TYPE
from ._openapi import document
from ._parameters import BadRequestError, Parameter

STATIC = Path(__file__).parent / "static"
JSON = "application/json"
MAX_QUERY_FIELDS = 10

FILES: Mapping[str, tuple[str, str]] = {
    "/": ("index.html", "text/html"),
    "/monitor.css": ("monitor.css", "text/css"),
    "/monitor.js": ("monitor.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""The page: path -> file and media type.  It is read once, when the server begins."""


def make_app(api: MonitorApi) -> App:
    """The application behind the guard."""
    routes = [Route(path, _file(*entry), methods=["GET"]) for path, entry in FILES.items()]
    routes += [
        Route(one.path, _answering(api, one, one.handle), methods=[one.method])
        for one in ENDPOINTS
        if one.handle is not None
    ]
    routes += [
        Route("/metrics", _metrics(api), methods=["GET"]),
        Route("/openapi.json", _fixed(msgspec.json.encode(document()), JSON), methods=["GET"]),
        Route("/api/events", _events(api), methods=["GET"]),
    ]
    router = Router(routes, redirect_slashes=False)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router  # so that Starlette raises what it refuses
        try:
            await router(scope, receive, send)
        except HTTPException as error:
            await _refuse_http(error)(scope, receive, send)
        except Exception as error:
            await refusal(refusal_of(error))(scope, receive, send)

    return app


def refusal_of(error: Exception) -> AccessDenied:
    """The answer to an expected error; other errors are raised again."""
    message = one_line(text_of(error))
    match error:
        case BadRequestError():
            return AccessDenied(400, "bad_parameter", message)
        case UnknownRunError() | UnknownStreamError() | UnknownJobError():
            return AccessDenied(404, "not_found", message)
        case RunLockedError():
            return AccessDenied(409, "locked", message)
        case NotPossibleError():
            return AccessDenied(409, "not_possible", message)
        case StoreDamagedError():
            return AccessDenied(500, "damaged", message)
        case StoreError():
            return AccessDenied(503, "store", message)
        case _:
            raise error


def _refuse_http(error: HTTPException) -> Response:
    """The answer to errors of Starlette itself: no such path, or no such method there."""
    if error.status_code == 405:
        refused = AccessDenied(405, "wrong_method", "this path takes another method")
        return refusal(refused, error.headers)
    return refusal(AccessDenied(404, "no_such_path", "there is no such path; see /openapi.json"))


# ---------------------------------------------------------------------------------------
# Parameters
# ---------------------------------------------------------------------------------------


def read_values(request: Request, parameters: tuple[Parameter, ...]) -> dict[str, Any]:
    """The values of all parameters of an endpoint.

    Raises:
        BadRequestError: one is missing, unknown, given twice, or not what it should be.
    """
    given = _read_query(request, {p.name for p in parameters if p.place == "query"})
    for parameter in parameters:
        if parameter.place == "path":
            given[parameter.name] = request.path_params[parameter.name]
    values: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.name in given:
            values[parameter.name] = parameter.parse(given[parameter.name])
        elif parameter.is_required:
            raise BadRequestError(f"{parameter.name} is missing")
        else:
            values[parameter.name] = parameter.default
    return values


def _read_query(request: Request, names: set[str]) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            request.url.query,
            keep_blank_values=True,
            strict_parsing=bool(request.url.query),
            errors="strict",
            max_num_fields=MAX_QUERY_FIELDS,
        )
    except ValueError as error:
        raise BadRequestError("the query cannot be read") from error
    given = dict(pairs)
    if len(given) < len(pairs):
        raise BadRequestError("a parameter is given twice")
    unknown = sorted(given.keys() - names)
    if unknown:
        raise BadRequestError(f"there is no parameter {unknown[0][:50]!r} here")
    return given


# ---------------------------------------------------------------------------------------
# Endpoints
# ---------------------------------------------------------------------------------------


def _answering(api: MonitorApi, endpoint: Endpoint, handle: Handler) -> Any:
    async def answer(request: Request) -> Response:
        if endpoint.method == "POST" and role_of(request.scope) is not AccessRole.ACTOR:
            return refusal(_why_no_action(api))
        values = read_values(request, endpoint.parameters)
        place = [values.pop(p.name) for p in endpoint.parameters if p.place == "path"]
        record = await handle(api, *place, **values)
        return Response(encode_answer(record), endpoint.status, media_type=JSON)

    return answer


def _why_no_action(api: MonitorApi) -> AccessDenied:
    if not api.has_actions:
        return AccessDenied(403, "read_only", "this server takes no actions: see allow_actions=")
    return AccessDenied(403, "action_secret_needed", "the secret of viewers allows no actions")


def _metrics(api: MonitorApi) -> Any:
    async def answer(request: Request) -> Response:
        read_values(request, ())
        text = await api.metrics_text()
        return Response(text, headers={"content-type": METRICS_TYPE})

    return answer


def _events(api: MonitorApi) -> Any:
    parameters = next(e.parameters for e in ENDPOINTS if e.path == "/api/events")

    async def answer(request: Request) -> Any:
        if api.broadcast.viewers >= MAX_VIEWERS:
            return refusal(AccessDenied(503, "too_many", f"{MAX_VIEWERS} are watching already"))
        run_id = read_values(request, parameters)["run"]
        if run_id is not None:
            await api.source.snapshot(run_id)
        return EventStream(api.broadcast, run_id)

    return answer


def _fixed(body: bytes, media_type: str) -> Any:
    async def answer(request: Request) -> Response:
        return Response(body, media_type=media_type)

    return answer


def _file(name: str, media_type: str) -> Any:
    """A file of the page, read when the server starts: no request names a file."""
    return _fixed((STATIC / name).read_bytes(), media_type)
