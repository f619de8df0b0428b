"""Responses as records of a web archive (WARC 1.1, ISO 28500:2017).

Each response is a record of its own, compressed alone, so archives can be cut between any two and
read from any. A page with the payload of one that is archived already is a ``revisit`` record,
which names that one and has no payload. Each part begins with a ``warcinfo`` record, which says
what has written it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from http import HTTPStatus

import attrs
from warcio.recordloader import ArcWarcRecord  # type: ignore[import-untyped]
from warcio.statusandheaders import StatusAndHeaders  # type: ignore[import-untyped]
from warcio.warcwriter import WARCWriter  # type: ignore[import-untyped]

import trio_ckpt

from .._command import command_of
from .._web.http import Response
from .memory import PAGES, AnyPath, read_lines, texts_of

ARCHIVE = "crawl-{part}.warc.gz"
ROTATE_BYTES = 10**9  # the size that the standard recommends (annex C)
VERSION = "WARC/1.1"
SPECIFICATION = "https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/"
NOT_MODIFIED = "http://netpreserve.org/warc/1.1/revisit/server-not-modified"
_FIELDS = ("url", "sha256", "archived_at")  # of a page whose payload is in the archive

# What is said of a body as it was sent; the archive has it decoded, and whole.
_OF_TRANSFER = {"content-encoding", "transfer-encoding", "content-length"}


@attrs.frozen
class _Archived:
    """A response with a payload."""

    url: str
    date: str


@attrs.define(eq=False)
class Archive:
    """Makes records, and remembers which payloads are archived."""

    user_agent: str
    _payloads: dict[str, _Archived] = attrs.Factory(dict)

    @classmethod
    def load(cls, folder: AnyPath, size: int, user_agent: str) -> Archive:
        """That of the crawl in a folder, of which so many bytes of pages.jsonl are confirmed."""
        return cls._of(read_lines(folder, PAGES, size, *_FIELDS), user_agent)

    @classmethod
    def of(cls, records: Iterable[object], user_agent: str) -> Archive:
        """That of a crawl with these records of pages."""
        return cls._of(texts_of(records, *_FIELDS), user_agent)

    @classmethod
    def _of(cls, texts: Iterable[list[str]], user_agent: str) -> Archive:
        archive = cls(user_agent)
        for url, digest, date in texts:
            archive.add(digest, url, datetime.fromisoformat(date))
        return archive

    def append(self, batch: trio_ckpt.Batch[str], response: Response, fetched_at: datetime) -> None:
        """Stage the record of a response."""
        self._append(batch, self.record(response, fetched_at), response.url, fetched_at)

    def append_unchanged(
        self,
        batch: trio_ckpt.Batch[str],
        response: Response,
        fetched_at: datetime,
        archived_at: str,
    ) -> None:
        """Stage the record of a page that is as it was archived.

        Args:
            batch: That of the page.
            response: What says so; it has no body.
            fetched_at: When.
            archived_at: When the page was archived; ISO 8601.
        """
        url, date = response.url, _date(fetched_at)
        was = _date(datetime.fromisoformat(archived_at))
        ids = {
            "WARC-Date": date,
            "WARC-Record-ID": _record_id(url, date),
            "WARC-Profile": NOT_MODIFIED,
            "WARC-Refers-To": _record_id(url, was),
            "WARC-Refers-To-Target-URI": url,
            "WARC-Refers-To-Date": was,
        }
        data = _compressed(
            lambda writer: writer.create_warc_record(
                url, "revisit", http_headers=_head(response), warc_headers_dict=ids
            )
        )
        self._append(batch, data, url, fetched_at)

    def _append(
        self, batch: trio_ckpt.Batch[str], data: bytes, url: str, fetched_at: datetime
    ) -> None:
        header = self._info(url, fetched_at)
        batch.append_bytes(ARCHIVE, data, rotate_bytes=ROTATE_BYTES, header=header)

    def record(self, response: Response, fetched_at: datetime) -> bytes:
        """The record of a response, compressed."""
        known = None
        if response.status == HTTPStatus.OK:
            known = self._payloads.get(hashlib.sha256(response.body).hexdigest())
        return _compressed(lambda writer: _record(writer, response, _date(fetched_at), known))

    def _info(self, url: str, fetched_at: datetime) -> bytes:
        """The first record of a part that begins with a response, compressed."""
        date = _date(fetched_at)
        ids = {"WARC-Date": date, "WARC-Record-ID": _record_id(f"warcinfo {url}", date)}
        fields = (
            ("software", f"trio_ckpt/{trio_ckpt.__version__} ({command_of('crawler')})"),
            ("format", "WARC File Format 1.1"),
            ("conformsTo", SPECIFICATION),
            ("robots", "obey"),
            ("http-header-user-agent", self.user_agent),
        )
        body = "".join(f"{name}: {value}\r\n" for name, value in fields).encode()
        return _compressed(
            lambda writer: writer.create_warc_record(
                "", "warcinfo", io.BytesIO(body), length=len(body), warc_headers_dict=ids
            )
        )

    def has(self, digest: str) -> bool:
        """Whether a payload is archived: a page that has it becomes a ``revisit`` record."""
        return digest in self._payloads

    def add(self, digest: str, url: str, fetched_at: datetime) -> None:
        """Remember a payload whose record is durable, so that others may name it.

        Args:
            digest: The SHA-256 of the payload, in hexadecimal digits.
            url: Where it was fetched.
            fetched_at: When.
        """
        self._payloads.setdefault(digest, _Archived(url, _date(fetched_at)))


def _compressed(make: Callable[[WARCWriter], ArcWarcRecord]) -> bytes:
    data = io.BytesIO()
    writer = WARCWriter(data, gzip=True, warc_version=VERSION)
    writer.write_record(make(writer))
    return data.getvalue()


def _record(
    writer: WARCWriter, response: Response, date: str, known: _Archived | None
) -> ArcWarcRecord:
    url, body, http_headers = response.url, response.body, _head(response)
    ids = {"WARC-Date": date, "WARC-Record-ID": _record_id(url, date)}
    if known is None:
        return writer.create_warc_record(
            url,
            "response",
            io.BytesIO(body),
            length=len(body),
            http_headers=http_headers,
            warc_headers_dict=ids,
        )
    ids["WARC-Refers-To"] = _record_id(known.url, known.date)
    digest = base64.b32encode(hashlib.sha1(body, usedforsecurity=False).digest()).decode()
    return writer.create_revisit_record(
        url, f"sha1:{digest}", known.url, known.date, http_headers, ids
    )


def _date(moment: datetime) -> str:
    return f"{moment.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def _record_id(url: str, date: str) -> str:
    """The id of the record of a response; a repeated attempt has the same one."""
    return f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{date} {url}')}>"


def _head(response: Response) -> StatusAndHeaders:
    return StatusAndHeaders(_status(response.status), list(_headers(response)), "HTTP/1.1")


def _status(status: int) -> str:
    phrases = {known.value: known.phrase for known in HTTPStatus}
    return f"{status} {phrases.get(status, '')}".rstrip()


def _headers(response: Response) -> Iterator[tuple[str, str]]:
    for name, value in response.headers.items():
        yield (f"x-archive-orig-{name}" if name in _OF_TRANSFER else name), value
    yield "content-length", str(len(response.body))
