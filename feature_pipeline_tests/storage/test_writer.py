"""The write contract, row by row: what is written, what is left alone, and who wins."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_pipeline.schemas import CORPORATE_ACTIONS, Fetched
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.store import Store
from feature_pipeline.storage.writer import STEPS, Writer
from feature_pipeline_tests.storage.support import (
    JANUARY,
    NOW,
    TOY,
    Clock,
    Desk,
    articles,
    assert_conserved,
    audit,
    bars,
    fetched,
    nothing,
    run_doubles,
    run_means,
    universe,
)

FEBRUARY = (date(2020, 2, 1), date(2020, 3, 1))
TWO_MONTHS = (JANUARY[0], FEBRUARY[1])
THREE_DAYS = (date(2020, 1, 6), date(2020, 1, 9))


def edited(frame: pl.DataFrame, symbol: str, day: date) -> pl.DataFrame:
    hit = (pl.col("symbol") == symbol) & (pl.col("time").dt.date() == day)
    return frame.with_columns(close=pl.col("close") + pl.when(hit).then(0.25).otherwise(0))


# -- writing again --------------------------------------------------------------------------------


def test_the_same_again_touches_no_row_and_renews_the_token(desk: Desk) -> None:
    answer = fetched(bars(["A", "BB", "CCC"], TWO_MONTHS), "A", "BB", "CCC")
    first = desk.write("ohlcv_1d", answer, TWO_MONTHS)
    placed, ledger = desk.place("ohlcv_1d"), desk.ledger("ohlcv_1d")
    again = desk.write("ohlcv_1d", answer, TWO_MONTHS)
    assert first.written == again.unchanged == bars(["A", "BB", "CCC"], TWO_MONTHS).height
    assert again.written == 0
    assert desk.place("ohlcv_1d").equals(placed)
    renewed = desk.ledger("ohlcv_1d")
    assert renewed["revision"].equals(ledger["revision"])
    assert (renewed["token"] > ledger["token"]).all()
    assert set(renewed["run_id"]) == {"run 2"}
    assert desk.one("SELECT count(*) FROM ohlcv_1d_history") == 0


def test_old_reports_are_removed_and_young_ones_stay(desk: Desk) -> None:
    answer = fetched(bars(["A"]), "A")
    for _ in range(3):
        desk.write("ohlcv_1d", answer)
    age = "UPDATE write_reports SET at = now() - interval '{}' WHERE run_id = '{}' RETURNING id"
    old, young = desk.query(age.format("91 days", "run 1")), desk.query(age.format("89 d", "run 2"))
    assert old.height
    assert young.height
    desk.write("ohlcv_1d", answer)
    held = desk.query("SELECT DISTINCT run_id FROM write_reports ORDER BY run_id")
    assert held["run_id"].to_list() == ["run 2", "run 3", "run 4"]


def test_row_order_and_provenance_are_no_content(desk: Desk) -> None:
    frame = bars(["A", "BB"])
    desk.write("ohlcv_1d", fetched(frame, "A", "BB"))
    placed = desk.place("ohlcv_1d")
    other = frame.sample(fraction=1, shuffle=True, seed=1).with_columns(
        available_at=pl.col("available_at") + timedelta(hours=1),
        availability_basis=pl.lit("observed"),
    )
    assert desk.write("ohlcv_1d", fetched(other, "A", "BB")).unchanged == frame.height
    assert desk.place("ohlcv_1d").equals(placed)


def test_a_correction_touches_its_row_alone(desk: Desk) -> None:
    frame = bars(["A", "BB", "CCC"])
    desk.write("ohlcv_1d", fetched(frame, "A", "BB", "CCC"))
    placed, ledger = desk.place("ohlcv_1d"), desk.ledger("ohlcv_1d")
    day = date(2020, 1, 15)
    restated = edited(frame, "BB", day)
    report = desk.write("ohlcv_1d", fetched(restated, "A", "BB", "CCC"))
    assert (report.written, report.unchanged) == (1, frame.height - 1)
    left = desk.place("ohlcv_1d").join(placed, on=["ctid", "xmin", "row"], how="anti")
    assert left.height == 1
    newer = desk.ledger("ohlcv_1d").filter(pl.col("revision") > ledger["revision"].max())
    assert newer["day"].to_list() == [day]


@pytest.mark.parametrize("day", [date(2020, 1, 4), date(2020, 1, 20)], ids=["weekend", "holiday"])
def test_a_day_without_session_is_zero_rows_and_no_exception(desk: Desk, day: date) -> None:
    window = (day, day + timedelta(days=1))
    with desk.planned("ohlcv_1d", window) as plan:
        desk.store.write(plan, nothing("A", "BB", "CCC"))
    ledger = desk.ledger("ohlcv_1d").filter(pl.col("day") == day)
    assert ledger["rows"].to_list() == [0]
    assert day not in {row[1] for row in desk.exceptions("ohlcv_1d")}


# -- what did not come ----------------------------------------------------------------------------


def test_a_failed_symbol_keeps_its_rows_and_is_named(desk: Desk) -> None:
    asked = {"symbols": ["A", "BB"]}
    desk.write("ohlcv_1d", fetched(bars(["A", "BB"]), "A", "BB"), **asked)
    before = desk.store.read("ohlcv_1d", symbols=["BB"])
    answer = {"made": Fetched(bars(["A"], THREE_DAYS, add=1), {"BB": "no route"}, ("A", "BB"))}
    report = desk.write("ohlcv_1d", answer, THREE_DAYS, **asked)
    assert report.written == 3
    assert desk.store.read("ohlcv_1d", symbols=["BB"]).equals(before)
    named = [row for row in desk.exceptions("ohlcv_1d") if row[2] == "BB" and row[3] == "failed"]
    assert [row[1] for row in named] == [date(2020, 1, d) for d in (6, 7, 8)]
    # It comes back: nothing is left of the exception.
    back = fetched(bars(["A", "BB"], THREE_DAYS), "A", "BB")
    desk.write("ohlcv_1d", back, THREE_DAYS, **asked)
    assert desk.exceptions("ohlcv_1d") == []


def test_silence_on_a_session_is_no_answer_and_deletes_nothing(desk: Desk) -> None:
    frame = bars(["A", "BB"])
    desk.write("ohlcv_1d", fetched(frame, "A", "BB"))
    report = desk.write("ohlcv_1d", fetched(bars(["A"]), "A", "BB"))
    assert report.unchanged == 21
    assert desk.store.read("ohlcv_1d").height == frame.height
    found = {(row[2], row[3]) for row in desk.exceptions("ohlcv_1d") if row[1] >= JANUARY[0]}
    assert found == {("BB", "no_answer")}
    desk.write("ohlcv_1d", nothing("A", "BB"))
    assert desk.store.read("ohlcv_1d").height == frame.height


def test_what_is_not_finished_is_not_missing(desk: Desk) -> None:
    day = date(2020, 5, 29)
    desk.clock.now = datetime(2020, 5, 29, 20, 5, tzinfo=UTC)  # five minutes after the close
    window = (day, day + timedelta(days=1))
    report = desk.write("ohlcv_1d", fetched(bars(["A"], window), "A"), window, symbols=["A"])
    assert (report.unfinished, report.written) == (1, 0)
    assert day not in {row[1] for row in desk.exceptions("ohlcv_1d")}


def test_a_row_without_session_goes_when_the_source_takes_it_back(desk: Desk) -> None:
    frame = bars(["A"], THREE_DAYS)
    saturday = frame.head(1).with_columns(pl.col("time", "available_at") - timedelta(days=2))
    window = (date(2020, 1, 4), THREE_DAYS[1])
    desk.write("ohlcv_1d", fetched(pl.concat([frame, saturday]), "A"), window, symbols=["A"])
    assert desk.one("SELECT count(*) FROM ohlcv_1d") == 4
    desk.write("ohlcv_1d", fetched(frame, "A"), window, symbols=["A"])
    assert desk.one("SELECT count(*) FROM ohlcv_1d") == 3
    assert desk.one("SELECT count(*) FROM ohlcv_1d_history") == 1


def test_rows_of_another_source_stay(desk: Desk) -> None:
    both = {
        **fetched(bars(["A"]), "A"),
        **fetched(bars(["BB"], source="other"), "BB"),
    }
    desk.write("ohlcv_1d", both)
    held = desk.store.read("ohlcv_1d", symbols=["BB"])
    desk.write("ohlcv_1d", fetched(bars(["A"], add=2), "A"), symbols=["A"])
    assert desk.store.read("ohlcv_1d", symbols=["BB"]).equals(held)


def test_who_was_not_asked_for_is_left_alone(desk: Desk) -> None:
    desk.write("ohlcv_1d", fetched(bars(["A", "BB"]), "A", "BB"))
    held = desk.store.read("ohlcv_1d", symbols=["BB"])
    report = desk.write("ohlcv_1d", fetched(bars(["A"], add=2), "A"), symbols=["A"])
    assert report.written == 21
    assert desk.store.read("ohlcv_1d", symbols=["BB"]).equals(held)


def test_a_symbol_that_changes_its_provider_is_taken_over(desk: Desk) -> None:
    silent = fetched(bars(["A"]), "A", "BB")
    desk.write("ohlcv_1d", fetched(bars(["A", "BB"]), "A", "BB"))
    desk.write("ohlcv_1d", silent)
    moved = {
        **fetched(bars(["A"]), "A"),
        **fetched(bars(["BB"], source="other"), "BB"),
    }
    report = desk.write("ohlcv_1d", moved)
    assert (report.written, report.unchanged) == (21, 21)
    assert desk.exceptions("ohlcv_1d") == []
    assert set(desk.store.read("ohlcv_1d", symbols=["BB"])["source"]) == {"other"}
    rows = {
        (source, day): rows
        for source, day, rows in desk.ledger("ohlcv_1d")["source", "day", "rows"].iter_rows()
    }
    assert rows["made", date(2020, 1, 6)] == rows["other", date(2020, 1, 6)] == 1
    placed = desk.place("ohlcv_1d")
    assert desk.write("ohlcv_1d", moved).written == 0
    assert desk.place("ohlcv_1d").equals(placed)


# -- tables that accumulate -----------------------------------------------------------------------

NEWS_DAY = datetime(2020, 1, 7, 10, tzinfo=UTC)


def news(*entries: tuple[str, datetime, str], seen: datetime | None = None) -> dict[str, Fetched]:
    return fetched(articles(*entries, seen=seen), "A", "BB", "CCC")


def test_what_accumulates_is_never_deleted_and_never_doubled(desk: Desk) -> None:
    feed = news(("x", NEWS_DAY, "one"), ("y", NEWS_DAY + timedelta(days=30), "two"))
    window = (JANUARY[0], FEBRUARY[1])
    assert desk.write("news", feed, window).written == 2
    placed, ledger = desk.place("documents"), desk.ledger("news")
    assert desk.write("news", feed, window).unchanged == 2
    empty = {"made": Fetched(TOY["news"].empty(), {}, ("A", "BB", "CCC"))}
    assert desk.write("news", empty, window).input == 0
    assert desk.place("documents").equals(placed)
    assert desk.ledger("news")["revision"].equals(ledger["revision"])
    more = news(("z", NEWS_DAY, "three"))
    assert desk.write("news", more, window).written == 1
    assert desk.one("SELECT count(*) FROM documents") == 3


def test_a_document_seen_again_later_changes_nothing(desk: Desk) -> None:
    desk.write("news", news(("x", NEWS_DAY, "one")))
    placed, revision = desk.place("documents"), desk.ledger("news")["revision"].max()
    # Another day, one that holds nothing, one with rows: the document stays where it was.
    for days in (1, 2):
        again = news(("x", NEWS_DAY, "one"), seen=NEWS_DAY + timedelta(days=days))
        assert desk.write("news", again).unchanged == 1
    assert desk.place("documents").equals(placed)
    assert desk.ledger("news")["revision"].max() == revision


def test_an_edited_document_leaves_its_old_text_in_history(desk: Desk) -> None:
    desk.write("news", news(("x", NEWS_DAY, "one"), ("y", NEWS_DAY, "same")))
    later = NEWS_DAY + timedelta(days=40)
    window = (date(2020, 1, 1), date(2020, 3, 1))
    edit = news(("x", NEWS_DAY, "corrected"), seen=later)
    assert desk.write("news", edit, window).written == 1
    assert desk.write("news", edit, window).unchanged == 1
    held = desk.query("SELECT document_id, title FROM documents ORDER BY 1").rows()
    assert held == [("x", "corrected"), ("y", "same")]
    history = desk.query("SELECT document_id, title, superseded_at FROM documents_history")
    assert history.select("document_id", "title").rows() == [("x", "one")]
    recorded = desk.query("SELECT recorded_at FROM documents WHERE document_id = 'x'")
    assert recorded.item() == history["superseded_at"].item()


def test_a_document_that_leaves_a_day_does_not_say_for_whom_that_was_collected(desk: Desk) -> None:
    desk.write("news", news(("x", NEWS_DAY, "one")))
    said = "SELECT code_version, updated_at FROM partition_ledger WHERE day = '2020-01-07'"
    before = desk.query(said)
    later = NEWS_DAY + timedelta(days=3)
    window = (later.date(), later.date() + timedelta(days=1))
    edit = news(("x", NEWS_DAY, "corrected"), seen=later)
    assert desk.write("news", edit, window, code_version="2").written == 1
    assert desk.query(said).equals(before)
    assert desk.one("SELECT rows FROM partition_ledger WHERE day = '2020-01-07'") == 0


def test_two_versions_in_one_answer_are_the_newest_and_the_same_ever_after(desk: Desk) -> None:
    versions = pl.concat(
        [
            articles(("x", NEWS_DAY, "old"), seen=NEWS_DAY),
            articles(("x", NEWS_DAY, "new"), seen=NEWS_DAY + timedelta(days=3)),
            articles(("x", NEWS_DAY, "new"), seen=NEWS_DAY + timedelta(days=5)),
        ]
    )
    report = desk.write("news", fetched(versions, "A"))
    assert (report.written, report.quarantined, report.duplicate) == (1, 1, 1)
    assert desk.one("SELECT title FROM documents") == "new"
    placed = desk.place("documents")
    desk.write("news", fetched(versions, "A"))
    assert desk.place("documents").equals(placed)


def test_a_document_of_the_other_channel_stays_there(desk: Desk) -> None:
    desk.write("news", news(("x", NEWS_DAY, "one")))
    report = desk.write("reddit", news(("x", NEWS_DAY, "another"), ("y", NEWS_DAY, "two")))
    assert (report.written, report.unchanged) == (1, 1)
    assert desk.query("SELECT document_id, channel FROM documents ORDER BY 1").rows() == [
        ("x", "news"),
        ("y", "reddit"),
    ]


def actions(source: str = "made", value: float = 2.0) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "symbol": ["A"],
            "time": [datetime(2020, 1, 7, tzinfo=UTC)],
            "available_at": [datetime(2020, 1, 7, 14, 30, tzinfo=UTC)],
            "availability_basis": ["assumed"],
            "kind": ["split"],
            "value": [value],
            "source": [source],
        },
        schema={c.name: c.dtype for c in CORPORATE_ACTIONS.columns},
    )


def test_an_action_is_corrected_and_taken_over(desk: Desk) -> None:
    desk.write("corporate_actions", fetched(actions(), "A"))
    assert desk.write("corporate_actions", fetched(actions(value=3.0), "A")).written == 1
    assert desk.write("corporate_actions", fetched(actions("other", 3.0), "A")).written == 1
    assert desk.query("SELECT source, value FROM corporate_actions").rows() == [("other", 3.0)]
    assert desk.one("SELECT count(*) FROM corporate_actions_history") == 2


def test_who_could_not_be_collected_is_part_of_what_a_day_says(desk: Desk) -> None:
    window = (NEWS_DAY.date(), NEWS_DAY.date() + timedelta(days=1))

    def revision() -> int:
        return desk.ledger("news").filter(pl.col("day") == window[0])["revision"].item()

    failing = {"made": Fetched(TOY["news"].empty(), {"BB": "refused"}, ("A", "BB"))}
    fine = {"made": Fetched(TOY["news"].empty(), {}, ("A", "BB"))}
    desk.write("news", failing, window)
    first = revision()
    desk.write("news", failing, window)
    assert revision() == first
    desk.write("news", fine, window)
    mended = revision()
    assert mended > first
    desk.write("news", fine, window)
    assert revision() == mended
    desk.write("news", failing, window)
    assert revision() > mended


# -- who wins -------------------------------------------------------------------------------------


@pytest.mark.parametrize("asset", ["ohlcv_1d", "means"])
def test_an_older_writer_loses_its_days(desk: Desk, asset: str) -> None:
    desk.write("ohlcv_1d", fetched(bars(["A"], TWO_MONTHS), "A"), TWO_MONTHS)
    with desk.planned(asset, TWO_MONTHS) as older:
        if asset == "means":
            stale = desk.store.load(older, older.table.inputs[0])
            desk.write("ohlcv_1d", fetched(bars(["A"], add=9), "A"))
            run_means(desk)
            placed = desk.place("indicators_1d")
            frame = stale.filter(pl.col("available_at").is_not_null()).drop("close")
            report = desk.store.write(older, frame.with_columns(sma_20=pl.lit(1.0)))
        else:
            desk.write("ohlcv_1d", fetched(bars(["A"], add=9), "A"))
            placed = desk.place("ohlcv_1d")
            frame = bars(["A"], TWO_MONTHS, add=5)
            report = desk.store.write(older, fetched(frame, "A"))
    assert_conserved(report)
    january = report.days.filter(pl.col("day") < FEBRUARY[0])
    assert january["fenced"].sum() == report.fenced == 21
    assert report.written == frame.height - 21
    table = TOY[asset].table
    kept = desk.place(table).join(placed, on=["ctid", "xmin", "row"], how="semi")
    assert kept.height == 21


def test_an_older_writer_of_another_source_does_not_take_a_symbol_back(desk: Desk) -> None:
    with desk.planned("ohlcv_1d", symbols=["A"]) as older:
        desk.write("ohlcv_1d", fetched(bars(["A"], source="other"), "A"), symbols=["A"])
        report = desk.store.write(older, fetched(bars(["A"]), "A"))
    assert_conserved(report)
    assert (report.fenced, report.written) == (21, 0)
    assert set(desk.store.read("ohlcv_1d")["source"]) == {"other"}


def test_an_older_collector_adds_but_does_not_correct(desk: Desk) -> None:
    with desk.planned("news") as older:
        desk.write("news", news(("x", NEWS_DAY, "newer")))
        report = desk.store.write(older, news(("x", NEWS_DAY, "older"), ("y", NEWS_DAY, "another")))
    assert_conserved(report)
    assert (report.fenced, report.written) == (1, 1)
    held = desk.query("SELECT document_id, title FROM documents ORDER BY 1").rows()
    assert held == [("x", "newer"), ("y", "another")]


def test_writers_of_one_month_exclude_each_other(desk: Desk) -> None:
    """The second one gets past the lock only when the first has committed."""
    held, go_on, events = threading.Event(), threading.Event(), []

    def hold(step: str) -> None:
        if step == "copy":
            held.set()
            assert go_on.wait(20)
        if step == "commit":
            events.append("first commits")

    def watch(step: str) -> None:
        if step == "token":
            events.append("second is in")

    database = desk.store.database
    with (
        desk.planned("ohlcv_1d") as one,
        desk.planned("ohlcv_1d") as two,
        ThreadPoolExecutor(2) as pool,
    ):
        batch = desk.store._batch
        answers = [fetched(bars(["A"], add=n), "A")["made"] for n in (1, 2)]
        batches = [
            batch(plan, "made", answer, desk.store._check(plan, answer))
            for plan, answer in zip((one, two), answers, strict=True)
        ]
        first = pool.submit(Writer(database, hold).write, one.table, one.writing, [batches[0]])
        assert held.wait(20)
        second = pool.submit(Writer(database, watch).write, two.table, two.writing, [batches[1]])
        with psycopg.connect(_url(database), autocommit=True) as look:
            while not look.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ).fetchone()[0]:
                assert not second.done()
        assert events == []
        go_on.set()
        first.result(20)
        second.result(20)
    assert events[:2] == ["first commits", "second is in"]
    assert desk.store.read("ohlcv_1d")["close"].equals(
        bars(["A"], add=2).sort("symbol", "time")["close"]
    )


def _url(database: Database) -> str:
    return database._conninfo


def test_overlapping_backfills_end_consistent(desk: Desk) -> None:
    """Unequal ranges and contents from several threads: the ledger and the tables agree."""
    spans = [
        (date(2020, 1, 3), date(2020, 3, 2)),
        (date(2020, 1, 20), date(2020, 2, 10)),
        (date(2020, 2, 5), date(2020, 3, 20)),
        (date(2020, 1, 1), date(2020, 1, 31)),
    ]

    def work(number: int) -> None:
        store = Store(Database(_url_of(desk), 20), desk.store.universe, TOY, clock=Clock())
        mine = Desk(store, Clock(), runs=100 * number)
        try:
            for turn in range(3):
                days = spans[(number + turn) % len(spans)]
                mine.write(
                    "ohlcv_1d",
                    fetched(bars(["A", "BB"][: 1 + turn % 2], days, add=number % 2), "A", "BB"),
                    days,
                )
                entries = [
                    (f"{n}", NEWS_DAY + timedelta(days=n), f"{number % 2}") for n in range(0, 40, 7)
                ]
                mine.write("news", news(*entries), TWO_MONTHS)
        finally:
            store.database.close()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, n) for n in range(4)]:
            done.result(100)
    audit(desk.store.database, TOY)
    keys = desk.query("SELECT count(*) AS n, count(DISTINCT (symbol, time)) AS d FROM ohlcv_1d")
    assert keys["n"].item() == keys["d"].item()
    # Every day is one writer's: both symbols of a day say what the same run said, or one is older.
    run_means(desk, TWO_MONTHS)
    run_doubles(desk, TWO_MONTHS)


def _url_of(desk: Desk) -> str:
    row = desk.query("SELECT current_database() AS name").item()
    address = desk.store.database._address
    return (
        f"postgresql://{address.user}:{address.password}"
        f"@{address.hosts[0][0]}:{address.hosts[0][1]}/{row}"
    )


def test_revisions_become_visible_in_their_order(desk: Desk) -> None:
    """Whoever sees a revision sees, or could have seen, every earlier one."""
    url, stop, seen = _url_of(desk), threading.Event(), []

    def watch() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not stop.is_set():
                seen.append(
                    {
                        row[0]
                        for row in connection.execute(
                            "SELECT DISTINCT revision FROM partition_ledger"
                        )
                    }
                )

    def work(asset: str, answers: list[dict[str, Fetched]]) -> None:
        store = Store(Database(url, 20), desk.store.universe, TOY, clock=Clock())
        mine = Desk(store, Clock(), runs=1000)
        for answer in answers:
            mine.write(asset, answer, TWO_MONTHS)
        store.database.close()

    jobs = [
        ("ohlcv_1d", [fetched(bars(["A"], TWO_MONTHS, add=n), "A") for n in range(6)]),
        ("news", [news((f"{n}", NEWS_DAY + timedelta(days=n), "t")) for n in range(12)]),
        ("corporate_actions", [fetched(actions(value=2.0 + n), "A") for n in range(12)]),
    ]
    with ThreadPoolExecutor(4) as pool:
        watcher = pool.submit(watch)
        for job in [pool.submit(work, *job) for job in jobs]:
            job.result(60)
        stop.set()
        watcher.result(20)
    for earlier, later in pairwise(seen):
        new = later - earlier
        assert not new or not earlier or min(new) > max(earlier)


# -- every row is accounted for -------------------------------------------------------------------

_price = st.sampled_from([10.0, 11.0, 9.0, -1.0, 0.0, math.nan, math.inf, -math.inf, None])
_moment = st.sampled_from(
    [datetime(2020, 1, d, tzinfo=UTC) for d in (2, 3, 4, 6)]
    + [
        datetime(2019, 12, 31, tzinfo=UTC),
        datetime(2020, 2, 3, tzinfo=UTC),
        datetime(2020, 6, 2, tzinfo=UTC),
        datetime(2021, 1, 4, tzinfo=UTC),
        datetime(1, 1, 2, tzinfo=UTC),
        None,
    ]
)
_bar = st.tuples(
    st.sampled_from(["A", "BB", "A", "nobody", "A\0", "", None]),
    _moment,
    st.sampled_from([timedelta(hours=21), timedelta(days=200), timedelta(days=-3), None]),
    *[_price] * 4,
    st.sampled_from([100.0, 0.0, -5.0, math.nan, None]),
    st.sampled_from(["assumed", 'say "no"\\ \n\t', "a\0b", None]),
)


def frame_of(rows: list[tuple[object, ...]]) -> pl.DataFrame:
    names = ("symbol", "time", "open", "high", "low", "close", "volume", "availability_basis")
    records = [
        dict(zip(names, (r[0], r[1], *r[3:]), strict=True))
        | {
            "available_at": None if r[1] is None or r[2] is None else r[1] + r[2],
            "source": "made",
        }
        for r in rows
        if not (r[1] is not None and r[1].year == 1 and r[2] is not None and r[2].days < 0)
    ]
    table = TOY["ohlcv_1d"]
    schema = {c.name: c.dtype for c in table.columns if c.name != "spread"}
    return pl.DataFrame(records, schema=schema)


@given(
    rows=st.lists(_bar, max_size=14),
    again=st.lists(_bar, max_size=6),
    copies=st.integers(0, 4),
    fence=st.booleans(),
)
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_row_is_accounted_for(
    desk: Desk,
    rows: list[tuple[object, ...]],
    again: list[tuple[object, ...]],
    copies: int,
    fence: bool,
) -> None:
    frame = frame_of([*rows, *rows[:copies]])
    answer = {"made": Fetched(frame, {}, ("A", "BB"))}
    if not fence:
        report = desk.write("ohlcv_1d", answer, symbols=["A", "BB"])
    else:
        with desk.planned("ohlcv_1d", symbols=["A", "BB"]) as older:
            desk.write("ohlcv_1d", {"made": Fetched(frame_of(again), {}, ("A", "BB"))})
            report = desk.store.write(older, answer)
        assert report.written == report.unchanged == 0
    assert_conserved(report)
    assert report.input == frame.height
    audit(desk.store.database, TOY)
    stored = desk.store.read("ohlcv_1d")
    for rule in TOY["ohlcv_1d"].rules:
        assert stored.filter(rule.violated).is_empty()


def test_the_steps_come_in_their_order(desk: Desk) -> None:
    heard: list[str] = []
    desk.store.writer.trace = heard.append
    desk.write("ohlcv_1d", fetched(bars(["A"], THREE_DAYS), "A"), THREE_DAYS, symbols=["A"])
    heard.clear()
    desk.write("ohlcv_1d", fetched(bars(["A"], THREE_DAYS, add=1), "A"), THREE_DAYS, symbols=["A"])
    assert tuple(heard) == STEPS


def test_a_new_member_is_fetched_back_to_where_others_need_it(desk: Desk) -> None:
    desk.store.universe = universe("A")
    late = (date(2020, 1, 27), date(2020, 2, 1))
    desk.write("ohlcv_1d", fetched(bars(["A"]), "A"), JANUARY)
    assert desk.store.pending("ohlcv_1d", *JANUARY, "1").is_empty()
    grown = Store(desk.store.database, universe("A", "BB"), TOY, clock=Clock())
    with Desk(grown, Clock(), runs=50).planned("ohlcv_1d", late) as plan:
        assert plan.days[0] == date(2020, 1, 22)  # three sessions before the 27th
    assert grown.pending("ohlcv_1d", *JANUARY, "1").len() == 21
    assert NOW.year == 2020
