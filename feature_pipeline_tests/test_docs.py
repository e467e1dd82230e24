"""The documentation: made pages are as the code has it, links lead somewhere, commands exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from feature_pipeline.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = [page for page in PAGES if page.parent.name != "reference"]


def _build():
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_says():
    stale = [path.name for path, text in _build().pages().items() if path.read_text() != text]
    assert not stale, f"run `make docs`: {stale}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def _commands(text: str) -> list[str]:
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))
    inline = re.findall(r"`(feature-pipeline [^`]*)`", text)
    lines = [line.strip() for line in (*shell.splitlines(), *inline)]
    return [line for line in lines if line.startswith("feature-pipeline ")]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_commands_exist_with_the_options_that_are_shown(page: Path):
    for line in _commands(page.read_text()):
        command: Any = typer.main.get_command(app)
        words = shlex.split(line, comments=True)[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert command.name != "feature-pipeline", line
        known = {option for parameter in command.params for option in parameter.opts}
        shown = {word.split("=")[0] for word in words if word.startswith("--") and word != "--"}
        assert shown <= known | {"--help"}, line
        if hasattr(command, "commands"):
            assert not [word for word in words if not word.startswith("-")], line
