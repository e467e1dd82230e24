"""`backup` and `restore`: the database in a file, and back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from feature_pipeline.cli.common import Json, console, print_json, settings


def backup(
    file: Annotated[Path, typer.Argument(help="Which there is not yet.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Write every table of ours to one file, while they are read and written.

    In pg_dump's custom format. Redis is not in it: it follows from the database. Nor are Dagster's
    own tables, the universe and the settings: keep those beside it.

    \b
    Examples:
      feature-pipeline backup features.dump
      feature-pipeline backup "features-$(date +%F).dump" --json
    """
    from feature_pipeline.cli.progress import duration
    from feature_pipeline.cli.terminal import size
    from feature_pipeline.stack import Stack, foreground
    from feature_pipeline.stack import backup as room

    started = time.monotonic()
    with foreground.until_told(), Stack(settings()) as stack:
        written = room.backup(stack.owner_database_url, file)
    took = time.monotonic() - started
    if as_json:
        print_json({"file": str(file), "bytes": written, "seconds": took})
    else:
        console().print(f"{file}: {size(written)} in {duration(took)}", soft_wrap=True)


def restore(
    file: Annotated[
        Path, typer.Argument(help="That `backup`, or pg_dump, wrote.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Fill a database without tables from a backup; Dagster's may be there, and stay as they are.

    Then `migrate` is done, and what is left to do is said.

    \b
    Examples:
      feature-pipeline restore features.dump
      FEATURE_PIPELINE_DATABASE_URL=postgresql://host/new feature-pipeline restore features.dump
    """
    from feature_pipeline.cli.progress import duration
    from feature_pipeline.stack import Stack, foreground
    from feature_pipeline.stack import backup as room
    from feature_pipeline.storage import retention, usage
    from feature_pipeline.storage.database import Database

    started = time.monotonic()
    with foreground.until_told(), Stack(settings()) as stack:
        off = room.restore(stack.owner_database_url, file)
        with Database(stack.owner_database_url) as database:
            found = usage.partitions(database)
    took = time.monotonic() - started
    rows, last = int(found["rows"].sum()), found["last"].max()
    if as_json:
        said = {"file": str(file), "rows": rows, "last": last, "seconds": took}
        print_json(said | {"retention_off": off})
        return
    out = console()
    out.print(f"{rows:,} rows, up to {last!s}, in {duration(took)}", soft_wrap=True)
    out.print("next: feature-pipeline online rebuild --force")
    if off:
        out.print(
            "retention is off, or it would drop at once what is older by now; on again, as the "
            f"owner of the tables: {retention.SWITCH_ON};",
            soft_wrap=True,
        )
