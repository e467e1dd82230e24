"""`export`: what it prints, and what it refuses before a server is asked."""

from __future__ import annotations

import polars as pl

from feature_pipeline_tests.assets.world import END, START


def test_a_training_set_in_one_line(shell, tmp_path):
    words = ("export", str(tmp_path / "train"), "rsi_14", "ohlcv_1d.close", "--symbols", "AAA,BBB")
    days = ("--start", START.isoformat(), "--end", END.isoformat())
    said = " ".join(shell.says(*words, *days).split())
    assert "files written 2 (16 rows," in said
    assert "rows/s" in said
    assert "2/2 partitions" in said
    assert "holds 16 rows in 2 files" in said
    frame = pl.read_parquet(tmp_path / "train/**/*.parquet", hive_partitioning=True)
    assert frame.columns == [
        "time", "available_at", "rsi_14", "ohlcv_1d.close", "symbol", "month",
    ]  # fmt: skip
    asked = ("get", "AAA", "rsi_14", "ohlcv_1d.close", *days)
    rows = shell.json(*asked)["rows"]
    held = frame.filter(symbol="AAA").sort("time")
    assert [row["rsi_14"] for row in rows] == held["rsi_14"].to_list()
    report = shell.json(*words, *days)
    assert (report["written"], report["unchanged"], report["total_rows"]) == (0, 2, 16)
    assert "partitions" not in shell.says(*words, *days)


def test_what_cannot_be_asked_is_said_in_one_line(shell, tmp_path):
    root = str(tmp_path / "train")
    assert "did you mean" in shell.error("export", root, "rsi_15")
    assert "there are no bars of '1h'" in shell.error("export", root, "--timeframe", "1h")
    assert "is no symbol" in shell.error("export", root, "--symbols", "../AAA")
    assert "--as-of 'soon' is no moment" in shell.error("export", root, "--as-of", "soon")
    assert not (tmp_path / "train").exists()
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds something else" in shell.error("export", str(tmp_path), "rsi_14")
