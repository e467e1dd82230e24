"""The sample's bars and corporate actions: the recording, as traded, and nothing else."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_pipeline.schemas import CORPORATE_ACTIONS, ohlcv
from feature_pipeline.sources import BarSource, DocumentSource, MacroSource
from feature_pipeline.sources.sample import SampleSource, prices
from feature_pipeline.universe import Universe

ALL = (date(2000, 1, 1), date(2020, 1, 1))


@pytest.fixture(scope="module")
def ours() -> Universe:
    return Universe.load()


@pytest.fixture(scope="module")
def bars(ours) -> pl.DataFrame:
    return SampleSource().bars(ours.instruments, *ALL).frame


@pytest.fixture(scope="module")
def actions(ours) -> pl.DataFrame:
    return SampleSource().actions(ours.instruments, *ALL).frame


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def one(frame: pl.DataFrame, symbol: str, day: date) -> dict:
    return frame.filter(symbol=symbol, time=midnight(day)).row(0, named=True)


def test_it_is_every_kind_of_source():
    sample = SampleSource()
    assert isinstance(sample, BarSource)
    assert isinstance(sample, DocumentSource)
    assert isinstance(sample, MacroSource)


# -- bars -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("symbol", "day", "values"),
    [
        ("AAPL", date(2000, 3, 1), (118.56, 132.06, 118.5, 130.31, 9_616_100)),
        ("AAPL", date(2005, 2, 25), (89.62, 89.91, 88.19, 88.99, 16_348_400)),
        ("MSFT", date(2004, 11, 15), (27.35, 27.5, 27.2, 27.39, 104_468_000)),
        ("IBM", date(2003, 2, 18), (78.02, 79.5, 77.91, 79.33, 7_791_200)),
        ("GOOG", date(2004, 11, 12), (185.23, 189.8, 177.4, 182.0, 33_458_700)),
        (
            "GSPC",
            date(2018, 12, 31),
            (2498.939941, 2509.23999, 2482.820068, 2506.850098, 3.44287e9),
        ),
        (
            "IXIC",
            date(2018, 12, 28),
            (6616.790039, 6684.180176, 6529.220215, 6584.52002, 2.19909e9),
        ),
    ],
)
def test_bars_are_the_recorded_rows(bars, symbol, day, values):
    row = one(bars, symbol, day)
    assert tuple(row[c] for c in ("open", "high", "low", "close", "volume")) == values
    assert (row["source"], row["availability_basis"], row["spread"]) == ("sample", "assumed", None)


def test_every_expected_session_has_its_bar_and_only_those(ours, bars):
    expected = ours.sessions(*ALL).select("symbol", "time")
    assert bars.select("symbol", "time").equals(expected)


def test_bars_satisfy_their_schema(bars):
    schema = ohlcv("1d")
    assert tuple(bars.columns) == schema.names
    assert bars.equals(schema.conform(bars))
    for rule in schema.rules:
        assert bars.filter(rule.violated).is_empty(), rule.reason


def test_a_bar_is_known_a_quarter_of_an_hour_after_the_close(ours, bars):
    late = bars.join(ours.sessions(*ALL).drop("open"), on=["symbol", "time"], suffix="_at")
    assert (late["available_at"] - late["close_at"]).unique().to_list() == [
        SampleSource.publication_delay
    ]
    assert one(bars, "IBM", date(2010, 11, 26))["available_at"] == datetime(
        2010, 11, 26, 18, 15, tzinfo=UTC
    )


def test_the_volume_of_split_days_is_as_traded(bars):
    # Two reasons to believe it: the exact MSFT figure is on record elsewhere, and the equities
    # trade in lots of a hundred, which the recording's own value for that day is not.
    assert one(bars, "MSFT", date(2003, 2, 18))["volume"] == 57_415_500
    assert one(bars, "AAPL", date(2005, 2, 28))["volume"] == 2 * 11_635_900
    assert one(bars, "AAPL", date(2000, 6, 21))["volume"] == 2 * 4_375_000
    equities = bars.filter(~pl.col("symbol").is_in(["GSPC", "IXIC"]))
    assert (equities["volume"] % 100 == 0).all()
    changed = prices.as_traded().join(
        prices.recorded(), on=["recording", "time"], suffix="_recorded"
    )
    assert changed.filter(pl.col("volume") != pl.col("volume_recorded")).height == 3


def test_an_instrument_without_a_recording_fails_alone(ours):
    text = """
benchmark: IBM
instruments:
  - {id: IBM, asset_class: equity, calendar: XNYS, sector: a, source: {bars: sample},
     symbols: [{symbol: IBM, from: 1990-01-02}], membership: [{from: 2000-03-01}]}
  - {id: TSLA, asset_class: equity, calendar: XNYS, sector: a, source: {bars: sample},
     symbols: [{symbol: TSLA, from: 1990-01-02}], membership: [{from: 2000-03-01}]}
"""
    for ask in (SampleSource().bars, SampleSource().actions):
        fetched = ask(Universe.parse(text).instruments, date(2010, 1, 1), date(2010, 3, 1))
        assert fetched.asked == ("IBM", "TSLA")
        assert fetched.answered == {"IBM"}
        assert "the sample has no prices of TSLA" in fetched.failed["TSLA"]
        assert "\n" not in fetched.failed["TSLA"]
        assert fetched.frame["symbol"].unique().to_list() == ["IBM"]


def test_an_id_of_our_own_finds_its_recording_by_symbol():
    text = """
benchmark: META
instruments:
  - {id: META, asset_class: equity, calendar: XNYS, sector: a, source: {bars: sample},
     symbols: [{symbol: FB, from: 2012-05-18, to: 2022-06-09}, {symbol: META, from: 2022-06-09}],
     membership: [{from: 2012-05-18}]}
"""
    frame = SampleSource().bars(Universe.parse(text).instruments, *ALL).frame
    assert frame["symbol"].unique().to_list() == ["META"]
    assert frame.height == 196


def test_nothing_asked_is_an_empty_frame(ours):
    sample = SampleSource()
    assert sample.bars([], *ALL).frame.equals(ohlcv("1d").empty())
    assert sample.actions([], *ALL).frame.equals(CORPORATE_ACTIONS.empty())
    assert sample.bars(ours.instruments, date(2010, 7, 3), date(2010, 7, 6)).frame.is_empty()


@given(
    cut=st.dates(date(2003, 1, 1), date(2012, 12, 1)),
    left=st.integers(0, 500),
    right=st.integers(0, 500),
)
@settings(max_examples=25)
def test_bars_and_actions_do_not_depend_on_the_range_asked(ours, cut, left, right):
    start, end = cut - timedelta(days=left), cut + timedelta(days=right)
    for ask in (SampleSource().bars, SampleSource().actions):
        whole = ask(ours.instruments, start, end).frame.sort("symbol", "time")
        halves = [ask(ours.instruments, *r).frame for r in ((start, cut), (cut, end))]
        assert pl.concat(halves).sort("symbol", "time").equals(whole)


# -- corporate actions ----------------------------------------------------------------------------


def test_splits(actions):
    splits = actions.filter(kind="split").select("symbol", pl.col("time").dt.date(), "value")
    assert splits.rows() == [
        ("AAPL", date(2000, 6, 21), 2.0),
        ("AAPL", date(2005, 2, 28), 2.0),
        ("MSFT", date(2003, 2, 18), 2.0),
    ]


def test_dividends_are_what_was_paid(actions):
    dividends = actions.filter(kind="dividend")
    counts = dict(dividends.group_by("symbol").len().iter_rows())
    assert counts == {"AAPL": 3, "IBM": 52, "MSFT": 37}
    msft = dividends.filter(symbol="MSFT")
    assert one(msft, "MSFT", date(2004, 11, 15))["value"] == 3.08  # 3.00 special, 0.08 ordinary
    ordinary = set(msft["value"].to_list()) - {3.08}
    assert ordinary == {0.08, 0.09, 0.1, 0.11, 0.13, 0.16, 0.2, 0.23}
    assert set(dividends.filter(symbol="AAPL")["value"]) == {2.65}


def test_the_recovered_dividends_are_whole_cents_before_rounding(actions):
    recorded = prices.recorded().with_columns((pl.col("adjusted") / pl.col("last")).alias("factor"))
    step = pl.col("factor") / pl.col("factor").shift(1).over("recording")
    raw = recorded.with_columns((pl.col("last") * (step - 1)).alias("raw"))
    both = actions.filter(kind="dividend").join(
        raw, left_on=["symbol", "time"], right_on=["recording", "time"]
    )
    assert both.height == 92
    assert (both["raw"] - both["value"]).abs().max() < 1e-6


def test_total_return_of_bars_and_actions_is_the_recorded_one(bars, actions):
    """(close x split + dividend) / previous close, against adjusted / previous adjusted."""
    events = actions.select(
        "symbol",
        "time",
        pl.when(kind="split").then("value").otherwise(1.0).alias("split"),
        pl.when(kind="dividend").then("value").otherwise(0.0).alias("dividend"),
    )
    previous = pl.col("close").shift(1).over("symbol")
    recovered = (
        bars.join(events, on=["symbol", "time"], how="left", maintain_order="left")
        .with_columns(pl.col("split").fill_null(1.0), pl.col("dividend").fill_null(0.0))
        .select(
            "symbol",
            "time",
            ((pl.col("close") + pl.col("dividend")) * pl.col("split") / previous).alias("ours"),
        )
    )
    names = {"GSPC": "^GSPC", "IXIC": "^IXIC"}
    change = pl.col("adjusted") / pl.col("adjusted").shift(1).over("recording")
    recorded = prices.recorded().select("recording", "time", change.alias("theirs"))
    both = recovered.with_columns(pl.col("symbol").replace(names).alias("recording")).join(
        recorded, on=["recording", "time"]
    )
    compared = both.drop_nulls()
    assert compared.height == bars.height - 7
    assert (compared["ours"] - compared["theirs"]).abs().max() < 1e-9
    # Which would fail without the actions.
    assert one(both, "AAPL", date(2005, 2, 28))["ours"] == pytest.approx(1.0082, abs=1e-4)


def test_actions_are_known_at_the_open_of_their_session(ours, actions):
    opens = ours.sessions(*ALL).select("symbol", "time", "open")
    both = actions.join(opens, on=["symbol", "time"])
    assert both.height == actions.height
    assert (both["available_at"] == both["open"]).all()
    for rule in CORPORATE_ACTIONS.rules:
        assert actions.filter(rule.violated).is_empty(), rule.reason


# -- where it comes from --------------------------------------------------------------------------


def test_no_network_is_touched(ours, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the sample opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for cached in (prices.recorded, prices.as_traded, prices._all_actions):
        cached.cache_clear()
    sample, day = SampleSource(), (date(2012, 6, 1), date(2012, 6, 30))
    assert sample.bars(ours.instruments, *day).frame.height > 0
    assert sample.actions(ours.instruments, date(2012, 1, 1), date(2013, 1, 1)).frame.height > 0
    assert sample.documents("news", ours.instruments, *day).frame.height > 0
    assert sample.documents("reddit", ours.instruments, *day).frame.height > 0
    assert sample.macro(["VIXCLS"], *day).frame.height > 0


def test_the_data_packages_are_read_and_not_imported():
    code = (
        "import sys; from datetime import date\n"
        "from feature_pipeline.universe import Universe\n"
        "from feature_pipeline.sources.sample import SampleSource\n"
        "u = Universe.load()\n"
        "f = SampleSource().bars(u.instruments, date(2010, 1, 1), date(2010, 2, 1)).frame\n"
        "assert f.height == 6 * 19, f.height\n"
        "assert not {'arch', 'bokeh_sampledata', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
