"""Macro series through the whole graph: a vector uses what had been released by its moment.

The revision history lies on a local server that speaks ALFRED; the oracle looks at the history
alone, release by release, and shares no code with the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

from feature_pipeline.assets import recency
from feature_pipeline.sources.fred import SERIES, FredSource, Series
from feature_pipeline.sources.http import Limits
from feature_pipeline_tests.assets.support import assert_same_tables
from feature_pipeline_tests.assets.world import END, START, midnight
from feature_pipeline_tests.providers.fred import KEY, Fred, Release, Told
from feature_pipeline_tests.providers.server import ProviderServer

NEW_YORK = ZoneInfo("America/New_York")
LIMITS = Limits(requests=10_000, seconds=1)
FROM = START - timedelta(days=40)
FIELDS = {"vix": "VIXCLS", "fed_funds": "DFF", "yield_curve": "T10Y2Y"}
SCALES = {"vix": (10, 70, 0, 1), "fed_funds": (0, 10, 0, 1), "yield_curve": (0, 3, -1, 1)}

# The hours lie before, after, and at the moment of a vector (16:15 in New York).
RELEASED = {
    "VIXCLS": Series(time(10), releases=True),
    "DFF": Series(time(17), releases=True),
    "T10Y2Y": Series(time(16, 15), releases=True),
    "CPIAUCSL": SERIES["CPIAUCSL"],
}


def history(seed: int, centre: float, spread: float, every: int = 1) -> list[Release]:
    """Observations from a month before the window to its end: released one to four days later, some
    together, two in three revised up to three times within ten days, some on the day of another
    one's release, some back to what they were, some withdrawn."""
    rng = np.random.default_rng(seed)
    found: list[Release] = []
    for number in range(0, (END - FROM).days, every):
        about = FROM + timedelta(days=number)
        day = about + timedelta(days=int(rng.integers(1, 5)))
        values = [f"{rng.normal(centre, spread):.2f}"]
        for _ in range(int(rng.integers(0, 4))):
            drawn = rng.random()
            values.append(
                "." if drawn < 0.1
                else values[0] if drawn < 0.3
                else f"{rng.normal(centre, spread):.2f}"
            )  # fmt: skip
        for value in values:
            found.append((day, about, value))
            day += timedelta(days=int(rng.integers(1, 4)))
    return found


def told() -> dict[str, Told]:
    return {
        "VIXCLS": Told(history(1, 25, 12), "VIX", "Index"),
        "DFF": Told(history(2, 3, 2), "Funds"),
        "T10Y2Y": Told(history(3, 0.5, 1.5), "Curve"),
        "CPIAUCSL": Told(history(4, 250, 3, every=7), "Prices", "Index 1982-1984=100", "M"),
    }


def known(releases: list[Release], hour: time, moment: datetime) -> float | None:
    """The oracle: of what was released by then, the newest date in its newest release."""
    best: tuple[date, date] | None = None
    value = None
    for released, about, text in releases:
        at = datetime.combine(released, hour, NEW_YORK).astimezone(UTC)
        if text != "." and at <= moment and (best is None or (about, released) > best):
            best, value = (about, released), float(text)
    return value


def scaled(field: str, value: float) -> float:
    centre, scale, low, high = SCALES[field]
    return min(max((value - centre) / scale, low), high)


def assert_vectors_know(vectors: pl.DataFrame, of: Mapping[str, Told]) -> None:
    assert vectors.height > 20
    for row in vectors.iter_rows(named=True):
        for field, series in FIELDS.items():
            value = known(list(of[series].releases), RELEASED[series].hour, row["available_at"])
            assert value is not None
            assert row[field] == pytest.approx(scaled(field, value), abs=1e-12), (row, series)


@pytest.fixture(scope="module")
def alfred():
    with ProviderServer() as server:
        server.routes["/fred"] = Fred(told(), today=END)
        yield server


def source_at(alfred: ProviderServer, moment: datetime, catalogue=RELEASED) -> FredSource:
    """FRED as it is at a moment: the server says nothing that is released later."""
    alfred.routes["/fred"].today = moment.astimezone(NEW_YORK).date()
    return FredSource(
        KEY,
        catalogue=catalogue,
        root_url=f"{alfred.url}/fred",
        limits=LIMITS,
        clock=lambda: moment,
    )


@pytest.fixture(scope="module")
def full(new_graph, world, alfred):
    """Everything in one run, after all of it was released."""
    source = source_at(alfred, midnight(END + timedelta(days=30)))
    with new_graph(world, overrides={"macro_source": source}) as graph:
        graph.run()
        yield graph


def test_a_vector_uses_what_had_been_released_by_its_moment(full):
    of = told()
    assert_vectors_know(full.table("state_vectors_1d"), of)
    # Revisions made a difference: with the newest values, vectors of the past would be others.
    newest = {
        series: Told([(r, about, last) for r, about, _ in t.releases for last in [_last(t, about)]])
        for series, t in of.items()
    }
    with pytest.raises(AssertionError):
        assert_vectors_know(full.table("state_vectors_1d"), newest)


def _last(of: Told, about: date) -> str:
    return max((r, v) for r, a, v in of.releases if a == about and v != ".")[1]


def test_a_read_as_of_any_moment_sees_what_had_been_released(full):
    """Of a series that no vector reads as well: prices, from 08:30 on."""
    first = _collected_from(full)
    of = {name: [r for r in t.releases if r[0] >= first] for name, t in told().items()}
    for day in pl.date_range(START, END, closed="left", eager=True):
        for hour in (12, 13, 21):  # before and after their hour; after that of the rates
            moment = midnight(day) + timedelta(hours=hour)
            found = full.store.newest_macro(moment)
            for series, value in found.select("series_id", "value").iter_rows():
                assert value == known(of[series], RELEASED[series].hour, moment), (series, moment)


@pytest.mark.parametrize(("days", "behind"), [(1, 0), (20, 3), (60, 4)])
def test_a_monthly_series_is_behind_later_than_a_daily_one(full, days, behind):
    last = midnight(END + timedelta(days=days))
    found = recency.freshness(replace(full.store, clock=lambda: last), "macro_indicators")
    assert found.passed == (behind == 0)
    assert found.numbers.get("behind", 0) == behind
    assert ("CPIAUCSL" in found.says or "1 more" in found.says) == (behind == 4)


def _collected_from(graph) -> date:
    """The first day of which the run collected macro series, for its vectors' lookback."""
    return graph.store.ledger.revisions("macro_indicators", FROM, END)["day"][0]


def test_day_by_day_is_what_one_run_is(new_graph, world, alfred, full):
    """Each day is collected when it is over, from a server that knows nothing of what comes."""
    both = ("macro_indicators", "state_vectors_1d")
    others = [asset for asset in full.store.tables if asset not in both]
    with new_graph(world, overrides={}) as graph:
        graph.run(assets=others)
        for day in pl.date_range(START, END, closed="left", eager=True):
            evening = midnight(day + timedelta(days=1)) - timedelta(minutes=1)
            graph.overrides = {"macro_source": source_at(alfred, evening)}
            graph.run(day, day + timedelta(days=1), both)
        assert graph.pending("state_vectors_1d") == []
        assert_same_tables(graph.tables(both), full.tables(both))


def test_daily_series_are_known_after_their_lag(new_graph, world, alfred):
    """As they come by default: one value a date, from the moment that its lag gives."""
    of = {
        series: Told(
            [(FROM, about, v) for about, v in sorted({a: v for _, a, v in t.releases}.items())]
        )
        for series, t in told().items()
        if series in FIELDS.values()
    }
    alfred.routes["/fred"].series = of
    catalogue = {series: SERIES[series] for series in of}
    source = source_at(alfred, midnight(END + timedelta(days=30)), catalogue)
    try:
        with new_graph(world, overrides={"macro_source": source}) as graph:
            graph.run()
            vectors = graph.table("state_vectors_1d")
    finally:
        alfred.routes["/fred"].series = told()
    hours = {"VIXCLS": time(10), "DFF": time(17), "T10Y2Y": time(17)}
    for row in vectors.iter_rows(named=True):
        for field, series in FIELDS.items():
            releases = [(_after(about, series), about, v) for _, about, v in of[series].releases]
            value = known(releases, hours[series], row["available_at"])
            assert row[field] == pytest.approx(scaled(field, value), abs=1e-12), (row, series)


def _after(about: date, series: str) -> date:
    """The business day on which it is known: of the VIX the first after its date, of a rate the
    first after the first on or after its date. Memorial Day is the only holiday."""

    def closed(day: date) -> bool:
        return day.weekday() >= 5 or day == date(2019, 5, 27)

    day = about
    if series != "VIXCLS":
        while closed(day):
            day += timedelta(days=1)
    day += timedelta(days=1)
    while closed(day):
        day += timedelta(days=1)
    return day
