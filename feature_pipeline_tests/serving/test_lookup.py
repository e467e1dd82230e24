"""Values by name at any past moment: what the tables hold, and never what came later."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_pipeline.errors import FeatureError, UniverseError
from feature_pipeline.serving.lookup import Moment, newest, parse_moment, series
from feature_pipeline.serving.names import by_bar, every_name, resolve
from feature_pipeline.serving.recompute import as_known_at
from feature_pipeline_tests.assets.support import DERIVED, Graph, assert_equal
from feature_pipeline_tests.assets.world import END, START, midnight

EVERY = every_name()
SYMBOLS = ("AAA", "BBB", "MKT", "YOUNG")

moments = st.builds(
    lambda us: midnight(date(2019, 6, 3)) + timedelta(microseconds=us),
    st.integers(0, 14 * 86_400_000_000),
) | st.builds(
    # Around the moments at which something becomes available.
    lambda day, minute, us: (
        midnight(date(2019, 6, day)) + timedelta(hours=20, minutes=minute, microseconds=us)
    ),
    st.integers(4, 15),
    st.sampled_from([0, 15]),
    st.integers(-1, 1),
)


@pytest.fixture(scope="module")
def whole(ran: Graph) -> dict[str, pl.DataFrame]:
    """Every table with rows by bar, read once, without a condition."""
    return {asset: ran.query(f"SELECT * FROM {table.table}") for asset, table in by_bar().items()}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    moment=moments,
    symbol=st.sampled_from(SYMBOLS),
    places=st.lists(st.sampled_from(EVERY), min_size=1, max_size=6, unique_by=lambda p: p.path),
)
def test_as_of_is_what_the_tables_hold_and_never_looks_ahead(ran, whole, moment, symbol, places):
    values = newest(ran.store, symbol, places, Moment(moment), ran.scorer)
    for place, value in zip(places, values, strict=True):
        rows = [
            row
            for row in whole[place.asset].iter_rows(named=True)
            if row["symbol"] == symbol and row["available_at"] <= moment
        ]
        row = max(rows, key=lambda row: row["time"], default=None)
        if row is None:
            assert (value.value, value.time) == (None, None)
            continue
        assert value.available_at <= moment
        assert (value.value, value.time) == (row[place.column], row["time"])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moment=moments, symbol=st.sampled_from(SYMBOLS), data=st.data())
def test_a_series_ends_at_the_moment(ran, whole, moment, symbol, data):
    places = data.draw(
        st.lists(st.sampled_from(EVERY), min_size=1, max_size=4, unique_by=lambda p: p.name)
    )
    first = data.draw(st.integers(1, 14))
    last = data.draw(st.integers(first, 15))
    days = (date(2019, 6, first), date(2019, 6, last) + timedelta(days=1))
    found = series(ran.store, symbol, places, days, Moment(moment), ran.scorer)
    assert found["time"].is_sorted()
    held = {row["time"]: row for row in found.iter_rows(named=True)}
    for place in places:
        wanted = {
            row["time"]: row[place.column]
            for row in whole[place.asset].iter_rows(named=True)
            if row["symbol"] == symbol
            and row["available_at"] <= moment
            and midnight(days[0]) <= row["time"] < midnight(days[1])
        }
        assert wanted.items() <= {time: row[place.name] for time, row in held.items()}.items()
        assert all(held[time][place.name] is None for time in held.keys() - wanted.keys())
    assert all(row["available_at"] <= moment for row in held.values())


# -- as known at ----------------------------------------------------------------------------------


@pytest.mark.parametrize("asset", [*DERIVED, "sentiment_scores"])
def test_recomputed_from_what_is_held_now_is_what_is_stored(ran, asset):
    """All columns, all days at once: also holds the map of computations and the assets together."""
    columns = ran.store.tables[asset].names
    now = datetime.now(UTC)
    for symbol in ("AAA", "YOUNG"):
        rows = as_known_at(ran.store, asset, columns, [symbol], (START, END), now, ran.scorer)
        stored = ran.table(asset).filter(pl.col("symbol") == symbol)
        assert stored.height > 5
        assert_equal(rows.select(stored.columns), stored, f"{asset} {symbol}")


@pytest.fixture(scope="module")
def restated(
    new_graph, world, universe
) -> Iterator[tuple[Graph, datetime, dict[str, pl.DataFrame]]]:
    """A graph whose bar of the 10th was restated, a macro value and a document with it; the moment
    before, and what the tables held then."""
    day = midnight(date(2019, 6, 10))
    bar = (pl.col("symbol") == "AAA") & (pl.col("time") == day)
    known = (pl.col("available_at") >= day) & (pl.col("available_at") < day + timedelta(days=1))
    document = world.documents.filter(known, pl.col("symbols").list.contains("AAA"))["document_id"][
        0
    ]
    text = pl.col("document_id") == document
    changed = world.but(
        bars=world.bars.with_columns(
            pl.when(bar).then(pl.col(p) * 1.04).otherwise(p).alias(p)
            for p in ("open", "high", "low", "close")
        ),
        documents=world.documents.with_columns(
            title=pl.when(text).then(pl.lit("score -0.987")).otherwise("title")
        ),
        macro=world.macro.with_columns(
            value=pl.when(known).then(pl.col("value") + 1).otherwise("value")
        ),
    )
    with new_graph(world) as graph:
        graph.run()
        before = graph.tables()
        moment = graph.query("SELECT clock_timestamp() AS t")["t"][0]
        graph.source.world = changed
        graph.run()
        yield graph, moment, before


@pytest.mark.parametrize("asset", ["ohlcv_1d", *DERIVED])
def test_as_known_at_is_what_the_tables_held_then(restated, asset):
    graph, moment, before = restated
    places = [p for p in EVERY if p.asset == asset]
    held = before[asset].filter(pl.col("symbol") == "AAA")
    now = graph.table(asset).filter(pl.col("symbol") == "AAA")
    with pytest.raises(AssertionError):
        assert_equal(held, now)
    as_of = midnight(END)
    rows = series(graph.store, "AAA", places, (START, END), Moment(as_of, moment), graph.scorer)
    columns = [p.column for p in places]
    assert_equal(rows.select("time", *columns), held.select("time", *columns), asset)
    last = newest(graph.store, "AAA", places, Moment(as_of, moment), graph.scorer)
    one = pl.DataFrame(
        {v.column: [v.value] for v in last}, schema={c: held.schema[c] for c in columns}
    )
    assert_equal(one, held.select(columns).tail(1), asset)


def test_nothing_was_known_before_the_database_was(ran):
    (value,) = newest(
        ran.store,
        "AAA",
        [resolve("sma_20")],
        Moment.of(None, datetime(2020, 1, 1, tzinfo=UTC)),
        ran.scorer,
    )
    assert (value.value, value.time, value.available_at) == (None, None, None)


# -- names ----------------------------------------------------------------------------------------


def test_every_unambiguous_name_is_found():
    columns = [place.column for place in EVERY]
    for place in EVERY:
        assert resolve(place.path) == place.__class__(place.path, place.asset, place.column)
        if columns.count(place.column) == 1:
            assert resolve(place.column).path == place.path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("close", ["ambiguous", "ohlcv_1d.close", "state_vectors_1d.close"]),
        ("smaa_20", ["no feature 'smaa_20'", "sma_20"]),
        ("indicators_1d.close", ["indicators_1d has no column 'close'"]),
        ("documents.title", ["no table 'documents'", "ohlcv_1d"]),
        ("symbol", ["no feature 'symbol'"]),
        ("xyzzy", ["features list"]),
        ("", ["no feature ''"]),
    ],
)
def test_a_name_that_is_none_says_what_to_write(name, said):
    with pytest.raises(FeatureError) as raised:
        resolve(name)
    assert all(word in str(raised.value) for word in said), raised.value


def test_a_feature_by_version():
    assert (
        resolve("returns_1d@1").path == resolve("returns_1d__v1").path == "features_1d.returns_1d"
    )
    with pytest.raises(FeatureError):
        resolve("returns_1d@7")


def test_an_unknown_symbol_names_the_known(ran):
    with pytest.raises(UniverseError, match="AAA"):
        newest(ran.store, "ZZZ", [resolve("rsi_14")], Moment.of(None), ran.scorer)


# -- moments --------------------------------------------------------------------------------------


@given(st.datetimes(timezones=st.timezones() | st.none()), st.sampled_from("T "))
def test_moments_are_read_as_written(moment, separator):
    if not 2 <= moment.year <= 9998:
        return
    found, zoned = parse_moment(moment.isoformat(separator))
    assert zoned == (moment.tzinfo is not None)
    assert found.tzinfo is UTC
    utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    assert found == utc


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2019-13-01", "2019-06-10T25:00", "1,5", "12:00"]
)
def test_a_bad_moment_says_how_to_write_one(text):
    with pytest.raises(FeatureError, match=r"as-of .* is no moment; write ISO 8601"):
        parse_moment(text, "as-of")
