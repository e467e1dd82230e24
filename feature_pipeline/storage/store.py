"""The store: plan a write, load what it needs, write it; read tables at any past moment.

The one door to the database for assets, serving and the command line. The statements behind it
live beside it: `writer.py` (the write contract), `ledger.py`, `reader.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cached_property

import numpy as np
import polars as pl
import tenacity

from feature_pipeline.errors import MissingPartitionError
from feature_pipeline.schemas import GRID_START, Fetched, Input, TableSchema, lookback_extension
from feature_pipeline.storage import reader, validate
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.ledger import Intent, Ledger, newest_within
from feature_pipeline.storage.writer import Batch, Writer, Writing
from feature_pipeline.universe import Universe

DERIVED = "derived"
"""The ledger's source of tables that are computed here."""


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
    """

    table: TableSchema
    writing: Writing
    days: pl.Series
    symbols: tuple[str, ...] | None
    intent: Intent

    @property
    def window(self) -> tuple[date, date]:
        """[first, last) of the days to write; an empty window where nothing is stale."""
        if self.days.is_empty():
            return GRID_START, GRID_START
        return _span(self.days)


@dataclass(frozen=True)
class WriteReport:
    """What a write did; `input` is always the sum of what follows it.

    `days` has one row per day planned: `day`, `rows` in the partition, `written`, `unchanged`,
    `fenced`. `exceptions` has `day`, `symbol`, `status`, `reason`.
    """

    input: int
    written: int
    unchanged: int
    duplicate: int
    unfinished: int
    quarantined: int
    fenced: int
    days: pl.DataFrame
    exceptions: pl.DataFrame
    reasons: pl.DataFrame = field(default_factory=pl.DataFrame)

    def counts(self) -> dict[str, int]:
        """The conservation equation, by name."""
        names = (
            "input",
            "written",
            "unchanged",
            "duplicate",
            "unfinished",
            "quarantined",
            "fenced",
        )
        return {name: getattr(self, name) for name in names}


def utc_now() -> datetime:
    """The wall clock, UTC."""
    return datetime.now(UTC)


@dataclass
class Store:
    """Tables of one database.

    Args:
        database: where they are.
        universe: which instruments exist and when they trade.
        tables: asset -> schema, all of the graph.
        publication_delay: how long after its close a bar may rightly be missing.
        wait: how long a read waits for days that another run is writing.
        clock: UTC now.
    """

    database: Database
    universe: Universe
    tables: Mapping[str, TableSchema]
    publication_delay: timedelta = timedelta(minutes=15)
    wait: timedelta = timedelta(minutes=15)
    clock: Callable[[], datetime] = utc_now

    @cached_property
    def ledger(self) -> Ledger:
        """Questions to the ledger."""
        return Ledger(self.database)

    @cached_property
    def writer(self) -> Writer:
        """The write contract."""
        return Writer(self.database)

    # -- writing ------------------------------------------------------------------------------

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
        """Settle what a run of `asset` for the days [start, end) writes, and announce it.

        Raises:
            MissingPartitionError: a day that it reads should exist, is not written, and nobody is
                writing it.
            UniverseError: a symbol is unknown.
        """
        table = self.tables[asset]
        names = None if symbols is None else tuple(self.universe.resolve(s).id for s in symbols)
        token = self.ledger.next_token()
        days = self._with_history(table, start, end)
        if names is not None and table.mode == "accumulate":
            # A day of events counts as collected for everybody: the first time it has to be.
            written = self.ledger.revisions(asset, *_span(days))["day"]
            names = names if days.is_in(written.implode()).all() else None
        intent = self.ledger.announce(asset, *_span(days), token, run_id)
        try:
            upstream = None
            if table.derived:
                for needed in table.inputs:
                    self._await_days(table, needed, days)
                upstream = self._upstream_revisions(table, days)
                days = self._stale(table, days, upstream, code_version)
        except BaseException:
            intent.close()
            raise
        return WritePlan(table, Writing(token, run_id, code_version, upstream), days, names, intent)

    def load(self, plan: WritePlan, needed: Input) -> pl.DataFrame:
        """What the plan's computation reads of one input: its window and the lookback before it.

        Complete on the grid, see `with_gaps`; empty where nothing is to be computed.
        """
        table = self.tables[needed.asset]
        names = _columns(table, needed)
        if plan.days.is_empty():
            return table.empty().select(names)
        end = plan.window[1]
        start = self._reach(needed, plan.days.head(1))[0]
        frame = self.database.read_frame(
            reader.select(table, names, start=start, end=end, where=needed.where)
        )
        return self._with_gaps(table, needed, frame, start, end)

    def write(
        self, plan: WritePlan, answer: pl.DataFrame | Mapping[str, Fetched]
    ) -> WriteReport:
        """Write what a run of the plan has computed, or fetched by provider.

        See `Writer` for the contract.
        """
        answers = {DERIVED: Fetched(answer)} if isinstance(answer, pl.DataFrame) else answer
        if plan.days.is_empty():
            return _report([], [], [])
        checks, batches = [], []
        for source, fetched in answers.items():
            checked = self._check(plan, fetched)
            checks.append(checked)
            batches.append(self._batch(plan, source, fetched, checked))
        days = [self.writer.write(plan.table, plan.writing, batch) for batch in batches]
        return _report(checks, batches, days)

    def _check(self, plan: WritePlan, fetched: Fetched) -> validate.Checked:
        frame = plan.table.conform(fetched.frame)
        if plan.table.derived:
            # What a computation returns of its lookback is not offered for writing.
            frame = frame.filter(
                pl.col(plan.table.day_column).dt.date().is_in(plan.days.implode())
            ).with_columns(
                pl.when(pl.col(c.name).is_finite()).then(pl.col(c.name)).alias(c.name)
                for c in plan.table.columns
                if c.dtype == pl.Float64
            )
        return validate.check(
            plan.table, frame, now=self.clock(), window=plan.window, symbols=self.universe.symbols
        )

    def _batch(
        self, plan: WritePlan, source: str, fetched: Fetched, checked: validate.Checked
    ) -> Batch:
        """What a source's answer replaces: judged symbol by symbol, each by its own calendar."""
        if plan.table.derived or plan.table.mode == "accumulate":
            return Batch(
                source,
                checked.good,
                plan.days,
                asked=fetched.asked,
                exceptions=self._failures(plan, fetched),
                quarantined=checked.quarantined,
            )
        expected = self._finished(*plan.window, fetched.asked).select("symbol", "day")
        answered = checked.good.select("symbol", day=pl.col(plan.table.day_column).dt.date())
        silent = expected.join(answered, on=["symbol", "day"], how="anti")
        rejected = checked.quarantined.group_by("symbol", "day").agg(pl.col("reason").first())
        failed = pl.DataFrame(
            {"symbol": list(fetched.failed), "why": list(fetched.failed.values())},
            schema={"symbol": pl.String, "why": pl.String},
        )
        exceptions = (
            silent.join(failed, on="symbol", how="left")
            .join(rejected, on=["symbol", "day"], how="left")
            .select(
                "day",
                "symbol",
                status=pl.when(pl.col("why").is_not_null())
                .then(pl.lit("failed"))
                .when(pl.col("reason").is_not_null())
                .then(pl.lit("quarantined"))
                .otherwise(pl.lit("no_answer")),
                reason=pl.coalesce(
                    "why", "reason", pl.lit(f"{source} has no bar for this session")
                ),
            )
        )
        return Batch(
            source=source,
            rows=checked.good,
            days=plan.days,
            answered=fetched.answered,
            expected=expected,
            asked=fetched.asked,
            exceptions=exceptions.sort("day", "symbol"),
            quarantined=checked.quarantined,
        )

    def _failures(self, plan: WritePlan, fetched: Fetched) -> pl.DataFrame:
        """Exceptions of a table that may be empty: a failed symbol is one on every day."""
        failed = pl.DataFrame(
            {"symbol": list(fetched.failed), "reason": list(fetched.failed.values())},
            schema={"symbol": pl.String, "reason": pl.String},
        )
        return (
            plan.days.to_frame("day")
            .join(failed, how="cross")
            .select("day", "symbol", pl.lit("failed").alias("status"), "reason")
        )

    def pending(self, asset: str, start: date, end: date, code_version: str) -> pl.Series:
        """The days in [start, end) of an asset that a run would write: unwritten or stale.

        Of a table that comes from a source only unwritten ones count; whether a provider would
        say something else today is known by asking it.
        """
        table = self.tables[asset]
        days = pl.date_range(start, end, closed="left", eager=True)
        if not table.derived:
            written = self.ledger.revisions(asset, start, end)["day"]
            return days.filter(~days.is_in(written.implode()))
        return self._stale(table, days, self._upstream_revisions(table, days), code_version)

    # -- planning -----------------------------------------------------------------------------

    def _with_history(self, table: TableSchema, start: date, end: date) -> pl.Series:
        """The days asked for, and from the first unwritten one that consumers will read."""
        extension = lookback_extension(self.tables, table.asset)
        reach = self.universe.lookback_start(start, extension.bars) - timedelta(days=extension.days)
        reach = max(reach, GRID_START)
        before = self._expected_days(table, reach, start)
        written = self.ledger.revisions(table.asset, reach, start)["day"]
        missing = before.filter(~before.is_in(written.implode()))
        if missing.len():
            covered = self.ledger.in_progress(table.asset, missing)
            missing = missing.filter(~missing.is_in(covered.implode()))
        first = _span(missing)[0] if missing.len() else start
        return pl.date_range(first, end, closed="left", eager=True)

    def _expected_days(self, table: TableSchema, start: date, end: date) -> pl.Series:
        """The days in [start, end) of which something should have been written by now.

        Where rows belong to sessions, days with a finished session; otherwise every past day.
        """
        if start >= end:
            return pl.Series(dtype=pl.Date)
        if _follows_sessions(table):
            return self._finished(start, end)["day"].unique().sort()
        return pl.date_range(start, min(end, self.clock().date()), closed="left", eager=True)

    def _finished(
        self, start: date, end: date, symbols: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """`symbol`, `time`, `day` of the sessions whose bar should be there by now."""
        return (
            self.universe.sessions(start, end, symbols)
            .filter(pl.col("close") + self.publication_delay <= self.clock())
            .select("symbol", "time", day=pl.col("time").dt.date())
        )

    def _reach(self, needed: Input, days: pl.Series) -> list[date]:
        """For each day the first one that its computation reads of `needed`."""
        return [
            max(
                self.universe.lookback_start(day, needed.lookback_bars)
                - timedelta(days=needed.lookback_days),
                GRID_START,
            )
            for day in days
        ]

    def _await_days(self, table: TableSchema, needed: Input, days: pl.Series) -> None:
        """Wait for days of an input that another run is writing; refuse to compute on a hole."""
        upstream = self.tables[needed.asset]
        first, end = self._reach(needed, days.head(1))[0], _span(days)[1]
        expected = self._expected_days(upstream, first, end)

        def missing() -> pl.Series:
            written = self.ledger.revisions(upstream.asset, first, end)["day"]
            return expected.filter(~expected.is_in(written.implode()))

        def worth_waiting(holes: pl.Series) -> bool:
            return holes.len() > 0 and self.ledger.in_progress(upstream.asset, holes).len() > 0

        holes = tenacity.Retrying(
            retry=tenacity.retry_if_result(worth_waiting),
            wait=tenacity.wait_exponential_jitter(initial=0.1, max=5),
            stop=tenacity.stop_after_delay(self.wait),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )(missing)
        # A writer may have finished between the look at the ledger and the look at who is writing.
        holes = missing() if holes.len() else holes
        if holes.len() and needed.on_missing == "fail":
            more = f" and {holes.len() - 1} more days" if holes.len() > 1 else ""
            raise MissingPartitionError(
                f"{table.asset} from {days[0]} on reads {upstream.asset} of {holes[0]}{more}, "
                f"which nobody has written; materialise {upstream.asset} from {holes[0]} to "
                f"{holes[-1]} first"
            )

    def _upstream_revisions(self, table: TableSchema, days: pl.Series) -> pl.DataFrame:
        """For each day the newest revision of any input that its computation reads."""
        ends = _numbers(days)
        newest = np.zeros(days.len(), dtype=np.int64)
        for needed in table.inputs:
            reach = pl.Series(self._reach(needed, days), dtype=pl.Date)
            held = self.ledger.revisions(needed.asset, reach[0], _span(days)[1])
            found = newest_within(
                _numbers(reach), ends, _numbers(held["day"]), held["revision"].to_numpy()
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
        return days.filter(~days.is_in(current["day"].implode()))

    # -- reading ------------------------------------------------------------------------------

    def _with_gaps(
        self, table: TableSchema, needed: Input, frame: pl.DataFrame, start: date, end: date
    ) -> pl.DataFrame:
        """The frame with a row for everything that should be there and is not.

        Bars and what derives from them: a session of a symbol without a row appears with `symbol`
        and `time` alone. Event tables: a day that was not collected appears with `time` and
        `available_at` at its start alone.
        """
        if table.key == ("symbol", "time"):
            grid = self._finished(start, end).select("symbol", "time")
            gaps = grid.join(frame.select("symbol", "time"), on=["symbol", "time"], how="anti")
        elif needed.on_missing == "gap":
            days = self._expected_days(table, start, end)
            written = self.ledger.revisions(table.asset, start, end)["day"]
            moment = pl.col("day").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
            gaps = (
                days.filter(~days.is_in(written.implode()))
                .to_frame("day")
                .select(moment.alias("time"), moment.alias("available_at"))
            )
        else:
            return frame
        return pl.concat([frame, gaps], how="diagonal") if gaps.height else frame

    def read(
        self,
        asset: str,
        columns: Sequence[str] | None = None,
        *,
        start: date | None = None,
        end: date | None = None,
        symbols: Sequence[str] | None = None,
        as_of: datetime | None = None,
        as_known_at: datetime | None = None,
    ) -> pl.DataFrame:
        """Rows of an asset, sorted by key.

        Args:
            asset: whose table.
            columns: data columns; all of them unless given. The key always comes along.
            start, end: days [start, end) of the partition.
            symbols: ids or symbols; every instrument unless given.
            as_of: only rows available by then, as they are held now.
            as_known_at: rows as this database held them then, corrections since undone.

        Raises:
            UniverseError: a symbol is unknown.
            SchemaError: a column is unknown, or the table keeps no history.
        """
        table = self.tables[asset]
        names = list(columns or table.names)
        names = [n for n in table.key if n not in names] + names
        ids = None if symbols is None else [self.universe.resolve(s).id for s in symbols]
        return self.database.read_frame(
            reader.select(
                table,
                names,
                start=start,
                end=end,
                symbols=ids,
                as_of=as_of,
                as_known_at=as_known_at,
            )
        ).sort(table.key)

    def newest(self, timeframe: str, as_of: datetime | None = None) -> pl.DataFrame:
        """The newest state vector of each symbol with its features and regime, for publishing.

        One row per symbol: `symbol`, `time`, `available_at`, `revision` (the newest of the three
        partitions), then the columns of `state_vectors`, `features` and `regime_predictions`.
        """
        wide = [
            self.tables[f"{name}_{timeframe}"]
            for name in ("state_vectors", "features", "regime_predictions")
        ]
        return self.database.read_frame(
            reader.newest(wide, self.universe.symbols, as_of or self.clock())
        )

    def newest_macro(self, as_of: datetime | None = None) -> pl.DataFrame:
        """The newest observation of each macro series in its newest release, for publishing.

        One row per series: `series_id`, `time`, `available_at`, `revision`, `value`, `name`,
        `units`, `frequency`.
        """
        return self.database.read_frame(
            reader.newest_macro(self.tables["macro_indicators"], as_of or self.clock())
        )

    def newest_sentiment(self, as_of: datetime | None = None) -> pl.DataFrame:
        """The newest score of each symbol and channel by the active model, for publishing.

        One row per symbol and channel: `symbol`, `source` (the channel), `time`, `available_at`,
        `revision`, `sentiment`, `label`, `confidence`, `model`, `model_revision`.
        """
        active = next(
            needed.where
            for table in self.tables.values()
            for needed in table.inputs
            if needed.asset == "sentiment_scores"
        )
        return self.database.read_frame(
            reader.newest_sentiment(
                self.tables["sentiment_scores"],
                self.universe.symbols,
                active,
                as_of or self.clock(),
            )
        )


def _columns(table: TableSchema, needed: Input) -> list[str]:
    names = ("symbol", "time", "available_at", "availability_basis")
    shared = [n for n in names if n in table.names]
    return shared + [n for n in needed.columns if n not in shared]


def _follows_sessions(table: TableSchema) -> bool:
    return table.key[:2] == ("symbol", "time")


def _span(days: pl.Series) -> tuple[date, date]:
    """[first, last) of some sorted days."""
    return days[0], days[-1] + timedelta(days=1)


def _numbers(days: pl.Series) -> np.ndarray:
    return days.cast(pl.Int32).cast(pl.Int64).to_numpy()


def _report(
    checks: Sequence[validate.Checked],
    batches: Sequence[Batch],
    days: Sequence[pl.DataFrame],
) -> WriteReport:
    """Add up what happened to every row."""
    empty = pl.DataFrame(
        schema={
            "day": pl.Date,
            **dict.fromkeys(("rows", "written", "unchanged", "fenced"), pl.Int64),
        }
    )
    by_day = pl.concat([empty, *days]).group_by("day").agg(pl.exclude("day").sum()).sort("day")
    quarantined = [checked.quarantined.select("symbol", "day", "reason") for checked in checks]
    exceptions = [batch.exceptions for batch in batches if batch.exceptions.height]
    count = {
        "written": int(by_day["written"].sum()),
        "unchanged": int(by_day["unchanged"].sum()),
        "fenced": int(by_day["fenced"].sum()),
        "duplicate": sum(checked.duplicate for checked in checks),
        "unfinished": sum(checked.unfinished for checked in checks),
        "quarantined": sum(checked.quarantined.height for checked in checks),
    }
    return WriteReport(
        input=sum(
            checked.good.height
            + checked.quarantined.height
            + checked.duplicate
            + checked.unfinished
            for checked in checks
        ),
        days=by_day,
        exceptions=pl.concat(exceptions) if exceptions else pl.DataFrame(),
        reasons=pl.concat(quarantined) if quarantined else pl.DataFrame(),
        **count,
    )
