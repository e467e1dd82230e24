"""Which rows may be written: every row ends in exactly one place, with its reason."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_pipeline.errors import SchemaError
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.schemas import STATE_VECTOR_FIELDS
from feature_pipeline.storage.validate import Checked, check
from feature_pipeline_tests.storage.support import (
    JANUARY,
    NOW,
    Desk,
    articles,
    bars,
    fetched,
)

BARS = TABLES["ohlcv_1d"]
ONE_DAY = (date(2020, 1, 6), date(2020, 1, 7))
BAR = bars(["A"], ONE_DAY)


def judged(frame: pl.DataFrame, asset: str = "ohlcv_1d", now: datetime = NOW) -> Checked:
    table = TABLES[asset]
    return check(table, table.conform(frame), now=now, window=JANUARY, symbols=("A", "BB"))


def changed(**values: object) -> pl.DataFrame:
    schema = BAR.schema
    return BAR.with_columns(pl.lit(v, dtype=schema[n]).alias(n) for n, v in values.items())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"open": None}, "a price is missing or not finite"),
        ({"high": math.nan}, "a price is missing or not finite"),
        ({"close": math.inf}, "a price is missing or not finite"),
        ({"low": 0.0}, "a price is not positive"),
        ({"low": -3.0}, "a price is not positive"),
        ({"volume": math.nan}, "volume is missing or not finite"),
        ({"volume": -1.0}, "volume is negative"),
        ({"high": 1.0, "low": 2.0, "open": 1.5, "close": 1.5}, "high is below low"),
        ({"close": 1e6}, "open or close lies outside [low, high]"),
        ({"symbol": "nobody"}, "unknown symbol"),
        ({"symbol": None}, "symbol is missing"),
        ({"symbol": "A\0"}, "symbol holds a NUL character"),
        ({"time": None}, "time is missing"),
        ({"available_at": None}, "available_at is missing"),
        (
            {"availability_basis": "perhaps"},
            "availability_basis is none of observed, assumed",
        ),
        ({"time": NOW + timedelta(days=1)}, "it lies in the future"),
        ({"time": datetime(2019, 1, 2, tzinfo=UTC)}, "it lies outside the days asked for"),
        ({"time": datetime(2020, 2, 3, tzinfo=UTC)}, "it lies outside the days asked for"),
    ],
)
def test_a_bad_bar_is_rejected_with_its_reason(values: dict[str, object], reason: str) -> None:
    found = judged(pl.concat([changed(**values), bars(["BB"], ONE_DAY)]))
    assert found.good["symbol"].to_list() == ["BB"]
    assert found.quarantined["reason"].to_list() == [reason]
    assert "\0" not in (found.quarantined["symbol"].item() or "")
    json.loads(found.quarantined["payload"].item())


def test_a_good_bar_stays_as_it_is() -> None:
    found = judged(BAR)
    assert found.good.equals(BARS.conform(BAR))
    assert (found.quarantined.height, found.duplicate, found.unfinished) == (0, 0, 0)


def test_unfinished_from_the_moment_before() -> None:
    moment = BAR["available_at"].item()
    assert judged(BAR, now=moment).good.height == 1
    assert judged(BAR, now=moment - timedelta(microseconds=1)).unfinished == 1


def test_repetition_and_contradiction() -> None:
    found = judged(pl.concat([BAR, BAR, BAR, bars(["BB"], ONE_DAY)]))
    assert (found.good.height, found.duplicate) == (2, 2)
    other = changed(volume=5.0)
    found = judged(pl.concat([BAR, other, BAR, bars(["BB"], ONE_DAY)]))
    assert found.good["symbol"].to_list() == ["BB"]
    assert found.duplicate == 1
    assert set(found.quarantined["reason"]) == {"rows with the same key contradict each other"}
    assert found.quarantined.height == 2


def test_bars_that_contradict_do_not_settle_it_by_their_moment() -> None:
    later = changed(volume=5.0).with_columns(pl.col("available_at") + timedelta(hours=1))
    found = judged(pl.concat([BAR, later]))
    assert found.good.is_empty()
    assert found.quarantined.height == 2


PUBLISHED = datetime(2020, 1, 7, 10, tzinfo=UTC)


def test_documents() -> None:
    nul_in_list = articles(("n", PUBLISHED, "t"), symbols=["A\0"])
    found = judged(
        pl.concat(
            [
                articles(("none", PUBLISHED, "t"), symbols=[]),
                articles(("early", PUBLISHED, "t"), seen=PUBLISHED - timedelta(hours=1)),
                articles(("nul", PUBLISHED, "a\0b")),
                nul_in_list,
                articles(("good", PUBLISHED, 'it says "no" \\ \n')),
            ]
        ),
        "news",
    )
    assert found.good["document_id"].to_list() == ["good"]
    assert set(found.quarantined["reason"]) == {
        "it names no symbol",
        "it became available before it was published",
        "title holds a NUL character",
        "symbols holds a NUL character",
    }
    assert found.quarantined["symbol"].null_count() == 4
    assert not any("\\u0000" in text for text in found.quarantined["payload"])


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    title=_text,
    text=st.none() | _text,
    symbols=st.lists(_text | st.none(), max_size=3),
    basis=_text,
    year=st.integers(-5000, 20000),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_rejected_can_be_kept(
    title: str, text: str | None, symbols: list[str], basis: str, year: int
) -> None:
    """Its payload is JSON without NUL, and its day a date."""
    moment = pl.Series([(year - 1970) * 31_556_952_000_000]).cast(pl.Datetime("us", "UTC"))
    frame = articles(("x", PUBLISHED, title), symbols=symbols).with_columns(
        pl.lit(text, pl.String).alias("text"),
        pl.lit(basis).alias("availability_basis"),
        available_at=moment,
        time=moment,
    )
    found = judged(frame, "news")
    assert found.good.height + found.unfinished + found.quarantined.height == 1
    for payload, day in found.quarantined.select("payload", "day").iter_rows():
        assert "\0" not in json.dumps(json.loads(payload), ensure_ascii=False)
        assert day is None or isinstance(day, date)


def test_what_is_rejected_reaches_the_database(desk: Desk) -> None:
    odd = [
        changed(availability_basis='no "basis" \\ at\nall'),
        changed(symbol="A\0"),
        changed(time=datetime(1, 1, 1, tzinfo=UTC) - timedelta(0)),
        changed(close=math.inf),
    ]
    frame = pl.concat(odd)
    before_christ = BAR.with_columns(pl.lit(-(10**17)).cast(pl.Datetime("us", "UTC")).alias("time"))
    report = desk.write("ohlcv_1d", fetched(pl.concat([frame, before_christ]), "A"))
    assert report.quarantined == 5
    kept = desk.query("SELECT day, symbol, reason, payload->>'symbol' AS s FROM quarantine")
    assert kept.height == 5
    # The same again is the same row; the same for another reason is not.
    desk.write("ohlcv_1d", fetched(frame, "A"))
    assert desk.one("SELECT count(*) FROM quarantine") == 5


def test_a_rejected_symbol_day_is_named(desk: Desk) -> None:
    frame = pl.concat([changed(close=math.nan), bars(["BB"], ONE_DAY)])
    desk.write("ohlcv_1d", fetched(frame, "A", "BB"), ONE_DAY, symbols=["A", "BB"])
    assert [row for row in desk.exceptions("ohlcv_1d") if row[1] == ONE_DAY[0]] == [
        ("made", ONE_DAY[0], "A", "quarantined")
    ]


def test_what_a_computation_returns_beyond_its_days_is_not_offered(desk: Desk) -> None:
    desk.write("ohlcv_1d", fetched(bars(["A", "BB", "CCC"]), "A", "BB", "CCC"))
    with desk.planned("means", ONE_DAY) as plan:
        days = set(plan.days)
        frame = bars(["A"]).select(
            "symbol", "time", "available_at", "availability_basis", sma_20=pl.lit(math.inf)
        )
        report = desk.store.write(plan, frame)
    assert report.input == report.written == len(days & set(frame["time"].dt.date()))
    assert desk.store.read("means")["sma_20"].null_count() == report.written
    with desk.planned("means", ONE_DAY, code_version="2") as plan:
        with pytest.raises(SchemaError, match="unknown column"):
            desk.store.write(plan, frame.with_columns(x=1))
        with pytest.raises(SchemaError, match="lacks column"):
            desk.store.write(plan, frame.drop("time"))


def vector(**values: float | None) -> pl.DataFrame:
    table = TABLES["state_vectors_1d"]
    fields = dict.fromkeys(STATE_VECTOR_FIELDS, 0.5) | {"regime_trend": 1.0}
    fields |= {"regime_range": 0.0, "regime_transition": 0.0} | values
    keys = BAR.select("symbol", "time", "available_at", "availability_basis")
    missing = [name for name, value in fields.items() if value is None]
    return table.conform(
        keys.with_columns(
            *(pl.lit(value, dtype=pl.Float64).alias(name) for name, value in fields.items()),
            document_count=pl.lit(0, dtype=pl.Int64),
            missing=pl.lit(missing, dtype=pl.List(pl.String)),
        )
    )


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"rsi": 1.1}, "rsi is outside of its scale, 0 to 1"),
        ({"macd": -1.5}, "macd is outside of its scale, -1 to 1"),
        ({"regime_trend": 0.5}, "regime_trend is outside of its scale, 0 or 1"),
    ],
)
def test_a_state_vector_that_breaks_its_scale_is_not_stored(values, reason):
    """Agents read what is stored within a second: before any check could have looked at it."""
    checked = judged(vector(**values), "state_vectors_1d")
    assert checked.good.is_empty()
    assert checked.quarantined["reason"].to_list() == [reason]


def test_what_is_missing_breaks_no_scale():
    assert judged(vector(sentiment=None, rsi=0.0, vix=1.0), "state_vectors_1d").good.height == 1
