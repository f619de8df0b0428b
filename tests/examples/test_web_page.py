"""Pages of all sorts give their title and the links that may be followed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st
from lxml import etree

from examples._web.page import (
    MAX_LINKS_PER_PAGE,
    MAX_TITLE_LENGTH,
    Page,
    encode_query,
    parse_page,
)

URL = "http://e.test/dir/page"
HTML = "text/html"


def links_of(body: bytes | str, content_type: str = f"{HTML}; charset=utf-8") -> tuple[str, ...]:
    content = body.encode() if isinstance(body, str) else body
    return parse_page(content, URL, content_type).links


def test_links_are_normalized_unique_and_in_order() -> None:
    body = '<a href="b#x">1</a><area href="/a"><A HREF="http://E.test/dir/b">2</A><a>no href</a>'
    assert links_of(body) == ("http://e.test/dir/b", "http://e.test/a")


def test_links_that_cannot_be_fetched_are_left_out() -> None:
    body = '<a href="javascript:x">1</a><a href="mailto:a@e.test">2</a><a href="http://[">3</a>'
    assert links_of(body) == ()


def test_links_in_comments_and_scripts_are_none() -> None:
    body = '<!-- <a href="a"> --><script>"<a href=b>"</script><style><a href=c></style><a href=d>'
    assert links_of(body) == ("http://e.test/dir/d",)


def test_entities_in_links_are_decoded() -> None:
    assert links_of('<a href="?a=1&amp;b=2">x</a>') == ("http://e.test/dir/page?a=1&b=2",)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ('<base href="/other/">', "http://e.test/other/a"),
        ('<base href="http://cdn.test/x">', "http://cdn.test/a"),
        ('<base target="_top"><base href="/second/">', "http://e.test/second/a"),
        ('<base href="/first/"><base href="/second/">', "http://e.test/first/a"),
        ('<base href="javascript:x">', "http://e.test/dir/a"),
    ],
)
def test_base_is_honoured_for_all_links(base: str, expected: str) -> None:
    assert links_of(f'<a href="a">before</a>{base}') == (expected,)


def test_nofollow_links_are_left_out() -> None:
    body = '<a rel="external NoFollow" href="a">1</a><a rel="nofollowing" href="b">2</a>'
    assert links_of(body) == ("http://e.test/dir/b",)


@pytest.mark.parametrize(
    ("meta", "followed"),
    [
        ('<meta name="robots" content="noindex, NOFOLLOW">', False),
        ('<meta name="Robots" content="none">', False),
        ('<meta name="robots" content="noindex">', True),
        ('<meta name="description" content="nofollow">', True),
    ],
)
def test_meta_robots(meta: str, followed: bool) -> None:
    assert bool(links_of(f'{meta}<a href="a">x</a>')) is followed


def test_the_number_of_links_is_bounded_and_the_rest_is_counted() -> None:
    body = "".join(f'<a href="{number}">x</a>' for number in range(MAX_LINKS_PER_PAGE + 10))
    found = parse_page(f"{body}<a href=0>".encode(), URL, HTML)
    assert len(found.links) == MAX_LINKS_PER_PAGE
    assert found.more_links == 10


def test_links_behind_many_bytes_are_found() -> None:
    body = '<a href="a">x</a>' + " " * 12_000_000 + '<a href="b">x</a>'
    assert links_of(body) == ("http://e.test/dir/a", "http://e.test/dir/b")


@pytest.mark.parametrize(
    "tag",
    [
        '<iframe src="a">',
        '<frameset><frame src="a"></frameset>',
        '<meta http-equiv="refresh" content="0; url=a">',
        """<META HTTP-EQUIV=Refresh CONTENT="5.5;URL='a'">""",
    ],
)
def test_what_a_browser_goes_to_by_itself_is_a_link(tag: str) -> None:
    assert links_of(tag) == ("http://e.test/dir/a",)


@pytest.mark.parametrize("content", ["5", "", "x; url=a", "5; no-url"])
def test_a_page_that_reloads_itself_has_no_link(content: str) -> None:
    assert links_of(f'<meta http-equiv="refresh" content="{content}">') == ()


def test_the_title_is_one_bounded_line() -> None:
    body = b"<title>\n A &amp;\t B \n</title><p>text</p><title>second</title>"
    assert parse_page(body, URL, HTML).title == "A & B"
    cut = parse_page(b"<title>" + b"x" * 9999, URL, HTML).title
    assert cut == "x" * (MAX_TITLE_LENGTH - 1) + "…"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html; charset=ISO-8859-1", "<title>é</title>".encode("latin-1")),
        ('text/html; charset="utf-8"', "<title>é</title>".encode()),
        ("text/html; charset=utf-8", "<meta charset=latin1><title>é</title>".encode()),
        ("text/html", "<meta charset=latin1><title>é</title>".encode("latin-1")),
        ("text/html", "\ufeff<title>é</title>".encode()),
        ("text/html", "\ufeff<title>é</title>".encode("utf-16-le")),
        ("text/html; charset=no-such", "<meta charset=utf-8><title>é</title>".encode()),
        (
            "application/xhtml+xml",
            '<?xml version="1.0" encoding="utf-8"?><title>é</title>'.encode(),
        ),
    ],
)
def test_encodings(content_type: str, body: bytes) -> None:
    assert parse_page(body, URL, content_type).title == "é"


PAGE = b'<title>t</title><a href="a">'


@pytest.mark.parametrize("content_type", ["application/pdf", "text/plain; x=text/html", "a/b, c/d"])
def test_what_is_not_html_is_empty(content_type: str) -> None:
    assert parse_page(PAGE, URL, content_type) == Page()


@pytest.mark.parametrize(
    "content_type",
    ["", "html", "text/", "*/*", "unknown/unknown", "; charset=utf-8", "text/plain, text/html"],
)
def test_without_a_type_the_first_bytes_tell(content_type: str) -> None:
    assert parse_page(PAGE, URL, content_type).links == ("http://e.test/dir/a",)


@pytest.mark.parametrize(
    ("body", "is_page"),
    [
        (b"\n\t <!-- x --><ul><li><a href=a>", True),
        (b"\xef\xbb\xbf" + PAGE, True),
        ("\ufeff".encode("utf-16-le") + PAGE.decode().encode("utf-16-le"), True),
        ("\ufeff".encode("utf-16-be") + PAGE.decode().encode("utf-16-be"), True),
        (b"\x89PNG <a href=a>", False),
        (b'{"html": "<a href=a>"}', False),
        (b"", False),
    ],
)
def test_a_page_without_a_type_begins_like_one(body: bytes, is_page: bool) -> None:
    assert bool(parse_page(body, URL, "").links) is is_page


@pytest.mark.parametrize(
    ("href", "codec", "expected"),
    [
        ("/é?q=中&a=b", "gb18030", "/é?q=%D6%D0&a=b"),
        ("?é", "cp1252", "?%E9"),
        ("?中", "cp1252", "?%26%2320013%3B"),
        ("?中#é", "cp932", "?%92%86#é"),
        ("/é#?中", "cp932", "/é#?中"),
        ("?中", "utf-8", "?中"),
        ("?中", "utf-16-le", "?中"),
    ],
)
def test_queries_are_encoded_as_forms_of_the_page_are(href: str, codec: str, expected: str) -> None:
    assert encode_query(href, codec) == expected


def test_a_query_of_a_page_in_another_encoding() -> None:
    body = '<a href="/中?q=中">'.encode("gbk")
    found = ("http://e.test/%E4%B8%AD?q=%D6%D0",)
    assert links_of(body, f"{HTML}; charset=gb2312") == found
    assert links_of(b"<meta charset=gb2312>" + body, HTML) == found


FRAGMENTS = [b"<a href=", b'"', b"<", b">", b"<title>", b"<base href=", b"<meta ", b"\x00", b"\xff"]
MORE = [b"&#x", b"<!--", b"<script>", b"<svg>", b"<![CDATA[", b"<table>", b"<?xml ", b"<frameset>"]


@given(
    st.lists(st.sampled_from(FRAGMENTS + MORE) | st.binary(max_size=8), max_size=30).map(b"".join),
    st.sampled_from(["", "utf-8", "utf-16", "utf-7", "\x00", "punycode", "é", "iso-2022-jp"]),
)
def test_never_raises(body: bytes, charset: str) -> None:
    found = parse_page(body, URL, f"text/html; charset={charset}")
    assert found.title.encode("utf-8", "surrogatepass").decode("utf-8") == found.title
    assert all(link.startswith(("http://", "https://")) for link in found.links)


def test_what_was_read_before_the_parser_gives_up_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    open_parser = etree.HTMLParser

    class GivesUp:
        def __init__(self, **options: Any) -> None:
            self._parser = open_parser(**options)

        def feed(self, body: bytes) -> None:
            self._parser.feed(body)
            raise etree.XMLSyntaxError("too much", 1, 1, 1)

    monkeypatch.setattr(etree, "HTMLParser", GivesUp)
    found = parse_page(b'<a href="a">x</a>', URL, HTML)
    assert found.links == ("http://e.test/dir/a",)
    assert found.is_cut


@pytest.mark.parametrize("tag", [b"<div>", b"<b><p>", b"<ul><li>"])
def test_links_below_any_depth_are_found(tag: bytes) -> None:
    """Also a time bound: a parser that is quadratic in the depth needs minutes for this."""
    assert links_of(tag * 200_000 + b'<a href="a">') == ("http://e.test/dir/a",)
