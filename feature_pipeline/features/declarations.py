"""What every feature is: one declaration each, in the order of their tables' columns.

Name, version, sentence, unit, inputs, lookback and expression, as they are in the daily tables.
What they are in another timeframe follows (`Feature.at`): the same expression on its bars, and
where the name or a constant speaks of days, what `intraday` says instead. The tables, lookbacks and
versions that follow from the declarations are in `catalogue`, the parts of the expressions in
`expressions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import polars as pl

from feature_pipeline import timeframes
from feature_pipeline.features import expressions as ex
from feature_pipeline.schemas import STATE_VECTOR_FIELDS, Column
from feature_pipeline.timeframes import DAILY, TIMEFRAMES, Timeframe

BARS = "ohlcv_1d"
ACTIONS = "corporate_actions"
SCORES = "sentiment_scores"
INDICATORS_ASSET = "indicators_1d"
FEATURES_ASSET = "features_1d"
REGIME_ASSET = "regime_predictions_1d"
STATE_ASSET = "state_vectors_1d"
MACRO = "macro_indicators"
INSIDERS = "insider_transactions"

REGIMES = ("trend", "range", "transition")
REGIME_MODEL_VERSION = "rule-1"
REGIME_WINDOW = 252
"""Bars of the band width's percentile, and bars that the regime's hysteresis remembers."""

SENTIMENT_VERSION = 1
"""Raise when scores of the same model and revision change."""

NEWS_HOURS = 24
SOCIAL_DAYS = 7
INSIDER_DAYS = 90
BETA_BARS, BETA_LEAST = 60, 40
CLOSE_WINDOW = 100
MACRO_DAYS = 20


@dataclass(frozen=True)
class Intraday:
    """What a declaration says, where it differs, of timeframes whose sessions have several bars.

    Args:
        name: with the number of bars instead of days.
        description: the same sentence, about bars.
        expression: yields the expression from the timeframe's constants.
    """

    name: str = ""
    description: str = ""
    expression: Callable[[Timeframe], Callable[[], pl.Expr]] | None = None


@dataclass(frozen=True)
class Feature:
    """One declaration of a column.

    Args:
        name: what it is called; the column too, in version 1.
        description: one sentence.
        unit: of its values.
        category: what it speaks of.
        inputs: asset -> the columns it needs of it, beside key and times.
        expression: yields its Polars expression, on the columns its table's module prepares.
        version: raised with every change of its values.
        lookback_bars: prior bars its value depends on, besides the current one.
        lookback_days: UTC days before the bar's own that its events reach back.
        part: the field it takes where the expression yields a struct that several share.
        needs: columns of the same table that its expression reads.
        universe: whether it aggregates over the universe: its members, sectors or benchmark.
        basis: `own day` - a price, computed on the split-adjusted series and brought back to the
            basis of its own day; `none` - splits do not change it.
        intraday: what is different in other timeframes; see `at`.
        daily_column: of a declaration for another timeframe, the column that it has in the daily
            table: expressions read that name.
    """

    name: str
    description: str
    unit: str
    category: str
    inputs: Mapping[str, tuple[str, ...]]
    expression: Callable[[], pl.Expr]
    version: int = 1
    lookback_bars: int = 0
    lookback_days: int = 0
    part: str = ""
    needs: tuple[str, ...] = ()
    universe: bool = False
    basis: Literal["own day", "none"] = "none"
    intraday: Intraday = field(default_factory=Intraday, repr=False)
    daily_column: str = ""

    @property
    def known_as(self) -> str:
        """What expressions call its column, in every timeframe: its name in the daily table."""
        return self.daily_column or self.column

    def at(self, timeframe: str) -> Feature:
        """The declaration in another timeframe: on its assets, windows counting its bars."""
        if timeframe == DAILY:
            return self
        other = self.intraday
        return replace(
            self,
            name=other.name or self.name,
            description=other.description or self.description,
            inputs={
                timeframes.at(asset, timeframe): tuple(map(intraday_column, columns))
                for asset, columns in self.inputs.items()
            },
            needs=tuple(map(intraday_column, self.needs)),
            expression=other.expression(TIMEFRAMES[timeframe])
            if other.expression
            else self.expression,
            daily_column=self.column,
        )

    @property
    def reads_bars(self) -> bool:
        """Whether bars are among its inputs, of whatever timeframe."""
        return any(timeframes.stem(asset) == "ohlcv" for asset in self.inputs)

    @property
    def column(self) -> str:
        """The name of its column: a new version stands beside the old one while consumers move."""
        return self.name if self.version == 1 else f"{self.name}__v{self.version}"

    @property
    def computation(self) -> str:
        """Its expression by name, as the registry lists it."""
        call = self.expression
        if not isinstance(call, partial):
            return f"{call.__name__}().{self.part}".rstrip(".")
        named = (f"{name}={value!r}" for name, value in call.keywords.items())
        return f"{call.func.__name__}({', '.join([*map(repr, call.args), *named])})"

    @property
    def tag(self) -> str:
        """Name and version, as code versions list it."""
        return f"{self.name}@{self.version}"

    @property
    def lookback(self) -> str:
        """How far back it looks, in words; nothing where it does not."""
        spans = ((self.lookback_bars, "bar"), (self.lookback_days, "day"))
        return ", ".join(f"{n} {unit}{'s' * (n > 1)}" for n, unit in spans if n)

    @property
    def schema(self) -> Column:
        """Its column in the table."""
        return Column(self.column, pl.Float64, self.description, unit=self.unit, nullable=True)


# -- indicators -----------------------------------------------------------------------------------

_CLOSES = {BARS: ("close",), ACTIONS: ("symbol", "kind", "value")}
_RANGES = {BARS: ("high", "low", "close"), ACTIONS: ("symbol", "kind", "value")}


def _sma(bars: int) -> Feature:
    return Feature(
        name=f"sma_{bars}",
        description=f"Simple moving average of the last {bars} closes.",
        unit="price",
        category="trend",
        inputs=_CLOSES,
        expression=partial(ex.sma, bars),
        lookback_bars=bars - 1,
        basis="own day",
    )


def _ema(bars: int, memory: int) -> Feature:
    return Feature(
        name=f"ema_{bars}",
        description=f"Exponential moving average of the close over {bars} bars.",
        unit="price",
        category="trend",
        inputs=_CLOSES,
        expression=partial(ex.ema, bars),
        lookback_bars=memory - 1,
        basis="own day",
    )


def _macd(name: str, part: str, description: str) -> Feature:
    return Feature(
        name=f"macd_{name}",
        description=description,
        unit="price",
        category="momentum",
        inputs=_CLOSES,
        expression=ex.macd,
        part=part,
        lookback_bars=264,
        basis="own day",
    )


def _band(name: str, part: str, description: str) -> Feature:
    return Feature(
        name=f"bb_{name}",
        description=description,
        unit="price",
        category="volatility",
        inputs=_CLOSES,
        expression=ex.bollinger,
        part=part,
        lookback_bars=19,
        basis="own day",
    )


# The memory of a recursive indicator is infinite; its lookback is what it needs to agree with the
# full history to 1e-9 of the column's scale, as measured.
INDICATORS: tuple[Feature, ...] = (
    # TA-Lib's middle band is its SMA, bit for bit, and computed already.
    replace(_sma(20), expression=ex.bollinger, part="middleband"),
    _sma(50),
    _sma(200),
    _ema(12, memory=120),
    _ema(26, memory=260),
    Feature(
        name="rsi_14",
        description="Wilder's relative strength index of the close over 14 bars.",
        unit="0-100",
        category="momentum",
        inputs=_CLOSES,
        expression=ex.rsi,
        lookback_bars=294,
    ),
    _macd("line", "macd", "EMA(12) less EMA(26) of the close."),
    _macd("signal", "macdsignal", "EMA(9) of the MACD line."),
    _macd("hist", "macdhist", "MACD line less its signal."),
    Feature(
        name="atr_14",
        description="Wilder's average true range over 14 bars.",
        unit="price",
        category="volatility",
        inputs=_RANGES,
        expression=ex.atr,
        lookback_bars=239,
        basis="own day",
    ),
    _band("upper", "upperband", "Bollinger band two standard deviations above SMA(20)."),
    _band("middle", "middleband", "Middle Bollinger band: SMA(20)."),
    _band("lower", "lowerband", "Bollinger band two standard deviations below SMA(20)."),
    Feature(
        name="adx_14",
        description="Wilder's average directional index over 14 bars.",
        unit="0-100",
        category="trend",
        inputs=_RANGES,
        expression=ex.adx,
        lookback_bars=324,
    ),
)

# -- features -------------------------------------------------------------------------------------


def _return(bars: int) -> Feature:
    return Feature(
        name=f"returns_{bars}d",
        description=f"Simple total return over {bars} session{'s' * (bars > 1)}.",
        unit="fraction",
        category="returns",
        inputs=_CLOSES,
        expression=partial(ex.total_return, bars),
        lookback_bars=bars,
        intraday=Intraday(
            name=f"returns_{bars}",
            description=f"Simple total return over {bars} bar{'s' * (bars > 1)}.",
        ),
    )


# Functions with names: declarations go to other processes.


def _volatility_of(bars: int, of: Timeframe) -> Callable[[], pl.Expr]:
    return partial(ex.volatility, bars, per_year=of.bars_per_year)


def _clipped_log_return_of(of: Timeframe) -> Callable[[], pl.Expr]:
    return partial(ex.clipped_log_return, of.log_return_limit)


def _volatility(bars: int) -> Feature:
    return Feature(
        name=f"volatility_{bars}d",
        description=f"Annualised standard deviation of {bars} daily log total returns.",
        unit="fraction per sqrt(year)",
        category="volatility",
        inputs=_CLOSES,
        expression=partial(ex.volatility, bars),
        lookback_bars=bars,
        intraday=Intraday(
            name=f"volatility_{bars}",
            description=f"Annualised standard deviation of the log total returns of {bars} bars.",
            expression=partial(_volatility_of, bars),
        ),
    )


def _momentum(bars: int) -> Feature:
    """The latest week is left out: it tends to reverse (Jegadeesh & Titman 1993)."""
    return Feature(
        name=f"momentum_{bars}d",
        description=f"Total return from {bars} to 5 sessions ago, the latest week left out.",
        unit="fraction",
        category="momentum",
        inputs=_CLOSES,
        expression=partial(ex.total_return, bars, until=5),
        lookback_bars=bars,
        intraday=Intraday(
            name=f"momentum_{bars}",
            description=f"Total return from {bars} to 5 bars ago, the latest five left out.",
        ),
    )


FEATURES: tuple[Feature, ...] = (
    _return(1),
    _return(5),
    _return(20),
    _return(60),
    _volatility(20),
    _volatility(60),
    _momentum(20),
    _momentum(60),
    Feature(
        name="volume_ratio_20d",
        description="Split-adjusted volume over its mean of the last 20 sessions.",
        unit="ratio",
        category="volume",
        inputs={BARS: ("close", "volume"), ACTIONS: ("symbol", "kind", "value")},
        expression=partial(ex.volume_ratio, 20),
        lookback_bars=19,
        intraday=Intraday(
            name="volume_ratio_20",
            description="Split-adjusted volume over its mean of the last 20 bars.",
        ),
    ),
    Feature(
        name="sma_ratio_50",
        description="Close over SMA(50).",
        unit="ratio",
        category="trend",
        inputs={BARS: ("close",), INDICATORS_ASSET: ("sma_50",)},
        expression=ex.sma_ratio,
    ),
    Feature(
        name="bb_position",
        description="Close between the Bollinger bands: 0 on the lower, 1 on the upper.",
        unit="ratio",
        category="volatility",
        inputs={BARS: ("close",), INDICATORS_ASSET: ("bb_upper", "bb_lower")},
        expression=ex.bb_position,
    ),
    Feature(
        name="sector_momentum",
        description="Mean 20-session total return of that day's members of the symbol's sector.",
        unit="fraction",
        category="cross-section",
        inputs=_CLOSES,
        expression=ex.sector_momentum,
        lookback_bars=20,
        needs=("returns_20d",),
        universe=True,
        intraday=Intraday(
            description="Mean 20-bar total return of that day's members of the symbol's sector."
        ),
    ),
    Feature(
        name="market_beta_60d",
        description="Beta of 60 daily log total returns to the benchmark's, aligned on time.",
        unit="ratio",
        category="cross-section",
        inputs=_CLOSES,
        expression=partial(ex.market_beta, BETA_BARS, BETA_LEAST),
        lookback_bars=BETA_BARS,
        universe=True,
        intraday=Intraday(
            name="market_beta_60",
            description="Beta of the log total returns of 60 bars to the benchmark's, aligned on "
            "time.",
        ),
    ),
    Feature(
        name="news_sentiment_24h",
        description="Mean news score of 24 hours, weighted by confidence and 2^(-age / 6 h).",
        unit="-1 to 1",
        category="sentiment",
        inputs={SCORES: ("document_id", "symbol", "channel", "sentiment", "confidence")},
        expression=partial(ex.prepared, "news_24h"),
        lookback_days=1,
    ),
    Feature(
        name="social_volume_7d",
        description="Number of Reddit documents of the last seven days.",
        unit="documents",
        category="sentiment",
        inputs={SCORES: ("document_id", "symbol", "channel")},
        expression=partial(ex.prepared, "reddit_7d"),
        lookback_days=SOCIAL_DAYS,
    ),
    Feature(
        name="insider_net_buying_90d",
        description="Insiders' purchases less sales over their sum, in dollars, of 90 days.",
        unit="-1 to 1",
        category="insiders",
        inputs={
            INSIDERS: (
                "accession",
                "symbol",
                "owner",
                "form",
                "security",
                "derivative",
                "code",
                "value",
                "shares_after",
            )
        },
        expression=partial(ex.prepared, "insiders_90d"),
        lookback_days=INSIDER_DAYS,
    ),
)

# -- state vector ---------------------------------------------------------------------------------


def _field(
    name: str,
    description: str,
    unit: str,
    inputs: Mapping[str, tuple[str, ...]],
    expression: Callable[[], pl.Expr],
    **lookback: int,
) -> Feature:
    return Feature(
        name=name,
        description=description,
        unit=unit,
        category="state",
        inputs=inputs,
        expression=expression,
        lookback_bars=lookback.get("bars", 0),
        lookback_days=lookback.get("days", 0),
    )


def _macro(name: str, series: str, shift: float, scale: float, low: float) -> Feature:
    moved = f"({series} - {shift:g})" if shift else series
    return _field(
        name,
        f"{moved} / {scale:g}, clipped to [{low:g}, 1].",
        f"{low:g} to 1",
        {MACRO: ("series_id", "value")},
        partial(ex.scaled, series, shift, scale, low),
        days=MACRO_DAYS,
    )


def _regime(label: str) -> Feature:
    return _field(
        f"regime_{label}",
        f"1 in a {label} regime, else 0.",
        "0 or 1",
        {REGIME_ASSET: ("regime",)},
        partial(ex.regime_is, label),
    )


_STATE = (
    _field(
        "close",
        f"Min-max position of the split-adjusted close in the last {CLOSE_WINDOW} bars.",
        "0 to 1",
        _CLOSES,
        partial(ex.position_of_close, CLOSE_WINDOW),
        bars=CLOSE_WINDOW - 1,
    ),
    replace(
        _field(
            "log_return",
            "Daily log total return, clipped to ±5 % and divided by 5 %.",
            "-1 to 1",
            {FEATURES_ASSET: ("returns_1d",)},
            partial(ex.clipped_log_return, TIMEFRAMES[DAILY].log_return_limit),
        ),
        intraday=Intraday(
            description="Log total return of the bar, clipped to ±c and divided by c: 0.3 % on 1m, "
            "0.7 % on 5m, 2 % on 1h.",
            expression=_clipped_log_return_of,
        ),
    ),
    _field(
        "atr",
        f"Min-max position of ATR(14) / close in the last {CLOSE_WINDOW} bars.",
        "0 to 1",
        {BARS: ("close",), INDICATORS_ASSET: ("atr_14",)},
        partial(ex.position_of_atr, CLOSE_WINDOW),
        bars=CLOSE_WINDOW - 1,
    ),
    _field(
        "macd",
        "MACD histogram / ATR(14), clipped to ±1.",
        "-1 to 1",
        {INDICATORS_ASSET: ("macd_hist", "atr_14")},
        ex.macd_in_atr,
    ),
    _field("rsi", "RSI(14) / 100.", "0 to 1", {INDICATORS_ASSET: ("rsi_14",)}, ex.rsi_share),
    _field(
        "bb_width",
        f"Min-max position of the Bollinger width / middle in the last {CLOSE_WINDOW} bars.",
        "0 to 1",
        {INDICATORS_ASSET: ("bb_upper", "bb_middle", "bb_lower")},
        partial(ex.position_of_bb_width, CLOSE_WINDOW),
        bars=CLOSE_WINDOW - 1,
    ),
    _field(
        "sentiment",
        "Mean score of all documents of 24 hours, weighted by confidence and 2^(-age / 6 h).",
        "-1 to 1",
        {SCORES: ("document_id", "symbol", "channel", "sentiment", "confidence")},
        partial(ex.prepared, "sentiment_24h"),
        days=1,
    ),
    *(_regime(label) for label in REGIMES),
    _macro("vix", "VIXCLS", 10, 70, 0),
    _macro("fed_funds", "DFF", 0, 10, 0),
    _macro("yield_curve", "T10Y2Y", 0, 3, -1),
    _field(
        "volume_ratio",
        "log2 of volume / SMA(volume, 20), clipped to ±3 and divided by 3.",
        "-1 to 1",
        {FEATURES_ASSET: ("volume_ratio_20d",)},
        partial(ex.log2_volume_ratio, 3),
    ),
)

STATE_FIELDS: tuple[Feature, ...] = tuple(
    {field.name: field for field in _STATE}[name] for name in STATE_VECTOR_FIELDS
)
"""The declarations of the state vector, in the order of STATE_VECTOR_FIELDS."""

_INTRADAY_COLUMNS = {
    feature.column: replace(feature, name=feature.intraday.name).column
    for feature in (*INDICATORS, *FEATURES, *STATE_FIELDS)
    if feature.intraday.name
}


def intraday_column(column: str) -> str:
    """What a column of a daily table is called in those of other timeframes."""
    return _INTRADAY_COLUMNS.get(column, column)


def at(features: tuple[Feature, ...], timeframe: str) -> tuple[Feature, ...]:
    """The declarations of a table in another timeframe, in order."""
    return tuple(feature.at(timeframe) for feature in features)


MACRO_SERIES = ("VIXCLS", "DFF", "T10Y2Y")
"""The series that the state vector reads, by their FRED ids."""
