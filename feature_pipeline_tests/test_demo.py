"""The demonstration from nothing, and the commands that look at what it left."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_pipeline.schemas import STATE_VECTOR_FIELDS
from feature_pipeline.settings import Settings
from feature_pipeline.stack import Stack
from feature_pipeline_tests.cli.conftest import invoke
from feature_pipeline_tests.stack.helpers import CLI, environment, everything_of

SYMBOLS = ["AAPL", "FB", "GOOG", "GSPC", "IBM", "IXIC", "MSFT"]


PLAIN = {"COLUMNS": "100", "NO_COLOR": "1"}


def demo(home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, "demo", "--no-ui"],
        env=environment(home, **PLAIN),
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def command(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Another command, in this process, on servers of that home that it starts and stops."""
    return invoke(*words, FEATURE_PIPELINE_HOME=str(home), **PLAIN)


@pytest.fixture(scope="module")
def demonstrated() -> Iterator[tuple[Path, str]]:
    """A home after its first `demo --no-ui`, and what that printed."""
    with tempfile.TemporaryDirectory(prefix="feature_pipeline.") as name:
        home = Path(name).resolve()
        try:
            done = demo(home)
            assert done.returncode == 0, done.stderr
            assert not everything_of(home)
            yield home, done.stdout
        finally:
            Stack(Settings(home=home)).delete()


def vectors(output: str) -> list[list[str]]:
    """The table of state vectors: header, then one line per field."""
    lines = [line.split() for line in output.splitlines()]
    start = lines.index(SYMBOLS)
    return lines[start : start + 1 + len(STATE_VECTOR_FIELDS)]


def test_it_prints_every_symbols_vector_with_its_moment(demonstrated):
    _, output = demonstrated
    _, *rows = vectors(output)
    assert [row[0] for row in rows] == list(STATE_VECTOR_FIELDS)
    values = {row[0]: dict(zip(SYMBOLS, row[1:], strict=True)) for row in rows}
    assert values["close"]["AAPL"] == "0.0000"  # the lowest close of a hundred sessions
    assert values["regime_trend"]["FB"] == "missing"  # too young for a regime
    assert "as of 2013-03-01 21:15 UTC" in output
    done = re.search(r"\b(\d+)/\1 partitions", output)
    assert done
    assert int(done[1]) > 4260, "fourteen months of ten tables, and the history that they need"


def test_a_second_run_backfills_nothing_and_ends_in_the_same_values(demonstrated):
    home, first = demonstrated
    done = demo(home)
    assert done.returncode == 0, done.stderr
    assert "every partition is up to date" in done.stdout
    assert "partitions," not in done.stdout
    assert vectors(done.stdout) == vectors(first)


def test_show_takes_any_symbol_of_an_instrument(demonstrated):
    home, first = demonstrated
    done = command(home, "show", "META")
    assert done.returncode == 0, done.stderr
    column = 1 + SYMBOLS.index("FB")
    shown = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if line.strip()}
    for row in vectors(first)[1:]:
        if row[column] == "missing":
            assert shown[row[0]] == "missing"
        else:
            assert float(shown[row[0]]) == pytest.approx(float(row[column]), abs=5e-5)
    assert "returns_20d" in done.stdout
    assert "source online" in done.stdout


def test_a_backfill_before_it_brings_the_history_it_needs(demonstrated):
    home, _ = demonstrated
    done = command(home, "backfill", "--start", "2011-12-28", "--end", "2011-12-31")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\b(\d+)/\1 partitions", done.stdout)


def test_redis_can_be_rebuilt_by_hand(demonstrated):
    home, _ = demonstrated
    done = command(home, "online", "rebuild", "--force")
    assert done.returncode == 0, done.stderr
    # A vector per symbol, three macro series, news and posts per symbol.
    assert done.stdout.startswith(f"written {7 + 3 + 14}, refreshed 0, older 0, refused 0")


def test_what_has_no_vector_is_one_line(demonstrated, migrated_database_url, redis_url):
    home, _ = demonstrated
    empty = {
        "FEATURE_PIPELINE_DATABASE_URL": migrated_database_url,
        "FEATURE_PIPELINE_REDIS_URL": redis_url,
    }
    for done, named in (
        (command(home, "show", "NOPE"), "NOPE"),
        (invoke("show", "AAPL", **PLAIN, **empty), "no state vector of AAPL"),
    ):
        assert done.returncode == 1
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("feature-pipeline: ")
        assert named in line
