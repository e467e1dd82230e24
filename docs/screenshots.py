"""The pictures of the tour: `python docs/screenshots.py`, on a stack of its own, in a Chromium.

The demonstration is run in a temporary home; then the UI's pages are photographed, and what
commands print is drawn as SVG.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.text import Text

from feature_pipeline.settings import Settings
from feature_pipeline.stack import Stack, supervisor

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1400, "height": 880}
COLUMNS = 110
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
SETTLED_MS = 2_500
"""Graphs are laid out and fonts are loaded by then; it is a photograph, not a test."""


def main() -> None:
    """Make all pictures anew."""
    IMAGES.mkdir(exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="feature_pipeline.")).resolve()
    environment = os.environ | {
        "FEATURE_PIPELINE_HOME": str(home),
        "COLUMNS": str(COLUMNS),
        "FORCE_COLOR": "1",
    }
    settings = Settings(home=home, database_url=None, redis_url=None)

    def command(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "feature_pipeline.cli", *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"feature-pipeline {' '.join(words)}: {done.stderr}")
        return done.stdout

    try:
        command("demo", "--no-ui")
        command("up")
        address = Stack(settings).attach().ui_url
        assert address
        _photograph(address)
        for name, words in TERMINAL.items():
            _draw(name, words, command(*words))
    finally:
        supervisor.bring_down(Stack(settings))
        Stack(settings).delete()
        shutil.rmtree(home, ignore_errors=True)


TERMINAL = {
    "show": ("show", "AAPL"),
    "explain": ("explain", "AAPL", "rsi_14", "--as-of", "2012-06-14T19:00Z"),
    "dry-run": ("backfill", "--start", "2011-01-01", "--end", "2012-12-31", "--dry-run"),
}


def _lineage(page: Page) -> None:
    page.goto("/asset-groups")
    page.get_by_text("inputs", exact=True).last.wait_for()
    page.wait_for_timeout(SETTLED_MS)
    page.keyboard.press("Alt+e")  # opens all groups


def _at(path: str, *scroll_to: str) -> Callable[[Page], None]:
    def go(page: Page) -> None:
        page.goto(path)
        page.wait_for_timeout(SETTLED_MS)
        for text in scroll_to:
            page.get_by_text(text).first.scroll_into_view_if_needed()

    return go


def _picture(page: Page) -> None:
    page.goto("/assets/indicators_1d?view=overview")
    page.locator("tr").filter(has_text="picture").get_by_text("Show Markdown").last.click()


def _backfill(page: Page) -> None:
    page.goto("/assets/indicators_1d?view=partitions")
    page.get_by_role("button", name="Materialize…").click()
    page.get_by_role("button", name="Show all partitions").click()
    days = page.get_by_role("dialog").locator("input[type=text]").first
    days.fill("[2012-01-01...2012-12-31]")
    days.press("Enter")


PAGES: dict[str, Callable[[Page], None]] = {
    "lineage": _lineage,
    "asset": _at("/assets/state_vectors_1d?view=overview"),
    "picture": _picture,
    "partitions": _at("/assets/ohlcv_1d?view=partitions"),
    "checks": _at("/assets/ohlcv_1d?view=checks"),
    "automation": _at("/automation"),
    "backfill": _backfill,
}


def _photograph(address: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(base_url=address, viewport=SIZE)
        page.set_default_timeout(60_000)
        for name, go in PAGES.items():
            go(page)
            page.wait_for_timeout(SETTLED_MS)
            page.screenshot(path=IMAGES / f"{name}.png")
        browser.close()


def _draw(name: str, words: tuple[str, ...], output: str) -> None:
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere)
        console.print(f"$ feature-pipeline {' '.join(words)}", style="bold", highlight=False)
        console.print(Text.from_ansi(output))
    (IMAGES / f"{name}.svg").write_text(console.export_svg(title="feature-pipeline"))


if __name__ == "__main__":
    main()
