"""`model`: brings the pinned release here from a hub, and says what is here.

The hub on the loopback has a tiny model under the real one's name and commits.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from feature_pipeline.cli import app
from feature_pipeline.settings import Settings
from feature_pipeline.sources.finbert import FINBERT, FinbertScorer
from feature_pipeline.stack import doctor
from feature_pipeline_tests.providers import hub as made
from feature_pipeline_tests.providers.server import ProviderServer
from feature_pipeline_tests.sources.models import write_model

PULL = FINBERT.weights_commit + "0" * (40 - len(FINBERT.weights_commit))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    return made.files_of(write_model(tmp_path_factory.mktemp("made")))


@pytest.fixture
def server(files) -> ProviderServer:
    main = {name: content for name, content in files.items() if name != "model.safetensors"}
    commits = {FINBERT.revision: main, PULL: files}
    with ProviderServer(made.routes(FINBERT.model, commits, {FINBERT.weights: PULL})) as running:
        yield running


@pytest.fixture
def call(tmp_path):
    def run(*words: str, **variables: str):
        environment = {"FEATURE_PIPELINE_HOME": str(tmp_path), "COLUMNS": "200", "NO_COLOR": "1"}
        return CliRunner().invoke(app, ["model", *words], env=environment | variables)

    return run


def test_fetch_brings_the_pinned_model_and_show_tells_of_it(call, server, tmp_path):
    before = json.loads(call("show", "--scorer", "finbert", "--json").stdout)
    assert (before["state"], before["active"]) == ("not here", False)
    done = call("fetch", "--endpoint", server.url)
    assert done.exit_code == 0, done.stderr
    assert f"ProsusAI/finbert {FINBERT.revision[:12]} is in place" in done.stdout
    assert "FEATURE_PIPELINE_SCORER=finbert" in done.stdout, "vader is the active one"
    after = json.loads(call("show", "--json", FEATURE_PIPELINE_SCORER="finbert").stdout)
    assert (after["state"], after["active"]) == ("here, unharmed", True)
    assert after["revision"] == FINBERT.revision
    assert after["files"]["model.safetensors"]["commit"] == PULL
    small = call("show", FEATURE_PIPELINE_SCORER="finbert-int8").stdout
    assert f"{FINBERT.revision}+int8" in small
    assert "here, unharmed" in small
    assert FinbertScorer(tmp_path / "models").score(["profit"]).height == 1


def test_the_endpoint_comes_from_the_environment_as_well(call, server):
    done = call("fetch", "--json", HF_ENDPOINT=server.url)
    found = json.loads(done.stdout)
    assert found["endpoint"] == server.url
    assert set(found["files"]) >= {"config.json", "vocab.txt", "model.safetensors"}


def test_models_may_lie_elsewhere(call, server, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    call("fetch", "--endpoint", server.url, FEATURE_PIPELINE_MODELS=str(elsewhere))
    assert FINBERT.within(elsewhere).is_dir()
    assert not (tmp_path / "models").exists()


def test_harm_is_shown(call, server, tmp_path):
    call("fetch", "--endpoint", server.url)
    (FINBERT.within(tmp_path / "models") / "vocab.txt").write_text("x")
    shown = call("show", "--scorer", "finbert").stdout
    assert "damaged: vocab.txt" in shown
    assert "feature-pipeline model fetch" in shown


def test_an_error_is_one_line_and_exit_code_1(call, server):
    server.routes = made.routes(FINBERT.model, {})
    done = call("fetch", "--endpoint", server.url)
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.strip().splitlines()
    assert line == (
        f"feature-pipeline: {server.url} has no revision {FINBERT.revision} of ProsusAI/finbert"
    )
    assert call("fetch", "--scorer", "vader").exit_code == 2, "it comes with the installation"


def test_show_tells_of_the_lexicon_too(call):
    shown = json.loads(call("show", "--json").stdout)
    assert shown["scorer"] == shown["model"] == "vader"
    assert shown["state"] == "part of the installation"


def test_doctor_tells_the_scorer_and_whether_it_could_score(call, server, tmp_path, monkeypatch):
    def sentiment(scorer: str) -> doctor.Finding:
        return doctor._scorer(Settings(home=tmp_path, scorer=scorer))

    assert sentiment("vader").right
    missing = sentiment("finbert-int8")
    assert (missing.right, missing.fix) == (False, "feature-pipeline model fetch")
    assert FINBERT.revision in missing.found
    call("fetch", "--endpoint", server.url)
    assert sentiment("finbert-int8").right
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: None)
    assert sentiment("finbert").fix == "pip install torch==2.13.0"


def test_a_fetch_leaves_no_half_model(call, server, files, tmp_path):
    broken = {**files, "model.safetensors": b"none"}
    server.routes = made.routes(
        FINBERT.model, {FINBERT.revision: files, PULL: broken}, {FINBERT.weights: PULL}
    )
    assert call("fetch", "--endpoint", server.url).exit_code == 1
    assert not FINBERT.within(tmp_path / "models").exists()
    assert Path(f"{FINBERT.within(tmp_path / 'models')}.partial").is_dir()
