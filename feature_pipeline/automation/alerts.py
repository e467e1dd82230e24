"""Telling people: failed runs, failed checks and what nobody could mend, to Redis and a webhook.

An alert is one JSON object with a `text` beside its structured fields, which is what Slack and its
likes show. It goes to the channel `alerts` first and then to the webhook of the settings; one that
does not listen costs the other nothing. No secret of the settings is ever part of an alert.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import dagster as dg
import redis
import tenacity
from dagster._core.storage.tags import WILL_RETRY_TAG
from pydantic import SecretStr
from redis.exceptions import RedisError

from feature_pipeline.automation.evaluations import Seen, evaluation, span_of, unseen
from feature_pipeline.automation.sensors import sensor
from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.online import keys
from feature_pipeline.settings import Settings, redact

WEBHOOK_TIMEOUT_S = 5.0
WEBHOOK_ATTEMPTS = 3
WEBHOOK_AT_ONCE = 5
IMPATIENT_S = 60.0
"""How long a webhook that failed gets one attempt per alert."""

SEND_ATTEMPTS = 3
SEND_WAIT_S = 2.0
SEND_WITHIN_S = 5.0
"""No further attempt to tell of a failed run is made after this long: a tick has a minute, for
several runs perhaps."""

LONGEST = 500
"""Characters of an error that are sent."""

_log = logging.getLogger(__name__)

# At DEBUG it writes down the path of what it asks, which is all the secret a webhook has.
logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)


class _RefusedError(Exception):
    """The webhook did not take an alert; says why without naming it."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class AlertError(FeaturePipelineError):
    """Nobody could be told."""


@dataclass(frozen=True)
class Alert:
    """What a person should know.

    Args:
        kind: `run_failure`, `check_failure`, or `repair`: what the repair sensor cannot mend.
        error: why, in one line.
        at: when, UTC.
        run_id, job, step: of the run; empty where there is none.
        assets: which of them.
        partitions: a day, or `first..last`.
        will_retry: whether Dagster starts the run again by itself.
    """

    kind: Literal["run_failure", "check_failure", "repair"]
    error: str
    at: datetime
    run_id: str = ""
    job: str = ""
    step: str = ""
    assets: tuple[str, ...] = ()
    partitions: str = ""
    will_retry: bool = False

    @property
    def text(self) -> str:
        """All of it in one line, for people."""
        what = {
            "run_failure": f"{self.job} failed",
            "check_failure": "a check failed",
            "repair": "repair needs a person",
        }[self.kind]
        place = f"at {self.step}" if self.step else ""
        if self.kind != "run_failure":
            place = "in " + ", ".join(self.assets)
        where = [place, self.partitions]
        words = " ".join([what, *filter(None, where)]) + f": {self.error}"
        run = f" (run {self.run_id[:8]})" if self.run_id else ""
        return words + run + ("; it is run again" if self.will_retry else "")

    def payload(self) -> dict[str, Any]:
        """The JSON object."""
        return {"text": self.text, **asdict(self), "at": self.at.isoformat()}


class Herald:
    """Sends alerts of one deployment, none of whose secrets it lets out.

    Args:
        settings: the webhook, and what must not be said.
    """

    def __init__(self, settings: Settings) -> None:
        self._webhook = settings.alert_webhook
        self._secrets = _secrets(settings)
        self._impatient_until = 0.0

    def one_line(self, text: str) -> str:
        """The text without secrets and line breaks, and of bounded length."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = _QUERY.sub(r"\1", _ADDRESS.sub(_shown, text))
        text = _BEARER.sub(r"\1***", _AUTHORIZATION.sub(r"\1***", text))
        text = _NAMED.sub(r"\1\2***", text)
        line = " ".join(text.split())
        return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."

    def send(self, client: redis.Redis, *alerts: Alert) -> None:
        """Send alerts to the channel and to the webhook.

        Every one goes to the channel. The webhook gets `WEBHOOK_AT_ONCE` of them and is told how
        many more there are: a sensor's tick has a minute for everything.

        Raises:
            AlertError: neither of them took one. One that fails alone is a warning in the log.
        """
        payloads = [self._payload(alert) for alert in alerts]
        ways: dict[str, Callable[[], None]] = {
            f"the channel {keys.CHANNEL_ALERTS}": lambda: _publish(client, payloads)
        }
        if self._webhook is not None:
            ways["the webhook"] = lambda: self._post(payloads)
        troubles = []
        for name, way in ways.items():
            try:
                way()
            except (RedisError, _RefusedError) as error:
                troubles.append(f"{name}: {error or type(error).__name__}")
                _log.warning("an alert did not arrive at %s", self.one_line(troubles[-1]))
        if len(troubles) == len(ways):
            said = self.one_line("; ".join(troubles))
            raise AlertError(
                f"an alert arrived nowhere ({said}): check that Redis is up and the webhook right"
            )

    def _payload(self, alert: Alert) -> dict[str, Any]:
        said = alert.payload()
        return said | {name: self.one_line(said[name]) for name in ("text", "error")}

    def _post(self, payloads: Sequence[Mapping[str, Any]]) -> None:
        """Post what a tick has time for; the first that is not taken ends it.

        A webhook that has just failed, after all attempts, is asked only once for a while: several
        failed runs are told of in one tick.
        """
        assert self._webhook is not None
        first, more = payloads[:WEBHOOK_AT_ONCE], len(payloads) - WEBHOOK_AT_ONCE
        if more > 0:
            first = [*first, {"text": f"{more} more alerts; all are in the channel and the UI"}]
        post = _post if time.monotonic() >= self._impatient_until else _post_once
        try:
            for payload in first:
                post(self._webhook, payload)
        except _RefusedError:
            self._impatient_until = time.monotonic() + IMPATIENT_S
            raise


def _publish(client: redis.Redis, payloads: Sequence[Mapping[str, Any]]) -> None:
    for payload in payloads:
        client.publish(keys.CHANNEL_ALERTS, json.dumps(payload))


def _post_once(webhook: SecretStr, payload: Mapping[str, Any]) -> None:
    import requests  # here: the definitions load without it

    try:
        answer = requests.post(
            webhook.get_secret_value(),
            json=payload,
            timeout=WEBHOOK_TIMEOUT_S,
            allow_redirects=False,  # an alert is for this host alone
        )
    except requests.RequestException as error:
        # Not chained: its text quotes the address, and that is the secret.
        raise _RefusedError(type(error).__name__, again=True) from None
    if not answer.ok or answer.is_redirect:
        # An address that does not exist stays wrong; a server in trouble recovers.
        again = answer.status_code in (408, 429) or answer.status_code >= 500
        raise _RefusedError(f"HTTP {answer.status_code}", again=again)


_post = tenacity.retry(
    retry=tenacity.retry_if_exception(lambda error: getattr(error, "again", False)),
    wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=4),
    stop=tenacity.stop_after_attempt(WEBHOOK_ATTEMPTS),
    reraise=True,
)(_post_once)


# -- what must not be said ------------------------------------------------------------------------

_ADDRESS = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>`]+")
_QUERY = re.compile(r"(/[^\s'\"<>`?]*)\?[^\s'\"<>`]+")
"""Of a path as well: `requests` quotes it without the host."""

_AUTHORIZATION = re.compile(
    r"(?i)\b((?:proxy-)?authorization[\"']?\s*[=:]\s*[\"']?)(?:[\w-]+\s+)?[^\s\"',;]+"
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)[^\s\"',;]+")
_NAMED = re.compile(
    r"(?i)\b([\w-]*(?:password|passwd|secret|token|api[_-]?key)[\"']?|key(?==))"
    r"(\s*[=:]\s*[\"']?)[^\s\"',;&]+"
)


def _secrets(settings: Settings) -> tuple[str, ...]:
    """The addresses of the settings and the passwords in them, longest first."""
    found = set()
    for value in (getattr(settings, name) for name in type(settings).model_fields):
        if isinstance(value, SecretStr):
            secret = value.get_secret_value()
            password = urlsplit(secret).password or ""
            found |= {secret, " ".join(secret.split()), password, unquote(password)}
    if settings.alert_webhook is not None:  # what a webhook keeps secret is its path
        found.add(urlsplit(settings.alert_webhook.get_secret_value()).path)
    return tuple(sorted((s for s in found if len(s) > 3), key=len, reverse=True))


def _shown(address: re.Match[str]) -> str:
    """An address without password and query."""
    try:
        return redact(address.group())
    except ValueError:
        return "***"


# -- what is said ---------------------------------------------------------------------------------


def why(error: Any) -> str:
    """The innermost cause of what Dagster says of an error, in one line: it wraps what a step
    raised."""
    while getattr(error, "cause", None) is not None:
        error = error.cause
    message = str(getattr(error, "message", error))
    # An error of ours is written for people; of any other the name says something.
    return " ".join(re.sub(r"^feature_pipeline\.[\w.]+: ", "", message).split())


def days_of(run: dg.DagsterRun) -> str:
    """The partitions of a run: a day, `first..last`, or nothing."""
    return "..".join(dict.fromkeys(span_of(run) or ()))


def failed_run(
    run: dg.DagsterRun, event: dg.DagsterEvent, steps: Sequence[dg.DagsterEvent]
) -> Alert:
    """The alert of a failed run: its first failed step, or what the run itself says."""
    error = next((e.step_failure_data.error for e in steps if e.step_failure_data.error), None)
    assets = sorted(k.to_user_string() for k in run.asset_selection or ())
    return Alert(
        kind="run_failure",
        error=why(error) if error else event.message or "the run failed; see its log",
        at=datetime.now(UTC),
        run_id=run.run_id,
        job=run.job_name,
        step=next((e.step_key for e in steps if e.step_key), ""),
        assets=tuple(assets),
        partitions=days_of(run),
        # A run that no code location has launched cannot be launched again, whatever its tag says.
        will_retry=run.tags.get(WILL_RETRY_TAG) == "true" and run.remote_job_origin is not None,
    )


def failed_check(
    found: dg.AssetCheckEvaluation, run_id: str, run: dg.DagsterRun | None, at: float
) -> Alert:
    """The alert of a check that did not pass."""
    return Alert(
        kind="check_failure",
        error=f"{found.check_name}: {found.description or 'it did not pass'}",
        at=datetime.fromtimestamp(at, UTC),
        run_id=run_id if run else "",
        job=run.job_name if run else "",
        step=found.check_name,
        assets=(found.asset_key.to_user_string(),),
        partitions=found.partition or (days_of(run) if run else ""),
    )


# -- the sensors ----------------------------------------------------------------------------------


def alert_sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """The sensors that tell of failed runs and failed checks."""
    herald = Herald(settings)

    @dg.run_failure_sensor(
        name="alert_on_failure",
        description="Tell the channel `alerts` and the webhook of every run that failed.",
        # Backfills of the command line run outside of every code location.
        monitor_all_code_locations=True,
        minimum_interval_seconds=10,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def alert_on_failure(
        context: dg.RunFailureSensorContext, redis: dg.ResourceParam[redis.Redis]
    ) -> None:
        """Tell the channel `alerts` and the webhook of every run that failed.

        Where nobody is reached it is tried again within the tick, for some seconds
        (`SEND_ATTEMPTS`, `SEND_WITHIN_S`). After that the tick says so and the alert is lost:
        Dagster goes on to the next run, and the run itself shows in the UI.
        """
        steps = context.get_step_failure_events()
        _send(herald, redis, failed_run(context.dagster_run, context.failure_event, steps))

    @sensor(
        name="alert_on_checks",
        minimum_interval_seconds=10,
        required_resource_keys={"redis"},
    )
    def alert_on_checks(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        """Tell the channel `alerts` and the webhook of every check that failed with severity ERROR.

        A check of severity WARN shows in the UI and wakes nobody.
        """
        return _tell_of_checks(context, herald)

    return [alert_on_failure, alert_on_checks]


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(AlertError),
    wait=tenacity.wait_fixed(SEND_WAIT_S),
    stop=tenacity.stop_after_attempt(SEND_ATTEMPTS) | tenacity.stop_after_delay(SEND_WITHIN_S),
    reraise=True,
)
def _send(herald: Herald, client: redis.Redis, alert: Alert) -> None:
    """Tell of what is not seen again: Redis restarts within seconds."""
    herald.send(client, alert)


def _tell_of_checks(
    context: dg.SensorEvaluationContext, herald: Herald
) -> dg.SensorResult | dg.SkipReason:
    known = json.loads(context.cursor) if context.cursor else None
    records, seen = unseen(
        context.instance, Seen(known["newest"], tuple(known["seen"])) if known else None
    )
    cursor = json.dumps({"newest": seen.newest, "seen": seen.ids})
    if known is None:
        return dg.SensorResult(cursor=cursor, skip_reason="checks are watched from here on")
    failed = [
        (record, check)
        for record in records
        if (check := evaluation(record)) is not None
        and not check.passed
        and check.severity == dg.AssetCheckSeverity.ERROR
    ]
    alerts = []
    for record, check in failed:
        run_id = record.event_log_entry.run_id
        run = context.instance.get_run_by_id(run_id)
        alerts.append(failed_check(check, run_id, run, record.timestamp))
    if alerts:
        herald.send(context.resources.redis, *alerts)
    words = f"{len(records)} checks evaluated, {len(failed)} of them failed with severity ERROR"
    return dg.SensorResult(cursor=cursor, skip_reason=words)
