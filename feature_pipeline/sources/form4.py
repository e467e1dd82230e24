"""A Form 4 as rows: what the SEC's submission file says, and nothing that it does not.

Bytes in, values out. Asking EDGAR for them is `edgar.py`'s, judging the rows the schema's.

A submission file is a header in SGML, then documents; of Form 4 the first one is XML (its elements:
"EDGAR Ownership XML Technical Specification"). Names of persons are not taken over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import defusedxml.ElementTree as DefusedTree

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

EASTERN = ZoneInfo("America/New_York")

OPENS = time(6)
"""When EDGAR begins to disseminate: what it took at night waits until then."""

MOST_BYTES = 1 << 20
"""Of the XML. Its tables have at most thirty lines each: a large one has 200 KB."""

_LONGEST_TITLE = 200
_ACCEPTED = re.compile(rb"<ACCEPTANCE-DATETIME>\s*(\d{14})")
_FILED = re.compile(rb"FILED AS OF DATE:\s*(\d{8})")
_XML = re.compile(rb"<XML>\s*(.*?)\s*</XML>", re.DOTALL)
_END = b"</SEC-DOCUMENT>"
_ROLES = {
    "isDirector": "director",
    "isOfficer": "officer",
    "isTenPercentOwner": "ten_percent_owner",
    "isOther": "other",
}
_YES = ("1", "true")


class FilingError(Exception):
    """The filing is no Form 4 that can be read; says why, in a few words."""


@dataclass(frozen=True)
class Submission:
    """A submission file.

    Args:
        available_at: when it became public, UTC: accepted, or EDGAR's next opening.
        document: the ownership XML; empty where there is none.
    """

    available_at: datetime
    document: bytes


@dataclass(frozen=True)
class Form4:
    """What an ownership document says.

    Args:
        issuer: CIK of the company.
        lines: its transactions, in their order; keys are columns of `INSIDER_TRANSACTIONS`.
    """

    issuer: int
    lines: list[dict[str, Any]]


def submission(body: bytes) -> Submission | None:
    """A submission file taken apart; None where the bytes are not the whole of one.

    The header's clock is New York's.
    """
    accepted = _ACCEPTED.search(body)
    if accepted is None or _END not in body[-1000:]:
        return None
    try:
        moment = _eastern(datetime.strptime(accepted[1].decode(), "%Y%m%d%H%M%S"))  # noqa: DTZ007
        filed = _FILED.search(body)
        if filed is not None:
            opening = datetime.combine(date.fromisoformat(filed[1].decode()), OPENS)
            moment = max(moment, _eastern(opening))
    except ValueError:
        return None
    documents = (found[1] for found in _XML.finditer(body))
    return Submission(moment, next((d for d in documents if b"<ownershipDocument" in d), b""))


def _eastern(local: datetime) -> datetime:
    """New York's clock as UTC; of an hour that comes twice the second."""
    return local.replace(tzinfo=EASTERN, fold=1).astimezone(UTC)


def read(document: bytes) -> Form4:
    """The transactions of an ownership document; holdings without one are left out.

    Raises:
        FilingError: it is none, or larger than any.
    """
    if not document:
        raise FilingError("it holds no ownership document")
    if len(document) > MOST_BYTES:
        raise FilingError(f"its ownership document has more than {MOST_BYTES} bytes")
    try:
        root = DefusedTree.fromstring(document, forbid_dtd=True)
    except (DefusedTree.ParseError, ValueError, LookupError) as error:
        raise FilingError(f"its XML cannot be read ({type(error).__name__})") from None
    issuer = _integer(_text(root, "issuer/issuerCik"))
    if root.tag != "ownershipDocument" or issuer is None:
        raise FilingError("it names no issuer")
    reported = {
        "owner": _integer(_text(root, "reportingOwner/reportingOwnerId/rptOwnerCik")),
        "roles": _roles(root),
    }
    lines = [{**line, **reported, "line": n} for n, line in enumerate(_lines(root), 1)]
    return Form4(issuer, lines)


def _roles(root: Element) -> list[str]:
    """What the owners are to the company, of joint filers all of it."""
    held = {
        role
        for relation in root.iterfind("reportingOwner/reportingOwnerRelationship")
        for name, role in _ROLES.items()
        if (_text(relation, name) or "").lower() in _YES
    }
    return [role for role in _ROLES.values() if role in held]


def _lines(root: Element) -> Iterator[dict[str, Any]]:
    for path, derivative in (
        ("nonDerivativeTable/nonDerivativeTransaction", False),
        ("derivativeTable/derivativeTransaction", True),
    ):
        for entry in root.iterfind(path):
            amounts = "transactionAmounts"
            shares = _number(_value(entry, f"{amounts}/transactionShares"))
            price = _number(_value(entry, f"{amounts}/transactionPricePerShare"))
            value = _number(_value(entry, f"{amounts}/transactionTotalValue"))
            if value is None and shares is not None and price is not None:
                value = shares * price
            yield {
                "time": _date(_value(entry, "transactionDate")),
                "security": (_value(entry, "securityTitle") or "")[:_LONGEST_TITLE],
                "derivative": derivative,
                "code": _text(entry, "transactionCoding/transactionCode"),
                "acquired_disposed": _value(entry, f"{amounts}/transactionAcquiredDisposedCode"),
                "shares": shares,
                "price": price,  # where a footnote tells it, nothing here does
                "value": value,
                "shares_after": _number(
                    _value(entry, "postTransactionAmounts/sharesOwnedFollowingTransaction")
                ),
            }


def _text(element: Element, path: str) -> str | None:
    text = element.findtext(path)
    return text.strip() or None if text else None


def _value(element: Element, path: str) -> str | None:
    return _text(element, f"{path}/value")


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= 10 else None


def _number(text: str | None) -> float | None:
    """A number; NaN, which the schema rejects, where something else stands."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _date(text: str | None) -> datetime | None:
    """00:00 UTC of a date, which may have a zone behind it; None, which the schema rejects, where
    there is none."""
    try:
        day = date.fromisoformat((text or "")[:10])
    except ValueError:
        return None
    return datetime.combine(day, time(), UTC)
