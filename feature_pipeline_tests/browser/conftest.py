"""A whole stack with its UI, a few weeks of the sample in it, and a Chromium to look with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from feature_pipeline.automation.backfill import backfill, chunks
from feature_pipeline.resources import prepare_database
from feature_pipeline.settings import Settings
from feature_pipeline.stack import Stack
from feature_pipeline_tests.stack.helpers import hurry

CHROMIUM_VARIABLE = "FEATURE_PIPELINE_TEST_CHROMIUM"
FILLED = (date(2012, 11, 1), date(2012, 12, 1))

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_PATIENCE_MS = 60_000


@pytest.fixture(scope="session")
def chromium() -> str:
    """A Chromium: the one that the environment names, or the machine's."""
    found = os.environ.get(CHROMIUM_VARIABLE) or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip(f"there is no Chromium here: install one, or name it in {CHROMIUM_VARIABLE}")
    return found


@pytest.fixture(scope="session")
def stack(chromium: str) -> Iterator[Stack]:
    """The embedded servers and Dagster's processes, with FILLED materialised."""
    home = Path(tempfile.mkdtemp(prefix="feature_pipeline.")).resolve()
    settings = Settings(home=home, database_url=None, redis_url=None)
    with Stack(settings) as running:
        prepare_database(running.database_url)
        running.prepare_dagster()
        current = running.resolved_settings()
        backfill(current, chunks(*FILLED), running.environment(), lambda _: None, home / "log.txt")
        running.start_dagster()
        hurry(running)
        yield running
    running.delete()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def daemon_ahead(stack: Stack) -> Iterator[Callable[..., None]]:
    """Puts a daemon in the place of Dagster's own whose clock is ahead by so much."""
    assert stack.dagster is not None
    started: list[subprocess.Popen[bytes]] = []

    def start(**ahead: float) -> None:
        own = stack.dagster._children["daemon"]
        own.terminate()
        own.wait(60)
        seconds = str(timedelta(**ahead).total_seconds())
        command = [sys.executable, "-m", "feature_pipeline_tests.browser.ahead", seconds]
        with (stack.home / "log" / "daemon-ahead.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [*command, "run", "-w", "workspace.yaml"],
                    cwd=stack.home / "dagster",
                    env=stack.environment() | {"PYTHONPATH": str(Path(__file__).parents[2])},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    yield start
    for daemon in started:
        daemon.terminate()
        daemon.wait(60)
    hurry(stack)  # other tests want a daemon of the present


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=list(_FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def page(stack: Stack, browser: Browser) -> Iterator[Page]:
    """A page whose addresses begin at the UI."""
    expect.set_options(timeout=_PATIENCE_MS)
    opened = browser.new_page(base_url=stack.ui_url, viewport={"width": 1500, "height": 950})
    opened.set_default_timeout(_PATIENCE_MS)
    yield opened
    opened.close()
