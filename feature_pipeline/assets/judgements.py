"""What is a fault and what is not, in words: from what the tables hold to a verdict.

Each function judges one thing about the days of one asset and says what is wrong and where. Asking
the tables is `storage/audit.py`'s, telling Dagster is `checks.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from typing import Any

import polars as pl

from feature_pipeline.features.catalogue import DECLARED, STATE_FIELDS, TABLES, column_inputs
from feature_pipeline.features.declarations import BARS, INSIDERS, REGIMES, SCORES
from feature_pipeline.online.compare import MISSING, OLDER
from feature_pipeline.schemas import TableSchema
from feature_pipeline.storage.audit import SHOWN, Audit, Bounds
from feature_pipeline.storage.planning import EVERYBODY, not_asked, on_grid
from feature_pipeline.storage.reports import BECAME
from feature_pipeline.storage.store import Store
from feature_pipeline.universe import Instrument, calendar_sessions

NAN_LIMIT = 0.10
"""Share of missing values of a column."""

GAP_LIMIT = 0.10
"""Close-to-close move, split-adjusted."""

SATURATION_LIMIT = 0.10
"""Share of a clipped field's values that lie on a bound."""

SATURATION_DAYS = 365
"""Days that the share is taken over at least: of a single day, one stormy market would decide."""

RESTATED_LATELY = timedelta(days=30)
"""Corrections that are looked at where no run says which."""

SAME_FACTOR = 1e-3
"""How far the factors of restated closes may lie apart and still be one."""

SPLIT_FACTOR = 1.05
"""A factor that is nearer to 1 is no split's."""

ONE_ACTION = timedelta(days=5)
"""Two equal splits within it are one that was reported twice."""

_VOLUMELESS = ("fx", "index")


@dataclass(frozen=True)
class Verdict:
    """What a judgement comes to.

    Args:
        passed: whether all is well.
        says: what is wrong and where, or that all is well; a sentence or two.
        error: whether a fault is one (or else a warning).
        shown: rows that show it; not more than `SHOWN`.
        numbers: what was counted.
    """

    passed: bool
    says: str
    error: bool = True
    shown: pl.DataFrame = field(default_factory=pl.DataFrame)
    numbers: Mapping[str, int | float] = field(default_factory=dict)


def audit(store: Store, asset: str, start: date, end: date) -> Audit:
    """Questions about the days [start, end) of an asset of the store."""
    return Audit(store.database, store.tables[asset], start, end, store.clock())


# -- rows -----------------------------------------------------------------------------------------


def row_count(store: Store, asked: Audit, symbols: Sequence[str] | None = None) -> Verdict:
    """A row for every session that has ended, by the exchange calendars, and for nothing else.

    What is known to be missing is named with its reason and is a warning; what nobody accounts for
    is an error.

    Args:
        store: whose universe and ledger.
        asked: about a table on the session grid.
        symbols: whose rows; those of others were not asked for in this run.
    """
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
    assets = {asked.table.asset, *(n.asset for n in asked.table.inputs if _grid(n.asset)), BARS}
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
    where = _range(asked)
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
    if not (TABLES[asset].derived and _grid(asset)):
        return 0
    declared = {feature.column: feature for feature in DECLARED.get(asset, ())}
    feature = declared.get(column)
    if feature is None:
        own = max(needed.lookback_bars for needed in TABLES[asset].inputs)
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
            (BARS, "volume") in sources,
            any(asset == SCORES for asset, _ in sources),
            any(asset == INSIDERS for asset, _ in sources),
        )
        numbered[name] = rules.setdefault(rule, len(rules))
    by_calendar: dict[str, list[Instrument]] = {}
    for instrument in instruments:
        by_calendar.setdefault(instrument.calendar, []).append(instrument)
    frames = []
    for calendar, group in by_calendar.items():
        times = calendar_sessions(calendar)["time"]
        first = pl.Series([i.first_day for i in group], dtype=pl.Date)
        first = first.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        at = times.search_sorted(first, side="left").cast(pl.Int64)
        volumeless = pl.Series([i.asset_class in _VOLUMELESS for i in group])
        unheard = pl.Series([not (i.source.news or i.source.reddit) for i in group])
        unwatched = pl.Series([not i.source.insiders for i in group])
        frame = pl.DataFrame({"symbol": [i.id for i in group]})
        for (bars, volume, texts, insiders), number in rules.items():
            never = (volumeless if volume else False) | (unheard if texts else pl.Series([False]))
            never |= unwatched if insiders else pl.Series([False])
            place = at + bars
            moment = times.gather(place.clip(0, times.len() - 1))
            frame = frame.with_columns(
                pl.when((place < times.len()) & ~never).then(moment).alias(f"since_{number}")
            )
        frames.append(frame)
    return pl.concat(frames), numbered


# -- values ---------------------------------------------------------------------------------------


def price_gaps(asked: Audit) -> Verdict:
    """Closes that jump, on the split-adjusted series: news, or a split that nobody reported."""
    found = asked.moves(GAP_LIMIT)
    if found.is_empty():
        return Verdict(
            True, f"no close moved by more than {GAP_LIMIT:.0%} {_range(asked)}", error=False
        )
    total = int(found["total"][0])
    said = [
        f"{symbol} {move:+.1%} on {day}"
        for symbol, day, move in found.select("symbol", "day", "move").head(3).iter_rows()
    ]
    return Verdict(
        False,
        f"{many(total, 'close')} moved by more than {GAP_LIMIT:.0%} after splits: "
        f"{first_of(said, total)}. A split that is missing from corporate_actions looks like this",
        error=False,
        shown=found.drop("total"),
        numbers={"gaps": total},
    )


def restated(asked: Audit, run_id: str | None) -> Verdict:
    """Bars that the provider had told otherwise before: a correction, or a split that it reports
    late. The old ones are kept in the table's history.

    Args:
        asked: about a table of bars.
        run_id: whose writes; None - of anybody, of the last `RESTATED_LATELY`.
    """
    found = asked.restated(run_id, asked.now - RESTATED_LATELY)
    where = _range(asked)
    if found.is_empty():
        by = "by this run" if run_id else f"within {RESTATED_LATELY.days} days"
        return Verdict(True, f"no bar was restated {by}, {where}", error=False)
    total, every = int(found["total"][0]), int(found["every"][0])
    said = [_restatement(row) for row in found.head(3).iter_rows(named=True)]
    return Verdict(
        False,
        f"{many(every, 'bar')} of {many(total, 'symbol')} restated, {where}: "
        f"{first_of(said, total)}. The old rows are in {asked.table.table}_history",
        error=False,
        shown=found.drop("total", "every"),
        numbers={"restated": every, "symbols": total},
    )


def _restatement(row: Mapping[str, Any]) -> str:
    """`AAA 3 bars from ... to ..., the last close from 400 to 100 (...)`."""
    days = f"from {row['first']} to {row['last']}" if row["bars"] > 1 else f"on {row['last']}"
    notes = []
    low, high = row["low"], row["high"]
    if row["was"] != row["source"]:
        notes.append(f"{row['source']} in the place of {row['was']}")
    elif low is not None and high - low <= SAME_FACTOR * low:
        if max(low, 1 / low) >= SPLIT_FACTOR:
            notes.append(f"x {low:.6g}{' on each' if row['bars'] > 1 else ''}: {_as_split(row)}")
        elif low == high == 1.0:
            notes.append("closes are the same, what differs is another column")
    close = f"the last close from {row['before']:g} to {row['after']:g}"
    return f"{row['symbol']} {many(row['bars'], 'bar')} {days}, {close}" + (
        f" ({'; '.join(notes)})" if notes else ""
    )


def _as_split(row: Mapping[str, Any]) -> str:
    low = row["low"]
    ratio = f"{1 / low:.4g} for 1" if low < 1 else f"1 for {low:.4g}"
    if row["split"] is None:
        return (
            f"like a split of {ratio} that corporate_actions does not have; collect it for these "
            "days, or ask the provider"
        )
    return (
        f"corporate_actions has a split of {row['split']:g} on {row['ex_date']}, recorded "
        f"{row['recorded_at']:%Y-%m-%d %H:%M}"
    )


def no_future(store: Store, asked: Audit) -> Verdict:
    """No row is known before it could be: nothing of later than now, no bar before its session's
    close, no derived row at another moment than what it derives from."""
    table = asked.table
    if not on_grid(table):
        found = asked.out_of_time()
    elif table.derived:
        found = asked.out_of_time(bars=store.tables[BARS].table)
    else:
        calendars = {i.id: i.calendar for i in store.universe.instruments}
        day = pl.col("time").dt.date()
        closes = {
            name: calendar_sessions(name).filter(day >= asked.start, day < asked.end)
            for name in sorted(set(calendars.values()))
        }
        found = asked.out_of_time(closes, calendars)
    return _none_wrong(
        asked,
        found,
        "is known before it could be" if table.mode == "replace" else "has an impossible moment",
        lambda row: (
            f"{_key(table, row)} of {row['time']:%Y-%m-%d %H:%M}: {row['problem']} "
            f"({row['available_at']:%Y-%m-%d %H:%M})"
        ),
        "every row becomes available when it could be known",
    )


def no_duplicates(asked: Audit) -> Verdict:
    """Nothing is there twice under keys that differ."""
    asset = asked.table.asset
    if on_grid(asked.table):
        return _none_wrong(
            asked,
            asked.repeated_sessions(),
            "has more than one row",
            lambda row: f"{row['symbol']} has {row['rows']} rows on {row['day']}",
            "one row per symbol and session",
            "session",
        )
    if asset == "corporate_actions":
        return _none_wrong(
            asked,
            asked.repeated_actions(ONE_ACTION),
            "is there twice",
            lambda row: (
                f"{row['symbol']} {row['kind']} of {row['value']:g} on {row['day']} "
                f"({row['source']}) and {row['other_day']} ({row['other_source']})"
            ),
            f"no split or dividend is there twice within {ONE_ACTION.days} days",
            "action",
        )
    return _none_wrong(
        asked,
        asked.repeated_documents(),
        "is there more than once",
        lambda row: f"{row['document']} is there {row['rows']} times",
        "every document is there once",
        "document",
    )


def in_range(asked: Audit) -> Verdict:
    """State vectors keep to their scales: values within bounds, the regime one-hot, and `missing`
    naming exactly what is null."""
    return _none_wrong(
        asked,
        asked.impossible_vectors(bounds(), tuple(f"regime_{label}" for label in REGIMES)),
        "breaks its scale",
        lambda row: f"{row['symbol']} on {row['day']}: {row['problem']}",
        "every value lies on its scale, and `missing` names what is null",
        "vector",
    )


def saturation(asked: Audit) -> Verdict:
    """Few values of a clipped field lie on a bound: a scale that is too narrow says nothing.

    Judged over a year at least.
    """
    fields = {f.name: bounds()[f.name] for f in STATE_FIELDS if "clipped" in f.description}
    start = min(asked.start, asked.end - timedelta(days=SATURATION_DAYS))
    wider = Audit(asked.database, asked.table, start, asked.end, asked.now)
    found = wider.at_bounds(fields).row(0, named=True)
    rows = [
        (
            name,
            found[f"at_{name}"] / found[f"all_{name}"],
            found[f"at_{name}"],
            found[f"all_{name}"],
        )
        for name in fields
        if found[f"all_{name}"]
    ]
    shown = pl.DataFrame(
        rows, schema=["field", "share", "at_a_bound", "values"], orient="row"
    ).sort("share", descending=True)
    worst = float(shown["share"][0]) if shown.height else 0.0
    too_many = [
        f"{name}: {at} of {every} values ({share:.0%})"
        for name, share, at, every in shown.iter_rows()
        if share > SATURATION_LIMIT
    ]
    where = _range(wider)
    if too_many:
        return Verdict(
            False,
            f"{where} more than {SATURATION_LIMIT:.0%} of a field lies on a bound: "
            f"{first_of(too_many)}; widen its scale, or look for what drives it there",
            error=False,
            shown=shown,
            numbers={"worst": worst},
        )
    return Verdict(
        True,
        f"at most {worst:.1%} of a clipped field lies on a bound {where}",
        error=False,
        shown=shown,
        numbers={"worst": worst},
    )


@cache
def bounds() -> Mapping[str, Bounds]:
    """The scale of each field of the state vector, from its declared unit: `0 to 1`, `0 or 1`."""
    scales = {}
    for one in STATE_FIELDS:
        low, word, high = one.unit.split()
        scales[one.name] = Bounds(float(low), float(high), either=word == "or")
    return scales


# -- conservation ---------------------------------------------------------------------------------


def conservation(asked: Audit, run_id: str | None) -> Verdict:
    """Every row that was handed in is accounted for, and what the ledger says is there is there.

    Args:
        asked: about the days.
        run_id: whose writes; None - of all that touched these days.
    """
    reports = asked.reports(run_id)
    became = pl.sum_horizontal("outside", *BECAME)
    lost = reports.with_columns(accounted=became).filter(pl.col("input") != pl.col("accounted"))
    differing = asked.against_ledger()
    total = int(differing["total"][0]) if differing.height else 0
    numbers = {
        "writes": reports.height,
        **{name: int(reports[name].sum()) for name in ("input", "outside", *BECAME)},
        "days_unlike_the_ledger": total,
    }
    parts = [
        f"{row['source']} handed in {row['input']} rows for {row['first_day']} to "
        f"{row['last_day']}, {row['accounted']} are accounted for"
        for row in lost.head(3).iter_rows(named=True)
    ]
    ledger = [
        f"the ledger says {many(row['ledger'], 'row')} of {row['source']} for {row['day']}, the "
        f"table has {row['held']}"
        for row in differing.head(3).iter_rows(named=True)
    ]
    if ledger:
        forget = f"DELETE FROM partition_ledger WHERE asset = '{asked.table.asset}' AND day = ..."
        parts.append(
            f"{first_of(ledger, total)} (somebody wrote past the pipeline: delete the day's rows, "
            f"then {forget}; `repair` or a backfill writes the day again)"
        )
    if parts:
        return Verdict(
            False,
            "; ".join(parts),
            shown=differing.drop("total") if ledger else lost.head(SHOWN),
            numbers=numbers,
        )
    handed = numbers["input"] - numbers["outside"]
    said = ", ".join(f"{numbers[name]} {name}" for name in BECAME if numbers[name])
    return Verdict(
        True,
        (f"{many(handed, 'row')} offered: {said}" if handed else "nothing was offered")
        + "; the tables hold what the ledger says",
        numbers=numbers,
    )


def online_equals_offline(found: pl.DataFrame, symbols: int, *, waiting: bool = False) -> Verdict:
    """What Redis serves is what the database has: the newest vector and features of every symbol,
    value by value, of the same moment and revision.

    What was written a moment ago and is not published yet is no fault.

    Args:
        found: the differences, as `online.compare` has them.
        symbols: how many were compared.
        waiting: whether older or missing ones may still be published.
    """
    late = found.filter(pl.col("is").is_in([MISSING, OLDER])) if waiting else found.clear()
    wrong = found.join(late, on="key", how="anti") if late.height else found
    numbers = {"symbols": symbols, "wrong": wrong["symbol"].n_unique(), "waiting": late.height}
    if wrong.is_empty():
        more = f"; {many(late.height, 'key')} about to be published" if late.height else ""
        return Verdict(
            True,
            f"Redis has what the database has of {many(symbols, 'symbol')}{more}",
            numbers=numbers,
        )
    affected = many(numbers["wrong"], "symbol")
    return Verdict(
        False,
        f"Redis differs from the database for {affected}: "
        f"{first_of(wrong['says'].head(3).to_list(), wrong.height)}; "
        "`feature-pipeline online rebuild --force` publishes everything again",
        shown=wrong.head(SHOWN),
        numbers=numbers,
    )


# -- words ----------------------------------------------------------------------------------------


def _none_wrong(
    asked: Audit,
    found: pl.DataFrame,
    fault: str,
    told: object,
    well: str,
    thing: str = "row",
) -> Verdict:
    """The verdict on rows that should not be there; `told` says one of them."""
    where = _range(asked)
    if found.is_empty():
        return Verdict(True, f"{well}, {where}", numbers={"wrong": 0})
    total = int(found["total"][0])
    said = [told(row) for row in found.head(3).iter_rows(named=True)]  # type: ignore[operator]
    return Verdict(
        False,
        f"{many(total, thing)} {fault}: {first_of(said, total)}",
        shown=found.drop("total"),
        numbers={"wrong": total},
    )


def _grid(asset: str) -> bool:
    return on_grid(TABLES[asset])


def _key(table: TableSchema, row: Mapping[str, object]) -> str:
    names = [n for n in table.key if n in row and n not in ("time", "available_at")]
    return " ".join(str(row[name]) for name in names[:2])


def _range(asked: Audit) -> str:
    last = asked.end - timedelta(days=1)
    return f"on {last}" if asked.start == last else f"from {asked.start} to {last}"


def many(count: int, thing: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def first_of(said: Sequence[str], total: int | None = None) -> str:
    """The first three, and how many more there are."""
    more = (len(said) if total is None else total) - min(len(said), 3)
    return ", ".join(said[:3]) + (f" and {more} more" if more > 0 else "")


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
