"""`show`, `get`, `explain` as a person types them; the values themselves are tested in serving."""

from __future__ import annotations

import json

import pytest

from feature_pipeline.cli.terminal import size, sparkline
from feature_pipeline.schemas import STATE_VECTOR_FIELDS
from feature_pipeline.stack import processes


def test_show_has_values_and_curves(shell, ran):
    text = shell.says("show", "AAA")
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    rows = ran.table("state_vectors_1d").filter(symbol="AAA")
    assert f"{rows['rsi'][-1]:.6g}" in lines["rsi"]
    # Sixty sessions, of which the last eight are computed.
    curve = lines["rsi"][lines["rsi"].index(f"{rows['rsi'][-1]:.6g}") :].split(maxsplit=1)[1]
    assert len(curve.strip()) == 8
    assert curve.strip() == sparkline(rows["rsi"].to_list())
    assert "as of 2019-06-14 20:15 UTC" in text
    assert "returns_1d" in lines
    assert "60 sessions, 2019-03-2" in text


def test_show_as_json(shell, ran):
    found = shell.json("show", "AAA")
    rows = ran.table("state_vectors_1d").filter(symbol="AAA")
    assert list(found["state_vector"]) == list(STATE_VECTOR_FIELDS)
    assert found["state_vector"]["macd"] == rows["macd"][-1]
    assert found["history"]["macd"][-8:] == rows["macd"].to_list()
    assert found["history"]["macd"][0] is None
    assert len(found["history"]["time"]) == 60
    assert (found["as_of"], found["fresh"]) == ("2019-06-14T20:15:00+00:00", False)


def test_show_without_the_database_has_what_redis_has(shell):
    away = f"postgresql://u:hidden@127.0.0.1:{processes.free_port()}/db"
    text = shell.says("show", "AAA", FEATURE_PIPELINE_DATABASE_URL=away)
    assert "rsi" in text
    assert "source online" in text
    assert "no history: postgresql://u@127.0.0.1" in text
    assert "hidden" not in text


def test_show_without_redis_has_what_the_database_has(shell):
    away = f"redis://:hidden@127.0.0.1:{processes.free_port()}/0"
    text = shell.says("show", "AAA", FEATURE_PIPELINE_REDIS_URL=away)
    assert "source database" in text
    assert "from the database alone: " in text
    assert "hidden" not in text


def test_get_as_of(shell, ran):
    text = shell.says("get", "AAA", "rsi_14", "regime", "--as-of", "2019-06-13T16:14:59-04:00")
    assert "AAA as of 2019-06-13 20:14:59 UTC\n" in text
    assert text.count("2019-06-12 20:15") == 2, "the bar of the 13th is a second away"
    found = shell.json("get", "AAA", "rsi_14", "--as-of", "2019-06-13T20:15")["values"]
    rows = ran.table("indicators_1d").filter(symbol="AAA")
    assert found[0]["value"] == rows["rsi_14"][-2]
    assert "(no time zone given: UTC)" in shell.says("get", "AAA", "vix", "--as-of", "2019-06-13")


def test_get_a_series(shell, ran):
    words = ("get", "AAA", "ohlcv_1d.close", "state_vectors_1d.close")
    found = shell.json(*words, "--start", "2019-06-10", "--end", "2019-06-12")["rows"]
    rows = ran.table("ohlcv_1d").filter(symbol="AAA")
    assert [row["ohlcv_1d.close"] for row in found] == rows["close"].to_list()[3:6]
    assert [row["time"][:10] for row in found] == ["2019-06-10", "2019-06-11", "2019-06-12"]
    text = shell.says(*words, "--start", "2019-06-10", "--as-of", "2019-06-12")
    assert "2019-06-11" in text
    assert "2019-06-12 20:15" not in text


def test_get_in_a_process_of_its_own(shell, ran):
    done = shell.real("get", "AAA", "rsi_14", "--as-of", "2019-06-15", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = ran.table("indicators_1d").filter(symbol="AAA")
    assert json.loads(done.stdout)["values"][0]["value"] == rows["rsi_14"][-1]


def test_get_as_known_at(shell):
    found = shell.json("get", "AAA", "sma_20", "--as-known-at", "2020-01-01T00:00Z")
    assert found["values"][0]["value"] is None
    assert "no row of sma_20 was held by then" in shell.says(
        "get", "AAA", "sma_20", "--as-known-at", "2020-01-01T00:00Z"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["get", "AAA", "close"], "write ohlcv_1d.close or state_vectors_1d.close"),
        (["get", "AAA", "rsi"], ""),
        (["get", "AAA", "rsi_15"], "did you mean rsi_14"),
        (["get", "ZZZ", "rsi_14"], "'ZZZ' is not in the universe; it has AAA"),
        (["get", "AAA", "rsi_14", "--as-of", "noon"], "--as-of 'noon' is no moment"),
        (["get", "AAA", "rsi_14", "--start", "junk"], "start 'junk' is no date"),
        (["get", "AAA", "rsi_14", "--start", "2019-06-09", "--end", "2019-06-09"], "no row of AAA"),
        (["explain", "AAA", "rsi_14", "--as-of", "2019-99-01"], "is no moment"),
        (["explain", "AAA", "nonsense"], "no feature 'nonsense'"),
    ],
)
def test_errors_are_one_line_with_a_way_out(shell, words, said):
    if said:
        assert said in shell.error(*words)
    else:
        assert shell.says(*words)


def test_explain(shell, ran):
    text = shell.says("explain", "AAA", "returns_1d", "--as-of", "2019-06-13T21:00Z")
    value = ran.table("features_1d").filter(symbol="AAA")["returns_1d"][-2]
    for said in (
        f"\n{value}\n",
        "total_return(1)",
        "from ohlcv_1d (close): 2 rows, 2019-06-12 to 2019-06-13",
        "available_at        2019-06-13 20:15",
        f"run_id              {ran.first.run_id}",
        "stale  no",
        f"recomputed  same to 1e-9: {value}",
    ):
        assert said in text, (said, text)
    found = shell.json("explain", "YOUNG", "sma_200")
    assert found["value"] is None
    assert "warm-up" in found["missing"][0]
    assert found["recomputed"] == {"value": None, "same": True}


# -- what is drawn --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([0.0, None, 1.0, float("nan")], "▁ █ "),
        ([3.0, 3.0], "▄▄"),
        ([None, None], "  "),
        ([], ""),
        ([-1e300, 1e300], "▁█"),
        ([float("inf"), 1.0], " ▄"),
    ],
)
def test_sparklines(values, drawn):
    assert sparkline(values) == drawn


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (8192, "8.2 kB"), (150_000, "150 kB"), (2.5e9, "2.5 GB")],
)
def test_sizes(count, said):
    assert size(count) == said
