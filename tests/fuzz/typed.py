"""What people and browsers type: the arguments of the command, the requests of the monitor."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import unquote

import click
from starlette.requests import Request

from tests.fuzz.case import Reader, Target, law
from trio_ckpt._util.text import one_line
from trio_ckpt.cli._app import COMMANDS, app
from trio_ckpt.cli._exits import CommandError, exit_code_of
from trio_ckpt.monitor._access import Access, AccessDenied, AccessRole
from trio_ckpt.monitor._endpoints import ENDPOINTS
from trio_ckpt.monitor._guard import refusal_body
from trio_ckpt.monitor._parameters import BadRequestError
from trio_ckpt.monitor._routes import read_values

SECRET, ACTION_SECRET = "s" * 32, "a" * 32
HOST = "localhost:8000"


def open_arguments() -> Reader:
    """One argument a line; the first is the command.  Nothing is carried out."""
    context = click.Context(app, info_name="trio-ckpt")
    commands = {name: cast("click.Command", app.get_command(context, name)) for name in COMMANDS}
    names = list(commands)

    def read(data: bytes) -> str:
        text = data[1:].replace(b"\0", b"").decode(errors="surrogateescape")  # argv has no NUL
        name = names[data[0] % len(names) if data else 0]
        try:
            with contextlib.redirect_stdout(None):
                commands[name].make_context(name, text.split("\n"), parent=context)
        except click.exceptions.Exit:
            return "helped"
        except (click.ClickException, CommandError) as error:
            said = error.format_message() if isinstance(error, click.ClickException) else str(error)
            line = one_line(said)
            law(holds=line.isprintable() and "\n" not in line, broken="a forged line")
            law(holds=exit_code_of(error) is not None, broken="an error without an exit code")
            return type(error).__name__
        return "read"

    lines = [
        ["ls", "gh.ckpt", "--json"],
        ["show", "gh.ckpt", "run", "--stream", "a/b", "--all"],
        ["history", "sqlite:gh.ckpt", "run", "--limit", "20", '--stream=["a","b"]'],
        ["retry", "gh.ckpt", "run", "--batches", "17,203-210", "--yes"],
        ["rewind", "gh.ckpt", "run", "--to", "-3"],
        ["prune", "gh.ckpt", "run", "--keep", "2"],
        ["compact", "gh.ckpt", "run", "--keep", "3", "--archive", "json:old"],
        ["watch", "gh.ckpt", "--every", "0.5"],
        ["export", "gh.ckpt", "run", "file", "--no-outputs"],
        ["import", "gh.ckpt", "file", "--as", "other", "--output-dir", "out"],
        ["monitor", "gh.ckpt", "--port", "8000"],
        ["foreman", "--store", "gh.ckpt", "--listen", "127.0.0.1:9000"],
        ["worker", "ws://127.0.0.1:9000", "--allow", "pkg", "--slots", "2"],
        ["explain", "--help"],
    ]
    seeds = [bytes((names.index(n),)) + "\n".join(rest).encode() for n, *rest in lines]
    return Reader(read, seeds)


def open_request() -> Reader:
    """A method, a target, headers: judged, and the values of each endpoint read."""
    access = Access(SECRET, ACTION_SECRET, frozenset({HOST}))

    def read(data: bytes) -> str:
        first, *lines = data.split(b"\n")
        method, _, target = first.partition(b" ")
        path, _, query = target.partition(b"?")
        headers = [(name.lower(), value) for name, _, value in (x.partition(b": ") for x in lines)]
        scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": method.decode("latin-1"),
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "headers": headers,
        }
        verdict = access.authorize(scope)
        knows = [value for name, value in headers if name == b"authorization"]
        if isinstance(verdict, AccessDenied):
            law(holds=b"\n" not in refusal_body(verdict), broken="a forged line")
            return f"refused {verdict.status}"
        if verdict is not AccessRole.PUBLIC:
            wanted = SECRET if verdict is AccessRole.VIEWER else ACTION_SECRET
            law(
                holds=len(knows) == 1 and knows[0].strip().endswith(wanted.encode()),
                broken="let in without the secret",
            )
        place = sum(data) % len(ENDPOINTS)
        endpoint = ENDPOINTS[place]
        named = {p.name: scope["path"][1:] for p in endpoint.parameters if p.place == "path"}
        request = SimpleNamespace(
            url=SimpleNamespace(query=query.decode("latin-1")), path_params=named
        )
        values = read_values(cast("Request", request), endpoint.parameters)
        for parameter in endpoint.parameters:
            value = values[parameter.name]
            if isinstance(value, int) and parameter.kind == "integer":
                law(
                    holds=parameter.minimum <= value <= parameter.maximum,
                    broken=f"{parameter.name} is {value}",
                )
        return "read"

    known = f"\nHost: {HOST}\nAuthorization: Bearer "
    texts = [
        f"GET /{path}?{query}{known}{secret}"
        for secret in (SECRET, ACTION_SECRET)
        for path, query in (
            ("run-1", ""),
            ("x", "limit=20&after=3"),
            ("x", "run=run-1"),
            ("x", "stream=%5B%22a%22%5D&limit=5&cursor=12.3"),
            ("job-1.000001", "limit=1000&after=0"),
        )
    ]
    texts += [f"GET /\nHost: {HOST}", f"POST /x\nHost: {HOST}\nOrigin: http://{HOST}"]
    # Which endpoint reads it is told by the sum of its bytes, so one more header chooses.
    seeds = [
        f"{text}\nX-A: {chr(65 + n)}".encode() for text in texts for n in range(len(ENDPOINTS))
    ]
    return Reader(read, seeds)


TARGETS = {
    "arguments": Target(open_arguments, (), frozenset({"read", "helped"}), share=0.2),
    "request": Target(open_request, (BadRequestError,), frozenset({"read", "refused 401"})),
}
