"""Commands about values: `show`, `get`, and what Redis holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_pipeline.cli import complete
from feature_pipeline.cli.common import (
    AsKnownAt,
    AsOf,
    Json,
    Timeframe,
    console,
    days,
    moment,
    opened,
    print_json,
    tables_of,
)
from feature_pipeline.errors import FeatureError, OnlineError
from feature_pipeline.timeframes import DAILY

if TYPE_CHECKING:
    import polars as pl

    from feature_pipeline.cli.common import Asked
    from feature_pipeline.serving.lookup import Value
    from feature_pipeline.serving.overview import Overview

Symbol = Annotated[
    str,
    typer.Argument(
        help="An id or a symbol of the universe.",
        metavar="SYMBOL",
        autocompletion=complete.symbols,
        show_default=False,
    ),
]

_SHOWN_ROWS = 60


def show(symbol: Symbol, timeframe: Timeframe = DAILY, as_json: Json = False) -> None:
    """The newest state vector and features of a symbol, with their last 60 sessions or bars.

    What Redis serves, and how it came about from the database. A gap is a bar without a value.

    \b
    Examples:
      feature-pipeline show AAPL
      feature-pipeline show AAPL --json | jq .state_vector.rsi
    """
    from datetime import UTC, datetime

    from feature_pipeline.automation.publishing import snapshot
    from feature_pipeline.cli import terminal
    from feature_pipeline.demo import FRESH
    from feature_pipeline.online.client import serving_client
    from feature_pipeline.serving.overview import overview
    from feature_pipeline.symbols import checked_symbol

    checked_symbol(symbol)  # before a server is started for it
    tables_of(timeframe)
    with opened(reading=True) as (current, held):
        assert current.redis_url is not None

        def load(names: list[str]) -> pl.DataFrame:
            rows = snapshot(held).vectors[timeframe]
            return rows.filter(rows["symbol"].is_in(names))

        with serving_client(current.redis_url.get_secret_value()) as client:
            found = overview(held, client, symbol, timeframe, datetime.now(UTC), FRESH, load)
    if found.vector is None:
        raise OnlineError(
            f"there is no state vector of {found.symbol} yet; backfill a range with "
            "`feature-pipeline backfill --start ... --end ...`"
        )
    if as_json:
        print_json(_overview(found))
        return
    out = console()
    for part in terminal.overview(found):
        out.print(part)
    for note in found.notes:
        out.print(f"[yellow]{note}[/]", soft_wrap=True)


def _overview(found: Overview) -> dict[str, Any]:
    from feature_pipeline.schemas import STATE_VECTOR_FIELDS

    vector, features, history = found.vector, found.features, found.history
    assert vector is not None
    return {
        "symbol": found.symbol,
        "as_of": vector.as_of,
        "age_s": vector.age.total_seconds(),
        "fresh": vector.fresh,
        "source": vector.source,
        "revision": vector.revision,
        "missing": vector.missing,
        "state_vector": dict(zip(STATE_VECTOR_FIELDS, vector.values.tolist(), strict=True)),
        "features": None if features is None else features.fields,
        "history": None if history is None else history.to_dict(as_series=False),
        "notes": found.notes,
    }


def get(
    symbol: Symbol,
    features: Annotated[
        list[str],
        typer.Argument(
            help="Names: a feature, a field of the state vector, a column of bars or regimes; "
            "TABLE.COLUMN where a name is ambiguous.",
            autocompletion=complete.features,
            metavar="FEATURE",
            show_default=False,
        ),
    ],
    as_of: AsOf = "",
    as_known_at: AsKnownAt = "",
    start: Annotated[str, typer.Option(help="A series: its first UTC day, YYYY-MM-DD.")] = "",
    end: Annotated[str, typer.Option(help="A series: its last UTC day, included.")] = "",
    timeframe: Timeframe = DAILY,
    as_json: Json = False,
) -> None:
    """Values of features by name, at any past moment: never one that was not available by then.

    Of each table the newest row counts, or, with --start or --end, every row of those days. Moments
    are ISO 8601; one without a zone is UTC.

    \b
    Examples:
      feature-pipeline get AAPL rsi_14 returns_20d regime
      feature-pipeline get AAPL rsi_14 --as-of 2012-06-14T15:00-04:00
      feature-pipeline get AAPL ohlcv_1d.close sma_20 --start 2012-06-01 --end 2012-06-30
      feature-pipeline get AAPL state_vectors_1d.close --as-known-at 2026-03-01
    """
    from feature_pipeline.resources import default_resources
    from feature_pipeline.serving import lookup
    from feature_pipeline.serving.names import resolve_all
    from feature_pipeline.symbols import checked_symbol

    checked_symbol(symbol)
    places = resolve_all(features, tables_of(timeframe), timeframe)
    asked = (moment(as_of, "--as-of"), moment(as_known_at, "--as-known-at"))
    at = lookup.Moment.of(*(a.at if a else None for a in asked))
    span = days(start, end) if start or end else None
    with opened(reading=True) as (current, held):
        scorer = default_resources(current)["scorer"]
        name = held.universe.resolve(symbol).id
        if span:
            rows = lookup.series(held, name, places, span, at, scorer)
        else:
            values = lookup.newest(held, name, places, at, scorer)
    about = {"symbol": name, "as_of": at.as_of, "as_known_at": at.known_at}
    if as_json:
        print_json(about | ({"rows": rows.to_dicts()} if span else {"values": _values(values)}))
    elif span:
        _print_series(about, asked, rows)
    else:
        _print_values(about, asked, values)


def _values(values: list[Value]) -> list[dict[str, Any]]:
    return [asdict(value) for value in values]


def _heading(about: dict[str, Any], asked: tuple[Asked | None, ...]) -> str:
    said = [f"{about['symbol']} as of {about['as_of']:%Y-%m-%d %H:%M:%S} UTC"]
    if about["as_known_at"]:
        said.append(f"as known at {about['as_known_at']:%Y-%m-%d %H:%M:%S} UTC")
    if any(a and not a.zoned for a in asked):
        said.append("(no time zone given: UTC)")
    return ", ".join(said).replace(", (", " (")


def _print_values(
    about: dict[str, Any], asked: tuple[Asked | None, ...], values: list[Value]
) -> None:
    from feature_pipeline.cli import terminal

    out = console()
    out.print(_heading(about, asked), style="bold")
    rows = [
        {
            "feature": value.name,
            "value": value.value,
            "of": value.time,
            "available at": value.available_at,
            "basis": value.availability_basis,
        }
        for value in values
    ]
    out.print(terminal.grid(rows))
    without = [value.name for value in values if value.time is None]
    if without:
        what = "held" if about["as_known_at"] else "available"
        out.print(f"no row of {', '.join(without)} was {what} by then")


def _print_series(
    about: dict[str, Any], asked: tuple[Asked | None, ...], rows: pl.DataFrame
) -> None:
    from feature_pipeline.cli import terminal

    if rows.is_empty():
        raise FeatureError(
            f"no row of {about['symbol']} in those days was available by "
            f"{about['as_of']:%Y-%m-%d %H:%M} UTC; see `feature-pipeline storage` for what is there"
        )
    out = console()
    out.print(_heading(about, asked), style="bold")
    out.print(terminal.grid(rows.tail(_SHOWN_ROWS).to_dicts()))
    if rows.height > _SHOWN_ROWS:
        out.print(f"the last {_SHOWN_ROWS} of {rows.height} rows; --json prints all")


online = typer.Typer(help="What Redis holds.", no_args_is_help=True)


@online.command()
def rebuild(
    force: Annotated[
        bool, typer.Option("--force", help="Remove our keys first: replaces a wrong newer value.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Publish the newest row of everything from the database to Redis.

    \b
    Examples:
      feature-pipeline online rebuild
      feature-pipeline online rebuild --force --json
    """
    from feature_pipeline.automation.publishing import snapshot
    from feature_pipeline.online.rebuild import republish_all
    from feature_pipeline.resources import redis_client

    with opened() as (current, held), redis_client(current) as client:
        report = republish_all(client, lambda: snapshot(held), force=force)
    if as_json:
        print_json(asdict(report))
        return
    out = console()
    out.print(
        f"written {report.written}, refreshed {report.refreshed}, older {report.older}, "
        f"refused {len(report.refused)}"
    )
    for name, reason in report.refused.items():
        out.print(f"refused {name}: {reason}", soft_wrap=True)
