"""Why a number is what it is: its row, its declaration, the rows it came from, and the proof.

Gathers what storage knows about one value of one symbol at one moment and computes the value again
from exactly the rows that are shown. Why a value is missing is `missing.py`'s; how the answer is
drawn is the caller's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from feature_pipeline.errors import FeatureError
from feature_pipeline.features.declarations import ACTIONS, MACRO, Feature
from feature_pipeline.schemas import Input, TableSchema
from feature_pipeline.serving.lookup import newest
from feature_pipeline.serving.missing import why_missing, why_no_row
from feature_pipeline.serving.names import Named, inputs_of, series_of
from feature_pipeline.serving.recompute import compute
from feature_pipeline.storage import evidence
from feature_pipeline.storage.store import Store
from feature_pipeline.timeframes import stem

if TYPE_CHECKING:
    from feature_pipeline.serving.lookup import Moment
    from feature_pipeline.sources import Scorer

SHOWN = 5
"""Rows shown per input, and replaced versions."""

TOLERANCE = 1e-9
"""Of the column's scale: how far a value computed from other stretches of history may be apart."""


@dataclass(frozen=True)
class InputEvidence:
    """What a value read of one input.

    Args:
        asset, columns: of which table.
        rows: how many rows its window holds, gaps apart, and of how many `symbols`.
        first, last: their earliest and latest `time`.
        newest: the newest of the symbol's own rows (macro: of the series), with `available_at`,
            `source`, `recorded_at`, `run_id` and the ledger `revision` of their day.
        replaced: versions that these rows' predecessors had, with `superseded_at`, the latest
            first; `replaced_count` of them are on record.
    """

    asset: str
    columns: tuple[str, ...]
    rows: int
    symbols: int
    first: datetime | None
    last: datetime | None
    newest: list[dict[str, Any]]
    replaced: list[dict[str, Any]]
    replaced_count: int


@dataclass(frozen=True)
class Recomputed:
    """The value as computed from the evidence, and whether it is the same to `TOLERANCE`."""

    value: float | str | int | list[str] | None
    same: bool


@dataclass(frozen=True)
class Explanation:
    """Everything that is known about one value.

    Args:
        symbol, name, as_of: what was asked.
        asset, column: where the value is.
        value: what it is; None where it is missing.
        row: time, available_at, availability_basis, recorded_at or computed_at, run_id (and source)
            of its row; None where no row was available.
        declaration: of the feature: name, version, description, unit, category, computation,
            lookback_bars, lookback_days, dependencies; None where it is none.
        inputs: what it was computed from; empty for a source's own value.
        replaced: earlier versions of the row itself, of a source's table.
        ledger: the entries of its partition.
        stale: why a run would compute its partition again now; empty where it would not.
        adjustments: splits and dividends inside of its window, that its prices are adjusted for.
        missing: why it is null, or why later sessions have no row.
        recomputed: the proof; None where there is nothing to compute.
    """

    symbol: str
    name: str
    as_of: datetime
    asset: str
    column: str
    value: float | str | int | list[str] | None
    row: dict[str, Any] | None
    declaration: dict[str, Any] | None
    inputs: list[InputEvidence] = field(default_factory=list)
    replaced: list[dict[str, Any]] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    adjustments: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    recomputed: Recomputed | None = None


def explain(
    store: Store,
    symbol: str,
    place: Named,
    moment: Moment,
    scorer: Scorer,
    code_versions: Mapping[str, str],
) -> Explanation:
    """Why a value of a symbol is what it is, as of a moment.

    Args:
        store: where from.
        symbol: an id or a symbol.
        place: which value.
        moment: of its newest row that was available; as the tables are now.
        scorer: the active sentiment model.
        code_versions: asset -> the version of the code as it is now.

    Raises:
        UniverseError: the symbol is unknown.
        FeatureError: it is asked for as it was known at a past moment.
        DatabaseError: the database does not answer.
    """
    if moment.known_at is not None:
        raise FeatureError("explain tells what is stored now; give it a moment with --as-of")
    instrument = store.universe.resolve(symbol).id
    (found,) = newest(store, symbol, [place], moment, scorer)
    table = store.tables[place.asset]
    answer: dict[str, Any] = {
        "symbol": instrument,
        "name": place.name,
        "as_of": moment.as_of,
        "asset": place.asset,
        "column": place.column,
        "value": found.value,
        "row": None,
        "declaration": declaration(place.feature) if place.feature else None,
        "missing": why_no_row(store, place.asset, instrument, found.time, moment.as_of),
    }
    if found.time is None or found.available_at is None:
        return Explanation(**answer)
    day = found.time.date()
    own = evidence.rows(
        store.database,
        table,
        [place.column],
        (day, day + timedelta(days=1)),
        where={"symbol": [instrument]},
        available_by=moment.as_of,
        limit=SHOWN,
    ).filter(time=found.time)
    before, _ = evidence.replaced(
        store.database,
        table,
        [place.column],
        (day, day + timedelta(days=1)),
        where={"symbol": [instrument]},
        limit=SHOWN,
    )
    row = own.row(0, named=True)
    told = ("time", "available_at", "availability_basis", "source")
    recorded = {table.audit[0]: row["recorded_at"], "run_id": row["run_id"]}
    answer |= {
        "row": {n: row[n] for n in told if n in row} | recorded,
        "replaced": before.to_dicts(),
        "ledger": evidence.ledger_entries(store.database, place.asset, day).to_dicts(),
        "stale": stale(store, table, day, code_versions[place.asset]),
    }
    if table.derived:
        needed = inputs_of(place, table)
        who = None if place.feature and place.feature.universe else [instrument]
        tomorrow = day + timedelta(days=1)
        frames = {n.asset: store.inputs(n, day, tomorrow, symbols=who) for n in needed}
        answer["inputs"] = [
            _evidence(store, place, n, frames[n.asset], instrument, found.time, found.available_at)
            for n in needed
        ]
        answer["adjustments"] = _adjustments(frames, instrument, found.time)
        answer["recomputed"] = _recomputed(
            store, place, frames, instrument, found.time, found.value, scorer
        )
        if found.value is None:
            answer["missing"] = [
                *why_missing(store, place, instrument, found.time, found.available_at),
                *answer["missing"],
            ]
    return Explanation(**answer)


def declaration(feature: Feature) -> dict[str, Any]:
    """What the catalogue says of a feature."""
    return {
        "name": feature.name,
        "version": feature.version,
        "description": feature.description,
        "unit": feature.unit,
        "category": feature.category,
        "computation": feature.computation,
        "lookback_bars": feature.lookback_bars,
        "lookback_days": feature.lookback_days,
        "dependencies": [f"{asset}.{c}" for asset, names in feature.inputs.items() for c in names],
    }


def stale(store: Store, table: TableSchema, day: date, code_version: str) -> list[str]:
    """Why a run would compute a partition of a derived table again; empty where it would not."""
    tomorrow = day + timedelta(days=1)
    if not table.derived or store.pending(table.asset, day, tomorrow, code_version).is_empty():
        return []
    held = evidence.ledger_entries(store.database, table.asset, day)
    if held.is_empty():
        return ["its day is not in the ledger"]
    entry = held.row(0, named=True)
    reasons = []
    if entry["code_version"] != code_version:
        reasons.append(
            f"it was computed by code version {entry['code_version']}; {code_version} is current"
        )
    for needed in table.inputs:
        revisions = store.ledger.revisions(needed.asset, store.reach(needed, day), tomorrow)
        newer = revisions.filter(pl.col("revision") > entry["upstream_revision"])
        if newer.height:
            which = newer.row(newer["revision"].arg_max() or 0, named=True)
            more = f" and {newer.height - 1} more days" if newer.height > 1 else ""
            reasons.append(
                f"{needed.asset} of {which['day']}{more} changed since: revision "
                f"{which['revision']}, and it was computed from revision "
                f"{entry['upstream_revision']}"
            )
    return reasons


# -- evidence -------------------------------------------------------------------------------------


def _evidence(
    store: Store,
    place: Named,
    needed: Input,
    frame: pl.DataFrame,
    symbol: str,
    time: datetime,
    available_at: datetime,
) -> InputEvidence:
    """What of an input a value at `time`, available at `available_at`, rests on."""
    table = store.tables[needed.asset]
    columns = place.feature.inputs.get(needed.asset, ()) if place.feature else needed.columns
    whose = _whose(place, table, symbol)
    # A row without basis stands for something that is not there.
    rows = frame.filter(
        pl.col("availability_basis").is_not_null(), pl.col("available_at") <= available_at
    )
    if place.feature is None or not place.feature.universe:
        for name in (name for name in whose if name in rows.columns):
            rows = rows.filter(pl.col(name).is_in(list(whose[name])))
    days = (store.reach(needed, time.date()), time.date() + timedelta(days=1))
    where = {**whose, **{name: [value] for name, value in needed.where.items()}}
    shown = evidence.rows(
        store.database, table, columns, days, where=where, available_by=available_at, limit=SHOWN
    )
    before, count = evidence.replaced(
        store.database, table, columns, days, where=where, limit=SHOWN
    )
    times = rows["time"]
    return InputEvidence(
        asset=needed.asset,
        columns=tuple(columns),
        rows=rows.height,
        symbols=rows["symbol"].n_unique() if "symbol" in rows.columns else 0,
        first=times.min(),  # type: ignore[arg-type]
        last=times.max(),  # type: ignore[arg-type]
        newest=shown.to_dicts(),
        replaced=before.to_dicts(),
        replaced_count=count,
    )


def _whose(place: Named, table: TableSchema, symbol: str) -> dict[str, Sequence[str]]:
    """Which rows of an input speak of the value: the symbol's, or those of the series it names."""
    if table.by_symbol:
        return {"symbol": [symbol]}
    if "symbols" in table.names:
        return {"symbols": [symbol]}
    named = series_of(place.feature)
    return {"series_id": named} if table.asset == MACRO and named else {}


def _adjustments(
    frames: Mapping[str, pl.DataFrame], symbol: str, time: datetime
) -> list[dict[str, Any]]:
    """The splits and dividends that lie between the symbol's first bar of the window and the last:
    bars before an ex-date were adjusted."""
    bars = _bars(frames)
    if ACTIONS not in frames or bars is None:
        return []
    first = bars.filter(symbol=symbol)["time"].min()
    actions = frames[ACTIONS].filter(
        pl.col("symbol") == symbol,
        pl.col("kind").is_not_null(),
        pl.col("time") > first,
        pl.col("time") <= time,
    )
    return (
        actions.select("kind", "value", pl.col("time").alias("ex_date"), "available_at")
        .sort("ex_date", "kind")
        .to_dicts()
    )


def _recomputed(
    store: Store,
    place: Named,
    frames: Mapping[str, pl.DataFrame],
    symbol: str,
    time: datetime,
    value: Any,
    scorer: Scorer,
) -> Recomputed:
    """The value from these rows alone, by its table's pure function."""
    table = store.tables[place.asset]
    nothing = {needed.asset: store.tables[needed.asset].empty() for needed in table.inputs}
    rows = compute(place.asset, {**nothing, **frames}, store.universe, scorer)
    row = rows.filter(pl.col("symbol") == symbol, pl.col("time") == time)
    now = row[place.column].to_list()[0] if row.height else None
    if isinstance(now, float) and not math.isfinite(now):
        now = None
    if table.column(place.column).sql_type == "jsonb" and now and value:
        return Recomputed(now, json.loads(now) == json.loads(value))
    return Recomputed(now, _same(now, value, _scale(place, frames, symbol)))


def _scale(place: Named, frames: Mapping[str, pl.DataFrame], symbol: str) -> float:
    """What 1e-9 is relative to: prices, and what is made of their differences, to the close."""
    feature = place.feature
    if feature is None or feature.basis == "none":
        return 1.0
    bars = _bars(frames)
    closes = pl.Series([1.0]) if bars is None else bars.filter(symbol=symbol)["close"]
    largest = closes.abs().max()
    return float(largest) if isinstance(largest, float) else 1.0


def _bars(frames: Mapping[str, pl.DataFrame]) -> pl.DataFrame | None:
    return next((frame for asset, frame in frames.items() if stem(asset) == "ohlcv"), None)


def _same(now: Any, value: Any, scale: float) -> bool:
    if isinstance(now, float) and isinstance(value, float):
        return math.isclose(now, value, rel_tol=TOLERANCE, abs_tol=TOLERANCE * scale)
    return bool(now == value)
