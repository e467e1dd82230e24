"""What may be written: the schema's rules applied to a frame, every row accounted for.

Pure: frame in, frames and counts out. Storing what is rejected is the writer's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime

import polars as pl

from feature_pipeline.schemas import TableSchema


@dataclass(frozen=True)
class Checked:
    """A frame, sorted out.

    `good` rows conform to the schema and have distinct keys; `quarantined` has `symbol`, `day`,
    `reason` and `payload` (JSON); `duplicate` rows repeated another one to the letter;
    `unfinished` rows were not yet available.
    """

    good: pl.DataFrame
    quarantined: pl.DataFrame
    duplicate: int
    unfinished: int


def check(
    table: TableSchema,
    frame: pl.DataFrame,
    *,
    now: datetime,
    window: tuple[date, date],
    symbols: Collection[str],
) -> Checked:
    """Sort the rows of `frame`, which has the table's columns, into good and rejected ones.

    Args:
        table: whose rules hold.
        frame: what a source or a computation returned; see `TableSchema.conform`.
        now: UTC; a row about a later moment is rejected, one not yet available is unfinished.
        window: [first, last) day asked for.
        symbols: the instruments that exist.
    """
    reason = frame.select(_reason(table, now, window, symbols).alias("reason"))["reason"]
    rejected = reason.is_not_null()
    bad = frame.filter(rejected).with_columns(reason.filter(rejected))
    good = frame.filter(~rejected)

    unfinished = good["available_at"] > now
    good = good.filter(~unfinished)

    # Key first: where no key repeats, which is always but for a provider's slip, nothing is
    # compared row by row.
    repeated = good.select(pl.struct(table.key).is_duplicated()).to_series()
    duplicate = 0
    if repeated.any():
        suspects = good.filter(repeated).unique(maintain_order=True)
        duplicate = int(repeated.sum()) - suspects.height
        contradicting = suspects.select(pl.struct(table.key).is_duplicated()).to_series()
        bad = pl.concat(
            [
                bad,
                suspects.filter(contradicting).with_columns(
                    reason=pl.lit("rows with the same key contradict each other")
                ),
            ]
        )
        good = pl.concat([good.filter(~repeated), suspects.filter(~contradicting)])
    return Checked(good, _quarantine(table, bad), duplicate, int(unfinished.sum()))


def _reason(
    table: TableSchema, now: datetime, window: tuple[date, date], symbols: Collection[str]
) -> pl.Expr:
    """The first rule that a row violates, in words; null for a good row."""
    day = pl.col(table.day_column).dt.date()
    violations: list[tuple[str, pl.Expr]] = [
        (f"{c.name} is missing", pl.col(c.name).is_null())
        for c in table.columns
        if not c.nullable and c.dtype != pl.Float64  # the table's own rules speak of numbers
    ]
    violations += [
        (f"{c.name} holds a NUL character", pl.col(c.name).str.contains("\x00", literal=True))
        for c in table.columns
        if c.dtype == pl.String
    ]
    if table.by_symbol:
        violations.append(("unknown symbol", ~pl.col("symbol").is_in(list(symbols))))
    violations += [(rule.reason, rule.violated) for rule in table.rules]
    violations += [
        (f"{c.name} is missing", pl.col(c.name).is_null())
        for c in table.columns
        if not c.nullable and c.dtype == pl.Float64
    ]
    violations += [
        ("it lies in the future", pl.col("time") > now),
        ("it lies outside the days asked for", (day < window[0]) | (day >= window[1])),
    ]
    return pl.coalesce(
        [pl.when(violated.fill_null(value=False)).then(pl.lit(r)) for r, violated in violations]
    )


def _quarantine(table: TableSchema, bad: pl.DataFrame) -> pl.DataFrame:
    """Rejected rows as quarantine keeps them: the row itself as JSON that jsonb accepts."""
    texts = [c.name for c in table.columns if c.dtype == pl.String]
    return bad.select(
        (pl.col("symbol") if table.by_symbol else pl.lit(None, dtype=pl.String)).alias("symbol"),
        pl.col(table.day_column).dt.date().alias("day"),
        pl.col("reason"),
        pl.struct(
            pl.col(texts).str.replace_all("\x00", "\ufffd", literal=True),
            pl.exclude("reason", *texts),
        )
        .struct.json_encode()
        .alias("payload"),
    )
