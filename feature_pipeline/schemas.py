"""What a table is: columns, units, rules, write mode, and what an empty answer means.

One `TableSchema` per asset is the single source for validation, the DDL check, Dagster's column
metadata and the docs. Here live the types, the tables that come from the outside world, and the
names that several rooms share. The derived tables are built from the feature catalogue, in
`features/catalogue.py`. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Literal

import polars as pl

from feature_pipeline import timeframes
from feature_pipeline.errors import SchemaError

UTC_TIME = pl.Datetime("us", "UTC")

TIMEFRAMES = tuple(timeframes.TIMEFRAMES)
"""Every timeframe that there are tables of; which of them are used is the universe's to say."""

GRID_START = date(2000, 1, 1)
"""The first UTC day of the one partition grid."""

STATE_VECTOR_FIELDS = (
    "close",
    "log_return",
    "atr",
    "macd",
    "rsi",
    "bb_width",
    "sentiment",
    "regime_trend",
    "regime_range",
    "regime_transition",
    "vix",
    "fed_funds",
    "yield_curve",
    "volume_ratio",
)
"""The state vector's fields, in their fixed order. Nothing else in the code writes them down."""

AvailabilityBasis = Literal["observed", "assumed"]
WriteMode = Literal["replace", "accumulate"]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    `dtype` is the Polars type of a frame; `sql_type` follows from it unless given (jsonb).
    `provenance` columns tell how a row came to be known; a re-collected row that differs in
    nothing else is the same row. `absent` is why a row without a value is rejected.
    """

    name: str
    dtype: pl.DataType | type[pl.DataType]
    description: str
    unit: str = ""
    nullable: bool = False
    sql: str = ""
    provenance: bool = False
    absent: str = ""

    @property
    def sql_type(self) -> str:
        """The PostgreSQL type, as `format_type` prints it."""
        return self.sql or _SQL_TYPES[self.dtype]


_SQL_TYPES: dict[object, str] = {
    pl.Float64: "double precision",
    pl.Int64: "bigint",
    pl.String: "text",
    pl.Boolean: "boolean",
    pl.Date: "date",
    UTC_TIME: "timestamp with time zone",
    pl.List(pl.String): "text[]",
}


@dataclass(frozen=True)
class Rule:
    """A row for which `violated` is true goes to quarantine, with `reason`."""

    reason: str
    violated: pl.Expr


@dataclass(frozen=True)
class Input:
    """What a derived table reads of another one, and how far back.

    Args:
        asset: the asset it reads.
        columns: the columns it needs, besides the key and `time`, `available_at` and
            `availability_basis`, which every frame carries.
        lookback_bars: sessions before the first day computed (bar tables).
        lookback_days: UTC days before the first day computed (event tables).
        where: equality filters on other columns (the active sentiment model, for one).
        on_missing: `fail` - a whole day that should exist and is not written stops the read;
            `gap` - it becomes a gap row, and what depends on it is missing, not wrong.
    """

    asset: str
    columns: tuple[str, ...]
    lookback_bars: int = 0
    lookback_days: int = 0
    where: Mapping[str, str] = field(default_factory=dict)
    on_missing: Literal["fail", "gap"] = "fail"


@dataclass(frozen=True)
class Fetched:
    """What one provider answered for a range of days.

    Args:
        frame: the rows, with the data columns of the asset's table.
        failed: symbol (or series) -> why it could not be collected, in one line.
        asked: the symbols (or series) that were asked for, the failed ones included. Whether one
            that neither failed nor has rows should have had some is judged by the writer.
        off: why the provider was not asked at all, in one line; then `asked` are those of whom
            nothing is known for that reason, empty - everybody. Of tables that accumulate.
    """

    frame: pl.DataFrame
    failed: Mapping[str, str] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    off: str = ""

    @property
    def answered(self) -> frozenset[str]:
        """Those asked for that did not fail, be it with no rows."""
        return frozenset(self.asked) - set(self.failed)


@dataclass(frozen=True)
class Twins:
    """What tells that two rows are the same story under two identities; see `storage/twins.py`.

    Args:
        address: the column of its address in the web; a row without one is nobody's twin.
        title: the column of its title, compared without regard to how it is written.
        about: the column of the instruments it speaks of: twins speak of the same one.
        days: how far apart in `time` rows of the same title may be.
    """

    address: str
    title: str
    about: str
    days: int = 1


@dataclass(frozen=True)
class TableSchema:
    """One asset's table.

    Args:
        asset: Dagster asset, ledger and metadata name.
        table: SQL relation; differs from `asset` only where two assets share one (documents).
        description: one sentence.
        key: primary key.
        columns: data columns in SQL order, the time columns included, audit columns apart.
        mode: `replace` - scope (source, days, symbols that answered); `accumulate` - insert by
            key, never delete.
        day_column: the time column whose UTC day is the partition.
        inputs: what it is derived from; empty for tables that come from a source.
        rules: rows violating one are quarantined.
        history: replaced rows move to `<table>_history`; rows carry `recorded_at`.
        may_be_empty: an empty answer on a session day is no failure.
        constants: column values that tell this asset's rows from others in the same table.
        identity: what makes two rows the same thing in an `accumulate` table; the primary key,
            less the partitioning column that TimescaleDB wants in it.
        written_by: of a table that several models write, with what the code versions of the active
            one end: a day that another one has written last is not written.
        twins: what makes two rows the same story, of which the first one stays.
        erased: what its columns hold of a row that was deleted at its source; see
            `storage/erasure.py`. Empty: its rows are facts, and stay.
        repeats: the columns in which a row says again what one that was available earlier says;
            the writer keeps that in the column `repeated`, see `storage/repeats.py`.
    """

    asset: str
    table: str
    description: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    mode: WriteMode
    day_column: Literal["time", "available_at"] = "time"
    inputs: tuple[Input, ...] = ()
    rules: tuple[Rule, ...] = ()
    history: bool = False
    may_be_empty: bool = False
    constants: Mapping[str, str] = field(default_factory=dict)
    identity: tuple[str, ...] = ()
    written_by: str = ""
    twins: Twins | None = None
    erased: Mapping[str, str | None] = field(default_factory=dict)
    repeats: tuple[str, ...] = ()

    @property
    def derived(self) -> bool:
        """Whether its rows follow from other tables rather than from a source."""
        return bool(self.inputs)

    @property
    def names(self) -> tuple[str, ...]:
        """The data columns' names, in SQL order."""
        return tuple(c.name for c in self.columns)

    @property
    def timeframe(self) -> str | None:
        """The timeframe of its bars; None where it has none."""
        return timeframes.of(self.asset)

    @property
    def intraday(self) -> bool:
        """Whether a session has several of its rows."""
        return self.timeframe not in (None, timeframes.DAILY)

    @property
    def about_instruments(self) -> bool:
        """Whether a row speaks of one instrument, or of some."""
        return not {"symbol", "symbols"}.isdisjoint(self.names)

    @property
    def by_symbol(self) -> bool:
        """Whether a row belongs to one symbol."""
        return "symbol" in self.names

    @property
    def hashed(self) -> tuple[str, ...]:
        """The columns that make up a row's content."""
        return tuple(c.name for c in self.columns if not c.provenance)

    @property
    def audit(self) -> tuple[str, ...]:
        """The columns the writer adds; no read and no hash depends on `run_id` or `computed_at`."""
        return ("recorded_at" if self.history else "computed_at", "run_id")

    @property
    def marks(self) -> tuple[str, ...]:
        """The column the writer keeps of rows that say again what was said; see `repeats`."""
        return ("repeated",) if self.repeats else ()

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises:
            SchemaError: there is none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise SchemaError(f"{self.table} has no column {name!r}; it has {', '.join(self.names)}")

    def empty(self) -> pl.DataFrame:
        """A frame of this table without rows."""
        return pl.DataFrame(schema={c.name: c.dtype for c in self.columns})

    def conform(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with exactly this table's columns, in order and of the right types.

        A nullable column that is absent is null, as is one that the store fills in (`absent`), and
        a constant one is filled in.

        Raises:
            SchemaError: a column is missing, unknown, or of a type that cannot be cast.
        """
        unknown = [name for name in frame.columns if name not in self.names]
        if unknown:
            raise SchemaError(
                f"{self.asset}: unknown column(s) {', '.join(unknown)}; drop them or add them to "
                f"the schema of {self.table} with a migration"
            )
        missing = [
            c.name
            for c in self.columns
            if c.name not in (*frame.columns, *self.constants) and not (c.nullable or c.absent)
        ]
        if missing:
            raise SchemaError(
                f"{self.asset}: the frame lacks column(s) {', '.join(missing)}; it has "
                f"{', '.join(frame.columns) or 'none'}"
            )
        try:
            return frame.select(
                pl.lit(self.constants[c.name], dtype=pl.String).alias(c.name)
                if c.name in self.constants
                else pl.col(c.name).cast(c.dtype)
                if c.name in frame.columns
                else pl.lit(None, dtype=c.dtype).alias(c.name)
                for c in self.columns
            )
        except pl.exceptions.PolarsError as error:
            raise SchemaError(f"{self.asset}: {str(error).splitlines()[0]}") from error


# -- columns that many tables share ---------------------------------------------------------------

SYMBOL = Column("symbol", pl.String, "stable instrument id of universe.yaml")
SOURCE = Column("source", pl.String, "provider the row came from")
AVAILABLE_AT = Column(
    "available_at", UTC_TIME, "when we could have used the row", unit="UTC", provenance=True
)
BASIS = Column(
    "availability_basis",
    pl.String,
    "observed: we saw it then; assumed: publication plus a documented lag",
    provenance=True,
)


def time_columns(about: str) -> tuple[Column, ...]:
    """The two times of every row, and on what the second one rests."""
    return (Column("time", UTC_TIME, about, unit="UTC"), AVAILABLE_AT, BASIS)


BAR_TIME = time_columns("open of the bar; for a daily bar its session date, 00:00 UTC")

SESSION = Column(
    "session",
    pl.Date,
    "date of the session, which may begin on the UTC day before",
    absent="no bar of a session begins then, by the instrument's calendar",
)

FILLED = "filled"
"""Of intraday frames that computations read, the column that tells bars without a trade, which
windows count and of which nothing is written; see `storage/filling.py`."""


def bar_key(timeframe: str) -> tuple[Column, ...]:
    """What every row of a bar begins with: whose, of when, and, intraday, of which session."""
    return (SYMBOL, *BAR_TIME, *((SESSION,) if timeframe != timeframes.DAILY else ()))


def _not_finite(*names: str) -> pl.Expr:
    return pl.any_horizontal(pl.col(n).is_null() | ~pl.col(n).is_finite() for n in names)


# -- the tables that come from the outside world --------------------------------------------------


def ohlcv(timeframe: str) -> TableSchema:
    """Bars as traded, one row per symbol and bar."""
    return TableSchema(
        asset=f"ohlcv_{timeframe}",
        table=f"ohlcv_{timeframe}",
        description="Open, high, low, close and volume as traded: no adjustment of any kind.",
        key=("symbol", "time"),
        columns=(
            *bar_key(timeframe),
            Column("open", pl.Float64, "first trade", unit="price"),
            Column("high", pl.Float64, "highest trade", unit="price"),
            Column("low", pl.Float64, "lowest trade", unit="price"),
            Column("close", pl.Float64, "last trade", unit="price"),
            Column("volume", pl.Float64, "traded quantity, as traded", unit="shares"),
            Column("spread", pl.Float64, "ask - bid, where known", unit="price", nullable=True),
            SOURCE,
        ),
        mode="replace",
        rules=(
            Rule("a price is missing or not finite", _not_finite("open", "high", "low", "close")),
            Rule("volume is missing or not finite", _not_finite("volume")),
            Rule(
                "a price is not positive",
                pl.any_horizontal(pl.col("open", "high", "low", "close") <= 0),
            ),
            Rule("volume is negative", pl.col("volume") < 0),
            Rule("high is below low", pl.col("high") < pl.col("low")),
            Rule(
                "open or close lies outside [low, high]",
                (pl.max_horizontal("open", "close") > pl.col("high"))
                | (pl.min_horizontal("open", "close") < pl.col("low")),
            ),
            # Of a day in another time zone, it would be a second bar of its session, or another's.
            *(
                (
                    Rule(
                        "a daily bar's time is not 00:00 UTC",
                        pl.col("time") != pl.col("time").dt.truncate("1d"),
                    ),
                )
                if timeframe == timeframes.DAILY
                else ()
            ),
        ),
        history=True,
    )


CORPORATE_ACTIONS = TableSchema(
    asset="corporate_actions",
    table="corporate_actions",
    description="Splits and dividends; `time` is the ex-date, known from its session's open.",
    key=("symbol", "time", "kind"),
    columns=(
        SYMBOL,
        *time_columns("ex-date, 00:00 UTC"),
        Column("kind", pl.String, "split or dividend"),
        Column("value", pl.Float64, "split: new shares per old one; dividend: cash per share"),
        SOURCE,
    ),
    mode="accumulate",
    day_column="available_at",
    identity=("symbol", "time", "kind"),
    rules=(
        Rule("kind is neither split nor dividend", ~pl.col("kind").is_in(["split", "dividend"])),
        Rule("value is missing or not positive", _not_finite("value") | (pl.col("value") <= 0)),
        # Whatever day it was reported on: the session of the ex-date opened knowing it.
        Rule(
            "it is said to be known only after its ex-date",
            pl.col("available_at") >= pl.col("time") + pl.duration(days=1),
        ),
    ),
    history=True,
    may_be_empty=True,
)


ERASED: Mapping[str, str | None] = {"title": "[deleted]", "text": None}
"""What a document says that was deleted where it came from."""


def is_erased(values: Mapping[str, str | None]) -> pl.Expr:
    """Whether a row holds what is left of one that was deleted at its source."""
    return pl.all_horizontal(
        pl.col(name).eq_missing(pl.lit(value, dtype=pl.String)) for name, value in values.items()
    )


def documents(channel: Literal["news", "reddit"]) -> TableSchema:
    """News articles and Reddit posts share one table; `channel` tells the two assets apart."""
    what = {"news": "News articles", "reddit": "Reddit posts and comments"}[channel]
    return TableSchema(
        asset=channel,
        table="documents",
        description=f"{what} matched to symbols, from the moment the provider could show them.",
        key=("document_id", "available_at"),
        columns=(
            Column("document_id", pl.String, "SHA-256 of provider and canonical address, hex"),
            *time_columns("publication"),
            Column("channel", pl.String, "news or reddit"),
            SOURCE,
            Column("symbols", pl.List(pl.String), "instruments it speaks of"),
            Column("title", pl.String, "headline"),
            Column("text", pl.String, "body, or a summary of it", nullable=True),
            Column("url", pl.String, "canonical address", nullable=True),
        ),
        mode="accumulate",
        day_column="available_at",
        rules=(
            Rule("it names no symbol", pl.col("symbols").list.len().fill_null(0) == 0),
            Rule(
                "it became available before it was published",
                pl.col("available_at") < pl.col("time"),
            ),
        ),
        history=True,
        may_be_empty=True,
        constants={"channel": channel},
        identity=("document_id",),
        twins=Twins("url", "title", "symbols") if channel == "news" else None,
        erased=ERASED,
    )


MACRO_INDICATORS = TableSchema(
    asset="macro_indicators",
    table="macro_indicators",
    description="Macro series with their vintages: a revised value is a new row, from its release.",
    key=("series_id", "time", "available_at"),
    columns=(
        Column("series_id", pl.String, "FRED series, e.g. VIXCLS"),
        *time_columns("date of the observation, 00:00 UTC"),
        Column("value", pl.Float64, "value in the series' own units"),
        Column("name", pl.String, "title of the series"),
        Column("units", pl.String, "units of the value"),
        Column("frequency", pl.String, "D, W, M or Q"),
        SOURCE,
    ),
    mode="accumulate",
    day_column="available_at",
    identity=("series_id", "time", "available_at"),
    rules=(
        Rule("value is missing or not finite", _not_finite("value")),
        Rule("it was released before its date", pl.col("available_at") < pl.col("time")),
    ),
    history=True,
    may_be_empty=True,
)

TRANSACTION_CODES = tuple("PSVADFIMCEHOXGLWZJKU")
"""The codes of Form 4: P an open-market purchase, S a sale, M an exercise, A an award, F a tax
withheld, G a gift, and so on (General Instructions, 8)."""

FILED_AS_DATA_SINCE = datetime(2003, 6, 30, tzinfo=UTC)
"""From here on Form 4 has to be filed electronically, as XML (SEC release 33-8230): of what was
filed before nothing is known."""

UNREADABLE = "unreadable"
"""In the place of its code: a filing that is no Form 4, kept in quarantine instead of its lines."""

INSIDER_TRANSACTIONS = TableSchema(
    asset="insider_transactions",
    table="insider_transactions",
    description="What officers, directors and large owners bought and sold, from the filing on.",
    key=("symbol", "accession", "line"),
    columns=(
        Column("accession", pl.String, "number of the filing"),
        Column("line", pl.Int64, "transaction of the filing, counted from 1"),
        SYMBOL,
        *time_columns("date of the transaction, 00:00 UTC"),
        Column("form", pl.String, "4, or 4/A: an amendment"),
        Column("owner", pl.Int64, "CIK of the person who reports, of several the first"),
        Column("roles", pl.List(pl.String), "director, officer, ten_percent_owner, other"),
        Column("security", pl.String, "title of the security"),
        Column("derivative", pl.Boolean, "whether it is an option, a unit or the like"),
        Column("code", pl.String, "what kind of transaction: P purchase, S sale, M exercise, ..."),
        Column("acquired_disposed", pl.String, "A acquired, D disposed of"),
        Column("shares", pl.Float64, "how many, as traded", unit="shares", nullable=True),
        Column("price", pl.Float64, "per share, where told", unit="USD", nullable=True),
        Column("value", pl.Float64, "shares x price, where told", unit="USD", nullable=True),
        Column(
            "shares_after", pl.Float64, "owned afterwards, where told", unit="shares", nullable=True
        ),
        SOURCE,
    ),
    mode="accumulate",
    day_column="available_at",
    identity=("symbol", "accession", "line"),
    rules=(
        Rule("the filing cannot be read as a Form 4", pl.col("code") == UNREADABLE),
        Rule("code is none of Form 4", ~pl.col("code").is_in(TRANSACTION_CODES)),
        Rule(
            "acquired_disposed is neither A nor D", ~pl.col("acquired_disposed").is_in(["A", "D"])
        ),
        Rule("shares are missing", pl.col("shares").is_null() & ~pl.col("derivative")),
        Rule(
            "shares are not finite or not positive",
            ~pl.col("shares").is_finite() | (pl.col("shares") <= 0),
        ),
        Rule(
            "price, value or shares_after is not finite or negative",
            pl.any_horizontal(
                (~pl.col(n).is_finite() | (pl.col(n) < 0)).fill_null(value=False)
                for n in ("price", "value", "shares_after")
            ),
        ),
        # A total in the place of a price, mostly. Sums of what remains are exact in cents.
        Rule("value is more than 10^12 USD", pl.col("value") > 1e12),
        Rule("it was filed before it was made", pl.col("available_at") < pl.col("time")),
    ),
    history=True,
    may_be_empty=True,
)

EVENT_TABLES: tuple[TableSchema, ...] = (
    CORPORATE_ACTIONS,
    documents("news"),
    documents("reddit"),
    MACRO_INDICATORS,
    INSIDER_TRANSACTIONS,
)
"""The tables that come from a source and are no bars."""

SOURCE_TABLES: tuple[TableSchema, ...] = (
    *(ohlcv(timeframe) for timeframe in TIMEFRAMES),
    *EVENT_TABLES,
)

# -- beside the graph: the trading side's tables, compared ----------------------------------------

POSITION_RECONCILIATION = TableSchema(
    asset="position_reconciliation",
    table="position_reconciliation",
    description="Each position with the sum of its fills and what the brokers hold, by day.",
    key=("time", "symbol"),
    columns=(
        Column("symbol", pl.String, "as the trading side writes it; may be none of universe.yaml"),
        *time_columns("the day compared, 00:00 UTC; everything as of its end"),
        Column("position", pl.Float64, "position held; negative: short", unit="shares"),
        Column("traded", pl.Float64, "bought less sold, all fills; splits applied", unit="shares"),
        Column("held", pl.Float64, "what the brokers hold", unit="shares", nullable=True),
        Column("traded_difference", pl.Float64, "|position - traded| / larger", unit="ratio"),
        Column(
            "held_difference",
            pl.Float64,
            "|position - held| / the larger of both",
            unit="ratio",
            nullable=True,
        ),
        Column("brokers", pl.List(pl.String), "brokers with a snapshot of that day"),
        Column("unseen", pl.List(pl.String), "brokers it was traded with that have none"),
    ),
    mode="replace",
    inputs=(
        Input("positions", ("quantity",)),
        Input("trades", ("side", "quantity")),
        Input("broker_positions", ("quantity",)),
    ),
    may_be_empty=True,
)
"""Not one of the graph's: its inputs are written by others, who keep no ledger, so that nobody
knows which of its days are stale, and its symbols are the brokers'."""
