"""What GNews and NewsAPI have in common: one search per instrument, page by page, with a key.

The key travels in a header. What was searched for does not say whom an article is about - both find
words anywhere in it - so `matching` decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from typing import Any

from feature_pipeline.errors import SourceError
from feature_pipeline.schemas import Fetched, documents
from feature_pipeline.sources import Channel, Kind
from feature_pipeline.sources.http import Limits, Politeness, PoliteSession
from feature_pipeline.sources.news.articles import (
    LIVE,
    Article,
    as_documents,
    moment,
    out_of_reach,
)
from feature_pipeline.universe import Instrument

GIVE_UP = 3
"""After so many instruments in a row without an answer the others are not asked for."""

REFUSED = {
    401: "the key is wrong; correct it",
    403: "the key is used up for today, or may not ask this; the next run asks again",
    426: "the plan does not go that far",
}

_SHORTEST_TICKER = 3
_WORDS = re.compile(r'["\\\x00-\x1f]')


LIMITS = Limits(requests=1, seconds=1.0, attempts=3, max_bytes=8 << 20)


class RefusedError(SourceError):
    """The key is wrong or used up: asking for the next instrument changes nothing."""


@dataclass(frozen=True)
class Plan:
    """What a subscription allows.

    Args:
        delay: after publication, when it shows an article.
        history: how far back it goes.
        page: articles of one answer.
        pages: of one search.
    """

    delay: timedelta
    history: timedelta
    page: int
    pages: int


class SearchSource:
    """An API that is searched for articles; what differs between them is in the subclasses.

    Args:
        key: of the account.
        url: where it is.
        plan: what the account allows; the free one unless given.
        limits: the provider's, and ours.
        clock: UTC now.
    """

    name: str
    url: str
    path: str
    free: Plan
    longest: int
    """Characters of a query."""

    def __init__(
        self,
        key: str,
        *,
        url: str | None = None,
        plan: Plan | None = None,
        limits: Limits = LIMITS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._key = key
        self._url = (url or self.url).rstrip("/")
        self._plan = plan or self.free
        self.limits = limits
        self._clock = clock

    @cached_property
    def _session(self) -> PoliteSession:
        session = PoliteSession(Politeness(self.name, self.limits))
        session.headers["X-Api-Key"] = self._key
        session.headers["Accept"] = "application/json"
        return session

    def documents(
        self, channel: Channel, instruments: Sequence[Instrument], start: date, end: date
    ) -> Fetched:
        """See `DocumentSource.documents`. An article that speaks of none of the instruments is no
        row.

        Raises:
            SourceError: the key is refused or used up before anything was answered, or nobody
                could be asked for.
        """
        if channel != "news":
            raise SourceError(f"{self.name} has no {channel}; correct `source` in universe.yaml")
        asked = tuple(i.id for i in instruments)
        now = self._clock()
        amiss = out_of_reach(self.name, start, now, self._plan.history)
        span = self._span(start, end, now)
        if span is None or not asked:
            empty = documents("news").empty()
            return Fetched(empty, dict.fromkeys(asked, amiss) if amiss else {}, asked)
        found, failed = self._ask_all(instruments, span)
        now = self._clock()  # asking takes minutes: nothing was seen before its end
        frame = as_documents(self.name, found, instruments, (start, end), now, self._plan.delay)
        return Fetched(frame, dict.fromkeys(asked, amiss) if amiss else failed, asked)

    def calls(self, kind: Kind, instruments: Sequence[Instrument], start: date, end: date) -> int:
        """See `Metered.calls`: at most."""
        if kind != "news" or self._span(start, end, self._clock()) is None:
            return 0
        return len(instruments) * self._plan.pages

    def _span(self, start: date, end: date, now: datetime) -> tuple[datetime, datetime] | None:
        """When what becomes available on the days [start, end) was published, as far as the plan
        goes; None where that is never."""
        first, last = (datetime.combine(day, time(), UTC) for day in (start, end))
        since = max(first - self._plan.delay - LIVE, now - self._plan.history)
        until = min(last, now)
        return (since, until) if since < until else None

    def _ask_all(
        self, instruments: Sequence[Instrument], span: tuple[datetime, datetime]
    ) -> tuple[list[Article], dict[str, str]]:
        found: list[Article] = []
        failed: dict[str, str] = {}
        in_a_row, why, hopeless = 0, "", False
        for instrument in instruments:
            if not hopeless and in_a_row < GIVE_UP:
                try:
                    found += self._ask(instrument, span)
                    in_a_row = 0
                    continue
                except RefusedError as error:
                    why, hopeless = str(error), True
                except SourceError as error:
                    why, in_a_row = str(error), in_a_row + 1
            failed[instrument.id] = why
        if len(failed) == len(instruments):
            raise SourceError(why)
        return found, failed

    def _ask(self, instrument: Instrument, span: tuple[datetime, datetime]) -> list[Article]:
        """All pages of one search, as many as the plan allows."""
        articles: list[Article] = []
        query = _query(instrument, self.name, self.longest)
        for page in range(1, self._plan.pages + 1):
            raw = self._page(self._params(query, span, page))["articles"]
            articles += _articles(raw)
            if len(raw) < self._plan.page:
                break
        return articles

    def _page(self, params: Mapping[str, str | int]) -> Mapping[str, Any]:
        """One answer.

        Raises:
            RefusedError: the key is wrong or used up, or the plan does not go that far.
            SourceError: no answer, or none that can be used.
        """
        where = f"{self.name}: {self.path}"
        response = self._session.get(f"{self._url}{self.path}", params=params)
        if response.status_code in REFUSED:
            raise RefusedError(
                f"{where} answered {response.status_code}: {REFUSED[response.status_code]}"
            )
        if response.status_code != 200:
            raise SourceError(f"{where} answered {response.status_code}")
        try:
            answer = json.loads(response.content)
        except (ValueError, RecursionError):
            raise SourceError(f"{where} answered something that is no JSON") from None
        if not isinstance(answer, dict) or not isinstance(answer.get("articles"), list):
            raise SourceError(f"{where} answered without articles")
        return answer

    def _params(
        self, query: str, span: tuple[datetime, datetime], page: int
    ) -> dict[str, str | int]:
        raise NotImplementedError


def _query(instrument: Instrument, provider: str, longest: int) -> str:
    """Its names and its ticker, any of them, as phrases."""
    ticker = instrument.ticker(provider).lstrip("^")
    words = [instrument.name, *instrument.aliases]
    if len(ticker) >= _SHORTEST_TICKER or not any(words):
        words.append(ticker)
    query = ""
    for phrase in _phrases(words):
        longer = f"{query} OR {phrase}" if query else phrase
        if len(longer) > longest:
            break
        query = longer
    return query or f'"{ticker}"'


def _phrases(words: Iterable[str | None]) -> Iterator[str]:
    for word in dict.fromkeys(filter(None, words)):
        yield f'"{_WORDS.sub(" ", word).strip()}"'


def _articles(raw: Sequence[Any]) -> Iterator[Article]:
    for one in raw:
        if isinstance(one, dict):
            texts = [one.get(name) for name in ("description", "content")]
            yield Article(
                url=one.get("url"),
                title=one.get("title"),
                text=" ".join(text for text in texts if isinstance(text, str)),
                time=moment(one.get("publishedAt")),
            )


def stamp(at: datetime) -> str:
    """A moment as both APIs take it."""
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
