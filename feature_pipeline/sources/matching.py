"""Which instruments a text speaks of, and by which word.

Rules, each of which can be shown (`Matcher.explain`):

- `cashtag`: `$AAPL`, `$aapl`, of a pair its first half as well (`$BTC`). Always counts.
- `exchange`: `NYSE: ON`. Always counts.
- `ticker`: the symbol alone, in capitals, as a whole word. Not one of one or two letters, nor one
  that is an ordinary word (`ordinary.TICKERS`): "ALL IN ON AI" speaks of nobody.
- `pair`: `EUR/USD`, `EURUSD`, `BTC-USD`; also in lower case.
- `name`: the name or an alias, without `Inc` and the like, as whole words, written as
  `universe.yaml` has it or in capitals. Of a crypto currency also in lower case.
- `ordinary name`: a name that is an ordinary word too (`ordinary.NAMES`: Target, Gap, Visa)
  counts before `Inc` and the like, or within a sentence: after a word in lower case, and before
  another one, `'s` or a punctuation mark. At a sentence's beginning, or in a headline that
  capitalises every word, it does not.

Symbols hold on the days on which the instrument bore them, `[from, to)` of `universe.yaml`; names
and aliases always. One word may speak of several instruments (Google: GOOG and GOOGL).

Texts are searched all at once, by an automaton over words (Polars' Aho-Corasick): time is linear in
their length whatever they hold, and of each the first `MOST_READ` characters are read. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property

import polars as pl

from feature_pipeline.schemas import UTC_TIME
from feature_pipeline.sources.ordinary import EXCHANGES, FORMS, NAMES, TICKERS
from feature_pipeline.universe import Instrument

MOST_READ = 50_000
"""Characters of a title and a text together that are searched; what comes later is not read."""

_DOCUMENTS = pl.Schema([("title", pl.String), ("text", pl.String), ("time", UTC_TIME)])
_TERMS = pl.Schema(
    {
        "key": pl.String,
        "symbol": pl.String,
        "rule": pl.String,
        "word": pl.String,
        "first": pl.Date,
        "end": pl.Date,
    }
)
_ALWAYS = (date.min, date.max)
_ROWS_AT_ONCE = 20_000
_SHORTEST_TICKER = 3
_EXCHANGE = "\xa7"
"""Stands for `NYSE:` and the like; of what people write, it is no part of a word."""
_QUOTES = ("USDT", "USDC", "USD", "EUR", "GBP", "JPY", "BTC")


@dataclass(frozen=True, order=True)
class Match:
    """One reason why a text speaks of an instrument.

    Args:
        symbol: the instrument's id.
        rule: `cashtag`, `exchange`, `ticker`, `pair`, `name` or `ordinary name`.
        word: what the text says.
    """

    symbol: str
    rule: str
    word: str


class Matcher:
    """Finds instruments in texts.

    Args:
        instruments: those that may be found.
    """

    def __init__(self, instruments: Iterable[Instrument]) -> None:
        self._instruments = tuple(instruments)

    def match(self, documents: pl.DataFrame) -> pl.Series:
        """The instruments that each document speaks of.

        Args:
            documents: `title`, `text` (either may be null) and `time`, the publication.

        Returns:
            `symbols`, a list of ids per row, in its order: sorted, distinct, empty where none.
        """
        found = self._found(documents).group_by("row").agg(pl.col("symbol").unique().sort())
        return (
            pl.DataFrame({"row": pl.int_range(documents.height, dtype=pl.UInt32, eager=True)})
            .join(found, on="row", how="left", maintain_order="left")
            .select(pl.col("symbol").fill_null(pl.lit([], dtype=pl.List(pl.String))))
            .to_series()
            .alias("symbols")
        )

    def explain(self, title: str | None, text: str | None, time: datetime) -> list[Match]:
        """Everything in a text that speaks of an instrument, sorted; see `Match`."""
        said = [None if t is None else t.encode("utf-8", "replace").decode() for t in (title, text)]
        document = pl.DataFrame([(*said, time.astimezone(UTC))], schema=_DOCUMENTS, orient="row")
        rows = self._found(document).select("symbol", "rule", "word").unique()
        return sorted(Match(*row) for row in rows.iter_rows())

    # -- searching ----------------------------------------------------------------------------

    def _found(self, documents: pl.DataFrame) -> pl.DataFrame:
        """`row` of the document, `symbol`, `rule`, `word`: one row per thing found."""
        texts = documents.select(
            # A bar: what ends the title and what begins the text are no words in a row.
            said=pl.concat_str(
                pl.col("title").cast(pl.String).fill_null(""),
                pl.lit(" | "),
                pl.col("text").cast(pl.String).fill_null(""),
            ).str.head(MOST_READ),
            day=pl.col("time").cast(UTC_TIME).dt.date(),
        ).with_row_index("row")
        parts = [self._in(part) for part in texts.iter_slices(_ROWS_AT_ONCE)]
        found = pl.concat(parts) if parts else self._in(texts)
        return (
            found.join(self._terms, on="key")
            # Of a document without a moment, what holds always is known.
            .filter(pl.col("day").fill_null(date.max - timedelta(days=1)) >= pl.col("first"))
            .filter(pl.col("day").fill_null(date.min) < pl.col("end"))
            .select("row", "symbol", "rule", "word")
        )

    def _in(self, texts: pl.DataFrame) -> pl.DataFrame:
        """`row`, `day`, and `key` of each term that its text holds."""
        words = self._terms.filter(pl.col("key").str.starts_with(" "))["key"].unique()
        longest = words.str.len_bytes().arg_sort(descending=True)
        ordered = words.gather(longest)  # of those that begin at one place, the first is taken
        hits = texts.select(
            "row",
            "day",
            key=_as_words(pl.col("said")).str.extract_many(ordered.implode(), leftmost=True)
            if ordered.len()
            else pl.lit([], dtype=pl.List(pl.String)),
        )
        return pl.concat([hits, self._within(texts)]).explode("key").drop_nulls("key").unique()

    def _within(self, texts: pl.DataFrame) -> pl.DataFrame:
        """Ordinary names within sentences; their key is the name itself."""
        if self._sentence is None:
            return texts.select("row", "day", key=pl.lit([], dtype=pl.List(pl.String))).clear()
        some = texts.filter(pl.col("said").str.contains_any(self._ordinary))
        phrases = pl.col("said").str.extract_all(self._sentence)
        name = pl.element().str.extract(self._sentence, 1).str.replace_all(r"\s+", " ")
        return some.select("row", "day", key=phrases.list.eval(name))

    # -- what is searched for -----------------------------------------------------------------

    @cached_property
    def _terms(self) -> pl.DataFrame:
        """Every way of speaking of an instrument; `key` is how `_as_words` leaves it."""
        rows = [
            (key, i.id, rule, word, first, end)
            for i in self._instruments
            for key, rule, word, (first, end) in _ways(i)
        ]
        return pl.DataFrame(rows, schema=_TERMS, orient="row").unique()

    @cached_property
    def _ordinary(self) -> list[str]:
        names = (name for i in self._instruments for name in _names(i) if _is_ordinary(name))
        return sorted(set(names), key=lambda name: (-len(name), name))

    @cached_property
    def _sentence(self) -> str | None:
        """A regular expression: an ordinary name within a sentence, captured."""
        if not self._ordinary:
            return None
        names = "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in self._ordinary)
        return (
            rf"(?:^|[\s(\"'])\p{{Ll}}[\p{{L}}'’]*,?\s({names})"
            r"(?:['’]s?(?:\s|$)|\s\p{Ll}|[.,;:!?)\"])"
        )


def _as_words(text: pl.Expr) -> pl.Expr:
    """Words with two blanks between them and one at either end, so that a word with its blanks is
    found exactly where it stands alone; colon, slash, hyphen and bar are words. An exchange and its
    colon become `_EXCHANGE`."""
    spaced = (
        text.str.replace_all(r"[^\p{L}\p{M}\p{N}$^_:/|-]+", " ")
        .str.replace_all(rf"(?:^|[ |/-])(?:{'|'.join(EXCHANGES)}) ?: ?", f" {_EXCHANGE}")
        .str.replace_all(r"[:/|-]", " ${0} ")
    )
    return pl.concat_str(
        pl.lit(" "), spaced.str.strip_chars(" ").str.replace_all(r" +", "  "), pl.lit(" ")
    )


def _key(words: str) -> str:
    """The same of one term."""
    spaced = re.sub(r"[:/|-]", r" \g<0> ", re.sub(r"[^\w$^:/|-]+", " ", words))
    return " " + "  ".join(spaced.split()) + " "


_Way = tuple[str, str, str, tuple[date, date]]


def _ways(instrument: Instrument) -> Iterator[_Way]:
    """Key, rule, word and days of each way of speaking of it."""
    for listing in instrument.symbols:
        days = (listing.start, listing.end or date.max)
        yield from _symbol_ways(instrument, listing.symbol, days)
    for name in _names(instrument):
        yield from _name_ways(instrument, name)


def _symbol_ways(instrument: Instrument, symbol: str, days: tuple[date, date]) -> Iterator[_Way]:
    pair = _pair(instrument, symbol)
    plain = symbol.lstrip("^").removesuffix("=X")
    if pair:
        base, quote = pair
        joined = base + quote
        for word in (f"{base}/{quote}", f"{base}-{quote}", joined):
            yield from ((_key(w), "pair", w, days) for w in (word, word.lower()))
        tags = [joined, base] if instrument.asset_class == "crypto" else [joined]
        bare = [base] if instrument.asset_class == "crypto" else []
    else:
        forms = [plain, *(plain.replace(".", mark) for mark in ("-", "/", "")), f"^{plain}"]
        tags = [form for form in forms if not form.startswith("^")]
        bare = [symbol] if symbol.startswith("^") else []
        bare += [form for form in forms[:4] if "=" not in form]
    for word in dict.fromkeys(tags):
        yield from ((_key(w), "cashtag", w, days) for w in (f"${word}", f"${word.lower()}"))
        yield f" {_EXCHANGE}{_key(word).lstrip()}", "exchange", word, days
    for word in dict.fromkeys(bare):
        if word.startswith("^") or _counts_alone(word):
            yield _key(word), "ticker", word, days


def _counts_alone(ticker: str) -> bool:
    letters = sum(c.isalpha() for c in ticker)
    return letters >= _SHORTEST_TICKER and ticker not in TICKERS


def _pair(instrument: Instrument, symbol: str) -> tuple[str, str] | None:
    """Base and quote of an FX or crypto symbol: EURUSD, EUR/USD, EURUSD=X, BTC-USD, BTCUSDT."""
    if instrument.asset_class not in ("fx", "crypto"):
        return None
    plain = symbol.removesuffix("=X")
    base, mark, quote = re.sub("[/_]", "-", plain).partition("-")
    if mark:
        return base, quote
    if instrument.asset_class == "fx":
        return (plain[:3], plain[3:]) if len(plain) == 6 else None
    ends = next((q for q in _QUOTES if plain.endswith(q) and len(plain) > len(q)), None)
    return (plain.removesuffix(ends), ends) if ends else (plain, "USD")


def _names(instrument: Instrument) -> list[str]:
    """Its name and aliases, without what stands behind a company's name."""
    named: Sequence[str] = [n for n in (instrument.name, *instrument.aliases) if n]
    return list(dict.fromkeys(_without_form(name) for name in named))


def _without_form(name: str) -> str:
    words = name.removeprefix("The ").replace(",", " ").split()
    while len(words) > 1 and words[-1].rstrip(".").casefold() in _FORMS:
        words.pop()
    return " ".join(words).removesuffix(" &")


_FORMS = frozenset(form.casefold() for form in FORMS)


def _name_ways(instrument: Instrument, name: str) -> Iterator[_Way]:
    if not _key(name).strip():
        return
    if _is_ordinary(name):
        yield name, "ordinary name", name, _ALWAYS
        written = (f"{name} {form}" for form in FORMS)
        yield from ((_key(w), "ordinary name", w, _ALWAYS) for w in written)
        return
    ways = {name, name.upper(), name[0].upper() + name[1:]}
    if instrument.asset_class == "crypto":
        ways.add(name.lower())
    for word in sorted(ways):
        # In capitals it may be an ordinary word after all, or somebody's abbreviation.
        if word == name or word not in TICKERS:
            yield _key(word), "name", word, _ALWAYS


def _is_ordinary(name: str) -> bool:
    """Whether it means something else as well, or is too short to mean anything."""
    letters = [c for c in name if c.isalnum()]
    return name.lower() in NAMES or name.upper() in TICKERS or len(letters) < _SHORTEST_TICKER - 1
