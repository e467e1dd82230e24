"""`quarantine`: what was rejected, why, and accepting it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from feature_pipeline.cli import complete
from feature_pipeline.cli.common import Json, console, opened, print_json

_SHOWN = 50

quarantine = typer.Typer(
    help="Rejected rows: list them, look at one, accept one.", no_args_is_help=True
)


@quarantine.command("list")
def list_(
    asset: Annotated[
        str, typer.Option(help="Only this asset's.", autocompletion=complete.assets)
    ] = "",
    symbol: Annotated[
        str, typer.Option(help="Only this symbol's.", autocompletion=complete.symbols)
    ] = "",
    since: Annotated[
        str, typer.Option(help="Only what was first rejected on that UTC day or later.")
    ] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Those that were released as well.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The rejected rows, the newest first.

    \b
    Examples:
      feature-pipeline quarantine list
      feature-pipeline quarantine list --asset ohlcv_1d --symbol AAPL --since 2026-03-01
      feature-pipeline quarantine list --all --json
    """
    from feature_pipeline.cli.terminal import grid
    from feature_pipeline.partitions import parse_day
    from feature_pipeline.storage.quarantine import listed
    from feature_pipeline.symbols import checked_symbol

    if symbol:
        checked_symbol(symbol)
    day = parse_day(since, "--since") if since else None
    with opened(reading=True) as (_, held):
        ids = {s.symbol: i.id for i in held.universe.instruments for s in i.symbols}
        rows = listed(
            held.database,
            asset=asset or None,
            symbol=ids.get(symbol, symbol) or None,  # an unknown one may be why it was rejected
            since=day,
            released=everything,
        )
    if as_json:
        print_json(rows.to_dicts())
        return
    out = console()
    if rows.is_empty():
        out.print("nothing is in quarantine")
        return
    hidden = ["run_id"] if everything else ["run_id", "released_at"]
    out.print(grid(rows.drop(hidden).head(_SHOWN).to_dicts()))
    if rows.height > _SHOWN:
        out.print(f"{rows.height - _SHOWN} more; narrow it down, or --json")


@quarantine.command()
def show(
    number: Annotated[int, typer.Argument(metavar="ID", help="As `list` names it.")],
    as_json: Json = False,
) -> None:
    """One rejected row, whole: what its source said, when, and why it was rejected.

    \b
    Examples:
      feature-pipeline quarantine show 12
      feature-pipeline quarantine show 12 --json | jq .payload
    """
    from rich.table import Table

    from feature_pipeline.cli.terminal import cell
    from feature_pipeline.storage.quarantine import shown

    with opened(reading=True) as (_, held):
        row = shown(held.database, number)
    facts = asdict(row)
    if as_json:
        print_json(facts)
        return
    out = console()
    for heading, part in (("", facts), ("the row", facts.pop("payload"))):
        table = Table.grid(padding=(0, 2))
        for name, value in part.items():
            if value is not None or heading:
                table.add_row(name, cell(value))
        if heading:
            out.print()
            out.print(heading, style="bold")
        out.print(table)


@quarantine.command()
def release(
    numbers: Annotated[list[int], typer.Argument(metavar="ID", help="As `list` names them.")],
    because: Annotated[
        str, typer.Option(help="Why the row is right, for whoever asks later.", show_default=False)
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Accept rejected rows: a person knows better than the rule.

    The row is written as its source said it, and the days that depend on it become stale. The same
    content is not rejected for the same reason again; every other rule still holds.

    \b
    Examples:
      feature-pipeline quarantine release 12 --because "oil did trade below zero"
      feature-pipeline quarantine release 12 13 --because "checked with the exchange" --yes
    """
    from feature_pipeline.cli.terminal import grid
    from feature_pipeline.storage.quarantine import release as accept
    from feature_pipeline.storage.quarantine import shown

    if as_json and not yes:
        raise typer.BadParameter("--json does not ask: give --yes as well")
    out = console()
    with opened() as (_, held):
        if not yes:
            rows = [asdict(shown(held.database, number)) for number in numbers]
            told = ("id", "asset", "symbol", "day", "reason", "payload")
            out.print(grid([{name: row[name] for name in told} for row in rows]))
            typer.confirm("Accept what the source said?", abort=True)
        done = accept(held, numbers, because)
    if as_json:
        print_json([asdict(one) for one in done])
        return
    out.print(grid([asdict(one) for one in done]))
    written = [one for one in done if one.outcome == "written"]
    if written:
        first = min(one.day for one in written)
        out.print(
            f"days from {first} on that depend on it are stale: the repair sensor computes them "
            f"again, or feature-pipeline backfill --start {first} ..."
        )
