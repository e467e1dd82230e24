"""praw, over a polite session; and what its errors mean, in one line each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

import requests

from feature_pipeline.errors import SourceError
from feature_pipeline.sources.http import Limits, Politeness, PoliteSession

if TYPE_CHECKING:
    import praw

LIMITS = Limits(requests=90, seconds=60.0, attempts=4, wait_s=20.0, deadline_s=90.0)
"""Reddit allows 100 a minute to an application that logs in. Its headers say how many are left of
ten minutes' worth; praw spreads them, with at most ten seconds between two."""

_LEFT, _RESET = "x-ratelimit-remaining", "x-ratelimit-reset"
_LONGEST_PAUSE_S = 600.0

_CLOSED = frozenset({301, 302, 403, 404, 451})


class ClosedError(SourceError):
    """Private, banned, in quarantine, or never there: it will not be otherwise in a minute."""


class RefusedError(SourceError):
    """Reddit does not know us: no other question will be answered either."""


class _Session(PoliteSession):
    """Says that Reddit has had enough of us, where praw would sleep until it has not."""

    _until = 0.0

    def request(self, method: str | bytes, url: str | bytes, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        """As `PoliteSession.request`.

        Raises:
            SourceError: see there; or nothing is left of our requests for longer than the deadline.
        """
        pause = self._until - monotonic()
        if pause > 0:
            raise SourceError(
                f"reddit: our requests are used up for {pause:.0f} s; the next run asks again"
            )
        response = super().request(method, url, **kwargs)
        left, reset = (_number(response.headers.get(name)) for name in (_LEFT, _RESET))
        if left is None or reset is None or (left < 1 and reset > self.politeness.limits.wait_s):
            response.headers.pop(_LEFT, None)
        if left is not None and reset is not None and _LEFT not in response.headers:
            self._until = monotonic() + min(reset, _LONGEST_PAUSE_S)
        return response


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def client(
    client_id: str, client_secret: str, reddit_url: str, oauth_url: str, limits: Limits = LIMITS
) -> praw.Reddit:
    """A read-only client; nothing is asked yet.

    Everything that a `praw.ini` or an environment variable of praw's could say is said here.
    """
    import praw

    reddit = praw.Reddit(
        client_id=client_id,
        client_secret=client_secret,
        user_agent="python:feature-pipeline:0.1",
        username=None,
        password=None,
        refresh_token=None,
        redirect_uri=None,
        reddit_url=reddit_url,
        oauth_url=oauth_url,
        check_for_updates=False,
        check_for_async=False,
        requestor_kwargs={"session": _Session(Politeness("reddit", limits))},
    )
    reddit.read_only = True
    return reddit


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Turns what praw raises into one line that holds no secret and no author.

    Raises:
        ClosedError: Reddit says that it is not for us.
        RefusedError: the credentials are wrong.
        SourceError: anything else.
    """
    from praw.exceptions import PRAWException
    from prawcore.exceptions import OAuthException, PrawcoreException, RequestException

    try:
        yield
    except RequestException as error:
        if isinstance(error.original_exception, SourceError):
            raise error.original_exception from None
        kind = type(error.original_exception).__name__
        raise SourceError(f"reddit: {what} could not be asked for ({kind})") from None
    except (PrawcoreException, PRAWException) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, OAuthException) or status == 401:
            raise RefusedError(
                "reddit refuses the credentials; check FEATURE_PIPELINE_REDDIT_CLIENT_ID and "
                "FEATURE_PIPELINE_REDDIT_CLIENT_SECRET (an app of type script)"
            ) from None
        if status in _CLOSED:
            raise ClosedError(
                f"reddit: {what} answered {status}: it is private, banned or gone"
            ) from None
        if status in (None, 200):
            raise _no_answer(what) from None
        raise SourceError(f"reddit: {what} answered {status}; the next run asks again") from None
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError):
        # JSON, but not Reddit's.
        raise _no_answer(what) from None


def _no_answer(what: str) -> SourceError:
    return SourceError(f"reddit: {what} sent what is no answer; the next run asks again")
