"""Whatever somebody writes into a text, what is kept of it is clean, plain and bounded."""

from __future__ import annotations

import time
import tracemalloc
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.sources.text import (
    LONGEST_URL,
    canonical_url,
    plain,
)

MEGABYTE = 1_000_000

HARD = {
    "one word": "a" * MEGABYTE,
    "blanks": " " * MEGABYTE,
    "NUL": "\x00" * MEGABYTE,
    "brackets": "<" * MEGABYTE,
    "ampersands": "&" * MEGABYTE,
    "entities": "&lt;" * (MEGABYTE // 4),
    "entities in entities": "&" + "amp;" * (MEGABYTE // 4),
    "nested": "<div>" * (MEGABYTE // 5),
    "nested, all different": "".join(f"<font c={n}><p>" for n in range(MEGABYTE // 16)),
    "attributes": "<a " + " ".join(f"x{n}=1" for n in range(MEGABYTE // 10)) + ">",
    "open scripts": "<script>" * (MEGABYTE // 8),
    "open comments": "<!--" * (MEGABYTE // 4),
    "combining marks": "a" + "\u0315\u0300" * (MEGABYTE // 2),
    "lone surrogates": "\ud800" * MEGABYTE,
}

anything = st.text(st.characters(exclude_categories=()))
"""Lone surrogates and controls included, which Hypothesis leaves out by itself."""
markup = st.lists(
    st.sampled_from(
        [
            *("<", ">", "&", ";", "amp;", "&lt;", "&gt;", "&#0;", "&#xD800;", "<b>", "<p", "<!--"),
            *("-->", "<script>", "</script>", "\x00", "\u202e", "\ud83d", "\ude00", " ", "x", "é"),
        ]
    )
).map("".join)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<p>Profit <b>up</b></p><p>again</p>", "Profit up again"),
        ("line<br>line<br/>line", "line line line"),
        ("<script>steal()</script>news<style>p {}</style>", "news"),
        ("<img src=x onerror=steal()>news", "news"),
        ("AT&amp;T &#8364;5 &nbsp; gain", "AT&T €5 gain"),
        ("&lt;p&gt;escaped&lt;/p&gt;", "escaped"),
        ("AT&amp;amp;T, escaped twice", "AT&T, escaped twice"),
        ("P/E < 5, I <3 it, 7 > 6", "P/E < 5, I <3 it, 7 > 6"),
        ("a\x00b\x07c\x7fd\x85e", "abcd e"),
        ("pair \ud83d\ude00, half \ud83d.", "pair \U0001f600, half \ufffd."),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f680", "👨\u200d👩\u200d👧 🚀"),
        ("\u202egnp.exe\u202c \u2067x\u2069", "gnp.exe x"),
        ("שלום עולם, مرحبا", "שלום עולם, مرحبا"),
        ("e\u0301", "é"),
        (" many \n\t blanks \u2028 ", "many blanks"),
        ("<p> </p>", None),
        ("\x00\u200b", None),
        ("", None),
        (None, None),
    ],
)
def test_text_is_plain(text: str | None, kept: str | None) -> None:
    assert plain(text) == kept


@given(st.one_of(anything, markup), st.integers(1, 50))
def test_whatever_comes_is_clean(text: str, most: int) -> None:
    kept = plain(text, most=most)
    if kept is None:
        return
    assert 0 < len(kept) <= most
    assert kept.encode().decode() == kept
    assert unicodedata.is_normalized("NFC", kept)
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in kept)
    assert kept == " ".join(kept.split())
    assert not {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"} & {*kept}


@given(markup)
def test_no_tag_is_left(text: str) -> None:
    kept = plain(text) or ""
    assert "<script" not in kept
    assert "<b>" not in kept
    assert "<!--" not in kept


def test_it_is_cut_between_words() -> None:
    assert plain("one two three", most=9) == "one two"
    assert plain("one two three", most=7) == "one two"
    assert plain("x" * 30, most=9) == "x" * 9


@pytest.mark.parametrize("what", HARD)
def test_a_megabyte_of_malice_is_bounded(what: str) -> None:
    """A tenth of a second each, mostly; unbounded, some of them take minutes."""
    tracemalloc.start()
    started = time.process_time()
    kept = plain(HARD[what])
    took = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert took < 5
    assert peak < 50 * MEGABYTE
    assert kept is None or len(kept) <= 20_000


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("HTTPS://News.Example.COM:443/a/../B?b=2&a=1#top", "https://news.example.com/B?a=1&b=2"),
        ("http://example.com:80", "http://example.com/"),
        ("http://example.com:8080/", "http://example.com:8080/"),
        ("https://user:secret@example.com/x", "https://example.com/x"),
        ("https://example.com./x?", "https://example.com/x"),
        (" https://example.com/a b ", "https://example.com/a%20b"),
        ("https://example.com/x?utm_source=feed&id=7&fbclid=z", "https://example.com/x?id=7"),
        ("https://finance.example.com/n?.tsrc=rss", "https://finance.example.com/n"),
        ("https://example.com/%c3%a9", "https://example.com/%C3%A9"),
        ("https://example.com/é", "https://example.com/%C3%A9"),
        ("https://münchen.example/", "https://xn--mnchen-3ya.example/"),
        ("http://[::0:1]:8080/x", "http://[::1]:8080/x"),
        ("javascript:alert(1)", None),
        ("ftp://example.com/x", None),
        ("file:///etc/passwd", None),
        ("//example.com/x", None),
        ("/x", None),
        ("https://", None),
        ("https:///x", None),
        ("https://exa mple.com/", None),
        ("https://example.com:99999/", None),
        ("https://example.com\\@evil.example/", None),
        ("https://example.com/\r\nHost: evil", None),
        ("https://example.com/\x00", None),
        ("https://a\ud800.example/", None),
        ("https://example.com/" + "x" * LONGEST_URL, None),
        ("https://example.com/" + "é" * (LONGEST_URL // 3), None),
    ],
)
def test_one_address_has_one_form(url: str, canonical: str | None) -> None:
    assert canonical_url(url) == canonical


@given(
    st.one_of(
        anything,
        anything.map("https://".__add__),
        anything.map("https://example.com/".__add__),
        anything.map("https://example.com/?".__add__),
    )
)
def test_an_address_is_plain_and_stays_what_it_is(url: str) -> None:
    address = canonical_url(url)
    if address is not None:
        assert address.isascii()
        assert address.isprintable()
        assert " " not in address
        assert address.startswith(("http://", "https://"))
        assert canonical_url(address) == address
