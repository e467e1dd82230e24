"""The universe: what it accepts, what it refuses and how, and which sessions it expects."""

from __future__ import annotations

import re
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import exchange_calendars
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_pipeline.errors import UniverseError
from feature_pipeline.resources import sources
from feature_pipeline.schemas import UTC_TIME
from feature_pipeline.settings import Settings
from feature_pipeline.universe import DEFAULT, Universe, expected_sessions


def entry(ident: str = "A", **changes: object) -> dict:
    return {
        "id": ident,
        "asset_class": "equity",
        "calendar": "XNYS",
        "sector": "technology",
        "source": {"bars": "sample"},
        "symbols": [{"symbol": ident, "from": date(1990, 1, 2)}],
        "membership": [{"from": date(2000, 1, 3)}],
    } | changes


def universe(*entries: dict, benchmark: str | None = None) -> Universe:
    found = list(entries)
    data = {"benchmark": benchmark or found[0]["id"], "instruments": found}
    return Universe.parse(yaml.safe_dump(data))


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


@pytest.fixture(scope="module")
def ours() -> Universe:
    return Universe.load()


# -- the shipped file -----------------------------------------------------------------------------


def test_the_shipped_universe(ours):
    assert DEFAULT.name == "universe.yaml"
    assert ours.symbols == ("AAPL", "FB", "GOOG", "GSPC", "IBM", "IXIC", "MSFT")
    assert ours.benchmark == "GSPC"
    assert ours.first_day == date(2000, 1, 3)
    assert {i.source.bars for i in ours.instruments} == {"sample"}


def test_members_are_half_open_intervals(ours):
    members = ours.members()
    assert members.schema == {
        "symbol": pl.String,
        "sector": pl.String,
        "from": UTC_TIME,
        "to": UTC_TIME,
    }
    assert members.row(by_predicate=pl.col("symbol") == "FB") == (
        "FB",
        "communication",
        utc(2012, 5, 18),
        utc(2013, 3, 2),
    )


def test_an_instrument_that_left_and_came_back():
    back = entry(
        membership=[
            {"from": date(2001, 1, 2), "to": date(2001, 3, 1)},
            {"from": date(2001, 6, 1)},
        ]
    )
    members = universe(back).members()
    assert members["from"].to_list() == [utc(2001, 1, 2), utc(2001, 6, 1)]
    assert members["to"].to_list() == [utc(2001, 3, 1), None]
    # Its history goes on in between, or its return would start on a hole.
    assert universe(back).sessions(date(2001, 4, 2), date(2001, 4, 7)).height == 5


def test_history_from_extends_the_bars_and_not_the_membership():
    early = universe(entry(history_from=date(1998, 1, 2)))
    assert early.first_day == date(1998, 1, 2)
    assert early.sessions(date(1998, 1, 1), date(1998, 1, 10)).height == 6
    assert early.members()["from"].to_list() == [utc(2000, 1, 3)]


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FB", "META"])
def test_a_renamed_instrument_is_found_by_every_name(ours, name):
    assert ours.resolve(name).id == "FB"


def test_the_symbol_of_a_day(ours):
    fb = ours.resolve("FB")
    assert fb.symbol_on(date(2022, 6, 8)) == "FB"
    assert fb.symbol_on(date(2022, 6, 9)) == "META"
    assert fb.symbol_on(date(2000, 1, 1)) == "FB"
    assert ours.resolve("^GSPC").id == "GSPC"


def test_an_unknown_symbol_names_what_is_known(ours):
    with pytest.raises(
        UniverseError, match=r"'NOPE' is not in the universe; it has AAPL, FB, GOOG"
    ):
        ours.resolve("NOPE")


def test_a_symbol_used_again_belongs_to_its_latest_holder():
    first = entry(
        "OLD", symbols=[{"symbol": "X", "from": date(1990, 1, 2), "to": date(2001, 1, 2)}]
    )
    second = entry("NEW", symbols=[{"symbol": "X", "from": date(2001, 1, 2)}])
    assert universe(second, first).resolve("X").id == "NEW"


def test_an_id_wins_over_a_symbol():
    taken = entry("X", symbols=[{"symbol": "Y", "from": date(1990, 1, 2)}])
    other = entry("Z", symbols=[{"symbol": "X", "from": date(1990, 1, 2)}])
    assert universe(taken, other).resolve("X").id == "X"


# -- sessions -------------------------------------------------------------------------------------


def test_sessions_stay_within_each_instrument(ours):
    sessions = ours.sessions(date(1999, 1, 1), date(2026, 1, 1))
    bounds = sessions.group_by("symbol").agg(
        pl.col("time").min().alias("first"), pl.col("time").max().alias("last")
    )
    assert bounds.row(by_predicate=pl.col("symbol") == "FB")[1:] == (
        utc(2012, 5, 18),
        utc(2013, 3, 1),
    )
    assert bounds.row(by_predicate=pl.col("symbol") == "IXIC")[1:] == (
        utc(2000, 1, 3),
        utc(2018, 12, 31),
    )
    assert sessions.select("symbol", "time").equals(
        sessions.select("symbol", "time").sort("symbol", "time")
    )


def test_the_end_is_not_included(ours):
    days = ours.sessions(date(2010, 1, 4), date(2010, 1, 6), ["IBM"])["time"].to_list()
    assert days == [utc(2010, 1, 4), utc(2010, 1, 5)]


def test_the_day_an_instrument_leaves_is_its_first_without_a_bar():
    gone = universe(entry(membership=[{"from": date(2010, 1, 5), "to": date(2010, 1, 7)}]))
    days = gone.sessions(date(2010, 1, 1), date(2010, 2, 1))["time"].to_list()
    assert days == [utc(2010, 1, 5), utc(2010, 1, 6)]


@pytest.mark.parametrize(
    ("day", "opens", "closes"),
    [
        (date(2010, 3, 12), (14, 30), (21, 0)),  # standard time
        (date(2010, 3, 15), (13, 30), (20, 0)),  # daylight saving
        (date(2010, 11, 26), (14, 30), (18, 0)),  # the day after Thanksgiving closes at 13:00
    ],
)
def test_sessions_know_daylight_saving_and_half_days(ours, day, opens, closes):
    row = ours.sessions(day, day + timedelta(days=1), ["IBM"]).row(0, named=True)
    stamp = (day.year, day.month, day.day)
    assert row == {
        "symbol": "IBM",
        "time": utc(*stamp),
        "open": utc(*stamp, *opens),
        "close": utc(*stamp, *closes),
    }


@pytest.mark.parametrize("day", [date(2010, 7, 5), date(2001, 9, 11), date(2010, 7, 4)])
def test_no_sessions_on_holidays_closures_and_sundays(ours, day):
    assert ours.sessions(day, day + timedelta(days=1)).is_empty()


def test_sessions_do_not_depend_on_the_timezone_of_the_machine(ours, monkeypatch):
    before = ours.sessions(date(2010, 3, 1), date(2010, 4, 1))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert Universe.load().sessions(date(2010, 3, 1), date(2010, 4, 1)).equals(before)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_asking_by_symbol_twice_gives_one_instrument(ours):
    asked = ours.sessions(date(2012, 6, 1), date(2012, 6, 9), ["META", "FB"])
    assert asked.equals(ours.sessions(date(2012, 6, 1), date(2012, 6, 9), ["FB"]))
    with pytest.raises(UniverseError, match="NOPE"):
        ours.sessions(date(2012, 6, 1), date(2012, 6, 9), ["NOPE"])


def test_nothing_asked_gives_an_empty_frame_of_the_same_columns(ours):
    empty = ours.sessions(date(2012, 6, 1), date(2012, 6, 9), [])
    assert empty.is_empty()
    assert empty.schema == ours.sessions(date(2012, 6, 1), date(2012, 6, 9)).schema
    assert expected_sessions(ours.instruments, date(2012, 6, 9), date(2012, 6, 1)).is_empty()


def test_several_calendars():
    mixed = universe(entry("NY"), entry("COIN", calendar="24/7", asset_class="crypto"))
    sessions = mixed.sessions(date(2010, 7, 2), date(2010, 7, 7))
    count = dict(sessions.group_by("symbol").len().iter_rows())
    assert count == {"NY": 2, "COIN": 5}
    assert sessions.equals(sessions.sort("symbol", "time"))
    coin = sessions.row(0, named=True)
    assert (coin["open"], coin["close"]) == (utc(2010, 7, 2), utc(2010, 7, 3))


@pytest.mark.parametrize(
    ("calendar", "year"), [("XTKS", 1998), ("XBOM", 1998), ("XHKG", 1991), ("AIXK", 2018)]
)
def test_calendars_that_know_fewer_years_give_all_they_know(calendar, year):
    member = [{"from": date(1990, 1, 2)}]
    asian = universe(entry(calendar=calendar, membership=member))
    assert asian.sessions(date(year, 1, 1), date(year + 1, 1, 1)).height > 230
    assert asian.sessions(date(2025, 1, 1), date(2026, 1, 1)).height > 230


def test_a_calendar_that_cannot_be_built_is_one_line():
    # exchange_calendars lists it, and refuses it.
    with pytest.raises(UniverseError, match=r"^calendar: 'ASEX' cannot be built") as caught:
        universe(entry(calendar="ASEX")).sessions(date(2022, 1, 1), date(2023, 1, 1))
    assert "\n" not in str(caught.value)


def test_sessions_equal_the_calendar(ours):
    calendar = exchange_calendars.get_calendar("XNYS", start="2000-03-01", end="2013-03-01")
    ibm = ours.sessions(date(2000, 1, 1), date(2014, 1, 1), ["IBM"])
    assert [t.date() for t in ibm["time"]] == [s.date() for s in calendar.sessions]
    assert ibm["close"].to_list() == [c.to_pydatetime() for c in calendar.closes]


def test_many_symbols_have_all_their_sessions():
    many = universe(*(entry(f"S{n:03}") for n in range(500)))
    assert many.sessions(date(2010, 1, 1), date(2020, 5, 1)).height == 500 * 2599


@given(
    cut=st.dates(date(2009, 1, 1), date(2011, 1, 1)),
    left=st.integers(0, 400),
    right=st.integers(0, 400),
)
@settings(max_examples=30)
def test_sessions_of_two_halves_are_those_of_the_whole(ours, cut, left, right):
    start, end = cut - timedelta(days=left), cut + timedelta(days=right)
    halves = pl.concat([ours.sessions(start, cut), ours.sessions(cut, end)])
    assert halves.sort("symbol", "time").equals(ours.sessions(start, end))


# -- lookback -------------------------------------------------------------------------------------


@given(day=st.dates(date(2004, 1, 1), date(2012, 1, 1)), bars=st.integers(1, 900))
@settings(max_examples=50)
def test_lookback_start_holds_exactly_the_bars_asked_for(ours, day, bars):
    start = ours.lookback_start(day, bars)
    assert ours.sessions(start, day, ["GSPC"]).height == bars
    assert ours.sessions(start + timedelta(days=1), day, ["GSPC"]).height == bars - 1


def test_lookback_start_edges(ours):
    assert ours.lookback_start(date(2010, 7, 5), 0) == date(2010, 7, 5)
    assert ours.lookback_start(date(2010, 7, 6), 1) == date(2010, 7, 2)
    assert ours.lookback_start(date(1990, 1, 3), 400) == date(1990, 1, 2)


def test_lookback_start_serves_the_sparsest_calendar():
    mixed = universe(entry("NY"), entry("COIN", calendar="24/7"))
    assert mixed.lookback_start(date(2010, 7, 6), 2) == date(2010, 7, 1)


# -- the digest -----------------------------------------------------------------------------------


def test_the_digest_changes_with_what_features_depend_on():
    base = universe(entry("A"), entry("B"))
    same = universe(entry("B"), entry("A"), benchmark="A")
    assert base.digest == same.digest
    assert len(base.digest) == 16
    others = [
        universe(entry("A"), entry("B"), benchmark="B"),
        universe(entry("A"), entry("B", sector="energy")),
        universe(entry("A"), entry("B", membership=[{"from": date(2000, 1, 4)}])),
        universe(entry("A")),
    ]
    assert len({u.digest for u in [base, *others]}) == 5
    renamed = universe(entry("A"), entry("B", source={"bars": "elsewhere"}))
    assert renamed.digest == base.digest


def test_the_digest_is_stable_across_processes_and_versions(ours):
    assert ours.digest == "c69fd3e666d8870e"


# -- malformed files ------------------------------------------------------------------------------

LISTED = {"symbol": "A", "from": date(1990, 1, 2)}

MALFORMED = [
    ("", r"it is empty or no mapping"),
    ("- a", r"it is empty or no mapping"),
    ("a: [1", r"line \d+: it is no valid YAML"),
    ("a: !!python/object/apply:os.getcwd []", r"it is no valid YAML"),
    ("benchmark: A\nbenchmark: B", r"line 2: .*'benchmark' is there twice"),
    ("benchmark: A\ninstruments: []", r"instruments: it is empty"),
    ("benchmark: A\ninstruments: {a: 1}", r"instruments: it is no list"),
    ("instruments: []", r"benchmark: it is missing"),
    ("benchmark: A\ninstruments: [1]", r"instrument number 1: it is no mapping"),
]

MALFORMED_ENTRIES = [
    ({"calendar": "XXXX"}, r"instrument A: calendar: 'XXXX' is unknown; use a name of"),
    ({"sector": None}, r"instrument A: sector: YAML reads None there, no text"),
    ({"id": True}, r"instrument True: id: YAML reads True there, no text; put it in quotes"),
    ({"id": ""}, r"instrument : id: it is empty"),
    ({"id": "A "}, r"id: it is empty or has stray blanks"),
    ({"asset_class": "stock"}, r"instrument A: asset_class: 'stock' is not one of 'equity'"),
    ({"colour": "red"}, r"instrument A: colour: it is unknown"),
    ({"source": {}}, r"instrument A: source.bars: it is missing"),
    ({"source": {"bars": "sample", "tweets": "x"}}, r"source.tweets: it is unknown"),
    ({"symbols": []}, r"instrument A: symbols: it is empty"),
    (
        {"symbols": [{"symbol": 7203, "from": date(1990, 1, 2)}]},
        r"symbols.1.symbol: YAML reads 7203",
    ),
    ({"symbols": [{"symbol": "A"}]}, r"instrument A: symbols.1.from: it is missing"),
    ({"symbols": [LISTED, LISTED]}, r"instrument A: `symbols`: .* overlaps or precedes"),
    ({"membership": []}, r"instrument A: membership: it is empty"),
    ({"membership": [{"from": "soon"}]}, r"membership.1.from: it is no date; write YYYY-MM-DD"),
    ({"membership": [{"from": 20000103}]}, r"membership.1.from: it is no date"),
    (
        {"membership": [{"from": date(2001, 1, 1), "to": date(2000, 1, 1)}]},
        r"instrument A: membership.1: `to` 2000-01-01 is not after `from` 2001-01-01",
    ),
    (
        {
            "membership": [
                {"from": date(2001, 1, 1), "to": date(2003, 1, 1)},
                {"from": date(2002, 1, 1)},
            ]
        },
        r"instrument A: `membership`: the entry from 2002-01-01 overlaps",
    ),
    ({"history_from": date(2005, 1, 1)}, r"instrument A: `history_from` 2005-01-01 is after"),
]


def refused(text: str) -> str:
    with pytest.raises(UniverseError) as caught:
        Universe.parse(text, "mine.yaml")
    message = str(caught.value)
    assert message.startswith("mine.yaml: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("text", "says"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_file_is_refused_in_one_line(text, says):
    assert re.search(says, refused(text))


@pytest.mark.parametrize(("changes", "says"), MALFORMED_ENTRIES, ids=range(len(MALFORMED_ENTRIES)))
def test_a_malformed_instrument_is_named_with_its_field(changes, says):
    data = {"benchmark": "A", "instruments": [entry() | changes]}
    assert re.search(says, refused(yaml.safe_dump(data)))


@pytest.mark.parametrize("field", ["id", "calendar", "sector", "source", "symbols", "membership"])
def test_a_missing_field_is_named(field):
    broken = entry()
    del broken[field]
    message = refused(yaml.safe_dump({"benchmark": "A", "instruments": [broken]}))
    assert f"{field}: it is missing; add it" in message


def test_duplicates_and_a_missing_benchmark():
    def says(*entries: dict, benchmark: str = "A") -> str:
        return refused(yaml.safe_dump({"benchmark": benchmark, "instruments": list(entries)}))

    assert "instrument A: id: it is there twice" in says(entry(), entry())
    assert "benchmark: 'B' is not the id of an instrument" in says(entry(), benchmark="B")
    shared = entry("B", symbols=[{"symbol": "A", "from": date(2010, 1, 4)}])
    assert "instrument B: symbols: 'A' from 2010-01-04 is A's at that time" in says(entry(), shared)


def test_symbols_that_yaml_takes_for_booleans_work_in_quotes():
    text = yaml.safe_dump({"benchmark": "ON", "instruments": [entry("ON")]})
    assert "'ON'" in text
    assert Universe.parse(text).symbols == ("ON",)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UniverseError, match=r"nowhere.yaml: cannot be read \(No such file"):
        Universe.load(tmp_path / "nowhere.yaml")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"benchmark: \xe9")
    with pytest.raises(UniverseError, match="it is not UTF-8 text"):
        Universe.load(latin)


@given(st.text(max_size=60))
@settings(max_examples=100)
def test_no_text_gives_anything_but_a_universe_error(text):
    refused(text)


# -- the example of the docs ----------------------------------------------------------------------


def test_the_example_is_a_universe_of_providers_that_there_are():
    path = Path(__file__).parent.parent / "docs" / "examples" / "universe.yaml"
    live = Universe.load(path)
    assert live.symbols == ("AAPL", "BTC-USD", "EURUSD", "GSPC", "META", "MSFT")
    assert {i.calendar for i in live.instruments} == {"XNYS", "24/5", "24/7"}
    known = sources(Settings(), live)
    for kind in ("bars", "actions", "news", "reddit", "insiders"):
        for name, providers in live.providers(kind).items():
            assert set(providers) <= set(known), (name, kind)
    assert live.resolve("EURUSD").ticker("dukascopy") == "EUR/USD"
    assert live.resolve("BTC-USD").ticker("kraken") == "BTC/USD"
    assert live.resolve("GSPC").ticker("yfinance") == "^GSPC"
    assert live.resolve("FB").cik == 1326801
    assert live.feeds
    assert live.subreddits
    page = (path.parent.parent / "how-to" / "add-a-symbol.md").read_text(encoding="utf-8")
    assert "(../examples/universe.yaml)" in page


# -- the grid of bars -----------------------------------------------------------------------------

_GRID_YAML = """
benchmark: NY
timeframes: [1d, 1h, 5m]
instruments:
"""
_ON = """
  - {{id: {id}, asset_class: equity, calendar: {calendar}, sector: x, source: {{bars: sample}},
     symbols: [{{symbol: {id}, from: 2000-01-03}}], membership: [{{from: 2020-01-02}}]}}
"""
_CALENDARS = {"NY": "XNYS", "TOKYO": "XTKS", "SYDNEY": "XASX", "COIN": "24/7"}


@pytest.fixture(scope="module")
def grids() -> Universe:
    entries = (_ON.format(id=i, calendar=calendar) for i, calendar in _CALENDARS.items())
    return Universe.parse(_GRID_YAML + "".join(entries))


def _opens(grids, symbol, day, timeframe="1h"):
    rows = grids.bars(timeframe, day, day + timedelta(days=1), [symbol])
    assert rows["time"].dt.date().unique().to_list() in ([], [day])
    assert (rows["end"] > rows["time"]).all()
    return [f"{time:%H:%M}" for time in rows["time"]]


def test_hours_begin_with_the_session(grids):
    hours = ["14:30", "15:30", "16:30", "17:30", "18:30", "19:30", "20:30"]
    assert _opens(grids, "NY", date(2024, 1, 16)) == hours
    summer = [f"{int(h[:2]) - 1}:30" for h in hours]
    assert _opens(grids, "NY", date(2024, 7, 2)) == summer
    assert _opens(grids, "NY", date(2024, 7, 3)) == summer[:4], "half a day: until 13:00"
    assert _opens(grids, "NY", date(2024, 7, 4)) == [], "a holiday"
    last = grids.bars("1h", date(2024, 1, 16), date(2024, 1, 17), ["NY"]).row(-1, named=True)
    assert last["end"] - last["time"] == timedelta(minutes=30)
    assert len(_opens(grids, "NY", date(2024, 1, 16), "5m")) == 78


def test_hours_begin_anew_after_a_break(grids):
    assert _opens(grids, "TOKYO", date(2024, 1, 16)) == [
        *("00:00", "01:00", "02:00"),
        *("03:30", "04:30", "05:30"),
    ]


def test_a_session_may_have_bars_on_two_days(grids):
    rows = grids.bars("1h", date(2024, 1, 15), date(2024, 1, 17), ["SYDNEY"])
    own = rows.filter(session=date(2024, 1, 16))["time"]
    assert f"{own[0]:%d %H:%M}" == "15 23:00"
    assert f"{own[-1]:%d %H:%M}" == "16 04:00"
    parts = grids.session_days(date(2024, 1, 15), date(2024, 1, 16), ["SYDNEY"]).sort("since")
    assert parts["time"].dt.day().to_list() == [15, 16], "the end of one, the begin of the next"


def test_daily_bars_and_coins_are_on_the_grid_too(grids):
    day = grids.bars("1d", date(2024, 1, 16), date(2024, 1, 17), ["NY"]).row(0, named=True)
    assert (day["time"], day["end"]) == (
        datetime(2024, 1, 16, tzinfo=UTC),
        datetime(2024, 1, 16, 21, tzinfo=UTC),
    )
    assert len(_opens(grids, "COIN", date(2024, 1, 13))) == 24
    early = grids.bars("1h", date(2020, 1, 1), date(2020, 1, 3), ["COIN"])
    assert early["session"].unique().to_list() == [date(2020, 1, 2)], "from its first day on"


@pytest.mark.parametrize(("bars", "timeframe"), [(1, "1h"), (7, "1h"), (400, "1h"), (400, "5m")])
def test_a_lookback_of_bars_holds_them_in_every_calendar(grids, bars, timeframe):
    day = date(2024, 7, 8)
    start = grids.lookback_start(day, bars, timeframe)
    held = grids.bars(timeframe, start, day).group_by("symbol").len()
    assert held["len"].min() >= bars
    later = grids.bars(timeframe, start + timedelta(days=1), day).group_by("symbol").len()
    assert later.height < len(_CALENDARS) or later["len"].min() < bars, "and not a day more"


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ("[1d, 2h]", "timeframes: '2h' is none; there are 1m, 5m, 1h, 1d"),
        ("[1d, 1d]", "timeframes: one of them is there twice"),
        ("[1h]", "timeframes: 1d is missing; add it"),
    ],
)
def test_timeframes_are_known_ones_and_the_day_among_them(chosen, says):
    text = _GRID_YAML.replace("[1d, 1h, 5m]", chosen) + _ON.format(id="NY", calendar="XNYS")
    with pytest.raises(UniverseError, match=re.escape(says)):
        Universe.parse(text)
