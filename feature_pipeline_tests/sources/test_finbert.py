"""FinBERT: real loading of tiny models, scores that follow from their outputs, and refusals."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from feature_pipeline.errors import ModelError, SourceError
from feature_pipeline.resources import scorer as scorer_of
from feature_pipeline.settings import Settings
from feature_pipeline.sources import Scorer, finbert
from feature_pipeline.sources.finbert import (
    BATCH_TOKENS,
    DIGITS,
    FINBERT,
    LABELS,
    FinbertScorer,
    batches,
)
from feature_pipeline_tests.sources.models import RELEASE, WORDS, install, write_model
from feature_pipeline_tests.stack.helpers import environment

ROUNDED = 10.0**-DIGITS


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("models")
    install(where)
    return where


@pytest.fixture(scope="module")
def scorer(models) -> FinbertScorer:
    return FinbertScorer(models, RELEASE)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = random.Random(7)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(150)]


def by_hand(where: Path, text: str) -> dict[str, float]:
    """Label -> probability, straight from transformers, a text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(where)
    network = AutoModelForSequenceClassification.from_pretrained(where).eval()
    with torch.inference_mode():
        inputs = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
        shares = torch.softmax(network(**inputs).logits[0].double(), -1)
    return {network.config.id2label[i]: float(share) for i, share in enumerate(shares)}


# -- which model ----------------------------------------------------------------------------------


def test_the_settings_choose_it_and_nothing_is_loaded(tmp_path):
    chosen = scorer_of(Settings(scorer="finbert", home=tmp_path))
    assert isinstance(chosen, Scorer)
    assert (chosen.model, chosen.revision) == (FINBERT.model, FINBERT.revision)
    assert chosen.models == tmp_path / "models"
    small = scorer_of(Settings(scorer="finbert-int8", models=tmp_path))
    assert (small.model, small.revision) == (FINBERT.model, f"{FINBERT.revision}+int8")
    assert small.where == tmp_path / "ProsusAI--finbert" / FINBERT.revision
    assert len(FINBERT.revision) == 40


def test_definitions_import_neither_torch_nor_transformers(tmp_path):
    script = (
        "import sys; import feature_pipeline.definitions as d;"
        "assert d.defs.resources['scorer'].model == 'ProsusAI/finbert';"
        "sys.exit(repr({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(tmp_path, FEATURE_PIPELINE_SCORER="finbert"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.strip().splitlines()[-1] == "set()"


# -- scores ---------------------------------------------------------------------------------------


def test_scores_follow_from_the_models_outputs(scorer, models, texts):
    found = scorer.score(texts[:8])
    for text, row in zip(texts[:8], found.iter_rows(named=True), strict=True):
        shares = by_hand(RELEASE.within(models), text)
        assert row["sentiment"] == pytest.approx(
            shares["positive"] - shares["negative"], abs=ROUNDED
        )
        assert row["label"] == max(shares, key=shares.get)
        assert row["confidence"] == pytest.approx(max(shares.values()), abs=ROUNDED)
    assert set(scorer.score(texts)["label"]) == set(LABELS), "the texts say something of each"


def test_labels_are_read_from_the_config_and_not_from_their_place(tmp_path, texts):
    """The same weights under other labels mean something else."""
    orders = (LABELS, ("neutral", "positive", "negative"), ("Negative", "Neutral", "Positive"))
    found = []
    for number, labels in enumerate(orders):
        install(tmp_path / str(number), labels=labels)
        found.append(FinbertScorer(tmp_path / str(number), RELEASE).score(texts[:40]))
    turned = {"positive": "neutral", "negative": "positive", "neutral": "negative"}
    assert found[1]["label"].to_list() == found[0]["label"].replace_strict(turned).to_list()
    turned = {"positive": "negative", "negative": "neutral", "neutral": "positive"}
    assert found[2]["label"].to_list() == found[0]["label"].replace_strict(turned).to_list()
    assert found[0]["confidence"].equals(found[1]["confidence"])


def test_a_text_has_its_score_whatever_it_is_scored_with(scorer, texts):
    alone = pl.concat(scorer.score([text]) for text in texts[:30])
    shuffled = random.Random(1).sample(texts, len(texts))
    together = scorer.score(shuffled)
    place = [shuffled.index(text) for text in texts[:30]]
    apart = (together[place]["sentiment"] - alone["sentiment"]).abs()
    assert apart.max() <= ROUNDED * 1.001
    assert (apart > ROUNDED / 2).sum() <= 1, "all but those at the edge of a rounding are equal"
    assert together.equals(scorer.score(shuffled))


def test_batches_do_not_change_with_the_order_asked_for(scorer, texts):
    there = scorer.score(texts)
    back = scorer.score(texts[::-1])
    assert back[::-1].equals(there)


def test_texts_of_like_length_share_a_batch(scorer, texts, monkeypatch):
    sizes: list[tuple[int, int]] = []
    real = finbert._forward

    def seen(loaded, tokens):
        sizes.append((sum(map(len, tokens)), len(tokens) * max(map(len, tokens))))
        return real(loaded, tokens)

    monkeypatch.setattr(finbert, "_forward", seen)
    scorer.score(texts)
    tokens, padded = (sum(column) for column in zip(*sizes, strict=True))
    assert padded <= BATCH_TOKENS * len(sizes)
    assert padded < 1.1 * tokens, "padding is computed for nothing"


def test_threads_change_no_score(scorer, models, texts):
    one, three = (FinbertScorer(models, RELEASE, threads=n).score(texts) for n in (1, 3))
    assert one.equals(three)
    assert one.equals(scorer.score(texts))


def test_identical_texts_are_scored_once(models, monkeypatch):
    ours = FinbertScorer(models, RELEASE)
    seen: list[str] = []
    real = ours._probabilities
    monkeypatch.setattr(ours, "_probabilities", lambda texts: seen.extend(texts) or real(texts))
    found = ours.score(["profit soar", "loss", "profit soar", "profit soar"])
    assert seen == ["profit soar", "loss"]
    assert found[0].equals(found[2])
    assert found[0].equals(found[3])


def test_what_says_nothing_is_neutral_and_needs_no_model(tmp_path):
    nowhere = FinbertScorer(tmp_path, RELEASE)
    found = nowhere.score(["", "  \n", None])
    assert found.rows() == [(0.0, "neutral", 1.0)] * 3
    assert nowhere.score([]).columns == ["sentiment", "label", "confidence"]


def test_what_comes_after_512_tokens_is_not_read(scorer, models):
    long = "profit " * 510
    found = scorer.score([long, long + "crash " * 500])
    assert found[0].equals(found[1]), "[CLS] and [SEP] are two of them"
    shares = by_hand(RELEASE.within(models), long)
    assert found["confidence"][0] == pytest.approx(max(shares.values()), abs=ROUNDED)


def test_a_huge_text_costs_what_its_beginning_costs(scorer):
    scorer.score(["warm"])
    started = time.process_time()
    scorer.score(["profit and loss 💥 " * 60_000])
    assert time.process_time() - started < 5, "tokenising all of it takes longer"


@pytest.mark.parametrize(
    "text", ["💥🚀", "שלום עולם", "\ufeff\u202e\u0000", "a" * 5000, "<b>profit</b>", "\u0301" * 900]
)
def test_any_text_has_a_score(scorer, text):
    row = scorer.score([text, "profit"]).row(0, named=True)
    assert -1 <= row["sentiment"] <= 1
    assert 0 <= row["confidence"] <= 1


def test_batches_keep_to_their_budget():
    lengths = sorted(random.Random(3).choices(range(3, 513), k=400))
    found = list(batches(lengths, BATCH_TOKENS))
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(400))
    for part in found:
        inside = lengths[part]
        assert len(inside) == 1 or len(inside) * max(inside) <= BATCH_TOKENS
    fuller = [(b.stop - a.start) * lengths[b.stop - 1] for a, b in pairwise(found)]
    assert min(fuller) > BATCH_TOKENS, "no two neighbours would have fitted into one"
    assert list(batches([], 8)) == []
    assert list(batches([9, 9], 8)) == [slice(0, 1), slice(1, 2)]


def test_int8_is_another_revision_and_close(models, scorer, texts):
    small = FinbertScorer(models, RELEASE, int8=True)
    assert small.revision == f"{scorer.revision}+int8"
    apart = (small.score(texts)["sentiment"] - scorer.score(texts)["sentiment"]).abs()
    assert apart.max() > 0, "it is another model"
    assert apart.mean() < 0.1, "of the same kind"


# -- refusals -------------------------------------------------------------------------------------


def refused(models: Path, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        FinbertScorer(models, RELEASE, **options).score(["profit"])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_that_is_not_there_is_one_clear_line(tmp_path):
    assert refused(tmp_path) == (
        f"the sentiment model made/finbert is not in {tmp_path}; fetch it with "
        "`feature-pipeline model fetch`"
    )
    assert issubclass(ModelError, SourceError)


@pytest.mark.parametrize(
    "labels",
    [
        ("LABEL_0", "LABEL_1", "LABEL_2"),
        ("positive", "negative"),
        ("positive", "negative", "neutral", "mixed"),
        ("positive", "negative", "Negative"),
    ],
)
def test_other_labels_are_refused(tmp_path, labels):
    install(tmp_path, labels=labels)
    line = refused(tmp_path)
    assert "needed are exactly positive, negative, neutral" in line
    assert labels[0].lower() in line


def test_pickles_are_not_loaded(tmp_path):
    where = install(tmp_path)
    torch.save(load_file(where / "model.safetensors"), where / "pytorch_model.bin")
    (where / "model.safetensors").unlink()
    assert "cannot be loaded" in refused(tmp_path)


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    where, marker = install(tmp_path), tmp_path / "was-run"
    code = (
        f"open({str(marker)!r}, 'w')\nfrom transformers import BertForSequenceClassification as M"
    )
    (where / "evil.py").write_text(code)
    config = json.loads((where / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "evil.M"}
    (where / "config.json").write_text(json.dumps(config))
    with suppress(ModelError):  # refused altogether is as good
        FinbertScorer(tmp_path, RELEASE).score(["profit"])
    assert not marker.exists()


def test_weights_that_lack_a_layer_are_refused(tmp_path):
    where = install(tmp_path)
    weights = load_file(where / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, where / "model.safetensors", metadata={"format": "pt"})
    assert "lack 1 layers, classifier.weight first" in refused(tmp_path)


def test_damaged_weights_are_refused(tmp_path):
    where = install(tmp_path)
    content = (where / "model.safetensors").read_bytes()
    (where / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "model fetch" in refused(tmp_path)


def test_without_torch_it_says_how_to_install_it(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install torch==2.13.0" in refused(models)


def test_nothing_is_asked_over_the_network(models, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert FinbertScorer(models, RELEASE).score(["profit"]).height == 1


def test_two_models_score_differently(tmp_path, texts):
    found = []
    for seed in (1, 2):
        write_model(RELEASE.within(tmp_path / str(seed)), seed=seed)
        found.append(FinbertScorer(tmp_path / str(seed), RELEASE).score(texts[:20]))
    assert not found[0].equals(found[1])
