"""A table's rules as a dataframely schema: which rows of a frame break which of them.

`TableSchema` stays the one place where rules are written down; here they are only translated, with
what the writer alone knows: who exists, what time it is, which days were asked for. What becomes of
a row that breaks one, and rows that repeat each other, are `validate.py`'s: to dataframely both of
two equal keys are wrong, to us one of them is right.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, get_args

import dataframely as dy
import polars as pl

from feature_pipeline.schemas import BASIS, UTC_TIME, AvailabilityBasis, Column, TableSchema
from feature_pipeline.storage.validate import holds_nul, missing

FIRST_MOMENT = datetime(1, 1, 1, tzinfo=UTC)
"""What comes before it is no date of the calendar."""

_BASES = get_args(AvailabilityBasis)
_TEXTS = (pl.String, pl.List(pl.String))


@dataclass(frozen=True)
class Boundary:
    """What a row must keep to in order to be written.

    Args:
        schema: the columns and rules, as dataframely has them.
        reasons: dataframely's name of a rule -> the reason of a row that breaks it, in the order
            in which they count.
    """

    schema: type[dy.Schema]
    reasons: Mapping[str, str]

    def split(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows that keep every rule, and the others: see `judged`."""
        good, failure = self.schema.filter(frame)
        return good, self.judged(failure.details())

    def judged(self, failed: pl.DataFrame, overruled: str = "") -> pl.DataFrame:
        """Rows that failed, with `reason`: the first rule that each breaks, but the overruled one;
        null where it breaks no other."""
        return failed.with_columns(
            pl.coalesce(
                pl.when(pl.col(rule) == "invalid").then(pl.lit(reason))
                for rule, reason in self.reasons.items()
                if reason != overruled
            ).alias("reason")
        )


def boundary(
    table: TableSchema, now: datetime, window: tuple[date, date], symbols: Collection[str]
) -> Boundary:
    """The rules of a table at this moment; see `validate.check` for the arguments."""
    columns = {column.name: _column(column) for column in table.columns}
    rules = dict(_rules(table, now, window, symbols))
    # Their names say nothing to dataframely; it reports each by its own.
    named = {reason: _rule(violated) for reason, violated in rules.items() if violated is not None}
    schema: type[dy.Schema] = type(table.asset, (dy.Schema,), {**columns, **named})
    return Boundary(schema, {_name(table, reason): reason for reason in rules})


def _rules(
    table: TableSchema, now: datetime, window: tuple[date, date], symbols: Collection[str]
) -> Iterator[tuple[str, pl.Expr | None]]:
    """Reason and what violates it, the most telling first; None is a column's own to judge."""
    needed = [column for column in table.columns if not column.nullable]
    yield from ((missing(c), None) for c in needed if c.dtype != pl.Float64)
    yield from ((holds_nul(c), _holds_nul(c)) for c in table.columns if c.dtype in _TEXTS)
    yield f"{BASIS.name} is none of {', '.join(_BASES)}", ~pl.col(BASIS.name).is_in(_BASES)
    if table.by_symbol:
        yield "unknown symbol", ~pl.col("symbol").is_in(list(symbols))
    yield from ((rule.reason, rule.violated) for rule in table.rules)
    # The table's own rules speak of numbers, and say more.
    yield from ((missing(c), None) for c in needed if c.dtype == pl.Float64)
    yield "it lies in the future", pl.col("time") > now
    yield (
        "it lies before our era",
        pl.any_horizontal(pl.col("time", "available_at") < FIRST_MOMENT),
    )
    day = pl.col(table.day_column).dt.date()
    yield "it lies outside the days asked for", (day < window[0]) | (day >= window[1])


def _name(table: TableSchema, reason: str) -> str:
    """What dataframely calls the rule of that reason."""
    own = {missing(column): f"{column.name}|nullability" for column in table.columns}
    return own.get(reason, reason)


def _rule(violated: pl.Expr) -> Any:
    return dy.rule()(lambda _: ~violated)


def _column(column: Column) -> dy.Column:
    kinds: dict[object, Any] = {
        pl.Float64: lambda **kw: dy.Float64(allow_inf=True, allow_nan=True, **kw),
        pl.Int64: dy.Int64,
        pl.String: dy.String,
        pl.Boolean: dy.Bool,
        pl.Date: dy.Date,
        UTC_TIME: lambda **kw: dy.Datetime(time_unit="us", time_zone="UTC", **kw),
        pl.List(pl.String): lambda **kw: dy.List(dy.String(nullable=True), **kw),
    }
    made: dy.Column = kinds[column.dtype](nullable=column.nullable)
    return made


def _holds_nul(column: Column) -> pl.Expr:
    text = pl.col(column.name)
    if column.dtype == pl.List(pl.String):
        text = text.list.join("", ignore_nulls=True)
    return text.str.contains("\x00", literal=True)
