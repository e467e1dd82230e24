"""What a run is about to write: which days, from which inputs, and whether those are there.

Settled before anything is read, from the ledger, the universe's sessions and the tables' declared
lookbacks. Reading and writing what the plan names is the store's (`store.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import cached_property

import numpy as np
import polars as pl
import tenacity

from feature_pipeline.errors import MissingPartitionError
from feature_pipeline.schemas import GRID_START, Input, TableSchema
from feature_pipeline.storage.changes import EXCEPTIONS, without
from feature_pipeline.storage.ledger import Intent, Ledger, newest_within
from feature_pipeline.storage.upkeep import mendable
from feature_pipeline.storage.writer import Writing
from feature_pipeline.timeframes import DAILY, MADE_OF, at
from feature_pipeline.universe import SourceKind, Universe

EVERYBODY = "*"
"""An exception's symbol where a whole day was not collected."""

NOT_ASKED = "no_answer"
"""An exception's status, in tables that accumulate, where the provider was off. Of bars the same
word says that a provider has none for a session."""

_NOBODY = pl.Schema({"day": pl.Date, "symbol": pl.String})
_FOR = " for@"


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


@dataclass(frozen=True)
class Scope:
    """What a run of one asset would touch.

    Args:
        days: the days to write, sorted; of a derived table before it is known which are stale.
        symbols: what a source would be asked for; None - every instrument, empty - nothing.
    """

    days: pl.Series
    symbols: tuple[str, ...] | None


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
    off: Mapping[str, str] = field(default_factory=dict)
    macro_provider: str = ""

    def providers(self, asset: str) -> tuple[str, ...]:
        """Who may be asked for a source's table, by name, those that are off included."""
        table = self.tables[asset]
        if table.derived:
            return ()
        if not table.about_instruments:
            return (self.macro_provider,) if self.macro_provider else ()
        named = self.universe.providers(kind_of(asset)).values()
        return tuple(sorted({provider for providers in named for provider in providers}))

    def off_beside(self, asset: str) -> list[str]:
        """Of those who may be asked for a source's table, why some are not."""
        return [self.off[name] for name in self.providers(asset) if name in self.off]

    def why_off(self, asset: str) -> str:
        """Why nobody can be asked for a source's table; empty where somebody can."""
        providers = self.providers(asset)
        if not providers or not self.off.keys() >= set(providers):
            return ""
        return "; ".join(self.off_beside(asset))

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
        """See `Store.plan`."""
        table = self.tables[asset]
        token = self.ledger.next_token()
        if mending:
            scope = Scope(mendable(self, asset, start, end, code_version), None)
        else:
            scope = self.scope(
                asset,
                start,
                end,
                symbols=symbols,
                only_missing=only_missing,
                code_version=code_version,
            )
        if _collects(table) and table.about_instruments:
            self.ledger.remember_group(self._everybody, self.universe.symbols)
            code_version = f"{code_version}{_FOR}{self._everybody}"
        announced = _span(scope.days) if scope.days.len() else (start, end)
        plan = WritePlan(
            table,
            Writing(token, run_id, code_version, self._finer_revisions(table, scope.days)),
            scope.days,
            scope.symbols,
            self.ledger.announce(asset, *announced, token, run_id),
        )
        try:
            return self._settled(plan) if table.derived and scope.days.len() else plan
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

    def scope(
        self,
        asset: str,
        start: date,
        end: date,
        *,
        symbols: Sequence[str] | None = None,
        only_missing: bool = False,
        code_version: str = "",
    ) -> Scope:
        """Which days a run would touch, and whom it would ask for; writes nothing.

        A run for what is missing mends the computed history that it reads, too: an instrument that
        joined has no indicators of before the days asked for, though these days are written.

        Raises:
            UniverseError: a symbol is unknown.
        """
        table = self.tables[asset]
        names = None if symbols is None else tuple(self.universe.resolve(s).id for s in symbols)
        days = self._with_history(table, start, end, names)
        if table.derived:
            if only_missing:
                old = self.outdated(asset, start, code_version)
                days = pl.date_range(min([days[0], *old.head(1)]), end, closed="left", eager=True)
            return Scope(days, names)
        if only_missing:
            wanted = self.missing(asset, days[0], end, names)
            # Days without a session, too: whoever asks for a range has all of it in the end.
            unwritten = without(
                pl.date_range(start, end, closed="left", eager=True),
                self.ledger.revisions(asset, start, end)["day"],
            )
            either = pl.concat([wanted["day"], unwritten]).sort()
            if either.is_empty():
                return Scope(either, ())
            days = pl.date_range(*_span(either), closed="left", eager=True)
            if names is None and wanted.height:
                names = self._named(wanted)
        if names is not None and _collects(table) and table.about_instruments:
            # Of a day of events the ledger says for whom it was collected: for everybody, after
            # this one. Who is missing from it is asked for as well.
            names = self._named(self.missing(asset, *_span(days)), names)
        return Scope(days, names)

    def _named(self, missing: pl.DataFrame, others: Sequence[str] = ()) -> tuple[str, ...] | None:
        """Whom a source is asked for who lacks this; None - everybody."""
        names = {*missing["symbol"], *others}
        return None if None in names or names >= self._ids else tuple(sorted(names))

    def outdated(self, asset: str, start: date, code_version: str) -> pl.Series:
        """The days before `start` of a computed asset that its consumers read, that are written,
        and that are stale."""
        table, reach = self.tables[asset], self.first_needed(asset, start)
        if reach >= start:
            return pl.Series(dtype=pl.Date)
        written = self.ledger.revisions(asset, reach, start)["day"]
        stale = self.pending(asset, reach, start, code_version)
        old = stale.filter(stale.is_in(written.implode()))
        return without(old, self.ledger.in_progress(table.asset, old)) if old.len() else old

    def missing(
        self, asset: str, start: date, end: date, symbols: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """`day` and `symbol` in [start, end) of what a source should be asked for (again).

        That is what it has not been asked for, what it failed to answer, and events of days that
        were not over when they were collected. A null `symbol` is everybody, or nobody in
        particular.
        """
        table = self.tables[asset]
        failed = self.ledger.exceptions(asset, start, end).filter(status="failed")
        found = [
            self._incomplete(table, start, end, symbols),
            failed.select(
                "day",
                symbol=pl.col("symbol") if table.about_instruments else pl.lit(None, pl.String),
            ),
            self.behind(asset, start, end)
            .to_frame("day")
            .with_columns(symbol=pl.lit(None, pl.String)),
        ]
        if _collects(table):
            early = self.ledger.written_before_their_end(asset, start, end)
            found.append(early.to_frame("day").with_columns(symbol=pl.lit(None, pl.String)))
        known = [*self.universe.symbols] if symbols is None else [*symbols]
        return (
            pl.concat(part.select(**{n: pl.col(n) for n in _NOBODY}) for part in found)
            .filter(pl.col("symbol").is_null() | pl.col("symbol").is_in(known))
            .unique()
            .sort("day", "symbol")
        )

    @cached_property
    def _ids(self) -> set[str]:
        return set(self.universe.symbols)

    def pending(self, asset: str, start: date, end: date, code_version: str) -> pl.Series:
        """See `Store.pending`."""
        table = self.tables[asset]
        days = pl.date_range(start, end, closed="left", eager=True)
        if table.derived:
            return self._stale(table, days, self._upstream_revisions(table, days), code_version)
        unwritten = without(days, self.ledger.revisions(asset, start, end)["day"])
        incomplete = self._incomplete(table, start, end, None)["day"]
        behind = self.behind(asset, start, end)
        return pl.concat([unwritten, incomplete, behind]).unique().sort()

    def behind(self, asset: str, start: date, end: date) -> pl.Series:
        """The written days in [start, end) of bars that are made of finer ones and older than those
        are now."""
        table = self.tables[asset]
        if self._finer(table) is None:
            return pl.Series("day", dtype=pl.Date)
        held = self.ledger.rows(asset, start, end).group_by("day", maintain_order=True)
        made = held.agg(pl.col("upstream_revision").max())
        now = self._finer_revisions(table, made["day"])
        if now is None:
            return made["day"]
        older = pl.col("upstream_revision") < pl.col("upstream_revision_now")
        return made.join(now, on="day", suffix="_now").filter(older)["day"].sort()

    def _finer(self, table: TableSchema) -> str | None:
        """The asset whose bars a source's are made of, where there is one."""
        finer = MADE_OF.get(table.timeframe or "")
        if table.derived or finer is None:
            return None
        asset = at(table.asset, finer)
        return asset if asset in self.tables else None

    def _finer_revisions(self, table: TableSchema, days: pl.Series) -> pl.DataFrame | None:
        """`day` and `upstream_revision`: how new what its bars are made of is; None where they are
        made of none."""
        finer = self._finer(table)
        if finer is None or days.is_empty():
            return None
        held = self.ledger.revisions(finer, *_span(days))
        return (
            days.to_frame("day")
            .join(held, on="day", how="left")
            .select("day", upstream_revision=pl.col("revision").fill_null(0))
        )

    # -- what should be there -----------------------------------------------------------------

    def finished(
        self,
        start: date,
        end: date,
        symbols: Sequence[str] | None = None,
        *,
        intraday: bool = False,
    ) -> pl.DataFrame:
        """`symbol`, `time`, `day` of the sessions whose bar should be there by now.

        Intraday of the sessions, a part for each day that they touch, of which some bar should be.
        """
        if intraday:
            return (
                self.universe.session_days(start, end, symbols)
                .filter(pl.col("until") + self.publication_delay <= self.clock())
                .select("symbol", "time", "day")
            )
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
            return self.finished(start, end, intraday=table.intraday)["day"].unique().sort()
        end = min(end, self.clock().date() + timedelta(days=1))
        if start >= end:
            return pl.Series(dtype=pl.Date)
        return pl.date_range(start, end, closed="left", eager=True)

    def uncollected(self, table: TableSchema, start: date, end: date) -> pl.Series:
        """Those of the expected days that nobody has written."""
        return without(self.expected_days(table, start, end), self._written(table, start, end))

    def holes(self, table: TableSchema, start: date, end: date) -> pl.Series:
        """Those of the expected days that somebody would have to write before anything is computed
        from them: what is gone for good is missing, and waits for nobody."""
        found = self.uncollected(table, start, end)
        return without(found, self.gone(table, start, end)) if found.len() else found

    def gone(self, table: TableSchema, start: date, end: date) -> pl.Series:
        """The days in [start, end) that retention dropped and that nothing here can bring back,
        sorted: of what is computed, those whose own bars are gone."""
        dropped = self.ledger.dropped_days(table.asset, start, end)
        if dropped.is_empty() or not table.derived:
            return dropped
        needed = [self.tables[n.asset] for n in table.inputs if n.on_missing == "fail"]
        lost = pl.concat([dropped.clear(), *(self.gone(one, start, end) for one in needed)])
        return dropped.filter(dropped.is_in(lost.implode()))

    def _written(self, table: TableSchema, start: date, end: date) -> pl.Series:
        """The days in [start, end) that are written; of what several models write, by ours."""
        if not table.written_by:
            return self.ledger.revisions(table.asset, start, end)["day"]
        rows = self.ledger.rows(table.asset, start, end)
        return rows.filter(pl.col("code_version").str.ends_with(table.written_by))["day"].unique()

    def reach(self, needed: Input, days: pl.Series) -> pl.Series:
        """For each day the first one that its computation reads of `needed`."""
        timeframe = self.tables[needed.asset].timeframe or DAILY
        starts = self.universe.lookback_starts(days, needed.lookback_bars, timeframe)
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

    @cached_property
    def _everybody(self) -> str:
        """Whom a day of events was collected for: part of its code version in the ledger. Rows of
        events cannot tell, and a split of an instrument that joined since would go unnoticed."""
        return hashlib.sha256("\n".join(self.universe.symbols).encode()).hexdigest()[:16]

    def _with_history(
        self, table: TableSchema, start: date, end: date, symbols: Sequence[str] | None
    ) -> pl.Series:
        """The days asked for, and from the first unwritten one that consumers will read."""
        reach = self.first_needed(table.asset, start)
        missing = self._incomplete(table, reach, start, symbols)["day"].unique().sort()
        if missing.len():
            missing = without(missing, self.ledger.in_progress(table.asset, missing))
        first = missing[0] if missing.len() else start
        return pl.date_range(first, end, closed="left", eager=True)

    def _incomplete(
        self, table: TableSchema, start: date, end: date, symbols: Sequence[str] | None
    ) -> pl.DataFrame:
        """`day`, `symbol` in [start, end) that a source has not been asked for.

        A day is written for the instruments of its time: one that joined the universe since, or
        that a run for single symbols left out, is missing from it and no exception says why. A
        null `symbol` where rows do not belong to instruments, and where they are computed.
        """
        if table.derived or not table.about_instruments:
            days = self.holes(table, start, end)
            missing = days.to_frame("day").with_columns(symbol=pl.lit(None, pl.String))
            return pl.concat([missing, self._on_again(table, start, end)])
        if _collects(table):
            missing = pl.concat(
                [self._not_collected_for(table, start, end), self._on_again(table, start, end)]
            )
            if symbols is not None:
                wanted = pl.col("symbol").is_null() | pl.col("symbol").is_in(list(symbols))
                missing = missing.filter(wanted)
            return missing
        if table.intraday:
            return self._without_bars(table, start, end, symbols)
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
            return pl.DataFrame(schema=_NOBODY)
        span = _span(short)
        missing = finished.filter(pl.col("day").is_in(short.implode()))
        if symbols is not None:
            missing = missing.filter(pl.col("symbol").is_in(list(symbols)))
        for known in (self.held(table, *span, symbols), self.ledger.exceptions(table.asset, *span)):
            missing = missing.join(known, on=["symbol", "day"], how="anti")
        return missing.select("day", "symbol")

    def _without_bars(
        self, table: TableSchema, start: date, end: date, symbols: Sequence[str] | None
    ) -> pl.DataFrame:
        """`day`, `symbol` of what should have some bar and has none, and nothing says why."""
        missing = self.finished(start, end, symbols, intraday=True).select("day", "symbol").unique()
        if missing.is_empty():
            return missing
        span = _span(missing["day"].unique().sort())
        for known in (self.held(table, *span, symbols), self.ledger.exceptions(table.asset, *span)):
            missing = missing.join(known, on=["symbol", "day"], how="anti")
        return missing

    def _on_again(self, table: TableSchema, start: date, end: date) -> pl.DataFrame:
        """`day`, `symbol` of what a provider was not asked for that was off, and is not off now."""
        if not _collects(table):
            return pl.DataFrame(schema=_NOBODY)
        lost = self.ledger.exceptions(table.asset, start, end).filter(
            not_asked(table), ~pl.col("source").is_in(list(self.off))
        )
        return lost.select("day", symbol=pl.when(pl.col("symbol") != EVERYBODY).then("symbol"))

    def _not_collected_for(self, table: TableSchema, start: date, end: date) -> pl.DataFrame:
        """`day`, `symbol` of events that were not collected for an instrument: each day says, by
        provider, for which group it was."""
        days = self.expected_days(table, start, end)
        providers = self.universe.providers(kind_of(table.asset))
        # A database from before groups were noted knows today's by its digest.
        groups = {self._everybody: list(self.universe.symbols), **self.ledger.groups()}
        collected = (
            self.ledger.rows(table.asset, start, end)
            .select("day", by=pl.col("source") + pl.lit(_FOR) + _group(pl.col("code_version")))
            .group_by("day")
            .agg(pl.col("by").sort().str.join("\n"))
        )
        found = []
        for (by,), some in (
            days.to_frame("day")
            .join(collected, on="day", how="left")
            .partition_by("by", as_dict=True, include_key=False)
            .items()
        ):
            of: dict[str, set[str]] = {}
            for entry in str(by or "").splitlines():
                source, _, group = entry.partition(_FOR)
                of.setdefault(source, set()).update(groups.get(group, ()))
            without_it = [
                i
                for i, named in providers.items()
                if any(i not in of.get(source, ()) for source in self._asked(named))
            ]
            found.append(some.join(pl.DataFrame({"symbol": without_it}, _WHO), how="cross"))
        return pl.concat([pl.DataFrame(schema=_NOBODY), *found]).sort("day", "symbol")

    def _asked(self, providers: Sequence[str]) -> Sequence[str]:
        """Those that a day lacks where they have not written it: where somebody is asked, nobody
        waits for who is off."""
        return [name for name in providers if name not in self.off] or providers

    # -- what it follows from -----------------------------------------------------------------

    def _await_days(self, table: TableSchema, needed: Input, days: pl.Series) -> None:
        """Wait for days of an input that another run is writing; refuse to compute on a hole."""
        upstream = self.tables[needed.asset]
        first, end = self.reach(needed, days.head(1))[0], _span(days)[1]
        expected = self.expected_days(upstream, first, end)

        def missing() -> pl.Series:
            return without(expected, self._written(upstream, first, end))

        def being_written(holes: pl.Series) -> bool:
            return holes.len() > 0 and self.ledger.in_progress(upstream.asset, holes).len() > 0

        holes: pl.Series = tenacity.Retrying(
            retry=tenacity.retry_if_result(being_written),
            wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5),
            stop=tenacity.stop_after_delay(self.wait),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )(missing)
        # A writer may have finished between the look at the ledger and the look at who is writing.
        holes = without(missing(), self.gone(upstream, first, end)) if holes.len() else holes
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
        """The days that are unwritten, older than what they follow from, or of other code, unless
        they are gone for good: nothing would be written of those but that they are empty."""
        held = self.ledger.rows(table.asset, *_span(days))
        current = held.join(upstream, on="day", suffix="_now").filter(
            pl.col("code_version") == code_version,
            pl.col("upstream_revision") >= pl.col("upstream_revision_now"),
        )
        return without(without(days, current["day"]), self.gone(table, *_span(days)))

    def _inherited(self, table: TableSchema, days: pl.Series) -> pl.DataFrame:
        """What the inputs could not collect of these days: exceptions named after the input."""
        found = [pl.DataFrame(schema=EXCEPTIONS)]
        for needed in table.inputs if days.len() else ():
            upstream = self.tables[needed.asset]
            unknown = (
                self.uncollected(upstream, *_span(days))
                .to_frame("day")
                .with_columns(
                    symbol=pl.lit(EVERYBODY),
                    status=pl.lit("failed"),
                    reason=pl.lit(f"{needed.asset} was not collected"),
                )
            )
            failed = self.ledger.exceptions(upstream.asset, *_span(days)).select(unknown.columns)
            found += [
                part.select(
                    pl.lit(needed.asset).alias("source"),
                    "day",
                    "symbol",
                    "status",
                    "reason",
                )
                for part in (unknown, failed.unique(["day", "symbol"], keep="first"))
            ]
        return pl.concat(found).filter(pl.col("day").is_in(days.implode()))


def not_asked(table: TableSchema) -> pl.Expr:
    """Which exceptions say that a provider was off: nothing that is amiss."""
    return (pl.col("status") == NOT_ASKED) & pl.lit(table.mode == "accumulate")


_KINDS: Mapping[str, SourceKind] = {
    "corporate_actions": "actions",
    "news": "news",
    "reddit": "reddit",
    "insider_transactions": "insiders",
}

_WHO = pl.Schema({"symbol": pl.String})


def kind_of(asset: str) -> SourceKind:
    """Which of an instrument's providers fills the asset."""
    return _KINDS.get(asset, "bars")


def _group(code_version: pl.Expr) -> pl.Expr:
    """For whom a day was collected, from its code version."""
    return code_version.str.extract(f"{_FOR}(.*)$").fill_null("")


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
