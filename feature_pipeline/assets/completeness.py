"""What is there and what is missing, in words: rows by the calendars, events by their days, values.

Verdicts like those of `judgements.py`, whose subject is what the rows say.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cache

import polars as pl

from feature_pipeline.assets.intraday import bars_per_session
from feature_pipeline.assets.verdicts import Verdict, days_of, first_of, many
from feature_pipeline.features.catalogue import ALL_DECLARED, ALL_TABLES, column_inputs
from feature_pipeline.features.declarations import BARS, INSIDERS, SCORES
from feature_pipeline.schemas import TableSchema
from feature_pipeline.storage.audit import SHOWN, Audit
from feature_pipeline.storage.planning import EVERYBODY, not_asked, on_grid
from feature_pipeline.storage.store import Store
from feature_pipeline.timeframes import DAILY, at, stem
from feature_pipeline.universe import Instrument, bars_before, calendar_sessions

NAN_LIMIT = 0.10
"""Share of missing values of a column."""

_VOLUMELESS = ("fx", "index")


# -- rows -----------------------------------------------------------------------------------------


def row_count(store: Store, asked: Audit, symbols: Sequence[str] | None = None) -> Verdict:
    """A row for every session that has ended, by the exchange calendars, and for nothing else.

    What is known to be missing is named with its reason and is a warning; what nobody accounts for
    is an error. Intraday rows are compared with the bars of each session: half of them may be
    missing before that is a warning, for nobody trades in every minute.

    Args:
        store: whose universe and ledger.
        asked: about a table on the session grid.
        symbols: whose rows; those of others were not asked for in this run.
    """
    if asked.table.intraday:
        return bars_per_session(store, asked, _exceptions(store, asked), symbols)
    sessions = store.universe.sessions(asked.start, asked.end, symbols)
    sessions = sessions.with_columns(day=pl.col("time").dt.date())
    due = sessions.filter(pl.col("close") + store.publication_delay <= asked.now)
    counts = asked.counts()
    if symbols is None and _as_expected(due, counts):
        return Verdict(
            True, f"a row for each of {many(due.height, 'session')}", numbers={"rows": due.height}
        )
    held = asked.held()
    if symbols is not None:
        held = held.filter(pl.col("symbol").is_in(sessions["symbol"].unique().implode()))
    place = ["symbol", "day"]
    missing = due.join(held, on=place, how="anti").select(place)
    known = _exceptions(store, asked)
    missing = missing.join(known, on=place, how="left")
    unknown = missing.filter(pl.col("reason").is_null())
    ended = sessions.filter(pl.col("close") <= asked.now)
    extra = held.filter(pl.col("symbol").is_in(list(store.universe.symbols))).join(
        ended, on=place, how="anti"
    )
    parts = []
    if unknown.height:
        parts.append(_lacking(unknown, "and nothing says why"))
    if missing.height > unknown.height:
        named = missing.filter(pl.col("reason").is_not_null())
        parts.append(_lacking(named, f"known: {_reasons(named)}"))
    if extra.height:
        parts.append(
            f"{many(extra.height, 'row')} for what is no session of the calendar: "
            f"{_places(extra.sort('day', 'symbol'))}"
        )
    numbers = {"rows": held.height, "expected": due.height, "unaccounted": unknown.height}
    if not parts:
        return Verdict(True, f"a row for each of {many(due.height, 'session')}", numbers=numbers)
    shown = pl.concat(
        [
            unknown.with_columns(reason=pl.lit("nobody knows")),
            missing.filter(pl.col("reason").is_not_null()),
            extra.select(*place, reason=pl.lit("no session of its calendar")),
        ]
    )
    return Verdict(
        False, "; ".join(parts), error=unknown.height > 0, shown=_runs(shown), numbers=numbers
    )


def _as_expected(due: pl.DataFrame, counts: pl.DataFrame) -> bool:
    """Whether the totals by day and by symbol are those of the calendars: so are the rows, then."""
    for name in ("day", "symbol"):
        wanted = due.group_by(name).agg(rows=pl.len().cast(pl.Int64)).sort(name)
        other = "symbol" if name == "day" else "day"
        there = counts.filter(pl.col(name).is_not_null(), pl.col(other).is_null())
        if not wanted.equals(there.select(name, "rows").sort(name)):
            return False
    return True


def _exceptions(store: Store, asked: Audit) -> pl.DataFrame:
    """`symbol`, `day`, `reason` of what is known to be missing, of the bars too."""
    inputs = (n.asset for n in asked.table.inputs if on_grid(ALL_TABLES[n.asset]))
    assets = {asked.table.asset, *inputs, at(BARS, asked.table.timeframe or DAILY)}
    parts = [
        store.ledger.exceptions(asset, asked.start, asked.end).select("symbol", "day", "reason")
        for asset in sorted(assets)
    ]
    return pl.concat(parts).unique(["symbol", "day"], keep="first", maintain_order=True)


def collected(store: Store, asked: Audit) -> Verdict:
    """Events of every day that has begun were asked for; who did not answer is named.

    That a provider is off, for want of a credential, is told and no fault.
    """
    end = min(asked.end, asked.now.date() + timedelta(days=1))
    days = pl.date_range(asked.start, max(asked.start, end), closed="left", eager=True)
    rows = store.ledger.rows(asked.table.asset, asked.start, asked.end)
    never = days.filter(~days.is_in(rows["day"].implode()))
    failed = store.ledger.exceptions(asked.table.asset, asked.start, asked.end)
    off = failed.filter(not_asked(asked.table))
    failed = failed.filter(~not_asked(asked.table))
    parts = []
    if never.len():
        parts.append(f"{many(never.len(), 'day')} never collected: {_days(never)}")
    if failed.height:
        named = failed.with_columns(
            symbol=pl.when(pl.col("symbol") == EVERYBODY)
            .then(pl.lit("all of ") + pl.col("source"))
            .otherwise("symbol")
        )
        parts.append(_lacking(named, f"known: {_reasons(named)}"))
    numbers = {"days": days.len(), "rows": int(rows["rows"].sum()), "never": never.len()}
    lost = off["day"].n_unique()
    told = f"; of {many(lost, 'day')}, nobody was asked: {_reasons(off)}" if lost else ""
    if not parts:
        return Verdict(
            True,
            f"{many(days.len(), 'day')} collected, {many(numbers['rows'], 'row')}{told}",
            shown=_runs(off.select("symbol", "day", "reason")) if lost else pl.DataFrame(),
            numbers=numbers | {"off": lost},
        )
    shown = failed.select("symbol", "day", "reason")
    return Verdict(
        False, "; ".join(parts) + told, error=never.len() > 0, shown=_runs(shown), numbers=numbers
    )


# -- missing values -------------------------------------------------------------------------------


def nan_share(store: Store, asked: Audit) -> Verdict:
    """At most a tenth of a column's values is missing.

    Not counted: the warm-up of an instrument (bars before the column's whole lookback, `warm_up`),
    volume of markets that have none (`fx`, `index`), what follows from documents or insiders where
    nobody collects any, and what follows from a source that is off.
    """
    table = asked.table
    columns = [
        c.name for c in table.columns if c.dtype == pl.Float64 and (table.derived or not c.nullable)
    ]
    off = {asset for asset in store.tables if store.planner.why_off(asset)}
    columns = [c for c in columns if off.isdisjoint(a for a, _ in _follows_from(table.asset, c))]
    since, numbered = _counted_since(store.universe.instruments, table, columns)
    found = asked.missing(numbered, since)
    parts, rows = [], []
    worst, counted = 0.0, 0
    for name, number in numbered.items():
        every = pl.col(f"all_{number}")
        by_symbol = found.select("symbol", every=every, none=every - pl.col(f"good_{name}"))
        total, none = int(by_symbol["every"].sum()), int(by_symbol["none"].sum())
        share = none / total if total else 0.0
        worst, counted = max(worst, share), counted + total
        if share <= NAN_LIMIT:
            continue
        by_symbol = by_symbol.filter(pl.col("none") > 0).sort(
            "none", "symbol", descending=[True, False]
        )
        symbol, of, most = by_symbol.row(0)
        parts.append(
            f"{name}: {none} of {total} values are missing ({share:.0%}), most of them of "
            f"{symbol} ({most} of {of})"
        )
        rows.append((name, share, none, total, ", ".join(by_symbol["symbol"].head(5))))
    where = days_of(asked)
    if not parts:
        return Verdict(
            True,
            f"no column lacks more than {NAN_LIMIT:.0%} of its values {where}; "
            f"the worst lacks {worst:.1%}"
            if counted
            else f"nothing to judge {where}: no instrument is past its warm-up",
            error=False,
            numbers={"worst": worst, "values": counted},
        )
    shown = pl.DataFrame(
        rows, schema=["column", "share", "missing", "values", "symbols"], orient="row"
    )
    return Verdict(
        False,
        f"{where}: {first_of(parts)}",
        error=False,
        shown=shown.sort("share", descending=True).head(SHOWN),
        numbers={"worst": worst, "values": counted, "columns": len(parts)},
    )


@cache
def warm_up(asset: str, column: str) -> int:
    """Bars before a bar that the column's value may depend on, through all tables it follows from.

    By the declared lookbacks; a regime reads what its table declares.
    """
    if not (ALL_TABLES[asset].derived and on_grid(ALL_TABLES[asset])):
        return 0
    declared = {feature.column: feature for feature in ALL_DECLARED.get(asset, ())}
    feature = declared.get(column)
    if feature is None:
        own = max(needed.lookback_bars for needed in ALL_TABLES[asset].inputs)
    else:
        needs = [declared[name].lookback_bars for name in feature.needs if name in declared]
        own = max(feature.lookback_bars, *needs, 0)
    return own + max((warm_up(*ref) for ref in column_inputs(asset)[column]), default=0)


@cache
def _follows_from(asset: str, column: str) -> frozenset[tuple[str, str]]:
    """Every column of a source that a column follows from, with any number of steps."""
    found: set[tuple[str, str]] = set()
    for ref in column_inputs(asset).get(column, ()):
        found |= {tuple(ref)} | _follows_from(*ref)  # type: ignore[arg-type]
    return frozenset(found)


def _counted_since(
    instruments: Sequence[Instrument], table: TableSchema, columns: Sequence[str]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """From which session on each instrument's values count: `symbol` and a column per distinct
    rule; and column -> number of its rule."""
    rules: dict[tuple[int, bool, bool, bool], int] = {}
    numbered = {}
    for name in columns:
        sources = _follows_from(table.asset, name)
        rule = (
            warm_up(table.asset, name),
            any((stem(asset), name) == ("ohlcv", "volume") for asset, name in sources),
            any(asset == SCORES for asset, _ in sources),
            any(asset == INSIDERS for asset, _ in sources),
        )
        numbered[name] = rules.setdefault(rule, len(rules))
    by_calendar: dict[str, list[Instrument]] = {}
    for instrument in instruments:
        by_calendar.setdefault(instrument.calendar, []).append(instrument)
    frames = []
    for calendar, group in by_calendar.items():
        sessions = calendar_sessions(calendar)
        times = sessions["open" if table.intraday else "time"]
        first = pl.Series([i.first_day for i in group], dtype=pl.Date)
        first = first.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        begin = sessions["time"].search_sorted(first, side="left").cast(pl.Int64)
        volumeless = pl.Series([i.asset_class in _VOLUMELESS for i in group])
        unheard = pl.Series([not (i.source.news or i.source.reddit) for i in group])
        unwatched = pl.Series([not i.source.insiders for i in group])
        frame = pl.DataFrame({"symbol": [i.id for i in group]})
        for (bars, volume, texts, insiders), number in rules.items():
            never = (volumeless if volume else False) | (unheard if texts else pl.Series([False]))
            never |= unwatched if insiders else pl.Series([False])
            place = _after(begin, bars, calendar, table)
            moment = times.gather(place.clip(0, times.len() - 1))
            frame = frame.with_columns(
                pl.when((place < times.len()) & ~never).then(moment).alias(f"since_{number}")
            )
        frames.append(frame)
    return pl.concat(frames), numbered


def _after(begin: pl.Series, bars: int, calendar: str, table: TableSchema) -> pl.Series:
    """The session by whose first bar so many have passed since each of some sessions began."""
    if not table.intraday:
        return begin + bars
    counted = bars_before(calendar, str(table.timeframe))
    passed = counted.gather(begin.clip(0, counted.len() - 1)) + bars
    return counted.search_sorted(passed, side="left").cast(pl.Int64)


# -- words ----------------------------------------------------------------------------------------


def _places(rows: pl.DataFrame) -> str:
    said = [f"{s} on {d}" for s, d in rows.select("symbol", "day").head(3).iter_rows()]
    return first_of(said, rows.height)


def _days(days: pl.Series) -> str:
    return first_of([str(day) for day in days.head(3)], days.len())


def _lacking(rows: pl.DataFrame, why: str) -> str:
    """`BBB lacks 3 sessions from ... to ... , ... `: by symbol, the worst first."""
    by_symbol = (
        rows.group_by("symbol")
        .agg(days=pl.len(), first=pl.col("day").min(), last=pl.col("day").max())
        .sort("days", "symbol", descending=[True, False])
    )
    said = [
        f"{symbol} on {first}" if days == 1 else f"{symbol} on {days} days from {first} to {last}"
        for symbol, days, first, last in by_symbol.head(3).iter_rows()
    ]
    return f"no row of {first_of(said, by_symbol.height)} ({why})"


def _reasons(rows: pl.DataFrame) -> str:
    counted = rows["reason"].value_counts(sort=True)
    return first_of([str(reason) for reason in counted["reason"].head(3)], counted.height)


def _runs(rows: pl.DataFrame) -> pl.DataFrame:
    """By symbol and reason instead of by day."""
    return (
        rows.group_by("symbol", "reason")
        .agg(days=pl.len(), first=pl.col("day").min(), last=pl.col("day").max())
        .sort("days", "symbol", descending=[True, False])
        .head(SHOWN)
    )
