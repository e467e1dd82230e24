"""The GNews API (gnews.io), with a key: a search of 60 000 publishers.

Its free plan shows ten articles per search, twelve hours after their publication, and answers 100
questions a day; what it shows are the newest. Another plan is declared in the settings
(`gnews_delay_h`) and by `Plan`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from feature_pipeline.sources.http import Limits
from feature_pipeline.sources.news.search import Plan, SearchSource, stamp

URL = "https://gnews.io"

LIMITS = Limits(requests=1, seconds=1.0, attempts=3, max_bytes=8 << 20)

FREE = Plan(delay=timedelta(hours=12), history=timedelta(days=30), page=10, pages=1)


class GNewsSource(SearchSource):
    """Articles of the GNews API.

    Args:
        key: of the account.
        url: where it is.
        plan: what the account allows.
        limits: the provider's, and ours.
        clock: UTC now.
    """

    name = "gnews"
    path = "/api/v4/search"
    longest = 200

    def __init__(
        self,
        key: str,
        *,
        url: str = URL,
        plan: Plan = FREE,
        limits: Limits = LIMITS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(key, url=url, plan=plan, limits=limits, clock=clock)

    def _params(
        self, query: str, span: tuple[datetime, datetime], page: int
    ) -> dict[str, str | int]:
        more: dict[str, str | int] = {"page": page} if page > 1 else {}
        return {
            "q": query,
            "lang": "en",
            "in": "title,description",
            "sortby": "publishedAt",
            "max": self._plan.page,
            "from": stamp(span[0]),
            "to": stamp(span[1]),
            **more,
        }
