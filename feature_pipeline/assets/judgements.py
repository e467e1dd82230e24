"""What is a fault and what is not, in words: from what the rows of a table say to a verdict.

Each function judges one thing about the days of one asset and says what is wrong and where. Asking
the tables is `storage/audit.py`'s, telling Dagster is `checks.py`'s; what is missing is judged in
`completeness.py`, what is late in `recency.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Any

import polars as pl

from feature_pipeline.assets.verdicts import Verdict, days_of, first_of, many, none_wrong
from feature_pipeline.features.catalogue import STATE_FIELDS
from feature_pipeline.features.declarations import BARS, REGIMES
from feature_pipeline.online.compare import MISSING, OLDER
from feature_pipeline.schemas import TableSchema
from feature_pipeline.storage.audit import SHOWN, Audit, Bounds
from feature_pipeline.storage.planning import on_grid
from feature_pipeline.storage.reports import BECAME
from feature_pipeline.storage.store import Store
from feature_pipeline.timeframes import DAILY, at
from feature_pipeline.universe import calendar_sessions

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


# -- values ---------------------------------------------------------------------------------------


def price_gaps(asked: Audit) -> Verdict:
    """Closes that jump, on the split-adjusted series: news, or a split that nobody reported."""
    found = asked.moves(GAP_LIMIT)
    if found.is_empty():
        return Verdict(
            True, f"no close moved by more than {GAP_LIMIT:.0%} {days_of(asked)}", error=False
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
    where = days_of(asked)
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
        bars = at(BARS, table.timeframe or DAILY)
        found = asked.out_of_time(bars=store.tables[bars].table)
    else:
        calendars = {i.id: i.calendar for i in store.universe.instruments}
        day = pl.col("time").dt.date()
        closes = {
            name: calendar_sessions(name).filter(day >= asked.start, day <= asked.end)
            for name in sorted(set(calendars.values()))
        }
        found = asked.out_of_time(closes, calendars)
    return none_wrong(
        asked,
        found,
        "is known before it could be" if table.mode == "replace" else "has an impossible moment",
        lambda row: (
            f"{_key(table, row)} of {row['time']:%Y-%m-%d %H:%M}: {row['problem']} "
            f"({row['available_at']:%Y-%m-%d %H:%M})"
        ),
        "every row becomes available when it could be known",
    )


def _key(table: TableSchema, row: Mapping[str, object]) -> str:
    names = [n for n in table.key if n in row and n not in ("time", "available_at")]
    return " ".join(str(row[name]) for name in names[:2])


def no_duplicates(asked: Audit) -> Verdict:
    """Nothing is there twice under keys that differ."""
    asset = asked.table.asset
    if on_grid(asked.table):
        return none_wrong(
            asked,
            asked.repeated_sessions(),
            "has more than one row",
            lambda row: f"{row['symbol']} has {row['rows']} rows on {row['day']}",
            "one row per symbol and session",
            "session",
        )
    if asset == "corporate_actions":
        return none_wrong(
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
    return none_wrong(
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
    return none_wrong(
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
    where = days_of(wider)
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
