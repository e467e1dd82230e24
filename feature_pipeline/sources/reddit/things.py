"""Posts and comments as praw hands them over, made into rows; and whether they were removed.

Everything is read through `vars`: an attribute that is not there would be asked for at Reddit.
Authors are not looked at. Nothing that Reddit sends is trusted to be of its type.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any

import polars as pl

from feature_pipeline.schemas import UTC_TIME
from feature_pipeline.sources.text import plain

LONGEST_TITLE = 300
LONGEST_TEXT = 20_000

ROWS = pl.Schema(
    [
        ("url", pl.String),
        ("time", UTC_TIME),
        ("edited", UTC_TIME),
        ("title", pl.String),
        ("text", pl.String),
    ]
)

_SITE = "https://www.reddit.com/comments"
_ID = re.compile(r"[0-9a-z]{1,13}", re.ASCII)
_ADDRESS = re.compile(
    rf"{re.escape(_SITE)}/(?P<post>[0-9a-z]{{1,13}})/(?:_/(?P<comment>[0-9a-z]{{1,13}})/)?"
)
_REMOVED = frozenset({"[deleted]", "[removed]"})
_REMOVED_TITLES = _REMOVED | {"[deleted by user]", "[removed by reddit]"}


def post_row(post: Any) -> dict[str, Any] | None:
    """A post as a row of `ROWS`; None if it was removed, or is none."""
    said = vars(post)
    post_id, created = said.get("id"), moment(said.get("created_utc"))
    if not _is_id(post_id) or created is None or is_removed(post):
        return None
    return {
        "url": f"{_SITE}/{post_id}/",
        "time": created,
        "edited": moment(said.get("edited")),
        "title": plain(_text(said.get("title")), most=LONGEST_TITLE),
        "text": plain(_text(said.get("selftext")), most=LONGEST_TEXT),
    }


def comment_row(comment: Any) -> dict[str, Any] | None:
    """A comment as a row of `ROWS`: its beginning is the title, what is longer the text. None if it
    was removed, or is none."""
    said = vars(comment)
    comment_id, created = said.get("id"), moment(said.get("created_utc"))
    post_id = str(said.get("link_id")).removeprefix("t3_")
    if not _is_id(comment_id) or not _is_id(post_id) or created is None or is_removed(comment):
        return None
    body = plain(_text(said.get("body")), most=LONGEST_TEXT)
    if body is None:
        return None
    short = len(body) <= LONGEST_TITLE
    title = body if short else body[: LONGEST_TITLE + 1].rpartition(" ")[0] or body[:LONGEST_TITLE]
    return {
        "url": f"{_SITE}/{post_id}/_/{comment_id}/",
        "time": created,
        "edited": moment(said.get("edited")),
        "title": title,
        "text": body[len(title) :].strip() or None,
    }


def is_removed(thing: Any) -> bool:
    """Whether its author, a moderator or Reddit took it away."""
    said = vars(thing)
    if said.get("removed_by_category"):
        return True
    if (_text(said.get("title")) or "").strip().lower() in _REMOVED_TITLES:
        return True
    return any((_text(said.get(n)) or "").strip() in _REMOVED for n in ("selftext", "body"))


def fullname(url: str) -> str | None:
    """How Reddit calls the post or comment of an address that is one of `ROWS`; else None."""
    found = _ADDRESS.fullmatch(url)
    if found is None:
        return None
    return f"t1_{found['comment']}" if found["comment"] else f"t3_{found['post']}"


def created(thing: Any) -> datetime | None:
    """When it was published."""
    return moment(vars(thing).get("created_utc"))


def comments_of(post: Any) -> int:
    """How many comments it has, as far as that is known."""
    number = vars(post).get("num_comments")
    return number if isinstance(number, int) else 0


def moment(value: object) -> datetime | None:
    """Seconds since 1970 as a moment; None for what is none (`edited` is False or a number)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
