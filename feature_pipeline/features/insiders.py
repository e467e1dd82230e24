"""What insiders bought and sold on the market, over the time before each bar's moment.

How transactions become one number per (symbol, moment). Where filings come from, and what is in
one, is the source's business (`sources/edgar.py`), not this module's.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

import numpy as np
import polars as pl

from feature_pipeline.features.sentiment import by_moment, running_sum, spans
from feature_pipeline.schemas import FILED_AS_DATA_SINCE, UTC_TIME

_PURCHASE, _SALE = "P", "S"
_AMENDMENT = "4/A"
_LINE = ("symbol", "owner", "time", "security", "code")
_SAME = ("symbol", "time", "security", "code", "value", "shares_after")
"""What two owners of the same shares say alike of one transaction."""


def net_buying(
    moments: pl.DataFrame,
    transactions: pl.DataFrame,
    window: timedelta,
    companies: Collection[str],
) -> pl.Series:
    """(bought - sold) / (bought + sold) in dollars: the net purchase ratio of Lakonishok & Lee,
    "Are insider trades informative?", Review of Financial Studies 14 (2001).

    Purchases (code P) and sales (S) on the open market or in private count, of the security itself
    and not of derivatives, where their price is told; awards, exercises, gifts and withheld taxes
    do not. In dollars a split between two transactions changes nothing.

    Args:
        moments: symbol, available_at (T); a row without `available_at` has no window.
        transactions: accession, symbol, time, available_at, owner, form, security, derivative,
            code, value (USD), shares_after. A row without accession is a UTC day, of one symbol or
            of all, that was not collected.
        window: transactions made in (T - window, T] and filed by T count. An amendment (4/A)
            replaces, from its own filing on, the lines of the same owner, day, security and code
            that were filed before it; what it adds counts from then on as well. Of one that
            several owners report, each in a filing of their own (17 CFR 240.16a-3(j)), who filed
            first tells it: others who say the same of it, what is left of the shares included, add
            nothing.
        companies: the symbols whose insiders are collected.

    Returns:
        A value per moment, in its row order: in [-1, 1]; 0 where nothing was bought or sold; null
        where the window touches a day that was not collected, where it begins before
        `FILED_AS_DATA_SINCE`, and for symbols whose insiders nobody collects.
    """
    moments = moments.select("symbol", "available_at")
    counted = spans(moments, _lines(transactions, window))
    cents = (counted["value"] * 100).round().cast(pl.Int64).to_numpy()
    purchase = (counted["code"] == _PURCHASE).to_numpy()
    bought = running_sum(counted, moments.height, np.where(purchase, cents, 0))
    sold = running_sum(counted, moments.height, np.where(purchase, 0, cents))
    total = bought + sold
    ratio = np.divide(bought - sold, total, out=np.zeros(moments.height), where=total > 0)
    known = pl.col("symbol").is_in(list(companies)) & (
        pl.col("available_at") - window >= FILED_AS_DATA_SINCE
    )
    value = by_moment(moments, ratio, _gap_days(transactions), window)
    return moments.select(pl.when(known).then(value)).to_series().alias("insider_net_buying")


def _lines(transactions: pl.DataFrame, window: timedelta) -> pl.DataFrame:
    """Purchases and sales, each `until` it leaves the window or an amendment replaces it."""
    made = transactions.filter(
        pl.col("accession").is_not_null(),
        ~pl.col("derivative"),
        pl.col("code").is_in([_PURCHASE, _SALE]),
    )
    amendments = (
        made.filter(pl.col("form") == _AMENDMENT)
        .select(*_LINE, replaced="available_at")
        .sort("replaced")
    )
    made = made.sort("available_at", "accession")
    teller = pl.col("owner").first().over(_SAME)
    return (
        made.filter(pl.col("shares_after").is_null() | (pl.col("owner") == teller))
        .join_asof(
            amendments,
            left_on="available_at",
            right_on="replaced",
            by=list(_LINE),
            strategy="forward",
            allow_exact_matches=False,  # the lines of one amendment stand beside each other
            check_sortedness=False,
        )
        .filter(pl.col("value").is_not_null())
        .with_columns(until=pl.min_horizontal(pl.col("time") + window, "replaced"))
    )


def _gap_days(transactions: pl.DataFrame) -> pl.DataFrame:
    """`symbol` (null: everybody) and `day` of what was not collected."""
    return (
        transactions.filter(pl.col("accession").is_null())
        .select("symbol", day=pl.col("available_at").cast(UTC_TIME).dt.truncate("1d"))
        .unique()
    )
