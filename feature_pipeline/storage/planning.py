"""What a run is about to write: which days, from which inputs, and whether those are there.

Settled before anything is read, from the ledger, the universe's sessions and the tables' declared
lookbacks. Reading and writing what the plan names is the store's (`store.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import tenacity

from feature_pipeline.errors import MissingPartitionError
from feature_pipeline.schemas import GRID_START, Input, TableSchema
from feature_pipeline.storage.changes import EXCEPTIONS, without
from feature_pipeline.storage.ledger import Intent, Ledger, newest_within
from feature_pipeline.storage.writer import Writing
from feature_pipeline.universe import Universe

EVERYBODY = "*"
"""An exception's symbol where a whole day of an input was not collected."""


@dataclass
class WritePlan:
    """What one run of one asset is about to write, settled before it reads anything.

    Args:
        table: the asset's table.
        writing: who writes, with the fencing token.
        days: the days to write, sorted: those asked for, and those before them that consumers of
            this asset will read and that nobody has written yet; of a derived table, only those
            that are stale.
        symbols: what a source is asked for; None - every instrument.
        intent: the announcement to other runs.
        inherited: what its inputs could not collect, as exceptions: of a table that accumulates,
            and whose rows therefore cannot tell.
    """

    table: TableSchema
    writing: Writing
    days: pl.Series
    symbols: tuple[str, ...] | None
    intent: Intent
    inherited: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=EXCEPTIONS))

    @property
    def window(self) -> tuple[date, date]:
        """[first, last) of the days to write; an empty window where nothing is stale."""
        if self.days.is_empty():
            return GRID_START, GRID_START
        return _span(self.days)


@dataclass
class Planner:
    """Plans the runs of one graph on one ledger; see `Store` for the arguments.

    `held` answers which of some symbols have rows of a table on some days: `symbol`, `day`.
    """

    ledger: Ledger
    universe: Universe
    tables: Mapping[str, TableSchema]
    publication_delay: timedelta
    wait: timedelta
    clock: Callable[[], datetime]
    held: Callable[[TableSchema, date, date, Sequence[str] | None], pl.DataFrame]

    def plan(
        self,
        asset: str,
        start: date,
        end: date,
        *,
        run_id: str,
        code_version: str,
        symbols: Sequence[str] | None = None,
    ) -> WritePlan:
        """See `Store.plan`."""
        table = self.tables[asset]
        names = None if symbols is None else tuple(self.universe.resolve(s).id for s in symbols)
        token = self.ledger.next_token()
        days = self._with_history(table, start, end, names)
        if _collects(table):
            # A day of events counts as collected for everybody: the first time it has to be.
            if names is not None and self._incomplete(table, *_span(days), None).len():
                names = None
            code_version = f"{code_version}{self._everybody}"
        plan = WritePlan(
            table,
            Writing(token, run_id, code_version),
            days,
            names,
            self.ledger.announce(asset, *_span(days), token, run_id),
        )
        try:
            return self._settled(plan) if table.derived else plan
        except BaseException:
            plan.intent.close()
            raise

    def _settled(self, plan: WritePlan) -> WritePlan:
        """The plan of a derived table: its inputs are there, and only what is stale is written."""
        table, writing, days = plan.table, plan.writing, plan.days
        for needed in table.inputs:
            self._await_days(table, needed, days)
        # Revisions first: what changes after this look makes the day stale again.
        upstream = self._upstream_revisions(table, days)
        stale = self._stale(table, days, upstream, writing.code_version)
        return WritePlan(
            table,
            Writing(writing.token, writing.run_id, writing.code_version, upstream),
            stale,
            plan.symbols,
            plan.intent,
            self._inherited(table, stale) if table.mode == "accumulate" else plan.inherited,
        )

    def pending(self, asset: str, start: date, end: date, code_version: str) -> pl.Series:
        """See `Store.pending`."""
        table = self.tables[asset]
        days = pl.date_range(start, end, closed="left", eager=True)
        if table.derived:
            return self._stale(table, days, self._upstream_revisions(table, days), code_version)
        unwritten = without(days, self.ledger.revisions(asset, start, end)["day"])
        incomplete = self._incomplete(table, start, end, None)
        return pl.concat([unwritten, incomplete]).unique().sort()

    # -- what should be there -----------------------------------------------------------------

    def finished(
        self, start: date, end: date, symbols: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """`symbol`, `time`, `day` of the sessions whose bar should be there by now."""
        return (
            self.universe.sessions(start, end, symbols)
            .filter(pl.col("close") + self.publication_delay <= self.clock())
            .select("symbol", "time", day=pl.col("time").dt.date())
        )

    def expected_days(self, table: TableSchema, start: date, end: date) -> pl.Series:
        """The days in [start, end) of which something should have been written by now.

        Where rows belong to sessions, days with a finished session; otherwise every day that has
        begun.
        """
        if table.key[:2] == ("symbol", "time"):
            return self.finished(start, end)["day"].unique().sort()
        end = min(end, self.clock().date() + timedelta(days=1))
        if start >= end:
            return pl.Series(dtype=pl.Date)
        return pl.date_range(start, end, closed="left", eager=True)

    def uncollected(self, table: TableSchema, start: date, end: date) -> pl.Series:
        """Those of the expected days that nobody has written."""
        written = self.ledger.revisions(table.asset, start, end)["day"]
        return without(self.expected_days(table, start, end), written)

    def reach(self, needed: Input, days: pl.Series) -> pl.Series:
        """For each day the first one that its computation reads of `needed`."""
        starts = self.universe.lookback_starts(days, needed.lookback_bars)
        return starts.dt.offset_by(f"-{needed.lookback_days}d").clip(lower_bound=GRID_START)

    def first_needed(self, asset: str, start: date) -> date:
        """The first day of `asset` that its consumers, and theirs, read when they compute from
        `start` on and have no history themselves."""
        first = start
        for consumer in self.tables.values():
            for needed in consumer.inputs:
                if needed.asset == asset:
                    begins = pl.Series([self.first_needed(consumer.asset, start)])
                    first = min(first, self.reach(needed, begins)[0])
        return first

    @property
    def _everybody(self) -> str:
        """Whom a day of events was collected for: part of its code version in the ledger. Rows of
        events cannot tell, and a split of an instrument that joined since would go unnoticed."""
        digest = hashlib.sha256("\n".join(self.universe.symbols).encode()).hexdigest()[:16]
        return f" for@{digest}"

    def _with_history(
        self, table: TableSchema, start: date, end: date, symbols: Sequence[str] | None
    ) -> pl.Series:
        """The days asked for, and from the first unwritten one that consumers will read."""
        reach = self.first_needed(table.asset, start)
        missing = self._incomplete(table, reach, start, symbols)
        if missing.len():
            missing = without(missing, self.ledger.in_progress(table.asset, missing))
        first = missing[0] if missing.len() else start
        return pl.date_range(first, end, closed="left", eager=True)

    def _incomplete(
        self, table: TableSchema, start: date, end: date, symbols: Sequence[str] | None
    ) -> pl.Series:
        """The days in [start, end) that lack something that a source has not been asked for.

        A day is written for the instruments of its time: one that joined the universe since, or
        that a run for single symbols left out, is missing from it and no exception says why.
        """
        if _collects(table):
            complete = pl.col("code_version").str.ends_with(self._everybody)
            collected = self.ledger.rows(table.asset, start, end).filter(complete)["day"]
            return without(self.expected_days(table, start, end), collected)
        if table.derived:
            return self.uncollected(table, start, end)
        finished = self.finished(start, end)
        rows = self.ledger.rows(table.asset, start, end).group_by("day").agg(pl.col("rows").sum())
        short = (
            finished.group_by("day")
            .len()
            .join(rows, on="day", how="left")
            .filter(pl.col("rows").fill_null(0) < pl.col("len"))["day"]
            .sort()
        )
        if short.is_empty():
            return short
        span = _span(short)
        missing = finished.filter(pl.col("day").is_in(short.implode()))
        if symbols is not None:
            missing = missing.filter(pl.col("symbol").is_in(list(symbols)))
        for known in (self.held(table, *span, symbols), self.ledger.exceptions(table.asset, *span)):
            missing = missing.join(known, on=["symbol", "day"], how="anti")
        return missing["day"].unique().sort()

    # -- what it follows from -----------------------------------------------------------------

    def _await_days(self, table: TableSchema, needed: Input, days: pl.Series) -> None:
        """Wait for days of an input that another run is writing; refuse to compute on a hole."""
        upstream = self.tables[needed.asset]
        first, end = self.reach(needed, days.head(1))[0], _span(days)[1]
        expected = self.expected_days(upstream, first, end)

        def missing() -> pl.Series:
            return without(expected, self.ledger.revisions(upstream.asset, first, end)["day"])

        def being_written(holes: pl.Series) -> bool:
            return holes.len() > 0 and self.ledger.in_progress(upstream.asset, holes).len() > 0

        holes: pl.Series = tenacity.Retrying(
            retry=tenacity.retry_if_result(being_written),
            wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5),
            stop=tenacity.stop_after_delay(self.wait),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )(missing)
        # A writer may have finished between the look at the ledger and the look at who is writing.
        holes = missing() if holes.len() else holes
        if holes.is_empty() or needed.on_missing == "gap":
            return
        more = f" and {holes.len() - 1} more days" if holes.len() > 1 else ""
        why = (
            f"which another run has not finished in {self.wait}; run it again after that one"
            if being_written(holes)
            else f"which nobody has written; materialise {upstream.asset} from {holes[0]} to "
            f"{holes[-1]} first"
        )
        raise MissingPartitionError(
            f"{table.asset} from {days[0]} on reads {upstream.asset} of {holes[0]}{more}, {why}"
        )

    def _upstream_revisions(self, table: TableSchema, days: pl.Series) -> pl.DataFrame:
        """For each day the newest revision of any input that its computation reads."""
        newest = np.zeros(days.len(), dtype=np.int64)
        for needed in table.inputs:
            reach = self.reach(needed, days)
            held = self.ledger.revisions(needed.asset, reach[0], _span(days)[1])
            found = newest_within(
                _numbers(reach), _numbers(days), _numbers(held["day"]), held["revision"].to_numpy()
            )
            newest = np.maximum(newest, found)
        return pl.DataFrame({"day": days, "upstream_revision": newest})

    def _stale(
        self, table: TableSchema, days: pl.Series, upstream: pl.DataFrame, code_version: str
    ) -> pl.Series:
        """The days that are unwritten, older than what they follow from, or of other code."""
        held = self.ledger.rows(table.asset, *_span(days))
        current = held.join(upstream, on="day", suffix="_now").filter(
            pl.col("code_version") == code_version,
            pl.col("upstream_revision") >= pl.col("upstream_revision_now"),
        )
        return without(days, current["day"])

    def _inherited(self, table: TableSchema, days: pl.Series) -> pl.DataFrame:
        """What the inputs could not collect of these days: exceptions named after the input."""
        found = [pl.DataFrame(schema=EXCEPTIONS)]
        for needed in table.inputs if days.len() else ():
            upstream = self.tables[needed.asset]
            unknown = (
                self.uncollected(upstream, *_span(days))
                .to_frame("day")
                .with_columns(
                    symbol=pl.lit(EVERYBODY), reason=pl.lit(f"{needed.asset} was not collected")
                )
            )
            failed = self.ledger.exceptions(upstream.asset, *_span(days)).select(unknown.columns)
            found += [
                part.select(
                    pl.lit(needed.asset).alias("source"),
                    "day",
                    "symbol",
                    pl.lit("failed").alias("status"),
                    "reason",
                )
                for part in (unknown, failed.unique(["day", "symbol"], keep="first"))
            ]
        return pl.concat(found).filter(pl.col("day").is_in(days.implode()))


def _collects(table: TableSchema) -> bool:
    """Whether it accumulates what sources say: a day without rows may be complete."""
    return not table.derived and table.mode == "accumulate"


def on_grid(table: TableSchema) -> bool:
    """Whether it has a row for every session of an instrument: bars, and what derives from them."""
    return table.key == ("symbol", "time")


def _span(days: pl.Series) -> tuple[date, date]:
    """[first, last) of some sorted days."""
    return days[0], days[-1] + timedelta(days=1)


def _numbers(days: pl.Series) -> np.ndarray:
    return days.cast(pl.Int32).cast(pl.Int64).to_numpy()
