"""What the tables hold, asked for the sake of doubt: counts, nulls, moves, contradictions.

Each question is one statement that the server answers with a few rows: aggregates, or the worst of
the rows that are wrong with their number in `total`. Which answer is a fault, and in which words,
is judged elsewhere. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import polars as pl
from psycopg import sql

from feature_pipeline.schemas import TableSchema
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.reader import midnight
from feature_pipeline.storage.reports import BECAME
from feature_pipeline.timeframes import TIMEFRAMES

SHOWN = 20
"""Wrong rows that an answer shows; it counts them all."""

_BEFORE = timedelta(days=15)
"""How far before a range the close of the session before it is looked for."""

_T = sql.SQL


@dataclass(frozen=True)
class Bounds:
    """What a value of a column may be: one of `low` and `high`, or, unless `either`, between."""

    low: float
    high: float
    either: bool = False

    def __str__(self) -> str:
        limits = f"{self.low:g}, {self.high:g}"
        return f"{{{limits}}}" if self.either else f"[{limits}]"


@dataclass(frozen=True)
class Audit:
    """Questions about the days [start, end) of one asset.

    Args:
        database: where the tables are.
        table: of the asset.
        start, end: days of the partition grid.
        now: UTC.
    """

    database: Database
    table: TableSchema
    start: date
    end: date
    now: datetime

    # -- how many -----------------------------------------------------------------------------

    def counts(self) -> pl.DataFrame:
        """`symbol`, null in a day's total, and `day`, null in a symbol's total: `rows`."""
        return self._ask(
            "SELECT {day} AS day, t.symbol, count(*) AS rows FROM {table} t WHERE {scope}"
            " GROUP BY GROUPING SETS ((1), (t.symbol))"
        )

    def held(self) -> pl.DataFrame:
        """`symbol`, `day` of every row."""
        return self._ask("SELECT t.symbol, {day} AS day FROM {table} t WHERE {scope}")

    def held_per_session(self) -> pl.DataFrame:
        """Of an intraday table, `symbol`, `session`, `day` and how many `rows` there are."""
        return self._ask(
            "SELECT t.symbol, t.session, {day} AS day, count(*) AS rows FROM {table} t"
            " WHERE {scope} GROUP BY 1, 2, 3"
        )

    def against_ledger(self) -> pl.DataFrame:
        """Where ledger and table disagree: `day`, `source`, `ledger` and `held` rows."""
        source = _T("'derived'" if self.table.derived else "t.source")
        return self._worst(
            "SELECT coalesce(l.day, h.day) AS day, coalesce(l.source, h.source) AS source,"
            " coalesce(l.rows, 0) AS ledger, coalesce(h.rows, 0) AS held FROM"
            " (SELECT source, day, rows FROM partition_ledger"
            " WHERE asset = {asset} AND day >= {start} AND day < {end} AND rows <> 0) l"
            " FULL JOIN (SELECT {source} AS source, {day} AS day, count(*) AS rows FROM {table} t"
            " WHERE {scope} GROUP BY 1, 2) h ON l.source = h.source AND l.day = h.day"
            " WHERE l.rows IS DISTINCT FROM h.rows",
            order="day, source",
            source=source,
        )

    def reports(self, run_id: str | None) -> pl.DataFrame:
        """What became of the rows handed in, one row per write and source: of a run, or of all
        writes that touched these days."""
        which = (
            _T("run_id = {}").format(run_id)
            if run_id
            else _T("last_day >= {start} AND first_day < {end}").format(**self._days)
        )
        return self._ask(
            "SELECT source, first_day, last_day, {counts}, at FROM write_reports"
            " WHERE asset = {asset} AND {which} ORDER BY id",
            counts=_T(", ").join(map(sql.Identifier, ("input", "outside", *BECAME))),
            which=which,
        )

    def written(self) -> tuple[date | None, date | None]:
        """The first day that the ledger has of the asset, and the newest with rows; where none has
        any, the newest."""
        answer = self._ask(
            "SELECT min(day) AS first,"
            " coalesce(max(day) FILTER (WHERE rows > 0), max(day)) AS newest"
            " FROM partition_ledger WHERE asset = {asset}"
        )
        return answer.row(0)

    # -- missing values -----------------------------------------------------------------------

    def missing(self, columns: Mapping[str, int], since: pl.DataFrame) -> pl.DataFrame:
        """Per symbol how many values count, and how many of them are numbers: `symbol`, `all_{n}`
        per rule, `good_{name}` per column.

        Args:
            columns: name -> number n of its rule.
            since: `symbol` and `since_{n}` (UTC), the moment from which on the values of the rule's
                columns count; null where they never do.
        """
        moments = [name for name in since.columns if name != "symbol"]
        aggregates = [
            _T("count(*) FILTER (WHERE t.time >= {}) AS {}").format(
                sql.Identifier("s", name), sql.Identifier(name.replace("since", "all"))
            )
            for name in moments
        ]
        aggregates += [
            _T("count(*) FILTER (WHERE t.time >= {} AND {} BETWEEN -1e308 AND 1e308) AS {}").format(
                sql.Identifier("s", f"since_{number}"),
                sql.Identifier("t", name),
                sql.Identifier(f"good_{name}"),
            )
            for name, number in columns.items()
        ]
        arrays = [_texts(since["symbol"])] + [_moments(since[name]) for name in moments]
        return self._ask(
            "SELECT t.symbol, {aggregates} FROM {table} t JOIN unnest({arrays}) AS s ({names})"
            " USING (symbol) WHERE {scope} GROUP BY t.symbol",
            aggregates=_T(", ").join(aggregates),
            arrays=_T(", ").join(arrays),
            names=_T(", ").join(map(sql.Identifier, ("symbol", *moments))),
        )

    def at_bounds(self, columns: Mapping[str, Bounds]) -> pl.DataFrame:
        """One row: `all_{name}` values, and `at_{name}` that lie on a bound."""
        return self._ask(
            "SELECT {aggregates} FROM {table} t WHERE {scope}",
            aggregates=_T(", ").join(
                _T(
                    "count({value}) AS {every},"
                    " count(*) FILTER (WHERE {value} <= {low} OR {value} >= {high}) AS {at}"
                ).format(
                    value=sql.Identifier("t", name),
                    low=bounds.low,
                    high=bounds.high,
                    every=sql.Identifier(f"all_{name}"),
                    at=sql.Identifier(f"at_{name}"),
                )
                for name, bounds in columns.items()
            ),
        )

    # -- rows that cannot be right ------------------------------------------------------------

    def moves(self, limit: float) -> pl.DataFrame:
        """Closes that moved by more than `limit` since the last one, split-adjusted: `symbol`,
        `day`, `before` (on the basis of `day`), `close`, `move`."""
        return self._worst(
            "SELECT symbol, {day} AS day, before / ratio AS before, close,"
            " close * ratio / before - 1 AS move FROM ("
            "  SELECT t.symbol, t.time, t.close, nullif(t.before, 0) AS before,"
            "   coalesce(s.ratio, 1) AS ratio FROM ("
            "    SELECT symbol, time, close, lag(close) OVER w AS before"
            "    FROM {table} WHERE time >= {earlier} AND time < {end_time}"
            "    WINDOW w AS (PARTITION BY symbol ORDER BY time)) t"
            "  LEFT JOIN splits s ON s.symbol = t.symbol AND s.time = t.time"
            "  WHERE t.time >= {start_time}) t"
            " WHERE abs(close * ratio / before - 1) > {limit}",
            order="abs(move) DESC, symbol, day",
            # A split comes with the first bar from its ex-date on.
            first="splits AS MATERIALIZED (SELECT a.symbol, (SELECT min(time) FROM {table} b"
            "  WHERE b.symbol = a.symbol AND b.time >= a.time) AS time,"
            " exp(sum(ln(value))) AS ratio FROM corporate_actions a WHERE kind = 'split'"
            " AND value > 0 AND time >= {earlier} AND time < {end_time} GROUP BY 1, 2)",
            earlier=midnight(self.start - _BEFORE),
            limit=sql.Literal(limit),
        )

    def out_of_time(
        self,
        closes: Mapping[str, pl.DataFrame] | None = None,
        calendars: Mapping[str, str] | None = None,
        bars: str | None = None,
    ) -> pl.DataFrame:
        """Rows that claim to be known too early or too late: key, `time`, `available_at`,
        `problem`.

        Args:
            closes: calendar -> `time`, `close` of its sessions: no bar is known before the close.
            calendars: symbol -> calendar.
            bars: the table of bars that its rows derive from, and become available with.
        """
        problems = [
            ("t.time > {now}", "it is about the future"),
            ("t.available_at > {now}", "it becomes available in the future"),
            ("t.available_at < t.time", "it is available before its time"),
        ]
        join: sql.Composable = _T("")
        if closes and calendars:
            sessions = pl.concat(
                frame.select(calendar=pl.lit(name), time="time", close="close")
                for name, frame in closes.items()
            )
            join = _T(
                " LEFT JOIN unnest({}, {}) AS i (symbol, calendar) ON i.symbol = t.symbol"
                " LEFT JOIN unnest({}, {}, {}) AS c (calendar, time, close)"
                " ON c.calendar = i.calendar AND c.time = {}"
            ).format(
                _texts(pl.Series(list(calendars))),
                _texts(pl.Series(list(calendars.values()))),
                _texts(sessions["calendar"]),
                _moments(sessions["time"]),
                _moments(sessions["close"]),
                _T("t.session::timestamp AT TIME ZONE 'UTC'" if self.table.intraday else "t.time"),
            )
            problems.append(self._before_its_end())
        if bars:
            join = _T(" LEFT JOIN {} b ON b.symbol = t.symbol AND b.time = t.time").format(
                sql.Identifier(bars)
            )
            problems += [
                ("b.time IS NULL", "there is no bar that it derives from"),
                ("t.available_at <> b.available_at", "its bar is available at another moment"),
            ]
        if self.table.asset == "sentiment_scores":
            same = (
                "SELECT FROM {} d WHERE d.document_id = t.document_id"
                " AND d.available_at = t.available_at"
            )
            known = " AND ".join(
                f"NOT EXISTS ({same.format(name)})" for name in ("documents", "documents_history")
            )
            problems.append((f"({known})", "no document becomes available at that moment"))
        key = [name for name in self.table.key if name not in ("time", "available_at")]
        return self._worst(
            "SELECT {key}, t.time, t.available_at, CASE {cases} END AS problem"
            # What lies in the future lies in no range that a run is about.
            " FROM {table} t{join} WHERE {constants} AND (({days}) OR {column} > {now})"
            " AND ({any})",
            order="time, available_at",
            key=_T(", ").join(sql.Identifier("t", name) for name in key),
            join=join,
            cases=_T(" ").join(
                _T("WHEN {} THEN {}").format(self._said(condition), sql.Literal(problem))
                for condition, problem in problems
            ),
            any=_T(" OR ").join(self._said(condition) for condition, _ in problems),
        )

    def _before_its_end(self) -> tuple[str, str]:
        if not self.table.intraday:
            return "t.available_at < c.close", "it is available before its session ends"
        seconds = TIMEFRAMES[str(self.table.timeframe)].step.total_seconds()
        # The last bar of a session may be shorter than the others.
        end = f"least(t.time + interval '{seconds:.0f} seconds', c.close)"
        return f"t.available_at < {end}", "it is available before it ends"

    def repeated_sessions(self) -> pl.DataFrame:
        """Rows of daily bars that share symbol and day: `symbol`, `day`, `rows`."""
        return self._worst(
            "SELECT t.symbol, odd.day, count(*) AS rows FROM odd JOIN {table} t"
            " ON t.symbol = odd.symbol AND t.time >= odd.midnight"
            " AND t.time < odd.midnight + interval '1 day' GROUP BY 1, 2 HAVING count(*) > 1",
            order="day, symbol",
            # The key keeps rows of the same moment apart: one of two is not at midnight.
            first="odd AS MATERIALIZED (SELECT DISTINCT t.symbol, {day} AS day,"
            " date_trunc('day', t.time, 'UTC') AS midnight FROM {table} t"
            " WHERE {scope} AND (t.time AT TIME ZONE 'UTC')::time <> '00:00')",
        )

    def repeated_documents(self) -> pl.DataFrame:
        """Documents that are there more than once, by id or by address: `document`, `rows`."""
        return self._worst(
            "SELECT t.document_id AS document, count(*) AS rows FROM {table} t"
            " WHERE t.document_id IN (SELECT t.document_id FROM {table} t WHERE {scope})"
            " GROUP BY 1 HAVING count(*) > 1"
            " UNION ALL"
            " SELECT t.source || ' ' || t.url, count(DISTINCT t.document_id) FROM {table} t"
            " WHERE {scope} AND t.url IS NOT NULL GROUP BY 1"
            " HAVING count(DISTINCT t.document_id) > 1",
            order="document",
        )

    def repeated_actions(self, within: timedelta) -> pl.DataFrame:
        """Splits and dividends of the same value that lie so close that they may be one: `symbol`,
        `kind`, `value`, `day` and `source`, `other_day` and `other_source`. Dividends count only
        where two providers report them."""
        return self._worst(
            "SELECT t.symbol, t.kind, t.value, {ex} AS day, t.source,"
            " (o.time AT TIME ZONE 'UTC')::date AS other_day, o.source AS other_source"
            " FROM {table} t JOIN {table} o ON o.symbol = t.symbol AND o.kind = t.kind"
            " AND o.value = t.value AND o.time > t.time AND o.time <= t.time + {within}"
            " WHERE (t.kind = 'split' OR t.source <> o.source)"
            " AND (({scope}) OR (o.available_at >= {start_time} AND o.available_at < {end_time}))",
            order="day, symbol",
            ex=_T("(t.time AT TIME ZONE 'UTC')::date"),
            within=sql.Literal(within),
        )

    def impossible_vectors(
        self, bounds: Mapping[str, Bounds], one_hot: Sequence[str]
    ) -> pl.DataFrame:
        """State vectors outside of their scales: `symbol`, `day`, `problem`.

        Args:
            bounds: every field of the vector, in order.
            one_hot: the fields of which exactly one is 1, or all are null.
        """
        problems: list[tuple[sql.Composable, sql.Composable]] = []
        for name, limits in bounds.items():
            value = sql.Identifier("t", name)
            inside = "{} IN ({}, {})" if limits.either else "{} BETWEEN {} AND {}"
            wrong = _T(f"NOT {inside}").format(value, limits.low, limits.high)
            says = _T("{} || {} || {}").format(
                sql.Literal(f"{name} is "), value, sql.Literal(f", outside of {limits}")
            )
            problems.append((wrong, says))
        hot = _T(", ").join(sql.Identifier("t", name) for name in one_hot)
        added = _T(" + ").join(sql.Identifier("t", name) for name in one_hot)
        problems.append(
            (
                _T("(num_nulls({}) NOT IN (0, {}) OR {} <> 1)").format(hot, len(one_hot), added),
                sql.Literal(f"{', '.join(one_hot)} are neither one 1 nor all null"),
            )
        )
        nulls = _T("array_remove(ARRAY[{}], NULL)").format(
            _T(", ").join(
                _T("CASE WHEN {} IS NULL THEN {} END").format(
                    sql.Identifier("t", name), sql.Literal(name)
                )
                for name in bounds
            )
        )
        problems.append(
            (
                _T("t.missing <> {}").format(nulls),
                _T("format('missing names {{%s}}, null are {{%s}}', {}, {})").format(
                    _T("array_to_string(t.missing, ', ')"),
                    _T("array_to_string({}, ', ')").format(nulls),
                ),
            )
        )
        return self._worst(
            "SELECT t.symbol, {day} AS day, concat_ws('; ', {says}) AS problem"
            " FROM {table} t WHERE {scope} AND ({any})",
            order="day, symbol",
            says=_T(", ").join(
                _T("CASE WHEN {} THEN {} END").format(wrong, says) for wrong, says in problems
            ),
            any=_T(" OR ").join(wrong for wrong, _ in problems),
        )

    def restated(self, run_id: str | None, since: datetime) -> pl.DataFrame:
        """Bars that took the place of others, by symbol: `bars` and their `first` and `last` day,
        `before` and `after` (the last one's close), `low` and `high` (least and greatest of after /
        before), `was` and `source` (providers), `every` (bars of all symbols); and of a split that
        would explain `low`: `split`, `ex_date`, `recorded_at`.

        Args:
            run_id: whose writes; None - of anybody, from `since` on.
        """
        which = (
            _T("t.run_id = {}").format(sql.Literal(run_id))
            if run_id
            else _T("t.recorded_at >= {}").format(sql.Literal(since))
        )
        return self._worst(
            "SELECT r.*, s.split, s.ex_date, s.recorded_at, sum(r.bars) OVER ()::bigint AS every"
            " FROM (SELECT t.symbol, count(*) AS bars, min({day}) AS first, max({day}) AS last,"
            "  (array_agg(h.close ORDER BY t.time DESC))[1] AS before,"
            "  (array_agg(t.close ORDER BY t.time DESC))[1] AS after,"
            "  min(t.close / nullif(h.close, 0)) AS low, max(t.close / nullif(h.close, 0)) AS high,"
            "  min(h.source) AS was, min(t.source) AS source"
            # What replaces a row is recorded at the moment at which the old one leaves.
            "  FROM gone h JOIN {table} t ON t.symbol = h.symbol AND t.time = h.time"
            "  AND t.recorded_at = h.superseded_at WHERE {scope} AND {which} GROUP BY 1) r"
            " LEFT JOIN LATERAL (SELECT a.value AS split, a.recorded_at,"
            "  (a.time AT TIME ZONE 'UTC')::date AS ex_date"
            "  FROM corporate_actions a WHERE a.symbol = r.symbol AND a.kind = 'split'"
            "  AND (abs(a.value * r.low - 1) < 0.01 OR abs(a.value / r.low - 1) < 0.01)"
            "  AND (a.time AT TIME ZONE 'UTC')::date > r.first"
            "  ORDER BY a.time LIMIT 1) s ON true",
            order="bars DESC, symbol",
            first="gone AS MATERIALIZED (SELECT * FROM {history}"
            " WHERE time >= {start_time} AND time < {end_time})",
            history=sql.Identifier(f"{self.table.table}_history"),
            which=which,
        )

    # -- how new ------------------------------------------------------------------------------

    def newest_by_symbol(self, symbols: Sequence[str]) -> pl.DataFrame:
        """`symbol`, and `time` and `available_at` of its newest row of all; null without any."""
        return self._ask(
            "SELECT s.symbol, n.time, n.available_at FROM unnest({symbols}) AS s (symbol)"
            " LEFT JOIN LATERAL (SELECT time, available_at FROM {table} t"
            "  WHERE t.symbol = s.symbol ORDER BY t.time DESC LIMIT 1) n ON true",
            symbols=_texts(pl.Series(list(symbols), dtype=pl.String)),
        )

    def newest_by_series(self, series: Sequence[str]) -> pl.DataFrame:
        """`symbol`, the series, and `available_at` of its newest release of all."""
        return self._ask(
            "SELECT s.symbol, n.available_at FROM unnest({series}) AS s (symbol)"
            " LEFT JOIN LATERAL (SELECT available_at FROM {table} t"
            "  WHERE t.series_id = s.symbol ORDER BY t.available_at DESC LIMIT 1) n ON true",
            series=_texts(pl.Series(list(series), dtype=pl.String)),
        )

    def newest(self) -> datetime | None:
        """`available_at` of the newest row of all."""
        answer = self._ask(
            "SELECT t.available_at FROM {table} t WHERE {constants}"
            " ORDER BY t.available_at DESC LIMIT 1"
        )
        return answer["available_at"][0] if answer.height else None

    def collected_until(self) -> date | None:
        """The newest day that the ledger has, with or without rows."""
        answer = self._ask("SELECT max(day) AS day FROM partition_ledger WHERE asset = {asset}")
        return answer["day"][0]

    # -- statements ---------------------------------------------------------------------------

    @property
    def _days(self) -> dict[str, sql.Composable]:
        return {
            "start": _T("{}::date").format(self.start.isoformat()),
            "end": _T("{}::date").format(self.end.isoformat()),
        }

    def _parts(self) -> dict[str, sql.Composable]:
        column = sql.Identifier("t", self.table.day_column)
        start_time, end_time = midnight(self.start), midnight(self.end)
        own = [
            _T("t.{} = {}").format(sql.Identifier(name), sql.Literal(value))
            for name, value in self.table.constants.items()
        ]
        scope = [
            _T("{} >= {}").format(column, start_time),
            _T("{} < {}").format(column, end_time),
        ]
        return {
            **self._days,
            "asset": sql.Literal(self.table.asset),
            "table": sql.Identifier(self.table.table),
            "day": _T("(t.{} AT TIME ZONE 'UTC')::date").format(
                sql.Identifier(self.table.day_column)
            ),
            "now": sql.Literal(self.now),
            "start_time": start_time,
            "end_time": end_time,
            "column": column,
            "days": _T(" AND ").join(scope),
            "scope": _T(" AND ").join([*own, *scope]),
            "constants": _T(" AND ").join(own) if own else _T("true"),
        }

    def _said(self, text: str, **parts: sql.Composable) -> sql.Composed:
        return _T(text).format(**self._parts(), **parts)

    def _ask(self, query: str, **parts: sql.Composable) -> pl.DataFrame:
        return self.database.read_frame(self._said(query, **parts).as_string(None))

    def _worst(
        self, query: str, *, order: str, first: str = "", **parts: sql.Composable
    ) -> pl.DataFrame:
        """The first rows of an answer, and in `total` how many there are."""
        head = f"WITH {first}" if first else ""
        return self._ask(
            f"{head} SELECT *, count(*) OVER () AS total FROM ({query}) AS wrong"
            f" ORDER BY {order} LIMIT {SHOWN}",
            **parts,
        )


def _texts(values: pl.Series) -> sql.Composable:
    return _T("{}::text[]").format(sql.Literal(values.to_list()))


def _moments(values: pl.Series) -> sql.Composable:
    """An array of moments; as text, since a literal for each costs more than the query."""
    texts = values.dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").fill_null("NULL")
    return _T("{}::timestamptz[]").format(sql.Literal("{" + ",".join(texts.to_list()) + "}"))
