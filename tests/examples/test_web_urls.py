"""One page has one spelling, and nothing that comes as a URL can stop a crawl."""

from __future__ import annotations

import pytest
from hypothesis import example, given, strategies as st

from examples._web.urls import Scope, normalize, site_of


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("HTTP://EXAMPLE.com", "http://example.com/"),
        ("http://example.com:80/a", "http://example.com/a"),
        ("https://example.com:443?q", "https://example.com/?q"),
        ("http://example.com:443/", "http://example.com:443/"),
        ("http://example.com/a#part", "http://example.com/a"),
        ("http://example.com/a?", "http://example.com/a"),
        ("http://example.com/%7euser/%c3%a9", "http://example.com/~user/%C3%A9"),
        ("http://example.com/é ü", "http://example.com/%C3%A9%20%C3%BC"),
        ("http://example.com/%zz", "http://example.com/%25zz"),
        ("http://example.com/a/../b/./c", "http://example.com/b/c"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://[::1]:80/x", "http://[::1]/x"),
        (" \n http://example.com/a\tb ", "http://example.com/ab"),
        ("ht\ntp://example.com/", "http://example.com/"),
        ("http:example.com", "http://example.com/"),
        ("http:///example.com/a", "http://example.com/a"),
        ("http:\\\\example.com\\a", "http://example.com/a"),
        ("http://example.com:/a", "http://example.com/a"),
    ],
)
def test_one_spelling(url: str, expected: str) -> None:
    assert normalize(url) == expected


@pytest.mark.parametrize(
    "url", ["http://e.test/a%2Fb", "http://e.test/a%2Bb", "http://e.test/?b&a"]
)
def test_what_may_name_another_page_stays(url: str) -> None:
    assert normalize(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/relative",
        "//example.com/",
        "ftp://example.com/",
        "javascript:alert(1)",
        "mailto:a@example.com",
        "http://user:secret@example.com/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://exa mple.com/",
        "http://a..b/",
        "http://" + "a" * 64 + ".com/",
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "http://[]@",
        "http://example.com/\ud800",
        "http://[é:]/",
        "data:text/html,<a href=x>",
        "http:",
        "http:///",
        "//",
    ],
)
def test_what_cannot_be_fetched_is_none(url: str) -> None:
    assert normalize(url) is None


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("c", "http://e.test/a/c"),
        ("/c", "http://e.test/c"),
        ("../../c", "http://e.test/c"),
        ("?q=1", "http://e.test/a/b?q=1"),
        ("#part", "http://e.test/a/b?old"),
        ("//other.test/c", "http://other.test/c"),
        ("https://e.test", "https://e.test/"),
        ("1:2", "http://e.test/a/1:2"),
        ("a_b:c", "http://e.test/a/a_b:c"),
        ("mailto:x", None),
        ("", "http://e.test/a/b?old"),
        ("?", "http://e.test/a/b"),
        ("/\tc\n", "http://e.test/c"),
        ("c/%2e%2E/d", "http://e.test/a/d"),
        # backslashes
        ("\\c", "http://e.test/c"),
        ("c\\d", "http://e.test/a/c/d"),
        ("..\\..\\c", "http://e.test/c"),
        ("c?d\\e", "http://e.test/a/c?d%5Ce"),
        ("\\\\other.test\\c", "http://other.test/c"),
        ("/\\other.test", "http://other.test/"),
        ("http:\\\\other.test\\c", "http://other.test/c"),
        ("http://e.test\\@other.test/", "http://e.test/@other.test/"),
        # slashes behind the scheme
        ("http:c", "http://e.test/a/c"),
        ("http:1:2", "http://e.test/a/1:2"),
        ("http:/c", "http://e.test/c"),
        ("http:?q", "http://e.test/a/b?q"),
        ("https:c", "https://c/"),
        ("https:/other.test/c", "https://other.test/c"),
        ("http:////other.test/c", "http://other.test/c"),
        ("///other.test/c", "http://other.test/c"),
    ],
)
def test_relative_to_a_base(href: str, expected: str | None) -> None:
    assert normalize(href, "http://e.test/a/b?old") == expected


@given(
    st.text(alphabet="htp:/[]%?#&@a.b\u00e9\u3002\ud800\x00 \\1e*_-|", max_size=20),
    st.sampled_from(["", "http://", "https://"]),
    st.sampled_from([None, "http://e.test/a/b", "no base"]),
)
@example("[]@", "http://", None)
@example("[h\u3002h:]", "http://", "http://e.test/")
def test_never_raises_and_twice_is_once(text: str, scheme: str, base: str | None) -> None:
    once = normalize(scheme + text, base)
    if once is not None:
        assert normalize(once) == once
        assert once.isascii()
        assert once.startswith(site_of(once) + "/")


@pytest.mark.parametrize("part", ["a", "/", "..\\", "%2e/", "é", "?", "&a=", "#", "@", ":"])
def test_a_long_url_takes_linear_time(part: str) -> None:
    """A page can have one of many megabytes; a quadratic rule would take minutes for it."""
    normalize("http://e.test/" + part * 300_000)
    normalize(part * 300_000, "http://e.test/a/b")


def test_scope_is_scheme_host_and_port() -> None:
    scope = Scope("HTTP://site.test")
    assert scope.admits("http://site.test/any")
    for other in (
        "https://site.test/any",
        "http://site.test:8080/any",
        "http://sub.site.test/any",
        "http://site.test.evil.test/any",
    ):
        assert not scope.admits(other)


def test_scope_patterns_are_searched_and_exclude_wins() -> None:
    scope = Scope("http://site.test/", include=["/docs/", "/api/"], exclude=[r"\.zip$"])
    assert scope.admits("http://site.test/docs/a")
    assert scope.admits("http://site.test/v2/api/a")
    assert not scope.admits("http://site.test/blog/a")
    assert not scope.admits("http://site.test/docs/a.zip")


def test_scope_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="not an absolute http or https URL"):
        Scope("site.test")
    with pytest.raises(ValueError, match=r"not a regular expression: '\('"):
        Scope("http://site.test/", exclude=["("])
