"""Reddit: posts and top comments of a few subreddits, and what was deleted of them.

Through praw, as a script application, read-only (`client.py`); what a post says is in `things.py`,
what it speaks of is `matching`'s. Authors are not looked at, kept or logged.

**When a document was available.** What is seen within a day of its publication (`LIVE`) was seen
then: `observed`, from the later of publication and now. What is collected later is history:
`assumed`, `LAG` after publication - or after its last edit, for the text is the edited one.

**What Reddit does not have.** A listing ends with its newest 1000 posts: of days before that
nothing can be collected, and nobody may take that for silence: every symbol of such a range fails.
So it does where a subreddit could not be read this time. One that is private, banned or gone costs
itself alone: it is logged, and what the others say counts.

**Addresses** are `https://www.reddit.com/comments/POST/` and `.../comments/POST/_/COMMENT/`: the
same whatever a subreddit or a title is called.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any

import polars as pl

from feature_pipeline.errors import SourceError
from feature_pipeline.schemas import UTC_TIME, Fetched, documents
from feature_pipeline.sources import Channel, Kind, document_ids
from feature_pipeline.sources.http import Limits
from feature_pipeline.sources.matching import Matcher
from feature_pipeline.sources.reddit import things
from feature_pipeline.sources.reddit.client import (
    LIMITS,
    ClosedError,
    RefusedError,
    answered,
    client,
)
from feature_pipeline.universe import Instrument

if TYPE_CHECKING:
    import praw

__all__ = ["LIMITS", "SUBREDDITS", "RedditSource"]

log = logging.getLogger(__name__)

SUBREDDITS = ("investing", "options", "StockMarket", "stocks", "wallstreetbets")
"""What is read where `universe.yaml` names none."""

LIVE = timedelta(hours=24)
LAG = timedelta(minutes=2)
"""After publication, or the last edit, what is collected as history counts as available."""

FOLLOWED = timedelta(hours=24)
"""So long before a range begins posts are looked up whose comments may fall into it."""

REACH = 900
"""Posts of a listing that ended: from here on there may have been more. Reddit says 1000, less what
was removed."""

DISCUSSED = 10
"""Posts of a subreddit whose comments are read: those with the most."""

COMMENTS = 20
"""Of each of them: the top ones."""

_BUDGET_S = 900.0
_PAGE = 100
_SUBREDDIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{1,20}", re.ASCII)


@dataclass
class _Read:
    """What was read of one subreddit; `amiss` is why that is not all there is."""

    rows: list[dict[str, Any] | None] = field(default_factory=list)
    amiss: str | None = None


class RedditSource:
    """Posts and comments of subreddits.

    Args:
        client_id, client_secret: of a Reddit application of type script.
        subreddits: names without r/; `SUBREDDITS` unless given.
        reddit_url, oauth_url: where tokens, and where everything else is asked for.
        limits: the provider's, and ours.
        clock: UTC now.
    """

    name = "reddit"

    def __init__(
        self,
        client_id: str,
        client_secret: str,
        subreddits: Sequence[str] = (),
        *,
        reddit_url: str = "https://www.reddit.com",
        oauth_url: str = "https://oauth.reddit.com",
        limits: Limits = LIMITS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.limits = limits
        self._open = lambda: client(client_id, client_secret, reddit_url, oauth_url, limits)
        self._subreddits = tuple(subreddits) or SUBREDDITS
        self._clock = clock

    @cached_property
    def _reddit(self) -> praw.Reddit:
        return self._open()

    # -- collecting ---------------------------------------------------------------------------

    def documents(
        self, channel: Channel, instruments: Sequence[Instrument], start: date, end: date
    ) -> Fetched:
        """See `DocumentSource.documents`. What names none of the instruments is no row.

        Raises:
            SourceError: Reddit refuses the credentials, or no subreddit can be read.
        """
        if channel != "reddit":
            raise SourceError(f"reddit has no {channel}; correct `source` in universe.yaml")
        asked = tuple(i.id for i in instruments)
        read = self._read_all(start)
        amiss = next((one.amiss for one in read.values() if one.amiss), None)
        return Fetched(
            self._frame(read, instruments, start, end),
            dict.fromkeys(asked, amiss) if amiss else {},
            asked,
        )

    def calls(self, kind: Kind, instruments: Sequence[Instrument], start: date, end: date) -> int:  # noqa: ARG002
        """See `Metered.calls`: at most, whatever the range."""
        if kind != "reddit" or not instruments:
            return 0
        return 1 + len(self._subreddits) * (1000 // _PAGE + DISCUSSED)

    def _read_all(self, start: date) -> Mapping[str, _Read]:
        """Of each subreddit that can be read, what it holds since `start`."""
        read: dict[str, _Read] = {}
        closed: list[str] = []
        until = monotonic() + _BUDGET_S
        for name in self._subreddits:
            if not _SUBREDDIT.fullmatch(name):
                raise SourceError(
                    f"{name[:40]!a} is no subreddit; write its name without r/ in `subreddits` of "
                    "universe.yaml"
                )
            try:
                read[name] = self._read(name, start, until)
            except ClosedError as error:
                log.warning("%s; take it out of `subreddits` in universe.yaml", error)
                closed.append(str(error))
        if not read:
            raise SourceError(f"{closed[0]}; so is every other one of `subreddits`")
        unread = [one.amiss for one in read.values() if one.amiss and not one.rows]
        if len(unread) == len(read):
            raise SourceError(unread[0])
        return read

    def _read(self, name: str, start: date, until: float) -> _Read:
        """Posts since a day before `start`, and comments of the most discussed.

        Raises:
            ClosedError: the subreddit is private, banned or gone.
            RefusedError: the credentials are wrong.
        """
        read = _Read()
        posts: list[Any] = []
        try:
            self._list(name, datetime.combine(start, time(), UTC), until, posts, read)
        except (ClosedError, RefusedError):
            raise
        except SourceError as error:  # what came before it counts
            read.amiss = str(error)
        read.rows += map(things.post_row, posts)
        posts.sort(key=things.comments_of, reverse=True)
        for post in [] if read.amiss else posts[:DISCUSSED]:
            try:
                if things.comments_of(post):
                    _in_time(until, name)
                    read.rows += map(things.comment_row, _top_comments(post, name))
            except ClosedError:  # the post was deleted meanwhile
                continue
            except SourceError as error:
                read.amiss = str(error)
                break
        return read

    def _list(
        self, name: str, begin: datetime, until: float, posts: list[Any], read: _Read
    ) -> None:
        """Adds the posts since `FOLLOWED` before `begin`, the newest first."""
        with answered(f"r/{name}"):
            for post in self._newest(name):
                _in_time(until, name)
                published = things.created(post)
                if published is not None and published < begin - FOLLOWED:
                    return
                posts.append(post)
        if not posts:  # an old one would have come: praw takes an empty answer for an empty listing
            raise SourceError(f"reddit: r/{name} lists no post at all; the next run asks again")
        # What is live was collected by the runs before this one, where it is behind the end.
        last = things.created(posts[-1]) if len(posts) >= REACH else None
        if last is not None and last > begin and begin < self._clock() - LIVE:
            read.amiss = (
                f"reddit: r/{name} lists its newest posts alone, back to {last:%Y-%m-%d}; what was "
                "posted before cannot be collected"
            )

    def _newest(self, name: str) -> Iterator[Any]:
        listing: Iterator[Any] = self._reddit.subreddit(name).new(
            limit=None, params={"limit": _PAGE}
        )
        return listing

    def _frame(
        self,
        read: Mapping[str, _Read],
        instruments: Sequence[Instrument],
        start: date,
        end: date,
    ) -> pl.DataFrame:
        """What was read as rows of `documents`, of the days [start, end)."""
        said = [row for one in read.values() for row in one.rows if row]
        now = pl.lit(self._clock(), dtype=UTC_TIME)
        live = pl.col("time") > now - LIVE
        rows = (
            pl.DataFrame(said, schema=things.ROWS, orient="row")
            # A listing that moved on while it was read repeats itself.
            .unique("url", keep="first", maintain_order=True)
            .with_columns(
                available_at=pl.when(live)
                .then(pl.max_horizontal("time", now))
                .otherwise(pl.max_horizontal("time", "edited") + LAG),
                availability_basis=pl.when(live)
                .then(pl.lit("observed"))
                .otherwise(pl.lit("assumed")),
            )
            .filter(pl.col("available_at").dt.date().is_between(start, end, closed="left"))
        )
        rows = rows.with_columns(Matcher(instruments).match(rows))
        rows = rows.filter(pl.col("symbols").list.len() > 0)
        return documents("reddit").conform(
            rows.drop("edited").with_columns(
                document_ids(self.name, rows["url"]), source=pl.lit(self.name)
            )
        )

    # -- deleted at Reddit --------------------------------------------------------------------

    def gone(self, urls: Sequence[str]) -> frozenset[str]:
        """Which of these posts and comments were deleted or removed at Reddit.

        Reddit says so of most. What is missing from its answer is gone only if it is missing from a
        second one as well, which holds something that is known to be there: an answer that is cut
        short, or empty in an outage, says nothing of anybody.

        Args:
            urls: addresses as `documents` has them; others are passed over.

        Raises:
            SourceError: Reddit did not answer; nothing is known of any.
        """
        names = {name: url for url in urls if (name := things.fullname(url))}
        gone: set[str] = set()
        for first in range(0, len(names), _PAGE):
            asked = list(names)[first : first + _PAGE]
            there = self._removed(asked)
            gone |= {name for name, removed in there.items() if removed}
            missing = [name for name in asked if name not in there]
            if missing:
                gone |= self._missing_still(missing, next(iter(there), None) or self._some_post())
        return frozenset(names[name] for name in gone)

    def _missing_still(self, missing: Sequence[str], known: str | None) -> set[str]:
        """Those that a second answer, which has what is `known`, does not have or calls removed."""
        gone: set[str] = set()
        for first in range(0, len(missing) if known else 0, _PAGE - 1):
            asked = missing[first : first + _PAGE - 1]
            again = self._removed([*asked, str(known)])
            if known in again:
                gone |= {name for name in asked if again.get(name, True)}
        return gone

    def _removed(self, names: Sequence[str]) -> dict[str, bool]:
        """Full name -> whether it was removed, of those in Reddit's answer."""
        with answered("posts and comments by name"):
            found = self._reddit.info(fullnames=names)
            said = {str(vars(thing).get("name")): things.is_removed(thing) for thing in found}
        return {name: said[name] for name in names if name in said}

    def _some_post(self) -> str | None:
        """The full name of a post that is there now; None where none can be found."""
        for subreddit in self._subreddits:
            try:
                with answered(f"r/{subreddit}"):
                    post = next(self._newest(subreddit), None)
            except ClosedError:
                continue
            if post is not None:
                return str(vars(post).get("name"))
        return None


def _top_comments(post: Any, name: str) -> list[Any]:
    """The top comments of a post, without those that a moderator pinned above them."""
    with answered(f"comments of r/{name}"):
        post.comment_sort = "top"
        post.comment_limit = COMMENTS
        comments = list(post.comments)
    own = [c for c in comments if "body" in vars(c) and not vars(c).get("stickied")]
    return own[:COMMENTS]


def _in_time(until: float, name: str) -> None:
    if monotonic() > until:
        raise SourceError(
            f"reddit: r/{name} was not read to its end, {_BUDGET_S:.0f} s after the run had begun; "
            "the next run asks again"
        )
