"""The lexicon scorer: probabilities, labels, and one scoring per distinct text."""

from __future__ import annotations

from importlib.metadata import version

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from feature_pipeline.sources import Scorer
from feature_pipeline.sources.lexicon import LexiconScorer

GOOD = "Apple shares soar on strong results"
BAD = "Apple shares crash, investors fear losses"
PLAIN = "Apple opens a shop"


@pytest.fixture(scope="module")
def scorer() -> LexiconScorer:
    return LexiconScorer()


def test_it_is_a_scorer_and_says_which(scorer):
    assert isinstance(scorer, Scorer)
    assert scorer.model == "vader"
    assert scorer.revision == version("vaderSentiment")


def test_labels(scorer):
    assert scorer.score([GOOD, BAD, PLAIN, ""])["label"].to_list() == [
        "positive",
        "negative",
        "neutral",
        "neutral",
    ]


def test_scores_follow_the_documented_mapping(scorer):
    shares = SentimentIntensityAnalyzer().polarity_scores(BAD)
    lean = shares["neu"] * (1 - abs(shares["compound"]))
    total = shares["pos"] + shares["neg"] + lean
    row = scorer.score([BAD]).row(0, named=True)
    assert row["sentiment"] == pytest.approx((shares["pos"] - shares["neg"]) / total)
    assert row["confidence"] == pytest.approx(shares["neg"] / total)


def test_golden_values(scorer):
    """A change here changes what stored scores mean: it needs another revision."""
    assert scorer.score([GOOD, BAD, PLAIN])["sentiment"].to_list() == pytest.approx(
        [0.80672, -0.56631, 0.0], abs=1e-5
    )


def test_identical_texts_are_scored_once(monkeypatch):
    seen: list[str] = []
    ours = LexiconScorer()
    analyzer = SentimentIntensityAnalyzer()

    class Counting:
        def polarity_scores(self, text: str) -> dict:
            seen.append(text)
            return analyzer.polarity_scores(text)

    monkeypatch.setitem(ours.__dict__, "_analyzer", Counting())
    scores = ours.score([GOOD, BAD, GOOD, GOOD, BAD])
    assert sorted(seen) == sorted([GOOD, BAD])
    assert scores["label"].to_list() == ["positive", "negative", "positive", "positive", "negative"]


def test_no_texts(scorer):
    empty = scorer.score([])
    assert empty.schema == {"sentiment": pl.Float64, "label": pl.String, "confidence": pl.Float64}
    assert empty.is_empty()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), max_size=8))
@settings(max_examples=150)
def test_any_text_gets_a_score_in_range_and_in_its_place(texts):
    ours = LexiconScorer()
    together = ours.score(texts)
    assert together.height == len(texts)
    assert together.null_count().sum_horizontal().sum() == 0
    assert together["sentiment"].is_between(-1, 1).all()
    assert together["confidence"].is_between(1 / 3 - 1e-9, 1 + 1e-9).all()
    if texts:
        alone = pl.concat(ours.score([text]) for text in texts)
        assert together.equals(alone)
