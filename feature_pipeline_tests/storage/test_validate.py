"""Which rows may be written: every row ends in exactly one place, with its reason."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time, timedelta

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_pipeline.errors import SchemaError
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.schemas import STATE_VECTOR_FIELDS, Fetched
from feature_pipeline.storage.frames import boundary
from feature_pipeline.storage.validate import CONTRADICTION, OUTDATED, Checked, check
from feature_pipeline_tests.storage.support import (
    JANUARY,
    NOW,
    Desk,
    articles,
    assert_conserved,
    bars,
    fetched,
    sessions,
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
        ({"time": datetime(2020, 6, 2, tzinfo=UTC)}, "it lies in the future"),
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
@settings(max_examples=60)
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


# -- any bars at all ------------------------------------------------------------------------------

NUMBERS = st.sampled_from([None, math.nan, math.inf, -math.inf, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0])
MOMENTS = st.sampled_from(
    [
        None,
        datetime(2020, 1, 6, tzinfo=UTC),
        datetime(2020, 1, 7, tzinfo=UTC),
        datetime(2020, 1, 31, tzinfo=UTC),
        datetime(2020, 2, 1, tzinfo=UTC),
        datetime(2019, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        NOW,
        datetime(2020, 6, 30, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
    ]
)
ROWS = st.fixed_dictionaries(
    {
        "symbol": st.sampled_from(["A", "A", "BB", "BB", "nobody", "A\0", "\0", "", None]),
        "time": MOMENTS,
        "available_at": MOMENTS,
        "availability_basis": st.sampled_from(["assumed", "observed", "perhaps", "\0", None]),
        "open": NUMBERS,
        "high": NUMBERS,
        "low": NUMBERS,
        "close": NUMBERS,
        "volume": NUMBERS,
        "spread": NUMBERS,
        "source": st.sampled_from(["made", "made", "ma\0de", None]),
    }
)
# Most of what providers say is right: mix in rows that are, but for one column.
FINE = BAR.with_columns(spread=pl.lit(None, dtype=pl.Float64)).row(0, named=True)
NEARLY = st.builds(lambda row, name: {**FINE, name: row[name]}, ROWS, st.sampled_from(sorted(FINE)))


def first_wrong(row: dict, window: tuple[date, date]) -> str | None:
    """The reason by hand, row by row: what the schema says, said once more."""
    for name in ("symbol", "time", "available_at", "availability_basis", "source"):
        if row[name] is None:
            return f"{name} is missing"
    for name in ("symbol", "availability_basis", "source"):
        if "\0" in row[name]:
            return f"{name} holds a NUL character"
    if row["availability_basis"] not in ("observed", "assumed"):
        return "availability_basis is none of observed, assumed"
    if row["symbol"] not in ("A", "BB"):
        return "unknown symbol"
    prices = [row[name] for name in ("open", "high", "low", "close")]
    if any(p is None or not math.isfinite(p) for p in prices):
        return "a price is missing or not finite"
    if row["volume"] is None or not math.isfinite(row["volume"]):
        return "volume is missing or not finite"
    if min(prices) <= 0:
        return "a price is not positive"
    if row["volume"] < 0:
        return "volume is negative"
    if row["high"] < row["low"]:
        return "high is below low"
    if not all(row["low"] <= row[name] <= row["high"] for name in ("open", "close")):
        return "open or close lies outside [low, high]"
    if row["time"].time() != time(0):
        return "a daily bar's time is not 00:00 UTC"
    if row["time"] > NOW:
        return "it lies in the future"
    if not window[0] <= row["time"].date() < window[1]:
        return "it lies outside the days asked for"
    return None


@given(rows=st.lists(st.one_of(ROWS, NEARLY), max_size=12))
@settings(max_examples=150)
def test_any_bars_are_judged_as_by_hand(rows: list[dict]) -> None:
    frame = pl.DataFrame(rows, schema={c.name: c.dtype for c in BARS.columns})
    found = judged(frame)
    reasons = found.quarantined["reason"].to_list()
    expected = [first_wrong(row, JANUARY) for row in rows]
    assert sorted(r for r in reasons if r not in (CONTRADICTION, OUTDATED)) == sorted(
        filter(None, expected)
    )
    # No row is lost and none is made.
    assert len(rows) == (
        found.good.height + found.quarantined.height + found.duplicate + found.unfinished
    )
    assert found.unfinished == sum(
        reason is None and row["available_at"] > NOW
        for reason, row in zip(expected, rows, strict=True)
    )
    assert not found.good.select(pl.struct("symbol", "time").is_duplicated().any()).item()
    assert found.good.schema == frame.schema


def test_one_row_among_many_costs_that_row() -> None:
    """However many rows: the others stay as they are, and in their order."""
    many = bars(["A", "BB"], JANUARY)
    spoilt = many.with_columns(
        pl.when(pl.int_range(pl.len()) == 7).then(math.nan).otherwise("close").alias("close")
    )
    found = judged(spoilt)
    assert found.quarantined.height == 1
    rest = many.with_row_index().filter(pl.col("index") != 7).drop("index")
    assert found.good.equals(BARS.conform(rest))


@pytest.mark.parametrize("asset", TABLES)
def test_every_table_can_be_judged(asset: str) -> None:
    """Its types have a counterpart, and no two rules the same words."""
    table = TABLES[asset]
    rules = boundary(table, NOW, JANUARY, ["A"])
    empty, none = rules.split(table.empty())
    assert empty.equals(table.empty())
    assert none.is_empty()
    assert [c.dtype for c in rules.schema.columns().values()] == [
        pl.Series([], dtype=c.dtype).dtype for c in table.columns
    ]
    assert len(set(rules.reasons.values())) == len(rules.reasons)
    assert {rule.reason for rule in table.rules} <= set(rules.reasons.values())


WEEKS, LATER = (date(2020, 1, 6), date(2020, 1, 15)), NOW + timedelta(hours=1)
MESSY = st.lists(
    st.tuples(
        st.sampled_from(["A", "BB", "nobody"]),
        st.integers(0, 6),
        st.sampled_from([2.0, 2.0, 2.5, math.nan, -1.0]),
        st.booleans(),
    ),
    max_size=14,
)


@given(answers=st.lists(MESSY, min_size=1, max_size=4), fences=st.booleans())
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_of_every_answer_is_accounted_for(desk: Desk, answers, fences) -> None:
    """input = written + unchanged + duplicate + unfinished + fenced + quarantined, always."""
    with desk.store.database.connection() as link:
        link.execute("TRUNCATE ohlcv_1d, ohlcv_1d_history, partition_ledger, quarantine")

    def answer(rows) -> pl.DataFrame:
        made = [
            bars([symbol], WEEKS)
            .slice(number, 1)
            .with_columns(
                open=pl.lit(2.0),
                high=pl.lit(3.0),
                low=pl.lit(1.0),
                close=pl.lit(close),
                available_at=pl.lit(LATER) if later else pl.col("available_at"),
            )
            for symbol, number, close, later in rows
        ]
        return pl.concat([bars(["A"]).clear(), *made])

    assert sessions(WEEKS).height == 7
    reports = []
    with desk.planned("ohlcv_1d") as late:
        for rows in answers:
            frame = answer(rows)
            reports.append((frame, desk.write("ohlcv_1d", {"made": Fetched(frame, {}, ("A",))})))
        if fences:  # whoever began before them comes after them
            frame = answer(answers[0])
            reports.append((frame, desk.store.write(late, {"made": Fetched(frame, {}, ("A",))})))
    for frame, report in reports:
        assert report.input == frame.height
        assert_conserved(report)
    held = desk.one("SELECT count(*) FROM ohlcv_1d")
    assert held <= sum(report.written for _, report in reports)
