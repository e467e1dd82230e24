"""What the UI is told of where an asset comes from, and what it says is stale after a change."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import dagster as dg
import pytest
import typer
from dagster._core.definitions.data_version import (
    CachingStaleStatusResolver,
    StaleCauseCategory,
    StaleStatus,
)
from dagster._core.loader import LoadingContextForTest

import feature_pipeline
from feature_pipeline.definitions import build_defs, defs
from feature_pipeline.features import expressions as ex
from feature_pipeline.features import indicators
from feature_pipeline.features.catalogue import DECLARED, INDICATORS, TABLES, code_version, touched
from feature_pipeline.features.dependencies import Declared
from feature_pipeline.resources import code_versions
from feature_pipeline.schemas import TIMEFRAMES
from feature_pipeline.settings import Settings
from feature_pipeline_tests.assets.support import _with_versions, metadata_of
from feature_pipeline_tests.assets.world import END, SPLIT_DAY, START

GRAPH = defs.resolve_asset_graph()
ROOT = Path(feature_pipeline.__file__).parents[1]
EVERY = sorted(key.to_python_identifier() for key in GRAPH.get_all_asset_keys())
DAY = SPLIT_DAY.isoformat()

PAGES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}


def node(asset: str):
    return GRAPH.get(dg.AssetKey(asset))


# -- the page of an asset -------------------------------------------------------------------------


def test_the_groups_read_from_left_to_right():
    """In the graph: no group feeds an earlier one. In lists, which sort by name: the same order."""
    edges = {
        (GRAPH.get(parent).group_name, node(asset).group_name)
        for asset in EVERY
        for parent in node(asset).parent_keys
    }
    assert {(a, b) for a, b in edges if a != b} == {
        ("inputs", "signals"),
        ("inputs", "vectors"),
        ("signals", "vectors"),
    }
    assert all(a <= b for a, b in edges)


@pytest.mark.parametrize("asset", EVERY)
def test_who_owns_it_and_what_to_filter_by(asset):
    assert node(asset).owners
    assert all(owner.startswith("team:") for owner in node(asset).owners)
    tags = node(asset).tags
    assert tags["layer"] in ("source", "derived", "online")
    if asset in TABLES:
        assert tags["write_mode"] == TABLES[asset].mode
        assert (tags["layer"] == "derived") == TABLES[asset].derived
        assert tags.get("timeframe") == ("1d" if asset.endswith("_1d") else None)
        assert tags.get("timeframe", "1d") in TIMEFRAMES
    assert 1 <= len(node(asset).kinds) <= 3


@pytest.mark.parametrize("asset", TABLES)
def test_the_lineage_of_columns_joins_columns_that_are_there(asset):
    lineage = node(asset).metadata["dagster/column_lineage"].deps_by_column
    schema = {c.name: c for c in node(asset).metadata["dagster/column_schema"].columns}
    assert set(lineage) <= set(TABLES[asset].names)
    assert bool(lineage) == TABLES[asset].derived
    for column, deps in lineage.items():
        for dep in deps:
            above = dep.asset_key.to_python_identifier()
            assert dep.asset_key in node(asset).parent_keys
            assert dep.column_name in TABLES[above].names
            # The open-source UI shows no lineage of columns: the description does.
            assert f"[{above}](/assets/{above})" in schema[column].description


def test_columns_say_what_they_are_for():
    columns = {c.name: c for c in node("features_1d").metadata["dagster/column_schema"].columns}
    assert columns["symbol"].constraints.other == ["primary key"]
    assert columns["market_beta_60d"].tags == {"category": "cross-section", "lookback": "60 bars"}
    assert columns["social_volume_7d"].tags == {"category": "sentiment", "lookback": "7 days"}
    assert columns["sma_ratio_50"].description == (
        "Close over SMA(50). [ratio]\n\n"
        "from [ohlcv_1d](/assets/ohlcv_1d): close; [indicators_1d](/assets/indicators_1d): sma_50"
    )
    rules = node("ohlcv_1d").metadata["dagster/column_schema"].constraints.other
    assert "never: high is below low" in rules


def links(asset: str, graph=GRAPH):
    return graph.get(dg.AssetKey(asset)).metadata["dagster/code_references"].code_references


@pytest.mark.parametrize("asset", EVERY)
def test_links_to_code_lead_there(asset):
    for link in links(asset):
        path = Path(link.file_path)
        assert path.is_file()
        if link.line_number:
            first = path.read_text().splitlines()[link.line_number - 1].lstrip()
            assert first.startswith(("@dg.asset", "def compute_", "def predict_", "def score_"))
    labels = [link.label for link in links(asset)]
    if asset in DECLARED:
        assert labels == ["asset", "computation", "declarations"]


def test_links_lead_to_the_web_where_a_setting_says_so():
    url = "https://example.com/owner/repository/blob/main"
    graph = build_defs(Settings(source_url=url + "/")).resolve_asset_graph()
    for asset in EVERY:
        for link in links(asset, graph):
            assert link.url.startswith(url + "/feature_pipeline/")
            assert (ROOT / link.url.removeprefix(url + "/").partition("#")[0]).is_file()
        guide = graph.get(dg.AssetKey(asset)).metadata["how_to"].md_str
        assert set(re.findall(rf"\]\({url}/([^)]+)\)", guide)) & PAGES
        assert len(guide) < 1000
    assert links("ohlcv_1d", graph)[0].url.partition("#L")[2].isdigit()


def commands():
    from feature_pipeline.cli import app

    return typer.main.get_command(app)


@pytest.mark.parametrize("asset", EVERY)
def test_what_one_is_told_to_do_exists(asset):
    """The commands parse, and the page shows the text without a click."""
    text = node(asset).metadata["how_to"].md_str
    assert len(text) < 1000
    *_, last = text.splitlines()
    assert set(re.findall(r"`([^`]+)`", last)) <= PAGES
    for line in re.findall(r"`feature-pipeline ([^`]+)`", text):
        words = shlex.split(line)
        command = commands()
        context = None
        while isinstance(command, typer.core.TyperGroup):
            name = words.pop(0)
            context = typer.Context(command, info_name=name)
            assert name in command.commands, line
            command = command.commands[name]
        command.make_context(command.name, words, parent=context)


# -- stale ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def remembered(new_graph, world):
    """The graph after one run whose materialisations Dagster remembers."""
    with new_graph(world, materializations_of=tuple(TABLES)) as graph:
        graph.run()
        yield graph


def changed(*names: str) -> Declared:
    """The declarations with these features looking further back by a day."""
    return {
        asset: tuple(
            replace(f, lookback_days=f.lookback_days + 1) if f.name in names else f
            for f in features
        )
        for asset, features in DECLARED.items()
    }


def versions(declared: Declared, universe) -> dict[str, str]:
    held = code_versions(universe)
    return {
        asset: version.replace(code_version(asset), code_version(asset, declared=declared))
        for asset, version in held.items()
    }


def statuses(graph, versions: dict[str, str], day: str = DAY):
    """What Dagster says of each table's day, as its UI asks for it: status and categories."""
    made = _with_versions(build_defs(Settings(), **graph.resources), versions)
    resolver = CachingStaleStatusResolver(
        graph.instance, made.resolve_asset_graph(), LoadingContextForTest(graph.instance)
    )
    return {
        asset: (
            resolver.get_status(dg.AssetKey(asset), day),
            {cause.category for cause in resolver.get_stale_causes(dg.AssetKey(asset), day)},
        )
        for asset in TABLES
    }


FRESH = (StaleStatus.FRESH, set())
CODE = (StaleStatus.STALE, {StaleCauseCategory.CODE})

# One of each kind: who is touched differs, not how.
KINDS = list({touched(f.name): f.name for fs in DECLARED.values() for f in fs}.values())


def test_after_a_run_nothing_is_stale(remembered):
    assert set(map(str, statuses(remembered, code_versions(remembered.universe)).values())) == {
        str(FRESH)
    }


@pytest.mark.parametrize("name", KINDS)
def test_dagster_says_that_exactly_the_dependents_are_stale(name, remembered):
    found = statuses(remembered, versions(changed(name), remembered.universe))
    assert {asset for asset, status in found.items() if status == CODE} == set(touched(name))
    assert all(status in (FRESH, CODE) for status in found.values())


@pytest.mark.parametrize("name", KINDS)
def test_the_ledger_says_that_exactly_the_dependents_are_stale(name, remembered):
    wanted = versions(changed(name), remembered.universe)
    days = {
        asset: remembered.store.pending(asset, START, END, version).to_list()
        for asset, version in wanted.items()
    }
    assert {asset for asset, pending in days.items() if pending} == set(touched(name))
    whole = [START + timedelta(days=n) for n in range((END - START).days)]
    assert all(pending in ([], whole) for pending in days.values())


def test_a_changed_feature_that_nobody_reads_rewrites_its_own_column(new_graph, world, monkeypatch):
    """Consumers of the table look again, since it has a newer revision; they find what they held,
    and write nothing."""
    with new_graph(world) as graph:
        graph.run()
        # Computed from another day on, a recursive indicator ends in other last bits: the first run
        # began with the history of its consumers, a second one begins with the window.
        graph.run(versions=dict.fromkeys(DECLARED, "again"))
        before = graph.tables(DECLARED)
        wider = tuple(
            replace(f, expression=partial(ex.sma, 201), lookback_bars=200)
            if f.name == "sma_200"
            else f
            for f in INDICATORS
        )
        monkeypatch.setattr(indicators, "INDICATORS", wider)
        wanted = versions({**DECLARED, "indicators_1d": wider}, graph.universe)
        result = graph.run(versions=wanted)
        written = {asset: metadata_of(result, asset)["rows_written"].value for asset in DECLARED}
        assert written["indicators_1d"] > 0
        assert written["features_1d"] == written["state_vectors_1d"] == 0
        after = graph.tables(DECLARED)
        assert (
            before["indicators_1d"].drop("sma_200").equals(after["indicators_1d"].drop("sma_200"))
        )
        moved = before["indicators_1d"]["sma_200"] != after["indicators_1d"]["sma_200"]
        assert moved.any()
        for asset in ("features_1d", "state_vectors_1d"):
            assert before[asset].equals(after[asset])
        assert not any(graph.store.pending(a, START, END, v).len() for a, v in wanted.items())
