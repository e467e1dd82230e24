"""The sample's news and posts: deterministic, on the price's heels, and never ahead of it."""

from __future__ import annotations

import hashlib
import time
from datetime import date, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_pipeline.schemas import documents
from feature_pipeline.sources import document_ids
from feature_pipeline.sources.lexicon import LexiconScorer
from feature_pipeline.sources.sample import SampleSource, prices
from feature_pipeline.universe import Universe

DECADE = (date(2003, 1, 1), date(2013, 1, 1))
CHANNELS = ("news", "reddit")
LAG = {"news": timedelta(minutes=5), "reddit": timedelta(minutes=2)}


@pytest.fixture(scope="module")
def ours() -> Universe:
    return Universe.load()


@pytest.fixture(scope="module", params=CHANNELS)
def channel(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def frame(ours, channel) -> pl.DataFrame:
    return SampleSource().documents(channel, ours.instruments, *DECADE).frame


def test_rows_satisfy_their_schema(frame, channel):
    schema = documents(channel)
    assert tuple(frame.columns) == schema.names
    assert frame["document_id"].is_unique().all()
    for rule in schema.rules:
        assert frame.filter(rule.violated).is_empty(), rule.reason
    assert frame["channel"].unique().to_list() == [channel]
    assert frame["source"].unique().to_list() == ["sample"]
    assert frame["availability_basis"].unique().to_list() == ["assumed"]
    assert frame.null_count().sum_horizontal().item() == 0
    assert not frame.select((pl.col("title") + pl.col("text")).str.contains("[{}]").any()).item()


def test_a_document_is_known_a_little_after_publication(frame, channel):
    assert (frame["available_at"] - frame["time"]).unique().to_list() == [LAG[channel]]
    assert frame["available_at"].dt.date().is_between(*DECADE, closed="left").all()


def test_one_published_before_midnight_belongs_to_the_day_it_is_known(ours, frame, channel):
    over = frame.filter(pl.col("available_at").dt.date() != pl.col("time").dt.date())
    assert over.height > 5
    late = over.row(0, named=True)
    day = late["available_at"].date()
    alone = SampleSource().documents(channel, ours.instruments, day, day + timedelta(days=1)).frame
    assert late["document_id"] in alone["document_id"].to_list()


def test_how_many_and_when(frame, channel):
    per_week = (
        frame.filter(pl.col("symbols").list.first() == "IBM").height
        / (DECADE[1] - DECADE[0]).days
        * 7
    )
    assert {"news": 2 < per_week < 5, "reddit": 7 < per_week < 14}[channel]
    assert frame["time"].dt.weekday().n_unique() == 7
    hours = frame.group_by(frame["time"].dt.hour()).len()["len"]
    assert hours.len() == 24
    assert hours.min() > 0.8 * hours.mean()


def test_only_while_the_instrument_is_in_the_universe(ours, channel):
    asked = SampleSource().documents(channel, ours.instruments, date(2000, 1, 1), date(2020, 1, 1))
    spans = (
        asked.frame.group_by(pl.col("symbols").list.first().alias("symbol"))
        .agg(pl.col("time").dt.date().min().alias("a"), pl.col("time").dt.date().max().alias("b"))
        .rows()
    )
    assert len(spans) == 7
    for symbol, first, last in spans:
        instrument = ours.resolve(symbol)
        assert instrument.first_day <= first <= instrument.first_day + timedelta(days=30)
        assert instrument.end_day - timedelta(days=30) <= last < instrument.end_day


def test_keys_are_the_hash_of_provider_and_address(frame, channel):
    row = frame.filter(pl.col("symbols").list.first() == "FB").row(0, named=True)
    day = row["time"].date()
    assert row["url"].startswith(f"sample://{channel}/FB/{day}/")
    assert row["document_id"] == hashlib.sha256(f"sample|{row['url']}".encode()).hexdigest()
    assert document_ids("sample", pl.Series([row["url"]])).to_list() == [row["document_id"]]


@given(
    cut=st.dates(date(2004, 1, 1), date(2012, 12, 1)),
    left=st.integers(0, 60),
    right=st.integers(0, 60),
    symbols=st.sets(st.sampled_from(["AAPL", "FB", "GOOG", "GSPC", "IBM", "MSFT"]), min_size=1),
)
@settings(max_examples=40)
def test_a_document_does_not_depend_on_what_else_is_asked(
    ours, frame, channel, cut, left, right, symbols
):
    start, end = max(cut - timedelta(days=left), DECADE[0]), cut + timedelta(days=right)
    instruments = [ours.resolve(s) for s in symbols]
    found = pl.concat(
        SampleSource().documents(channel, instruments, *span).frame
        for span in ((start, cut), (cut, end))
    )
    expected = frame.filter(
        pl.col("available_at").dt.date().is_between(start, min(end, DECADE[1]), closed="left"),
        pl.col("symbols").list.first().is_in(list(symbols)),
    )
    within = found.filter(pl.col("available_at").dt.date() < DECADE[1])
    assert within.sort("document_id").equals(expected.sort("document_id"))


def scored(frame: pl.DataFrame) -> pl.DataFrame:
    texts = (frame["title"] + ". " + frame["text"]).to_list()
    return pl.concat([frame, LexiconScorer().score(texts)], how="horizontal").with_columns(
        pl.col("symbols").list.first()
    )


def test_the_tone_follows_the_last_known_return(ours, frame):
    returns = prices.total_returns(ours.instruments).drop("time")
    known = (
        scored(frame)
        .sort("time")
        .join_asof(
            returns.sort("available_at").rename({"available_at": "closed"}),
            left_on="time",
            right_on="closed",
            by_left="symbols",
            by_right="symbol",
            check_sortedness=False,
        )
        .drop_nulls("change")
    )
    up = known.filter(pl.col("change") > 0.02)["sentiment"].mean()
    still = known.filter(pl.col("change").abs() < 0.005)["sentiment"].mean()
    down = known.filter(pl.col("change") < -0.02)["sentiment"].mean()
    assert up > still + 0.2 > down + 0.4


def test_texts_do_not_look_ahead(ours, channel, monkeypatch):
    """Prices after a moment are replaced: no document published before it changes."""
    span = (date(2010, 5, 3), date(2010, 5, 22))
    before = SampleSource().documents(channel, ours.instruments, *span).frame
    cut = pl.datetime(2010, 5, 12, time_zone="UTC")
    honest = prices.total_returns
    monkeypatch.setattr(
        "feature_pipeline.sources.sample.texts.total_returns",
        lambda instruments: honest(instruments).with_columns(
            pl.when(pl.col("time") >= cut).then(0.5).otherwise("change").alias("change")
        ),
    )
    after = SampleSource().documents(channel, ours.instruments, *span).frame
    assert before.select("document_id", "time").equals(after.select("document_id", "time"))
    # The session of the 12th closes at 20:00 UTC and is known a quarter of an hour later.
    known = pl.datetime(2010, 5, 12, 20, 15, time_zone="UTC")
    assert before.filter(pl.col("time") < known).equals(after.filter(pl.col("time") < known))
    assert not before.filter(pl.col("time") > known).equals(after.filter(pl.col("time") > known))


def test_a_renamed_company_is_called_by_its_name_of_the_day():
    text = """
benchmark: FB
instruments:
  - {id: FB, name: Facebook, asset_class: equity, calendar: XNYS, sector: a,
     source: {bars: sample, reddit: sample}, membership: [{from: 2012-05-18}],
     symbols: [{symbol: FB, from: 2012-05-18, to: 2022-06-09}, {symbol: META, from: 2022-06-09}]}
"""
    fb = Universe.parse(text).instruments
    frame = SampleSource().documents("reddit", fb, date(2022, 5, 20), date(2022, 6, 30)).frame
    renamed = frame["time"].dt.date() >= date(2022, 6, 9)
    assert renamed.any()
    assert (frame["title"].str.contains("$META", literal=True) == renamed).all()
    assert (frame["title"].str.contains("$FB", literal=True) == ~renamed).all()
    assert (frame["symbols"].list.first() == "FB").all()


def test_the_first_news_are_the_same_on_every_machine(ours):
    """Pinned: a change of these is a change of the sample."""
    fb = [ours.resolve("FB")]
    first = SampleSource().documents("news", fb, date(2012, 5, 18), date(2012, 6, 1)).frame
    assert first.select(pl.col("time").dt.to_string("%F %T"), "title").rows()[:3] == PINNED


PINNED = [
    ("2012-05-18 05:01:17", "Facebook holds its annual meeting"),
    ("2012-05-21 15:50:16", "Facebook slips on weak demand"),
    ("2012-05-22 22:18:01", "Facebook suffers worst loss in months"),
]


def test_nothing_asked_is_an_empty_frame(ours, channel):
    empty = documents(channel).empty()
    assert SampleSource().documents(channel, [], *DECADE).frame.equals(empty)
    day = date(2012, 6, 1)
    assert SampleSource().documents(channel, ours.instruments, day, day).frame.equals(empty)


def test_ten_years_are_made_in_no_time(ours, channel):
    started = time.perf_counter()
    SampleSource().documents(channel, ours.instruments, *DECADE)
    assert time.perf_counter() - started < 2
