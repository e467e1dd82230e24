"""What one does with an asset, as its page in the UI says it: the commands, and the page to read.

Texts only. The commands are those of `cli`; the pages lie under `docs/` in the source tree.
"""

from __future__ import annotations

import dagster as dg

from feature_pipeline.timeframes import DAILY, at, of

_TRADING = ("trades", "positions", "broker_positions", "position_reconciliation")
_DAYS = "--start 2012-01-01 --end 2012-12-31"


def _fill(asset: str) -> tuple[str, str]:
    return "Fill or repair days", f"backfill {_DAYS} --assets {asset}"


def _rejected(asset: str) -> tuple[str, str]:
    return "What was rejected, and why", f"quarantine list --asset {asset}"


def _catalogued(asset: str, column: str) -> list[tuple[str, str]]:
    return [
        ("What its columns are", f"features list --asset {asset}"),
        ("What a change would recompute", "features diff"),
        ("Why a number is what it is", f"explain AAPL {column} --as-of 2012-06-14T19:00Z"),
    ]


_COMMANDS: dict[str, list[tuple[str, str]]] = {
    "instruments": [("Collect a symbol that is new in it", f"backfill {_DAYS} --symbols AAPL")],
    "ohlcv_1d": [_fill("ohlcv_1d"), _rejected("ohlcv_1d")],
    "corporate_actions": [_fill("corporate_actions"), _rejected("corporate_actions")],
    "news": [_fill("news"), _rejected("news")],
    "reddit": [_fill("reddit"), _rejected("reddit")],
    "macro_indicators": [_fill("macro_indicators"), _rejected("macro_indicators")],
    "insider_transactions": [_fill("insider_transactions"), _rejected("insider_transactions")],
    "sentiment_scores": [_fill("sentiment_scores"), _rejected("sentiment_scores")],
    "indicators_1d": _catalogued("indicators_1d", "rsi_14"),
    "features_1d": _catalogued("features_1d", "returns_20d"),
    "regime_predictions_1d": [_fill("regime_predictions_1d")],
    "state_vectors_1d": _catalogued("state_vectors_1d", "atr"),
    **{name: [] for name in _TRADING},
    "position_reconciliation": [("Which days are compared", "storage")],
    "online_state_vectors": [
        ("What Redis says of a symbol", "show AAPL"),
        ("Publish everything again", "online rebuild"),
    ],
}

_PAGES: dict[str, list[str]] = {
    "instruments": ["how-to/add-a-symbol.md"],
    "ohlcv_1d": ["how-to/add-a-source.md", "how-to/backfill.md", "concepts/time.md"],
    "corporate_actions": ["how-to/add-a-source.md", "concepts/time.md"],
    "news": ["how-to/add-a-source.md", "how-to/backfill.md"],
    "reddit": ["how-to/reddit.md", "how-to/backfill.md"],
    "macro_indicators": ["how-to/add-a-source.md", "concepts/time.md"],
    "insider_transactions": ["how-to/insiders.md", "concepts/time.md"],
    "sentiment_scores": ["how-to/backfill.md", "concepts/writes.md"],
    "indicators_1d": ["how-to/add-a-feature.md", "concepts/writes.md"],
    "features_1d": ["how-to/add-a-feature.md", "concepts/time.md"],
    "regime_predictions_1d": ["how-to/backfill.md"],
    "state_vectors_1d": ["how-to/add-a-feature.md", "concepts/time.md"],
    **{name: ["how-to/trading-tables.md"] for name in _TRADING},
    "online_state_vectors": ["concepts/online.md", "how-to/recover.md"],
}


def _commands(asset: str) -> list[tuple[str, str]]:
    if of(asset) in (None, DAILY):
        return _COMMANDS[asset]
    bars = [_rejected(asset)] if asset.startswith("ohlcv") else []
    return [_fill(asset), *bars]


def how_to(asset: str, source_url: str | None = None) -> dg.MarkdownMetadataValue:
    """The commands that matter to an asset, and where there is more; short, so that the UI shows it
    without being asked.

    Args:
        asset: whose.
        source_url: where the source tree is shown in the web; None - pages are named, not linked.
    """
    commands = (f"- {what}  \n  `feature-pipeline {words}`" for what, words in _commands(asset))
    pages = (f"docs/{page}" for page in _PAGES[at(asset, DAILY)])
    if source_url is None:
        more = ", ".join(f"`{page}`" for page in pages)
    else:
        more = ", ".join(f"[{page}]({source_url.rstrip('/')}/{page})" for page in pages)
    return dg.MetadataValue.md("\n".join([*commands, f"- More: {more}"]))
