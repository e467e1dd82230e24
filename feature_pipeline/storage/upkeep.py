"""What of the kept days is stale or missing, and which run would mend it: one look at the ledger.

Questions alone, answered from a single read of the whole ledger, so that asking after ten years of
every table costs a fraction of a second. Starting the runs is the repair sensor's
(`automation/repair.py`); what a run of theirs writes is settled by the planner, with `mendable`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from feature_pipeline.schemas import Input, TableSchema
from feature_pipeline.storage.changes import without
from feature_pipeline.storage.ledger import Ledger, newest_within

if TYPE_CHECKING:
    from feature_pipeline.storage.database import Database
    from feature_pipeline.storage.planning import Planner
    from feature_pipeline.storage.store import Store

MAX_GAP = timedelta(days=31)
"""A longer stretch that nobody has written separates two ranges, and is no hole in one: whether
its years are wanted is for a backfill to say."""

LIVE_DAYS = 2
"""Today and yesterday are still being collected: what they lack is the schedules' to bring."""

_DAY = timedelta(days=1)
_NO_DAYS = pl.Series("day", [], dtype=pl.Date)


def mendable(planner: Planner, asset: str, start: date, end: date, code_version: str) -> pl.Series:
    """The days in [start, end) that a repairing run of an asset writes, history left alone.

    Of a source's table all of them; of a derived one those that are stale or unwritten and whose
    inputs are there.
    """
    table = planner.tables[asset]
    if not table.derived:
        return pl.date_range(start, end, closed="left", eager=True)

    def absent(needed: Input, first: date, last: date) -> pl.Series:
        if needed.on_missing == "gap":
            return _NO_DAYS
        return planner.holes(planner.tables[needed.asset], first, last)

    stale = planner.pending(asset, start, end, code_version)
    stale = without(stale, planner.ledger.dropped_days(asset, start, end))
    return without(stale, waiting(planner, table, stale, absent))


def waiting(
    planner: Planner,
    table: TableSchema,
    days: pl.Series,
    absent: Callable[[Input, date, date], pl.Series],
) -> pl.Series:
    """Those of `days` (sorted) whose computation reads a day of an input that `absent` names.

    `absent(needed, first, end)` answers with sorted days, of [first, end) at least.
    """
    if days.is_empty():
        return days
    hit = np.zeros(days.len(), dtype=bool)
    for needed in table.inputs:
        reach = planner.reach(needed, days)
        hit |= _touching(reach, days, absent(needed, reach[0], days[-1] + _DAY))
    return days.filter(pl.Series(hit))


class LedgerNow(Ledger):
    """The ledger as it was at one moment, read at once; who is writing is still asked live.

    Args:
        database: whose ledger.
        versions: asset -> the code version that all its rows are taken to have; none - their own.
    """

    def __init__(self, database: Database, versions: Mapping[str, str] | None = None) -> None:
        super().__init__(database)
        every = database.read_frame(
            "SELECT asset, source, day, rows, content_hash, revision, upstream_revision,"
            " code_version, token, run_id FROM partition_ledger ORDER BY asset, day, source"
        )
        if versions:
            said = pl.col("asset").replace_strict(versions, default=None, return_dtype=pl.String)
            every = every.with_columns(code_version=said.fill_null(pl.col("code_version")))
        dropped = database.read_frame("SELECT asset, day FROM dropped_days ORDER BY asset, day")
        self._dropped = {
            str(asset): part["day"]
            for (asset,), part in dropped.partition_by("asset", as_dict=True).items()
        }
        self._none = every.drop("asset").clear()
        parts = every.partition_by("asset", as_dict=True, include_key=False)
        self._held = {str(asset): part for (asset,), part in parts.items()}

    def rows(self, asset: str, start: date, end: date) -> pl.DataFrame:
        """See `Ledger.rows`."""
        return self._within(asset, start, end).drop("run_id")

    def revisions(self, asset: str, start: date, end: date) -> pl.DataFrame:
        """See `Ledger.revisions`."""
        held = self._within(asset, start, end).select("day", "revision")
        return held.group_by("day", maintain_order=True).agg(pl.col("revision").max())

    def days(self, asset: str) -> pl.Series:
        """Every written day, sorted."""
        return self._held.get(asset, self._none)["day"].unique(maintain_order=True)

    def dropped_days(self, asset: str, start: date, end: date) -> pl.Series:
        """See `Ledger.dropped_days`."""
        return _within(self.dropped(asset), start, end)

    def dropped(self, asset: str) -> pl.Series:
        """The days that retention dropped, and that nobody has written since, sorted."""
        return without(self._dropped.get(asset, _NO_DAYS), self.days(asset))

    def writers(self, asset: str, days: pl.Series) -> pl.DataFrame:
        """`day`, `rows` and `run_id` of the newest writer of each of `days`."""
        held = self._held.get(asset, self._none)
        return (
            held.filter(pl.col("day").is_in(days.implode()))
            .sort("day", "token")
            .group_by("day", maintain_order=True)
            .agg(pl.col("rows").sum(), pl.col("run_id").last())
        )

    def _within(self, asset: str, start: date, end: date) -> pl.DataFrame:
        held = self._held.get(asset, self._none)
        low, high = (held["day"].search_sorted(day, side="left") for day in (start, end))
        return held[int(low) : int(max(low, high))]


@dataclass(frozen=True)
class Stretch:
    """One run: some assets over the days [start, end)."""

    assets: tuple[str, ...]
    start: date
    end: date


@dataclass
class Upkeep:
    """What is amiss in the tables of one graph.

    Args:
        store: whose tables.
        versions: asset -> code version, of every table.
        known: asset -> the sorted days that somebody else believes to be written (Dagster's
            materialisations); those count as kept even where the ledger has lost them, unless
            retention dropped them.
        foreign: this code is not what the database was last migrated for: what other code has
            computed is not stale for that reason alone.
    """

    store: Store
    versions: Mapping[str, str]
    known: Mapping[str, pl.Series] = field(default_factory=dict)
    foreign: bool = False

    @cached_property
    def ledger(self) -> LedgerNow:
        """The look at the ledger that all answers rest on."""
        return LedgerNow(self.store.database, self.versions if self.foreign else None)

    @cached_property
    def planner(self) -> Planner:
        """The store's planner, on that look."""
        return replace(self.store.planner, ledger=self.ledger)

    @cached_property
    def today(self) -> date:
        """The UTC day of the store's clock."""
        return self.store.clock().date()

    @property
    def derived(self) -> list[TableSchema]:
        """The derived tables, inputs before what reads them."""
        return [table for table in self.store.tables.values() if table.derived]

    @cached_property
    def dispensable(self) -> frozenset[str]:
        """The derived tables whose readers all compute around days that are not there."""
        inputs = [needed for table in self.derived for needed in table.inputs]
        needed = {i.asset for i in inputs if i.on_missing == "fail"}
        read = {i.asset for i in inputs} - needed
        return frozenset(table.asset for table in self.derived if table.asset in read)

    # -- what is kept -------------------------------------------------------------------------

    def kept(self, asset: str) -> list[tuple[date, date]]:
        """The stretches [first, end) of days that an asset is meant to have, oldest first.

        From the first written day to the last one; what lies after it is the schedules'. A derived
        table follows its inputs for up to `MAX_GAP` beyond its own end: a run that died halfway
        left it behind.
        """
        if asset not in self._kept:
            self._kept[asset] = self._stretches(self.store.tables[asset])
        return self._kept[asset]

    @cached_property
    def _kept(self) -> dict[str, list[tuple[date, date]]]:
        return {}

    def _lost(self, asset: str) -> pl.Series:
        """The days that others believe to be written, and that the ledger has lost."""
        lost = without(self.known.get(asset, _NO_DAYS), self.ledger.days(asset))
        return without(lost, self.ledger.dropped(asset))

    def _stretches(self, table: TableSchema) -> list[tuple[date, date]]:
        days = _union(self.ledger.days(table.asset), self._lost(table.asset))
        if days.is_empty():
            return []
        apart = (days.diff() > MAX_GAP).fill_null(value=False)
        firsts = [days[0], *days.filter(apart)]
        lasts = [*days.filter(apart.shift(-1, fill_value=False)), days[-1]]
        found = [(first, last + _DAY) for first, last in zip(firsts, lasts, strict=True)]
        if table.derived:
            required = [n.asset for n in table.inputs if n.on_missing == "fail"]
            ends = [self.ledger.days(a) for a in required or [n.asset for n in table.inputs]]
            if all(written.len() for written in ends):
                furthest = min(min(written[-1] for written in ends), days[-1] + MAX_GAP)
                found[-1] = (found[-1][0], max(found[-1][1], furthest + _DAY))
        return found

    def _expected(self, table: TableSchema, start: date, end: date) -> pl.Series:
        """`Planner.expected_days`, the sessions worked out once for all tables."""
        if table.key[:2] != ("symbol", "time"):
            return self.planner.expected_days(table, start, end)
        days = self._intraday_sessions if table.intraday else self._sessions
        low, high = (int(days.search_sorted(day, side="left")) for day in (start, end))
        return days[low : max(low, high)]

    @cached_property
    def _sessions(self) -> pl.Series:
        """The days with a finished session, as far as any bar is asked after."""
        return self._of_grid(intraday=False)

    @cached_property
    def _intraday_sessions(self) -> pl.Series:
        """The same of intraday tables: a session may have bars on two days."""
        return self._of_grid(intraday=True)

    def _of_grid(self, *, intraday: bool) -> pl.Series:
        tables = (t for t in self.store.tables.values() if t.key[:2] == ("symbol", "time"))
        grid = next(table for table in tables if table.intraday == intraday)
        return self.planner.expected_days(grid, self.store.universe.first_day, self.today + _DAY)

    def _unwritten(self, table: TableSchema, start: date, end: date) -> pl.Series:
        written = self.ledger.revisions(table.asset, start, end)["day"]
        holes = without(self._expected(table, start, end), written)
        return without(holes, self.planner.gone(table, start, end))

    # -- what is amiss ------------------------------------------------------------------------

    def holes(self, asset: str) -> pl.Series:
        """The kept days of a source's table that should be written and are not, and those of bars
        that are made of others and older than these, sorted."""
        table = self.store.tables[asset]
        found = [self._unwritten(table, first, end) for first, end in self.kept(asset)]
        found += [self.planner.behind(asset, first, end) for first, end in self.kept(asset)]
        settled = self.today - LIVE_DAYS * _DAY
        holes = without(_union(self._lost(asset), *found), self.ledger.dropped(asset))
        return holes.filter(holes <= settled)

    def due(self, asset: str) -> pl.Series:
        """The kept days of a derived table that are stale or missing, sorted."""
        table, found = self.store.tables[asset], []
        held = _union(self.ledger.days(asset), self._lost(asset))
        for first, end in self.kept(asset):
            pending = self.planner.pending(asset, first, end, self.versions[asset])
            should = _union(held, self._expected(table, first, end))
            found.append(pending.filter(pending.is_in(should.implode())))
        return without(_union(*found), self.ledger.dropped(asset))

    def unreported(self, asset: str) -> pl.DataFrame:
        """`day`, `rows`, `run_id` of what is written and not known elsewhere."""
        days = without(self.ledger.days(asset), self.known.get(asset, _NO_DAYS))
        return self.ledger.writers(asset, days)

    def live(self, days: pl.Series) -> pl.Series:
        """Those of `days` that are still being collected."""
        return days.filter(days > self.today - LIVE_DAYS * _DAY)

    def fingerprint(self, asset: str, days: pl.Series) -> str:
        """Some hex digits that change with the days, their code version and their inputs."""
        newest = 0
        for needed in self.store.tables[asset].inputs:
            reach = self.planner.reach(needed, days.head(1))[0]
            held = self.ledger.revisions(needed.asset, reach, days[-1] + _DAY)
            newest = max(newest, held["revision"].to_numpy().max(initial=0))
        said = f"{self.versions[asset]} {newest} {days.cast(pl.Int32).to_list()}"
        return hashlib.sha256(said.encode()).hexdigest()[:12]

    # -- what would mend it -------------------------------------------------------------------

    def blocked(
        self,
        chosen: Mapping[str, pl.Series],
        left: Mapping[str, pl.Series],
        held: Mapping[str, pl.Series],
    ) -> dict[str, pl.Series]:
        """Of the days chosen per derived asset, those whose inputs would not be there.

        Args:
            chosen: what is to be computed together.
            left: asset -> days that are not right and are left as they are. Where an input may be
                missing (`gap`) it is computed around them.
            held: asset -> days that nothing is to be computed from.
        """
        found: dict[str, pl.Series] = {}
        for table in self.derived:

            def absent(needed: Input, first: date, end: date) -> pl.Series:
                name = needed.asset
                withheld = held.get(name, _NO_DAYS)
                if needed.on_missing == "gap":
                    return withheld
                coming = without(chosen.get(name, _NO_DAYS), found.get(name, _NO_DAYS))
                holes = without(self._unwritten(self.store.tables[name], first, end), coming)
                return _union(holes, withheld, left.get(name, _NO_DAYS), found.get(name, _NO_DAYS))

            days = chosen.get(table.asset, _NO_DAYS)
            found[table.asset] = waiting(self.planner, table, days, absent)
        return found

    def unreachable(self, asset: str, day: date, coming: Mapping[str, pl.Series]) -> str | None:
        """In words, what `day` of a derived table reads that is neither written nor coming."""
        days = pl.Series([day], dtype=pl.Date)
        for needed in self.store.tables[asset].inputs:
            if needed.on_missing == "fail":
                upstream = self.store.tables[needed.asset]
                first = self.planner.reach(needed, days)[0]
                holes = self._unwritten(upstream, first, day + _DAY)
                holes = without(holes, coming.get(needed.asset, _NO_DAYS))
                if holes.len():
                    dropped = self.ledger.dropped_days(needed.asset, holes[0], holes[-1] + _DAY)
                    why = "nobody has asked for" if without(holes, dropped).len() else "was dropped"
                    return f"{needed.asset} from {holes[0]} to {holes[-1]}, which {why}"
        return None

    def stretch(
        self,
        chosen: Mapping[str, pl.Series],
        left: Mapping[str, pl.Series],
        held: Mapping[str, pl.Series],
        max_days: int = 0,
    ) -> Stretch | None:
        """The oldest run that computes chosen days of derived tables, and what follows from them.

        What may turn stale by it comes along: it costs nothing where it does not. The run stays
        within what each of its assets is meant to have, and clear of what is left, held back, or
        follows from that; what lies beyond is the next one's. Arguments as of `blocked`.
        """
        touched = self._touched(chosen)
        blocked = self.blocked(touched, left, held)
        barred = {a: _union(days, left.get(a, _NO_DAYS)) for a, days in blocked.items()}
        free = {a: without(days, barred[a]) for a, days in touched.items()}
        starts = [without(days, barred[a]).head(1) for a, days in chosen.items()]
        firsts = [first for days in starts for first in days]
        if not firsts:
            return None
        start = min(firsts)
        concerned = [asset for asset, days in touched.items() if days.len()]
        edges = {edge for a in concerned for stretch in self.kept(a) for edge in stretch}
        end = min(edge for edge in edges if edge > start)
        if max_days:
            end = min(end, start + max_days * _DAY)
        assets = []
        for asset in concerned:
            if not _within(touched[asset], start, end).len():
                continue
            bars = _within(barred[asset], start, end)
            if bars.len() and not _within(free[asset], start, bars[0]).len():
                continue
            assets.append(asset)
            end = min([end, *bars.head(1)])
        inside = {a: _within(touched[a], start, end) for a in assets}
        last = max(days[-1] for days in inside.values() if days.len())
        return Stretch(tuple(a for a, days in inside.items() if days.len()), start, last + _DAY)

    def _touched(self, chosen: Mapping[str, pl.Series]) -> dict[str, pl.Series]:
        """The chosen days of derived tables, and the kept ones that read one of them."""
        touched: dict[str, pl.Series] = {}
        for table in self.derived:
            kept = self.kept(table.asset)
            days = _union(*(pl.date_range(a, b, closed="left", eager=True) for a, b in kept))

            def changing(needed: Input, first: date, end: date) -> pl.Series:  # noqa: ARG001
                return touched.get(needed.asset, _NO_DAYS)

            follows = waiting(self.planner, table, days, changing)
            touched[table.asset] = _union(chosen.get(table.asset, _NO_DAYS), follows)
        return touched


def stretches(days: pl.Series, apart: int = 4, max_days: int = 0) -> list[tuple[date, date]]:
    """Sorted days as ranges [first, end); days less than `apart` days from each other share one.

    A weekend between two sessions does not cut a range.
    """
    found: list[tuple[date, date]] = []
    gaps = (days.diff() >= timedelta(days=apart)).fill_null(value=False)
    for first, last in zip(
        [*days.head(1), *days.filter(gaps)],
        [*days.filter(gaps.shift(-1, fill_value=False)), *days.tail(1)],
        strict=True,
    ):
        step = max_days or (last - first).days + 1
        while first <= last:
            found.append((first, min(first + step * _DAY, last + _DAY)))
            first += step * _DAY
    return found


def _touching(starts: pl.Series, ends: pl.Series, days: pl.Series) -> np.ndarray:
    """For each inclusive range whether one of the sorted days lies in it."""
    ones = np.ones(days.len(), dtype=np.int64)
    return newest_within(_numbers(starts), _numbers(ends), _numbers(days), ones) > 0


def _numbers(days: pl.Series) -> np.ndarray:
    return days.cast(pl.Int32).cast(pl.Int64).to_numpy()


def _within(days: pl.Series, start: date, end: date) -> pl.Series:
    return days.filter((days >= start) & (days < end))


def _union(*parts: pl.Series) -> pl.Series:
    """The days of all, each once, sorted."""
    held: Iterable[pl.Series] = (part.alias("day") for part in parts)
    return pl.concat([_NO_DAYS, *held]).unique().sort()
