"""Backfills as the UI starts, cuts, cancels and resumes them: the same mutations, sent to the real
webserver, carried out by the real daemon and code server."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any

import pytest

from feature_pipeline.automation.backfill import chunks
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.partitions import days
from feature_pipeline.stack import Stack
from feature_pipeline_tests.assets.support import assert_same_tables
from feature_pipeline_tests.automation.places import END, START, Place
from feature_pipeline_tests.stack.helpers import until

LATER = END + timedelta(days=8)
DAYS_PER_RUN = 4
_SECONDS = 240.0  # the daemon looks for backfills every thirty seconds

_LAUNCH = """
mutation($given: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $given) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }
"""
_CANCEL = """
mutation($id: String!) { cancelPartitionBackfill(backfillId: $id) {
  __typename ... on PythonError { message } } }
"""
_AGAIN = """
mutation($given: ReexecutionParams!) { reexecutePartitionBackfill(reexecutionParams: $given) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }
"""
_LOOK = """
query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill {
  status runs { id status tags { key value } } } } }
"""
ENDED = ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "COMPLETED", "FAILED", "CANCELED")


class Ui:
    """What a person does on the page of an asset group."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, query: str, **variables: Any) -> Any:
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            said = json.load(answer)
        assert "errors" not in said, said
        ((_, found),) = said["data"].items()
        assert found.get("__typename") != "PythonError", found
        return found

    def launch(
        self, start: date, end: date, assets: tuple[str, ...] = tuple(TABLES), **tags: str
    ) -> str:
        """Materialize... of these assets and days, with tags under `feature_pipeline/`."""
        given = {
            "tags": [{"key": f"feature_pipeline/{k}", "value": v} for k, v in tags.items()],
            "assetSelection": [{"path": [asset]} for asset in assets],
            "partitionNames": [day.isoformat() for day in days(start, end)],
        }
        return self.ask(_LAUNCH, given=given)["backfillId"]

    def cancel(self, backfill: str) -> None:
        self.ask(_CANCEL, id=backfill)

    def again(self, backfill: str) -> str:
        """Re-execute from failure."""
        given = {"parentRunId": backfill, "strategy": "FROM_FAILURE"}
        return self.ask(_AGAIN, given=given)["backfillId"]

    def look(self, backfill: str) -> dict[str, Any]:
        return self.ask(_LOOK, id=backfill)

    def ended(self, backfill: str) -> dict[str, Any]:
        """Wait until it has ended, however."""
        until(lambda: self.look(backfill)["status"] in ENDED, f"{backfill} goes on", _SECONDS)
        return self.look(backfill)


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


@contextmanager
def served(place: Place, monkeypatch) -> Iterator[Ui]:
    monkeypatch.setenv("FEATURE_PIPELINE_UNIVERSE", str(place.settings.universe))
    monkeypatch.setenv("FEATURE_PIPELINE_MAX_PARTITIONS_PER_RUN", str(DAYS_PER_RUN))
    with Stack(place.settings) as stack:
        yield Ui(stack.start_dagster())


@pytest.fixture
def undisturbed(new_place) -> Place:
    """Both ranges in one run, outside of the UI."""
    place = new_place()
    place.backfill(chunks(START, LATER))
    return place


def test_backfills_of_the_ui_are_cut_cancelled_and_resumed(new_place, undisturbed, monkeypatch):
    place = new_place()
    with served(place, monkeypatch) as ui:
        # All assets over a cold range, more than one run may have; and the days after it, which are
        # cancelled as soon as they are under way.
        first, second = ui.launch(START, END), ui.launch(END, LATER)
        until(
            lambda: any(run["status"] == "STARTED" for run in ui.look(second)["runs"]),
            "no run was started", _SECONDS,
        )  # fmt: skip
        ui.cancel(second)
        found = ui.ended(first)
        assert found["status"] == "COMPLETED_SUCCESS", found
        middle = START + timedelta(days=DAYS_PER_RUN)
        assert ranges(found) == [
            (START.isoformat(), (middle - timedelta(days=1)).isoformat()),
            (middle.isoformat(), (END - timedelta(days=1)).isoformat()),
        ]
        assert_same_tables(place.tables(), undisturbed.tables())
        found = ui.ended(second)
        assert found["status"] == "CANCELED"
        states = {run["status"] for run in found["runs"]}
        assert states <= {"CANCELED", "SUCCESS"}

        # Re-executed it completes, and all is as if nobody had touched it. Beside it some assets of
        # days that are right, in one run and tagged to ask for nothing that is there: not even a
        # token is new.
        held = f"SELECT asset, day, token FROM partition_ledger WHERE day < '{END}' ORDER BY 1, 2"
        before = place.query(held)
        # The daemon cancels runs at its next look, in half a minute: by then all may have ended,
        # and nothing is left to be re-executed. Then it is launched again.
        rest = ui.again(second) if "CANCELED" in states else ui.launch(END, LATER)
        some = ui.launch(
            START, START + timedelta(days=3), ("ohlcv_1d", "indicators_1d"), only_missing="true"
        )
        found = ui.ended(rest)
        assert found["status"] == "COMPLETED_SUCCESS", found
        assert {run["status"] for run in found["runs"]} == {"SUCCESS"}
        assert_same_tables(place.tables(END, LATER), undisturbed.tables(END, LATER))
        found = ui.ended(some)
        assert found["status"] == "COMPLETED_SUCCESS"
        assert len(found["runs"]) == 1
        assert place.query(held).equals(before)
