"""Each text is scored once per model and revision, whatever happens in between."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl
import pytest

from feature_pipeline.errors import ModelError
from feature_pipeline.storage import scored
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.scored import ScoredTexts

TEXTS = [f"text {number} {'x' * (number % 7)}" for number in range(23)]


@dataclass
class Counting:
    """Scores texts by their length, and remembers which it was asked for."""

    revision: str = "1"
    model: str = "counting"
    asked: list[list[str]] = field(default_factory=list)
    before: Callable[[Sequence[str]], object] = lambda _: None
    add: float = 0.0

    def score(self, texts: Sequence[str]) -> pl.DataFrame:
        self.before(texts)
        self.asked.append(list(texts))
        sentiment = [len(text) / 100 + self.add for text in texts]
        return pl.DataFrame(
            {"sentiment": sentiment, "label": "neutral", "confidence": 0.5},
            schema={"sentiment": pl.Float64, "label": pl.String, "confidence": pl.Float64},
        )

    @property
    def texts(self) -> list[str]:
        return [text for part in self.asked for text in part]


@pytest.fixture
def database(migrated_database_url: str) -> Iterator[Database]:
    with Database(migrated_database_url) as held:
        yield held


def rows(database: Database) -> int:
    return database.read_frame("SELECT count(*) AS n FROM scored_texts").item()


def test_a_text_is_scored_once_per_model_and_revision(database):
    first = Counting()
    there = ScoredTexts(database, first).score(TEXTS)
    assert there["sentiment"].to_list() == [len(text) / 100 for text in TEXTS]
    assert sorted(first.texts) == sorted(TEXTS)
    again = Counting()
    assert ScoredTexts(database, again).score([*TEXTS[5:], "new"])[:-1].equals(there[5:])
    assert again.texts == ["new"]
    for other in (Counting(revision="2"), Counting(model="other")):
        ScoredTexts(database, other).score(TEXTS)
        assert len(other.texts) == len(TEXTS)
    assert rows(database) == 3 * len(TEXTS) + 1


def test_scores_come_in_the_order_asked_for(database):
    asked = ["bb", "a", "bb", "", None, "ccc", "a"]
    scorer = Counting()
    for _ in range(2):
        found = ScoredTexts(database, scorer).score(asked)  # type: ignore[arg-type]
        assert found["sentiment"].to_list() == [0.02, 0.01, 0.02, 0.0, 0.0, 0.03, 0.01]
        assert found.columns == ["sentiment", "label", "confidence"]
    assert sorted(scorer.texts) == ["", "a", "bb", "ccc"]
    assert ScoredTexts(database, scorer).score([]).schema == found.schema


def test_new_texts_come_to_the_model_by_length_in_slices(database, monkeypatch):
    monkeypatch.setattr(scored, "SLICE", 5)
    scorer = Counting()
    ScoredTexts(database, scorer).score(TEXTS)
    assert [len(part) for part in scorer.asked] == [5, 5, 5, 5, 3]
    lengths = [len(text) for text in scorer.texts]
    assert lengths == sorted(lengths)


def test_many_hashes_are_looked_up_in_several_queries(database, monkeypatch):
    monkeypatch.setattr(scored, "_LOOKED_UP", 4)
    ScoredTexts(database, Counting()).score(TEXTS)
    again = Counting()
    found = ScoredTexts(database, again).score(TEXTS)
    assert again.texts == []
    assert found["sentiment"].to_list() == [len(text) / 100 for text in TEXTS]


def test_what_was_scored_before_a_failure_stays(database, monkeypatch):
    monkeypatch.setattr(scored, "SLICE", 5)

    def third(_: Sequence[str]) -> None:
        if len(scorer.asked) == 2:
            raise ModelError("gone")

    scorer = Counting(before=third)
    with pytest.raises(ModelError):
        ScoredTexts(database, scorer).score(TEXTS)
    again = Counting()
    ScoredTexts(database, again).score(TEXTS)
    assert len(again.texts) == len(TEXTS) - 10
    assert set(again.texts).isdisjoint(scorer.texts)


DIE = """
import os, signal, sys
from feature_pipeline.storage import scored
from feature_pipeline.storage.database import Database
from feature_pipeline_tests.storage.test_scored import TEXTS, Counting

scored.SLICE = 5
scorer = Counting(before=lambda _: len(scorer.asked) == 2 and os.kill(os.getpid(), signal.SIGKILL))
scored.ScoredTexts(Database(sys.argv[1]), scorer).score(TEXTS)
"""


def test_a_kill_keeps_what_was_finished(database, migrated_database_url):
    done = subprocess.run([sys.executable, "-c", DIE, migrated_database_url], check=False)
    assert done.returncode == -9
    assert rows(database) == 10
    again = Counting()
    ScoredTexts(database, again).score(TEXTS)
    assert len(again.texts) == len(TEXTS) - 10


def test_of_two_that_score_at_once_both_read_what_was_kept(database):
    """int8 scores move with the batch: what is written, and its hash, must not depend on who."""
    other = Counting(add=0.5)

    def first(texts: Sequence[str]) -> None:
        ScoredTexts(database, other).score(texts)

    found = ScoredTexts(database, Counting(before=first)).score(["a", "bb"])
    assert found["sentiment"].to_list() == [0.51, 0.52]
    assert rows(database) == 2


def test_a_reader_keeps_nothing(database):
    ScoredTexts(database, Counting()).score(TEXTS[:3])
    scorer = Counting()
    found = ScoredTexts(database, scorer, keep=False).score(TEXTS)
    assert len(scorer.texts) == len(TEXTS) - 3
    assert found["sentiment"].to_list() == [len(text) / 100 for text in TEXTS]
    assert rows(database) == 3


def test_no_text_is_stored(database):
    secret = "a post that its author deletes"
    ScoredTexts(database, Counting()).score([secret])
    row = str(database.read_frame("SELECT t::text AS row FROM scored_texts t").item())
    assert "post" not in row
    assert secret.encode().hex() not in row


def test_a_lookup_uses_the_key(database):
    """Also where a million texts are known."""
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO scored_texts SELECT sha256(n::text::bytea), 'counting', '1', 0, 'neutral',"
            " 1 FROM generate_series(1, 50000) n"
        )
        connection.execute("ANALYZE scored_texts")
        plan = connection.execute(
            "EXPLAIN SELECT text_hash FROM scored_texts JOIN"
            " (SELECT decode(hex, 'hex') AS text_hash FROM unnest(%s::text[]) AS u (hex)) h"
            " USING (text_hash) WHERE model = 'counting' AND model_revision = '1'",
            ["{aa,bb}"],
        ).fetchall()
    assert "Index" in str(plan)
    assert "Seq Scan on scored_texts" not in str(plan)
