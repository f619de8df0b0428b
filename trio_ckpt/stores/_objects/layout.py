"""The keys of the objects of a store, and how the bytes of an object are sealed.

    store                            says that there is a store, and of which format
    probe/RANDOM                     made while a store is opened, and removed
    names/ID                         one for each run; a LIST gives them in the order of their ids
    runs/RUN/log/POSITION            a group of checkpoints, or another entry of the run's log
    runs/RUN/base/DOWN               what all entries up to a position amount to; newest first
    runs/RUN/page/FIRST-LAST-OWNER   entries that were merged into one object
    runs/RUN/index/…                 the pages of a part of the log, likewise
    runs/RUN/blob/DIGEST/UPLOAD      a blob; no upload is ever made again
    runs/RUN/inbox                   what another process asks of the owner of the run

RUN is a digest of the run's id, so that the runs of a store are spread over its keys.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import TypeVar

import attrs
import msgspec

from ..._buckets.bucket import joined
from ..._util.errors import StoreDamagedError

FORMAT = 1
MAX_NAME_CHARS = 200  # of an id in a key: file systems take names of 255
_MAX_POSITION = 2**63 - 1
_SEAL_BYTES = 16
_POSITION = re.compile(r"[0-9a-f]{16}", re.ASCII)

T = TypeVar("T")


class LogPage(msgspec.Struct, frozen=True, array_like=True):
    """A part of a log that is in one object: a page, or an index of pages.

    Attributes:
        first: The position of its first entry.
        last: The position of its last entry.
        owner: The owner that wrote it; so no two processes write one object.
    """

    first: int
    last: int
    owner: int


@attrs.frozen
class StoreKeys:
    """The keys of a store whose objects all have a prefix."""

    prefix: str

    @property
    def marker(self) -> str:
        """The object that says that there is a store."""
        return joined(self.prefix, "store")

    @property
    def names(self) -> str:
        """The folder of the names of the runs."""
        return joined(self.prefix, "names")

    @property
    def probes(self) -> str:
        """The folder of what is made while a store is opened."""
        return joined(self.prefix, "probe")

    def new_probe(self) -> str:
        """An object that is made while a store is opened, of a name that no other one has."""
        return joined(self.probes, secrets.token_hex(8))

    def name(self, run_id: str) -> str:
        """The object with the id of a run; these keys are in the order of ids, but for long ones.

        The key of a long id has the beginning of the id, and its digest.
        """
        whole = run_id.encode("utf-8", "surrogatepass").hex()
        if len(whole) > MAX_NAME_CHARS:
            whole = f"{whole[:MAX_NAME_CHARS]}.{_digest(run_id)}"
        return joined(self.names, whole)

    def before_name(self, text: str) -> str | None:
        """A key before those of all ids that are not less than a text; None: it is empty."""
        if not text:
            return None
        start = text.encode("utf-8", "surrogatepass").hex()[:MAX_NAME_CHARS]
        last = start[-1]
        end = {"0": "-", "a": "9~"}.get(last) or f"{chr(ord(last) - 1)}~"
        return joined(self.names, start[:-1] + end)

    def run(self, run_id: str) -> RunKeys:
        """The keys of a run."""
        return RunKeys(run_id, joined(self.prefix, "runs", _digest(run_id)))


@attrs.frozen
class RunKeys:
    """The keys of a run."""

    run_id: str
    folder: str

    @property
    def logs(self) -> str:
        """The folder of the entries of the log."""
        return f"{self.folder}/log"

    @property
    def bases(self) -> str:
        """The folder of the bases."""
        return f"{self.folder}/base"

    @property
    def pages(self) -> str:
        """The folder of the pages."""
        return f"{self.folder}/page"

    @property
    def indexes(self) -> str:
        """The folder of the indexes of all levels."""
        return f"{self.folder}/index"

    @property
    def blobs(self) -> str:
        """The folder of the blobs."""
        return f"{self.folder}/blob"

    @property
    def inbox(self) -> str:
        """The object of the inbox."""
        return f"{self.folder}/inbox"

    def log(self, position: int) -> str:
        """An entry of the log."""
        return f"{self.logs}/{position:016x}"

    def base(self, position: int) -> str:
        """The base that ends at a position; a LIST gives the newest first."""
        return f"{self.bases}/{_MAX_POSITION - position:016x}"

    def page(self, page: LogPage, level: int = 0) -> str:
        """A page, or an index of the level above pages, and so on."""
        folder = f"{self.indexes}/{level}" if level else self.pages
        return f"{folder}/{page.first:016x}-{page.last:016x}-{page.owner:x}"

    def uploads(self, digest: str) -> str:
        """The folder of the uploads of a blob."""
        return f"{self.blobs}/{digest}"

    def blob(self, digest: str, upload: str) -> str:
        """An upload of a blob."""
        return f"{self.uploads(digest)}/{upload}"


def position_of(key: str, *, is_base: bool = False) -> int:
    """The position in a key.

    Raises:
        StoreDamagedError: it has none.
    """
    name = key.rpartition("/")[2]
    if not _POSITION.fullmatch(name):
        raise StoreDamagedError(f"{key} is not an object of a store")
    number = int(name, 16)
    return _MAX_POSITION - number if is_base else number


def last_of(key: str) -> int:
    """The position of the last entry of a page or an index.

    Raises:
        StoreDamagedError: the key is not one of theirs.
    """
    return position_of(key.rpartition("-")[0].replace("-", "/"))


def upload_of(key: str) -> tuple[str, str]:
    """The digest and the upload in the key of a blob."""
    folder, _, upload = key.rpartition("/")
    return folder.rpartition("/")[2], upload


def seal(value: object) -> bytes:
    """The bytes of an object: a digest, and the value."""
    body = msgspec.msgpack.encode(value)
    return hashlib.blake2b(body, digest_size=_SEAL_BYTES).digest() + body


def unseal(data: bytes, kind: type[T], key: str) -> T:
    """The value in the bytes of an object.

    Raises:
        StoreDamagedError: they were altered, or are not those of such an object.
    """
    body = data[_SEAL_BYTES:]
    if hashlib.blake2b(body, digest_size=_SEAL_BYTES).digest() != data[:_SEAL_BYTES]:
        raise StoreDamagedError(f"{key} is not what was saved")
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise StoreDamagedError(f"{key} cannot be read: {error}") from error


def _digest(run_id: str) -> str:
    return hashlib.sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
