"""Feeds: real HTTP, the real parser in its process, and every fault a feed may have."""

from __future__ import annotations

import logging
import resource
import time
from datetime import UTC, date, datetime, timedelta

import pytest

from feature_pipeline.errors import SourceError
from feature_pipeline.schemas import Fetched
from feature_pipeline.sources import DocumentSource, Metered
from feature_pipeline.sources.http import Limits
from feature_pipeline.sources.news.articles import LAG
from feature_pipeline.sources.news.feeds import FEEDS, FeedSource
from feature_pipeline_tests.providers import server as faults
from feature_pipeline_tests.providers.news import Story, atom, feed, rss
from feature_pipeline_tests.providers.server import (
    IMPATIENT,
    QUICK,
    Answer,
    ProviderServer,
    Request,
)
from feature_pipeline_tests.sources.documents_support import (
    INSTRUMENTS,
    NOW,
    TODAY,
    WEEK,
    ago,
    titles,
)


def made(
    server: ProviderServer, *paths: str, limits: Limits = QUICK, cpu: float = 5.0
) -> FeedSource:
    feeds = [path if "://" in path else server.url + path for path in paths or ("/all",)]
    return FeedSource(feeds, limits=limits, clock=lambda: NOW, cpu_seconds=cpu)


def serve(server: ProviderServer, path: str, body: str | bytes) -> None:
    server.routes[path] = lambda _: feed(body)


def fetch(source: FeedSource, days: tuple[date, date] = TODAY) -> Fetched:
    return source.documents("news", INSTRUMENTS, *days)


ONE = Story("one", "Apple &amp; friends <b>rise</b>", ago(hours=1))


# -- what there is --------------------------------------------------------------------------------


def test_it_is_a_document_source() -> None:
    source = FeedSource()
    assert isinstance(source, DocumentSource)
    assert isinstance(source, Metered)
    # One feed per ticker, three of everything.
    assert len([f for f in FEEDS if "{ticker}" in f]) == 1
    assert source.calls("news", INSTRUMENTS, *_recent()) == 2 + len(FEEDS) - 1
    assert source.calls("news", INSTRUMENTS, date(2015, 1, 1), date(2015, 2, 1)) == 0


def _recent() -> tuple[date, date]:
    today = datetime.now(UTC).date()
    return today, today + timedelta(days=1)


@pytest.mark.parametrize("kind", [rss, atom])
def test_an_entry_is_a_document(provider_server: ProviderServer, kind) -> None:  # type: ignore[no-untyped-def]
    serve(provider_server, "/all", kind([ONE, Story("two", "Nobody we know", ago(hours=1))]))
    answer = fetch(made(provider_server))
    assert answer.asked == ("AAPL", "MSFT")
    assert not answer.failed
    row = answer.frame.row(0, named=True)
    assert answer.frame.height == 1
    assert row["title"] == "Apple & friends rise"
    assert row["text"] == "A summary."
    assert row["url"] == "https://publisher.example/one"
    assert (row["time"], row["available_at"]) == (ago(hours=1), NOW)
    assert (row["symbols"], row["source"], row["channel"]) == (["AAPL"], "feeds", "news")
    assert row["availability_basis"] == "observed"


def test_nothing_was_seen_before_the_asking_was_over(provider_server: ProviderServer) -> None:
    """Five hundred tickers take minutes, and publishers do not wait."""
    story, over = Story("new", "Apple rises meanwhile", ago(minutes=-2)), ago(minutes=-4)
    clock = [NOW]

    def slowly(_: Request) -> Answer:
        clock[0] = over
        return feed(rss([story]))

    provider_server.routes["/all"] = slowly
    source = FeedSource([f"{provider_server.url}/all"], limits=QUICK, clock=lambda: clock[0])
    rows = fetch(source).frame
    assert rows.select("time", "available_at", "availability_basis").rows() == [
        (story.at, over, "observed")
    ]


def test_what_is_old_is_assumed_to_have_been_shown_shortly_after(
    provider_server: ProviderServer,
) -> None:
    serve(
        provider_server,
        "/all",
        rss(
            [
                ONE,
                Story("old", "Apple of old", ago(hours=25)),
                Story("p", "Apple past", ago(days=9)),
            ]
        ),
    )
    week = fetch(made(provider_server), WEEK).frame.sort("time")
    assert week["title"].to_list() == ["Apple of old", "Apple & friends rise"]
    assert week["available_at"].to_list() == [ago(hours=25) + LAG, NOW]
    assert week["availability_basis"].to_list() == ["assumed", "observed"]
    # What is live belongs to today, whatever day it was published on.
    assert titles(fetch(made(provider_server), (WEEK[0], TODAY[0]))) == ["Apple of old"]


def test_a_feed_per_ticker_names_its_instrument(provider_server: ProviderServer) -> None:
    serve(provider_server, "/of/AAPL", rss([Story("x", "It has a new boss", ago(hours=1))]))
    serve(provider_server, "/of/MSFT", rss([Story("y", "Apple sues", ago(hours=1))]))
    serve(provider_server, "/q/Apple", rss([Story("z", "An apple a day", ago(hours=1))]))
    serve(provider_server, "/q/Microsoft", rss([]))
    answer = fetch(made(provider_server, "/of/{ticker}", "/q/{name}"))
    found = dict(answer.frame.select("title", "symbols").rows())
    assert found == {"It has a new boss": ["AAPL"], "Apple sues": ["AAPL", "MSFT"]}


def test_an_article_of_several_feeds_is_one_document(provider_server: ProviderServer) -> None:
    story = Story("x", "They agree", ago(hours=1))
    again = Story("x?utm_source=rss", "They agree (update)", ago(hours=1))
    serve(provider_server, "/of/AAPL", rss([story]))
    serve(provider_server, "/of/MSFT", rss([again]))
    row = fetch(made(provider_server, "/of/{ticker}")).frame.row(0, named=True)
    assert (row["title"], row["symbols"]) == ("They agree", ["AAPL", "MSFT"])


DATES = {
    "Tue, 10 Mar 2026 10:00:00 -0400": datetime(2026, 3, 10, 14, tzinfo=UTC),
    "Tue, 10 Mar 2026 10:00:00 EST": datetime(2026, 3, 10, 15, tzinfo=UTC),
    "2026-03-10T10:00:00Z": datetime(2026, 3, 10, 10, tzinfo=UTC),
    # Without a zone: as late as it can have been, and not later than now.
    "Mon, 09 Mar 2026 20:00:00": datetime(2026, 3, 10, 8, tzinfo=UTC),
    "2026-03-10T10:00:00": NOW,
    # Without an hour: the end of that day, wherever it ended last.
    "2026-03-08": datetime(2026, 3, 9, 12, tzinfo=UTC),
    "Tue, 10 Mar 2026 10:00:00 BRT": NOW,
}


def test_dates(provider_server: ProviderServer) -> None:
    stories = [Story(str(n), f"Apple: {said}", said) for n, said in enumerate(DATES)]
    serve(provider_server, "/all", rss(stories))
    rows = fetch(made(provider_server), WEEK).frame.select("title", "time").rows()
    assert dict(rows) == {f"Apple: {said}": meant for said, meant in DATES.items()}


def test_what_has_no_date_is_handed_on_to_be_rejected(provider_server: ProviderServer) -> None:
    none = (None, "soon", "Tue, 99 Foo 2026")
    serve(provider_server, "/all", rss([Story(str(n), "Apple", at) for n, at in enumerate(none)]))
    frame = fetch(made(provider_server)).frame
    assert frame.select("time", "available_at").rows() == [(None, None)] * 3
    # By today's run alone.
    assert fetch(made(provider_server), (WEEK[0], TODAY[0])).frame.is_empty()


def test_what_is_to_come_is_handed_on_to_be_rejected(provider_server: ProviderServer) -> None:
    tomorrow = NOW + timedelta(days=1)
    serve(provider_server, "/all", rss([Story("x", "Apple", tomorrow)]))
    frame = fetch(made(provider_server)).frame
    assert frame.select("time", "available_at").rows() == [(tomorrow, tomorrow)]


def test_a_range_that_feeds_do_not_reach_is_not_known(provider_server: ProviderServer) -> None:
    serve(provider_server, "/all", rss([ONE]))
    source = made(provider_server)
    old = fetch(source, (date(2015, 1, 1), date(2015, 2, 1)))
    assert (set(old.failed), old.frame.height, provider_server.asked) == ({"AAPL", "MSFT"}, 0, [])
    both = fetch(source, (date(2015, 1, 1), TODAY[1]))
    assert (set(both.failed), both.frame.height) == ({"AAPL", "MSFT"}, 1)


# -- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [faults.too_many("0"), faults.broken(), faults.hung_up(), faults.bad_gzip()]
)
def test_a_passing_fault_is_asked_again(provider_server: ProviderServer, fault: Answer) -> None:
    serve(provider_server, "/all", rss([ONE]))
    provider_server.fail(fault)
    assert fetch(made(provider_server)).frame.height == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (faults.broken(), "answered 500"),
        (faults.hung_up(), "broke off"),
        (faults.bad_gzip(), "cannot be unpacked"),
        (faults.silent(), "did not answer in time"),
        (faults.dripping(), "did not answer in time"),
        (faults.html(), "no feed"),
        (Answer(404), "answered 404"),
        (Answer(200, b""), "no feed"),
        (Answer(200, b'{"items": []}'), "no feed"),
        (feed(b"x" * (5 << 20)), "more than"),
        (Answer(302, b"", {"Location": "https://elsewhere.example/"}), "elsewhere.example"),
        (Answer(302, b"", {"Location": "file:///etc/passwd"}), "sends us"),
    ],
)
def test_a_lasting_fault_costs_its_feed(
    provider_server: ProviderServer,
    fault: Answer,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    serve(provider_server, "/all", rss([ONE]))
    serve(provider_server, "/of/MSFT", rss([Story("y", "A deal", ago(hours=1))]))
    provider_server.routes["/of/AAPL"] = provider_server.routes["/broken"] = lambda _: fault
    with caplog.at_level(logging.WARNING):
        answer = fetch(made(provider_server, "/of/{ticker}?key=canary", "/all", limits=IMPATIENT))
    assert set(answer.failed) == {"AAPL"}
    assert words in answer.failed["AAPL"]
    assert titles(answer) == ["A deal", "Apple & friends rise"]
    assert "canary" not in answer.failed["AAPL"] + caplog.text
    # Alone, there is nothing else to tell.
    with pytest.raises(SourceError, match=words):
        fetch(made(provider_server, "/broken", limits=IMPATIENT))


def test_a_host_that_wants_to_be_left_alone_is_and_no_other(
    provider_server: ProviderServer,
) -> None:
    provider_server.routes["/"] = lambda _: faults.too_many("3600")
    with ProviderServer({"/": lambda _: feed(rss([ONE]))}) as other:
        there = other.url.replace("127.0.0.1", "localhost") + "/all"
        answer = fetch(made(provider_server, "/of/{ticker}", there))
    assert len(provider_server.asked) == 1
    assert answer.frame.height == 1
    assert {why.partition("wants")[2][:17] for why in answer.failed.values()} == {
        " to be left alone"
    }
    assert set(answer.failed) == {"AAPL", "MSFT"}


def test_a_feed_of_everything_that_is_missing_beside_others_is_no_failure(
    provider_server: ProviderServer, caplog: pytest.LogCaptureFixture
) -> None:
    serve(provider_server, "/all", rss([ONE]))
    answer = fetch(made(provider_server, "/gone", "/all"))
    assert (answer.failed, answer.frame.height) == ({}, 1)
    assert "/gone answered 404" in caplog.text


def test_a_host_that_is_down_is_not_asked_for_everybody(provider_server: ProviderServer) -> None:
    serve(provider_server, "/all", rss([ONE]))
    paths = [f"/gone/{n}" for n in range(20)]
    fetch(made(provider_server, "/all", *paths))
    assert len([path for path in provider_server.paths() if "gone" in path]) == 3


def test_redirects_are_followed_to_the_hosts_of_feeds_alone(
    provider_server: ProviderServer,
) -> None:
    serve(provider_server, "/all", rss([ONE]))
    provider_server.routes["/moved"] = lambda _: Answer(301, b"", {"Location": "/all"})
    assert fetch(made(provider_server, "/moved")).frame.height == 1
    with ProviderServer({"/": lambda _: feed(rss([ONE]))}) as other:
        there = other.url.replace("127.0.0.1", "localhost") + "/x"
        provider_server.routes["/away"] = lambda _: Answer(302, b"", {"Location": there})
        with pytest.raises(SourceError, match="localhost"):
            fetch(made(provider_server, "/away"))
        assert other.asked == []
        assert fetch(made(provider_server, "/away", there)).frame.height == 1


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host.example/feed",
        "file:///etc/passwd",
        "/etc/passwd",
        "https://",
        "https://user:secret@host.example/feed",
        "https://host.example/{symbol}",
        "https://{ticker}:x/feed",
        "http://[::1/feed",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(SourceError, match=r"no address of a feed|\{name\}"):
        fetch(FeedSource([address], clock=lambda: NOW))


def test_a_ticker_cannot_leave_its_place(provider_server: ProviderServer) -> None:
    provider_server.routes["/of/"] = lambda _: feed(rss([]))
    odd = INSTRUMENTS[0].model_copy(update={"tickers": {"feeds": "../x?y#z&a\r\nb"}})
    made(provider_server, "/of/{ticker}").documents("news", [odd], *TODAY)
    assert provider_server.asked[0].query == {}
    assert provider_server.paths()[0].startswith("/of/..%2Fx%3Fy%23z%26a%0D%0Ab")


# -- untrusted text -------------------------------------------------------------------------------

_LAUGHS = (
    "<!DOCTYPE x [<!ENTITY l0 'ha'>"
    + "".join(f"<!ENTITY l{n} '{f'&l{n - 1};' * 10}'>" for n in range(1, 10))
    + "]>"
)
MALICE = {
    "billion laughs": rss([Story("x", "Apple", ago(hours=1))], _LAUGHS).replace("Apple", "&l9;"),
    "billion laughs in UTF-16": rss(
        [Story("x", "Apple", ago(hours=1))], "<?xml version='1.0' encoding='utf-16'?>" + _LAUGHS
    ).encode("utf-16"),
    "nested": "<rss version='2.0'><channel><item>" + "<a>" * 100_000,
    "nested items": "<rss version='2.0'><channel>" + "<item>" * 100_000,
    "attributes": "<rss version='2.0'><channel><item "
    + " ".join(f"a{n}='1'" for n in range(100_000))
    + "/></channel></rss>",
    "brackets": "<rss version='2.0'><channel><item><title>" + "<" * 1_000_000,
    "external": "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><rss version='2.0'><channel>"
    "<item><title>Apple &e;</title></item></channel></rss>",
    "noise": bytes(range(256)) * 4000,
}


def test_what_feeds_do_to_the_parser_is_bounded(
    provider_server: ProviderServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Each ends its reader at worst: the next one is read by another."""
    paths = [f"/bad/{number}/" for number in range(len(MALICE))]
    for path, body in zip(paths, MALICE.values(), strict=True):
        serve(provider_server, path, body)
    serve(provider_server, "/all", rss([ONE]))
    before = resource.getrusage(resource.RUSAGE_CHILDREN), time.process_time()
    answer = fetch(made(provider_server, *paths, "/all", cpu=0.5))
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert provider_server.paths() == [*paths, "/all"]
    assert "Apple & friends rise" in titles(answer)
    assert not answer.failed
    assert "root:" not in str(answer.frame.rows())
    assert "takes more than 0.5 s" in caplog.text
    assert "declares entities of its own" in caplog.text
    assert children.ru_utime - before[0].ru_utime < 2 * len(MALICE)
    assert time.process_time() - before[1] < len(MALICE)
    assert children.ru_maxrss < 2 << 20  # in KiB; other tests' children count as well


def test_a_feed_that_is_cut_loses_its_last_entry_alone(provider_server: ProviderServer) -> None:
    body = rss([ONE, Story("two", "Apple falls", ago(hours=2), "Deeply.")])
    for end in (
        "falls",
        "</title><link>https://publisher.example/two",
        "eeply",
        "</item></channel",
    ):
        serve(provider_server, "/all", body[: body.rindex(end)])
        assert titles(fetch(made(provider_server))) == ["Apple & friends rise"], end


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1", "windows-1252"])
def test_encodings(provider_server: ProviderServer, encoding: str) -> None:
    head = f'<?xml version="1.0" encoding="{encoding}"?>'
    body = rss([Story("x", "Apple à Genève", ago(hours=1))], head)
    serve(provider_server, "/all", body.encode(encoding))
    assert titles(fetch(made(provider_server))) == ["Apple à Genève"]


def test_a_feed_that_lies_about_its_encoding_is_read_as_far_as_it_goes(
    provider_server: ProviderServer,
) -> None:
    body = rss([Story("x", "Apple à Genève", ago(hours=1)), ONE]).encode("iso-8859-1")
    serve(provider_server, "/all", body)
    found = titles(fetch(made(provider_server)))
    assert "Apple & friends rise" in found
    assert all(title.encode() for title in found)


def test_whatever_an_entry_holds_is_stored_clean(provider_server: ProviderServer) -> None:
    text = "<script>x()</script>" + "🚀 שלום \u202e Apple " * 60_000
    serve(
        provider_server, "/all", rss([Story("x", "Apple \u202e🚀 <img src=x>", ago(hours=1), text)])
    )
    row = fetch(made(provider_server)).frame.row(0, named=True)
    assert row["title"] == "Apple 🚀"
    assert row["text"].startswith("🚀 שלום Apple 🚀")
    assert len(row["text"]) <= 20_000


def test_an_entry_without_a_usable_address_is_known_by_its_own_name(
    provider_server: ProviderServer,
) -> None:
    stories = [Story(str(n), f"Apple {n}", ago(hours=1), url="javascript:alert(1)") for n in (1, 2)]
    serve(provider_server, "/all", rss(stories))
    frame = fetch(made(provider_server)).frame
    assert frame["url"].to_list() == [None, None]
    assert frame["document_id"].n_unique() == 2
