"""Dukascopy's chart feed: `[ms, open, high, low, close, volume]` as JSONP, from a moment on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from feature_pipeline_tests.providers.server import Answer, ProviderServer, Request

PATH = "/2.0/index.php"

Row = list[Any]


@dataclass
class Dukascopy:
    """Serves `rows[(instrument, interval)]`; the ask side is `spread` above it.

    Args:
        rows: what there is, oldest first.
        spread: ask - bid.
        most: rows in one answer.
        stuck: answers the first page, whatever is asked.
    """

    rows: dict[tuple[str, str], list[Row]] = field(default_factory=dict)
    spread: float = 0.0002
    most: int = 30_000
    stuck: bool = False

    def serve(self, server: ProviderServer) -> str:
        """Have the server answer; the address to ask."""
        server.routes[PATH] = self.answer
        return server.url + PATH

    def answer(self, request: Request) -> Answer:
        query = request.query
        held = self.rows.get((query["instrument"], query["interval"]), [])
        since = 0 if self.stuck else int(query["last_update"])
        page = [r for r in held if r[0] >= since][: min(int(query["limit"]), self.most)]
        if query["offer_side"] == "A":
            page = [[r[0], *(p and p + self.spread for p in r[1:5]), r[5]] for r in page]
        return Answer(200, f"{query['jsonp']}({json.dumps(page)});")


def milliseconds(moment: datetime | date) -> int:
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def fx_price(day: date) -> float:
    """A price that wanders, and is the same whoever asks."""
    n = day.toordinal()
    return round(1.1 + 0.05 * math.sin(n / 17) + 0.01 * math.sin(n / 3), 5)


def fx_days(start: date, end: date) -> list[Row]:
    """Daily rows as Dukascopy has them: flat Saturdays, short Sundays with some volume."""
    rows = []
    for day in _days(start, end):
        opened, closed = fx_price(day - timedelta(days=1)), fx_price(day)
        if day.weekday() == 5:
            rows.append([milliseconds(day), *[opened] * 4, 0.0])
        elif day.weekday() == 6:
            rows.append([milliseconds(day), opened, opened + 1e-4, opened - 1e-4, opened, 3900.0])
        else:
            high, low = max(opened, closed) + 0.003, min(opened, closed) - 0.003
            rows.append([milliseconds(day), opened, high, low, closed, 100_000.0 + day.day])
    return rows


def fx_minutes(start: datetime, end: datetime, step: timedelta = timedelta(minutes=1)) -> list[Row]:
    """Rows of a minute (or more), every one of them, with flat ones while the market is closed."""
    rows, moment, n = [], start, 0
    while moment < end:
        price = 1.1 + 0.001 * math.sin(n / 7)
        row = [price, price + 2e-4, price - 2e-4, price + 1e-4, 12.5]
        rows.append([milliseconds(moment), *(row if _open(moment) else [*[1.1] * 4, 0.0])])
        moment, n = moment + step, n + 1
    return rows


def _open(moment: datetime) -> bool:
    """From Sunday 22:00 to Friday 22:00 UTC: New York's 17:00 in winter."""
    day, hour = moment.weekday(), moment.hour
    return not (day == 5 or (day == 4 and hour >= 22) or (day == 6 and hour < 22))


def _days(start: date, end: date) -> Iterable[date]:
    return (start + timedelta(days=n) for n in range((end - start).days))
