"""Accepting rejected rows: written through the contract, not rejected again, nothing lost."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_pipeline.errors import QuarantineError
from feature_pipeline.schemas import CORPORATE_ACTIONS, Fetched
from feature_pipeline.storage.quarantine import listed, release, shown
from feature_pipeline.storage.validate import CONTRADICTION
from feature_pipeline_tests.storage.support import (
    JANUARY,
    Desk,
    articles,
    bars,
    fetched,
    run_doubles,
    run_means,
)

DAY = date(2020, 1, 8)
AT = pl.col("time").dt.date() == DAY
WHO = pl.col("symbol") == "A"
NEGATIVE = "a price is not positive"
BECAUSE = "it did trade below zero"


def all_bars(**changes: float) -> pl.DataFrame:
    """January's bars of A and BB; those of A on DAY changed."""
    return bars(["A", "BB"]).with_columns(
        pl.when(AT & WHO).then(pl.lit(value)).otherwise(name).alias(name)
        for name, value in changes.items()
    )


def below_zero() -> pl.DataFrame:
    return all_bars(open=-1.0, high=1.0, low=-40.0, close=-37.63)


def write(desk: Desk, frame: pl.DataFrame):
    return desk.write("ohlcv_1d", fetched(frame, "A", "BB"), symbols=["A", "BB"])


def close_of(desk: Desk) -> list[float]:
    rows = desk.store.read("ohlcv_1d", symbols=["A"], start=DAY, end=DAY + timedelta(days=1))
    return rows["close"].to_list()


def only(desk: Desk) -> int:
    rows = listed(desk.store.database)
    assert rows.height == 1
    return rows["id"].item()


@pytest.fixture
def rejected(desk: Desk) -> Desk:
    """A desk where A's bar of DAY lies in quarantine."""
    assert write(desk, below_zero()).quarantined == 1
    return desk


# -- what a release does --------------------------------------------------------------------------


def test_a_released_row_is_written_and_everything_knows(rejected: Desk) -> None:
    desk = rejected
    run_means(desk)
    run_doubles(desk)
    assert close_of(desk) == []
    assert ("made", DAY, "A", "quarantined") in desk.exceptions("ohlcv_1d")
    before = {row[1]: row for row in desk.ledger("ohlcv_1d").iter_rows()}
    rest = desk.place("ohlcv_1d")

    (done,) = release(desk.store, [only(desk)], BECAUSE)
    assert (done.outcome, done.asset, done.symbol, done.day) == ("written", "ohlcv_1d", "A", DAY)
    assert close_of(desk) == [-37.63]
    assert desk.exceptions("ohlcv_1d") == []
    after = {row[1]: row for row in desk.ledger("ohlcv_1d").iter_rows()}
    assert {day for day in after if after[day] != before.get(day)} == {DAY}
    assert after[DAY][2] == before[DAY][2] + 1  # rows
    assert done.revision == after[DAY][3] > max(row[3] for row in before.values())
    # No other row was touched.
    assert desk.place("ohlcv_1d").join(rest, on=["ctid", "xmin", "row"], how="anti").height == 1
    versions = desk.query(
        "SELECT DISTINCT code_version FROM partition_ledger WHERE asset ~ 'ohlcv'"
    )
    assert versions.height == 1, "for whom the day was collected stays as it was"
    # The days that read it are stale, and no others: means looks two sessions back.
    stale = desk.store.pending("means", *JANUARY, "1").to_list()
    assert stale[0] == DAY
    assert date(2020, 1, 10) in stale
    assert date(2020, 1, 13) not in stale
    run_means(desk)
    means = desk.store.read("means", symbols=["A"], start=DAY, end=date(2020, 1, 11))
    assert means["sma_20"].null_count() == 0

    row = shown(desk.store.database, done.id)
    assert row.released_because == BECAUSE
    assert row.released_at is not None
    assert listed(desk.store.database).is_empty()
    assert listed(desk.store.database, released=True).height == 1


def test_the_same_content_again_is_not_rejected_and_not_lost(rejected: Desk) -> None:
    desk = rejected
    release(desk.store, [only(desk)], BECAUSE)
    place = desk.place("ohlcv_1d")
    report = write(desk, below_zero())
    assert (report.quarantined, report.unchanged, report.written) == (0, report.input, 0)
    # Seen at another moment it is the same content still.
    later = below_zero().with_columns(
        availability_basis=pl.lit("observed"),
        available_at=pl.col("available_at") + timedelta(minutes=3),
    )
    assert write(desk, later).quarantined == 0
    assert desk.place("ohlcv_1d").equals(place)
    assert desk.exceptions("ohlcv_1d") == []
    assert close_of(desk) == [-37.63]


def test_other_content_is_judged_anew(rejected: Desk) -> None:
    desk = rejected
    release(desk.store, [only(desk)], BECAUSE)
    for frame in (
        below_zero().with_columns(close=pl.when(AT & WHO).then(-36.0).otherwise("close")),
        # The same numbers of another day, and of another symbol.
        pl.concat([below_zero(), below_zero().filter(AT & WHO).with_columns(symbol=pl.lit("BB"))]),
        all_bars(open=-1.0, high=1.0, low=-40.0, close=-37.63, volume=-1.0),
    ):
        assert write(desk, frame).quarantined >= 1
        assert close_of(desk) == [-37.63], "what a person accepted stays"


def test_a_corrected_row_replaces_a_released_one(rejected: Desk) -> None:
    desk = rejected
    release(desk.store, [only(desk)], BECAUSE)
    right = bars(["A"]).filter(AT)["close"].item()
    write(desk, all_bars())
    assert close_of(desk) == [right]
    assert desk.query("SELECT close FROM ohlcv_1d_history")["close"].to_list() == [-37.63]


def test_a_release_replaces_what_was_held_before(desk: Desk) -> None:
    write(desk, all_bars())
    held = close_of(desk)
    write(desk, below_zero())
    assert close_of(desk) == held
    (done,) = release(desk.store, [only(desk)], BECAUSE)
    assert done.outcome == "written"
    assert close_of(desk) == [-37.63]
    assert desk.query("SELECT close FROM ohlcv_1d_history")["close"].to_list() == held


def test_releasing_twice_is_harmless(rejected: Desk) -> None:
    desk, number = rejected, only(rejected)
    first = release(desk.store, [number, number], BECAUSE)
    place = desk.place("ohlcv_1d")
    again = release(desk.store, [number], "another reason")
    assert [one.outcome for one in (*first, *again)] == ["written", "released before"]
    assert desk.place("ohlcv_1d").equals(place)
    assert shown(desk.store.database, number).released_because == BECAUSE


def test_of_rows_that_contradict_each_other_a_person_chooses(desk: Desk) -> None:
    two = pl.concat([all_bars(), all_bars(volume=1.0).filter(AT & WHO)])
    assert write(desk, two).quarantined == 2
    rows = [shown(desk.store.database, n) for n in listed(desk.store.database)["id"]]
    assert {row.reason for row in rows} == {CONTRADICTION}
    chosen = next(row for row in rows if row.payload["volume"] == 1.0)
    other = next(row for row in rows if row.payload["volume"] != 1.0)

    def volume() -> list[float]:
        rows = desk.store.read(
            "ohlcv_1d", ["volume"], symbols=["A"], start=DAY, end=date(2020, 1, 9)
        )
        return rows["volume"].to_list()

    release(desk.store, [chosen.id], BECAUSE)
    assert volume() == [1.0]
    report = write(desk, two)
    assert (report.quarantined, report.written) == (1, 0)
    assert volume() == [1.0]
    assert desk.exceptions("ohlcv_1d") == []
    # It was the wrong one: the row that was chosen instead cannot be gone back to by itself.
    with pytest.raises(QuarantineError, match="another row was written in its place since"):
        release(desk.store, [other.id], BECAUSE)
    assert volume() == [1.0]


def test_documents_and_actions_are_released_too(desk: Desk) -> None:
    published = datetime(2020, 1, 8, 15, tzinfo=UTC)
    early = articles(("d1", published, "title"), ("d2", published, "title")).with_columns(
        available_at=pl.when(pl.col("document_id") == "d1")
        .then(pl.col("available_at") - timedelta(hours=1))
        .otherwise("available_at")
    )
    desk.write("news", fetched(early, "A"))
    late = pl.DataFrame(
        {
            "symbol": ["A"],
            "time": [datetime(2020, 1, 2, tzinfo=UTC)],
            "available_at": [datetime(2020, 1, 8, 20, tzinfo=UTC)],
            "availability_basis": ["observed"],
            "kind": ["split"],
            "value": [2.0],
            "source": ["made"],
        }
    )
    actions = CORPORATE_ACTIONS.conform(late)
    desk.write("corporate_actions", {"made": Fetched(actions, {}, ("A",))})
    versions = "SELECT code_version FROM partition_ledger WHERE asset = 'news'"
    groups = desk.query(versions)
    for done in release(desk.store, listed(desk.store.database)["id"].to_list(), BECAUSE):
        assert done.outcome == "written"
    assert desk.store.read("news")["document_id"].sort().to_list() == ["d1", "d2"]
    assert desk.store.read("corporate_actions")["value"].to_list() == [2.0]
    assert desk.query("SELECT code_version FROM partition_ledger WHERE asset = 'news'").equals(
        groups
    )
    report = desk.write("news", fetched(early, "A"))
    assert (report.quarantined, report.unchanged) == (0, 2)


# -- what it refuses ------------------------------------------------------------------------------


def refused(desk: Desk, *words: str, numbers: list[int] | None = None) -> None:
    tables = ("ohlcv_1d", "documents", "quarantine", "partition_ledger", "partition_exceptions")
    before = {table: desk.place(table) for table in tables}
    with pytest.raises(QuarantineError) as raised:
        release(desk.store, numbers or [only(desk)], BECAUSE)
    line = str(raised.value)
    assert "\n" not in line
    assert all(word in line for word in words), line
    assert all(desk.place(table).equals(place) for table, place in before.items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"close": math.nan}, ["cannot be written", "close is missing"]),
        ({"volume": math.inf}, ["cannot be written", "volume is missing"]),
        ({"high": 0.5, "low": 5.0}, ["cannot be accepted, also", "open or close lies outside"]),
    ],
)
def test_what_cannot_be_right_is_refused(desk: Desk, changes, words) -> None:
    write(desk, all_bars(**changes))
    refused(desk, *words)


def test_facts_cannot_be_overruled(desk: Desk) -> None:
    odd = all_bars().filter(AT & WHO)
    published = datetime(2020, 1, 8, 15, tzinfo=UTC)
    write(desk, pl.concat([all_bars(), odd.with_columns(symbol=pl.lit("ZZZ"))]))
    refused(desk, "unknown symbol")
    desk.write("news", fetched(articles(("d1", published, "a\0b")), "A"))
    refused(desk, "NUL", numbers=[listed(desk.store.database, asset="news")["id"].item()])
    desk.write("news", fetched(articles(("d2", published, "t"), symbols=[]), "A"))
    newest = listed(desk.store.database, asset="news")["id"][0]
    refused(desk, "symbols is missing", numbers=[newest])


def test_a_day_that_nobody_collected_is_refused(desk: Desk) -> None:
    """The row lies outside of the days asked for."""
    write(desk, pl.concat([all_bars(), bars(["A"], (date(2020, 2, 3), date(2020, 2, 4)))]))
    refused(desk, "nobody has collected ohlcv_1d of 2020-02-03", "materialise")


def test_what_was_written_since_is_not_replaced(rejected: Desk) -> None:
    write(rejected, all_bars())
    refused(rejected, "another row was written in its place since")


def test_computed_rows_are_refused(desk: Desk) -> None:
    write(desk, all_bars())
    with desk.planned("means", (DAY, DAY + timedelta(days=1))) as plan:
        basis = pl.lit("?").alias("availability_basis")
        rows = all_bars().filter(AT & WHO)
        frame = rows.select("symbol", "time", "available_at", basis, sma_20="close")
        desk.store.write(plan, frame)
    refused(desk, "was computed")


def test_an_unknown_number_and_no_reason(rejected: Desk) -> None:
    refused(rejected, "there is no row 4711 in quarantine", numbers=[only(rejected), 4711])
    with pytest.raises(QuarantineError, match="say why"):
        release(rejected.store, [only(rejected)], "  ")
    assert close_of(rejected) == []


def test_a_run_that_writes_meanwhile_wins(rejected: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, number = rejected, only(rejected)
    original = type(desk.store.writer).write

    def slow(self, table, writing, batch):
        monkeypatch.undo()
        write(desk, all_bars())
        return original(self, table, writing, batch)

    monkeypatch.setattr(type(desk.store.writer), "write", slow)
    with pytest.raises(QuarantineError, match="a run has written ohlcv_1d of 2020-01-08 meanwhile"):
        release(desk.store, [number], BECAUSE)
    assert close_of(desk) == [bars(["A"]).filter(AT)["close"].item()]
    assert shown(desk.store.database, number).released_at is None


def test_a_release_that_dies_leaves_all_as_it_was(rejected: Desk) -> None:
    class DiedError(Exception):
        pass

    def die(step: str) -> None:
        if step == "ledger":
            raise DiedError

    desk, number = rejected, only(rejected)
    desk.store.writer.trace = die
    before = desk.place("quarantine")
    with pytest.raises(DiedError):
        release(desk.store, [number], BECAUSE)
    assert close_of(desk) == []
    assert desk.place("quarantine").equals(before)
    desk.store.writer.trace = lambda _: None
    assert release(desk.store, [number], BECAUSE)[0].outcome == "written"


# -- looking --------------------------------------------------------------------------------------


def test_the_list_is_filtered(rejected: Desk) -> None:
    desk = rejected
    published = datetime(2020, 1, 8, 15, tzinfo=UTC)
    desk.write("news", fetched(articles(("d1", published, "a\0b")), "A"))
    database = desk.store.database
    assert listed(database)["asset"].to_list() == ["news", "ohlcv_1d"]
    assert listed(database, asset="ohlcv_1d")["reason"].to_list() == [NEGATIVE]
    assert listed(database, symbol="A")["asset"].to_list() == ["ohlcv_1d"]
    assert listed(database, symbol="BB").is_empty()
    today = datetime.now(UTC).date()
    assert listed(database, since=today - timedelta(days=1)).height == 2
    assert listed(database, since=today + timedelta(days=1)).is_empty()


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(low=st.floats(-1e12, -1e-9), close=st.floats(-1e12, 1e12), volume=st.floats(0, 1e15))
def test_any_numbers_are_found_again(rejected: Desk, low, close, volume) -> None:
    """Numbers go through JSON and jsonb and come back as the very same."""
    desk = rejected
    low, high = min(low, close), max(close, 0.5)
    frame = all_bars(open=low, high=high, low=low, close=close, volume=volume)
    assert write(desk, frame).quarantined == 1
    release(desk.store, listed(desk.store.database, symbol="A")["id"].to_list()[:1], BECAUSE)
    assert close_of(desk) == [close]
    report = write(desk, frame)
    assert (report.quarantined, report.unchanged) == (0, report.input)
