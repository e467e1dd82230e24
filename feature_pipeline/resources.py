"""What the assets and sensors are given: stores, universe, sources and scorer, from the settings.

The command line builds the same objects from here, so that it sees what a run sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import dagster as dg
import redis

from feature_pipeline.assets.describe import Describer
from feature_pipeline.errors import SettingsError
from feature_pipeline.features.catalogue import (
    build_tables,
    code_version,
    definitions,
    over_universe,
)
from feature_pipeline.online.client import publishing_client
from feature_pipeline.schemas import STATE_VECTOR_FIELDS
from feature_pipeline.settings import PREFIX, Settings
from feature_pipeline.sources import Off, Scorer
from feature_pipeline.sources.crypto import EXCHANGES, CryptoSource
from feature_pipeline.sources.dukascopy import DukascopySource
from feature_pipeline.sources.edgar import EdgarSource
from feature_pipeline.sources.finbert import FinbertScorer
from feature_pipeline.sources.fred import FredSource
from feature_pipeline.sources.lexicon import LexiconScorer
from feature_pipeline.sources.news.feeds import FeedSource
from feature_pipeline.sources.news.gnews import GNewsSource
from feature_pipeline.sources.news.newsapi import NewsApiSource
from feature_pipeline.sources.reddit import RedditSource
from feature_pipeline.sources.sample import SampleSource
from feature_pipeline.sources.yahoo import YahooSource
from feature_pipeline.storage import registry
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.storage.migrations import migrate
from feature_pipeline.storage.store import Store
from feature_pipeline.universe import DEFAULT, Universe


def store(settings: Settings, *, reading: bool = False) -> Store:
    """The store of the settings' database; `reading` - as who may only read, if anybody is named.

    Raises:
        SettingsError: there is no database.
    """
    active, universe = scorer(settings), load_universe(settings)
    named = reading and settings.reader_database_url is not None
    address = _address(settings, "reader_database_url" if named else "database_url")
    return Store(
        Database(address, settings.database_timeout_s),
        universe,
        build_tables(active.model, active.revision, universe.timeframes),
        wait=timedelta(seconds=settings.hole_wait_s),
        off=off(settings),
        macro_provider=settings.macro_source,
    )


def load_universe(settings: Settings) -> Universe:
    """The universe that the settings name, or the sample's."""
    return Universe.load(settings.universe or DEFAULT)


def code_versions(universe: Universe, settings: Settings | None = None) -> dict[str, str]:
    """Asset -> the version of what it computes, which with its inputs decides what is stale.

    The active sentiment model is part of it. Some features aggregate over the universe: its
    sectors, members and benchmark are part of the version of every asset with a column that
    follows from one of them.
    """
    over = f" universe@{universe.digest}"
    active = scorer(settings or Settings())
    tables = build_tables(active.model, active.revision, universe.timeframes)
    return {asset: code_version(asset, tables) + over * over_universe(asset) for asset in tables}


def prepare_database(database_url: str) -> list[str]:
    """Bring the tables up to date and the feature registry with them; names what was applied.

    Raises:
        DatabaseError: the database cannot be reached or refuses.
    """
    applied = migrate(database_url)
    with Database(database_url) as database:
        registry.sync(
            database,
            definitions(),
            {"state_vector": ("The 14 numbers of an agent's state.", STATE_VECTOR_FIELDS)},
        )
    return applied


def redis_client(settings: Settings) -> redis.Redis:
    """A client that publishes to the settings' Redis.

    Raises:
        SettingsError: there is no Redis.
    """
    return publishing_client(_address(settings, "redis_url"))


def _address(
    settings: Settings, name: Literal["database_url", "reader_database_url", "redis_url"]
) -> str:
    address = getattr(settings, name)
    if address is None:
        raise SettingsError(
            f"{PREFIX}{name.upper()} is not set; set it, or start the command with "
            "`feature-pipeline run -- COMMAND` to use the embedded stack"
        )
    return str(address.get_secret_value())


def default_resources(settings: Settings) -> dict[str, Any]:
    """Dagster's resources by key. Each is made when a run or a tick first needs it."""

    @dg.io_manager  # type: ignore[arg-type]  # Dagster takes a generator, its annotation does not
    def storage(_: dg.InitResourceContext) -> Iterator[StorageIOManager]:
        held = store(settings)
        manager = StorageIOManager(held, Describer(held))
        try:
            yield manager
        finally:
            manager.close()
            manager.store.database.close()

    @dg.resource
    def universe(_: dg.InitResourceContext) -> Universe:
        return load_universe(settings)

    @dg.resource
    def online(_: dg.InitResourceContext) -> Iterator[redis.Redis]:
        client = redis_client(settings)
        try:
            yield client
        finally:
            client.close()

    return {
        "storage": storage,
        "universe": universe,
        "redis": online,
        "sources": sources(settings, load_universe(settings)),
        "macro_source": macro_source(settings),
        "scorer": scorer(settings),
    }


def sources(settings: Settings, universe: Universe) -> dict[str, Any]:
    """Every provider that `universe.yaml` may name, by name; one that lacks a credential is `Off`.

    Nothing is asked, and no client library is imported, before the first question.
    """
    exchanges = (CryptoSource(name) for name in EXCHANGES)
    edgar = with_credentials("edgar", settings, EdgarSource)
    reddit = with_credentials(
        "reddit", settings, partial(RedditSource, subreddits=universe.subreddits)
    )
    gnews, newsapi = (
        with_credentials(
            make.name, settings, partial(make, plan=replace(make.free, delay=timedelta(hours=h)))
        )
        for make, h in (
            (GNewsSource, settings.gnews_delay_h),
            (NewsApiSource, settings.newsapi_delay_h),
        )
    )
    prices = (YahooSource(), DukascopySource(), *exchanges)
    texts = (FeedSource(universe.feeds), gnews, newsapi, reddit)
    known = (SampleSource(), *prices, *texts, edgar)
    return {source.name: source for source in known}


def macro_source(settings: Settings) -> Any:
    """Who is asked for macro series, or `Off`."""
    if settings.macro_source == "fred":
        return with_credentials("fred", settings, FredSource)
    return SampleSource()


CREDENTIALS: Mapping[str, tuple[str, ...]] = {
    "fred": ("fred_api_key",),
    "reddit": ("reddit_client_id", "reddit_client_secret"),
    "gnews": ("gnews_key",),
    "newsapi": ("newsapi_key",),
    "edgar": ("edgar_contact",),
}
"""Provider -> the settings without which it is off."""


def with_credentials(name: str, settings: Settings, make: Callable[..., Any]) -> Any:
    """The provider that `make` makes of its credentials, in the order of `CREDENTIALS`; `Off` where
    one is not set."""
    if why := _why_off(name, settings):
        return Off(name, why)
    return make(*(getattr(settings, s).get_secret_value() for s in CREDENTIALS[name]))


def off(settings: Settings) -> dict[str, str]:
    """Provider -> why it is not asked, and what to do about it."""
    asked = [name for name in CREDENTIALS if name != "fred" or settings.macro_source == "fred"]
    return {name: why for name in asked if (why := _why_off(name, settings))}


def _why_off(name: str, settings: Settings) -> str:
    absent = [PREFIX + s.upper() for s in CREDENTIALS[name] if getattr(settings, s) is None]
    return f"{name} is off: set {' and '.join(absent)} to switch it on" if absent else ""


def scorer(settings: Settings) -> Scorer:
    """The active sentiment model; nothing is loaded before it scores."""
    if settings.scorer == "vader":
        return LexiconScorer()
    models = settings.models or settings.home / "models"
    return FinbertScorer(models, int8=settings.scorer == "finbert-int8")
