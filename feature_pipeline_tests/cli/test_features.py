"""`features`: what there is, what a change does, how a new one begins - the last on a copy."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner

import feature_pipeline
from feature_pipeline import scaffold
from feature_pipeline.cli import app
from feature_pipeline.errors import FeatureError
from feature_pipeline.features.catalogue import DECLARED, code_version, touched
from feature_pipeline.resources import code_versions, load_universe, prepare_database
from feature_pipeline.scaffold import Request
from feature_pipeline.settings import Settings
from feature_pipeline.universe import DEFAULT

ROOT = Path(feature_pipeline.__file__).parents[1]


def run(*words: str, code: int = 0, **environment: str) -> str:
    """What a command prints; its one line on stderr where it fails."""
    done = CliRunner().invoke(
        app, ["features", *words], env={"COLUMNS": "200", "NO_COLOR": "1", **environment}
    )
    assert done.exit_code == code, done.output + done.stderr
    if code:
        (line,) = done.stderr.strip().splitlines()
        return line
    return done.stdout


# -- list and show --------------------------------------------------------------------------------


def test_list_names_every_feature_once():
    shown = json.loads(run("list", "--json"))
    assert [row["name"] for row in shown] == [f.name for fs in DECLARED.values() for f in fs]
    assert {"asset", "column", "version", "unit", "lookback_bars", "description"} <= set(shown[0])
    text = run("list")
    for features in DECLARED.values():
        for feature in features:
            assert re.search(rf"^{feature.column} .*{re.escape(feature.description)}", text, re.M)


def test_list_by_asset_and_category():
    shown = json.loads(run("list", "--asset", "features_1d", "--category", "momentum", "--json"))
    assert [row["name"] for row in shown] == ["momentum_20d", "momentum_60d"]
    assert "there is cross-section" in run("list", "--category", "none", code=1)
    assert "ohlcv_1d has no features" in run("list", "--asset", "ohlcv_1d", code=1)


def test_features_of_other_bars(nothing_runs):
    shown = json.loads(run("list", "--timeframe", "1h", "--json"))
    assert {row["asset"] for row in shown} == {"indicators_1h", "features_1h", "state_vectors_1h"}
    assert "returns_20" in {row["name"] for row in shown}
    assert json.loads(run("list", "--asset", "features_5m", "--json"))[0]["asset"] == "features_5m"
    assert "there is no timeframe '2h'" in run("list", "--timeframe", "2h", code=1)
    one = json.loads(run("show", "atr_14", "--timeframe", "1h", "--json", **nothing_runs))
    assert (one["asset"], one["stale_with_it"]) == (
        "indicators_1h",
        ["indicators_1h", "state_vectors_1h"],
    )


@pytest.fixture
def nothing_runs(make_home) -> dict[str, str]:
    return {"FEATURE_PIPELINE_HOME": str(make_home())}


def test_show_says_all_of_a_declaration(nothing_runs):
    shown = json.loads(run("show", "atr_14", "--json", **nothing_runs))
    assert shown["column"] == "atr_14"
    assert shown["basis"] == "own day"
    assert "ohlcv_1d.high" in shown["inputs"]
    assert "state_vectors_1d.macd" in shown["dependents"]
    assert shown["stale_with_it"] == list(touched("atr_14"))
    assert shown["code_version"] == code_version("indicators_1d")
    assert "talib.atr" in shown["source"]
    assert "feature-pipeline up" in shown["stored"], "no server was started for it"
    text = run("show", "sector_momentum", **nothing_runs)
    assert "Mean of the 20-bar returns" in text
    assert "the universe" in text


def test_show_of_a_misspelt_name(nothing_runs):
    assert "did you mean" in run("show", "atr_15", code=1, **nothing_runs)


# -- diff -----------------------------------------------------------------------------------------


@pytest.fixture
def filled(migrated_database_url, redis_url, make_home):
    """A database whose days were all computed by the code at hand, and how to ask it."""
    prepare_database(migrated_database_url)
    versions = code_versions(load_universe(Settings()))
    with psycopg.connect(migrated_database_url, autocommit=True) as link:
        for asset, version in versions.items():
            link.execute(
                "INSERT INTO partition_ledger (asset, source, day, status, rows, content_hash,"
                " revision, upstream_revision, code_version, token, run_id)"
                " SELECT %s, 'derived', day, 'written', 5, 0, 1, 1, %s, 1, 'run'"
                " FROM generate_series('2012-01-02'::date, '2012-01-11', '1 day') AS day",
                [asset, version],
            )
        environment = {
            "FEATURE_PIPELINE_DATABASE_URL": migrated_database_url,
            "FEATURE_PIPELINE_REDIS_URL": redis_url,
            "FEATURE_PIPELINE_HOME": str(make_home()),
        }
        yield link, environment


def difference(environment: dict[str, str]) -> dict:
    return json.loads(run("diff", "--json", **environment))


def test_nothing_changes_where_the_same_code_wrote_everything(filled):
    _, environment = filled
    found = difference(environment)
    assert not any(found[name] for name in ("changes", "missing", "unknown", "assets"))
    assert "nothing changes" in run("diff", **environment)


def test_days_of_other_code_are_counted(filled):
    link, environment = filled
    link.execute(
        "UPDATE partition_ledger SET code_version = 'older' WHERE asset = 'indicators_1d'"
        " AND day BETWEEN '2012-01-03' AND '2012-01-06'"
    )
    (row,) = difference(environment)["assets"]
    assert (row["asset"], row["days"], row["of_days"], row["rows"]) == ("indicators_1d", 4, 10, 20)
    assert (row["first"], row["last"]) == ("2012-01-03", "2012-01-06")
    assert row["before"] == ["older"]
    assert row["code_version"] == code_version("indicators_1d")
    text = run("diff", **environment)
    assert "4 of 10, 2012-01-03 to 2012-01-06" in text
    assert "backfill --start 2012-01-03 --end 2012-01-06 --assets indicators_1d" in text
    shown = json.loads(run("show", "sma_20", "--json", **environment))
    assert shown["stored"]["days"] == 4


@pytest.mark.parametrize(
    ("update", "kind", "what"),
    [
        ("lookback_bars = 12", "changed", "lookback bars 12 -> 49"),
        ("version = 3", "changed", "version 3 -> 1"),
        ("computation = 'sma(51)'", "changed", "computation sma(51) -> sma(50)"),
        ("dependencies = '{ohlcv_1d.open}'", "changed", "no longer ohlcv_1d.open"),
        ("description = 'Other.'", "reworded", "description Other."),
    ],
)
def test_a_changed_declaration_says_what_and_who_follows(filled, update, kind, what):
    link, environment = filled
    link.execute(f"UPDATE feature_definitions SET {update} WHERE name = 'sma_50'")
    (change,) = difference(environment)["changes"]
    assert (change["feature"], change["kind"]) == ("sma_50", kind)
    assert what in "; ".join(change["what"])
    stale = ["indicators_1d", "features_1d"] if kind == "changed" else []
    assert change["stale"] == stale
    assert what in run("diff", **environment)


def test_new_and_gone_features(filled):
    link, environment = filled
    link.execute("DELETE FROM feature_definitions WHERE name = 'adx_14'")
    link.execute("UPDATE feature_definitions SET name = 'old_one' WHERE name = 'returns_5d'")
    kinds = {c["feature"]: (c["kind"], c["stale"]) for c in difference(environment)["changes"]}
    assert kinds == {
        "adx_14": ("new", list(touched("adx_14"))),
        "returns_5d": ("new", ["features_1d"]),
        "old_one": ("removed", ["features_1d"]),
    }


def test_what_other_bars_have_counts_where_the_universe_has_them(filled, tmp_path):
    link, environment = filled
    link.execute("UPDATE partition_ledger SET asset = 'features_1h' WHERE asset = 'features_1d'")
    link.execute("DELETE FROM partition_ledger WHERE asset <> 'features_1h'")
    link.execute("DELETE FROM feature_definitions WHERE name = 'returns_20'")
    assert not difference(environment)["changes"]
    hours = tmp_path / "universe.yaml"
    hours.write_text("timeframes: [1d, 1h]\n" + DEFAULT.read_text(encoding="utf-8"))
    environment = environment | {"FEATURE_PIPELINE_UNIVERSE": str(hours)}
    found = difference(environment)
    assert [(c["feature"], c["asset"], c["stale"]) for c in found["changes"]] == [
        ("returns_20", "features_1h", ["features_1h"])
    ]
    assert [(row["asset"], row["days"]) for row in found["assets"]] == [("features_1h", 10)]


def test_columns_that_only_one_side_has(filled):
    link, environment = filled
    link.execute("DROP VIEW indicators, feature_values")
    link.execute("ALTER TABLE indicators_1d DROP COLUMN rsi_14, ADD COLUMN former double precision")
    found = difference(environment)
    assert found["missing"] == ["indicators_1d.rsi_14"]
    assert found["unknown"] == ["indicators_1d.former"]
    text = run("diff", **environment)
    assert "not in the database: indicators_1d.rsi_14; no migration adds it" in text
    assert "no longer written, and kept as it is: indicators_1d.former" in text


def test_diff_of_a_database_that_was_never_migrated(database_url, redis_url, make_home):
    line = run(
        "diff",
        code=1,
        FEATURE_PIPELINE_DATABASE_URL=database_url,
        FEATURE_PIPELINE_REDIS_URL=redis_url,
        FEATURE_PIPELINE_HOME=str(make_home()),
    )
    assert "feature-pipeline migrate" in line


# -- new ------------------------------------------------------------------------------------------

SMA_30 = Request(
    "sma_30",
    "indicators_1d",
    "price",
    "trend",
    "Simple moving average of the last 30 closes.",
    29,
    expression="ex.sma(30)",
)


def but(**changes: object) -> Request:
    return Request(**{**vars(SMA_30), **changes})


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (but(name="sma_50"), "has a feature 'sma_50' already"),
        (but(name="vix"), "has a feature 'vix' already"),
        (but(name="Sma"), "lower-case letters"),
        (but(name="1st"), "begin with a letter"),
        (but(name="a-b"), "lower-case letters"),
        (but(name="x; DROP TABLE y"), "lower-case letters"),
        (but(name="sma__v2"), "ends like a version"),
        (but(name="x" * 64), "64 characters"),
        (but(name="class"), "reserved"),
        (but(name="user"), "reserved"),
        (but(name="symbol"), "computed from"),
        (but(name="close"), "has a feature 'close' already"),
        (but(name="sector", asset="features_1d"), "computed from"),
        (but(name="total_close", asset="features_1d"), "computed from"),
        (but(name="run_id"), "computed from"),
        (but(asset="state_vectors_1d"), "the state vector is fixed"),
        (but(asset="ohlcv_1d"), "it has no features"),
        (but(asset="nothing"), "it has no features"),
        (but(unit=" "), "--unit"),
        (but(description="Two\nlines."), "--description"),
        (but(description="No stop"), "full stop"),
        (but(lookback_bars=-1), "negative"),
        (but(expression="ex.nothing(3)"), "no call of a function"),
        (but(expression="ex.sma(3"), "no call of a function"),
        (but(expression="__import__('os').system('true')"), "no call of a function"),
        (but(expression="ex.np.zeros(3)"), "no call of a function"),
        (but(expression="ex.sma(bars)"), "no call of a function"),
        (but(expression="ex.sma()"), "missing 1 required positional argument"),
        (but(expression="ex.returned(1)"), "no call of a function"),
        (but(expression='ex.prepared("sma_20")'), "reads sma_20"),
        (but(expression="ex.sma_ratio()"), "reads sma_50"),
        (but(name="sma", expression=""), "there is a function sma"),
    ],
)
def test_what_cannot_be_declared_is_refused(request_, why):
    with pytest.raises(FeatureError, match=re.escape(why)) as error:
        scaffold.draft(request_)
    assert "\n" not in str(error.value)


def test_a_feature_of_a_feature_of_a_feature_is_refused():
    """The table is evaluated in two steps."""
    with pytest.raises(FeatureError, match="reads sector_momentum"):
        scaffold.draft(
            but(asset="features_1d", name="x", expression='ex.prepared("sector_momentum")')
        )


def test_new_says_in_one_line_what_it_refuses():
    line = run(
        "new", "sma_50", "--unit", "price", "--category", "trend", "--description", "Again.", code=1
    )
    assert line.startswith("feature-pipeline: indicators_1d has a feature 'sma_50' already")


def test_a_place_without_source_is_refused(tmp_path):
    with pytest.raises(FeatureError, match=r"in a checkout"):
        scaffold.draft(SMA_30, tmp_path)


@pytest.fixture(scope="module")
def _tree(tmp_path_factory) -> Path:
    """A copy of the source tree."""
    root = tmp_path_factory.mktemp("tree") / "checkout"
    for name in ("feature_pipeline", "feature_pipeline_tests", "sql"):
        shutil.copytree(
            ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.png")
        )
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


@pytest.fixture
def tree(_tree, tmp_path) -> Path:
    return Path(shutil.copytree(_tree, tmp_path / "checkout"))


def inside(tree: Path, *words: str, code: int = 0, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FEATURE_PIPELINE_")}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tree,
        env={**kept, "PYTHONPATH": str(tree), "COLUMNS": "200", "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def begin(tree: Path, name: str, *words: str) -> str:
    return inside(tree, "-m", "feature_pipeline.cli", "features", "new", name, *words)


REQUESTS = {
    "sma_30": (
        *("--asset", "indicators_1d", "--unit", "price", "--category", "trend"),
        *("--description", "Simple moving average of the last 30 closes."),
        *("--lookback-bars", "29", "--expression", "ex.sma(30)"),
    ),
    "macd_hist_twice": (
        *("--asset", "indicators_1d", "--unit", "price", "--category", "momentum"),
        *("--description", "The histogram, once more.", "--lookback-bars", "264"),
        *("--expression", "ex.macd().macdhist"),
    ),
    "returns_3d": (
        *("--unit", "fraction", "--category", "returns", "--lookback-bars", "3"),
        *("--description", "Simple total return over 3 sessions."),
    ),
    "rsi_again": (
        *("--unit", "0-100", "--category", "momentum", "--expression", 'ex.prepared("rsi_14")'),
        *("--description", 'A sentence with "quotes", a back\\slash and so many words that ' * 2),
    ),
    "twice_returned": (
        *("--unit", "fraction", "--category", "returns", "--lookback-bars", "5"),
        *("--description", "A feature of a feature.", "--expression", 'ex.prepared("returns_5d")'),
    ),
}
REQUESTS["rsi_again"] = (*REQUESTS["rsi_again"][:-1], REQUESTS["rsi_again"][-1] + "ends.")


def test_what_is_written_is_what_we_would_write(tree):
    """All kinds, one after the other: formatted, typed, and migrations in a row."""
    for name, words in REQUESTS.items():
        said = begin(tree, name, *words)
        assert f"wrote feature_pipeline_tests/features/test_feature_{name}.py" in said
    numbers = sorted(path.name[:4] for path in (tree / "sql").glob("[0-9]*.sql"))
    assert numbers == [f"{n:04}" for n in range(1, len(numbers) + 1)]
    changed = [
        "feature_pipeline/features/declarations.py",
        "feature_pipeline/features/expressions.py",
        *(f"feature_pipeline_tests/features/test_feature_{name}.py" for name in REQUESTS),
    ]
    inside(tree, "-m", "ruff", "check", *changed)
    inside(tree, "-m", "ruff", "format", "--check", *changed)
    listed = json.loads(inside(tree, "-m", "feature_pipeline.cli", "features", "list", "--json"))
    added = {row["name"]: row for row in listed if row["name"] in REQUESTS}
    assert set(added) == set(REQUESTS)
    assert added["sma_30"]["asset"] == "indicators_1d"
    assert added["rsi_again"]["description"] == REQUESTS["rsi_again"][-1]
    source = (tree / "feature_pipeline/features/declarations.py").read_text()
    assert 'inputs={INDICATORS_ASSET: ("rsi_14",)},' in source
    assert 'needs=("returns_5d",),' in source
    assert 'part="macdhist",' in source
    # What was there is still there, in its order; what the declarations say is what is computed.
    inside(
        tree,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider"),
        "feature_pipeline_tests/features/test_catalogue.py",
        "feature_pipeline_tests/features/test_staleness.py",
        "feature_pipeline_tests/storage/test_migrations.py::test_tables_are_what_the_schemas_say",
    )


def test_diff_against_a_commit(tree):
    git = ["git", "-C", str(tree), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    diff = ("-m", "feature_pipeline.cli", "features", "diff", "--against")
    assert "nothing changes: HEAD agrees" in inside(tree, *diff, "HEAD")
    declarations = tree / "feature_pipeline/features/declarations.py"
    declarations.write_text(
        declarations.read_text().replace("_ema(12, memory=120)", "_ema(12, 130)")
    )
    begin(tree, "sma_30", *REQUESTS["sma_30"])
    found = json.loads(inside(tree, *diff, "HEAD", "--json"))
    assert {c["feature"]: (c["kind"], c["what"]) for c in found["changes"]} == {
        "ema_12": ("changed", ["lookback bars 119 -> 129"]),
        "sma_30": ("new", []),
    }
    assert [row["asset"] for row in found["assets"]] == ["indicators_1d"]
    assert "git knows no commit 'nothing'" in inside(tree, *diff, "nothing", code=1)
    assert "git knows no commit '--output=x'" in inside(tree, *diff, "--output=x", code=1)


def test_a_feature_from_nothing_to_its_values_in_the_database(
    tree, database_url, redis_url, make_home
):
    environment = {
        "FEATURE_PIPELINE_DATABASE_URL": database_url,
        "FEATURE_PIPELINE_REDIS_URL": redis_url,
        "FEATURE_PIPELINE_HOME": str(make_home()),
    }
    prepare_database(database_url)
    said = begin(tree, "returns_3d", *REQUESTS["returns_3d"])
    assert "write the expression: feature_pipeline/features/expressions.py" in said
    test = "feature_pipeline_tests/features/test_feature_returns_3d.py"
    pytest_ = ("-m", "pytest", "-q", "-p", "no:cacheprovider")

    failing = inside(tree, *pytest_, test, code=1)
    assert "compute returns_3d at the last of CLOSES by hand" in failing
    assert failing.startswith("F. "), "the other one holds for any expression"
    path = tree / test
    # The last four of 33 closes from 100 on.
    path.write_text(path.read_text().replace("expected = None", "expected = 132 / 129 - 1"))
    inside(tree, *pytest_, test)

    golden = "feature_pipeline_tests/features/test_golden.py"
    assert "write the values of the new version" in inside(tree, *pytest_, golden, code=1)
    assert "-m feature_pipeline_tests.features.test_golden" in said
    inside(tree, "-m", "feature_pipeline_tests.features.test_golden")
    inside(tree, *pytest_, golden)

    diff = ("-m", "feature_pipeline.cli", "features", "diff")
    before = inside(tree, *diff, **environment)
    assert "new column features_1d.returns_3d" in before
    assert "not in the database: features_1d.returns_3d; run: feature-pipeline migrate" in before
    inside(tree, "-m", "feature_pipeline.cli", "migrate", **environment)
    assert "nothing changes" in inside(tree, *diff, **environment)

    inside(tree, "-m", "feature_pipeline_tests.assets.support", database_url)
    with psycopg.connect(database_url) as link:
        same, rows = link.execute(
            "SELECT count(*) FILTER (WHERE returns_3d IS NOT NULL), count(*) FROM features"
        ).fetchone()
        assert 0 < same <= rows, "the view has the new column, and it has values"
        registered = link.execute(
            "SELECT lookback_bars, is_active FROM feature_definitions WHERE name = 'returns_3d'"
        ).fetchone()
        assert registered == (3, True)
