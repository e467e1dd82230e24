"""What providers get wrong, through the graph: each row is written, or kept with its reason."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from feature_pipeline.schemas import Fetched
from feature_pipeline_tests.assets.support import metadata_of
from feature_pipeline_tests.assets.world import END, START, MadeSource, midnight

DAYS = [date(2019, 6, day) for day in (5, 6, 7, 10, 11, 12, 13, 14)]
PARTS = ("written", "unchanged", "duplicate", "unfinished", "quarantined", "fenced")

# Symbol, session, what the provider says instead, and why it is not believed.
WRONG = [
    ("AAA", 0, {"close": 0.0}, "a price is not positive"),
    ("AAA", 1, {"open": -5.0}, "a price is not positive"),
    ("AAA", 2, {"high": 1.0, "low": 2.0, "open": 1.5, "close": 1.5}, "high is below low"),
    ("AAA", 3, {"close": 1e9}, "open or close lies outside [low, high]"),
    ("AAA", 4, {"open": 1e-9}, "open or close lies outside [low, high]"),
    ("AAA", 5, {"volume": -1.0}, "volume is negative"),
    ("BBB", 0, {"high": math.inf}, "a price is missing or not finite"),
    ("BBB", 1, {"low": None}, "a price is missing or not finite"),
    ("BBB", 2, {"volume": math.nan}, "volume is missing or not finite"),
    ("BBB", 3, {"time": datetime(2100, 1, 4, tzinfo=UTC)}, "it lies in the future"),
    ("BBB", 4, {"time": midnight(END)}, "it lies outside the days asked for"),
    ("BBB", 5, {"symbol": "ZZZ"}, "unknown symbol"),
    ("BBB", 6, {"symbol": "'; DROP TABLE ohlcv_1d; --"}, "unknown symbol"),
    ("BBB", 7, {"symbol": "B\0"}, "symbol holds a NUL character"),
]
CONTRADICTION = "rows with the same key contradict each other"


class Sloppy(MadeSource):
    """A provider that says all that at once, says a bar twice, and contradicts itself."""

    def bars(self, instruments, start, end, timeframe="1d") -> Fetched:
        answer = super().bars(instruments, start, end)
        frame = answer.frame
        at = {day: pl.col("time") == midnight(day) for day in DAYS}
        for symbol, number, values, _ in WRONG:
            hit = (pl.col("symbol") == symbol) & at[DAYS[number]]
            frame = frame.with_columns(
                pl.when(hit).then(pl.lit(v, dtype=frame.schema[n])).otherwise(n).alias(n)
                for n, v in values.items()
            )
        told_twice = frame.filter(pl.col("symbol") == "MKT", at[DAYS[0]])
        otherwise = frame.filter(pl.col("symbol") == "MKT", at[DAYS[1]])
        early = frame.filter(pl.col("symbol") == "MKT", at[DAYS[2]]).with_columns(
            available_at=pl.lit(datetime.now(UTC) + timedelta(days=1)).cast(
                pl.Datetime("us", "UTC")
            )
        )
        frame = frame.filter(~((pl.col("symbol") == "MKT") & at[DAYS[2]]))
        frame = pl.concat(
            [frame, told_twice, otherwise.with_columns(volume=pl.col("volume") + 1), early]
        )
        return Fetched(frame, answer.failed, answer.asked)


@pytest.fixture(scope="module")
def sloppy(new_graph, world):
    with new_graph(world) as graph:
        graph.source = Sloppy(world)
        graph.result = graph.run(assets=["ohlcv_1d"])
        yield graph


def test_what_is_wrong_is_kept_with_reason_source_run_and_what_was_said(sloppy, world):
    held = sloppy.query(
        "SELECT asset, source, run_id, symbol, day, reason, payload::text AS payload"
        " FROM quarantine ORDER BY id"
    )
    expected = sorted([reason for *_, reason in WRONG] + [CONTRADICTION] * 2)
    assert sorted(held["reason"]) == expected
    assert held.select("asset", "source", "run_id").unique().rows() == [
        ("ohlcv_1d", "made", sloppy.result.run_id)
    ]
    truth = {(row["symbol"], row["time"]): row for row in world.bars.iter_rows(named=True)}
    said = [(row["reason"], json.loads(row["payload"])) for row in held.iter_rows(named=True)]
    for symbol, number, values, reason in WRONG:
        whole = truth[symbol, midnight(DAYS[number])] | values
        matching = [
            payload
            for why, payload in said
            if why == reason
            and all(
                _same(payload[name], whole[name])
                for name in ("symbol", "open", "high", "low", "close", "volume", "source")
            )
        ]
        assert len(matching) == 1, (symbol, number)


def _same(kept: object, was: object) -> bool:
    """JSON has neither NaN nor infinity, jsonb no NUL."""
    if isinstance(was, float) and not math.isfinite(was):
        return kept is None
    if isinstance(was, str):
        return kept == was.replace("\0", "\ufffd")
    return kept == was


def test_what_is_right_is_written_and_nothing_else(sloppy, world):
    rows = sloppy.table("ohlcv_1d", None, None).filter(
        pl.col("time") >= midnight(START), pl.col("time") < midnight(END)
    )
    wrong = {(symbol, midnight(DAYS[number])) for symbol, number, *_ in WRONG}
    wrong |= {("MKT", midnight(DAYS[n])) for n in (1, 2)}
    expected = world.bars.filter(
        pl.col("time") >= midnight(START), pl.col("time") < midnight(END)
    ).sort("symbol", "time")
    kept = [tuple(key) not in wrong for key in expected.select("symbol", "time").iter_rows()]
    assert rows["close"].to_list() == expected.filter(pl.Series(kept))["close"].to_list()
    assert sloppy.query("SELECT symbol FROM ohlcv_1d WHERE symbol IN ('ZZZ', 'B')").is_empty()


def test_every_row_is_accounted_for(sloppy):
    said = metadata_of(sloppy.result, "ohlcv_1d")
    counts = {part: said[f"rows_{part}"].value for part in PARTS}
    assert said["rows_input"].value == sum(counts.values())
    assert counts["quarantined"] == len(WRONG) + 2
    assert (counts["duplicate"], counts["unfinished"]) == (1, 1)


def test_whose_bar_was_rejected_is_named(sloppy):
    named = sloppy.query("SELECT symbol, day, status FROM partition_exceptions")
    rejected = named.filter(pl.col("status") == "quarantined").select("symbol", "day").rows()
    assert set(rejected) == {
        *(("AAA", DAYS[n]) for n in range(6)),
        *(("BBB", DAYS[n]) for n in range(3)),
        ("MKT", DAYS[1]),
    }


def test_the_same_again_changes_nothing(sloppy):
    before = sloppy.query("SELECT id, reason FROM quarantine ORDER BY id")
    rows = sloppy.table("ohlcv_1d")
    again = sloppy.run(assets=["ohlcv_1d"])
    said = metadata_of(again, "ohlcv_1d")
    assert said["rows_written"].value == 0
    assert said["rows_input"].value == sum(said[f"rows_{part}"].value for part in PARTS)
    assert sloppy.query("SELECT id, reason FROM quarantine ORDER BY id").equals(before)
    assert sloppy.table("ohlcv_1d").equals(rows)


def test_a_gap_is_written_and_flagged(new_graph, world):
    """A price that jumps by a fifth may be right: it is accepted, and a check says so."""
    jump = (pl.col("symbol") == "AAA") & (pl.col("time") == midnight(DAYS[2]))
    prices = ("open", "high", "low", "close")
    bars = world.bars.with_columns(
        pl.when(jump).then(pl.col(p) * 1.2).otherwise(p).alias(p) for p in prices
    )
    with new_graph(world.but(bars=bars)) as graph:
        result = graph.run(assets=["ohlcv_1d"])
        assert graph.query("SELECT * FROM quarantine").is_empty()
        assert graph.table("ohlcv_1d").filter(jump).height == 1
        (check,) = [e for e in result.get_asset_check_evaluations() if e.check_name == "price_gaps"]
        assert result.success
        assert not check.passed
        assert "AAA" in check.metadata["shown"].value
