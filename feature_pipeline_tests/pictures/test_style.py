"""The one look: colours that read on both pages, bounded bytes, axes that do not lie."""

from __future__ import annotations

import math
import subprocess
import sys
from datetime import date, timedelta
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_pipeline.pictures import style
from feature_pipeline_tests.pictures.support import pixels, rgb

PAGES = ("#ffffff", "#030615", "#0f1115")
"""Backgrounds: the UI's light and dark pages, and one that is less dark."""

SHOWN = {name: getattr(style, name) for name in ("BLUE", "ORANGE", "GREEN", "PURPLE", "GOLD")}


XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
"""sRGB's, D65; its middle row is luminance."""


def linear(colour: str) -> np.ndarray:
    channel = np.array(rgb(colour)) / 255
    return np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    return float(XYZ[1] @ linear(colour))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", PAGES)
def test_every_colour_can_be_seen_on_both_pages(page):
    """WCAG asks 3:1 of what is drawn; of text 4.5, which no colour has on white and black alike."""
    assert min(contrast(colour, page) for colour in SHOWN.values()) >= 3
    assert contrast(style.INK, page) >= 3.9


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


@pytest.mark.parametrize("kind", DEFICIENCIES)
@pytest.mark.parametrize(
    "together",
    [
        ("BLUE", "ORANGE"),
        ("BLUE", "GOLD"),
        ("PURPLE", "ORANGE"),
        ("GREEN", "ORANGE"),
        ("GREEN", "PURPLE"),
    ],
)
def test_colours_of_one_picture_are_apart_for_everybody(kind, together):
    def seen(colour: str) -> np.ndarray:
        x, y, z = XYZ @ np.clip(np.array(DEFICIENCIES[kind]) @ linear(colour), 0, 1)
        white = (x / 0.9505, y, z / 1.089)
        f = [np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in white]
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    one, other = (seen(SHOWN[name]) for name in together)
    assert np.linalg.norm(one - other) > 20  # CIE76: a difference seen at a glance


def test_the_palette_is_told_apart():
    assert len({*SHOWN.values(), style.INK}) == len(SHOWN) + 1
    assert all(rgb(a) != rgb(b) for a, b in combinations(SHOWN.values(), 2))


def test_a_png_is_bounded_whatever_it_shows():
    noise = np.random.default_rng(0).integers(0, 256, (480, style.WIDTH, 4), dtype=np.uint8)
    for most in (style.MOST_BYTES, 20_000):
        assert len(style.encode(noise, most)) <= most
    assert style.encode(noise) == style.encode(noise.copy())


def test_the_page_shows_through():
    sheet = style.Sheet(100)
    sheet.title("Nothing else")
    found = pixels(sheet.finish("-"))
    assert found.shape == (100, style.WIDTH, 4)
    assert found[60:, :, 3].max() == 0


@pytest.mark.parametrize(
    "text",
    ["$AAPL$ and $\\frac{x}{0}$", "W" * 500, "日本語 " * 80, "a\nb\x00c\x1b[31m", "", "$" * 7],
)
def test_a_title_is_text_and_ends_before_the_edge(text):
    sheet = style.Sheet(60)
    sheet.title(text)
    found = pixels(sheet.finish("-"))
    assert found[:, -10:, 3].max() == 0


def test_a_dollar_is_a_dollar():
    def ink(text: str) -> int:
        sheet = style.Sheet(40)
        sheet.title(text)
        return int((pixels(sheet.finish("-"))[..., 3] > 100).sum())

    # As mathematics the signs would vanish.
    assert ink("$A$ and $B$") > ink("A and B") + 40


def test_text_from_data_is_one_printable_line():
    assert style.one_line("a\n b\tc\x00") == "a b c"
    assert style.one_line("x" * 400) == "x" * 299 + "…"
    assert style.one_line("\u202eevil") == "evil"


@given(
    first=st.dates(date(1970, 1, 1), date(2090, 1, 1)),
    span=st.integers(0, 40_000),
    most=st.integers(2, 13),
)
@settings(max_examples=200)
def test_date_ticks_are_few_in_order_and_in_range(first, span, most):
    begin = style.day_number(first)
    at, labels = style.date_ticks(begin, begin + span, most)
    assert 1 <= len(at) <= most
    assert len(labels) == len(at)
    assert at == sorted(set(at))
    assert begin <= at[0]
    assert at[-1] <= begin + span
    assert str(style.day_of(at[0]).year) in labels[0]
    assert not any(label.startswith("0") for label in labels)


def test_dates_are_round():
    start = style.day_number(date(2012, 3, 2))
    assert style.date_ticks(start, start + 364)[1] == [
        "May 2012",
        "Jul",
        "Sep",
        "Nov",
        "Jan 2013",
        "Mar",
    ]
    assert style.date_ticks(start, start + 4)[1] == [
        "2 Mar 2012",
        "3 Mar",
        "4 Mar",
        "5 Mar",
        "6 Mar",
    ]
    weeks, _ = style.date_ticks(start, start + 30)
    assert {style.day_of(day).weekday() for day in weeks} == {0}
    assert style.day_of(start) + timedelta(days=3) == style.day_of(weeks[0])


@given(
    low=st.floats(-1e150, 1e150, allow_nan=False),
    step=st.floats(1e-6, 1e12),
    count=st.integers(2, 6),
)
@settings(max_examples=200)
def test_tick_labels_tell_true_values(low, step, count):
    if step < abs(low) * 1e-9:
        return
    at = [low + i * step for i in range(count)]
    for label, value in zip(style.tick_labels(at), at, strict=True):
        number = label.rstrip("KMBT")
        scale = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(label[-1], 1.0)
        assert abs(float(number) * scale - value) <= step / 10 + abs(value) * 1e-9


def test_tick_labels_are_short():
    assert style.tick_labels([0, 0.5, 1.0, 1.5]) == ["0.0", "0.5", "1.0", "1.5"]
    assert style.tick_labels([1280, 1360, 1440]) == ["1280", "1360", "1440"]
    assert style.tick_labels([0, 2e6, 4e6]) == ["0", "2M", "4M"]
    assert style.tick_labels([-8, 0, 8], " %") == ["-8 %", "0 %", "8 %"]
    assert style.tick_labels([]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(1518.2, "1518"), (0.14, "0.14"), (12345.6, "12.3K"), (3.2e7, "32M"), (1e30, "1e+30"),
     (0, "0"), (-0.00001, "-1e-05"), (math.nan, "-"), (math.inf, "-"), (1.8, "1.8")],
)  # fmt: skip
def test_numbers_in_a_few_characters(value, text):
    assert style.short(value) == text


def test_what_is_not_finite_is_a_gap():
    found = style.numbers(pl.Series([1.0, None, math.inf, -math.inf, math.nan, 1e308]))
    assert np.isnan(found).tolist() == [False, True, True, True, True, False]
    assert found[-1] == 1e150


@pytest.mark.parametrize(
    "module",
    ["feature_pipeline.definitions", "feature_pipeline.assets.describe", "feature_pipeline.cli"],
)
def test_nobody_pays_for_matplotlib_who_draws_nothing(module):
    code = f"import sys, {module}; sys.exit('matplotlib' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
