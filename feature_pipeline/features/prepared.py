"""The columns that expressions may read, and what of which table each of them is made of.

`indicators` and `price_features` prepare them under these names. From an expression follows so what
its declaration has to name as inputs; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import polars as pl

from feature_pipeline.errors import FeatureError
from feature_pipeline.features.declarations import (
    ACTIONS,
    BARS,
    FEATURES,
    FEATURES_ASSET,
    INDICATORS,
    INDICATORS_ASSET,
    INSIDERS,
    SCORES,
)

_Reads = Mapping[str, tuple[str, ...]]

_ACTIONS = ("symbol", "kind", "value")
_FILED = ("accession", "symbol", "owner", "form")


def _adjusted(*columns: str) -> _Reads:
    return {BARS: columns, ACTIONS: _ACTIONS}


_OVER_UNIVERSE = frozenset({"benchmark_log_return", "benchmark_available_at", "sector", "member"})

PREPARED: Mapping[str, Mapping[str, _Reads]] = {
    INDICATORS_ASSET: {name: _adjusted(name) for name in ("high", "low", "close")},
    FEATURES_ASSET: {
        **{name: {} for name in ("symbol", "time", "available_at", *sorted(_OVER_UNIVERSE))},
        **{name: {BARS: (name,)} for name in ("open", "high", "low", "close", "volume")},
        "total_close": _adjusted("close"),
        "log_return": _adjusted("close"),
        "benchmark_log_return": _adjusted("close"),
        "split_volume": _adjusted("close", "volume"),
        "news_24h": {SCORES: ("document_id", "symbol", "channel", "sentiment", "confidence")},
        "reddit_7d": {SCORES: ("document_id", "symbol", "channel")},
        "insiders_90d": {
            INSIDERS: (*_FILED, "security", "derivative", "code", "value", "shares_after")
        },
        **{feature.column: {INDICATORS_ASSET: (feature.column,)} for feature in INDICATORS},
    },
}
"""Asset -> name of a column that its expressions may read -> what it is made of."""

# Features that others of the same table may read: they are evaluated in a first step.
_SHARED = {INDICATORS_ASSET: (), FEATURES_ASSET: tuple(f for f in FEATURES if not f.needs)}

_ORDER = (BARS, ACTIONS, INDICATORS_ASSET, SCORES, INSIDERS)


@dataclass(frozen=True)
class Reading:
    """What an expression reads, as its declaration has to say it."""

    inputs: Mapping[str, tuple[str, ...]]
    needs: tuple[str, ...]
    universe: bool


def reading(asset: str, expression: pl.Expr) -> Reading:
    """What of which table an expression of an asset's feature reads.

    A feature of the same table that it reads brings that one's inputs along.

    Raises:
        FeatureError: it reads a column that is not prepared for this asset.
    """
    own = {feature.column: feature for feature in _SHARED[asset]}
    names = tuple(dict.fromkeys(expression.meta.root_names()))
    unknown = [name for name in names if name not in PREPARED[asset] and name not in own]
    if unknown:
        raise FeatureError(
            f"the expression reads {', '.join(unknown)}; expressions of {asset} may read "
            f"{', '.join(sorted([*PREPARED[asset], *own]))}"
        )
    needs = tuple(name for name in names if name in own and name not in PREPARED[asset])
    parts = [PREPARED[asset][name] for name in names if name not in needs]
    parts += [own[name].inputs for name in needs]
    aggregates = not _OVER_UNIVERSE.isdisjoint(names)
    return Reading(
        inputs=_merged(parts),
        needs=needs,
        universe=aggregates or any(own[name].universe for name in needs),
    )


def _merged(parts: Iterable[_Reads]) -> dict[str, tuple[str, ...]]:
    columns: dict[str, dict[str, None]] = {}
    for part in parts:
        for asset, names in part.items():
            columns.setdefault(asset, {}).update(dict.fromkeys(names))
    return {asset: tuple(columns[asset]) for asset in _ORDER if asset in columns}
