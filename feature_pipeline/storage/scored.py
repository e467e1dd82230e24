"""What models made of texts: each text is scored once per model and revision.

A table of hashes and scores between whoever needs scores and the model. Which documents there are,
and which rows their scores become, is not known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from feature_pipeline.storage.database import Database

if TYPE_CHECKING:
    from feature_pipeline.sources import Scorer

SLICE = 500
"""Texts that are scored and kept at a time: what a kill loses at most."""

_LOOKED_UP = 20_000
"""Hashes of one query."""

_SCORES = ("sentiment", "label", "confidence")
_HELD = pl.Schema(
    {"text_hash": pl.Binary, "sentiment": pl.Float64, "label": pl.String, "confidence": pl.Float64}
)


class ScoredTexts:
    """A `Scorer` that looks up what its model has said before, and asks it for the rest.

    Args:
        database: where it is kept.
        scorer: the model.
        keep: whether what is new is kept; a reader of the past changes nothing.
    """

    def __init__(self, database: Database, scorer: Scorer, *, keep: bool = True) -> None:
        self._database, self._scorer, self._keep = database, scorer, keep

    @property
    def model(self) -> str:
        """The model's name."""
        return self._scorer.model

    @property
    def revision(self) -> str:
        """Which release of it."""
        return self._scorer.revision

    def score(self, texts: Sequence[str]) -> pl.DataFrame:
        """See `Scorer.score`; texts that are known need no model.

        Raises:
            DatabaseError: the database does not answer.
            ModelError: a text is new and the model is not there; what was scored before that stays.
        """
        asked = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String).fill_null("")})
        distinct = asked.unique(maintain_order=True)
        distinct = distinct.with_columns(text_hash=_hashes(distinct["text"]))
        known = self._held(distinct["text_hash"])
        # Texts of like length together: a model takes them in batches, padded to the longest.
        new = distinct.join(known, on="text_hash", how="anti").sort(
            pl.col("text").str.len_chars(), "text"
        )
        for part in new.iter_slices(SLICE):
            scored = part.hstack(self._scorer.score(part["text"].to_list())).select(*_HELD)
            # Another run may have been first: what it has kept is what everybody reads.
            known = pl.concat([known, self._kept(scored) if self._keep else scored])
        return (
            asked.join(distinct, on="text", how="left", maintain_order="left")
            .join(known, on="text_hash", how="left", maintain_order="left")
            .select(_SCORES)
        )

    def _held(self, hashes: pl.Series) -> pl.DataFrame:
        found = [pl.DataFrame(schema=_HELD)]
        for start in range(0, hashes.len(), _LOOKED_UP):
            some = hashes.slice(start, _LOOKED_UP).bin.encode("hex").str.join(",").item()
            found.append(
                self._database.read_frame(
                    "SELECT text_hash, sentiment, label, confidence FROM scored_texts JOIN"
                    " (SELECT decode(hex, 'hex') AS text_hash FROM unnest(%s::text[]) AS u (hex)) h"
                    " USING (text_hash) WHERE model = %s AND model_revision = %s",
                    ["{" + some + "}", self.model, self.revision],
                )
            )
        return pl.concat(found)

    def _kept(self, scored: pl.DataFrame) -> pl.DataFrame:
        with self._database.connection() as connection:
            connection.execute(
                "INSERT INTO scored_texts"
                " (text_hash, model, model_revision, sentiment, label, confidence)"
                " SELECT h, %s, %s, s, l, c"
                " FROM unnest(%s::bytea[], %s::float8[], %s::text[], %s::float8[])"
                " AS u (h, s, l, c) ON CONFLICT DO NOTHING",
                [self.model, self.revision, *(scored[name].to_list() for name in _HELD)],
            )
        return self._held(scored["text_hash"])


def _hashes(texts: pl.Series) -> pl.Series:
    """SHA-256 of each text. One by one: neither Polars nor Arrow has it; about a microsecond."""
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    return pl.Series("text_hash", digests, dtype=pl.Binary)
