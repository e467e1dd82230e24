"""Bootstrapping: an empty database, live providers, a long range - and a kill in its middle."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta

import polars as pl
import psutil
import pytest

from feature_pipeline.automation import estimate as estimates
from feature_pipeline.automation.backfill import runs_for
from feature_pipeline.automation.estimate import Estimate, Work, estimate
from feature_pipeline.resources import CREDENTIALS, code_versions, sources, store
from feature_pipeline.settings import Settings
from feature_pipeline.sources import Kind, seconds_per_call
from feature_pipeline.sources.http import Limits
from feature_pipeline.sources.sample import SampleSource
from feature_pipeline.universe import Universe
from feature_pipeline_tests.assets.markets import URL_VARIABLE, Markets, universe_yaml
from feature_pipeline_tests.assets.support import Graph, assert_same_tables
from feature_pipeline_tests.assets.world import MadeSource, World
from feature_pipeline_tests.automation.places import Place
from feature_pipeline_tests.automation.test_backfill import settled, workers
from feature_pipeline_tests.providers.dukascopy import PATH
from feature_pipeline_tests.providers.server import Answer, ProviderServer, Request
from feature_pipeline_tests.stack.helpers import packages, until

START, END = date(2022, 3, 1), date(2024, 1, 1)
ASSETS = ("ohlcv_1d", "corporate_actions", "indicators_1d")
WORDS = (
    *("backfill", "--start", str(START), "--end", str(END - timedelta(days=1))),
    *("--assets", ",".join(ASSETS)),
)
MAIN = (sys.executable, "-m", "feature_pipeline_tests.automation.bootstrap")


@pytest.fixture
def markets(provider_server: ProviderServer) -> Markets:
    return Markets(provider_server, START, END + timedelta(days=30), "coinbase")


@contextmanager
def command(place: Place, server: ProviderServer) -> Iterator[subprocess.Popen]:
    variables = {"NO_COLOR": "1", "COLUMNS": "200", URL_VARIABLE: server.url}
    with subprocess.Popen(
        [*MAIN, *WORDS],
        env=place.environment | packages() | variables,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def finished(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, (out, err)
    return out


def written(place: Place) -> set[tuple[str, date]]:
    return set(place.query("SELECT DISTINCT asset, day FROM partition_ledger").iter_rows())


def fx_asked(asked: list[Request]) -> list[date]:
    """The first days that Dukascopy was asked for."""
    found = [int(r.query["last_update"]) for r in asked if r.path == PATH]
    return [datetime.fromtimestamp(ms / 1000, UTC).date() for ms in found]


def test_killed_in_the_middle_of_a_fetch_it_goes_on_where_it_was(
    new_place, new_database, markets, provider_server
):
    place = new_place(universe_yaml(START, "coinbase"))
    reached, let_go = threading.Event(), threading.Event()

    def hold_the_second_run(request: Request) -> Answer:
        if len(fx_asked(provider_server.asked)) > 2:  # bid and ask of the first
            reached.set()
            let_go.wait(60)
        return markets.fx.answer(request)

    provider_server.routes[PATH] = hold_the_second_run
    with command(place, provider_server) as process:
        until(lambda: reached.is_set() or process.poll() is not None, "no second run", 240)
        alive = workers(process.pid)
        assert alive, process.communicate(timeout=10) if process.poll() is not None else ""
        process.send_signal(signal.SIGKILL)
        out = process.communicate(timeout=30)[0]
        assert psutil.wait_procs(alive, timeout=30)[1] == []
    let_go.set()
    settled(place)
    (total, runs) = re.search(r": (\d+) partitions in (\d+) run\(s\), about", out).groups()
    assert (int(total), int(runs)) == (len(ASSETS) * (END - START).days, 2)
    before = written(place)
    kept = {day for asset, day in before if asset == "ohlcv_1d"}
    assert (min(kept), max(kept)) == (START, START + timedelta(days=len(kept) - 1))
    assert 0 < len(kept) < (END - START).days
    assert {asset for asset, _ in before} == set(ASSETS), "a run does all of its days"

    # The same command again: nothing that is there is asked for, or written.
    first_asked = len(provider_server.asked)
    with command(place, provider_server) as process:
        out = finished(process)
    rest = int(re.search(r": (\d+) partitions in 1 run\(s\), about", out).group(1))
    assert rest == int(total) - len(before)
    assert f"{rest}/{rest} partitions in " in out
    assert written(place) > before
    again = provider_server.asked[first_asked:]
    assert fx_asked(again) == [max(kept) + timedelta(days=1)] * 2
    assert not [r for r in again if r.path.startswith("/v8/") and _until(r) <= max(kept)]

    # And all is as if nothing had happened: as one run of everything has it.
    with new_database() as url:
        whole = Graph(url, markets.universe, MadeSource(World(*[None] * 4)))
        whole.overrides = {"sources": markets.sources(datetime.now(UTC))}
        whole.run(START, END, ASSETS)
        assert_same_tables(
            {asset: place.tables(START, END)[asset] for asset in ASSETS},
            whole.tables(ASSETS, START, END),
        )
        assert whole.table("indicators_1d", START, END).height > 1500
        whole.close()


def _until(request: Request) -> date:
    return datetime.fromtimestamp(int(request.query["period2"]), UTC).date()


# -- how long a run is ----------------------------------------------------------------------------


class Provider:
    """Answers nobody; says what it costs."""

    def __init__(self, name: str, seconds: float, days: int = 0) -> None:
        self.name, self.days = name, days
        self.limits = Limits(requests=1, seconds=seconds)

    def calls(self, kind: Kind, instruments, start: date, end: date) -> int:
        """One request per instrument, or one per so many days of each."""
        pages = -(-(end - start).days // self.days) if self.days else 1
        return len(instruments) * pages if kind == "bars" else 0


def outlook(place: Place, share: Provider, fx: Provider, coin: Provider, **more) -> Estimate:
    held = store(place.settings)
    with held.database:
        return estimate(
            held,
            code_versions(held.universe),
            {"yfinance": share, "dukascopy": fx, "coinbase": coin},
            SampleSource(),
            START,
            END,
            assets=["ohlcv_1d", "indicators_1d"],
            **more,
        )


def test_runs_are_as_long_as_a_kill_may_cost(new_place):
    place, whole = new_place(universe_yaml(START, "coinbase")), (END - START).days
    quick, none = Provider("a", 0.5), Provider("b", 0.0)

    # A handful of questions: one run.
    found = outlook(place, quick, quick, quick)
    assert (found.days_per_run, found.turns) == (0, 1)
    assert found.work["ohlcv_1d"].calls == 3
    assert found.work["ohlcv_1d"].asking_s == pytest.approx(1.5)
    assert found.seconds >= 1.5 + estimates.START_S

    # A request a day, a second each: a year's run takes longer than a kill may cost.
    found = outlook(place, quick, quick, Provider("c", 1.0, days=1))
    assert found.days_per_run == 366
    assert found.work["ohlcv_1d"].calls == whole + 2 * 2
    plan = runs_for(found)
    assert [chunk.start for chunk in plan] == [START, START + timedelta(days=366)]
    assert plan[-1].end == END
    assert [chunk.turn for chunk in plan] == [0, 1], "one after the other: they share a pace"

    # A request in ten days: runs of more than a year are short enough.
    found = outlook(place, quick, quick, Provider("c", 2.5, days=10))
    assert found.turns == 2
    assert found.work["ohlcv_1d"].asking_s / 2 <= estimates.ASKING_S
    found = outlook(place, quick, quick, Provider("c", 1.5, days=10))
    assert (found.turns, found.days_per_run) == (1, 0)

    # Who is asked as often for a year as for ten is asked once, whoever is asked beside.
    for beside in (none, Provider("b", 2.5, days=10)):
        found = outlook(place, Provider("a", 1000.0), beside, none)
        assert (found.days_per_run, found.turns) == (0, 1)

    # Nobody is asked over the network: nothing is cut, and runs may go side by side.
    found = outlook(place, none, none, none)
    assert (found.days_per_run, found.asks) == (0, False)
    assert {chunk.turn for chunk in runs_for(found, days_per_run=100)} == {0}

    # A setting has the last word.
    found = outlook(place, quick, quick, quick, days_per_run=500)
    assert (found.days_per_run, found.turns) == (500, 2)
    assert found.work["ohlcv_1d"].calls == 6


def test_a_run_is_as_long_as_what_it_asks_itself():
    """Not what others ask in their first runs, later."""
    paced, years = Provider("a", 0.25, days=1), [START + timedelta(days=366 * n) for n in range(4)]
    question = [estimates._Question(paced, "bars", ("A",))]
    spans = ((years[0], years[3]),)

    def work(first: date, end: date) -> dict[str, Work]:
        return {f"{first}": Work(f"{first}", pl.date_range(first, end, closed="left", eager=True))}

    both = work(years[0], years[1]) | work(years[2], years[3])
    step = estimates._days_per_run(both, dict.fromkeys(both, question), spans)
    assert step == 366 * 3 / 2, "the first year is in one run, the last one in the other"


def test_whoever_is_asked_over_the_network_has_a_pace():
    keys = {name: "x y@z.example" for names in CREDENTIALS.values() for name in names}
    found = sources(Settings(**keys), Universe.load())
    paces = {name: seconds_per_call(source) for name, source in found.items()}
    assert [name for name, pace in paces.items() if pace == 0.0] == ["sample"]
    assert seconds_per_call(object()) == 0.0
