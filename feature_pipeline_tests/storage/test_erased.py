"""What was deleted at its source: its text leaves every table, and does not come back."""

from __future__ import annotations

import multiprocessing
import os
import signal
from datetime import UTC, date, datetime

import polars as pl
import pytest

from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.features.sentiment import score_documents
from feature_pipeline.schemas import ERASED
from feature_pipeline.storage import erasure, quarantine
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.store import Store
from feature_pipeline_tests.storage.support import (
    JANUARY,
    TOY,
    Clock,
    Desk,
    articles,
    audit,
    fetched,
    universe,
)

SECRET = "the words that were taken back"
BOTH = {**TOY, "sentiment_scores": TABLES["sentiment_scores"]}


def on(day: int, hour: int = 12) -> datetime:
    return datetime(2020, 1, day, hour, tzinfo=UTC)


def posts(*rows: tuple[str, datetime, str]) -> pl.DataFrame:
    """Posts with an address of their own, the text in title and text."""
    frame = articles(*rows)
    return frame.with_columns(
        pl.format("https://www.reddit.com/comments/{}/", "document_id").alias("url"),
        pl.col("title").alias("text"),
    )


def urls(*ids: str) -> frozenset[str]:
    return frozenset(f"https://www.reddit.com/comments/{name}/" for name in ids)


def collect(desk: Desk, frame: pl.DataFrame) -> None:
    desk.write("reddit", fetched(frame, "A"))


def erase(desk: Desk, *ids: str) -> int:
    return erasure.erase(desk.store, "reddit", "made", urls(*ids))


def everything(desk: Desk) -> str:
    """All that the database says anywhere, as text."""
    tables = desk.query(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
    ).to_series()
    return "\n".join(
        str(desk.query(f"SELECT coalesce(string_agg(t::text, ' '), '') AS t FROM {name} t").item())
        for name in tables
    )


def test_the_text_leaves_and_the_row_stays(desk: Desk) -> None:
    collect(desk, posts(("d1", on(2), SECRET), ("d2", on(2), "other"), ("d3", on(3), SECRET)))
    before = desk.ledger("reddit")
    assert sorted(erasure.held(desk.store, "reddit", "made", *JANUARY)) == sorted(
        urls("d1", "d2", "d3")
    )
    assert erase(desk, "d1", "nobody") == 1
    rows = {r["document_id"]: r for r in desk.store.read("reddit").iter_rows(named=True)}
    assert {name: rows["d1"][name] for name in ERASED} == ERASED
    assert rows["d1"]["available_at"] == on(2), "it was available then, and its score is"
    assert rows["d1"]["symbols"] == ["A"]
    assert rows["d2"]["text"] == "other"
    after = desk.ledger("reddit")
    changed = after.join(before, on=["source", "day", "revision"], how="anti")
    assert changed["day"].to_list() == [date(2020, 1, 2)], "what follows from it is stale"
    assert after["rows"].to_list() == before["rows"].to_list()
    assert set(erasure.held(desk.store, "reddit", "made", *JANUARY)) == urls("d2", "d3")
    audit(desk.store.database, desk.store.tables)


def test_nothing_anywhere_holds_it(desk: Desk) -> None:
    collect(desk, posts(("d1", on(2), SECRET)))
    collect(desk, posts(("d1", on(2), SECRET + ", edited")))
    # What is rejected of it as well: no symbol.
    wrong = posts(("d1", on(2), SECRET + ", wrong"), ("d2", on(2), SECRET + " too"))
    collect(desk, wrong.with_columns(symbols=pl.lit([], dtype=pl.List(pl.String))))
    assert everything(desk).count(SECRET) > 4
    assert set(erasure.held(desk.store, "reddit", "made", *JANUARY)) == urls("d1", "d2")
    assert erase(desk, "d1", "d2") == 2
    assert SECRET not in everything(desk)
    rejected = quarantine.listed(desk.store.database)
    payloads = [quarantine.shown(desk.store.database, n).payload for n in rejected["id"]]
    assert [p["title"] for p in payloads] == ["[deleted]"] * 2
    assert erasure.held(desk.store, "reddit", "made", *JANUARY).len() == 0
    known = desk.store.read("reddit", as_known_at=datetime(2100, 1, 1, tzinfo=UTC))
    assert known["title"].to_list() == ["[deleted]"]


def test_it_does_not_come_back(desk: Desk) -> None:
    frame = posts(("d1", on(2), SECRET), ("d2", on(2), "other"))
    collect(desk, frame)
    erase(desk, "d1")
    place = desk.place("documents")
    collect(desk, frame)
    collect(desk, posts(("d1", on(2), SECRET + ", restored")))
    report = desk.reports[-1]
    assert (report.input, report.unchanged, report.written) == (1, 1, 0)
    assert SECRET not in everything(desk)
    assert desk.place("documents").equals(place)
    assert erase(desk, "d1") == 0, "nothing is left to be done"
    assert desk.place("documents").equals(place)


def test_other_sources_and_assets_are_left_alone(desk: Desk) -> None:
    collect(desk, posts(("d1", on(2), SECRET)))
    desk.write("news", fetched(posts(("n1", on(2), SECRET + " in the news")), "A"))
    assert erasure.erase(desk.store, "reddit", "elsewhere", urls("d1")) == 0
    assert erase(desk, "n1") == 0
    assert everything(desk).count(SECRET + " in the news") == 2


def test_what_the_ledger_says_of_collecting_stays(desk: Desk) -> None:
    """A day that was collected before it was over is collected again, whatever was erased."""
    collect(desk, posts(("d1", on(2), SECRET)))
    with desk.store.database.connection() as link:
        link.execute(
            "UPDATE partition_ledger SET updated_at = '2020-01-02 13:00Z' WHERE day = '2020-01-02'"
        )
    said = "SELECT day, code_version, updated_at FROM partition_ledger WHERE asset = 'reddit'"
    before = desk.query(f"{said} ORDER BY day")
    early = desk.store.planner.missing("reddit", *JANUARY)["day"].to_list()
    assert early == [date(2020, 1, 2)]
    assert erase(desk, "d1") == 1
    assert desk.query(f"{said} ORDER BY day").equals(before)
    assert desk.store.planner.missing("reddit", *JANUARY)["day"].to_list() == early


def test_what_a_run_under_way_says_of_it_is_refused(desk: Desk) -> None:
    collect(desk, posts(("d1", on(2), SECRET)))
    with desk.planned("reddit") as plan:
        erase(desk, "d1")
        desk.store.write(plan, fetched(posts(("d1", on(2), SECRET + ", edited")), "A"))
    assert SECRET not in everything(desk)


def test_scores_stay_and_the_stub_is_not_scored(desk: Desk) -> None:
    asked: list[str] = []

    def score(texts: list[str]) -> pl.DataFrame:
        asked.extend(texts)
        return pl.DataFrame(
            {"sentiment": [0.5] * len(texts), "label": "positive", "confidence": 0.9},
            schema={"sentiment": pl.Float64, "label": pl.String, "confidence": pl.Float64},
        )

    collect(desk, posts(("d1", on(2), SECRET), ("d2", on(2), "other")))
    erase(desk, "d1")
    documents = desk.store.read("reddit")
    scores = score_documents(documents, score, "m", "1")  # type: ignore[arg-type]
    assert scores["document_id"].to_list() == ["d2"]
    assert asked == ["other. other"]


# -- killed in the middle -------------------------------------------------------------------------


def _die_at(url: str, step: str) -> None:
    store = Store(Database(url, 20), universe("A"), TOY, clock=Clock())
    desk = Desk(store, Clock())

    def trace(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    store.writer.trace = trace
    erase(desk, "d1")


@pytest.mark.parametrize("step", ["history", "copy", "ledger"])
def test_killed_it_is_as_before_and_done_again(desk: Desk, migrated_url: str, step: str) -> None:
    collect(desk, posts(("d1", on(2), SECRET)))
    collect(desk, posts(("d1", on(2), SECRET + ", edited")))
    before = everything(desk)
    process = multiprocessing.get_context("spawn").Process(
        target=_die_at, args=(migrated_url, step)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert everything(desk) == before
    assert erase(desk, "d1") == 1
    assert SECRET not in everything(desk)


@pytest.fixture
def migrated_url(desk: Desk, request: pytest.FixtureRequest) -> str:
    """Where the desk's database is."""
    names = request.fixturenames
    timescale = "migrated_timescaledb_url" in names
    return str(
        request.getfixturevalue(
            "migrated_timescaledb_url" if timescale else "migrated_database_url"
        )
    )
