"""What people call a value -> the column of the table that holds it, and what that one reads.

The catalogue knows the features; the columns of bars, regimes and state vectors count as well.
Pure: no row is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from feature_pipeline import timeframes
from feature_pipeline.errors import FeatureError
from feature_pipeline.features.catalogue import ALL_DECLARED, TABLES, Feature
from feature_pipeline.features.declarations import MACRO, MACRO_SERIES
from feature_pipeline.schemas import Input, TableSchema
from feature_pipeline.timeframes import DAILY

_ABOUT_THE_ROW = ("symbol", "time", "available_at", "availability_basis")


@dataclass(frozen=True)
class Named:
    """A value's place.

    Args:
        name: as it was asked for.
        asset, column: where it is.
        feature: its declaration; None for what is no feature (a bar's close, a regime).
    """

    name: str
    asset: str
    column: str
    feature: Feature | None = field(default=None, compare=False)

    @property
    def path(self) -> str:
        """The name that is never ambiguous: `asset.column`."""
        return f"{self.asset}.{self.column}"


def by_bar(tables: Mapping[str, TableSchema] = TABLES) -> dict[str, TableSchema]:
    """The tables with one row per symbol and bar, of which values can be asked for by name."""
    return {asset: table for asset, table in tables.items() if table.key == ("symbol", "time")}


def every_name(tables: Mapping[str, TableSchema] = TABLES) -> list[Named]:
    """All that can be asked for, table by table, by column."""
    return [
        Named(column.name, asset, column.name, _feature(asset, column.name))
        for asset, table in by_bar(tables).items()
        for column in table.columns
        if column.name not in _ABOUT_THE_ROW
    ]


def resolve(name: str, tables: Mapping[str, TableSchema] = TABLES, timeframe: str = DAILY) -> Named:
    """The place of a value by name.

    `sma_20`, `ohlcv_1d.close`; of a feature with several versions the plain name is the newest one,
    `name__v1` and `name@1` the first. A name that several timeframes have is `timeframe`'s.

    Raises:
        FeatureError: there is no such name, or there are several; names the candidates.
    """
    asset, dot, column = name.rpartition(".")
    if dot and asset not in by_bar(tables):
        raise FeatureError(
            f"there is no table {asset!r} with values by bar; there are {', '.join(by_bar(tables))}"
        )
    known = [place for place in every_name(tables) if not dot or place.asset == asset]
    found = [place for place in known if _is_called(place, column)]
    found = _newest(found)
    own = [place for place in found if timeframes.of(place.asset) == timeframe]
    found = own or found
    if len(found) == 1:
        place = found[0]
        return Named(name, place.asset, place.column, place.feature)
    if found:
        raise FeatureError(
            f"{name!r} is ambiguous: write {' or '.join(place.path for place in found)}"
        )
    shown = get_close_matches(column, {place.column for place in known}, 3)
    where = f"{asset} has no column" if dot else "there is no feature"
    hint = f"did you mean {' or '.join(shown)}" if shown else "feature-pipeline features list"
    raise FeatureError(f"{where} {column!r}; {hint}")


def resolve_all(
    names: Sequence[str], tables: Mapping[str, TableSchema] = TABLES, timeframe: str = DAILY
) -> list[Named]:
    """The places of values by name, each name once.

    Raises:
        FeatureError: see `resolve`.
    """
    return [resolve(name, tables, timeframe) for name in dict.fromkeys(names)]


def inputs_of(place: Named, table: TableSchema) -> tuple[Input, ...]:
    """What a value reads: of a feature what it declares, else all that its table does.

    The sessions and days are the declared ones, not the longest of the table. Bars come along where
    they are not declared: a row is a bar's, of its moment, and null after a gap.
    """
    if place.feature is None:
        return table.inputs
    feature = place.feature
    return tuple(
        replace(
            needed,
            lookback_bars=feature.lookback_bars,
            lookback_days=feature.lookback_days if needed.asset in feature.inputs else 0,
        )
        for needed in table.inputs
        if needed.asset in feature.inputs or timeframes.stem(needed.asset) == "ohlcv"
    )


def series_of(feature: Feature | None) -> list[str]:
    """The macro series that a feature reads, by their names in its computation."""
    if feature is None or MACRO not in feature.inputs:
        return []
    return [series for series in MACRO_SERIES if series in feature.computation]


def _is_called(place: Named, word: str) -> bool:
    if word == place.column:
        return True
    feature = place.feature
    if feature is None:
        return False
    tags = (feature.name, feature.tag, f"{feature.name}__v{feature.version}")
    return word in tags


def _newest(found: Sequence[Named]) -> list[Named]:
    """Of several versions of one feature the newest, of each table."""
    best: dict[str, Named] = {}
    for place in found:
        held = best.get(place.asset)
        if held is None or _version(place) > _version(held):
            best[place.asset] = place
    return list(best.values())


def _version(place: Named) -> int:
    return place.feature.version if place.feature else 1


def _feature(asset: str, column: str) -> Feature | None:
    return next((f for f in ALL_DECLARED.get(asset, ()) if f.column == column), None)
