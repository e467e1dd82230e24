"""A directory of Parquet files, one per symbol and month, and the catalogue that describes them.

Here lives what a file of an export is called, how it gets onto the disk, and how a killed export is
mended. What is in it, and which files are to be written, is `export.py`'s.

A file is written beside and renamed; before the rename its entry goes into a journal. Whoever opens
the directory next takes from the journal what is on the disk, by its hash, and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from feature_pipeline.errors import ExportError
from feature_pipeline.stack.processes import Lock
from feature_pipeline.symbols import checked_symbol

FORMAT = 1
"""Of the catalogue: a directory of another one is left alone."""

METADATA = "_metadata"
CATALOGUE = "feature_catalog.json"
_JOURNAL = "journal.jsonl"
_LOCK = "export.lock"
_DRAFTS = "drafts"


@dataclass(frozen=True)
class Part:
    """One file: the rows of a symbol in a month of UTC days.

    Args:
        symbol: instrument id.
        month: YYYY-MM.
        rows, bytes: how much there is.
        first, last: `time` of its first and last row, ISO 8601.
        sha256: of the file.
        content_hash: of its rows, whatever the file looks like.
        revision: the ledger's newest of the days it rests on.
        as_of: the moment of the export that wrote it; nothing in it was available later.
        whole: whether no row of its days was left out for having become available later.
        settled_at: from when on that is so.
        code_versions: of the days it rests on, by table.
        shape: digest of its columns, its days and the moment as known at.
        inputs: digest of that and of the ledger's rows for its days.
        tables: digest of the ledger's rows for its days, by table.
    """

    symbol: str
    month: str
    rows: int
    bytes: int
    first: str
    last: str
    sha256: str
    content_hash: str
    revision: int
    as_of: str
    whole: bool
    settled_at: str
    code_versions: Mapping[str, list[str]]
    shape: str
    inputs: str
    tables: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Where it is under the directory: see `path_of`."""
        return path_of(self.symbol, self.month)

    @property
    def json(self) -> str:
        """Its entry in the catalogue, on one line."""
        return json.dumps(vars(self))


def path_of(symbol: str, month: str) -> str:
    """The path of a file under its directory, as Hive writes it: % for `=` and `^` of a symbol.

    Raises:
        UniverseError: it is no symbol: nothing else becomes a path.
    """
    return f"symbol={quote(checked_symbol(symbol), safe='')}/month={month}/features.parquet"


class Dataset:
    """A directory of exported files, ours alone while it is open.

    Args:
        root: new, empty, or one of ours.
        trace: told each step before it is taken.

    Attributes:
        parts: path -> what is on the disk.
        about: the rest of the catalogue, as the last export that came to its end left it.
    """

    def __init__(self, root: Path, trace: Callable[[str], None] = lambda _: None) -> None:
        self.root = root
        self.parts: dict[str, Part] = {}
        self.about: dict[str, Any] = {}
        self._trace = trace
        self._metadata = root / METADATA
        self._lock = Lock(self._metadata / _LOCK)

    def __enter__(self) -> Self:
        """Take the directory and mend it.

        Raises:
            ExportError: it holds something else, is written by another process, or cannot be
                written.
        """
        with self._explained():
            self._claim()
            try:
                self._load()
                self._mend()
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def damaged(self, *, verify: bool) -> list[str]:
        """The files that are not as the catalogue has them: gone, of another size or, if `verify`,
        of another hash. They count as not there from now on."""
        wrong = [
            path
            for path, part in self.parts.items()
            if self._size(path) != part.bytes or (verify and self._hash(path) != part.sha256)
        ]
        for path in wrong:
            del self.parts[path]
        return wrong

    def put(self, files: Iterable[tuple[Part, bytes]]) -> None:
        """Write files, each old or new at every moment.

        Raises:
            ExportError: the disk is full, or refuses.
        """
        with self._explained():
            drafts = []
            for number, (part, content) in enumerate(files):
                draft = (
                    self._metadata / _DRAFTS / str(number)
                )  # no name that a reader takes for data
                draft.write_bytes(content)
                drafts.append((draft, part))
            self._trace("journal")
            with (self._metadata / _JOURNAL).open("a", encoding="utf-8") as journal:
                journal.writelines(part.json + "\n" for _, part in drafts)
                _to_disk(journal)
            for draft, part in drafts:
                self._trace("rename")
                target = self.root / part.path
                target.parent.mkdir(parents=True, exist_ok=True)
                draft.replace(target)
                self.parts[part.path] = part

    def remove(self, paths: Iterable[str]) -> None:
        """Delete files, and the folders that are empty without them."""
        with self._explained():
            for path in paths:
                self._trace("remove")
                self.parts.pop(path, None)
                file = self.root / path
                file.unlink(missing_ok=True)
                for folder in (file.parent, file.parent.parent):
                    if folder.is_dir() and not any(folder.iterdir()):
                        folder.rmdir()

    def commit(self, about: Mapping[str, Any]) -> None:
        """Write the catalogue: from now on the directory is what it says."""
        with self._explained():
            self.about = dict(about)
            draft = self._metadata / f"{CATALOGUE}.new"
            with draft.open("w", encoding="utf-8") as file:
                file.writelines(_catalogue(self.about, self.parts))
                _to_disk(file)
            self._trace("catalogue")
            draft.replace(self._metadata / CATALOGUE)
            self._trace("done")
            (self._metadata / _JOURNAL).unlink(missing_ok=True)

    def _claim(self) -> None:
        there = {path.name for path in self.root.iterdir()} if self.root.exists() else set()
        ours = self._lock.path.exists() or not (there - {METADATA})
        if not ours or (METADATA in there and not self._is_ours()):
            raise ExportError(
                f"{self.root} holds something else than an export; name a new or an empty directory"
            )
        self._metadata.mkdir(parents=True, exist_ok=True)
        if not self._lock.acquire():
            raise ExportError(f"another export writes to {self.root}; wait until it is done")
        shutil.rmtree(self._metadata / _DRAFTS, ignore_errors=True)
        (self._metadata / _DRAFTS).mkdir()

    def _is_ours(self) -> bool:
        """Whether the folder of the catalogue is one; empty it may be the beginning of one."""
        return self._lock.path.exists() or not any(self._metadata.iterdir())

    def _load(self) -> None:
        file = self._metadata / CATALOGUE
        if not file.exists():
            return
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            if held.pop("format") != FORMAT:
                raise ExportError(
                    f"{self.root} was exported by another version of this program; name a new "
                    "directory"
                )
            self.parts = {path: Part(**entry) for path, entry in held.pop("files").items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ExportError(
                f"{file} cannot be read; delete it, and every file is written again"
            ) from None
        self.about = held

    def _mend(self) -> None:
        """Settle what a killed export left: what is on the disk is told by its hash."""
        journal = self._metadata / _JOURNAL
        if not journal.exists():
            return
        for part in _entries(journal):
            before = self.parts.pop(part.path, None)
            there = self._hash(part.path)
            found = next((p for p in (part, before) if p and p.sha256 == there), None)
            if found:
                self.parts[part.path] = found
        self.commit(self.about)

    def _size(self, path: str) -> int | None:
        try:
            return (self.root / path).stat().st_size
        except OSError:
            return None

    def _hash(self, path: str) -> str | None:
        try:
            return sha256((self.root / path).read_bytes()).hexdigest()
        except FileNotFoundError:
            return None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ExportError(
                f"cannot write to {self.root}: {error.strerror}; make room or name another "
                "directory, and run it again"
            ) from error


def _entries(journal: Path) -> Iterator[Part]:
    """What was noted down; a line without an end was noted for a file that never came."""
    latest: dict[str, Part] = {}
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        if line.endswith("\n"):
            part = Part(**json.loads(line))
            latest[part.path] = part
    yield from latest.values()


def _catalogue(about: Mapping[str, Any], parts: Mapping[str, Part]) -> Iterator[str]:
    """The catalogue as JSON, a line per file: there may be many."""
    yield json.dumps({"format": FORMAT, **about}, indent=1).removesuffix("\n}") + ',\n "files": {'
    for number, path in enumerate(sorted(parts)):
        yield f"{',' if number else ''}\n  {json.dumps(path)}: {parts[path].json}"
    yield "\n }\n}\n"


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
