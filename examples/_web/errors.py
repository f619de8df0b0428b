"""The ways in which a request gets no response that can be used."""
# ruff: noqa: N818 - the leaves are named for what happened; FetchError says that it is an error

from __future__ import annotations


class FetchError(Exception):
    """No response, or none that can be used. Another attempt may succeed."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(url, problem)
        self.url = url
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.problem}: {self.url}"


class FetchTimeout(FetchError):
    """The response was not complete in time."""


class NoConnection(FetchError):
    """The site cannot be reached, or its name is not found."""


class ConnectionReset(FetchError):
    """The connection ended with a reset, or before the head of a response."""


class TruncatedBody(FetchError):
    """The connection closed before the end that the response had announced."""


class BodyTooLarge(FetchError):
    """The body, as sent or decoded, is larger than allowed. Another attempt does not help."""


class BadResponse(FetchError):
    """What came is no HTTP, or a body that cannot be decoded."""
