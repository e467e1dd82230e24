"""The repair sensor: compares ledger, materialisations and Redis, and mends without a person.

What is amiss in the tables is the ledger's to say (`storage/upkeep.py`), what is amiss in Redis
`online/audit.py`'s; here that becomes runs, reports, publications and, where nothing helps, an
alert. Each tick says in words what it found.

**Which days.** Those between an asset's first and last written day, in the ledger or by Dagster's
materialisations (a database restored from a backup has lost what Dagster remembers). Days after the
last one are the schedules': once they bring a newer day, what is missing before it is a hole, and
mended here. A gap of more than `MAX_GAP` was never asked for and is no hole. Of sources, today and
yesterday are left to the schedules as well; what is derived for these days and is merely stale is
brought up to date once an hour, however often documents come in.

**In which order.** Holes of sources first, then, in one run over the days concerned, everything
derived from them that is not right; days that are right are not computed. A run writes exactly its
days (`REPAIR_TAG`): no history comes along. What a blocking check has found wrong stays held back:
nothing is computed from it before the check passes. A span stays held where the next day's run does
not reach back to it: the check alone is run over it again, as often as anything is tried here.

**Whose code.** Days that other code has computed are stale where the database was last migrated for
this code; otherwise two checkouts on one database would rewrite each other's days for ever.

**How often.** The days of an asset and year are tried `MAX_ATTEMPTS` times, with a longer pause
each time; first in one run with all others, then year by year, so that one bad year does not keep
the others, and scores apart from what is computed around them (a sentiment model that is not there
costs sentiment alone). After that a person is told, once. They are tried again when their inputs or
the code have changed, and every `LONG_PAUSE`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, timedelta
from itertools import groupby
from typing import Any

import dagster as dg
import polars as pl
import redis
from dagster._core.events import (
    DagsterEvent,
    DagsterEventBatchMetadata,
    StepMaterializationData,
    generate_event_batch_id,
)
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from dagster._core.instance.utils import RUNLESS_JOB_NAME, RUNLESS_RUN_ID
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)

from feature_pipeline.automation.alerts import Alert, AlertError, Herald
from feature_pipeline.automation.evaluations import days_within, span_of
from feature_pipeline.automation.memory import LONG_PAUSE, MAX_ATTEMPTS, Attempts, Memory
from feature_pipeline.automation.publishing import snapshot
from feature_pipeline.automation.sensors import sensor
from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.features.catalogue import definitions
from feature_pipeline.online.audit import outdated
from feature_pipeline.online.rebuild import publish_snapshot, rebuild_needed
from feature_pipeline.settings import Settings
from feature_pipeline.stack.dead_runs import fail_dead_runs
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.deployed import registered
from feature_pipeline.storage.io_manager import REPAIR_TAG, StorageIOManager
from feature_pipeline.storage.store import Store
from feature_pipeline.storage.upkeep import MAX_GAP, Stretch, Upkeep, stretches
from feature_pipeline.timeframes import DAILY, of, shortest_run

__all__ = ["LONG_PAUSE", "MAX_ATTEMPTS", "MAX_GAP", "repair_sensor"]

INTERVAL_S = 30

LIVE_PAUSE = timedelta(hours=1)
"""Between two runs for days that are still being collected and whose derived rows are stale."""

MAX_RUNS = 8
"""Runs for holes of sources that one tick asks for."""
MAX_REPORTED = 1000
"""Materialisations that one tick reports: about a second."""

_UNDER_WAY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_DAY = timedelta(days=1)
_LIVE, _ONLINE = "live", "online"
_COMPUTED_AS = ["name", "version", "source_table", "computation", "dependencies", "lookback_bars"]
"""What the registry says of how a feature is computed."""
_LONGEST_TAG = 300


def repair_sensor(job: str, versions: Mapping[str, str], settings: Settings) -> dg.SensorDefinition:
    """The sensor.

    Args:
        job: name of the job that has every table.
        versions: asset -> code version, as the assets have them.
        settings: how many days a run may have, and who is told.
    """
    herald = Herald(settings)

    @sensor(
        name="repair",
        job_name=job,
        minimum_interval_seconds=INTERVAL_S,
        required_resource_keys={"storage", "redis"},
    )
    def repair(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """Mend what is stale, missing, unreported or not published, and report what it cannot.

        Starts runs for kept days that are stale or missing, one range at a time; reports
        materialisations that the ledger has and Dagster does not; publishes again what Redis lacks
        while the rest is there. Three attempts, then an alert.
        """
        storage: StorageIOManager = context.resources.storage
        try:
            return _Tick(
                context, storage.store, context.resources.redis, versions, herald,
                settings.max_partitions_per_run, Memory.read(context.cursor),
            ).result()  # fmt: skip
        except FeaturePipelineError as error:
            # Tried again at the next tick: the cursor stays where it was.
            raise dg.Failure(str(error), allow_retries=False) from error

    return repair


@dataclass(frozen=True, eq=False)
class _Held:
    """The days of an asset that one of its checks holds back."""

    asset: str
    check: str
    days: pl.Series
    attempts: Attempts


@dataclass(frozen=True, eq=False)
class _Unit:
    """The days of one asset and year that are not right: what is tried and counted together."""

    asset: str
    year: str
    days: pl.Series
    attempts: Attempts


# -- one tick -------------------------------------------------------------------------------------


@dataclass
class _Tick:
    context: dg.SensorEvaluationContext
    store: Store
    client: redis.Redis
    versions: Mapping[str, str]
    herald: Herald
    days_per_run: Mapping[str, int]
    memory: Memory
    words: list[str] = field(default_factory=list)
    trouble: list[tuple[Attempts, Alert]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now = self.store.clock().astimezone(UTC)
        self.instance = self.context.instance
        dead = fail_dead_runs(self.instance)
        if dead:
            self.words.append(f"{len(dead)} run(s) whose process was killed are marked as failed")
        self.runs = list(self.instance.get_runs(dg.RunsFilter(statuses=_UNDER_WAY)))
        self.held = self.memory.look_at_checks(self.instance)
        foreign = not _migrated_for_this_code(self.store.database)
        if foreign:
            self.words.append(
                "this code's catalogue was never migrated here: run feature-pipeline migrate"
            )
        self.upkeep = Upkeep(self.store, self.versions, self._materialised(), foreign)

    def result(self) -> dg.SensorResult:
        """Look at everything, do what is to be done, say so."""
        online = self._redis()
        self._report()
        requests = self._runs()
        self._tell()
        words = "; ".join(self.words) or "ledger, materialisations and Redis agree"
        if requests:
            self.context.log.info(words)
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else words,
            asset_events=online,
            cursor=self.memory.write(),
        )

    def _tell(self) -> None:
        """Tell a person, once, of what does not mend."""
        self.words += [alert.error for _, alert in self.trouble]
        news = [(attempts, alert) for attempts, alert in self.trouble if not attempts.told]
        if not news:
            return
        try:
            self.herald.send(self.client, *(alert for _, alert in news))
        except AlertError as error:  # the next tick tries again; the tables do not wait
            self.words.append(str(error))
            return
        for attempts, _ in news:
            attempts.told = True

    # -- Dagster's materialisations -----------------------------------------------------------

    def _materialised(self, assets: Sequence[str] | None = None) -> dict[str, pl.Series]:
        found = {}
        for asset in assets or self.store.tables:
            keys = self.instance.get_materialized_partitions(dg.AssetKey(asset))
            found[asset] = pl.Series("day", sorted(keys), dtype=pl.String).str.to_date()
        return found

    def _report(self) -> None:
        """Report what was written by runs that did not live to say so."""
        silent = {asset: self.upkeep.unreported(asset) for asset in self.store.tables}
        silent = {asset: days for asset, days in silent.items() if days.height}
        if not silent:
            return
        run_ids = pl.concat([days["run_id"] for days in silent.values()]).unique().to_list()
        writing = [
            run.run_id
            for run in self.instance.get_runs(dg.RunsFilter(run_ids=run_ids))
            if not run.is_finished
        ]
        known = self._materialised(list(silent))  # a run may have come to its end meanwhile
        left, told = MAX_REPORTED, []
        for asset, days in silent.items():
            mute = days.filter(
                ~pl.col("run_id").is_in(writing), ~pl.col("day").is_in(known[asset].implode())
            ).head(left)
            if mute.height:
                left -= mute.height
                _materialised_without_a_run(self.instance, asset, mute)
                told.append(_said(asset, mute["day"]))
        if told:
            self.words.append(
                f"reported as materialised what the ledger has: {', '.join(told)}"
                + (f" (at most {MAX_REPORTED} at a time)" if left == 0 else "")
            )

    # -- Redis --------------------------------------------------------------------------------

    def _redis(self) -> list[dg.AssetMaterialization]:
        """Publish what is missing or older than the database, while the rest is there."""
        try:
            if rebuild_needed(self.client):
                self.words.append("Redis was lost: publish_online fills it")
                self.memory.keep(_ONLINE)
                return []
            newest = snapshot(self.store)
            stale = outdated(self.client, newest)
            if not stale:
                return []
            # Until all is there once: where Redis evicts, other keys are missing each time.
            attempts = self.memory.of(_ONLINE, "")
            shown = f"{len(stale)} key(s) missing or older than the database: {_some(stale)}"
            if attempts.exhausted:
                error = f"Redis does not keep what is published: {shown}; see its maxmemory"
                self.trouble.append((attempts, self._alert(error)))
            if not attempts.ready(self.now):
                return []
            report = publish_snapshot(self.client, newest)
            attempts.made(self.now)
            self.words.append(f"published {shown}")
        except FeaturePipelineError as error:
            # The tables are mended without Redis; that it is not there is publish_online's to say.
            self.words.append(str(error))
            self.memory.keep(_ONLINE)
            return []
        return [
            dg.AssetMaterialization(
                "online_state_vectors",
                metadata={"repaired": len(stale), "written": report.written, "keys": _some(stale)},
            )
        ]

    # -- tables -------------------------------------------------------------------------------

    def _runs(self) -> list[dg.RunRequest]:
        """The runs that this tick asks for."""
        holes, due = self._units()
        held = self._held_back()
        if not holes and not due and not held:
            return []
        self.words += [_said(u.asset, u.days, "missing") for u in _by_asset(holes)]
        self.words += [_said(u.asset, u.days, "stale or missing") for u in _by_asset(due)]
        busy = self._busy()
        if busy:
            self.words.append(busy)
            return []
        self._give_up(holes + due)  # while nothing of ours is at it
        return self._checks(held) or self._sources(holes) or self._derived(holes, due)

    def _held_back(self) -> list[_Held]:
        """What blocking checks hold back; that their own run failed is the first attempt."""
        found = []
        for name, spans in self.memory.held.items():
            asset, _, check = name.rpartition(" ")
            attempts = self.memory.of(f"held {name}", "")
            if attempts.count == 0:
                attempts.made(self.now)
            found.append(_Held(asset, check, days_within(spans), attempts))
        return found

    def _checks(self, held: Sequence[_Held]) -> list[dg.RunRequest]:
        """Runs of the checks alone over what they hold back; a person is told where it stays."""
        requests: list[dg.RunRequest] = []
        for one in held:
            spans = stretches(one.days, apart=2, max_days=self._days_per_run([one.asset]))
            whole = f"{one.days[0]}..{one.days[-1]}"
            if any(self._writing([one.asset], start, end) for start, end in spans):
                continue
            if one.attempts.exhausted:
                error = (
                    f"{_said(one.asset, one.days)} stays held back by the check {one.check}, and "
                    "nothing is computed from it: run that check over these days once they are "
                    "right"
                )
                self.trouble.append((one.attempts, self._alert(error, one.asset, whole)))
            if one.attempts.ready(self.now) and len(requests) + len(spans) <= MAX_RUNS:
                one.attempts.made(self.now)
                requests += [self._check(one, start, end - _DAY) for start, end in spans]
        return requests

    def _check(self, held: _Held, first: date, last: date) -> dg.RunRequest:
        """A run of one check, which writes nothing."""
        reason = f"{held.asset} is held back by its check {held.check}"
        self.words.append(f"{reason}, which looks again at {first} to {last}")
        return dg.RunRequest(
            run_key=f"repair {held.asset} {held.check} {first} {last} {self.now.isoformat()}",
            asset_selection=[],
            asset_check_keys=[dg.AssetCheckKey(dg.AssetKey(held.asset), held.check)],
            tags={
                ASSET_PARTITION_RANGE_START_TAG: first.isoformat(),
                ASSET_PARTITION_RANGE_END_TAG: last.isoformat(),
                REPAIR_TAG: reason[:_LONGEST_TAG],
            },
        )

    def _units(self) -> tuple[list[_Unit], list[_Unit]]:
        """What is not right in sources and in derived tables, by asset and year."""
        found: tuple[list[_Unit], list[_Unit]] = ([], [])
        for table in self.store.tables.values():
            asset = table.asset
            days = self.upkeep.due(asset) if table.derived else self.upkeep.holes(asset)
            if days.is_empty():
                continue
            live = self.upkeep.live(days) if table.derived else days.clear()
            parts = days.filter(~days.is_in(live.implode())).to_frame("day").group_by(
                pl.col("day").dt.year().cast(pl.String).alias("year"), maintain_order=True
            )  # fmt: skip
            named = [(str(year), part["day"]) for (year,), part in parts]
            named += [(_LIVE, live)] if live.len() else []
            for year, some in named:
                attempts = self.memory.of(f"{asset} {year}", self._fingerprint(asset, year, some))
                found[table.derived].append(_Unit(asset, year, some, attempts))
        return found

    def _fingerprint(self, asset: str, year: str, days: pl.Series) -> str:
        if year == _LIVE:  # documents come in all day: it says only what is not there at all
            days = days.filter(~days.is_in(self.upkeep.ledger.days(asset).implode()))
            return "stale" if days.is_empty() else _digest(days.cast(pl.String))
        return self.upkeep.fingerprint(asset, days)

    def _ready(self, unit: _Unit) -> bool:
        if unit.attempts.fingerprint == "stale":
            return self.now.timestamp() >= unit.attempts.at + LIVE_PAUSE.total_seconds()
        return unit.attempts.ready(self.now)

    def _give_up(self, units: Sequence[_Unit]) -> None:
        """What was tried often enough goes to a person."""
        for unit in units:
            if not unit.attempts.exhausted or unit.attempts.fingerprint == "stale":
                continue
            if not self._writing([unit.asset], unit.days[0], unit.days[-1] + _DAY):
                error = (
                    f"{_said(unit.asset, unit.days)} cannot be mended: {MAX_ATTEMPTS} attempts "
                    f"left it as it was; see the runs tagged {REPAIR_TAG}"
                )
                self._trouble(unit, error)

    def _trouble(self, unit: _Unit, error: str) -> None:
        days = f"{unit.days[0]}..{unit.days[-1]}"
        self.trouble.append((unit.attempts, self._alert(error, unit.asset, days)))

    def _alert(self, error: str, asset: str = "online_state_vectors", days: str = "") -> Alert:
        return Alert("repair", error, self.now, assets=(asset,), partitions=days)

    def _busy(self) -> str | None:
        """Why no run is to be started now, or None."""
        ours = [run for run in self.runs if REPAIR_TAG in run.tags]
        if ours:
            return f"the repair run {ours[0].run_id} is {ours[0].status.value.lower()}"
        backfills = self.instance.get_backfills(
            filters=BulkActionsFilter(
                statuses=[BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING]
            ),
            limit=1,
        )
        return f"the backfill {backfills[0].backfill_id} is under way" if backfills else None

    def _sources(self, holes: Sequence[_Unit]) -> list[dg.RunRequest]:
        """Runs that ask the sources for what they have not been asked for, oldest days first."""
        wanted: dict[tuple[date, date], list[str]] = {}
        ready = [unit for unit in holes if self._ready(unit)]
        for asset in dict.fromkeys(unit.asset for unit in ready):
            days = pl.concat([unit.days for unit in ready if unit.asset == asset]).sort()
            for span in stretches(days, max_days=self._days_per_run([asset])):
                wanted.setdefault(span, []).append(asset)
        requests: list[dg.RunRequest] = []
        for (start, end), assets in sorted(wanted.items()):
            if len(requests) < MAX_RUNS and not self._being_written(assets, start, end):
                run = Stretch(tuple(assets), start, end)
                requests.append(self._request(run, [u for u in ready if _within(run, u)]))
        return requests

    def _derived(self, holes: Sequence[_Unit], due: Sequence[_Unit]) -> list[dg.RunRequest]:
        """The one run that computes the oldest days that are not right, and what follows."""
        self._say_unreachable(holes, due)
        self.words += [
            f"{' to '.join(dict.fromkeys(span))} of {name.partition(' ')[0]} is held back by its "
            f"check {name.partition(' ')[2]}"
            for name, spans in self.memory.held.items()
            for span in spans
        ]
        ready = sorted((unit for unit in due if self._ready(unit)), key=lambda u: u.year)
        stubborn = [u for u in due if u.asset in self.upkeep.dispensable and u.attempts.count]
        fresh = [unit for unit in ready if unit.attempts.count == 0 or unit.year == _LIVE]
        again = [unit for unit in ready if unit not in fresh]
        by_year = [list(units) for _, units in groupby(again, lambda u: u.year)]
        parts = [
            part
            for units in (fresh, *by_year)
            for alike in _by_timeframe(units)
            for part in _without(alike, stubborn)
        ]
        for units in filter(None, parts):
            chosen = _days_of(units)
            left = _days_of([unit for unit in (*holes, *due) if unit not in units])
            stretch = self.upkeep.stretch(chosen, left, self.held, self._days_per_run(chosen))
            if stretch is None:
                continue
            if self._being_written(stretch.assets, stretch.start, stretch.end):
                return []
            mended = [u for u in units if _within(stretch, u)]
            return [self._request(stretch, mended)]
        return []

    def _days_per_run(self, assets: Iterable[str]) -> int:
        return shortest_run(assets, self.days_per_run)

    def _say_unreachable(self, holes: Sequence[_Unit], due: Sequence[_Unit]) -> None:
        """Days that need some that nobody keeps go to a person: no run of ours brings those."""
        coming = {**_days_of(holes), **_days_of(due)}
        for asset, days in self.upkeep.blocked(coming, {}, {}).items():
            if days.is_empty():
                continue
            root = self.upkeep.unreachable(asset, days[0], coming)
            for unit in due if root else ():
                if unit.asset == asset and unit.days.is_in(days.implode()).any():
                    self._trouble(
                        unit,
                        f"{_said(asset, unit.days)} cannot be computed: they read {root}; "
                        "materialise that first",
                    )

    def _being_written(self, assets: Sequence[str], start: date, end: date) -> bool:
        """Whether somebody else is at these days; says so."""
        writing = self._writing(assets, start, end)
        self.words += [f"waiting for {writing}"] if writing else []
        return writing is not None

    def _writing(self, assets: Sequence[str], start: date, end: date) -> str | None:
        """Who else is at these days, or None."""
        for run in self.runs:
            first, last = span_of(run) or ("", "")
            if first < end.isoformat() and last >= start.isoformat():
                return f"the run {run.run_id} of {first} to {last}"
        days = pl.date_range(start, end, closed="left", eager=True)
        for asset in assets:
            if self.store.ledger.in_progress(asset, days).len():
                return f"somebody who is writing {asset}"
        return None

    def _request(self, run: Stretch, units: Sequence[_Unit]) -> dg.RunRequest:
        """A run, and an attempt counted for what it is to mend."""
        assets, start, end = run.assets, run.start, run.end
        for unit in units:
            unit.attempts.made(self.now)
        reason = ", ".join(_said(unit.asset, unit.days) for unit in _by_asset(units))
        last = (end - _DAY).isoformat()
        self.words.append(f"a run mends {', '.join(assets)} from {start} to {last}")
        # A key never runs twice: each attempt has its own.
        key = f"repair {start} {last} {_digest([*assets, reason])} {self.now.isoformat()}"
        return dg.RunRequest(
            run_key=key,
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            tags={
                ASSET_PARTITION_RANGE_START_TAG: start.isoformat(),
                ASSET_PARTITION_RANGE_END_TAG: last,
                REPAIR_TAG: reason[:_LONGEST_TAG],
            },
        )


def _migrated_for_this_code(database: Database) -> bool:
    """Whether the last `migrate` was by code that computes the same; an empty registry is none."""
    known = registered(database).select(_COMPUTED_AS).rows()
    return not known or _as_set(known) == _as_set(definitions().select(_COMPUTED_AS).rows())


def _as_set(rows: Sequence[tuple[Any, ...]]) -> set[str]:
    return {repr(row) for row in rows}


def _materialised_without_a_run(
    instance: dg.DagsterInstance, asset: str, days: pl.DataFrame
) -> None:
    """`DagsterInstance.report_runless_asset_event` for many days, in one batch where the process
    has batches: a hundred times faster."""
    batch, last = generate_event_batch_id(), days.height - 1
    for n, (day, rows) in enumerate(days.select("day", "rows").iter_rows()):
        materialization = dg.AssetMaterialization(
            asset,
            partition=day.isoformat(),
            description="Reported by the repair sensor: its run wrote it and was killed.",
            metadata={"dagster/partition_row_count": rows},
        )
        instance.report_dagster_event(
            DagsterEvent(
                event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION.value,
                event_specific_data=StepMaterializationData(materialization),
                job_name=RUNLESS_JOB_NAME,
            ),
            run_id=RUNLESS_RUN_ID,
            batch_metadata=DagsterEventBatchMetadata(batch, is_end=n == last),
        )


# -- days and words -------------------------------------------------------------------------------


def _days_of(units: Sequence[_Unit]) -> dict[str, pl.Series]:
    """Asset -> all days of its units, sorted."""
    found: dict[str, pl.Series] = {}
    for unit in units:
        held = found.get(unit.asset, unit.days.clear())
        found[unit.asset] = pl.concat([held, unit.days]).unique().sort()
    return found


def _without(units: Sequence[_Unit], stubborn: Sequence[_Unit]) -> list[list[_Unit]]:
    """The units without those that have failed and that others can do without, and those alone: in
    one run, their failing again would take the others with it."""
    others = [unit for unit in units if unit not in stubborn]
    return [others, [unit for unit in units if unit in stubborn]]


def _by_timeframe(units: Sequence[_Unit]) -> list[list[_Unit]]:
    """The units by timeframe: a run of years of daily bars is none of years of minutes."""
    found: dict[str, list[_Unit]] = {}
    for unit in units:
        found.setdefault(of(unit.asset) or DAILY, []).append(unit)
    return list(found.values())


def _within(run: Stretch, unit: _Unit) -> bool:
    """Whether a run is to mend some of the unit's days."""
    days = unit.days.is_between(run.start, run.end, closed="left")
    return unit.asset in run.assets and bool(days.any())


def _by_asset(units: Sequence[_Unit]) -> list[_Unit]:
    """The units of an asset as one, for people."""
    days = _days_of(units)
    return [_Unit(asset, "", some, Attempts("")) for asset, some in days.items()]


def _said(asset: str, days: pl.Series, what: str = "") -> str:
    """`ohlcv_1d: 3 days missing, 2012-03-01 to 2012-03-05`, as people read it."""
    count = f"{days.len()} day{'s' * (days.len() != 1)}" + (f" {what}" if what else "")
    span = f"{days[0]}" if days.len() == 1 else f"{days[0]} to {days[-1]}"
    return f"{asset}: {count}, {span}"


def _some(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _digest(parts: Sequence[Any] | pl.Series) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]
