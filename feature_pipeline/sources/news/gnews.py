"""The GNews API (gnews.io), with a key: a search of 60 000 publishers.

Its free plan shows ten articles per search, twelve hours after their publication, and answers 100
questions a day; what it shows are the newest. Another plan is declared in the settings
(`gnews_delay_h`) and by `Plan`.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from feature_pipeline.sources.news.search import Plan, SearchSource, stamp

FREE = Plan(delay=timedelta(hours=12), history=timedelta(days=30), page=10, pages=1)


class GNewsSource(SearchSource):
    """Articles of the GNews API."""

    name = "gnews"
    url = "https://gnews.io"
    path = "/api/v4/search"
    free = FREE
    longest = 200

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
