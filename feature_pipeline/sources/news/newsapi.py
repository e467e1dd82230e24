"""NewsAPI (newsapi.org), with a key: a search of 150 000 publishers.

Its free plan is for developers: it shows an article a day after its publication, the newest
hundred of a search, those of the last month, and answers 100 questions a day. The rows say so:
`available_at` is a day after `time`, or more. A plan that is not late is declared in the settings
(`newsapi_delay_h`) and by `Plan`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from feature_pipeline.sources.http import Limits
from feature_pipeline.sources.news.search import Plan, SearchSource, stamp

URL = "https://newsapi.org"

LIMITS = Limits(requests=1, seconds=1.0, attempts=3, max_bytes=8 << 20)

FREE = Plan(delay=timedelta(hours=24), history=timedelta(days=29), page=100, pages=1)


class NewsApiSource(SearchSource):
    """Articles of NewsAPI.

    Args:
        key: of the account.
        url: where it is.
        plan: what the account allows.
        limits: the provider's, and ours.
        clock: UTC now.
    """

    name = "newsapi"
    path = "/v2/everything"
    longest = 500

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
