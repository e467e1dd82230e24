"""Reddit: the real praw against a local Reddit, and every fault it may have."""

from __future__ import annotations

import logging
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from feature_pipeline.errors import SourceError
from feature_pipeline.schemas import Fetched
from feature_pipeline.sources import DocumentSource, Metered, document_ids
from feature_pipeline.sources.http import Limits
from feature_pipeline.sources.reddit import COMMENTS, DISCUSSED, LAG, SUBREDDITS, RedditSource
from feature_pipeline_tests.providers import reddit as made
from feature_pipeline_tests.providers import server as faults
from feature_pipeline_tests.providers.reddit import Comment, Post, Reddit
from feature_pipeline_tests.providers.server import IMPATIENT, QUICK, Answer, ProviderServer
from feature_pipeline_tests.sources.documents_support import INSTRUMENTS, NOW, TODAY, ago, titles


@pytest.fixture
def world(provider_server: ProviderServer) -> Reddit:
    reddit = Reddit()
    provider_server.routes.update(reddit.routes())
    return reddit


@pytest.fixture
def source(provider_server: ProviderServer) -> RedditSource:
    return made.source(provider_server, lambda: NOW)


def fetch(source: RedditSource, days: tuple[date, date] = TODAY) -> Fetched:
    return source.documents("reddit", INSTRUMENTS, *days)


# -- what there is --------------------------------------------------------------------------------


def test_it_is_a_source_of_documents(source: RedditSource) -> None:
    assert isinstance(source, DocumentSource)
    assert isinstance(source, Metered)
    assert source.calls("reddit", INSTRUMENTS, *TODAY) == 1 + (10 + DISCUSSED)
    assert source.calls("news", INSTRUMENTS, *TODAY) == 0
    with pytest.raises(SourceError, match="reddit has no news"):
        source.documents("news", INSTRUMENTS, *TODAY)


def test_posts_and_comments_that_speak_of_instruments(
    world: Reddit, source: RedditSource, provider_server: ProviderServer
) -> None:
    world.posts = [
        Post("p1", ago(hours=1), "Apple &amp; $MSFT rally", "<b>Bold</b> move"),
        Post("p2", ago(hours=2), "What do you eat?", "Nothing that matters."),
        Post(
            "p3",
            ago(hours=3),
            "Daily discussion",
            comments=[
                Comment("c0", ago(hours=3), "AAPL: read the rules", stickied=True),
                Comment("c1", ago(minutes=30), "Long AAPL"),
                Comment("c2", ago(minutes=20), "nothing"),
                Comment("c3", ago(minutes=10), "MSFT " + "word " * 100),
            ],
        ),
    ]
    answer = fetch(source)
    rows = {row["url"]: row for row in answer.frame.iter_rows(named=True)}
    assert answer.failed == {}
    assert answer.asked == ("AAPL", "MSFT")
    site = "https://www.reddit.com/comments"
    assert set(rows) == {f"{site}/p1/", f"{site}/p3/_/c1/", f"{site}/p3/_/c3/"}
    post, comment, long = (rows[u] for u in sorted(rows))
    assert (post["title"], post["text"]) == ("Apple & $MSFT rally", "Bold move")
    assert post["symbols"] == ["AAPL", "MSFT"]
    assert post["document_id"] == document_ids("reddit", answer.frame["url"].head(1))[0]
    assert (comment["title"], comment["text"]) == ("Long AAPL", None)
    assert f"{long['title']} {long['text']}" == ("MSFT " + "word " * 100).strip()
    assert len(long["title"]) <= 300
    assert {row["channel"] for row in rows.values()} == {"reddit"}
    assert {row["source"] for row in rows.values()} == {"reddit"}
    # Live: seen now.
    assert {(r["available_at"], r["availability_basis"]) for r in rows.values()} == {
        (NOW, "observed")
    }
    assert comment["time"] == ago(minutes=30)
    assert "/comments/p2/" not in provider_server.paths(), "it has none"


def test_no_author_is_kept_or_logged(
    world: Reddit, source: RedditSource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    world.posts = [Post("p1", ago(hours=1), "AAPL", comments=[Comment("c1", ago(hours=1), "AAPL")])]
    answer = fetch(source)
    assert answer.frame.height == 2
    for said in (caplog.text, str(answer.frame.to_dicts()), repr(source)):
        for secret in (made.AUTHOR, made.CLIENT_SECRET, made.TOKEN):
            assert secret not in said


def test_history_counts_from_publication_or_its_last_edit(
    world: Reddit, source: RedditSource
) -> None:
    world.posts = [
        Post("p1", datetime(2026, 3, 6, 12, tzinfo=UTC), "AAPL"),
        Post("p2", datetime(2026, 3, 6, 23, 59, tzinfo=UTC), "AAPL, late"),
        Post(
            "p3",
            datetime(2026, 3, 6, 13, tzinfo=UTC),
            "AAPL, edited",
            edited=datetime(2026, 3, 8, 13, tzinfo=UTC),
        ),
        Post("p4", ago(hours=23), "AAPL, live"),
    ]

    def collected(day: int) -> dict[str, datetime]:
        frame = fetch(source, (date(2026, 3, day), date(2026, 3, day + 1))).frame
        return dict(frame.select("title", "available_at").iter_rows())

    assert collected(6) == {"AAPL": datetime(2026, 3, 6, 12, tzinfo=UTC) + LAG}
    assert collected(7) == {"AAPL, late": datetime(2026, 3, 7, 0, 1, tzinfo=UTC)}
    assert collected(9) == {}, "live, it belongs to today, though published on the 9th"
    assert collected(10) == {"AAPL, live": NOW}
    frame = fetch(source, (date(2026, 3, 6), date(2026, 3, 9))).frame
    edited = frame.filter(title="AAPL, edited")
    assert edited["available_at"][0] == datetime(2026, 3, 8, 13, tzinfo=UTC) + LAG
    assert edited["availability_basis"][0] == "assumed"


def test_what_was_deleted_is_no_row(world: Reddit, source: RedditSource) -> None:
    world.posts = [
        Post("p1", ago(hours=1), "AAPL", "[removed]", removed_by="moderator"),
        Post("p2", ago(hours=1), "AAPL", "[deleted]"),
        Post("p3", ago(hours=1), "AAPL", removed_by="automod_filtered"),
        Post("p4", ago(hours=1), "[deleted by user]", "AAPL"),
        Post("p5", ago(hours=1), "MSFT", comments=[Comment("c1", ago(hours=1), "[deleted]")]),
    ]
    assert titles(fetch(source)) == ["MSFT"]


# -- listings -------------------------------------------------------------------------------------


def test_pages_are_turned_until_the_range_begins(
    world: Reddit, source: RedditSource, provider_server: ProviderServer
) -> None:
    world.posts = [Post(f"p{n}", ago(minutes=10 * n), f"AAPL {n}") for n in range(500)]
    answer = fetch(source)
    # Live are 24 hours; pages reach back one day before the range, 39 hours.
    assert answer.frame.height == 24 * 6
    assert answer.failed == {}
    pages = [path for path in provider_server.paths() if path == "/r/stocks/new"]
    assert len(pages) == 3


def test_what_a_listing_repeats_counts_once(
    world: Reddit, source: RedditSource, provider_server: ProviderServer
) -> None:
    first = [made.thing("t3", Post(f"p{n}", ago(minutes=n), "AAPL").data()) for n in (1, 2)]
    then = [made.thing("t3", Post(f"p{n}", ago(minutes=n), "AAPL").data()) for n in (2, 3)]
    provider_server.fail(made.listing(first, "t3_p2"), made.listing(then), below="/r/stocks/new")
    assert fetch(source).frame.height == 3


def test_history_behind_the_last_thousand_posts_fails_every_symbol(
    world: Reddit, source: RedditSource
) -> None:
    world.posts = [Post(f"p{n}", ago(hours=n), f"AAPL {n}") for n in range(1200)]
    days = (date(2025, 12, 1), TODAY[1])
    answer = fetch(source, days)
    assert set(answer.failed) == {"AAPL", "MSFT"}
    assert "r/stocks lists its newest posts alone, back to 2026-01-" in answer.failed["AAPL"]
    assert answer.frame.height == 1000, "what there was is kept"
    recent = fetch(source, (date(2026, 3, 1), TODAY[1]))
    assert recent.failed == {}


# -- subreddits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [302, 403, 404, 451])
def test_a_closed_subreddit_costs_itself_alone(
    world: Reddit,
    provider_server: ProviderServer,
    status: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world.posts = [Post("p1", ago(hours=1), "AAPL"), Post("p2", ago(hours=1), "AAPL", "", "secret")]
    world.closed["secret"] = status
    source = made.source(provider_server, lambda: NOW, ("secret", "stocks"))
    answer = fetch(source)
    assert (answer.frame.height, answer.failed) == (1, {})
    assert f"r/secret answered {status}: it is private, banned or gone" in caplog.text
    alone = made.source(provider_server, lambda: NOW, ("secret",))
    with pytest.raises(SourceError, match="r/secret answered"):
        fetch(alone)


def test_a_subreddit_that_fails_this_time_leaves_symbols_uncollected(
    world: Reddit, provider_server: ProviderServer
) -> None:
    world.posts = [
        Post("p1", ago(hours=1), "AAPL"),
        Post("p2", ago(hours=1), "AAPL", "", "options"),
    ]
    provider_server.fail(faults.broken(), below="/r/options/", times=2)
    source = made.source(provider_server, lambda: NOW, ("options", "stocks"))
    answer = fetch(source)
    assert answer.frame.height == 1
    assert set(answer.failed) == {"AAPL", "MSFT"}
    assert "/r/options/new answered 500, 2 times" in answer.failed["AAPL"]
    assert fetch(source).failed == {}


def test_subreddits_are_names(provider_server: ProviderServer) -> None:
    for name in ("../api/info", "a b", "r/stocks", "x\r\ny", "a+b", "ｓtocks"):
        source = made.source(provider_server, lambda: NOW, (name,))
        with pytest.raises(SourceError, match="is no subreddit; write its name without r/"):
            fetch(source)
    assert provider_server.asked == []
    assert made.source(provider_server, lambda: NOW, ())._subreddits == SUBREDDITS


# -- faults ---------------------------------------------------------------------------------------


def test_too_many_waits_as_long_as_it_is_told(
    world: Reddit, source: RedditSource, provider_server: ProviderServer
) -> None:
    world.posts = [Post("p1", ago(hours=1), "AAPL")]
    provider_server.fail(faults.too_many("1"), below="/r/")
    began = datetime.now(UTC)
    assert fetch(source).frame.height == 1
    assert datetime.now(UTC) - began >= timedelta(seconds=1)


def _used_up(post: Post, left: str, reset: str) -> Answer:
    page = made.listing([made.thing("t3", post.data())], "t3_p1")
    counted = {"x-ratelimit-remaining": left, "x-ratelimit-used": "600", "x-ratelimit-reset": reset}
    return Answer(200, page.body, {**page.headers, **counted})


def test_requests_that_are_used_up_end_the_run_and_keep_what_came(
    world: Reddit, source: RedditSource, provider_server: ProviderServer
) -> None:
    post = Post("p1", ago(hours=1), "AAPL")
    provider_server.fail(_used_up(post, "0.0", "599"), below="/r/")
    answer = fetch(source)
    assert titles(answer) == ["AAPL"]
    assert "our requests are used up for 59" in answer.failed["AAPL"]
    assert provider_server.paths() == ["/api/v1/access_token", "/r/stocks/new"]


@pytest.mark.parametrize("left", ["many", "nan", "", "1e999"])
def test_counts_that_are_no_numbers_are_passed_over(
    world: Reddit, source: RedditSource, provider_server: ProviderServer, left: str
) -> None:
    world.posts = [Post("p1", ago(hours=1), "AAPL"), Post("p2", ago(hours=2), "MSFT")]
    provider_server.fail(_used_up(world.posts[0], left, left), below="/r/")
    answer = fetch(source)
    assert (titles(answer), answer.failed) == (["AAPL", "MSFT"], {})


@pytest.mark.parametrize("fault", [faults.broken(), faults.hung_up(), faults.bad_gzip()])
def test_a_passing_fault_costs_nothing(
    world: Reddit, source: RedditSource, provider_server: ProviderServer, fault: Answer
) -> None:
    world.posts = [Post("p1", ago(hours=1), "AAPL")]
    provider_server.fail(fault, below="/r/")
    answer = fetch(source)
    assert (answer.frame.height, answer.failed) == (1, {})


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (faults.too_many("3600"), "wants to be left alone for 3600 s"),
        (faults.broken(), "answered 500, 2 times"),
        (faults.html(), "sent what is no answer"),
        (faults.truncated('{"kind": "Listing", "data": {"children": ['), "sent what is no answer"),
        (faults.truncated("[]"), "sent what is no answer"),
        (faults.truncated('{"kind": "Listing", "data": {}}'), "sent what is no answer"),
        (
            faults.truncated('{"kind": "Listing", "data": {"children": [{"kind": "t3"}]}}'),
            "no answer",
        ),
        (faults.truncated("null"), "lists no post at all"),
        (faults.truncated('{"what": 1}'), "sent what is no answer"),
        (faults.silent(5), "did not answer"),
        (faults.dripping(each_s=0.2), "did not answer"),
        (faults.hung_up(), "broke off"),
    ],
)
def test_a_lasting_fault_is_one_line(
    world: Reddit,
    provider_server: ProviderServer,
    fault: Answer,
    said: str,
) -> None:
    world.posts = [Post("p1", ago(hours=1), "AAPL")]
    slow = fault.pause_s or fault.drip_s
    limits = IMPATIENT if slow else QUICK
    source = made.source(provider_server, lambda: NOW, limits=limits)
    provider_server.fail(fault, below="/r/", times=9)
    with pytest.raises(SourceError, match=r"^reddit: ") as raised:
        fetch(source)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    for secret in (made.CLIENT_SECRET, made.TOKEN, "?"):
        assert secret not in str(raised.value)
    assert raised.value.__context__ is None or raised.value.__suppress_context__


def test_comments_that_cannot_be_read_leave_the_posts(
    world: Reddit, source: RedditSource, provider_server: ProviderServer
) -> None:
    world.posts = [Post("p1", ago(hours=1), "AAPL", comments=[Comment("c1", ago(hours=1), "MSFT")])]
    provider_server.fail(faults.html(), below="/comments/")
    answer = fetch(source)
    assert titles(answer) == ["AAPL"]
    assert set(answer.failed) == {"AAPL", "MSFT"}
    provider_server.fail(Answer(404, {"message": "Not Found", "error": 404}), below="/comments/")
    answer = fetch(source)
    assert (titles(answer), answer.failed) == (["AAPL"], {}), "deleted meanwhile"
    assert titles(fetch(source)) == ["AAPL", "MSFT"]


def test_comments_are_bounded(
    world: Reddit, source: RedditSource, provider_server: ProviderServer
) -> None:
    comments = [Comment(f"c{n}", ago(hours=1), "AAPL") for n in range(50)]
    world.posts = [
        Post(f"p{n}", ago(hours=1), "x", comments=[*comments[: n + 5]]) for n in range(40)
    ]
    fetch(source)
    asked = [path for path in provider_server.paths() if path.startswith("/comments/")]
    assert sorted(asked) == sorted(f"/comments/p{n}/" for n in range(30, 40))
    limits = {r.query["limit"] for r in provider_server.asked if r.path.startswith("/comments/")}
    assert limits == {str(COMMENTS)}


def test_credentials_that_are_refused_are_named_and_not_shown(
    world: Reddit, provider_server: ProviderServer
) -> None:
    source = RedditSource(
        "id",
        "canary-wrong",
        reddit_url=provider_server.url,
        oauth_url=provider_server.url,
        limits=QUICK,
    )
    with pytest.raises(SourceError, match="check FEATURE_PIPELINE_REDDIT_CLIENT_ID") as raised:
        fetch(source)
    assert "canary" not in str(raised.value)
    assert len(provider_server.asked) == 1, "nothing else would be answered either"


def test_no_praw_ini_has_a_say(
    world: Reddit,
    provider_server: ProviderServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "praw.ini").write_text("[DEFAULT]\nusername=x\npassword=y\nclient_id=z\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("praw_username", "x")
    monkeypatch.setenv("praw_password", "y")
    monkeypatch.setenv("praw_client_id", "z")
    world.posts = [Post("p1", ago(hours=1), "AAPL")]
    assert fetch(made.source(provider_server, lambda: NOW)).frame.height == 1
    assert provider_server.asked[0].form == {"grant_type": "client_credentials"}


# -- untrusted text -------------------------------------------------------------------------------


def test_hostile_texts_are_clean_or_absent(world: Reddit, source: RedditSource) -> None:
    when = ago(hours=1)
    world.posts = [
        Post("p1", when, "AAPL " + "A" * 1_000_000, "$AAPL " * 150_000),
        Post("p2", when, "AAPL \U0001f680\u202e evil \x00\ud800", "\x00\ud83d"),
        Post("p3", when, "AAPL <script>alert(1)</script>", "<div>" * 50_000),
        Post("p4", when, "AAPL \u05d0\u05d1", "\u0627\u0644"),
        Post("p5", when, None, "AAPL without a title"),
        Post("p6", when, ["AAPL"], {"AAPL": 1}),
        Post("../p7", when, "AAPL"),
        Post("p8", when, "AAPL", more={"created_utc": "yesterday"}),
        Post("p9", when, "AAPL", more={"created_utc": 1e300}),
        Post("p10", when, "AAPL", more={"num_comments": "many", "edited": "yes"}),
    ]
    frame = fetch(source).frame.sort("url")
    rows = {row["url"].split("/")[4]: row for row in frame.iter_rows(named=True)}
    assert set(rows) == {"p1", "p2", "p3", "p4", "p5", "p10"}
    assert len(rows["p1"]["title"]) <= 300
    assert len(rows["p1"]["text"]) <= 20_000
    assert "\U0001f680" in rows["p2"]["title"]
    for row in rows.values():
        for text in (row["title"], row["text"]):
            assert text is None or not set(text) & set("\x00\u202e<"), text
    assert rows["p3"]["title"] == "AAPL"
    assert rows["p5"]["title"] is None, "validation says why"


def test_a_page_that_is_too_large_is_not_read(
    world: Reddit, provider_server: ProviderServer
) -> None:
    limits = Limits(1000, 0.1, attempts=2, wait_s=0.5, deadline_s=2.0, max_bytes=100_000)
    world.posts = [Post("p1", ago(hours=1), "AAPL", "x" * 200_000)]
    with pytest.raises(SourceError, match="more than 100000 bytes"):
        fetch(made.source(provider_server, lambda: NOW, limits=limits))


# -- deleted at the source ------------------------------------------------------------------------


def _urls(*names: str) -> list[str]:
    return [f"https://www.reddit.com/comments/{name}/" for name in names]


def test_what_reddit_calls_removed_is_gone(world: Reddit, source: RedditSource) -> None:
    world.posts = [
        Post("p1", ago(days=2), "AAPL", "intact"),
        Post("p2", ago(days=2), "AAPL", "[deleted]"),
        Post("p3", ago(days=2), "AAPL", removed_by="moderator"),
        Post("p4", ago(days=2), "[deleted by user]"),
        Post(
            "p5",
            ago(days=2),
            "AAPL",
            more={"author": "[deleted]"},  # the account is gone, the post is not
            comments=[
                Comment("c1", ago(days=2), "intact"),
                Comment("c2", ago(days=2), "[removed]"),
            ],
        ),
    ]
    held = _urls("p1", "p2", "p3", "p4", "p5", "p5/_/c1", "p5/_/c2", "p6")
    assert source.gone([*held, "sample://x", "https://www.reddit.com/comments/../x/"]) == set(
        _urls("p2", "p3", "p4", "p5/_/c2", "p6")
    ), "p6 is missing twice, beside what is there"
    assert source.gone([]) == set()


def test_by_hundreds(world: Reddit, source: RedditSource, provider_server: ProviderServer) -> None:
    world.posts = [Post(f"p{n}", ago(days=2), "x") for n in range(250)]
    del world.posts[7]
    assert source.gone(_urls(*(f"p{n}" for n in range(250)))) == set(_urls("p7"))
    assert provider_server.paths().count("/api/info/") == 4


def test_an_answer_that_lacks_things_is_not_believed_at_once(
    world: Reddit, source: RedditSource, provider_server: ProviderServer
) -> None:
    world.posts = [Post(f"p{n}", ago(days=2), "x") for n in range(5)]
    held = _urls(*(f"p{n}" for n in range(5)))
    some = [made.thing("t3", world.posts[0].data())]
    provider_server.fail(made.listing(some), below="/api/info")
    assert source.gone(held) == set(), "the second answer has them"
    provider_server.fail(made.listing([]), below="/api/info", times=2)
    assert source.gone(held) == set(), "nor what is known to be there"
    provider_server.fail(made.listing(some), made.listing([]), below="/api/info")
    assert source.gone(held) == set()


def test_a_single_post_that_vanished(world: Reddit, source: RedditSource) -> None:
    assert source.gone(_urls("p1")) == set(), "with nothing to compare, nothing is known"
    world.posts = [Post("p2", ago(hours=1), "anything")]
    assert source.gone(_urls("p1")) == set(_urls("p1"))


@pytest.mark.parametrize(
    "fault",
    [
        faults.broken(),
        faults.html(),
        faults.truncated(),
        faults.truncated('{"what": 1}'),
        faults.silent(5),
        Answer(403, {"error": 403}),
    ],
)
def test_no_answer_is_no_deletion(
    world: Reddit, provider_server: ProviderServer, fault: Answer
) -> None:
    world.posts = [Post("p1", ago(days=2), "x")]
    limits = IMPATIENT if fault.pause_s else QUICK
    source = made.source(provider_server, lambda: NOW, limits=limits)
    provider_server.fail(fault, below="/api/info", times=9)
    with pytest.raises(SourceError, match=r"^reddit"):
        source.gone(_urls("p1"))
