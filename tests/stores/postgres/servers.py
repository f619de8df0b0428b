"""Servers that the tests start: PostgreSQL, PgBouncer before it, and a proxy that loses answers.

All of them listen on the loopback or on a socket in a folder of their own, and each is stopped by
the id of its process.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests.ports import keep_port, port_of

START_S = 60.0
_PLACES = ("usr/lib/postgresql/*/bin", "usr/pgsql*/bin", "usr/local/pgsql/bin")


def find_programs() -> Path | None:
    """The folder of PostgreSQL's own programs; None: it is not installed."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    paths = [path for place in _PLACES for path in Path("/").glob(f"{place}/initdb")]
    return max(paths, key=_version_of).parent if paths else None


def _version_of(path: Path) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", str(path))]


def unprivileged_user() -> str | None:
    """Whom to start servers as: they refuse root; None: this user, who is not root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise LookupError("there is no user to start PostgreSQL as")


@attrs.define(eq=False)
class Server:
    """A PostgreSQL server of the tests' own."""

    programs: Path
    folder: Path
    user: str | None
    settings: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    kept: socket.socket = attrs.field(factory=keep_port)

    @property
    def port(self) -> int:
        return port_of(self.kept)

    def url(self, options: str = "", *, user: str = "postgres", port: int | None = None) -> str:
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/postgres{options}"

    def make(self) -> None:
        """Make the database; nothing of it has to survive a power cut of the machine."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.user is not None:
            shutil.chown(self.folder, self.user)
        command = [self.programs / "initdb", "-D", self.folder / "data", "-U", "postgres"]
        self._call([*command, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"])

    def follow(self, primary: Server) -> None:
        """Make the database as a standby of another server."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.user is not None:
            shutil.chown(self.folder, self.user)
        command = [self.programs / "pg_basebackup", "-D", self.folder / "data", "-R"]
        self._call([*command, "-d", primary.url(), "-X", "stream", "--checkpoint=fast"])

    def promote(self) -> None:
        """Make a standby a primary."""
        self._call([self.programs / "pg_ctl", "-D", self.folder / "data", "-w", "promote"])

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [
                *(self.programs / "postgres", "-D", self.folder / "data", "-p", str(self.port)),
                *("-k", self.folder, "-c", "listen_addresses=127.0.0.1"),
                *("-c", "max_connections=60", "-c", "unix_socket_permissions=0700"),
                *(part for setting in self.settings for part in ("-c", setting)),
            ],
            user=self.user,
            cwd=self.folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        self.wait()

    def wait(self) -> None:
        """Wait until it takes connections."""
        command = [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        until = time.monotonic() + START_S
        while subprocess.run(command, check=False).returncode != 0:
            if time.monotonic() > until or (self.process and self.process.poll() is not None):
                raise RuntimeError((self.folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT rolls back and ends, SIGQUIT ends at once, as a crash would."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(START_S)
            self.process = None

    def _call(self, command: list[str | Path]) -> None:
        done = subprocess.run(
            command, user=self.user, cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def _is_open_to_all(folder: Path) -> bool:
    return all(path.stat().st_mode & stat.S_IXOTH for path in (folder, *folder.absolute().parents))


@contextlib.contextmanager
def running_server(*settings: str, parent: Path | None = None) -> Iterator[Server]:
    """A server for a block; it and its folder are gone afterwards.

    Args:
        settings: Of the server, as ``fsync=off``.
        parent: Where its folder is made, if its user can reach it.
    """
    programs, user = find_programs(), unprivileged_user()
    assert programs is not None
    if parent is not None and user is not None and not _is_open_to_all(parent):
        parent = None
    with tempfile.TemporaryDirectory(
        prefix="ckpt-pg-", dir=parent, ignore_cleanup_errors=True
    ) as folder:
        os.chmod(folder, 0o755)
        server = Server(programs, Path(folder) / "pg", user, settings=settings)
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)
            server.kept.close()


@contextlib.contextmanager
def running_pair() -> Iterator[tuple[Server, Server]]:
    """A primary whose commits wait for its standby, and the standby."""
    with running_server() as primary:
        standby = Server(primary.programs, primary.folder.parent / "standby", primary.user)
        standby.follow(primary)
        standby.start()
        try:
            psql = [primary.programs / "psql", "-q", "-d", primary.url(), "-c"]
            for command in (
                "ALTER SYSTEM SET synchronous_standby_names = '*'",
                "SELECT pg_reload_conf()",
            ):
                subprocess.run([*psql, command], check=True, stdout=subprocess.DEVNULL)
            yield primary, standby
        finally:
            standby.stop(signal.SIGQUIT)
            standby.kept.close()


@contextlib.contextmanager
def running_pooler(server: Server) -> Iterator[int]:
    """PgBouncer in transaction pooling before a server; yields its port."""
    program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    with tempfile.TemporaryDirectory(prefix="ckpt-bouncer-") as name:
        folder, kept, user = Path(name), keep_port(), unprivileged_user()
        port = port_of(kept)
        (folder / "users").write_text('"postgres" ""\n', encoding="utf-8")
        (folder / "ini").write_text(
            "[databases]\n"
            f"postgres = host=127.0.0.1 port={server.port} dbname=postgres user=postgres\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = trust\n"
            f"auth_file = {folder / 'users'}\npool_mode = transaction\ndefault_pool_size = 4\n"
            f"unix_socket_dir = {folder}\nmax_client_conn = 200\n",
            encoding="utf-8",
        )
        if user is not None:
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, user)
        process = subprocess.Popen(
            [program, "-q", folder / "ini"],
            user=user,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            until = time.monotonic() + START_S
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                assert process.poll() is None, "pgbouncer has ended"
                assert time.monotonic() < until, "pgbouncer does not answer"
                time.sleep(0.05)
            yield port
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kept.close()


@attrs.define(eq=False)
class LosingProxy:
    """Passes connections on to a server, and cuts some: half of a question, or a whole answer.

    Attributes:
        share: The share of the packets that are lost, with their connection; nothing at first.
        answers: How many answers were lost after the server had given them.
        questions: How many questions were cut in half.
    """

    target: int
    share: float = 0.0
    answers: int = 0
    questions: int = 0
    _random: random.Random = attrs.field(factory=lambda: random.Random(3))

    def lose(self, known: int) -> int:
        """Begin to lose packets; returns how many answers more than the known ones were lost."""
        self.share = 0.05
        return self.answers - known

    @contextlib.contextmanager
    def serve(self) -> Iterator[int]:
        """Serve for a block; yields the port."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            yield int(listener.getsockname()[1])
            self.share = 0.0

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self.target))
        packets = 0
        with client, server, contextlib.suppress(OSError):
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    packets += 1
                    is_lost = packets > 20 and self._random.random() < self.share
                    if is_lost and source is server:
                        self.answers += 1
                        return
                    if is_lost and self._random.random() < 0.5:
                        self.questions += 1
                        server.sendall(data[: len(data) // 2])
                        return
                    (server if source is client else client).sendall(data)
