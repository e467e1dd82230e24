"""The ends of logs, what comes after them, and runs told in words."""

import threading
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_pipeline.errors import StackError
from feature_pipeline.stack import logs
from feature_pipeline.stack.run_events import story


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.characters(codec="utf-8") | st.just("\n")),
    lines=st.integers(0, 8),
    block=st.integers(1, 9),
)
def test_the_tail_is_the_last_lines(tmp_path, monkeypatch, text, lines, block):
    path = tmp_path / "a.log"
    path.write_bytes(text.encode())
    monkeypatch.setattr(logs, "_BLOCK", block)
    whole = text.removesuffix("\n").split("\n") if text else []
    assert logs.tail(path, lines) == (whole[-lines:] if lines else [])


def test_a_log_is_followed_through_emptying_and_replacement(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_POLL_S", 0.01)
    path = tmp_path / "a.log"
    path.write_text("old\nlast\n")
    lines = logs.follow(path, 1)

    def after(what) -> str:
        timer = threading.Timer(0.05, what)
        timer.start()
        try:
            return next(lines)
        finally:
            timer.join()

    def append(text: str) -> None:
        with path.open("a") as file:
            file.write(text)

    def replace() -> None:
        other = tmp_path / "b.log"
        other.write_text("of the new file\n")
        other.replace(path)

    assert next(lines) == "last"
    append("whole\nhal")
    assert next(lines) == "whole"
    assert after(lambda: append("f\n")) == "half"
    assert after(lambda: path.write_text("new\n")) == "new"
    assert after(replace) == "of the new file"
    path.unlink()
    assert after(lambda: path.write_text("again\n")) == "again"


def test_what_cannot_be_read_is_one_line(tmp_path: Path):
    with pytest.raises(StackError, match="No such file"):
        logs.tail(tmp_path / "none.log", 3)
    with pytest.raises(StackError, match="nothing has been started"):
        logs.find(tmp_path, "none")


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("3f2a91c0", True), ("d0338267-84ec-42b1-98cb-ba9d5cc6564d", True), ("dagster-daemon", False),
     ("abc", False), ("", False), ("deadbeef\n", False)],
)  # fmt: skip
def test_ids_of_runs(text, is_one):
    assert logs.looks_like_a_run(text) is is_one


# -- runs -----------------------------------------------------------------------------------------

DAYS = dg.DailyPartitionsDefinition("2020-01-01")


@dg.asset(partitions_def=DAYS)
def good(context: dg.AssetExecutionContext) -> None:
    context.log.warning("one symbol did not answer")


@dg.asset(deps=[good], partitions_def=DAYS)
def bad() -> None:
    raise ValueError("the provider said no")


@dg.asset_check(asset=good)
def fresh() -> dg.AssetCheckResult:
    severity = dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(passed=False, severity=severity, description="two days behind")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def _run(instance: dg.DagsterInstance, *assets: dg.AssetsDefinition) -> str:
    policy = dg.BackfillPolicy.single_run()
    job = dg.Definitions(
        assets=[asset.with_attributes(backfill_policy=policy) for asset in assets],
        asset_checks=[fresh],
        jobs=[dg.define_asset_job("all")],
        executor=dg.in_process_executor,
    ).resolve_job_def("all")
    tags = {
        "dagster/asset_partition_range_start": "2020-01-01",
        "dagster/asset_partition_range_end": "2020-02-29",
    }
    return job.execute_in_process(instance=instance, tags=tags, raise_on_error=False).run_id


def test_a_run_is_told_in_words(instance):
    told = story(instance, _run(instance, good, bad))
    assert (told.job, told.status) == ("all", "failure")
    texts = [event.text for event in told.events]
    assert "materialised good: 60 partitions, 2020-01-01 to 2020-02-29" in texts
    assert len(texts) < 20
    said, check = [event for event in told.events if event.level == "warning"]
    assert (said.text, said.step) == ("one symbol did not answer", "good")
    assert "two days behind" in check.text
    errors = [event.text for event in told.events if event.level == "error"]
    assert any("the provider said no" in text for text in errors)
    assert not any("\n" in text for text in texts)
    assert [event.at for event in told.events] == sorted(event.at for event in told.events)


def test_a_run_is_found_by_the_beginning_of_its_id(instance):
    ids = [_run(instance, good) for _ in range(2)]
    assert [story(instance, i[:8]).run_id for i in ids] == ids
    with pytest.raises(StackError, match=f"no run of id ffffff.*{ids[1][:8]}"):
        story(instance, "ffffff")
