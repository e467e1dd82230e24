"""GNews and NewsAPI: real HTTP, and every fault they may have; the key is shown nowhere."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from feature_pipeline.errors import SourceError
from feature_pipeline.resources import sources
from feature_pipeline.schemas import Fetched
from feature_pipeline.settings import Settings
from feature_pipeline.sources import DocumentSource, Metered, Off
from feature_pipeline.sources.news import gnews, newsapi
from feature_pipeline.sources.news.articles import LAG
from feature_pipeline.sources.news.gnews import GNewsSource
from feature_pipeline.sources.news.newsapi import NewsApiSource
from feature_pipeline.sources.news.search import Plan, SearchSource
from feature_pipeline_tests.providers import server as faults
from feature_pipeline_tests.providers.news import KEY, Press, Story
from feature_pipeline_tests.providers.server import IMPATIENT, QUICK, Answer, ProviderServer
from feature_pipeline_tests.sources.documents_support import INSTRUMENTS, NOW, TODAY, WEEK, ago

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
PLANS = {GNewsSource: gnews.FREE, NewsApiSource: newsapi.FREE}

Make = Callable[..., SearchSource]


@pytest.fixture
def press(provider_server: ProviderServer) -> Press:
    press = Press()
    provider_server.routes.update(press.routes())
    return press


@pytest.fixture(params=[GNewsSource, NewsApiSource])
def make(request: pytest.FixtureRequest, provider_server: ProviderServer) -> Make:
    """Makes the provider, with `plan`, `limits`, `clock` or `key` of its own."""

    def source(key: str = KEY, **more: Any) -> SearchSource:
        usual = {"limits": QUICK, "clock": lambda: NOW}
        made: SearchSource = request.param(key, url=provider_server.url, **(usual | more))
        return made

    source.plan = PLANS[request.param]  # type: ignore[attr-defined]
    return source


def fetch(source: SearchSource, days: tuple[date, date] = TODAY) -> Fetched:
    return source.documents("news", INSTRUMENTS, *days)


def late(make: Make) -> timedelta:
    plan: Plan = make.plan  # type: ignore[attr-defined]
    return plan.delay


# -- what there is --------------------------------------------------------------------------------


def test_it_is_a_document_source(make: Make) -> None:
    source = make()
    assert isinstance(source, DocumentSource)
    assert isinstance(source, Metered)
    assert source.calls("news", INSTRUMENTS, *TODAY) == 2
    assert source.calls("news", INSTRUMENTS, date(2015, 1, 1), date(2015, 2, 1)) == 0
    assert source.calls("bars", INSTRUMENTS, *TODAY) == 0


def test_an_article_is_a_document(
    make: Make, press: Press, provider_server: ProviderServer
) -> None:
    at = ago(hours=26)
    press.stories = [
        Story("x?utm_source=a", "Apple &amp; co <b>rise</b>", at),
        Story("y", "Wind", at),
    ]
    source = make()
    answer = fetch(source)
    assert (answer.asked, answer.failed) == (("AAPL", "MSFT"), {})
    row = answer.frame.row(0, named=True)
    assert answer.frame.height == 1
    assert (row["title"], row["url"]) == ("Apple & co rise", "https://publisher.example/x")
    assert (row["symbols"], row["source"], row["channel"]) == (["AAPL"], source.name, "news")
    assert row["text"].startswith("A summary. Of the article...")
    assert (row["time"], row["available_at"], row["availability_basis"]) == (at, NOW, "observed")
    assert [request.query["q"] for request in provider_server.asked] == [
        '"Apple" OR "AAPL"',
        '"Microsoft" OR "MSFT"',
    ]


def test_nothing_was_seen_before_the_asking_was_over(
    make: Make, press: Press, provider_server: ProviderServer
) -> None:
    press.stories = [Story("x", "Apple rises", ago(hours=26))]
    moments = iter([NOW, NOW + timedelta(minutes=4)])
    source = make(clock=lambda: next(moments))
    assert fetch(source).frame["available_at"].to_list() == [NOW + timedelta(minutes=4)]


def test_a_plan_that_is_late_is_late_in_the_rows(make: Make, press: Press) -> None:
    delay = late(make)
    published = [ago(days=4), NOW - delay - 25 * HOUR, NOW - delay - 23 * HOUR, NOW - delay]
    press.stories = [Story(str(n), f"Apple {n}", at) for n, at in enumerate(published)]
    rows = fetch(make(), WEEK).frame.sort("time")
    assert rows["available_at"].to_list() == [
        published[0] + delay + LAG,
        NOW - 25 * HOUR + LAG,
        NOW,
        NOW,
    ]
    assert rows["availability_basis"].to_list() == ["assumed"] * 2 + ["observed"] * 2
    assert (rows["available_at"] - rows["time"]).min() >= delay
    assert delay >= 12 * HOUR
    # A plan that is declared not to be.
    plan = Plan(timedelta(0), timedelta(days=30), page=10, pages=1)
    prompt = fetch(make(plan=plan), WEEK).frame.sort("time")
    assert prompt["available_at"].to_list()[0] == published[0] + LAG


def test_newsapi_is_a_day_late_unless_declared_otherwise() -> None:
    assert newsapi.FREE.delay == DAY
    settings = Settings(newsapi_key="k", gnews_key="k", newsapi_delay_h=0)  # type: ignore[arg-type]
    made = sources(settings, _universe())
    assert made["newsapi"]._plan.delay == timedelta(0)
    assert made["gnews"]._plan.delay == timedelta(hours=12)


def test_without_a_key_it_is_off() -> None:
    made = sources(Settings(), _universe())
    for name in ("gnews", "newsapi"):
        assert isinstance(made[name], Off)
        assert f"FEATURE_PIPELINE_{name.upper()}_KEY" in made[name].why
    assert made["feeds"].name == "feeds"


def _universe() -> Any:
    from feature_pipeline.universe import Universe

    return Universe.load()


def test_pages_are_read_as_far_as_the_plan_goes(
    make: Make, press: Press, provider_server: ProviderServer
) -> None:
    press.stories = [Story(str(n), f"Apple story {n}", ago(hours=30 + n)) for n in range(25)]
    for pages, found, asked in ((1, 10, 2), (2, 20, 4), (9, 25, 6)):
        provider_server.asked.clear()
        plan = Plan(timedelta(0), timedelta(days=30), page=10, pages=pages)
        assert fetch(make(plan=plan), WEEK).frame.height == found
        assert len(provider_server.asked) == asked


def test_no_more_is_asked_for_than_the_plan_has(
    make: Make, press: Press, provider_server: ProviderServer
) -> None:
    press.stories = [Story("x", "Apple", ago(days=2))]
    answer = fetch(make(), (date(2015, 1, 1), TODAY[1]))
    assert set(answer.failed) == {"AAPL", "MSFT"}
    assert "nothing from before 2026-02" in answer.failed["AAPL"]
    assert answer.frame.height == 1
    assert min(request.query["from"] for request in provider_server.asked) > "2026-02"
    provider_server.asked.clear()
    assert set(fetch(make(), (date(2015, 1, 1), date(2015, 2, 1))).failed) == {"AAPL", "MSFT"}
    assert provider_server.asked == []


# -- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [faults.too_many("0"), faults.broken(), faults.hung_up(), faults.bad_gzip()]
)
def test_a_passing_fault_is_asked_again(
    make: Make, press: Press, provider_server: ProviderServer, fault: Answer
) -> None:
    press.stories = [Story("x", "Apple", ago(hours=26))]
    provider_server.fail(fault)
    assert fetch(make()).frame.height == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (faults.broken(), "answered 500"),
        (faults.hung_up(), "broke off"),
        (faults.bad_gzip(), "cannot be unpacked"),
        (faults.silent(), "did not answer in time"),
        (faults.dripping(), "did not answer in time"),
        (faults.html(), "no JSON"),
        (faults.truncated(), "no JSON"),
        (Answer(200, b"[" * 100_000), "no JSON"),
        (Answer(200, {"status": "ok"}), "without articles"),
        (Answer(200, {"articles": None}), "without articles"),
        (Answer(200, []), "without articles"),
        (Answer(400, {"code": "parameterInvalid"}), "answered 400"),
        (Answer(200, b" " * (9 << 20)), "more than"),
        (Answer(302, b"", {"Location": "https://elsewhere.example/"}), "elsewhere.example"),
    ],
)
def test_a_lasting_fault_costs_its_instrument(
    make: Make, press: Press, provider_server: ProviderServer, fault: Answer, words: str
) -> None:
    press.stories = [Story("x", "Microsoft", ago(hours=26))]
    provider_server.fail(fault, times=1 if fault.status in (200, 302, 400) else 2)
    if fault.cut or fault.pause_s or fault.drip_s or "Content-Encoding" in fault.headers:
        provider_server.fail(fault)
    answer = fetch(make(limits=IMPATIENT))
    assert list(answer.failed) == ["AAPL"]
    assert words in answer.failed["AAPL"]
    assert answer.frame["title"].to_list() == ["Microsoft"]


@pytest.mark.parametrize("status", [401, 403, 426])
def test_a_key_that_is_refused_is_not_tried_again(
    make: Make, press: Press, provider_server: ProviderServer, status: int
) -> None:
    provider_server.fail(Answer(status, {"message": f"The key {KEY} is wrong"}), times=9)
    with pytest.raises(SourceError, match=str(status)) as caught:
        fetch(make())
    assert len(provider_server.asked) == 1
    assert KEY not in str(caught.value)


def test_a_quota_that_ends_in_between_costs_those_that_come_after(
    make: Make, press: Press, provider_server: ProviderServer
) -> None:
    press.stories = [Story("x", "Apple", ago(hours=26))]
    real = press.routes()

    def once(path: str) -> Callable[[Any], Answer]:
        return lambda asked: real[path](asked) if "Apple" in asked.query["q"] else Answer(403)

    provider_server.routes.update({path: once(path) for path in real})
    answer = fetch(make())
    assert (list(answer.failed), answer.frame.height) == (["MSFT"], 1)


def test_one_that_is_down_is_not_asked_for_everybody(
    make: Make, provider_server: ProviderServer
) -> None:
    provider_server.routes["/"] = lambda _: faults.broken()
    many = [INSTRUMENTS[0].model_copy(update={"id": f"S{n}"}) for n in range(20)]
    with pytest.raises(SourceError, match="answered 500"):
        make().documents("news", many, *TODAY)
    assert len(provider_server.asked) == 3 * QUICK.attempts


def test_the_key_is_in_a_header_and_nowhere_else(
    make: Make, press: Press, provider_server: ProviderServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        fetch(make())
    assert {request.headers["x-api-key"] for request in provider_server.asked} == {KEY}
    assert all(KEY not in str(request.query) + request.path for request in provider_server.asked)
    assert KEY not in caplog.text
    assert KEY not in repr(make())


@pytest.mark.parametrize(
    ("story", "time"),
    [
        (Story("x", "Apple", None), None),
        (Story("x", "Apple", "yesterday"), None),
        (Story("x", "Apple", 12), None),  # type: ignore[arg-type]
        (Story("x", "Apple", "2026-03-10T10:00:00"), None),
        (Story("x", "Apple", "2027-03-10T10:00:00Z"), datetime(2027, 3, 10, 10, tzinfo=UTC)),
    ],
)
def test_what_cannot_be_placed_is_handed_on_to_be_rejected(
    make: Make, press: Press, story: Story, time: datetime | None
) -> None:
    press.stories = [story]
    frame = fetch(make()).frame
    assert frame["time"].to_list() == [time]
    assert frame["available_at"].to_list() == [time]


def test_whatever_an_article_holds_is_stored_clean(
    make: Make, provider_server: ProviderServer
) -> None:
    odd: list[Any] = [
        None,
        7,
        {"title": "Apple"},
        {"title": "Apple", "url": 7, "publishedAt": "2026-03-09T10:00:00Z", "description": []},
        {
            "title": "\ud83d\ude00 Apple \ud800\u0000<script>x()</script>\u202e",
            "url": "https://p.example/\ud800",
            "publishedAt": "2026-03-09T12:00:00+02:00",
            "description": "word " * 400_000,
        },
    ]
    body = json.dumps({"articles": odd})
    provider_server.routes["/"] = lambda _: Answer(200, body)
    frame = fetch(make(), WEEK).frame
    assert frame["title"].to_list() == ["Apple", "\U0001f600 Apple \ufffd"]
    assert frame["time"].to_list() == [datetime(2026, 3, 9, 10, tzinfo=UTC)] * 2
    assert frame["text"].str.len_chars().max() <= 20_000  # type: ignore[operator]
    assert frame["url"].to_list() == [None, "https://p.example/%EF%BF%BD"]


def test_names_cannot_leave_their_query(
    make: Make, press: Press, provider_server: ProviderServer
) -> None:
    odd = INSTRUMENTS[0].model_copy(
        update={"name": 'A"pple\r\nX: y&from=1970', "aliases": ("x" * 600, "Mac\\")}
    )
    source = make()
    source.documents("news", [odd], *TODAY)
    query = provider_server.asked[0].query["q"]
    assert query.startswith('"A pple  X: y&from=1970"')
    assert len(query) <= source.longest
    assert "\\" not in query
