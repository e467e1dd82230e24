"""Which instruments a text speaks of: rule by rule, and whatever the text."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_pipeline.sources.matching import MOST_READ, Match, Matcher
from feature_pipeline.universe import Instrument, Universe

_LISTED = [
    # id, name, class, symbols, aliases
    ("AAPL", "Apple Inc.", "equity", "[{symbol: AAPL, from: 1980-12-12}]", "[]"),
    (
        "FB",
        "Meta Platforms, Inc.",
        "equity",
        "[{symbol: FB, from: 2012-05-18, to: 2022-06-09}, {symbol: META, from: 2022-06-09}]",
        "[Facebook]",
    ),
    ("GOOG", "Google", "equity", "[{symbol: GOOG, from: 2004-08-19}]", "[Alphabet]"),
    ("GOOGL", "Google", "equity", "[{symbol: GOOGL, from: 2014-04-03}]", "[Alphabet]"),
    ("ON", "ON Semiconductor Corp", "equity", "[{symbol: 'ON', from: 2000-01-01}]", "[onsemi]"),
    ("ALL", "Allstate Corp", "equity", "[{symbol: ALL, from: 1993-06-03}]", "[]"),
    ("F", "Ford Motor Company", "equity", "[{symbol: F, from: 1956-01-17}]", "[Ford]"),
    ("TGT", "Target Corporation", "equity", "[{symbol: TGT, from: 1967-10-18}]", "[]"),
    ("GS", "The Goldman Sachs Group, Inc.", "equity", "[{symbol: GS, from: 1999-05-04}]", "[]"),
    ("BRK.B", "Berkshire Hathaway", "equity", "[{symbol: BRK.B, from: 1996-05-09}]", "[]"),
    ("KO", "Coca-Cola Co", "equity", "[{symbol: KO, from: 1950-01-26}]", "[]"),
    ("GSPC", "S&P 500", "index", "[{symbol: ^GSPC, from: 1957-03-04}]", "[]"),
    ("EURUSD", "Euro", "fx", "[{symbol: EURUSD, from: 1999-01-04}]", "[]"),
    ("BTC-USD", "Bitcoin", "crypto", "[{symbol: BTC-USD, from: 2010-07-17}]", "[]"),
]
_YAML = "benchmark: GSPC\ninstruments:\n" + "".join(
    f"""
  - id: "{id_}"
    name: "{name}"
    asset_class: {kind}
    calendar: XNYS
    sector: s
    source: {{bars: sample}}
    symbols: {symbols}
    aliases: {aliases}
    membership: [{{from: 2000-01-03}}]
"""
    for id_, name, kind, symbols, aliases in _LISTED
)
NOW = datetime(2024, 3, 5, 12, tzinfo=UTC)
BEFORE = datetime(2022, 6, 8, 23, 59, tzinfo=UTC)
RENAMED = datetime(2022, 6, 9, tzinfo=UTC)


def instruments() -> tuple[Instrument, ...]:
    return Universe.parse(_YAML).instruments


MATCHER = Matcher(instruments())


def found(title: str | None, text: str | None = None, moment: datetime = NOW) -> list[str]:
    frame = pl.DataFrame(
        {"title": [title], "text": [text], "time": [moment]},
        schema_overrides={"title": pl.String, "text": pl.String},
    )
    return MATCHER.match(frame)[0].to_list()


@pytest.mark.parametrize(
    ("text", "who"),
    [
        ("$AAPL to the moon", ["AAPL"]),
        ("$aapl, obviously", ["AAPL"]),
        ("long ($AAPL)", ["AAPL"]),
        ("AAPL is up", ["AAPL"]),
        ("AAPL's day", ["AAPL"]),
        ("#AAPL", ["AAPL"]),
        ("AAPL/META", ["AAPL", "FB"]),
        ("aapl", []),
        ("XAAPLX AAPLE $AAPLE US$AAPL r_AAPL_x", []),
        # ordinary words, and short ones
        ("ALL IN ON AI, GO FOR IT", []),
        ("$ALL and $ON", ["ALL", "ON"]),
        ("NYSE: ALL and (NASDAQ:ON)", ["ALL", "ON"]),
        ("F in the chat", []),
        ("$F", ["F"]),
        ("Nasdaq on Tuesday: ON FIRE", []),
        # names
        ("Apple unveils", ["AAPL"]),
        ("APPLE UNVEILS", ["AAPL"]),
        ("an apple a day, Applebee's", []),
        ("Goldman Sachs says", ["GS"]),
        ("Goldman says; Sachs does not", []),
        ("Google pays", ["GOOG", "GOOGL"]),
        ("Coca-Cola and Coca-Colas", ["KO"]),
        ("Berkshire Hathaway", ["BRK.B"]),
        ("BRK.B BRK-B $BRK.B", ["BRK.B"]),
        ("Meta Platforms and Facebook", ["FB"]),
        # names that are ordinary words
        ("Target your goals. Price Target raised", []),
        ("Stocks Hit Target As Inflation Cools", []),
        ("Target Corp. reports", ["TGT"]),
        ("shares of Target fell", ["TGT"]),
        ("according to Target's CEO", ["TGT"]),
        ("people shop at Target, mostly", ["TGT"]),
        ("a price target of 100", []),
        # index, FX, crypto
        ("^GSPC", ["GSPC"]),
        ("the S&P 500 fell", ["GSPC"]),
        ("EUR/USD at 1.08", ["EURUSD"]),
        ("eurusd long, EUR-USD", ["EURUSD"]),
        ("I hold EUR, USD and GBP", []),
        ("BTC", ["BTC-USD"]),
        ("$BTC.X $btc", ["BTC-USD"]),
        ("BTC/USD BTC-USD", ["BTC-USD"]),
        ("bitcoin is down", ["BTC-USD"]),
    ],
)
def test_rules(text: str, who: list[str]) -> None:
    assert found(text) == who
    assert found(None, text) == who, "in a text as in a title"


def test_a_title_and_a_text_are_not_read_as_one_sentence() -> None:
    assert found("Goldman", "Sachs") == []
    assert found("Goldman", "Sachs, Goldman Sachs") == ["GS"]
    assert found(None, None) == []


def test_symbols_hold_on_their_days() -> None:
    assert found("$FB", moment=BEFORE) == ["FB"]
    assert found("$FB", moment=RENAMED) == []
    assert found("META", moment=BEFORE) == []
    assert found("META", moment=RENAMED) == ["FB"]
    assert found("Facebook", moment=RENAMED) == ["FB"], "names hold always"


def test_it_says_which_word_it_was() -> None:
    assert MATCHER.explain("Apple: why $AAPL fell", "bought at Target, with (NYSE: ON)", NOW) == [
        Match("AAPL", "cashtag", "$AAPL"),
        Match("AAPL", "name", "Apple"),
        Match("ON", "exchange", "ON"),
        Match("TGT", "ordinary name", "Target"),
    ]
    assert MATCHER.explain("\ud800 AAPL \x00", None, NOW) == [Match("AAPL", "ticker", "AAPL")]


def test_every_row_gets_its_own_answer() -> None:
    frame = pl.DataFrame(
        {
            "title": ["AAPL", "nothing", None, "META and AAPL", "META"],
            "text": [None, None, "GOOGL", "", None],
            "time": [NOW, NOW, NOW, NOW, BEFORE],
        }
    )
    matched = MATCHER.match(frame)
    assert matched.dtype == pl.List(pl.String)
    assert matched.to_list() == [["AAPL"], [], ["GOOGL"], ["AAPL", "FB"], []]
    assert MATCHER.match(frame.clear()).to_list() == []
    assert Matcher([]).match(frame).to_list() == [[]] * 5


_PIECES = st.sampled_from(
    ["$AAPL", "AAPL", "Apple", "Target", "ALL", "NYSE: ", "EUR/USD", "$", "^", "|", ":", "\u202e"]
)


@settings(max_examples=150)
@given(st.lists(st.one_of(_PIECES, st.text(max_size=8)), max_size=12).map(" ".join))
def test_any_text_yields_known_ids_and_explains_them(text: str) -> None:
    clean = text.encode("utf-8", "replace").decode()
    ids = found(clean)
    assert ids == sorted(set(ids))
    assert set(ids) <= {i.id for i in instruments()}
    assert sorted({m.symbol for m in MATCHER.explain(clean, None, NOW)}) == ids


@settings(max_examples=60)
@given(st.text(alphabet="xyz .,;!?()'\"\n\u05d0\U0001f600", max_size=20))
def test_a_cashtag_counts_in_whatever_surroundings(around: str) -> None:
    assert "AAPL" in found(f"{around} $AAPL {around}")
    assert found(f"{around} xAAPL {around}") == []


@pytest.mark.parametrize(
    "hostile",
    ["$" * 10**6, "A" * 10**6, "AAPL " * 200_000, "a Target " * 120_000, "\u202e\U0001f600" * 10**6,
     "a\u0301" * 500_000, " " * 10**6, "::|//--" * 150_000],
)  # fmt: skip
def test_a_megabyte_takes_no_time(hostile: str) -> None:
    began = time.process_time()
    found(hostile, hostile)
    assert time.process_time() - began < 1.0


def test_what_is_behind_the_part_that_is_read_is_not_found() -> None:
    assert found("x " * MOST_READ + "AAPL") == []
