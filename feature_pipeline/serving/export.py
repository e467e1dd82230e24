"""Export: values by name as Parquet files, one per symbol and month, from any past moment.

What is in the files is what `lookup.py` answers. Which of them have to be written is
`export_plan.py`'s, how they get onto the disk `dataset.py`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING, Any

import polars as pl

from feature_pipeline.errors import ExportError, FeatureError
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.schemas import TableSchema
from feature_pipeline.serving.dataset import Dataset, Part, path_of
from feature_pipeline.serving.export_plan import FILE, Plan, Question, plan
from feature_pipeline.serving.lookup import available, moment_of, side_by_side
from feature_pipeline.serving.names import Named, by_bar, every_name, resolve
from feature_pipeline.storage.hashing import row_hashes
from feature_pipeline.storage.store import Store
from feature_pipeline.timeframes import DAILY

if TYPE_CHECKING:
    from feature_pipeline.sources import Scorer


@dataclass
class Report:
    """What an export did, in files.

    Args:
        written: new or other than before.
        unchanged: as they were.
        kept: left alone: but for days that retention has dropped from the database they are right.
        removed: not asked for, or without a row by now.
        damaged: found gone, cut or altered; they are among those written.
        rows, bytes: written.
        total_files, total_rows: in the directory.
        seconds: it took.
        stale_days: table -> days whose values other code has computed.
    """

    written: int = 0
    unchanged: int = 0
    kept: int = 0
    removed: int = 0
    damaged: int = 0
    rows: int = 0
    bytes: int = 0
    total_files: int = 0
    total_rows: int = 0
    seconds: float = 0.0
    stale_days: Mapping[str, int] = field(default_factory=dict)


def usual(timeframe: str = DAILY) -> tuple[str, ...]:
    """The tables that are exported unless names say otherwise."""
    derived = ("indicators", "features", "regime_predictions", "state_vectors")
    return tuple(f"{name}_{timeframe}" for name in derived)


def places_of(
    words: Sequence[str], tables: Mapping[str, TableSchema] = TABLES, timeframe: str = DAILY
) -> list[Named]:
    """The columns that words ask for: names as `resolve` takes them, or tables for all of theirs.

    Of a whole table a column has its own name where that is not ambiguous, else `table.column`.

    Raises:
        FeatureError: there is no such name, or they are of bars of several lengths.
    """
    found: dict[str, Named] = {}
    for word in words:
        if word in by_bar(tables):
            whole = (place for place in every_name(tables) if place.asset == word)
            found |= {place.name: place for place in (_named(p, tables, timeframe) for p in whole)}
        else:
            found[word] = resolve(word, tables, timeframe)
    lengths = sorted({place.asset.rpartition("_")[2] for place in found.values()})
    if len(lengths) > 1:
        raise FeatureError(
            f"values by bars of {' and '.join(lengths)} cannot share a row; export each by itself"
        )
    return list(found.values())


def _named(place: Named, tables: Mapping[str, TableSchema], timeframe: str) -> Named:
    try:
        plain = resolve(place.column, tables, timeframe).path == place.path
    except FeatureError:
        plain = False
    return replace(place, name=place.column if plain else place.path)


@dataclass
class Export:
    """Has a directory hold the answer to a question; what is right already is not written again.

    Args:
        dataset: the open directory.
        store: where from.
        question: what.
        scorer: the active sentiment model, for derived values as they were known.
        versions: asset -> code version, as it is.
    """

    dataset: Dataset
    store: Store
    question: Question
    scorer: Scorer
    versions: Mapping[str, str]
    report: Report = field(default_factory=Report)

    def plan(self, *, prune: bool = False, verify: bool = False) -> Plan:
        """What there is to do.

        Args:
            prune: files that the question does not ask for may be deleted.
            verify: read every file that is there, to find altered ones.

        Raises:
            ExportError: there are files that the question does not ask for.
            DatabaseError: the database does not answer.
        """
        self.report.damaged = len(self.dataset.damaged(verify=verify))
        parts, about = self.dataset.parts, self.dataset.about
        todo = plan(parts, about, self.store, self.question, self.versions)
        if todo.others and not prune:
            raise ExportError(
                f"{self.dataset.root} holds {len(todo.others)} file(s) that this export does not "
                "ask for or cannot write again (the database has dropped some of what is in them), "
                f"{todo.others[0]} for one; name another directory, or have them removed with "
                "--prune"
            )
        return todo

    def run(self, todo: Plan, progress: Callable[[int], None] = lambda _: None) -> Report:
        """Do it.

        Args:
            todo: of `plan`.
            progress: told how many of its stale files are done.

        Raises:
            ExportError: the disk is full, or refuses.
            DatabaseError: the database does not answer.
        """
        started, report, done = time.monotonic(), self.report, 0
        report.unchanged, report.kept = len(todo.unchanged), len(todo.kept)
        report.stale_days = todo.stale_days
        for batch in todo.batches(self.question, len(self.store.universe.symbols)):
            self._write(todo, batch)
            done += batch.height
            progress(done)
        again = {path_of(*key) for key in todo.stale.iter_rows()}
        self._remove(path for path in (*todo.others, *todo.empty) if path not in again)
        report.total_files = len(self.dataset.parts)
        report.total_rows = sum(part.rows for part in self.dataset.parts.values())
        self.dataset.commit(_about(self.question, self.store, self.versions, report))
        report.seconds = time.monotonic() - started
        return report

    def _write(self, todo: Plan, batch: pl.DataFrame) -> None:
        """Read the rows of a batch of files and write those that are other than before."""
        rows, facts = self._read(todo, batch)
        frames = rows.partition_by(FILE, as_dict=True, include_key=False, maintain_order=True)
        changed: list[tuple[Part, pl.DataFrame]] = []
        for key, frame in frames.items():
            held = self.dataset.parts.get(path_of(*key))
            part = _part(self.question, todo, facts[key], held)
            if held and (held.content_hash, held.shape) == (part.content_hash, part.shape):
                same = replace(part, sha256=held.sha256, bytes=held.bytes)
                self.dataset.parts[part.path] = same
                self.report.unchanged += 1
            else:
                changed.append((part, frame))
        self.dataset.put(self._encoded(changed))
        without = (path_of(*key) for key in batch.iter_rows() if key not in frames)
        self._remove(path for path in without if path in self.dataset.parts)

    def _read(
        self, todo: Plan, batch: pl.DataFrame
    ) -> tuple[pl.DataFrame, dict[Any, dict[str, Any]]]:
        """The rows of a batch of files, and by file what its catalogue says of them."""
        question, months = self.question, batch["month"]
        first, after = question.span(str(months.min()))[0], question.span(str(months.max()))[1]
        month = pl.col("time").dt.strftime("%Y-%m").alias("month")
        read = (
            side_by_side(
                self.store,
                batch["symbol"].unique().sort().to_list(),
                question.places,
                (first, min(after, question.reach)),
                question.moment.known_at,
                self.scorer,
            )
            .with_columns(month)
            .join(batch, on=FILE, how="semi")
        )
        if question.moment.known_at is None:
            read = self._with_dropped(read, todo, batch)
        latest = pl.max_horizontal(moment_of(asset) for asset in question.assets).max()
        settled = read.group_by(FILE).agg(latest.alias("settled_at"))
        rows = available(read, question.places, question.moment.as_of).with_columns(month)
        content = row_hashes(rows, [name for name in rows.columns if name not in FILE])
        facts = (
            rows.select(*FILE, "time", pl.Series("hash", content, dtype=pl.UInt64))
            .group_by(FILE)
            .agg(
                pl.len().alias("rows"),
                pl.col("time").min().alias("first"),
                pl.col("time").max().alias("last"),
                pl.col("hash").bitwise_xor(),
            )
            .join(settled, on=FILE)
        )
        return rows, {(row["symbol"], row["month"]): row for row in facts.iter_rows(named=True)}

    def _with_dropped(self, read: pl.DataFrame, todo: Plan, batch: pl.DataFrame) -> pl.DataFrame:
        """What was read, and of the days that retention dropped what the files have of them."""
        files = [
            pl.read_parquet(self.dataset.root / path, hive_partitioning=False).with_columns(
                symbol=pl.lit(symbol), month=pl.lit(month)
            )
            for symbol, month in batch.iter_rows()
            if month in todo.dropped and (path := path_of(symbol, month)) in self.dataset.parts
        ]
        held = pl.concat(files, how="diagonal") if files else read.clear()
        for asset in self.question.assets:
            of_asset = [place.name for place in self.question.places if place.asset == asset]
            names = [name for name in of_asset if name in held.columns]
            days = [
                day for month in set(held["month"]) for day in todo.dropped[month].get(asset, ())
            ]
            if names and days:
                old = held.filter(
                    pl.col("time").dt.date().is_in(days),
                    pl.any_horizontal(pl.col(names).is_not_null()),
                ).select(
                    *FILE,
                    "time",
                    *names,
                    # Of a table by itself a file does not say it: not later than of all of them.
                    pl.col("available_at").alias(moment_of(asset)),
                )
                read = read.update(old, on=[*FILE, "time"], how="full")
        return read

    def _encoded(
        self, changed: Sequence[tuple[Part, pl.DataFrame]]
    ) -> Iterator[tuple[Part, bytes]]:
        for part, frame in changed:
            content = _parquet(frame)
            self.report.written += 1
            self.report.rows += part.rows
            self.report.bytes += len(content)
            yield replace(part, sha256=sha256(content).hexdigest(), bytes=len(content)), content

    def _remove(self, paths: Iterable[str]) -> None:
        gone = list(paths)
        self.dataset.remove(gone)
        self.report.removed += len(gone)


def _part(question: Question, todo: Plan, facts: Mapping[str, Any], before: Part | None) -> Part:
    """The entry of a file, but for what it is like on the disk."""
    month, as_of = facts["month"], question.moment.as_of
    held, gone = todo.months[month], todo.dropped.get(month, ())
    carried = {a: codes for a, codes in before.code_versions.items() if a in gone} if before else {}
    return Part(
        symbol=facts["symbol"],
        month=month,
        rows=facts["rows"],
        bytes=0,
        first=facts["first"].isoformat(),
        last=facts["last"].isoformat(),
        sha256="",
        content_hash=f"{facts['hash']:016x}",
        revision=held.revision,
        as_of=as_of.isoformat(),
        whole=facts["settled_at"] <= as_of and question.span(month)[1] <= question.reach,
        settled_at=facts["settled_at"].isoformat(),
        code_versions={**carried, **held.code_versions},
        shape=held.shape,
        inputs=held.inputs,
        tables=held.tables,
    )


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = BytesIO()
    frame.write_parquet(buffer, compression="zstd", compression_level=3)
    return buffer.getvalue()


def _about(
    question: Question, store: Store, versions: Mapping[str, str], report: Report
) -> dict[str, Any]:
    """The catalogue, but for its files: what was asked for, and what each column is."""
    moment = question.moment
    return {
        "exported_at": datetime.now(UTC).isoformat(),
        "as_of": moment.as_of.isoformat(),
        "as_known_at": moment.known_at and moment.known_at.isoformat(),
        "timeframe": question.timeframe,
        "first_day": question.days[0].isoformat(),
        "end_day": question.days[1].isoformat(),
        "symbols": list(question.symbols),
        "total_files": report.total_files,
        "total_rows": report.total_rows,
        "tables": {asset: {"code_version": versions[asset]} for asset in question.assets},
        "features": [_column(store.tables[p.asset], p, versions) for p in question.places],
    }


def _column(table: TableSchema, place: Named, versions: Mapping[str, str]) -> dict[str, Any]:
    column, feature = table.column(place.column), place.feature
    return {
        "name": place.name,
        "table": place.asset,
        "column": place.column,
        "type": str(column.dtype),
        "unit": column.unit,
        "description": column.description,
        "feature": feature.name if feature else None,
        "version": feature.version if feature else None,
        "category": feature.category if feature else None,
        "lookback_bars": feature.lookback_bars if feature else None,
        "lookback_days": feature.lookback_days if feature else None,
        "computation": feature.computation if feature else None,
        "code_version": versions[place.asset],
    }
