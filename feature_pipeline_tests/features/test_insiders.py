"""Insiders' net buying against its definition in a plain loop, and what it must never do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_pipeline.features.insiders import net_buying
from feature_pipeline.schemas import UTC_TIME
from feature_pipeline_tests.features.market import (
    BENCHMARK,
    UNWATCHED,
    chain,
    make_market,
    uncollected,
)

WINDOW = timedelta(days=90)
FEATURE = "insider_net_buying_90d"
BEGIN = datetime(2020, 1, 1, tzinfo=UTC)
SCHEMA = {
    "accession": pl.String,
    "symbol": pl.String,
    "time": UTC_TIME,
    "available_at": UTC_TIME,
    "owner": pl.Int64,
    "form": pl.String,
    "security": pl.String,
    "derivative": pl.Boolean,
    "code": pl.String,
    "value": pl.Float64,
    "shares_after": pl.Float64,
}


def row(number: int, made: datetime, filed: datetime, **other) -> dict:
    return {
        "accession": f"a{number}",
        "symbol": "A",
        "time": made,
        "available_at": filed,
        "owner": 1,
        "form": "4",
        "security": "Common",
        "derivative": False,
        "code": "P",
        "value": 100.0,
        "shares_after": None,
        **other,
    }


def frame(*rows: dict) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=SCHEMA)


def moments(*times: datetime, symbol: str = "A") -> pl.DataFrame:
    return pl.DataFrame(
        {"symbol": [symbol] * len(times), "available_at": list(times)},
        schema={"symbol": pl.String, "available_at": UTC_TIME},
    )


def days(number: float) -> datetime:
    return BEGIN + timedelta(days=number)


def values(times: pl.DataFrame, transactions: pl.DataFrame) -> list[float | None]:
    return net_buying(times, transactions, WINDOW, ["A", "B"]).to_list()


# -- the definition -------------------------------------------------------------------------------


def by_definition(transactions: list[dict], symbol: str, at: datetime) -> float:
    known = [r for r in transactions if r["symbol"] == symbol and r["available_at"] <= at]
    known.sort(key=lambda r: (r["available_at"], r["accession"]))
    line = ("owner", "time", "security", "code")
    same = ("time", "security", "code", "derivative", "value", "shares_after")
    first: dict[tuple, int] = {}
    bought = sold = 0.0
    for one in known:
        amended = any(
            later["form"] == "4/A"
            and not later["derivative"]
            and later["available_at"] > one["available_at"]
            and [later[n] for n in line] == [one[n] for n in line]
            for later in known
        )
        teller = first.setdefault(tuple(one[n] for n in same), one["owner"])
        told = one["shares_after"] is not None and one["owner"] != teller
        counts = one["time"] > at - WINDOW and not (one["derivative"] or amended or told)
        if counts and one["value"] is not None:
            bought += one["value"] * (one["code"] == "P")
            sold += one["value"] * (one["code"] == "S")
    return (bought - sold) / (bought + sold) if bought + sold else 0.0


TRANSACTIONS = st.lists(
    st.builds(
        lambda made, delay, symbol, owner, form, security, derivative, code, cents, left: {
            "symbol": symbol,
            "time": days(made),
            "available_at": days(made + delay / 4),
            "owner": owner,
            "form": form,
            "security": security,
            "derivative": derivative,
            "code": code,
            "value": None if cents is None else cents / 100,
            "shares_after": left,
        },
        made=st.one_of(st.integers(0, 130), st.just(50)),
        delay=st.integers(0, 400),
        symbol=st.sampled_from("AB"),
        owner=st.integers(1, 2),
        form=st.sampled_from(["4", "4", "4/A"]),
        security=st.sampled_from(["Common", "Class B"]),
        derivative=st.sampled_from([False, False, True]),
        code=st.sampled_from("PPSSMA"),
        cents=st.one_of(st.none(), st.sampled_from([100, 200]), st.integers(0, 10**13)),
        left=st.sampled_from([None, 0.0, 0.0, 7.0]),
    ),
    max_size=25,
)
TIMES = st.lists(st.integers(0, 4 * 240), min_size=1, max_size=12, unique=True)


@settings(max_examples=150)
@given(made=TRANSACTIONS, quarters=TIMES, seed=st.integers(0, 99))
def test_it_is_what_its_definition_says(made, quarters, seed):
    """In any order of rows, and of moments."""
    rows = [{"accession": f"a{n}", **one} for n, one in enumerate(made)]
    asked = pl.concat(moments(*[days(q / 4) for q in quarters], symbol=s) for s in "AB").sample(
        fraction=1, shuffle=True, seed=seed
    )
    got = values(asked, frame(*rows).sample(fraction=1, shuffle=True, seed=seed))
    expected = [by_definition(rows, *asked.row(n)) for n in range(asked.height)]
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=0)


@settings(max_examples=60)
@given(made=TRANSACTIONS, quarter=st.integers(0, 4 * 240), factor=st.integers(2, 9))
def test_what_is_filed_after_a_moment_changes_nothing_at_it(made, quarter, factor):
    at = days(quarter / 4)
    rows = [{"accession": f"a{n}", **one} for n, one in enumerate(made)]
    other = [
        {**one, "value": (one["value"] or 1) * factor, "code": "S", "form": "4/A"}
        if one["available_at"] > at
        else one
        for one in rows
    ]
    asked = moments(at, at + timedelta(days=7))
    held = [one for one in rows if one["available_at"] <= at]
    first = values(asked, frame(*rows))[0]
    assert first == values(asked, frame(*other))[0] == values(asked, frame(*held))[0]


@settings(max_examples=40)
@given(made=TRANSACTIONS, quarter=st.integers(4 * 100, 4 * 240))
def test_the_window_alone_decides_bit_for_bit(made, quarter):
    """A run that loads ninety days gives what a run over everything gives."""
    rows = [{"accession": f"a{n}", **one} for n, one in enumerate(made)]
    at = days(quarter / 4)
    recent = [r for r in rows if r["available_at"] > at - WINDOW - timedelta(days=1)]
    every = moments(*[at - timedelta(days=n) for n in range(100)])
    assert values(every, frame(*rows))[0] == values(moments(at), frame(*recent))[0]


# -- by hand --------------------------------------------------------------------------------------


def test_purchases_less_sales_over_their_sum():
    made = frame(
        row(1, days(0), days(1), value=300.0),
        row(2, days(2), days(3), code="S", value=100.0),
        row(3, days(2), days(3), code="M", value=10_000.0),
        row(4, days(2), days(3), derivative=True, value=10_000.0),
        row(5, days(2), days(3), value=None),
    )
    asked = moments(days(0.5), days(1), days(3), days(89.9), days(90), days(92))
    assert values(asked, made) == [0.0, 1.0, 0.5, 0.5, -1.0, 0.0]


def test_an_amendment_counts_from_its_own_filing():
    made = frame(
        row(1, days(0), days(1), code="P", value=100.0),
        row(2, days(0), days(1), code="S", value=300.0),
        row(3, days(0), days(10), code="S", value=100.0, form="4/A"),
        row(4, days(5), days(10), code="P", value=200.0, form="4/A"),
    )
    assert values(moments(days(9.9), days(10)), made) == [-0.5, 0.5]


def test_what_joint_owners_report_apart_counts_once():
    """EDGAR takes ten owners in a filing: an eleventh says the same in another one."""
    same = {"code": "S", "value": 900.0, "shares_after": 5.0}
    made = frame(
        row(1, days(0), days(1), **same),
        row(2, days(0), days(2), owner=2, **same),
        row(3, days(0), days(2), value=900.0, shares_after=5.0),
        # Others: of the same owner, with another rest, with a rest that is not told.
        row(4, days(0), days(3), **same),
        row(5, days(0), days(4), owner=3, **same | {"shares_after": 6.0}),
        row(6, days(0), days(5), owner=3, **same | {"shares_after": None}),
        row(7, days(0), days(6), owner=4, **same | {"shares_after": None}),
    )
    asked = moments(*map(days, range(1, 7)))
    assert values(asked, made) == [-1.0, 0.0, -1 / 3, -2 / 4, -3 / 5, -4 / 6]


def test_a_late_filing_of_old_transactions_is_no_news():
    made = frame(row(1, days(0), days(95)))
    assert values(moments(days(94), days(95), days(100)), made) == [0.0, 0.0, 0.0]


def test_nobody_collects_is_missing_and_nobody_filed_is_zero():
    asked = pl.concat([moments(days(100)), moments(days(100), symbol="C")])
    assert values(asked, frame()) == [0.0, None]


def test_before_forms_were_data_it_is_missing():
    first = datetime(2003, 6, 30, tzinfo=UTC)
    asked = moments(first, first + WINDOW - timedelta(seconds=1), first + WINDOW)
    assert values(asked, frame()) == [None, None, 0.0]


def test_a_bar_that_is_a_gap_has_no_window():
    asked = pl.DataFrame(
        {"symbol": ["A", "A"], "available_at": [None, days(3)]},
        schema={"symbol": pl.String, "available_at": UTC_TIME},
    )
    assert values(asked, frame(row(1, days(0), days(1)))) == [None, 1.0]


def test_values_beyond_all_measure_stay_within_bounds():
    many = [row(n, days(0), days(1), value=1e12, code="PS"[n % 3 == 0]) for n in range(3000)]
    assert values(moments(days(2)), frame(*many)) == [pytest.approx(1 / 3, rel=1e-12)]


# -- in the chain ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return make_market(days=300, symbols=3, seed=7)


def column(features: pl.DataFrame, symbol: str) -> pl.Series:
    return features.filter(pl.col("symbol") == symbol).sort("time")[FEATURE]


def test_a_day_that_was_not_collected_is_missing_for_ninety_days(small):
    times = chain(small).features.filter(pl.col("symbol") == "S00").sort("time")
    day = times["time"][120]
    own = pl.DataFrame({"time": [day], "available_at": [day], "symbol": ["S02"]})
    own = own.with_columns(pl.col("time", "available_at").cast(UTC_TIME))
    for marked, spoilt in (
        (uncollected(small.insiders, day), {"S00", "S02"}),
        # Of one symbol alone: what the others filed on that day is there.
        (pl.concat([small.insiders, own], how="diagonal"), {"S02"}),
    ):
        got = chain(small.with_frames(insiders=marked)).features
        for symbol in ("S00", "S02"):
            held = got.filter(pl.col("symbol") == symbol).sort("time")
            ahead = held["available_at"].is_between(day, day + timedelta(days=91), closed="left")
            missing = held[FEATURE].is_null()
            assert missing.equals(ahead) if symbol in spoilt else not missing.any()


def test_whose_insiders_nobody_collects_is_missing(small):
    features = chain(small).features
    for symbol in (BENCHMARK, UNWATCHED):
        assert column(features, symbol).is_null().all()
    for symbol in ("S00", "S02"):
        assert column(features, symbol).null_count() == 0
        assert column(features, symbol).is_between(-1, 1).all()
        assert column(features, symbol).n_unique() > 20


def test_it_is_read_by_nothing_else(small):
    """A state vector does not know of it."""
    nothing = chain(small.with_frames(insiders=small.insiders.clear()))
    full = chain(small)
    assert full.states.equals(nothing.states)
    assert full.features.drop(FEATURE).equals(nothing.features.drop(FEATURE))
    assert set(column(nothing.features, "S00")) == {0.0}
