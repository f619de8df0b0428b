"""What comes from an API, checked before it is used: anything may come.

An answer that is strange fails its own stream, and no other.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import attrs

MAX_CURSOR_LENGTH = 4_000  # it has to fit into a URL
MAX_SHOWN = 100
_NEXT = re.compile(r"""; *rel *= *["']?next\b""", re.IGNORECASE)
# As GitHub has them. They become names of files, and streams that people type.
_REPO = re.compile(r"(?!\.{1,2}/)[\w.-]{1,100}/(?!\.{1,2}$)[\w.-]{1,100}", re.ASCII)


class RefusedError(Exception):
    """The API answered with an error; `http_retries` reads the two attributes."""

    def __init__(self, status: int, url: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"{status} {url}")
        self.status = status
        self.headers = headers


class StrangeAnswerError(Exception):
    """The API answered, but not with a page of records. It may be another one next time."""


class RepeatedAnswerError(Exception):
    """The API sends what it has sent before: collecting it would have no end."""


class UnusableNameError(Exception):
    """The API names a repository in a way that no file can be named."""


@attrs.frozen
class Answer:
    """A page of records.

    Attributes:
        records: Whatever they are.
        following: The cursor of the next page, if it has one.
        is_last: Whether no Link leads to a next page.
    """

    records: Sequence[Any]
    following: str | None
    is_last: bool = True


def read_answer(body: bytes, link: str = "") -> Answer:
    """Read a page.

    Args:
        body: Of the response.
        link: Its header ``Link`` (RFC 8288).

    Raises:
        StrangeAnswerError: It is none.
    """
    try:
        document = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise StrangeAnswerError(f"not JSON ({error}): {_shown(body)}") from error
    if not isinstance(document, dict):
        raise StrangeAnswerError(f"not an object: {_shown(body)}")
    records, following = document.get("records"), document.get("next")
    if not isinstance(records, list):
        raise StrangeAnswerError(f"without a list of records: {_shown(body)}")
    is_last = _NEXT.search(link) is None
    if following is None or following == "":  # some APIs say so where nothing follows
        return Answer(records, None, is_last)
    if not isinstance(following, str) or len(following) > MAX_CURSOR_LENGTH:
        raise StrangeAnswerError(f"with a cursor that is none: {_shown(following)}")
    return Answer(records, following, is_last)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def repo_names(records: Sequence[Any]) -> tuple[list[str], list[str]]:
    """The names of repositories, ``owner/name``, from their records.

    Returns:
        Those that can be used, and the others as they are shown to people.
    """
    usable, unusable = list[str](), list[str]()
    for record in records:
        name = record.get("full_name") if isinstance(record, dict) else None
        if isinstance(name, str) and _REPO.fullmatch(name) is not None:
            usable.append(name)
        else:
            unusable.append(_shown(record if name is None else name))
    return usable, unusable


def _shown(value: object) -> str:
    """A value in a message: printable, and not all of it where it is long or deep."""
    if isinstance(value, bytes):
        value = value[:MAX_SHOWN]
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode()
