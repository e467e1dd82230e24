"""Sentiment by a transformer: FinBERT behind the `Scorer` interface.

Araci: FinBERT, financial sentiment analysis with pre-trained language models, arXiv 1908.10063.
Here: which release, where it lies, loading it, and from texts to scores. Scoring reads local files
alone; bringing them here is `hub.py`'s.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from feature_pipeline.errors import ModelError

LABELS = ("positive", "negative", "neutral")

DIGITS = 4
"""Decimal places of sentiment and confidence. What a text's neighbours in a batch change in fp32
was 2e-6 at most, so that the same text has the same score (and its day the same hash) but for one
in some hundred at the edge of a rounding; there the first score is kept (`scored_texts`)."""

MAX_TOKENS = 512
"""BERT has no more positions; what comes later in a text is not read."""

BATCH_TOKENS = 256
"""Tokens of a batch, padding included, on one core of a CPU. With fewer, each weight is fetched for
too little; with 512, measured 10 to 25 % slower, what lies between two layers outgrows the cache. A
text that is longer is a batch of its own."""

GPU_BATCH_TOKENS = 16_384

_CHARACTERS = 20_000
"""No text of that length has fewer than 512 tokens, unless it is made of blanks: cut before it is
tokenised, a post of a megabyte costs what its beginning costs."""


@dataclass(frozen=True)
class Release:
    """One commit of one repository on the hub.

    Args:
        model: the repository, OWNER/NAME.
        revision: the commit in full; scores are named after it.
        weights: another commit, branch or pull request of the repository that has the same weights
            as safetensors; empty - the commit itself has them.
        weights_commit: what the commit that `weights` leads to must begin with.
    """

    model: str
    revision: str
    weights: str = ""
    weights_commit: str = ""

    def within(self, models: Path) -> Path:
        """Its directory, where there is one, below the directory of all models."""
        return models / self.model.replace("/", "--") / self.revision


# The head of `main`, as many public projects pin it. It has the weights as a pickle (and for two
# other frameworks), and pickles are not loaded here. The hub's own conversion service has put them
# as safetensors into pull request 8, which was never merged; configuration and vocabulary are the
# same there. Read from stored copies of the hub's pages: the commit of `main` in full, the file
# list of the pull request and the first seven digits of its commit. The rest of that hash and the
# SHA-256 of the file could not be looked up when this was written: `model fetch` checks the digits,
# and the files against the hashes that the hub reports, and writes both down in `fetched.json`.
FINBERT = Release(
    model="ProsusAI/finbert",
    revision="4556d13015211d73dccd3fdd39d39232506f3e43",
    weights="refs/pr/8",
    weights_commit="ad80bfd",
)


@dataclass(frozen=True)
class _Loaded:
    """A model in memory, and how to talk to it."""

    tokenizer: Any
    network: Any
    device: str
    columns: list[int]
    """Where its config has the labels of `LABELS`."""
    threads: int


class FinbertScorer:
    """FinBERT; nothing is loaded before the first text that needs it.

    The same text has the same score whatever it is scored with: see `DIGITS`. With `int8` the
    linear layers are quantised dynamically, which halves the time and moves scores by up to 0.0065
    with a text's neighbours in the batch; the revision says so.

    Args:
        models: the directory of all models.
        release: which one.
        int8: quantised; on the CPU even where there is a GPU.
        threads: of the CPU; as many as this process may use unless given.
        batch_tokens: tokens of a batch; by device unless given.
    """

    def __init__(
        self,
        models: Path,
        release: Release = FINBERT,
        *,
        int8: bool = False,
        threads: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self.release, self.models = release, models
        self.where = release.within(models)
        self._int8, self._threads, self._batch_tokens = int8, threads, batch_tokens

    @property
    def model(self) -> str:
        """The repository on the hub."""
        return self.release.model

    @property
    def revision(self) -> str:
        """Its commit, and whether quantised. Whatever changes scores must change it."""
        return self.release.revision + ("+int8" if self._int8 else "")

    @property
    def present(self) -> bool:
        """Whether its files are here; that they are right was checked when they came."""
        return (self.where / "config.json").is_file()

    def score(self, texts: Sequence[str]) -> pl.DataFrame:
        """See `Scorer.score`. Identical texts are scored once, blank ones are neutral.

        Raises:
            ModelError: the model or torch is not there, or the model is not what it should be.
        """
        asked = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String).fill_null("")})
        distinct = asked.unique(maintain_order=True)
        read = distinct.filter(pl.col("text").str.strip_chars() != "")
        found = read.hstack(
            pl.DataFrame(self._probabilities(read["text"].to_list()), schema=list(LABELS))
        )
        certain = pl.DataFrame({"positive": 0.0, "negative": 0.0, "neutral": 1.0})
        blank = distinct.join(read, on="text", how="anti").join(certain, how="cross")
        scored = pl.concat([found, blank]).with_columns(_scores())
        return asked.join(scored, on="text", how="left", maintain_order="left").select(
            "sentiment", "label", "confidence"
        )

    def _probabilities(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Of the three labels, a row per text; batches are filled with texts of like length."""
        result = np.empty((len(texts), len(LABELS)))
        if not texts:
            return result
        loaded = self._loaded
        tokens = loaded.tokenizer(
            [text[:_CHARACTERS] for text in texts],
            truncation=True,
            max_length=MAX_TOKENS,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        # By length, and among equals by content: the batches do not depend on the order asked for.
        order = sorted(range(len(tokens)), key=lambda i: (len(tokens[i]), tokens[i]))
        budget = self._batch_tokens or (
            GPU_BATCH_TOKENS if loaded.device == "cuda" else BATCH_TOKENS
        )
        parts = [order[part] for part in batches([len(tokens[i]) for i in order], budget)]
        parts.reverse()  # the longest first: no thread is left with one at the end
        said = _together(loaded, [[tokens[i] for i in part] for part in parts])
        for part, shares in zip(parts, said, strict=True):
            result[part] = shares
        return result

    @cached_property
    def _loaded(self) -> _Loaded:
        if not self.present:
            raise ModelError(
                f"the sentiment model {self.model} is not in {self.models}; fetch it with "
                "`feature-pipeline model fetch`"
            )
        return _load(self.where, self._int8, self._threads)


def batches(lengths: Sequence[int], tokens: int) -> Iterator[slice]:
    """Stretches of texts, sorted by length, that padded to their longest have at most `tokens`.

    A text that is longer than that is alone.
    """
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end - start + 1) * lengths[end] > tokens:
            yield slice(start, end)
            start = end


def _scores() -> tuple[pl.Expr, ...]:
    positive, negative, neutral = (pl.col(name) for name in LABELS)
    largest = pl.max_horizontal(*LABELS)
    return (
        (positive - negative).round(DIGITS).alias("sentiment"),
        pl.when(neutral == largest)
        .then(pl.lit("neutral"))
        .when(positive == largest)
        .then(pl.lit("positive"))
        .otherwise(pl.lit("negative"))
        .alias("label"),
        largest.round(DIGITS).alias("confidence"),
    )


def _together(
    loaded: _Loaded, parts: Sequence[Sequence[Sequence[int]]]
) -> Iterator[npt.NDArray[np.float64]]:
    """Probabilities of batches. On a CPU each core computes batches of its own, which costs less
    than all of them at the parts of one; a GPU, or a single batch, is asked directly."""
    import torch

    if loaded.device != "cpu" or min(loaded.threads, len(parts)) == 1:
        yield from (_forward(loaded, part) for part in parts)
        return
    with ThreadPoolExecutor(loaded.threads, "finbert", torch.set_num_threads, (1,)) as pool:
        yield from pool.map(lambda part: _forward(loaded, part), parts)


def _forward(loaded: _Loaded, tokens: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
    """Probabilities of one batch, in the order of `LABELS`."""
    import torch

    lengths = torch.tensor([len(one) for one in tokens])
    padded = torch.full((len(tokens), int(lengths.max())), loaded.tokenizer.pad_token_id)
    for row, one in enumerate(tokens):
        padded[row, : len(one)] = torch.tensor(one)
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
    with torch.inference_mode():
        logits = loaded.network(
            input_ids=padded.to(loaded.device), attention_mask=mask.to(loaded.device)
        ).logits
    shares = torch.softmax(logits.double(), dim=-1)[:, loaded.columns]
    found: npt.NDArray[np.float64] = shares.cpu().numpy()
    return found


def _load(where: Path, int8: bool, threads: int | None) -> _Loaded:
    """The model of a directory: safetensors alone, no code of its own, nothing from the network.

    Raises:
        ModelError: torch is missing, or the directory does not hold a model with our three labels.
    """
    try:
        import torch
    except ImportError:
        raise ModelError(
            "the scorer finbert needs torch, which is not installed; install it with "
            "`pip install torch==2.13.0`"
        ) from None
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    threads = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **local)
        network, report = AutoModelForSequenceClassification.from_pretrained(
            where, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **local
        )
    except Exception as error:  # each library below has its own kinds for a file that is not right
        line = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the sentiment model in {where} cannot be loaded ({type(error).__name__}: {line}); "
            "delete that directory and run `feature-pipeline model fetch`"
        ) from error
    lacking = [*report["missing_keys"], *report["mismatched_keys"]]
    if lacking:  # they would be random numbers
        raise ModelError(f"the weights in {where} lack {len(lacking)} layers, {lacking[0]} first")
    columns = label_columns(network.config.id2label, where)
    network.eval()
    device = "cuda" if torch.cuda.is_available() and not int8 else "cpu"
    if int8:
        with warnings.catch_warnings():  # deprecated for newer releases: torch is pinned
            warnings.simplefilter("ignore")
            network = torch.ao.quantization.quantize_dynamic(
                network, {torch.nn.Linear}, dtype=torch.qint8
            )
    elif device == "cpu" and torch.backends.mkldnn.is_available():
        _lay_out(network)
    return _Loaded(tokenizer, network.to(device), device, columns, threads)


def _lay_out(network: Any) -> None:
    """Lay out the weights of linear layers for oneDNN, once. torch would multiply with MKL, which
    does that at each call: measured, texts take 17 % longer."""
    import torch

    class _Linear(torch.nn.Module):
        def __init__(self, plain: torch.nn.Linear) -> None:
            super().__init__()
            with torch.inference_mode():
                self.weight = torch.ops.mkldnn._reorder_linear_weight(plain.weight, BATCH_TOKENS)
                self.bias = None if plain.bias is None else plain.bias.detach()

        def forward(self, given: torch.Tensor) -> Any:
            return torch.ops.mkldnn._linear_pointwise(given, self.weight, self.bias, "none", [], "")

    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(module, name, _Linear(child))


def label_columns(id2label: Any, where: Path) -> list[int]:
    """Where a model's config has our labels.

    Raises:
        ModelError: it has others.
    """
    said = {str(label).lower(): int(number) for number, label in dict(id2label).items()}
    if len(id2label) != len(LABELS) or set(said) != set(LABELS):
        raise ModelError(
            f"the model in {where} knows the labels {', '.join(sorted(said))}; needed are exactly "
            f"{', '.join(LABELS)}"
        )
    return [said[label] for label in LABELS]
