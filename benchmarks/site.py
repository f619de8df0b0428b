"""A site to crawl, in a process of its own: N linked pages, a fixed latency, faults by flag.

    python -m benchmarks.site --port 0 --pages 3000

The port is the first line on stdout. Every page is reachable from ``/`` (page i links to its
children in a tree, and to others up to LINKS_PER_PAGE), and the whole site is a function of the
flags, so two runs serve the same bytes. ``/__hits`` returns {path: count} as JSON; ``/__cost``
returns this process's CPU seconds and its answers, so a benchmark can subtract the site's share.
With ``--etags`` pages have ETags, a request with the one of its page is answered 304, ``/__bodies``
counts those that were not, and ``/__change`` changes one page in a hundred.

The server shares the machine with the crawler that it measures, so it must cost little: pages are
built once, asyncio's callback protocols answer without a task or a parser, and the latency is one
timer per request. Requests are read as far as GET needs: a target, and where the head ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import enum
import json
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable

import attrs

LINKS_PER_PAGE = 20
# Children in the tree that makes every page reachable; 8 keeps 3,000 pages within 4 hops.
TREE_FANOUT = 8
PAGE_BYTES = 4096
# A GET of our own crawlers is far smaller; beyond this the client does not speak HTTP.
MAX_HEAD_BYTES = 64 * 1024
RETRY_AFTER_S = 1
CHANGED_EVERY = 100
ROBOTS = b"User-agent: *\nDisallow: /private/\n"
_FILLER = "A batch is on disk before the next one is handed out. "


class Fault(enum.Enum):
    """What the first request of a chosen page meets, once."""

    UNAVAILABLE = "503"
    TOO_MANY = "429"
    RESET = "reset"
    TRUNCATE = "truncate"


@attrs.frozen(kw_only=True)
class SiteSettings:
    """The whole site as a function of these."""

    pages: int
    latency_s: float = 0.005
    forbidden: int = 0
    has_etags: bool = False
    fault_every: dict[Fault, int] = attrs.Factory(dict)


def page_path(index: int) -> str:
    """The path of page ``index``; page 0 is the start page."""
    return "/" if index == 0 else f"/page/{index}"


def linked_pages(index: int, pages: int) -> list[int]:
    """The pages that page ``index`` links to: its children in the tree, then scattered others."""
    first_child = index * TREE_FANOUT + 1
    linked = dict.fromkeys(range(first_child, min(first_child + TREE_FANOUT, pages)))
    for step in range(LINKS_PER_PAGE - len(linked)):
        linked[(index * 7919 + (step + 1) ** 2 * 104_729) % pages] = None
    return list(linked)


def page_html(index: int, settings: SiteSettings, version: int = 0) -> bytes:
    """Page ``index``, padded to PAGE_BYTES; with the version in its title, from 1 on."""
    paths = [page_path(linked) for linked in linked_pages(index, settings.pages)]
    if index == 0:
        paths.append("/private/0")  # robots.txt forbids it: a hit here convicts the crawler
    if index < settings.forbidden:
        paths.append(f"/forbidden/{index}")
    links = "\n".join(f'<li><a href="{path}">To {path}</a></li>' for path in paths)
    title = f"Page {index}, {version}" if version else f"Page {index}"
    head = (
        f'<!doctype html><html><head><meta charset="utf-8"><title>{title}</title></head>'
        f"<body><h1>Page {index}</h1>\n<ul>\n{links}\n</ul>\n<p>"
    )
    foot = "</p></body></html>"
    room = max(0, PAGE_BYTES - len(head) - len(foot))
    return (head + (_FILLER * (room // len(_FILLER) + 1))[:room] + foot).encode()


def chosen_fault(index: int, fault_every: dict[Fault, int]) -> Fault | None:
    """The fault of page ``index``: every k-th page, shifted so that equal k do not collide."""
    for shift, fault in enumerate(Fault, start=1):
        every = fault_every.get(fault, 0)
        if every and index % every == shift % every:
            return fault
    return None


def response(status: str, body: bytes, *headers: str, content_type: str = "text/html") -> bytes:
    """A whole HTTP/1.1 response."""
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {content_type}; charset=utf-8",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


NOT_MODIFIED = b"HTTP/1.1 304 Not Modified\r\n\r\n"
NOT_FOUND = response("404 Not Found", b"no such page")
FORBIDDEN = response("403 Forbidden", b"not for you")
FAULT_ANSWERS = {
    Fault.UNAVAILABLE: response("503 Service Unavailable", b"later"),
    Fault.TOO_MANY: response("429 Too Many Requests", b"slower", f"Retry-After: {RETRY_AFTER_S}"),
}


@attrs.define(eq=False)
class Pages:
    """The built site and what was asked of it."""

    settings: SiteSettings
    answers: dict[bytes, bytes]
    faults: dict[bytes, Fault]
    hits: Counter[bytes] = attrs.Factory(Counter)
    etags: dict[bytes, bytes] = attrs.Factory(dict)
    bodies: Counter[bytes] = attrs.Factory(Counter)
    version: int = 0

    @classmethod
    def build(cls, settings: SiteSettings) -> Pages:
        """Render every page once."""
        answers = {
            page_path(index).encode(): response("200 OK", page_html(index, settings))
            for index in range(settings.pages)
        }
        answers[b"/robots.txt"] = response("200 OK", ROBOTS, content_type="text/plain")
        answers[b"/private/0"] = response("200 OK", b"private")
        answers |= {f"/forbidden/{i}".encode(): FORBIDDEN for i in range(settings.forbidden)}
        faults = {
            page_path(index).encode(): fault
            for index in range(settings.pages)
            if (fault := chosen_fault(index, settings.fault_every))
        }
        pages = cls(settings, answers, faults)
        if settings.has_etags:
            for index in range(settings.pages):
                pages.set_page(index)
        return pages

    def set_page(self, index: int) -> None:
        """Serve the version of a page that is the newest, with its ETag."""
        path, html = page_path(index).encode(), page_html(index, self.settings, self.version)
        etag = f'"{index}-{self.version}"'
        self.etags[path] = b"If-None-Match: " + etag.encode() + b"\r\n"
        self.answers[path] = response("200 OK", html, f"ETag: {etag}")

    def answer(self, target: bytes, head: bytes) -> tuple[bytes, Fault | None]:
        """Count the hit; the bytes to send, and the fault that this one request meets."""
        if target.startswith(b"/__"):
            return self._report(target), None
        self.hits[target] += 1
        if self.etags:
            if target in self.etags and self.etags[target] in head + b"\r\n":
                return NOT_MODIFIED, None
            self.bodies[target] += 1
        return self.answers.get(target, NOT_FOUND), self.faults.pop(target, None)

    def change(self) -> None:
        """Change one page in `CHANGED_EVERY`, and begin to count once more."""
        self.version += 1
        for index in range(1, self.settings.pages, CHANGED_EVERY):
            self.set_page(index)
        self.hits.clear()
        self.bodies.clear()

    def _report(self, target: bytes) -> bytes:
        if target in (b"/__hits", b"/__bodies"):
            counts = self.hits if target == b"/__hits" else self.bodies
            return _json({path.decode("latin-1"): count for path, count in counts.items()})
        if target == b"/__change":
            self.change()
            return _json(self.version)
        if target == b"/__cost":
            return _json({"cpu_s": time.process_time(), "answers": self.hits.total()})
        return NOT_FOUND


def _json(value: object) -> bytes:
    return response("200 OK", json.dumps(value).encode(), content_type="application/json")


class Connection(asyncio.Protocol):
    """One keep-alive connection: answers a request, then looks at the next one."""

    def __init__(self, pages: Pages, call_later: Callable[..., object]) -> None:
        self._pages = pages
        self._call_later = call_later
        self._latency_s = pages.settings.latency_s
        self._received = b""
        self._answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by asyncio; requests that come while one is answered wait in the buffer."""
        self._received += data
        if len(self._received) > MAX_HEAD_BYTES:
            self._transport.abort()
        elif not self._answering:
            self._answer_next()

    def _answer_next(self) -> None:
        head, blank_line, rest = self._received.partition(b"\r\n\r\n")
        if not blank_line:
            return
        self._received = rest
        parts = head.split(b" ", 2)
        if len(parts) < 3 or parts[0] != b"GET":
            self._transport.abort()
            return
        self._answering = True
        answer, fault = self._pages.answer(parts[1], head)
        if self._latency_s and not parts[1].startswith(b"/__"):
            self._call_later(self._latency_s, self._send, answer, fault)
        else:
            self._send(answer, fault)

    def _send(self, answer: bytes, fault: Fault | None) -> None:
        self._answering = False
        if fault is Fault.RESET:
            _reset(self._transport)
        elif fault is Fault.TRUNCATE:
            self._transport.write(answer[: len(answer) // 2])
            self._transport.close()
        else:
            self._transport.write(answer if fault is None else FAULT_ANSWERS[fault])
            if self._received:
                self._answer_next()


def _reset(transport: asyncio.Transport) -> None:
    """Close with RST instead of FIN: a lingering time of 0 discards what is unsent (socket(7))."""
    sock: socket.socket = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def serve(settings: SiteSettings, host: str, port: int) -> None:
    """Serve until cancelled; the port goes to stdout first.

    Cancellation: closes the listening socket; answers in flight are cut.
    """
    pages = Pages.build(settings)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(pages, loop.call_later), host, port)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.site", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--pages", type=int, default=3000)
    parser.add_argument("--latency-ms", type=float, default=5.0)
    parser.add_argument("--etags", action="store_true", help="answer 304 to who has a page")
    parser.add_argument("--forbidden", type=int, default=0, help="pages that answer 403")
    for fault in Fault:
        flag = f"--every-{fault.value}"
        parser.add_argument(flag, type=int, default=0, metavar="K", help="every K-th page, once")
    return parser.parse_args(arguments)


def main() -> None:
    """Run the site until it is killed."""
    options = parse_arguments()
    settings = SiteSettings(
        pages=options.pages,
        latency_s=options.latency_ms / 1000,
        forbidden=options.forbidden,
        has_etags=options.etags,
        fault_every={fault: getattr(options, f"every_{fault.value}") for fault in Fault},
    )
    with contextlib.suppress(KeyboardInterrupt):  # the usual way to end it by hand
        asyncio.run(serve(settings, options.host, options.port))


if __name__ == "__main__":
    main()
