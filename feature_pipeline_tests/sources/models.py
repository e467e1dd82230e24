"""Models in the shape of FinBERT, of random weights: tiny ones for tests, BERT-base for the bench.

Saved as a hub has them and loaded by the real code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from feature_pipeline.sources.finbert import LABELS, Release

WORDS = (
    "shares", "profit", "loss", "soar", "crash", "rise", "fall", "strong", "weak", "results",
    "fear", "hope", "apple", "bank", "rates", "market", "record", "cut", "beat", "miss",
)  # fmt: skip
"""The words that a made vocabulary knows; letters make up all others."""

TINY: Mapping[str, float] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
BASE: Mapping[str, float] = {"initializer_range": 0.02}
"""BERT-base is what an empty configuration means."""

REVISION = "1" * 40
RELEASE = Release("made/finbert", REVISION)


def write_model(
    where: Path,
    *,
    seed: int = 0,
    size: Mapping[str, float] = TINY,
    labels: Sequence[str] = LABELS,
    spread: float = 2.0,
) -> Path:
    """Write configuration, vocabulary and weights into a directory.

    Args:
        where: the directory.
        seed: of the weights.
        size: of the network.
        labels: in the order of its outputs.
        spread: of the weights that decide; the larger, the surer the model.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    where.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(33, 127)]
    pieces = [f"##{letter}" for letter in letters]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = list(dict.fromkeys([*special, *WORDS, *letters, *pieces]))
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        num_labels=len(labels),
        **{"initializer_range": 0.5, **size},  # the default's texts would all score alike
    )
    model = BertForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight, std=spread)
    model.save_pretrained(where)
    (where / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    # As ProsusAI/finbert has them: no tokenizer.json, the class follows from the model's type.
    (where / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    (where / "special_tokens_map.json").write_text(
        json.dumps(
            {
                "unk_token": "[UNK]",
                "sep_token": "[SEP]",
                "pad_token": "[PAD]",
                "cls_token": "[CLS]",
                "mask_token": "[MASK]",
            }
        )
    )
    return where


def install(models: Path, release: Release = RELEASE, **options: object) -> Path:
    """A model where the scorer looks for it."""
    return write_model(release.within(models), **options)  # type: ignore[arg-type]
