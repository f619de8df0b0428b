"""Text comes out of bytes as browsers read them, and a bad byte costs one character."""

from __future__ import annotations

import codecs
import time

import pytest
from hypothesis import given, strategies as st

from examples._web.charsets import CODECS, UnreadableText, decode

HTML = "text/html"


@pytest.mark.parametrize("label", sorted(CODECS))
def test_every_label_has_a_codec(label: str) -> None:
    codec = CODECS[label]
    assert codec == "replacement" or codecs.lookup(codec)
    assert label == label.lower()


@pytest.mark.parametrize(
    ("label", "raw", "text"),
    [
        ("gb2312", "\u7a0b\u9555".encode("gbk"), "\u7a0b\u9555"),
        ("GBK", "\U00020087".encode("gb18030"), "\U00020087"),
        ("shift_jis", "\u2460\u9ad9".encode("cp932"), "\u2460\u9ad9"),
        ("x-sjis", "\u3042".encode("cp932"), "\u3042"),
        ("us-ascii", b"caf\xe9", "caf\u00e9"),
        ("iso-8859-1", b"\x93x\x94", "\u201cx\u201d"),
        ("windows-1252", b"\x81\x9d", "\x81\x9d"),
        ("windows-1253", b"\x81\xd2", "\x81\ufffd"),
        ("iso-8859-9", b"\xdd", "\u0130"),
        ("euc-kr", "\ub620\ubc29".encode("cp949"), "\ub620\ubc29"),
        ("big5", "\u4e2d".encode("big5"), "\u4e2d"),
        ("utf8", b"\xc3\xa9", "\u00e9"),
        ("koi8-r", "\u0434".encode("koi8-r"), "\u0434"),
        ("tis-620", "\u0e01".encode("cp874"), "\u0e01"),
        ("utf-16", "\u00e9".encode("utf-16-le"), "\u00e9"),
        ("utf-16be", "\u00e9".encode("utf-16-be"), "\u00e9"),
        ("iso-2022-jp", "\u3042".encode("iso2022-jp"), "\u3042"),
    ],
)
def test_labels_mean_what_they_mean_in_browsers(label: str, raw: bytes, text: str) -> None:
    assert decode(raw, f"{HTML}; charset={label}").text == text
    assert decode(raw, f'{HTML};Charset = "{label}"').text == text


@pytest.mark.parametrize(
    "label", ["utf-8", "gb18030", "big5", "euc-jp", "shift_jis", "euc-kr", "iso-2022-jp"]
)
@pytest.mark.parametrize("bad", [b"\xff", b"\xe9", b"\x81", b"\xfe\xfe", b"\xc3"])
def test_a_bad_byte_takes_no_markup_with_it(label: str, bad: bytes) -> None:
    """A lead byte without its second one must not swallow the quote or tag that follows."""
    body = b"<a href='x'>" + bad + b"</a><a href='" + bad + b"'>"
    text = decode(body, f"{HTML}; charset={label}").text
    assert text.count("<") == 3
    assert text.count("'") == 4


@pytest.mark.parametrize(
    ("content_type", "body", "codec"),
    [
        ("charset=gbk", b"<meta charset=utf-8>", "gb18030"),
        ("charset=gbk", codecs.BOM_UTF8, "utf-8"),
        ("charset=utf-8", codecs.BOM_UTF16_LE, "utf-16-le"),
        ("", codecs.BOM_UTF16_BE + b"\0<", "utf-16-be"),
        ("charset=nonsense", b"<meta charset=koi8-r>", "koi8-r"),
        ("charset=", b"<meta charset=koi8-r>", "koi8-r"),
        ("", b"<META HTTP-EQUIV=content-type content='text/html; charset=koi8-r'>", "koi8-r"),
        ("", b"<meta name=x content=y><meta charset='koi8-r'>", "koi8-r"),
        ("", b"<!-- <meta charset=gbk> --><meta charset=koi8-r>", "koi8-r"),
        ("", b"<!-- never ended <meta charset=gbk>", "utf-8"),
        ("", b"<meta charset=nonsense><meta charset=koi8-r>", "koi8-r"),
        ("", b"<meta charset=utf-16>\xc3\xa9", "utf-8"),
        ("", b"<title>" + b"x" * 5_000 + b"</title><meta charset=koi8-r>", "koi8-r"),
        ("", b"<?xml version='1.0' encoding='koi8-r'?>", "koi8-r"),
        ("", b"plain", "utf-8"),
        ("", b"\xc3\xa9", "utf-8"),
        ("", b"caf\xe9", "cp1252"),
        ("", b"", "utf-8"),
    ],
)
def test_what_outranks_what(content_type: str, body: bytes, codec: str) -> None:
    assert decode(body, f"{HTML}; {content_type}").codec == codec


def test_a_byte_order_mark_is_no_text() -> None:
    for mark in (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        assert decode(mark, HTML).text == ""


@pytest.mark.parametrize("label", ["hz-gb-2312", "iso-2022-kr", "replacement"])
def test_encodings_that_browsers_refuse(label: str) -> None:
    with pytest.raises(UnreadableText, match="browsers refuse"):
        decode(b"x", f"{HTML}; charset={label}")


@given(st.binary(max_size=60), st.sampled_from(sorted(CODECS)))
def test_never_another_error_and_no_surrogates(body: bytes, label: str) -> None:
    try:
        text = decode(body, f"{HTML}; charset={label}").text
    except UnreadableText:
        return
    text.encode()


@pytest.mark.parametrize(
    "part", [b"<meta ", b"<meta charset", b"<!--", b"charset=", b" ", b"<?xml "]
)
def test_looking_for_the_encoding_takes_little_time(part: bytes) -> None:
    began = time.process_time()
    decode(part * 300_000, HTML)
    assert time.process_time() - began < 5  # s of CPU; a quadratic search takes minutes
