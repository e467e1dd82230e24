"""EDGAR's client against a server that speaks like EDGAR: rows, moments, manners, every fault."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime

import polars as pl
import pytest

from feature_pipeline.schemas import INSIDER_TRANSACTIONS as TABLE
from feature_pipeline.schemas import Fetched
from feature_pipeline.sources import InsiderSource, calls_of
from feature_pipeline.sources.edgar import EdgarSource
from feature_pipeline.sources.http import Limits
from feature_pipeline.storage import validate
from feature_pipeline.universe import Instrument
from feature_pipeline_tests.providers import server as faults
from feature_pipeline_tests.providers.edgar import Edgar, Filing, Line
from feature_pipeline_tests.providers.server import Answer

CONTACT = "Example Research jane@example.com"
QUICK = Limits(requests=500, seconds=1.0, attempts=2, wait_s=0.4, deadline_s=3.0, max_bytes=1 << 20)
START, END = date(2024, 3, 1), date(2024, 4, 1)
NOW = datetime(2024, 6, 1, tzinfo=UTC)
ACME, BOLT = 1001, 1002
ONE, TWO, THREE = "0000001001-24-000001", "0000001001-24-000002", "0000001001-24-000003"


def instrument(name: str, cik: int | None) -> Instrument:
    return Instrument.model_validate(
        {
            "id": name,
            "asset_class": "equity",
            "calendar": "XNYS",
            "sector": "tech",
            "source": {"bars": "sample", "insiders": "edgar"},
            "symbols": [{"symbol": name, "from": date(2000, 1, 3)}],
            "membership": [{"from": date(2000, 1, 3)}],
            "cik": cik,
        }
    )


ACME_INC, BOLT_INC = instrument("ACME", ACME), instrument("BOLT", BOLT)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.fixture
def edgar(provider_server) -> Edgar:
    service = Edgar()
    provider_server.routes["/"] = service
    return service


@pytest.fixture
def source(provider_server, edgar) -> Callable[..., EdgarSource]:
    def make(limits: Limits = QUICK, contact: str = CONTACT) -> EdgarSource:
        url = provider_server.url
        return EdgarSource(contact, data=url, archives=url, limits=limits, clock=lambda: NOW)

    return make


@pytest.fixture
def fetched(source) -> Callable[..., Fetched]:
    def fetch(
        instruments: Sequence[Instrument] = (ACME_INC,), start: date = START, end: date = END
    ) -> Fetched:
        return source().insiders(instruments, start, end)

    return fetch


def checked(found: Fetched, start: date = START, end: date = END) -> validate.Checked:
    return validate.check(
        TABLE, found.frame, now=NOW, window=(start, end), symbols=["ACME", "BOLT"]
    )


# -- what is in a filing --------------------------------------------------------------------------


def test_a_filing_is_a_row_per_transaction(edgar, fetched):
    lines = (
        Line("2024-03-04", "P", "100", "10.5", after="600"),
        Line("2024-03-05-05:00", "S", "30", None, "D", security="Class A & B"),
        Line("2024-03-04", "M", "5", "2", derivative=True),
        Line("2024-03-04", "J", None, None, derivative=True, total="900"),
    )
    owners = ((7, ("isOfficer", "isTenPercentOwner")), (8, ("isDirector",)))
    edgar.companies = {ACME: [Filing(ONE, at("2024-03-06T18:08:27"), lines, owners=owners)]}
    found = fetched()
    assert (found.failed, found.asked) == ({}, ("ACME",))
    assert tuple(found.frame.columns) == TABLE.names
    assert checked(found).quarantined.is_empty()
    moment = datetime(2024, 3, 6, 23, 8, 27, tzinfo=UTC)
    for name, values in {
        "accession": [ONE] * 4,
        "line": [1, 2, 3, 4],
        "symbol": ["ACME"] * 4,
        "time": [datetime(2024, 3, day, tzinfo=UTC) for day in (4, 5, 4, 4)],
        "available_at": [moment] * 4,
        "availability_basis": ["assumed"] * 4,
        "form": ["4"] * 4,
        "owner": [7] * 4,
        "roles": [["director", "officer", "ten_percent_owner"]] * 4,
        "security": ["Common Stock", "Class A & B", "Common Stock", "Common Stock"],
        "derivative": [False, False, True, True],
        "code": ["P", "S", "M", "J"],
        "acquired_disposed": ["A", "D", "A", "A"],
        "shares": [100.0, 30.0, 5.0, None],
        "price": [10.5, None, 2.0, None],
        "value": [1050.0, None, 10.0, 900.0],
        "shares_after": [600.0, 1000.0, 1000.0, 1000.0],
        "source": ["edgar"] * 4,
    }.items():
        assert found.frame[name].to_list() == values, name
    assert "DOE" not in found.frame.write_json()


def test_an_amendment_is_a_filing_of_its_own(edgar, fetched):
    edgar.companies = {
        ACME: [
            Filing(ONE, at("2024-03-06T10:00:00")),
            Filing(TWO, at("2024-03-20T10:00:00"), (Line(shares="90"),), form="4/A"),
            Filing(THREE, at("2024-03-21T10:00:00"), form="8-K"),
        ]
    }
    frame = fetched().frame.sort("accession")
    assert frame["form"].to_list() == ["4", "4/A"]
    assert frame["shares"].to_list() == [100.0, 90.0]


def test_what_a_company_files_as_an_owner_is_not_about_it(edgar, fetched):
    edgar.companies = {
        ACME: [
            Filing(ONE, at("2024-03-06T10:00:00"), issuer=BOLT),
            Filing(TWO, at("2024-03-07T10:00:00")),
        ]
    }
    assert fetched().frame["accession"].to_list() == [TWO]


def test_two_classes_of_shares_have_the_same_filings_asked_for_once(
    edgar, fetched, provider_server
):
    edgar.companies = {ACME: [Filing(ONE, at("2024-03-06T10:00:00"))]}
    found = fetched([ACME_INC, instrument("ACMEB", ACME)])
    assert found.frame["symbol"].to_list() == ["ACME", "ACMEB"]
    assert len(provider_server.asked) == 2


# -- when it became known -------------------------------------------------------------------------

MOMENTS = {
    "winter": ("2024-02-06T16:30:00", None, "2024-02-06T21:30:00"),
    "summer": ("2024-07-08T16:30:00", None, "2024-07-08T20:30:00"),
    "the next UTC day": ("2024-02-06T19:00:01", None, "2024-02-07T00:00:01"),
    "taken at night": ("2024-02-02T22:10:00", date(2024, 2, 5), "2024-02-05T11:00:00"),
    "in the hour that comes twice": ("2024-11-03T01:30:00", date(2024, 11, 3), "2024-11-03T11:00"),
}


@pytest.mark.parametrize("local", [True, False], ids=["list in New York", "list in UTC"])
@pytest.mark.parametrize(("accepted", "filed", "known"), MOMENTS.values(), ids=MOMENTS)
def test_the_header_says_when_and_the_day_is_utc(edgar, source, accepted, filed, known, local):
    """Whatever clock the list is on, each filing is found on its day and on no other."""
    moment = at(known).replace(tzinfo=UTC)
    line = Line(day=accepted[:10])
    edgar.companies = {ACME: [Filing(ONE, at(accepted), (line,), filed=filed)]}
    edgar.local = frozenset({ACME} if local else ())
    day = moment.date()
    source = source()
    source._clock = lambda: datetime(2025, 1, 1, tzinfo=UTC)
    days = pl.date_range(day.replace(day=1), day.replace(day=28), eager=True)
    held = {
        one: source.insiders([ACME_INC], one, one.replace(day=one.day + 1)).frame for one in days
    }
    assert [one for one, frame in held.items() if frame.height] == [day]
    assert held[day]["available_at"].to_list() == [moment]


def test_older_pages_are_asked_for_where_they_reach(edgar, fetched, provider_server):
    edgar.companies = {
        ACME: [
            Filing(
                f"0000001001-{year}-000001",
                at(f"20{year}-03-06T10:00:00"),
                (Line(f"20{year}-03-05"),),
            )
            for year in range(10, 25)
        ]
    }
    edgar.recent = 3
    assert fetched().frame.height == 1
    assert sum("-submissions-" in path for path in provider_server.paths()) == 0
    old = fetched(start=date(2015, 1, 1), end=date(2016, 1, 1)).frame
    assert old["accession"].to_list() == ["0000001001-15-000001"]
    assert sum("-submissions-" in path for path in provider_server.paths()) == 1
    every = fetched(start=date(2010, 1, 1), end=END).frame
    assert every.height == 15
    assert every["accession"].is_unique().all()


def test_nothing_is_asked_of_days_to_come(fetched, provider_server):
    found = fetched(start=date(2024, 6, 2), end=date(2024, 6, 9))
    assert (found.frame.height, found.asked, provider_server.asked) == (0, ("ACME",), [])


def test_forms_of_before_they_were_data_are_left_out(edgar, fetched):
    edgar.companies = {
        ACME: [Filing(ONE, at("2003-06-20T10:00:00"), document=""),
               Filing(TWO, at("2003-07-02T10:00:00"), document="")]
    }  # fmt: skip
    found = fetched(start=date(2003, 6, 1), end=date(2003, 8, 1))
    assert found.failed == {}
    assert found.frame["accession"].to_list() == [TWO], "after that it is one that cannot be read"
    assert found.frame["code"].to_list() == ["unreadable"]


# -- manners --------------------------------------------------------------------------------------


def test_it_says_who_asks_takes_gzip_and_never_asks_faster_than_it_may(
    edgar, source, provider_server, monkeypatch
):
    """Ten a second is what the SEC allows; seen from the server, with the limits of production."""
    count = 21
    edgar.companies = {
        ACME: [
            Filing(f"0000001001-24-{n:06}", at("2024-03-06T10:00:00"), (Line(),))
            for n in range(count)
        ]
    }
    moments: list[float] = []
    answer = provider_server._answer

    def timed(request):
        moments.append(time.monotonic())
        return answer(request)

    monkeypatch.setattr(provider_server, "_answer", timed)
    from feature_pipeline.sources.edgar import LIMITS

    assert source(LIMITS).insiders([ACME_INC], START, END).frame.height == count
    assert len(moments) == count + 1
    in_a_second = max(sum(0 <= later - first < 1 for later in moments) for first in moments)
    assert in_a_second <= 10
    for request in provider_server.asked:
        assert request.headers["user-agent"] == CONTACT
        assert "gzip" in request.headers["accept-encoding"]
        assert request.method == "GET"
        assert not request.query


def test_an_estimate_asks_nothing(source, provider_server):
    found = source()
    assert isinstance(found, InsiderSource)
    year = date(2023, 1, 1), date(2024, 1, 1)
    assert calls_of(found, "insiders", [ACME_INC, BOLT_INC], *year) == 2 * 61
    assert provider_server.asked == []


# -- faults ---------------------------------------------------------------------------------------


@pytest.fixture
def two(edgar) -> Edgar:
    """Two companies; the first has two filings."""
    edgar.companies = {
        ACME: [Filing(ONE, at("2024-03-06T10:00:00")), Filing(TWO, at("2024-03-07T10:00:00"))],
        BOLT: [Filing(THREE, at("2024-03-08T10:00:00"))],
    }
    return edgar


ONCE = {
    "too many": faults.too_many("0.05"),
    "broken": faults.broken(),
    "hung up": faults.hung_up(),
    "bad gzip": faults.bad_gzip(),
    "silent": faults.silent(2),
}


@pytest.mark.parametrize("fault", ONCE.values(), ids=ONCE)
@pytest.mark.parametrize("below", ["/submissions", "/Archives"])
def test_a_fault_that_passes_costs_nothing(two, fetched, provider_server, fault, below):
    provider_server.fail(fault, below=below)
    found = fetched([ACME_INC, BOLT_INC])
    assert found.failed == {}
    assert found.frame["accession"].to_list() == [TWO, ONE, THREE]


STAYING = {
    **ONCE,
    "html": faults.html(),
    "truncated": faults.truncated(),
    "no list": Answer(200, {"filings": {"recent": {"form": ["4"]}}}),
    "lists of unequal length": Answer(
        200,
        {
            "filings": {
                "recent": {
                    "form": ["4"],
                    "accessionNumber": [],
                    "filingDate": ["x"],
                    "acceptanceDateTime": ["y"],
                }
            }
        },
    ),
    "a page elsewhere": Answer(
        200,
        {
            "filings": {
                "recent": {},
                "files": [
                    {"name": "../../etc", "filingFrom": "2024-01-01", "filingTo": "2024-12-31"}
                ],
            }
        },
    ),
    "a number that is a path": Answer(
        200,
        {
            "filings": {
                "recent": {
                    "accessionNumber": ["../../../x"],
                    "form": ["4"],
                    "filingDate": ["2024-03-06"],
                    "acceptanceDateTime": ["2024-03-06T10:00:00.000Z"],
                }
            }
        },
    ),
    "not there": Answer(404, b"no"),
    "forbidden": Answer(403, b"no"),
    "dripping": faults.dripping(),
    "too large": Answer(200, b" " * ((1 << 20) + 1)),
}


@pytest.mark.parametrize("fault", STAYING.values(), ids=STAYING)
def test_a_list_that_cannot_be_had_costs_its_company(two, fetched, provider_server, fault):
    provider_server.fail(fault, below=f"/submissions/CIK{ACME:010}", times=2)
    found = fetched([ACME_INC, BOLT_INC])
    assert found.failed.keys() == {"ACME"}
    assert found.failed["ACME"].startswith("edgar: ")
    assert "\n" not in found.failed["ACME"]
    assert CONTACT not in found.failed["ACME"]
    assert found.frame["symbol"].to_list() == ["BOLT"]


FILED = {
    name: fault
    for name, fault in STAYING.items()
    if name in {*ONCE, "html", "truncated", "not there", "dripping", "too large"}
}


@pytest.mark.parametrize("fault", FILED.values(), ids=FILED)
def test_a_filing_that_cannot_be_had_is_named_and_costs_no_other_one(
    two, fetched, provider_server, fault
):
    folder = f"/Archives/edgar/data/{ACME}/{TWO.replace('-', '')}"
    provider_server.fail(fault, below=folder, times=2)
    found = fetched([ACME_INC, BOLT_INC])
    assert found.failed.keys() == {"ACME"}
    assert TWO.replace("-", "") in found.failed["ACME"].replace("-", "")
    assert found.frame["accession"].to_list() == [ONE, THREE]


def test_half_of_a_filing_is_no_filing(two, fetched):
    from feature_pipeline_tests.providers.edgar import submission

    whole = submission(two.companies[ACME][1], ACME)
    two.companies = {ACME: [Filing(TWO, at("2024-03-07T10:00:00"), body=whole[: len(whole) // 2])]}
    found = fetched()
    assert found.failed == {"ACME": f"edgar: filing {TWO} answered with something else"}
    assert found.frame.is_empty()


def test_a_provider_that_is_down_is_not_asked_for_ever(two, fetched, provider_server):
    provider_server.routes["/"] = lambda _: faults.broken()
    many = [instrument(f"C{n}", 2000 + n) for n in range(30)]
    found = fetched(many)
    assert found.failed.keys() == {f"C{n}" for n in range(30)}
    assert "not asked" in found.failed["C29"]
    assert len(provider_server.asked) == 3 * QUICK.attempts


def test_it_leaves_edgar_alone_for_as_long_as_it_is_told(two, fetched, provider_server):
    provider_server.fail(faults.too_many("600"), below="/submissions")
    found = fetched([ACME_INC, BOLT_INC])
    assert found.failed.keys() == {"ACME", "BOLT"}
    assert "left alone for 600 s" in found.failed["ACME"]
    assert len(provider_server.asked) == 1


def test_one_whose_contact_is_refused_is_told(two, source):
    found = source(contact="somebody").insiders([ACME_INC], START, END)
    assert "answered 403" in found.failed["ACME"]


def test_no_cik_costs_that_instrument(two, fetched):
    found = fetched([instrument("NONE", None), BOLT_INC])
    assert found.failed.keys() == {"NONE"}
    assert "cik" in found.failed["NONE"]
    assert found.frame["symbol"].to_list() == ["BOLT"]


def test_the_contact_is_in_nothing_that_is_said(two, source, provider_server, caplog):
    caplog.set_level(logging.DEBUG)
    provider_server.fail(faults.broken(), times=50)
    made = source()
    found = made.insiders([ACME_INC, BOLT_INC], START, END)
    assert "jane@example.com" not in caplog.text + repr(made) + repr(found.failed)


# -- untrusted documents --------------------------------------------------------------------------

BILLION = (
    '<?xml version="1.0"?><!DOCTYPE ownershipDocument [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1 if n else str()};" * 10}">' for n in range(9))
    + "]><ownershipDocument>&a8;</ownershipDocument>"
)
UNREADABLE = {
    "no document": "",
    "cut off": "<ownershipDocument><issuer>",
    "other things": "<ownershipDocument>1 < 2</ownershipDocument>",
    "no issuer": "<ownershipDocument></ownershipDocument>",
    "billion laughs": BILLION,
    "a file of ours": '<!DOCTYPE ownershipDocument [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<ownershipDocument><issuer><issuerCik>&x;</issuerCik></issuer></ownershipDocument>",
    "an encoding unknown": '<?xml version="1.0" encoding="klingon"?><ownershipDocument/>',
    "a NUL": "<ownershipDocument>\x00</ownershipDocument>",
}


@pytest.mark.parametrize("document", UNREADABLE.values(), ids=UNREADABLE)
def test_a_filing_that_cannot_be_read_is_kept_with_its_reason(two, fetched, document):
    whole = two.companies[ACME][0]
    two.companies = {ACME: [whole, Filing(TWO, at("2024-03-07T10:00:00"), document=document)]}
    found = fetched()
    result = checked(found)
    assert found.failed == {}
    assert result.good["accession"].to_list() == [ONE]
    assert result.quarantined["reason"].to_list() == ["the filing cannot be read as a Form 4"]
    assert result.quarantined["symbol"].to_list() == ["ACME"]
    payload = result.quarantined["payload"][0]
    assert TWO in payload
    assert len(payload) < 5000
    assert "root:" not in payload


@pytest.mark.parametrize(
    "document",
    [
        "<ownershipDocument>" + "<a>" * 60_000 + "</a>" * 60_000 + "</ownershipDocument>",
        "<ownershipDocument><issuer>" + "x" * (2 << 20) + "</issuer></ownershipDocument>",
    ],
    ids=["deep", "large"],
)
def test_deep_and_large_documents_are_bounded(edgar, source, document):
    edgar.companies = {ACME: [Filing(ONE, at("2024-03-06T10:00:00"), document=document)]}
    limits = Limits(requests=500, seconds=1.0, attempts=1, wait_s=5, max_bytes=8 << 20)
    before = time.process_time()
    found = source(limits).insiders([ACME_INC], START, END)
    assert time.process_time() - before < 2
    assert found.frame["code"].to_list() == ["unreadable"]


LINES = {
    "NaN": (Line(price="NaN"), "price, value or shares_after is not finite or negative"),
    "inf": (Line(shares="inf"), "shares are not finite or not positive"),
    "no number": (Line(price="see note"), "price, value or shares_after is not finite or negative"),
    "negative": (Line(shares="-5"), "shares are not finite or not positive"),
    "none": (Line(shares="0"), "shares are not finite or not positive"),
    "missing": (Line(shares=None), "shares are missing"),
    "a negative price": (
        Line(price="-1"), "price, value or shares_after is not finite or negative"
    ),
    "a total for a price": (Line(shares="1e7", price="1e6"), "value is more than 10^12 USD"),
    "no code": (Line(code=None), "code is missing"),
    "another code": (Line(code="Q"), "code is none of Form 4"),
    "no side": (Line(side=None), "acquired_disposed is missing"),
    "another side": (Line(side="X"), "acquired_disposed is neither A nor D"),
    "no date": (Line(day="2024-02-30"), "time is missing"),
    "later than its filing": (Line(day="2024-04-04"), "it was filed before it was made"),
    "in our future": (Line(day="2044-03-04"), "it was filed before it was made"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "reason"), LINES.values(), ids=LINES)
def test_a_line_that_cannot_be_right_costs_no_other_one(edgar, fetched, line, reason):
    lines = (Line(), line, Line(security="Class B"))
    edgar.companies = {ACME: [Filing(ONE, at("2024-03-06T10:00:00"), lines)]}
    result = checked(fetched())
    assert result.good["line"].to_list() == [1, 3]
    assert result.quarantined["reason"].to_list() == [reason]


def test_text_is_stored_as_it_is_and_not_without_end(edgar, fetched):
    title = "Común \u202e\U0001f680 <b>'; DROP TABLE insider_transactions;--" + "x" * 1000
    edgar.companies = {ACME: [Filing(ONE, at("2024-03-06T10:00:00"), (Line(security=title),))]}
    found = checked(fetched())
    assert found.quarantined.is_empty()
    assert found.good["security"].to_list() == [title[:200]]
