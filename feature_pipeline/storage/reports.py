"""What became of every row that was handed in: counted where it happens, and written down.

One row of `write_reports` per write and source, kept for `KEPT`. Whether the counts add up is asked
of them in `audit.py`; nothing here makes them do so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import polars as pl

from feature_pipeline.schemas import Fetched
from feature_pipeline.storage.changes import Batch
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.planning import WritePlan
from feature_pipeline.storage.validate import Checked

BECAME = ("written", "unchanged", "duplicate", "unfinished", "fenced", "quarantined")
"""What may become of a row that is offered for writing."""

KEPT = timedelta(days=90)
"""How long reports are kept: schedules add some 300 a day."""

_REMOVED_AT_ONCE = 1000


@dataclass(frozen=True)
class Tally:
    """What became of one source's rows: by `input`, `outside` and the names of `BECAME`."""

    source: str
    counts: Mapping[str, int]


def tally(
    plan: WritePlan,
    source: str,
    fetched: Fetched,
    judged: Sequence[tuple[Checked, Batch]],
    days: pl.DataFrame,
) -> Tally:
    """The counts of one source's rows: `input` is what it handed in, `outside` what of it a
    computation returned of its lookback.

    Args:
        plan: of the write.
        source: whose they are.
        fetched: as it was handed in.
        judged: the same, sorted out, and what was given to the writer; part by part.
        days: what the writer said of each day.
    """
    outside = 0
    if plan.table.derived:
        day = pl.col(plan.table.day_column).dt.date()
        first, end = plan.window
        beyond = (day < first) | (day >= end) | ~day.is_in(plan.days.implode())
        outside = int(fetched.frame.select(beyond.sum()).item() or 0)
    return Tally(
        source,
        {
            "input": fetched.frame.height,
            "outside": outside,
            **{name: int(days[name].sum()) for name in ("written", "unchanged", "fenced")},
            "duplicate": sum(checked.duplicate for checked, _ in judged)
            + int(days["duplicate"].sum()),
            "unfinished": sum(checked.unfinished for checked, _ in judged),
            "quarantined": sum(batch.quarantined.height for _, batch in judged),
        },
    )


def record(database: Database, plan: WritePlan, tallies: Sequence[Tally]) -> None:
    """Write the tallies of a write down, and remove reports that are older than `KEPT`.

    Raises:
        DatabaseError: the database cannot be reached, or is not migrated.
    """
    names = ("input", "outside", *BECAME)
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO write_reports (asset, run_id, token, first_day, last_day, days,"
            f" source, {', '.join(names)})"
            " SELECT %s, %s, %s, %s, %s, %s, u.* FROM unnest(%s::text[]"
            + ", %s::bigint[]" * len(names)
            + ") AS u",
            [
                plan.table.asset,
                plan.writing.run_id,
                plan.writing.token,
                plan.days[0],
                plan.days[-1],
                plan.days.len(),
                [one.source for one in tallies],
                *([one.counts[name] for one in tallies] for name in names),
            ],
        )
        # The oldest by their key, a bounded number: nothing is scanned, nobody is waited for.
        connection.execute(
            "DELETE FROM write_reports WHERE id IN ("
            "SELECT id FROM write_reports"
            " WHERE id < (SELECT min(id) FROM write_reports) + %s AND at < now() - %s"
            " FOR UPDATE SKIP LOCKED)",
            [_REMOVED_AT_ONCE, KEPT],
        )
