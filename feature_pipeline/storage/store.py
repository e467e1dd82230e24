"""The store: plan a write, load what it needs, write it; read tables at any past moment.

The one door to the database for assets, serving and the command line. The statements behind it
live beside it: `planning.py`, `writer.py` (the write contract), `ledger.py`, `reader.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, partial

import polars as pl

from feature_pipeline.schemas import FILLED, UTC_TIME, Fetched, Input, TableSchema
from feature_pipeline.storage import quarantine, reader, reports, validate
from feature_pipeline.storage.changes import EXCEPTIONS, of_days
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.filling import on_the_grid
from feature_pipeline.storage.ledger import Ledger
from feature_pipeline.storage.planning import (
    EVERYBODY,
    NOT_ASKED,
    Planner,
    WritePlan,
    on_grid,
)
from feature_pipeline.storage.writer import Batch, Writer
from feature_pipeline.universe import Universe

__all__ = ["DERIVED", "Store", "WritePlan", "WriteReport", "utc_now"]

DERIVED = "derived"
"""The ledger's source of tables that are computed here."""

_PART_ROWS, _PARTS = 100_000, 20
"""An answer is checked in so many parts at most, each of so many rows at least: all of its rows are
looked through for each."""

_Judged = tuple[validate.Checked, Batch]


@dataclass(frozen=True)
class WriteReport:
    """What a write did; `input` is the sum of what follows it, or a row was lost: a check of the
    graph compares them.

    `days` has one row per day planned: `day`, `rows` in the partition, `written`, `unchanged`,
    `fenced`, `duplicate`. `exceptions` has `source`, `day`, `symbol`, `status`, `reason`.
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
        names = ("input", "written", "unchanged", "duplicate", "unfinished", "quarantined")
        return {name: getattr(self, name) for name in (*names, "fenced")}


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
        off: provider -> why it is not asked; see `sources.Off`.
        macro_provider: who is asked for macro series.
    """

    database: Database
    universe: Universe
    tables: Mapping[str, TableSchema]
    publication_delay: timedelta = timedelta(minutes=15)
    wait: timedelta = timedelta(minutes=15)
    clock: Callable[[], datetime] = utc_now
    off: Mapping[str, str] = field(default_factory=dict)
    macro_provider: str = ""

    @cached_property
    def ledger(self) -> Ledger:
        """Questions to the ledger."""
        return Ledger(self.database)

    @cached_property
    def writer(self) -> Writer:
        """The write contract."""
        return Writer(self.database)

    # -- writing ------------------------------------------------------------------------------

    @cached_property
    def _planner(self) -> Planner:
        return Planner(
            self.ledger,
            self.universe,
            self.tables,
            self.publication_delay,
            self.wait,
            lambda: self.clock(),
            self._held,
            self.off,
            self.macro_provider,
        )

    def plan(
        self,
        asset: str,
        start: date,
        end: date,
        *,
        run_id: str,
        code_version: str,
        symbols: Sequence[str] | None = None,
        only_missing: bool = False,
        mending: bool = False,
    ) -> WritePlan:
        """Settle what a run of `asset` for the days [start, end) writes, and announce it.

        Args:
            asset: whose table.
            start, end: the days asked for; history that consumers need comes along.
            run_id: the run's name.
            code_version: of what it computes.
            symbols: whom sources are asked for; everybody unless given.
            only_missing: ask sources for nothing that is there: see `Planner.missing`.
            mending: exactly these days, without history; of a derived table only what is not right
                and can be computed: see `mendable`.

        Raises:
            MissingPartitionError: a day that it reads should exist, is not written, and nobody is
                writing it.
            UniverseError: a symbol is unknown.
        """
        return self._planner.plan(
            asset,
            start,
            end,
            run_id=run_id,
            code_version=code_version,
            symbols=symbols,
            only_missing=only_missing,
            mending=mending,
        )

    @property
    def planner(self) -> Planner:
        """Answers what a run would write, without writing."""
        return self._planner

    def pending(self, asset: str, start: date, end: date, code_version: str) -> pl.Series:
        """The days in [start, end) of an asset that a run would write: unwritten or stale.

        Of a table that comes from a source only those count that lack what it was not asked for;
        whether a provider would say something else today is known by asking it.
        """
        return self._planner.pending(asset, start, end, code_version)

    def _held(
        self, table: TableSchema, start: date, end: date, symbols: Sequence[str] | None
    ) -> pl.DataFrame:
        """`symbol`, `day` of a table's rows; intraday each once."""
        if table.intraday:
            names = self.universe.symbols if symbols is None else symbols
            return self.database.read_frame(reader.days_held(table, names, start, end))
        query = reader.select(table, ["symbol", "time"], start=start, end=end, symbols=symbols)
        return self.database.read_frame(query).select("symbol", day=pl.col("time").dt.date())

    def load(self, plan: WritePlan, needed: Input) -> pl.DataFrame:
        """What the plan's computation reads of one input: its window and the lookback before it.

        Complete on the grid: what should be there and is not appears as a row with `symbol` and
        `time` alone (bars, and what derives from them), or with a day's start in `time` and
        `available_at` (a day of events that was not collected, for one `symbol` or, null, for all).
        Empty where nothing is to be computed.
        """
        if plan.days.is_empty():
            table = self.tables[needed.asset]
            return table.empty().select(_columns(table, needed))
        return self.inputs(needed, *plan.window)

    def reach(self, needed: Input, day: date) -> date:
        """The first day of an input that the computation of `day` reads."""
        return self._planner.reach(needed, pl.Series([day], dtype=pl.Date))[0]

    def inputs(
        self,
        needed: Input,
        start: date,
        end: date,
        *,
        symbols: Sequence[str] | None = None,
        as_known_at: datetime | None = None,
        rows: pl.DataFrame | None = None,
    ) -> pl.DataFrame:
        """What a computation of the days [start, end) reads of one input: see `load`.

        Args:
            needed: the input.
            start, end: the days computed; the lookback before them comes along.
            symbols: ids; of a table on the session grid only their rows.
            as_known_at: as this database held it then; of a source's table alone. Which days of
                events had been collected by then is not recorded: those that are by now count.
            rows: these, instead of the table's: what should be there and is not is added to them.

        Raises:
            SchemaError: the table keeps no history.
        """
        table = self.tables[needed.asset]
        wanted = names = _columns(table, needed)
        if table.intraday and not table.derived:
            # Before a session's first trade its open stands in.
            names = [*names, *(n for n in ("open", "close") if n not in names)]
        start = self.reach(needed, start)
        # Before the rows: what is collected in between counts as missing, not as nothing.
        unknown = self._uncollected(table, needed, start, end)
        grid = on_grid(table)
        if rows is not None:
            frame = rows.select(names)
        else:
            query = reader.select(
                table,
                names,
                start=start,
                end=end,
                symbols=symbols if grid else None,
                where=needed.where,
                as_known_at=as_known_at,
            )
            frame = self.database.read_frame(query)
        if table.intraday:
            grid_of = self.universe.bars(str(table.timeframe), start, end, symbols)
            return on_the_grid(
                frame,
                grid_of,
                bars=not table.derived,
                now=self.clock(),
                delay=self.publication_delay,
                dropped=self.ledger.dropped_days(table.asset, start, end),
            ).select(*wanted, FILLED)
        if grid:
            sessions = self._planner.finished(start, end, symbols).select("symbol", "time")
            unknown = sessions.join(frame, on=["symbol", "time"], how="anti")
        if unknown.is_empty():
            return frame
        columns = [name for name in names if name in unknown.columns]
        return pl.concat([frame, unknown.select(columns).unique()], how="diagonal")

    def _uncollected(
        self, table: TableSchema, needed: Input, start: date, end: date
    ) -> pl.DataFrame:
        """What of an event table could not be collected: a row per day, or per day and symbol, with
        the day's start in `time` and `available_at`, and nothing else but what it is about."""
        if needed.on_missing != "gap" or on_grid(table):
            return pl.DataFrame()
        about = next((name for name in ("symbol", "series_id") if name in table.names), None)
        missing = self.ledger.exceptions(table.asset, start, end).select(
            "day", "source", about=pl.when(pl.col("symbol") != EVERYBODY).then("symbol")
        )
        if about is None:  # rows of others may be there; nobody can say whose are missing
            missing = missing.filter(pl.col("about").is_null())
        whole = self._planner.uncollected(table, start, end).to_frame("day")
        rows = pl.concat([whole, missing], how="diagonal").rename({"about": about or "about"})
        day = pl.col("day").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        rows = rows.with_columns(time=day, available_at=day)
        # What was inherited from an input is about what that input is about: one channel.
        constants = pl.DataFrame(
            [{"source": n.asset, **self.tables[n.asset].constants} for n in table.inputs]
        )
        return rows.join(constants, on="source", how="left") if constants.height else rows

    def write(self, plan: WritePlan, answer: pl.DataFrame | Mapping[str, Fetched]) -> WriteReport:
        """Write what a run of the plan has computed, or fetched by provider.

        See `Writer` for the contract.
        """
        answers = {DERIVED: Fetched(answer)} if isinstance(answer, pl.DataFrame) else answer
        if plan.days.is_empty():
            return _report([], [], [])
        judged: list[_Judged] = []
        days, tallies = [], []
        for source, fetched in answers.items():
            parts: list[_Judged] = []
            batches = self._batches(plan, answers, source, parts)
            written = self.writer.write(plan.table, plan.writing, batches)
            tallies.append(reports.tally(plan, source, fetched, parts, written))
            days.append(written)
            judged += parts
        reports.record(self.database, plan, tallies)
        return _report(judged, days, tallies)

    def _batches(
        self, plan: WritePlan, answers: Mapping[str, Fetched], source: str, judged: list[_Judged]
    ) -> Iterator[Batch]:
        """What one source answered as the writer takes it, part by part, each noted in `judged`:
        the writer is at work on those before while the next one is checked."""
        others = _asked_elsewhere(answers, source)
        for part, fetched in _parts(plan, answers[source]):
            checked = self._check(part, fetched, source, plan.window)
            batch = replace(self._batch(part, source, fetched, checked), others=others)
            judged.append((checked, batch))
            yield batch

    def _check(
        self,
        plan: WritePlan,
        fetched: Fetched,
        source: str = DERIVED,
        window: tuple[date, date] | None = None,
    ) -> validate.Checked:
        """Sort the rows out; `window` is that of the whole plan, of which this is a part."""
        frame = fetched.frame
        if plan.table.intraday and not plan.table.derived:
            frame = self._with_sessions(plan, frame)
        frame = plan.table.conform(frame)
        if plan.table.derived:
            # What a computation returns of its lookback is not offered for writing.
            day = pl.col(plan.table.day_column).dt.date()
            frame = frame.filter(day.is_in(plan.days.implode()) | day.is_null()).with_columns(
                pl.when(pl.col(c.name).is_finite()).then(pl.col(c.name)).alias(c.name)
                for c in plan.table.columns
                if c.dtype == pl.Float64
            )
        return validate.check(
            plan.table,
            frame,
            now=self.clock(),
            window=window or plan.window,
            symbols=self.universe.symbols,
            releases=partial(quarantine.releases, self.database, plan.table, source),
        )

    def _with_sessions(self, plan: WritePlan, frame: pl.DataFrame) -> pl.DataFrame:
        """Bars with the session that each belongs to: none where no bar of the grid begins then."""
        around = timedelta(days=1)
        first, end = plan.window
        known = frame.filter(pl.col("symbol").is_in(list(self.universe.symbols)))
        grid = self.universe.bars(
            str(plan.table.timeframe),
            first - around,
            end + around,
            known["symbol"].unique().to_list(),
        )
        return frame.drop("session", strict=False).join(
            grid.select("symbol", "time", "session"),
            on=["symbol", "time"],
            how="left",
            maintain_order="left",
        )

    def _batch(
        self, plan: WritePlan, source: str, fetched: Fetched, checked: validate.Checked
    ) -> Batch:
        """What a source's answer replaces: judged symbol by symbol, each by its own calendar."""
        if plan.table.derived:
            return Batch(
                source,
                checked.good,
                plan.days,
                asked=None,
                exceptions=plan.inherited,
                quarantined=checked.quarantined,
            )
        if plan.table.mode == "accumulate":
            return Batch(
                source,
                checked.good,
                plan.days,
                asked=(EVERYBODY, *fetched.asked, *fetched.failed),
                exceptions=_failures(plan, source, fetched),
                quarantined=checked.quarantined,
            )
        intraday = plan.table.intraday
        expected = self._planner.finished(*plan.window, fetched.asked, intraday=intraday)
        answered = checked.good.select("symbol", day=pl.col(plan.table.day_column).dt.date())
        silent = _not_among(expected.select("symbol", "day"), answered).unique()
        rejected = checked.quarantined.group_by("symbol", "day").agg(pl.col("reason").first())
        failed = _failed(fetched).rename({"reason": "why"})
        exceptions = (
            silent.join(failed, on="symbol", how="left")
            .join(rejected, on=["symbol", "day"], how="left")
            .select(
                pl.lit(source).alias("source"),
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
            silent=self._begun(plan, fetched, answered) if intraday else silent,
            asked=(*fetched.asked, *fetched.failed),
            exceptions=exceptions.sort("day", "symbol"),
            quarantined=checked.quarantined,
        )

    def _begun(self, plan: WritePlan, fetched: Fetched, answered: pl.DataFrame) -> pl.DataFrame:
        """`symbol`, `day` without a bar though a session of it has begun: what is held of it stays,
        over or not."""
        begun = self.universe.session_days(*plan.window, fetched.asked)
        begun = begun.filter(pl.col("since") <= self.clock()).select("symbol", "day").unique()
        return _not_among(begun, answered)

    # -- reading ------------------------------------------------------------------------------

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

    def newest_row(
        self,
        asset: str,
        columns: Sequence[str],
        symbol: str,
        *,
        as_of: datetime | None = None,
        as_known_at: datetime | None = None,
    ) -> pl.DataFrame:
        """The newest of the rows that `read` would yield of one symbol: one row, or none.

        Raises:
            UniverseError: the symbol is unknown.
            SchemaError: a column is unknown, or the table keeps no history.
        """
        table = self.tables[asset]
        names = [*(n for n in table.key if n not in columns), *columns]
        return self.database.read_frame(
            reader.newest_row(
                table,
                names,
                self.universe.resolve(symbol).id,
                as_of=as_of,
                as_known_at=as_known_at,
            )
        )

    def extent(self, asset: str, symbols: Sequence[str]) -> pl.DataFrame:
        """`symbol`, `first`, `last`: the times of the first and last row of instruments (ids) in a
        table by bar; whoever has none is left out."""
        return self.database.read_frame(reader.extent(self.tables[asset], symbols))

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
    names = ("symbol", "time", "available_at", "availability_basis", "session")
    shared = [n for n in names if n in table.names]
    return shared + [n for n in needed.columns if n not in shared]


def _parts(plan: WritePlan, fetched: Fetched) -> Iterator[tuple[WritePlan, Fetched]]:
    """A large answer cut at the ends of months, each part with the plan of its days. What is of a
    day before the plan's, or of none, is in the first part; what is of a later one in the last."""
    frame, column = fetched.frame, plan.table.day_column
    months = plan.days.dt.truncate("1mo").unique().sort()
    count = min(frame.height // _PART_ROWS, months.len(), _PARTS)
    # What accumulates is the same thing on whatever day.
    if plan.table.mode == "accumulate" or count < 2 or frame.schema.get(column) != UTC_TIME:
        yield plan, fetched
        return
    firsts = months.gather_every(-(-months.len() // count))
    later = [pl.col(column).dt.date() >= first for first in firsts[1:]]
    part_of_row = frame.select(pl.sum_horizontal(later)).to_series()
    part_of_day = firsts.search_sorted(plan.days, side="right") - 1
    for part in range(firsts.len()):
        days = plan.days.filter(part_of_day == part)
        yield (
            replace(plan, days=days, inherited=of_days(plan.inherited, days)),
            replace(fetched, frame=frame.filter(part_of_row == part)),
        )


def _not_among(days: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """The rows of `symbol`, `day` that are not among the others: by number, for to compare names
    takes four times as long."""
    names = pl.Enum(days["symbol"].unique())
    number = pl.col("symbol").cast(names, strict=False).to_physical().cast(pl.Int64)
    thing = (number * (1 << 32) + pl.col("day").to_physical()).alias("thing")
    there = others.select(thing)
    return days.with_columns(thing).join(there, on="thing", how="anti").drop("thing")


def _asked_elsewhere(answers: Mapping[str, Fetched], source: str) -> tuple[tuple[str, str], ...]:
    """Source and symbol of whom the other sources of an answer were asked for."""
    return tuple(
        (other, symbol)
        for other, fetched in answers.items()
        if other != source
        for symbol in {*fetched.asked, *fetched.failed, EVERYBODY}
    )


def _failed(fetched: Fetched) -> pl.DataFrame:
    """`symbol`, `reason` of those that could not be collected, as text that PostgreSQL takes."""
    reasons = [reason.replace("\x00", "\ufffd") for reason in fetched.failed.values()]
    return pl.DataFrame(
        {"symbol": list(fetched.failed), "reason": reasons},
        schema={"symbol": pl.String, "reason": pl.String},
    )


def _failures(plan: WritePlan, source: str, fetched: Fetched) -> pl.DataFrame:
    """Exceptions of a table that may be empty: a failed symbol is one on every day, and so is who
    was not asked for."""
    status = pl.lit(NOT_ASKED if fetched.off else "failed").alias("status")
    if fetched.off:
        fetched = replace(fetched, failed=dict.fromkeys(fetched.asked or [EVERYBODY], fetched.off))
    return (
        plan.days.to_frame("day")
        .join(_failed(fetched), how="cross")
        .select(pl.lit(source).alias("source"), "day", "symbol", status, "reason")
    )


def _report(
    judged: Sequence[_Judged], days: Sequence[pl.DataFrame], tallies: Sequence[reports.Tally]
) -> WriteReport:
    """Add up what happened to every row."""
    empty = pl.DataFrame(
        schema={
            "day": pl.Date,
            **dict.fromkeys(("rows", "written", "unchanged", "fenced", "duplicate"), pl.Int64),
        }
    )
    by_day = pl.concat([empty, *days]).group_by("day").agg(pl.exclude("day").sum()).sort("day")
    quarantined = [checked.quarantined.select("symbol", "day", "reason") for checked, _ in judged]
    exceptions = [batch.exceptions for _, batch in judged if batch.exceptions.height]
    return WriteReport(
        input=sum(tally.counts["input"] - tally.counts["outside"] for tally in tallies),
        days=by_day,
        exceptions=pl.concat(exceptions) if exceptions else pl.DataFrame(schema=EXCEPTIONS),
        reasons=pl.concat(quarantined) if quarantined else pl.DataFrame(),
        **{name: sum(tally.counts[name] for tally in tallies) for name in reports.BECAME},
    )
