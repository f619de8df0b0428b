"""Crawl a real site, kill the crawler half way, resume, and prove that nothing was lost.

The site is the documentation server that ships with Python.  It is watched through a small proxy
that counts what is fetched, so the proof does not rest on what the crawler says of itself.

    python -m examples.crawl_demo
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import trio

from ._command import command_of

# The server renders a page by importing the module; these act on import, or take long.
EXCLUDE = r"/(test|idlelib|lib2to3|turtledemo|turtle|tkinter|antigravity|this|search|get|topic)\b"
PACKAGES = (
    "asyncio collections concurrent ctypes email encodings html http importlib json logging "
    "multiprocessing os sqlite3 unittest urllib wsgiref xml zoneinfo"
)
INCLUDE = rf"/(index\.html)?$|/({'|'.join(PACKAGES.split())})\b"
MAX_HEAD_BYTES = 64 * 1024
START_WITHIN_S = 30
STALLED_AFTER_S = 120  # without a page; how long all of it takes is up to the machine


@attrs.define(eq=False)
class CountingProxy:
    """Passes on one request per connection, and counts them.

    Attributes:
        port: Of the server behind.
        answered: Complete answers with status 200, by path.
    """

    port: int
    answered: Counter[str] = attrs.field(factory=Counter)
    _changed: trio.Event = attrs.field(factory=trio.Event)

    def count(self, path: str) -> None:
        """Count a complete answer."""
        self.answered[path] += 1
        self._changed.set()
        self._changed = trio.Event()

    async def wait_answered(self, pages: int) -> None:
        """Wait until so many answers have passed."""
        while self.answered.total() < pages:
            await self._changed.wait()

    async def fail_when_stalled(self) -> None:
        """Wait for one answer after another.

        Raises:
            trio.TooSlowError: none has passed for `STALLED_AFTER_S`.
        """
        while True:
            with trio.fail_after(STALLED_AFTER_S):
                await self.wait_answered(self.answered.total() + 1)

    async def handle(self, client: trio.SocketStream) -> None:
        """Serve one connection; a killed crawler is not an error here."""
        try:
            async with client:
                await self._pass_on(client)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass

    async def _pass_on(self, client: trio.SocketStream) -> None:
        head = bytearray()
        while b"\r\n\r\n" not in head:
            data = await client.receive_some()
            head.extend(data)
            if not data or len(head) > MAX_HEAD_BYTES:
                return
        path = head.split(b" ", 2)[1].decode("latin-1")
        status: bytes = b""
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as server:
            await server.send_all(bytes(head))
            async for part in server:
                status = status or bytes(part[:12])
                await client.send_all(part)
        if status.endswith(b" 200"):
            self.count(path)


def free_port() -> int:
    """A port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def wait_listening(port: int) -> None:
    """Wait until a server accepts connections.

    Raises:
        trio.TooSlowError: it does not within `START_WITHIN_S`.
    """
    with trio.fail_after(START_WITHIN_S):
        while True:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.05)
            else:
                await stream.aclose()
                return


@asynccontextmanager
async def run_crawler(url: str, out: Path) -> AsyncGenerator[trio.Process]:
    """Run the crawler as a process of its own, which ends with the block."""
    command = [sys.executable, "-m", f"{__package__}.crawler", url, "--out", str(out)]
    command += ["--concurrency", "8", "--include", INCLUDE, "--exclude", EXCLUDE]
    print(f"$ {' '.join(command[1:6])} ...", flush=True)
    process = await trio.lowlevel.open_process(command)
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def read_urls(out: Path) -> list[str]:
    """The URLs of the lines that are whole."""
    path = out / "pages.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line)["url"] for line in lines]


async def demonstrate(out: Path, kill_after: int) -> int:
    """Crawl, kill, resume, prove; returns 0 if the proof holds."""
    with tempfile.TemporaryDirectory() as empty:
        port = free_port()
        serve = [sys.executable, "-I", "-m", "pydoc", "-p", str(port), "-n", "127.0.0.1"]
        async with trio.open_nursery() as nursery:
            quiet = subprocess.DEVNULL
            # The server ends when its standard input does, so it gets one that stays open.
            run_server = partial(trio.run_process, serve, cwd=empty, check=False)
            await nursery.start(
                partial(run_server, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet)
            )
            await wait_listening(port)
            proxy = CountingProxy(port)
            listeners = await nursery.start(
                partial(trio.serve_tcp, host="127.0.0.1"), proxy.handle, 0
            )
            front = listeners[0].socket.getsockname()[1]
            nursery.start_soon(proxy.fail_when_stalled)
            code = await _kill_and_resume(f"http://127.0.0.1:{front}/", out, proxy, kill_after)
            nursery.cancel_scope.cancel()
    return prove(out, proxy, code)


async def _kill_and_resume(url: str, out: Path, proxy: CountingProxy, kill_after: int) -> int:
    async with run_crawler(url, out) as process:
        await proxy.wait_answered(kill_after)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    print(f"killed with SIGKILL after {len(read_urls(out))} lines were written", flush=True)
    async with run_crawler(url, out) as process:
        return await process.wait()


def prove(out: Path, proxy: CountingProxy, code: int) -> int:
    """Compare what was served with what was written."""
    written = Counter(re.sub(r"^https?://[^/]+", "", url) for url in read_urls(out))
    served = {path for path in proxy.answered if path != "/robots.txt"}
    lost = sorted(served - written.keys())
    duplicated = sorted(path for path, times in written.items() if times > 1)
    twice = sum(n - 1 for path, n in proxy.answered.items() if path != "/robots.txt" and n > 1)
    print(
        f"\n  pages          {len(written)}\n  fetched twice  {twice}  (in flight at the kill)\n"
        f"  lost           {len(lost)}\n  duplicated     {len(duplicated)}\n"
        f"  exit code      {code}  (0: all pages; 3: all but those in failed.jsonl)"
    )
    return 0 if not lost and not duplicated and written and code in (0, 3) else 1


def main() -> int:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(prog=command_of("crawl_demo"), description=__doc__)
    parser.add_argument("--kill-after", type=int, default=100, help="pages before the kill (100)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return trio.run(demonstrate, Path(folder) / "crawl", options.kill_after)


if __name__ == "__main__":
    sys.exit(main())
