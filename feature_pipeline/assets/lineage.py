"""What the UI shows of where an asset comes from: its columns, what they follow from, its code and
how-tos.

Translations of the catalogue into Dagster's metadata. What follows from what is decided in
`features/catalogue.py`; how an asset is declared stands in `declare.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from feature_pipeline.assets.how_to import how_to
from feature_pipeline.features import declarations
from feature_pipeline.features.catalogue import ALL_DECLARED, column_inputs
from feature_pipeline.features.dependencies import ColumnRef
from feature_pipeline.features.indicators import compute_indicators
from feature_pipeline.features.price_features import compute_features
from feature_pipeline.features.regime import predict_regime
from feature_pipeline.features.sentiment import score_documents
from feature_pipeline.features.state_vector import compute_state_vectors
from feature_pipeline.schemas import Column
from feature_pipeline.timeframes import DAILY, at

_COMPUTED_BY: dict[str, Sequence[Callable[..., Any]]] = {
    declarations.SCORES: (score_documents,),
    declarations.INDICATORS_ASSET: (compute_indicators,),
    declarations.FEATURES_ASSET: (compute_features,),
    declarations.REGIME_ASSET: (predict_regime,),
    declarations.STATE_ASSET: (compute_state_vectors,),
}


def _computed_by(asset: str) -> Sequence[Callable[..., Any]]:
    return _COMPUTED_BY.get(at(asset, DAILY), ())


_ROOT = Path(__file__).parents[2]


def column_lineage(asset: str) -> dg.TableColumnLineage:
    """Each column's upstream columns, for the metadata key `dagster/column_lineage`.

    A table that comes from a source has no columns in it.
    """
    return dg.TableColumnLineage(
        {
            column: [dg.TableColumnDep(ref.asset, ref.column) for ref in refs]
            for column, refs in column_inputs(asset).items()
            if refs
        }
    )


def described(column: Column, follows: Sequence[ColumnRef]) -> str:
    """A column's sentence in Markdown, with its unit and links to the assets it follows from.

    The open-source UI draws no column lineage: here it can be read, and followed.
    """
    text = f"{column.description} [{column.unit}]" if column.unit else column.description
    read: dict[str, list[str]] = {}
    for ref in follows:
        read.setdefault(ref.asset, []).append(ref.column)
    if not read:
        return text
    links = (f"[{asset}](/assets/{asset}): {', '.join(names)}" for asset, names in read.items())
    return f"{text}\n\nfrom {'; '.join(links)}"


def with_code(asset: dg.AssetsDefinition, source_url: str | None = None) -> dg.AssetsDefinition:
    """The asset with its how-to and links to its body, to what computes it and its declarations.

    Args:
        asset: of one table.
        source_url: where the source tree is shown in the web; None - links open local files.
    """
    name = asset.key.to_python_identifier()
    body = asset.op.compute_fn.decorated_fn  # type: ignore[union-attr]  # made by @dg.asset
    places: list[tuple[str, Path, int | None]] = [("asset", *_place(body))]
    places += [("computation", *_place(function)) for function in _computed_by(name)]
    if name in ALL_DECLARED:
        places.append(("declarations", Path(declarations.__file__), None))
    return asset.map_asset_specs(lambda spec: _linked(spec, places, source_url))


def spec_with_code(
    spec: dg.AssetSpec, path: str | Path, source_url: str | None = None
) -> dg.AssetSpec:
    """An external asset with its how-to and a link to the file that decides what is in it."""
    return _linked(spec, [(Path(path).name, Path(path), None)], source_url)


def _place(function: Callable[..., Any]) -> tuple[Path, int]:
    return Path(function.__code__.co_filename), function.__code__.co_firstlineno


def _linked(
    spec: dg.AssetSpec, places: Sequence[tuple[str, Path, int | None]], source_url: str | None
) -> dg.AssetSpec:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        links = dg.CodeReferencesMetadataValue(
            code_references=[_reference(*place, source_url) for place in places]
        )
    guide = how_to(spec.key.to_python_identifier(), source_url)
    return spec.merge_attributes(metadata={"dagster/code_references": links, "how_to": guide})


def _reference(
    label: str, path: Path, line: int | None, source_url: str | None
) -> dg.LocalFileCodeReference | dg.UrlCodeReference:
    path = path.absolute()
    if source_url is None or not path.is_relative_to(_ROOT):
        return dg.LocalFileCodeReference(file_path=str(path), line_number=line, label=label)
    url = f"{source_url.rstrip('/')}/{path.relative_to(_ROOT).as_posix()}"
    return dg.UrlCodeReference(url=f"{url}#L{line}" if line else url, label=label)
