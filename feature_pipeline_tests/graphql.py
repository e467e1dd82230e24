"""The web UI's GraphQL, with the requests that the UI sends."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import tenacity

from feature_pipeline.definitions import JOB
from feature_pipeline.partitions import days

LOCATION = {
    "repositoryLocationName": "feature_pipeline",
    "repositoryName": "__repository__",
}
_ENDED = {"COMPLETED_SUCCESS", "COMPLETED_FAILED", "COMPLETED", "FAILED", "CANCELED"}


@dataclass(frozen=True)
class GraphQL:
    """One webserver's GraphQL endpoint.

    Args:
        url: the UI's address.
    """

    url: str

    def ask(self, query: str, **variables: Any) -> Any:
        """The `data` of an answer.

        Raises:
            RuntimeError: the query is refused.
        """
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(  # the loopback address of our own server
            f"{self.url}/graphql", body, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()[:2000]) from error
        if answer.get("errors"):
            raise RuntimeError(str(answer["errors"])[:2000])
        return answer["data"]

    def wait_for_the_graph(self, seconds: float) -> None:
        """Until the UI has loaded the assets."""

        def loaded() -> bool:
            try:
                return bool(self.ask("{assetNodes{id}}")["assetNodes"])
            except (OSError, RuntimeError):
                return False

        _wait(loaded, seconds, every=0.2)

    def launch_backfill(
        self, assets: Sequence[str], start: date, end: date, tags: Mapping[str, str] | None = None
    ) -> str:
        """What the dialogue of a range does; the backfill's id. Days are [start, end)."""
        answer = self.ask(
            """mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
            __typename ... on LaunchBackfillSuccess { backfillId }
            ... on PythonError { message } } }""",
            p={
                "assetSelection": [{"path": [asset]} for asset in assets],
                "partitionNames": [day.isoformat() for day in days(start, end)],
                "tags": _tags(tags or {}),
            },
        )["launchPartitionBackfill"]
        return _backfill_id(answer)

    def cancel_backfill(self, backfill: str) -> None:
        """What its *Cancel* does."""
        answer = self.ask(
            """mutation($b: String!) { cancelPartitionBackfill(backfillId: $b) {
            __typename ... on PythonError { message } } }""",
            b=backfill,
        )["cancelPartitionBackfill"]
        if answer["__typename"] != "CancelBackfillSuccess":
            raise RuntimeError(str(answer))

    def reexecute_backfill(self, backfill: str) -> str:
        """What *Re-execute from failure* does; the new backfill's id."""
        answer = self.ask(
            """mutation($p: ReexecutionParams!) { reexecutePartitionBackfill(reexecutionParams: $p)
            { __typename ... on LaunchBackfillSuccess { backfillId }
            ... on PythonError { message } } }""",
            p={"parentRunId": backfill, "strategy": "FROM_FAILURE"},
        )["reexecutePartitionBackfill"]
        return _backfill_id(answer)

    def backfill(self, backfill: str) -> dict[str, Any]:
        """Its `status` and `runs`."""
        found: dict[str, Any] = self.ask(
            """query($b: String!) { partitionBackfillOrError(backfillId: $b) {
            ... on PartitionBackfill { status runs { id status tags { key value } } } } }""",
            b=backfill,
        )["partitionBackfillOrError"]
        return found

    def wait_for_backfill(self, backfill: str, seconds: float) -> dict[str, Any]:
        """Its `status` and `runs` once it has ended."""

        def ended() -> Any:
            found = self.backfill(backfill)
            return found if found["status"] in _ENDED else None

        found: dict[str, Any] = _wait(ended, seconds)
        return found

    def launch_run(self, assets: Sequence[str], start: date, end: date) -> str:
        """One run of the days [start, end), as *Materialize* with one run does it; its id."""
        tags = {
            "dagster/asset_partition_range_start": start.isoformat(),
            "dagster/asset_partition_range_end": (end - timedelta(days=1)).isoformat(),
        }
        answer = self.ask(
            """mutation($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) {
            __typename ... on LaunchRunSuccess { run { id } }
            ... on PythonError { message }
            ... on InvalidSubsetError { message } } }""",
            p={
                "mode": "default",
                "selector": {
                    **LOCATION,
                    "jobName": JOB,
                    "assetSelection": [{"path": [asset]} for asset in assets],
                },
                "runConfigData": {},
                "executionMetadata": {"tags": _tags(tags)},
            },
        )["launchPipelineExecution"]
        if "run" not in answer:
            raise RuntimeError(str(answer))
        return str(answer["run"]["id"])

    def wait_for_run(self, run: str, seconds: float) -> str:
        """The status that a run has ended with."""
        query = "query($r: ID!) { runOrError(runId: $r) { ... on Run { status } } }"

        def ended() -> str:
            status = str(self.ask(query, r=run)["runOrError"]["status"])
            return status if status in ("SUCCESS", "FAILURE", "CANCELED") else ""

        return str(_wait(ended, seconds))

    def partition_statuses(self, assets: Sequence[str]) -> Any:
        """What the partitions page of each asset asks."""
        return self.ask(
            """query($k: [AssetKeyInput!]) { assetNodes(assetKeys: $k) { id
            partitionStats { numMaterialized numFailed numPartitions numMaterializing }
            partitionKeysByDimension { name partitionKeys }
            assetPartitionStatuses { __typename ... on TimePartitionStatuses {
              ranges { status startTime endTime startKey endKey } } } } }""",
            k=[{"path": [asset]} for asset in assets],
        )["assetNodes"]

    def newest_materialization(self, asset: str) -> dict[str, Any]:
        """The newest materialisation: `timestamp` (epoch seconds), `partition`, its markdown."""
        (node,) = self.ask(
            """query($k: [AssetKeyInput!]) { assetNodes(assetKeys: $k) {
            assetMaterializations(limit: 1) { timestamp partition runId
              metadataEntries { label ... on MarkdownMetadataEntry { mdStr } } } } }""",
            k=[{"path": [asset]}],
        )["assetNodes"]
        found = node["assetMaterializations"]
        if not found:
            return {}
        return {**found[0], "timestamp": float(found[0]["timestamp"]) / 1000}


def _tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def _backfill_id(answer: Mapping[str, Any]) -> str:
    if "backfillId" not in answer:
        raise RuntimeError(str(answer))
    return str(answer["backfillId"])


def _wait(look: Any, seconds: float, every: float = 1.0) -> Any:
    found = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda result: not result),
        wait=tenacity.wait_fixed(every),
        stop=tenacity.stop_after_delay(seconds),
        retry_error_callback=lambda _: None,
    )(look)
    if not found:
        raise RuntimeError(f"nothing within {seconds} s")
    return found
