"""`universe.yaml` made usable: instruments, members, and the sessions that should have bars.

Here live the instrument model, its validation, and the exchange calendars. What a provider calls an
instrument on a given day is answered here; how it is asked is not: that is `sources`. No database.

Every interval is half-open, `[from, to)`: `to` is the first day no longer, so that a rename and a
change of membership each name one day, once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import cache, cached_property
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from feature_pipeline.errors import UniverseError
from feature_pipeline.schemas import UTC_TIME
from feature_pipeline.symbols import checked_symbol, is_symbol, is_ticker, quoted, why_no_symbol
from feature_pipeline.timeframes import DAILY, TIMEFRAMES

DEFAULT = Path(str(resources.files("feature_pipeline") / "universe.yaml"))
"""The universe that ships with the package: the sample's."""

CALENDARS_FROM = "1990-01-01"
"""Calendars are built from here to the end of next year."""

SourceKind = Literal["bars", "actions", "news", "reddit", "insiders"]

Name = Annotated[str, Field(min_length=1, pattern=r"^\S+( \S+)*$")]


def _symbol(text: str) -> str:
    if not is_symbol(text):
        raise ValueError(f"{quoted(text)} is no symbol; {why_no_symbol(text)}")
    return text


def _ticker(text: str) -> str:
    if not is_ticker(text):
        raise ValueError(
            f"{quoted(text)} is no ticker; write letters, digits and . ^ = _ : -, with one / at "
            "most between two of them"
        )
    return text


Symbol = Annotated[Name, AfterValidator(_symbol)]
Ticker = Annotated[Name, AfterValidator(_ticker)]


# -- the model ------------------------------------------------------------------------------------


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Interval(_Strict):
    """`[start, end)`, in days; an `end` of None is open. In YAML: `from` and `to`."""

    start: date = Field(alias="from")
    end: date | None = Field(default=None, alias="to")

    @model_validator(mode="after")
    def _in_order(self) -> Interval:
        if self.end is not None and self.end <= self.start:
            raise ValueError(
                f"`to` {self.end} is not after `from` {self.start}; `to` is the first day no longer"
            )
        return self

    def overlaps(self, other: Interval) -> bool:
        """Whether some day lies in both."""
        return (self.end is None or other.start < self.end) and (
            other.end is None or self.start < other.end
        )


class Listing(Interval):
    """A symbol the instrument traded under, and when."""

    symbol: Symbol


class Sources(_Strict):
    """Which provider collects what of an instrument; None is not collected.

    News may come from several, the most trusted first.
    """

    bars: Name
    actions: Name | None = None
    news: Name | Annotated[tuple[Name, ...], Field(min_length=1, strict=False)] | None = None
    reddit: Name | None = None
    insiders: Name | None = None

    def of(self, kind: SourceKind) -> tuple[str, ...]:
        """The providers of that kind, in order; none where it is not collected."""
        named = getattr(self, kind)
        return () if named is None else (named,) if isinstance(named, str) else named


class Instrument(_Strict):
    """One thing that trades, under whatever names; `id` is the `symbol` of every table."""

    id: Symbol
    name: Name | None = None
    asset_class: Literal["equity", "etf", "index", "fx", "crypto", "future"]
    calendar: Name
    sector: Name
    source: Sources
    symbols: Annotated[tuple[Listing, ...], Field(min_length=1, strict=False)]
    tickers: dict[Name, Ticker] = Field(default_factory=dict)
    aliases: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    cik: Annotated[int, Field(gt=0, lt=10**10)] | None = None
    membership: Annotated[tuple[Interval, ...], Field(min_length=1, strict=False)]
    history_from: date | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Instrument:
        _check_order("symbols", self.symbols)
        _check_order("membership", self.membership)
        if self.history_from is not None and self.history_from > self.membership[0].start:
            raise ValueError(
                f"`history_from` {self.history_from} is after the first membership, "
                f"{self.membership[0].start}; leave it out or move it back"
            )
        return self

    @property
    def first_day(self) -> date:
        """The first day whose bars are collected."""
        return self.history_from or self.membership[0].start

    @property
    def end_day(self) -> date | None:
        """The first day whose bars are collected no longer; None while they are."""
        return self.membership[-1].end

    def ticker(self, provider: str) -> str:
        """What a provider calls it: its entry in `tickers`, or its newest symbol.

        Providers file an instrument's whole history under its newest name.
        """
        return self.tickers.get(provider, self.symbols[-1].symbol)

    def symbol_on(self, day: date) -> str:
        """What it is called on `day`; before its first symbol the first, in a gap the last one.

        For what carries the name of its day, news for one; see `ticker` for asking providers.
        """
        held = [s.symbol for s in self.symbols if s.start <= day]
        return held[-1] if held else self.symbols[0].symbol


def _check_order(field: str, intervals: Sequence[Interval]) -> None:
    for earlier, later in pairwise(intervals):
        if later.start < earlier.start or earlier.overlaps(later):
            raise ValueError(
                f"`{field}`: the entry from {later.start} overlaps or precedes the one from "
                f"{earlier.start}; order them and end each before the next"
            )


class _File(_Strict):
    benchmark: Symbol
    instruments: Annotated[tuple[Instrument, ...], Field(strict=False)]
    feeds: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    subreddits: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    timeframes: Annotated[tuple[str, ...], Field(strict=False)] = (DAILY,)

    @field_validator("timeframes")
    @classmethod
    def _known_timeframes(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if name not in TIMEFRAMES:
                raise ValueError(f"{quoted(name)} is none; there are {', '.join(TIMEFRAMES)}")
        if len(set(given)) < len(given):
            raise ValueError("one of them is there twice; name each once")
        if DAILY not in given:
            raise ValueError(
                f"{DAILY} is missing; add it: splits, documents and macro series come with it"
            )
        return tuple(name for name in TIMEFRAMES if name in given)


class Universe:
    """The instruments, their members and their expected sessions.

    Build it with `load` or `parse`. All dates are UTC days; a session's day is its date.
    """

    def __init__(
        self,
        instruments: Iterable[Instrument],
        benchmark: str,
        feeds: Sequence[str] = (),
        subreddits: Sequence[str] = (),
        timeframes: Sequence[str] = (DAILY,),
    ) -> None:
        self.instruments = tuple(sorted(instruments, key=lambda i: i.id))
        self.benchmark = benchmark
        self.feeds = tuple(feeds)
        self.subreddits = tuple(subreddits)
        self.timeframes = tuple(timeframes)
        self._by_id = {i.id: i for i in self.instruments}

    @classmethod
    def load(cls, path: Path | str = DEFAULT) -> Universe:
        """Reads a universe file.

        Raises:
            UniverseError: it cannot be read or is malformed; one line says where and what to do.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UniverseError(
                f"{path}: cannot be read ({reason}); name a readable file"
            ) from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, origin: str = "universe.yaml") -> Universe:
        """Reads a universe from text; `origin` is what errors call it.

        Raises:
            UniverseError: it is malformed; one line says where and what to do.
        """
        data = _yaml(text, origin)
        try:
            file = _File.model_validate(data)
        except ValidationError as error:
            raise UniverseError(f"{origin}: {_first_problem(error, data)}") from error
        problem = _across(file)
        if problem:
            raise UniverseError(f"{origin}: {problem}")
        return cls(file.instruments, file.benchmark, file.feeds, file.subreddits, file.timeframes)

    @property
    def symbols(self) -> tuple[str, ...]:
        """All ids, sorted."""
        return tuple(self._by_id)

    def providers(self, kind: SourceKind) -> dict[str, tuple[str, ...]]:
        """Id -> who collects that of it; without those of which it is not collected."""
        named = {i.id: i.source.of(kind) for i in self.instruments}
        return {name: providers for name, providers in named.items() if providers}

    @property
    def first_day(self) -> date:
        """The first day on which any instrument has bars to collect."""
        return min(i.first_day for i in self.instruments)

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits that change when features over the universe may change.

        They depend on the benchmark and, per instrument, on id, sector and membership, and on
        whether its insiders are collected: nobody filed is zero for those alone.
        """
        lines = [
            "\t".join(
                [
                    *(i.id, i.sector, *(f"{m.start}/{m.end}" for m in i.membership)),
                    *(["insiders"] if i.source.insiders else []),
                ]
            )
            for i in self.instruments
        ]
        return hashlib.sha256("\n".join([self.benchmark, *lines]).encode()).hexdigest()[:16]

    def resolve(self, symbol: str) -> Instrument:
        """The instrument of that id, or of any symbol it has had; an id wins over a symbol.

        Of several that used the symbol in turn, the latest.

        Raises:
            UniverseError: nothing here has that name, or nothing can; names what is known.
        """
        checked_symbol(symbol)
        if symbol in self._by_id:
            return self._by_id[symbol]
        holders = [(s.start, i) for i in self.instruments for s in i.symbols if s.symbol == symbol]
        if holders:
            return max(holders, key=lambda holder: holder[0])[1]
        shown = ", ".join(self.symbols[:20]) + (", ..." if len(self.symbols) > 20 else "")
        raise UniverseError(
            f"{symbol!r} is not in the universe; it has {shown}. Use one of them, or add it to "
            "universe.yaml"
        )

    def listed(self, calendar: str, first: date, last: date) -> tuple[str, ...]:
        """The ids of a calendar's instruments whose bars are collected on some day of [first,
        last]."""
        return tuple(
            i.id
            for i in self.instruments
            if i.calendar == calendar
            and i.first_day <= last
            and (i.end_day is None or i.end_day > first)
        )

    def sessions(
        self, start: date, end: date, symbols: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """The sessions for which bars are expected, in `[start, end)`.

        Args:
            start: first UTC day.
            end: the first day no longer.
            symbols: ids, or symbols that `resolve` knows; all by default.

        Returns:
            `symbol`, `time` (session date, 00:00 UTC), `open`, `close` (UTC, early closes and
            daylight saving included), sorted by symbol and time: what lies in each instrument's
            `[first_day, end_day)`.

        Raises:
            UniverseError: a symbol is not in the universe.
        """
        return expected_sessions(self._chosen(symbols), start, end)

    def bars(
        self, timeframe: str, start: date, end: date, symbols: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """The grid: the bars of which sessions consist, those with `time` in `[start, end)`.

        A session's bars begin at its open, and anew after a break; the last one before a break or
        the close may be shorter than the others.

        Args:
            timeframe: how long they are.
            start: first UTC day.
            end: the first day no longer.
            symbols: ids, or symbols that `resolve` knows; all by default.

        Returns:
            `symbol`, `time` (the bar's open; of a daily bar its session date, 00:00 UTC), `end`
            (UTC) and `session` (Date), sorted by symbol and time: what lies in sessions of each
            instrument's `[first_day, end_day)`.

        Raises:
            UniverseError: a symbol is not in the universe.
        """
        empty = pl.DataFrame(
            schema={"symbol": pl.String, "time": UTC_TIME, "end": UTC_TIME, "session": pl.Date}
        )
        frames = [empty]
        for calendar, group in _by_calendar(self._chosen(symbols)).items():
            grid = calendar_bars(calendar, timeframe, start, end)
            session = pl.col("session")
            frames.append(
                _spans(group)
                .lazy()
                .join(grid.lazy(), how="cross", maintain_order="left_right")
                .filter(
                    session >= pl.col("_from").dt.date(),
                    pl.col("_to").is_null() | (session < pl.col("_to").dt.date()),
                )
                .select(empty.columns)
                .collect()
            )
        return frames[1] if len(frames) == 2 else pl.concat(frames).sort("symbol", "time")

    def session_days(
        self, start: date, end: date, symbols: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """The sessions, each cut at midnight UTC, in `[start, end)`: what of them a day contains.

        Returns:
            `symbol`, `time` (session date, 00:00 UTC), `day`, `since` and `until` (UTC), in no
            particular order. The bar that is under way at midnight belongs to the day on which it
            began: `until` allows an hour for it.
        """
        around = timedelta(days=1)
        own = self.sessions(start - around, end + around, symbols)
        begin, days = pl.col("open").dt.date(), timedelta(days=1)
        last = (pl.col("close") - timedelta(microseconds=1)).dt.date()
        parts = own.with_columns(day=pl.date_ranges(begin, last, closed="both")).explode("day")
        day = pl.col("day").cast(UTC_TIME)
        return parts.filter(pl.col("day") >= start, pl.col("day") < end).select(
            "symbol",
            "time",
            "day",
            since=pl.max_horizontal("open", day),
            until=pl.min_horizontal("close", day + days + timedelta(hours=1)),
        )

    def _chosen(self, symbols: Sequence[str] | None) -> Sequence[Instrument]:
        if symbols is None:
            return self.instruments
        return [self._by_id[i] for i in {self.resolve(s).id for s in symbols}]

    def lookback_start(self, day: date, bars: int, timeframe: str = DAILY) -> date:
        """The latest date from which every calendar in use has `bars` bars before `day`.

        `day` itself if `bars` is 0; the calendar's first session where it does not reach that far.
        """
        return self.lookback_starts(pl.Series([day], dtype=pl.Date), bars, timeframe)[0]

    def lookback_starts(self, days: pl.Series, bars: int, timeframe: str = DAILY) -> pl.Series:
        """`lookback_start` of each of `days` (Date), in their order."""
        starts = days.alias("start")
        if bars <= 0:
            return starts
        midnights = days.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        for calendar in sorted({i.calendar for i in self.instruments}):
            sessions = calendar_sessions(calendar)
            if timeframe == DAILY:
                times = sessions["time"]
                before = times.search_sorted(midnights, side="left").cast(pl.Int64)
                first = times.gather((before - bars).clip(0)).dt.date()
            else:
                counted = bars_before(calendar, timeframe)
                # A session that began on the day before counts as if it had no bar until midnight.
                before = sessions["close"].search_sorted(midnights, side="right").cast(pl.Int64)
                wanted = counted.gather(before.clip(0, counted.len() - 1)) - bars
                at = counted.search_sorted(wanted, side="right").cast(pl.Int64) - 1
                first = sessions["open"].gather(at.clip(0, sessions.height - 1)).dt.date()
            starts = pl.select(
                pl.when(before > 0).then(pl.min_horizontal(starts, first)).otherwise(starts)
            ).to_series()
        return starts.alias("start")

    def members(self) -> pl.DataFrame:
        """Who counts in aggregates over the universe, and when.

        Returns:
            `symbol`, `sector`, `from`, `to` (00:00 UTC), one row per interval, sorted by symbol and
            `from`. A member at t where `from <= t < to`; a null `to` is open.
        """
        rows = [
            (i.id, i.sector, midnight(m.start), None if m.end is None else midnight(m.end))
            for i in self.instruments
            for m in i.membership
        ]
        return pl.DataFrame(
            rows,
            schema={"symbol": pl.String, "sector": pl.String, "from": UTC_TIME, "to": UTC_TIME},
            orient="row",
        )


# -- sessions -------------------------------------------------------------------------------------


def expected_sessions(instruments: Sequence[Instrument], start: date, end: date) -> pl.DataFrame:
    """The sessions of these instruments in `[start, end)`; columns as `Universe.sessions`."""
    frames = [
        _instrument_days(group, calendar_sessions(calendar), start, end)
        for calendar, group in _by_calendar(instruments).items()
    ]
    if not frames:
        return pl.DataFrame(
            schema={"symbol": pl.String, "time": UTC_TIME, "open": UTC_TIME, "close": UTC_TIME}
        )
    # Each frame is sorted already: only several calendars interleave.
    return frames[0] if len(frames) == 1 else pl.concat(frames).sort("symbol", "time")


def _by_calendar(instruments: Iterable[Instrument]) -> dict[str, list[Instrument]]:
    groups: dict[str, list[Instrument]] = {}
    for instrument in sorted(instruments, key=lambda i: i.id):
        groups.setdefault(instrument.calendar, []).append(instrument)
    return groups


def _instrument_days(
    group: Sequence[Instrument], sessions: pl.DataFrame, start: date, end: date
) -> pl.DataFrame:
    time = sessions["time"]
    low, high = (int(time.search_sorted(midnight(d), side="left")) for d in (start, end))
    return (
        _spans(group)
        .lazy()
        .join(sessions[low : max(low, high)].lazy(), how="cross", maintain_order="left_right")
        .filter(
            pl.col("time") >= pl.col("_from"),
            pl.col("_to").is_null() | (pl.col("time") < pl.col("_to")),
        )
        .drop("_from", "_to")
        .collect()
    )


def _spans(group: Sequence[Instrument]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "symbol": [i.id for i in group],
            "_from": [midnight(i.first_day) for i in group],
            "_to": [None if i.end_day is None else midnight(i.end_day) for i in group],
        },
        schema={"symbol": pl.String, "_from": UTC_TIME, "_to": UTC_TIME},
    )


def midnight(day: date) -> datetime:
    """00:00 UTC of a day."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def calendar_sessions(calendar: str) -> pl.DataFrame:
    """Every session of an exchange calendar, 1990 to the end of next year where it knows them.

    Returns:
        `time` (session date, 00:00 UTC), `open`, `close` (UTC), sorted.

    Raises:
        UniverseError: the calendar package lists it and cannot build it.
    """
    # The year is part of the cache's key: a process that lives past New Year sees the next one.
    return _sessions_alone(calendar, datetime.now(UTC).year + 1)


def calendar_zone(calendar: str) -> tzinfo:
    """Where the days of an exchange calendar begin at midnight.

    Raises:
        UniverseError: the calendar package lists it and cannot build it.
    """
    zone: tzinfo = _exchange_calendar(calendar, f"{datetime.now(UTC).year + 1}-12-31").tz
    return zone


def calendar_bars(calendar: str, timeframe: str, start: date, end: date) -> pl.DataFrame:
    """The bars of a calendar with `time` in `[start, end)`; columns as `Universe.bars`, but symbol.

    Raises:
        UniverseError: the calendar package lists it and cannot build it.
    """
    stretches = trading(calendar)
    first, last = midnight(start), midnight(end)
    if timeframe == DAILY:
        found = calendar_sessions(calendar).select(
            "time", end="close", session=pl.col("time").dt.date()
        )
    else:
        step = TIMEFRAMES[timeframe].step
        low = int(stretches["end"].search_sorted(first, side="right"))
        high = int(stretches["start"].search_sorted(last, side="left"))
        found = (
            stretches[low : max(low, high)]
            .with_columns(time=pl.datetime_ranges("start", "end", step, closed="left"))
            .explode("time", empty_as_null=False)
            .select("time", end=pl.min_horizontal(pl.col("time") + step, "end"), session="session")
        )
    return found.filter(pl.col("time") >= first, pl.col("time") < last)


def trading(calendar: str) -> pl.DataFrame:
    """Every stretch of time in which a calendar trades without a break.

    Returns:
        `session` (Date), `start`, `end` (UTC), sorted: one per session, or one to either side of
        its break.
    """
    return _stretches(calendar, datetime.now(UTC).year + 1)


def bars_before(calendar: str, timeframe: str) -> pl.Series:
    """How many bars all sessions before each session of a calendar have together (Int64)."""
    return _bars_before(calendar, timeframe, datetime.now(UTC).year + 1)


@cache
def _bars_before(calendar: str, timeframe: str, last_year: int) -> pl.Series:
    step = TIMEFRAMES[timeframe].step
    length = pl.col("end") - pl.col("start")
    microseconds = step // timedelta(microseconds=1)
    bars = -(-length.dt.total_microseconds() // microseconds)
    counted = _stretches(calendar, last_year).group_by("session", maintain_order=True)
    return counted.agg(bars=bars.sum())["bars"].cum_sum().shift(1, fill_value=0)


@cache
def _stretches(calendar: str, last_year: int) -> pl.DataFrame:
    every = _build_calendar(calendar, last_year).with_columns(session=pl.col("time").dt.date())
    broken = pl.col("break_start").is_not_null() & pl.col("break_end").is_not_null()
    before = every.select(
        "session",
        start="open",
        end=pl.when(broken).then("break_start").otherwise("close"),
    )
    after = every.filter(broken).select("session", start="break_end", end="close")
    return pl.concat([before, after]).sort("start")


@cache
def _sessions_alone(calendar: str, last_year: int) -> pl.DataFrame:
    return _build_calendar(calendar, last_year).select("time", "open", "close")


@cache
def _build_calendar(calendar: str, last_year: int) -> pl.DataFrame:
    """`time`, `open`, `break_start`, `break_end`, `close` of every session, sorted. Slow (0.1 to
    1 s), hence cached."""
    schedule = _exchange_calendar(calendar, f"{last_year}-12-31").schedule
    utc = {
        "time": schedule.index.to_numpy(),
        **{
            name: schedule[name].dt.tz_localize(None).to_numpy()
            for name in ("open", "break_start", "break_end", "close")
        },
    }
    return pl.DataFrame(utc).with_columns(
        pl.all().cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    )


def _exchange_calendar(calendar: str, end: str) -> Any:
    # Imported where needed: it brings pandas, which most of the code can do without.
    import exchange_calendars as xcals

    try:
        return xcals.get_calendar(calendar, start=CALENDARS_FROM, end=end)
    except (ValueError, NotImplementedError):
        pass  # it knows its holidays for fewer years
    try:
        usual = xcals.get_calendar(calendar)  # twenty years, by default
        first, last = usual.bound_min(), usual.bound_max()
        return xcals.get_calendar(
            calendar,
            start=CALENDARS_FROM if first is None else max(str(first.date()), CALENDARS_FROM),
            end=end if last is None else min(str(last.date()), end),
        )
    except (ValueError, NotImplementedError) as error:
        raise UniverseError(
            f"calendar: {calendar!r} cannot be built by the installed exchange_calendars; use "
            "another one, or another release of that package"
        ) from error


# -- what can be wrong with a file ----------------------------------------------------------------

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeys(_Loader):  # type: ignore[misc, valid-type]
    """YAML, except that a key given twice is an error: PyYAML silently keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _yaml(text: str, origin: str) -> dict[str, Any]:
    try:
        data = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - it is a safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UniverseError(
            f"{origin}: {where}it is no valid YAML ({reason}); correct it"
        ) from error
    if not isinstance(data, dict):
        raise UniverseError(
            f"{origin}: it is empty or no mapping; give it `benchmark:` and `instruments:`"
        )
    return data


_HINTS = {
    "missing": "it is missing; add it",
    "extra_forbidden": "it is unknown; correct its name or remove it",
    "date_type": "it is no date; write YYYY-MM-DD, unquoted",
    "too_short": "it is empty; give it at least one entry",
    "string_too_short": "it is empty; fill it in",
    "string_pattern_mismatch": "it is empty or has stray blanks; correct it",
    "tuple_type": "it is no list; start each entry with `- `",
    "model_type": "it is no mapping; write `key: value` pairs",
    "model_attributes_type": "it is no mapping; write `key: value` pairs",
}


def _first_problem(error: ValidationError, data: dict[str, Any]) -> str:
    problem = error.errors(include_url=False)[0]
    path = list(problem["loc"])
    where: list[str] = []
    if len(path) > 1 and path[0] == "instruments" and isinstance(path[1], int):
        entry = data["instruments"][path[1]]
        known = entry.get("id") if isinstance(entry, dict) else None
        where.append(f"instrument {f'number {path[1] + 1}' if known is None else _shown(known)}")
        path = path[2:]
    if path:
        where.append(".".join(str(step + 1) if isinstance(step, int) else step for step in path))
    kind, given = problem["type"], problem.get("input")
    if kind == "value_error":
        says = str(problem["ctx"]["error"])
    elif kind == "string_type":
        says = f"YAML reads {given!r} there, no text; put it in quotes"
    elif kind == "literal_error":
        says = f"{given!r} is not one of {problem['ctx']['expected']}"
    else:
        says = _HINTS.get(kind, f"{problem['msg']}; correct it")
    return ": ".join([*where, " ".join(says.split())])


def _shown(known: object) -> str:
    """What a file calls an instrument, whatever that is, on one line."""
    text = str(known)
    plain = text.isascii() and text.isprintable() and len(text) <= 40
    return text if plain else quoted(text)


def _across(file: _File) -> str | None:
    """What is wrong between entries, or None."""
    if not file.instruments:
        return "instruments: it is empty; give it at least one entry"
    ids: set[str] = set()
    for instrument in file.instruments:
        if instrument.id in ids:
            return f"instrument {instrument.id}: id: it is there twice; ids are unique, rename one"
        ids.add(instrument.id)
    if file.benchmark not in ids:
        return f"benchmark: {file.benchmark!r} is not the id of an instrument; use one of theirs"
    return _unknown_calendar(file.instruments) or _shared_symbol(file.instruments)


def _unknown_calendar(instruments: Sequence[Instrument]) -> str | None:
    import exchange_calendars

    known = set(exchange_calendars.get_calendar_names(include_aliases=True))
    for instrument in instruments:
        if instrument.calendar not in known:
            return (
                f"instrument {instrument.id}: calendar: {instrument.calendar!r} is unknown; use a "
                "name of the exchange_calendars package: XNYS, XLON, 24/7, ..."
            )
    return None


def _shared_symbol(instruments: Sequence[Instrument]) -> str | None:
    held: dict[str, list[tuple[str, Listing]]] = {}
    for instrument in instruments:
        for listing in instrument.symbols:
            for other, earlier in held.get(listing.symbol, ()):
                if other != instrument.id and listing.overlaps(earlier):
                    return (
                        f"instrument {instrument.id}: symbols: {listing.symbol!r} from "
                        f"{listing.start} is {other}'s at that time; end one before the other"
                    )
            held.setdefault(listing.symbol, []).append((instrument.id, listing))
    return None
