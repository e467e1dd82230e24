"""The command line on a small world: its universe, its tables, and an empty Redis."""

from __future__ import annotations

import json
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from feature_pipeline.cli import app
from feature_pipeline.stack import foreground
from feature_pipeline_tests.assets.support import Graph
from feature_pipeline_tests.assets.world import write_universe
from feature_pipeline_tests.stack.helpers import CLI, environment


def invoke(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in this process, which has imported what a process of its own takes seconds for."""
    with pytest.MonkeyPatch.context() as patch:
        # What a command asks the kernel for would be asked for the whole test process.
        patch.setattr(foreground, "until_told", nullcontext)
        done = CliRunner().invoke(app, words, env=variables, prog_name="feature-pipeline")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


class Shell:
    """Runs commands against the stores of a graph: in this process, unless they have to be real."""

    def __init__(self, home: Path, graph: Graph, redis_url: str) -> None:
        self.home, self.graph = home, graph
        self.variables = {
            "COLUMNS": "200",
            "NO_COLOR": "1",
            "FEATURE_PIPELINE_HOME": str(home),
            "FEATURE_PIPELINE_DATABASE_URL": graph.url,
            "FEATURE_PIPELINE_REDIS_URL": redis_url,
            "FEATURE_PIPELINE_UNIVERSE": str(write_universe(home / "universe.yaml")),
        }

    def __call__(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return invoke(*words, **self.variables | variables)

    def real(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The same in a process of its own."""
        return subprocess.run(
            [*CLI, *words],
            env=environment(self.home, **self.variables),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def says(self, *words: str, **variables: str) -> str:
        """What it prints; it must succeed."""
        done = self(*words, **variables)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done.stdout

    def json(self, *words: str, **variables: str) -> Any:
        """What it prints with --json: one document and nothing else."""
        return json.loads(self.says(*words, "--json", **variables))

    def error(self, *words: str, **variables: str) -> str:
        """The one line of an error that a user can mend."""
        done = self(*words, **variables)
        assert (done.returncode, done.stdout) == (1, ""), (done.stdout, done.stderr)
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("feature-pipeline: ")
        return line


@pytest.fixture(scope="module")
def new_shell(redis_server, tmp_path_factory):
    """Makes shells on graphs."""

    def make(graph: Graph) -> Shell:
        return Shell(tmp_path_factory.mktemp("home"), graph, redis_server.url)

    return make


@pytest.fixture(scope="module")
def shell(new_shell, ran) -> Shell:
    """On the graph that ran and is not to be changed; published."""
    made = new_shell(ran)
    assert made.json("online", "rebuild", "--force")["written"] > 0
    return made
