"""The socket of a run: its user steers the run, and all others get nothing and harm nothing."""

# ruff: noqa: ASYNC110, ASYNC240  (what another process sees in the file system has no event)

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import stat
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.opening import begin
from trio_ckpt import Run
from trio_ckpt._journal.acts import MAX_LINE_BYTES, Act, ActRefusedError, ActReply, new_act
from trio_ckpt._maintenance import steer as _steer
from trio_ckpt._maintenance.steer import steer
from trio_ckpt._runs import act_server
from trio_ckpt._runs.run import open_run_of
from trio_ckpt._runs.steering import MAX_STREAMS, Steering
from trio_ckpt._util.plain import MAX_KEY_CHARS
from trio_ckpt.stores import open_store
from trio_ckpt.stores._local import control_socket
from trio_ckpt.stores._local.control_socket import connect_to_run, listen_for_acts

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="this platform has no Unix sockets"
)
LINE = json.dumps({"do": "pause", "user": "a", "host": "h", "pid": 1}).encode() + b"\n"


@pytest.fixture(autouse=True)
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the sockets, for this test alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"trio-ckpt-{os.geteuid()}"


async def listening(store: Path) -> Path:
    """The store of a run, when the run listens."""
    while not list((store / "live").glob("*.ctl")):
        await trio.sleep(0.005)
    return store


async def connect(store: Path) -> trio.SocketStream:
    connection = connect_to_run(store, "r")
    if connection is None:
        raise ConnectionRefusedError
    return trio.SocketStream(trio.socket.from_stdlib_socket(connection))


async def answer_to(store: Path, *parts: bytes) -> bytes:
    """All that comes back for some bytes."""
    received = b""
    async with await connect(store) as stream:
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


async def test_only_its_user_may_use_the_socket(tmp_path: Path, sockets: Path) -> None:
    url = tmp_path / "gh.ckpt"
    old = os.umask(0)
    try:
        async with begin(url):
            await listening(url)
            [path] = sockets.iterdir()
            assert stat.S_ISSOCK(path.lstat().st_mode)
            assert stat.S_IMODE(path.lstat().st_mode) == 0o600
            assert stat.S_IMODE(sockets.lstat().st_mode) == 0o700
            [named] = (url / "live").glob("*.ctl")
            assert stat.S_IMODE(named.lstat().st_mode) == 0o600
    finally:
        os.umask(old)
    assert not list(sockets.iterdir())
    assert not list((url / "live").iterdir())


async def test_the_folder_of_an_open_store_is_copied(tmp_path: Path) -> None:
    url, copy = tmp_path / "gh.ckpt", tmp_path / "copy.ckpt"
    async with begin(url) as run:
        await listening(url)
        shutil.copytree(url, copy)  # fails at a socket
        assert list((copy / "live").glob("*.ctl"))
        with pytest.raises(ConnectionRefusedError):
            await connect(copy)  # an act on the copy does not reach the original
        assert b"is_done" in await answer_to(url, LINE)
        assert is_paused(run)


async def test_another_user_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = tmp_path / "gh.ckpt"
    async with begin(url) as run:
        url = await listening(url)
        monkeypatch.setattr(act_server, "is_of_other_user", lambda _: True)
        assert await answer_to(url, LINE) == b""
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
        url = await listening(url)
        assert await answer_to(url, *parts) == b""
        assert not is_paused(run)
        assert b'"is_done":true' in await answer_to(url, LINE)  # others are served
        assert is_paused(run)


async def test_the_longest_status_is_read(tmp_path: Path) -> None:
    async with begin(tmp_path / "gh.ckpt") as run, AsyncExitStack() as stack:
        for number in range(MAX_STREAMS):
            key = f"{number:04}" + "\U0001f600" * (MAX_KEY_CHARS - 4)
            await stack.enter_async_context(run.open_stream(key))
        store = await open_store(tmp_path / "gh.ckpt")
        stack.push_async_callback(store.aclose)
        status = (await steer(store, "r", new_act("status", "ann"))).status
        assert len(status["streams"]) == MAX_STREAMS


async def test_an_act_that_fails_leaves_the_others_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_steering: Steering, _act: Act) -> ActReply:
        raise KeyError("a bug")

    url = tmp_path / "gh.ckpt"
    async with begin(url) as run:
        await listening(url)
        with monkeypatch.context() as patch:
            patch.setattr(Steering, "do", fail)
            assert await answer_to(url, LINE) == b""
        assert "an act failed: 'a bug'" in caplog.text
        assert b"is_done" in await answer_to(url, LINE)
        assert is_paused(run)


async def test_a_silent_connection_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(act_server, "RECEIVE_S", 0.01)
    async with begin(tmp_path / "gh.ckpt") as run:
        url = await listening(tmp_path / "gh.ckpt")
        assert await answer_to(url, b"") == b""
        assert await answer_to(url, LINE[:-1]) == b""  # the line never ends
        assert not is_paused(run)


async def test_an_endless_line_is_cut_before_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(act_server, "RECEIVE_S", math.inf)
    async with begin(tmp_path / "gh.ckpt"):
        url = await listening(tmp_path / "gh.ckpt")
        assert await answer_to(url, *[b" " * 10_000] * 1_000) == b""


async def test_a_thousand_connections_harm_nothing(tmp_path: Path) -> None:
    url, answers = tmp_path / "gh.ckpt", list[bytes]()

    async def ask(url: Path) -> None:
        while True:
            try:
                answers.append(await answer_to(url, LINE.replace(b"pause", b"status")))
                return
            except ConnectionRefusedError:  # the backlog is full
                await trio.sleep(0.005)

    async with begin(url) as run, run.open_stream("s") as stream:
        url = await listening(url)
        async with trio.open_nursery() as nursery:
            for _ in range(1_000 // 4):
                for _ in range(4):
                    nursery.start_soon(ask, url)
                await trio.lowlevel.checkpoint()
            async for batch in stream.batches(range(20)):
                batch.complete()
        assert run.exit_code == 75 or stream.progress.confirmed.stop == 20
        assert b'"is_done":true' in await answer_to(url, LINE)
    assert len(answers) == 1_000
    assert all(b"is_done" in answer or answer == b"" for answer in answers)


async def test_callers_beyond_the_limit_are_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(act_server, "MAX_CONNECTIONS", 1)
    async with begin(tmp_path / "gh.ckpt"):
        url = await listening(tmp_path / "gh.ckpt")
        async with await connect(url) as silent:
            await silent.send_all(b"{")
            assert b"too many processes ask at once" in await answer_to(url, LINE)
        while b"too many" in await answer_to(url, LINE.replace(b"pause", b"status")):
            await trio.sleep(0.005)


async def test_what_a_killed_owner_left_is_replaced(tmp_path: Path) -> None:
    url = tmp_path / "gh.ckpt"
    async with begin(url):
        pass
    left = listen_for_acts(url, "r")  # as a killed process leaves its socket
    left.close()
    url = await listening(url)
    with pytest.raises(ConnectionRefusedError):
        await connect(url)
    async with begin(url) as run:
        while b"is_done" not in await _try(url):
            await trio.sleep(0.005)
        assert is_paused(run)


async def _try(url: Path) -> bytes:
    try:
        return await answer_to(url, LINE)
    except OSError:
        return b""


@pytest.mark.skipif(
    not os.path.exists("/proc/self/fd"),
    reason="without /proc the path must fit into the address of a socket",
)
async def test_a_path_of_any_length_has_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / ("a" * 100) / ("b" * 100)
    url.parent.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(url.parent))
    async with begin(url) as run:
        await listening(url)
        assert b"is_done" in await answer_to(url, LINE)
        assert is_paused(run)


async def test_a_process_with_another_tmpdir_finds_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "gh.ckpt"
    async with begin(url) as run:
        await listening(url)
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(tmp_path / "another"))
            assert b"is_done" in await answer_to(url, LINE)
        assert is_paused(run)


async def test_callers_wait_while_the_backlog_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "BACKLOG", 1)
    url = tmp_path / "gh.ckpt"
    async with begin(url):
        pass
    with listen_for_acts(url, "r"):  # and nothing is accepted
        found = [connect_to_run(url, "r") for _ in range(4)]
        assert found[0] is not None
        assert found[-1] is None
        for one in found:
            if one is not None:
                one.close()


REASONS = {
    "others can write": "live can be written by others",
    "of another": "belongs to another user, uid",
    "no unix sockets": "this platform has no Unix sockets",
}


@pytest.mark.parametrize("case", REASONS)
async def test_a_run_without_a_socket_goes_on_and_says_why(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    url, reason = tmp_path / "gh.ckpt", REASONS[case]
    async with begin(url):
        pass
    if case == "others can write":
        (url / "live").chmod(0o777)
    elif case == "of another":
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    else:
        monkeypatch.delattr(socket, "AF_UNIX")
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


@pytest.mark.parametrize("case", ["link", "written by others", "file"])
async def test_a_folder_of_sockets_that_is_not_the_users_is_refused(
    case: str,
    tmp_path: Path,
    sockets: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(_steer, "FIND_S", 0.0)
    if case == "file":
        sockets.touch()
    elif case == "link":
        (tmp_path / "elsewhere").mkdir()
        sockets.symlink_to(tmp_path / "elsewhere")
    else:
        sockets.mkdir()
        sockets.chmod(0o777)
    async with begin(tmp_path / "gh.ckpt"):
        while "cannot be steered" not in caplog.text:
            await trio.sleep(0.005)
        store = await open_store(tmp_path / "gh.ckpt")
        with pytest.raises(ActRefusedError, match="could not make a socket, as its log says"):
            await steer(store, "r", new_act("pause", "ann"))
        await store.aclose()
    assert str(sockets) in caplog.text
    assert not sockets.is_dir() or not list(sockets.iterdir())
