"""Fetching a model from a hub: the pinned one, whole, checked - or a clear line and nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from feature_pipeline.errors import ModelError, SourceError
from feature_pipeline.sources import hub
from feature_pipeline.sources.finbert import FINBERT, FinbertScorer, Release
from feature_pipeline_tests.providers import hub as made
from feature_pipeline_tests.providers.server import (
    Answer,
    ProviderServer,
    broken,
    dripping,
    html,
    too_many,
)
from feature_pipeline_tests.sources.models import RELEASE, write_model

MAIN, PULL = "2" * 40, "ad80bfd" + "3" * 33
PINNED = Release("made/finbert", MAIN, "refs/pr/8", "ad80bfd")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    return made.files_of(write_model(tmp_path_factory.mktemp("made")))


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> dict[str, bytes]:
    """Of more than the 10 MB that huggingface_hub writes at a time."""
    size = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 3}
    return made.files_of(write_model(tmp_path_factory.mktemp("large"), size=size))


@pytest.fixture
def server(files) -> ProviderServer:
    with ProviderServer(made.routes("made/finbert", {RELEASE.revision: files})) as running:
        yield running


def fetch(models: Path, server: ProviderServer, release: Release = RELEASE, **options):
    return hub.fetch(release, models, endpoint=server.url, **options)


def refused(models: Path, server: ProviderServer, release: Release = RELEASE, **options) -> str:
    with pytest.raises(SourceError) as caught:
        fetch(models, server, release, **options)
    assert "\n" not in str(caught.value)
    assert not release.within(models).exists(), "nothing is in place"
    return str(caught.value)


def test_what_is_fetched_is_what_the_hub_has_and_scores(tmp_path, server, files):
    told: list[tuple[str, int, int]] = []
    found = fetch(tmp_path, server, told=lambda *said: told.append(said))
    assert found == hub.installed(RELEASE, tmp_path)
    assert set(found.files) == set(files)
    assert {name: (Path(found.where) / name).read_bytes() for name in files} == files
    assert FinbertScorer(tmp_path, RELEASE).score(["profit"]).height == 1
    size = len(files["model.safetensors"])
    assert told[-1] == ("model.safetensors", size, size)
    assert {path.name for path in Path(found.where).parent.iterdir()} == {
        RELEASE.revision,
        f"{RELEASE.revision}.lock",
    }
    assert not [r for r in server.asked if "authorization" in r.headers], "no token"


def test_what_is_here_is_not_asked_for_again(tmp_path, server):
    first = fetch(tmp_path, server)
    asked = len(server.asked)
    assert fetch(tmp_path, server) == first
    assert len(server.asked) == asked


def test_what_was_harmed_is_fetched_again(tmp_path, server, files):
    where = Path(fetch(tmp_path, server).where)
    (where / "vocab.txt").write_text("[UNK]\n")
    assert hub.damaged(hub.installed(RELEASE, tmp_path)) == ["vocab.txt"]
    found = fetch(tmp_path, server)
    assert hub.damaged(found) == []
    assert (where / "vocab.txt").read_bytes() == files["vocab.txt"]


def test_weights_come_from_the_pinned_pull_request(tmp_path, files):
    """`main` of the real repository has pickles alone."""
    main = {name: content for name, content in files.items() if name != "model.safetensors"}
    main["pytorch_model.bin"] = b"a pickle"
    commits = {MAIN: main, PULL: {"model.safetensors": files["model.safetensors"]}}
    with ProviderServer(made.routes("made/finbert", commits, {"refs/pr/8": PULL})) as server:
        found = fetch(tmp_path, server, PINNED)
        assert found.files["model.safetensors"]["commit"] == PULL
        assert found.files["vocab.txt"]["commit"] == MAIN
        assert "pytorch_model.bin" not in "".join(server.paths())
        unpinned = Release("made/finbert", MAIN)
        assert "has no model.safetensors" in refused(tmp_path / "other", server, unpinned)


def test_another_commit_than_the_pinned_one_is_refused(tmp_path, files):
    moved = "4" * 40
    commits = {MAIN: files, moved: files}
    with ProviderServer(made.routes("made/finbert", commits, {"refs/pr/8": moved})) as server:
        line = refused(tmp_path, server, PINNED)
        assert "in commit 444444444444, not in ad80bfd, which is pinned" in line
        assert {request.method for request in server.asked} == {"HEAD"}, "nothing was downloaded"


def test_the_production_pin_is_complete():
    assert len(FINBERT.revision) == 40
    assert FINBERT.weights == "refs/pr/8"
    assert FINBERT.weights_commit


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_corrupt_download_is_refused_and_the_next_one_is_right(tmp_path, files, name):
    bad = [name]

    def served(request, file, content):
        if request.method == "GET" and file in bad:
            return content[:-20] + bytes(reversed(content[-20:]))
        return content

    routes = made.routes("made/finbert", {RELEASE.revision: files}, served=served)
    with ProviderServer(routes) as server:
        assert f"{name} from {server.url} is not what the hub says" in refused(tmp_path, server)
        bad.clear()
        assert hub.damaged(fetch(tmp_path, server)) == []


def test_a_download_that_breaks_off_goes_on_where_it_was(tmp_path, server, large):
    server.routes = made.routes("made/finbert", {RELEASE.revision: large})
    weights = large["model.safetensors"]
    assert len(weights) > 11 << 20
    cut = [True]

    def breaking(request):
        if request.method == "GET" and request.path.endswith("safetensors") and cut:
            cut.clear()
            return Answer(200, weights, cut=11 << 20)
        return made.routes("made/finbert", {RELEASE.revision: large})["/made/finbert/"](request)

    server.routes["/made/finbert/"] = breaking
    assert hub.damaged(fetch(tmp_path, server)) == []
    asked = [r.headers.get("range") for r in server.asked if r.path.endswith("safetensors")]
    assert asked == [None, None, f"bytes={10 << 20}-"]


FETCH = """
import sys
from pathlib import Path
from feature_pipeline.sources import hub
from feature_pipeline_tests.sources.models import RELEASE
hub.fetch(RELEASE, Path(sys.argv[1]), endpoint=sys.argv[2])
"""


def test_a_killed_fetch_is_resumed(tmp_path, large):
    """Killed in the middle of the weights: the next one asks for the rest alone."""
    weights = large["model.safetensors"]
    resolve = made.routes("made/finbert", {RELEASE.revision: large})["/made/finbert/"]
    victim: list[subprocess.Popen] = []

    def killing(request):
        if request.method == "GET" and request.path.endswith("safetensors") and victim:
            if "range" in request.headers:  # it had the first 10 MB and asks for more
                os.kill(victim.pop().pid, signal.SIGKILL)
                return Answer(500)
            return Answer(200, weights, cut=11 << 20)
        return resolve(request)

    with ProviderServer({"/made/finbert/": killing}) as server:
        victim.append(subprocess.Popen([sys.executable, "-c", FETCH, str(tmp_path), server.url]))
        assert victim[0].wait(120) == -signal.SIGKILL
        assert not RELEASE.within(tmp_path).exists()
        before = len(server.asked)
        assert hub.damaged(fetch(tmp_path, server)) == []
        asked = [r for r in server.asked[before:] if r.method == "GET"]
        assert [r.path.rpartition("/")[2] for r in asked] == ["model.safetensors"]
        assert asked[0].headers["range"] == f"bytes={10 << 20}-"


@pytest.mark.parametrize("labels", [("LABEL_0", "LABEL_1", "LABEL_2"), ("bad", "good")])
def test_another_kind_of_classifier_is_refused(tmp_path, tmp_path_factory, labels):
    files = made.files_of(write_model(tmp_path_factory.mktemp("other"), labels=labels))
    with ProviderServer(made.routes("made/finbert", {RELEASE.revision: files})) as server:
        assert "needed are exactly" in refused(tmp_path, server)


def test_weights_that_are_none_are_refused(tmp_path, files):
    other = {**files, "model.safetensors": b"not safetensors"}
    with ProviderServer(made.routes("made/finbert", {RELEASE.revision: other})) as server:
        assert "cannot be loaded" in refused(tmp_path, server)


def test_errors_of_the_hub_are_one_line(tmp_path, server, files):
    assert "has no model other/model" in refused(tmp_path, server, Release("other/model", MAIN))
    assert f"has no revision {MAIN}" in refused(tmp_path, server, Release("made/finbert", MAIN))
    less = {name: content for name, content in files.items() if name != "vocab.txt"}
    server.routes = made.routes("made/finbert", {RELEASE.revision: less})
    assert "has no vocab.txt" in refused(tmp_path, server)
    server.routes = {"/": lambda _: html()}
    assert "reports no commit, size or hash" in refused(tmp_path, server)


def test_faults_that_pass_are_tried_again(tmp_path, server):
    server.fail(too_many("0"), broken(), broken())
    assert hub.damaged(fetch(tmp_path, server)) == []


def test_a_hub_that_stays_broken_is_one_line(tmp_path, server):
    server.fail(broken(), times=9)
    few = replace(hub.LIMITS, attempts=2)
    assert "answered 500, 2 times" in refused(tmp_path, server, limits=few)


def test_a_hub_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    with ProviderServer() as gone:
        pass
    few = replace(hub.LIMITS, attempts=2)
    with pytest.raises(SourceError, match=r"hub: 127\.0\.0\.1") as caught:
        hub.fetch(RELEASE, tmp_path, endpoint=gone.url, limits=few)
    assert "\n" not in str(caught.value)


def test_a_dripping_hub_ends_at_the_deadline(tmp_path, server, files):
    resolve = server.routes["/made/finbert/"]
    slow = dripping(files["config.json"], each_s=0.05)
    server.routes["/made/finbert/"] = lambda r: slow if r.method == "GET" else resolve(r)
    started = time.monotonic()
    assert "too slow" in refused(tmp_path, server, deadline_s=1)
    assert time.monotonic() - started < 5, "840 bytes would take 42 s"


def test_offline_mode_of_the_hub_is_named(tmp_path, server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(tmp_path, server)


def test_two_fetches_exclude_each_other(tmp_path, server):
    lock = RELEASE.within(tmp_path).with_suffix(".lock")
    lock.parent.mkdir(parents=True)
    with hub._alone(lock), pytest.raises(ModelError, match="another fetch"):
        fetch(tmp_path, server)


@pytest.mark.parametrize(
    "endpoint",
    ["ftp://hub", "hub.example.com", "https://me:secret@hub", "https://hub/x?token=secret"],
)
def test_an_endpoint_that_is_none_is_refused(tmp_path, endpoint):
    with pytest.raises(SourceError) as caught:
        hub.fetch(RELEASE, tmp_path, endpoint=endpoint)
    assert "must be an http(s):// address without credentials" in str(caught.value)
    assert "secret" not in str(caught.value)
