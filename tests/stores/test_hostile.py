"""A store that a hostile hand prepared: refused in words or harmless, nothing outside touched."""

# ruff: noqa: ASYNC240  # a test may block its own loop

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.stores.tools import A, B, path_of_blob
from trio_ckpt._util.errors import RunLockedError, StoreDamagedError, StoreError
from trio_ckpt.abc import Checkpoint, RunKey, Store
from trio_ckpt.stores import open_store
from trio_ckpt.stores._local import blobs, locks
from trio_ckpt.stores._local.files import hashed_name

SCHEMES = ["sqlite", "json"]
BIG = b"blob" * 10


async def make(scheme: str, folder: Path) -> None:
    """A store with a run that has records, a record that is a blob, and a live view."""
    store = await open_store(f"{scheme}:{folder}")
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        digest = await store.put_blob(run, BIG)
        other = await store.put_blob(run, b"attached")
        await store.save(run, [Checkpoint(A, 1, b"one"), Checkpoint(B, 1, b"", digest)])
        await store.save(run, [Checkpoint(A, 2, b"two", blobs=(other,))])
    await store.publish("run", b"live")  # as an owner that was killed leaves it
    await store.aclose()


async def use(url: str) -> list[StoreError]:
    """All that a program does to a store; what it was refused."""
    refused: list[StoreError] = []

    async def attempt(call: Callable[[], object]) -> None:
        try:
            await call()  # type: ignore[misc]
        except StoreError as error:
            refused.append(error)

    try:
        store = await open_store(url)
    except StoreError as error:
        return [error]
    digest = _digest(b"attached")
    await attempt(store.list_runs)
    await attempt(lambda: store.read_run("run"))
    await attempt(lambda: store.history("run", A))
    await attempt(lambda: store.history("run", B))
    await attempt(lambda: store.read_blob("run", digest))
    await attempt(lambda: store.read_live("run"))
    await attempt(lambda: store.read_owner("run"))
    await attempt(lambda: _work(store, digest))
    with suppress(StoreError):
        await store.aclose()
    return refused


async def _work(store: Store, digest: str) -> None:
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.publish("run", b"more")
        await store.put_blob(run, b"attached")
        new = await store.put_blob(run, b"new")
        for outcome in await store.save(run, [Checkpoint(A, 3, b"three", blobs=(new, digest))]):
            if outcome is not None:
                raise outcome
        await store.drop_blobs(run, A, [2, 3])
        await store.prune(run, keep=1)


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def everything_in(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """All below a folder: mode, links, content."""
    found: dict[str, tuple[int, int, bytes]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_nlink, content)
    return found


# -- something else in the place of each member -------------------------------------------


def _link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def _dangling(path: Path, outside: Path) -> None:
    path.symlink_to(outside.parent / "nothing")


def _hard_link(path: Path, outside: Path) -> None:
    if outside.is_dir():
        path.symlink_to(outside)
    else:
        os.link(outside, path)


def _fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # its address has 108 characters at most
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def _device(path: Path, outside: Path) -> None:
    """/dev/zero, which never ends; for root alone: others get a FIFO once more."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        os.mkfifo(path)


def _folder_in_its_place(path: Path, outside: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"x")


def _file_in_its_place(path: Path, outside: Path) -> None:
    path.write_bytes(b"x" * 100)


def _huge(path: Path, outside: Path) -> None:
    """A file of a tebibyte that takes no room."""
    path.write_bytes(b"x")
    os.truncate(path, 2**40)


OBSTACLES = [
    *(_link, _dangling, _hard_link, _fifo, _socket, _device),
    *(_folder_in_its_place, _file_in_its_place, _huge),
]
NOT_THERE = {
    "sqlite": ["state.db-wal", "state.db-shm", "state.db-journal"],
    "json": ["store.json.tmp", "runs/run/checkpoint.json.tmp", "runs/run/journal.2.jsonl"],
}


def _members(scheme: str, folder: Path) -> list[str]:
    there = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))]
    live = next(name for name in there if name.startswith("live/"))
    return [*there, *NOT_THERE[scheme], f"{live}.new"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda made: made.__name__.strip("_"))
async def test_a_thing_in_the_place_of_a_member_is_refused_or_harmless(
    scheme: str, obstacle: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    """Of each member; and not a byte outside of the folder changes."""
    good = tmp_path / "good"
    await make(scheme, good)
    for number, member in enumerate(_members(scheme, good)):
        bad, outside = tmp_path / f"bad{number}", tmp_path / f"outside{number}"
        shutil.copytree(good, bad)
        outside.mkdir()
        (outside / "tmp12345678.tmp").write_bytes(b"of another user")
        (outside / ("0" * 64)).write_bytes(b"of another user, too")
        target = outside / "target"
        if (bad / member).is_dir():
            shutil.move(bad / member, target)
            (target / "tmp12345678.tmp").write_bytes(b"of another user")
        elif (bad / member).exists():
            shutil.move(bad / member, target)
        else:
            target.write_bytes(b"of another user")
        obstacle(bad / member, target)
        before = everything_in(outside)
        refused = await use(f"{scheme}:{bad}")
        after = everything_in(outside)
        if obstacle is _hard_link:  # a name may go, the content stays
            before, after = ({k: v[2] for k, v in x.items()} for x in (before, after))  # type: ignore[misc]
        assert after == before, f"{member}: what is outside was touched"
        is_same_kind = obstacle is _folder_in_its_place and target.is_dir()
        if member in ("lock", "blobs", "runs", "state.db", "store.json") and not is_same_kind:
            assert refused, f"{member}: taken as it is"
        for error in refused:
            assert any(word in str(error) for word in (str(bad), "blob", "not saved")), (
                f"{member}: says not what: {error}"
            )


async def test_the_folder_itself_may_be_reached_through_a_link(tmp_path: Path) -> None:
    """Where a store is, its user says; and the kernel's lock is one, whatever the way."""
    for scheme in SCHEMES:
        real, link = tmp_path / f"real-{scheme}", tmp_path / f"link-{scheme}"
        await make(scheme, real)
        link.symlink_to(real)
        assert await use(f"{scheme}:{link}") == []
        one, two = await open_store(real), await open_store(link)
        async with one.lock_run("run"):
            with pytest.raises(RunLockedError):
                async with two.lock_run("run"):
                    pass
        await one.aclose()
        await two.aclose()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_blobs_of_others_are_not_removed_through_a_link(scheme: str, tmp_path: Path) -> None:
    """The next owner removes what no record names: below its own folders alone."""
    folder, outside = tmp_path / "store", tmp_path / "outside"
    await make(scheme, folder)
    outside.mkdir()
    (outside / ("0" * 64)).write_bytes(b"a file that has the name of a blob")
    (outside / "tmp12345678.tmp").write_bytes(b"x")
    for name in ("00", hashed_name("another")):
        (folder / "blobs" / name).symlink_to(outside)
    (folder / "blobs" / "mine.tmp").write_bytes(b"of a stranger")
    before = everything_in(outside)
    assert await use(f"{scheme}:{folder}") == []
    store = await open_store(folder)
    async with store.lock_run("another") as owner:
        with pytest.raises(StoreError, match="is a symbolic link: refused"):
            await store.put_blob(RunKey("another", 0, owner), b"new")
    await store.aclose()
    assert everything_in(outside) == before
    assert (folder / "blobs" / "mine.tmp").exists()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_blob_that_is_a_link_is_none(scheme: str, tmp_path: Path) -> None:
    """A record that names it is not saved: else it would be read from somewhere else."""
    folder = tmp_path / "store"
    await make(scheme, folder)
    (tmp_path / "elsewhere").write_bytes(b"linked")
    digest = _digest(b"linked")
    path_of_blob(folder, digest).symlink_to(tmp_path / "elsewhere")
    store = await open_store(folder)
    async with store.lock_run("run") as owner:
        saved = await store.save(RunKey("run", 0, owner), [Checkpoint(A, 3, b"", digest)])
    assert isinstance(saved[0], StoreError)
    with pytest.raises(StoreError):
        await store.read_blob("run", digest)
    await store.aclose()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_record_larger_than_any_is_not_read(scheme: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    await make(scheme, folder)
    (blob,) = (folder / "blobs").glob(f"*/{_digest(BIG)}")
    os.truncate(blob, blobs.MAX_WHOLE_BYTES + 1)
    store = await open_store(folder)
    with pytest.raises(StoreDamagedError, match="larger than any record"):
        await store.history("run", B)
    await store.aclose()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_strangers_in_the_folders_are_left_alone(scheme: str, tmp_path: Path) -> None:
    """Twenty thousand of them, with names that no terminal should print."""
    folder = tmp_path / "store"
    await make(scheme, folder)
    odd = ["a\nb", "\x1b[31m", "..a", "-rf", "\udcff", "ü" * 80, "state.db.bak", "journal.1"]
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    strangers = [place / name for place in places for name in odd]
    strangers += [folder / f"{number}" for number in range(20_000)]
    for path in strangers:
        path.write_bytes(b"")
    assert await use(f"{scheme}:{folder}") == []
    assert all(path.exists() for path in strangers)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_file_without_rights_is_reported(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each member in turn; root may open all, so the system's answer is given here."""
    good = tmp_path / "good"
    await make(scheme, good)
    real = os.open
    members = [path.relative_to(good) for path in good.rglob("*") if path.is_file()]
    reported: set[str] = set()
    for number, name in enumerate(members):
        folder = tmp_path / f"store{number}"
        shutil.copytree(good, folder)
        member = folder / name

        def refuse(path: object, *rest: object, hidden: Path = member, **more: object) -> int:
            if path == hidden:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *rest, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", refuse)
        for error in await use(f"{scheme}:{folder}"):
            reported.add(name.name)
            assert "Permission denied" in str(error)
            assert str(folder) in str(error)
        monkeypatch.setattr(os, "open", real)
    unread = {name.name for name in members if name.suffix == ".seen"} | {"state.db"}
    assert {name.name for name in members} - unread <= reported  # SQLite opens its file itself


# -- modes and owners ---------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
async def test_a_store_is_its_users_alone_whatever_the_umask(
    scheme: str, umask: int, tmp_path: Path
) -> None:
    """0700 for folders and 0600 for files, also of parents that were made on the way."""
    before = os.umask(umask)
    try:
        await make(scheme, tmp_path / "above" / "store")
    finally:
        os.umask(before)
    for path in [tmp_path / "above", *(tmp_path / "above").rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
async def test_a_folder_that_others_can_write_to_is_warned_of(
    scheme: str, mode: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "store"
    await make(scheme, folder)
    assert caplog.text == ""
    folder.chmod(mode)
    await (await open_store(folder)).aclose()
    assert "can be written by others" in caplog.text
    folder.chmod(0o755)
    caplog.clear()
    assert await use(f"{scheme}:{folder}") == []
    assert "others" not in caplog.text


async def test_a_folder_of_another_user_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "store"
    await make("sqlite", folder)
    real = Path.stat
    theirs = os.geteuid() + 1

    def stat_of_another(path: Path, **more: bool) -> os.stat_result:
        found = real(path, **more)
        return os.stat_result((*found[:4], theirs, *found[5:])) if path == folder else found

    monkeypatch.setattr(Path, "stat", stat_of_another)
    assert await use(f"sqlite:{folder}") == []
    assert f"belongs to another user, uid {theirs}" in caplog.text


# -- names --------------------------------------------------------------------------------

NAMES = [
    "a\nb",
    "..",
    "/etc/passwd",
    "a\0b",
    "x" * 10**7,
    "\u202egnp",
    "\ud800",
    "@phase",
    "~",
    "-rf",
]


@pytest.mark.parametrize("scheme", [*SCHEMES, "memory"])
async def test_no_name_of_a_run_or_a_stream_leads_out_of_the_store(
    scheme: str, tmp_path: Path
) -> None:
    """The library checks names first; a store that is asked all the same stays in its folder."""
    folder = tmp_path / "inner" / "store"
    store = await open_store("memory:" if scheme == "memory" else f"{scheme}:{folder}")
    for run_id, stream in [*((name, A) for name in NAMES), *(("run", name) for name in NAMES)]:
        with suppress(StoreError, ValueError):
            async with store.lock_run(run_id) as owner:
                group = [Checkpoint(stream, 1, b"x")]
                await store.save(RunKey(run_id, 0, owner), group)
                await store.publish(run_id, b"x")
                await store.history(run_id, stream)
            await store.read_owner(run_id)
    await store.aclose()
    assert {path.name for path in tmp_path.iterdir()} <= {"inner"}
    for path in tmp_path.rglob("*"):
        assert len(path.name) < 100
        assert path.name.isprintable()


async def test_the_note_of_an_owner_stands_on_one_line(tmp_path: Path) -> None:
    """It comes from a file that another user can write: it must not steer a terminal."""
    folder = tmp_path / "store"
    store, other = await open_store(folder), await open_store(folder)
    async with store.lock_run("run"):
        for host in ("box\n\x1b[31m", "\u202e", "x" * 3_000):
            note = {"host": host, "pid": 7, "since": "2026-01-01T00:00:00"}
            locks._lock_path(folder, "run").write_text(json.dumps(note))
            with pytest.raises(RunLockedError) as caught:
                async with other.lock_run("run"):
                    pass
            assert str(caught.value).isprintable()
            owner = await other.read_owner("run")
            assert owner is not None
            assert owner.host.isprintable()
    await store.aclose()
    await other.aclose()


def test_locks_are_named_by_hashes(tmp_path: Path) -> None:
    for name in ("..", "a/b", "x" * 1_000):
        path = locks._lock_path(tmp_path, name)
        assert path.parent == tmp_path / "lock"
        assert path.name.isalnum()
