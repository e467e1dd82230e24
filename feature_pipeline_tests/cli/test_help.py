"""Help, exit codes and completion of the command line: what is promised there is true."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import typer

from feature_pipeline.cli import app, complete
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.serving.names import every_name
from feature_pipeline.universe import DEFAULT, Universe
from feature_pipeline_tests.cli.conftest import invoke
from feature_pipeline_tests.stack.helpers import CLI, environment


def commands() -> dict[str, object]:
    """Every command by its words."""
    found = {}

    def walk(group, words: tuple[str, ...]) -> None:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                walk(command, (*words, name))
            else:
                found[" ".join((*words, name))] = command

    walk(typer.main.get_command(app), ())
    return found


@pytest.mark.parametrize("words", commands())
def test_every_command_shows_examples_of_itself(words):
    text = commands()[words].help or ""
    assert "\b\nExamples:\n" in text, "in one form, so that its lines stay lines"
    examples = text.split("Examples:\n")[1].splitlines()
    mine = [line for line in examples if f"feature-pipeline {words}" in line]
    assert mine, text
    assert all(line.startswith("  ") for line in examples if line)


@pytest.mark.parametrize("words", commands())
def test_every_example_parses(words):
    """The arguments that the help shows are arguments that the command takes."""
    text = (commands()[words].help or "").replace("\\\n", " ")
    for line in text.split("Examples:\n")[1].splitlines():
        call = re.search(rf"feature-pipeline {words}(.*)", line)
        if call is None or words == "run":
            continue
        arguments = shlex.split(call[1].split(" | ")[0].replace("...", ""))
        commands()[words].make_context(words, arguments, resilient_parsing=False)


def _help(*words: str, **variables: str) -> str:
    done = subprocess.run(
        [*CLI, *words, "--help"],
        env=environment(os.devnull, COLUMNS="150", NO_COLOR="1", **variables),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_help_groups_the_commands_and_tells_the_exit_codes():
    text = _help()
    places = [text.index(panel) for panel in ("Start here", "Look", "Fill and repair", "Servers")]
    assert places == sorted(places)
    assert "─ Commands ─" not in text, "a command without a panel"
    for code in ("0 done", "1 an error that you can mend", "2 wrong usage", "130 interrupted"):
        assert code in text


def test_examples_keep_their_lines():
    text = _help("get")
    assert re.search(r"\n +feature-pipeline get AAPL rsi_14 returns_20d regime *\n", text)


def test_exit_codes(tmp_path):
    def code(*words: str) -> int:
        return invoke(*words, FEATURE_PIPELINE_HOME=str(tmp_path)).returncode

    def code_of_a_process(*words: str) -> int:
        return subprocess.run(
            [*CLI, *words], env=environment(tmp_path), capture_output=True, check=False
        ).returncode

    assert code("--help") == 0
    assert code("doctor") == 1, "nothing runs here"
    assert code("get", "AAPL", "nonsense") == code_of_a_process("get", "AAPL", "nonsense") == 1
    assert code("get") == code("logs", "-n", "x") == code_of_a_process("no-such-command") == 2


def test_an_interrupted_command_ends_with_130(tmp_path):
    log = tmp_path / "log" / "slow.log"
    log.parent.mkdir()
    log.write_text("one\ntwo\n")
    process = subprocess.Popen(
        [*CLI, "logs", "slow", "--follow"],
        env=environment(tmp_path, PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "one\n"
        with log.open("a") as file:
            file.write("three\n")
        assert [process.stdout.readline() for _ in range(2)] == ["two\n", "three\n"]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.communicate()


# -- completion -----------------------------------------------------------------------------------


def test_names_complete_to_what_can_be_asked_for():
    places = every_name()
    assert set(complete.features("")) == {place.column for place in places}
    assert set(complete.features("o.")) == set()
    dotted = {name for t in complete.columns() for name in complete.features(f"{t}.")}
    assert dotted == {place.path for place in places}
    assert set(complete.assets("")) == set(TABLES)
    universe = Universe.load()
    assert {*universe.symbols, "META", "^GSPC"} <= set(complete.symbols(""))


def test_bars_of_other_lengths_complete_where_the_universe_has_them(monkeypatch, tmp_path):
    assert "indicators_1h" not in complete.assets("")
    hours = tmp_path / "universe.yaml"
    hours.write_text("timeframes: [1d, 1h]\n" + DEFAULT.read_text(encoding="utf-8"))
    monkeypatch.setenv("FEATURE_PIPELINE_UNIVERSE", str(hours))
    assert {"indicators_1h", "indicators_1d"} <= set(complete.assets("indicators"))
    assert "features_1h.returns_20" in complete.features("features_1h.")
    assert not complete.assets("features_5m")


def test_completion_is_quick_and_light():
    script = (
        "import sys; from feature_pipeline.cli import complete as c;"
        "assert c.symbols('A') and c.features('rsi') and c.assets('') and not c.logs('');"
        "sys.exit(repr({'polars', 'dagster', 'pydantic', 'rich', 'psycopg'} & set(sys.modules)))"
    )
    started = time.process_time()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment(os.devnull)
    )
    assert done.stderr.strip() == "set()"
    assert time.process_time() - started < 1


def test_nothing_completes_where_nothing_can_be_read(monkeypatch):
    monkeypatch.setenv("FEATURE_PIPELINE_UNIVERSE", "/no/such/file")
    assert complete.symbols("") == []


def test_the_shell_is_offered_them(tmp_path):
    script = "from feature_pipeline.cli import app; app(prog_name='feature-pipeline')"

    def offered(line: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment(tmp_path)
            | {
                "_FEATURE_PIPELINE_COMPLETE": "complete_bash",
                "COMP_WORDS": line,
                "COMP_CWORD": str(len(line.split(" ")) - 1),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.split()

    assert "quarantine" in offered("feature-pipeline qua")
    assert offered("feature-pipeline get AA") == ["AAPL"]
    assert offered("feature-pipeline get AAPL rsi_") == ["rsi_14"]
    assert offered("feature-pipeline explain AAPL state_vectors_1d.clo") == [
        "state_vectors_1d.close"
    ]
    assert offered("feature-pipeline quarantine list --asset macro") == ["macro_indicators"]
