"""Glances and pages: short enough to be shown in place, and nothing in a name is markup."""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.pictures import glance, markdown
from feature_pipeline.pictures.prices import REGIME_COLOURS
from feature_pipeline.pictures.style import BLUE, INK, ORANGE, Picture

EVIL = "![x](https://example.com/a.png) <img src=x> `$` [a](b) **b** | www.example.com\n# h"


def svg_of(text: str) -> ElementTree.Element:
    address = re.search(r"\(data:image/svg\+xml,([^)\s]+)\)$", text)
    assert address
    return ElementTree.fromstring(unquote(address[1]))


def test_a_page_is_images_and_captions():
    page = markdown.page([Picture(b"one", "A title", "Look."), Picture(b"two", "B", "C")], "-")
    assert re.findall(r"!\[(.*?)\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", page) == [
        ("A title", base64.b64encode(b"one").decode()),
        ("B", base64.b64encode(b"two").decode()),
    ]
    assert page.split("\n\n")[1] == "Look\\."


def test_no_picture_is_a_line():
    assert markdown.page([], "Nothing here, nor there.") == "Nothing here\\, nor there\\."


@given(st.text(max_size=400))
def test_no_name_is_markup(text):
    """CommonMark: a backslash before ASCII punctuation makes it a character like any other."""
    said = markdown.escape(text)
    assert "\n" not in said
    assert not re.search(r"(?<!\\)(?:\\\\)*[!-/:-@\[\]-`{-~]", said)


def test_markup_in_names_stays_text():
    page = markdown.page([Picture(b"png", EVIL, EVIL)], EVIL)
    assert len(re.findall(r"(?<!\\)\]\(", page)) == 1
    assert not re.search(r"(?<!\\)<img", page)
    assert "\n#" not in page


@pytest.mark.parametrize("points", [1, 2, 60, 5000])
@pytest.mark.parametrize("draw", [glance.line, glance.columns])
def test_a_glance_is_shown_in_place(points, draw):
    values = np.random.default_rng(points).normal(size=points) * 1e6
    text = markdown.inline("AAA close 1 on 2019-01-01, and the 60 up to it" * 3, draw(values))
    assert len(text) < 1000
    assert svg_of(text).tag.endswith("svg")


def test_a_glance_of_labels_is_shown_in_place():
    rng = np.random.default_rng(1)
    labels = rng.choice(list(REGIME_COLOURS), 300).tolist()
    assert len(markdown.inline("x" * 500, glance.blocks(labels, REGIME_COLOURS))) < 1000
    found = svg_of(markdown.inline("x", glance.blocks(["trend"] * 5 + [None] * 5, REGIME_COLOURS)))
    (path,) = found
    assert path.get("stroke") == REGIME_COLOURS["trend"]
    assert path.get("d") == "M0,12h120"


def test_what_would_be_too_long_is_said_without_the_sparkline():
    assert markdown.inline("text", "<svg>" + "x" * 2000 + "</svg>") == "text"
    assert len(markdown.inline("!" * 5000, "")) < 1000


def test_nothing_to_see_is_no_sparkline():
    for nothing in (np.array([]), np.array([np.nan, np.nan])):
        assert glance.line(nothing) == glance.columns(nothing) == ""
    assert glance.blocks([None, "other"], REGIME_COLOURS) == ""


def test_a_gap_breaks_the_line():
    svg = glance.line(np.array([1.0, 2.0, np.nan, 3.0]))
    assert svg.count("M") == 2
    assert glance.line(np.array([5.0])).count("M") == 1  # a dot


def test_columns_stand_on_zero():
    svg = glance.columns(np.array([0.5, -0.5, np.nan, 0.0]), -1, 1)
    paths = {e.get("stroke"): e.get("d") for e in ElementTree.fromstring(svg)}
    assert paths[ORANGE] == "M30,18v-8"
    assert paths[BLUE] == "M90,18v8"
    assert paths[INK] == "M150,15v6"
    assert glance.columns(np.array([1e300, -1e300]))
