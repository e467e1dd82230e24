"""Whether anything is behind, when nothing runs: Dagster's freshness policies, and a sensor on top.

A policy looks at materialisations: it notices that nothing ran at all, and is content when an old
day is backfilled. The checks (`assets/recency.py`) look at the data, but only when they are run.
So the sensor evaluates them every now and then, and tells what has changed.
"""

import json
from collections.abc import Mapping
from datetime import date, datetime, timedelta

import dagster as dg
import redis

from feature_pipeline.assets import recency
from feature_pipeline.assets.checks import FRESHNESS, metadata, severity
from feature_pipeline.assets.verdicts import Verdict
from feature_pipeline.automation.publishing import CHECK, ONLINE, compared
from feature_pipeline.automation.sensors import sensor
from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.features.catalogue import ALL_TABLES
from feature_pipeline.features.declarations import MACRO, SCORES
from feature_pipeline.schemas import GRID_START
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.universe import Universe, calendar_sessions

EVERY = timedelta(minutes=15)
"""How often the sensor looks."""

AGAIN = timedelta(days=1)
"""What has not changed is told again after that."""

DOCUMENTS = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(hours=6), warn_window=timedelta(hours=2)
)
"""Of news, posts and their scores, which are asked for every quarter of an hour."""

RELEASES = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=3))
"""Of macro series: from Friday evening to Monday morning nothing is released."""

SLACK = timedelta(hours=12)
"""Added to a closure: for retries, and for somebody to look."""

_LATELY = timedelta(days=2 * 366)


def policies(universe: Universe, today: date) -> Mapping[str, dg.FreshnessPolicy]:
    """Asset -> how long it may go without a materialisation; none once every membership has ended.

    What follows from bars has to be materialised after each close, and so within the longest
    closure of the calendar that opens most often. A cron policy would not know of holidays.

    Raises:
        UniverseError: a calendar cannot be built.
    """
    live = [i for i in universe.instruments if i.end_day is None or i.end_day > today]
    if not live:
        return {}
    closure = min(_longest_closure(calendar, today) for calendar in {i.calendar for i in live})
    sessions = dg.FreshnessPolicy.time_window(fail_window=closure + SLACK)
    special = {"news": DOCUMENTS, "reddit": DOCUMENTS, SCORES: DOCUMENTS, MACRO: RELEASES}
    return {asset: special.get(asset, sessions) for asset in (*ALL_TABLES, ONLINE)}


def _longest_closure(calendar: str, today: date) -> timedelta:
    """The longest time from one close to the next, of the last two years and the year to come."""
    sessions = calendar_sessions(calendar)
    closes = sessions["close"].filter(
        sessions["time"].dt.date() >= max(today - _LATELY, GRID_START)
    )
    longest = closes.diff().max()
    assert isinstance(longest, timedelta)
    return longest


@sensor(
    name="watch_freshness",
    minimum_interval_seconds=int(EVERY.total_seconds()),
    required_resource_keys={"storage", "redis"},
)
def watch_freshness(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Evaluate the freshness of every table, and whether Redis says what the database says.

    Tells Dagster what has changed since it last did, and everything once a day.
    """
    storage: StorageIOManager = context.resources.storage
    client: redis.Redis = context.resources.redis
    store = storage.store
    try:
        verdicts = {
            f"{asset}:{FRESHNESS}": recency.freshness(store, asset) for asset in store.tables
        }
        verdicts[f"{ONLINE}:{CHECK}"] = compared(client, store)
    except FeaturePipelineError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    now = store.clock()
    told: dict[str, list[str]] = json.loads(context.cursor) if context.cursor else {}
    news = {
        name: verdict for name, verdict in verdicts.items() if _new(verdict, told.get(name), now)
    }
    if not news:
        return dg.SkipReason(f"nothing has changed: {_summary(verdicts)}")
    told |= {name: [_gist(verdict), now.isoformat()] for name, verdict in news.items()}
    return dg.SensorResult(
        cursor=json.dumps(told),
        asset_events=[_evaluation(name, verdict) for name, verdict in news.items()],
    )


def _new(verdict: Verdict, told: list[str] | None, now: datetime) -> bool:
    """Whether something else is to be told than was, or it was told long ago."""
    return (
        told is None or told[0] != _gist(verdict) or now - datetime.fromisoformat(told[1]) >= AGAIN
    )


def _gist(verdict: Verdict) -> str:
    """What makes a verdict another one: that all is well is always the same."""
    return "" if verdict.passed else verdict.says


def _summary(verdicts: Mapping[str, Verdict]) -> str:
    failed = [name for name, verdict in verdicts.items() if not verdict.passed]
    return f"{', '.join(failed)} did not pass" if failed else f"all {len(verdicts)} checks pass"


def _evaluation(name: str, verdict: Verdict) -> dg.AssetCheckEvaluation:
    asset, _, check = name.partition(":")
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(asset),
        check_name=check,
        passed=verdict.passed,
        severity=severity(verdict),
        description=verdict.says,
        metadata=metadata(verdict),
    )
