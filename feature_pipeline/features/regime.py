"""Market regime: a rule with hysteresis on trend strength and band width.

Trend if ADX >= 25 and the Bollinger width's percentile in the trailing 252 bars >= 0.4; range if
ADX < 20 and the percentile < 0.6: the outer thresholds start a label. It ends at the inner ones, a
trend when ADX < 22, a range when ADX > 23, and what is neither is transition.

The rule remembers 252 bars: the last one within them that crossed an outer threshold decides. So a
label depends on 503 bars, and computing day by day equals computing everything. Nothing is
fitted: a model refitted on more data would rewrite the past.
"""

from __future__ import annotations

import polars as pl

from feature_pipeline.features import expressions as ex
from feature_pipeline.features.adjustment import in_order, keys, last_late, real_rows
from feature_pipeline.features.declarations import REGIME_MODEL_VERSION, REGIME_WINDOW

TREND_ADX, TREND_ENDS, TREND_PERCENTILE = 25.0, 22.0, 0.4
RANGE_ADX, RANGE_ENDS, RANGE_PERCENTILE = 20.0, 23.0, 0.6

_NEVER = -(10**9)

# ADX at which confidence is full.
_SURE_TREND, _SURE_RANGE = 40.0, 10.0


def predict_regime(indicators: pl.DataFrame) -> pl.DataFrame:
    """The regime of each bar.

    Args:
        indicators: KEYS, adx_14, bb_upper, bb_middle, bb_lower; gap rows included, and of
            intraday bars `session` and those filled.

    Returns:
        KEYS (and session), regime, confidence, inputs (JSON: adx, percentile), model_version,
        sorted by (symbol, time), a row for each bar that is neither a gap nor filled. Regime,
        confidence and inputs are null where ADX or percentile is (warm-up, a gap in the
        percentile's 252 bars); regime and confidence also where such a bar within the memory leaves
        the label open.
    """
    bars = _with_inputs(in_order(indicators))
    return (
        bars.with_columns(_last_events())
        .with_columns(regime=_label())
        .with_columns(confidence=_confidence())
        .filter(real_rows(bars))
        .select(
            *keys(bars),
            "regime",
            "confidence",
            pl.when("known")
            .then(
                pl.struct(
                    adx=pl.col("adx").round(6), percentile=pl.col("percentile").round(6)
                ).struct.json_encode()
            )
            .alias("inputs"),
            pl.lit(REGIME_MODEL_VERSION).alias("model_version"),
        )
    )


def _with_inputs(bars: pl.DataFrame) -> pl.DataFrame:
    """`index` within the symbol, `late`, `adx`, `percentile`, and whether both are `known`.

    Both are rounded well below their meaning, so that the last bits of a recomputed indicator do
    not decide a tie.
    """
    bars = bars.with_columns(adx=pl.col("adx_14").round(9))
    late = last_late(bars)
    row = pl.int_range(pl.len())
    bars = bars.with_columns(
        index=row.over("group"),
        late=pl.lit(_NEVER) if late is None else pl.Series(late) - row.first().over("group"),
    )
    rank = ex.rolling_percentile(ex.bb_width().round(9), REGIME_WINDOW)
    whole = pl.min_horizontal("index", pl.col("index") - pl.col("late") - 1) >= REGIME_WINDOW - 1
    bars = bars.with_columns(percentile=pl.when(whole & rank.is_finite()).then(rank))
    return bars.with_columns(
        known=pl.col("adx").is_finite().fill_null(value=False) & pl.col("percentile").is_not_null()
    )


def _last_events() -> list[pl.Expr]:
    """The index of the last bar, up to the current one, at which each event happened."""
    adx, percentile, known = pl.col("adx"), pl.col("percentile"), pl.col("known")
    events = {
        "trend_began": known & (adx >= TREND_ADX) & (percentile >= TREND_PERCENTILE),
        "range_began": known & (adx < RANGE_ADX) & (percentile < RANGE_PERCENTILE),
        "trend_ended": known & (adx < TREND_ENDS),
        "range_ended": known & (adx > RANGE_ENDS),
        "unknown": ~known,
    }
    return [
        pl.when(happened)
        .then(pl.col("index"))
        .forward_fill()
        .over("group")
        .fill_null(_NEVER)
        .alias(name)
        for name, happened in events.items()
    ]


def _label() -> pl.Expr:
    """The label, from the last events within the memory."""
    began = pl.max_horizontal("trend_began", "range_began")
    trend = pl.col("trend_began") > pl.col("range_began")
    remembered = pl.col("index") - began < REGIME_WINDOW
    decided = (
        pl.when(~remembered)
        .then(pl.lit("transition"))
        .when(trend & (pl.col("trend_ended") < began))
        .then(pl.lit("trend"))
        .when(~trend & (pl.col("range_ended") < began))
        .then(pl.lit("range"))
        .otherwise(pl.lit("transition"))
    )
    # A crossing may hide in an unknown bar. The label is certain all the same once a later bar
    # crossed, or once both labels would have ended since.
    hidden = pl.col("unknown")
    certain = (
        (pl.col("index") - hidden >= REGIME_WINDOW)
        | (began > hidden)
        | ((pl.col("trend_ended") > hidden) & (pl.col("range_ended") > hidden))
    )
    return pl.when(pl.col("known") & certain).then(decided)


def _confidence() -> pl.Expr:
    """How far the bar is from losing its label, in [0, 1].

    Trend: ADX from 22, where it ends, to 40. Range: ADX from 23 down to 10. Transition: how much is
    missing to the nearer outer threshold, in units of 5 ADX points and of the percentile's bound.
    """
    adx, percentile = pl.col("adx"), pl.col("percentile")
    to_trend = pl.max_horizontal(
        (TREND_ADX - adx) / 5, (TREND_PERCENTILE - percentile) / TREND_PERCENTILE
    )
    to_range = pl.max_horizontal(
        (adx - RANGE_ADX) / 5, (percentile - RANGE_PERCENTILE) / (1 - RANGE_PERCENTILE)
    )
    return (
        pl.when(pl.col("regime") == "trend")
        .then((adx - TREND_ENDS) / (_SURE_TREND - TREND_ENDS))
        .when(pl.col("regime") == "range")
        .then((RANGE_ENDS - adx) / (RANGE_ENDS - _SURE_RANGE))
        .when(pl.col("regime") == "transition")
        .then(pl.min_horizontal(to_trend, to_range))
        .clip(0, 1)
    )
