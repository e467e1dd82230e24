"""`features`: the catalogue - what there is, what a change does, and how a new one begins."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_pipeline import timeframes
from feature_pipeline.cli import complete
from feature_pipeline.cli.common import Json, Timeframe, console, opened, print_json, settings
from feature_pipeline.timeframes import DAILY, TIMEFRAMES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from feature_pipeline.features.catalogue import Feature
    from feature_pipeline.impact import AssetImpact, Impact

features = typer.Typer(help="The catalogue of features.", no_args_is_help=True)


@features.command("list")
def list_(
    asset: Annotated[
        str, typer.Option(help="Only this asset's.", autocompletion=complete.assets)
    ] = "",
    category: Annotated[str, typer.Option(help="Only of this category.")] = "",
    timeframe: Timeframe = DAILY,
    as_json: Json = False,
) -> None:
    """Every feature: where it is stored, its unit, how far back it looks, one sentence.

    \b
    Examples:
      feature-pipeline features list
      feature-pipeline features list --asset indicators_1d
      feature-pipeline features list --category momentum --json | jq -r '.[].name'
      feature-pipeline features list --timeframe 1h
    """
    from feature_pipeline.errors import FeatureError
    from feature_pipeline.features.catalogue import ALL_DECLARED, declared

    there = declared(_known(timeframe))
    if asset and asset not in ALL_DECLARED:
        raise FeatureError(f"{asset} has no features; {', '.join(there)} have")
    shown = {asset: ALL_DECLARED[asset]} if asset else there
    every = [(of, feature) for of, found in shown.items() for feature in found]
    categories = sorted({feature.category for _, feature in every})
    if category and category not in categories:
        raise FeatureError(f"there is no category {category!r}; there is {', '.join(categories)}")
    wanted = [(of, feature) for of, feature in every if category in ("", feature.category)]
    if as_json:
        print_json([_brief(of, feature) for of, feature in wanted])
        return
    out = console()
    for of in dict.fromkeys(of for of, _ in wanted):
        out.print(_listed(of, [feature for holder, feature in wanted if holder == of]))
        out.print()


def _known(timeframe: str) -> str:
    """The catalogue knows every timeframe, whether or not universe.yaml has it."""
    from feature_pipeline.errors import FeatureError

    if timeframe not in TIMEFRAMES:
        raise FeatureError(
            f"there is no timeframe {timeframe!r}; there are {', '.join(TIMEFRAMES)}"
        )
    return timeframe


def _listed(asset: str, features: Sequence[Feature]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in (asset, "version", "unit", "looks back", "what it is"):
        table.add_column(heading, overflow="fold", no_wrap=heading in (asset, "looks back"))
    for feature in features:
        words = (feature.column, str(feature.version), feature.unit, feature.lookback)
        table.add_row(*words, feature.description)
    return table


def _brief(asset: str, feature: Feature) -> dict[str, Any]:
    return {
        "name": feature.name,
        "version": feature.version,
        "asset": asset,
        "column": feature.column,
        "unit": feature.unit,
        "category": feature.category,
        "lookback_bars": feature.lookback_bars,
        "lookback_days": feature.lookback_days,
        "lookback": feature.lookback,
        "description": feature.description,
    }


@features.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            help="A feature, or its column.", autocompletion=complete.features, show_default=False
        ),
    ],
    timeframe: Timeframe = DAILY,
    as_json: Json = False,
) -> None:
    """A feature's declaration, its expression, what it reads and what depends on it.

    Where the database is up, what it holds of the feature's asset as well; none is started for it.

    \b
    Examples:
      feature-pipeline features show atr_14
      feature-pipeline features show sma_ratio_50 --json | jq .dependents
    """
    found = _declared(name, _known(timeframe))
    found["stored"] = _stored(found["asset"])
    if as_json:
        print_json(found)
        return
    _print_feature(console(), found)


def _declared(name: str, timeframe: str) -> dict[str, Any]:
    import inspect
    from functools import partial

    from feature_pipeline.features.catalogue import code_version, dependents, find, touched

    asset, feature = find(name, timeframe)
    call = feature.expression
    function = call.func if isinstance(call, partial) else call
    return {
        **_brief(asset, feature),
        "computation": feature.computation,
        "part": feature.part,
        "basis": feature.basis,
        "inputs": [f"{of}.{column}" for of, names in feature.inputs.items() for column in names],
        "needs": list(feature.needs),
        "universe": feature.universe,
        "dependents": [str(ref) for ref in dependents(feature.column, timeframe)],
        "stale_with_it": list(touched(feature.column, timeframe)),
        "code_version": code_version(asset),
        "source": inspect.getsource(function).rstrip(),
    }


def _stored(asset: str) -> dict[str, Any] | str:
    """What the database holds of an asset; in words, why that is not known."""
    from feature_pipeline.errors import FeaturePipelineError
    from feature_pipeline.impact import of_asset
    from feature_pipeline.resources import code_versions, store
    from feature_pipeline.stack import Stack

    try:
        held = store(Stack(settings()).attach().resolved_settings(), reading=True)
        with held.database:
            versions = code_versions(held.universe)
            if asset not in versions:
                return f"universe.yaml has no bars of {timeframes.of(asset)}"
            return asdict(of_asset(held.database, asset, versions[asset]))
    except FeaturePipelineError as error:
        return str(error)


def _print_feature(out: Console, found: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.syntax import Syntax
    from rich.table import Table

    out.print(f"[bold]{found['name']}[/]  {escape(found['description'])}", soft_wrap=True)
    facts = {
        "column": f"{found['asset']}.{found['column']}, version {found['version']}",
        "unit": found["unit"],
        "category": found["category"],
        "looks back": found["lookback"],
        "reads": ", ".join([*found["inputs"], *found["needs"]]),
        "over": "the universe: members, sectors or benchmark" if found["universe"] else "",
        "price basis": "the split-adjusted series, brought back to the bar's own day"
        if found["basis"] == "own day"
        else "",
        "read by": ", ".join(found["dependents"]) or "nothing",
        "a change makes stale": ", ".join(found["stale_with_it"]),
        "code version": f"{found['code_version']} of {found['asset']}",
        "stored": _stored_words(found["stored"]),
        "computed as": found["computation"] + (f", its {found['part']}" if found["part"] else ""),
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for what, said in facts.items():
        if said:
            table.add_row(f"[dim]{what}[/]", escape(said))
    out.print(table)
    out.print()
    out.print(Syntax(found["source"], "python", background_color="default", word_wrap=True))


def _stored_words(stored: dict[str, Any] | str) -> str:
    if isinstance(stored, str):
        return f"not asked: {stored}"
    if not stored["of_days"]:
        return "no day is written"
    return (
        f"{stored['of_days']:,} days written, {stored['days']:,} of them ({stored['rows']:,} rows) "
        "by other code"
    )


@features.command()
def diff(
    against: Annotated[
        str,
        typer.Option(
            metavar="REF", help="Compare with this commit instead; asks no database, starts none."
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """What the code at hand would change: features, columns, code versions, days to compute again.

    Compared with what the database was last migrated to and filled with. Changes nothing.

    \b
    Examples:
      feature-pipeline features diff
      feature-pipeline features diff --against main
      feature-pipeline features diff --json | jq '.assets[] | {asset, days, rows}'
    """
    from feature_pipeline.impact import against_commit, against_database
    from feature_pipeline.resources import code_versions, load_universe

    if against:
        found = against_commit(against, load_universe(settings()).timeframes)
    else:
        with opened(reading=True) as (_, held):
            found = against_database(held.database, code_versions(held.universe))
    if as_json:
        print_json(asdict(found))
        return
    _print_impact(console(), found)


def _print_impact(out: Console, found: Impact) -> None:
    from rich.markup import escape
    from rich.table import Table

    if found.nothing:
        out.print(f"nothing changes: {found.against} agrees with the code at hand")
    if found.changes:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("feature", "change", "computed again"):
            table.add_column(heading, overflow="fold")
        for change in found.changes:
            said = {"new": f"new column {change.asset}.{change.column}", "removed": "gone"}
            what = said.get(change.kind) or "; ".join(change.what)
            again = ", ".join(change.stale) if change.kind != "removed" else ""
            table.add_row(change.feature, escape(what), again or "[dim]nothing[/]")
        out.print(table)
    if found.assets:
        out.print()
        out.print(_assets(found.assets))
    for line in _advice(found):
        out.print(line, soft_wrap=True)


def _assets(assets: Sequence[AssetImpact]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("asset", "code version", "days to compute again", "rows"):
        table.add_column(heading, overflow="fold")
    for row in assets:
        days = rows = "[dim]not asked[/]"
        if row.days is not None:
            span = f", {row.first} to {row.last}" if row.first else ""
            days, rows = f"{row.days:,} of {row.of_days:,}{span}", f"{row.rows:,}"
        before = row.before[-1] if row.before else "none"
        table.add_row(row.asset, f"{before} -> {row.code_version}", days, rows)
    return table


def _advice(found: Impact) -> Iterator[str]:
    """What to do about it, in the order in which it is done."""
    if found.missing:
        names = ", ".join(found.missing)
        if found.migrations:
            yield f"\nnot in the database: {names}; run: feature-pipeline migrate"
        else:
            yield f"\nnot in the database: {names}; no migration adds it: write one in sql/"
    elif found.migrations:
        yield f"\nnot applied: {', '.join(found.migrations)}; run: feature-pipeline migrate"
    if found.unknown:
        yield f"\nno longer written, and kept as it is: {', '.join(found.unknown)}"
    first = min((row.first for row in found.assets if row.first), default=None)
    last = max((row.last for row in found.assets if row.last), default=None)
    if first and last:
        names = ",".join(row.asset for row in found.assets)
        yield (
            f"\nto compute them again: feature-pipeline backfill --start {first} --end {last} "
            f"--assets {names}"
        )


@features.command()
def new(
    name: Annotated[str, typer.Argument(help="Of feature and column.", show_default=False)],
    unit: Annotated[str, typer.Option(help='Of its values: "ratio", "fraction", "price", ...')],
    category: Annotated[str, typer.Option(help="What it speaks of: trend, momentum, ...")],
    description: Annotated[str, typer.Option(help="One sentence, with a full stop.")],
    asset: Annotated[
        str, typer.Option(help="features_1d or indicators_1d.", autocompletion=complete.assets)
    ] = "features_1d",
    lookback_bars: Annotated[int, typer.Option(help="Prior bars that its value depends on.")] = 0,
    lookback_days: Annotated[int, typer.Option(help="UTC days that its events reach back.")] = 0,
    expression: Annotated[
        str,
        typer.Option(
            help="A function of features/expressions.py with its arguments; without it, one of the "
            "feature's name is written, to be edited."
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Begin a feature: writes its declaration, its migration and a test to fill in.

    In a checkout that is installed with `pip install -e .`. What it reads follows from its
    expression.

    \b
    Examples:
      feature-pipeline features new sma_30 --asset indicators_1d \\
        --unit price --category trend --lookback-bars 29 \\
        --description "Simple moving average of the last 30 closes." \\
        --expression "ex.sma(30)"
      feature-pipeline features new returns_3d \\
        --unit fraction --category returns --lookback-bars 3 \\
        --description "Simple total return over 3 sessions."
    """
    from feature_pipeline import scaffold

    request = scaffold.Request(
        name, asset, unit, category, description, lookback_bars, lookback_days, expression
    )
    files = scaffold.draft(request)
    files.write()
    if as_json:
        print_json({"name": name, "asset": asset, "files": [str(path) for path in files.texts]})
        return
    out = console()
    for path in files.texts:
        out.print(f"wrote {path}", soft_wrap=True)
    out.print("\nWhat is left to do:")
    for number, step in enumerate(_steps(files), 1):
        out.print(f"  {number}. {step}", soft_wrap=True)


def _steps(files: Any) -> Iterator[str]:
    if files.expression:
        yield (
            f"write the expression: {files.expression}; adapt `inputs` in {files.declaration} to "
            "what it reads"
        )
    yield f"compute one value by hand: {files.test}"
    yield f"see it pass: python -m pytest {files.test} feature_pipeline_tests/features"
    yield "keep its values: python -m feature_pipeline_tests.features.test_golden"
    yield "add the column: feature-pipeline migrate"
    yield "see what is computed again, and the command for it: feature-pipeline features diff"
