"""What a backfill says that it will do is what it does; and saying it changes nothing."""

from __future__ import annotations

from datetime import date, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_pipeline.automation import estimate
from feature_pipeline.automation.backfill import BackfillError, known_assets, runs_for
from feature_pipeline.automation.estimate import (
    EstimateError,
    Work,
    default_range,
    schema_width,
)
from feature_pipeline.errors import MissingPartitionError
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.schemas import Input
from feature_pipeline.sources import calls_of
from feature_pipeline.sources.http import Limits
from feature_pipeline.sources.sample import SampleSource
from feature_pipeline.storage.store import Store
from feature_pipeline.universe import Universe
from feature_pipeline_tests.assets.support import DERIVED, Graph
from feature_pipeline_tests.assets.world import END, LISTED, START, make_universe
from feature_pipeline_tests.automation.runs import Asked, backfill, outlook

GRID = ("ohlcv_1d", *DERIVED)


@pytest.fixture
def graph(new_graph, world):
    with new_graph(world) as made:
        made.source = Asked(world)
        yield made


def written(graph: Graph) -> dict[str, int]:
    """Asset -> partitions that somebody has written."""
    frame = graph.query("SELECT asset, count(DISTINCT day) FROM partition_ledger GROUP BY asset")
    return dict(frame.iter_rows())


def state(graph: Graph) -> list[pl.DataFrame]:
    """Everything that a look must not change."""
    return [
        graph.query(statement)
        for statement in (
            "SELECT * FROM partition_ledger ORDER BY asset, source, day",
            "SELECT * FROM write_intents ORDER BY token",
            "SELECT * FROM write_reports ORDER BY id",
            "SELECT digest, symbols FROM collected_for ORDER BY digest",
            "SELECT last_value, is_called FROM fencing_token",
            "SELECT last_value, is_called FROM content_revision",
        )
    ]


# -- it is true -----------------------------------------------------------------------------------


def test_a_cold_backfill_does_what_it_said(graph):
    said, plan = backfill(graph)
    assert {name: one.days.len() for name, one in said.work.items()} == written(graph)
    assert said.partitions == sum(written(graph).values())
    assert all(one.asked == one.pending == (END - START).days for one in said.work.values())
    assert said.work["ohlcv_1d"].days[0] < START, "history comes along"
    assert said.work["ohlcv_1d"].history == said.work["ohlcv_1d"].days.len() - 10
    rows = dict(
        graph.query("SELECT asset, sum(rows)::bigint FROM partition_ledger GROUP BY asset")
        .iter_rows()
    )  # fmt: skip
    for asset in GRID:
        assert said.work[asset].rows == rows[asset], asset
        assert said.work[asset].rows_from == "sessions"
    assert [chunk.assets for chunk in plan] == [tuple(TABLES)]
    # One request per instrument and table, as long as the provider does not say better.
    assert {name: one.calls for name, one in said.work.items() if one.calls} == {
        "ohlcv_1d": 4, "corporate_actions": 4, "news": 4, "reddit": 4, "macro_indicators": 1,
    }  # fmt: skip
    # And the second time there is nothing to do.
    again = outlook(graph)
    assert again.partitions == again.seconds == 0
    assert runs_for(again) == []


def test_looking_changes_nothing(graph):
    for prepare in (lambda: None, lambda: graph.run(START, START + timedelta(days=4))):
        prepare()
        before, asked = state(graph), list(graph.source.whom)
        found = outlook(graph)
        assert found.partitions > 0
        outlook(graph, refetch=True)
        outlook(graph, symbols=["AAA"], assets=["ohlcv_1d"])
        default_range(graph.store)
        for left, right in zip(state(graph), before, strict=True):
            assert left.equals(right)
        assert graph.source.whom == asked
    assert len(graph.instance.get_runs()) == 1


def test_what_becomes_stale_on_the_way_is_foreseen(graph):
    """Days that are right now, and will not be once what they follow from has come."""
    graph.run(START, END, symbols=["AAA", "MKT"])  # the others are missing
    graph.run(START, END, DERIVED)
    assert outlook(graph, assets=DERIVED).partitions == 0
    held = written(graph)
    said, _ = backfill(graph)
    assert said.work["ohlcv_1d"].symbols == ("BBB", "YOUNG")
    tokens = graph.query("SELECT asset, count(DISTINCT day) FROM partition_ledger WHERE run_id ="
                         " (SELECT run_id FROM partition_ledger ORDER BY token DESC LIMIT 1)"
                         " GROUP BY asset")  # fmt: skip
    renewed = dict(tokens.iter_rows())
    for asset in DERIVED:
        assert renewed[asset] == said.work[asset].days.len() > 0, asset
    assert held == written(graph)
    assert outlook(graph).partitions == 0


@given(
    changing=st.lists(st.integers(0, 60), max_size=6, unique=True),
    lookback=st.integers(0, 12),
    in_days=st.integers(0, 9),
)
@settings(max_examples=60)
def test_what_follows_from_a_day_is_what_reads_it(changing, lookback, in_days):
    first = date(2019, 5, 1)
    days = pl.date_range(first, first + timedelta(days=59), eager=True).alias("day")
    changed = pl.Series("day", [first + timedelta(days=n) for n in sorted(changing)], dtype=pl.Date)
    universe = make_universe()
    store = Store(None, universe, TABLES)  # type: ignore[arg-type]
    needed = Input("ohlcv_1d", (), lookback_bars=lookback, lookback_days=in_days)
    reach = store.planner.reach(needed, days).to_list()
    expected = [
        day
        for day, from_day in zip(days, reach, strict=True)
        if any(from_day <= change <= day for change in changed)
    ]
    assert estimate._following(store, needed, days, changed).to_list() == expected


# -- what it refuses ------------------------------------------------------------------------------


def test_missing_inputs_are_named_before_anything_starts(graph):
    with pytest.raises(MissingPartitionError, match="add ohlcv_1d to --assets") as refused:
        outlook(graph, assets=["indicators_1d"])
    assert "\n" not in str(refused.value)
    assert written(graph) == {}
    outlook(graph, assets=["ohlcv_1d", "indicators_1d"])  # it comes along
    graph.run(assets=["ohlcv_1d"])
    assert outlook(graph, assets=["indicators_1d"]).partitions > 0


def test_an_unknown_asset_is_named_with_those_that_exist():
    with pytest.raises(BackfillError, match=r"no asset 'ohlcv_2d'; there are ohlcv_1d, "):
        known_assets(["ohlcv_1d", "ohlcv_2d"])
    assert known_assets(["features_1d", "ohlcv_1d"]) == ("ohlcv_1d", "features_1d")


# -- the range ------------------------------------------------------------------------------------


def test_the_default_range_is_the_symbols_own(graph):
    start, end = default_range(graph.store)
    assert start == LISTED
    assert graph.store.clock().date() - timedelta(days=5) < end
    assert default_range(graph.store, ["YOUNG"])[0] == date(2019, 3, 11)


def test_a_membership_that_has_ended_ends_the_range(migrated_database_url):
    universe = Universe.parse(
        """
benchmark: OLD
instruments:
  - {id: OLD, asset_class: equity, calendar: XNYS, sector: x, source: {bars: s}, history_from:
     2004-01-02, symbols: [{symbol: OLD, from: 2000-01-03}],
     membership: [{from: 2005-01-03, to: 2012-01-02}]}
  - {id: FUTURE, asset_class: equity, calendar: XNYS, sector: x, source: {bars: s},
     symbols: [{symbol: FUTURE, from: 2000-01-03}], membership: [{from: 2090-01-03}]}
"""
    )
    store = Store(None, universe, TABLES)  # type: ignore[arg-type]
    assert default_range(store, ["OLD"]) == (date(2004, 1, 2), date(2011, 12, 31))
    with pytest.raises(EstimateError, match="FUTURE has had no session"):
        default_range(store, ["FUTURE"])


# -- spans ----------------------------------------------------------------------------------------


def spans(graph: Graph, **work: tuple[list[date], list[date]]):
    """Spans of the work of some assets: days that change, and which of them nobody has."""
    made = {
        asset: Work(
            asset,
            pl.Series(changing, dtype=pl.Date),
            None,
            pl.Series(changing, dtype=pl.Date),
            pl.Series(whole, dtype=pl.Date),
        )
        for asset, (changing, whole) in work.items()
    }
    return estimate._spans(graph.store, made, date(2019, 1, 1), date(2020, 1, 1))


def days(first: date, count: int) -> list[date]:
    return [first + timedelta(days=n) for n in range(count)]


def test_work_that_lies_apart_is_done_apart(graph):
    january, june = days(date(2019, 1, 7), 5), days(date(2019, 6, 3), 3)
    assert spans(graph, ohlcv_1d=(january, january), news=(june, june)) == (
        (january[0], january[-1] + timedelta(days=1)),
        (june[0], june[-1] + timedelta(days=1)),
    )
    near = days(january[0], 1) + days(january[0] + timedelta(days=20), 1)
    assert spans(graph, ohlcv_1d=(near, near)) == ((near[0], near[1] + timedelta(days=1)),)
    history = days(date(2018, 12, 1), 3)
    assert spans(graph, ohlcv_1d=(history, history)) == ((date(2019, 1, 1), date(2019, 1, 2)),)
    assert spans(graph, ohlcv_1d=([], [])) == ()


def test_days_that_some_lack_and_days_that_nobody_has_are_not_asked_for_in_one(graph):
    lacking, new = days(date(2019, 2, 1), 60), days(date(2019, 4, 2), 5)
    assert spans(graph, ohlcv_1d=(lacking + new, new)) == (
        (lacking[0], lacking[-1] + timedelta(days=1)),
        (new[0], new[-1] + timedelta(days=1)),
    )
    older = days(date(2019, 1, 12), 20)
    assert [first for first, _ in spans(graph, ohlcv_1d=(older + lacking + new, older + new))] == [
        older[0], lacking[0], new[0],
    ]  # fmt: skip
    few = days(date(2019, 3, 28), 3)  # not worth a run
    assert len(spans(graph, ohlcv_1d=(few + new, new))) == 1


# -- what it costs --------------------------------------------------------------------------------


def test_a_provider_may_say_what_it_costs():
    universe = make_universe()

    class PerMonth:
        name = "made"

        def calls(self, kind, instruments, start, end):
            assert kind == "bars"
            return len(instruments) * (1 + (end - start).days // 30)

    window = (date(2019, 1, 1), date(2019, 4, 1))
    assert calls_of(PerMonth(), "bars", universe.instruments, *window) == 16
    assert calls_of(object(), "bars", universe.instruments, *window) == 4
    assert calls_of(SampleSource(), "bars", universe.instruments, *window) == 0


def test_the_size_is_that_of_the_table_where_there_is_one(graph):
    cold = outlook(graph)
    assert {one.bytes_from for one in cold.work.values()} == {"schema"}
    graph.run(START, END)
    found = outlook(graph, refetch=True).work["ohlcv_1d"]
    held = graph.query("SELECT pg_total_relation_size('ohlcv_1d') AS size")["size"][0]
    rows = graph.query("SELECT count(*) AS rows FROM ohlcv_1d")["rows"][0]
    if rows >= estimate._ENOUGH_ROWS:
        assert found.bytes_from == "measured"
        assert found.bytes == pytest.approx(found.rows * held / rows, abs=2)
    # And the schema's guess is not far from it.
    assert schema_width(TABLES["ohlcv_1d"]) == pytest.approx(held / rows, rel=0.5)


def report(graph: Graph, run: str, assets: tuple[str, ...], minutes: float, days: int) -> None:
    """A run that wrote so many days of each asset, with so many minutes between two of them."""
    with graph.store.database.connection() as connection:
        for number, asset in enumerate(assets):
            connection.execute(
                "INSERT INTO write_reports (asset, source, run_id, token, first_day, last_day,"
                " days, input, outside, written, unchanged, duplicate, unfinished, fenced,"
                " quarantined, at) VALUES (%s, 'made', %s, 1, '2019-01-01', '2019-02-01', %s,"
                " 100, 0, 100, 0, 0, 0, 0, 0, '2020-01-01'::timestamptz"
                " + %s * interval '1 minute')",
                [asset, run, days, number * minutes],
            )


def test_the_time_is_measured_by_past_runs(graph):
    built_in = outlook(graph)
    assert (built_in.seconds_from, built_in.runs) == ("built-in", 0)
    for run in range(3):
        report(graph, f"run {run}", ("ohlcv_1d", "news", "indicators_1d"), run + 1, 31)
    measured = outlook(graph)
    assert (measured.seconds_from, measured.runs) == ("measured", 3)
    # Two minutes for what the built-in rate says takes `expected` seconds: the middle of 1, 2, 3.
    expected = estimate._seconds("news", 31, 100)
    slower = measured.work["news"].seconds / built_in.work["news"].seconds
    assert slower == pytest.approx(120 / expected, rel=0.01)
    # What was never measured goes by what is computed.
    expected = estimate._seconds("indicators_1d", 31, 100)
    slower = measured.work["reddit"].seconds / built_in.work["reddit"].seconds
    assert slower == pytest.approx(120 / expected, rel=0.01)

    # Schedules have written since, a day each: nothing that a long range could go by.
    for run in range(estimate._RUNS_LOOKED_AT + 1):
        report(graph, f"tick {run}", ("news", "reddit", "sentiment_scores"), 10, 1)
    again = outlook(graph)
    assert (again.runs, again.seconds) == (3, pytest.approx(measured.seconds))


def test_what_asking_takes_is_what_the_provider_says(graph):
    """However long it was asked in a run of another length."""
    graph.source.limits = Limits(requests=1, seconds=2.0)
    asked = 2.0 * 4
    cold = outlook(graph)
    assert cold.work["news"].asking_s == asked
    report(graph, "run", ("ohlcv_1d", "news", "indicators_1d"), 10, 31)
    found = outlook(graph)
    slower = 600 / estimate._seconds("indicators_1d", 31, 100)
    for name in ("news", "reddit"):
        computing = cold.work[name].seconds - asked
        assert found.work[name].seconds == pytest.approx(computing * slower + asked)


def test_nothing_is_expected_of_a_provider_that_is_off(graph):
    graph.store.off = {graph.source.name: "made is off: set MADE to switch it on"}
    found = outlook(graph)
    for asset in ("news", "reddit", "corporate_actions", "macro_indicators", "sentiment_scores"):
        assert (found.work[asset].rows, found.work[asset].pending) == (0, (END - START).days), asset


def test_rows_of_events_go_by_what_was_written(graph):
    assert outlook(graph).work["news"].rows_from == "assumed"
    graph.run(START - timedelta(days=14), START, ["news", "reddit"])
    graph.run(START, END, ["news"])
    found = outlook(graph, refetch=True).work["news"]
    held = graph.query("SELECT sum(rows)::bigint AS rows FROM partition_ledger"
                       f" WHERE asset = 'news' AND day >= '{START}'")["rows"][0]  # fmt: skip
    assert found.rows_from == "average"
    assert found.rows == pytest.approx(held, rel=0.5)
