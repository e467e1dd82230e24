"""What publishing and reading cost, against floors measured in the same run, in turns.

`run(redis_url)` needs a Redis of its own: it empties the database that the URL names.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import redis

from feature_pipeline.online import keys
from feature_pipeline.online.client import publishing_client
from feature_pipeline.online.publish import publish
from feature_pipeline.online.read import read_state_vector, read_state_vectors
from feature_pipeline.schemas import STATE_VECTOR_FIELDS, UTC_TIME

SYMBOLS = 500
FEATURES = 30
TURNS = 25
READS = 3000


def run(redis_url: str) -> list[dict[str, Any]]:
    """One row per measurement: name, value, unit, floor, ratio (1.0 = as fast as it), goal."""
    client = publishing_client(redis_url)
    client.flushdb()
    return [_publishing(client), _reading(client), _reading_many(client)]


def _publishing(client: redis.Redis) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    start = datetime.now(UTC) - timedelta(hours=1)
    ours, raw = [], []
    for turn in range(TURNS + 2):
        rows = _rows(rng, start + timedelta(seconds=turn), turn + 1)
        prepared = _commands(client, rows)

        def publish_ours(rows: pl.DataFrame = rows) -> None:
            report = publish(client, rows, "1d")
            if report.written != SYMBOLS:
                raise RuntimeError(f"the bench published {report}")

        def write_raw(prepared: list[tuple[Any, ...]] = prepared) -> None:
            with client.pipeline(transaction=False) as pipeline:
                for command in prepared:
                    pipeline.execute_command(*command)
                pipeline.execute()

        turns = [(ours, publish_ours), (raw, write_raw)]
        for times, action in turns if turn % 2 else turns[::-1]:
            # Both write newer values over older ones: the everyday case.
            client.flushdb()
            publish(client, rows.with_columns(pl.col("revision") - 1), "1d")
            times.append(_seconds(action))
    value, floor = statistics.median(ours[2:]), statistics.median(raw[2:])
    return {
        "name": f"publish {SYMBOLS} symbols x {len(STATE_VECTOR_FIELDS) + FEATURES} fields; "
        "floor: one raw pipelined write of the same bytes",
        "value": value * 1e3,
        "unit": "ms",
        "floor": floor * 1e3,
        "ratio": floor / value,
        "goal": 0.5,
    }


def _reading(client: redis.Redis) -> dict[str, Any]:
    now, limit = datetime.now(UTC), timedelta(days=1)
    key = keys.vector_key("1d", "SYM0001")
    ours, bare = [], []
    for _ in range(READS):
        ours.append(_seconds(lambda: read_state_vector(client, "SYM0001", "1d", now, limit)))
        bare.append(_seconds(lambda: client.get(key)))
    value, floor = statistics.median(ours), statistics.median(bare)
    return {
        "name": "read one state vector (GET + unpack); floor: a bare GET",
        "value": value * 1e6,
        "unit": "us",
        "floor": floor * 1e6,
        "ratio": floor / value,
        "goal": 0.8,
    }


def _reading_many(client: redis.Redis) -> dict[str, Any]:
    now, limit = datetime.now(UTC), timedelta(days=1)
    symbols = [f"SYM{i:04d}" for i in range(100)]
    names = [keys.vector_key("1d", symbol) for symbol in symbols]
    ours, bare = [], []
    for _ in range(READS // 10):
        ours.append(_seconds(lambda: read_state_vectors(client, symbols, "1d", now, limit)))
        bare.append(_seconds(lambda: client.mget(names)))
    value, floor = statistics.median(ours), statistics.median(bare)
    return {
        "name": "read 100 state vectors (MGET + unpack); floor: a bare MGET",
        "value": value * 1e6,
        "unit": "us",
        "floor": floor * 1e6,
        "ratio": floor / value,
        "goal": 0.4,
    }


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _rows(rng: np.random.Generator, available_at: datetime, revision: int) -> pl.DataFrame:
    numbers = [*STATE_VECTOR_FIELDS, *(f"some_feature_{i}" for i in range(FEATURES))]
    return pl.DataFrame(
        {
            "symbol": [f"SYM{i:04d}" for i in range(SYMBOLS)],
            **{name: rng.normal(size=SYMBOLS) for name in numbers},
            "regime": rng.choice(["trend", "range", "transition"], SYMBOLS).tolist(),
            "regime_confidence": rng.random(SYMBOLS),
        }
    ).with_columns(
        available_at=pl.lit(available_at, dtype=UTC_TIME), revision=pl.lit(revision, pl.Int64)
    )


def _commands(client: redis.Redis, rows: pl.DataFrame) -> list[tuple[Any, ...]]:
    """Plain SETs and HSETs of exactly what `publish` writes: published once, then read back."""
    publish(client, rows, "1d")
    commands: list[tuple[Any, ...]] = []
    for symbol in rows["symbol"]:
        vector = keys.vector_key("1d", symbol)
        commands.append(("SET", vector, client.get(vector)))
        for key in (keys.features_key("1d", symbol), keys.regime_key("1d", symbol)):
            fields: Any = client.hgetall(key)
            commands.append(("HSET", key, *(x for pair in fields.items() for x in pair)))
    return commands


if __name__ == "__main__":
    import json
    import sys

    sys.stdout.write(json.dumps(run(sys.argv[1]), indent=1) + "\n")
