"""What a materialisation shows of its table: pictures, a glance at the newest rows, column lineage.

Reads a bounded amount from the store and hands it to `pictures`; how much, and which symbols, is
decided here, how it looks is not. The IO manager attaches the result to one partition of a run.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from feature_pipeline.assets.lineage import column_lineage
from feature_pipeline.schemas import GRID_START, STATE_VECTOR_FIELDS
from feature_pipeline.storage.store import Store

if TYPE_CHECKING:
    from feature_pipeline.pictures.style import Picture

DAYS = 365
"""Days that a picture shows, up to the end of the run's range."""

ACTION_DAYS = 3 * 365

MOST_SYMBOLS = 4
"""Symbols with a panel of their own: the benchmark, then by name."""

MOST_ROWS = 20_000
"""Rows of one table that are read for a map or a distribution; fewer days if days are large."""

VECTOR_SESSIONS = 120


@dataclass(frozen=True)
class Described:
    """What is seen of a table: pictures, and one line with a sparkline."""

    pictures: Sequence[Picture | None] = ()
    glance: str = ""
    sparkline: str = ""


class Describer:
    """Describes the tables of one store; what the IO manager calls `Describe`."""

    keys = ("dagster/column_lineage", "glance", "picture")

    def __init__(self, store: Store) -> None:
        self.store = store

    def __call__(self, asset: str, end: date) -> dict[str, dg.MetadataValue]:
        """Metadata for a materialisation of an asset whose days end before `end`.

        `glance` is shown where it stands, `picture` behind a link; either is left out where the
        asset has none. `dagster/column_lineage` is there for derived tables.

        Raises:
            DatabaseError: the database does not answer.
        """
        if asset not in self.store.tables:
            return {}
        found: dict[str, dg.MetadataValue] = {}
        lineage = column_lineage(asset)
        if lineage.deps_by_column:
            found["dagster/column_lineage"] = dg.MetadataValue.column_lineage(lineage)
        describe = _DESCRIPTIONS.get(asset)
        if describe is None:
            return found
        from feature_pipeline.pictures import markdown

        view = _View(self.store, asset, end)
        with _uncollected():
            seen = describe(view)
        pictures = [picture for picture in seen.pictures if picture is not None]
        nothing = f"There is nothing to show: {asset} has no rows from {view.start} to {view.last}."
        if seen.glance:
            found["glance"] = dg.MetadataValue.md(markdown.inline(seen.glance, seen.sparkline))
        found["picture"] = dg.MetadataValue.md(markdown.page(pictures, nothing))
        return found


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: drawing makes objects by the ten thousand, and for each batch of
    them the collector would walk through all of Dagster's (a fifth of the time)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True)
class _View:
    """What of the store a description sees: nothing from `end` on, and not much before it."""

    store: Store
    asset: str
    end: date
    days: int = DAYS

    @property
    def start(self) -> date:
        return max(self.end - timedelta(days=self.days), GRID_START)

    @property
    def last(self) -> date:
        return self.end - timedelta(days=1)

    def read(
        self, asset: str, columns: Sequence[str], symbols: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Rows of a few symbols over the whole window."""
        return self.store.read(asset, columns, start=self.start, end=self.end, symbols=symbols)

    def recent(self, columns: Sequence[str]) -> pl.DataFrame:
        """The newest rows of this asset, whole days of them: as many as MOST_ROWS allows."""
        return self.store.read(self.asset, columns, start=self.since, end=self.end)

    @cached_property
    def since(self) -> date:
        """The first day of `recent`, from the ledger's row counts."""
        held = self.store.ledger.rows(self.asset, self.start, self.end)
        by_day = held.group_by("day").agg(pl.col("rows").sum()).sort("day", descending=True)
        fits = by_day.filter(pl.col("rows").cum_sum() <= MOST_ROWS)["day"]
        if fits.len() == by_day.height:
            return self.start
        newest = by_day["day"][0]
        return fits[-1] if fits.len() else newest

    def sessions(self, start: date, symbols: Sequence[str] | None = None) -> pl.DataFrame:
        """Sessions whose bar should be there by now."""
        now = self.store.clock()
        return self.store.universe.sessions(start, self.end, symbols).filter(
            pl.col("close") + self.store.publication_delay <= now
        )

    def chosen(self, rows: pl.DataFrame) -> list[str]:
        """The symbols that get panels: of those that have rows."""
        have = rows["symbol"].unique().to_list()
        benchmark = self.store.universe.benchmark
        return sorted(have, key=lambda symbol: (symbol != benchmark, symbol))[:MOST_SYMBOLS]

    def actions(self, symbols: Sequence[str]) -> pl.DataFrame:
        return self.read("corporate_actions", ["time", "kind", "value"], symbols)


def _bars(view: _View) -> Described:
    from feature_pipeline.pictures import glance, grids, prices
    from feature_pipeline.pictures.style import numbers

    rows = view.recent(["symbol", "time"])
    symbols = view.chosen(rows)
    if not symbols:
        return Described([_map(view, rows, ())])
    bars = view.read(view.asset, ["close", "volume"], symbols)
    sessions = view.sessions(view.start, symbols)
    first = _of(bars, symbols[0])
    return Described(
        [
            prices.price(bars, view.actions(symbols), sessions, symbols),
            grids.completeness(rows, view.sessions(view.since), (), view.asset),
        ],
        _newest(f"{symbols[0]} close", first["close"], first["time"]),
        glance.line(numbers(first["close"])),
    )


def _indicators(view: _View) -> Described:
    from feature_pipeline.pictures import glance, prices
    from feature_pipeline.pictures.style import numbers

    names = _nullable(view)
    rows = view.recent(names)
    symbols = view.chosen(rows)
    shown = ["sma_50", "sma_200", "bb_upper", "bb_lower", "rsi_14"]
    computed = view.read(view.asset, shown, symbols)
    bars = view.read("ohlcv_1d", ["close"], symbols)
    first = _of(computed, symbols[0]) if symbols else computed
    return Described(
        [
            prices.indicators(
                bars, computed, view.actions(symbols), view.sessions(view.start, symbols), symbols
            ),
            _map(view, rows, names),
        ],
        _newest(f"{symbols[0]} RSI(14)", first["rsi_14"], first["time"]) if symbols else "",
        glance.line(numbers(first["rsi_14"])),
    )


def _features(view: _View) -> Described:
    from feature_pipeline.pictures import glance, prices
    from feature_pipeline.pictures.style import numbers

    names = _nullable(view)
    rows = view.recent(names)
    symbols = view.chosen(rows)
    computed = view.read(view.asset, ["returns_1d", "volatility_20d"], symbols)
    first = _of(computed, symbols[0]) if symbols else computed
    percent = first["returns_1d"] * 100
    return Described(
        [
            prices.returns(computed, view.sessions(view.start, symbols), symbols),
            _map(view, rows, names),
        ],
        _newest(f"{symbols[0]} return in %", percent, first["time"]) if symbols else "",
        glance.columns(numbers(percent)),
    )


def _regimes(view: _View) -> Described:
    from feature_pipeline.pictures import glance, prices

    rows = view.recent(["regime"])
    symbols = view.chosen(rows)
    labels = view.read(view.asset, ["regime"], symbols)
    bars = view.read("ohlcv_1d", ["close"], symbols)
    first = _of(labels, symbols[0]) if symbols else labels
    newest = first["regime"][-1] if first.height else None
    return Described(
        [
            prices.regimes(bars, labels, view.sessions(view.start, symbols), symbols),
            _map(view, rows, ["regime"]),
        ],
        f"{symbols[0]} on {first['time'][-1].date()}: {newest or 'no label'}. "
        + _last(first["regime"], "sessions")
        if symbols
        else "",
        glance.blocks(first["regime"].to_list(), prices.REGIME_COLOURS),
    )


def _state_vectors(view: _View) -> Described:
    from feature_pipeline.pictures import glance, grids
    from feature_pipeline.pictures.style import numbers

    fields = list(STATE_VECTOR_FIELDS)
    rows = view.recent(fields)
    symbols = view.chosen(rows)
    history = view.read(view.asset, fields, symbols[:1]).tail(VECTOR_SESSIONS) if symbols else rows
    newest = rows.sort("symbol", "time").group_by("symbol", maintain_order=True).last()
    vector = pl.Series([history[name][-1] for name in fields if history.height], dtype=pl.Float64)
    return Described(
        [grids.state_vectors(history, newest, fields), _map(view, rows, fields)],
        f"{symbols[0]} on {history['time'][-1].date()}, from {fields[0]} to {fields[-1]}:"
        if symbols
        else "",
        glance.columns(numbers(vector), -1, 1),
    )


def _documents(view: _View) -> Described:
    from feature_pipeline.pictures import events, glance
    from feature_pipeline.pictures.style import numbers

    rows = view.recent(["available_at", "symbols"])
    what = {"news": "News articles", "reddit": "Reddit documents"}[view.asset]
    first = max(view.since, view.start)
    daily = (
        pl.DataFrame({"day": pl.date_range(first, view.last, eager=True)})
        .join(rows.group_by(day=pl.col("available_at").dt.date()).len(), on="day", how="left")
        .sort("day")["len"]
        .fill_null(0)
    )
    return Described(
        [events.documents(rows, first, view.last, what)],
        f"{daily[-1]} on {view.last}. {_last(daily, 'days')}",
        glance.columns(numbers(daily)),
    )


def _sentiment(view: _View) -> Described:
    from feature_pipeline.pictures import events, glance
    from feature_pipeline.pictures.style import numbers

    active = _active_model(view.store)
    rows = view.recent(["available_at", "channel", "sentiment"])
    rows = rows.filter(*(pl.col(name) == value for name, value in active.items()))
    daily = (
        rows.group_by(day=pl.col("available_at").dt.date())
        .agg(pl.col("sentiment").mean())
        .sort("day")
    )
    return Described(
        [events.sentiment(rows)],
        f"Mean on {daily['day'][-1]}: {daily['sentiment'][-1]:+.2f}. "
        + _last(daily["day"], "days with documents")
        if daily.height
        else "",
        glance.columns(numbers(daily["sentiment"]), -1, 1),
    )


def _macro(view: _View) -> Described:
    from feature_pipeline.pictures import events, glance
    from feature_pipeline.pictures.style import numbers

    rows = view.recent(["time", "available_at", "value", "name", "units"])
    series = sorted(rows["series_id"].unique(), key=lambda name: (name != "VIXCLS", name))
    own = rows.filter(pl.col("series_id") == (series[0] if series else ""))
    newest = own.sort("time", "available_at").unique("time", keep="last", maintain_order=True)
    return Described(
        [events.macro(rows)],
        _newest(series[0], newest["value"], newest["time"], "observations") if series else "",
        glance.line(numbers(newest["value"])),
    )


def _actions(view: _View) -> Described:
    from feature_pipeline.pictures import events

    view = _View(view.store, view.asset, view.end, ACTION_DAYS)
    rows = view.recent(["symbol", "time", "kind", "value"])
    splits = rows.filter(pl.col("kind") == "split").height
    return Described(
        [events.actions(rows, max(view.since, view.start), view.last)],
        f"{splits} splits and {rows.height - splits} dividends since {view.since}",
    )


def _insiders(view: _View) -> Described:
    from feature_pipeline.pictures import events

    rows = view.recent(["available_at", "code"])
    first = max(view.since, view.start)
    bought, sold = (rows.filter(pl.col("code") == code).height for code in ("P", "S"))
    filed = rows.select("available_at", symbols=pl.concat_list("symbol"))
    return Described(
        [events.documents(filed, first, view.last, "Insider transactions", "transactions")],
        f"{rows.height} transactions filed since {first}: {bought} purchases and {sold} sales on "
        "the market",
    )


_DESCRIPTIONS: Mapping[str, Callable[[_View], Described]] = {
    "ohlcv_1d": _bars,
    "corporate_actions": _actions,
    "news": _documents,
    "reddit": _documents,
    "macro_indicators": _macro,
    "insider_transactions": _insiders,
    "sentiment_scores": _sentiment,
    "indicators_1d": _indicators,
    "features_1d": _features,
    "regime_predictions_1d": _regimes,
    "state_vectors_1d": _state_vectors,
}


def _map(view: _View, rows: pl.DataFrame, columns: Sequence[str]) -> Picture | None:
    from feature_pipeline.pictures import grids

    return grids.completeness(rows, view.sessions(view.since), columns, view.asset)


def _nullable(view: _View) -> list[str]:
    return [c.name for c in view.store.tables[view.asset].columns if c.nullable]


def _of(rows: pl.DataFrame, symbol: str) -> pl.DataFrame:
    return rows.filter(pl.col("symbol") == symbol).sort("time")


def _newest(what: str, values: pl.Series, times: pl.Series, unit: str = "sessions") -> str:
    """`GSPC close on 2013-03-01: 1518. The last 60 sessions:`."""
    from feature_pipeline.pictures.style import short

    value = "missing" if values[-1] is None else short(values[-1], 4)
    return f"{what} on {times[-1].date()}: {value}. {_last(values, unit)}"


def _last(shown: Sequence[object] | pl.Series, unit: str) -> str:
    from feature_pipeline.pictures.glance import MOST_POINTS

    return f"The last {min(len(shown), MOST_POINTS)} {unit}:"


def _active_model(store: Store) -> Mapping[str, str]:
    return next(
        needed.where
        for table in store.tables.values()
        for needed in table.inputs
        if needed.asset == "sentiment_scores"
    )
