"""EDGAR: lists of filings, and submission files of Forms 4.

`Edgar` answers from plain data: per company its filings, each with the moment on New York's clock
at which it was accepted. The list says that moment as EDGAR does, in UTC or, for some companies, on
New York's clock, with a Z behind it either way.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from xml.sax.saxutils import escape
from zoneinfo import ZoneInfo

from feature_pipeline_tests.providers.server import Answer, Request

NEW_YORK = ZoneInfo("America/New_York")


@dataclass(frozen=True)
class Line:
    """A transaction; texts stand in the document as they are."""

    day: str = "2024-03-04"
    code: str | None = "P"
    shares: str | None = "100"
    price: str | None = "10.5"
    side: str | None = "A"
    after: str = "1000"
    security: str = "Common Stock"
    derivative: bool = False
    total: str | None = None


@dataclass(frozen=True)
class Filing:
    """A filing.

    Args:
        accession: its number.
        accepted: on New York's clock.
        lines: its transactions.
        form: 4 or 4/A, or another one.
        filed: the date of the filing; the day of `accepted` unless given.
        issuer: CIK of the company; that of the list it stands in unless given.
        owners: CIK and roles of who reports.
        document: the XML, instead of one made of the above; empty - there is none.
        body: the whole submission file, instead.
    """

    accession: str
    accepted: datetime
    lines: Sequence[Line] = (Line(),)
    form: str = "4"
    filed: date | None = None
    issuer: int | None = None
    owners: Sequence[tuple[int, Sequence[str]]] = ((99, ("isOfficer",)),)
    document: str | None = None
    body: bytes | None = None

    @property
    def filing_date(self) -> date:
        return self.filed or self.accepted.date()


@dataclass
class Edgar:
    """The service: `server.routes["/"] = Edgar({320193: [...]})`.

    Args:
        companies: CIK -> its filings; may change between questions.
        local: the companies whose list is on New York's clock.
        recent: how many filings the list holds itself; the others are on pages of as many.
        contact: who may ask; others get what the SEC answers to a client that does not say who it
            is.
    """

    companies: Mapping[int, Sequence[Filing]] = field(default_factory=dict)
    local: frozenset[int] = frozenset()
    recent: int = 1000
    contact: str = "Example Research jane@example.com"

    def __call__(self, request: Request) -> Answer:
        if request.headers.get("user-agent") != self.contact:
            return Answer(403, b"<html>Your Request Originates from an Undeclared Automated Tool")
        listed = re.fullmatch(
            r"/submissions/CIK(\d{10})(?:-submissions-(\d{3}))?\.json", request.path
        )
        if listed:
            return self._list(int(listed[1]), int(listed[2] or 0), request)
        filed = re.fullmatch(r"/Archives/edgar/data/(\d+)/(\d{18})/([\d-]{20})\.txt", request.path)
        if filed and filed[3].replace("-", "") == filed[2]:
            for one in self.companies.get(int(filed[1]), ()):
                if one.accession == filed[3]:
                    return _packed(submission(one, int(filed[1])), request)
        return Answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _list(self, cik: int, page: int, request: Request) -> Answer:
        if cik not in self.companies:
            return Answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        filings = sorted(self.companies[cik], key=lambda f: f.accepted, reverse=True)
        pages = [filings[n : n + self.recent] for n in range(0, len(filings), self.recent)] or [[]]
        if page >= len(pages):
            return Answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        columns = self._columns(pages[page], local=cik in self.local)
        files = [
            {
                "name": f"CIK{cik:010}-submissions-{number:03}.json",
                "filingCount": len(held),
                "filingFrom": min(f.filing_date for f in held).isoformat(),
                "filingTo": max(f.filing_date for f in held).isoformat(),
            }
            for number, held in enumerate(pages[1:], 1)
        ]
        answer = (
            columns if page else {"cik": str(cik), "filings": {"recent": columns, "files": files}}
        )
        return _packed(json.dumps(answer).encode(), request)

    @staticmethod
    def _columns(filings: Sequence[Filing], *, local: bool) -> dict[str, list[str]]:
        def said(moment: datetime) -> str:
            utc = moment.replace(tzinfo=NEW_YORK).astimezone(UTC)
            return f"{moment if local else utc:%Y-%m-%dT%H:%M:%S.000Z}"

        return {
            "accessionNumber": [f.accession for f in filings],
            "filingDate": [f.filing_date.isoformat() for f in filings],
            "acceptanceDateTime": [said(f.accepted) for f in filings],
            "form": [f.form for f in filings],
            "primaryDocument": ["xslF345X05/wk-form4.xml" for _ in filings],
        }


def _packed(body: bytes, request: Request) -> Answer:
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Answer(200, body)
    return Answer(200, gzip.compress(body), {"Content-Encoding": "gzip"})


def submission(filing: Filing, cik: int) -> bytes:
    """The complete submission text file: header, ownership document, an attachment."""
    if filing.body is not None:
        return filing.body
    document = filing.document
    if document is None:
        document = ownership(filing, cik)
    text = f"<XML>\n{document}\n</XML>" if document else "<PRE>a form of old</PRE>"
    return f"""<SEC-DOCUMENT>{filing.accession}.txt : {filing.filing_date:%Y%m%d}
<SEC-HEADER>{filing.accession}.hdr.sgml : {filing.filing_date:%Y%m%d}
<ACCEPTANCE-DATETIME>{filing.accepted:%Y%m%d%H%M%S}
ACCESSION NUMBER:\t\t{filing.accession}
CONFORMED SUBMISSION TYPE:\t{filing.form}
FILED AS OF DATE:\t\t{filing.filing_date:%Y%m%d}
</SEC-HEADER>
<DOCUMENT>
<TYPE>{filing.form}
<SEQUENCE>1
<FILENAME>wk-form4.xml
<TEXT>
{text}
</TEXT>
</DOCUMENT>
<DOCUMENT>
<TYPE>EX-24
<TEXT>a power of attorney</TEXT>
</DOCUMENT>
</SEC-DOCUMENT>
""".encode()


def ownership(filing: Filing, cik: int) -> str:
    """The ownership document."""
    owners = "".join(
        f"<reportingOwner><reportingOwnerId><rptOwnerCik>{number:010}</rptOwnerCik>"
        "<rptOwnerName>DOE JANE</rptOwnerName></reportingOwnerId><reportingOwnerRelationship>"
        f"{''.join(f'<{role}>1</{role}>' for role in roles)}<isOther>0</isOther>"
        "</reportingOwnerRelationship></reportingOwner>"
        for number, roles in filing.owners
    )
    tables = {
        kind: "".join(_line(line, kind) for line in filing.lines if line.derivative == derivative)
        for kind, derivative in (("nonDerivative", False), ("derivative", True))
    }
    return (
        '<?xml version="1.0"?>\n<ownershipDocument><schemaVersion>X0508</schemaVersion>'
        f"<documentType>{filing.form}</documentType><issuer><issuerCik>"
        f"{filing.issuer or cik:010}</issuerCik><issuerName>A &amp; B</issuerName></issuer>{owners}"
        f"<nonDerivativeTable>{tables['nonDerivative']}<nonDerivativeHolding><securityTitle><value>"
        "Class B</value></securityTitle></nonDerivativeHolding></nonDerivativeTable>"
        f"<derivativeTable>{tables['derivative']}</derivativeTable></ownershipDocument>"
    )


def _line(line: Line, kind: str) -> str:
    def value(name: str, text: str | None) -> str:
        said = '<footnoteId id="F1"/>' if text is None else f"<value>{escape(text)}</value>"
        return f"<{name}>{said}</{name}>"

    code = "" if line.code is None else f"<transactionCode>{line.code}</transactionCode>"
    total = "" if line.total is None else value("transactionTotalValue", line.total)
    shares = "" if line.shares is None else value("transactionShares", line.shares)
    return (
        f"<{kind}Transaction>{value('securityTitle', line.security)}"
        f"{value('transactionDate', line.day)}<transactionCoding>{code}</transactionCoding>"
        f"<transactionAmounts>{shares}{value('transactionPricePerShare', line.price)}{total}"
        f"{value('transactionAcquiredDisposedCode', line.side)}</transactionAmounts>"
        "<postTransactionAmounts>"
        f"{value('sharesOwnedFollowingTransaction', line.after)}</postTransactionAmounts>"
        f"</{kind}Transaction>"
    )
