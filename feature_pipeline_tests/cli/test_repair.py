"""`quarantine`, `online rebuild`, `storage`, `logs` and `doctor` as a person types them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date

import polars as pl
import pytest
import redis

from feature_pipeline.stack import processes
from feature_pipeline_tests.assets.world import END, START, midnight


@pytest.fixture(scope="module")
def spoilt(new_graph, new_shell, world) -> Iterator:
    """AAA's bar of 7 June opened above its high; that is its own affair, says the exchange."""
    bad = (pl.col("symbol") == "AAA") & (pl.col("time") == midnight(date(2019, 6, 7)))
    bars = world.bars.with_columns(
        pl.when(bad).then(pl.col("high") * 1.01).otherwise("open").alias("open")
    )
    with new_graph(world.but(bars=bars)) as graph:
        graph.run()
        yield new_shell(graph)


def test_a_person_accepts_a_row(spoilt):
    (row,) = spoilt.json("quarantine", "list")
    assert (row["asset"], row["symbol"], row["day"]) == ("ohlcv_1d", "AAA", "2019-06-07")
    assert "open or close lies outside" in spoilt.says("quarantine", "list", "--symbol", "AAA")
    assert "nothing is in quarantine" in spoilt.says("quarantine", "list", "--asset", "news")
    number = str(row["id"])
    shown = spoilt.json("quarantine", "show", number)
    assert shown["payload"]["open"] > shown["payload"]["high"]
    assert str(shown["payload"]["open"])[:6] in spoilt.says("quarantine", "show", number)

    # Not without a reason, not without being asked.
    assert spoilt("quarantine", "release", number).returncode == 2
    because = ("--because", "the exchange says so")
    asked = spoilt("quarantine", "release", number, *because)
    assert asked.returncode == 1
    assert "Accept what the source said?" in asked.stdout
    assert len(spoilt.json("quarantine", "list")) == 1
    assert spoilt("quarantine", "release", number, *because, "--json").returncode == 2

    graph = spoilt.graph
    assert graph.pending("indicators_1d") == []
    (done,) = spoilt.json("quarantine", "release", number, *because, "--yes")
    assert (done["outcome"], done["day"]) == ("written", "2019-06-07")
    assert graph.pending("indicators_1d", START, date(2019, 6, 7)) == []
    assert date(2019, 6, 7) in graph.pending("indicators_1d")
    (value,) = spoilt.json("get", "AAA", "ohlcv_1d.open", "--as-of", "2019-06-08")["values"]
    assert value["value"] == shown["payload"]["open"]
    assert spoilt.json("quarantine", "list") == []
    (held,) = spoilt.json("quarantine", "list", "--all")
    assert held["released_at"] is not None

    # The provider says it again: nothing is rejected, nothing is missing, all is computed.
    graph.run()
    assert spoilt.json("quarantine", "list") == []
    assert graph.query("SELECT * FROM partition_exceptions").is_empty()
    rows = graph.table("state_vectors_1d").filter(symbol="AAA")
    assert rows.height == graph.universe.sessions(START, END, ["AAA"]).height
    assert rows["log_return"].null_count() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quarantine", "show", "4711"], "there is no row 4711 in quarantine"),
        (["quarantine", "release", "4711", "--because", "x", "--yes"], "there is no row 4711"),
        (["quarantine", "list", "--since", "monday"], "--since 'monday' is no date"),
        (["logs", "nonsense"], "has no log 'nonsense'; nothing has been started there yet"),
    ],
)
def test_errors_are_one_line(shell, words, said):
    assert said in shell.error(*words)


def test_storage_counts_what_is_there(shell, ran):
    found = shell.json("storage")
    assets = {row["asset"]: row for row in found["assets"]}
    tables = {row["table"]: row for row in found["tables"]}
    for asset, row in assets.items():
        assert row["rows"] == ran.table(asset, None, None).height, asset
    assert tables["documents"]["rows"] == assets["news"]["rows"] + assets["reddit"]["rows"]
    for row in tables.values():
        assert row["heap"] + row["indexes"] + row["toast"] == row["total"]
    assert tables["partition_ledger"]["rows"] > tables["quarantine"]["rows"] == 0
    assert found["redis"]["keys"] == {
        "sv": 4, "features": 4, "regime": 4, "sentiment": 8, "macro": 3,
    }  # fmt: skip
    assert found["redis"]["complete"]
    assert found["dagster"]["total"] is not None
    policies = {row["table"]: row for row in found["policies"]}
    assert policies["documents"]["retention"] == "1 year"
    assert policies["ohlcv_1d"]["retention"] is None
    text = shell.says("storage")
    assert "plain PostgreSQL keeps all of it" in text
    assert "state_vectors_1d" in text
    assert "4 sv, 4 features" in text


def test_storage_without_redis_still_tells_the_rest(shell):
    away = f"redis://:hidden@127.0.0.1:{processes.free_port()}/0"
    text = shell.says("storage", FEATURE_PIPELINE_REDIS_URL=away)
    assert "state_vectors_1d" in text
    assert "hidden" not in text


def test_online_rebuild_as_json(shell, redis_server):
    again = shell.json("online", "rebuild")
    assert (again["written"], again["refused"], again["complete"]) == (0, {}, True)
    with redis.Redis.from_url(redis_server.url) as client:
        client.delete("sv:1d:AAA")
    assert shell.json("online", "rebuild")["written"] == 1


def test_doctor_as_json(shell):
    done = shell.real("doctor", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert {"versions", "settings", "universe", "tables", "ledger", "redis"} <= {
        finding["what"] for finding in found
    }
    # Its universe is the tests' own: nobody but they has its provider.
    assert [finding["what"] for finding in found if not finding["right"]] == ["source made"]
    away = shell("doctor", "--json", FEATURE_PIPELINE_REDIS_URL="redis://127.0.0.1:1/0")
    assert away.returncode == 1
    assert '"right": false' in away.stdout


def test_logs_are_listed_and_shown(shell):
    home = shell.home / "log"
    home.mkdir()
    (home / "daemon.log").write_text("".join(f"line {n}\n" for n in range(100)))
    assert shell.json("logs")[0]["name"] == "daemon"
    assert "daemon" in shell.says("logs")
    assert shell.says("logs", "daemon", "-n", "2") == "line 98\nline 99\n"
    assert shell.json("logs", "daemon.log", "-n", "1") == ["line 99"]
    assert "there are daemon" in shell.error("logs", "demon")
