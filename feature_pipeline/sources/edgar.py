"""EDGAR: what the SEC has on file of insiders' transactions (Forms 4 and 4/A).

Which filings a company has, and the filings themselves, asked for as the SEC wants it: with the
name and address of who asks, and no more than ten requests a second
(https://www.sec.gov/os/accessing-edgar-data). What is in a filing is read by `form4.py`.

**When a filing became public** is taken from the header of its submission file, whose clock is New
York's. The list of a company's filings says it, too (`acceptanceDateTime`), with a Z behind it: but
of some companies that is UTC and of others New York's clock, so that it only serves to choose the
filings that may lie in the days asked for.

**What cannot be read** comes as one row that says why, with the beginning of its text, and which
the schema rejects: it is kept in quarantine, and the company's other filings are there. Before 30
June 2003 forms of insiders were text, or paper, and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import polars as pl

from feature_pipeline.errors import SourceError
from feature_pipeline.schemas import FILED_AS_DATA_SINCE, INSIDER_TRANSACTIONS, UNREADABLE, Fetched
from feature_pipeline.sources import Kind
from feature_pipeline.sources.form4 import FilingError, Submission, read, submission
from feature_pipeline.sources.http import Limits, Politeness, PoliteSession
from feature_pipeline.universe import Instrument

DATA = "https://data.sec.gov"
ARCHIVES = "https://www.sec.gov"

LIMITS = Limits(requests=8, seconds=1.0, deadline_s=120.0, max_bytes=16 << 20)
"""The SEC allows ten requests a second to one who asks, over all that he asks with."""

FORMS = ("4", "4/A")

GIVE_UP = 3
"""After so many questions in a row without an answer nothing more is asked."""

FILINGS_A_YEAR = 60
"""Of a company, about: what an estimate assumes, before the list is known."""

_ACCESSION = r"^\d{10}-\d{2}-\d{6}$"
_PAGE = re.compile(r"CIK\d{10}-submissions-\d{3}\.json")
_LIST = ("accessionNumber", "form", "filingDate", "acceptanceDateTime")
_OFFSET = timedelta(hours=5)
"""How far New York's clock is behind UTC, at most."""

_SHOWN = 2000
_FRAME = {c.name: c.dtype for c in INSIDER_TRANSACTIONS.columns if c.name != "symbol"}


@dataclass
class _Company:
    """What was found of one company.

    Args:
        rows: in the columns of the table, but `symbol`.
        why: what could not be had, in one line.
        silent: how many questions in a row got no answer, at the end.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    why: str = ""
    silent: int = 0


class EdgarSource:
    """Insiders' transactions from EDGAR.

    Args:
        contact: who asks: `Company name name@example.com`.
        data: address of the lists of filings.
        archives: address of the filings.
        limits: see `LIMITS`.
        clock: UTC now.
    """

    name = "edgar"

    def __init__(
        self,
        contact: str,
        *,
        data: str = DATA,
        archives: str = ARCHIVES,
        limits: Limits = LIMITS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._data = data.rstrip("/")
        self._archives = archives.rstrip("/")
        self._clock = clock
        self.limits = limits
        self._session = PoliteSession(Politeness(self.name, limits))
        self._session.headers.update({"User-Agent": contact, "Accept-Encoding": "gzip, deflate"})

    def calls(
        self,
        kind: Kind,  # noqa: ARG002 - there is one
        instruments: Sequence[Instrument],
        start: date,
        end: date,
    ) -> int:
        """One for each company's list of filings, and about one for each filing."""
        companies = {i.cik for i in instruments if i.cik is not None}
        filings = -(-FILINGS_A_YEAR * (end - start).days // 365)
        return len(companies) * (1 + filings)

    def insiders(self, instruments: Sequence[Instrument], start: date, end: date) -> Fetched:
        """Transactions that were filed in [start, end), by the company's CIK.

        A company whose list, or one of whose filings, could not be had has failed; what was had of
        it comes along. Filings in which the company is the owner, of another one's shares, are not
        about it.
        """
        asked = tuple(i.id for i in instruments)
        failed = {
            i.id: f"universe.yaml gives no cik for {i.id}: add the SEC's number of the company"
            for i in instruments
            if i.cik is None
        }
        companies: dict[int, list[str]] = {}
        for instrument in instruments:
            if instrument.cik is not None:
                companies.setdefault(instrument.cik, []).append(instrument.id)
        frames = [INSIDER_TRANSACTIONS.empty()]
        silent = 0
        for cik, symbols in companies.items() if start <= self._clock().date() else ():
            if silent >= GIVE_UP:
                why = f"edgar: not asked, after {silent} questions in a row without an answer"
                failed.update(dict.fromkeys(symbols, f"{why}; the next run asks again"))
                continue
            found = self._company(cik, start, end, silent)
            silent = found.silent
            if found.why:
                failed.update(dict.fromkeys(symbols, found.why))
            rows = pl.DataFrame(found.rows, schema=_FRAME)
            frames += [rows.with_columns(symbol=pl.lit(symbol)) for symbol in symbols]
        return Fetched(
            pl.concat([INSIDER_TRANSACTIONS.conform(frame) for frame in frames]), failed, asked
        )

    def _company(self, cik: int, start: date, end: date, silent: int) -> _Company:
        found = _Company(silent=silent)
        try:
            filings = self._listed(cik, start, end).rows()
            found.silent = 0
        except SourceError as error:
            found.why, found.silent = str(error), silent + 1
            return found
        for accession, form in filings:
            if found.silent >= GIVE_UP:
                break
            try:
                found.rows += self._filing(cik, accession, form, start, end)
                found.silent = 0
            except SourceError as error:
                found.why = found.why or str(error)
                found.silent += 1
        return found

    # -- which filings there are --------------------------------------------------------------

    def _listed(self, cik: int, start: date, end: date) -> pl.DataFrame:
        """`accessionNumber`, `form` of the filings that may have become public in [start, end)."""
        place = f"{self._data}/submissions/"
        answer = self._session.json(f"{place}CIK{cik:010}.json")
        try:
            filings = answer["filings"]
            pages = [filings["recent"]]
            older = [
                page["name"]
                for page in filings.get("files") or ()
                if date.fromisoformat(page["filingFrom"]) < end
                and date.fromisoformat(page["filingTo"]) >= start - timedelta(days=1)
            ]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._no_list(cik) from None
        if not all(isinstance(name, str) and _PAGE.fullmatch(name) for name in older):
            raise self._no_list(cik)
        pages += [self._session.json(f"{place}{name}") for name in older]
        listed = pl.concat([self._page(page, cik) for page in pages]).unique(maintain_order=True)
        return self._within(listed, start, end).select("accessionNumber", "form")

    def _page(self, page: Mapping[str, Any], cik: int) -> pl.DataFrame:
        """The Forms 4 of one page, with when they were filed and accepted."""
        try:
            listed = pl.DataFrame(
                {name: page[name] for name in _LIST}, dict.fromkeys(_LIST, pl.String)
            )
            listed = listed.filter(pl.col("form").is_in(FORMS)).with_columns(
                filed=pl.col("filingDate").str.to_date("%Y-%m-%d").cast(pl.Datetime("us")),
                accepted=pl.col("acceptanceDateTime")
                .str.head(19)
                .str.to_datetime("%Y-%m-%dT%H:%M:%S", time_unit="us"),
            )
        except (KeyError, TypeError, pl.exceptions.PolarsError):
            raise self._no_list(cik) from None
        known = listed["accessionNumber"].str.contains(_ACCESSION).all()
        if not known or listed.null_count().sum_horizontal().sum():
            raise self._no_list(cik)
        return listed

    @staticmethod
    def _within(listed: pl.DataFrame, start: date, end: date) -> pl.DataFrame:
        """Those that may have become public in these days, whatever clock `accepted` is of."""
        opening = pl.col("filed") + timedelta(hours=10)  # 6:00 in New York is 10:00 or 11:00 UTC
        earliest = pl.max_horizontal("accepted", opening)
        latest = pl.max_horizontal(pl.col("accepted") + _OFFSET, opening + timedelta(hours=1))
        first, last = (datetime.combine(day, time()) for day in (start, end))
        return listed.filter(earliest < last, latest >= first)

    def _no_list(self, cik: int) -> SourceError:
        return SourceError(f"{self.name}: the list of filings of CIK {cik} cannot be read")

    # -- one filing ---------------------------------------------------------------------------

    def _filing(
        self, cik: int, accession: str, form: str, start: date, end: date
    ) -> list[dict[str, Any]]:
        """The rows of a filing; none if it became public on another day, or is not about the
        company.

        Raises:
            SourceError: there was no answer, or half of one.
        """
        folder = f"{self._archives}/Archives/edgar/data/{cik}/{accession.replace('-', '')}"
        response = self._session.get(f"{folder}/{accession}.txt")
        if response.status_code != 200:
            raise SourceError(f"{self.name}: filing {accession} answered {response.status_code}")
        found = submission(response.content)
        if found is None:
            raise SourceError(f"{self.name}: filing {accession} answered with something else")
        if not start <= found.available_at.date() < end:
            return []
        filed = {
            "accession": accession,
            "form": form,
            "available_at": found.available_at,
            "availability_basis": "assumed",
            "source": self.name,
        }
        try:
            read_form = read(found.document)
        except FilingError as error:
            if not found.document and found.available_at < FILED_AS_DATA_SINCE:
                return []
            return [{**filed, **_unreadable(found, error)}]
        if read_form.issuer != cik:
            return []
        return [{**filed, **line} for line in read_form.lines]


def _unreadable(found: Submission, error: FilingError) -> dict[str, Any]:
    """A row that the schema rejects, with the beginning of what could not be read."""
    text = found.document[:_SHOWN].decode("utf-8", "replace").replace("\x00", "\ufffd")
    return {
        "line": 0,
        "time": found.available_at,
        "owner": 0,
        "roles": [],
        "security": f"{error}: {text}",
        "derivative": False,
        "code": UNREADABLE,
        "acquired_disposed": "-",
    }
