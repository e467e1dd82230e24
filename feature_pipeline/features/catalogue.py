"""The catalogue: the tables, lookbacks, code versions and registry that follow from declarations.

Nothing here says what a feature is, or how it is computed: a feature that is not declared in
`declarations` does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version as installed_version

import polars as pl

from feature_pipeline import timeframes
from feature_pipeline.errors import FeatureError
from feature_pipeline.features.declarations import (
    ACTIONS,
    BARS,
    FEATURES,
    FEATURES_ASSET,
    INDICATORS,
    INDICATORS_ASSET,
    INSIDERS,
    MACRO,
    REGIME_ASSET,
    REGIME_MODEL_VERSION,
    REGIME_WINDOW,
    SCORES,
    SENTIMENT_VERSION,
    STATE_ASSET,
    STATE_FIELDS,
    Feature,
    at,
)
from feature_pipeline.features.dependencies import (
    ColumnGraph,
    ColumnRef,
    Declared,
    Reads,
    across_tables,
    column_graph,
    following,
    reached,
    version_of,
)
from feature_pipeline.schemas import (
    EVENT_TABLES,
    SOURCE,
    SOURCE_TABLES,
    SYMBOL,
    TIMEFRAMES,
    Column,
    Input,
    Rule,
    TableSchema,
    bar_key,
    ohlcv,
    time_columns,
)
from feature_pipeline.timeframes import DAILY

__all__ = [
    "ALL_DECLARED",
    "ALL_TABLES",
    "DECLARED",
    "FEATURES",
    "INDICATORS",
    "SENTIMENT_SCORES",
    "STATE_FIELDS",
    "TABLES",
    "Feature",
    "build_tables",
    "code_version",
    "column_inputs",
    "declared",
    "definitions",
    "dependents",
    "find",
    "over_universe",
    "touched",
]

# -- tables ---------------------------------------------------------------------------------------


def _margin(bars: int) -> int:
    """A measured lookback, rounded up to the next hundred bars."""
    return -(-bars // 100) * 100


def _inputs(
    features: Iterable[Feature],
    *,
    where: Mapping[str, str],
    margin: Callable[[int], int] = lambda bars: bars,
) -> tuple[Input, ...]:
    """What a table of these features reads: per asset, all columns and the longest lookbacks."""
    columns: dict[str, dict[str, None]] = {}
    bars: dict[str, int] = {}
    days: dict[str, int] = {}
    for feature in features:
        for asset, names in feature.inputs.items():
            columns.setdefault(asset, {}).update(dict.fromkeys(names))
            bars[asset] = max(bars.get(asset, 0), feature.lookback_bars)
            days[asset] = max(days.get(asset, 0), feature.lookback_days)
    return tuple(
        Input(
            asset=asset,
            columns=tuple(names),
            lookback_bars=margin(bars[asset]),
            lookback_days=days[asset],
            where=where if asset == SCORES else {},
            on_missing="gap" if asset in (ACTIONS, SCORES, MACRO, INSIDERS) else "fail",
        )
        for asset, names in columns.items()
    )


def _derived(
    asset: str,
    description: str,
    columns: Iterable[Column],
    inputs: tuple[Input, ...],
    rules: tuple[Rule, ...] = (),
) -> TableSchema:
    return TableSchema(
        asset=asset,
        table=asset,
        description=description,
        key=("symbol", "time"),
        columns=(*bar_key(timeframes.of(asset) or DAILY), *columns),
        mode="replace",
        inputs=inputs,
        rules=rules,
    )


def _scale(field: Feature) -> Rule:
    """A field of the state vector keeps to its unit, `0 to 1` or `0 or 1`: agents read what is
    stored within a second, so what breaks its scale must not be stored at all."""
    low, word, high = field.unit.split()
    least, most, value = float(low), float(high), pl.col(field.column)
    inside = value.is_in([least, most]) if word == "or" else value.is_between(least, most)
    return Rule(f"{field.column} is outside of its scale, {field.unit}", ~inside)


def _document_input(channel: str) -> Input:
    return Input(
        asset=channel,
        columns=("document_id", "channel", "source", "symbols", "title", "text"),
        on_missing="gap",
    )


SENTIMENT_SCORES = TableSchema(
    asset=SCORES,
    table=SCORES,
    description="What a model makes of each document, per symbol: P(positive) - P(negative).",
    key=("document_id", "symbol", "model", "model_revision", "available_at"),
    columns=(
        Column("document_id", pl.String, "the document, as in documents"),
        *time_columns("publication of the document"),
        SYMBOL,
        Column("channel", pl.String, "news or reddit"),
        SOURCE,
        Column("sentiment", pl.Float64, "P(positive) - P(negative)", unit="-1 to 1"),
        Column("label", pl.String, "positive, negative or neutral"),
        Column("confidence", pl.Float64, "probability of the label", unit="0 to 1"),
        Column("model", pl.String, "who scored it"),
        Column("model_revision", pl.String, "which revision of the model"),
    ),
    mode="accumulate",
    day_column="available_at",
    inputs=(_document_input("news"), _document_input("reddit")),
    rules=(
        Rule(
            "sentiment is missing or lies outside [-1, 1]",
            ~pl.col("sentiment").is_between(-1, 1).fill_null(value=False),
        ),
        Rule(
            "confidence is missing or lies outside [0, 1]",
            ~pl.col("confidence").is_between(0, 1).fill_null(value=False),
        ),
        Rule(
            "label is none of positive, negative, neutral",
            ~pl.col("label").is_in(["positive", "negative", "neutral"]).fill_null(value=False),
        ),
    ),
    may_be_empty=True,
    repeats=("document_id", "symbol", "model", "model_revision"),
)


def declared(timeframe: str) -> Declared:
    """The features of a timeframe's assets, in the order of their columns."""
    tables = {INDICATORS_ASSET: INDICATORS, FEATURES_ASSET: FEATURES, STATE_ASSET: STATE_FIELDS}
    return {timeframes.at(a, timeframe): at(features, timeframe) for a, features in tables.items()}


def _indicators(timeframe: str) -> TableSchema:
    (asset, features), *_ = declared(timeframe).items()
    return _derived(
        asset,
        "Technical indicators on the split-adjusted series, prices on the basis of their own day.",
        (feature.schema for feature in features),
        _inputs(features, where={}, margin=_margin),
    )


def _regime_predictions(timeframe: str) -> TableSchema:
    return _derived(
        timeframes.at(REGIME_ASSET, timeframe),
        "Market regime per symbol: a rule with hysteresis on ADX and Bollinger width.",
        (
            Column("regime", pl.String, "trend, range or transition", nullable=True),
            Column(
                "confidence",
                pl.Float64,
                "distance from the threshold that would end the label",
                unit="0 to 1",
                nullable=True,
            ),
            Column(
                "inputs", pl.String, "ADX and percentile it rests on", sql="jsonb", nullable=True
            ),
            Column("model_version", pl.String, "version of the rule"),
        ),
        (
            Input(
                asset=timeframes.at(INDICATORS_ASSET, timeframe),
                columns=("adx_14", "bb_upper", "bb_middle", "bb_lower"),
                # The oldest remembered bar needs a percentile of its own.
                lookback_bars=2 * (REGIME_WINDOW - 1),
            ),
        ),
    )


def _features(timeframe: str, where: Mapping[str, str]) -> TableSchema:
    _, (asset, features), _ = declared(timeframe).items()
    return _derived(
        asset,
        f"Features per symbol and {_each(timeframe)}: returns, risk, volume, cross-section, "
        "sentiment, insiders.",
        (feature.schema for feature in features),
        _inputs(features, where=where),
    )


def _state_vectors(timeframe: str, where: Mapping[str, str]) -> TableSchema:
    *_, (asset, fields) = declared(timeframe).items()
    count = "documents behind sentiment"
    return _derived(
        asset,
        f"The state vector of trading agents: 14 scaled numbers per symbol and {_each(timeframe)}.",
        (
            *(field.schema for field in fields),
            Column("document_count", pl.Int64, count, unit="documents", nullable=True),
            Column("missing", pl.List(pl.String), "the fields that are null"),
        ),
        _inputs(fields, where=where),
        tuple(_scale(field) for field in fields),
    )


def _each(timeframe: str) -> str:
    return "session" if timeframe == DAILY else "bar"


def build_tables(
    model: str, model_revision: str, of: Sequence[str] = (DAILY,)
) -> dict[str, TableSchema]:
    """All tables, with the active sentiment model in the inputs of those that read scores.

    Args:
        model: name of the model whose scores the features read.
        model_revision: its revision.
        of: the timeframes that there are.

    Returns:
        Asset name -> schema, sources before what derives from them.
    """
    where = {"model": model, "model_revision": model_revision}
    chosen = [timeframe for timeframe in TIMEFRAMES if timeframe in of]
    tables = (
        *(ohlcv(timeframe) for timeframe in chosen),
        *EVENT_TABLES,
        # What another model has scored is not collected, though its day may be written.
        replace(SENTIMENT_SCORES, written_by=f"by@{model}@{model_revision}"),
        *(
            table
            for timeframe in chosen
            for table in (
                _indicators(timeframe),
                _features(timeframe, where),
                _regime_predictions(timeframe),
                _state_vectors(timeframe, where),
            )
        ),
    )
    return {table.asset: table for table in tables}


ALL_TABLES = build_tables("vader", installed_version("vaderSentiment"), TIMEFRAMES)
"""Every table that there can be; a deployment has those of its timeframes (`build_tables`)."""

TABLES = {asset: table for asset, table in ALL_TABLES.items() if not table.intraday}
"""The tables of a deployment with daily bars alone."""

# -- what follows from what -----------------------------------------------------------------------

ALL_DECLARED: Declared = {
    asset: features for timeframe in TIMEFRAMES for asset, features in declared(timeframe).items()
}
"""Asset -> its features, in the order of their columns, of every timeframe."""

DECLARED: Declared = declared(DAILY)
"""The same of the daily assets alone."""


def _keys(of: str) -> dict[str, Reads]:
    key = bar_key(timeframes.of(of) or DAILY)
    return {column.name: {of: (column.name,)} for column in key}


def _of_documents(*names: str) -> Reads:
    return {"news": names, "reddit": names}


def _beside_features(timeframe: str) -> dict[str, dict[str, Reads]]:
    """What the columns of a timeframe's derived tables read that are no feature."""
    bars, indicators, features, regime, state = (
        timeframes.at(asset, timeframe)
        for asset in (BARS, INDICATORS_ASSET, FEATURES_ASSET, REGIME_ASSET, STATE_ASSET)
    )
    rule: Reads = {needed.asset: needed.columns for needed in ALL_TABLES[regime].inputs}
    return {
        indicators: _keys(bars),
        features: _keys(bars),
        regime: {
            **_keys(indicators),
            **dict.fromkeys(("regime", "confidence", "inputs"), rule),
        },
        state: {
            **_keys(bars),
            "document_count": {SCORES: ("document_id", "symbol", "channel")},
            "missing": {state: tuple(field.column for field in STATE_FIELDS)},
        },
    }


_OTHERS: dict[str, dict[str, Reads]] = {
    SCORES: {
        **{
            name: _of_documents(name)
            for name in (
                "document_id",
                "time",
                "available_at",
                "availability_basis",
                "channel",
                "source",
            )
        },
        "symbol": _of_documents("symbols"),
        **{name: _of_documents("title", "text") for name in ("sentiment", "label", "confidence")},
    },
    **{
        asset: reads
        for timeframe in TIMEFRAMES
        for asset, reads in _beside_features(timeframe).items()
    },
}
"""What those columns of derived tables read that are no feature."""


@cache
def _graph() -> ColumnGraph:
    return column_graph(ALL_TABLES, _every(), _OTHERS)


def _every() -> Declared:
    return {**ALL_DECLARED, **DECLARED}


def column_inputs(asset: str) -> dict[str, tuple[ColumnRef, ...]]:
    """Column of an asset -> the columns of other tables that it is computed from; none at sources.

    What follows from a column of the same table follows from that one's inputs.
    """
    graph = _graph()
    names = ALL_TABLES[asset].names
    return {name: across_tables(graph, ColumnRef(asset, name)) for name in names}


def find(name: str, timeframe: str = DAILY) -> tuple[str, Feature]:
    """The asset and the declaration of a feature, by name (its newest version) or by column.

    A name that several timeframes have is `timeframe`'s.

    Raises:
        FeatureError: nothing of that name is declared; names what comes close.
    """
    found = [
        (timeframes.of(asset) == timeframe, feature.version, asset, feature)
        for asset, features in _every().items()
        for feature in features
        if name in (feature.name, feature.column)
    ]
    if not found:
        known = {feature.name for features in _every().values() for feature in features}
        close = get_close_matches(name, known, 3)
        hint = f"did you mean {' or '.join(close)}" if close else "feature-pipeline features list"
        raise FeatureError(f"there is no feature {name!r}; {hint}")
    exact = [entry for entry in found if entry[3].column == name] if "__v" in name else found
    *_, asset, feature = max(exact, key=lambda entry: entry[:2])
    return asset, feature


def dependents(name: str, timeframe: str = DAILY) -> tuple[ColumnRef, ...]:
    """The columns that are computed from a feature, with any number of steps, in graph order; names
    as `find` takes them.

    Raises:
        FeatureError: nothing of that name is declared.
    """
    asset, feature = find(name, timeframe)
    return following(_graph(), [ColumnRef(asset, feature.column)])


def touched(name: str, timeframe: str = DAILY) -> tuple[str, ...]:
    """The assets that a change of a feature makes stale: its own, and its dependents'; names as
    `find` takes them.

    Raises:
        FeatureError: nothing of that name is declared.
    """
    asset, _ = find(name, timeframe)
    return tuple(dict.fromkeys([asset, *(ref.asset for ref in dependents(name, timeframe))]))


def code_version(
    asset: str, tables: Mapping[str, TableSchema] = ALL_TABLES, declared: Declared = ALL_DECLARED
) -> str:
    """A short, stable string that changes when the asset's values may: features, versions, model.

    It covers the declarations of the asset's own columns and of all that these are computed from,
    column by column: a changed feature alters the code versions of its dependents and of no other
    asset. What is computed from other columns of a changed asset stays as it is; once that one has
    been computed again, its consumers look at its newer revision, find what they held, and write
    nothing.

    Args:
        asset: whose.
        tables: the tables, with the active sentiment model in their inputs.
        declared: the features.
    """
    graph = column_graph(tables, declared, _OTHERS)
    model = {
        f"{reader.asset}.{name}={value}"
        for table in tables.values()
        for reader in table.inputs
        if reader.asset == SCORES
        for name, value in reader.where.items()
    }
    held = {
        SCORES: (f"{SCORES}@{SENTIMENT_VERSION}", *model),
        **{
            timeframes.at(REGIME_ASSET, timeframe): (f"regime@{REGIME_MODEL_VERSION}",)
            for timeframe in TIMEFRAMES
        },
        **{table.asset: (f"{table.asset}@1",) for table in SOURCE_TABLES},
    }
    version = version_of(asset, graph, declared, lambda of: held.get(of, ()))
    return " ".join([version, tables[asset].written_by]).strip()


def over_universe(asset: str) -> bool:
    """Whether values of an asset follow from the universe's members, sectors or benchmark."""
    graph = _graph()
    aggregates = {
        ColumnRef(of, feature.column)
        for of, features in ALL_DECLARED.items()
        for feature in features
        if feature.universe
    }
    own = (ColumnRef(asset, name) for name in ALL_TABLES[asset].names)
    return not aggregates.isdisjoint(reached(graph, own))


def definitions(of: Iterable[str] = TIMEFRAMES) -> pl.DataFrame:
    """The registry's rows, one per declared feature of some timeframes, in their tables' order.

    Columns: name, version, description, unit, category, source_table, column, computation (the
    expression by name), dependencies (asset.column), lookback_bars, lookback_days.
    """
    return pl.DataFrame(
        [
            {
                "name": feature.name,
                "version": feature.version,
                "description": feature.description,
                "unit": feature.unit,
                "category": feature.category,
                "source_table": table,
                "column": feature.column,
                "computation": feature.computation,
                "dependencies": [
                    f"{asset}.{column}"
                    for asset, columns in feature.inputs.items()
                    for column in columns
                ],
                "lookback_bars": feature.lookback_bars,
                "lookback_days": feature.lookback_days,
            }
            for timeframe in of
            for table, features in declared(timeframe).items()
            for feature in features
        ]
    )
