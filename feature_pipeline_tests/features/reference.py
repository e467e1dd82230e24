"""The features once more, in pandas, NumPy and plain loops, from their definitions alone.

Written without a look at the expressions it judges: slow and obvious.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import polars as pl
import talib

from feature_pipeline_tests.features.market import companies


def per_symbol(frame: pl.DataFrame) -> dict[str, pd.DataFrame]:
    return {
        name: part.sort_values("time").reset_index(drop=True)
        for name, part in frame.to_pandas().groupby("symbol")
    }


def gross_returns(bars: pd.DataFrame, actions: pd.DataFrame) -> np.ndarray:
    """Per bar: what one unit of money in the previous close has become, dividends reinvested."""
    gross = np.full(len(bars), np.nan)
    for i in range(1, len(bars)):
        ratio, paid = 1.0, 0.0
        between = actions[(actions.time > bars.time[i - 1]) & (actions.time <= bars.time[i])]
        for kind, value in zip(between.kind, between.value, strict=True):
            if kind == "split":
                ratio *= value
            else:
                paid += value
        before = bars.close[i - 1] / ratio
        gross[i] = bars.close[i] / (before * (1 - paid / before))
    return gross


def split_basis(bars: pd.DataFrame, actions: pd.DataFrame) -> np.ndarray:
    """Per bar, the shares that one of its shares has become by the last bar."""
    splits = actions[(actions.kind == "split") & (actions.time <= bars.time.iloc[-1])]
    return np.array([np.prod(splits.value[splits.time > at].to_numpy()) for at in bars.time])


def indicators(high: np.ndarray, low: np.ndarray, close: np.ndarray) -> dict[str, np.ndarray]:
    line, signal, hist = talib.MACD(close, 12, 26, 9)
    upper, middle, lower = talib.BBANDS(close, 20, 2, 2)
    return {
        "sma_20": talib.SMA(close, 20),
        "sma_50": talib.SMA(close, 50),
        "sma_200": talib.SMA(close, 200),
        "ema_12": talib.EMA(close, 12),
        "ema_26": talib.EMA(close, 26),
        "rsi_14": talib.RSI(close, 14),
        "macd_line": line,
        "macd_signal": signal,
        "macd_hist": hist,
        "atr_14": talib.ATR(high, low, close, 14),
        "bb_upper": upper,
        "bb_middle": middle,
        "bb_lower": lower,
        "adx_14": talib.ADX(high, low, close, 14),
    }


def features(market, benchmark: str) -> pd.DataFrame:
    bars, actions = per_symbol(market.bars), market.actions.to_pandas()
    gross = {
        name: pd.Series(gross_returns(b, actions[actions.symbol == name]), index=b.time)
        for name, b in bars.items()
    }
    out = []
    for name, b in bars.items():
        own = actions[actions.symbol == name]
        g = gross[name]
        log = np.log(g)
        index = pd.Series(np.exp(np.nancumsum(log.fillna(0))), index=b.time)
        basis = pd.Series(split_basis(b, own), index=b.time)
        close = pd.Series(b.close.to_numpy(), index=b.time)
        adjusted = close / basis
        volume = pd.Series(b.volume.to_numpy(), index=b.time) * basis
        market_log = np.log(gross[benchmark]).reindex(b.time)
        sma = adjusted.rolling(20).mean()
        std = adjusted.rolling(20).std(ddof=0)
        frame = pd.DataFrame(
            {
                **{f"returns_{n}d": index / index.shift(n) - 1 for n in (1, 5, 20, 60)},
                **{
                    f"volatility_{n}d": log.rolling(n).std(ddof=1) * math.sqrt(252)
                    for n in (20, 60)
                },
                **{f"momentum_{n}d": index.shift(5) / index.shift(n) - 1 for n in (20, 60)},
                "volume_ratio_20d": volume / volume.rolling(20).mean(),
                "sma_ratio_50": adjusted / adjusted.rolling(50).mean(),
                "bb_position": (adjusted - (sma - 2 * std)) / (4 * std),
                "market_beta_60d": log.rolling(60).cov(market_log) / market_log.rolling(60).var(),
            }
        )
        news, posts = (documents(market.scores, name, c) for c in ("news", "reddit"))
        frame["news_sentiment_24h"] = weighted(news, b.available_at, 24)[0]
        frame["social_volume_7d"] = weighted(posts, b.available_at, 168)[1]
        frame["insider_net_buying_90d"] = (
            net_buying(market.insiders, name, b.available_at)
            if name in companies(market)
            else np.nan
        )
        frame.insert(0, "symbol", name)
        out.append(frame.reset_index())
    frame = pd.concat(out)
    frame["sector_momentum"] = sector_means(frame, market.members.to_pandas())
    return frame.sort_values(["symbol", "time"]).reset_index(drop=True)


def sector_means(frame: pd.DataFrame, members: pd.DataFrame) -> list[float]:
    """Own sector's mean return of the day's members; missing for a symbol without 20 returns."""
    sector = dict(zip(members.symbol, members.sector, strict=True))
    until = dict(zip(members.symbol, members["to"], strict=True))
    frame = frame.assign(
        sector=frame.symbol.map(sector),
        inside=[
            pd.isna(until[s]) or t < until[s] for s, t in zip(frame.symbol, frame.time, strict=True)
        ],
    )
    means = frame[frame.inside].groupby(["sector", "time"]).returns_20d.mean()
    return [
        means.get((s, t), np.nan) if isinstance(s, str) and not math.isnan(r) else np.nan
        for s, t, r in zip(frame.sector, frame.time, frame.returns_20d, strict=True)
    ]


def documents(scores: pl.DataFrame, symbol: str, channel: str | None = None) -> list[np.ndarray]:
    """Arrival, arrival of the document's next version, score, confidence; arrivals in hours."""
    rows = scores.to_pandas().sort_values("available_at")
    rows = rows[(rows.symbol == symbol) & ((rows.channel == channel) | (channel is None))]
    arrival = hours(rows.available_at)
    replaced = pd.Series(arrival, index=rows.index).groupby(rows.document_id).shift(-1)
    return [
        arrival,
        replaced.fillna(np.inf).to_numpy(),
        rows.sentiment.to_numpy(),
        rows.confidence.to_numpy(),
    ]


def net_buying(filed: pl.DataFrame, symbol: str, moments: pd.Series) -> list[float]:
    """At each moment: of the purchases and sales of 90 days that were filed by then, and that no
    amendment filed by then replaces, the difference over the sum."""
    rows = filed.filter(
        pl.col("symbol") == symbol, ~pl.col("derivative"), pl.col("code").is_in(["P", "S"])
    ).to_dicts()
    same = ("owner", "time", "security", "code")
    replaced = [
        min(
            (
                other["available_at"]
                for other in rows
                if other["form"] == "4/A"
                and other["available_at"] > row["available_at"]
                and all(other[name] == row[name] for name in same)
            ),
            default=pd.Timestamp.max.tz_localize("UTC"),
        )
        for row in rows
    ]
    out = []
    for at in moments:
        total = {"P": 0.0, "S": 0.0}
        for row, until in zip(rows, replaced, strict=True):
            known = row["available_at"] <= at < until
            if known and row["time"] > at - pd.Timedelta(days=90) and row["value"] is not None:
                total[row["code"]] += row["value"]
        both = total["P"] + total["S"]
        out.append((total["P"] - total["S"]) / both if both else 0.0)
    return out


def hours(times: pd.Series) -> np.ndarray:
    return ((times - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(hours=1)).to_numpy()


def weighted(
    documents: list[np.ndarray], moments: pd.Series, window: float
) -> tuple[np.ndarray, np.ndarray]:
    """Decayed mean and number of documents in (at - window, at], the latest version of each."""
    arrival, replaced, sentiment, confidence = documents
    means, counts = [], []
    for at in hours(moments):
        inside = (arrival <= at) & (arrival > at - window) & (replaced > at)
        weight = confidence[inside] * 0.5 ** ((at - arrival[inside]) / 6)
        means.append(np.average(sentiment[inside], weights=weight) if inside.any() else 0.0)
        counts.append(float(inside.sum()))
    return np.array(means), np.array(counts)


def regimes(adx: np.ndarray, width: np.ndarray) -> list[str | None]:
    """The rule, replayed from scratch within the 252 bars of each bar."""
    percentile = pd.Series(width).rolling(252).rank(pct=True).to_numpy()

    def step(state: str, a: float, p: float) -> str:
        if a >= 25 and p >= 0.4:
            return "trend"
        if a < 20 and p < 0.6:
            return "range"
        if (state == "trend" and a < 22) or (state == "range" and a > 23):
            return "transition"
        return state

    out: list[str | None] = []
    for t in range(len(adx)):
        window = range(max(0, t - 251), t + 1)
        if math.isnan(adx[t]) or math.isnan(percentile[t]):
            out.append(None)
            continue
        # All labels that the window allows, whatever its unknown bars were.
        states = {"transition"}
        for u in window:
            if math.isnan(adx[u]) or math.isnan(percentile[u]):
                states = {"trend", "range", "transition"}
            else:
                states = {step(s, adx[u], percentile[u]) for s in states}
        out.append(states.pop() if len(states) == 1 else None)
    return out


def macro_values(macro: pl.DataFrame, series: str, moments: pd.Series) -> np.ndarray:
    """The newest observation available at each moment, in its newest vintage."""
    rows = macro.filter(pl.col("series_id") == series).to_pandas()
    time, arrival, value = hours(rows.time), hours(rows.available_at), rows.value.to_numpy()
    out = []
    for at in hours(moments):
        known = arrival <= at
        best = max(
            zip(time[known], arrival[known], value[known], strict=True), default=(0, -np.inf, 0)
        )
        out.append(best[2] if at - best[1] < 240 else math.nan)
    return np.array(out)


def min_max(values: pd.Series) -> pd.Series:
    low, high = values.rolling(100).min(), values.rolling(100).max()
    return ((values - low) / (high - low)).where(high > low, 0.5).where(low.notna())


def states(market, indicators: pl.DataFrame, features: pd.DataFrame) -> pd.DataFrame:
    out = []
    studies, actions = per_symbol(indicators), market.actions.to_pandas()
    for name, b in per_symbol(market.bars).items():
        i = studies[name]
        f = features[features.symbol == name].reset_index(drop=True)
        width = (i.bb_upper - i.bb_lower) / i.bb_middle
        label = regimes(i.adx_14.to_numpy(), width.to_numpy())
        macro = {
            s: macro_values(market.macro, s, b.available_at) for s in ("VIXCLS", "DFF", "T10Y2Y")
        }
        sentiment, count = weighted(documents(market.scores, name), b.available_at, 24)
        frame = pd.DataFrame(
            {
                "close": min_max(b.close / split_basis(b, actions[actions.symbol == name])),
                "log_return": np.clip(np.log(1 + f.returns_1d), -0.05, 0.05) / 0.05,
                "atr": min_max(i.atr_14 / b.close),
                "macd": np.clip(i.macd_hist / i.atr_14, -1, 1),
                "rsi": i.rsi_14 / 100,
                "bb_width": min_max(width),
                "sentiment": sentiment,
                **{
                    f"regime_{r}": [np.nan if x is None else float(x == r) for x in label]
                    for r in ("trend", "range", "transition")
                },
                "vix": np.clip((macro["VIXCLS"] - 10) / 70, 0, 1),
                "fed_funds": np.clip(macro["DFF"] / 10, 0, 1),
                "yield_curve": np.clip(macro["T10Y2Y"] / 3, -1, 1),
                "volume_ratio": np.clip(np.log2(f.volume_ratio_20d), -3, 3) / 3,
                "document_count": count,
            }
        )
        frame.insert(0, "symbol", name)
        frame.insert(1, "time", b.time)
        out.append(frame)
    return pd.concat(out).sort_values(["symbol", "time"]).reset_index(drop=True)
