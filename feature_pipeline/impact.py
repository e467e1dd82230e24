"""What the code at hand would change: features, columns, code versions, and days to compute again.

Against a database (what was registered there and computed last), or against a commit. Looks only.
Which features differ is settled in `features/comparison.py`; how it is shown is the command's.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import polars as pl

from feature_pipeline.errors import FeatureError
from feature_pipeline.features.catalogue import ALL_TABLES, code_version, definitions
from feature_pipeline.features.comparison import Change, compare
from feature_pipeline.storage import deployed, migrations
from feature_pipeline.storage.database import Database
from feature_pipeline.timeframes import TIMEFRAMES, of

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class AssetImpact:
    """What becomes of one derived asset.

    Args:
        asset: its name.
        code_version: of the code at hand.
        before: the others that its days were computed with, the newest last.
        days, rows: what would be computed again; None where no database was asked.
        of_days: the days that are written.
        first, last: of the days to be computed again.
    """

    asset: str
    code_version: str
    before: tuple[str, ...]
    days: int | None = None
    of_days: int | None = None
    rows: int | None = None
    first: date | None = None
    last: date | None = None


@dataclass(frozen=True)
class Impact:
    """What the code at hand would change.

    Args:
        against: what it is compared with, in words.
        changes: the features that differ.
        missing: columns that the code writes and the database lacks, as table.column.
        unknown: columns that the database has and the code knows nothing of.
        migrations: those that are not applied yet.
        assets: the derived assets whose code version differs.
    """

    against: str
    changes: Sequence[Change]
    missing: Sequence[str] = ()
    unknown: Sequence[str] = ()
    migrations: Sequence[str] = ()
    assets: Sequence[AssetImpact] = ()

    @property
    def nothing(self) -> bool:
        """Whether all is as it was."""
        return not (self.changes or self.missing or self.migrations or self.assets)


def against_database(database: Database, versions: Mapping[str, str]) -> Impact:
    """Compare with what a database was last migrated to and filled with.

    Args:
        database: where it is.
        versions: asset -> code version of the code at hand, the universe's share included.

    Raises:
        DatabaseError: it cannot be reached, or was never migrated.
    """
    derived = [ALL_TABLES[asset] for asset in versions if ALL_TABLES[asset].derived]
    timeframes = [name for name in TIMEFRAMES if any(of(asset) == name for asset in versions)]
    held = deployed.columns(database, [table.table for table in derived])
    missing = [f"{t.table}.{n}" for t in derived for n in t.names if n not in held[t.table]]
    unknown = [
        f"{t.table}.{n}"
        for t in derived
        for n in held[t.table]
        if n not in (*t.names, *t.audit, *t.marks)
    ]
    written = deployed.code_versions(database)
    return Impact(
        against="the database",
        changes=compare(_only(deployed.registered(database), timeframes), definitions(timeframes)),
        missing=missing,
        unknown=unknown,
        migrations=migrations.pending(database),
        assets=[
            found
            for table in derived
            if (found := _impact(table.asset, versions[table.asset], written)).days
        ],
    )


def of_asset(database: Database, asset: str, version: str) -> AssetImpact:
    """What becomes of one asset's days, with that code version.

    Raises:
        DatabaseError: the database cannot be reached, or was never migrated.
    """
    return _impact(asset, version, deployed.code_versions(database))


def _impact(asset: str, version: str, written: pl.DataFrame) -> AssetImpact:
    own = written.filter(pl.col("asset") == asset)
    old = own.filter(pl.col("code_version") != version)
    return AssetImpact(
        asset,
        version,
        tuple(old["code_version"]),
        days=int(old["days"].sum()),
        of_days=int(own["days"].sum()),
        rows=int(old["rows"].sum()),
        first=old["first_day"].min(),  # type: ignore[arg-type]  # a column of dates
        last=old["last_day"].max(),  # type: ignore[arg-type]
    )


# Before there were other timeframes, the catalogue had nothing to say which of them.
_ASK = """
import json
from feature_pipeline.features import catalogue
of = getattr(catalogue, "TIMEFRAMES", None)
tables = catalogue.ALL_TABLES if of else catalogue.TABLES
rows = catalogue.definitions(of) if of else catalogue.definitions()
print(json.dumps({"definitions": rows.to_dicts(),
                  "versions": {asset: catalogue.code_version(asset) for asset in tables}}))
"""


def against_commit(ref: str, timeframes: Sequence[str], root: Path = ROOT) -> Impact:
    """Compare with the catalogue of a commit, by importing the package as it was then.

    Args:
        ref: which commit.
        timeframes: whose features.
        root: the checkout.

    Raises:
        FeatureError: there is no such commit, or its catalogue cannot be read.
    """
    commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    archive = _git(root, "archive", "--format=zip", commit.decode().strip(), "feature_pipeline")
    with tempfile.TemporaryDirectory(prefix="feature_pipeline.") as place:
        zipfile.ZipFile(io.BytesIO(archive)).extractall(place)
        done = subprocess.run(
            [sys.executable, "-c", _ASK],
            cwd=place,
            env={**os.environ, "PYTHONPATH": place},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        why = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise FeatureError(f"the catalogue of {ref} cannot be read: {why}")
    then = json.loads(done.stdout)
    now = definitions(timeframes)
    before = pl.DataFrame(then["definitions"], schema=now.schema)
    return Impact(
        against=ref,
        changes=compare(_only(before, timeframes), now),
        assets=[
            AssetImpact(asset, code_version(asset), (then["versions"][asset],))
            for asset, table in ALL_TABLES.items()
            if table.derived
            and of(asset) in (None, *timeframes)
            and then["versions"].get(asset) not in (None, code_version(asset))
        ],
    )


def _only(rows: pl.DataFrame, timeframes: Sequence[str]) -> pl.DataFrame:
    """The registry's rows of some timeframes."""
    return rows.filter(pl.col("source_table").str.split("_").list.last().is_in(timeframes))


def _git(root: Path, *words: str) -> bytes:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        raise FeatureError(
            "git cannot be run; leave out --against to compare with the database"
        ) from None
    if done.returncode:
        what = words[-1].removesuffix("^{commit}")
        why = done.stderr.decode(errors="replace").strip().splitlines()
        raise FeatureError(
            f"git knows no commit {what!r} in {root}" if words[0] == "rev-parse" else why[-1]
        )
    return done.stdout
