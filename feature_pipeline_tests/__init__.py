"""The tests, the benchmarks, and what both need."""

TIMESCALEDB_VARIABLE = "FEATURE_PIPELINE_TEST_TIMESCALEDB_URL"
"""Names a PostgreSQL with TimescaleDB, and a superuser of it."""
