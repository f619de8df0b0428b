"""Bytes of a page as text, as browsers read them (https://encoding.spec.whatwg.org).

A byte order mark outranks the header, the header outranks what the page says of itself. A byte
that the encoding does not have becomes U+FFFD, and costs no link behind it. Where nothing is said
it is UTF-8 if the bytes are, else windows-1252, of which every byte is a character.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from functools import lru_cache

import attrs

# How far to look for a <meta>: browsers look through the whole <head>.
MAX_DECLARATION_BYTES = 64 * 1024

# Python's codec -> the labels that the standard has for it. Some mean a superset of what they
# say: latin-1 is windows-1252, gb2312 is gb18030.
_LABELS = {
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8",
    "cp866": "866 cp866 csibm866 ibm866",
    "iso8859-2": "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 "
    "iso_8859-2:1987 l2 latin2",
    "iso8859-3": "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 "
    "iso_8859-3:1988 l3 latin3",
    "iso8859-4": "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 "
    "iso_8859-4:1988 l4 latin4",
    "iso8859-5": "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 "
    "iso_8859-5 iso_8859-5:1988",
    "iso8859-6": "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 "
    "iso-8859-6-e iso-8859-6-i iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987",
    "iso8859-7": "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 "
    "iso88597 iso_8859-7 iso_8859-7:1987 sun_eu_greek",
    "iso8859-8": "csiso88598e csiso88598i csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e "
    "iso-8859-8-i iso-ir-138 iso8859-8 iso88598 iso_8859-8 iso_8859-8:1988 logical visual",
    "iso8859-10": "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso8859-13": "iso-8859-13 iso8859-13 iso885913",
    "iso8859-14": "iso-8859-14 iso8859-14 iso885914",
    "iso8859-15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9",
    "iso8859-16": "iso-8859-16",
    "koi8-r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8-u": "koi8-ru koi8-u",
    "mac-roman": "csmacintosh mac macintosh x-mac-roman",
    "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp1250": "cp1250 windows-1250 x-cp1250",
    "cp1251": "cp1251 windows-1251 x-cp1251",
    "cp1252": "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 "
    "iso8859-1 iso88591 iso_8859-1 iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252 "
    "x-user-defined",
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1254": "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 "
    "iso_8859-9:1989 l5 latin5 windows-1254 x-cp1254",
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "gb18030": "chinese csgb2312 csiso58gb231280 gb18030 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 "
    "x-gbk",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc-jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "iso2022-jp": "csiso2022jp iso-2022-jp",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "cp949": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 "
    "ksc5601 ksc_5601 windows-949",
    "utf-16-be": "unicodefffe utf-16be",
    "utf-16-le": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le",
    "replacement": "csiso2022kr hz-gb-2312 iso-2022-cn iso-2022-cn-ext iso-2022-kr replacement",
}
CODECS: Mapping[str, str] = {
    label: codec for codec, labels in _LABELS.items() for label in labels.split()
}

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
)
_IN_HEADER = re.compile(r"""charset\s*=\s*["']?\s*([^\s;,"']+)""", re.IGNORECASE)
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)
_IN_META = re.compile(
    rb"""<meta\s[^>]{0,1000}?charset\s*=\s*["']?\s*([^\s"'/>;]+)""", re.IGNORECASE
)
_IN_XML = re.compile(rb"""\A<\?xml\s[^>]{0,1000}?encoding\s*=\s*["']([^"']+)""")


class UnreadableText(ValueError):  # noqa: N818 - named for what it is
    """The text is in an encoding that browsers refuse to read, for safety."""


@attrs.frozen
class Text:
    """A page as text.

    Attributes:
        text: The characters.
        codec: Python's name of the encoding, which queries of its links are encoded in.
    """

    text: str
    codec: str


def decode(body: bytes, content_type: str) -> Text:
    """The text of a page.

    Args:
        body: The bytes.
        content_type: The header's value.

    Raises:
        UnreadableText: It is in an encoding that browsers refuse.
    """
    for mark, codec in _BYTE_ORDER_MARKS:
        if body.startswith(mark):
            return Text(body[len(mark) :].decode(codec, "replace"), codec)
    codec = _in_header(content_type) or _in_page(body) or ""
    if codec == "replacement":
        raise UnreadableText("the page is in an encoding that browsers refuse (ISO-2022, HZ)")
    if not codec:
        try:
            return Text(body.decode("utf-8"), "utf-8")
        except UnicodeDecodeError:
            codec = "cp1252"
    errors = "controls" if codec.startswith("cp125") or codec == "cp874" else "replace"
    return Text(body.decode(codec, errors), codec)


@lru_cache  # a site has few
def _in_header(content_type: str) -> str | None:
    found = _IN_HEADER.search(content_type)
    return None if found is None else CODECS.get(found[1].lower())


def _in_page(body: bytes) -> str | None:
    """What the page says of itself; in UTF-16 it could not be read so."""
    head = _COMMENT.sub(b"", body[:MAX_DECLARATION_BYTES])
    for found in (*_IN_META.findall(head), *_IN_XML.findall(head)):
        codec = CODECS.get(found.decode("latin-1").lower())
        if codec is not None:
            return "utf-8" if codec.startswith("utf-16") else codec
    return None


def _as_controls(error: UnicodeError) -> tuple[str, int]:
    """The standard has control characters for some bytes that Python's Windows codecs lack."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    bad = error.object[error.start : error.end]
    return "".join(chr(byte) if byte < 0xA0 else "\ufffd" for byte in bad), error.end


codecs.register_error("controls", _as_controls)
