"""FRED and ALFRED: series, observations in real-time periods, vintage dates, errors as XML.

`Fred` answers from plain data: for each series its description and its releases, `(released, date,
value)`. What it says of a question is what the real one says: values hold from the day they were
released to the day before the next release of the same date, and the first day of each is clamped
to the time asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import pairwise
from xml.sax.saxutils import quoteattr

from feature_pipeline_tests.providers.server import Answer, Request

KEY = "0123456789abcdef0123456789abcdef"
FIRST, LAST = date(1776, 7, 4), date(9999, 12, 31)
MOST_VINTAGES = 2000
_DAY = timedelta(days=1)

Release = tuple[date, date, str]
"""When it was released, the date that it is about, its value as text; `.` - there is none."""


@dataclass(frozen=True)
class Told:
    """One series.

    Args:
        releases: in any order.
        title, units, frequency: as FRED has them.
    """

    releases: Sequence[Release]
    title: str = "A series"
    units: str = "Percent"
    frequency: str = "D"


@dataclass
class Fred:
    """The service: `server.routes["/fred"] = Fred({...})`.

    Args:
        series: id -> what there is of it; may change between questions.
        today: in St. Louis.
        key: the only one that it takes.
    """

    series: Mapping[str, Told] = field(default_factory=dict)
    today: date = LAST
    key: str = KEY

    def __call__(self, request: Request) -> Answer:
        query = request.query
        if query.get("api_key") != self.key:
            return error("Bad Request.  The value for variable api_key is not registered.")
        told = self.series.get(query.get("series_id", ""))
        if told is None:
            return error("Bad Request.  The series does not exist.")
        endpoint = request.path.rsplit("/fred", 1)[-1]
        if endpoint == "/series":
            return seriess(query["series_id"], told)
        if endpoint == "/series/vintagedates":
            released = sorted({released for released, _, _ in told.releases})
            return vintagedates([day for day in released if day <= self.today])
        if endpoint == "/series/observations":
            return self._observations(told, query)
        return Answer(404, b"Not Found")

    def _observations(self, told: Told, query: Mapping[str, str]) -> Answer:
        """What holds in the real-time period, of the dates asked for."""

        def day(name: str, default: date) -> date:
            return date.fromisoformat(query[name]) if name in query else default

        first, last = day("realtime_start", self.today), day("realtime_end", self.today)
        for name, moment in (("realtime_start", first), ("realtime_end", last)):
            if self.today < moment != LAST:
                return error(f"Bad Request.  Variable {name} can not be after today's date.")
        vintages = {r for r, _, _ in told.releases if first <= r <= min(last, self.today)}
        if len(vintages) > MOST_VINTAGES:
            return error(
                f"Bad Request.  There are {len(vintages)} vintage dates in the specified real-time "
                f"period: {first} to {last}.  This exceeds the maximum number of vintage dates "
                f"allowed ({MOST_VINTAGES})."
            )
        begin, end = day("observation_start", FIRST), day("observation_end", LAST)
        rows = [
            (max(since, first), min(until, last), about, value)
            for since, until, about, value in _periods(told.releases, self.today)
            if since <= last and until >= first and begin <= about <= end
        ]
        return observations(sorted(rows, key=lambda row: (row[2], row[0])))


def _periods(releases: Iterable[Release], today: date) -> list[tuple[date, date, date, str]]:
    """(from, to, date, value): how long each value held. One released anew as it was goes on."""
    by_date: dict[date, list[Release]] = {}
    for release in sorted(releases):
        if release[0] <= today:
            by_date.setdefault(release[1], []).append(release)
    found = []
    for about, known in by_date.items():
        changed = [known[0], *(b for a, b in pairwise(known) if a[2] != b[2])]
        for release, following in zip(changed, [*changed[1:], None], strict=True):
            until = following[0] - _DAY if following else LAST
            found.append((release[0], until, about, release[2]))
    return found


# -- the words ------------------------------------------------------------------------------------


def observations(rows: Iterable[tuple[date, date, date, str]]) -> Answer:
    """`series/observations`: (realtime_start, realtime_end, date, value)."""
    return xml(
        "observations",
        "".join(
            f'<observation realtime_start="{since}" realtime_end="{until}" date="{about}" '
            f"value={quoteattr(value)}/>\n"
            for since, until, about, value in rows
        ),
    )


def seriess(series_id: str, told: Told) -> Answer:
    """`series`: what a series is called."""
    return xml(
        "seriess",
        f'<series id="{series_id}" title={quoteattr(told.title)} units={quoteattr(told.units)} '
        f'frequency="whatever" frequency_short="{told.frequency}"/>',
    )


def vintagedates(days: Iterable[date]) -> Answer:
    """`series/vintagedates`."""
    return xml("vintage_dates", "".join(f"<vintage_date>{day}</vintage_date>" for day in days))


def error(message: str, status: int = 400) -> Answer:
    """An error as FRED words it."""
    body = f'<?xml version="1.0" encoding="utf-8" ?>\n<error code="{status}" message='
    return Answer(status, f"{body}{quoteattr(message)}/>", {"Content-Type": "text/xml"})


def xml(tag: str, content: str) -> Answer:
    """An answer of that kind."""
    body = f'<?xml version="1.0" encoding="utf-8" ?>\n<{tag} count="1">{content}</{tag}>'
    return Answer(200, body, {"Content-Type": "text/xml"})
