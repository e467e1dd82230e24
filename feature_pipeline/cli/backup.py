"""`backup` and `restore`: the database in a file, and back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from feature_pipeline.cli.common import Json, console, opened, print_json


def backup(
    file: Annotated[Path, typer.Argument(help="Which there is not yet.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Write the whole database to one file, while it is read and written.

    In pg_dump's custom format. Redis is not in it: it follows from the database. Nor are the
    universe and the settings: keep those beside it.

    \b
    Examples:
      feature-pipeline backup features.dump
      feature-pipeline backup "features-$(date +%F).dump" --json
    """
    from feature_pipeline.cli.progress import duration
    from feature_pipeline.cli.terminal import size
    from feature_pipeline.stack import backup as room

    started = time.monotonic()
    with opened() as (current, _):
        assert current.database_url is not None
        written = room.backup(current.database_url.get_secret_value(), file)
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
    """Fill an empty database from a backup; one that is not empty is refused.

    Then `migrate` is done, and what is left to do is said.

    \b
    Examples:
      feature-pipeline restore features.dump
      FEATURE_PIPELINE_DATABASE_URL=postgresql://host/new feature-pipeline restore features.dump
    """
    from feature_pipeline.cli.progress import duration
    from feature_pipeline.stack import backup as room
    from feature_pipeline.storage import usage

    started = time.monotonic()
    with opened() as (current, held):
        assert current.database_url is not None
        room.restore(current.database_url.get_secret_value(), file)
        found = usage.partitions(held.database)
    took = time.monotonic() - started
    rows, last = int(found["rows"].sum()), found["last"].max()
    if as_json:
        print_json({"file": str(file), "rows": rows, "last": last, "seconds": took})
        return
    out = console()
    out.print(f"{rows:,} rows, up to {last!s}, in {duration(took)}", soft_wrap=True)
    out.print("next: feature-pipeline online rebuild --force")
