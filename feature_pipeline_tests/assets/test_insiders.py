"""Insiders in the whole graph: from EDGAR's answers to the feature, corrections and absences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from urllib.parse import urlsplit

import dagster as dg
import polars as pl
import pytest
import yaml

from feature_pipeline.assets.describe import Describer
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.resources import code_versions
from feature_pipeline.serving.explain import Explanation, explain
from feature_pipeline.serving.lookup import Moment
from feature_pipeline.serving.names import resolve
from feature_pipeline.sources import Off
from feature_pipeline.sources.edgar import EdgarSource
from feature_pipeline.sources.http import Limits
from feature_pipeline.universe import Universe
from feature_pipeline_tests.assets import world as worlds
from feature_pipeline_tests.assets.support import Graph, assert_equal
from feature_pipeline_tests.assets.world import END, START, MadeSource, make_world
from feature_pipeline_tests.providers.edgar import Edgar, Filing, Line
from feature_pipeline_tests.providers.server import ProviderServer

ASSET, FEATURE = "insider_transactions", "insider_net_buying_90d"
CONTACT = "Example Research jane@example.com"
QUICK = Limits(requests=500, seconds=1.0, attempts=1, wait_s=2.0, deadline_s=5.0)
CIKS = {"AAA": 1001, "BBB": 1002}


def universe_with(ciks: dict[str, int]) -> Universe:
    """The made universe, in which these companies have a source of insiders."""
    said = yaml.safe_load(worlds._universe_yaml(worlds.INSTRUMENTS, "MKT"))
    for entry in said["instruments"]:
        if entry["id"] in ciks:
            entry["cik"] = ciks[entry["id"]]
            entry["source"]["insiders"] = "edgar"
    return Universe.parse(yaml.safe_dump(said))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def number(n: int) -> str:
    return f"0000001001-19-{n:06}"


FILED = {
    1001: [
        Filing(number(1), at("2019-04-03T10:00:00"), (Line("2019-04-02", "P", "10", "30"),)),
        # After the close of Monday the 10th, in New York: known to Tuesday's bar.
        Filing(number(2), at("2019-06-10T18:00:00"), (Line("2019-06-07", "S", "10", "10", "D"),)),
        Filing(number(3), at("2019-06-12T10:00:00"), document="<ownershipDocument>"),
    ],
    1002: [],
}


@contextmanager
def graph_on(
    url: str, server: ProviderServer, ciks: dict[str, int] = CIKS, **more: object
) -> Iterator[Graph]:
    """The graph with EDGAR on a local server."""
    universe = universe_with(ciks)
    source = MadeSource(make_world(universe))
    client = EdgarSource(CONTACT, data=server.url, archives=server.url, limits=QUICK)
    sources = {"made": source, "edgar": client, **more}
    graph = Graph(url, universe, source, overrides={"sources": sources})
    yield graph
    graph.close()


def service() -> Edgar:
    return Edgar({cik: list(filings) for cik, filings in FILED.items()})


@pytest.fixture(scope="module")
def whole(new_database) -> Iterator[tuple[Graph, dg.ExecuteInProcessResult]]:
    """The graph after one run of everything, and that run; not to be changed."""
    with ProviderServer() as server, new_database() as url, graph_on(url, server) as graph:
        server.routes["/"] = service()
        yield graph, graph.run()


@pytest.fixture
def edgar(provider_server) -> Edgar:
    provider_server.routes["/"] = made = service()
    return made


@pytest.fixture
def graph_of(new_database, provider_server, edgar) -> Iterator[Callable[..., Graph]]:
    """Makes graphs to be changed, on databases of their own or on one that is there."""
    with ExitStack() as stack:

        def make(ciks: dict[str, int] = CIKS, url: str | None = None, **more: object) -> Graph:
            where = url or stack.enter_context(new_database())
            return stack.enter_context(graph_on(where, provider_server, ciks, **more))

        yield make


@pytest.fixture
def graph(new_database, provider_server, edgar, whole) -> Iterator[Graph]:
    """What `whole` holds, to be changed."""
    whole[0].store.database.close()  # it opens again with its next use
    template = urlsplit(whole[0].url).path[1:]
    with new_database(template) as url, graph_on(url, provider_server) as made:
        yield made


def values(graph: Graph, symbol: str) -> dict[date, float | None]:
    rows = graph.table("features_1d").filter(pl.col("symbol") == symbol).sort("time")
    return dict(rows.select(pl.col("time").dt.date(), FEATURE).iter_rows())


def verdicts(result, asset: str) -> dict[str, bool]:
    return {
        e.check_name: e.passed
        for e in result.get_asset_check_evaluations()
        if e.asset_key.to_python_identifier() == asset
    }


def test_from_filings_to_the_feature(whole):
    graph, result = whole
    rows = graph.table(ASSET, None, None)
    assert rows["accession"].to_list() == [number(1), number(2)]
    assert rows["value"].to_list() == [300.0, 100.0]
    known = values(graph, "AAA")
    assert {day: value for day, value in known.items() if day <= date(2019, 6, 10)} == {
        day: 1.0 for day in known if day <= date(2019, 6, 10)
    }
    assert {value for day, value in known.items() if day > date(2019, 6, 10)} == {0.5}
    assert set(values(graph, "BBB").values()) == {0.0}, "nobody filed"
    assert set(values(graph, "MKT").values()) == {None}, "nobody collects"
    shown = {key: said.value for key, said in Describer(graph.store)(ASSET, END).items()}
    assert "Insider transactions per day" in shown["picture"]
    said = shown["glance"].replace("\\", "")
    assert said.startswith("2 transactions filed since 2018-06-15: 1 purchases and 1 sales")
    # The filing that cannot be read is kept, and every row accounted for.
    [lost] = graph.query(
        f"SELECT symbol, reason, day FROM quarantine WHERE asset = '{ASSET}'"
    ).rows()
    assert lost == ("AAA", "the filing cannot be read as a Form 4", date(2019, 6, 12))
    passed = verdicts(result, ASSET)
    assert passed.pop("freshness") is False, "the world of 2019"
    assert set(passed.values()) == {True}
    assert {"conservation", "no_future", "collected"} <= passed.keys()
    assert not graph.pending("features_1d")


def test_parts_of_the_range_give_what_all_of_it_gives(graph_of, whole):
    """The second part begins between two filings, the third on the day after one."""
    parts = graph_of()
    parts.run(assets=[a for a in TABLES if a not in (ASSET, "features_1d", "state_vectors_1d")])
    bounds = [START, date(2019, 6, 7), date(2019, 6, 11), date(2019, 6, 12), END]
    for start, end in pairwise(bounds):
        parts.run(start, end, (ASSET, "features_1d"))
    for asset in (ASSET, "features_1d"):
        assert_equal(parts.table(asset), whole[0].table(asset), asset)


def test_a_filing_makes_stale_what_may_have_known_it(graph, edgar):
    """And changes nothing before it: what was right on its day stays."""
    before = values(graph, "AAA")
    amended = Filing(
        number(4), at("2019-06-12T09:00:00"), (Line("2019-04-02", "P", "10", "10"),), form="4/A"
    )
    edgar.companies[1001].append(amended)
    graph.run(date(2019, 6, 12), date(2019, 6, 13), [ASSET])
    stale = graph.pending("features_1d")
    assert stale == list(pl.date_range(date(2019, 6, 12), END, closed="left", eager=True))
    graph.run()
    after = values(graph, "AAA")
    assert {day: v for day, v in after.items() if v != before[day]} == dict.fromkeys(
        [day for day in before if day >= date(2019, 6, 12)], 0.0
    )
    assert not graph.pending("features_1d")


def test_a_company_that_cannot_be_had_is_missing_and_is_asked_again(graph_of, edgar):
    filings = edgar.companies.pop(1001)
    graph = graph_of()
    result = graph.run()
    assert result.success
    assert set(values(graph, "AAA").values()) == {None}
    assert set(values(graph, "BBB").values()) == {0.0}
    assert "collected" not in [n for n, passed in verdicts(result, ASSET).items() if passed]
    assert "answered 404" in " ".join(why(graph, "AAA").missing)
    edgar.companies[1001] = filings
    graph.run(START - timedelta(days=120), END, [ASSET])  # its history failed as well
    graph.run()
    assert set(values(graph, "AAA").values()) == {1.0, 0.5}


def test_without_a_contact_nothing_fails_and_the_feature_is_missing(graph_of, provider_server):
    off = Off("edgar", "edgar is off: set FEATURE_PIPELINE_EDGAR_CONTACT to switch it on")
    graph = graph_of(edgar=off)
    assert graph.run().success
    assert provider_server.asked == []
    for symbol in ("AAA", "BBB", "MKT"):
        assert set(values(graph, symbol).values()) == {None}


def test_where_nobody_is_collected_its_days_are_complete(graph_of, provider_server, whole):
    graph = graph_of({})
    result = graph.run()
    assert provider_server.asked == []
    assert graph.table(ASSET, None, None).is_empty()
    assert graph.pending(ASSET) == graph.pending("features_1d") == []
    assert verdicts(result, ASSET)["collected"]
    assert set(graph.table("features_1d")[FEATURE]) == {None}
    # The state vector does not know of them.
    for asset in TABLES:
        if asset not in (ASSET, "features_1d"):
            assert_equal(graph.table(asset), whole[0].table(asset), asset)
    # Nothing is there of a company that is named since: it is asked for, and its days are computed.
    named = graph_of({"AAA": 1001}, url=graph.url)
    assert named.pending(ASSET)
    named.run()
    assert set(values(named, "AAA").values()) == {1.0, 0.5}
    assert set(values(named, "BBB").values()) == {None}


def why(graph: Graph, symbol: str) -> Explanation:
    moment = Moment(datetime(2019, 6, 14, 22, tzinfo=UTC))
    versions = code_versions(graph.universe)
    return explain(graph.store, symbol, resolve(FEATURE), moment, graph.scorer, versions)


def test_why_it_is_what_it_is(whole):
    told = why(whole[0], "AAA")
    assert told.value == 0.5
    assert told.recomputed.same
    assert {i.asset: i.rows for i in told.inputs}[ASSET] == 2
    said = " ".join(why(whole[0], "MKT").missing)
    assert "universe.yaml names no source of insiders for MKT" in said
