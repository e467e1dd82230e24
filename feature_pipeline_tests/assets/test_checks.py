"""The checks: content with good data, and each says what is wrong and where.

Most damage is done by SQL to copies of one filled database and judged directly; that Dagster runs
the checks, and holds back what is downstream, is shown in runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import polars as pl
import psycopg
import pytest

from feature_pipeline.assets.checks import Asked, checks_of
from feature_pipeline.assets.completeness import warm_up
from feature_pipeline.assets.judgements import bounds
from feature_pipeline.assets.verdicts import Verdict
from feature_pipeline.definitions import build_defs
from feature_pipeline.features.catalogue import STATE_FIELDS, TABLES
from feature_pipeline.settings import Settings
from feature_pipeline.sources.sample import SampleSource
from feature_pipeline.storage import changes
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.store import Store
from feature_pipeline.universe import Universe
from feature_pipeline_tests.assets.support import DERIVED, Graph, failure
from feature_pipeline_tests.assets.world import (
    END,
    SPLIT_DAY,
    START,
    make_universe,
    midnight,
)

ALL = [(asset, check.name) for asset in TABLES for check in checks_of(asset)]
BLOCKING = {(asset, c.name) for asset in TABLES for c in checks_of(asset) if c.blocking}
AFTER = datetime(2019, 6, 15, 6, tzinfo=UTC)
"""A moment at which the made world is up to date."""

ON_THE_6TH = "time = '2019-06-06 00:00Z'"


@dataclass
class Filled:
    """A copy of the filled database, to be damaged."""

    url: str
    store: Store

    def sql(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)

    def ask(self, asset: str, check: str, **more) -> Verdict:
        asked = Asked(self.store, asset, **{"days": (START, END), **more})
        return next(c for c in checks_of(asset) if c.name == check).ask(asked)


@pytest.fixture(scope="module")
def filled_url(new_ran) -> Iterator[str]:
    with new_ran() as graph:
        yield graph.url


@pytest.fixture
def filled(filled_url, new_database) -> Iterator[Filled]:
    template = filled_url.rsplit("/", 1)[1].split("?")[0]
    with new_database(template) as url, Database(url, 60) as database:
        yield Filled(url, Store(database, make_universe(), TABLES, clock=lambda: AFTER))


# -- good data ------------------------------------------------------------------------------------


def test_good_data_passes_everything(filled):
    for asset, check in ALL:
        verdict = filled.ask(asset, check)
        assert verdict.passed, f"{asset} {check}: {verdict.says}"
        assert verdict.says


def test_good_data_passes_on_a_single_day_and_without_any(filled):
    day = date(2019, 6, 13)
    for asset, check in ALL:
        for days in ((day, day + timedelta(days=1)), None):
            verdict = filled.ask(asset, check, days=days)
            assert verdict.passed, f"{asset} {check}: {verdict.says}"
    # The newest days are those of the data, not of the clock.
    filled.store.clock = lambda: AFTER + timedelta(days=400)
    assert filled.ask("ohlcv_1d", "row_count", days=None).numbers["rows"] > 80


def test_every_table_has_its_checks():
    for asset in TABLES:
        names = {check.name for check in checks_of(asset)}
        assert {"conservation", "no_future", "freshness"} <= names
        assert names & {"row_count", "collected"}
    assert {name for _, name in BLOCKING} == {
        "conservation",
        "no_future",
        "no_duplicates",
        "in_range",
    }
    for asset, name in ALL:
        check = next(c for c in checks_of(asset) if c.name == name)
        assert len(check.description) > 40
        assert "Args" not in check.description


# -- damage ---------------------------------------------------------------------------------------

BAR = (
    "INSERT INTO ohlcv_1d (symbol, time, available_at, availability_basis, open, high, low, close,"
    " volume, source, recorded_at, run_id) SELECT symbol, {time}, {available_at},"
    " availability_basis, open, high, low, close, volume, source, recorded_at, run_id"
    " FROM ohlcv_1d WHERE symbol = 'AAA' AND time = '2019-06-07 00:00Z'"
)
SECOND = (
    "INSERT INTO documents SELECT document_id, time, available_at + interval '1 hour',"
    " availability_basis, channel, source, symbols, title, text, url, recorded_at, run_id"
    " FROM documents WHERE channel = 'news' AND available_at >= '2019-06-06'"
    " ORDER BY available_at LIMIT 1"
)

DAMAGE = {
    # asset, check, what is done, whether it is an error, what the verdict says
    "a bar is gone": (
        "ohlcv_1d",
        "row_count",
        f"DELETE FROM ohlcv_1d WHERE symbol = 'BBB' AND {ON_THE_6TH}",
        True,
        ["BBB on 2019-06-06", "nothing says why"],
    ),
    "an indicator row is gone": (
        "indicators_1d",
        "row_count",
        "DELETE FROM indicators_1d WHERE symbol = 'AAA' AND time >= '2019-06-06'"
        " AND time < '2019-06-11'",
        True,
        ["AAA on 3 days from 2019-06-06 to 2019-06-10"],
    ),
    "a known gap": (
        "ohlcv_1d",
        "row_count",
        f"DELETE FROM ohlcv_1d WHERE symbol = 'BBB' AND {ON_THE_6TH}; INSERT INTO"
        " partition_exceptions VALUES ('ohlcv_1d', 'made', '2019-06-06', 'BBB', 'failed',"
        " 'the provider says 503', 'run')",
        False,
        ["BBB on 2019-06-06", "known: the provider says 503"],
    ),
    "what follows from a known gap": (
        "state_vectors_1d",
        "row_count",
        f"DELETE FROM state_vectors_1d WHERE symbol = 'BBB' AND {ON_THE_6TH}; INSERT INTO"
        " partition_exceptions VALUES ('ohlcv_1d', 'made', '2019-06-06', 'BBB', 'failed',"
        " 'the provider says 503', 'run')",
        False,
        ["known: the provider says 503"],
    ),
    "a bar on a Saturday": (
        "ohlcv_1d",
        "row_count",
        BAR.format(time="'2019-06-08 00:00Z'", available_at="'2019-06-08 21:00Z'"),
        False,
        ["no session", "AAA on 2019-06-08"],
    ),
    "a bar has moved to a Saturday": (
        "ohlcv_1d",
        "row_count",
        f"UPDATE ohlcv_1d SET time = '2019-06-08 00:00Z' WHERE symbol = 'AAA' AND {ON_THE_6TH}",
        True,
        ["AAA on 2019-06-06", "AAA on 2019-06-08"],
    ),
    "a day was never collected": (
        "news",
        "collected",
        "DELETE FROM partition_ledger WHERE asset = 'news' AND day = '2019-06-09'",
        True,
        ["1 day never collected: 2019-06-09"],
    ),
    "a series failed": (
        "macro_indicators",
        "collected",
        "INSERT INTO partition_exceptions VALUES ('macro_indicators', 'made', '2019-06-06',"
        " 'VIXCLS', 'failed', 'quota exceeded', 'run')",
        False,
        ["VIXCLS on 2019-06-06", "quota exceeded"],
    ),
    "a column is null": (
        "indicators_1d",
        "nan_share",
        "UPDATE indicators_1d SET rsi_14 = NULL WHERE symbol = 'AAA'",
        False,
        ["rsi_14: 8 of 24 values are missing (33%)", "AAA (8 of 8)"],
    ),
    "a column is no number": (
        "features_1d",
        "nan_share",
        "UPDATE features_1d SET returns_1d = 'NaN' WHERE time >= '2019-06-12'",
        False,
        ["returns_1d", "(38%)"],
    ),
    "a price is no number": (
        "ohlcv_1d",
        "nan_share",
        "UPDATE ohlcv_1d SET open = 'Infinity' WHERE symbol = 'MKT' AND time >= '2019-06-05'",
        False,
        ["open: 8 of 32 values", "MKT"],
    ),
    "a close jumps": (
        "ohlcv_1d",
        "price_gaps",
        "UPDATE ohlcv_1d SET close = close * 1.5 WHERE symbol = 'MKT' AND time = '2019-06-14'",
        False,
        ["1 close", "MKT +", "on 2019-06-14"],
    ),
    "a split is not declared": (
        "ohlcv_1d",
        "price_gaps",
        "DELETE FROM corporate_actions WHERE kind = 'split' AND time = '2019-06-11'",
        False,
        [f"on {SPLIT_DAY}", "corporate_actions"],
    ),
    "a split that was none": (
        "ohlcv_1d",
        "price_gaps",
        "UPDATE corporate_actions SET value = 4 WHERE kind = 'split' AND time = '2019-06-11'",
        False,
        [f"on {SPLIT_DAY}"],
    ),
    "a bar was restated": (
        "ohlcv_1d",
        "restated",
        "INSERT INTO ohlcv_1d_history SELECT symbol, time, available_at, availability_basis,"
        " open, high, low, close * 2, volume, spread, source, recorded_at, run_id,"
        " recorded_at FROM ohlcv_1d"
        " WHERE symbol = 'MKT' AND time = '2019-06-14'",
        False,
        ["1 bar of 1 symbol restated", "MKT 1 bar on 2019-06-14", "2 for 1"],
    ),
    "a bar of next week": (
        "ohlcv_1d",
        "no_future",
        BAR.format(time="'2019-06-20 00:00Z'", available_at="'2019-06-20 21:00Z'"),
        True,
        ["AAA of 2019-06-20", "it is about the future"],
    ),
    "a bar known in the future": (
        "ohlcv_1d",
        "no_future",
        f"UPDATE ohlcv_1d SET available_at = '2019-07-01' WHERE symbol = 'AAA' AND {ON_THE_6TH}",
        True,
        ["AAA of 2019-06-06", "it becomes available in the future (2019-07-01 00:00)"],
    ),
    "a bar known before its close": (
        "ohlcv_1d",
        "no_future",
        "UPDATE ohlcv_1d SET available_at = '2019-06-06 19:59:59Z'"
        f" WHERE symbol = 'AAA' AND {ON_THE_6TH}",
        True,
        ["AAA of 2019-06-06", "before its session ends"],
    ),
    "an indicator known before its bar": (
        "indicators_1d",
        "no_future",
        "UPDATE indicators_1d SET available_at = available_at - interval '1 minute'"
        f" WHERE symbol = 'AAA' AND {ON_THE_6TH}",
        True,
        ["AAA of 2019-06-06", "its bar is available at another moment"],
    ),
    "a feature without a bar": (
        "features_1d",
        "no_future",
        f"DELETE FROM ohlcv_1d WHERE symbol = 'AAA' AND {ON_THE_6TH}",
        True,
        ["AAA of 2019-06-06", "no bar"],
    ),
    "a release before its date": (
        "macro_indicators",
        "no_future",
        "UPDATE macro_indicators SET time = available_at + interval '1 hour' WHERE series_id ="
        " 'DFF' AND available_at >= '2019-06-06' AND available_at < '2019-06-07'",
        True,
        ["DFF", "before its time"],
    ),
    "a document of tomorrow": (
        "reddit",
        "no_future",
        "UPDATE documents SET available_at = '2019-06-16' WHERE document_id = (SELECT document_id"
        " FROM documents WHERE channel = 'reddit' AND available_at >= '2019-06-06' LIMIT 1)",
        True,
        ["becomes available in the future"],
    ),
    "a score of another moment than its document": (
        "sentiment_scores",
        "no_future",
        "UPDATE sentiment_scores SET available_at = available_at + interval '1 second'"
        " WHERE symbol = 'AAA' AND available_at >= '2019-06-06' AND available_at < '2019-06-07'",
        True,
        ["AAA", "no document becomes available at that moment"],
    ),
    "two bars of one session": (
        "ohlcv_1d",
        "no_duplicates",
        BAR.format(time="'2019-06-07 05:00Z'", available_at="'2019-06-07 21:00Z'"),
        True,
        ["AAA has 2 rows on 2019-06-07"],
    ),
    "a document twice": (
        "news",
        "no_duplicates",
        SECOND,
        True,
        ["is there 2 times"],
    ),
    "a document under two ids": (
        "news",
        "no_duplicates",
        "UPDATE documents SET url = 'https://example.org/a' WHERE channel = 'news' AND"
        " available_at >= '2019-06-06' AND available_at < '2019-06-07'",
        True,
        ["made https://example.org/a"],
    ),
    "a split twice": (
        "corporate_actions",
        "no_duplicates",
        "INSERT INTO corporate_actions SELECT symbol, time + interval '1 day', available_at +"
        " interval '1 day', availability_basis, kind, value, 'other', recorded_at, run_id"
        " FROM corporate_actions WHERE kind = 'split' AND time = '2019-06-11'",
        True,
        ["split of 2 on 2019-06-11 (made) and 2019-06-12 (other)"],
    ),
    "fewer rows than the ledger says": (
        "ohlcv_1d",
        "conservation",
        f"DELETE FROM ohlcv_1d WHERE symbol = 'BBB' AND {ON_THE_6TH}",
        True,
        ["the ledger says 4 rows of made for 2019-06-06, the table has 3"],
    ),
    "more rows than the ledger says": (
        "state_vectors_1d",
        "conservation",
        "UPDATE partition_ledger SET rows = 3 WHERE asset = 'state_vectors_1d'"
        " AND day = '2019-06-06'",
        True,
        ["the ledger says 3 rows of derived for 2019-06-06, the table has 4"],
    ),
    "rows without a ledger": (
        "reddit",
        "conservation",
        "DELETE FROM partition_ledger WHERE asset = 'reddit' AND day = '2019-06-06'",
        True,
        ["the ledger says 0 rows of made for 2019-06-06"],
    ),
    "a row that nobody accounts for": (
        "indicators_1d",
        "conservation",
        "UPDATE write_reports SET written = written - 1 WHERE asset = 'indicators_1d'",
        True,
        ["derived handed in", "are accounted for"],
    ),
    "a value outside of its scale": (
        "state_vectors_1d",
        "in_range",
        f"UPDATE state_vectors_1d SET rsi = 1.5 WHERE symbol = 'AAA' AND {ON_THE_6TH}",
        True,
        ["AAA on 2019-06-06: rsi is 1.5, outside of [0, 1]"],
    ),
    "a value that is no number": (
        "state_vectors_1d",
        "in_range",
        f"UPDATE state_vectors_1d SET macd = 'NaN' WHERE symbol = 'AAA' AND {ON_THE_6TH}",
        True,
        ["AAA on 2019-06-06: macd is NaN"],
    ),
    "half a regime": (
        "state_vectors_1d",
        "in_range",
        "UPDATE state_vectors_1d SET regime_trend = 0.5, regime_range = 0.5, regime_transition = 0"
        f" WHERE symbol = 'MKT' AND {ON_THE_6TH}",
        True,
        ["MKT on 2019-06-06", "regime_trend is 0.5, outside of {0, 1}"],
    ),
    "two regimes": (
        "state_vectors_1d",
        "in_range",
        "UPDATE state_vectors_1d SET regime_trend = 1, regime_range = 1, regime_transition = 0"
        f" WHERE symbol = 'MKT' AND {ON_THE_6TH}",
        True,
        ["MKT on 2019-06-06", "neither one 1 nor all null"],
    ),
    "a null that is not named": (
        "state_vectors_1d",
        "in_range",
        f"UPDATE state_vectors_1d SET vix = NULL WHERE symbol = 'AAA' AND {ON_THE_6TH}",
        True,
        ["AAA on 2019-06-06", "null are {vix}"],
    ),
    "a name that is not null": (
        "state_vectors_1d",
        "in_range",
        "UPDATE state_vectors_1d SET missing = ARRAY['close']"
        f" WHERE symbol = 'AAA' AND {ON_THE_6TH}",
        True,
        ["missing names {close}"],
    ),
    "a scale that is too narrow": (
        "state_vectors_1d",
        "saturation",
        "UPDATE state_vectors_1d SET log_return = -1 WHERE time >= '2019-06-13'",
        False,
        ["log_return: 8 of 32 values (25%)"],
    ),
    "one symbol is behind": (
        "ohlcv_1d",
        "freshness",
        "DELETE FROM ohlcv_1d WHERE symbol = 'AAA' AND time >= '2019-06-13'",
        False,
        ["1 symbol behind: AAA by 2 sessions (newest 2019-06-12, last session 2019-06-14 of XNYS)"],
    ),
    "one symbol is not there": (
        "features_1d",
        "freshness",
        "DELETE FROM features_1d WHERE symbol = 'YOUNG'",
        False,
        ["YOUNG by 68 sessions (newest none"],
    ),
    "a series is old": (
        "macro_indicators",
        "freshness",
        "DELETE FROM macro_indicators WHERE series_id = 'DFF' AND available_at >= '2019-06-07'",
        False,
        ["nothing newer than 7 days: DFF is of 2019-06-06"],
    ),
    "nothing is scored": (
        "sentiment_scores",
        "freshness",
        "DELETE FROM sentiment_scores WHERE available_at >= '2019-06-10'",
        False,
        ["scored until 2019-06-09", "news of 2019-06-14"],
    ),
    "actions were not collected": (
        "corporate_actions",
        "freshness",
        "DELETE FROM partition_ledger WHERE asset = 'corporate_actions' AND day >= '2019-06-12'",
        False,
        ["until 2019-06-11; the last session was 2019-06-14"],
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_and_named(filled, what):
    asset, check, statement, error, words = DAMAGE[what]
    filled.sql(statement)
    verdict = filled.ask(asset, check)
    assert not verdict.passed
    assert verdict.error == error
    for word in words:
        assert word in verdict.says
    assert len(verdict.says) < 700
    assert verdict.shown.height <= 20


def test_every_check_is_damaged_once():
    assert {check for _, check in ALL} == {check for _, check, *_ in DAMAGE.values()}


def test_what_lies_elsewhere_is_another_runs_business(filled):
    """A run of the 12th and later is not stopped by the 6th."""
    filled.sql(f"DELETE FROM ohlcv_1d WHERE symbol = 'BBB' AND {ON_THE_6TH}")
    filled.sql(f"UPDATE state_vectors_1d SET rsi = 1.5 WHERE {ON_THE_6TH}")
    days = (date(2019, 6, 12), END)
    assert filled.ask("ohlcv_1d", "row_count", days=days).passed
    assert filled.ask("ohlcv_1d", "conservation", days=days).passed
    assert filled.ask("state_vectors_1d", "in_range", days=days).passed


def test_many_faults_are_counted_and_a_few_are_shown(filled):
    filled.sql("UPDATE state_vectors_1d SET rsi = 2")
    verdict = filled.ask("state_vectors_1d", "in_range")
    assert verdict.numbers["wrong"] == 32
    assert verdict.shown.height == 20
    assert "32 vectors" in verdict.says
    assert "and 29 more" in verdict.says


def test_a_few_nulls_are_no_fault(filled):
    filled.sql(f"UPDATE indicators_1d SET rsi_14 = NULL WHERE symbol = 'AAA' AND {ON_THE_6TH}")
    assert filled.ask("indicators_1d", "nan_share").passed


def test_the_warm_up_of_a_young_instrument_is_no_fault(filled):
    """YOUNG has no SMA(200) anywhere: a quarter of the column is null."""
    rows = filled.store.read("indicators_1d", ["sma_200"], start=START, end=END)
    nulls = rows.filter(pl.col("sma_200").is_null())
    assert nulls.height == rows.height / 4
    assert nulls["symbol"].unique().to_list() == ["YOUNG"]
    assert filled.ask("indicators_1d", "nan_share").passed
    # Its moving averages of 20 bars are another matter.
    filled.sql("UPDATE indicators_1d SET sma_20 = NULL WHERE symbol = 'YOUNG'")
    assert "YOUNG" in filled.ask("indicators_1d", "nan_share").says


def test_warm_ups_add_up_along_the_graph():
    assert warm_up("ohlcv_1d", "close") == 0
    assert warm_up("indicators_1d", "sma_200") == 199
    assert warm_up("features_1d", "sma_ratio_50") == warm_up("indicators_1d", "sma_50") == 49
    assert warm_up("state_vectors_1d", "atr") == warm_up("indicators_1d", "atr_14") + 99
    assert warm_up("state_vectors_1d", "regime_trend") > 2 * 251
    assert warm_up("state_vectors_1d", "vix") == 0


def test_scales_are_those_that_the_fields_declare():
    said = {name: str(scale) for name, scale in bounds().items()}
    assert list(said) == [field.name for field in STATE_FIELDS]
    assert said["log_return"] == "[-1, 1]"
    assert said["rsi"] == "[0, 1]"
    assert said["regime_range"] == "{0, 1}"


# -- instruments that have no volume, and no documents ---------------------------------------------


def test_a_market_without_volume_owes_no_volume_ratio(filled):
    filled.sql("UPDATE features_1d SET volume_ratio_20d = NULL WHERE symbol = 'AAA'")
    assert not filled.ask("features_1d", "nan_share").passed
    yaml = _universe().replace(
        "- id: AAA\n    asset_class: equity", "- id: AAA\n    asset_class: fx"
    )
    filled.store.universe = Universe.parse(yaml)
    assert filled.ask("features_1d", "nan_share").passed


def test_where_nobody_collects_documents_no_sentiment_is_missed(filled):
    filled.sql("UPDATE features_1d SET news_sentiment_24h = NULL")
    assert "news_sentiment_24h" in filled.ask("features_1d", "nan_share").says
    filled.store.universe = Universe.parse(_universe().replace(", news: made, reddit: made", ""))
    assert filled.ask("features_1d", "nan_share").passed


def _universe() -> str:
    from feature_pipeline_tests.assets.world import INSTRUMENTS, _universe_yaml

    return _universe_yaml(INSTRUMENTS, "MKT")


# -- freshness ------------------------------------------------------------------------------------


def test_sessions_are_counted_by_the_calendar(filled):
    """Wednesday the 19th before the close: Monday and Tuesday are missing, the weekend is not."""
    filled.store.clock = lambda: datetime(2019, 6, 19, 12, tzinfo=UTC)
    verdict = filled.ask("state_vectors_1d", "freshness")
    assert verdict.numbers == {"behind": 4, "sessions": 2}
    # The delay after the close counts: the bar of the 19th is not due at 20:10.
    filled.store.clock = lambda: datetime(2019, 6, 19, 20, 10, tzinfo=UTC)
    assert filled.ask("state_vectors_1d", "freshness").numbers["sessions"] == 2
    filled.store.clock = lambda: datetime(2019, 6, 19, 20, 15, tzinfo=UTC)
    assert filled.ask("state_vectors_1d", "freshness").numbers["sessions"] == 3


def test_a_universe_that_has_ended_is_complete_to_its_end(filled):
    ended = _universe().replace("membership: [{from:", "membership: [{to: 2019-06-15, from:")
    filled.store.universe = Universe.parse(ended)
    filled.store.clock = lambda: datetime(2026, 1, 5, tzinfo=UTC)
    for asset in TABLES:
        verdict = filled.ask(asset, "freshness")
        assert verdict.passed, verdict.says
    says = filled.ask("ohlcv_1d", "freshness").says
    assert "no members today; 4 symbols complete to the end of membership, 2019-06-14" in says
    assert "no members today; the newest is of 2019-06-14" in filled.ask("news", "freshness").says
    filled.sql("DELETE FROM ohlcv_1d WHERE symbol = 'BBB' AND time >= '2019-06-14'")
    verdict = filled.ask("ohlcv_1d", "freshness")
    assert verdict.passed
    assert "BBB by 1 session" in verdict.says


def test_who_has_left_is_measured_to_his_end(filled):
    left = _universe().replace("membership: [{from:", "membership: [{to: 2019-06-12, from:", 1)
    filled.store.universe = Universe.parse(left)
    verdict = filled.ask("ohlcv_1d", "freshness")
    assert verdict.passed
    assert "1 symbol complete to the end of membership, 2019-06-11" in verdict.says
    filled.sql("DELETE FROM ohlcv_1d WHERE symbol = 'AAA' AND time >= '2019-06-11'")
    verdict = filled.ask("ohlcv_1d", "freshness")
    assert not verdict.passed
    assert "AAA by 1 session" in verdict.says


# -- a real audit ---------------------------------------------------------------------------------


def test_a_row_that_the_writer_loses_is_missed(new_graph, world, monkeypatch):
    honest = changes.replace_days

    def losing(batch, ledger):
        change = honest(batch, ledger)
        kept = change.insert.head(max(change.insert.height - 1, 0))
        return changes.Change(
            kept, change.entries, change.gone, change.wiped, change.fenced, change.known
        )

    monkeypatch.setattr(changes, "replace_days", losing)
    with new_graph(world) as graph:
        result = graph.run(assets=["ohlcv_1d", "corporate_actions", "indicators_1d"], check=False)
        assert not result.success
        said = evaluations(result)["indicators_1d", "conservation"]
        assert not said.passed
        assert "are accounted for" in said.description


def test_a_row_that_the_judge_loses_is_missed(new_graph, world, monkeypatch):
    """Rows that vanish before they are offered are missed as well: what counts is the answer."""
    from feature_pipeline.storage import validate

    honest = validate.check

    def losing(table, frame, **more):
        return honest(table, frame.tail(frame.height - 1) if frame.height else frame, **more)

    monkeypatch.setattr(validate, "check", losing)
    with new_graph(world) as graph:
        result = graph.run(assets=["macro_indicators"], check=False)
        said = evaluations(result)["macro_indicators", "conservation"]
        assert (said.passed, said.severity) == (False, dg.AssetCheckSeverity.ERROR)
        assert "75 rows" in said.description
        assert "74 are accounted for" in said.description


def test_a_server_that_drops_rows_is_noticed_before_the_commit(new_graph, world):
    with new_graph(world) as graph:
        with psycopg.connect(graph.url) as connection:
            connection.execute(
                "CREATE FUNCTION drop_one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " IF NEW.symbol = 'AAA' THEN RETURN NULL; END IF; RETURN NEW; END $$;"
                "CREATE TRIGGER drop_one BEFORE INSERT ON ohlcv_1d FOR EACH ROW"
                " EXECUTE FUNCTION drop_one()"
            )
        result = graph.run(assets=["ohlcv_1d"], check=False)
        step, why = failure(result)
        assert step == "ohlcv_1d"
        assert "the server took in" in why
        assert graph.query("SELECT count(*) AS n FROM ohlcv_1d")["n"][0] == 0


def test_what_happens_to_rows_is_written_down(new_graph, world):
    with new_graph(world) as graph:
        graph.run(assets=["ohlcv_1d"])
        bars = world.bars
        twice = bars.filter(pl.col("symbol") == "AAA", pl.col("time") == midnight(START))
        broken = bars.filter(pl.col("symbol") == "BBB", pl.col("time") == midnight(START))
        graph.source.world = world.but(
            bars=pl.concat(
                [
                    bars.join(broken, on=["symbol", "time"], how="anti"),
                    twice,
                    broken.with_columns(close=-1.0),
                ]
            )
        )
        result = graph.run(assets=["ohlcv_1d"])
        said = evaluations(result)["ohlcv_1d", "conservation"]
        assert said.passed, said.description
        numbers = {name: value.value for name, value in said.metadata.items()}
        assert numbers["duplicate"] == numbers["quarantined"] == 1
        assert numbers["unchanged"] == numbers["input"] - 2
        report = graph.query("SELECT * FROM write_reports ORDER BY id DESC LIMIT 1").row(
            0, named=True
        )
        assert report["run_id"] == result.run_id
        assert report["source"] == "made"
        assert report["input"] == numbers["input"]


# -- in Dagster -----------------------------------------------------------------------------------


def evaluations(result) -> dict[tuple[str, str], dg.AssetCheckEvaluation]:
    return {
        (e.asset_key.to_python_identifier(), e.check_name): e
        for e in result.get_asset_check_evaluations()
    }


def steps(result) -> set[str]:
    return {
        e.step_key for e in result.all_events if e.event_type == dg.DagsterEventType.STEP_SUCCESS
    }


def test_a_run_evaluates_every_check(ran):
    found = evaluations(ran.first)
    assert set(found) == set(ALL)
    for (asset, name), said in found.items():
        assert said.blocking == ((asset, name) in BLOCKING)
        if name == "freshness":  # the made world ends in 2019
            assert said.severity == dg.AssetCheckSeverity.WARN
        else:
            assert said.passed, f"{asset} {name}: {said.description}"
    assert steps(ran.first) == {*TABLES, *(f"{asset}_checks" for asset in TABLES)}


def test_a_blocking_check_holds_back_what_is_downstream(new_ran, world):
    """Bars that claim to be known at midnight are written, and nothing follows from them."""
    with new_ran() as graph:
        before = graph.tables(DERIVED)
        early = pl.col("time") == midnight(date(2019, 6, 12))
        graph.source.world = world.but(
            bars=world.bars.with_columns(
                available_at=pl.when(early).then("time").otherwise("available_at"),
                close=pl.when(early).then(pl.col("close") * 1.001).otherwise("close"),
                high=pl.when(early).then(pl.col("high") * 1.002).otherwise("high"),
            )
        )
        result = graph.run(check=False)
        assert not result.success
        said = evaluations(result)["ohlcv_1d", "no_future"]
        assert not said.passed
        assert "2019-06-12" in said.description
        done = steps(result)
        assert "ohlcv_1d" in done
        assert {"sentiment_scores", "macro_indicators_checks"} <= done
        assert not done & {"ohlcv_1d_checks", *DERIVED, *(f"{asset}_checks" for asset in DERIVED)}
        for asset, frame in graph.tables(DERIVED).items():
            assert frame.equals(before[asset]), asset
        # Once the provider says what is right, a plain run mends everything.
        graph.source.world = world
        assert graph.run().success


def test_a_warning_holds_back_nothing(new_graph, world):
    with new_graph(world) as graph:
        actions = world.actions.filter(pl.col("kind") != "split")
        graph.source.world = world.but(actions=actions)
        result = graph.run()
        assert result.success
        said = evaluations(result)["ohlcv_1d", "price_gaps"]
        assert (said.passed, said.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert str(SPLIT_DAY) in said.description
        assert str(SPLIT_DAY) in said.metadata["shown"].value


def test_the_checks_of_selected_assets_run_with_them(new_graph, world):
    with new_graph(world) as graph:
        assets = ["ohlcv_1d", "macro_indicators"]
        found = evaluations(graph.run(assets=assets))
        assert set(found) == {(asset, name) for asset, name in ALL if asset in assets}


def test_a_run_for_some_symbols_owes_theirs(new_graph, world):
    with new_graph(world) as graph:
        found = evaluations(graph.run(assets=["ohlcv_1d"], symbols=["AAA"]))
        said = found["ohlcv_1d", "row_count"]
        assert said.passed, said.description
        assert said.metadata["expected"].value == 8


def test_checks_run_alone_and_without_a_partition(new_graph, world):
    """As the UI's button does it: the newest thirty days of the data."""
    with new_graph(world) as graph:
        graph.run(assets=["ohlcv_1d"])
        defs = build_defs(Settings(), **graph.resources)
        key = dg.AssetCheckKey(dg.AssetKey("ohlcv_1d"), "row_count")
        job = defs.resolve_implicit_global_asset_job_def().get_subset(asset_check_selection={key})
        result = job.execute_in_process(instance=graph.instance)
        [said] = result.get_asset_check_evaluations()
        assert said.passed
        assert said.metadata["rows"].value == 4 * 21  # sessions from 16 May to 14 June


# -- the sample -----------------------------------------------------------------------------------


def test_the_sample_passes_without_noise(new_database):
    """Half a year of it, up to its end. Real prices jump: those days are flagged, and no other."""
    from feature_pipeline.demo import DAYS

    with new_database() as url:
        graph = Graph(url, Universe.load(), SampleSource())
        try:
            scorer = build_defs(Settings()).resources["scorer"]
            graph.overrides = {"scorer": scorer}
            result = graph.run(date(2012, 9, 1), DAYS[1])
        finally:
            graph.close()
    failed = {
        (asset, name): said.description
        for (asset, name), said in evaluations(result).items()
        if not said.passed
    }
    assert set(failed) <= {("ohlcv_1d", "price_gaps")}, failed
    assert "GOOG" in failed["ohlcv_1d", "price_gaps"] or "FB" in failed["ohlcv_1d", "price_gaps"]
    said = evaluations(result)["state_vectors_1d", "freshness"].description
    assert "no members today" in said
    assert "GSPC by" in said  # its recording goes on to 2018


def test_names_are_functions_that_people_can_find() -> None:
    def found(name: str) -> Callable[..., Verdict]:
        from feature_pipeline.assets import completeness, judgements, recency

        return next(
            getattr(m, name) for m in (completeness, judgements, recency) if hasattr(m, name)
        )

    for _, name in ALL:
        assert found(name).__doc__
