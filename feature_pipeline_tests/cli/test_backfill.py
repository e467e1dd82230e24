"""`backfill` on the command line: what a dry run says, what a run reports, how long it takes."""

from __future__ import annotations

import json
import subprocess
from itertools import pairwise

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_pipeline.cli.backfill import _asset_names, _size, _symbol_names
from feature_pipeline.cli.progress import Pace, duration
from feature_pipeline.features.catalogue import ALL_TABLES
from feature_pipeline.timeframes import TIMEFRAMES
from feature_pipeline_tests.cli.conftest import invoke
from feature_pipeline_tests.stack.helpers import CLI, environment

DAYS = ("--start", "2012-03-05", "--end", "2012-03-09")


def run(home, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    plain = {"COLUMNS": "80", "NO_COLOR": "1", "FEATURE_PIPELINE_HOME": str(home)}
    return invoke("backfill", *words, **plain | variables)


def run_in_a_process(home, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, "backfill", *words],
        env=environment(home, **{"COLUMNS": "80", "NO_COLOR": "1"} | variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("feature-pipeline: ")
    return line


@pytest.fixture
def given_servers(migrated_database_url, redis_url):
    return {
        "FEATURE_PIPELINE_DATABASE_URL": migrated_database_url,
        "FEATURE_PIPELINE_REDIS_URL": redis_url,
    }


# -- the dry run ----------------------------------------------------------------------------------


def test_a_dry_run_makes_no_database(make_home):
    home = make_home()
    line = error(run(home, "--dry-run"))
    assert "feature-pipeline migrate" in line
    assert list(home.iterdir()) == []


def test_a_dry_run_makes_no_tables(make_home, database_url, redis_url):
    servers = {
        "FEATURE_PIPELINE_DATABASE_URL": database_url,
        "FEATURE_PIPELINE_REDIS_URL": redis_url,
    }
    assert "feature-pipeline migrate" in error(run(make_home(), "--dry-run", *DAYS, **servers))
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        tables = connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog',"
            " 'information_schema')"
        ).fetchone()
    assert tables == (0,)


def snapshot(url: str) -> list[object]:
    with psycopg.connect(url) as connection:
        return [
            connection.execute(statement).fetchall()
            for statement in (
                "SELECT * FROM partition_ledger ORDER BY asset, source, day",
                "SELECT * FROM write_intents",
                "SELECT last_value, is_called FROM fencing_token",
                "SELECT last_value, is_called FROM content_revision",
                "SELECT * FROM collected_for",
                "SELECT nspname FROM pg_namespace ORDER BY 1",
            )
        ]


def test_a_dry_run_says_what_the_run_then_does(make_home, given_servers):
    home, url = make_home(), given_servers["FEATURE_PIPELINE_DATABASE_URL"]
    before = snapshot(url)
    some = (*DAYS, "--assets", "ohlcv_1d,macro_indicators")
    said = run(home, "--dry-run", "--json", *some, **given_servers)
    assert said.returncode == 0, said.stderr
    told = json.loads(said.stdout)
    assert (told["start"], told["end"]) == ("2012-03-05", "2012-03-09")
    assert told["seconds_from"] == "built-in"
    bars = told["assets"]["ohlcv_1d"]
    assert (bars["asked"], bars["to_write"], bars["up_to_date"]) == (5, 5, 0)
    assert bars["history"] > 500, "what others read of before"
    assert bars["calls"] == 0, "the sample has no network"
    shown = run(home, "--dry-run", *some, **given_servers)
    assert "not started" in shown.stdout
    assert "built-in rates" in shown.stdout
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    (row,) = (line for line in shown.stdout.splitlines() if line.startswith("ohlcv_1d"))
    assert row.split()[1:6] == ["5", "0", "5", str(bars["history"]), str(bars["rows"])]
    assert snapshot(url) == before, "no row, no token, no storage of Dagster's"

    done = run_in_a_process(home, "--json", *some, **given_servers)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["partitions"] == told["partitions"]
    assert [one["status"] for one in report["runs"]] == ["SUCCESS"]
    assert report["runs"][0]["assets"] == ["ohlcv_1d", "macro_indicators"]
    assert report["rows"]["written"] == report["rows"]["input"] >= bars["rows"]
    assert report["seconds"] > 0
    total = told["partitions"]
    assert f"{total}/{total} partitions in " in done.stderr

    again = run(home, *some, **given_servers)
    assert again.returncode == 0
    assert again.stdout.strip() == "2012-03-05 to 2012-03-09: every partition is up to date"
    nothing = json.loads(run(home, "--json", *some, **given_servers).stdout)
    assert (nothing["runs"], nothing["partitions"]) == ([], 0)


def test_without_a_range_it_is_everything_there_is(make_home, given_servers):
    words = ("--dry-run", "--json", "--symbols", "META")
    said = run(make_home(), *words, "--assets", "ohlcv_1d", **given_servers)
    told = json.loads(said.stdout)
    assert (told["start"], told["end"]) == ("2012-05-18", "2013-03-01"), "FB's, as META is"
    assert told["assets"]["ohlcv_1d"]["symbols"] == ["FB"]
    # What is computed reads days on which others have sessions.
    assert "without --symbols" in error(run(make_home(), *words, **given_servers))


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--assets", "ohlcv_9d"), "'ohlcv_9d'; there are ohlcv_1d, "),
        (("--symbols", "NOPE"), "it has AAPL, FB, "),
        (("--start", "2012-03-09", "--end", "2012-03-05"), "start 2012-03-09 is after end"),
        (("--end", "2999-01-01"), "end 2999-01-01 is outside of the grid"),
        (("--start", "tomorrow"), "start 'tomorrow' is no date"),
        ((*DAYS, "--assets", "features_1d"), "add ohlcv_1d to --assets"),
    ],
)
def test_what_cannot_be_is_one_line_and_starts_nothing(make_home, given_servers, words, named):
    assert named in error(run(make_home(), *words, **given_servers))
    with psycopg.connect(given_servers["FEATURE_PIPELINE_DATABASE_URL"]) as connection:
        assert connection.execute("SELECT is_called FROM fencing_token").fetchone() == (False,)


def test_a_failed_run_reports_what_it_did_in_json(make_home, given_servers, tmp_path):
    path = tmp_path / "universe.yaml"
    path.write_text(
        "benchmark: A\ninstruments:\n  - {id: A, asset_class: equity, calendar: XNYS, sector: x,"
        " source: {bars: elsewhere}, symbols: [{symbol: A, from: 2010-01-04}],"
        " membership: [{from: 2012-01-03, to: 2012-04-01}]}\n"
    )
    done = run(
        make_home(), "--json", *DAYS, "--assets", "ohlcv_1d",
        FEATURE_PIPELINE_UNIVERSE=str(path), **given_servers,
    )  # fmt: skip
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert [one["status"] for one in report["runs"]] == ["FAILURE"]
    assert "'elsewhere'" in report["error"]
    assert done.stderr.strip().splitlines()[-1] == f"feature-pipeline: {report['error']}"


# -- completion -----------------------------------------------------------------------------------


def test_names_are_completed_one_after_the_other(monkeypatch):
    monkeypatch.delenv("FEATURE_PIPELINE_UNIVERSE", raising=False)
    assert _asset_names("ind") == [f"indicators_{timeframe}" for timeframe in TIMEFRAMES]
    assert _asset_names("ohlcv_1d,features_1d") == ["ohlcv_1d,features_1d"]
    assert _asset_names("") == list(ALL_TABLES)
    assert _symbol_names("AAPL,G") == ["AAPL,GOOG", "AAPL,GSPC"]
    assert _symbol_names("x") == []


# -- how long it will take ------------------------------------------------------------------------

COSTS = st.lists(st.tuples(st.integers(1, 400), st.floats(0.5, 120)), min_size=1, max_size=8)


def walk(costs, slower: float, start_s: float, at_once: int):
    """Polls of a backfill that takes `slower` times what was guessed, and finishes partitions so
    many at a time: (elapsed, seconds said, seconds true)."""
    expected = {str(n): cost for n, cost in enumerate(costs)}
    pace = Pace(expected, start_s)
    ends, now = [], start_s * slower
    for name, (count, seconds) in expected.items():
        for first in range(0, count, at_once):
            now += slower * seconds * min(at_once, count - first) / count
            ends.append((now, name, min(first + at_once, count)))
    polls, elapsed, done, ahead = [], 0.0, dict[str, int](), list(reversed(ends))
    while elapsed < now:
        while ahead[-1][0] <= elapsed:
            _, name, count = ahead.pop()
            done[name] = count
        polls.append((elapsed, pace.left(elapsed, done), now - elapsed))
        elapsed += 0.3
    final = {name: count for name, (count, _) in expected.items()}
    return polls, pace.left(now, final), pace


@given(costs=COSTS, slower=st.floats(0.3, 4), at_once=st.integers(1, 60))
@settings(max_examples=40)
def test_the_rest_is_never_negative_and_moves_smoothly(costs, slower, at_once):
    polls, _, _ = walk(costs, slower, 5, at_once)
    whole = polls[0][2]
    assert all(said >= 0 for _, said, _ in polls)
    for (_, before, _), (_, after, _) in pairwise(polls):
        # A clock that runs down, and is put right by little at a time.
        assert abs(after - (before - 0.3)) <= 0.3 + 0.06 * max(whole, sum(s for _, s in costs) + 5)


@given(costs=COSTS, at_once=st.integers(1, 31))
@settings(max_examples=40)
def test_a_right_guess_stays_right(costs, at_once):
    polls, _, _ = walk(costs, 1.0, 5, at_once)
    whole = polls[0][2]
    assert all(abs(said - true) <= 3 + 0.15 * whole for _, said, true in polls)


@given(costs=COSTS, slower=st.floats(0.5, 4))
@settings(max_examples=40)
def test_a_wrong_guess_is_put_right_on_the_way(costs, slower):
    polls, _, _ = walk(costs, slower, 5, 20)
    whole = polls[0][2]
    late = [poll for poll in polls if poll[0] > 0.8 * whole]
    # One step of many partitions may be all there is: it is known when it is done.
    coarse = max(seconds / -(-count // 20) for count, seconds in costs) * slower
    assert all(abs(said - true) <= 15 + 0.2 * whole + coarse for _, said, true in late)


def test_seconds_as_people_say_them():
    assert [duration(s) for s in (0, 8.4, 59.6, 185, 3600, 7900)] == [
        "0 s", "8 s", "1:00 min", "3:05 min", "1:00 h", "2:11 h",
    ]  # fmt: skip
    assert [_size(n) for n in (0, 999, 12_300, 4.2e6, 7.31e9)] == [
        "0 B", "999 B", "12 kB", "4 MB", "7.3 GB",
    ]  # fmt: skip
