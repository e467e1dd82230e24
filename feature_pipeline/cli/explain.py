"""`explain`: why a number is what it is."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_pipeline.cli import complete
from feature_pipeline.cli.common import (
    Json,
    Timeframe,
    console,
    moment,
    opened,
    print_json,
    tables_of,
)
from feature_pipeline.cli.data import Symbol
from feature_pipeline.timeframes import DAILY

if TYPE_CHECKING:
    from rich.console import Console

    from feature_pipeline.cli.common import Asked
    from feature_pipeline.serving.explain import Explanation, InputEvidence


def explain(
    symbol: Symbol,
    feature: Annotated[
        str,
        typer.Argument(
            help="A feature, a field of the state vector, a column of bars or regimes.",
            autocompletion=complete.features,
            metavar="FEATURE",
            show_default=False,
        ),
    ],
    as_of: Annotated[
        str, typer.Option("--as-of", help="Of the newest row available by then; default: now.")
    ] = "",
    timeframe: Timeframe = DAILY,
    as_json: Json = False,
) -> None:
    """Why a value is what it is: its row, the rows it came from, and the proof.

    The value is computed again from exactly the rows that are shown. For a null it says why.

    \b
    Examples:
      feature-pipeline explain AAPL rsi_14
      feature-pipeline explain AAPL returns_1d --as-of 2005-03-01
      feature-pipeline explain AAPL ohlcv_1d.close --as-of 2012-06-14T16:00-04:00 --json
    """
    from feature_pipeline.resources import code_versions, default_resources
    from feature_pipeline.serving.explain import explain as why
    from feature_pipeline.serving.lookup import Moment
    from feature_pipeline.serving.names import resolve
    from feature_pipeline.symbols import checked_symbol

    checked_symbol(symbol)
    place = resolve(feature, tables_of(timeframe), timeframe)
    asked = moment(as_of, "--as-of")
    at = Moment.of(asked.at if asked else None)
    with opened(reading=True) as (current, held):
        scorer = default_resources(current)["scorer"]
        found = why(held, symbol, place, at, scorer, code_versions(held.universe))
    if as_json:
        print_json(asdict(found))
        return
    _print(console(), found, asked)


def _print(out: Console, found: Explanation, asked: Asked | None) -> None:
    from rich.markup import escape

    zone = " (no time zone given: UTC)" if asked and not asked.zoned else ""
    out.print(
        f"[bold]{found.symbol} {found.asset}.{found.column}[/], as of "
        f"{found.as_of:%Y-%m-%d %H:%M} UTC{zone}"
    )
    value = "null" if found.value is None else escape(str(found.value))
    out.print(f"[bold]{value}[/]" if found.row else "no row was available by then")
    _facts(out, "row", found.row)
    _facts(out, "declared", found.declaration)
    for needed in found.inputs:
        _input(out, needed)
    _rows(out, "what this row replaced", found.replaced)
    _rows(out, "adjusted for, within its window", found.adjustments)
    _rows(out, "ledger of its day", found.ledger)
    if found.row:
        for line in found.stale or ["no: nothing it came from has changed since"]:
            out.print(f"[bold]stale[/]  {escape(line)}", soft_wrap=True)
    for line in found.missing:
        out.print(f"[bold]missing[/]  {escape(line)}", soft_wrap=True)
    if found.recomputed:
        # An average forgets what lies before its lookback to a billionth, not to the last digit.
        same = "[green]same to 1e-9[/]" if found.recomputed.same else "[red]different[/]"
        said = "null" if found.recomputed.value is None else escape(str(found.recomputed.value))
        out.print(f"[bold]recomputed[/]  {same}: {said} from the rows above")


def _facts(out: Console, heading: str, facts: dict[str, Any] | None) -> None:
    from rich.table import Table

    from feature_pipeline.cli.terminal import cell

    if not facts:
        return
    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(name, cell(fact))
    out.print()
    out.print(heading, style="bold")
    out.print(table)


def _input(out: Console, needed: InputEvidence) -> None:
    span = f", {needed.first:%Y-%m-%d} to {needed.last:%Y-%m-%d}" if needed.first else ""
    of = f" of {needed.symbols} symbols" if needed.symbols > 1 else ""
    out.print()
    what = ", ".join(needed.columns) or "its moment"
    rows = f"{needed.rows} row{'s' * (needed.rows != 1)}"
    out.print(f"[bold]from {needed.asset}[/] ({what}): {rows}{of}{span}")
    _rows(out, "", needed.newest)
    if needed.replaced_count:
        more = needed.replaced_count - len(needed.replaced)
        what = "versions that were replaced" + (f", and {more} more" if more else "")
        _rows(out, what, needed.replaced)


def _rows(out: Console, heading: str, rows: list[dict[str, Any]]) -> None:
    from feature_pipeline.cli.terminal import grid

    if not rows:
        return
    if heading:
        out.print()
        out.print(heading, style="bold")
    # The whole ids are in `--json`; here a line per row says more.
    short = {"availability_basis": "basis"}
    out.print(
        grid(
            [
                {short.get(k, k): v[:8] if k == "run_id" and v else v for k, v in row.items()}
                for row in rows
            ]
        )
    )
