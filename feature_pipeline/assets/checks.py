"""The checks of every table, as Dagster runs them: one step per asset, after it was written.

Which checks an asset has, which of them hold back what is downstream, and which days are looked at.
What is judged, and in which words, stands in `judgements.py` and `recency.py`.

The days are those of the run. Executed alone and without a partition, the checks look at the newest
`NEWEST_DAYS` days that the asset has.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache, cached_property

import dagster as dg
import polars as pl
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from feature_pipeline.assets import completeness, judgements, recency, verdicts
from feature_pipeline.assets.verdicts import Verdict
from feature_pipeline.features.catalogue import ALL_TABLES
from feature_pipeline.features.declarations import ACTIONS, BARS
from feature_pipeline.storage.audit import Audit
from feature_pipeline.storage.io_manager import StorageIOManager, tagged_symbols
from feature_pipeline.storage.planning import on_grid
from feature_pipeline.storage.store import Store
from feature_pipeline.timeframes import stem

NEWEST_DAYS = 30
"""Days that are looked at when no run says which."""

FRESHNESS = "freshness"


@dataclass(frozen=True)
class Asked:
    """What a check is asked about.

    Args:
        store: where.
        asset: whose table.
        days: [start, end), of the run; None - the newest.
        run_id: of the run, where it also wrote the table.
        symbols: whom the run was restricted to.
    """

    store: Store
    asset: str
    days: tuple[date, date] | None = None
    run_id: str | None = None
    symbols: tuple[str, ...] | None = None

    @cached_property
    def audit(self) -> Audit:
        """Questions about those days."""
        if self.days is not None:
            return verdicts.audit(self.store, self.asset, *self.days)
        today = self.store.clock().date()
        first, newest = verdicts.audit(self.store, self.asset, today, today).written()
        end = (newest or today) + timedelta(days=1)
        start = end - timedelta(days=NEWEST_DAYS)
        return verdicts.audit(self.store, self.asset, max(start, first or start), end)


@dataclass(frozen=True)
class Check:
    """One check of a table; its description is the first paragraph of what judges.

    Args:
        judge: the function of `judgements` or `recency`, whose name it bears.
        ask: calls it.
        blocking: whether a fault holds back what is downstream of the asset in the same run.
    """

    judge: Callable[..., Verdict]
    ask: Callable[[Asked], Verdict]
    blocking: bool = False

    @property
    def name(self) -> str:
        """As the UI shows it."""
        return self.judge.__name__

    @property
    def description(self) -> str:
        """What it holds to be right."""
        return description(self.judge)


_ROWS = Check(completeness.row_count, lambda a: completeness.row_count(a.store, a.audit, a.symbols))
_COLLECTED = Check(completeness.collected, lambda a: completeness.collected(a.store, a.audit))
_NULLS = Check(completeness.nan_share, lambda a: completeness.nan_share(a.store, a.audit))
_GAPS = Check(judgements.price_gaps, lambda a: judgements.price_gaps(a.audit))
_RESTATED = Check(judgements.restated, lambda a: judgements.restated(a.audit, a.run_id))
_FUTURE = Check(
    judgements.no_future, lambda a: judgements.no_future(a.store, a.audit), blocking=True
)
_TWICE = Check(judgements.no_duplicates, lambda a: judgements.no_duplicates(a.audit), blocking=True)
_CONSERVED = Check(
    judgements.conservation, lambda a: judgements.conservation(a.audit, a.run_id), blocking=True
)
_RANGE = Check(judgements.in_range, lambda a: judgements.in_range(a.audit), blocking=True)
_SATURATED = Check(judgements.saturation, lambda a: judgements.saturation(a.audit))
_FRESH = Check(recency.freshness, lambda a: recency.freshness(a.store, a.asset))


def description(judge: Callable[..., Verdict]) -> str:
    """What the docstring of a judgement says, its arguments apart."""
    said = (inspect.getdoc(judge) or "").split("\n\nArgs:")[0]
    return " ".join(said.split())


def checks_of(asset: str) -> tuple[Check, ...]:
    """The checks that an asset has, those that hold back what is downstream first."""
    table = ALL_TABLES[asset]
    grid = on_grid(table)
    # Scores and macro releases have no key but their identity: the database keeps them apart.
    daily = grid and not table.intraday
    vectors = stem(asset) == "state_vectors"
    twice = (_TWICE,) if daily or table.table in (ACTIONS, "documents") else ()
    return (
        _CONSERVED,
        _FUTURE,
        *twice,
        *((_RANGE,) if vectors else ()),
        *((_ROWS, _NULLS) if grid else (_COLLECTED,)),
        *((_GAPS,) if asset == BARS else ()),
        *((_RESTATED,) if table.table.startswith("ohlcv_") else ()),
        *((_SATURATED,) if vectors else ()),
        _FRESH,
    )


def _table_checks(asset: str) -> dg.AssetChecksDefinition:
    """One step with all checks of an asset."""
    checks = {check.name: check for check in checks_of(asset)}

    @dg.multi_asset_check(
        name=f"{asset}_checks",
        description=f"What {asset} holds now, against the calendars, the ledger and itself.",
        specs=[
            dg.AssetCheckSpec(
                name, asset=asset, description=check.description, blocking=check.blocking
            )
            for name, check in checks.items()
        ],
        can_subset=True,
        required_resource_keys={"storage"},
        # A database that went away comes back; a fault is no exception and is not tried again.
        retry_policy=dg.RetryPolicy(max_retries=2, delay=1, backoff=dg.Backoff.EXPONENTIAL),
    )
    def run(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        storage: StorageIOManager = context.resources.storage
        asked = _asked(context, storage.store, asset)
        wanted = {key.name for key in context.selected_asset_check_keys}
        for name, check in checks.items():
            if name in wanted:
                yield result(check.name, asset, check.ask(asked))

    return run


@cache
def _made(asset: str) -> dg.AssetChecksDefinition:
    return _table_checks(asset)


def table_checks(assets: Iterable[str]) -> list[dg.AssetChecksDefinition]:
    """The checks of some tables."""
    return [_made(asset) for asset in assets]


def _asked(context: dg.AssetCheckExecutionContext, store: Store, asset: str) -> Asked:
    """The days and symbols of the run, as its tags say."""
    tags = context.run.tags
    day = tags.get(PARTITION_NAME_TAG)
    first = tags.get(ASSET_PARTITION_RANGE_START_TAG, day)
    last = tags.get(ASSET_PARTITION_RANGE_END_TAG, day)
    written = dg.AssetKey(asset) in (context.job_def.asset_layer.selected_asset_keys)
    return Asked(
        store,
        asset,
        None
        if first is None or last is None
        else (date.fromisoformat(first), date.fromisoformat(last) + timedelta(days=1)),
        context.run.run_id if written else None,
        tagged_symbols(tags),
    )


def result(name: str, asset: str, verdict: Verdict) -> dg.AssetCheckResult:
    """A verdict, as the UI shows it: in words first, then numbers, then rows in a table."""
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=asset,
        passed=verdict.passed,
        severity=severity(verdict),
        description=verdict.says,
        metadata=metadata(verdict),
    )


def severity(verdict: Verdict) -> dg.AssetCheckSeverity:
    """How bad it is where it did not pass."""
    return dg.AssetCheckSeverity.ERROR if verdict.error else dg.AssetCheckSeverity.WARN


def metadata(verdict: Verdict) -> dict[str, dg.MetadataValue]:
    """The numbers, and the rows as a table of bounded size."""
    said: dict[str, dg.MetadataValue] = {
        name: dg.MetadataValue.float(value)
        if isinstance(value, float)
        else dg.MetadataValue.int(value)
        for name, value in verdict.numbers.items()
    }
    if verdict.shown.height:
        said["shown"] = dg.MetadataValue.md(_markdown(verdict.shown))
    return said


def _markdown(frame: pl.DataFrame) -> str:
    def cell(value: object) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        return " ".join(text.replace("|", "\\|").split())

    lines = [" | ".join(frame.columns), " | ".join("---" for _ in frame.columns)]
    return "\n".join([*lines, *(" | ".join(map(cell, row)) for row in frame.iter_rows())])
