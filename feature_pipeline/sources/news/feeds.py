"""RSS and Atom: the feeds of publishers, live and free of charge.

Addresses are those of `feeds` in `universe.yaml`, or `FEEDS`. One with `{ticker}` or `{name}` in it
is asked for each instrument. We fetch, from the hosts of those addresses alone, and hand bytes to a
process that reads them (`reading.py`).

**Whom an entry speaks of.** A feed with `{ticker}` names its instrument: its publisher filed the
entry there. One with `{name}` is a search, and finds whatever has that word: there, as in a feed of
everything, `matching` decides.

**What a feed that cannot be had costs.** What only it would have told: of an instrument with feeds
of its own, one of which is missing, not everything is known, and it fails; so does one without
where no feed answered at all. A feed of everything that is missing beside others is logged: its
entries are mostly there the next time. Feeds hold their newest entries alone; a range that begins
before `HISTORY` fails, for nobody may take that for silence.

**Dates without a zone** are read as the latest moment that they can mean (UTC-12), those without an
hour as the end of their day, neither as later than now.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from feature_pipeline.errors import SourceError
from feature_pipeline.schemas import Fetched
from feature_pipeline.sources import Channel, Kind
from feature_pipeline.sources.http import Limits, Politeness, PoliteSession
from feature_pipeline.sources.news.articles import Article, as_documents, out_of_reach
from feature_pipeline.sources.news.reading import CPU_SECONDS, Reader
from feature_pipeline.universe import Instrument

log = logging.getLogger(__name__)

FEEDS = (
    "https://feeds.finance.yahoo.com/rss/2.0/headline?s={ticker}&region=US&lang=en-US",
    "https://feeds.content.dowjones.io/public/rss/mw_topstories",
    "https://www.cnbc.com/id/10001147/device/rss/rss.html",
    "https://www.federalreserve.gov/feeds/press_all.xml",
)
"""Where `universe.yaml` names none: headlines per ticker by Yahoo Finance, MarketWatch's top
stories, business news of CNBC, press releases of the Federal Reserve."""

LIMITS = Limits(
    requests=2, seconds=1.0, attempts=3, wait_s=10.0, deadline_s=60.0, max_bytes=4 << 20
)
"""Of each host."""

HISTORY = timedelta(days=30)
"""How far back the entries of a feed may reach; most reach back for a day or two."""

GIVE_UP = 3
"""After so many feeds in a row without an answer the others of their host are not asked for."""

_HOSTS_AT_ONCE = 8
_ACCEPT = "application/rss+xml, application/atom+xml, application/xml;q=0.9, */*;q=0.5"


@dataclass(frozen=True)
class _Question:
    """One address to ask: of whom, None of everything, and whether that says whom it is about."""

    address: str
    of: str | None = None
    names: bool = False


class FeedSource:
    """Entries of RSS and Atom feeds.

    Args:
        feeds: their addresses; `FEEDS` unless given.
        limits: of each host.
        clock: UTC now.
        cpu_seconds: that one feed may take to be read.
    """

    name = "feeds"

    def __init__(
        self,
        feeds: Sequence[str] = (),
        *,
        limits: Limits = LIMITS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        cpu_seconds: float = CPU_SECONDS,
    ) -> None:
        self._feeds = tuple(feeds) or FEEDS
        self.limits = limits
        self._clock = clock
        self._cpu_seconds = cpu_seconds

    @cached_property
    def _sessions(self) -> Mapping[str, PoliteSession]:
        """Host -> its session: one that wants to be left alone keeps nobody else waiting."""
        hosts = frozenset(_host(feed) for feed in self._feeds)
        return {host: _FeedSession(Politeness(self.name, self.limits), hosts) for host in hosts}

    def documents(
        self, channel: Channel, instruments: Sequence[Instrument], start: date, end: date
    ) -> Fetched:
        """See `DocumentSource.documents`. What speaks of none of the instruments is no row.

        Raises:
            SourceError: no feed could be had, or `feeds` of `universe.yaml` holds no address.
        """
        if channel != "news":
            raise SourceError(f"feeds have no {channel}; correct `source` in universe.yaml")
        asked = tuple(i.id for i in instruments)
        now = self._clock()
        amiss = out_of_reach(self.name, start, now, HISTORY)
        if not asked or end <= (now - HISTORY).date():
            return Fetched(_nothing(self.name, now), dict.fromkeys(asked, amiss or ""), asked)
        questions = self._questions(instruments)
        entries, failures = self._ask(questions)
        if failures and len(failures) == len(questions):
            raise SourceError(next(iter(failures.values())))
        now = self._clock()  # asking takes minutes: nothing was seen before its end
        frame = as_documents(self.name, _articles(entries, now), instruments, (start, end), now)
        failed = dict.fromkeys(asked, amiss) if amiss else _untold(questions, failures, asked)
        return Fetched(frame, failed, asked)

    def calls(self, kind: Kind, instruments: Sequence[Instrument], start: date, end: date) -> int:  # noqa: ARG002
        """See `Metered.calls`."""
        if kind != "news" or not instruments or end <= (self._clock() - HISTORY).date():
            return 0
        return len(self._questions(instruments))

    def _questions(self, instruments: Sequence[Instrument]) -> list[_Question]:
        """What to ask, in the order of `feeds`."""
        questions: dict[str, _Question] = {}
        for feed in self._feeds:
            names = "{ticker}" in feed
            if not names and "{name}" not in feed:
                questions.setdefault(feed, _Question(feed))
                continue
            for instrument in instruments:
                filled = feed.replace("{ticker}", quote(instrument.ticker(self.name), safe=""))
                filled = filled.replace("{name}", quote(instrument.name or instrument.id, safe=""))
                questions.setdefault(filled, _Question(filled, instrument.id, names))
        return list(questions.values())

    def _ask(
        self, questions: Sequence[_Question]
    ) -> tuple[list[tuple[_Question, list[dict[str, Any]]]], dict[_Question, str]]:
        """The entries of each feed, in order; and why the others could not be had."""
        by_host: dict[str, list[_Question]] = defaultdict(list)
        for question in questions:
            by_host[_host(question.address)].append(question)
        told: dict[_Question, list[dict[str, Any]]] = {}
        failures: dict[_Question, str] = {}
        with Reader(self._cpu_seconds) as reader, ThreadPoolExecutor(_HOSTS_AT_ONCE) as pool:
            for answers, amiss in pool.map(lambda of: self._ask_host(of, reader), by_host.values()):
                told |= answers
                failures |= amiss
        return [(question, told[question]) for question in questions if question in told], failures

    def _ask_host(
        self, questions: Sequence[_Question], reader: Reader
    ) -> tuple[dict[_Question, list[dict[str, Any]]], dict[_Question, str]]:
        told: dict[_Question, list[dict[str, Any]]] = {}
        failures: dict[_Question, str] = {}
        in_a_row, why = 0, ""
        for question in questions:
            if in_a_row < GIVE_UP:
                try:
                    data = self._fetch(question.address)
                    in_a_row = 0
                    told[question] = _entries(reader, data, question.address)
                    continue
                except _UnreadableError as error:
                    why = str(error)
                except SourceError as error:
                    in_a_row, why = in_a_row + 1, str(error)
                log.warning("%s", why)
            failures[question] = why
        return told, failures

    def _fetch(self, address: str) -> bytes:
        response = self._sessions[_host(address)].get(address, headers={"Accept": _ACCEPT})
        if response.status_code != 200:
            raise SourceError(f"feeds: {_shown(address)} answered {response.status_code}")
        return response.content


class _FeedSession(PoliteSession):
    """May be sent on to the other feeds' hosts, but from a safe connection to no other."""

    def _sent_on(self, response: requests.Response, hops: int) -> str:
        target = super()._sent_on(response, hops)
        if urlsplit(response.url).scheme == "https" and urlsplit(target).scheme != "https":
            raise SourceError(
                f"feeds: {_shown(response.url)} sends us on to an address without https; see "
                "whether its address is still right"
            )
        return target


class _UnreadableError(SourceError):
    """A feed was had, and is none; its host is well."""


def _entries(reader: Reader, data: bytes, address: str) -> list[dict[str, Any]]:
    try:
        return reader.read(data)
    except SourceError as error:
        raise _UnreadableError(f"feeds: {_shown(address)} {error}") from None


def _articles(
    entries: Sequence[tuple[_Question, list[dict[str, Any]]]], now: datetime
) -> list[Article]:
    return [
        Article(
            url=entry["url"],
            title=entry["title"],
            text=entry["text"],
            time=_published(entry["at"], entry["slack"], now),
            named=(question.of,) if question.names and question.of else (),
            key=entry["key"],
        )
        for question, found in entries
        for entry in found
    ]


def _published(at: int | None, slack: int, now: datetime) -> datetime | None:
    """The latest moment that a date can mean; where that is not known exactly, none after now."""
    if at is None:
        return None
    try:
        latest = datetime.fromtimestamp(at, UTC) + timedelta(seconds=slack)
    except (ValueError, OverflowError, OSError):
        return None
    return min(latest, max(now, datetime.fromtimestamp(at, UTC))) if slack else latest


def _untold(
    questions: Sequence[_Question], failures: Mapping[_Question, str], asked: Sequence[str]
) -> dict[str, str]:
    """Instrument -> why not everything is known of it."""
    own = {question.of for question in questions if question.of}
    failed = {question.of: why for question, why in failures.items() if question.of}
    general = [question for question in questions if not question.of]
    if general and all(question in failures for question in general):
        failed |= {symbol: failures[general[0]] for symbol in asked if symbol not in own}
    return {symbol: failed[symbol] for symbol in asked if symbol in failed}


def _nothing(name: str, now: datetime) -> Any:
    return as_documents(name, [], [], (now.date(), now.date()), now)


def _host(address: str) -> str:
    """The host of a feed.

    Raises:
        SourceError: it is no address that can be asked.
    """
    try:
        parts = urlsplit(address.replace("{ticker}", "x").replace("{name}", "x"))
        host = parts.hostname
        _ = parts.port
    except ValueError:
        host = None
    if (
        not host
        or parts.scheme not in ("http", "https")
        or "@" in parts.netloc
        or {"{", "}"} & {*parts.geturl()}
    ):
        raise SourceError(
            f"feeds: {address[:80]!a} in universe.yaml is no address of a feed; write "
            "https://HOST/PATH, with {ticker} or {name} where an instrument's belongs"
        )
    return host


def _shown(address: str) -> str:
    """What may be shown of an address: no query."""
    parts = urlsplit(address)
    return f"{parts.hostname}{parts.path}"
