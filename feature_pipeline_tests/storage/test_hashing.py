"""Content hashes: pinned values, and the algebra that the writer relies on."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from feature_pipeline.storage.hashing import combine, day_hashes, row_hashes

SCHEMA = {
    "f": pl.Float64(),
    "i": pl.Int64(),
    "s": pl.String(),
    "b": pl.Boolean(),
    "t": pl.Datetime("us", "UTC"),
    "l": pl.List(pl.String()),
}
COLUMNS = tuple(SCHEMA)
DAY = 86_400_000_000

GOLDEN = pl.DataFrame(
    {
        "f": [1.5, None, -0.0, float("inf")],
        "i": [0, -1, 2**62, None],
        "s": ["AAPL", "", None, "naïve € 🙂"],
        "b": [True, False, None, True],
        "t": [datetime(2020, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, 23, 59, tzinfo=UTC), None,
              datetime(2020, 1, 1, 12, tzinfo=UTC)],
        "l": [["a", "b"], [], None, [None, ""]],
    },
    schema=SCHEMA,
)  # fmt: skip

PINNED_ROWS = [
    15589200255281672011,
    2392710552942474379,
    10030735404797334433,
    2802166064738858973,
]
PINNED_DAYS = [
    (date(1969, 12, 31), 1, 2392710552942474379),
    (date(2020, 1, 1), 2, -55377753689020632),
]
PINNED_DATE = [8692913282193363279]

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_row = st.fixed_dictionaries(
    {
        "f": st.none() | st.floats(),
        "i": st.none() | st.integers(-(2**63), 2**63 - 1),
        "s": st.none() | _text,
        "b": st.none() | st.booleans(),
        "t": st.integers(-3 * DAY, 3 * DAY).map(
            lambda us: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
        ),
        "l": st.none() | st.lists(st.none() | _text, max_size=4),
    }
)
_rows = st.lists(_row, max_size=30)


def frame_of(rows: list[dict[str, object]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def as_seen(row: dict[str, object]) -> tuple[object, ...]:
    """What the hash may tell apart: NaN is null, and -0.0 is 0.0."""
    f = row["f"]
    seen = None if f != f else f
    return (seen, *(repr(row[name]) for name in COLUMNS[1:]))


def test_values_never_change() -> None:
    assert row_hashes(GOLDEN, COLUMNS).tolist() == PINNED_ROWS
    assert day_hashes(GOLDEN.filter(pl.col("t").is_not_null()), "t", COLUMNS).rows() == PINNED_DAYS
    assert row_hashes(pl.DataFrame({"d": [date(2024, 2, 29)]}), ["d"]).tolist() == PINNED_DATE


@given(rows=_rows, data=st.data())
def test_row_order_does_not_matter(rows: list[dict[str, object]], data: st.DataObject) -> None:
    frame = frame_of(rows)
    order = data.draw(st.permutations(range(len(rows))))
    shuffled = frame_of([rows[i] for i in order])
    assert row_hashes(shuffled, COLUMNS).tolist() == row_hashes(frame, COLUMNS)[order].tolist()
    assert_frame_equal(day_hashes(shuffled, "t", COLUMNS), day_hashes(frame, "t", COLUMNS))


@given(rows=_rows, columns=st.permutations(COLUMNS))
def test_column_order_does_not_matter(rows: list[dict[str, object]], columns: list[str]) -> None:
    frame = frame_of(rows)
    expected = row_hashes(frame, COLUMNS)
    assert (row_hashes(frame, columns) == expected).all()
    assert (row_hashes(frame.select(columns), COLUMNS) == expected).all()


@given(rows=st.lists(_row, min_size=2, max_size=12), data=st.data())
def test_one_cell_changes_the_hash(rows: list[dict[str, object]], data: st.DataObject) -> None:
    here = data.draw(st.integers(0, len(rows) - 1))
    name = data.draw(st.sampled_from(COLUMNS))
    changed = [dict(row) for row in rows]
    changed[here][name] = data.draw(_row)[name]
    before, after = row_hashes(frame_of(rows), COLUMNS), row_hashes(frame_of(changed), COLUMNS)
    same = as_seen(rows[here]) == as_seen(changed[here])
    assert (before[here] == after[here]) == same
    assert (np.delete(before, here) == np.delete(after, here)).all()


@given(rows=_rows, cut=st.integers(0, 30))
def test_days_are_additive(rows: list[dict[str, object]], cut: int) -> None:
    frame = frame_of(rows)
    parts = [day_hashes(part, "t", COLUMNS) for part in (frame.head(cut), frame.slice(cut))]
    together: dict[date, int] = {}
    for day, _, content in pl.concat(parts).iter_rows():
        together[day] = combine(together.get(day, 0), content)
    whole = day_hashes(frame, "t", COLUMNS)
    assert dict(whole.select("day", "content_hash").iter_rows()) == together
    assert whole["rows"].sum() == len(rows)
    assert whole["day"].is_sorted()


@given(rows=_rows, cuts=st.tuples(st.integers(0, 30), st.integers(0, 30)))
def test_chunks_and_slices_do_not_matter(
    rows: list[dict[str, object]], cuts: tuple[int, int]
) -> None:
    frame = frame_of(rows)
    first, last = min(cuts), max(cuts)
    expected = row_hashes(frame, COLUMNS)
    chunked = pl.concat([frame[:first], frame[first:last], frame[last:]], rechunk=False)
    assert (row_hashes(chunked, COLUMNS) == expected).all()
    assert (row_hashes(frame[first:last], COLUMNS) == expected[first:last]).all()
    through_arrow = pl.DataFrame(frame.to_arrow().slice(first))
    assert (row_hashes(through_arrow, COLUMNS) == expected[first:]).all()


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 1000
    frame = pl.DataFrame(
        {
            "s": [f"{'word ' * (i % 7)}{i}" if i % 11 else "" for i in range(n)],
            "f": np.arange(n) / 7,
            "l": [[str(i)] * (i % 3) for i in range(n)],
        }
    )
    expected = row_hashes(frame, frame.columns)
    monkeypatch.setattr("feature_pipeline.storage.hashing._BLOCK_ROWS", 7)
    monkeypatch.setattr("feature_pipeline.storage.hashing._BLOCK_BYTES", 16)
    assert (row_hashes(frame, frame.columns) == expected).all()
    assert len(np.unique(expected)) == n


def test_exchanging_values_between_rows_changes_the_day() -> None:
    day = datetime(2020, 1, 1, tzinfo=UTC)
    ours = pl.DataFrame({"t": [day, day], "x": [1.0, 2.0], "y": [3.0, 4.0]})
    theirs = ours.with_columns(y=pl.Series([4.0, 3.0]))
    hashes = [day_hashes(f, "t", ["x", "y"])["content_hash"].item() for f in (ours, theirs)]
    assert hashes[0] != hashes[1]


def test_values_that_are_the_same_hash_alike() -> None:
    floats = row_hashes(pl.DataFrame({"x": [0.0, -0.0, float("nan"), -float("nan"), None]}), ["x"])
    assert floats[0] == floats[1]
    assert len(set(floats[2:].tolist())) == 1
    assert floats[0] != floats[2]
    whole = pl.Series("x", [1, 2, 3])
    assert (
        row_hashes(whole.cast(pl.Int32).to_frame(), ["x"]) == row_hashes(whole.to_frame(), ["x"])
    ).all()
    moment = pl.Series("x", [datetime(2020, 1, 1, 0, 0, 0, 7, tzinfo=UTC)])
    for unit in ("us", "ns"):
        other = moment.dt.cast_time_unit(unit).to_frame()
        assert (row_hashes(other, ["x"]) == row_hashes(moment.to_frame(), ["x"])).all()


def test_names_lists_and_empties_are_told_apart() -> None:
    def one(name: str, value: object, dtype: pl.DataType) -> int:
        return int(row_hashes(pl.DataFrame({name: [value]}, schema={name: dtype}), [name])[0])

    text, texts = pl.String(), pl.List(pl.String())
    different = [
        one("x", "", text), one("x", None, text), one("y", "", text), one("x", "\0", text),
        one("x", "ab", text), one("x", "ba", text), one("x", "a" * 3000, text),
        one("x", [], texts), one("x", None, texts), one("x", [""], texts), one("x", [None], texts),
        one("x", ["a", "b"], texts), one("x", ["b", "a"], texts), one("x", ["ab"], texts),
        one("x", ["a", "b", ""], texts),
    ]  # fmt: skip
    # A null is a null, of whatever type.
    assert len(set(different)) == len(different) - 1


def test_no_collision_among_similar_rows() -> None:
    n = 300
    grid = pl.DataFrame({"x": np.arange(n, dtype=float)}).join(
        pl.DataFrame({"y": np.arange(n, dtype=float)}), how="cross"
    )
    assert len(np.unique(row_hashes(grid, ["x", "y"]))) == n * n


def test_empty_frames() -> None:
    empty = pl.DataFrame(schema=SCHEMA)
    assert row_hashes(empty, COLUMNS).shape == (0,)
    days = day_hashes(empty, "t", COLUMNS)
    assert days.schema == {"day": pl.Date, "rows": pl.Int64, "content_hash": pl.Int64}
    assert days.is_empty()


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5))
@settings(max_examples=50)
def test_combine_wraps_as_the_sum_does(values: list[int]) -> None:
    together = combine(*values)
    assert -(2**63) <= together < 2**63
    assert (together - sum(values)) % 2**64 == 0
    assert combine(together, -values[0]) == combine(*values[1:])


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(TypeError, match="'x'"):
        row_hashes(pl.DataFrame({"x": [[1]]}), ["x"])
