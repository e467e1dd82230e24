"""Sentiment offline: the VADER lexicon behind the `Scorer` interface.

Hutto, Gilbert: VADER, a parsimonious rule-based model for sentiment analysis of social media text,
ICWSM 2014. It needs no download and no GPU; the transformer model is another module.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

_SHARES = {"pos": pl.Float64, "neg": pl.Float64, "neu": pl.Float64, "compound": pl.Float64}


class LexiconScorer:
    """VADER as three probabilities.

    VADER gives the shares of a text that are positive, negative and neutral (they sum to 1), and
    `compound` in [-1, 1], how strongly the whole leans. Most words of any text are neutral, so the
    shares alone would call everything neutral. The neutral share counts as far as the text does not
    lean, and the three are normalised:

        w+ = pos, w- = neg, w0 = neu * (1 - |compound|);  P = w / (w+ + w- + w0)

    A text without words is neutral with certainty. Equal shares are neutral first, then positive.
    """

    model = "vader"

    @cached_property
    def revision(self) -> str:
        """The installed version of vaderSentiment: its lexicon and rules are the model."""
        return version("vaderSentiment")

    @cached_property
    def _analyzer(self) -> SentimentIntensityAnalyzer:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        return SentimentIntensityAnalyzer()

    def score(self, texts: Sequence[str]) -> pl.DataFrame:
        """See `Scorer.score`. Identical texts are scored once."""
        asked = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String).fill_null("")})
        distinct = asked.unique(maintain_order=True)
        # Text by text: VADER is plain Python over words and has no batch form.
        shares = [self._analyzer.polarity_scores(text) for text in distinct["text"]]
        scored = pl.concat(
            [distinct, pl.DataFrame(shares, schema=_SHARES)], how="horizontal"
        ).with_columns(_probabilities())
        return asked.join(scored, on="text", how="left", maintain_order="left").select(
            "sentiment", "label", "confidence"
        )


def _probabilities() -> tuple[pl.Expr, ...]:
    weight = pl.col("neu") * (1 - pl.col("compound").abs())
    total = pl.col("pos") + pl.col("neg") + weight
    wordless = total == 0
    positive = pl.when(wordless).then(0.0).otherwise(pl.col("pos") / total)
    negative = pl.when(wordless).then(0.0).otherwise(pl.col("neg") / total)
    neutral = pl.when(wordless).then(1.0).otherwise(weight / total)
    largest = pl.max_horizontal(positive, negative, neutral)
    label = (
        pl.when(neutral == largest)
        .then(pl.lit("neutral"))
        .when(positive == largest)
        .then(pl.lit("positive"))
        .otherwise(pl.lit("negative"))
    )
    return (
        (positive - negative).alias("sentiment"),
        label.alias("label"),
        largest.alias("confidence"),
    )
