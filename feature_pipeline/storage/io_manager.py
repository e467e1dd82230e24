"""The IO manager: what a step reads and writes, between Dagster's partitions and the store's plans.

One for Polars and pandas frames: the asset's type annotation decides. An input arrives with exactly
the columns and the lookback that the schema's `Input` declares; an output goes through the write
contract. Nothing here knows a particular table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any, Protocol, TypeAlias

import dagster as dg
import pandas as pd
import polars as pl
from dagster._core.events import DagsterEvent, DagsterEventBatchMetadata, generate_event_batch_id
from dagster._core.execution.context.metadata_logging import AssetMetadataHandle
from dagster._core.storage.tags import SCHEDULE_NAME_TAG

from feature_pipeline import partitions
from feature_pipeline.errors import MissingPartitionError, SchemaError, UniverseError
from feature_pipeline.schemas import Fetched, Input
from feature_pipeline.storage.planning import not_asked
from feature_pipeline.storage.store import Store, WritePlan, WriteReport
from feature_pipeline.symbols import checked_symbol

SYMBOLS_TAG = "feature_pipeline/symbols"
"""Run tag: comma-separated symbols that sources are asked for; absent - every instrument."""

ONLY_MISSING_TAG = "feature_pipeline/only_missing"
"""Run tag: present - sources are asked only for what is not there; see `Planner.missing`."""

REPAIR_TAG = "feature_pipeline/repair"
"""Run tag: present - write exactly the run's days, and of them only what is not right; says why."""

FLAGGED_TAG = "feature_pipeline/flagged"
"""Run tag: assets of the run that lack a symbol or quarantined a row."""

PICTURES_EVERY = timedelta(hours=1)
"""How often scheduled runs that write nothing store the pictures of a partition: the event log
keeps every copy, and documents are asked for every 15 minutes."""

_LOOKED_AT = 8
"""Materialisations among which the newest pictures are looked for: more than `PICTURES_EVERY` has
of those every 15 minutes."""

_SHOWN = 20

Frame: TypeAlias = pl.DataFrame | pd.DataFrame


class Describe(Protocol):
    """Says what a table looks like up to the end of a run's days; see `assets/describe.py`.

    `keys` are those of the metadata that it may return.
    """

    @property
    def keys(self) -> Sequence[str]:
        """The metadata keys."""

    def __call__(self, asset: str, end: date, /) -> Mapping[str, dg.MetadataValue]:
        """Metadata about the asset's days before `end`."""


class StorageIOManager(dg.IOManager):
    """Loads inputs and writes outputs of one store.

    `describe` adds what it says to the last partition of each run; without it nothing is added.

    The plan of a step is settled when the step first touches storage, before anything is read,
    and shared by its inputs, its body and its output.
    """

    def __init__(self, store: Store, describe: Describe | None = None) -> None:
        self.store = store
        self._describe = describe
        self._plans: dict[tuple[str, str], tuple[int, WritePlan]] = {}

    def close(self) -> None:
        """Withdraw what is still announced; what runs later announces itself again."""
        for key in list(self._plans):
            self._forget(key)

    def plan(self, context: dg.AssetExecutionContext) -> WritePlan:
        """The plan of the step that runs; for assets that fetch rather than load."""
        return self._plan(context.op_execution_context.get_step_execution_context())

    def load_input(self, context: dg.InputContext) -> Frame:
        """The rows that a step reads of one upstream asset; see `Store.load`."""
        plan = self._plan(context.step_context)
        frame = self.store.load(plan, needed(plan, context.asset_key))
        if context.dagster_type.typing_type is pd.DataFrame:
            return frame.to_pandas()
        return frame

    def handle_output(  # type: ignore[override]
        self, context: dg.OutputContext, obj: Frame | Mapping[str, Fetched]
    ) -> Iterator[DagsterEvent]:
        """Write what the step returned, and say what became of every row."""
        plan = self._plan(context.step_context)
        answer = pl.from_pandas(obj) if isinstance(obj, pd.DataFrame) else obj
        try:
            with _no_retries():
                report = self.store.write(plan, answer)
        finally:
            self._forget(_identity(context.step_context))
        yield from self._tell(context, plan, report)

    def _plan(self, step: Any) -> WritePlan:
        key, attempt = _identity(step), step.previous_attempt_count
        held = self._plans.get(key)
        if held is not None and held[0] == attempt:
            return held[1]
        # One step at a time runs in a process: what others announced and did not write has failed.
        self.close()
        asset = step.assets_def.key
        with _no_retries():
            plan = self.store.plan(
                asset.to_python_identifier(),
                *partitions.window(step.partition_time_window),
                run_id=step.run_id,
                code_version=step.assets_def.code_versions_by_key[asset] or "",
                symbols=tagged_symbols(step.dagster_run.tags),
                only_missing=ONLY_MISSING_TAG in step.dagster_run.tags,
                mending=REPAIR_TAG in step.dagster_run.tags,
            )
        self._plans[key] = attempt, plan
        return plan

    def _forget(self, key: tuple[str, str]) -> None:
        held = self._plans.pop(key, None)
        if held is not None:
            held[1].intent.close()

    def _tell(
        self, context: dg.OutputContext, plan: WritePlan, report: WriteReport
    ) -> Iterator[DagsterEvent]:
        """Row counts to each partition, the conservation equation and what is amiss to the run."""
        first, end = partitions.window(context.asset_partitions_time_window)
        # From the ledger: of days that were not stale, and not computed, it knows the rows as well.
        held = self.store.ledger.rows(plan.table.asset, first, end)
        rows = _by_key(held.group_by("day").agg(pl.col("rows").sum()))
        about = {key: {"dagster/partition_row_count": count} for key, count in rows.items()}
        last = (end - timedelta(days=1)).isoformat()
        about[last] = {**about.get(last, {}), **self._described(context, plan, report, end)}
        _add_partition_metadata(context, about)
        yield from _materialized_before(context, _by_key(report.days.filter(pl.col("day") < first)))
        context.add_output_metadata(dict(_summary(plan, report)))
        if off := self.store.planner.off_beside(plan.table.asset):
            context.log.info("%s is collected without: %s", plan.table.asset, "; ".join(off))
            context.add_output_metadata({"off": "; ".join(off)})
        lacking = report.exceptions.filter(~not_asked(plan.table)).height
        if lacking or report.quarantined:
            context.log.warning(
                "%s: %d symbol-days without a row, %d rows in quarantine; see the metadata",
                plan.table.asset, lacking, report.quarantined,
            )  # fmt: skip
            instance, run_id = context.step_context.instance, context.run_id
            run = instance.get_run_by_id(run_id)
            flagged = set((run.tags.get(FLAGGED_TAG) or "").split(",")) if run else set()
            names = ",".join(sorted({*flagged, plan.table.asset} - {""}))
            instance.add_run_tags(run_id, {FLAGGED_TAG: names})

    def _described(
        self, context: dg.OutputContext, plan: WritePlan, report: WriteReport, end: date
    ) -> Mapping[str, Any]:
        """What is to be seen, for the last partition alone: the UI shows it with the asset, and a
        copy on each of a range's partitions would outweigh the data.

        Where a scheduled run wrote nothing, nothing if the partition got its pictures less than
        `PICTURES_EVERY` ago; they stay with that materialisation. Where nothing was computed at
        all, what the partition shows already, which the first such run stores in any case.
        Drawing is no reason to fail.
        """
        if self._describe is None:
            return {}
        asset, last = plan.table.asset, (end - timedelta(days=1)).isoformat()
        idle = plan.days.is_empty()
        try:
            if report.written == 0:
                shown, at, repeated = _shown(context, last, self._describe.keys)
                scheduled = SCHEDULE_NAME_TAG in context.step_context.dagster_run.tags
                recent = scheduled and datetime.now(UTC) - at < PICTURES_EVERY
                if shown and recent and (repeated or not idle):
                    return {}
                if shown and idle:
                    return shown
            return self._describe(asset, end)
        except Exception as error:
            context.log.warning(
                "the pictures of %s up to %s could not be drawn (its rows are written): %s: %s",
                asset, last, type(error).__name__, error,
            )  # fmt: skip
            return {}


@contextmanager
def _no_retries() -> Iterator[None]:
    """What does not mend itself in a second fails the step at once, whatever its retry policy."""
    try:
        yield
    except (MissingPartitionError, SchemaError, UniverseError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def needed(plan: WritePlan, upstream: dg.AssetKey) -> Input:
    """The declared input that an upstream asset is."""
    name = upstream.to_python_identifier()
    return next(needed for needed in plan.table.inputs if needed.asset == name)


def _by_key(days: pl.DataFrame) -> dict[str, int]:
    return {day.isoformat(): rows for day, rows in days.select("day", "rows").iter_rows()}


def tagged_symbols(tags: Mapping[str, str]) -> tuple[str, ...] | None:
    """What sources are asked for, by the tags of a run; None - every instrument.

    Raises:
        UniverseError: one of them can be no symbol.
    """
    named = tags.get(SYMBOLS_TAG)
    return tuple(map(checked_symbol, named.split(","))) if named else None


def _identity(step: Any) -> tuple[str, str]:
    return step.run_id, step.assets_def.key.to_python_identifier()


def _shown(
    context: dg.OutputContext, partition: str, keys: Sequence[str]
) -> tuple[dict[str, Any], datetime, bool]:
    """What the newest materialisation of a partition that says something under some keys says
    there, when it was made, and whether by a run that wrote nothing."""
    records = context.step_context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=context.asset_key, asset_partitions=[partition]),
        limit=_LOOKED_AT,
    ).records
    for record in records:
        said = record.asset_materialization.metadata if record.asset_materialization else {}
        shown = {key: said[key] for key in keys if key in said}
        if shown:
            rows = said.get("rows_written")
            wrote = rows is None or rows.value != 0
            return shown, datetime.fromtimestamp(record.timestamp, UTC), not wrote
    return {}, datetime.fromtimestamp(0, UTC), False


def _add_partition_metadata(
    context: dg.OutputContext, about: Mapping[str, Mapping[str, Any]]
) -> None:
    """`AssetExecutionContext.add_asset_metadata(partition_key=...)`, all partitions at once.

    The public call lists the run's partitions and copies what was added before, each time: its
    cost grows with the square of the range (five years: minutes instead of milliseconds).
    """
    step = context.step_context
    accumulator = step._metadata_accumulator
    added: dict[Any, Mapping[str, Any]] = {
        AssetMetadataHandle(asset_key=context.asset_key, partition_key=key): said
        for key, said in about.items()
    }
    step._metadata_accumulator = type(accumulator)(
        per_output_metadata={**accumulator.per_output_metadata, **added}
    )


def _materialized_before(
    context: dg.OutputContext, rows: Mapping[str, int]
) -> Iterator[DagsterEvent]:
    """Events of history that consumers will read, written along with what was asked for.

    In one batch, as Dagster logs the partitions of the run itself: `OutputContext.log_event` opens
    a connection for each (a thousand days: half a minute).
    """
    batch, keys = generate_event_batch_id(), sorted(rows)
    for key in keys:
        yield DagsterEvent.asset_materialization(
            context.step_context,
            dg.AssetMaterialization(
                asset_key=context.asset_key,
                partition=key,
                metadata={"dagster/partition_row_count": rows[key]},
            ),
            DagsterEventBatchMetadata(batch, is_end=key == keys[-1]),
        )


def _summary(plan: WritePlan, report: WriteReport) -> Iterator[tuple[str, Any]]:
    first, end = plan.window
    yield "days", f"{plan.days.len()}" + (f" ({first} to before {end})" if plan.days.len() else "")
    for name, count in report.counts().items():
        yield f"rows_{name}", count
    if report.exceptions.height:
        shown = report.exceptions.group_by("symbol", "status", "reason").agg(
            days=pl.len(), first=pl.col("day").min(), last=pl.col("day").max()
        )
        yield "exceptions", _markdown(shown.sort("symbol", "status", "first"))
    if report.quarantined:
        shown = report.reasons.group_by("symbol", "reason").agg(
            rows=pl.len(), first=pl.col("day").min(), last=pl.col("day").max()
        )
        yield "quarantined", _markdown(shown.sort("symbol", "reason", "first", nulls_last=True))


def _markdown(frame: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """A table of bounded size; the database has the rest."""
    lines = [" | ".join(frame.columns), " | ".join("---" for _ in frame.columns)]
    lines += [" | ".join(map(str, row)) for row in frame.head(_SHOWN).iter_rows()]
    if frame.height > _SHOWN:
        lines.append(f"\n{frame.height - _SHOWN} more")
    return dg.MetadataValue.md("\n".join(lines))
