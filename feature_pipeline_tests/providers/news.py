"""RSS 2.0, Atom, GNews v4 and NewsAPI v2, of plain articles.

`Press` holds them; a test changes them between questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime
from typing import Any
from xml.sax.saxutils import escape

from feature_pipeline_tests.providers.server import Answer, Handler, Request

KEY = "canary-news-key"


@dataclass(frozen=True)
class Story:
    """An article; its address is `https://publisher.example/PAGE`."""

    page: str
    title: Any
    at: datetime | str | None
    text: Any = "A summary."
    url: Any = None

    @property
    def address(self) -> Any:
        return f"https://publisher.example/{self.page}" if self.url is None else self.url

    @property
    def stamp(self) -> Any:
        return f"{self.at:%Y-%m-%dT%H:%M:%SZ}" if isinstance(self.at, datetime) else self.at


def rss(stories: Sequence[Story], head: str = '<?xml version="1.0" encoding="utf-8"?>') -> str:
    """RSS 2.0."""

    def item(story: Story) -> str:
        said = format_datetime(story.at) if isinstance(story.at, datetime) else story.at
        date = f"<pubDate>{said}</pubDate>" if said else ""
        return (
            f"<item><title>{escape(story.title)}</title><link>{escape(story.address)}</link>"
            f"<description>{escape(story.text)}</description>{date}"
            f"<guid isPermaLink='false'>{story.page}</guid></item>"
        )

    items = "".join(map(item, stories))
    return f'{head}<rss version="2.0"><channel><title>News</title>{items}</channel></rss>'


def atom(stories: Sequence[Story]) -> str:
    """Atom 1.0."""
    entries = "".join(
        f"<entry><title type='html'>{escape(escape(s.title))}</title><id>urn:{s.page}</id>"
        f"<link rel='self' href='https://feed.example/'/><link href='{escape(s.address)}'/>"
        f"<published>{s.stamp}</published><updated>2030-01-01T00:00:00Z</updated>"
        f"<content type='html'>{escape(escape(s.text))}</content></entry>"
        for s in stories
    )
    return f"<feed xmlns='http://www.w3.org/2005/Atom'><title>News</title>{entries}</feed>"


def feed(body: str | bytes, kind: str = "application/rss+xml") -> Answer:
    """A feed as it is served."""
    return Answer(200, body, {"Content-Type": kind})


@dataclass
class Press:
    """Articles that both APIs find."""

    stories: list[Story] = field(default_factory=list)

    def routes(self) -> dict[str, Handler]:
        """Both APIs."""
        return {"/api/v4/search": self._gnews, "/v2/everything": self._newsapi}

    def _found(self, asked: Request) -> list[Story]:
        """Those of the span, the newest first: whom they are about is not looked at."""
        first, last = asked.query["from"], asked.query["to"]
        found = [s for s in self.stories if isinstance(s.at, datetime) and first <= s.stamp <= last]
        found.sort(key=lambda s: str(s.stamp), reverse=True)
        return [*found, *(s for s in self.stories if not isinstance(s.at, datetime))]

    def _page(self, asked: Request, size: int) -> list[Story]:
        page = int(asked.query.get("page", "1"))
        return self._found(asked)[(page - 1) * size : page * size]

    def _gnews(self, asked: Request) -> Answer:
        if asked.headers.get("x-api-key") != KEY:
            return Answer(401, {"errors": ["Your API key is invalid."]})
        articles = [
            {
                "title": s.title,
                "description": s.text,
                "content": "Of the article... [100 chars]",
                "url": s.address,
                "image": "https://publisher.example/x.jpg",
                "publishedAt": s.stamp,
                "source": {"name": "Publisher", "url": "https://publisher.example"},
            }
            for s in self._page(asked, int(asked.query["max"]))
        ]
        return Answer(200, {"totalArticles": len(self._found(asked)), "articles": articles})

    def _newsapi(self, asked: Request) -> Answer:
        if asked.headers.get("x-api-key") != KEY:
            return Answer(401, {"status": "error", "code": "apiKeyInvalid", "message": "..."})
        articles = [
            {
                "source": {"id": None, "name": "Publisher"},
                "author": "Somebody",
                "title": s.title,
                "description": s.text,
                "url": s.address,
                "urlToImage": None,
                "publishedAt": s.stamp,
                "content": "Of the article... [+100 chars]",
            }
            for s in self._page(asked, int(asked.query["pageSize"]))
        ]
        total = len(self._found(asked))
        return Answer(200, {"status": "ok", "totalResults": total, "articles": articles})
