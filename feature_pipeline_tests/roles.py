"""Users that log in as one of the four roles, for as long as a test needs them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg

from feature_pipeline.storage.migrations import ROLES


def as_user(url: str, user: str, password: str) -> str:
    """The address with another user."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()


@contextmanager
def logins(url: str) -> Iterator[dict[str, str]]:
    """`owner`, `maintainer`, `writer`, `reader` -> the address of `url` as a user with that role
    alone."""
    found = {}
    with psycopg.connect(url, autocommit=True) as link:
        for role in ROLES:
            name, user = role.removeprefix("feature_pipeline_"), f"user_{secrets.token_hex(6)}"
            password = secrets.token_hex(8)
            link.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{password}' IN ROLE {role}")
            found[name] = as_user(url, user, password)
        try:
            yield found
        finally:
            for address in found.values():
                user = urlsplit(address).username
                link.execute(f"DROP OWNED BY {user}")
                link.execute(f"DROP ROLE {user}")
