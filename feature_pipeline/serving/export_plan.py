"""What an export has to do: which files are right as they are, which are to be read again.

By the ledger: a file rests on days of tables, and is what it should be while their revisions, its
columns and what it may rest on are what they were. Nothing is read of data here, nothing written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from hashlib import blake2b
from typing import Any

import polars as pl

from feature_pipeline.serving.dataset import Part
from feature_pipeline.serving.lookup import Moment
from feature_pipeline.serving.names import Named
from feature_pipeline.storage.hashing import row_hashes
from feature_pipeline.storage.store import Store

FILE = ["symbol", "month"]
"""What tells one file from another."""

_CELLS = 20_000_000
"""Values in memory at once, about: 8 bytes each, and a copy or two."""
_COMPARED = ("asset", "source", "day", "revision", "code_version")


@dataclass(frozen=True)
class Question:
    """What a directory is to hold.

    Args:
        places: the columns, all of one timeframe.
        symbols: instrument ids.
        days: [start, end).
        moment: what the values may rest on.
    """

    places: tuple[Named, ...]
    symbols: tuple[str, ...]
    days: tuple[date, date]
    moment: Moment

    @property
    def timeframe(self) -> str:
        """Of the bars that its rows are about."""
        return self.places[0].asset.rpartition("_")[2]

    @property
    def assets(self) -> list[str]:
        """The tables it reads, sorted."""
        return sorted({place.asset for place in self.places})

    @property
    def reach(self) -> date:
        """The first day that is not read: what is about a later moment was not available."""
        return min(self.days[1], self.moment.as_of.date() + timedelta(days=1))

    def span(self, month: str) -> tuple[date, date]:
        """The days of a month, YYYY-MM, that are asked for: [start, end)."""
        first = date.fromisoformat(f"{month}-01")
        after = (first + timedelta(days=31)).replace(day=1)
        return max(first, self.days[0]), min(after, self.days[1])

    def shape(self, month: str) -> str:
        """Digest of what a file is asked to hold, whatever the tables hold."""
        known = self.moment.known_at
        columns = [[place.name, place.path] for place in self.places]
        return _digest(columns, known and known.isoformat(), *map(str, self.span(month)))


@dataclass(frozen=True)
class Month:
    """What the ledger says of a month's days: see `Part`; `rows` of all instruments together."""

    shape: str
    inputs: str
    tables: Mapping[str, str]
    revision: int
    code_versions: Mapping[str, list[str]]
    rows: int


@dataclass(frozen=True)
class Plan:
    """What there is to do.

    Args:
        stale: `symbol`, `month`, sorted by month: to be read.
        months: month -> what the ledger says of it.
        unchanged: paths of files that are as they should be.
        kept: of files with days that retention dropped from the database since, right but for them.
        others: of files that were not asked for, or that would lose what retention dropped.
        empty: of files of which no row is left.
        stale_days: table -> days that other code has computed.
        dropped: month -> table -> days that retention dropped; a file may be all that has them.
    """

    stale: pl.DataFrame
    months: Mapping[str, Month]
    unchanged: Sequence[str]
    kept: Sequence[str]
    others: Sequence[str]
    empty: Sequence[str]
    stale_days: Mapping[str, int]
    dropped: Mapping[str, Mapping[str, list[date]]]

    def batches(self, question: Question, instruments: int) -> Iterator[pl.DataFrame]:
        """What to read at once: some months of everybody, or a month of some."""
        width = (len(question.places) + 2) / max(instruments, 1)
        cells = {month: held.rows * width for month, held in self.months.items()}
        weight = pl.col("month").replace_strict(cells, default=0.0, return_dtype=pl.Float64)
        batch = (weight.cum_sum() // _CELLS).alias("batch")
        if question.moment.known_at is not None:
            batch = pl.lit(0).alias("batch")  # each would read the history before it
        yield from self.stale.with_columns(batch).partition_by(
            "batch", include_key=False, maintain_order=True
        )


def plan(
    parts: Mapping[str, Part],
    about: Mapping[str, Any],
    store: Store,
    question: Question,
    versions: Mapping[str, str],
) -> Plan:
    """Compare what is there with what is asked for.

    Args:
        parts: path -> file that is there, whole.
        about: the catalogue of those files.
        store: whose ledger.
        question: what is asked for.
        versions: asset -> code version, as it is.
    """
    ledger = _ledger(store, question.assets, question.days)
    months = _months(ledger, store, question, versions)
    asked = _asked(store, question, months)
    columns = {held["name"]: held["table"] for held in about.get("features", ())}
    dropped = _dropped(store, question, columns.values())
    known_at = question.moment.known_at
    of_another = about.get("as_known_at") != (known_at and known_at.isoformat())
    names = {place.name for place in question.places}
    left_out = {table for name, table in columns.items() if of_another or name not in names}
    wanted = set(asked.iter_rows())
    found: dict[str, list[str]] = {n: [] for n in ("unchanged", "kept", "others", "empty")}
    right: list[tuple[str, str]] = []
    symbols = frozenset(question.symbols)
    for path, part in parts.items():
        key = (part.symbol, part.month)
        if part.symbol not in symbols:
            found["others"].append(path)
            continue
        gone = dropped.get(part.month, {})
        if gone.keys() & left_out:
            kind = "others"
        else:
            kind = _judge(part, question, months.get(part.month), key in wanted, gone.keys())
        if kind:
            found[kind].append(path)
        if kind in ("unchanged", "kept"):
            right.append(key)
    done = pl.DataFrame(right, schema=asked.schema, orient="row")
    return Plan(
        stale=asked.join(done, on=FILE, how="anti").sort("month", "symbol"),
        months=months,
        stale_days=_stale_days(ledger, store, question, versions),
        dropped=dropped,
        **found,
    )


def _judge(
    part: Part, question: Question, month: Month | None, wanted: bool, gone: Set[str]
) -> str:
    """Which list of a plan a file belongs to; none, if it is to be read again."""
    first, after = question.span(part.month)
    if first >= min(after, question.reach):
        return "others"
    as_of = question.moment.as_of
    settled = datetime.fromisoformat(part.settled_at) <= as_of
    in_time = settled if part.whole else datetime.fromisoformat(part.as_of) == as_of
    if gone:
        held = first.isoformat() <= part.first and part.last < after.isoformat()
        if not (settled and held):
            return "others"
        same = part.shape == question.shape(part.month)
        if question.moment.known_at is not None or not wanted or month is None:
            return "kept" if same else "others"
        rest = set(question.assets) - gone
        right = all(part.tables.get(asset) == month.tables.get(asset) for asset in rest)
        return "kept" if same and in_time and right else ""
    if not wanted or month is None:
        return "empty"
    return "unchanged" if in_time and part.inputs == month.inputs else ""


def _ledger(store: Store, assets: Sequence[str], days: tuple[date, date]) -> pl.DataFrame:
    """The ledger's rows of some tables: COMPARED, `rows`, `month` and their `hash`."""
    rows = pl.concat(
        store.ledger.rows(asset, *days).with_columns(asset=pl.lit(asset)) for asset in assets
    )
    return rows.select(
        *_COMPARED,
        "rows",
        pl.col("day").dt.strftime("%Y-%m").alias("month"),
        pl.Series("hash", row_hashes(rows, _COMPARED)),
    )


def _months(
    ledger: pl.DataFrame, store: Store, question: Question, versions: Mapping[str, str]
) -> dict[str, Month]:
    """What decides on the files of each month that is written."""
    known = question.moment.known_at is not None
    more = _held_inputs(store, question, versions) if known else ""
    by_month = ledger.group_by("month").agg(
        pl.col("hash").bitwise_xor(), pl.col("revision").max(), pl.col("rows").sum()
    )
    codes = ledger.group_by("month", "asset").agg(
        pl.col("code_version").unique().sort(), pl.col("hash").bitwise_xor()
    )
    now = {asset: [versions[asset]] for asset in question.assets}
    of_month = {
        str(month): rows
        for (month,), rows in codes.sort("asset").partition_by("month", as_dict=True).items()
    }
    return {
        month: Month(
            shape=(shape := question.shape(month)),
            inputs=_digest(shape, more or str(digest)),
            tables={
                asset: f"{table:016x}"
                for asset, table in of_month[month].select("asset", "hash").iter_rows()
            },
            revision=revision,
            code_versions=(
                now if known else dict(of_month[month].select("asset", "code_version").iter_rows())
            ),
            rows=rows,
        )
        for month, digest, revision, rows in by_month.iter_rows()
        if rows
    }


def _held_inputs(store: Store, question: Question, versions: Mapping[str, str]) -> str:
    """What decides on values as they were known: all that sources ever said, and the code."""
    sources = [name for name, table in store.tables.items() if not table.derived]
    ledger = _ledger(store, sources, (date.min, question.days[1]))
    derived = [versions[name] for name, table in store.tables.items() if table.derived]
    return _digest(str(ledger["hash"].bitwise_xor()), *derived)


def _asked(store: Store, question: Question, months: Mapping[str, Month]) -> pl.DataFrame:
    """`symbol`, `month` of the files that there may be."""
    last = (question.reach - timedelta(days=1)).strftime("%Y-%m")
    pairs = pl.DataFrame({"symbol": question.symbols}, schema={"symbol": pl.String}).join(
        pl.DataFrame(
            {"month": [month for month in months if month <= last]}, schema={"month": pl.String}
        ),
        how="cross",
    )
    if question.moment.known_at is not None:
        return pairs  # a row may since have gone
    extents = pl.concat(store.extent(asset, question.symbols) for asset in question.assets)
    spans = extents.group_by("symbol").agg(
        pl.col("first").min().dt.strftime("%Y-%m"), pl.col("last").max().dt.strftime("%Y-%m")
    )
    held = pl.col("month").is_between("first", "last")
    return pairs.join(spans, on="symbol").filter(held).select(FILE)


def _dropped(
    store: Store, question: Question, held: Iterable[str]
) -> dict[str, dict[str, list[date]]]:
    """Month -> table -> days of it that retention has dropped."""
    found: dict[str, dict[str, list[date]]] = {}
    for asset in sorted({*question.assets, *held}):
        for day in store.ledger.dropped_days(asset, date.min, date.max):
            found.setdefault(f"{day:%Y-%m}", {}).setdefault(asset, []).append(day)
    return found


def _stale_days(
    ledger: pl.DataFrame, store: Store, question: Question, versions: Mapping[str, str]
) -> dict[str, int]:
    """Table -> days in it that other code has computed."""
    if question.moment.known_at is not None:
        return {}  # those are computed as they are asked for
    derived = [asset for asset in question.assets if store.tables[asset].derived]
    now = pl.col("asset").replace_strict(dict(versions), default=None, return_dtype=pl.String)
    other = ledger.filter(pl.col("asset").is_in(derived), pl.col("code_version") != now)
    return dict(other.group_by("asset").agg(pl.col("day").n_unique()).sort("asset").iter_rows())


def _digest(*words: Any) -> str:
    return blake2b(json.dumps(words).encode(), digest_size=8).hexdigest()
