"""The catalogue: the tables, lookbacks, code versions and registry that follow from declarations.

Nothing here says what a feature is, or how it is computed: a feature that is not declared in
`declarations` does not exist.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version as installed_version

import polars as pl

from feature_pipeline.features.declarations import (
    ACTIONS,
    FEATURES,
    FEATURES_ASSET,
    INDICATORS,
    INDICATORS_ASSET,
    MACRO,
    REGIME_ASSET,
    REGIME_MODEL_VERSION,
    REGIME_WINDOW,
    SCORES,
    SENTIMENT_VERSION,
    STATE_ASSET,
    STATE_FIELDS,
    Feature,
)
from feature_pipeline.schemas import (
    BAR_TIME,
    SOURCE,
    SOURCE_TABLES,
    SYMBOL,
    Column,
    Input,
    Rule,
    TableSchema,
    time_columns,
)

__all__ = [
    "FEATURES",
    "FEATURES_1D",
    "INDICATORS",
    "INDICATORS_1D",
    "REGIME_PREDICTIONS_1D",
    "SENTIMENT_SCORES",
    "STATE_FIELDS",
    "STATE_VECTORS_1D",
    "TABLES",
    "Feature",
    "build_tables",
    "code_version",
    "definitions",
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
            on_missing="gap" if asset in (ACTIONS, SCORES, MACRO) else "fail",
        )
        for asset, names in columns.items()
    )


def _derived(
    asset: str, description: str, columns: Iterable[Column], inputs: tuple[Input, ...]
) -> TableSchema:
    return TableSchema(
        asset=asset,
        table=asset,
        description=description,
        key=("symbol", "time"),
        columns=(SYMBOL, *BAR_TIME, *columns),
        mode="replace",
        inputs=inputs,
    )


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
)

INDICATORS_1D = _derived(
    INDICATORS_ASSET,
    "Technical indicators on the split-adjusted series, prices on the basis of their own day.",
    (feature.schema for feature in INDICATORS),
    _inputs(INDICATORS, where={}, margin=_margin),
)

REGIME_PREDICTIONS_1D = _derived(
    REGIME_ASSET,
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
        Column("inputs", pl.String, "ADX and percentile it rests on", sql="jsonb", nullable=True),
        Column("model_version", pl.String, "version of the rule"),
    ),
    (
        Input(
            asset=INDICATORS_ASSET,
            columns=("adx_14", "bb_upper", "bb_middle", "bb_lower"),
            # The oldest remembered bar needs a percentile of its own.
            lookback_bars=2 * (REGIME_WINDOW - 1),
        ),
    ),
)


def build_tables(model: str, model_revision: str) -> dict[str, TableSchema]:
    """All tables, with the active sentiment model in the inputs of those that read scores.

    Args:
        model: name of the model whose scores the features read.
        model_revision: its revision.

    Returns:
        Asset name -> schema, sources before what derives from them.
    """
    where = {"model": model, "model_revision": model_revision}
    tables = (
        *SOURCE_TABLES,
        SENTIMENT_SCORES,
        INDICATORS_1D,
        _derived(
            FEATURES_ASSET,
            "Features per symbol and session: returns, risk, volume, cross-section, sentiment.",
            (feature.schema for feature in FEATURES),
            _inputs(FEATURES, where=where),
        ),
        REGIME_PREDICTIONS_1D,
        _derived(
            STATE_ASSET,
            "The state vector of trading agents: 14 scaled numbers per symbol and session.",
            (
                *(field.schema for field in STATE_FIELDS),
                Column(
                    "document_count",
                    pl.Int64,
                    "documents behind sentiment",
                    unit="documents",
                    nullable=True,
                ),
                Column("missing", pl.List(pl.String), "the fields that are null"),
            ),
            _inputs(STATE_FIELDS, where=where),
        ),
    )
    return {table.asset: table for table in tables}


TABLES = build_tables("vader", installed_version("vaderSentiment"))
FEATURES_1D = TABLES[FEATURES_ASSET]
STATE_VECTORS_1D = TABLES[STATE_ASSET]

_HELD: dict[str, tuple[str, ...]] = {
    SCORES: (f"{SCORES}@{SENTIMENT_VERSION}",),
    INDICATORS_ASSET: tuple(feature.tag for feature in INDICATORS),
    FEATURES_ASSET: tuple(feature.tag for feature in FEATURES),
    REGIME_ASSET: (f"regime@{REGIME_MODEL_VERSION}",),
    STATE_ASSET: tuple(field.tag for field in STATE_FIELDS),
}


def code_version(asset: str, tables: Mapping[str, TableSchema] = TABLES) -> str:
    """A short, stable string that changes when the asset's values may: features, versions, model.

    A change of an upstream asset's code is none of this one's: it shows in the upstream's content.
    """
    model = {
        f"{reader.asset}.{name}={value}"
        for table in tables.values()
        for reader in table.inputs
        if reader.asset == SCORES and (table.asset == asset or asset == SCORES)
        for name, value in reader.where.items()
    }
    held = _HELD.get(asset, (f"{asset}@1",))
    return hashlib.sha256("\n".join([*held, *sorted(model)]).encode()).hexdigest()[:16]


def definitions() -> pl.DataFrame:
    """The registry's rows, one per declared feature, in the order of their tables.

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
            for table, features in (
                (INDICATORS_ASSET, INDICATORS),
                (FEATURES_ASSET, FEATURES),
                (STATE_ASSET, STATE_FIELDS),
            )
            for feature in features
        ]
    )
