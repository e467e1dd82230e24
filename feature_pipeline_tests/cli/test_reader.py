"""What only reads needs no more than the reader's address, and uses no other."""

from __future__ import annotations

import pytest

from feature_pipeline_tests.assets.world import END, START
from feature_pipeline_tests.roles import logins


@pytest.mark.parametrize(
    "words",
    [
        ("export", "train", "rsi_14", "state_vectors_1d", "--start", str(START), "--end", str(END)),
        ("features", "diff"),
        ("features", "show", "rsi_14"),
        ("storage",),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_as_the_reader_alone(shell, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with logins(shell.graph.url) as users:
        told = shell.json(
            *words,
            FEATURE_PIPELINE_DATABASE_URL=users["writer"].replace("@", "x@"),
            FEATURE_PIPELINE_READER_DATABASE_URL=users["reader"],
        )
    whole = shell.json(*words)
    if words[0] == "export":
        assert told["written"] > 0
        assert (whole["written"], whole["unchanged"]) == (0, told["written"])
    else:
        # Sizes move, and Dagster's storage is not the reader's to see.
        assert told.keys() == whole.keys()
        assert all(told[key] == whole[key] for key in {"assets", "changes", "stored"} & told.keys())
