"""Reddit as praw talks to it: tokens, listings with paging, comments, things by name.

`Reddit` holds plain posts and comments; a test changes them between questions.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from feature_pipeline.sources.reddit import RedditSource
from feature_pipeline_tests.providers.server import QUICK, Answer, Handler, ProviderServer, Request

CLIENT_ID = "the-client-id"
CLIENT_SECRET = "canary-reddit-secret"
TOKEN = "canary-reddit-token"
AUTHOR = "canary-author"
MOST_LISTED = 1000


@dataclass
class Comment:
    """A comment; `body` as Reddit has it now."""

    id: str
    created: datetime
    body: Any
    edited: datetime | None = None
    stickied: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    def data(self, post: Post) -> dict[str, Any]:
        """As Reddit says it."""
        return {
            "id": self.id,
            "name": f"t1_{self.id}",
            "link_id": f"t3_{post.id}",
            "parent_id": f"t3_{post.id}",
            "subreddit": post.subreddit,
            "author": AUTHOR,
            "author_fullname": f"t2_{AUTHOR}",
            "created_utc": self.created.timestamp(),
            "edited": self.edited.timestamp() if self.edited else False,
            "body": self.body,
            "stickied": self.stickied,
            "replies": "",
            "permalink": f"/r/{post.subreddit}/comments/{post.id}/slug/{self.id}/",
            **self.more,
        }


@dataclass
class Post:
    """A post; `title` and `text` as Reddit has them now."""

    id: str
    created: datetime
    title: Any
    text: Any = ""
    subreddit: str = "stocks"
    edited: datetime | None = None
    removed_by: str | None = None
    comments: list[Comment] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """As Reddit says it."""
        return {
            "id": self.id,
            "name": f"t3_{self.id}",
            "subreddit": self.subreddit,
            "author": AUTHOR,
            "author_fullname": f"t2_{AUTHOR}",
            "created_utc": self.created.timestamp(),
            "edited": self.edited.timestamp() if self.edited else False,
            "title": self.title,
            "selftext": self.text,
            "removed_by_category": self.removed_by,
            "num_comments": len(self.comments),
            "permalink": f"/r/{self.subreddit}/comments/{self.id}/slug/",
            "url": f"https://www.reddit.com/r/{self.subreddit}/comments/{self.id}/slug/",
            **self.more,
        }


@dataclass
class Reddit:
    """All of Reddit. `closed` answers a status for a subreddit: 403 private, 404 banned."""

    posts: list[Post] = field(default_factory=list)
    closed: dict[str, int] = field(default_factory=dict)

    def routes(self) -> dict[str, Handler]:
        """For a `ProviderServer`."""
        return {
            "/api/v1/access_token": _token,
            "/r/": self._new,
            "/comments/": self._comments,
            "/api/info": self._info,
        }

    def _new(self, request: Request) -> Answer:
        _, _, name, what = request.path.split("/")[:4]
        if what != "new" or not _known(request):
            return Answer(401, b"")
        if name in self.closed:
            status = self.closed[name]
            where = {"Location": f"/subreddits/search?q={name}"} if status == 302 else {}
            return Answer(status, {"message": "closed", "error": status}, where)
        mine = [post for post in self.posts if post.subreddit == name]
        mine.sort(key=lambda post: post.created, reverse=True)
        names = [f"t3_{post.id}" for post in mine[:MOST_LISTED]]
        after = request.query.get("after")
        first = names.index(after) + 1 if after in names else 0
        some = mine[first : first + min(int(request.query.get("limit", 25)), 100)]
        ended = first + len(some) >= len(names)
        return listing(
            [thing("t3", post.data()) for post in some],
            None if ended or not some else f"t3_{some[-1].id}",
        )

    def _comments(self, request: Request) -> Answer:
        post = next((p for p in self.posts if p.id == request.path.split("/")[2]), None)
        if post is None:
            return Answer(404, {"message": "Not Found", "error": 404})
        said = [thing("t1", comment.data(post)) for comment in post.comments]
        said = said[: int(request.query["limit"])]
        more = {"id": "x", "name": "t1_x", "count": 3, "depth": 0, "children": [], "parent_id": ""}
        if len(said) < len(post.comments):
            said.append(thing("more", more))
        both = [_listed([thing("t3", post.data())]), _listed(said)]
        return Answer(200, both, _JSON)

    def _info(self, request: Request) -> Answer:
        if not _known(request):
            return Answer(401, b"")
        there = {f"t3_{p.id}": thing("t3", p.data()) for p in self.posts}
        there |= {f"t1_{c.id}": thing("t1", c.data(p)) for p in self.posts for c in p.comments}
        return listing([there[n] for n in request.query["id"].split(",") if n in there])


_JSON = {
    "Content-Type": "application/json; charset=UTF-8",
    "x-ratelimit-remaining": "590.0",
    "x-ratelimit-used": "10",
    "x-ratelimit-reset": "1",
}


def source(
    server: ProviderServer, clock: Any, subreddits: Sequence[str] = ("stocks",), **more: Any
) -> RedditSource:
    """A source that asks that server."""
    more = {"limits": QUICK, **more}
    return RedditSource(
        CLIENT_ID,
        CLIENT_SECRET,
        subreddits,
        reddit_url=server.url,
        oauth_url=server.url,
        clock=clock,
        **more,
    )


def thing(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """One thing of a listing."""
    return {"kind": kind, "data": data}


def listing(children: list[dict[str, Any]], after: str | None = None) -> Answer:
    """A listing, with the headers that count requests."""
    return Answer(200, _listed(children, after), _JSON)


def _listed(children: list[dict[str, Any]], after: str | None = None) -> dict[str, Any]:
    return {"kind": "Listing", "data": {"after": after, "before": None, "children": children}}


def _token(request: Request) -> Answer:
    expected = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
    if request.headers.get("authorization") != f"Basic {expected}":
        return Answer(401, {"message": "Unauthorized", "error": 401})
    return Answer(
        200,
        {"access_token": TOKEN, "expires_in": 86400, "scope": "*", "token_type": "bearer"},
        {"Content-Type": "application/json"},
    )


def _known(request: Request) -> bool:
    return request.headers.get("authorization") == f"bearer {TOKEN}"
