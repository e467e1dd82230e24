"""The same story told twice: by another provider, at another address, or again by its own.

Rows in, and stored rows that may tell the same; out come the rows that are news. Which columns
tell is the schema's (`schemas.Twins`); one query finds the stored ones. Within the transaction of
the write, under its lock, so that two writers cannot both be the first.

Two rows are twins if they have the same address, or, published within a day, the same title (see
`title_key`). Who was stored first stays; within an answer the earlier publication. A later twin
is left out for every instrument of whom the first one speaks, and written for the others: nobody
hears a story twice, and nobody misses one because another provider told it to somebody else.

A row that is stored itself stays as it was first read: what an article says after it was edited
was not known when it came out. It may come to speak of more instruments, never of fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import polars as pl
from psycopg import sql

from feature_pipeline.schemas import TableSchema, Twins
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.statements import array

SHORTEST_KEY = 20
"""Characters of a folded title below which it says too little to tell two stories apart."""

_PUBLISHER = r"\s+[-|\x{2013}\x{2014}]\s+[^-|]{1,40}$"


def title_key(title: pl.Expr) -> pl.Expr:
    """What is left of a title when two providers' ways of writing it are set aside.

    Letters and digits alone, in lower case, without the publisher that aggregators append (`... -
    Reuters`). Null where that is shorter than `SHORTEST_KEY`: "Markets wrap" is no story.
    """
    written = title.str.normalize("NFKC")
    keys = [_folded(text) for text in (written.str.replace(_PUBLISHER, ""), written)]
    return pl.coalesce(pl.when(key.str.len_chars() >= SHORTEST_KEY).then(key) for key in keys)


def _folded(text: pl.Expr) -> pl.Expr:
    return text.str.to_lowercase().str.replace_all(r"[^\p{L}\p{N}]+", " ").str.strip_chars()


@dataclass(frozen=True)
class Sorted:
    """The rows of a batch, told apart: `rows` are to be written, `repeated` are not."""

    rows: pl.DataFrame
    repeated: pl.DataFrame


def stored(database: Database, table: TableSchema, rows: pl.DataFrame) -> pl.DataFrame:
    """The stored rows that may be a twin of one of `rows`, or are the same: one query."""
    twins = table.twins
    assert twins is not None
    identity = table.identity[0]
    told = _told(twins, rows)
    about = rows[twins.about].explode().drop_nulls().unique().sort()
    apart = timedelta(days=twins.days)
    first, last = rows.select(first=pl.col("time").min(), last=pl.col("time").max()).row(0)
    conditions = {
        identity: sql.SQL("t.{} = ANY({})").format(
            sql.Identifier(identity), array(rows[identity], "text")
        ),
        twins.address: sql.SQL("t.{} = ANY({})").format(
            sql.Identifier(twins.address), array(told[twins.address].unique(), "text")
        ),
        "time": sql.SQL("t.time BETWEEN {} AND {} AND t.{} && {}").format(
            sql.Literal(first - apart),
            sql.Literal(last + apart),
            sql.Identifier(twins.about),
            array(about, "text"),
        ),
    }
    # A union of three, so that each has its index; one row may be found by several of them.
    query = sql.SQL(" UNION ").join(
        sql.SQL("SELECT {} FROM {} t WHERE {}").format(
            sql.SQL(", ").join(sql.Identifier("t", n) for n in table.names),
            sql.Identifier(table.table),
            sql.SQL(" AND ").join([*_constants(table), condition]),
        )
        for condition in conditions.values()
    )
    return database.read_frame(query.as_string(None))


def _constants(table: TableSchema) -> list[sql.Composable]:
    return [
        sql.SQL("t.{} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in table.constants.items()
    ]


def sort_out(table: TableSchema, rows: pl.DataFrame, held: pl.DataFrame) -> Sorted:
    """Leave out what is told already.

    Args:
        table: whose `twins` decide.
        rows: the rows of a batch, of distinct identities.
        held: what `stored` found.
    """
    twins = table.twins
    assert twins is not None
    identity = table.identity[0]
    mine = rows.with_row_index("_row")
    may_be = _told(twins, mine)
    if may_be.is_empty():
        return Sorted(rows, rows.clear())
    known = held.join(may_be.select(identity, "_row"), on=identity)
    # What is stored of a row says nothing new of its own symbols, nor is it a twin of itself.
    claims = _claims(twins, may_be).join(_claims(twins, known), on=["_row", "_about"], how="anti")
    elsewhere = _told(twins, held).with_row_index("_row")
    news = _first_told(twins, claims, _claims(twins, elsewhere)).group_by("_row")
    mine = _as_first_read(table, mine, known).join(
        news.agg(pl.col("_about").sort().alias("_news")), on="_row", how="left"
    )
    about = pl.concat_list(pl.col("_held", "_news").fill_null([])).list.unique(maintain_order=True)
    told = pl.col("_row").is_in(may_be["_row"].implode())
    mine = mine.sort("_row").with_columns(
        pl.when(told).then(about).otherwise(twins.about).alias(twins.about)
    )
    news_to_nobody = mine.select(told & (pl.col(twins.about).list.len() == 0)).to_series()
    return Sorted(mine.select(rows.columns).filter(~news_to_nobody), rows.filter(news_to_nobody))


def _told(twins: Twins, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that have a web address: what has none is told in one place only."""
    return rows.filter(pl.col(twins.address).str.contains("^https?://"))


def _claims(twins: Twins, rows: pl.DataFrame) -> pl.DataFrame:
    """What rows say of whom: `_row`, `_about`, `_address`, `_title`, `time`, in order of time."""
    return (
        rows.select(
            "_row",
            "time",
            _about=twins.about,
            _address=twins.address,
            _title=title_key(pl.col(twins.title)),
        )
        .explode("_about")
        .drop_nulls("_about")
        .sort("time", "_row")
    )


def _first_told(twins: Twins, claims: pl.DataFrame, told: pl.DataFrame) -> pl.DataFrame:
    """The claims that nobody has made before, neither one of `told` nor an earlier one of them."""
    first = [claims.clear()]
    address, title = ["_about", "_address"], ["_about", "_title"]
    while claims.height:
        near = (pl.col("time") - pl.col("time_right")).abs() <= pl.duration(days=twins.days)
        again = claims.join(told, on=title).filter(near)
        claims = claims.join(told, on=address, how="anti").join(
            again, on=["_row", "_about"], how="anti", maintain_order="left"
        )
        place = pl.int_range(pl.len())
        leads = (place.over(address) == 0) & (pl.col("_title").is_null() | (place.over(title) == 0))
        leading = claims.select(leads).to_series()
        # Each round settles one claim at least: the first of all leads.
        told, claims = claims.filter(leading), claims.filter(~leading)
        first.append(told)
    return pl.concat(first)


def _as_first_read(table: TableSchema, rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """Rows that are stored, with what was stored of them, and of whom in `_held`."""
    assert table.twins is not None
    about = table.twins.about
    content = [n for n in table.hashed if n != about and n not in table.identity]
    first = known.select("_row", *(pl.col(n).name.prefix("_first_") for n in content), _held=about)
    joined = rows.join(first, on="_row", how="left")
    # An article that is said to be older than was thought is no edit: that is corrected.
    stays = pl.col("_held").is_not_null() & (pl.col("_first_time") <= pl.col("available_at"))
    return joined.with_columns(
        pl.when(stays).then(f"_first_{n}").otherwise(n).alias(n) for n in content
    ).select(*rows.columns, "_held")
