"""Backfills as the UI starts, cuts, cancels and resumes them: the same mutations, sent to the real
webserver, carried out by the real daemon and code server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.stack import Stack
from feature_pipeline_tests.assets.support import assert_same_tables
from feature_pipeline_tests.automation.places import END, START, Place
from feature_pipeline_tests.graphql import GraphQL
from feature_pipeline_tests.stack.helpers import hurry, until

DAYS_PER_RUN = 4
LATER = END + timedelta(days=DAYS_PER_RUN)
_SECONDS = 240.0


def ranges(found: dict[str, Any]) -> list[tuple[str, str]]:
    """First and last day of its runs."""
    tags = [{tag["key"]: tag["value"] for tag in run["tags"]} for run in found["runs"]]
    return sorted(
        (
            run["dagster/asset_partition_range_start"],
            run["dagster/asset_partition_range_end"],
        )
        for run in tags
    )


def states(found: dict[str, Any]) -> set[str]:
    return {run["status"] for run in found["runs"]}


@contextmanager
def served(place: Place, monkeypatch) -> Iterator[GraphQL]:
    monkeypatch.setenv("FEATURE_PIPELINE_UNIVERSE", str(place.settings.universe))
    monkeypatch.setenv("FEATURE_PIPELINE_MAX_PARTITIONS_PER_RUN", str(DAYS_PER_RUN))
    with Stack(place.settings) as stack:
        stack.start_dagster()
        hurry(stack)
        yield GraphQL(stack.ui_url)


@pytest.fixture
def undisturbed(new_place) -> Place:
    """Both ranges in one run, outside of the UI."""
    place = new_place()
    place.run(START, LATER)
    return place


def test_backfills_of_the_ui_are_cut_cancelled_and_resumed(new_place, undisturbed, monkeypatch):
    place = new_place()
    with served(place, monkeypatch) as ui:
        # All assets over a cold range, more than one run may have; and the days after it, which are
        # cancelled as soon as they are under way.
        first, second = (ui.launch_backfill(list(TABLES), *r) for r in ((START, END), (END, LATER)))
        until(lambda: "STARTED" in states(ui.backfill(second)), "no run was started", _SECONDS)
        ui.cancel_backfill(second)
        found = ui.wait_for_backfill(first, _SECONDS)
        assert found["status"] == "COMPLETED_SUCCESS", found
        middle = START + timedelta(days=DAYS_PER_RUN)
        assert ranges(found) == [
            (START.isoformat(), (middle - timedelta(days=1)).isoformat()),
            (middle.isoformat(), (END - timedelta(days=1)).isoformat()),
        ]
        assert_same_tables(place.tables(), undisturbed.tables())
        cancelled = ui.wait_for_backfill(second, _SECONDS)
        assert cancelled["status"] == "CANCELED"
        assert states(cancelled) <= {"CANCELED", "SUCCESS"}

        # Re-executed it completes, and all is as if nobody had touched it. Beside it some assets of
        # days that are right, in one run and tagged to ask for nothing that is there: not even a
        # token is new.
        held = f"SELECT asset, day, token FROM partition_ledger WHERE day < '{END}' ORDER BY 1, 2"
        before = place.query(held)
        if "CANCELED" in states(cancelled):
            rest = ui.reexecute_backfill(second)
        else:  # its run ended before the daemon looked: nothing is left to be re-executed
            rest = ui.launch_backfill(list(TABLES), END, LATER)
        some = ui.launch_backfill(
            ["ohlcv_1d", "indicators_1d"],
            START,
            START + timedelta(days=3),
            {"feature_pipeline/only_missing": "true"},
        )
        found = ui.wait_for_backfill(rest, _SECONDS)
        assert (found["status"], states(found)) == ("COMPLETED_SUCCESS", {"SUCCESS"})
        assert_same_tables(place.tables(END, LATER), undisturbed.tables(END, LATER))
        found = ui.wait_for_backfill(some, _SECONDS)
        assert found["status"] == "COMPLETED_SUCCESS"
        assert len(found["runs"]) == 1
        assert place.query(held).equals(before)
