"""How Yahoo is asked: yfinance's own client, its session underneath minding our manners.

What yfinance knows lives in its `YfData`: the browser's TLS fingerprint (curl_cffi), the cookie,
the crumb, the consent page. It is used as it is, but for three things:

- each source has a client of its own instead of the process's only one, so that nobody else who
  uses the library changes its session, its cookies or its memory of past answers;
- cookies stay in this process: on disk they would be a pickle in a database that threads share;
- `Ticker.history` is left out. It turns a missing volume into 0, files a split or dividend of a day
  without a bar under the bar before it, drops rows that repeat a moment, fails a whole ticker for
  one infinite volume, and asks twice per ticker. What a chart says is read in `chart.py`.

Importing this module imports yfinance: do it when the first question is asked.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from curl_cffi import requests as curl
from curl_cffi.curl import CURL_WRITEFUNC_ERROR
from yfinance.data import YfData

from feature_pipeline.errors import SourceError
from feature_pipeline.sources.http import Politeness
from feature_pipeline.sources.yahoo.errors import RefusedError

HOST = "https://query2.finance.yahoo.com"
CHART = "/v8/finance/chart/"

_WITHOUT_CRUMB_S = 600.0
"""How long we go without cookie and crumb after they were refused."""

_CRUMB_WAIT_S = 10.0

_NO_DATA = re.compile(r"data doesn't exist for start|no data found for this date range", re.I)


class _StatusError(Exception):
    """A chart's answer that no other cookie would change."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(str(status))
        self.status = status
        self.body = body


class ChartClient:
    """Asks for charts; shared by threads.

    Args:
        politeness: towards Yahoo.
        base_url: asked instead of Yahoo's hosts, for tests.
    """

    def __init__(self, politeness: Politeness, base_url: str | None = None) -> None:
        self._politeness = politeness
        # Past its metaclass, which hands out one for the whole process.
        self._data: YfData = type.__call__(_Data, _Session(politeness, base_url))

    def chart(
        self, ticker: str, start: datetime, end: datetime, interval: str
    ) -> Mapping[str, Any] | None:
        """Yahoo's chart of a ticker with its splits and dividends, from `start` to `end`.

        Returns:
            The one `chart.result`; None where Yahoo has nothing of that time.

        Raises:
            RefusedError: Yahoo does not know the ticker, or will not answer about it.
            SourceError: it does not answer.
        """
        try:
            response = self._data.get(
                f"{HOST}{CHART}{quote(ticker, safe='')}",
                params={
                    "period1": int(start.timestamp()),
                    "period2": int(end.timestamp()),
                    "interval": interval,
                    "includePrePost": "false",
                    "events": "div,splits",
                },
            )
            status, body = response.status_code, response.content
        except _StatusError as error:
            status, body = error.status, error.body
        return self._result(ticker, status, body)

    def _result(self, ticker: str, status: int, body: bytes) -> Mapping[str, Any] | None:
        try:
            chart = json.loads(body)["chart"]
            error, results = chart.get("error"), chart.get("result")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise RefusedError(
                f"{self._politeness.provider}: {ticker} was answered with status {status} and no "
                "chart; the next run asks again"
            ) from None
        if error or status != 200:
            said = _said(error)
            if _NO_DATA.search(said):
                return None
            hint = "correct its ticker in universe.yaml" if status == 404 else "no bar of it came"
            raise RefusedError(
                f"{self._politeness.provider}: {ticker} was answered with status {status} "
                f"({said or 'no reason given'}); {hint}"
            )
        if not results:
            return None
        if not isinstance(results, list) or not isinstance(results[0], dict):
            raise RefusedError(
                f"{self._politeness.provider}: the chart of {ticker} holds no result"
            )
        return results[0]


def _said(error: object) -> str:
    """What Yahoo gives as its reason, fit for a line of ours."""
    said = error.get("description") if isinstance(error, dict) else error
    return "".join(c for c in " ".join(str(said or "").split()) if c.isprintable())[:160]


class _Data(YfData):
    """yfinance's client, cookies in memory alone."""

    def _load_cookie_curlCffi(self) -> bool:  # noqa: N802 - theirs
        return False

    def _save_cookie_curlCffi(self) -> bool:  # noqa: N802 - theirs
        # What it would find on disk the next time: the session has it.
        self._cookie = True
        return True


class _Session(curl.Session):
    """The session that yfinance wants, every request of it polite."""

    def __init__(self, politeness: Politeness, base_url: str | None) -> None:
        super().__init__(impersonate="chrome")
        self._politeness = politeness
        limits = politeness.limits
        self._once = Politeness(
            politeness.provider,
            replace(
                limits,
                attempts=1,
                wait_s=min(limits.wait_s, _CRUMB_WAIT_S),
                deadline_s=min(limits.deadline_s, 2 * _CRUMB_WAIT_S),
            ),
        )
        self._base_url = base_url
        self._crumb_again = 0.0

    def request(self, method: str, url: str, **kwargs: Any) -> Any:  # type: ignore[override]
        """As `curl_cffi.requests.Session.request`, at Yahoo's pace and up to our limits.

        Raises:
            SourceError: no answer.
            _StatusError: a chart was refused for what was asked, not for a stale crumb.
            ConnectionError: no cookie or crumb, which charts can do without.
        """
        if CHART not in url:
            return self._aside(method, url, **kwargs)
        response = self._polite(self._politeness, method, url, **kwargs)
        if response.status_code >= 400 and response.status_code != 401:
            # yfinance would change its cookies and ask again, for each ticker that is not there.
            raise _StatusError(response.status_code, response.content)
        return response

    def _aside(self, method: str, url: str, **kwargs: Any) -> Any:
        """Cookie, crumb, consent: worth one attempt, and not a delay for every ticker."""
        if time.monotonic() < self._crumb_again:
            raise ConnectionError("no cookie and no crumb for now")
        try:
            return self._polite(self._once, method, url, **kwargs)
        except SourceError:
            self._crumb_again = time.monotonic() + _WITHOUT_CRUMB_S
            raise ConnectionError("no cookie and no crumb for now") from None

    def _polite(self, politeness: Politeness, method: str, url: str, **kwargs: Any) -> Any:
        address = url
        if self._base_url is not None:
            parts = urlsplit(url)
            address = f"{self._base_url.rstrip('/')}{parts.path or '/'}"
            if parts.query:
                address += f"?{parts.query}"
        kwargs.pop("timeout", None)
        return politeness.ask(
            lambda seconds: self._send(politeness, method, address, seconds, kwargs), url
        )

    def _send(
        self, politeness: Politeness, method: str, url: str, seconds: float, kwargs: dict[str, Any]
    ) -> Any:
        """One request; its body is read up to the limit and within the time."""
        parts: list[bytes] = []
        size, most = 0, politeness.limits.max_bytes

        def take(chunk: bytes) -> int:
            nonlocal size
            size += len(chunk)
            if size > most:
                return int(CURL_WRITEFUNC_ERROR)
            parts.append(chunk)
            return len(chunk)

        try:
            response = super().request(
                method,  # type: ignore[arg-type]
                url,
                timeout=seconds,  # of the whole answer
                content_callback=take,
                **kwargs,
            )
        except curl.exceptions.RequestException as error:
            if size > most:
                raise SourceError(
                    f"{politeness.provider}: {urlsplit(url).path} answered with more than {most} "
                    "bytes; it was not read to its end"
                ) from None
            raise _kind(error) from None
        response.content = b"".join(parts)
        if response.status_code == 200 and CHART in response.url and not _is_json(response.content):
            # Cut short, or a page that says sorry: another attempt gets the chart.
            raise requests.exceptions.ChunkedEncodingError("no JSON")
        return response


def _kind(error: curl.exceptions.RequestException) -> Exception:
    """The failure as the rest of us knows it; its text quotes addresses."""
    if isinstance(error, curl.exceptions.Timeout):
        return TimeoutError()
    if isinstance(error, curl.exceptions.ConnectionError):
        return ConnectionError()
    return requests.exceptions.ChunkedEncodingError(type(error).__name__)


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True
