"""An export on disk: what it holds, what of it is written again, and what a kill leaves."""

from __future__ import annotations

import json
import multiprocessing
import re
import signal
from dataclasses import replace
from datetime import date, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from feature_pipeline.errors import ExportError, FeatureError, UniverseError
from feature_pipeline.features.catalogue import ALL_TABLES, find
from feature_pipeline.resources import code_versions
from feature_pipeline.serving.dataset import Dataset, path_of
from feature_pipeline.serving.export import Export, Report, places_of, usual
from feature_pipeline.serving.export_plan import Question
from feature_pipeline.serving.lookup import Moment, series
from feature_pipeline.storage import hashing
from feature_pipeline_tests.assets.support import Graph, assert_equal
from feature_pipeline_tests.assets.world import END, START, midnight
from feature_pipeline_tests.serving.export_worker import die_at

SYMBOLS = ("AAA", "BBB", "MKT", "YOUNG")
SPAN = (date(2019, 5, 1), END)
WORDS = ("ohlcv_1d.close", "volume", *usual())
NOW = midnight(END) + timedelta(days=30)


# Imports once, and forks: a fresh interpreter for each kill would take most of the time.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["feature_pipeline_tests.serving.export_worker"])


def question(words=WORDS, symbols=SYMBOLS, days=SPAN, as_of=NOW, known_at=None) -> Question:
    return Question(tuple(places_of(words)), tuple(symbols), days, Moment(as_of, known_at))


def export(graph: Graph, root: Path, asked: Question, trace=lambda _: None, **options) -> Report:
    with Dataset(root, trace) as dataset:
        versions = code_versions(graph.universe, graph.settings)
        work = Export(dataset, graph.store, asked, graph.scorer, versions)
        return work.run(work.plan(**options))


def read(root: Path) -> pl.DataFrame:
    """As the how-to says, sorted."""
    text = {"symbol": pl.String, "month": pl.String}
    return (
        pl.scan_parquet(root / "**/*.parquet", hive_partitioning=True, hive_schema=text)
        .collect()
        .sort("symbol", "time")
    )


def answer(graph: Graph, asked: Question) -> pl.DataFrame:
    """What `get` says of the same question, symbol by symbol."""
    return pl.concat(
        series(
            graph.store, symbol, asked.places, asked.days, asked.moment, graph.scorer
        ).with_columns(symbol=pl.lit(symbol), month=pl.col("time").dt.strftime("%Y-%m"))
        for symbol in asked.symbols
    ).sort("symbol", "time")


def catalogue(root: Path) -> dict:
    return json.loads((root / "_metadata/feature_catalog.json").read_text())


def stamps(root: Path) -> dict[str, tuple[int, int]]:
    """Which file is which: another one has another inode or time."""
    return {
        str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in root.rglob("*.parquet")
    }


@pytest.fixture(scope="module")
def exported(ran: Graph, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("export") / "train"
    report = export(ran, root, question())
    assert report.written == report.total_files == 8
    assert report.total_rows == report.rows > 100
    assert not report.stale_days
    return root


# -- what it holds --------------------------------------------------------------------------------


def test_it_is_what_get_says_and_the_pages_three_readers_agree(ran, exported, monkeypatch):
    found, asked = read(exported), question()
    assert_frame_equal(found, answer(ran, asked), check_column_order=False)
    assert found.columns[:3] == ["time", "available_at", "ohlcv_1d.close"]
    assert (found["available_at"] > found["time"]).all()
    assert found.filter(pl.col("time") >= midnight(START))["rsi_14"].null_count() == 0

    monkeypatch.chdir(exported.parent)
    by_polars, by_pandas = (_run(block) for block in re.findall(_PYTHON, PAGE, re.DOTALL))
    assert_frame_equal(by_polars.sort("symbol", "time"), found)

    by_pandas = by_pandas.sort_values(["symbol", "time"])
    assert list(by_pandas.columns) == found.columns
    by_pandas["missing"] = [None if m is None else list(m) for m in by_pandas["missing"]]
    assert_frame_equal(pl.from_pandas(by_pandas, schema_overrides=dict(found.schema)), found)

    (sql,) = re.findall(r"```sql\n(.*?);  -- DuckDB\n```", PAGE, re.DOTALL)
    by_duckdb = duckdb.sql(f"{sql} ORDER BY symbol, time").pl()
    zone = pl.Datetime("us", "UTC")  # DuckDB calls it Etc/UTC
    by_duckdb = by_duckdb.with_columns(pl.col("time", "available_at").cast(zone))
    assert_frame_equal(by_duckdb.select(found.columns), found)


PAGE = (Path(__file__).parents[2] / "docs/how-to/export.md").read_text()
_PYTHON = r"```python\n(.*?)```"


def _run(block: str) -> object:
    names: dict[str, object] = {}
    exec(block, names)
    return names["frame"]


def test_the_catalogue_says_what_each_column_and_each_file_is(ran, exported):
    held = catalogue(exported)
    features = {feature["name"]: feature for feature in held["features"]}
    assert list(features) == [n for n in read(exported).columns if n not in _ABOUT_THE_ROW]
    asset, rsi = find("rsi_14")
    said = ("version", "unit", "description", "lookback_bars", "computation")
    assert features["rsi_14"].items() >= {
        "table": asset, "code_version": code_versions(ran.universe, ran.settings)[asset],
        **{name: getattr(rsi, name) for name in said},
    }.items()  # fmt: skip
    assert features["state_vectors_1d.close"]["column"] == "close"
    assert held["as_of"] == NOW.isoformat()
    assert len(held["files"]) == held["total_files"] == 8
    for path, part in held["files"].items():
        content = (exported / path).read_bytes()
        frame = pl.read_parquet(content, hive_partitioning=False)
        assert (len(content), sha256(content).hexdigest()) == (part["bytes"], part["sha256"])
        assert frame.height == part["rows"]
        assert frame["time"].is_sorted()
        rows = pl.Series(hashing.row_hashes(frame, frame.columns)).bitwise_xor()
        assert f"{rows:016x}" == part["content_hash"]
        assert part["revision"] > 0
    newest = ran.query("SELECT max(revision) AS r FROM partition_ledger WHERE day >= '2019-06-01'")
    assert part["revision"] <= newest["r"][0]


_ABOUT_THE_ROW = ("time", "available_at", "symbol", "month")


@pytest.mark.parametrize(
    "as_of",
    [
        midnight(date(2019, 6, 11)) + timedelta(hours=19),  # before the session's close
        midnight(date(2019, 6, 11)) + timedelta(hours=20, minutes=15),
        midnight(date(2019, 6, 1)),
    ],
)
def test_nothing_of_a_later_moment(ran, exported, tmp_path, as_of):
    asked = question(as_of=as_of)
    root = tmp_path / "then"
    export(ran, root, asked)
    found = read(root)
    assert_frame_equal(found, answer(ran, asked), check_column_order=False)
    whole = read(exported).filter(pl.col("available_at") <= as_of)
    assert_frame_equal(found, whole)
    assert found["available_at"].max() <= as_of

    # In the same directory, the moment moves on: only the month that it cut is written again.
    before = stamps(root)
    report = export(ran, root, question())
    assert_frame_equal(read(root), read(exported))
    after = stamps(root)
    assert {path for path in before if after[path] == before[path]} == {
        path_of(symbol, "2019-05") for symbol in SYMBOLS
    }
    assert report.written == 4


def test_names_are_those_of_get():
    assert [p.name for p in places_of(["rsi_14", "ohlcv_1d.close", "rsi_14"])] == [
        "rsi_14",
        "ohlcv_1d.close",
    ]
    whole = places_of(["state_vectors_1d"])
    assert {"state_vectors_1d.close", "rsi", "missing"} <= {p.name for p in whole}
    with pytest.raises(FeatureError, match="did you mean"):
        places_of(["rsi_15"])
    hours = places_of(usual("1h"), ALL_TABLES, "1h")
    assert {p.asset for p in hours} == set(usual("1h"))
    assert {"rsi_14", "returns_20", "state_vectors_1h.close"} >= {
        p.name for p in hours if p.column in ("rsi_14", "returns_20", "close")
    }
    with pytest.raises(FeatureError, match="cannot share a row"):
        places_of(["rsi_14", "features_1d.returns_1d"], ALL_TABLES, "1h")


def test_a_symbol_is_one_folder_and_nothing_else(tmp_path):
    for symbol in ("AAPL", "BRK.B", "EURUSD=X", "^GSPC", "7203.T", "7203", "A-", "1E5", "TRUE"):
        path = tmp_path / path_of(symbol, "2024-01")
        assert path.relative_to(tmp_path).parts[1:] == ("month=2024-01", "features.parquet")
        path.parent.mkdir(parents=True)
        pl.DataFrame({"time": [midnight(START)]}).write_parquet(path)
    wanted = {"AAPL", "BRK.B", "EURUSD=X", "^GSPC", "7203.T", "7203", "A-", "1E5", "TRUE"}
    assert set(read(tmp_path)["symbol"]) == wanted
    assert set(pd.read_parquet(tmp_path)["symbol"].astype(str)) == wanted
    assert {row[0] for row in duckdb.sql(_SYMBOLS.format(tmp_path)).fetchall()} == wanted
    for unsafe in ("..", ".", "", "/etc", "a/b", "../AAPL", "A\x00", "A B", "Ä", "%2e", "-A", "=A"):
        with pytest.raises(UniverseError, match="is no symbol"):
            path_of(unsafe, "2024-01")


_SYMBOLS = (
    "SELECT symbol FROM read_parquet('{}/**/*.parquet', hive_partitioning = true,"
    " hive_types = {{'symbol': VARCHAR, 'month': VARCHAR}})"
)


# -- what is written again ------------------------------------------------------------------------


def test_what_has_not_changed_is_not_written_again(new_ran, world, tmp_path):
    root, asked = tmp_path / "train", question()
    with new_ran() as graph:
        export(graph, root, asked)
        first, held = stamps(root), catalogue(root)
        read_again = []
        original = graph.store.read
        graph.store.read = lambda *a, **k: read_again.append(a) or original(*a, **k)
        report = export(graph, root, question(as_of=NOW + timedelta(days=1)))
        assert (report.written, report.unchanged, read_again) == (0, 8, [])
        assert stamps(root) == first

        # A bar of June is restated: of its symbol that month is other than before.
        bar = (pl.col("symbol") == "AAA") & (pl.col("time") == midnight(date(2019, 6, 12)))
        prices = [
            pl.when(bar).then(pl.col(p) * 1.01).otherwise(p).alias(p)
            for p in ("open", "high", "low", "close")
        ]
        graph.source.world = world.but(bars=world.bars.with_columns(prices))
        graph.run(assets=["ohlcv_1d", "indicators_1d"])
        report = export(graph, root, asked)
        now = stamps(root)
        assert_frame_equal(read(root), answer(graph, asked), check_column_order=False)
        assert {path for path in now if now[path] == first[path]} >= {
            path_of(symbol, "2019-05") for symbol in SYMBOLS
        }
        assert now[path_of("AAA", "2019-06")] != first[path_of("AAA", "2019-06")]
        assert now[path_of("YOUNG", "2019-06")] == first[path_of("YOUNG", "2019-06")]
        assert report.written + report.unchanged == 8

        # The same rows by other code: read again, and left as they are.
        with Dataset(root) as dataset:
            versions = code_versions(graph.universe, graph.settings) | {"indicators_1d": "new"}
            work = Export(dataset, graph.store, asked, graph.scorer, versions)
            report = work.run(work.plan())
        assert report.stale_days["indicators_1d"] > 5
        with graph.store.database.connection() as connection:
            connection.execute(
                "UPDATE partition_ledger SET code_version = 'new' WHERE asset = 'indicators_1d'"
            )
        report = export(graph, root, asked)
        assert (report.written, stamps(root)) == (0, now)
        codes = catalogue(root)["files"][path_of("AAA", "2019-06")]["code_versions"]
        assert codes["indicators_1d"] == ["new"]
        assert held["files"][path_of("AAA", "2019-06")]["code_versions"] != codes

        # What a moment before the correction knew, in a directory of its own.
        moment = graph.query("SELECT max(superseded_at) AS t FROM ohlcv_1d_history")["t"][0]
        known = question(
            ("ohlcv_1d.close", "rsi_14", "state_vectors_1d"),
            ("AAA", "YOUNG"),
            known_at=moment - timedelta(microseconds=1),
        )
        then = tmp_path / "known"
        assert export(graph, then, known).written == 4
        assert_equal(read(then).select(answer(graph, known).columns), answer(graph, known), "known")
        columns = ["symbol", "time", "ohlcv_1d.close"]
        assert_frame_equal(
            read(then).filter(symbol="AAA", time=midnight(date(2019, 6, 12))).select(columns),
            read(root).filter(symbol="AAA", time=midnight(date(2019, 6, 12))).select(columns)
            .with_columns(pl.col("ohlcv_1d.close") / 1.01),
        )  # fmt: skip
        assert (export(graph, then, known).unchanged) == 4

        # Days that retention dropped stay on the disk.
        drop(graph, "2019-06-01", *asked.assets)
        report = export(graph, root, asked)
        assert (report.kept, report.written, stamps(root)) == (4, 0, now)
        with pytest.raises(ExportError, match="cannot write again"):
            export(graph, root, question(("rsi_14",)))


def drop(graph: Graph, before: str, *assets: str) -> None:
    """As retention does it."""
    with graph.store.database.connection() as connection:
        for asset in assets:
            connection.execute(f"DELETE FROM {asset} WHERE time < '{before}'")
            connection.execute(
                "WITH gone AS (DELETE FROM partition_ledger WHERE asset = %s"
                " AND day < %s RETURNING asset, day, rows)"
                " INSERT INTO dropped_days (asset, day, rows)"
                " SELECT asset, day, sum(rows) FROM gone GROUP BY asset, day",
                [asset, before],
            )


def test_one_dropped_table_does_not_freeze_the_others(new_ran, tmp_path):
    """Its columns are carried over from the file; those of the others follow the database."""
    words = ("rsi_14", "model_version")
    root, asked = tmp_path / "train", question(words)
    june, boundary = path_of("AAA", "2019-06"), midnight(date(2019, 6, 11))
    with new_ran() as graph:
        export(graph, root, asked)
        whole = read(root)
        computed = pl.col("time").is_between(midnight(START), boundary)
        assert whole.filter(computed)["model_version"].null_count() == 0
        young = tmp_path / "young"
        export(graph, young, question(words, as_of=boundary))
        drop(graph, "2019-06-11", "regime_predictions_1d")
        report = export(graph, root, asked)
        assert (report.kept, report.written) == (4, 0)
        versions = catalogue(root)["files"][june]["code_versions"]

        # What else is in those files is computed anew, in other words of the ledger's.
        with graph.store.database.connection() as connection:
            connection.execute("UPDATE indicators_1d SET rsi_14 = 1 WHERE time = '2019-06-06'")
            connection.execute(
                "UPDATE partition_ledger SET revision = nextval('content_revision')"
                " WHERE asset = 'indicators_1d' AND day = '2019-06-06'"
            )
        export(graph, root, asked)
        changed = pl.col("time") == midnight(date(2019, 6, 6))
        expected = pl.when(changed).then(pl.lit(1.0)).otherwise("rsi_14").alias("rsi_14")
        assert_frame_equal(read(root), whole.with_columns(expected))
        assert catalogue(root)["files"][june]["code_versions"] == versions
        report = export(graph, root, asked)
        assert (report.kept, report.unchanged, report.written) == (4, 4, 0)

        # One column more, and one less that the database no longer has.
        wider = question((*words, "sma_20"))
        assert export(graph, root, wider).written == 8
        assert_frame_equal(read(root).drop("sma_20"), whole.with_columns(expected))
        assert read(root)["sma_20"].null_count() < whole.height
        with pytest.raises(ExportError, match="the database has dropped"):
            export(graph, root, question(("rsi_14",)))
        with pytest.raises(ExportError, match="the database has dropped"):
            export(graph, root, replace(wider, days=(date(2019, 6, 7), END)))

        # A file of half a month gets the other half.
        assert read(young)["time"].max() < boundary
        export(graph, young, asked)
        assert_frame_equal(read(young), whole.with_columns(expected))


def test_damage_is_mended(ran, exported, tmp_path):
    root, asked = tmp_path / "train", question()
    export(ran, root, asked)
    whole, before = read(root), catalogue(root)
    gone, cut, altered = sorted(root.rglob("*.parquet"))[:3]
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    content = altered.read_bytes()
    altered.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    report = export(ran, root, asked)
    assert (report.damaged, report.written) == (2, 2)
    report = export(ran, root, asked, verify=True)
    assert (report.damaged, report.written, report.unchanged) == (1, 1, 7)
    assert_frame_equal(read(root), whole)
    assert catalogue(root)["files"] == before["files"]


# -- whose directory it is ------------------------------------------------------------------------


def test_other_questions_and_other_peoples_directories(ran, tmp_path):
    root, asked = tmp_path / "train", question(("rsi_14",))
    for make in (lambda: tmp_path / "new", lambda: _made(tmp_path / "empty")):
        assert export(ran, make(), asked).written == 8
    strange = _made(tmp_path / "strange")
    (strange / "thesis.tex").write_text("mine")
    with pytest.raises(ExportError, match="holds something else than an export"):
        export(ran, strange, asked)
    (_made(tmp_path / "theirs") / "_metadata").mkdir()
    (tmp_path / "theirs/_metadata/feature_catalog.json").write_text("{}")
    with pytest.raises(ExportError, match="holds something else than an export"):
        export(ran, tmp_path / "theirs", asked)
    with pytest.raises(ExportError, match="cannot write to"):
        export(ran, strange / "thesis.tex" / "below", asked)
    with pytest.raises(ExportError, match="cannot write to"):
        export(ran, strange / "thesis.tex", asked)
    assert [path.name for path in strange.iterdir()] == ["thesis.tex"]

    export(ran, root, asked)
    with Dataset(root), pytest.raises(ExportError, match="another export writes to"):
        export(ran, root, asked)
    before = stamps(root)
    for narrower in (
        replace(asked, symbols=("AAA",)),
        replace(asked, days=(date(2019, 6, 1), END)),
        question(("rsi_14",), as_of=midnight(date(2019, 5, 20))),
    ):
        with pytest.raises(
            ExportError, match=r"file\(s\) that this export does not ask .* --prune"
        ):
            export(ran, root, narrower)
        assert stamps(root) == before
    report = export(ran, root, replace(asked, symbols=("AAA",)), prune=True)
    assert (report.removed, report.unchanged, report.total_files) == (6, 2, 2)
    assert {path.name for path in root.iterdir()} == {"_metadata", "symbol=AAA"}
    assert export(ran, root, question(("rsi_14", "regime"), ("AAA",))).written == 2
    assert read(root).columns == ["time", "available_at", "rsi_14", "regime", "symbol", "month"]
    (root / "_metadata/feature_catalog.json").write_text("{")
    with pytest.raises(ExportError, match="delete it"):
        export(ran, root, asked)


def _made(path: Path) -> Path:
    path.mkdir()
    return path


# -- kills ----------------------------------------------------------------------------------------


def test_a_killed_export_leaves_old_or_new_and_the_next_one_mends(ran, tmp_path):
    early = question(as_of=midnight(date(2019, 6, 11)))
    asked = question(symbols=SYMBOLS[:3])
    new = tmp_path / "new"
    export(ran, new, asked)
    hashes = {name: part["sha256"] for name, part in catalogue(new)["files"].items()}
    versions = code_versions(ran.universe, ran.settings)
    steps = [("journal", 1), ("rename", 1), ("rename", 3), ("remove", 1), ("catalogue", 1),
             ("done", 1)]  # fmt: skip
    for number, (step, occurrence) in enumerate(steps):
        root = tmp_path / str(number)
        export(ran, root, early)
        old = {name: part["sha256"] for name, part in catalogue(root)["files"].items()}
        arguments = (ran.url, root, asked, versions, step, occurrence)
        worker = _context.Process(target=die_at, args=arguments, daemon=True)
        worker.start()
        worker.join(30)
        assert worker.exitcode == -signal.SIGKILL, step
        there = {
            str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest()
            for path in root.rglob("features.parquet")
        }
        for path, found in there.items():  # whole, and one of the two
            assert found in (old[path], hashes.get(path)), (step, path)
        assert read(root).height > 0
        renamed = sum(found != old[path] for path, found in there.items())
        assert renamed == {"journal": 0, "rename": occurrence - 1}.get(step, 3), step
        report = export(ran, root, asked, prune=True)
        assert_frame_equal(read(root), read(new))
        held = {name: part["sha256"] for name, part in catalogue(root)["files"].items()}
        assert held == hashes, step
        assert report.written == 3 - renamed, step  # what was done is not done again
        assert not list(root.rglob("drafts/*"))
        assert not (root / "_metadata/journal.jsonl").exists()


def test_a_first_export_that_was_killed_is_no_stranger(ran, tmp_path):
    root, asked = tmp_path / "train", question(("rsi_14",))

    def stop(step: str) -> None:
        if step == "rename":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(ran, root, asked, stop)
    assert export(ran, root, asked).written == 8


def test_as_of_of_a_file_is_a_moment(exported):
    part = catalogue(exported)["files"][path_of("AAA", "2019-06")]
    assert datetime.fromisoformat(part["as_of"]) == NOW
    assert datetime.fromisoformat(part["settled_at"]) <= NOW
