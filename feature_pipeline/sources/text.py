"""Text from outside made harmless: clean, plain and bounded, whatever somebody has put into it.

For every provider of documents, and for nothing else: what a text means, and whom it is about, is
not known here. No I/O, no clock.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import cache

import nh3

LONGEST_URL = 2_000
"""Characters of an address; what is longer is no usable one."""

_MOST_MARKUP = 2_000
"""Tags of one text that are read: the sanitiser's time grows with their square (0.2 s here)."""
_PASSES = 3
"""How often markup may be wrapped in itself: feeds escape HTML once, some of them twice."""
_LONGEST_WORD = 200
"""A word that is longer is cut in its middle."""
_MARKS_IN_A_ROW = 30
"""Combining marks on one letter, as in Unicode's stream-safe text (UAX 15): normalising a longer
run takes time that grows with its square."""

_sanitiser = nh3.Cleaner(
    # What separates words where it is drawn; all else goes without a trace.
    tags={
        *("address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption"),
        *("figure", "footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main"),
        *("ol", "p", "pre", "section", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul"),
    },
    attributes={},
    clean_content_tags={"script", "style"},
    link_rel=None,
)
_TAG = re.compile(r"<[^<>]*>")
_OPENS_TAG = re.compile(r"<(?=[A-Za-z/!?])")
# Controls but those that are blanks; characters that turn the writing direction of what follows
# them around; what is invisible and only splits words: soft hyphen, zero-width blank, BOM.
_UNWANTED = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)

_TRACKING = re.compile(
    r"utm_\w+|at_(?:medium|campaign|custom\d)|mc_[ce]id|_hs(?:enc|mi)|guc(?:counter|e_\w+)"
    r"|(?:g|d|fb|ms|y|tw)clid|gclsrc|[gw]braid|igshid|mkt_tok|soc_(?:src|trk)|\.?tsrc|yptr"
    r"|ncid|cmpid|siteid|smid|smtyp|mod|ref|ref_src|ref_url",
    re.IGNORECASE,
)
"""Query parameters that say who sent the reader, not what he reads."""

_PLACE = re.compile(
    r"(?P<host>[a-z0-9_](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])\.?(?::(?P<port>\d{1,5}))?"
)
_USUAL_PORT = {"http": "80", "https": "443"}


def plain(text: str | None, *, most: int = 20_000) -> str | None:
    """Untrusted text or HTML as one clean line.

    Markup goes (of scripts and styles their content too, and a `<` that might still open a tag),
    entities become what they stand for, control characters, lone surrogates and characters that
    turn the writing direction around go, blanks are folded. Emoji and right-to-left scripts stay.

    Args:
        text: of any length; of a very long one, or of one that is mostly markup, the beginning is
            read.
        most: characters to keep; it is cut between words.

    Returns:
        Text in Unicode's composed form (NFC), or None where nothing is left.
    """
    if not text:
        return None
    text = _whole(text[: max(10 * most, 2_000)])
    for _ in range(_PASSES):
        before = text
        if "<" in text:
            text = _TAG.sub(" ", _sanitiser.clean(_little_markup(text)))
        text = _whole(html.unescape(text))
        if text == before:
            break
    text = _OPENS_TAG.sub("", text)
    text = " ".join(_UNWANTED.sub("", text).split())
    text = unicodedata.normalize("NFC", _few_marks(text[: 2 * most]))
    return _cut(text, most).strip() or None


def canonical_url(url: str) -> str | None:
    """One address for all the ways of writing it: the same article has the same one.

    Scheme and host in lower case, no fragment, user, default port or tracking parameter, the query
    sorted, everything percent-encoded alike.

    Returns:
        None where it is no http(s) address that can be used, or longer than `LONGEST_URL`.
    """
    from w3lib.url import canonicalize_url  # slow to import

    # Before it is parsed: quadratic time is bought with long input.
    if len(url) > LONGEST_URL:
        return None
    url = url.strip()
    if any(ord(c) < 0x21 or c == "\\" or 0x7F <= ord(c) < 0xA0 for c in url.replace(" ", "")):
        return None
    try:
        scheme, colon, rest = canonicalize_url(_whole(url)).partition("://")
    except ValueError:
        return None
    authority, _, path = rest.partition("/")
    place = _host(authority.rpartition("@")[2], scheme)
    if scheme not in ("http", "https") or place is None:
        return None
    path, _, query = path.partition("?")
    kept = [pair for pair in query.split("&") if not _TRACKING.fullmatch(pair.partition("=")[0])]
    told = "&".join(pair for pair in kept if pair)
    address = f"{scheme}{colon}{place}/{path}{'?' if told else ''}{told}"
    return address if len(address) <= LONGEST_URL else None


def _whole(text: str) -> str:
    """Text that can be encoded: halves of a pair are joined, lone ones replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _little_markup(text: str) -> str:
    """The text up to its `_MOST_MARKUP`th tag."""
    parts = text.split("<", _MOST_MARKUP)
    return text if len(parts) <= _MOST_MARKUP else "<".join(parts[:-1])


def _few_marks(text: str) -> str:
    """The text without the combining marks that no letter can bear."""
    return text if text.isascii() else _marks().sub(r"\1", text)


@cache
def _marks() -> re.Pattern[str]:
    """`_MARKS_IN_A_ROW` combining marks, and those after them."""
    marks = "".join(c for c in map(chr, range(0x300, 0x1F000)) if unicodedata.combining(c))
    return re.compile(f"([{marks}]{{{_MARKS_IN_A_ROW}}})[{marks}]+")


def _cut(text: str, most: int) -> str:
    """The words of the first `most` characters; a very long last one is cut in its middle."""
    if len(text) <= most:
        return text
    last_blank = text.rfind(" ", max(most - _LONGEST_WORD, 0), most + 1)
    return text[: last_blank if last_blank > 0 else most]


def _host(place: str, scheme: str) -> str | None:
    """Host and port, or None where that is none."""
    found = _PLACE.fullmatch(place)
    if not found or int(found["port"] or 0) > 65_535:
        return None
    host, port = found["host"], found["port"]
    return f"{host}:{port}" if port and port != _USUAL_PORT.get(scheme) else host
