"""What a write changes, worked out before anything is touched.

Pure: good rows, the ledger and the stored rows in; rows that leave, rows that come and the ledger's
new entries out. How a change is carried out, and in which order, is the writer's (`writer.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import polars as pl

from feature_pipeline.schemas import TableSchema, is_erased
from feature_pipeline.storage.hashing import day_hashes, row_hashes

CONTENT: dict[str, type[pl.DataType]] = {
    "source": pl.String,
    "day": pl.Date,
    "rows": pl.Int64,
    "content_hash": pl.Int64,
}
"""What the ledger says of the content of one source and day."""

LEDGER = pl.Schema([*CONTENT.items(), ("token", pl.Int64), ("code_version", pl.String)])
EXCEPTIONS = pl.Schema(
    {
        "source": pl.String,
        "day": pl.Date,
        "symbol": pl.String,
        "status": pl.String,
        "reason": pl.String,
    }
)
_SESSIONS = pl.Schema({"symbol": pl.String, "day": pl.Date})


@dataclass(frozen=True)
class Batch:
    """Good rows of one source, and what they replace.

    Args:
        source: the ledger's source.
        rows: rows of the table, of distinct keys, all within `days`.
        days: every day written, with or without rows, sorted.
        answered: symbols whose rows are replaced, where a source's answer replaces rows.
        silent: `symbol`, `day` of sessions that should have a row and got none: they keep their
            old one.
        asked: symbols whose exceptions are renewed; None - everybody's.
        others: source, symbol of whom other sources of the same answer were asked for: what they
            could not collect stays theirs.
        exceptions: `source`, `day`, `symbol`, `status`, `reason`.
        quarantined: `symbol`, `day`, `reason`, `payload`.
        released: rejected rows that a person accepted, by their number in quarantine, with why;
            `rows` holds them.
        contents: what the ledger would say of `days` and `rows`; see `prepared`.
        erases: its rows are what is left of rows that were deleted at their source: whatever else
            is held of them loses the same columns.
    """

    source: str
    rows: pl.DataFrame
    days: pl.Series
    answered: frozenset[str] = frozenset()
    silent: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=_SESSIONS))
    asked: tuple[str, ...] | None = ()
    others: tuple[tuple[str, str], ...] = ()
    exceptions: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=EXCEPTIONS))
    quarantined: pl.DataFrame = field(default_factory=pl.DataFrame)
    released: Mapping[int, str] = field(default_factory=dict)
    contents: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CONTENT))
    erases: bool = False

    def prepared(self, table: TableSchema) -> Batch:
        """With `contents`; its rows have their `day` by now."""
        return replace(self, contents=_contents(table, self.rows, self.days, self.source))

    def of(self, days: pl.Series) -> Batch:
        """What it says of some of its days; rejected rows stay."""
        return replace(
            self,
            rows=of_days(self.rows, days),
            contents=of_days(self.contents, days),
            days=days,
            silent=of_days(self.silent, days),
            exceptions=of_days(self.exceptions, days),
        )


@dataclass(frozen=True)
class Writing:
    """Who writes: identifies every row of the ledger that this write touches."""

    token: int
    run_id: str
    code_version: str
    upstream: pl.DataFrame | None = None
    """`day` and `upstream_revision` of a derived table."""


@dataclass(frozen=True)
class Change:
    """What one transaction does to a table.

    Args:
        insert: the rows of the batch that come, with their `day`.
        entries: the ledger's entries as they will be: `source`, `day`, `rows`, `content_hash`.
        gone: keys of the stored rows that leave.
        wiped: days whose rows all leave.
        fenced: rows of the batch that lose against a newer writer's, with their `day`.
        known: `day` of each row of the batch that is there already, or is another asset's.
    """

    insert: pl.DataFrame
    entries: pl.DataFrame
    gone: pl.DataFrame
    wiped: pl.Series
    fenced: pl.DataFrame
    known: pl.DataFrame


def of_days(frame: pl.DataFrame, days: pl.Series) -> pl.DataFrame:
    """The rows whose `day` is one of `days`."""
    return frame.filter(pl.col("day").is_in(days.implode())) if frame.height else frame


def without(days: pl.Series, others: pl.Series) -> pl.Series:
    """The days that are none of the others."""
    return days.filter(~days.is_in(others.implode()))


def doubtful(table: TableSchema, batch: Batch, ledger: pl.DataFrame) -> pl.Series:
    """The batch's days whose rows have to be compared with stored ones.

    Not those that hold exactly what the batch says; nor, where rows are replaced, those that hold
    nothing yet (what accumulates may be known from any other day).
    """
    same = _unchanged(batch.contents, ledger)
    held = batch.days if table.mode == "accumulate" else _held(batch.days, ledger)
    return without(held, same)


def replace_days(batch: Batch, ledger: pl.DataFrame) -> Change:
    """Of a derived table: a day that differs is replaced whole."""
    same = _unchanged(batch.contents, ledger)
    return Change(
        insert=batch.rows if same.is_empty() else of_days(batch.rows, without(batch.days, same)),
        entries=batch.contents,
        gone=batch.rows.clear(),
        wiped=without(_held(batch.days, ledger), same),
        fenced=batch.rows.clear(),
        known=_of_known_days(batch, same),
    )


def replace_rows(
    table: TableSchema,
    batch: Batch,
    ledger: pl.DataFrame,
    looked_at: pl.Series,
    stored: pl.DataFrame,
    token: int,
) -> Change:
    """Of a source's table: only rows that differ are touched, so that the others keep the moment
    they were recorded at.

    Args:
        looked_at: the doubtful days.
        stored: the table's rows of those days, of every source.
        token: of whoever writes; what another source wrote with a newer one stays.
    """
    key = list(table.key)
    held = _held(batch.days, ledger)
    fresh = of_days(batch.rows, without(batch.days, held)) if held.len() else batch.rows
    nothing = batch.rows.clear()
    known = _of_known_days(batch, without(held, looked_at))
    if looked_at.is_empty():
        return Change(fresh, batch.contents, nothing, batch.days.clear(), nothing, known)
    stored = _with_content(table, stored)
    incoming = _with_content(table, of_days(batch.rows, looked_at))
    differing = incoming.join(stored, on=[*key, "content"], how="anti")
    same = incoming.join(stored, on=[*key, "content"], how="semi")
    newer = _newer(stored, ledger, token)
    fenced = differing.join(newer, on=key, how="semi")
    differing = differing.join(newer, on=key, how="anti")
    vanished = (
        stored.filter(pl.col("source") == batch.source, pl.col("symbol").is_in(batch.answered))
        .join(incoming, on=key, how="anti")
        .join(batch.silent, on=["symbol", "day"], how="anti")
    )
    if table.intraday:
        vanished = _retracted(vanished, incoming)
    gone = pl.concat([stored.join(differing, on=key, how="semi"), vanished])
    left = pl.concat([stored.join(gone, on=key, how="anti"), differing])
    entries = [
        of_days(batch.contents, without(batch.days, looked_at)),
        _contents(table, left.filter(pl.col("source") == batch.source), looked_at, batch.source),
    ]
    # A symbol that changed its provider leaves a hole in the old one's day, which then says less.
    for (other,), lost in (
        gone.filter(pl.col("source") != batch.source).partition_by("source", as_dict=True).items()
    ):
        days = lost["day"].unique().sort()
        remaining = of_days(left.filter(pl.col("source") == other), days)
        entries.append(_contents(table, remaining, days, str(other)))
    return Change(
        insert=pl.concat([fresh, differing.drop("content")]),
        entries=pl.concat(entries),
        gone=gone.select(key),
        wiped=batch.days.clear(),
        fenced=fenced.drop("content"),
        known=pl.concat([known, same.select("day")]),
    )


def _retracted(vanished: pl.DataFrame, incoming: pl.DataFrame) -> pl.DataFrame:
    """Those of the rows that an answer lacks that lie between the first and the last one it has of
    the symbol's day. Of what is before and after these it says nothing: a provider that keeps the
    last 720 minutes has no longer those of this morning. Of a day without any row, all."""
    told = incoming.group_by("symbol", "day").agg(
        first=pl.col("time").min(), last=pl.col("time").max()
    )
    inside = pl.col("time").is_between("first", "last").fill_null(value=True)
    return (
        vanished.join(told, on=["symbol", "day"], how="left")
        .filter(inside)
        .select(vanished.columns)
    )


def accumulate(
    table: TableSchema,
    batch: Batch,
    ledger: pl.DataFrame,
    looked_at: pl.Series,
    stored: pl.DataFrame,
    token: int,
) -> Change:
    """What is new comes; what is known and differs is corrected; nothing else leaves.

    Args:
        ledger: of the batch's days and of those of `stored`.
        looked_at: the doubtful days.
        stored: the rows that share an identity with a row of those days.
        token: of whoever writes; a row of a day that a newer one has written is not corrected.
    """
    identity = list(table.identity or table.key)
    stored = _with_content(table, stored)
    if table.derived:  # the ledger knows them under the source of all that is computed
        stored = stored.with_columns(source=pl.lit(batch.source))
    incoming = _with_content(table, of_days(batch.rows, looked_at))
    differing = incoming.join(stored, on=[*identity, "content"], how="anti")
    same = incoming.join(stored, on=[*identity, "content"], how="semi")
    # What was deleted at its source does not come back, whoever still has a copy.
    lasting = bool(table.erased) and not batch.erases
    deleted = stored.filter(is_erased(table.erased)) if lasting else stored.clear()
    returning = differing.join(deleted, on=identity, how="semi")
    differing = differing.join(deleted, on=identity, how="anti")
    # Another asset of the same table had it first: it is that asset's.
    foreign = stored.filter(~_own(table))
    newer = _newer(stored, ledger, token)
    fenced = differing.join(newer, on=identity, how="semi")
    differing = differing.join(newer, on=identity, how="anti")
    theirs = differing.join(foreign, on=identity, how="semi")
    differing = differing.join(foreign, on=identity, how="anti")
    gone = stored.join(differing, on=identity, how="semi")
    insert = differing.drop("content")
    # Hashes are sums modulo 2^64: what comes and what leaves settles the new one.
    parts = [_contents(table, insert, batch.days, batch.source)]
    for (source,), lost in gone.partition_by("source", as_dict=True).items():
        leaves = _contents(table, lost, lost["day"].unique().sort(), str(source))
        parts.append(leaves.with_columns(-pl.col("rows"), -pl.col("content_hash")))
    touched = pl.concat(parts).select("source", "day").unique()
    entries = (
        pl.concat([*parts, ledger.select(*CONTENT)])
        .join(touched, on=["source", "day"], how="semi")
        .group_by("source", "day")
        .agg(pl.col("rows").sum(), pl.col("content_hash").sum())
    )
    return Change(
        insert=insert,
        entries=entries,
        gone=gone.select(list(table.key)),
        wiped=batch.days.clear(),
        fenced=fenced.drop("content"),
        known=pl.concat(
            [
                _of_known_days(batch, without(batch.days, looked_at)),
                same.select("day"),
                theirs.select("day"),
                returning.select("day"),
            ]
        ),
    )


def _of_known_days(batch: Batch, days: pl.Series) -> pl.DataFrame:
    """`day` of the batch's rows of days that hold exactly what it says."""
    rows = batch.rows.select("day")
    return rows.clear() if days.is_empty() else of_days(rows, days)


def _own(table: TableSchema) -> pl.Expr:
    return pl.all_horizontal(
        pl.lit(value=True), *(pl.col(name) == value for name, value in table.constants.items())
    )


def _held(days: pl.Series, ledger: pl.DataFrame) -> pl.Series:
    """The days of which some source has rows."""
    return days.filter(days.is_in(ledger.filter(pl.col("rows") > 0)["day"].implode()))


def _newer(stored: pl.DataFrame, ledger: pl.DataFrame, token: int) -> pl.DataFrame:
    """The stored rows that a newer writer has written, or found to be right."""
    newer = ledger.filter(pl.col("token") > token).select("source", "day")
    return stored.join(newer, on=["source", "day"], how="semi")


def _with_content(table: TableSchema, rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(content=pl.Series(row_hashes(rows, table.hashed)))


def _contents(table: TableSchema, rows: pl.DataFrame, days: pl.Series, source: str) -> pl.DataFrame:
    """The content of each day, those without rows included."""
    return (
        days.to_frame("day")
        .join(day_hashes(rows, table.day_column, table.hashed), on="day", how="left")
        .select(
            pl.lit(source).alias("source"),
            "day",
            pl.col("rows").fill_null(0).cast(pl.Int64),
            pl.col("content_hash").fill_null(0),
        )
    )


def _unchanged(entries: pl.DataFrame, ledger: pl.DataFrame) -> pl.Series:
    return entries.join(ledger, on=list(CONTENT), how="semi")["day"]
