"""What a backfill would do, asset by asset, and what it would cost - before anything is started.

Reads the ledger, the universe and the sizes of tables; writes nothing, takes no token, announces
nothing. Cutting the work into runs and executing them is `backfill.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl

from feature_pipeline.errors import FeaturePipelineError, MissingPartitionError
from feature_pipeline.schemas import GRID_START, Input, TableSchema
from feature_pipeline.sources import Kind, calls_of, seconds_per_call
from feature_pipeline.storage import retention, usage
from feature_pipeline.storage.changes import without
from feature_pipeline.storage.planning import kind_of, on_grid
from feature_pipeline.storage.store import Store
from feature_pipeline.timeframes import of
from feature_pipeline.universe import calendar_bars

START_S = 5.0
"""Fresh processes that import Dagster and the graph, before the first step."""

RUN_S = 1.0
"""What Dagster needs for a run, besides its steps."""

_STEP_S, _DAY_S = 0.25, 0.0014
"""A step, and a day of it: planning, its transaction's share, Dagster's event of the partition."""

_ROW_S = {"sentiment_scores": 150e-6, "news": 40e-6, "reddit": 40e-6}
_ANY_ROW_S = 12e-6
"""A row: fetched from the sample or computed, checked, hashed, copied. Two cores of 2020."""

_ROWS_A_DAY = {
    "corporate_actions": 0.015,
    "news": 0.5,
    "reddit": 1.4,
    "macro_indicators": 2.2,
    "insider_transactions": 0.6,
    "sentiment_scores": 1.9,
}
"""Rows of events per day and instrument (macro: per day), where nothing is written yet."""

_APART = 31
"""Days without work that separate two runs: fewer are cheaper to walk through."""

_WORTH_A_RUN = 8
"""Days that an instrument lacks and others have, from which on it is asked for in its own run."""

ASKING_S = 120.0
"""How long a run of a long backfill should ask providers at the most: nothing of what they answered
is kept before all of it is there, so that this is what a kill costs."""

_SHORTEST_RUN = 366
"""No run of a long backfill is shorter, in days: a year of bars is one question anywhere."""

_LITTLE_MORE = 1.5
"""Times what a run of a year asks, that a longer one may: who is asked once per ticker, however
long the range, is asked anew by every run, which costs more than a kill saves."""

_ENOUGH_DAYS = 20
_ENOUGH_ROWS = 2000
_RUNS_LOOKED_AT = 20

_TEXT_BYTES = {"text": 200, "title": 60, "url": 80, "document_id": 65, "run_id": 37, "inputs": 60}
_ROW_OVERHEAD = 28 + 8
"""Tuple header and line pointer; a null bitmap."""


class EstimateError(FeaturePipelineError):
    """What is asked for cannot be backfilled: there is no such day, asset or history."""


@dataclass(frozen=True)
class Work:
    """What a backfill does for one asset.

    Args:
        asset: its name.
        days: the days to write, sorted, history included. A source is asked for ranges: days in
            between that are right are among them.
        symbols: whom a source is asked for; None - everybody.
        changing: those of the days whose content will change, for what follows from them.
        whole: of a source: those of the days of which nobody has anything yet.
        asked: partitions asked for.
        history: how many of the days lie before the first one asked for.
        rows: rows that these days will have.
        rows_from: what that number rests on: `sessions`, `average`, `assumed`.
        calls: requests to providers.
        asking_s: what these take at the providers' pace, alone.
        bytes: what the rows take in the database, indexes included.
        bytes_from: `measured` or `schema`.
        seconds: expected time.
    """

    asset: str
    days: pl.Series
    symbols: tuple[str, ...] | None = None
    changing: pl.Series = field(default_factory=lambda: pl.Series(dtype=pl.Date))
    whole: pl.Series = field(default_factory=lambda: pl.Series(dtype=pl.Date))
    asked: int = 0
    history: int = 0
    rows: int = 0
    rows_from: str = "sessions"
    calls: int = 0
    asking_s: float = 0.0
    bytes: int = 0
    bytes_from: str = "schema"
    seconds: float = 0.0

    @property
    def pending(self) -> int:
        """Partitions asked for that will be written."""
        return self.days.len() - self.history


@dataclass(frozen=True)
class Estimate:
    """The work of every asset of a backfill, in the graph's order, and the time it takes.

    Args:
        start, end: the days asked for, [start, end).
        spans: ranges of days, oldest first, that cover the work within them, one after the other.
            Work that lies far apart is in spans of its own, and so are days that only some
            instruments lack: sources are asked for these alone.
        work: by asset.
        seconds_from: `measured` - by past runs on this database, `runs` of them - or `built-in`.
        days_per_run: how long its runs should be; 0 - a run for each span. Where providers are
            asked over the network, runs of at most so many days go one after the other: each keeps
            what it was answered, and two would ask twice as fast as they may.
    """

    start: date
    end: date
    spans: tuple[tuple[date, date], ...]
    work: Mapping[str, Work]
    seconds_from: str
    runs: int
    days_per_run: int = 0

    @property
    def partitions(self) -> int:
        """How many partitions are written, history included."""
        return sum(one.days.len() for one in self.work.values())

    @property
    def asks(self) -> bool:
        """Whether providers are asked over the network, at a pace."""
        return any(one.asking_s > 0 for one in self.work.values())

    @property
    def turns(self) -> int:
        """How many runs follow each other where providers are asked."""
        step = self.days_per_run
        return sum(
            -(-(end - first).days // (step or (end - first).days)) for first, end in self.spans
        )

    @property
    def seconds(self) -> float:
        """Expected time of one run after the other; nothing where there is nothing to do."""
        begun = (self.turns if self.asks else 1) if self.partitions else 0
        return sum(one.seconds for one in self.work.values()) + begun * (START_S + RUN_S)


def default_range(
    store: Store, symbols: Sequence[str] = (), assets: Sequence[str] = ()
) -> tuple[date, date]:
    """[start, end): all days of these instruments (or of all), to the last finished session; of
    bars among the assets that are not kept for ever those that are.

    Raises:
        UniverseError: a symbol is unknown.
        EstimateError: none of them has had a session yet.
    """
    universe = store.universe
    chosen = [universe.resolve(s) for s in symbols] or list(universe.instruments)
    tomorrow = store.clock().date() + timedelta(days=1)
    # As of tomorrow: a run that begins after midnight would be refused for today's first day.
    kept = [retention.kept_from(store.database, asset, tomorrow) for asset in _aging(store, assets)]
    start = max(min(i.first_day for i in chosen), GRID_START, *filter(None, kept))
    finished = store.planner.finished(start, tomorrow, [i.id for i in chosen])["day"]
    if finished.is_empty():
        raise EstimateError(
            f"{', '.join(i.id for i in chosen[:5])} has had no session since {start}; give "
            "--start and --end"
        )
    last: date = finished.sort()[-1]
    return start, last + timedelta(days=1)


def estimate(
    store: Store,
    versions: Mapping[str, str],
    sources: Mapping[str, Any],
    macro_source: Any,
    start: date,
    end: date,
    *,
    assets: Sequence[str] = (),
    symbols: Sequence[str] = (),
    refetch: bool = False,
    days_per_run: int = 0,
) -> Estimate:
    """What a backfill of the days [start, end) would do.

    Args:
        store: where, and of which universe.
        versions: asset -> code version.
        sources: providers by name; `macro_source` the one of macro series.
        start, end: the days asked for.
        assets: of these alone; all unless given.
        symbols: ids that sources are asked for; everybody unless given.
        refetch: sources are asked for what is there, too.
        days_per_run: days of a run; 0 - by what providers are asked, see `Estimate`.

    Raises:
        MissingPartitionError: something that is computed reads what nobody has written and this
            backfill does not write.
        EstimateError: the bars would be dropped again, or there is no such timeframe.
        UniverseError: a symbol is unknown.
        DatabaseError: the ledger cannot be read.
    """
    _refuse_old(store, assets, start)
    found: dict[str, Work] = {}
    for asset, table in store.tables.items():
        if assets and asset not in assets:
            continue
        if table.derived:
            found[asset] = _derived(store, table, start, end, versions[asset], found)
        else:
            found[asset] = _fetched(store, table, start, end, symbols, refetch=refetch)
    spans: tuple[tuple[date, date], ...] = ((start, end),)
    if not refetch:
        spans = _spans(store, found, start, end)
        found = {name: _walked(store, one, spans, start) for name, one in found.items()}
    asking = {
        name: _asking(store, store.tables[name], one, sources, macro_source)
        for name, one in found.items()
    }
    days_per_run = days_per_run or _days_per_run(found, asking, spans)
    averages, widths = _averages(store), _widths(store)
    scales, runs = _scales(store)
    work: dict[str, Work] = {}
    for asset, one in found.items():
        table = store.tables[asset]
        rows, rows_from = _rows(store, table, one, work, averages)
        width = widths.get(table.table)
        calls, asking_s = _cost(asking[asset], _windows(one, spans, days_per_run).values())
        computing_s = _seconds(asset, one.days.len(), rows)
        # Of who is asked at a pace: what was measured has the asking of another range in it.
        own = "" if any(seconds_per_call(q.source) for q in asking[asset]) else asset
        scale = scales.get(own, scales.get("", 1.0))
        work[asset] = replace(
            one,
            asked=(end - start).days,
            history=one.days.filter(one.days < start).len(),
            rows=rows,
            rows_from=rows_from,
            calls=calls,
            asking_s=asking_s,
            bytes=round(rows * (width or schema_width(table))),
            bytes_from="measured" if width else "schema",
            seconds=computing_s * scale + asking_s,
        )
    known = "measured" if runs else "built-in"
    return Estimate(start, end, spans, work, known, runs, days_per_run)


def _refuse_old(store: Store, assets: Sequence[str], start: date) -> None:
    """Intraday bars are kept for a while: older ones would be asked for in vain."""
    for asset in assets:
        if asset not in store.tables:
            raise EstimateError(
                f"there is no {asset} here: add {of(asset)} to `timeframes` in universe.yaml"
            )
    for asset in _aging(store, assets):
        refused = retention.refusal(store.database, asset, start, store.clock().date())
        if refused:
            raise EstimateError(refused)


def _aging(store: Store, assets: Sequence[str]) -> list[str]:
    """Those of the assets that are intraday bars."""
    tables = [store.tables[asset] for asset in assets if asset in store.tables]
    return [table.asset for table in tables if table.intraday and not table.derived]


# -- which days -----------------------------------------------------------------------------------


def _fetched(
    store: Store,
    table: TableSchema,
    start: date,
    end: date,
    symbols: Sequence[str],
    *,
    refetch: bool,
) -> Work:
    """The days that a source is asked for."""
    scope = store.planner.scope(
        table.asset, start, end, symbols=symbols or None, only_missing=not refetch
    )
    days = scope.days
    if days.is_empty():
        return Work(table.asset, days, ())
    first, last = days[0], days[-1] + timedelta(days=1)
    missing = store.planner.missing(table.asset, first, last, symbols or None)
    unwritten = without(days, store.ledger.revisions(table.asset, first, last)["day"])
    changing = pl.concat([missing["day"], unwritten]).unique().sort()
    whole = changing.filter(changing.is_in(unwritten.implode()))
    return Work(table.asset, days, scope.symbols, changing, whole)


def _derived(
    store: Store,
    table: TableSchema,
    start: date,
    end: date,
    version: str,
    work: Mapping[str, Work],
) -> Work:
    """The days that are stale, or will be once what they follow from is written."""
    reach = store.planner.first_needed(table.asset, start)
    days = pl.date_range(reach, end, closed="left", eager=True)
    stale = store.pending(table.asset, reach, end, version)
    for needed in table.inputs:
        if needed.asset in work:
            changing = work[needed.asset].changing
            stale = pl.concat([stale, _following(store, needed, days, changing)])
    # Of history only what is there, or should be.
    written = store.ledger.revisions(table.asset, reach, end)["day"]
    expected = pl.concat([written, store.planner.holes(table, reach, start)])
    history = stale.filter((stale < start) & stale.is_in(expected.implode()))
    if history.len():
        history = without(history, store.ledger.in_progress(table.asset, history))
    first = history.sort().head(1)
    stale = stale.filter(stale >= (first[0] if first.len() else start)).unique().sort()
    if stale.len():
        _refuse_holes(store, table, stale, work)
    return Work(table.asset, stale, changing=stale)


def _following(store: Store, needed: Input, days: pl.Series, changing: pl.Series) -> pl.Series:
    """Those of `days` whose computation reads one of the days that change."""
    if changing.is_empty():
        return days.clear()
    last = days.to_frame("day").join_asof(
        changing.to_frame("changed"), left_on="day", right_on="changed"
    )["changed"]
    return days.filter((last >= store.planner.reach(needed, days)).fill_null(value=False))


def _refuse_holes(
    store: Store, table: TableSchema, days: pl.Series, work: Mapping[str, Work]
) -> None:
    """Say before the start what a run would fail with after its first steps."""
    for needed in table.inputs:
        if needed.on_missing == "gap":
            continue
        first = store.planner.reach(needed, days.head(1))[0]
        upstream = store.tables[needed.asset]
        holes = store.planner.holes(upstream, first, days[-1] + timedelta(days=1))
        if needed.asset in work:
            holes = without(holes, work[needed.asset].days)
        if holes.len():
            holes = without(holes, store.ledger.in_progress(needed.asset, holes))
        if holes.len():
            more = f" and {holes.len() - 1} more days" if holes.len() > 1 else ""
            mend = (
                # For its own symbols it is; these are days on which others have sessions.
                f"backfill {needed.asset} without --symbols"
                if needed.asset in work
                else f"add {needed.asset} to --assets, or backfill it"
            )
            raise MissingPartitionError(
                f"{table.asset} from {days[0]} on reads {needed.asset} of {holes[0]}{more}, which "
                f"nobody has written; {mend} from {holes[0]} to {holes[-1]} first, or begin later "
                "with --start"
            )


def _spans(
    store: Store, work: Mapping[str, Work], start: date, end: date
) -> tuple[tuple[date, date], ...]:
    """See `Estimate`."""
    changing = [one.changing for one in work.values()]
    days = pl.concat([pl.Series(dtype=pl.Date), *changing]).unique().sort()
    wanted = days.filter(days.is_between(start, end, closed="left"))
    if wanted.is_empty():  # history alone: it comes along with any day
        return ((start, start + timedelta(days=1)),) if days.len() else ()
    apart = wanted.diff().dt.total_days().fill_null(0) > _APART
    begins = sorted({wanted[0], *wanted.filter(apart), *_cuts(store, work, wanted[0])})
    spans = []
    for first, beyond in zip(begins, [*begins[1:], date.max], strict=True):
        within = wanted.filter(wanted.is_between(first, beyond, closed="left"))
        spans.append((first, within[-1] + timedelta(days=1)))
    return tuple(spans)


def _cuts(store: Store, work: Mapping[str, Work], first: date) -> list[date]:
    """Where days that lack some instruments end, and days begin that nobody has written: asked for
    in one go, everybody would be asked for all of them."""
    nothing = pl.Series(dtype=pl.Date)
    fetched = [one for one in work.values() if not store.tables[one.asset].derived]
    whole = pl.concat([nothing, *(one.whole for one in fetched)])
    partial = pl.concat([nothing, *(without(one.changing, one.whole) for one in fetched)])
    whole = whole.filter(whole >= first).unique().sort()
    partial = without(partial.filter(partial >= first).unique().sort(), whole)
    if partial.len() < _WORTH_A_RUN or whole.is_empty():
        return []
    before = [partial[0]] if whole[0] < partial[0] else []
    return [*before, *whole.filter(whole > partial[-1]).head(1)]


def _walked(store: Store, one: Work, spans: Sequence[tuple[date, date]], start: date) -> Work:
    """The work as the runs of these spans do it: a source is asked for one range in each."""
    if store.tables[one.asset].derived:
        return one
    parts = [one.days.clear()]
    for number, (first, end) in enumerate(spans):
        since = first if number else min(first, start, *one.changing.head(1))
        some = one.changing.filter(one.changing.is_between(since, end, closed="left"))
        if some.len():
            parts.append(pl.date_range(some[0], some[-1], eager=True))
    return replace(one, days=pl.concat(parts))


# -- how much -------------------------------------------------------------------------------------


def _averages(store: Store) -> dict[str, float]:
    """Asset -> rows per day and instrument in the universe, where enough days are written."""
    held = usage.partitions(store.database).filter(pl.col("days") >= _ENOUGH_DAYS)
    found = {}
    for asset, rows, written, first, last in held.select(
        "asset", "rows", "days", "first", "last"
    ).iter_rows():
        table = store.tables.get(asset)
        days = pl.date_range(first, last, eager=True)
        covered = _covered(store, table, days, None) if table else 0
        if covered:
            found[asset] = rows / (covered * written / days.len())
    return found


def _covered(
    store: Store, table: TableSchema, days: pl.Series, symbols: Sequence[str] | None
) -> int:
    """Days times the instruments that were in the universe then and about whom somebody can be
    asked; of macro series, days."""
    if store.planner.why_off(table.asset):
        return 0
    if not table.about_instruments:
        return days.len()
    named = store.universe.providers(kind_of(table.asset))
    on = [name for name, providers in named.items() if not store.off.keys() >= set(providers)]
    chosen = map(store.universe.resolve, [n for n in on if symbols is None or n in symbols])
    return sum(
        days.filter(days.is_between(i.first_day, i.end_day or date.max, closed="left")).len()
        for i in chosen
    )


def _rows(
    store: Store,
    table: TableSchema,
    one: Work,
    work: Mapping[str, Work],
    averages: Mapping[str, float],
) -> tuple[int, str]:
    """How many rows the days will have, and what that rests on."""
    if one.days.is_empty():
        return 0, "sessions"
    if on_grid(table):
        window = one.days[0], one.days[-1] + timedelta(days=1)
        if table.intraday:
            return _bars(store, table, one, window), "sessions"
        expected = store.planner.finished(*window, one.symbols)
        return expected.filter(pl.col("day").is_in(one.days.implode())).height, "sessions"
    covered = _covered(store, table, one.days, one.symbols)
    if table.asset in averages:
        return round(averages[table.asset] * covered), "average"
    documents = [work[n.asset].rows for n in table.inputs if n.asset in work]
    if documents:
        return sum(documents), "assumed"
    return round(_ROWS_A_DAY.get(table.asset, 1.0) * covered), "assumed"


def _bars(store: Store, table: TableSchema, one: Work, window: tuple[date, date]) -> int:
    """The bars of the grid on those days, counted by calendar."""
    timeframe, total = str(table.timeframe), 0
    chosen = [i for i in store.universe.instruments if one.symbols is None or i.id in one.symbols]
    for calendar in {i.calendar for i in chosen}:
        grid = calendar_bars(calendar, timeframe, *window)
        days = grid["time"].dt.date()
        sessions = grid["session"].filter(days.is_in(one.days.implode()))
        for i in chosen:
            if i.calendar == calendar:
                own = sessions.is_between(i.first_day, i.end_day or date.max, closed="left")
                total += int(own.sum())
    return total


@dataclass(frozen=True)
class _Question:
    """Who is asked for what by every run, about whom."""

    source: Any
    kind: Kind
    instruments: tuple[Any, ...]


def _asking(
    store: Store, table: TableSchema, one: Work, sources: Mapping[str, Any], macro_source: Any
) -> list[_Question]:
    """What providers are asked to fill the table."""
    if table.derived or one.days.is_empty():
        return []
    if not table.about_instruments:
        return [_Question(macro_source, "macro", ())]
    kind = kind_of(table.asset)
    chosen: dict[str, list[Any]] = {}
    for name, providers in store.universe.providers(kind).items():
        if one.symbols is None or name in one.symbols:
            for provider in providers:
                chosen.setdefault(provider, []).append(store.universe.resolve(name))
    return [
        _Question(sources.get(provider), kind, tuple(instruments))
        for provider, instruments in chosen.items()
    ]


def _cost(
    questions: Sequence[_Question], windows: Iterable[tuple[date, date]]
) -> tuple[int, float]:
    """Requests that the providers say they will make (one per instrument where they do not say),
    and how long these take at their pace."""
    calls, seconds = 0, 0.0
    for window in windows:
        for question in questions:
            some = calls_of(question.source, question.kind, question.instruments, *window)
            calls += some
            seconds += some * seconds_per_call(question.source)
    return calls, seconds


def _windows(
    one: Work, spans: Sequence[tuple[date, date]], days_per_run: int
) -> dict[date, tuple[date, date]]:
    """First day of each run -> what it asks for, where it asks; history of before the first day
    asked for comes with the first."""
    found = {}
    for number, (first, end) in enumerate(spans):
        step = timedelta(days=days_per_run or max((end - first).days, 1))
        begin = first
        while begin < end:
            since = date.min if not number and begin == first else begin
            some = one.days.filter(one.days.is_between(since, begin + step, closed="left"))
            some = some.filter(some < end)
            if some.len():
                found[begin] = (some[0], some[-1] + timedelta(days=1))
            begin += step
    return found


def _days_per_run(
    work: Mapping[str, Work],
    asking: Mapping[str, Sequence[_Question]],
    spans: Sequence[tuple[date, date]],
) -> int:
    """The longest run that asks no longer than `ASKING_S`, or little longer than a run of a year
    would (`_LITTLE_MORE`)."""
    longest = max(((end - first).days for first, end in spans), default=0)

    def longest_asking(days: int) -> float:
        costs: dict[date, float] = {}
        for name, questions in asking.items():
            for run, window in _windows(work[name], spans, days).items():
                costs[run] = costs.get(run, 0.0) + _cost(questions, [window])[1]
        return max(costs.values(), default=0.0)

    if longest <= _SHORTEST_RUN or not longest_asking(0):
        return 0
    enough = max(ASKING_S, _LITTLE_MORE * longest_asking(_SHORTEST_RUN))
    runs = 1
    while (days := -(-longest // runs)) > _SHORTEST_RUN:
        if longest_asking(days) <= enough:
            return days if runs > 1 else 0
        runs += 1
    return _SHORTEST_RUN


def _widths(store: Store) -> dict[str, float]:
    """Table -> bytes per row, indexes included, where there are rows enough to tell."""
    sizes = usage.relations(store.database, store.tables, "data")
    enough = sizes.filter(pl.col("rows") >= _ENOUGH_ROWS)
    return dict(enough.select("table", pl.col("total") / pl.col("rows")).iter_rows())


def schema_width(table: TableSchema) -> float:
    """Bytes of a row with its share of indexes, from the types of its columns."""
    row = _ROW_OVERHEAD + sum(_TEXT_BYTES.get(c.name, 8) for c in table.columns)
    audit = 8 + _TEXT_BYTES["run_id"]
    key = 16 + sum(_TEXT_BYTES.get(name, 8) for name in table.key)
    return float(row + audit + 1.4 * key)  # a B-tree is some 70 % full


# -- how long -------------------------------------------------------------------------------------


def _seconds(asset: str, days: int, rows: int) -> float:
    """What a step takes by the built-in rates; nothing if it has nothing to do."""
    if not days:
        return 0.0
    return _STEP_S + _DAY_S * days + _ROW_S.get(asset, _ANY_ROW_S) * rows


def _scales(store: Store) -> tuple[dict[str, float], int]:
    """Asset -> how much longer than by the built-in rates its steps took lately; under the empty
    name that of all that is computed. And of how many runs that is known.

    The steps of a run follow each other in one process: each took from the write before it to its
    own. Of the first one nobody noted the start. Steps of a few days, as schedules make a hundred
    of every day, say nothing of what a day or a row costs.
    """
    reports = store.database.read_frame(
        f"""
        SELECT run_id, asset, days, rows, extract(epoch FROM at - before)::float8 AS seconds
        FROM (
            SELECT *, lag(at) OVER (PARTITION BY run_id ORDER BY at) AS before
            FROM (
                SELECT run_id, asset, token, max(days) AS days, max(at) AS at,
                    sum(input)::bigint AS rows
                FROM write_reports
                WHERE run_id IN (SELECT run_id FROM write_reports GROUP BY run_id
                                 HAVING max(days) >= {_ENOUGH_DAYS}
                                 ORDER BY max(id) DESC LIMIT {_RUNS_LOOKED_AT})
                GROUP BY run_id, asset, token
            ) steps
        ) ordered
        WHERE before IS NOT NULL AND days >= {_ENOUGH_DAYS}
        """
    )
    if reports.is_empty():
        return {}, 0
    assets, days, rows = (reports[name].to_list() for name in ("asset", "days", "rows"))
    expected = np.array([_seconds(*step) for step in zip(assets, days, rows, strict=True)])
    ratio = reports.with_columns(ratio=pl.col("seconds") / pl.Series(expected))
    # The median: a step may have waited for another run, or for a person to close a laptop.
    by_asset = ratio.group_by("asset").agg(pl.col("ratio").median())
    computed = [name for name, table in store.tables.items() if table.derived]
    overall = ratio.filter(pl.col("asset").is_in(computed))["ratio"].median()
    found: dict[str, float] = dict(by_asset.iter_rows())
    if isinstance(overall, float):
        found[""] = overall
    return found, reports["run_id"].n_unique()
