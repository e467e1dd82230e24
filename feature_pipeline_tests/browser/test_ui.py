"""What a quant does in the web UI, done in a real browser on real processes."""

from __future__ import annotations

import psycopg
from playwright.sync_api import Page, expect

from feature_pipeline.stack import Stack
from feature_pipeline_tests.browser.conftest import FILLED
from feature_pipeline_tests.graphql import GraphQL

GROUPS = ("inputs", "signals", "vectors")


def test_the_lineage_opens_and_reads_from_left_to_right(page: Page):
    page.goto("/asset-groups")
    at = []
    for group in GROUPS:
        node = page.locator("svg foreignObject, svg").get_by_text(group, exact=True).last
        expect(node).to_be_visible()
        box = node.bounding_box()
        assert box is not None
        at.append(box["x"])
    assert at == sorted(at), dict(zip(GROUPS, at, strict=True))


def test_a_backfill_is_started_from_the_ui_and_succeeds(page: Page, stack: Stack):
    page.goto("/assets/ohlcv_1d?view=partitions")
    expect(page.get_by_text("Partitions Selected")).to_be_visible()
    page.get_by_role("button", name="Materialize…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Show all partitions").click()
    days = dialog.locator("input[type=text]").first
    days.fill("[2012-12-03...2012-12-07]")
    days.press("Enter")
    expect(dialog.get_by_text("5 partitions")).to_be_visible()
    dialog.get_by_role("button", name="Launch backfill").click()
    expect(dialog).to_be_hidden()
    page.goto("/runs?view=backfills")
    expect(page.get_by_text("5 partitions")).to_be_visible()
    expect(page.get_by_text("Success", exact=True)).to_be_visible(timeout=120_000)
    with psycopg.connect(stack.database_url) as database:
        rows = database.execute(
            "SELECT count(*) FROM ohlcv_1d WHERE time >= '2012-12-03' AND time < '2012-12-08'"
        ).fetchone()
    assert rows == (5 * 7,)


def test_a_plot_renders(page: Page):
    page.goto("/assets/indicators_1d?view=overview")
    row = page.locator("tr").filter(has_text="picture").filter(has_text="Show Markdown").first
    row.get_by_text("Show Markdown").click()
    plot = page.get_by_role("dialog").locator("img").first
    expect(plot).to_be_visible()
    shown = plot.evaluate("image => [image.src.slice(0, 15), image.complete, image.naturalWidth]")
    assert shown[:2] == ["data:image/png;", True], shown
    assert shown[2] > 300, shown


def test_a_failed_check_is_visible_and_says_where(page: Page, stack: Stack):
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        database.execute("DELETE FROM indicators_1d WHERE symbol = 'MSFT' AND time = '2012-11-15'")
    page.goto("/assets/indicators_1d?view=checks")
    page.get_by_text("conservation", exact=True).first.click()
    expect(page.get_by_text("Passed", exact=True)).to_be_visible()
    ui = GraphQL(stack.ui_url or "")
    ui.wait_for_run(ui.launch_run(["indicators_1d"], *FILLED), 120)
    page.reload()
    page.get_by_text("conservation", exact=True).first.click()
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
    expect(page.get_by_text("2012-11-15").first).to_be_visible()


def test_a_schedule_is_switched_on_and_ticks(page: Page, stack: Stack, daemon_ahead):
    page.goto("/locations/feature_pipeline/schedules/news_and_reddit")
    expect(page.get_by_text("Schedule has never run")).to_be_visible()
    page.locator("label:has(input[type=checkbox])").first.click()
    expect(page.locator("input[type=checkbox]").first).to_be_checked()
    daemon_ahead(minutes=15)
    page.get_by_role("button", name="0 runs requested").or_(
        page.get_by_text("0 runs requested")
    ).last.click()
    # The sample's instruments ended years ago: there is nobody to ask about, and the tick says so.
    expect(page.get_by_role("dialog").get_by_text("listed")).to_be_visible()
