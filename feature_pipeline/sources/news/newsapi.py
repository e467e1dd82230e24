"""NewsAPI (newsapi.org), with a key: a search of 150 000 publishers.

Its free plan is for developers: it shows an article a day after its publication, the newest
hundred of a search, those of the last month, and answers 100 questions a day. The rows say so:
`available_at` is a day after `time`, or more. A plan that is not late is declared in the settings
(`newsapi_delay_h`) and by `Plan`.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from feature_pipeline.sources.news.search import Plan, SearchSource, stamp

FREE = Plan(delay=timedelta(hours=24), history=timedelta(days=29), page=100, pages=1)


class NewsApiSource(SearchSource):
    """Articles of NewsAPI."""

    name = "newsapi"
    url = "https://newsapi.org"
    path = "/v2/everything"
    free = FREE
    longest = 500

    def _params(
        self, query: str, span: tuple[datetime, datetime], page: int
    ) -> dict[str, str | int]:
        return {
            "q": query,
            "language": "en",
            "searchIn": "title,description",
            "sortBy": "publishedAt",
            "pageSize": self._plan.page,
            "page": page,
            "from": stamp(span[0]),
            "to": stamp(span[1]),
        }
