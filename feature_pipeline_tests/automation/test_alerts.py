"""Alerts: who is told of what, that nothing secret is said, and that one way may fail."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import dagster as dg
import pytest
from dagster._core.storage.tags import WILL_RETRY_TAG
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import RedisError

from feature_pipeline.automation.alerts import (
    LONGEST,
    SEND_ATTEMPTS,
    WEBHOOK_AT_ONCE,
    WEBHOOK_ATTEMPTS,
    Alert,
    AlertError,
    Herald,
    _post,
    _send,
    alert_sensors,
)
from feature_pipeline.automation.alerts import failed_run as alert_of
from feature_pipeline.online import keys
from feature_pipeline.online.client import publishing_client
from feature_pipeline.settings import Settings

DATABASE = "postgresql://writer:s3cr%40t-of-db@db.example:5432/features"
REDIS = "redis://:hush-hush@cache.example:6379/0"
PATH = "/services/T0001/B0002/verysecretpath"
ALERT = Alert("repair", "it is broken", datetime(2026, 1, 5, tzinfo=UTC), assets=("ohlcv_1d",))


class Webhook:
    """A server that answers with the given codes in turn, the last one for ever."""

    def __init__(self) -> None:
        self.codes, self.taken = [200], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.taken.append((self.path, json.loads(body)))
                code = outer.codes.pop(0) if len(outer.codes) > 1 else outer.codes[0]
                self.send_response(code)
                if 300 <= code < 400:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}{PATH}"


@pytest.fixture
def webhook(monkeypatch) -> Iterator[Webhook]:
    monkeypatch.setattr(_post.retry, "sleep", lambda _: None)
    made = Webhook()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def client(redis_url):
    with publishing_client(redis_url) as made:
        yield made


@pytest.fixture
def heard(client):
    """What came on the channel since the last look."""
    channel = client.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(keys.CHANNEL_ALERTS)
    channel.get_message(timeout=5)

    def messages() -> list[dict]:
        found = []
        while message := channel.get_message(timeout=0.2):
            found.append(json.loads(message["data"]))
        return found

    yield messages
    channel.close()


def settings(webhook: Webhook | None = None) -> Settings:
    return Settings(
        database_url=DATABASE, redis_url=REDIS, alert_webhook=webhook.url if webhook else None
    )


# -- the two ways ---------------------------------------------------------------------------------


def test_both_get_the_same_json_with_a_text_for_people(webhook, client, heard):
    Herald(settings(webhook)).send(client, ALERT)
    [(path, posted)], [published] = webhook.taken, heard()
    assert path == PATH
    assert posted == published
    assert published == {
        "text": "repair needs a person in ohlcv_1d: it is broken",
        "kind": "repair",
        "error": "it is broken",
        "at": "2026-01-05T00:00:00+00:00",
        "run_id": "",
        "job": "",
        "step": "",
        "assets": ["ohlcv_1d"],
        "partitions": "",
        "will_retry": False,
    }


@pytest.mark.parametrize("codes", [[500, 200], [503, 429, 200]])
def test_a_webhook_that_fails_first_is_asked_again(webhook, client, heard, codes):
    webhook.codes = list(codes)
    Herald(settings(webhook)).send(client, ALERT)
    assert len(webhook.taken) == len(codes)
    assert len(heard()) == 1


@pytest.mark.parametrize(
    ("code", "attempts"), [(500, WEBHOOK_ATTEMPTS), (404, 1), (302, 1), (403, 1)]
)
def test_a_webhook_that_never_listens_costs_the_channel_nothing(
    webhook, client, heard, caplog, code, attempts
):
    webhook.codes = [code]
    with caplog.at_level(logging.DEBUG):
        Herald(settings(webhook)).send(client, ALERT)
    assert [path for path, _ in webhook.taken] == [PATH] * attempts
    assert len(heard()) == 1
    assert f"the webhook: HTTP {code}" in caplog.text
    assert "verysecret" not in caplog.text


def test_many_alerts_are_all_in_the_channel_and_some_at_the_webhook(webhook, client, heard):
    Herald(settings(webhook)).send(client, *[ALERT] * 40)
    assert len(heard()) == 40
    assert len(webhook.taken) == WEBHOOK_AT_ONCE + 1
    assert webhook.taken[-1][1] == {"text": "35 more alerts; all are in the channel and the UI"}


def test_a_webhook_that_has_just_failed_is_not_waited_for_again(webhook, client, heard):
    webhook.codes = [500]
    herald = Herald(settings(webhook))
    for _ in range(4):
        herald.send(client, *[ALERT] * 2)
    assert len(webhook.taken) == WEBHOOK_ATTEMPTS + 3
    assert len(heard()) == 8


def test_a_channel_that_is_down_costs_the_webhook_nothing(webhook, caplog):
    with publishing_client("redis://127.0.0.1:1/0") as nobody:
        Herald(settings(webhook)).send(nobody, ALERT)
    assert len(webhook.taken) == 1
    assert "an alert did not arrive at the channel alerts" in caplog.text


def test_nobody_reached_is_one_line_without_the_address(webhook, monkeypatch, caplog):
    held = settings(webhook)
    webhook.server.shutdown()
    webhook.server.server_close()
    with (
        publishing_client("redis://127.0.0.1:1/0") as nobody,
        pytest.raises(AlertError) as error,
        caplog.at_level(logging.DEBUG),
    ):
        Herald(held).send(nobody, ALERT)
    assert "\n" not in str(error.value)
    assert "the webhook: ConnectionError" in str(error.value)
    assert "verysecret" not in str(error.value) + caplog.text
    assert error.value.__cause__ is None


# -- what is said ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"no answer from {DATABASE}", "no answer from ***"),
        ("password s3cr@t-of-db refused", "password *** refused"),
        ("WRONGPASS hush-hush", "WRONGPASS ***"),
        ("cannot post to https://hooks.example" + PATH, "cannot post to https://hooks.example***"),
        ("GET https://a.example/x?api_key=abcdef failed", "GET https://a.example/x failed"),
        ("https://me:mine@a.example/x", "https://me@a.example/x"),
        ("api_key=abcdef; token: xyz", "api_key=***; token: ***"),
        ("Authorization: Bearer eyJabc.def refused", "Authorization: *** refused"),
        ("{'Authorization': 'Basic dXNlcjpw', 'a': 1}", "{'Authorization': '***', 'a': 1}"),
        ("no bearer eyJabc.def here", "no bearer *** here"),
        ("with url: /v2/q?key=SECRETKEY&s=A (Caused by", "with url: /v2/q (Caused by"),
        ("GET /v2/q?SECRETKEY", "GET /v2/q"),
        ("q?key=SECRETKEY&s=A&apikey=X1", "q?key=***&s=A&apikey=***"),
        ("API_KEY=abc password=def secret=ghi", "API_KEY=*** password=*** secret=***"),
        ("is AAPL there? yes/no; partition_key=2020-01-02", None),
        ("one\n  two\tthree", "one two three"),
        ("http://[broken", "***"),
    ],
)
def test_secrets_are_not_said(webhook, text, shown):
    assert Herald(settings(webhook)).one_line(text) == (text if shown is None else shown)


@given(st.text(max_size=2000), st.integers(0, 3))
def test_whatever_is_said_is_one_short_line_without_a_secret(text, at):
    held = Settings(
        database_url=DATABASE, redis_url=REDIS, alert_webhook=f"https://hooks.example{PATH}"
    )
    secrets = (DATABASE, "s3cr@t-of-db", "hush-hush", PATH)
    line = Herald(held).one_line(text[: len(text) // 2] + secrets[at] + text[len(text) // 2 :])
    assert len(line) <= LONGEST
    assert len(line.splitlines()) <= 1
    assert not any(secret in line for secret in secrets)


def test_a_secret_is_found_however_its_blanks_are_written():
    herald = Herald(Settings(edgar_contact="Sample  Company ops@sample.example"))
    for text in ("Sample  Company ops@sample.example", "Sample Company ops@sample.example"):
        assert herald.one_line(f"as {text} refused") == "as *** refused"


# -- failed runs ----------------------------------------------------------------------------------


@dg.asset(partitions_def=dg.DailyPartitionsDefinition("2019-06-01"))
def brittle() -> None:
    raise ValueError(f"the provider said\nno to {DATABASE}")


@dg.asset_check(asset=brittle, name="sound")
def sound() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


def failed_run(instance: dg.DagsterInstance) -> dg.DagsterRun:
    job = dg.define_asset_job("job", [brittle], executor_def=dg.in_process_executor)
    done = (
        dg.Definitions(assets=[brittle], jobs=[job])
        .resolve_job_def("job")
        .execute_in_process(
            instance=instance,
            raise_on_error=False,
            tags={
                "dagster/asset_partition_range_start": "2019-06-11",
                "dagster/asset_partition_range_end": "2019-06-12",
            },
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    )
    return instance.get_run_by_id(done.run_id)


def evaluate(sensor: dg.SensorDefinition, instance, client, cursor: str | None):
    context = dg.build_sensor_context(
        instance=instance, cursor=cursor, resources={"redis": client}, repository_name="r"
    )
    return sensor.evaluate_tick(context)


def test_a_failed_run_is_told_with_step_days_and_reason(webhook, client, heard):
    sensor, _ = alert_sensors(settings(webhook))
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = evaluate(sensor, instance, client, None).cursor
        run = failed_run(instance)
        done = evaluate(sensor, instance, client, cursor)
        [alert] = heard()
        assert alert["kind"] == "run_failure"
        assert (alert["run_id"], alert["job"], alert["step"]) == (run.run_id, "job", "brittle")
        assert alert["partitions"] == "2019-06-11..2019-06-12"
        assert alert["error"] == "ValueError: the provider said no to ***"
        assert alert["text"].startswith("job failed at brittle 2019-06-11..2019-06-12: ValueError")
        assert [posted for _, posted in webhook.taken] == [alert]
        evaluate(sensor, instance, client, done.cursor)
        assert heard() == []


def test_a_broken_webhook_does_not_stop_the_sensor(webhook, client, heard):
    webhook.codes = [500]
    sensor, _ = alert_sensors(settings(webhook))
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = evaluate(sensor, instance, client, None).cursor
        for _ in range(2):
            failed_run(instance)
            done = evaluate(sensor, instance, client, cursor)
            cursor = done.cursor
            assert len(heard()) == 1


class Restarting:
    """A client whose server is back after some attempts."""

    def __init__(self, client, down: int) -> None:
        self.client, self.down = client, down

    def publish(self, *message) -> None:
        self.down -= 1
        if self.down >= 0:
            raise RedisError("restarting")
        self.client.publish(*message)


@pytest.mark.parametrize("down", [SEND_ATTEMPTS - 1, SEND_ATTEMPTS])
def test_a_failed_run_is_told_once_redis_is_back(client, heard, monkeypatch, down):
    monkeypatch.setattr(_send.retry, "sleep", lambda _: None)
    sensor, _ = alert_sensors(settings())
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = evaluate(sensor, instance, client, None).cursor
        failed_run(instance)
        done = evaluate(sensor, instance, Restarting(client, down), cursor)
        [reaction] = done.dagster_run_reactions
        told = down < SEND_ATTEMPTS
        assert len(heard()) == told
        assert (reaction.error is None) == told, "a tick that reached nobody says so"


def test_a_run_that_nobody_launched_is_not_run_again():
    with dg.DagsterInstance.ephemeral() as instance:
        run = failed_run(instance).with_tags({WILL_RETRY_TAG: "true"})
        [event] = [
            entry.dagster_event
            for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
        ]
        alert = alert_of(run, event, [])
    assert not alert.will_retry
    assert "run again" not in alert.text


# -- failed checks --------------------------------------------------------------------------------


def evaluation(
    passed: bool, severity: dg.AssetCheckSeverity, blocking: bool = False
) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey("ohlcv_1d"),
        check_name="counts",
        passed=passed,
        metadata={},
        severity=severity,
        description="2 symbols lack a bar on 2019-06-11",
        blocking=blocking,
    )


def test_every_failed_check_of_severity_error_is_told_once(client, heard):
    _, sensor = alert_sensors(settings())
    error, warn = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
    with dg.DagsterInstance.ephemeral() as instance:
        instance.report_runless_asset_event(evaluation(False, error))  # before anybody watched
        cursor = evaluate(sensor, instance, client, None).cursor
        for passed, severity in ((False, error), (True, error), (False, warn), (False, error)):
            instance.report_runless_asset_event(evaluation(passed, severity))
        done = evaluate(sensor, instance, client, cursor)
        assert done.skip_message == "4 checks evaluated, 2 of them failed with severity ERROR"
        first, second = heard()
        assert first["kind"] == second["kind"] == "check_failure"
        assert first["text"] == (
            "a check failed in ohlcv_1d: counts: 2 symbols lack a bar on 2019-06-11"
        )
        again = evaluate(sensor, instance, client, done.cursor)
        assert again.skip_message.startswith("0 checks")
        assert heard() == []


def test_a_check_whose_event_commits_late_is_told(client, heard, monkeypatch):
    _, sensor = alert_sensors(settings())
    failing = evaluation(False, dg.AssetCheckSeverity.ERROR)
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = evaluate(sensor, instance, client, None).cursor
        for _ in range(2):
            instance.report_runless_asset_event(failing)
        storage = instance.event_log_storage
        fetch = storage.get_event_records
        late, _ = sorted(r.storage_id for r in fetch(dg.EventRecordsFilter(failing_kind())))
        with monkeypatch.context() as patched:
            patched.setattr(
                storage,
                "get_event_records",
                lambda *a, **k: [r for r in fetch(*a, **k) if r.storage_id != late],
            )
            cursor = evaluate(sensor, instance, client, cursor).cursor
        assert len(heard()) == 1
        evaluate(sensor, instance, client, cursor)
        assert len(heard()) == 1


def failing_kind() -> dg.DagsterEventType:
    return dg.DagsterEventType.ASSET_CHECK_EVALUATION


def test_checks_are_told_again_when_nobody_could_be_reached(client, heard):
    _, sensor = alert_sensors(settings())
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = evaluate(sensor, instance, client, None).cursor
        instance.report_runless_asset_event(evaluation(False, dg.AssetCheckSeverity.ERROR))
        with publishing_client("redis://127.0.0.1:1/0") as nobody, pytest.raises(AlertError):
            evaluate(sensor, instance, nobody, cursor)
        evaluate(sensor, instance, client, cursor)
        assert len(heard()) == 1


def test_the_definitions_hold_the_sensors_running():
    from feature_pipeline.definitions import defs

    for name in ("alert_on_failure", "alert_on_checks", "repair"):
        sensor = defs.resolve_sensor_def(name)
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
        assert "redis" in sensor.required_resource_keys
