"""Commands about values: `show`, and what Redis holds."""

from __future__ import annotations

from typing import Annotated

import typer

from feature_pipeline.cli.common import console, settings
from feature_pipeline.errors import OnlineError


def show(symbol: Annotated[str, typer.Argument(help="An id or a symbol of the universe.")]) -> None:
    """The newest state vector and features of a symbol, from Redis."""
    from feature_pipeline.cli import terminal
    from feature_pipeline.demo import newest
    from feature_pipeline.resources import load_universe
    from feature_pipeline.stack import Stack, foreground

    current = settings()
    name = load_universe(current).resolve(symbol).id
    out = console()
    with foreground.until_told(), Stack(current) as stack:
        vector, features = newest(stack.resolved_settings(), name)
        if vector is None:
            raise OnlineError(
                f"there is no state vector of {name} yet; backfill a range with "
                "`feature-pipeline backfill --start ... --end ...`"
            )
        out.print(terminal.vectors({name: vector}))
        out.print(f"source {vector.source}, revision {vector.revision}")
        if features is not None:
            out.print()
            out.print(terminal.features(features))


online = typer.Typer(help="What Redis holds.", no_args_is_help=True)


@online.command()
def rebuild(
    force: Annotated[
        bool, typer.Option("--force", help="Remove our keys first: replaces a wrong newer value.")
    ] = False,
) -> None:
    """Publish the newest row of everything from the database to Redis."""
    from feature_pipeline.automation.publishing import snapshot
    from feature_pipeline.online.rebuild import republish_all
    from feature_pipeline.resources import redis_client, store
    from feature_pipeline.stack import Stack, foreground

    with foreground.until_told(), Stack(settings()) as stack:
        current = stack.resolved_settings()
        held = store(current)
        with held.database, redis_client(current) as client:
            report = republish_all(client, lambda: snapshot(held), force=force)
    out = console()
    out.print(
        f"written {report.written}, refreshed {report.refreshed}, older {report.older}, "
        f"refused {len(report.refused)}"
    )
    for name, reason in report.refused.items():
        out.print(f"refused {name}: {reason}", soft_wrap=True)
