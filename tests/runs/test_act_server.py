"""The socket of a run: its user steers the run, and all others get nothing and harm nothing."""

# ruff: noqa: ASYNC110  (what another process sees in the file system has no event)

from __future__ import annotations

import json
import math
import os
import socket
import stat
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.opening import begin
from trio_ckpt import Run
from trio_ckpt._journal.acts import MAX_LINE_BYTES, ActRefusedError, new_act
from trio_ckpt._maintenance.steer import steer
from trio_ckpt._runs import act_server
from trio_ckpt._runs.run import open_run_of
from trio_ckpt.stores import open_store
from trio_ckpt.stores._local import control_socket
from trio_ckpt.stores._local.control_socket import listen_for_acts, socket_address

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="this platform has no Unix sockets"
)
LINE = json.dumps({"do": "pause", "user": "a", "host": "h", "pid": 1}).encode() + b"\n"


async def socket_of(store: Path) -> Path:
    """The socket of the run of a store, when it is there."""
    while not (found := list((store / "live").glob("*.ctl"))):
        await trio.sleep(0.005)
    return found[0]


async def connect(path: Path) -> trio.SocketStream:
    with socket_address(path.parent.parent, "r") as address:
        return await trio.open_unix_socket(address)


async def answer_to(path: Path, *parts: bytes) -> bytes:
    """All that comes back for some bytes."""
    received = b""
    async with await connect(path) as stream:
        try:
            for part in parts:
                await stream.send_all(part)
            while some := await stream.receive_some(1_000):
                received += some
        except trio.BrokenResourceError:
            pass
    return received


def is_paused(run: Run) -> bool:
    return open_run_of(run).stop.is_paused


async def test_its_user_steers_a_run(tmp_path: Path) -> None:
    url = tmp_path / "gh.ckpt"
    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(begin(url))
        store = await open_store(url)
        stack.push_async_callback(store.aclose)
        reply = await steer(store, "r", new_act("pause", "ann"))
        assert reply.text.startswith("paused")
        assert is_paused(run)
        with pytest.raises(ActRefusedError, match=r"run 'r': it is paused already, since 2\d\d\d"):
            await steer(store, "r", new_act("pause", "ann"))
        status = (await steer(store, "r", new_act("status", "ann"))).status
        assert status["paused"]["pid"] == os.getpid()


async def test_only_its_user_may_use_the_socket(tmp_path: Path) -> None:
    url = tmp_path / "gh.ckpt"
    old = os.umask(0)
    try:
        async with begin(url):
            path = await socket_of(url)
            assert stat.S_IMODE(path.lstat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.lstat().st_mode) == 0o700
    finally:
        os.umask(old)
    assert not path.exists()


async def test_another_user_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = tmp_path / "gh.ckpt"
    async with begin(url) as run:
        path = await socket_of(url)
        monkeypatch.setattr(act_server, "is_of_other_user", lambda _: True)
        assert await answer_to(path, LINE) == b""
        assert not is_paused(run)


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="this kernel does not tell")
def test_the_kernel_tells_whether_another_user_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert not control_socket.is_of_other_user(one)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert control_socket.is_of_other_user(one)


@pytest.mark.parametrize(
    "parts",
    [
        [b"\n"],
        [b"GET / HTTP/1.1\r\n\r\n"],
        [b"\x00\xff" * 1_000 + b"\n"],
        [b"{" * 60_000 + b"\n"],
        [LINE.replace(b"pause", b"remove")],
        [LINE + b"more"],
        [b" " * MAX_LINE_BYTES, b" " * MAX_LINE_BYTES, LINE],
        [b'{"why":"' + b"a" * MAX_LINE_BYTES + b'"}\n'],
    ],
)
async def test_garbage_gets_nothing(parts: list[bytes], tmp_path: Path) -> None:
    url = tmp_path / "gh.ckpt"
    async with begin(url) as run:
        path = await socket_of(url)
        assert await answer_to(path, *parts) == b""
        assert not is_paused(run)
        assert b'"is_done":true' in await answer_to(path, LINE)  # others are served
        assert is_paused(run)


async def test_a_silent_connection_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(act_server, "RECEIVE_S", 0.01)
    async with begin(tmp_path / "gh.ckpt") as run:
        path = await socket_of(tmp_path / "gh.ckpt")
        assert await answer_to(path, b"") == b""
        assert await answer_to(path, LINE[:-1]) == b""  # the line never ends
        assert not is_paused(run)


async def test_an_endless_line_is_cut_before_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(act_server, "RECEIVE_S", math.inf)
    async with begin(tmp_path / "gh.ckpt"):
        path = await socket_of(tmp_path / "gh.ckpt")
        assert await answer_to(path, *[b" " * 10_000] * 1_000) == b""


async def test_a_thousand_connections_harm_nothing(tmp_path: Path) -> None:
    url, answers = tmp_path / "gh.ckpt", list[bytes]()

    async def ask(path: Path) -> None:
        answers.append(await answer_to(path, LINE.replace(b"pause", b"status")))

    async with begin(url) as run, run.open_stream("s") as stream:
        path = await socket_of(url)
        async with trio.open_nursery() as nursery:
            for _ in range(1_000 // 4):
                for _ in range(4):
                    nursery.start_soon(ask, path)
                await trio.lowlevel.checkpoint()
            async for batch in stream.batches(range(20)):
                batch.complete()
        assert run.exit_code == 75 or stream.progress.confirmed.stop == 20
        assert b'"is_done":true' in await answer_to(path, LINE)
    assert len(answers) == 1_000
    assert all(b"is_done" in answer or answer == b"" for answer in answers)


async def test_callers_beyond_the_limit_are_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(act_server, "MAX_CONNECTIONS", 1)
    async with begin(tmp_path / "gh.ckpt"):
        path = await socket_of(tmp_path / "gh.ckpt")
        async with await connect(path) as silent:
            await silent.send_all(b"{")
            assert b"too many processes ask at once" in await answer_to(path, LINE)
        while b"too many" in await answer_to(path, LINE.replace(b"pause", b"status")):
            await trio.sleep(0.005)


async def test_what_a_killed_owner_left_is_replaced(tmp_path: Path) -> None:
    url = tmp_path / "gh.ckpt"
    async with begin(url):
        pass
    left = listen_for_acts(url, "r")  # as a killed process leaves its socket
    left.close()
    path = await socket_of(url)
    with pytest.raises(ConnectionRefusedError):
        await connect(path)
    async with begin(url) as run:
        while b"is_done" not in await _try(path):
            await trio.sleep(0.005)
        assert is_paused(run)


async def _try(path: Path) -> bytes:
    try:
        return await answer_to(path, LINE)
    except OSError:
        return b""


@pytest.mark.skipif(
    not os.path.exists("/proc/self/fd"),
    reason="without /proc the path must fit into the address of a socket",
)
async def test_a_path_of_any_length_has_a_socket(tmp_path: Path) -> None:
    url = tmp_path / ("a" * 100) / ("b" * 100)
    url.parent.mkdir()
    async with begin(url) as run:
        await socket_of(url)
        store = await open_store(url)
        await steer(store, "r", new_act("pause", "ann"))
        await store.aclose()
        assert is_paused(run)


REASONS: dict[str, Any] = {
    "others can write": ("can be written by others", None),
    "of another": ("belongs to another user, uid", None),
    "no unix sockets": ("this platform has no Unix sockets", "AF_UNIX"),
}


@pytest.mark.parametrize("case", REASONS)
async def test_a_run_without_a_socket_goes_on_and_says_why(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    url, (reason, missing) = tmp_path / "gh.ckpt", REASONS[case]
    async with begin(url):
        pass
    if case == "of another":
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    elif missing is None:
        (url / "live").chmod(0o777)
    else:
        monkeypatch.delattr(socket, missing)
    async with begin(url) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(3)):
            batch.complete()
        while "cannot be steered" not in caplog.text:
            await trio.sleep(0.005)
        store = await open_store(url)
        with pytest.raises(ActRefusedError, match=f"cannot be steered: .*{reason}"):
            await steer(store, "r", new_act("pause", "ann"))
        await store.aclose()
    assert reason in caplog.text
    assert run.exit_code == 0
