"""Derived values computed anew: from their inputs as they are, or as they were known at a moment.

The catalogue's pure functions on what the store holds; nothing is written. Derived tables keep no
history, so this is how a derived value "as known at" a past moment is answered: today's code on
that moment's inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING

import polars as pl

from feature_pipeline.features.catalogue import ALL_DECLARED
from feature_pipeline.features.indicators import compute_indicators
from feature_pipeline.features.price_features import compute_features
from feature_pipeline.features.regime import predict_regime
from feature_pipeline.features.sentiment import score_documents
from feature_pipeline.features.state_vector import compute_state_vectors
from feature_pipeline.schemas import Input
from feature_pipeline.storage.scored import ScoredTexts
from feature_pipeline.storage.store import Store
from feature_pipeline.timeframes import DAILY, of, stem
from feature_pipeline.universe import Universe

if TYPE_CHECKING:
    from feature_pipeline.sources import Scorer

Inputs = Mapping[str, pl.DataFrame]


def _scores(inputs: Inputs, _: Universe, scorer: Scorer, __: str) -> pl.DataFrame:
    documents = pl.concat([inputs["news"], inputs["reddit"]], how="diagonal")
    return score_documents(documents, scorer.score, scorer.model, scorer.revision)


def _indicators(inputs: Inputs, *_: object) -> pl.DataFrame:
    return compute_indicators(inputs["ohlcv"], inputs["corporate_actions"])


def _features(inputs: Inputs, universe: Universe, _: Scorer, timeframe: str) -> pl.DataFrame:
    return compute_features(
        inputs["ohlcv"],
        inputs["corporate_actions"],
        inputs["indicators"],
        inputs["sentiment_scores"],
        inputs["insider_transactions"],
        universe.members(),
        universe.benchmark,
        tuple(universe.providers("insiders")),
        timeframe,
    )


def _regime(inputs: Inputs, *_: object) -> pl.DataFrame:
    return predict_regime(inputs["indicators"])


def _state(inputs: Inputs, _: Universe, __: Scorer, timeframe: str) -> pl.DataFrame:
    return compute_state_vectors(
        inputs["ohlcv"],
        inputs["corporate_actions"],
        inputs["indicators"],
        inputs["features"],
        inputs["regime_predictions"],
        inputs["sentiment_scores"],
        inputs["macro_indicators"],
        timeframe,
    )


COMPUTATIONS: dict[str, Callable[[Inputs, Universe, Scorer, str], pl.DataFrame]] = {
    "sentiment_scores": _scores,
    "indicators": _indicators,
    "features": _features,
    "regime_predictions": _regime,
    "state_vectors": _state,
}
"""Asset -> its computation, on a frame per input; both without their timeframe, which comes last.
"""


def compute(asset: str, inputs: Inputs, universe: Universe, scorer: Scorer) -> pl.DataFrame:
    """The rows of a derived asset that follow from a frame per input; see its pure function."""
    frames = {stem(name): frame for name, frame in inputs.items()}
    return COMPUTATIONS[stem(asset)](frames, universe, scorer, of(asset) or DAILY)


def as_known_at(
    store: Store,
    asset: str,
    columns: Sequence[str],
    symbols: Sequence[str],
    days: tuple[date, date],
    moment: datetime,
    scorer: Scorer,
) -> pl.DataFrame:
    """Symbols' rows of a derived asset, computed from what this database held at a moment.

    Args:
        store: of the inputs.
        asset: which one.
        columns: those wanted: values over the universe cost its bars.
        symbols: instrument ids.
        days: [start, end).
        moment: when the inputs were held; see `Store.inputs` on what is not known of it.
        scorer: the active sentiment model.

    Returns:
        Its data columns, sorted by key; a row per bar that was held.
    """
    wide = any(f.universe for f in ALL_DECLARED.get(asset, ()) if f.column in columns)
    who = None if wide else symbols
    table = store.tables[asset]
    inputs = {
        needed.asset: _held(store, needed, who, symbols, days, moment, scorer)
        for needed in table.inputs
    }
    known = ScoredTexts(store.database, scorer, keep=False)
    rows = compute(asset, inputs, store.universe, known)
    day = pl.col(table.day_column).dt.date()
    of_them = pl.col("symbol").is_in(list(symbols))
    return rows.filter(of_them, day >= days[0], day < days[1]).sort(table.key)


def _held(
    store: Store,
    needed: Input,
    who: Sequence[str] | None,
    symbols: Sequence[str],
    days: tuple[date, date],
    moment: datetime,
    scorer: Scorer,
) -> pl.DataFrame:
    """One input as it was held, with the lookback before the days."""
    table = store.tables[needed.asset]
    if not table.derived:
        return _of(store.inputs(needed, *days, symbols=who, as_known_at=moment), who)
    reach = (store.reach(needed, days[0]), days[1])
    rows = as_known_at(store, needed.asset, needed.columns, symbols, reach, moment, scorer)
    return store.inputs(needed, *days, symbols=symbols, rows=rows)


def _of(documents: pl.DataFrame, symbols: Sequence[str] | None) -> pl.DataFrame:
    """Documents about these symbols alone, so that no other one is scored."""
    if symbols is None or "symbols" not in documents.columns:
        return documents
    about = pl.col("symbols").list.eval(pl.element().is_in(list(symbols))).list.any()
    return documents.filter(pl.col("symbols").is_null() | about)
