"""FinBERT's scorer against the pipeline of transformers, called text by text.

BERT-base of random weights: the same computation as the real model's. Headlines are of 20 tokens,
posts of 65, on average, lengths spread as they are in the wild. The naive loop takes minutes: it is
measured on a sample of the same texts, spread evenly over their lengths, in turns with ours on all
of them, and scaled.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from feature_pipeline.sources.finbert import FinbertScorer
from feature_pipeline_tests.bench import Row
from feature_pipeline_tests.sources.models import BASE, RELEASE, WORDS, install

TURNS = 2
# What, how many, mean number of tokens, sample of the naive loop, goals in fp32 and int8.
CASES = (
    ("headlines", 1000, 20, 60, 3.0, 6.0),
    ("posts", 100, 65, 25, 1.4, 2.4),
)


def run() -> Iterator[Row]:
    """Texts a second, ours in fp32 and in int8, against the naive loop's."""
    from transformers import pipeline

    with tempfile.TemporaryDirectory(prefix="feature_pipeline.bench.") as home:
        models = Path(home)
        where = install(models, size=BASE)
        naive = pipeline("text-classification", model=str(where), top_k=None)
        ours = {
            "fp32": FinbertScorer(models, RELEASE),
            "int8": FinbertScorer(models, RELEASE, int8=True),
        }
        for scorer in ours.values():
            scorer.score(["warm up"])
        for what, count, tokens, sample, *goals in CASES:
            texts = made(what, count, tokens)
            # Drawn at random, 25 posts were 11 % shorter than the hundred.
            every = count // sample
            some = sorted(texts, key=len)[every // 2 :: every]
            each = dict.fromkeys(("naive", *ours), 0.0)
            times: dict[str, list[float]] = {name: [] for name in each}
            for turn in range(TURNS):
                actions: list[tuple[str, Callable[[], object], int]] = [
                    ("naive", partial(_one_by_one, naive, some), len(some)),
                    *((n, partial(scorer.score, texts), count) for n, scorer in ours.items()),
                ]
                for name, action, size in actions if turn % 2 else reversed(actions):
                    started = time.perf_counter()
                    action()
                    times[name].append((time.perf_counter() - started) / size)
            each = {name: statistics.median(found) for name, found in times.items()}
            for goal, name in zip(goals, ours, strict=True):
                yield Row(
                    f"finbert: {count} {what} ({tokens} tokens) in {name}, against "
                    f"pipeline(text) (its time scaled from {len(some)})",
                    1 / each[name],
                    "texts/s",
                    1 / each["naive"],
                    each["naive"] / each[name],
                    goal,
                )


def _one_by_one(score: Callable[[str], object], texts: Sequence[str]) -> None:
    for text in texts:
        score(text)


def made(what: str, count: int, tokens: int) -> list[str]:
    """Distinct texts whose lengths are spread around a mean as headlines' or posts' are."""
    rng = random.Random(what)
    spread = 0.3 if what == "headlines" else 0.6
    # Log-normal with that mean; [CLS] and [SEP] are two of the tokens.
    raw = [rng.lognormvariate(0, spread) for _ in range(count)]
    scale = (tokens - 2) * count / sum(raw)
    return [" ".join(rng.choices(WORDS, k=max(1, round(scale * one)))) for one in raw]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for row in run():
        sys.stdout.write("RESULT " + json.dumps(row.as_dict()) + "\n")
        sys.stdout.flush()
