"""What may be written: the schema's rules applied to a frame, every row accounted for.

Pure: frame in, frames and counts out. What a row must keep to is `frames.py`'s; storing what is
rejected is the writer's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TypeAlias

import polars as pl

from feature_pipeline.schemas import UTC_TIME, Column, TableSchema

_FIRST, _LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
_REPLACEMENT = "\ufffd"

CONTRADICTION = "rows with the same key contradict each other"
OUTDATED = "the same answer holds a newer version of it"

Releases: TypeAlias = Callable[[pl.DataFrame], pl.Series]
"""Of rejected rows (`symbol`, `day`, `reason`, `payload`): when a person released each of them from
that very reason, null where nobody did."""


def nobody_released(rejected: pl.DataFrame) -> pl.Series:
    """Every rejection stands."""
    return pl.repeat(None, rejected.height, dtype=UTC_TIME, eager=True)


def releasable(table: TableSchema) -> frozenset[str]:
    """The reasons that are a judgement, which a person may overrule; the others are facts."""
    return frozenset({*(rule.reason for rule in table.rules), CONTRADICTION})


@dataclass(frozen=True)
class Checked:
    """A frame, sorted out.

    `good` rows conform to the schema and have distinct keys; `quarantined` has `symbol`, `day`,
    `reason` and `payload` (JSON); `duplicate` rows said what another one says; `unfinished` rows
    were not yet available.
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
    releases: Releases = nobody_released,
) -> Checked:
    """Sort the rows of `frame`, which has the table's columns, into good and rejected ones.

    Args:
        table: whose rules hold.
        frame: what a source or a computation returned; see `TableSchema.conform`.
        now: UTC; a row about a later moment is rejected, one not yet available is unfinished.
        window: [first, last) day asked for.
        symbols: the instruments that exist.
        releases: what a person accepted. It overrules the one reason that it was accepted in spite
            of, and no other.
    """

    # Here: dataframely brings SQLAlchemy along, which commands that only read do without.
    from feature_pipeline.storage.frames import boundary

    rules = boundary(table, now, window, symbols)
    good, bad = rules.split(frame)
    if bad.height:
        accepted = _released(table, bad, releases).is_not_null()
        again = [
            rules.judged(rows, str(reason))
            for (reason,), rows in bad.filter(accepted).partition_by("reason", as_dict=True).items()
        ]
        bad = pl.concat([bad.filter(~accepted), *again])
        stays = bad.filter(pl.col("reason").is_null()).select(table.names)
        bad = bad.filter(pl.col("reason").is_not_null())
        good = pl.concat([good, stays])
    bad = bad.select(*table.names, "reason")

    unfinished = good["available_at"] > now
    good = good.filter(~unfinished)

    # Key first: where nothing repeats, which is always but for a provider's slip, nothing is
    # compared row by row; and where rows come in order, nothing with all others.
    thing = list(table.identity or table.key)
    duplicate = 0
    if not (_ascends(good, thing) or _ascends(good, thing[::-1])):
        repeated = good.select(pl.struct(thing).is_duplicated()).to_series()
        if repeated.any():
            good, wrong, duplicate = _settle(table, good, repeated)
            good, wrong = _with_chosen(table, good, wrong, releases)
            bad = pl.concat([bad, wrong])
    return Checked(good, _quarantine(table, bad), duplicate, int(unfinished.sum()))


def _ascends(rows: pl.DataFrame, key: Sequence[str]) -> bool:
    """Whether each row's key is above that of the row before."""
    above = pl.lit(value=False)
    for column in map(pl.col, reversed(key)):
        before = column.shift()
        above = (column > before) | ((column == before) & above)
    return bool(rows.select(above.slice(1).fill_null(value=False).all()).item())


def _settle(
    table: TableSchema, rows: pl.DataFrame, repeated: pl.Series
) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """Rows about the same thing: one of those that agree stays, the first to be available; of those
    that contradict each other none, or, where they came one after the other, the last.

    Returns:
        What stays, what is rejected with its `reason`, and how many rows repeated another one.
    """
    thing = list(table.identity or table.key)
    suspects = rows.filter(repeated).sort("available_at", maintain_order=True)
    said = suspects.unique(list(table.hashed), keep="first", maintain_order=True)
    moment = pl.col("available_at")
    newest, same_moment = pl.lit(value=True), thing
    if "available_at" in table.key and "available_at" not in thing:  # versions of one thing
        newest, same_moment = moment == moment.max().over(thing), [*thing, "available_at"]
    alone = pl.len().over(same_moment) == 1
    stays = said.select(newest & alone).to_series()
    reason = pl.when(newest).then(pl.lit(CONTRADICTION)).otherwise(pl.lit(OUTDATED))
    wrong = said.with_columns(reason=reason).filter(~stays)
    kept = pl.concat([rows.filter(~repeated), said.filter(stays)])
    return kept, wrong, suspects.height - said.height


def _released(table: TableSchema, bad: pl.DataFrame, releases: Releases) -> pl.Series:
    """When each of the rejected rows was released; null where it was not, or cannot be."""
    may_be = bad["reason"].is_in(list(releasable(table)))
    released = releases(_quarantine(table, bad)) if may_be.any() else nobody_released(bad)
    return pl.select(pl.when(may_be).then(released)).to_series()


def _with_chosen(
    table: TableSchema, good: pl.DataFrame, wrong: pl.DataFrame, releases: Releases
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Of rows that contradict each other the one that a person chose last is good."""
    if wrong.is_empty():
        return good, wrong
    thing = list(table.identity or table.key)
    wrong = wrong.with_columns(_released(table, wrong, releases).alias("_released"))
    place = pl.int_range(pl.len())
    last = pl.col("_released").is_not_null() & (
        place == place.sort_by("_released", nulls_last=False).last().over(thing)
    )
    chosen = wrong.select(last).to_series()
    wrong = wrong.drop("_released")
    return pl.concat([good, wrong.filter(chosen).drop("reason")]), wrong.filter(~chosen)


def missing(column: Column) -> str:
    """The reason of a row without a value where there must be one."""
    return column.absent or f"{column.name} is missing"


def holds_nul(column: Column) -> str:
    """The reason of a row whose text PostgreSQL cannot hold."""
    return f"{column.name} holds a NUL character"


def _quarantine(table: TableSchema, bad: pl.DataFrame) -> pl.DataFrame:
    """Rejected rows as quarantine keeps them: the row itself as JSON that jsonb accepts."""

    def storable(column: Column) -> pl.Expr:
        if column.dtype == pl.String:
            return pl.col(column.name).str.replace_all("\x00", _REPLACEMENT, literal=True)
        if column.dtype == pl.List(pl.String):
            return pl.col(column.name).list.eval(
                pl.element().str.replace_all("\x00", _REPLACEMENT, literal=True)
            )
        return pl.col(column.name)

    row = bad.select("reason", *(storable(c) for c in table.columns))
    moment = pl.col(table.day_column)
    return row.select(
        (pl.col("symbol") if table.by_symbol else pl.lit(None, dtype=pl.String)).alias("symbol"),
        # What no calendar date can say is no day.
        day=pl.when(moment.is_between(_FIRST, _LAST)).then(moment.dt.date()),
        reason="reason",
        payload=pl.struct(table.names).struct.json_encode(),
    )
