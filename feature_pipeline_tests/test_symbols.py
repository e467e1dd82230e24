"""What can be no symbol gets a clear error, and reaches no statement, no key and no path."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import psycopg
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.errors import UniverseError
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.online import keys
from feature_pipeline.online.client import publishing_client
from feature_pipeline.online.publish import publish, publish_hashes
from feature_pipeline.online.read import (
    fall_through,
    read_features,
    read_macro,
    read_regime,
    read_sentiment,
    read_state_vector,
    read_state_vectors,
)
from feature_pipeline.serving import explain, lookup, missing, overview
from feature_pipeline.serving.names import resolve_all
from feature_pipeline.sources.lexicon import LexiconScorer
from feature_pipeline.stack import foreground
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.io_manager import SYMBOLS_TAG, tagged_symbols
from feature_pipeline.storage.store import Store
from feature_pipeline.symbols import checked_symbol, is_symbol, is_ticker
from feature_pipeline.universe import Universe
from feature_pipeline_tests.assets.support import failure
from feature_pipeline_tests.assets.world import make_universe
from feature_pipeline_tests.cli.conftest import Shell
from feature_pipeline_tests.online.support import DAY, NOW, rows

SYMBOLS = ["A", "AAPL", "BRK.B", "BRK-B", "7203.T", "BTC-USD", "EURUSD=X", "^GSPC", "S001", "GC=F"]

# Each holds a word that is looked for in what servers and disks were told.
MARK = "X7Q"
LINE_FEED = "line feed at the end"
HOSTILE = {
    "sql": f"'; DROP TABLE ohlcv_1d; -- {MARK}",
    "sql, no blanks": f"{MARK}');DROP/**/TABLE/**/ohlcv_1d;--",
    "path": f"../../../../tmp/{MARK}",
    "absolute path": f"/tmp/{MARK}",
    "CRLF": f"{MARK}\r\nSET {MARK} 1\r\n",
    LINE_FEED: f"{MARK}\n",
    "pattern": f"{MARK}*",
    "brackets": f"{MARK}[a-z]?",
    "NUL": f"{MARK}\0",
    "homoglyph": f"{MARK}\u0410",  # CYRILLIC CAPITAL LETTER A
    "full width": f"{MARK}\uff21",
    "other digits": f"{MARK}\u0663",
    "right to left": f"\u202e{MARK}",
    "lone surrogate": f"{MARK}\ud800",
    "emoji": f"{MARK}\U0001f680",
    "option": f"--{MARK}",
    "shell": f"$({MARK})",
    "key of another": f"{MARK}:1d",
    "blank inside": f"{MARK} A",
    "blanks around": f" {MARK} ",
    "long": MARK * 11,
    "very long": MARK * 30_000,
    "small letters": MARK.lower(),
}
NOTHING = {"empty": "", "blank": " ", "tab": "\t"}
PLACES = ["ohlcv_1d.close", "rsi_14"]


def cases(*without: str) -> Any:
    """The hostile ones, by name."""
    found = {name: text for name, text in (HOSTILE | NOTHING).items() if name not in without}
    return pytest.mark.parametrize("text", found.values(), ids=found.keys())


def says_no(said: str) -> None:
    """A line that a person can read and mend, and a terminal shows as it is."""
    assert "is no symbol: " in said
    assert said.isascii()
    assert said.isprintable()
    assert len(said) < 250


# -- the pattern ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", SYMBOLS)
def test_what_trades_is_a_symbol(text):
    assert checked_symbol(text) == text
    assert keys.vector_key("1d", text) == f"sv:1d:{text}"


@cases()
def test_what_is_none_is_named(text):
    with pytest.raises(UniverseError) as caught:
        checked_symbol(text)
    says_no(str(caught.value))


def test_small_letters_are_told_to_be_capitals():
    with pytest.raises(
        UniverseError, match="'aapl' is no symbol: symbols are in capitals, write AAPL"
    ):
        checked_symbol("aapl")


@given(st.text(max_size=40))
def test_whatever_passes_is_harmless(text):
    """As a file's name, a key, a word of a command and of a list with commas."""
    if is_symbol(text):
        assert text.isascii()
        assert text.upper() == text
        assert Path(text).name == text not in ("", ".", "..")
        assert not text.startswith("-")
        assert not set(text) & set(" \t\r\n\0'\"`$*?[]{}()<>|&;:,/\\%#~!@+")


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("EUR/USD", True),
        ("BTC/USDT:USDT", True),
        ("brk-b", True),
        ("^GSPC", True),
        ("EUR//USD", False),
        ("/USD", False),
        ("EUR/", False),
        ("EUR/..", False),
        ("../EUR", False),
        ("A/B/C", False),
        ("EUR/USD?x=1", False),
        ("EUR%2FUSD", False),
        ("EUR/USD\n", False),
        ("EUR USD", False),
        ("\u0410/USD", False),
        ("A" * 33, False),
    ],
)
def test_providers_may_have_a_slash_in_the_middle(text, fits):
    assert is_ticker(text) == fits


# -- universe.yaml --------------------------------------------------------------------------------


def universe_with(**changes: Any) -> str:
    entry = {
        "id": "GOOD",
        "asset_class": "equity",
        "calendar": "XNYS",
        "sector": "made",
        "source": {"bars": "made"},
        "symbols": [{"symbol": "GOOD", "from": date(2000, 1, 3)}],
        "membership": [{"from": date(2000, 1, 3)}],
    } | changes
    return yaml.safe_dump({"benchmark": "GOOD", "instruments": [entry]})


def refused(text: str) -> str:
    with pytest.raises(UniverseError) as caught:
        Universe.parse(text, "mine.yaml")
    said = str(caught.value)
    assert said.isascii()
    assert said.isprintable()
    assert len(said) < 300
    return said


@cases()
def test_a_universe_has_none_of_them(text):
    # A surrogate is no YAML to begin with.
    names = "" if "\ud800" in text else "instrument GOOD: "
    listed = [{"symbol": text, "from": date(2000, 1, 3)}]
    assert names in refused(universe_with(symbols=listed))
    refused(universe_with(id=text))
    refused(universe_with().replace("benchmark: GOOD", f"benchmark: {yaml.safe_dump(text)}"))
    if text != HOSTILE["small letters"] and text != HOSTILE["key of another"]:
        assert names in refused(universe_with(tickers={"made": text}))


def test_a_universe_says_what_is_wrong():
    said = refused(universe_with(id="B\u0410D"))
    assert said == (
        r"mine.yaml: instrument 'B\u0410D': id: 'B\u0410D' is no symbol; write 1 to 32 of A-Z, 0-9 "
        "and . ^ = _ -, the first of them a letter, a digit or ^"
    )
    said = refused(universe_with(tickers={"made": "../x"}))
    assert "instrument GOOD: tickers.made: '../x' is no ticker; write" in said


# -- what servers are told ------------------------------------------------------------------------


@pytest.fixture
def store(migrated_database_url) -> Iterator[Store]:
    """On a database that writes down every statement, with its parameters."""
    with psycopg.connect(migrated_database_url, autocommit=True) as link:
        name = link.info.dbname
        link.execute(f"ALTER DATABASE \"{name}\" SET log_statement = 'all'")
    with Database(migrated_database_url, 30) as database:
        yield Store(database, make_universe(), TABLES)


@pytest.fixture
def told(postgres_server) -> Callable[[], str]:
    """What PostgreSQL was told since the test began."""
    start = postgres_server.log.stat().st_size

    def read() -> str:
        with postgres_server.log.open("rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace")

    return read


MOMENT = lookup.Moment(datetime(2024, 1, 2, tzinfo=UTC))
DAYS = (date(2024, 1, 1), date(2024, 1, 5))


def asked(store: Store) -> dict[str, Callable[[str], object]]:
    """Everything that takes a symbol and may ask the database."""
    places, scorer = resolve_all(PLACES), LexiconScorer()

    def plan(symbol: str) -> object:
        return store.plan("ohlcv_1d", *DAYS, run_id="r", code_version="1", symbols=["AAA", symbol])

    return {
        "read": lambda s: store.read("ohlcv_1d", symbols=["AAA", s]),
        "newest_row": lambda s: store.newest_row("ohlcv_1d", ["close"], s),
        "plan": plan,
        "sessions": lambda s: store.universe.sessions(*DAYS, [s]),
        "lookup.newest": lambda s: lookup.newest(store, s, places, MOMENT, scorer),
        "lookup.series": lambda s: lookup.series(store, s, places, DAYS, MOMENT, scorer),
        "explain": lambda s: explain.explain(store, s, places[0], MOMENT, scorer, {}),
        "overview": lambda s: overview.overview(
            store, None, s, "1d", NOW, DAY, lambda _: pl.DataFrame()
        ),
        "missing": lambda s: missing.why_no_row(store, "ohlcv_1d", s, None, MOMENT.as_of),
        "history": lambda s: overview.last_sessions(store, s, "1d", 5),
    }


def test_the_database_hears_of_none_of_them(store, told):
    for name, ask in asked(store).items():
        for text in (HOSTILE | NOTHING).values():
            with pytest.raises(UniverseError) as caught:
                ask(text)
            says_no(str(caught.value))
        assert MARK not in told().upper(), name
    # It would have been seen: what is one is in the log.
    store.newest_row("ohlcv_1d", ["close"], "YOUNG")
    assert "YOUNG" in told()


@contextmanager
def overheard(url: str) -> Iterator[list[str]]:
    """What Redis is told meanwhile, by whomever."""
    commands: list[str] = []
    with (
        publishing_client(url) as client,
        publishing_client(url) as other,
        client.monitor() as monitor,
    ):

        def listen() -> None:
            for command in monitor.listen():
                commands.append(command["command"])
                if command["command"] == "ECHO done":
                    return

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield commands
        finally:
            other.echo("done")
            thread.join(10)
        assert commands[-1] == "ECHO done"


def test_redis_hears_of_none_of_them(redis_url):
    now = datetime.now(UTC)

    def ask(text: str) -> dict[str, Callable[[], object]]:
        return {
            "vector": lambda: read_state_vector(client, text, "1d", now, DAY),
            "vectors": lambda: read_state_vectors(client, ["AAPL", text], "1d", now, DAY),
            "features": lambda: read_features(client, text, "1d", now, DAY),
            "regime": lambda: read_regime(client, text, "1d", now, DAY),
            "sentiment": lambda: read_sentiment(client, text, "news", now, DAY),
            "macro": lambda: read_macro(client, text, now, DAY),
            "fall through": lambda: fall_through(
                client, ["AAPL", text], "1d", now, DAY, lambda _: pl.DataFrame()
            ),
        }

    with publishing_client(redis_url) as client:
        client.ping()
        with overheard(redis_url) as commands:
            for text in (HOSTILE | NOTHING).values():
                for call in ask(text).values():
                    with pytest.raises(UniverseError) as caught:
                        call()
                    says_no(str(caught.value))
        assert not [c for c in commands if c.split()[0] not in ("AUTH", "CLIENT", "HELLO", "ECHO")]
        with overheard(redis_url) as commands:
            read_state_vector(client, "AAPL", "1d", now, DAY)
        assert "GET sv:1d:AAPL" in commands


def test_none_of_them_is_published(redis_url):
    """The others are, and the report says who was not."""
    texts = [t for n, t in HOSTILE.items() if n != "lone surrogate"]
    vectors = rows(["AAPL", *texts])
    at, revision = vectors["available_at"], vectors["revision"]
    series = pl.DataFrame(
        {"series_id": ["DFF", *texts], "available_at": at, "revision": revision, "value": 1.0}
    )
    scores = pl.DataFrame(
        {"symbol": ["AAPL", *texts], "source": "news", "available_at": at, "revision": revision}
    ).with_columns(sentiment=pl.lit(0.5))
    with publishing_client(redis_url) as client, overheard(redis_url) as commands:
        for report in (
            publish(client, vectors, "1d"),
            publish_hashes(client, series, "macro"),
            publish_hashes(client, scores, "sentiment"),
        ):
            assert report.written == 1
            assert set(report.refused.values()) == {"its name can be no symbol"}
            assert len(report.refused) == len(texts)
        held = {key.decode() for key in client.scan_iter()}
    assert held == {
        "sv:1d:AAPL", "features:1d:AAPL", "regime:1d:AAPL", "macro:DFF", "sentiment:AAPL:news",
        keys.SENTINEL,
    } - ({keys.SENTINEL} - held)  # fmt: skip
    assert not [c for c in commands if MARK in c.upper()]


# -- commands and runs ----------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path, migrated_database_url, redis_url, monkeypatch) -> Shell:
    monkeypatch.setattr(foreground, "until_told", nullcontext)
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, SimpleNamespace(url=migrated_database_url), redis_url)  # type: ignore[arg-type]


COMMANDS = {
    "show": lambda text: ("show", "--", text),
    "get": lambda text: ("get", "--", text, "rsi_14"),
    "explain": lambda text: ("explain", "--", text, "rsi_14"),
    "backfill": lambda text: ("backfill", "--start", "2019-06-05", f"--symbols=AAA,{text}"),
    "dry run": lambda text: ("backfill", "--dry-run", f"--symbols={text},AAA"),
    "quarantine": lambda text: ("quarantine", "list", f"--symbol={text}"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_takes_one(shell, store, told, tmp_path, command):
    files = sorted(tmp_path.rglob("*"))
    with overheard(shell.variables["FEATURE_PIPELINE_REDIS_URL"]) as commands:
        for name, text in HOSTILE.items():
            if name == "NUL":
                continue  # no argument can hold one
            if command in ("backfill", "dry run") and name in ("blanks around", LINE_FEED):
                continue  # a list may have blanks between its words
            said = shell.error(*COMMANDS[command](text)).removeprefix("feature-pipeline: ")
            says_no(said)
    assert MARK not in told().upper()
    assert not [c for c in commands if MARK in c.upper()]
    assert sorted(tmp_path.rglob("*")) == files
    assert not Path(f"/tmp/{MARK}").exists()


@cases("blanks around")
def test_no_run_takes_one_by_its_tag(text):
    if text:
        with pytest.raises(UniverseError) as caught:
            tagged_symbols({SYMBOLS_TAG: f"AAA,{text}"})
        says_no(str(caught.value))


def test_a_run_with_one_fails_and_says_so(new_graph, world, told):
    text = HOSTILE["sql"]
    with new_graph(world) as graph:
        with graph.store.database.connection() as link:
            link.execute(f"ALTER DATABASE \"{link.info.dbname}\" SET log_statement = 'all'")
        graph.store.database.close()
        del graph.store
        result = graph.run(assets=["ohlcv_1d"], symbols=["AAA", text], check=False)
        assert not result.success
        step, why = failure(result)
        assert step == "ohlcv_1d"
        says_no(why)
        assert graph.table("ohlcv_1d").is_empty()
        assert "ohlcv_1d" in told()
    assert MARK not in told().upper()
