"""What a quant does in the web UI, done in a real browser on real processes."""

from __future__ import annotations

import psycopg
from playwright.sync_api import Page, expect

from feature_pipeline.stack import Stack

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
    # The daemon looks for new backfills every thirty seconds.
    expect(page.get_by_text("Success", exact=True)).to_be_visible(timeout=120_000)
    with psycopg.connect(stack.database_url) as database:
        rows = database.execute(
            "SELECT count(*) FROM ohlcv_1d WHERE time >= '2012-12-03' AND time < '2012-12-08'"
        ).fetchone()
    assert rows == (5 * 7,)
