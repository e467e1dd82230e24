"""FRED by the real `fredapi`, against a local server that speaks FRED and ALFRED."""

from __future__ import annotations

import logging
import time
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from feature_pipeline.errors import SourceError
from feature_pipeline.schemas import MACRO_INDICATORS
from feature_pipeline.sources import Metered, calls_of
from feature_pipeline.sources.fred import SERIES, FredSource, business_days
from feature_pipeline.sources.http import Limits, Politeness, PoliteSession
from feature_pipeline.storage.validate import check
from feature_pipeline_tests.providers import fred, server
from feature_pipeline_tests.providers.fred import KEY, Fred, Told

QUICK = Limits(requests=1000, seconds=1, attempts=2, wait_s=0.3, deadline_s=5, max_bytes=200_000)
NOW = datetime(2021, 7, 1, 12, tzinfo=UTC)
START, END = date(2021, 1, 1), date(2021, 7, 1)

JANUARY, FEBRUARY, MARCH = date(2021, 1, 1), date(2021, 2, 1), date(2021, 3, 1)
CPI = Told(
    (
        # January's value is known in February, revised in March, and back to what it was in April.
        (date(2020, 12, 10), date(2020, 11, 1), "260.0"),
        (date(2021, 2, 10), JANUARY, "262.2"),
        (date(2021, 3, 10), JANUARY, "262.5"),
        (date(2021, 3, 10), FEBRUARY, "263.0"),
        (date(2021, 4, 13), JANUARY, "262.2"),
        (date(2021, 4, 13), MARCH, "."),
        (date(2021, 5, 12), MARCH, "264.8"),
    ),
    "Consumer Price Index for All Urban Consumers: All Items in U.S. City Average",
    "Index 1982-1984=100",
    "M",
)


def daily(*observations: tuple[date, str], **more) -> Told:
    return Told(tuple((day, day, value) for day, value in observations), **more)


def served(provider_server, **series: Told) -> Fred:
    """The service; a series that the test says nothing of has one old value."""
    dull = daily((date(2020, 1, 2), "1.0"))
    service = Fred({**dict.fromkeys(SERIES, dull), **series}, today=NOW.date())
    provider_server.routes["/fred"] = service
    return service


@pytest.fixture
def source(provider_server) -> FredSource:
    return FredSource(KEY, root_url=f"{provider_server.url}/fred", limits=QUICK, clock=lambda: NOW)


def utc(day: date, hour: int, minute: int = 0) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)


# -- releases -------------------------------------------------------------------------------------


def test_each_release_is_a_row_from_its_hour_in_new_york_on(provider_server, source):
    served(provider_server, CPIAUCSL=CPI)
    fetched = source.macro(["CPIAUCSL"], START, END)
    assert fetched.failed == {}
    assert fetched.asked == ("CPIAUCSL",)
    frame = fetched.frame
    assert frame.columns == list(MACRO_INDICATORS.names)
    # 08:30 is 13:30 UTC in winter and 12:30 in summer, which begins on 14 March.
    assert frame.select("available_at", "time", "value").rows() == [
        (utc(date(2021, 2, 10), 13, 30), utc(JANUARY, 0), 262.2),
        (utc(date(2021, 3, 10), 13, 30), utc(JANUARY, 0), 262.5),
        (utc(date(2021, 3, 10), 13, 30), utc(FEBRUARY, 0), 263.0),
        (utc(date(2021, 4, 13), 12, 30), utc(JANUARY, 0), 262.2),
        (utc(date(2021, 5, 12), 12, 30), utc(MARCH, 0), 264.8),
    ]
    assert frame["name"].unique().to_list() == [CPI.title]
    assert frame["units"].unique().to_list() == ["Index 1982-1984=100"]
    assert frame["frequency"].unique().to_list() == ["M"]
    assert frame["availability_basis"].unique().to_list() == ["assumed"]
    assert frame["source"].unique().to_list() == ["fred"]


@pytest.mark.parametrize("first", [date(2021, 2, 9), date(2021, 2, 10), date(2021, 2, 11)])
@pytest.mark.parametrize("last", [date(2021, 3, 9), date(2021, 3, 10), date(2021, 4, 13)])
def test_a_release_is_of_its_own_day_wherever_the_time_asked_for_begins(
    provider_server, source, first, last
):
    """ALFRED clamps what holds already to the first day asked for: no release of that day."""
    served(provider_server, CPIAUCSL=CPI)
    found = source.macro(["CPIAUCSL"], first, last + timedelta(days=1)).frame
    expected = sorted(
        (released, about)
        for released, about, value in CPI.releases
        if first <= released <= last and value != "."
    )
    days = found.select(pl.col("available_at").dt.date(), pl.col("time").dt.date())
    assert sorted(days.rows()) == expected


def test_days_one_by_one_are_what_the_range_is(provider_server, source):
    served(provider_server, CPIAUCSL=CPI)
    whole = source.macro(["CPIAUCSL"], date(2021, 3, 8), date(2021, 3, 13)).frame
    assert whole.height == 2
    days = pl.date_range(date(2021, 3, 8), date(2021, 3, 13), closed="left", eager=True)
    single = [source.macro(["CPIAUCSL"], d, d + timedelta(days=1)).frame for d in days]
    assert pl.concat(single).equals(whole)


def test_more_vintages_than_alfred_gives_out_are_asked_for_in_pieces(provider_server, source):
    """Of a series that is released every day for eleven years."""
    days = pl.date_range(date(2010, 1, 1), date(2020, 12, 31), eager=True)
    told = Told(tuple((day, date(2009, 12, 1), str(n)) for n, day in enumerate(days)))
    served(provider_server, UNRATE=told)
    found = source.macro(["UNRATE"], days[0], date(2021, 1, 1)).frame
    assert found["value"].to_list() == [float(n) for n in range(days.len())]
    assert found["available_at"].dt.date().to_list() == days.to_list()
    assert provider_server.paths().count("/fred/series/observations") == 3
    # All at once, the server refuses: it is the limit that makes the pieces necessary.
    client = source._fred
    with pytest.raises(SourceError, match="maximum number of vintage dates"):
        client.get_series_all_releases("UNRATE")
    assert len(client.get_series_vintage_dates("UNRATE")) == days.len()


def test_nothing_is_known_before_its_hour(provider_server, source):
    """On the day of a release, FRED shows it at 08:30: what it shows earlier waits."""
    service = served(provider_server, CPIAUCSL=CPI)
    service.today = date(2021, 5, 12)
    for at, known in ((utc(service.today, 12, 29), 0), (utc(service.today, 12, 30), 1)):
        source._clock = lambda at=at: at
        found = source.macro(["CPIAUCSL"], service.today, date(2021, 5, 14)).frame
        assert found.height == known


# -- daily series ---------------------------------------------------------------------------------


def known_at(provider_server, source, series: str, day: date) -> datetime | None:
    served(provider_server, **{series: daily((day, "1.5"))})
    found = source.macro([series], day, day + timedelta(days=14)).frame
    return found["available_at"].item() if found.height else None


@pytest.mark.parametrize(
    ("series", "day", "known"),
    [
        # The VIX of a Monday on Tuesday at 10:00; of a Friday on Monday.
        ("VIXCLS", date(2021, 6, 7), utc(date(2021, 6, 8), 14)),
        ("VIXCLS", date(2021, 2, 5), utc(date(2021, 2, 8), 15)),
        # Of Maundy Thursday after Easter: nothing trades on Good Friday.
        ("VIXCLS", date(2021, 4, 1), utc(date(2021, 4, 5), 14)),
        # Of the Friday before Columbus Day, on which stocks trade and the Fed is closed.
        ("VIXCLS", date(2020, 10, 9), utc(date(2020, 10, 13), 14)),
        # Rates at 17:00 of the next business day; Saturday to Monday on Tuesday.
        ("DGS10", date(2021, 6, 7), utc(date(2021, 6, 8), 21)),
        ("T10Y2Y", date(2021, 2, 5), utc(date(2021, 2, 8), 22)),
        ("DFF", date(2021, 6, 4), utc(date(2021, 6, 7), 21)),
        ("DFF", date(2021, 6, 5), utc(date(2021, 6, 8), 21)),
        ("DFF", date(2021, 6, 6), utc(date(2021, 6, 8), 21)),
        ("DFF", date(2021, 6, 7), utc(date(2021, 6, 8), 21)),
        # With Memorial Day in between, on Wednesday.
        ("DFF", date(2021, 5, 29), utc(date(2021, 6, 2), 21)),
        ("DFF", date(2021, 5, 31), utc(date(2021, 6, 2), 21)),
        # Of Christmas Eve 2020: Friday is a holiday.
        ("DGS10", date(2020, 12, 24), utc(date(2020, 12, 28), 22)),
    ],
)
def test_a_daily_value_is_known_after_its_lag(provider_server, source, series, day, known):
    assert known_at(provider_server, source, series, day) == known


def test_daily_values_of_a_range_are_those_of_its_days(provider_server, source):
    days = pl.date_range(date(2021, 1, 1), date(2021, 6, 30), eager=True)
    served(provider_server, DFF=daily(*((day, f"{n / 100}") for n, day in enumerate(days))))
    whole = source.macro(["DFF"], date(2021, 2, 8), date(2021, 2, 22)).frame
    asked = pl.date_range(date(2021, 2, 8), date(2021, 2, 22), closed="left", eager=True)
    single = [source.macro(["DFF"], d, d + timedelta(days=1)).frame for d in asked]
    assert pl.concat(single).equals(whole)
    assert whole["time"].is_sorted()
    # Of Friday to Monday, and of a weekend with Presidents' Day: each date once, none left out.
    dates = pl.date_range(date(2021, 2, 5), date(2021, 2, 18), eager=True)
    assert whole["time"].dt.date().to_list() == dates.to_list()
    later = source.macro(["DFF"], date(2021, 6, 1), date(2021, 8, 1)).frame
    assert later["available_at"].max() <= NOW


def test_business_days_end_with_the_calendar():
    days = business_days(exchange=False)
    assert (days[1:] > days[:-1]).all()
    assert set(business_days(exchange=True)) < set(days)


def test_a_point_is_no_observation(provider_server, source):
    served(provider_server, VIXCLS=daily((date(2021, 6, 7), "."), (date(2021, 6, 8), "17.07")))
    found = source.macro(["VIXCLS"], date(2021, 6, 1), date(2021, 6, 20)).frame
    assert found["value"].to_list() == [17.07]


def test_every_series_is_had(provider_server, source):
    served(provider_server, CPIAUCSL=CPI)
    fetched = source.macro(source.series, START, END)
    assert set(source.series) >= {"VIXCLS", "DFF", "T10Y2Y", "DGS10", "CPIAUCSL", "UNRATE"}
    assert (fetched.failed, fetched.asked) == ({}, source.series)


def test_what_a_question_costs_is_what_it_is_said_to_cost(provider_server, source):
    served(provider_server)
    assert isinstance(source, Metered)
    for start in (date(2021, 6, 1), date(2012, 1, 1)):
        before = len(provider_server.asked)
        source.macro(source.series, start, END)
        assert len(provider_server.asked) - before == calls_of(source, "macro", (), start, END)


# -- what goes wrong ------------------------------------------------------------------------------


ENTITIES = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><observations>&b;</observations>'
FAULTS = {
    "too many": (server.too_many("0"), 2, "429"),
    "broken": (server.broken(), 2, "500"),
    "silent": (server.silent(2), 2, "did not answer in time"),
    "dripping": (server.dripping(each_s=0.02), 2, "did not answer in time"),
    "hung up": (server.hung_up(), 2, "broke off"),
    "bad gzip": (server.bad_gzip(), 2, "broke off"),
    "too long": (server.Answer(200, b"<observations>" + b" " * 300_000), 1, "more than"),
    "html": (server.html(), 1, "no XML of FRED's"),
    "xhtml": (server.Answer(200, "<html><body/></html>"), 1, "no XML of FRED's"),
    "truncated": (server.truncated('<observations><observation date="20'), 1, "no XML of FRED's"),
    "json": (server.truncated(), 1, "no XML of FRED's"),
    "nothing": (server.Answer(200, b""), 1, "no XML of FRED's"),
    "entities": (server.Answer(200, ENTITIES), 1, "no XML of FRED's"),
    "nested": (server.Answer(200, "<observations>" + "<a>" * 60_000), 1, "no XML of FRED's"),
    "no number": (
        fred.observations([(START, START, START, "1.5 or so")]), 1, "no observation",
    ),
    "no date": (
        fred.xml("observations", '<observation date="soon" value="1"/>'), 1, "no observation",
    ),
    "refused": (fred.error("Bad Request.  Not today."), 1, "400: Bad Request. Not today."),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_with_one_series_costs_that_series(provider_server, source, fault, caplog):
    caplog.set_level(logging.DEBUG)
    answer, times, said = FAULTS[fault]
    served(provider_server, VIXCLS=daily((date(2021, 6, 7), "16.42")))
    provider_server.fail(answer, below="/fred/series/observations", times=times)
    began = time.monotonic()
    fetched = source.macro(["DFF", "VIXCLS"], date(2021, 6, 1), date(2021, 6, 20))
    assert time.monotonic() - began < 4
    assert list(fetched.failed) == ["DFF"]
    why = fetched.failed["DFF"]
    assert said in why
    assert why.startswith("fred: ")
    assert "\n" not in why
    assert fetched.asked == ("DFF", "VIXCLS")
    assert fetched.frame["value"].to_list() == [16.42]
    assert KEY not in why + caplog.text


@pytest.mark.parametrize("fault", ["too many", "broken", "silent", "hung up"])
def test_what_passes_is_asked_again(provider_server, source, fault):
    served(provider_server, VIXCLS=daily((date(2021, 6, 7), "16.42")))
    provider_server.fail(FAULTS[fault][0], below="/fred/series/observations")
    fetched = source.macro(["VIXCLS"], date(2021, 6, 1), date(2021, 6, 20))
    assert (fetched.failed, fetched.frame["value"].to_list()) == ({}, [16.42])


def test_where_fred_wants_to_be_left_alone_it_is(provider_server, source):
    served(provider_server, VIXCLS=daily((date(2021, 6, 7), "16.42")))
    provider_server.fail(server.too_many("3600"), below="/fred/series/observations")
    with pytest.raises(SourceError, match="left alone for 3600 s"):
        source.macro(["DFF", "VIXCLS"], date(2021, 6, 1), date(2021, 6, 20))
    assert len(provider_server.asked) == 1


def test_no_series_at_all_is_an_error(provider_server, source):
    """Of a key that nobody knows no series can be had; nor where nobody answers, and then the
    others are not asked for."""
    service = served(provider_server)
    service.key = "another"
    with pytest.raises(SourceError, match="api_key is not registered") as error:
        source.macro(source.series, START, END)
    assert KEY not in str(error.value)

    service.key = KEY
    provider_server.asked.clear()
    provider_server.fail(server.broken(), times=100)
    with pytest.raises(SourceError, match="500"):
        source.macro(source.series, START, END)
    assert len(provider_server.asked) == 2 * QUICK.attempts


def test_a_message_that_quotes_the_key_is_told_without_it(provider_server, source):
    served(provider_server)
    provider_server.fail(fred.error(f"Bad Request.  {KEY}\nis no key. {'x' * 5000}"), times=2)
    with pytest.raises(SourceError) as error:
        source.macro(["VIXCLS"], START, END)
    assert KEY not in str(error.value)
    assert "***" in str(error.value)
    assert len(str(error.value)) < 300


def test_an_unknown_series_costs_nothing_but_itself(provider_server, source):
    served(provider_server)
    fetched = source.macro(["GNPCA", "UNRATE"], START, END)
    assert list(fetched.failed) == ["GNPCA"]
    assert "VIXCLS" in fetched.failed["GNPCA"]


def test_no_observation_at_all_is_no_row(provider_server, source):
    provider_server.routes["/fred/series/observations"] = lambda _: fred.observations([])
    served(provider_server)
    fetched = source.macro(source.series, START, END)
    assert (fetched.failed, fetched.frame.height) == ({}, 0)


def test_what_is_impossible_is_rejected_where_it_is_written(provider_server, source):
    """Not finite, observed after its release, said twice: each is named, and the rest is kept."""
    release = date(2021, 2, 10)
    until = date(9999, 12, 31)
    rows = [
        (release, until, JANUARY, "262.2"),
        (release, until, JANUARY, "262.2"),
        (release, until, date(2020, 12, 1), "inf"),
        (release, until, date(2021, 9, 1), "270.0"),
    ]
    provider_server.routes["/fred/series/observations"] = lambda _: fred.observations(rows)
    served(provider_server)
    frame = source.macro(["CPIAUCSL"], START, END).frame
    assert frame.height == 4
    checked = check(MACRO_INDICATORS, frame, now=NOW, window=(START, END), symbols=())
    assert checked.good["value"].to_list() == [262.2]
    assert checked.duplicate == 1
    assert sorted(checked.quarantined["reason"]) == [
        "it was released before its date",
        "value is missing or not finite",
    ]


def test_daily_values_of_the_future_wait(provider_server, source):
    served(provider_server, DGS10=daily((date(2021, 6, 29), "1.49"), (date(2021, 9, 1), "9.99")))
    found = source.macro(["DGS10"], date(2021, 6, 1), date(2021, 12, 1)).frame
    assert found["value"].to_list() == [1.49]


def test_the_client_asks_through_the_session(provider_server, source):
    """Nothing of it reaches the network by another way, and no proxy is installed for others."""
    served(provider_server)
    source.macro(["VIXCLS"], START, END)
    assert {r.headers["user-agent"] for r in provider_server.asked} == {"feature-pipeline/0.1"}
    assert KEY not in repr(source)


def test_requests_keep_their_distance(provider_server):
    served(provider_server)
    slow = FredSource(
        KEY,
        root_url=f"{provider_server.url}/fred",
        limits=Limits(requests=1, seconds=0.15),
        clock=lambda: NOW,
    )
    began = time.monotonic()
    slow.macro(["VIXCLS", "DFF"], START, END)
    assert time.monotonic() - began > 3 * 0.14
    assert isinstance(PoliteSession(Politeness("fred", QUICK)), PoliteSession)
